"""Imports follow the pipeline: checkpoint, calib, quant, artifact, then emulator and kernels."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lutllm
from tests.embedded import embedded_artifact

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("lutllm", "calib", "quant", "codegen", "fpga")

#: layer -> the layers it may import; a module belongs to the longest prefix that fits
ALLOWED = {
    "lutllm": {"lutllm"},
    "lutllm.emulator": {"lutllm", "lutllm.emulator"},
    "calib": {"lutllm", "calib"},
    "quant": {"lutllm", "calib", "quant"},
    "fpga": {"lutllm", "fpga"},
    "codegen": {"lutllm", "codegen", "fpga"},
    # the top: joins all the others
    "lutllm.api": {
        "lutllm",
        "lutllm.api",
        "lutllm.emulator",
        "lutllm.server",
        "calib",
        "quant",
        "codegen",
        "fpga",
    },
    "lutllm.ecosystem": {
        "lutllm",
        "lutllm.api",
        "lutllm.emulator",
        "lutllm.html_report",
        "lutllm.lm_eval",
        "calib",
        "codegen",
    },
    "lutllm.lm_eval": {"lutllm", "lutllm.emulator", "calib"},
    "lutllm.html_report": {"lutllm", "lutllm.html_report"},
    "lutllm.hf": {"lutllm", "lutllm.emulator", "lutllm.hf"},
    "lutllm.server": {"lutllm", "lutllm.emulator", "lutllm.server"},
    "lutllm.cli": {"lutllm", "lutllm.api", "lutllm.ecosystem", "lutllm.cli"},
    "lutllm.__main__": {"lutllm.cli"},
    "lutllm.__init__": {"lutllm", "lutllm.api", "lutllm.ecosystem"},
}


def layer_of(module: str) -> str | None:
    fitting = [name for name in ALLOWED if module == name or module.startswith(name + ".")]
    return max(fitting, key=len, default=None)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "lutllm.__init__" if parts == ("lutllm", "__init__") else ".".join(parts)


def imported_modules(path: Path) -> set[str]:
    """Every module named by an import statement, inside functions as well."""
    out: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            module = node.module or ""
            out |= {f"{module}.{alias.name}" for alias in node.names}
    return out


SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    layer = layer_of(module_name(path))
    assert layer is not None, f"{path} belongs to no layer"
    for module in imported_modules(path):
        target = layer_of(module)
        assert target is None or target in ALLOWED[layer], f"{path} imports {module}"


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "statement", ["import lutllm", "from lutllm.cli import build_parser; build_parser()"]
)
def test_import_and_help_load_nothing_heavy(statement):
    heavy = {"numpy", "torch", "numba", "tokenizers", "faiss", "sklearn", "onnx", "transformers"}
    assert not heavy & modules_after(statement)


def test_a_model_runs_without_the_linear_algebra_of_scipy():
    """Numba would load it, and still finds it for whoever calls it."""
    run = f"import lutllm; lutllm.load({str(embedded_artifact('co'))!r}).prefill([1])"
    assert "scipy.linalg" not in modules_after(run)
    dot = "import numba, numpy; numba.njit(lambda a: numpy.dot(a, a))(numpy.ones(3))"
    assert "scipy.linalg" in modules_after(f"{run}; {dot}")


def test_no_module_hides_a_public_function():
    """Importing lutllm.x would put the module in the place of the function lutllm.x."""
    package = Path(lutllm.__file__).parent
    modules = {path.stem for path in package.glob("*.py")} | {
        p.parent.name for p in package.glob("*/__init__.py")
    }
    assert not modules & set(lutllm.__all__)
