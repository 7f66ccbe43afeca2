"""Checks of kernel sources without vendor tools.

Pragmas, labels of loops and their bounds, depths of streams, what cannot be synthesized.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

#: Directives of Vitis HLS 2025.1 that kernels use, with the options each may have (UG1399).
DIRECTIVES: dict[str, set[str]] = {
    "ALLOCATION": {"function", "operation", "instances", "limit"},
    "AGGREGATE": {"variable", "compact"},
    "ARRAY_PARTITION": {"variable", "type", "factor", "dim"},
    "ARRAY_RESHAPE": {"variable", "type", "factor", "dim"},
    "BIND_OP": {"variable", "op", "impl", "latency"},
    "BIND_STORAGE": {"variable", "type", "impl", "latency"},
    "DATAFLOW": {"disable_start_propagation"},
    "DEPENDENCE": {"variable", "type", "direction", "distance", "true", "false"},
    "INLINE": {"off"},
    "INTERFACE": {
        "mode",
        "port",
        "offset",
        "bundle",
        "depth",
        "max_read_burst_length",
        "max_write_burst_length",
        "num_read_outstanding",
        "num_write_outstanding",
    },
    "LOOP_TRIPCOUNT": {"min", "max", "avg"},
    "PIPELINE": {"II", "off", "style"},
    "STREAM": {"variable", "depth"},
    "UNROLL": {"factor"},
}
HEADERS = {"ap_int.h", "hls_stream.h", "hls_burst_maxi.h", "math.h"}
FORBIDDEN = {
    r"\bnew\b": "allocates memory",
    r"\bdelete\b": "frees memory",
    r"\b(malloc|calloc|free)\s*\(": "allocates memory",
    r"\bstd::": "uses the standard library",
    r"\b(throw|try|catch)\b": "uses exceptions",
    r"\bvirtual\b": "uses virtual functions",
    r"\bgoto\b": "uses goto",
    r"\bwhile\b": "loops without a bound",
}
_PRAGMA = re.compile(r"^\s*#pragma\s+(\S+)(?:\s+(\S+)\s*(.*))?$")
_LABELLED = re.compile(r"^\s*\w+:\s*$")


def strip_comments(text: str) -> str:
    """The text with comments blanked; lines keep their numbers."""
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.DOTALL)
    return re.sub(r"//[^\n]*", "", text)


def lint_kernel(name: str, text: str) -> list[str]:
    """Problems of one kernel source or header, each "name:line: what"."""
    code = strip_comments(text)
    lines = code.split("\n")
    words = set(re.findall(r"\w+", re.sub(r"^\s*#pragma.*$", "", code, flags=re.MULTILINE)))
    problems = []
    for number, line in enumerate(lines, 1):
        for problem in [*_pragma_problems(line, words), *_line_problems(line)]:
            problems.append(f"{name}:{number}: {problem}")
    for number in _unlabelled_pipelines(lines):
        problems.append(f"{name}:{number}: a pipelined loop has no label")
    for at, problem in [*_unbounded_loops(code), *_streams_without_depth(code)]:
        problems.append(f"{name}:{code.count(chr(10), 0, at) + 1}: {problem}")
    return problems


def _pragma_problems(line: str, words: set[str]) -> list[str]:
    match = _PRAGMA.match(line)
    if not match or match[1] == "once":
        return []
    if match[1] != "HLS":
        return [f"unknown pragma {match[1]}"]
    directive, rest = match[2] or "", match[3] or ""
    options = DIRECTIVES.get(directive)
    if options is None:
        return [f"unknown directive {directive}"]
    problems = []
    for word in rest.split():
        key, _, value = word.partition("=")
        if key not in options:
            problems.append(f"{directive} has no option {key}")
        elif key in ("variable", "port") and value != "return" and value not in words:
            problems.append(f"{directive} names {value}, which is not in the source")
    return problems


def _line_problems(line: str) -> list[str]:
    include = re.match(r"\s*#include\s*<([^>]+)>", line)
    if include and include[1] not in HEADERS:
        return [f"includes <{include[1]}>, which is not for synthesis"]
    if line.lstrip().startswith("#"):
        return []
    return [f"{what}: {line.strip()}" for rule, what in FORBIDDEN.items() if re.search(rule, line)]


def _unlabelled_pipelines(lines: list[str]) -> list[int]:
    """Numbers of `for` lines whose loop is pipelined but not preceded by a label line."""
    found = []
    for i, line in enumerate(lines):
        if not re.match(r"\s*for\s*\(", line):
            continue
        head = i
        while head + 1 < len(lines) and not lines[head].rstrip().endswith(("{", "\\")):
            head += 1
        pragma = lines[head + 1] if head + 1 < len(lines) else ""
        if "HLS PIPELINE" in pragma and not (i and _LABELLED.match(lines[i - 1])):
            found.append(i + 1)
    return found


def _enclosed(code: str, start: int, ends: str) -> str:
    """What lies between the bracket at `start` and the one of `ends` ("()" or "<>") that fits."""
    depth = 0
    for i in range(start, len(code)):
        depth += (code[i] == ends[0]) - (code[i] == ends[1])
        if depth == 0:
            return code[start + 1 : i]
    return code[start + 1 :]


def _unbounded_loops(code: str) -> Iterator[tuple[int, str]]:
    """Places of `for` loops that do not count one variable towards a bound.

    Loops of constexpr functions run in the compiler, and those over a range need no bound.
    """
    for match in re.finditer(r"\bfor\s*\(", code):
        header = _enclosed(code, match.end() - 1, "()")
        if ";" not in header or _in_constexpr(code[: match.start()]):
            continue
        _, condition, step = (part.strip() for part in header.split(";"))
        counter = re.match(r"(?:\+\+|--)?(\w+)", step)
        compared = re.match(r"(\w+)(?: \+ \w+)? (?:<|<=|>|>=) \S", condition)
        if not counter or not compared or counter[1] != compared[1]:
            yield match.start(), f"loops without a bound: for ({header})"


def _in_constexpr(before: str) -> bool:
    """Whether code that ends inside a function is in one that the compiler computes."""
    heads = re.findall(
        r"^(?:[ ]{4}static )?\w[^;{}]*\([^;{}]*\)\s*(?:const )?{", before, re.MULTILINE
    )
    return bool(heads) and "constexpr" in heads[-1]


def _streams_without_depth(code: str) -> Iterator[tuple[int, str]]:
    """Places of streams that say no depth, or one of less than two.

    The default of Vitis HLS is 2, that of a simulation without bounds none: a depth that a design
    counts on is one it names. A reference takes the depth of its stream.
    """
    for match in re.finditer(r"\bhls::stream<", code):
        arguments = _enclosed(code, match.end() - 1, "<>")
        if code[match.end() + len(arguments) + 1 :].lstrip().startswith("&"):
            continue
        depth = _last_argument(arguments)
        if depth is None or (depth.isdigit() and int(depth) < 2):
            said = "no depth" if depth is None else f"a depth of {depth}"
            yield match.start(), f"a stream with {said}: hls::stream<{arguments}>"


def _last_argument(arguments: str) -> str | None:
    """The last of several template arguments; None of a single one."""
    depth, comma = 0, -1
    for i, letter in enumerate(arguments):
        depth += (letter in "<(") - (letter in ">)")
        if letter == "," and depth == 0:
            comma = i
    return None if comma < 0 else arguments[comma + 1 :].strip()
