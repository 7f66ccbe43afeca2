"""What can be configured of the server."""

from __future__ import annotations

from dataclasses import dataclass

from lutllm.errors import ConfigError


@dataclass(frozen=True)
class ServeConfig:
    """name         of the model, as clients give it
    queue           requests that may wait behind those that run; more are refused
    batch           requests that run together, at most
    max_tokens      tokens of an answer where a request does not say
    max_body_bytes  of a request
    """

    name: str
    queue: int = 16
    batch: int = 4
    max_tokens: int = 512
    max_body_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("the model's name is empty; give one with --name")
        for field, low in (("queue", 0), ("batch", 1), ("max_tokens", 1), ("max_body_bytes", 1024)):
            value = getattr(self, field)
            if value < low:
                raise ConfigError(f"server: {field} is {value}; it must be at least {low}")
