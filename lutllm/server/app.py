"""The routes: /v1/completions, /v1/chat/completions, /v1/models and /health."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from lutllm.errors import LutLLMError
from lutllm.server.engine import Busy, Done, Engine, Event, Failed, Job, Piece, Work
from lutllm.server.protocol import (
    ChatRequest,
    CompletionRequest,
    Options,
    RequestError,
    parse_chat,
    parse_completion,
)
from lutllm.server.responses import (
    STREAM_END,
    Envelope,
    error_body,
    model_list,
    refusal,
    stream_line,
)
from lutllm.server.settings import ServeConfig

#: Seconds between two looks whether a client that waits is still there.
_LOOK_S = 0.25
#: nginx's status for a client that left; nobody reads it.
_CLIENT_LEFT = 499


class Service:
    """The endpoints over one engine."""

    def __init__(self, engine: Engine, config: ServeConfig):
        self.engine, self.config = engine, config
        self.created = int(time.time())

    async def health(self, request: Request) -> Response:
        engine = self.engine
        state = {
            "status": "ok" if engine.alive else "failed",
            "running": engine.running,
            "waiting": engine.waiting,
        }
        return JSONResponse(state, 200 if engine.alive else 500)

    async def models(self, request: Request) -> Response:
        return JSONResponse(model_list(self.config.name, self.created))

    async def completions(self, request: Request) -> Response:
        body = await self._body(request)
        parsed = parse_completion(body, self.config.name)
        ids = await run_in_threadpool(self._completion_ids, parsed)
        return await self._answer(request, ids, parsed.options, chat=False)

    async def chat(self, request: Request) -> Response:
        body = await self._body(request)
        parsed = parse_chat(body, self.config.name)
        ids = await run_in_threadpool(self._chat_ids, parsed)
        return await self._answer(request, ids, parsed.options, chat=True)

    async def _body(self, request: Request) -> Any:
        """The JSON body, read no further than the limit."""
        limit, data = self.config.max_body_bytes, bytearray()
        async for part in request.stream():
            data += part
            if len(data) > limit:
                raise RequestError(f"the body has more than {limit} bytes", None, 413)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as cause:
            raise RequestError(f"the body is not JSON ({cause})") from None

    def _completion_ids(self, parsed: CompletionRequest) -> list[int]:
        if isinstance(parsed.prompt, str):
            return self.engine.model.tokenizer.encode_prompt(parsed.prompt)
        vocab = self.engine.model.config.vocab_size
        if wrong := [i for i in parsed.prompt if not 0 <= i < vocab]:
            message = f"token id {wrong[0]} is not in the vocabulary of {vocab}"
            raise RequestError(message, "prompt")
        return parsed.prompt

    def _chat_ids(self, parsed: ChatRequest) -> list[int]:
        tokenizer = self.engine.model.tokenizer
        try:
            return tokenizer.encode(tokenizer.apply_chat(parsed.messages))
        except LutLLMError as cause:  # no template, or one that refuses these messages
            raise RequestError(str(cause), "messages") from None

    def _work(self, ids: list[int], options: Options) -> Work:
        context = self.engine.model.context
        if not ids:
            raise RequestError("the prompt is empty; give it some text", "prompt")
        if len(ids) > context:
            message = f"the prompt has {len(ids)} tokens, the model takes {context}; shorten it"
            raise RequestError(message, None, 400, "context_length_exceeded")
        seed = secrets.randbits(32) if options.seed is None else options.seed
        limit = options.max_tokens or self.config.max_tokens
        return Work(ids, limit, options.sampling, seed, options.stop)

    async def _answer(
        self, request: Request, ids: list[int], options: Options, chat: bool
    ) -> Response:
        work = self._work(ids, options)
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def emit(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the server has stopped
                loop.call_soon_threadsafe(events.put_nowait, event)

        try:
            job = self.engine.submit(work, emit)
        except Busy:
            message = f"the queue of {self.config.queue} requests is full; try again later"
            body = error_body(message, "server_error", None, "queue_full")
            return JSONResponse(body, 503, {"Retry-After": "1"})
        envelope = Envelope(self.config.name, chat)
        cancel = self.engine.cancel
        if options.stream:
            return JobStream(_lines(events, envelope, options.include_usage), job, cancel)
        try:
            return await _collect(request, events, envelope)
        finally:
            cancel(job)


class JobStream(StreamingResponse):
    """A stream that cancels its job when it ends, for whatever reason."""

    def __init__(self, lines: AsyncIterator[str], job: Job, cancel: Callable[[Job], None]):
        super().__init__(lines, media_type="text/event-stream")
        self.headers["Cache-Control"] = "no-cache"
        self._job, self._cancel = job, cancel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._cancel(self._job)


async def _lines(
    events: asyncio.Queue[Event], envelope: Envelope, include_usage: bool
) -> AsyncIterator[str]:
    if envelope.chat:
        yield envelope.chunk("", first=True)
    while True:
        event = await events.get()
        if isinstance(event, Piece):
            yield envelope.chunk(event.text)
            continue
        if isinstance(event, Failed):
            yield stream_line(error_body(event.message, "server_error", None, None))
        else:
            yield envelope.chunk("", event.finish_reason)
            if include_usage:
                yield envelope.usage_chunk(event)
        yield STREAM_END
        return


async def _collect(request: Request, events: asyncio.Queue[Event], envelope: Envelope) -> Response:
    """The whole answer, given up when the client has left."""
    pieces: list[str] = []
    while True:
        try:
            event = await asyncio.wait_for(events.get(), _LOOK_S)
        except TimeoutError:
            event = None
        if isinstance(event, Failed):
            return JSONResponse(error_body(event.message, "server_error", None, None), 500)
        if isinstance(event, Done):
            return JSONResponse(envelope.whole("".join(pieces), event))
        if isinstance(event, Piece):
            pieces.append(event.text)
        if await request.is_disconnected():
            return Response(status_code=_CLIENT_LEFT)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return JSONResponse(refusal(error), error.status)


async def _http_error(request: Request, error: Exception) -> Response:
    """What starlette itself refuses: an unknown path, another method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    body = error_body(message, "invalid_request_error", None, None)
    return JSONResponse(body, error.status_code, error.headers)


def make_app(engine: Engine, config: ServeConfig) -> Starlette:
    """The application; `engine` is closed when it shuts down."""
    service = Service(engine, config)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await run_in_threadpool(engine.close)

    return Starlette(
        routes=[
            Route("/health", service.health),
            Route("/v1/models", service.models),
            Route("/v1/completions", service.completions, methods=["POST"]),
            Route("/v1/chat/completions", service.chat, methods=["POST"]),
        ],
        exception_handlers={RequestError: _refused, HTTPException: _http_error},
        lifespan=lifespan,
    )
