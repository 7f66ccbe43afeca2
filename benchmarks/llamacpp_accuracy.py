"""What llama.cpp's own quantizations of a GGUF file cost, on the windows `lutllm eval` uses.

    python benchmarks/llamacpp_accuracy.py GGUF --text FILE [--types Q4_0,Q3_K_M,Q2_K] [--json]

Needs `pip install llama-cpp-python`. Every type is made from the file by llama.cpp itself without
an importance matrix, and compared with the float values of the file: perplexity ratio, KL
divergence, top-1 agreement as of `lutllm eval --reference`. bits: of a weight of the decoder
layers, all of their tensors counted; megabytes: of the whole file.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from calib.compare import compare
from calib.text import read_text, windows
from lutllm.checkpoint import Checkpoint, open_checkpoint


def requantize(source: Path, kind: str, out: Path) -> None:
    """`source` in the llama.cpp file type `kind`, such as "Q4_0"."""
    import llama_cpp

    value = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}", None)
    if value is None:
        raise SystemExit(f"llama.cpp has no file type {kind!r}")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = value, True
    done = llama_cpp.llama_model_quantize(
        str(source).encode(), str(out).encode(), ctypes.byref(params)
    )
    if done != 0:
        raise SystemExit(f"llama.cpp could not make {kind} of {source}")


def layer_bits(path: Path) -> float:
    """Bits of a matrix weight of the decoder layers."""
    from gguf import GGUFReader

    tensors = [t for t in GGUFReader(path).tensors if t.name.startswith("blk.")]
    weights = sum(int(t.n_elements) for t in tensors if len(t.shape) > 1)
    return 8 * sum(int(t.n_bytes) for t in tensors) / weights


def measure(path: Path, checkpoint: Checkpoint, ids: np.ndarray, threads: int) -> dict[str, Any]:
    """Bytes of the file and its distance to `checkpoint` on windows i64[N, ctx]."""
    from llama_cpp import Llama

    llama = Llama(
        str(path),
        n_ctx=ids.shape[1],
        n_batch=ids.shape[1],
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=True,
        verbose=False,
    )

    def logits(window: np.ndarray) -> np.ndarray:
        llama.reset()
        llama.eval(window.tolist())
        return llama.scores[: len(window)].astype(np.float32)

    found = compare(checkpoint, logits, ids, progress=True)
    return {
        "bits": layer_bits(path),
        "megabytes": path.stat().st_size / 1e6,
        **found.to_dict(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--types", default="Q4_0,Q3_K_M,Q2_K")
    parser.add_argument("--max-tokens", type=int, default=8192)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    checkpoint = open_checkpoint(args.gguf)
    ids = np.array(checkpoint.tokenizer().encode(read_text(args.text)), np.int64)
    chosen = windows(ids, args.ctx, args.max_tokens)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in args.types.split(","):
            made = Path(folder) / f"{kind}.gguf"
            requantize(args.gguf, kind, made)
            rows[kind] = measure(made, checkpoint, chosen, args.threads)
            made.unlink()
            if not args.json:
                row = rows[kind]
                print(
                    f"{kind}: {row['bits']:.2f} bits, {row['megabytes']:.0f} MB, "
                    f"ratio {row['ratio']:.3f} +- {row['ratio_stderr']:.3f}, "
                    f"KL {row['kl_divergence']:.3f}, top-1 {row['top1_agreement']:.1%}",
                    flush=True,
                )
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
