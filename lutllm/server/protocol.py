"""Requests of the OpenAI API, checked field by field.

What a client may leave out has OpenAI's default. A field that would change the answer and is not
supported is refused rather than ignored; fields that only label a request are ignored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lutllm.emulator.sampling import Sampling

#: Fields that may be given, but only with a value that changes nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
_LABELS = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "parallel_tool_calls",
    "safety_identifier",
    "prompt_cache_key",
}
_KNOWN = {
    "model",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "stop",
    "stream",
    "stream_options",
}
_MAX_STOPS = 4


class RequestError(Exception):
    """A request that is refused; `param` names the field."""

    def __init__(
        self, message: str, param: str | None = None, status: int = 400, code: str | None = None
    ):
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code


@dataclass(frozen=True)
class Options:
    """What both kinds of request share. max_tokens and seed: None where not given."""

    max_tokens: int | None
    sampling: Sampling
    seed: int | None
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


@dataclass(frozen=True)
class CompletionRequest:
    """prompt: a text, or token ids."""

    prompt: str | list[int]
    options: Options


@dataclass(frozen=True)
class ChatRequest:
    """messages: [{"role": str, "content": str}, ...]."""

    messages: list[dict[str, str]]
    options: Options


def parse_completion(body: Any, model: str) -> CompletionRequest:
    """A body of /v1/completions for the model served as `model`."""
    options = _options(body, model, "prompt")
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and _all_ids(prompt)):
        return CompletionRequest(prompt, options)
    raise RequestError(
        "prompt must be a text or a list of token ids; one prompt a request", "prompt"
    )


def parse_chat(body: Any, model: str) -> ChatRequest:
    """A body of /v1/chat/completions for the model served as `model`."""
    options = _options(body, model, "messages")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list with at least one message", "messages")
    return ChatRequest([_message(m, f"messages[{i}]") for i, m in enumerate(messages)], options)


def _all_ids(values: list[Any]) -> bool:
    return all(isinstance(v, int) and not isinstance(v, bool) for v in values)


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RequestError(f"{where} must be an object with a role", where)
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_text_part(part, where) for part in content)
    if not isinstance(content, str):
        raise RequestError(f"{where}.content must be a text", f"{where}.content")
    return {"role": message["role"], "content": content}


def _text_part(part: Any, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise RequestError(f"{where}.content holds a part that is not text", f"{where}.content")


def _options(body: Any, model: str, own: str) -> Options:
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    _check_fields(body, own)
    wanted = body.get("model", model)
    if wanted != model:
        message = f"the model {wanted!r} is not served here; it is {model!r}"
        raise RequestError(message, "model", 404, "model_not_found")
    name = "max_completion_tokens" if body.get("max_completion_tokens") else "max_tokens"
    seed = _whole(body, "seed", -(2**63))
    stream_options = body.get("stream_options") or {}
    if not isinstance(stream_options, dict):
        raise RequestError("stream_options must be an object", "stream_options")
    return Options(
        max_tokens=_whole(body, name, 1),
        sampling=_sampling(body),
        seed=None if seed is None else seed % 2**32,
        stop=_stops(body.get("stop")),
        stream=_flag(body.get("stream"), "stream"),
        include_usage=_flag(stream_options.get("include_usage"), "stream_options.include_usage"),
    )


def _check_fields(body: dict[str, Any], own: str) -> None:
    for name, value in body.items():
        if name in _KNOWN or name in _LABELS or name == own or value is None:
            continue
        if name not in _NEUTRAL:
            raise RequestError(f"{name!r} is not a field of this request", name)
        if value not in _NEUTRAL[name]:
            raise RequestError(f"{name} {value!r} is not supported; leave it out", name)


def _sampling(body: dict[str, Any]) -> Sampling:
    top_k = _whole(body, "top_k", 0)
    return Sampling(
        _number(body, "temperature", 1.0, 0.0, 2.0),
        max(_number(body, "top_p", 1.0, 0.0, 1.0), 1e-9),  # 0 takes the likeliest token alone
        0 if top_k is None else top_k,
    )


def _number(body: dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RequestError(f"{name} must be a number", name)
    if not low <= value <= high:
        raise RequestError(f"{name} is {value}; it must be {low:g} to {high:g}", name)
    return float(value)


def _whole(body: dict[str, Any], name: str, low: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**63:
        raise RequestError(f"{name} is {value!r}; it must be a whole number from {low}", name)
    return value


def _flag(value: Any, name: str) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    raise RequestError(f"{name} must be true or false", name)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if (
        not isinstance(stops, list)
        or len(stops) > _MAX_STOPS
        or not all(isinstance(stop, str) and stop for stop in stops)
    ):
        raise RequestError(f"stop must be a text, or up to {_MAX_STOPS}, none empty", "stop")
    return tuple(stops)
