"""The HTML report: its numbers, what it makes of foreign text, and how it looks in a browser."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import lutllm
from lutllm.artifact import Artifact, record
from lutllm.cli import main
from lutllm.config import LutConfig
from lutllm.errors import ArtifactError, ConfigError
from lutllm.html_report import charts
from lutllm.html_report.facts import read_facts
from lutllm.html_report.page import human_bytes, percent
from lutllm.html_report.usage import centroid_usage, code_counts
from lutllm.html_report.verdicts import linear_errors, verdict
from lutllm.lut_linear import pack_codes
from tests.browser import evaluate, find_browser
from tests.embedded import MODEL, SAMPLE, embedded_artifact
from tests.helpers import random_linear

HOSTILE = '<script>alert(1)</script> & "quotes" \''


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """The embedded model with a sample, measurements and one bad linear."""
    folder = tmp_path_factory.mktemp("report") / "tiny-lut"
    shutil.copytree(embedded_artifact(), folder)
    words = ["eval", str(folder), "--text", str(SAMPLE), "--max-tokens", "256", "--ctx", "128"]
    assert main([*words, "--reference", str(MODEL), "--record", "-q"]) == 0
    words = ["generate", str(folder), "--prompt", "The people", "--max-tokens", "4"]
    assert main([*words, "--record", "-q"]) == 0
    record(folder, "samples", {"prompt": HOSTILE, "text": "x", "before": "y"})
    report = json.loads((folder / "report.json").read_text())
    report["layers"][3]["linears"][1]["relative_error"] = 0.9
    report |= {"perplexity_before": 20.0, "perplexity_after": 25.0}
    (folder / "report.json").write_text(json.dumps(report))
    return folder


@pytest.fixture(scope="module")
def page(artifact, tmp_path_factory):
    """The page about two artifacts: the first one and the same at fewer bits."""
    other = tmp_path_factory.mktemp("other") / "tiny-smaller"
    shutil.copytree(artifact, other)
    report = json.loads((other / "report.json").read_text())
    (other / "report.json").write_text(
        json.dumps(report | {"perplexity_after": 40.0, "bits_per_weight": 1.5})
    )
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["report", str(artifact), str(other), "-o", str(out)]) == 0
    return out.read_text()


# ---------------------------------------------------------------- numbers


def test_bytes_are_those_of_the_files(artifact):
    facts = read_facts(artifact)
    stored = sum(Artifact.open(artifact).tensor_bytes().values())
    embedding = 2048 * 192 * 2
    assert facts.part_bytes["embedding"] == embedding
    assert facts.total_bytes - facts.part_bytes["tokenizer and configuration"] == stored
    codes = [lin.weight_codes.nbytes for lin in Artifact.open(artifact).linears()]
    assert facts.part_bytes["weight codes"] == sum(codes)


def test_usage_is_counted():
    linear = random_linear(LutConfig(weight_centroids=4, group_size=10, weight_stages=2), 6, 25)
    counts = code_counts(linear)
    codes = linear.unpack_weight_codes()
    assert counts.shape == (2 * 3 * 3, 4)
    assert counts[4 + 9].tolist() == np.bincount(codes[1, 1, 10:20], minlength=4).tolist()
    codes = np.tile(np.arange(25) % 2, (2, 3, 1)).astype(np.uint8)
    linear.weight_codes[:] = pack_codes(codes, 2)
    found = centroid_usage(linear)
    assert found.unused == 0.5
    assert found.effective == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("error", "rtn", "outlier", "word"),
    [
        (0.1, 0.2, False, "good"),
        (0.009, 0.001, True, "good"),
        (0.1, 0.12, False, "watch"),
        (0.3, 0.9, False, "watch"),
        (0.1, 0.2, True, "watch"),
        (0.1, 0.1, False, "bad"),
        (0.6, 0.9, False, "bad"),
    ],
)
def test_verdicts(error, rtn, outlier, word):
    assert verdict(error, rtn, outlier) == word


def test_outliers_stand_out_of_their_projection():
    def record_of(layer: int, down: float) -> dict:
        linears = [("mlp.down_proj", down), ("mlp.gate_up_proj", 0.05)]
        return {
            "layer": layer,
            "linears": [
                {
                    "name": f"model.layers.{layer}.{name}",
                    "relative_error": error,
                    "rtn_relative_error": 0.5,
                    "rtn_bits": 2,
                }
                for name, error in linears
            ],
        }

    errors = linear_errors([record_of(i, 0.2 if i == 2 else 0.05) for i in range(5)])
    assert [e.name for e in errors if e.outlier] == ["model.layers.2.mlp.down_proj"]
    assert not any(e.outlier for e in linear_errors([record_of(0, 0.2)]))


def test_pareto_front_and_ticks():
    points = [charts.Point(n, x, y) for n, x, y in [("a", 2, 9), ("b", 3, 5), ("c", 4, 6)]]
    assert [p.label for p in charts.pareto(points)] == ["a", "b"]
    assert charts.ticks(0.7, 3.2) == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert "<svg" in charts.scatter([points[0]] * 2, "x", "y")  # no span on either axis
    assert charts.free_place([(0, 50)], 10, 52) == 34


@pytest.mark.parametrize("error", [0, 1e-4, 0.003, 0.02, 0.1, 0.3, 0.9])
def test_text_on_colours_has_contrast(error):
    """At least 4.5 to 1, as WCAG asks."""
    shades = [charts.luminance([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in _pair(error)]
    assert (max(shades) + 0.05) / (min(shades) + 0.05) >= 4.5


def _pair(error: float) -> tuple[str, str]:
    return charts.error_colours(error)


def test_formats():
    join = "\N{NO-BREAK SPACE}"
    assert human_bytes(1234567) == f"1.23{join}MB"
    assert [percent(v) for v in (0.123, 0.0123, 0.0001)] == [
        f"12{join}%",
        f"1.2{join}%",
        f"0.01{join}%",
    ]


# ---------------------------------------------------------------- page


class _Links(HTMLParser):
    """Everything a page would load, and the tags that are open at its end."""

    VOID = ("meta", "link", "br", "img", "input")

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.loads += [v for k, v in attrs if k in ("src", "href", "srcset", "data") and v]
        if tag in ("script", "link", "img", "iframe"):
            self.loads.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_stands_alone_and_is_well_formed(page):
    parser = _Links()
    parser.feed(page)
    assert parser.loads == []
    assert parser.open == []
    assert "url(" not in page
    assert "@import" not in page


def test_page_says_what_was_measured(artifact, page):
    text = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    report = json.loads((artifact / "report.json").read_text())
    measured = report["measured"][0]
    assert f"{measured['perplexity']:.2f} ± {measured['stderr']:.2f}" in text
    assert f"{measured['kl_divergence']:.3f}" in text
    assert "20.00" in text
    assert "× 1.250" in text
    assert report["samples"][0]["text"].split()[0] in text
    assert "■ bad" in text
    assert "model.layers.3.self_attn.o_proj:weight_stages=2" in text
    assert "On the V80, estimated" in text
    assert "tiny-smaller" in page.split("<svg")[1].split("</svg>")[0]
    assert str(MODEL) not in page  # a local path is nobody's business


def test_foreign_text_stays_text(page):
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_artifacts_without_a_report(tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(embedded_artifact(), folder)
    (folder / "report.json").unlink()
    found = lutllm.report(folder, tmp_path / "r.html")
    assert found["linears"] == {"good": 0, "watch": 0, "bad": 0}
    text = (tmp_path / "r.html").read_text()
    assert "not measured" in text
    assert "Error of every linear" not in text


def test_distillation_is_drawn(tmp_path):
    folder = tmp_path / "distilled"
    shutil.copytree(embedded_artifact(), folder)
    curve = [[0, 0.5], [10, 0.375], [20, 0.3125]]
    (folder / "report.json").write_text(json.dumps({"distillation": {"held_out_curve": curve}}))
    lutllm.report(folder, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "<h2>Distillation</h2>" in text
    assert text.count("<circle") == 3
    assert "0.3125" in text


def test_what_is_refused(tmp_path, artifact):
    with pytest.raises(ConfigError, match="at least one"):
        lutllm.report([], tmp_path / "r.html")
    folder = tmp_path / "odd"
    shutil.copytree(embedded_artifact(), folder)
    (folder / "report.json").write_text('{"layers": [{"layer": 0}]}')
    with pytest.raises(ArtifactError, match="'layers' does not have the form"):
        lutllm.report(folder, tmp_path / "r.html")
    for curve in ('[["a", 1.0]]', "3", "[[1]]"):
        (folder / "report.json").write_text(f'{{"distillation": {{"held_out_curve": {curve}}}}}')
        with pytest.raises(ArtifactError, match="'distillation' does not have the form"):
            lutllm.report(folder, tmp_path / "r.html")
    with pytest.raises(ConfigError):
        lutllm.report(artifact, tmp_path / "r.html", device="x1")


# ---------------------------------------------------------------- browser

_SIZES = """
const root = doc.documentElement;
const small = [...doc.querySelectorAll("body *")].filter(e => e.childNodes.length
  && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())
  && !e.closest("svg") && parseFloat(getComputedStyle(e).fontSize) < 11);
return {
  wide: root.scrollWidth, window: root.clientWidth, small: small.length,
  cells: doc.querySelectorAll(".heat td").length,
  shown: [...doc.querySelectorAll("h2")].every(e => e.offsetHeight > 0),
  strip: [...doc.querySelectorAll(".strip span")].reduce((s, e) => s + e.offsetWidth, 0)
    / doc.querySelector(".strip").clientWidth,
};
"""


@pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(page, width, tmp_path: Path):
    """Nothing wider than the window, no text too small to read, the strip of bytes filled."""
    found = evaluate(page, width, _SIZES, tmp_path)
    assert found["window"] <= width
    assert found["wide"] <= found["window"]
    assert found["small"] == 0
    assert found["cells"] == 4 * 6
    assert found["shown"]
    assert found["strip"] == pytest.approx(1, abs=0.02)
