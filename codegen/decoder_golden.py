"""What a model gives for a prompt, as data: golden tokens, logits and inputs of projections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fpga.decoder_design import DecoderDesign
from lutllm.errors import ConfigError
from lutllm.model_config import ModelConfig

FOLDER = "golden/decoder"


@dataclass(frozen=True)
class DecoderGolden:
    """A greedy run of the model.

    prompt  i32[P] words; tokens: i32[N] words chosen; logits: f32[N, V] each was chosen from
    inputs  f32[P + N - 1, D] by linear, of every position the model ran; may lack linears. Of
            HEAD_LINEAR, the LUT linear before a head, too, though that runs from P - 1 on only
    """

    prompt: np.ndarray
    tokens: np.ndarray
    logits: np.ndarray
    inputs: Mapping[str, np.ndarray]

    def check(self, model: ModelConfig) -> None:
        """ConfigError where it is not of this model or not in itself consistent."""
        count = len(self.tokens)
        positions = len(self.prompt) + count - 1
        if len(self.prompt) == 0 or count == 0:
            raise ConfigError("golden run of the decoder: give at least one word and one token")
        wanted = {"logits": (self.logits, (count, model.vocab_size))}
        for shape in (*model.linears(), model.head_linear()):
            if shape.name in self.inputs:
                wanted[shape.name] = (self.inputs[shape.name], (positions, shape.in_features))
        for name, (array, size) in wanted.items():
            if array.shape != size:
                raise ConfigError(
                    f"golden run of the decoder: {name} has shape {list(array.shape)}, needs "
                    f"{list(size)}"
                )
        for words in (self.prompt, self.tokens):
            if words.min() < 0 or words.max() >= model.vocab_size:
                raise ConfigError(
                    f"golden run of the decoder: words {words.min()} to {words.max()}; the model "
                    f"has 0 to {model.vocab_size - 1}"
                )


def golden_sizes(model: ModelConfig, prompt: int, tokens: int, names: list[str]) -> dict[str, int]:
    """path -> bytes of the files of a golden run with `names` linears."""
    shapes = (*model.linears(), model.head_linear())
    widths = {shape.name: shape.in_features for shape in shapes}
    out = {
        f"{FOLDER}/prompt.bin": 4 * prompt,
        f"{FOLDER}/tokens.bin": 4 * tokens,
        f"{FOLDER}/logits.bin": 4 * tokens * model.vocab_size,
    }
    positions = prompt + tokens - 1
    return out | {f"{FOLDER}/{name}.bin": 4 * positions * widths[name] for name in names}


def write_decoder_golden(root: Path, decoder: DecoderDesign, golden: DecoderGolden) -> list[str]:
    """Write the files of a golden run; returns their paths relative to `root`."""
    golden.check(decoder.model)
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "prompt": golden.prompt.astype("<i4"),
        "tokens": golden.tokens.astype("<i4"),
        "logits": golden.logits.astype("<f4"),
        **{name: values.astype("<f4") for name, values in golden.inputs.items()},
    }
    for name, values in arrays.items():
        (folder / f"{name}.bin").write_bytes(values.tobytes())
    return [f"{FOLDER}/{name}.bin" for name in arrays]


def read_decoder_golden(
    root: Path, model: ModelConfig, prompt: int, tokens: int, names: list[str]
) -> DecoderGolden:
    """The golden run that `write_decoder_golden` wrote."""
    folder = root / FOLDER
    positions = prompt + tokens - 1

    def read(name: str, dtype: str, rows: int) -> np.ndarray:
        return np.fromfile(folder / f"{name}.bin", dtype).reshape(rows, -1)

    return DecoderGolden(
        prompt=read("prompt", "<i4", prompt)[:, 0],
        tokens=read("tokens", "<i4", tokens)[:, 0],
        logits=read("logits", "<f4", tokens),
        inputs={name: read(name, "<f4", positions) for name in names},
    )
