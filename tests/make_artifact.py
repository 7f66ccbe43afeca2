"""Random but valid artifacts of every architecture, for tests and benchmarks of the emulator.

python tests/make_artifact.py OUT --shape qwen2.5-0.5b
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
from lutllm.artifact import INDEX_NAME, linear_tensors, write_json
from lutllm.config import HEADS, LutConfig, QuantConfig
from lutllm.int8_rows import quantize_rows
from lutllm.lut_linear import LutLinear
from lutllm.model_config import LinearShape, ModelConfig
from lutllm.recipes import RECIPES, recipe
from lutllm.tensorfile import f32_to_bf16, write_tensors
from quant.exact import has_exact_entries
from tests.helpers import random_linear

#: hidden, intermediate, layers, heads, kv heads, head size, vocabulary, tied
SHAPES: dict[str, tuple[str, tuple[int, ...], bool]] = {
    "qwen2.5-0.5b": ("qwen2", (896, 4864, 24, 14, 2, 64, 151936), True),
    "qwen2.5-1.5b": ("qwen2", (1536, 8960, 28, 12, 2, 128, 151936), True),
    "qwen3-0.6b": ("qwen3", (1024, 3072, 28, 16, 8, 128, 151936), True),
    "qwen3-1.7b": ("qwen3", (2048, 6144, 28, 16, 8, 128, 151936), True),
    "smollm2-135m": ("llama", (576, 1536, 30, 9, 3, 64, 49152), True),
}


def hf_config(
    arch: str, sizes: tuple[int, ...], tied: bool, max_positions: int = 8192
) -> dict[str, Any]:
    """A config.json. sizes: hidden, intermediate, layers, heads, kv heads, head size, words."""
    names = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
    ]
    return {
        "model_type": arch,
        **dict(zip(names, sizes, strict=True)),
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": max_positions,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
    }


def tiny_config(arch: str, **changes: Any) -> dict[str, Any]:
    """Two layers with grouped-query attention and sizes that divide by nothing convenient."""
    config = hf_config(arch, (72, 100, 2, 6, 2, 24, 301), arch != "llama", 700)
    return {**config, **changes}


def sane_scale(linear: LutLinear, target: float) -> LutLinear:
    """`linear` with an output scale that makes outputs of size `target` for inputs of size 1."""
    config = linear.config
    rng = np.random.default_rng(1)
    book = linear.position_codebooks()[0, :, 0].astype(np.float64)
    other = rng.standard_normal((len(book), 1, config.vec_len)) * 40
    shift = linear.table_shift[0, 0, :, :1].astype(np.float64)
    limit = (1 << (config.entry_bits(0) - 1)) - 1
    entries = np.clip((book * other).sum(-1) / 2.0**shift, -limit, limit)
    blocks = np.repeat(linear.block_shift[0, 0].astype(np.float64), config.block_positions)
    power = (entries**2).mean(-1) * 4.0 ** blocks[: len(entries)]
    size = np.sqrt(power.sum() * config.weight_stages)
    scale = rng.uniform(0.5, 1.5, linear.out_features) * target / size
    if config.scheme == "weight":
        scale = scale / 3  # a token's scale is max |x| over 127, about 3 for normal inputs
    return dataclasses.replace(linear, output_scale=scale.astype(np.float32))


def make_linear(shape: LinearShape, config: LutConfig, seed: int, bias: bool) -> LutLinear:
    linear = random_linear(
        config,
        shape.in_features,
        shape.out_features,
        seed,
        bias=bias,
        name=shape.name,
        exact=has_exact_entries(config),
    )
    return sane_scale(linear, 0.5 if shape.name.endswith(("o_proj", "down_proj")) else 1.0)


def store(values: np.ndarray, kind: str) -> tuple[str, np.ndarray]:
    if kind == "BF16":
        return kind, f32_to_bf16(values)
    return kind, values.astype(np.float16 if kind == "F16" else np.float32)


def store_rows(
    name: str, values: np.ndarray, head: str, kind: str
) -> dict[str, tuple[str, np.ndarray]]:
    """The tensors of embedding or head."""
    if head == "source":
        return {name: store(values, kind)}
    weight, scale = quantize_rows(values)
    return {name: ("I8", weight), f"{name}_scale": ("F32", scale)}


def write_artifact(
    path: Path,
    config: dict[str, Any],
    quant: QuantConfig | None = None,
    seed: int = 0,
    kind: str = "BF16",
) -> Path:
    """Write a random artifact; kind is the type of embedding and head if not int8."""
    quant = quant or QuantConfig()
    model = ModelConfig.from_hf(config)
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "config.json", {**config, "quantization_config": quant.to_dict()})
    weight_map: dict[str, str] = {}

    def write(name: str, tensors: dict[str, tuple[str, np.ndarray]]) -> None:
        write_tensors(path / name, tensors)
        weight_map.update(dict.fromkeys(tensors, name))

    floats = {"model.norm.weight": store(1 + 0.1 * rng.standard_normal(model.hidden_size), "F32")}
    names = ["model.embed_tokens.weight"]
    if quant.lut_head:
        shape = model.head_linear()
        floats |= linear_tensors(make_linear(shape, quant.for_linear(shape.name), seed + 5, False))
    if not config["tie_word_embeddings"]:
        names.append("lm_head.weight")
    for name in names:
        values = rng.standard_normal((model.vocab_size, model.hidden_size), np.float32)
        floats |= store_rows(name, values * np.float32(0.3), quant.head, kind)
    write("floats.safetensors", floats)
    for i in range(model.num_hidden_layers):
        tensors = layer_norms(model, i, rng)
        for j, shape in enumerate(model.layer_linears(i)):
            lut, own_seed = quant.for_linear(shape.name), seed + 10 * i + j
            layer = make_linear(shape, lut, own_seed, shape.has_bias)
            tensors |= linear_tensors(layer)
        write(f"layer-{i}.safetensors", tensors)
    write_json(path / INDEX_NAME, {"metadata": {}, "weight_map": dict(sorted(weight_map.items()))})
    return path


def layer_norms(
    model: ModelConfig, layer: int, rng: np.random.Generator
) -> dict[str, tuple[str, np.ndarray]]:
    base = f"model.layers.{layer}"
    sizes = {
        f"{base}.input_layernorm.weight": model.hidden_size,
        f"{base}.post_attention_layernorm.weight": model.hidden_size,
    }
    if model.qk_norm:
        sizes[f"{base}.self_attn.q_norm.weight"] = model.head_dim
        sizes[f"{base}.self_attn.k_norm.weight"] = model.head_dim
    return {n: store(1 + 0.1 * rng.standard_normal(size), "F32") for n, size in sizes.items()}


def write_tokenizer(path: Path, vocab_size: int, template: str | None = None) -> None:
    """A byte-level tokenizer: 256 bytes, then <eos>, then unused words up to vocab_size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(alphabet)}
    vocab |= {f"<w{i}>": i for i in range(len(vocab) + 1, vocab_size)}
    core = Tokenizer(models.BPE(vocab | {"<eos>": len(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<eos>"])
    core.save(str(path / "tokenizer.json"))
    values: dict[str, Any] = {"eos_token": "<eos>"}
    if template:
        values["chat_template"] = template
    (path / "tokenizer_config.json").write_text(json.dumps(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen2.5-0.5b")
    parser.add_argument("--layers", type=int, help="fewer layers than the model has")
    parser.add_argument("--words", type=int, help="a smaller vocabulary than the model has")
    parser.add_argument("--scheme", default="co")
    parser.add_argument("--weight-stages", type=int, default=1)
    parser.add_argument("--act-stages", type=int, default=1)
    parser.add_argument("--head", choices=HEADS, default="source")
    parser.add_argument("--recipe", choices=RECIPES, help="in place of scheme and stages")
    args = parser.parse_args()
    arch, sizes, tied = SHAPES[args.shape]
    if args.layers:
        sizes = (*sizes[:2], args.layers, *sizes[3:])
    if args.words:
        sizes = (*sizes[:-1], args.words)
    lut = LutConfig(
        scheme=args.scheme, weight_stages=args.weight_stages, act_stages=args.act_stages
    )
    quant = QuantConfig(lut, head=args.head)
    if args.recipe:
        quant = dataclasses.replace(recipe(args.recipe).quant(head=args.head), head_margin=0.0)
    write_artifact(args.out, hf_config(arch, sizes, tied), quant)
    write_tokenizer(args.out, 300)


if __name__ == "__main__":
    main()
