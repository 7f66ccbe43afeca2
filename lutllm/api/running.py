"""An artifact in use: loaded, timed, served, verified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lutllm.api.source import Source
from lutllm.artifact import Artifact, artifact_hash, read_json
from lutllm.errors import ArtifactError

if TYPE_CHECKING:
    from lutllm.emulator import LutModel


def load(
    path: Source, *, threads: int | None = None, context: int | None = None, kv: str = "F32"
) -> LutModel:
    """The artifact `path`, ready to run: `.generate(...)`, `.logits(ids)`.

    threads  None takes all that are available
    context  positions a sequence may have; None takes what the model is made for
    kv       "F32" or "F16": what keys and values are kept as, see `LutModel`
    """
    from lutllm.emulator import LutModel

    return LutModel.load(path, threads, context, kv)


def bench(
    path: Source,
    *,
    prompt_tokens: int = 128,
    decode_tokens: int = 64,
    threads: int | None = None,
    batch: int = 0,
    text: str | Path | None = None,
    kv: str = "F32",
) -> dict[str, Any]:
    """Prefill and decode speed of an artifact on this machine, and the memory speed beside it.

    batch: sequences that are also decoded together, 0 for none. text: a file whose tokens are
    taken, None for random ones. kv: see `load`.
    """
    from calib.text import read_text
    from lutllm.emulator import bench as measure

    content = None if text is None else read_text(text)
    model = load(path, threads=threads, kv=kv)
    return measure.bench(model, prompt_tokens, decode_tokens, batch=batch, text=content)


def serve(
    path: Source,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    queue: int = 16,
    batch: int = 4,
    context: int | None = None,
    threads: int | None = None,
    kv: str = "F32",
    ready: Callable[[str], None] | None = None,
) -> None:
    """Answer OpenAI-style HTTP requests for the artifact `path` until interrupted.

    port   0 takes a free one
    name   of the model for clients; None takes that of the folder
    queue  requests that may wait behind those that run; more are refused
    batch  requests that run together, at most; each has a cache of its own
    ready  gets the address once it listens

    Needs the extra `serve`.
    """
    from lutllm.server.run import serve as run_server
    from lutllm.server.settings import ServeConfig

    config = ServeConfig(name or Path(path).resolve().name, queue, batch)
    model = load(path, threads=threads, context=context, kv=kv)
    run_server(model, config, host, port, ready or (lambda address: None))


def verify(path: Source) -> dict[str, Any]:
    """Check every array, value and recorded digest of an artifact."""
    path = Path(path)
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such folder; give the folder `lutllm quantize` wrote")
    try:
        problems = Artifact.open(path).verify()
    except ArtifactError as error:
        problems = [str(error)]
    problems += _hash_problem(path)
    return {"ok": not problems, "problems": problems, "artifact_hash": artifact_hash(path)}


def _hash_problem(path: Path) -> list[str]:
    """The recorded hash of the whole artifact, compared with the one it has."""
    report = path / "report.json"
    recorded = read_json(report).get("artifact_hash") if report.is_file() else None
    if recorded in (None, artifact_hash(path)):
        return []
    return [f"{path}: the files do not have the hash {recorded} that report.json states"]
