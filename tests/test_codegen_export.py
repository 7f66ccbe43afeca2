"""Export: the same bytes every time, everything where the manifest says, refusals that help."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from codegen.csim import run_csim
from codegen.export import export
from codegen.manifest import MANIFEST, read_design
from codegen.plan import select_linears
from fpga.design import EngineConfig
from fpga.engine_plan import plan_engines
from lutllm.artifact import Artifact
from lutllm.config import LutConfig, QuantConfig
from lutllm.errors import ArtifactError, ConfigError, ResourceError
from tests.make_artifact import tiny_config, write_artifact

ENGINE = EngineConfig(channels=4, centroid_ports=2, lanes_per_cycle=32, max_tokens=8)
QUANT = QuantConfig(default=LutConfig(group_size=64))
MIXED = QuantConfig(
    default=LutConfig(group_size=64),
    overrides={
        "*.1.mlp.down_proj": {"act_stages": 2},
        "*.o_proj": {"scheme": "weight"},
    },
)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("artifact"), tiny_config("qwen2"), QUANT)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("mixed"), tiny_config("qwen3"), MIXED)


def all_bytes(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_two_exports_have_the_same_bytes(artifact: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(artifact, moved)
    first = export(artifact, tmp_path / "a", engine=ENGINE)
    second = export(moved, tmp_path / "b", engine=ENGINE)
    assert first == second
    assert all_bytes(tmp_path / "a") == all_bytes(tmp_path / "b")
    before = all_bytes(tmp_path / "a")
    export(artifact, tmp_path / "a", engine=ENGINE)
    assert all_bytes(tmp_path / "a") == before
    assert set(first["files"]) == set(before)


def test_exported_model_simulates_exactly(artifact: Path, tmp_path: Path) -> None:
    """Inputs by name, from a function; every linear of one layer, and one of another."""
    rng = np.random.default_rng(0)

    def inputs(name: str) -> np.ndarray | None:
        if ".1." in name and not name.endswith("o_proj"):
            return None
        size = 100 if name.endswith("down_proj") else 144 if name.endswith("o_proj") else 72
        return rng.standard_normal((20, size)).astype(np.float32)

    export(artifact, tmp_path / "design", engine=ENGINE, golden=inputs, golden_tokens=10)
    found = run_csim(tmp_path / "design")
    assert (found["integer_mismatches"], found["first_divergence"]) == (0, None)
    assert found["linears"] == 5
    assert found["tokens_compared"] == 5 * 2 * (1 + 10)
    assert run_csim(tmp_path / "design", layers=1)["linears"] == 4
    assert run_csim(tmp_path / "design", layers=[1])["linears"] == 1


def test_mixed_schemes_make_two_engines(mixed: Path, tmp_path: Path) -> None:
    opened = Artifact.open(mixed)
    engines = plan_engines(opened.model, opened.quant, select_linears(opened, None), ENGINE)
    assert [engine.lut.scheme for engine in engines] == ["co", "weight"]
    names = [[kind.name for kind in engine.kinds] for engine in engines]
    assert names == [["qkv_proj", "gate_up_proj", "down_proj", "down_proj_v2"], ["o_proj"]]
    assert [kind.act_stages for kind in engines[0].kinds] == [1, 1, 1, 2]
    export(mixed, tmp_path / "design", engine=ENGINE, golden_tokens=3)
    found = run_csim(tmp_path / "design", details=True)
    assert (found["integer_mismatches"], found["first_divergence"]) == (0, None)
    assert {run["engine"] for run in found["runs"]} == {"lut_linear_0", "lut_linear_1"}


def test_layers_are_selected(artifact: Path, tmp_path: Path) -> None:
    found = export(artifact, tmp_path / "design", engine=ENGINE, layers=[1], golden={})
    assert found["linears"] == 4
    design = read_design(tmp_path / "design")
    assert all(".layers.1." in name for name in design.engines[0].slots)
    with pytest.raises(ConfigError, match="the model has 1 to 2"):
        export(artifact, tmp_path / "other", layers=3)
    with pytest.raises(ConfigError, match="the model has layers 0 to 1"):
        export(artifact, tmp_path / "other", layers=[2])


def test_manifest_says_where_linears_lie(artifact: Path, tmp_path: Path) -> None:
    root = tmp_path / "design"
    export(artifact, root, engine=ENGINE)
    manifest = json.loads((root / MANIFEST).read_text())
    entry = manifest["engines"][0]
    for part, file in (("channel", "channel_3"), ("centroids", "centroids_1")):
        size = (root / f"images/lut_linear/{file}.bin").stat().st_size
        spans = sorted((x[part]["offset"], x[part]["bytes"]) for x in entry["linears"].values())
        ends = [offset + count for offset, count in spans]
        assert [offset for offset, _ in spans] == [0, *ends[:-1]]
        assert ends[-1] == size
    shape = entry["linears"]["model.layers.1.mlp.down_proj"]["shape"]
    assert shape == [72, 100]
    listed = {item["path"] for item in manifest["files"]}
    assert listed == set(all_bytes(root)) - {MANIFEST}


def test_foreign_folders_are_left_alone(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="not empty, and not an exported design"):
        export(artifact, tmp_path)
    with pytest.raises(ArtifactError, match="is a file"):
        export(artifact, tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_interrupted_export_is_told_and_can_be_repeated(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "design"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("codegen.export.channel_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(artifact, root, engine=ENGINE)
    with pytest.raises(ArtifactError, match="did not finish; run it again"):
        read_design(root)
    export(artifact, root, engine=ENGINE)
    read_design(root)


def test_refusals_before_writing(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "design"
    with pytest.raises(ConfigError, match="device 'u999' is not known; choose one of"):
        export(artifact, out, device="u999")
    with pytest.raises(ConfigError, match="axi_bits is 512; a port of v80 has 256 bits"):
        export(artifact, out, engine=EngineConfig(axi_bits=512))
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(ResourceError, match="export fewer layers or free some space"):
        export(artifact, out)


def test_bad_golden_inputs_are_refused(artifact: Path, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.qkv_proj"
    bad = {name: np.zeros((3, 71), np.float32)}
    with pytest.raises(ConfigError, match=r"shape \[3, 71\], needs \[tokens, 72\]"):
        export(artifact, tmp_path / "a", engine=ENGINE, golden=bad)
    bad = {name: np.full((3, 72), np.nan, np.float32)}
    with pytest.raises(ConfigError, match="not finite"):
        export(artifact, tmp_path / "b", engine=ENGINE, golden=bad)


def test_devices_without_a_build_flow_are_refused(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"device is u280: no build flow .* export for v80"):
        export(mixed, tmp_path / "design", device="u280", golden={})
    assert not (tmp_path / "design").exists()


def test_codebooks_and_entries_of_two_sizes_share_an_engine(tmp_path: Path) -> None:
    quant = QuantConfig(
        LutConfig(scheme="weight", group_size=64, weight_stages=2, weight_centroids=8),
        {"*.down_proj": {"weight_centroids": 16, "table_bits": 16}, "*.o_proj": {"table_bits": 6}},
    )
    source = write_artifact(tmp_path / "artifact", tiny_config("qwen3"), quant)
    files = export(source, tmp_path / "design", engine=ENGINE, golden_tokens=3)
    assert files["engines"] == ["lut_linear"]
    engine = read_design(tmp_path / "design").engines[0]
    assert (engine.lut.weight_centroids, engine.lut.table_bits) == (16, 16)
    found = run_csim(tmp_path / "design")
    assert found["integer_mismatches"] == 0
    assert found["tokens_equal"] == found["tokens_compared"] > 0
