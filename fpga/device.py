"""Facts about an FPGA board, read from `fpga/devices/<name>.toml`."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lutllm.errors import ConfigError

DEVICE_FOLDER = Path(__file__).parent / "devices"


@dataclass(frozen=True)
class Device:
    """One board.

    lut .. uram      resources of the part
    memory_ports     AXI ports to the external memory, named port_prefix + index
    port_bits        data width of a port
    port_clock_mhz   clock at which a port reaches its full rate
    region_bytes     memory that a buffer behind one port may use
    peak_gb_per_s    all ports together (1 GB = 10^9 bytes)
    clock_mhz        clock of the kernels
    """

    name: str
    title: str
    part: str
    lut: int
    ff: int
    dsp: int
    bram36: int
    uram: int
    slr: int
    port_prefix: str
    memory_ports: int
    port_bits: int
    port_clock_mhz: float
    region_bytes: int
    capacity_bytes: int
    peak_gb_per_s: float
    clock_mhz: float
    flow: str

    def __post_init__(self) -> None:
        for field in self.__dataclass_fields__.values():
            value = getattr(self, field.name)
            if field.type == "str":
                ok = isinstance(value, str) and bool(value)
            else:
                ok = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
            if not ok:
                raise ConfigError(
                    f"device {self.name!r}: {field.name} is {value!r}; it must be a "
                    f"{'non-empty text' if field.type == 'str' else 'number above zero'}"
                )
        if self.memory_ports * self.region_bytes > self.capacity_bytes:
            raise ConfigError(
                f"device {self.name!r}: {self.memory_ports} regions of {self.region_bytes} bytes "
                f"exceed its capacity of {self.capacity_bytes} bytes"
            )

    @property
    def clock_period_ns(self) -> float:
        return 1000.0 / self.clock_mhz

    def at_clock(self, clock_mhz: float) -> Device:
        """The board with its kernels at `clock_mhz`; 0 keeps the clock it has.

        A kernel drives the memory ports at its own clock, so theirs is the limit.
        """
        if clock_mhz == 0:
            return self
        if not 0 < clock_mhz <= self.port_clock_mhz:
            raise ConfigError(
                f"clock_mhz is {clock_mhz:g}; it must be above zero, and the memory ports of "
                f"{self.name} take up to {self.port_clock_mhz:g}"
            )
        return dataclasses.replace(self, clock_mhz=clock_mhz)

    def port_name(self, index: int) -> str:
        """The linker's name of port `index`; ConfigError when the board has no such port."""
        if not 0 <= index < self.memory_ports:
            raise ConfigError(
                f"device {self.name!r}: memory port {index} does not exist; it has ports 0 to "
                f"{self.memory_ports - 1}: use fewer channels"
            )
        return f"{self.port_prefix}{index}"


_SECTIONS = {
    "resources": {"lut", "ff", "dsp", "bram36", "uram", "slr"},
    "memory": {
        "port_prefix",
        "ports",
        "port_bits",
        "port_clock_mhz",
        "region_bytes",
        "capacity_bytes",
        "peak_gb_per_s",
    },
    "kernel": {"clock_mhz", "flow"},
}


def device_names() -> list[str]:
    return sorted(path.stem for path in DEVICE_FOLDER.glob("*.toml"))


def load_device(name: str) -> Device:
    """The device `name`, one of `device_names()`, or the path of a device file."""
    path = Path(name) if name.endswith(".toml") else DEVICE_FOLDER / f"{name}.toml"
    if path.suffix == ".toml" and path.stem not in device_names() and not path.is_file():
        raise ConfigError(
            f"device {name!r} is not known; choose one of {', '.join(device_names())}"
        )
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise ConfigError(f"{path}: not a readable device file ({cause})") from None
    return _from_toml(path, values)


def _from_toml(path: Path, values: dict[str, Any]) -> Device:
    flat = {key: value for key, value in values.items() if key not in _SECTIONS}
    for section, keys in _SECTIONS.items():
        found = values.get(section)
        if not isinstance(found, dict) or set(found) != keys:
            raise ConfigError(f"{path}: [{section}] must hold exactly {', '.join(sorted(keys))}")
        flat |= found
    flat["memory_ports"] = flat.pop("ports")
    if set(flat) != set(Device.__dataclass_fields__):
        raise ConfigError(f"{path}: the top level must hold exactly name, title and part")
    return Device(**flat)
