"""C simulation: compile the kernels of a design with g++, run golden inputs, compare the results.

The design folder is untrusted. Data is checked against the manifest; the code that is compiled must
be what this version of lutllm renders for the engines in the manifest, to the byte, unless the
caller allows modified sources. Programs are kept in a cache of the user, never in the design.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codegen.manifest import Design, Golden, read_design
from codegen.render import design_sources
from lutllm.errors import ArtifactError, ConfigError, ResourceError
from lutllm.progress import Progress

MODES = ("table", "row_fetch")
#: Each float operation rounds to float32 by itself; simulated processes switch stacks by longjmp.
FLAGS = ("-std=c++14", "-O1", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas")
DEADLOCK_STATUS = 3
CACHED_PROGRAMS = 64


@dataclass(frozen=True)
class Case:
    """One run of one linear."""

    engine: str
    golden: Golden
    tokens: int
    mode: str

    def line(self, design: Design) -> str:
        """The case as the testbench reads it (sim/testbench.h)."""
        engine = design.engine(self.engine)
        k, slot = engine.slots[self.golden.name]
        kind = engine.kinds[k]
        positions = engine.lut.num_positions(kind.in_features)
        return (
            f"{self.golden.name} {k} {slot} {positions} {kind.out_features} {self.tokens} "
            f"{int(self.mode == 'row_fetch')}\n"
        )


def run_csim(
    design_dir: str | Path,
    *,
    tokens: int | Sequence[int] | None = None,
    layers: int | Iterable[int] | None = None,
    modes: Sequence[str] = MODES,
    allow_modified: bool = False,
    details: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Simulate the kernels of a design on its golden inputs and compare every value.

    tokens          tokens of a run, or several such numbers; None = 1 and all golden tokens
    layers          the first N decoder layers that have golden inputs, or layer indices; None = all
    modes           "table" (whole tables) and "row_fetch"; engines that compute rows run once
    allow_modified  run sources that differ from what this version renders
    details         add "runs", the report of every run
    Returns integer_mismatches, max_abs_error, tokens_compared, tokens_equal (every integer and
    result equal), first_divergence (None, or linear, token, index, expected, found), seconds.
    """
    start = time.monotonic()
    design = read_design(design_dir)
    sources = trusted_sources(design, allow_modified)
    cases = list(_cases(design, tokens, layers, modes))
    if not cases:
        raise ConfigError(
            f"{design.path}: no golden inputs for the layers asked for; export with golden inputs"
        )
    runs: list[dict[str, Any]] = []
    with Progress(len(cases), "simulating", progress) as bar:
        for engine in design.engines:
            mine = [case for case in cases if case.engine == engine.name]
            if not mine:
                continue
            program = compile_testbench(sources, f"sim/{engine.name}_testbench.cpp")
            for report in _run(program, design, mine):
                runs.append(report)
                bar.advance(note=report["linear"])
    summary = _summary(runs, time.monotonic() - start)
    return {**summary, "runs": runs} if details else summary


def _summary(runs: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    first = next((_divergence(run) for run in runs if "first_divergence" in run), None)
    return {
        "integer_mismatches": sum(run["integer_mismatches"] for run in runs),
        "max_abs_error": max(run["max_abs_error"] for run in runs),
        "tokens_compared": sum(run["tokens"] for run in runs),
        "tokens_equal": sum(run["tokens_equal"] for run in runs),
        "first_divergence": first,
        "linears": len({run["linear"] for run in runs}),
        "simulated_seconds": sum(run["seconds"] for run in runs),
        "seconds": seconds,
    }


def _divergence(run: dict[str, Any]) -> dict[str, Any]:
    return {"linear": run["linear"], "mode": run["mode"], **run["first_divergence"]}


def trusted_sources(design: Design, allow_modified: bool) -> dict[str, str]:
    """path -> text of the sources to compile, as rendered or, when allowed, as in the folder."""
    rendered = design_sources(
        design.engines,
        design.device,
        design.model,
        design.artifact_hash,
        design.decoder.design if design.decoder else None,
    )
    found = {}
    for path, text in rendered.items():
        if path not in design.files:
            raise ArtifactError(f"{design.path / path}: not in the manifest; export again")
        found[path] = (design.path / path).read_text(encoding="utf-8")
        if found[path] != text and not allow_modified:
            raise ArtifactError(
                f"{design.path / path}: differs from what this lutllm renders (edited, or another "
                "version); export again, or allow modified sources"
            )
    return found


def _cases(
    design: Design,
    tokens: int | Sequence[int] | None,
    layers: int | Iterable[int] | None,
    modes: Sequence[str],
) -> Iterator[Case]:
    for mode in modes:
        if mode not in MODES:
            raise ConfigError(f"mode is {mode!r}; choose from {', '.join(MODES)}")
    chosen = _golden_of_layers(design.golden, layers)
    for golden in chosen:
        engine = design.engine(golden.engine)
        for count in _token_counts(tokens, golden.tokens):
            for mode in modes[:1] if engine.online_rows else modes:
                yield Case(golden.engine, golden, count, mode)


def _token_counts(tokens: int | Sequence[int] | None, available: int) -> list[int]:
    wanted = [1, available] if tokens is None else [tokens] if isinstance(tokens, int) else tokens
    for count in wanted:
        if count < 1:
            raise ConfigError(f"tokens is {count}; it must be at least 1")
    return sorted({min(count, available) for count in wanted})


def _layer_of(name: str) -> int:
    """Decoder layer of a linear name like model.layers.3.mlp.down_proj; -1 elsewhere."""
    parts = name.split(".")
    at = parts.index("layers") + 1 if "layers" in parts else len(parts)
    return int(parts[at]) if at < len(parts) and parts[at].isdigit() else -1


def _golden_of_layers(golden: list[Golden], layers: int | Iterable[int] | None) -> list[Golden]:
    if layers is None:
        return golden
    have = sorted({_layer_of(item.name) for item in golden})
    wanted = have[:layers] if isinstance(layers, int) else list(layers)
    return [item for item in golden if _layer_of(item.name) in wanted]


def find_compiler() -> str:
    """g++ or what CXX names; ResourceError when there is none."""
    name = os.environ.get("CXX", "g++")
    found = shutil.which(name)
    if found is None:
        raise ResourceError(
            f"C simulation needs a C++ compiler, and {name!r} was not found; install g++ "
            "(Debian: apt install g++) or set CXX"
        )
    return found


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lutllm" / "csim"


def compile_testbench(sources: dict[str, str], main: str, extra_flags: Sequence[str] = ()) -> Path:
    """Compile `main` (a path in `sources`) and return the program, from the cache when known.

    sources: path -> text; headers are found beside `main` and in sim/.
    """
    compiler = find_compiler()
    flags = [*FLAGS, *extra_flags]
    used = {p: t for p, t in sources.items() if p == main or not p.endswith(".md")}
    stamp = json.dumps([compiler, flags, main, sorted(used.items())]).encode()
    program = cache_folder() / hashlib.sha256(stamp).hexdigest()[:32]
    try:
        os.utime(program)  # in use: not the next to go
        return program
    except FileNotFoundError:
        pass
    try:
        program.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as cause:
        raise ResourceError(f"{program.parent}: cannot be created ({cause})") from None
    with tempfile.TemporaryDirectory(prefix="lutllm-csim-") as folder:
        for path, text in used.items():
            target = Path(folder) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        partial = Path(folder) / "program"
        command = [compiler, *flags, f"-I{folder}/sim", "-o", str(partial), f"{folder}/{main}"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode:
            raise ArtifactError(f"{main} does not compile:\n{_tail(found.stderr)}")
        staged = program.with_suffix(f".{os.getpid()}")
        shutil.move(partial, staged)
        staged.replace(program)
    _prune(program.parent)
    return program


def _prune(folder: Path) -> None:
    """Keep the newest programs of the cache, which other processes write and prune as well."""
    programs = sorted(folder.iterdir(), key=_written)
    for path in programs[:-CACHED_PROGRAMS]:
        path.unlink(missing_ok=True)


def _written(path: Path) -> float:
    """When a file was written last, long ago if it is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _tail(text: str, lines: int = 30) -> str:
    return "\n".join(text.strip().splitlines()[:lines])


def _run(program: Path, design: Design, cases: list[Case]) -> Iterator[dict[str, Any]]:
    """Reports of the cases, as the program prints them."""
    command = [str(program), str(design.path / "images"), str(design.path / "golden")]
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("".join(case.line(design) for case in cases))
            process.stdin.close()
            for case, line in zip(cases, process.stdout, strict=False):
                yield {**json.loads(line), "mode": case.mode}
        if process.returncode:
            errors.seek(0)
            _stopped(design, process.returncode, errors.read())


def _stopped(design: Design, status: int, text: str) -> None:
    """Raise for a program that ended early: the case it was at and what it said."""
    lines = text.strip().splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("case ")]
    at = lines[starts[-1]] if starts else "before the first case"
    said = "\n".join(lines[starts[-1] + 1 :] if starts else lines)
    kind = "stopped" if status == DEADLOCK_STATUS else f"ended with status {status}"
    raise ArtifactError(f"{design.path}: C simulation {kind} at {at}\n{_tail(said, 200)}")
