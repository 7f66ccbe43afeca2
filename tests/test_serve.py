"""The HTTP endpoint, over real connections to a server in this process."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutllm.emulator import LutModel
from lutllm.errors import ConfigError
from lutllm.server.run import listen, make_server
from lutllm.server.settings import ServeConfig
from lutllm.server.stops import StopFilter
from tests.make_artifact import tiny_config, write_artifact, write_tokenizer

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}[{{ m['content'] }}]{% endfor %}>"
)
GREEDY = {"temperature": 0, "max_tokens": 20}
LONG = {"temperature": 1, "seed": 1, "max_tokens": 600}
HELLO = [{"role": "user", "content": "hello there"}]


# ---------------------------------------------------------------- stop strings


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 30), max_size=6),
)
def test_stop_filter_cuts_at_the_first_stop(text: str, stops: list[str], cuts: list[int]) -> None:
    """However the text is cut, what comes out ends where a stop string first becomes complete."""
    stream, out, fed = StopFilter(stops), "", ""
    places = sorted({0, len(text), *(min(c, len(text)) for c in cuts)})
    for start, end in itertools.pairwise(places):
        fed += text[start:end]
        out += stream.push(text[start:end])
        found = [at for s in stops if (at := fed.find(s)) >= 0]
        assert stream.hit == bool(found)
        if found:
            assert out == fed[: min(found)]
            return
        assert fed.startswith(out)
    assert out + stream.finish() == text


# ---------------------------------------------------------------- a running server


@dataclass
class Running:
    """A server and a client of it. `gate`, when clear, holds the engine before each token."""

    client: Any
    engine: Any
    gate: threading.Event
    started: threading.Event
    together: list[int]  # sequences of every decoding step

    def post(self, path: str, **body: Any) -> Any:
        return self.client.post(f"/v1/{path}", json=body)

    def cached(self) -> int:
        """Tokens in the caches of all slots."""
        slots = [*self.engine._free, *(g.slot for g in self.engine._current)]
        return sum(slot.cache.length for slot in slots)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serve") / "tiny"
    write_artifact(path, tiny_config("qwen3"))
    write_tokenizer(path, 301, TEMPLATE)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> LutModel:
    """The same model beside the server's, for what it should answer."""
    return LutModel.load(folder, threads=1)


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """One request at a time, so that a second one waits."""
    with running(folder, monkeypatch, batch=1) as found:
        yield found


@pytest.fixture
def batching(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    with running(folder, monkeypatch, batch=3) as found:
        yield found


@contextlib.contextmanager
def running(folder: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> Iterator[Running]:
    httpx = pytest.importorskip("httpx", reason="the tests of the server need httpx")
    pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    pytest.importorskip("starlette", reason="the extra `serve` is not installed")
    served = LutModel.load(folder, threads=1)
    gate, started = threading.Event(), threading.Event()
    together: list[int] = []
    gate.set()

    def gated(step: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        def wait(ids: Any, caches: Any) -> np.ndarray:
            started.set()
            gate.wait(20)
            if isinstance(caches, list):
                together.append(len(caches))
            return step(ids, caches)

        return wait

    monkeypatch.setattr(served, "prefill", gated(served.prefill))
    monkeypatch.setattr(served, "decode_batch", gated(served.decode_batch))
    config = ServeConfig("tiny", queue=1, batch=batch, max_body_bytes=4096)
    instance = make_server(served, config)
    sock = listen("127.0.0.1", 0)
    thread = threading.Thread(target=instance.run, kwargs={"sockets": [sock]})
    thread.start()
    address = f"http://127.0.0.1:{sock.getsockname()[1]}"
    with httpx.Client(base_url=address, timeout=30) as client:
        engine = next(t for t in _engines(instance))
        yield Running(client, engine, gate, started, together)
        gate.set()
    instance.should_exit = True
    thread.join(20)
    assert not thread.is_alive()
    assert not engine.alive


def _engines(instance: Any) -> Iterator[Any]:
    """The engine behind a server, found through its routes."""
    for route in instance.config.app.routes:
        yield route.endpoint.__self__.engine


def eventually(check: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def events(response: Any) -> list[dict[str, Any]]:
    """The objects of a stream, which must end as it should."""
    lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


# ---------------------------------------------------------------- answers


def test_completion_is_what_the_model_generates(server: Running, model: LutModel) -> None:
    expected = model.generate("once upon", max_tokens=20)
    found = server.post("completions", model="tiny", prompt="once upon", **GREEDY)
    assert found.status_code == 200
    body = found.json()
    assert body["object"] == "text_completion"
    choice = body["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (expected.text, expected.finish_reason)
    assert body["usage"]["prompt_tokens"] == expected.prompt_tokens
    assert body["usage"]["completion_tokens"] == len(expected.tokens)
    ids = model.tokenizer.encode("once upon")
    again = server.post("completions", prompt=ids, **GREEDY).json()
    assert again["choices"][0]["text"] == expected.text


def test_sampling_follows_the_seed(server: Running, model: LutModel) -> None:
    settings = {"temperature": 0.8, "top_p": 0.9, "seed": 7, "max_tokens": 30}
    expected = model.generate("abc", **settings)
    found = [server.post("completions", prompt="abc", **settings).json() for _ in range(2)]
    assert [f["choices"][0]["text"] for f in found] == [expected.text] * 2
    other = server.post("completions", prompt="abc", **settings | {"seed": 8}).json()
    assert other["choices"][0]["text"] != expected.text


def test_chat_stream_and_whole_answer_agree(server: Running, model: LutModel) -> None:
    expected = model.generate(messages=HELLO, max_tokens=20)
    whole = server.post("chat/completions", messages=HELLO, **GREEDY).json()
    assert whole["object"] == "chat.completion"
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": expected.text}
    body = {"messages": HELLO, **GREEDY, "stream": True, "stream_options": {"include_usage": True}}
    with server.client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        chunks = events(response)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    *parts, last = chunks
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == len(expected.tokens)
    deltas = [part["choices"][0]["delta"] for part in parts]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == expected.text
    reasons = [part["choices"][0]["finish_reason"] for part in parts]
    assert reasons == [None] * (len(parts) - 1) + [expected.finish_reason]


def test_content_may_come_in_parts(server: Running) -> None:
    parts = [{"type": "text", "text": "hello "}, {"type": "text", "text": "there"}]
    texts = [
        server.post("chat/completions", messages=messages, **GREEDY).json()["choices"]
        for messages in (HELLO, [{"role": "user", "content": parts}])
    ]
    assert texts[0] == texts[1]


def test_stop_strings_end_the_answer(server: Running, model: LutModel) -> None:
    expected = model.generate("once upon", max_tokens=20).text
    stop = expected[8:11]
    body = {"prompt": "once upon", "stop": ["never seen", stop], **GREEDY}
    choice = server.post("completions", **body).json()["choices"][0]
    assert choice["text"] == expected[: expected.find(stop)]
    assert choice["finish_reason"] == "stop"
    with server.client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        pieces = [chunk["choices"][0]["text"] for chunk in events(response)]
    assert "".join(pieces) == choice["text"]


def test_next_turn_of_a_chat_runs_only_what_is_new(server: Running, model: LutModel) -> None:
    first = server.post("chat/completions", messages=HELLO, **GREEDY).json()
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    turns = [*HELLO, {"role": "user", "content": "and then"}]
    expected = model.generate(messages=turns, max_tokens=20)
    second = server.post("chat/completions", messages=turns, **GREEDY).json()
    assert second["choices"][0]["message"]["content"] == expected.text
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == len(model.tokenizer.encode("[hello there]"))
    same = server.post("chat/completions", messages=turns, **GREEDY).json()
    assert same["choices"] == second["choices"]


def test_context_ends_an_answer(server: Running) -> None:
    ids = [5] * 690
    found = server.post("completions", prompt=ids, **LONG).json()
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"]["total_tokens"] == 701  # the last token needs no place in the cache


def test_models_and_health(server: Running) -> None:
    assert [m["id"] for m in server.client.get("/v1/models").json()["data"]] == ["tiny"]
    health = server.client.get("/health")
    assert (health.status_code, health.json()["status"]) == (200, "ok")


# ---------------------------------------------------------------- refusals

REFUSALS: list[tuple[str, dict[str, Any], int, str]] = [
    ("completions", {}, 400, "prompt must be"),
    ("completions", {"prompt": ""}, 400, "prompt is empty"),
    ("completions", {"prompt": ["a", "b"]}, 400, "one prompt a request"),
    ("completions", {"prompt": [1, 301]}, 400, "token id 301 is not in the vocabulary of 301"),
    ("completions", {"prompt": [True]}, 400, "prompt must be"),
    ("completions", {"prompt": [1] * 701}, 400, "has 701 tokens, the model takes 700"),
    ("completions", {"prompt": "a", "model": "gpt"}, 404, "'gpt' is not served here"),
    ("completions", {"prompt": "a", "temperature": 3}, 400, "temperature is 3"),
    ("completions", {"prompt": "a", "temperature": "hot"}, 400, "temperature must be a number"),
    ("completions", {"prompt": "a", "top_p": -1}, 400, "top_p is -1"),
    ("completions", {"prompt": "a", "max_tokens": 0}, 400, "max_tokens is 0"),
    ("completions", {"prompt": "a", "stream": "yes"}, 400, "stream must be true or false"),
    ("completions", {"prompt": "a", "stop": ["a"] * 5}, 400, "stop must be"),
    ("completions", {"prompt": "a", "n": 2}, 400, "n 2 is not supported"),
    ("completions", {"prompt": "a", "colour": 1}, 400, "'colour' is not a field"),
    ("chat/completions", {"messages": []}, 400, "at least one message"),
    ("chat/completions", {"messages": ["hi"]}, 400, "object with a role"),
    ("chat/completions", {"messages": [{"role": "user"}]}, 400, "content must be a text"),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "a part that is not text",
    ),
    ("chat/completions", {"messages": [{"role": "system", "content": "x"}]}, 400, "no system"),
    ("chat/completions", {"messages": HELLO, "tools": [{}]}, 400, "tools"),
    ("embeddings", {"input": "a"}, 404, "POST /v1/embeddings"),
]


def test_refusals_say_what_is_wrong(server: Running) -> None:
    for path, body, status, message in REFUSALS:
        found = server.post(path, **body)
        assert found.status_code == status, (body, found.text)
        error = found.json()["error"]
        assert message in error["message"], body
        assert error["type"] == "invalid_request_error"
    assert server.client.get("/v1/completions").status_code == 405
    assert server.client.post("/v1/completions", content=b"{").status_code == 400
    assert server.client.post("/v1/completions", content=b"[" * 4000).status_code == 400
    large = server.client.post("/v1/completions", content=b" " * 5000)
    assert (large.status_code, "more than 4096 bytes" in large.text) == (413, True)
    assert server.post("completions", prompt="a", user="me", **GREEDY).status_code == 200


def test_a_full_queue_is_refused_at_once(server: Running) -> None:
    """One at work, one waiting; the third is told to come back."""
    server.gate.clear()
    results: list[int] = []

    def ask() -> None:
        results.append(server.post("completions", prompt="a", **GREEDY).status_code)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert eventually(lambda: (server.engine.running, server.engine.waiting) == (1, 1))
    health = server.client.get("/health").json()
    assert (health["running"], health["waiting"]) == (1, 1)
    refused = server.post("completions", prompt="a", **GREEDY)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "queue of 1 requests is full" in refused.json()["error"]["message"]
    server.gate.set()
    for thread in threads:
        thread.join(20)
    assert results == [200, 200]


# ---------------------------------------------------------------- clients that leave


def test_a_stream_that_is_left_stops(server: Running) -> None:
    body = {"prompt": "a", **LONG, "stream": True}
    with server.client.stream("POST", "/v1/completions", json=body) as response:
        next(response.iter_lines())
        server.gate.clear()  # in the middle of the answer
    tokens_before = server.cached()
    assert eventually(lambda: not server.engine.running or _cancelled(server))
    server.gate.set()
    assert eventually(lambda: not server.engine.running)
    assert server.cached() <= tokens_before + 2
    assert server.post("completions", prompt="a", **GREEDY).status_code == 200


def _cancelled(server: Running) -> bool:
    current = server.engine._current
    return bool(current) and all(g.job.cancelled.is_set() for g in current)


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_leave_while_they_wait_free_their_place(server: Running, stream: bool) -> None:
    import httpx

    server.gate.clear()
    body = {"prompt": "a", **LONG, "stream": stream}
    url = f"{server.client.base_url}/v1/completions"

    def ask() -> None:
        with pytest.raises(httpx.TimeoutException):
            httpx.post(url, json=body, timeout=0.6)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert eventually(lambda: (server.engine.running, server.engine.waiting) == (1, 1))
    for thread in threads:
        thread.join(20)
    assert eventually(lambda: server.engine.waiting == 0 and _cancelled(server))
    server.gate.set()
    assert eventually(lambda: not server.engine.running)
    assert server.cached() <= 2
    assert server.post("completions", prompt="a", **GREEDY).status_code == 200


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_ends_one_request(
    server: Running, model: LutModel, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    prefill = server.engine.model.prefill

    def broken(ids: Any, cache: Any) -> np.ndarray:
        return prefill(ids, cache) * np.float32(np.nan)

    with monkeypatch.context() as patch:
        patch.setattr(server.engine.model, "prefill", broken)
        found = server.post("completions", prompt="once upon", stream=stream, **GREEDY)
    assert found.status_code == (200 if stream else 500)
    body = events(found)[-1] if stream else found.json()
    assert "logits are not finite" in body["error"]["message"]
    again = server.post("completions", prompt="once upon", **GREEDY).json()
    assert again["choices"][0]["text"] == model.generate("once upon", max_tokens=20).text


def test_requests_run_together_and_get_what_they_would_get_alone(
    batching: Running, model: LutModel
) -> None:
    prompts = ["once upon a time", "b", "a rather long prompt of several words", "d"]
    texts: dict[str, str] = {}

    def ask(prompt: str) -> None:
        found = batching.post("completions", prompt=prompt, **GREEDY).json()
        texts[prompt] = found["choices"][0]["text"]

    batching.gate.clear()
    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    assert eventually(lambda: batching.engine.waiting == len(prompts) - batching.engine.running)
    batching.gate.set()
    for thread in threads:
        thread.join(20)
    assert max(batching.together) == 3
    assert texts == {p: model.generate(p, max_tokens=20).text for p in prompts}


def test_a_failed_step_ends_those_in_it_and_no_other(
    batching: Running, model: LutModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing step of decoding ends the requests in it; the next ones are served."""

    def broken(ids: Any, caches: Any) -> np.ndarray:
        raise RuntimeError("out of order")

    with monkeypatch.context() as patch:
        patch.setattr(batching.engine.model, "decode_batch", broken)
        found = batching.post("completions", prompt="once upon", **GREEDY)
    assert (found.status_code, "out of order" in found.text) == (500, True)
    again = batching.post("completions", prompt="once upon", **GREEDY).json()
    assert again["choices"][0]["text"] == model.generate("once upon", max_tokens=20).text


def test_a_prompt_goes_to_the_slot_that_knows_it(batching: Running) -> None:
    """Of the free slots the one whose last sequence began like it."""
    for prompt in ("aaaa bbbb cccc", "zzzz yyyy xxxx", "aaaa bbbb cccc dddd"):
        found = batching.post("completions", prompt=prompt, **GREEDY).json()
    details = found["usage"]["prompt_tokens_details"]
    assert details["cached_tokens"] > 4


def test_an_address_in_use_is_named() -> None:
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {port}"):
            listen("127.0.0.1", port)


def test_without_the_extra_the_fix_is_named(
    model: LutModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ConfigError, match=r"pip install 'lutllm\[serve\]'"):
        make_server(model, ServeConfig("tiny"))


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="queue is -1; it must be at least 0"):
        ServeConfig("tiny", queue=-1)
    with pytest.raises(ConfigError, match="batch is 0; it must be at least 1"):
        ServeConfig("tiny", batch=0)
    with pytest.raises(ConfigError, match="name is empty"):
        ServeConfig("")
