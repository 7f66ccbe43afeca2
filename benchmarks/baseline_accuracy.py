"""What other quantizations of a model cost, on the windows `lutllm eval` uses.

    python benchmarks/baseline_accuracy.py SRC --text FILE [--types RTN3,RTN4,Q4_0,Q2_K] [--json]

RTN3 and the like: the weights of the decoder layers rounded to 3 bits between the least and the
largest of each row and 64 channels, nothing fitted, all else as it is; with a scale and a zero
point of 16 bits a group. Of a file that has few bits already, its own grid is not used.
Other types are llama.cpp's, made by its own quantizer from the GGUF file SRC without an importance
matrix (`pip install llama-cpp-python`). All are compared with the float values of SRC: perplexity
ratio, KL divergence, top-1 agreement as of `lutllm eval --reference`. bits: of a weight of the
decoder layers, all of their tensors counted; megabytes: of the whole file.
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
from calib.decoder import FloatDecoder, ResidentDecoder
from calib.text import read_text, windows
from lutllm.checkpoint import Checkpoint, open_checkpoint
from quant.baseline import GROUP_CHANNELS, round_to_nearest


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


def measure_rounding(bits: int, checkpoint: Checkpoint, ids: np.ndarray) -> dict[str, Any]:
    """Distance to `checkpoint` on windows i64[N, ctx] of its weights rounded to nearest."""
    rounded = ResidentDecoder(FloatDecoder(checkpoint))
    for layer in rounded.layers:
        layer.weight = {name: round_to_nearest(w, bits) for name, w in layer.weight.items()}
    found = compare(checkpoint, rounded.logits, ids, progress=True)
    return {"bits": bits + 32 / GROUP_CHANNELS, **found.to_dict()}


def measure_llama(
    path: Path, checkpoint: Checkpoint, ids: np.ndarray, threads: int
) -> dict[str, Any]:
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
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--types", default="RTN2,RTN3,RTN4")
    parser.add_argument("--max-tokens", type=int, default=8192)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    checkpoint = open_checkpoint(args.source)
    ids = np.array(checkpoint.tokenizer().encode(read_text(args.text)), np.int64)
    chosen = windows(ids, args.ctx, args.max_tokens)
    rows = {}
    for kind in args.types.split(","):
        if kind.startswith("RTN"):
            row = measure_rounding(int(kind.removeprefix("RTN")), checkpoint, chosen)
        else:
            with tempfile.TemporaryDirectory() as folder:
                made = Path(folder) / f"{kind}.gguf"
                requantize(Path(args.source), kind, made)
                row = measure_llama(made, checkpoint, chosen, args.threads)
        rows[kind] = row
        if not args.json:
            size = f"{row['megabytes']:.0f} MB, " if "megabytes" in row else ""
            print(
                f"{kind}: {row['bits']:.2f} bits, {size}"
                f"ratio {row['ratio']:.3f} +- {row['ratio_stderr']:.3f}, "
                f"KL {row['kl_divergence']:.3f}, top-1 {row['top1_agreement']:.1%}",
                flush=True,
            )
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
