"""The `kernel` decorator: Numba without the GIL, cached on disk per processor and source.

Numba's own cache forgets that a kernel depends on the modules it calls. Here the folder's name
holds a digest of all emulator sources, the compiler version, the processor with its features and
the kernel set, so a changed callee, another machine on a shared home folder or another option never
meets a stale object. `LUTLLM_CACHE_DIR` moves the folder.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba

from lutllm.emulator.cpu import ISA, compiler_target

CACHE_ENV = "LUTLLM_CACHE_DIR"


def _load_array_functions() -> None:
    """Load Numba's array functions without scipy.linalg, in which they look for a BLAS.

    Kernels call none, and it would add 15 MiB and its time to every start. Numba does without it in
    `correlate` and `convolve` then; where `dot` is compiled, it looks for one again.
    """
    hidden = "scipy.linalg"
    if hidden in sys.modules:
        return
    sys.modules[hidden] = None  # type: ignore[assignment]  # an import of it fails
    try:
        importlib.import_module("numba.np.arraymath")
    finally:
        del sys.modules[hidden]


_load_array_functions()


def _user_cache() -> Path:
    if os.environ.get(CACHE_ENV):
        return Path(os.environ[CACHE_ENV])
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "lutllm"


def _digest() -> str:
    """16 hex digits over everything a compiled kernel depends on."""
    triple, name, features = compiler_target()
    parts = [numba.__version__, llvmlite.__version__, triple, name, *sorted(features), ISA]
    total = hashlib.sha256("\n".join(parts).encode())
    here = Path(__file__).parent
    constants = [here.parent / name for name in ("config.py", "int8_rows.py")]
    for source in [*sorted(here.glob("*.py")), *constants]:
        total.update(source.read_bytes())
    return total.hexdigest()[:16]


@cache
def cache_dir() -> str:
    """The folder of compiled kernels; a temporary one if the user's cannot be written."""
    path = _user_cache() / f"kernels-{compiler_target()[1]}-{_digest()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError:
        path = Path(tempfile.mkdtemp(prefix="lutllm-kernels-"))
    return str(path)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile on first call: no GIL, IEEE division, no fast-math, cached in `cache_dir`."""
    settings: Any = numba.config
    saved = settings.CACHE_DIR  # read by Numba while it decorates, not later
    settings.CACHE_DIR = cache_dir()
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    finally:
        settings.CACHE_DIR = saved


def inline(function: Callable[..., Any]) -> Any:
    """A helper compiled into the kernels that call it; not cached by itself."""
    return numba.njit(nogil=True, error_model="numpy")(function)
