"""Arrays of an unfinished run in one file. A kill at any moment leaves the old or the new one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write `arrays` beside `path` and rename."""
    temporary = path.with_name(path.name + ".new")
    with open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    os.replace(temporary, path)


def load_arrays(path: Path | None) -> dict[str, np.ndarray] | None:
    """What `save_arrays` wrote, None where there is no file."""
    if path is None or not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
