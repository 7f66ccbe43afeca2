"""What the machine has left, and refusals of runs that need more."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

from lutllm.errors import ResourceError


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def available_memory() -> int | None:
    """Bytes the system can give without swapping, or None where it does not say (not Linux)."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def check_memory(need: int, what: str, remedy: str) -> None:
    """ResourceError when the memory cannot hold the `need` bytes of `what`."""
    available = available_memory()
    if available is not None and available < need:
        raise ResourceError(
            f"{available >> 20} MiB of memory available, {what} needs up to {need >> 20} MiB; "
            f"{remedy}"
        )


def check_disk(out: Path, need: int, what: str) -> None:
    """ResourceError when the disk of `out` cannot hold the `need` bytes of `what`."""
    parent = next(p for p in out.absolute().parents if p.exists())
    free = shutil.disk_usage(parent).free
    if free < need:
        raise ResourceError(
            f"{parent}: {free >> 20} MiB free, {what} needs about {need >> 20} MiB; "
            "free some space or choose another folder with -o"
        )
