"""Giving back memory: pages of a mapped file once its values were copied, and free heap.

Pages of a mapped file stay resident until the system needs the space; a checkpoint read tensor by
tensor would then seem to occupy its whole size.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap

import numpy as np


def release(mapped: mmap.mmap, start: int, length: int) -> None:
    """Drop the resident pages that lie wholly in bytes start .. start + length of a read-only map.

    Reading them again brings them back from the file.
    """
    page = mmap.PAGESIZE
    first, last = -(-start // page) * page, (start + length) // page * page
    if last > first and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def release_view(view: np.ndarray) -> None:
    """`release` for an array that is a view of a np.memmap; other arrays are left alone."""
    mapped = getattr(view, "_mmap", None)
    if isinstance(mapped, mmap.mmap) and view.flags.c_contiguous:
        origin = np.frombuffer(mapped, np.uint8).ctypes.data
        release(mapped, view.ctypes.data - origin, view.nbytes)


def trim_heap() -> None:
    """Hand free memory of the C heap to the system, where its library can (glibc)."""
    # elsewhere there is no such function, or no library to ask for it
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
