"""Starts the server."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from lutllm.errors import ConfigError
from lutllm.server.engine import Engine
from lutllm.server.settings import ServeConfig

if TYPE_CHECKING:
    import uvicorn

    from lutllm.emulator import LutModel

#: Seconds that open answers get to end when the server stops.
_GRACE_S = 2


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; ConfigError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as cause:
        raise ConfigError(
            f"cannot listen on {host} port {port} ({cause.strerror}); choose another with --port"
        ) from None


def make_server(model: LutModel, config: ServeConfig) -> uvicorn.Server:
    """A server that is not running yet; `server.run(sockets=[...])` blocks until it is told to end.

    ConfigError without the extra.
    """
    try:
        import uvicorn

        from lutllm.server.app import make_app
    except ImportError as cause:
        raise ConfigError(
            f"the server needs the package {cause.name!r}: pip install 'lutllm[serve]'"
        ) from None
    app = make_app(Engine(model, config.queue, config.batch), config)
    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=_GRACE_S
    )
    return uvicorn.Server(settings)


def serve(
    model: LutModel, config: ServeConfig, host: str, port: int, ready: Callable[[str], None]
) -> None:
    """Serve until interrupted. ready: gets the address once requests are answered."""
    server = make_server(model, config)
    with listen(host, port) as sock:
        name = f"[{host}]" if ":" in host else host
        ready(f"http://{name}:{sock.getsockname()[1]}")
        server.run(sockets=[sock])
