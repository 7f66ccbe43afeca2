"""Which engines a quantized model needs and which linears each of them runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fpga.design import EngineConfig, EngineDesign, LayerKind
from fpga.head_slices import is_slice, kind_name
from lutllm.config import HEAD_LINEAR, LutConfig, QuantConfig
from lutllm.model_config import LinearShape, ModelConfig


def plan_engines(
    model: ModelConfig, quant: QuantConfig, shapes: Sequence[LinearShape], config: EngineConfig
) -> list[EngineDesign]:
    """Engines for the linears `shapes`, one for all that can share it, in order of first use."""
    members: dict[LutConfig, list[tuple[LinearShape, LutConfig]]] = {}
    for shape in shapes:
        lut = quant.for_linear(HEAD_LINEAR if is_slice(shape.name) else shape.name)
        members.setdefault(_shared(lut), []).append((shape, lut))
    engines = []
    for i, (key, linears) in enumerate(members.items()):
        most = dataclasses.replace(
            key,
            act_stages=max(lut.act_stages for _, lut in linears),
            weight_stages=max(lut.weight_stages for _, lut in linears),
            weight_centroids=max(lut.weight_centroids for _, lut in linears),
            table_bits=max(lut.table_bits for _, lut in linears),
            token_scale=any(lut.token_scale for _, lut in linears),
            rotation=max(lut.rotation for _, lut in linears),
        )
        name = "lut_linear" if len(members) == 1 else f"lut_linear_{i}"
        engines.append(EngineDesign(name, config, most, _kinds(model, linears)))
    return engines


def _shared(lut: LutConfig) -> LutConfig:
    """What linears of one engine have in common: all but stages, how many of them are wide, what is
    done to an input before it is coded, and which positions share codebooks, since an image holds
    those of each.

    Where rows are computed, small codebooks and narrow entries run in the lanes of the largest;
    stored tables would have to be stored as large.
    """
    key = dataclasses.replace(
        lut,
        codebook_positions=1,
        act_stages=1,
        weight_stages=1,
        wide_stages=1,
        token_scale=False,
        rotation=0,
    )
    if lut.scheme == "weight":
        return dataclasses.replace(key, weight_centroids=2, table_bits=8)
    return key


def _kinds(
    model: ModelConfig, linears: Sequence[tuple[LinearShape, LutConfig]]
) -> tuple[LayerKind, ...]:
    """Linears of one shape, depth of stages and width of entries, in order of first use."""
    found: dict[LayerKind, list[str]] = {}
    for shape, lut in linears:
        suffix = kind_name(shape.name)
        kind = LayerKind(
            name=suffix,
            in_features=shape.in_features,
            out_features=shape.out_features,
            act_stages=lut.act_stages,
            weight_stages=lut.weight_stages,
            table_bits=lut.table_bits,
            wide_stages=min(lut.wide_stages, lut.weight_stages),
            token_scale=lut.scales_tokens,
            rotation=lut.rotation,
            bias=shape.has_bias,
            names=(),
        )
        found.setdefault(kind, []).append(shape.name)
    kinds: list[LayerKind] = []
    for kind, names in found.items():
        twins = sum(k.name == kind.name or k.name.startswith(f"{kind.name}_v") for k in kinds)
        name = f"{kind.name}_v{twins + 1}" if twins else kind.name
        kinds.append(dataclasses.replace(kind, name=name, names=tuple(names)))
    return tuple(kinds)
