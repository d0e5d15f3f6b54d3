"""Starts answers and brings their events from the scheduler's thread to the server's."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from starlette.concurrency import run_in_threadpool

from sol_rt.errors import ContextError
from sol_rt.generate.grammar import Grammar, GrammarError
from sol_rt.generate.model import SolModel
from sol_rt.generate.prompt import is_chat
from sol_rt.generate.results import GeneratedToken, Generation
from sol_rt.generate.stream import Stream
from sol_rt.serve.call_grammar import call_grammar
from sol_rt.serve.metrics import Metrics
from sol_rt.serve.pieces import Parser, Piece, PlainParser
from sol_rt.serve.request import Asked, FieldError
from sol_rt.serve.response_parser import ResponseParser
from sol_rt.serve.response_templates import Field, fields_of
from sol_rt.serve.scheduler import Event, Job, Scheduler

_PROMPT_END = 8
"""Last tokens of a prompt, which may begin the answer's reasoning."""
_MOST_AT_ONCE = 64
"""Tokens of a write: other answers have their turn before the next."""


@dataclass(frozen=True)
class Prepared:
    """A request that can run.

    Attributes:
        stream: its generation.
        parser: splits the text of its answer.
        markers: texts of special tokens that the parser needs; all others stay hidden.
    """

    stream: Stream
    parser: Parser = field(default_factory=PlainParser)
    markers: Mapping[int, str] = field(default_factory=dict)


class Mail:
    """Brings the events of a round to the event loops, which it wakes once.

    A thread of its own wakes them: woken by the scheduler's, a loop would run before the core's next round begins.
    """

    def __init__(self) -> None:
        self._posted: list[tuple[Answer, Event | None]] = []
        self._waker = ThreadPoolExecutor(1, "sol-rt events")

    def post(self, answer: Answer, event: Event | None) -> None:
        """Takes an event of an answer; only in the scheduler's thread."""
        self._posted.append((answer, event))

    def deliver(self) -> None:
        """Gives the events to their answers' loops; only in the scheduler's thread."""
        if not self._posted:
            return
        posted, self._posted = self._posted, []
        with suppress(RuntimeError):  # the process ends
            self._waker.submit(_wake_loops, posted)

    def close(self) -> None:
        """Waits until all that was delivered is in its loop; after the scheduler's end."""
        self._waker.shutdown()


def _wake_loops(posted: Sequence[tuple[Answer, Event | None]]) -> None:
    for loop in {answer.loop for answer, _ in posted}:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_take_all, [each for each in posted if each[0].loop is loop])


def _take_all(posted: Sequence[tuple[Answer, Event | None]]) -> None:
    for answer, event in posted:
        answer.take(event)


class Answer:
    """An answer that runs or waits. `job.cancelled` ends it.

    Attributes:
        job: what the scheduler runs.
        loop: the event loop that waits for it.
        result: the summary, once the answer has ended; None where it ended without a token.
    """

    def __init__(self, scheduler: Scheduler, mail: Mail, prepared: Prepared, asked: Asked, metrics: Metrics) -> None:
        self._scheduler, self._mail, self._metrics = scheduler, mail, metrics
        self._parser, self._markers = prepared.parser, prepared.markers
        self._events: deque[Event | None] = deque()
        self.loop = asyncio.get_running_loop()
        self._coming: asyncio.Future[None] | None = None
        stream = prepared.stream
        dial = scheduler.control.dial(stream, asked)
        self.job = Job(stream, stream.prompt, self._tell, dial, asked.background)
        self.result: Generation | None = None
        self._failed: Exception | None = None
        self._ended = self._begun = False

    def start(self) -> None:
        """Queues the answer. Raises QueueFullError, ClosingError, DeadlineImpossibleError."""
        self._scheduler.submit(self.job)

    def _tell(self, event: Event | None) -> None:
        """Takes an event in the scheduler's thread."""
        self._mail.post(self, self.job.dial.served(event) if isinstance(event, Generation) else event)

    def take(self, event: Event | None) -> None:
        """Takes an event in the event loop."""
        if isinstance(event, GeneratedToken):
            self._metrics.token(event, first=not self._begun)
            self._begun = True
        elif isinstance(event, Generation):
            self._metrics.end(event, self.job.waited_ms)
        self._events.append(event)
        self._wake()

    def _wake(self) -> None:
        if self._coming is not None and not self._coming.done():
            self._coming.set_result(None)

    async def tokens(self, seconds: float | None = None) -> list[tuple[GeneratedToken, list[Piece]]] | None:
        """Waits for a token and returns those that have come, each with the pieces that became certain.

        Returns an empty list at the end, and None where nothing came in so many seconds. Raises what ended the answer
        early, after its tokens.
        """
        if not self._events and not self._ended:
            self._coming = self.loop.create_future()
            timer = None if seconds is None else self.loop.call_later(seconds, self._wake)
            try:
                await self._coming
            finally:
                if timer is not None:
                    timer.cancel()
            if not self._events:
                return None
        else:
            await asyncio.sleep(0)  # other answers have their turn
        made: list[tuple[GeneratedToken, list[Piece]]] = []
        while self._events and len(made) < _MOST_AT_ONCE:
            event = self._events.popleft()
            if isinstance(event, GeneratedToken):
                pieces = self._parser.feed(event.text + self._markers.get(event.token, ""))
                made.append((event, pieces if event.finish_reason is None else [*pieces, *self._parser.finish()]))
                continue
            self._ended = True
            if isinstance(event, Exception):
                self._failed = event
            else:
                self.result = event
        if self._failed is not None and not made:
            raise self._failed
        return made


async def prepare(model: SolModel, asked: Asked) -> Prepared:
    """Checks a request against the model and encodes its prompt, beside the event loop.

    Raises UsageError, FieldError among them, and ContextError for a prompt that leaves no room for a token.
    """
    try:
        return await run_in_threadpool(_prepared, model, asked)
    except GrammarError as error:
        field = "tools" if asked.tool_choice == "required" else "response_format"
        raise FieldError(asked.names.get(field, field), error.reason) from None


def _prepared(model: SolModel, asked: Asked) -> Prepared:
    if asked.top_logprobs is not None or "stop_strings" in asked.arguments:
        _ = model.tokenizer  # its first use takes a while, and is not for the event loop
    tokens, most = model.encode(asked.prompt, tools=asked.tools), model.engine.max_context
    room = most - len(tokens)
    if room < 1:
        raise ContextError(f"prompt: got {len(tokens)} tokens, expected at most {most - 1}; shorten the conversation")
    limit = room if asked.max_tokens is None else min(asked.max_tokens, room)
    arguments = {**asked.arguments, "max_new_tokens": limit, "top_logprobs": asked.top_logprobs}
    form = arguments.get("grammar")
    if not (fields := _fields(model, asked)) or (form is not None and not asked.tools):
        return Prepared(model.stream(tokens, reuse_cache=True, **arguments))
    names = [tool["function"]["name"] for tool in asked.tools]
    end = model.tokenizer.decode(tokens[-_PROMPT_END:], skip_special_tokens=False)
    parser = ResponseParser(fields, prompt=end, tools=names)
    if form is not None or asked.tool_choice == "required":
        schema = None if form is None or asked.tool_choice == "required" else json.loads(form.text)
        grammar = call_grammar(fields, asked.tools, model.tokenizer.added_tokens, parser.field, schema)
        arguments["grammar"] = Grammar.lark(grammar)
    literals = [text for field in fields for text in field.literals]
    special = model.tokenizer.special_tokens.items()
    markers = {number: token for number, token in special if any(token in text for text in literals)}
    return Prepared(model.stream(tokens, reuse_cache=True, **arguments), parser, markers)


def _fields(model: SolModel, asked: Asked) -> tuple[Field, ...]:
    """The fields of an answer, without tools' where none may be called. Raises FieldError for tools of another form."""
    fields = fields_of(model.chat_template_source) if is_chat(asked.prompt) else ()
    if not asked.tools:
        return tuple(field for field in fields if field.kind != "tool")
    if not any(field.kind == "tool" for field in fields):
        raise FieldError("tools", "this model calls tools in a form that is not known here; leave them out")
    return fields
