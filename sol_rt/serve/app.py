"""The server: routes, errors, bounds, and who may ask."""

from __future__ import annotations

import asyncio
import hmac
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sol_rt.budget.governor import Reading
from sol_rt.errors import ContextError, SolError, UsageError
from sol_rt.generate.model import SolModel
from sol_rt.generate.results import Generation
from sol_rt.serve import anthropic_api, ollama_api, openai_api, responses_api
from sol_rt.serve.about import About
from sol_rt.serve.answers import Answer, Mail, prepare
from sol_rt.serve.budget_control import least_budget
from sol_rt.serve.deadline import DeadlineImpossibleError, DeadlineMissedError
from sol_rt.serve.effort import with_effort
from sol_rt.serve.load import LoadSettings
from sol_rt.serve.metrics import Metrics
from sol_rt.serve.playground import FILES, routes
from sol_rt.serve.prefix_cache import PrefixCache
from sol_rt.serve.protocol import Count, Endpoint, Facts, Failure, Ready, Writer, body_of
from sol_rt.serve.request import Asked, FieldError, number
from sol_rt.serve.scheduler import ClosingError, QueueFullError, Scheduler
from sol_rt.serve.steps import StepFacts

MOST_BODY_BYTES = 8 << 20
STUCK_SECONDS = 60.0
"""Time without a step after which the server says that it is not well."""
_OPEN = ("/health", *FILES)
"""Paths that need no key."""


@dataclass(frozen=True)
class Settings:
    """Settings of a server.

    Attributes:
        name: of the model, as clients ask for it.
        sessions: answers that run at a time.
        queue: answers that may wait beside them.
        api_key: a key that every request must give; empty for none.
        hosts: values of the header Host that are answered; empty for all.
        ping_seconds: time without a token after which a stream shows a sign of life, so that nobody on the way ends it.
        load, sensors, prefixes: as of Scheduler.
        efforts: budgets by `reasoning_effort`, before the defaults.
    """

    name: str
    sessions: int = 4
    queue: int = 64
    api_key: str = ""
    hosts: tuple[str, ...] = ()
    ping_seconds: float = 15.0
    load: LoadSettings | None = None
    sensors: Callable[[], Reading] | None = None
    efforts: Mapping[str, float] = field(default_factory=dict)
    prefixes: PrefixCache | None = None


class Server:
    """One model behind HTTP. `app` is the ASGI application; nobody else uses `model` meanwhile."""

    def __init__(self, model: SolModel, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self._ends = frozenset(model.bundle.config.model.eos_token_ids)
        self._load = settings.load or LoadSettings(least_budget(model))
        self._mail = Mail()
        self.scheduler = Scheduler(
            model,
            sessions=settings.sessions,
            queue=settings.queue,
            load=self._load,
            sensors=settings.sensors,
            prefixes=settings.prefixes,
            deliver=self._mail.deliver,
        )
        self.metrics = Metrics(self.scheduler)
        self._answers: dict[str, Answer] = {}
        about = About(model, settings.name, settings.sessions)
        self.app = Starlette(
            routes=[
                *(Route(each.path, partial(self._answer, each), methods=["POST"]) for each in _ENDPOINTS),
                *(Route(each.path, partial(self._count, each), methods=["POST"]) for each in _COUNTS),
                *about.routes(),
                Route("/v1/budget/{id}", self._budget, methods=["POST"]),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
                *routes(),
            ],
            middleware=[Middleware(Guard, settings=settings, metrics=self.metrics)],
            exception_handlers={
                SolError: _failed,
                404: _not_found,
                405: _not_found,
                ClientDisconnect: _gone,
                Exception: _failed,
            },
        )

    async def _answer(self, endpoint: Endpoint, request: Request) -> Response:
        asked = endpoint.read(await body_of(request), request.headers, self.settings.name)
        if isinstance(asked, Ready):
            return JSONResponse(asked.body)
        asked = with_effort(asked, self.settings.efforts, self._load.lowest)
        self.scheduler.require_room()  # before the prompt is encoded
        prepared = await prepare(self.model, asked)
        stream, answer = prepared.stream, Answer(self.scheduler, self._mail, prepared, asked, self.metrics)
        stop_of = partial(self._stop_of, asked)
        step_of = StepFacts(self.model, stream).of if asked.step_facts else None
        writer = endpoint.writer(Facts(asked, self.settings.name, len(stream.prompt), self._text_of, stop_of, step_of))
        answer.start()
        self._answers[writer.answer_id] = answer
        if asked.stream:
            return _Events(self._events(answer, writer), writer.media_type, lambda: self._end(answer, writer))
        try:
            await _unless_gone(request, answer, writer)
        finally:
            self._end(answer, writer)
        assert answer.result is not None  # an answer that ends without an error has a token
        return JSONResponse(writer.whole(answer.result))

    async def _count(self, count: Count, request: Request) -> Response:
        asked = count.read(await body_of(request), request.headers, self.settings.name)
        return JSONResponse(
            count.body(len(await run_in_threadpool(partial(self.model.encode, asked.prompt, tools=asked.tools))))
        )

    def _text_of(self, *tokens: int, skip_special: bool = False) -> str:
        """The text of tokens as it is within a text: at the beginning some tokenizers leave out its space."""
        tokenizer = self.model.tokenizer
        before = tokenizer.encode("a", False)
        return tokenizer.decode([*before, *tokens], skip_special)[len(tokenizer.decode(before, skip_special)) :]

    def _stop_of(self, asked: Asked, result: Generation) -> str | None:
        """The stop string that ended an answer; None where none did."""
        given = asked.arguments.get("stop_strings", ())
        if result.finish_reason != "stop" or not given or result.tokens[-1] in self._ends:
            return None
        rest = self._text_of(*result.tokens, skip_special=True)[len(result.text) :]
        return next((text for text in ([given] if isinstance(given, str) else given) if rest.startswith(text)), None)

    def _end(self, answer: Answer, writer: Writer) -> None:
        answer.job.cancelled = True
        del self._answers[writer.answer_id]

    async def _events(self, answer: Answer, writer: Writer) -> AsyncIterator[str]:
        """The writer's text for the tokens that are there, and pings where none come. An error ends it."""
        try:
            if text := writer.begin():
                yield text
            while (made := await answer.tokens(self.settings.ping_seconds)) != []:
                if made is None:
                    yield writer.ping()
                elif text := "".join(writer.part(token, writer.content.add(token, pieces)) for token, pieces in made):
                    yield text
            if answer.result is not None:  # else the client has gone
                yield writer.end(answer.result)
        except Exception as error:
            yield writer.failed(_told(error))

    async def _budget(self, request: Request) -> Response:
        """Moves the dial of an answer that runs."""
        answer, body = self._answers.get(request.path_params["id"]), await body_of(request)
        if answer is None:
            return _not_found(request, None)
        budget = number("budget", body.get("budget"))
        await asyncio.to_thread(answer.job.dial.ask, budget)
        return JSONResponse({"id": request.path_params["id"], "budget": budget})

    async def _health(self, request: Request) -> Response:
        if self.scheduler.alive() and self.scheduler.seconds_without_a_step() < STUCK_SECONDS:
            return JSONResponse({"status": "ok"})
        return _refused(request, Failure(503, "the model takes no step", "unavailable_error"))

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")


class Guard:
    """Refuses who may not ask and what is too long, and counts requests. Pages of other origins may not ask."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, read = Request(scope), 0

        async def counted() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MOST_BODY_BYTES:
                raise _TooLongError
            return message

        async def answered(message: Any) -> None:
            if message["type"] == "http.response.start":
                path = scope["route"].path if "route" in scope else "other"
                self._metrics.request(path, message["status"])
            await send(message)

        refusal = self._refusal(request)
        try:
            await (self._app if refusal is None else _refused(request, refusal))(scope, counted, answered)
        except _TooLongError:
            failure = Failure(413, f"the body has more than {MOST_BODY_BYTES} bytes")
            await _refused(request, failure)(scope, receive, answered)

    def _refusal(self, request: Request) -> Failure | None:
        host = request.headers.get("host", "").lower()
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if self._settings.hosts and name not in self._settings.hosts:
            return Failure(421, f"got the host {name[:100]!r}, expected one of {', '.join(self._settings.hosts)}")
        origin = request.headers.get("origin")
        if origin is not None and origin.lower().partition("://")[2] != host:
            return Failure(403, "pages of other origins may not ask this server")
        if not self._settings.api_key or request.scope["path"] in _OPEN:
            return None
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        given = key if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        if hmac.compare_digest(given.strip().encode("latin-1"), os.fsencode(self._settings.api_key)):
            return None
        return Failure(
            401,
            "a wrong key or none; give the server's key as a bearer token",
            "authentication_error",
            code="invalid_api_key",
        )


class _Events(StreamingResponse):
    """A stream that ends its answer, also if the client leaves before it begins."""

    def __init__(self, events: AsyncIterator[str], media_type: str, end: Callable[[], None]) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(events, media_type=media_type, headers=headers)
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


class _TooLongError(Exception):
    """A body that goes on beyond the bound."""


async def _unless_gone(request: Request, answer: Answer, writer: Writer) -> None:
    """Gives the writer all tokens of an answer. Raises ClientDisconnect when the client leaves."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    async def all_tokens() -> None:
        while made := await answer.tokens():
            for token, pieces in made:
                writer.content.add(token, pieces)

    leaving, answering = asyncio.ensure_future(gone()), asyncio.ensure_future(all_tokens())
    try:
        await asyncio.wait({leaving, answering}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ClientDisconnect
        answering.result()
    finally:
        for task in (leaving, answering):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


def _told(error: Exception) -> Failure:
    """An error as clients are told of it."""
    status, kind, code, headers = 500, "server_error", None, {"x-should-retry": "false"}
    message = str(error) if isinstance(error, SolError) else f"unexpected {type(error).__name__}"
    if isinstance(error, ClosingError):
        status, kind, code = 503, "unavailable_error", "closing"
        headers = {"x-should-retry": "true"}
    elif isinstance(error, QueueFullError):
        status, kind, code = 429, "rate_limit_error", "queue_full"
        headers = {"retry-after": "1", "x-should-retry": "true"}
    elif isinstance(error, DeadlineMissedError):
        status, kind, code = 504, "deadline_error", "deadline_missed"
    elif isinstance(error, ContextError):
        status, kind, code = 400, "invalid_request_error", "context_length_exceeded"
    elif isinstance(error, UsageError):
        status, kind = 400, "invalid_request_error"
    field = getattr(error, "field", None)
    if isinstance(error, DeadlineImpossibleError):
        code = error.code
    if field == "model" and isinstance(error, FieldError):
        status, code = 404, "model_not_found"
    return Failure(status, message, kind, field, code, headers)


async def _failed(request: Request, error: Exception) -> Response:
    return _refused(request, _told(error))


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it, but the count of statuses has it


def _not_found(request: Request, error: Exception | None) -> Response:
    status = getattr(error, "status_code", 404)
    return _refused(
        request, Failure(status, f"{request.method} {request.scope['path']}: no such thing here", code="not_found")
    )


def _refused(request: Request, failure: Failure) -> Response:
    """The answer for an error, in the shape of the protocol that the path belongs to."""
    shape = next((shape for path, shape in _ERRORS.items() if request.scope["path"].startswith(path)), openai_api.error)
    return JSONResponse(shape(failure), failure.status, dict(failure.headers))


_PROTOCOLS = (openai_api, responses_api, anthropic_api, ollama_api)
_ENDPOINTS = [endpoint for protocol in _PROTOCOLS for endpoint in protocol.ENDPOINTS]
_COUNTS = (*responses_api.COUNTS, *anthropic_api.COUNTS)
_ERRORS = {"/v1/messages": anthropic_api.error, "/api/": ollama_api.error}
"""Shapes of errors by the beginning of the path; all others have OpenAI's."""
