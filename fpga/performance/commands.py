"""`lutllm estimate` and `lutllm explore` as functions of plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpga.decoder_design import MAX_CONTEXT
from fpga.design_file import DesignChoices
from fpga.device import load_device
from fpga.performance.csynth import compare, read_report
from fpga.performance.designs import decoder_design
from fpga.performance.estimate import Estimate, Setting, costs_on
from fpga.performance.explore import Budget, Exploration, Space
from fpga.performance.explore import explore as run_explore
from fpga.performance.quantity import explain
from fpga.performance.resources import EngineResources
from lutllm.accuracy import Ratios, measured_ratio, read_ratios, recorded_ratios
from lutllm.artifact import read_json
from lutllm.checkpoint import open_checkpoint
from lutllm.checkpoint.gguf_file import is_gguf
from lutllm.config import QuantConfig
from lutllm.errors import CheckpointError, ConfigError
from lutllm.model_config import ModelConfig
from lutllm.recipes import DEFAULT_RECIPE, recipe

DEFAULT_CHOICES = DesignChoices()
MODEL_FOLDER = Path(__file__).parent.parent / "models"


def model_names() -> list[str]:
    """Models whose configuration ships with lutllm."""
    return sorted(path.stem for path in MODEL_FOLDER.glob("*.json"))


#: safetensors dtype of a checkpoint by the name in its config.json.
_STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Source:
    """A model to size: its shape, its quantization where it has one, the type of its floats."""

    model: ModelConfig
    quant: QuantConfig | None
    stored: str


def read_source(source: str | Path) -> Source:
    """The model behind `source`; weights are not read.

    source: an artifact or Hugging Face folder, a config.json, a GGUF file, or one of
    `model_names()`.
    """
    config = _read_config(Path(source), str(source))
    stored = _STORED.get(str(config.get("torch_dtype") or config.get("dtype")), "BF16")
    quant = config.get("quantization_config")
    if not isinstance(quant, dict) or quant.get("quant_method") != "lutllm":
        return Source(ModelConfig.from_hf(config), None, stored)
    return Source(ModelConfig.from_hf(config), QuantConfig.from_dict(quant), stored)


def _read_config(path: Path, source: str) -> dict[str, Any]:
    """The config.json of a model, or its equal in the header of a GGUF file."""
    if not path.exists():
        path = MODEL_FOLDER / f"{source}.json"
        if not path.is_file() or "/" in source:
            raise CheckpointError(
                f"{source}: no such file or folder; give an artifact, a folder with config.json, a "
                f"config.json, a GGUF file, or one of {', '.join(model_names())}"
            )
    if path.is_file() and (path.suffix == ".gguf" or is_gguf(path)):
        return open_checkpoint(path).hf_config
    if path.is_dir():
        path = path / "config.json"
    return read_json(path, CheckpointError)


def estimate(
    source: str | Path,
    quant: QuantConfig | None = None,
    choices: DesignChoices = DEFAULT_CHOICES,
    *,
    device: str = "v80",
    prompt_tokens: int = 128,
    context: int = 160,
    clock_mhz: float = 0.0,
    csynth: str | Path | None = None,
    explained: bool = False,
) -> dict[str, Any]:
    """Speed, size, fit and power of a model on a board, as plain numbers.

    quant      of a source that is not an artifact; None = the default recipe
    choices    the defaults are those of an export
    clock_mhz  in place of that of `choices`; 0 leaves it
    csynth     a Vitis HLS report; adds "comparison"
    explained  adds "explanation": every headline number with its formula
    """
    found = read_source(source)
    if found.quant is not None and quant is not None:
        raise ConfigError(f"{source}: is quantized already; leave out the quantization options")
    chosen = found.quant or quant or recipe(DEFAULT_RECIPE).quant()
    decoder = choices.decoder
    positions = max(prompt_tokens, context)
    if (decoder.context or MAX_CONTEXT) < positions:
        decoder = dataclasses.replace(decoder, context=positions)
    design = decoder_design(found.model, chosen, choices.engine, decoder, found.stored)
    board = load_device(device)
    clock = clock_mhz or choices.clock_mhz
    setting = Setting(board, clock_mhz=clock)
    result = Estimate(design, setting, prompt_tokens, context)
    out = result.to_dict()
    if csynth is not None:
        out["comparison"] = [row.to_dict() for row in _compare(result, csynth)]
    if explained:
        out["explanation"] = list(_explanation(result))
    return out


def _compare(found: Estimate, csynth: str | Path) -> list[Any]:
    """The estimate beside a report of the decoder, or of the kernel of its first engine."""
    blocks = found.blocks
    if read_report(csynth, []).top != found.design.name:
        engine = EngineResources(
            found.design.engines[0], costs_on(found.setting.device), alone=True
        )
        blocks = {block.function: block.all for block in engine.blocks()}
    return compare(csynth, blocks, found.setting.clock)


def _explanation(found: Estimate) -> Iterator[str]:
    headline = (
        found.decode.ms,
        found.prefill.ms,
        found.tokens_per_s,
        found.gb_per_s,
        found.power.watts,
        found.joule_per_token,
    )
    seen: set[int] = set()
    for number in headline:
        yield from explain(number, seen=seen)
        yield ""
    for name, block in found.blocks.items():
        for number in (block.lut, block.dsp, block.bram36, block.uram):
            if number.value:
                lines = list(explain(number, seen=seen))
                yield f"{name}: {lines[0]}"
                yield from lines[1:]
        yield ""


def explore(
    source: str | Path,
    quants: dict[str, QuantConfig],
    budget: Budget,
    *,
    device: str = "v80",
    prompt_tokens: int = 128,
    context: int = 160,
    clocks_mhz: Sequence[float] = (),
    accuracy: Sequence[str | Path] = (),
    out: str | Path | None = None,
    plot: str | Path | None = None,
) -> dict[str, Any]:
    """Search for the best design within a budget; `out` gets its choices (fpga/design_file.py).

    quants    by name; an artifact has its own and needs none
    accuracy  where perplexity ratios come from (`lutllm.accuracy.read_ratios`); empty: the report
              of an artifact, and for other sources what is recorded of a small model
    plot      an image of the front; needs matplotlib
    """
    model = read_source(source)
    quants = {"artifact": model.quant} if model.quant else quants
    ratios = _ratios(source, accuracy, quants, model.quant is not None)
    board = load_device(device)
    space = Space(
        quants,
        tuple(clocks_mhz) or (board.clock_mhz,),
        stored=model.stored,
        ratios=ratios.values,
    )
    found = run_explore(model.model, board, space, budget, prompt_tokens, context)
    if out is not None and found.chosen is not None:
        chosen = found.chosen
        DesignChoices(chosen.engine, chosen.design.config, chosen.setting.clock).write(out)
    if plot is not None:
        from fpga.performance.plots import plot_front

        plot_front(found, Path(plot))
    return _explored(found, board.name) | {"accuracy": _known(ratios, [*quants])}


def _ratios(
    source: str | Path,
    accuracy: Sequence[str | Path],
    quants: dict[str, QuantConfig],
    is_artifact: bool,
) -> Ratios:
    if accuracy:
        return read_ratios(accuracy, quants)
    if not is_artifact:
        return recorded_ratios(quants)
    report = Path(source) / "report.json"
    own = measured_ratio(read_json(report, ConfigError)) if report.is_file() else None
    return Ratios({} if own is None else dict.fromkeys(quants, own), str(report))


def _known(ratios: Ratios, names: Sequence[str]) -> dict[str, Any]:
    return {
        "source": ratios.source,
        "ratios": ratios.values,
        "unknown": ratios.unknown(names),
    }


def _explored(found: Exploration, device: str) -> dict[str, Any]:
    best = min(found.candidates, key=lambda c: c.decode_ms, default=None)
    prefill = min(found.candidates, key=lambda c: c.prefill_ms, default=None)
    return {
        "device": device,
        "tried": found.tried,
        "fitting": len(found.candidates),
        "chosen": found.chosen.to_dict() if found.chosen else None,
        "front": [candidate.to_dict() for candidate in found.front],
        "fastest_decode": best.to_dict() if best else None,
        "fastest_prefill": prefill.to_dict() if prefill else None,
    }
