"""Device files and engine configurations: checked, round-tripped, refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fpga.design import EngineConfig, EngineDesign, LayerKind
from fpga.device import DEVICE_FOLDER, device_names, load_device
from lutllm.config import LutConfig
from lutllm.errors import ConfigError

KIND = LayerKind("o_proj", 896, 896, 1, 1, 8, 1, False, 0, False, ("a.o_proj",))


def test_v80_facts() -> None:
    device = load_device("v80")
    assert device.part == "xcv80-lsva4737-2MHP-e-S"
    assert device.clock_period_ns == 4.0
    assert device.at_clock(0) is device
    assert device.at_clock(400).clock_period_ns == 2.5
    for clock in (400.1, -1, float("nan")):
        with pytest.raises(ConfigError, match="ports of v80 take up to 400"):
            device.at_clock(clock)
    assert device.port_name(63) == "HBM63"
    assert device.memory_ports * device.region_bytes == device.capacity_bytes
    assert "v80" in device_names()
    with pytest.raises(ConfigError, match="memory port 64 does not exist"):
        device.port_name(64)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ports = 64", "ports = 0", "memory_ports is 0"),
        ("ports = 64", "ports = 65", "exceed its capacity"),
        ("lut = 2_574_208", "", r"\[resources\] must hold exactly"),
        ('part = "xcv80-lsva4737-2MHP-e-S"', 'part = ""', "non-empty text"),
        ("title =", "label =", "top level must hold exactly"),
        ("[kernel]", "[kernel", "not a readable device file"),
    ],
)
def test_bad_device_files_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (DEVICE_FOLDER / "v80.toml").read_text()
    assert old in text
    path = tmp_path / "board.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        load_device(str(path))


def test_unknown_device_names_the_known() -> None:
    with pytest.raises(ConfigError, match=r"'x1' is not known; choose one of .*v80"):
        load_device("x1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, "channels is 0"),
        ({"channels": 16, "centroid_ports": 3}, "do not share 3 centroid_ports evenly"),
        ({"axi_bits": 96}, "choose 64, 128, 256 or 512"),
        ({"rows": "maybe"}, "choose one of auto, table, online"),
        ({"lanes_per_cycle": 2.5}, "whole number"),
    ],
)
def test_bad_engine_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**changes)


@pytest.mark.parametrize(
    ("config", "lut", "kind", "message"),
    [
        (EngineConfig(rows="table"), LutConfig(scheme="weight"), KIND, "needs coded activations"),
        (
            EngineConfig(max_outputs=100),
            LutConfig(),
            KIND,
            "896 outputs, max_outputs is 100; raise it",
        ),
        (
            EngineConfig(),
            LutConfig(),
            LayerKind("big", 70000, 8, 1, 1, 8, 1, False, 0, False, ("big",)),
            "70000 inputs; a gather index has 16 bits",
        ),
        (
            EngineConfig(search_segments=64, search_chain=8),
            LutConfig(vec_len=8, act_centroids=256),
            KIND,
            "lower search_segments",
        ),
        (
            EngineConfig(rows="online"),
            LutConfig(weight_centroids=256, vec_len=8),
            KIND,
            "use rows 'table'",
        ),
        (
            EngineConfig(lanes_per_cycle=4096),
            LutConfig(group_size=4096),
            KIND,
            "lower lanes_per_cycle",
        ),
    ],
)
def test_bad_designs_are_refused(
    config: EngineConfig, lut: LutConfig, kind: LayerKind, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineDesign("e", config, lut, (kind,))


def test_design_round_trips() -> None:
    engine = EngineDesign("e", EngineConfig(channels=8), LutConfig(vec_len=4), (KIND,))
    assert EngineDesign.from_dict(engine.to_dict()) == engine
    with pytest.raises(ConfigError, match="unknown field 'depth'"):
        EngineConfig.from_dict({"depth": 3})


def test_published_setting_sizes() -> None:
    """Numbers a reader can check by hand: 448 positions, 16 channels, 7 sub-blocks of 128."""
    engine = EngineDesign("e", EngineConfig(), LutConfig(), (KIND,))
    assert engine.rounds(KIND) == 28
    assert engine.subs(KIND) == 7
    assert engine.groups(KIND) == 2
    assert engine.index_beats(KIND) == 14  # 896 indices of 4 bits, 32 bytes a beat
    assert engine.row_beats(KIND) == 1  # 2 rows of 16 bytes
    assert engine.record_beats(KIND) == 14 + 64
    assert engine.search_passes == 8
    assert engine.centroid_beats(KIND) == 28 * 8 * 2  # 4 channels x 8 elements x 2 bytes a pass
    constants = {name: value for _, name, value, _ in engine.constants()}
    assert constants["CHAIN_CHANNELS"] == 16
    assert constants["SEARCH"] == "true"
