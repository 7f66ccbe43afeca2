"""The choices of a design as a file: what `explore` writes and `export` and `estimate` read."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from fpga.decoder_design import DecoderConfig
from fpga.design import EngineConfig
from lutllm.artifact import read_json
from lutllm.config import reject_unknown
from lutllm.errors import ConfigError


@dataclass(frozen=True)
class DesignChoices:
    """All that is chosen freely; the rest of a design follows from the model.

    clock_mhz  of the kernels, checked against the device where both are known; 0 = the device's
    """

    engine: EngineConfig = field(default_factory=EngineConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    clock_mhz: float = 0.0

    def __post_init__(self) -> None:
        clock = self.clock_mhz
        if isinstance(clock, bool) or not isinstance(clock, int | float) or not 0 <= clock < inf:
            raise ConfigError(f"design: clock_mhz is {clock!r}; it must be a number of MHz, or 0")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DesignChoices:
        """{"engine": {...}, "decoder": {...}, "clock_mhz": x}; what is left out has its default."""
        reject_unknown("design", values, {f.name for f in dataclasses.fields(cls)})
        engine, decoder = values.get("engine", {}), values.get("decoder", {})
        for name, part in (("engine", engine), ("decoder", decoder)):
            if not isinstance(part, dict):
                raise ConfigError(f"design: {name} is {part!r}; it must be an object of fields")
        known = {f.name for f in dataclasses.fields(DecoderConfig)}
        reject_unknown("decoder config", decoder, known)
        clock = values.get("clock_mhz", 0.0)
        return cls(EngineConfig.from_dict(engine), DecoderConfig(**decoder), clock)

    @classmethod
    def read(cls, path: str | Path) -> DesignChoices:
        """From a JSON file; ConfigError names the file and what is wrong in it."""
        values = read_json(Path(path), ConfigError)
        try:
            return cls.from_dict(values)
        except ConfigError as cause:
            raise ConfigError(f"{path}: {cause}") from None

    def write(self, path: str | Path) -> None:
        text = json.dumps(self.to_dict(), indent=2)
        Path(path).write_text(text + "\n", encoding="utf-8")
