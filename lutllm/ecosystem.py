"""The commands that meet other tools, as functions: ONNX, the HTML report, the hub.

With `lutllm.api` the only modules that join calibration, emulator and export. Heavy modules are
imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lutllm.artifact import Artifact, content_files, record
from lutllm.errors import ArtifactError, ConfigError, LutLLMError, ResourceError
from lutllm.hub_files import HUB_FILE
from lutllm.notebook import Page

Source = str | Path


def export_onnx(
    artifact: Source, out: Source, *, layer: str | None = None, check_tokens: int = 0
) -> dict[str, Any]:
    """Write an artifact as an ONNX model into `out`; stock onnxruntime runs it.

    layer         name of one LUT linear to write instead of the model
    check_tokens  also run so many tokens of our text through onnxruntime and compare with the
                  emulator; adds what `codegen.onnx.run.compare` returns
    """
    from codegen.onnx.export import export

    if layer is not None and check_tokens:
        raise ConfigError("only a whole model is checked; leave `layer` or `check_tokens` out")
    found = export(artifact, out, layer=layer)
    if check_tokens:
        found |= compare_onnx(artifact, out, tokens=check_tokens)
    return found


def compare_onnx(artifact: Source, folder: Source, *, tokens: int = 32) -> dict[str, Any]:
    """An ONNX export beside the emulator, on the first `tokens` tokens of our text."""
    from calib.text import default_text
    from codegen.onnx.run import Expected, compare
    from lutllm.emulator import LutModel

    model = LutModel.load(artifact)
    text = default_text()[: 64 * tokens]  # no tokenizer needs 64 characters a token
    ids = np.array(model.tokenizer.encode_prompt(text)[: min(tokens, model.context)], np.int64)
    inputs, sums = model.capture(ids)
    return compare(folder, Artifact.open(artifact), Expected(ids, model.logits(ids), inputs, sums))


def evaluate_lm_eval(
    artifact: Source,
    tasks: Sequence[Source],
    *,
    tasks_path: Source | None = None,
    limit: int | None = None,
) -> dict[str, dict[str, float]]:
    """Metrics of an artifact by task, from lm-eval and offline.

    tasks       names of lm-eval tasks, or task files of `lutllm.evaluate_task`
    tasks_path  folder of YAML files that define tasks; None knows those of lm-eval
    """
    try:
        from lutllm.lm_eval import evaluate
    except ImportError as cause:
        raise ResourceError(str(cause)) from None
    return evaluate(artifact, tasks, include_path=tasks_path, limit=limit)


def push(artifact: Source, repo_id: str, *, private: bool = False) -> dict[str, Any]:
    """Upload an artifact to the Hugging Face hub; returns repo_id, url and files.

    The artifact is verified first. The token is the one of `hf auth login`.
    """
    from lutllm import api

    found = api.verify(artifact)
    if not found["ok"]:
        raise ArtifactError(f"{found['problems'][0]}; not pushed")
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise ResourceError(
            'push needs the package huggingface_hub; run: pip install "lutllm[hub]"'
        ) from None
    hub, folder = HfApi(), Path(artifact)
    files = sorted(path.name for path in (*content_files(folder), *_companions(folder)))
    try:
        url = hub.create_repo(repo_id, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=repo_id,
            folder_path=str(folder),
            allow_patterns=files,
            commit_message=f"lutllm artifact {found['artifact_hash'][:12]}",
        )
    except Exception as cause:  # the client raises many kinds, its own and its transport's
        first = str(cause).strip().splitlines()
        raise ResourceError(
            f"{repo_id}: could not be pushed ({type(cause).__name__}: "
            f"{first[0] if first else 'no detail'}); check the name, the network and "
            "`hf auth login`"
        ) from None
    return {"repo_id": repo_id, "url": str(url), "files": files}


def _companions(folder: Path) -> list[Path]:
    """Files of an artifact beside those that define it."""
    names = ("README.md", "report.json", HUB_FILE)
    return [folder / name for name in names if (folder / name).is_file()]


def report(artifacts: Source | Sequence[Source], out: Source, *, device: str = "v80") -> Page:
    """Write one self-contained HTML page about one or more artifacts to the file `out`.

    The first artifact is shown in detail; accuracy against bits compares all of them.
    device: of the estimate. Returns file, bytes, artifacts, and linears by verdict; a notebook
    shows the page.
    """
    from lutllm.html_report.facts import read_facts
    from lutllm.html_report.page import render

    paths = [artifacts] if isinstance(artifacts, str | Path) else list(artifacts)
    if not paths:
        raise ConfigError("no artifact to report on; give at least one")
    first = read_facts(paths[0], _estimate(paths[0], device))
    others = [read_facts(path, usage=False) for path in paths[1:]]
    text = render([first, *others])
    Path(out).write_text(text, encoding="utf-8")
    words = [error.verdict for error in first.errors]
    found = {
        "file": str(out),
        "bytes": len(text.encode()),
        "artifacts": [facts.name for facts in (first, *others)],
        "linears": {word: words.count(word) for word in ("good", "watch", "bad")},
    }
    return Page(found, text)


def record_measurement(artifact: Source, file: Source, found: dict[str, Any]) -> None:
    """Keep what `evaluate` or `evaluate_task` found on `file` in an artifact's report.json."""
    record(Artifact.open(artifact).path, "measured", {"file": Path(file).name, **found})


def _estimate(artifact: Source, device: str) -> dict[str, Any] | None:
    """The estimate of an artifact, None where the model has no kernel."""
    from lutllm import api

    try:
        return api.estimate(artifact, device=device)
    except ConfigError:
        raise
    except LutLLMError:
        return None
