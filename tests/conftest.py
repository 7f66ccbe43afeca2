"""Fixtures of several test files. What is heavy to import is imported when used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def designs() -> Callable[[str], tuple[Path, Path]]:
    """Design and artifact of one of `tests.decoder_designs.MODELS`, to be read only."""
    from tests.decoder_designs import design_of

    return design_of


@pytest.fixture
def copy(designs: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> Path:
    """A design of its own, to be changed."""
    root = tmp_path / "design"
    shutil.copytree(designs("coded")[0], root)
    return root
