"""Starts answers and brings their events from the scheduler's thread to the server's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
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


class Answer:
    """An answer that runs or waits. `job.cancelled` ends it.

    Attributes:
        job: what the scheduler runs.
        result: the summary, once the answer has ended; None where it ended without a token.
    """

    def __init__(self, scheduler: Scheduler, prepared: Prepared, asked: Asked, metrics: Metrics) -> None:
        self._scheduler, self._metrics = scheduler, metrics
        self._parser, self._markers = prepared.parser, prepared.markers
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        stream = prepared.stream
        dial = scheduler.control.dial(stream, asked)
        self.job = Job(stream, stream.prompt, self._tell, dial, asked.background)
        self.result: Generation | None = None
        self._ended = self._begun = False

    def start(self) -> None:
        """Queues the answer. Raises QueueFullError, ClosingError, DeadlineImpossibleError."""
        self._scheduler.submit(self.job)

    def _tell(self, event: Event | None) -> None:
        """Takes an event in the scheduler's thread."""
        if isinstance(event, GeneratedToken):
            self._metrics.token(event, first=not self._begun)
            self._begun = True
        elif isinstance(event, Generation):
            event = self.job.dial.served(event)
            self._metrics.end(event, self.job.waited_ms)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def tokens(self) -> AsyncIterator[tuple[GeneratedToken, list[Piece]]]:
        """The tokens as they come, each with the pieces that became certain. Raises what ended the answer early."""
        while not self._ended:
            event = await self._events.get()
            if isinstance(event, GeneratedToken):
                pieces = self._parser.feed(event.text + self._markers.get(event.token, ""))
                yield event, pieces if event.finish_reason is None else [*pieces, *self._parser.finish()]
                continue
            self._ended = True
            if isinstance(event, Exception):
                raise event
            self.result = event


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
