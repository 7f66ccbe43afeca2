"""A GGUF file of random weights in the shape of a model, for timing where no checkpoint is at hand.

    python benchmarks/random_gguf.py GGUF OUT --shape qwen2.5-1.5b [--type Q4_K_M]
    python tests/make_artifact.py ARTIFACT --shape qwen2.5-1.5b --head lut
    python benchmarks/compare_llamacpp.py ARTIFACT OUT

The tokenizer and everything else that is not a size comes from GGUF, a file of the same
architecture; llama.cpp itself quantizes the weights. Needs `pip install llama-cpp-python`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from gguf import GGUFReader, GGUFValueType, GGUFWriter

from benchmarks.baseline_accuracy import requantize
from tests.make_artifact import SHAPES

#: Names of `SHAPES` by their architecture's keys in the file.
_SIZES = ("embedding_length", "feed_forward_length", "block_count", "attention.head_count")


def copy_fields(source: Path, writer: GGUFWriter, sizes: dict[str, int]) -> None:
    """The fields of `source`, with other sizes."""
    for name, field in GGUFReader(source).fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        item = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(name, sizes.get(name, field.contents()), kind, sub_type=item)


def add_tensors(writer: GGUFWriter, arch: str, shape: tuple[int, ...]) -> None:
    """Random F16 matrices; norms of ones and, where the architecture has them, biases of zeros."""
    hidden, intermediate, layers, heads, kv_heads, head_dim, vocab = shape
    rng = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = rng.standard_normal((rows, columns), np.float32) * np.float32(0.02)
        writer.add_tensor(f"{name}.weight", values.astype(np.float16))

    q, kv = heads * head_dim, kv_heads * head_dim
    matrix("token_embd", vocab, hidden)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for layer in range(layers):
        base = f"blk.{layer}"
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{base}.{name}.weight", np.ones(hidden, np.float32))
        for name, rows in (("attn_q", q), ("attn_k", kv), ("attn_v", kv)):
            matrix(f"{base}.{name}", rows, hidden)
            if arch == "qwen2":
                writer.add_tensor(f"{base}.{name}.bias", np.zeros(rows, np.float32))
        matrix(f"{base}.attn_output", hidden, q)
        matrix(f"{base}.ffn_gate", intermediate, hidden)
        matrix(f"{base}.ffn_up", intermediate, hidden)
        matrix(f"{base}.ffn_down", hidden, intermediate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=Path, help="file of the same architecture")
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--type", default="Q4_K_M")
    args = parser.parse_args()
    arch, shape, _ = SHAPES[args.shape]
    if arch not in ("llama", "qwen2"):
        raise SystemExit(f"{args.shape}: tensors of {arch} are not known here")
    sizes = {f"{arch}.{key}": size for key, size in zip(_SIZES, shape, strict=False)}
    sizes[f"{arch}.attention.head_count_kv"] = shape[4]
    with tempfile.TemporaryDirectory(dir=args.out.parent) as folder:
        plain = Path(folder) / "f16.gguf"
        writer = GGUFWriter(plain, arch, use_temp_file=True)
        copy_fields(args.gguf, writer, sizes)
        add_tensors(writer, arch, shape)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        requantize(plain, args.type, args.out)


if __name__ == "__main__":
    main()
