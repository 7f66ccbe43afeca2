"""What the processor can do, and which set of kernels is used.

Detection reads the features that Numba compiles for, not those the processor has: the two differ
when NUMBA_CPU_NAME or NUMBA_CPU_FEATURES is set, and an instruction that the compiler was not
allowed to use would end the process. A further set is one more entry in `SETS` and its module in
`kernels`.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

from lutllm.errors import ConfigError

ENV = "LUTLLM_ISA"
#: Kernel sets, best first, with the features each needs.
_AVX512 = frozenset({"avx2", "avx512bw", "avx512vl", "avx512vbmi", "avx512vnni"})
SETS: dict[str, frozenset[str]] = {
    "amx": _AVX512 | {"amx-tile", "amx-int8"},
    "avx512": _AVX512,
    "avx2": frozenset({"avx2"}),
    "neon": frozenset({"neon"}),
    "plain": frozenset(),
}


@cache
def compiler_target() -> tuple[str, str, frozenset[str]]:
    """Triple, processor name and features that Numba generates code for.

    Every 64-bit ARM has NEON, and not every system says so.
    """
    from numba.core.registry import cpu_target

    triple, name, features = cpu_target.target_context.codegen().magic_tuple()[:3]
    listed = features.split(",")
    found = {f[1:] for f in listed if f.startswith("+")}
    if triple.startswith(("aarch64", "arm64")) and "-neon" not in listed:
        found.add("neon")
    return triple, name, frozenset(found)


def has_feature(name: str) -> bool:
    return name in compiler_target()[2]


def choose_isa(wanted: str | None, features: frozenset[str]) -> str:
    """The best kernel set the features allow, or `wanted` if they allow it."""
    if not wanted:
        return next(name for name, needs in SETS.items() if needs <= features)
    if wanted not in SETS:
        raise ConfigError(f"{ENV} is {wanted!r}; choose one of {', '.join(SETS)}")
    missing = sorted(SETS[wanted] - features)
    if missing:
        raise ConfigError(
            f"{ENV} is {wanted!r}, but this processor lacks {', '.join(missing)}; "
            f"unset {ENV} or choose 'plain'"
        )
    return wanted


def tiles_allowed() -> bool:
    """Ask the system for the registers of AMX, which it saves for those alone that ask."""
    if sys.platform != "linux" or not compiler_target()[0].startswith("x86_64"):
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0


@cache
def usable_features() -> frozenset[str]:
    """Features of `compiler_target`, without AMX where the system does not allow it."""
    features = compiler_target()[2]
    if SETS["amx"] <= features and not tiles_allowed():
        return features - {"amx-tile"}
    return features


#: The kernel set of this process.
ISA = choose_isa(os.environ.get(ENV), usable_features())


def available_threads() -> int:
    """Processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe() -> str:
    triple, name, _ = compiler_target()
    return f"{name} ({triple.split('-')[0]}), kernels {ISA}"
