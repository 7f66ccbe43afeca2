"""Every command that the documentation shows is run; links lead somewhere; the API page is new.

Models and files named there are stood in for by the embedded model and small files. Options that
only cost time are made smaller.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest

from lutllm.cli import build_parser, main
from tests.embedded import MODEL, SAMPLE, embedded_artifact

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    "README.md",
    "docs/TUTORIAL.md",
    "docs/ECOSYSTEM.md",
    "docs/FAQ.md",
    "docs/BENCHMARKS.md",
    "docs/ACCURACY.md",
    "docs/RECIPES.md",
]
#: Names of artifacts and checkpoints in the documentation.
ARTIFACTS = (
    "qwen-lut",
    "qwen-lut-accurate",
    "tiny-lut",
    "tiny-accurate",
    "qwen",
    "smol",
    "smol-2",
    "qwen-65k",
)
CHECKPOINTS = (
    "Qwen2.5-Coder-0.5B",
    "Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf",
    "SmolLM2-135M-Instruct",
    "models/tiny-qwen3",
)
TEXTS = ("wiki.txt", "wikitext2_raw_test.txt", "calib.txt")
#: Commands that take long, and the tests that run them; here their words are checked.
ELSEWHERE = {
    "bench": "test_cli.py",
    "csim": "test_cli.py",
    "explore": "test_performance_explore.py",
    "push": "test_push.py",
    "serve": "test_serve.py",
}
#: Appended to a command; the last value of an option counts.
SHORTER = {
    "quantize": "--calib-tokens 512 --eval-tokens 0 --distill-minutes 0 -q",
    "distill": "--eval-tokens 0 -q",
    "eval": "--max-tokens 128 --ctx 64 -q",
    "generate": "--max-tokens 3 -q",
}

#: Values that take the place of what follows an option.
INSTEAD = {"--minutes": "0.01", "--steps": "1"}


def blocks(text: str) -> list[str]:
    """Fenced and indented blocks, and code within lines."""
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?:^    [^\n]*\n)+", text, re.MULTILINE)
    return fenced + indented + [f"{code}\n" for code in re.findall(r"`(lutllm [^`]*)`", text)]


def commands(page: str) -> list[str]:
    """The lutllm commands of a page, as they are written, without their comments."""
    found = []
    for block in blocks((ROOT / page).read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            if line.startswith("lutllm "):
                found.append(re.sub(r"\s+#.*", "", re.sub(r"\s+", " ", line)))
    return found


def complete(command: str) -> bool:
    """A whole command, not the mention of one: it names what it works on, no placeholder."""
    words = shlex.split(command)[1:]
    placeholder = any(re.fullmatch(r"[A-Z]{2,}|\.\.\.", word) for word in words)
    return len(words) > 1 and not words[1].startswith("-") and not placeholder


EVERY = sorted({(page, c) for page in PAGES for c in commands(page) if complete(c)})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the commands name."""
    from quant import pipeline
    from quant.linear import Effort

    folder = tmp_path_factory.mktemp("docs")
    (folder / "models").mkdir()
    for name in CHECKPOINTS:
        (folder / name).symlink_to(MODEL)
    for name in ARTIFACTS:
        shutil.copytree(embedded_artifact(), folder / name)
    for name in TEXTS:
        (folder / name).write_text(SAMPLE.read_text()[:16_000])
    items = [{"query": "The people", "choices": ["of", "x"], "gold": 0}] * 2
    (folder / "piqa.jsonl").write_text("\n".join(json.dumps(item) for item in items))
    patch = pytest.MonkeyPatch()
    patch.setattr(
        pipeline.quantize,
        "__kwdefaults__",
        {**pipeline.quantize.__kwdefaults__, "effort": Effort(iterations=1, sweeps=0)},
    )
    yield folder
    patch.undo()


def shortened(words: list[str]) -> list[str]:
    name = words[0]
    if name == "quantize" and "--plan" in words:
        return words
    if name == "eval" and "--text" not in words:
        return [*words, "-q"]
    words = [INSTEAD.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    return words + shlex.split(SHORTER.get(name, ""))


@pytest.mark.parametrize(("page", "command"), EVERY, ids=[c for _, c in EVERY])
def test_command(place, page, command, monkeypatch, capsys):
    monkeypatch.chdir(place)
    words = shlex.split(command)[1:]
    if words[0] in ELSEWHERE:
        assert f'"{words[0]}"' in (ROOT / "tests" / ELSEWHERE[words[0]]).read_text()
        build_parser().parse_args(words)
        return
    if "--tasks" in words:
        pytest.importorskip("lm_eval")
    if words[0] in ("quantize", "distill") and "--plan" not in words:
        shutil.rmtree(place / words[words.index("-o") + 1], ignore_errors=True)
    status = main(shortened(words))
    captured = capsys.readouterr()
    assert status == 0, captured.out + captured.err
    assert captured.out


def test_there_are_commands():
    assert {"quantize", "eval", "generate", "export", "csim", "report", "estimate"} <= {
        c.split()[1] for _, c in EVERY
    }


@pytest.mark.parametrize("page", [*PAGES, "docs/ARCHITECTURE.md", "docs/FORMAT.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


def test_api_reference_is_current():
    found = runpy.run_path(str(ROOT / "scripts" / "api_reference.py"))["reference"]()
    assert (ROOT / "docs" / "API.md").read_text(encoding="utf-8") == found, (
        "run python scripts/api_reference.py"
    )
