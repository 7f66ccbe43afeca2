"""Sources of a design: templates filled from an `EngineDesign`, kernels made self-contained."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from codegen.diagram import decoder_diagram, engine_diagram
from fpga.decoder_design import DecoderDesign
from fpga.design import EngineDesign
from fpga.device import Device
from lutllm.errors import ConfigError
from lutllm.version import __version__

LIBRARY = Path(__file__).parent.parent / "fpga" / "hls"
TEMPLATES = Path(__file__).parent / "templates"
#: Headers of the simulation, by their path in a design.
SIMULATION_HEADERS = ("ap_int.h", "hls_stream.h", "hls_burst_maxi.h", "testbench.h")
DECODER_HEADERS = ("decoder_testbench.h",)
#: What clang-tidy checks.
LINT_RULES = ".clang-tidy"
#: Header of the host programs.
HOST_HEADER = "host/board.h"
_INCLUDE = re.compile(r'^#include "([\w./]+)"\n', re.MULTILINE)


@dataclass(frozen=True)
class Connection:
    """One memory port of a kernel: `argument` of engine `engine` goes to `port` of the board."""

    engine: str
    argument: str
    port: str
    bytes: int


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(version=__version__, **values)


def library_headers() -> list[str]:
    """The kernel headers, by name."""
    return sorted(path.name for path in LIBRARY.glob("*.h"))


def included_headers(entry: str) -> list[str]:
    """`entry` and the library headers it includes, directly or not, by name."""
    found: set[str] = set()
    left = [entry]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += _INCLUDE.findall((LIBRARY / name).read_text(encoding="utf-8"))
    return sorted(found)


def amalgamate(source: str, folder: Path, extra: dict[str, str] | None = None) -> str:
    """`source` with every quoted include replaced by the file, once. `extra`: name -> text."""
    seen: set[str] = set()

    def text_of(name: str) -> str:
        if extra and name in extra:
            return extra[name]
        return (folder / Path(name).name).read_text(encoding="utf-8")

    def expand(text: str) -> str:
        def replace(match: re.Match[str]) -> str:
            name = match[1]
            if name in seen:
                return ""
            seen.add(name)
            body = expand(text_of(name).replace("#pragma once\n", ""))
            return f"// ---- {name} ----\n{body}// ---- end of {name} ----\n"

        return _INCLUDE.sub(replace, text)

    return expand(source)


def _memory_arguments(engine: EngineDesign) -> list[tuple[str, int]]:
    """(argument, beats behind it) of every memory port of a kernel, the busiest first."""
    beats, run = engine.image_beats(), engine.run_beats()
    return [
        *((f"channel_{c}", beats["channel"]) for c in range(engine.config.channels)),
        *((f"centroids_{p}", beats["centroids"]) for p in range(engine.centroid_ports)),
        *((f"parameters_{p}", beats["parameters"]) for p in range(engine.config.parameter_ports)),
        ("x", run["x"]),
        ("y", run["y"]),
    ]


def connections(engines: list[EngineDesign], device: Device) -> list[Connection]:
    """The board's port of every memory argument, checked against its ports and regions.

    Arguments take ports in turn; when all ports are taken the next ones share, from port 0 on.
    ConfigError when an engine has more channels than the board has ports, or a region is too small.
    """
    wanted: list[tuple[str, str, int]] = []
    for engine in engines:
        if engine.config.channels > device.memory_ports:
            raise ConfigError(
                f"engine {engine.name!r}: {engine.config.channels} channels, but {device.name} has "
                f"{device.memory_ports} memory ports; use fewer channels"
            )
        for argument, beats in _memory_arguments(engine):
            wanted.append((engine.name, argument, beats * engine.beat_bytes))
    return _connect(wanted, device)


def decoder_connections(decoder: DecoderDesign, device: Device) -> list[Connection]:
    """The board's port of every memory argument of the decoder, as for `connections`."""
    wanted: list[tuple[str, str, int]] = []
    for engine in decoder.engines:
        for argument, beats in _memory_arguments(engine)[:-2]:  # x and y stay on chip
            wanted.append((decoder.name, f"{engine.name}_{argument}", beats * engine.beat_bytes))
    for argument, beats in (decoder.image_beats() | decoder.run_beats()).items():
        wanted.append((decoder.name, argument, beats * decoder.beat_bytes))
    return _connect(wanted, device)


def _connect(wanted: list[tuple[str, str, int]], device: Device) -> list[Connection]:
    """Ports in turn for (kernel, argument, bytes); ConfigError where a region is too small."""
    out: list[Connection] = []
    used: dict[str, int] = {}
    for kernel, argument, count in wanted:
        port = device.port_name(len(out) % device.memory_ports)
        out.append(Connection(kernel, argument, port, count))
        used[port] = used.get(port, 0) + count
        if used[port] > device.region_bytes:
            raise ConfigError(
                f"{port}: {used[port]} bytes of images ({kernel}.{argument} and what "
                f"shares its port) exceed the region of {device.region_bytes} bytes; use more "
                "channels, fewer layers, a shorter context, or rows computed on line"
            )
    return out


def engine_sources(engine: EngineDesign, device: Device, header: str) -> dict[str, str]:
    """path -> text of everything that belongs to one engine. header: the comment on top."""
    values = {
        "engine": engine,
        "device": device,
        "header": header,
        "decoder": None,
        "vector_lanes": 1,
    }
    config = render("config.h.j2", **values)
    top = render("kernel.cpp.j2", **values)
    single = amalgamate(top, LIBRARY, {f"{engine.name}_config.h": config})
    return {
        f"src/{engine.name}_config.h": config,
        f"src/{engine.name}.cpp": top,
        f"hls/{engine.name}.cpp": single,
        f"hls/{engine.name}.cfg": render("kernel.cfg.j2", **values),
        f"sim/{engine.name}_testbench.cpp": render("testbench.cpp.j2", **values),
        f"{engine.name}.svg": render(
            "design.svg.j2", diagram=engine_diagram(engine), header=header
        ),
    }


def header_of(decoder: DecoderDesign) -> str:
    """The library header that has all its steps."""
    if decoder.screened:
        return "screened_head.h"
    return "int8_head.h" if decoder.head_kind == "I8" else "word_rows.h"


def decoder_sources(decoder: DecoderDesign, device: Device, header: str) -> dict[str, str]:
    """path -> text of everything that belongs to the decoder kernel."""
    name = decoder.name
    values = {
        "engines": decoder.engines,
        "decoder": decoder,
        "device": device,
        "header": header,
        "library_header": header_of(decoder),
    }
    config = render("decoder_config.h.j2", **values)
    top = render("decoder.cpp.j2", **values)
    configs = {f"{name}_config.h": config}
    for engine in decoder.engines:
        configs[f"{engine.name}_config.h"] = render(
            "config.h.j2", engine=engine, header=header, vector_lanes=decoder.config.vector_lanes
        )
    out = {
        f"src/{name}_config.h": config,
        f"src/{name}.cpp": top,
        f"hls/{name}.cpp": amalgamate(top, LIBRARY, configs),
        f"hls/{name}.cfg": render("kernel.cfg.j2", engine=decoder, device=device, header=header),
        f"sim/{name}_testbench.cpp": render("decoder_testbench.cpp.j2", **values),
        f"{name}.svg": render("design.svg.j2", diagram=decoder_diagram(decoder), header=header),
        "host/decoder.cpp": render(
            "decoder_host.cpp.j2",
            arguments=_host_arguments(decoder),
            logit_beats=decoder.run_beats()["logits"],
            **values,
        ),
        f"{name}_system.cfg": render(
            "system.cfg.j2",
            engines=[decoder],
            connections=decoder_connections(decoder, device),
            header=header,
        ),
    }
    for path in included_headers(header_of(decoder)):
        out[f"src/lutllm/{path}"] = (LIBRARY / path).read_text(encoding="utf-8")
    for path in DECODER_HEADERS:
        out[f"sim/{path}"] = (LIBRARY / "sim" / path).read_text(encoding="utf-8")
    return out


def _host_arguments(decoder: DecoderDesign) -> list[tuple[str, int, str]]:
    """(argument, beats or 0 where an image fills it, path of that in images/) of all memory
    arguments before the ids, in order.
    """
    out = []
    for engine in decoder.engines:
        for name, _ in _memory_arguments(engine)[:-2]:  # x and y stay on chip
            out.append((f"{engine.name}_{name}", 0, f"{engine.name}/{name}.bin"))
    out += [(name, 0, f"{decoder.name}/{name}.bin") for name in decoder.image_beats()]
    return [*out, *((name, decoder.run_beats()[name], "") for name in decoder.cache_names)]


def design_sources(
    engines: list[EngineDesign],
    device: Device,
    model: str,
    artifact_hash: str,
    decoder: DecoderDesign | None = None,
) -> dict[str, str]:
    """path -> text of every source file of a design; the same input gives the same bytes.

    decoder: the kernel that runs the whole model, beside one kernel per engine.
    """
    header = f"Generated by lutllm {__version__} from artifact {artifact_hash[:16]}. Do not edit."
    out: dict[str, str] = {}
    for engine in engines:
        out |= engine_sources(engine, device, header)
    if decoder:
        out |= decoder_sources(decoder, device, header)
    for name in included_headers("lut_linear.h"):
        out[f"src/lutllm/{name}"] = (LIBRARY / name).read_text(encoding="utf-8")
    out[LINT_RULES] = (LIBRARY / LINT_RULES).read_text(encoding="utf-8")
    out[HOST_HEADER] = (LIBRARY / HOST_HEADER).read_text(encoding="utf-8")
    for name in SIMULATION_HEADERS:
        out[f"sim/{name}"] = (LIBRARY / "sim" / name).read_text(encoding="utf-8")
    values = {
        "engines": engines,
        "decoder": decoder,
        "device": device,
        "header": header,
        "model": model,
        "artifact_hash": artifact_hash,
        "connections": connections(engines, device),
    }
    for template, path in (
        ("system.cfg.j2", "system.cfg"),
        ("CMakeLists.txt.j2", "CMakeLists.txt"),
        ("Makefile.j2", "Makefile"),
        ("host.cpp.j2", "host/main.cpp"),
        ("README.md.j2", "README.md"),
    ):
        out[path] = render(template, **values)
    return dict(sorted(out.items()))
