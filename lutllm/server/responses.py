"""What the server sends: the objects of the OpenAI API, as dictionaries and as stream lines."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from lutllm.server.engine import Done
from lutllm.server.protocol import RequestError

STREAM_END = "data: [DONE]\n\n"


def error_body(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refusal(error: RequestError) -> dict[str, Any]:
    """The body for a request that is refused."""
    return error_body(error.message, "invalid_request_error", error.param, error.code)


def stream_line(value: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def usage(done: Done) -> dict[str, Any]:
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "total_tokens": done.prompt_tokens + done.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": done.cached_tokens},
    }


def model_list(name: str, created: int) -> dict[str, Any]:
    entry = {"id": name, "object": "model", "created": created, "owned_by": "lutllm"}
    return {"object": "list", "data": [entry]}


@dataclass(frozen=True)
class Envelope:
    """The objects of one answer, which share id and time. chat: of /v1/chat/completions."""

    model: str
    chat: bool
    created: int = field(default_factory=lambda: int(time.time()))
    number: str = field(default_factory=lambda: uuid.uuid4().hex)

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.number}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def whole(self, text: str, done: Done) -> dict[str, Any]:
        """The answer in one object."""
        choice = {"index": 0, "logprobs": None, "finish_reason": done.finish_reason}
        if self.chat:
            message = {"role": "assistant", "content": text}
            found = self._object("chat.completion", [{**choice, "message": message}])
        else:
            found = self._object("text_completion", [{**choice, "text": text}])
        return {**found, "usage": usage(done)}

    def chunk(self, text: str, finish_reason: str | None = None, first: bool = False) -> str:
        """A piece of a streamed answer; the first one of a chat names the role."""
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish_reason}
        if not self.chat:
            return stream_line(self._object("text_completion", [{**choice, "text": text}]))
        delta: dict[str, str] = {"role": "assistant"} if first else {}
        if finish_reason is None:
            delta["content"] = text
        return stream_line(self._object("chat.completion.chunk", [{**choice, "delta": delta}]))

    def usage_chunk(self, done: Done) -> str:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return stream_line({**self._object(kind, []), "usage": usage(done)})
