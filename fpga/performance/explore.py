"""The best engine for a budget: sensible configurations estimated, the Pareto front, a choice.

Free dimensions are scheme, way to get rows, channels, lanes, tokens of a run, clock, attention and
vector width. What a free choice decides (search elements, centroid ports, gather lanes, FIFO depth)
is derived by rule, so that no block starves another.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fpga.decoder_design import DecoderConfig, DecoderDesign
from fpga.design import EngineConfig, EngineDesign, ceil_div, power_of_two_at_least
from fpga.device import Device
from fpga.performance.designs import model_engines, rows_kind
from fpga.performance.estimate import COMFORTABLE, Estimate, Setting
from fpga.performance.resources import NAMES, utilisation
from lutllm.config import QuantConfig
from lutllm.errors import ConfigError
from lutllm.model_config import ModelConfig

CHANNELS = (4, 8, 16, 24, 32, 48, 56, 64)
LANES = (64, 128, 256, 512)
MAX_TOKENS = (32, 128)
#: Choices beside the engine.
KERNELS = tuple(
    DecoderConfig(vector_lanes=lanes, vocab_ports=vocab, kv_ports=kv, query_tokens=queries)
    for lanes, vocab, kv, queries in (
        (1, 8, 4, 1),
        (2, 8, 8, 1),
        (4, 32, 8, 1),
        (4, 64, 8, 1),
        (8, 32, 16, 1),
        (8, 64, 16, 1),
        (8, 64, 16, 2),
        (8, 32, 16, 2),
        (8, 32, 32, 1),
    )
)
#: Ports that parameters are spread over: as many beats as the widest word of vectors has.
PARAMETER_SPREAD = 8
#: Indices that a channel holds ahead of its look-ups.
READ_AHEAD = 65_536
#: Look-ups a cycle beyond which a V80 is full, and below which nothing is fast.
LOOKUPS = (512, 32_768)


@dataclass(frozen=True)
class Budget:
    """What is asked for; 0 = no limit.

    decode_tokens_per_s  at least
    prefill_ms           at most, for the prompt of the search
    max_share            of any resource of the device
    max_perplexity_ratio of the quantized to the float model, at most; a quantization whose ratio
                         is not known does not meet it
    """

    decode_tokens_per_s: float = 0.0
    prefill_ms: float = 0.0
    max_share: float = COMFORTABLE
    max_perplexity_ratio: float = 0.0

    def __post_init__(self) -> None:
        for name in ("decode_tokens_per_s", "prefill_ms", "max_perplexity_ratio"):
            if getattr(self, name) < 0:
                raise ConfigError(f"budget: {name} is {getattr(self, name)}; it must be above 0")
        if not 0 < self.max_share <= 1:
            raise ConfigError(
                f"budget: max_share is {self.max_share}; it must be above 0 and at most 1"
            )


@dataclass(frozen=True)
class Space:
    """What the search may vary.

    quants  quantizations to choose from, by name
    stored  safetensors dtype of embedding and head where a quantization leaves them as they are
    ratios  perplexity ratio of a quantization to the float model, by name, where it is known
    """

    quants: dict[str, QuantConfig]
    clocks_mhz: tuple[float, ...]
    channels: tuple[int, ...] = CHANNELS
    lanes: tuple[int, ...] = LANES
    max_tokens: tuple[int, ...] = MAX_TOKENS
    stored: str = "BF16"
    ratios: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """A design that fits, in numbers. ratio: of perplexities, None where it is not known."""

    quant_name: str
    ratio: float | None
    design: DecoderDesign
    setting: Setting
    decode_ms: float
    prefill_ms: float
    joule_per_token: float
    watts: float
    shares: dict[str, float]
    bound: str
    prefill_bound: str

    @property
    def engine(self) -> EngineConfig:
        return self.design.engines[0].config

    @property
    def size(self) -> float:
        """Share of the scarcest resource."""
        return max(self.shares.values())

    def costs(self) -> tuple[float, ...]:
        """What a Pareto front weighs: smaller is better in each."""
        speed = (self.decode_ms, self.prefill_ms, self.joule_per_token, self.size)
        return (*speed, self.ratio or 0.0)

    def to_dict(self) -> dict[str, Any]:
        s = self.setting
        return {
            "quantization": self.quant_name,
            "perplexity_ratio": self.ratio,
            "clock_mhz": s.clock,
            "decode_ms_per_token": self.decode_ms,
            "tokens_per_s": 1000 / self.decode_ms,
            "prefill_ms": self.prefill_ms,
            "joule_per_token": self.joule_per_token,
            "power_w": self.watts,
            "utilisation": {name: round(self.shares[name], 4) for name in NAMES},
            "bottleneck": self.bound,
            "prefill_bottleneck": self.prefill_bound,
            "engine": self.engine.to_dict(),
            "decoder": dataclasses.asdict(self.design.config),
            "head": "lut" if self.design.screened else self.design.head_kind.lower(),
        }


@dataclass(frozen=True)
class Exploration:
    """Everything found: candidates that fit, the front of them, the choice."""

    candidates: list[Candidate]
    front: list[Candidate]
    chosen: Candidate | None
    tried: int


def explore(
    model: ModelConfig,
    device: Device,
    space: Space,
    budget: Budget,
    prompt: int = 128,
    context: int = 160,
) -> Exploration:
    """Search the space; the choice meets the budget with the least energy, else there is none."""
    tried = 0
    found: list[Candidate] = []
    for quant_name, design, setting in settings(model, device, space, max(prompt, context)):
        tried += 1
        estimate = Estimate(design, setting, prompt, context)
        shares = utilisation(estimate.resources, device)
        if max(shares.values()) <= budget.max_share and estimate.fits:
            ratio = space.ratios.get(quant_name)
            found.append(_candidate(quant_name, ratio, estimate, shares))
    front = pareto(found)
    return Exploration(found, front, choose(front, budget, prompt), tried)


def _candidate(
    quant_name: str, ratio: float | None, estimate: Estimate, shares: dict[str, float]
) -> Candidate:
    return Candidate(
        quant_name=quant_name,
        ratio=ratio,
        design=estimate.design,
        setting=estimate.setting,
        decode_ms=estimate.decode.ms.value,
        prefill_ms=estimate.prefill.ms.value,
        joule_per_token=estimate.joule_per_token.value,
        watts=estimate.power.watts.value,
        shares=shares,
        bound=estimate.decode.bound,
        prefill_bound=estimate.prefill.bound,
    )


def settings(
    model: ModelConfig, device: Device, space: Space, context: int = 0
) -> Iterator[tuple[str, DecoderDesign, Setting]]:
    """Every configuration of the space that can exist on the device.

    context: positions that the caches hold at least.
    """
    for quant_name, quant in space.quants.items():
        plan = model_engines(model, quant, EngineConfig())
        kind = rows_kind(quant, space.stored)
        for clock, engines, kernel in itertools.product(
            space.clocks_mhz, list(_engines(plan, device, space)), KERNELS
        ):
            design = _design(model, engines, kernel, kind, context)
            if design is not None:
                yield quant_name, design, Setting(device, clock_mhz=clock)


def _design(
    model: ModelConfig,
    engines: Sequence[EngineDesign],
    kernel: DecoderConfig,
    kind: str,
    context: int,
) -> DecoderDesign | None:
    """The decoder kernel, with caches for `context` positions; None where there is none."""
    try:
        design = DecoderDesign(kernel, model, kind, kind, tuple(engines))
        if design.context < context:
            kernel = dataclasses.replace(kernel, context=context)
            design = dataclasses.replace(design, config=kernel)
        return design
    except ConfigError:
        return None


def _engines(
    plan: Sequence[EngineDesign], device: Device, space: Space
) -> Iterator[list[EngineDesign]]:
    for rows, channels, lanes, tokens in itertools.product(
        ("auto", "online") if any(design.search for design in plan) else ("auto",),
        (n for n in space.channels if n <= device.memory_ports),
        (n for n in space.lanes if all(design.lut.group_size % n == 0 for design in plan)),
        space.max_tokens,
    ):
        if LOOKUPS[0] <= channels * lanes <= LOOKUPS[1]:
            base = EngineConfig(
                channels=channels,
                centroid_ports=channels,
                parameter_ports=min(PARAMETER_SPREAD, 1 << channels.bit_length() - 1),
                lanes_per_cycle=lanes,
                axi_bits=min(512, device.port_bits),
                max_tokens=tokens,
                rows=rows,
                read_ahead=16,
                beat_fifo=64,
                index_fifo=max(4, READ_AHEAD // lanes),
            )
            yield from _derived(plan, base)


def _with_config(plan: Sequence[EngineDesign], config: EngineConfig) -> list[EngineDesign]:
    return [dataclasses.replace(design, config=config) for design in plan]


def _derived(plan: Sequence[EngineDesign], base: EngineConfig) -> Iterator[list[EngineDesign]]:
    """Engines in which nothing starves the look-ups; none where a word would be too wide.

    With a search there are two: as few centroid ports as keep up, and one for every two channels,
    which spreads centroids where channels and centroids share memory ports.
    """
    try:
        designs = _with_config(plan, base)
    except ConfigError:
        return
    elements = max(_search_elements(design) for design in designs)
    segments = min(4, elements)
    base = dataclasses.replace(
        base,
        search_segments=segments,
        search_chain=ceil_div(elements, segments),
        gather_lanes=max(_gather_lanes(design) for design in designs),
    )
    if not any(design.search for design in plan):
        yield _with_config(plan, dataclasses.replace(base, centroid_ports=1))
        return
    ports = [n for n in range(1, base.channels + 1) if base.channels % n == 0]
    enough = next((n for n in ports if not _centroids_late(plan, base, n)), base.channels)
    for count in sorted({enough, max(enough, base.channels // 2)}):
        yield _with_config(plan, dataclasses.replace(base, centroid_ports=count))


def _lookup_cycles(design: EngineDesign) -> int:
    """Fewest cycles that the look-ups of one position and token take."""
    return min(design.subs(kind) * kind.weight_stages for kind in design.kinds)


def _search_elements(design: EngineDesign) -> int:
    """Elements with which a search takes no longer than the look-ups of its row."""
    if not design.search:
        return 8
    elements = ceil_div(design.lut.act_centroids, _lookup_cycles(design))
    return max(4, power_of_two_at_least(elements))


def _gather_lanes(design: EngineDesign) -> int:
    """Lanes with which a round is gathered no slower than it is looked up."""
    slots = design.config.channels * design.lut.vec_len
    return min(64, power_of_two_at_least(ceil_div(slots, _lookup_cycles(design))))


def _centroids_late(plan: Sequence[EngineDesign], base: EngineConfig, ports: int) -> bool:
    """A centroid port takes longer in decode than the channels it serves, or cannot exist."""
    try:
        designs = _with_config(plan, dataclasses.replace(base, centroid_ports=ports))
    except ConfigError:
        return True
    return any(
        design.centroid_beats(kind) * design.centroid_packing.per_beat
        > design.rounds(kind) * kind.weight_stages * design.index_beats(kind)
        for design in designs
        for kind in design.kinds
    )


def pareto(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates that no other beats or equals in everything, by decode time."""
    weighed = any(candidate.ratio is not None for candidate in candidates)
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: c.costs()):
        if not any(_no_worse(other, candidate, weighed) for other in front):
            front.append(candidate)
    return front


def _no_worse(a: Candidate, b: Candidate, weighed: bool) -> bool:
    """`a` costs no more than `b` in anything.

    weighed: accuracy counts; where it is not known, that can only be said of one quantization.
    """
    if weighed and a.quant_name != b.quant_name and None in (a.ratio, b.ratio):
        return False
    return all(x <= y * (1 + 1e-9) for x, y in zip(a.costs(), b.costs(), strict=True))


def choose(front: Sequence[Candidate], budget: Budget, prompt: int = 128) -> Candidate | None:
    """Of those within the budget the one with the least energy-delay product.

    Delay is that of a prompt and as many decoded tokens.
    """
    limit = 1000 / budget.decode_tokens_per_s if budget.decode_tokens_per_s else float("inf")
    prefill = budget.prefill_ms or float("inf")
    fitting = [
        c
        for c in front
        if c.decode_ms <= limit and c.prefill_ms <= prefill and _accurate(c, budget)
    ]
    if not fitting:
        return None
    return min(
        fitting, key=lambda c: (c.watts * (c.prefill_ms + prompt * c.decode_ms) ** 2, c.costs())
    )


def _accurate(candidate: Candidate, budget: Budget) -> bool:
    if not budget.max_perplexity_ratio:
        return True
    return candidate.ratio is not None and candidate.ratio <= budget.max_perplexity_ratio
