"""The C simulation can fail: every kind of damage is refused or reported where it first shows."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from codegen import csim as csim_module
from codegen.csim import run_csim
from codegen.manifest import MANIFEST, file_entry, read_design
from fpga.design import EngineConfig, EngineDesign
from lutllm.config import LutConfig
from lutllm.errors import ArtifactError, ConfigError, ResourceError
from lutllm.lut_linear import LutLinear
from tests.hls_tools import export_linears, make_engine

TOKENS = 32
Made = tuple[Path, EngineDesign, LutLinear]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A ragged linear on a small engine."""
    lut = LutConfig(act_centroids=32, group_size=64)
    config = EngineConfig(channels=4, centroid_ports=2, lanes_per_cycle=32)
    engine, linears = make_engine(lut, config, [(70, 130, True)])
    root = tmp_path_factory.mktemp("csim") / "design"
    export_linears(root, engine, linears, TOKENS)
    return root, engine, linears[0]


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    root = tmp_path / "design"
    shutil.copytree(made[0], root)
    return root


def rehash(root: Path) -> None:
    """Make the manifest agree with the files as they are."""
    manifest = json.loads((root / MANIFEST).read_text())
    manifest["files"] = [file_entry(root, entry["path"]) for entry in manifest["files"]]
    (root / MANIFEST).write_text(json.dumps(manifest))


def change(path: Path, offset: int, new: Callable[[int], int]) -> None:
    data = bytearray(path.read_bytes())
    data[offset] = new(data[offset])
    path.write_bytes(data)


def record_offset(made: Made, position: int) -> tuple[str, int]:
    """Channel image and byte offset of the record of a position (one weight stage)."""
    _, engine, _ = made
    kind = engine.kinds[0]
    where = np.argwhere(engine.position_map(kind) == position)[0]
    offset = int(where[0]) * engine.record_beats(kind) * engine.beat_bytes
    return f"images/lut_linear/channel_{where[1]}.bin", offset


def test_exact_design_passes(made: Made) -> None:
    found = run_csim(made[0], details=True)
    assert found["integer_mismatches"] == 0
    assert found["max_abs_error"] == 0
    assert found["first_divergence"] is None
    assert found["tokens_compared"] == found["tokens_equal"] == 2 * (1 + TOKENS)
    assert [(r["tokens"], r["mode"]) for r in found["runs"]] == [
        (1, "table"),
        (1, "row_fetch"),
        (32, "table"),
        (32, "row_fetch"),
    ]


def test_counters_are_what_the_design_predicts(made: Made) -> None:
    """Beats and cycles that the streams carried, against the sizes that models compute with."""
    root, engine, _ = made
    kind = engine.kinds[0]
    runs = run_csim(root, tokens=TOKENS, details=True)["runs"]
    rounds, subs = engine.rounds(kind), engine.subs(kind)
    for run in runs:
        rows = engine.lut.act_centroids if run["mode"] == "table" else TOKENS
        record = engine.index_beats(kind) + rows * engine.row_beats(kind)
        assert run["counters"] == {
            "channel_beats": rounds * record,
            "search_cycles": rounds * TOKENS * engine.search_passes,
            "row_cycles": rounds * TOKENS * engine.groups(kind),
            "lookup_cycles": rounds * TOKENS * subs,
            "gather_cycles": rounds * TOKENS * engine.gather_steps,
            "output_beats": 2 * TOKENS * subs * engine.out_beats,
        }


def test_tokens_layers_and_modes_select_runs(made: Made) -> None:
    assert run_csim(made[0], tokens=5, modes=["table"])["tokens_compared"] == 5
    assert run_csim(made[0], tokens=100, modes=["table"])["tokens_compared"] == TOKENS
    with pytest.raises(ConfigError, match="no golden inputs for the layers"):
        run_csim(made[0], layers=[3])
    with pytest.raises(ConfigError, match="tokens is 0"):
        run_csim(made[0], tokens=0)
    with pytest.raises(ConfigError, match="mode is 'fast'"):
        run_csim(made[0], modes=["fast"])


def test_changed_table_byte_is_refused_then_found(made: Made, copy: Path) -> None:
    _, engine, linear = made
    kind = engine.kinds[0]
    image, offset = record_offset(made, 0)
    codes = np.fromfile(copy / "golden/linear_0/codes.bin", np.uint8).reshape(TOKENS, -1)
    code, weight_code = int(codes[2, 0]), int(linear.unpack_weight_codes()[0, 0, 5])
    row = (engine.index_beats(kind) + code * engine.row_beats(kind)) * engine.beat_bytes
    change(copy / image, offset + row + weight_code, lambda entry: (entry + 1) % 256)
    with pytest.raises(ArtifactError, match=r"channel_0\.bin: sha256 differs"):
        run_csim(copy)
    rehash(copy)
    found = run_csim(copy, modes=["table"])
    first = found["first_divergence"]
    users = np.flatnonzero(codes[:, 0] == code)
    same = np.flatnonzero(linear.unpack_weight_codes()[0, 0, :64] == weight_code)
    assert found["integer_mismatches"] == len(same) * (len(users) + (users[0] == 0))
    assert (first["linear"], first["kind"]) == ("linear_0", "accumulator")
    assert (first["token"], first["index"]) == (users[0], same[0])
    assert abs(first["found"] - first["expected"]) >= 1
    assert found["tokens_equal"] == 1 + TOKENS - len(users) - (users[0] == 0)


def test_changed_index_moves_one_output(made: Made, copy: Path) -> None:
    image, offset = record_offset(made, 7)
    change(copy / image, offset, lambda byte: byte ^ 0x10)  # output 1: the high half of byte 0
    rehash(copy)
    found = run_csim(copy, tokens=TOKENS, modes=["row_fetch"])
    assert 0 < found["integer_mismatches"] <= TOKENS
    assert found["first_divergence"]["index"] == 1


def test_wrong_output_scale_shows_in_results_only(made: Made, copy: Path) -> None:
    _, engine, _ = made
    kind = engine.kinds[0]
    beats = engine.parameter_beats(kind) - engine.output_rows(kind) * (2 if kind.bias else 1)
    change(
        copy / "images/lut_linear/parameters_0.bin",
        beats * engine.beat_bytes + 2,
        lambda byte: byte ^ 0x40,
    )
    rehash(copy)
    found = run_csim(copy, tokens=TOKENS, modes=["table"])
    assert found["integer_mismatches"] == 0
    assert found["max_abs_error"] > 0
    assert found["first_divergence"]["kind"] == "result"
    assert found["first_divergence"]["index"] == 0


def test_changed_centroid_shows_as_a_code(made: Made, copy: Path) -> None:
    change(copy / "images/lut_linear/centroids_0.bin", 0, lambda byte: byte ^ 0x7F)
    rehash(copy)
    found = run_csim(copy, tokens=TOKENS, modes=["table"])
    assert found["first_divergence"]["kind"] == "code"
    assert found["first_divergence"]["index"] == 0


def edit(root: Path, old: str, new: str) -> None:
    path = root / "hls/lut_linear.cpp"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    rehash(root)


def test_edited_sources_run_only_when_allowed(copy: Path) -> None:
    edit(copy, "Do not edit.", "Edited.")
    with pytest.raises(ArtifactError, match="differs from what this lutllm renders"):
        run_csim(copy)


def test_one_round_too_many_is_a_named_deadlock(copy: Path) -> None:
    edit(
        copy,
        "const int passes = E::passes(call);\n    ap_uint<8 * E::CHAINS> shifts",
        "const int passes = E::passes(call) + 1;\n    ap_uint<8 * E::CHAINS> shifts",
    )
    with pytest.raises(ArtifactError, match="DEADLOCK") as caught:
        run_csim(copy, tokens=1, modes=["table"], allow_modified=True)
    assert "case linear_0, 1 tokens" in str(caught.value)
    assert "accumulate waits for read of totals[0]" in str(caught.value)


def test_missing_compiler_is_told(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ResourceError, match=r"'no-such-compiler' was not found; install g\+\+"):
        run_csim(made[0])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / MANIFEST).unlink(), "manifest.json: file not found"),
        (lambda root: (root / MANIFEST).write_text("{"), "not valid JSON"),
        (lambda root: (root / "golden/linear_0/acc.bin").write_bytes(b""), "0 bytes, the manifest"),
        (lambda root: (root / "images/lut_linear/parameters_0.bin").unlink(), "file not found"),
        (lambda root: set_path(root, "../outside"), "leaves the folder"),
        (lambda root: set_path(root, "/etc/passwd"), "leaves the folder"),
        (lambda root: set_value(root, "device", "../v80"), "is not a device"),
        (lambda root: set_value(root, "engines", [{}]), "malformed"),
        (lambda root: set_value(root, "format", "other"), "this lutllm reads"),
        (lambda root: set_value(root, "golden", {"a b": {}}), "malformed"),
        (lambda root: symlink(root), "file not found"),
    ],
)
def test_damaged_designs_are_refused(
    copy: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(copy)
    with pytest.raises(ArtifactError, match=message):
        read_design(copy)


def set_value(root: Path, key: str, value: object) -> None:
    manifest = json.loads((root / MANIFEST).read_text())
    manifest[key] = value
    (root / MANIFEST).write_text(json.dumps(manifest))


def set_path(root: Path, path: str) -> None:
    manifest = json.loads((root / MANIFEST).read_text())
    manifest["files"][0]["path"] = path
    (root / MANIFEST).write_text(json.dumps(manifest))


def symlink(root: Path) -> None:
    target = root / "images/lut_linear/parameters_0.bin"
    target.rename(root / "elsewhere.bin")
    target.symlink_to(root / "elsewhere.bin")


def test_golden_of_the_wrong_size_is_refused(copy: Path) -> None:
    path = copy / "golden/linear_0/y.bin"
    path.write_bytes(path.read_bytes()[:-4])
    rehash(copy)
    with pytest.raises(ArtifactError, match=r"y\.bin: 16636 bytes, its engine needs 16640"):
        run_csim(copy)


def test_pruning_survives_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that goes while the cache is looked through is no error."""
    for i in range(3):
        (tmp_path / str(i)).touch()
        os.utime(tmp_path / str(i), (i, i))
    written = csim_module._written
    monkeypatch.setattr(csim_module, "CACHED_PROGRAMS", 1)

    def vanishing(path: Path) -> float:
        if path.name == "1":
            path.unlink(missing_ok=True)
        return written(path)

    monkeypatch.setattr(csim_module, "_written", vanishing)
    csim_module._prune(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["2"]
