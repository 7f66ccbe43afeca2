"""An artifact on an FPGA: exported, simulated, estimated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lutllm import recipes
from lutllm.api.running import load
from lutllm.api.source import Source
from lutllm.artifact import Artifact, artifact_hash
from lutllm.config import HEAD_LINEAR, QuantConfig
from lutllm.errors import ConfigError
from lutllm.recipes import DEFAULT_RECIPE

if TYPE_CHECKING:
    from codegen.decoder_golden import DecoderGolden
    from fpga.design_file import DesignChoices
    from lutllm.emulator import LutModel


def export(
    artifact: Source,
    out: Source,
    *,
    device: str = "v80",
    design: Source | dict[str, Any] | None = None,
    golden_layers: int = 1,
    golden_tokens: int = 32,
    prompt_tokens: int = 16,
    new_tokens: int = 16,
    explained: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Write FPGA kernels, memory images and a testbench for an artifact into `out`.

    design         choices of engine, decoder and clock or their JSON file, as `explore` writes
                   it; None = the defaults
    golden_layers  decoder layers whose linears get golden vectors for C simulation: the inputs
                   that the emulator gives them for the first golden_tokens tokens of our text
    prompt_tokens  tokens of our text that the decoder continues in C simulation
    new_tokens     by so many tokens of its own
    explained      return "explanation": lines that name the block diagrams and map the memory
    """
    from codegen.explain import explain
    from codegen.export import export as run_export

    choices = _choices(design)
    model = load(artifact)
    ids = _golden_words(model, max(golden_tokens, prompt_tokens))
    inputs = _golden_inputs(model, ids[:golden_tokens], golden_layers)
    run = golden_run(model, ids[:prompt_tokens], new_tokens)
    found = run_export(
        artifact,
        out,
        device=device,
        clock_mhz=choices.clock_mhz,
        engine=choices.engine,
        decoder=choices.decoder,
        golden=inputs,
        golden_tokens=golden_tokens,
        decoder_golden=run,
        progress=progress,
    )
    return {**found, "explanation": explain(out)} if explained else found


def _choices(design: Source | dict[str, Any] | None) -> DesignChoices:
    from fpga.design_file import DesignChoices

    if isinstance(design, dict):
        return DesignChoices.from_dict(design)
    return DesignChoices() if design is None else DesignChoices.read(design)


def _golden_words(model: LutModel, tokens: int) -> list[int]:
    """The first tokens of our text."""
    from calib.text import default_text

    text = default_text()[: 64 * tokens]  # no tokenizer needs 64 characters a token
    return model.tokenizer.encode_prompt(text)[: min(tokens, model.context)]


def _golden_inputs(model: LutModel, ids: list[int], layers: int) -> dict[str, np.ndarray]:
    """Inputs f32[T, D] of the linears of the first decoder layers, by name."""
    inputs = model.capture_inputs(ids)
    names = {s.name for i in range(layers) for s in model.config.layer_linears(i)}
    return {name: values for name, values in inputs.items() if name in names}


def golden_run(model: LutModel, prompt: list[int], new_tokens: int) -> DecoderGolden:
    """What `model` gives greedily after `prompt`, for `codegen.csim_decoder.run_decoder`.

    Tokens after the end of the text count too; both end where the context does.
    """
    from codegen.decoder_golden import DecoderGolden
    from lutllm.emulator.reference import rms_norm

    prompt = prompt[: model.context]
    model.reset()
    logits = [model.prefill(prompt)]
    tokens = [int(logits[0].argmax())]
    while len(tokens) < min(new_tokens, model.context - len(prompt) + 1):
        logits.append(model.decode(tokens[-1]))
        tokens.append(int(logits[-1].argmax()))
    words = [*prompt, *tokens[:-1]]
    inputs = model.capture_inputs(words)
    artifact = Artifact.open(model.path)
    if artifact.quant.lut_head:
        norm = artifact.float32("model.norm.weight"), model.config.rms_norm_eps
        inputs[HEAD_LINEAR] = rms_norm(model.capture_stream(words), *norm)
    return DecoderGolden(
        prompt=np.array(prompt, np.int32),
        tokens=np.array(tokens, np.int32),
        logits=np.stack(logits),
        inputs=inputs,
    )


def estimate(
    source: Source,
    quant: QuantConfig | None = None,
    design: Source | dict[str, Any] | None = None,
    *,
    device: str = "v80",
    prompt_tokens: int = 128,
    context: int = 160,
    vector_lanes: int | None = None,
    vocab_ports: int | None = None,
    kv_ports: int | None = None,
    query_tokens: int | None = None,
    clock_mhz: float = 0.0,
    csynth: Source | None = None,
    explained: bool = False,
) -> dict[str, Any]:
    """Speed, size, fit and power of a model on an FPGA, from its configuration alone.

    source  artifact, folder with config.json, config.json, GGUF file (of which the header is
            read), or the name of a known model
    design  choices of engine, decoder and clock or their JSON file, as `explore` writes it; None
            takes those of an export
    vector_lanes, vocab_ports, kv_ports, query_tokens
            of the decoder kernel, in place of those of `design`
    fpga/performance/commands.py explains the rest.
    """
    from fpga.performance import commands

    kernel = {
        "vector_lanes": vector_lanes,
        "vocab_ports": vocab_ports,
        "kv_ports": kv_ports,
        "query_tokens": query_tokens,
    }
    choices = _choices(design)
    changes = {k: v for k, v in kernel.items() if v is not None}
    decoder = dataclasses.replace(choices.decoder, **changes)
    return commands.estimate(
        source,
        quant,
        dataclasses.replace(choices, decoder=decoder),
        device=device,
        prompt_tokens=prompt_tokens,
        context=context,
        clock_mhz=clock_mhz,
        csynth=csynth,
        explained=explained,
    )


def explore(
    source: Source,
    quants: dict[str, QuantConfig] | None = None,
    *,
    decode_tokens_per_s: float = 0.0,
    prefill_ms: float = 0.0,
    max_share: float = 0.8,
    max_perplexity_ratio: float = 0.0,
    **options: Any,
) -> dict[str, Any]:
    """The best FPGA design within a budget, and the Pareto front of all that fit.

    quants   quantizations to choose from, by name; None takes the default recipe
    max_perplexity_ratio
             of the quantized to the float model; "accuracy" in the result says where ratios come
             from and of which quantizations there is none
    options  those of fpga/performance/commands.py `explore`
    """
    from fpga.performance import commands
    from fpga.performance.explore import Budget

    return commands.explore(
        source,
        quants or {DEFAULT_RECIPE: recipes.recipe(DEFAULT_RECIPE).quant()},
        Budget(decode_tokens_per_s, prefill_ms, max_share, max_perplexity_ratio),
        **options,
    )


def csim(
    folder: Source,
    *,
    tokens: int | None = None,
    layers: int | None = None,
    decoder: bool = False,
    artifact: Source | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Compile the kernels in an exported folder with g++ and compare them with the emulator.

    decoder  run the whole model on the golden prompt instead of single linears; `tokens` are then
             the tokens it chooses (codegen/csim_decoder.py)
    artifact what the decoder was exported from: each of its steps is compared from the inputs that
             the kernel had, too, so that no rounding of a step before it hides a difference
    """
    if decoder:
        from codegen.csim_decoder import run_decoder

        if layers is not None:
            raise ConfigError("layers is set; the decoder runs all layers: leave it out")
        replay = None if artifact is None else _replay_of(artifact, folder)
        return run_decoder(folder, new_tokens=tokens, replay=replay)
    if artifact is not None:
        raise ConfigError("artifact is set; it is compared with a decoder: set decoder as well")
    from codegen.csim import run_csim

    return run_csim(folder, tokens=tokens, layers=layers, progress=progress)


def _replay_of(source: Source, folder: Source) -> Callable[[DecoderGolden], DecoderGolden]:
    """What the artifact gives on the inputs of a run of the decoder in a design `folder`."""
    from codegen.decoder_golden import DecoderGolden
    from codegen.manifest import read_design
    from lutllm.emulator.replay import replay

    artifact = Artifact.open(source)
    if read_design(folder).artifact_hash != artifact_hash(artifact.path):
        raise ConfigError(f"{source}: not the artifact that {folder} was exported from")

    def run(found: DecoderGolden) -> DecoderGolden:
        words = [*found.prompt, *found.tokens[:-1]]
        logits, inputs = replay(artifact, words, found.inputs, len(found.tokens))
        return DecoderGolden(found.prompt, logits.argmax(axis=1), logits, inputs)

    return run
