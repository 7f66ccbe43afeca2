"""What is uploaded to the hub, with a stand-in for its client."""

from __future__ import annotations

import shutil
import sys
import types

import pytest

import lutllm
from lutllm.cli import main
from lutllm.errors import ArtifactError, ResourceError
from tests.embedded import embedded_artifact


class Hub:
    """Keeps what HfApi would have sent."""

    sent: list[tuple[str, dict]]
    failure: Exception | None = None

    def create_repo(self, repo_id, **options):
        if self.failure:
            raise self.failure
        self.sent.append(("create", {"repo_id": repo_id, **options}))
        return f"https://hub.invalid/{repo_id}"

    def upload_folder(self, **options):
        self.sent.append(("upload", options))


@pytest.fixture
def hub(monkeypatch):
    Hub.sent, Hub.failure = [], None
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(HfApi=Hub))
    return Hub


def test_what_is_sent(hub, capsys, tmp_path):
    folder = tmp_path / "art"
    shutil.copytree(embedded_artifact(), folder)
    (folder / "notes.txt").write_text("mine")
    assert main(["push", str(folder), "me/tiny-lut", "--private"]) == 0
    assert capsys.readouterr().out.startswith("https://hub.invalid/me/tiny-lut: ")
    (_, created), (_, upload) = hub.sent
    assert created == {"repo_id": "me/tiny-lut", "private": True, "exist_ok": True}
    files = upload["allow_patterns"]
    assert {"config.json", "tokenizer.json", "report.json", "lutllm_hub.py"} <= set(files)
    assert {p.name for p in folder.glob("*.safetensors")} <= set(files)
    assert "notes.txt" not in files
    assert upload["folder_path"] == str(folder)


def test_damaged_artifacts_stay_here(hub, tmp_path):
    folder = tmp_path / "art"
    shutil.copytree(embedded_artifact(), folder)
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with pytest.raises(ArtifactError, match="not pushed"):
        lutllm.push(folder, "me/tiny-lut")
    assert hub.sent == []


def test_failures_are_one_line(hub, capsys):
    hub.failure = RuntimeError("401 Unauthorized\nlong story")
    assert main(["push", str(embedded_artifact()), "me/tiny-lut"]) == 2
    captured = capsys.readouterr()
    assert "RuntimeError: 401 Unauthorized" in captured.err
    assert captured.err.count("\n") == 1


def test_without_the_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ResourceError, match="lutllm\\[hub\\]"):
        lutllm.push(embedded_artifact(), "me/tiny-lut")
