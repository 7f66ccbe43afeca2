"""The folder a quantization works in: finished layers, and the state to resume from.

Everything is written beside its final name and renamed, so a kill at any moment leaves either the
old or the new file. The folder becomes the artifact with one last rename.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from lutllm.artifact import artifact_hash, read_json, write_json
from lutllm.errors import ConfigError, LutLLMError

_STATE = "state.json"


class Workspace:
    """Work folder of the artifact `out`. `fingerprint` identifies inputs and configuration."""

    def __init__(self, out: Path, fingerprint: dict[str, Any], resume: bool):
        self.out = out
        self.path = _partial(out)
        self._state_path = self.path / "state"
        self.records: list[dict[str, Any]] = []
        self.refined: dict[str, Any] | None = None
        if resume and self.path.exists():
            self._check(fingerprint)
        else:
            shutil.rmtree(self.path, ignore_errors=True)
            self._state_path.mkdir(parents=True)
            self._fingerprint = fingerprint
            self._write_state(None)

    @property
    def layers_done(self) -> int:
        return len(self.records)

    def _check(self, fingerprint: dict[str, Any]) -> None:
        state = read_json(self._state_path / _STATE, ConfigError)
        found = state.get("fingerprint", {})
        if found != json.loads(json.dumps(fingerprint)):
            changed = [k for k in fingerprint if found.get(k) != fingerprint[k]]
            raise ConfigError(
                f"{self.path}: begun with another {', '.join(changed) or 'setting'}; give the "
                "same options as before, or leave out --resume to start anew"
            )
        self._fingerprint = fingerprint
        self.records = state["records"]
        self.refined = state["refined"]
        self._hidden_name = state["hidden"]

    def _write_state(self, hidden: str | None) -> None:
        self._hidden_name = hidden
        state = {
            "fingerprint": self._fingerprint,
            "records": self.records,
            "hidden": hidden,
            "refined": self.refined,
        }
        temporary = self._state_path / (_STATE + ".new")
        write_json(temporary, state)
        os.replace(temporary, self._state_path / _STATE)

    def load_hidden(self) -> dict[str, np.ndarray] | None:
        """Hidden states after the last finished layer, or None before the first."""
        if self._hidden_name is None:
            return None
        with np.load(self._state_path / self._hidden_name, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}

    def finish_layer(self, record: dict[str, Any], hidden: dict[str, np.ndarray]) -> None:
        """Record a layer whose tensor file is in place, with the hidden states behind it."""
        old = self._hidden_name
        self.records.append(record)
        name = f"hidden-{len(self.records)}.npz"
        np.savez(self._state_path / name, **hidden)  # type: ignore[arg-type]
        self._write_state(name)
        if old:
            (self._state_path / old).unlink(missing_ok=True)

    def state_file(self, name: str) -> Path:
        """A path in the state folder, which goes when the run is finished."""
        return self._state_path / name

    def finish_refinement(self, record: dict[str, Any]) -> None:
        """Record that the trained tensor files are complete in the state folder."""
        self.refined = record
        self._write_state(self._hidden_name)

    def finish(self) -> None:
        """Drop the state and give the folder its final name."""
        shutil.rmtree(self._state_path)
        if self.out.exists():
            shutil.rmtree(self.out)
        os.replace(self.path, self.out)


def _partial(out: Path) -> Path:
    """Where the artifact `out` is worked on."""
    return out.with_name(out.name + ".partial")


def finished_report(out: Path) -> dict[str, Any]:
    """The report of an artifact that is whole, for a run that ended in its evaluation.

    Empty where there is none, where another run is at work, and where files are not those it tells
    of.
    """
    file = out / "report.json"
    if not file.is_file() or _partial(out).exists():
        return {}
    report = read_json(file)
    return report if report.get("artifact_hash") == artifact_hash(out) else {}


def check_output(out: Path) -> None:
    """Refuse an output that is a file, or a folder that is not an artifact of ours."""
    if out.is_file():
        raise LutLLMError(f"{out}: is a file; give a folder name for the artifact")
    if out.is_dir() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise LutLLMError(f"{out}: is a folder with other content; give a new name with -o")
