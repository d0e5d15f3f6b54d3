"""The interface of a protocol: an end point reads a request, and its writer the answer's wire format."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

from starlette.requests import Request

from sol_rt.generate.results import GeneratedToken, Generation
from sol_rt.serve.answer_dial import Served
from sol_rt.serve.content import Block, Content, Delta
from sol_rt.serve.request import Asked, FieldError
from sol_rt.serve.strict_json import loads

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True)
class Failure:
    """An error as a client is told of it.

    Attributes:
        status: HTTP status.
        message: the text.
        kind: type of the error in OpenAI's words.
        param: field of the request; None where none is concerned.
        code: a word for programs; None where there is none.
        headers: of the answer.
    """

    status: int
    message: str
    kind: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """Facts of one answer that its writer needs.

    Attributes:
        asked: the request.
        model: the model's name.
        prompt_tokens: tokens of the prompt.
        text_of: gives the text of a token.
        stop_of: gives the stop string that ended an answer; None where none did.
        step_of: describes the step of each token in turn; None where nobody asked for that.
    """

    asked: Asked
    model: str
    prompt_tokens: int
    text_of: Callable[[int], str]
    stop_of: Callable[[Generation], str | None]
    step_of: Callable[[GeneratedToken], dict[str, Any]] | None = None


class Writer(ABC):
    """Writes one answer. All but `whole` give text for the wire, which may be empty.

    Attributes:
        media_type: of a stream.
        facts: of the answer.
        content: the answer so far; the caller adds to it before it calls a method.
        answer_id: id of the answer, by which `/v1/budget/ID` finds it.
    """

    media_type: ClassVar[str] = "text/event-stream"

    def __init__(self, facts: Facts, answer_id: str) -> None:
        self.facts, self.answer_id = facts, answer_id
        self.content = Content()

    @abstractmethod
    def begin(self) -> str:
        """The beginning of a stream, before all tokens."""

    @abstractmethod
    def part(self, token: GeneratedToken, deltas: Sequence[Delta]) -> str:
        """A token of a stream."""

    @abstractmethod
    def end(self, result: Generation) -> str:
        """The end of a stream: why it ended, and the usage."""

    @abstractmethod
    def failed(self, failure: Failure) -> str:
        """The end of a stream that an error ends."""

    @abstractmethod
    def whole(self, result: Generation) -> dict[str, Any]:
        """The answer in one object."""

    def ping(self) -> str:
        """A sign of life while no token comes: a comment."""
        return ": waiting\n\n"


@dataclass(frozen=True)
class Ready:
    """An answer for which nothing is generated."""

    body: Mapping[str, Any]


@dataclass(frozen=True)
class Endpoint:
    """A path that gives answers.

    Attributes:
        path: of the URL.
        read: reads the body and the headers for a model of the given name. Raises FieldError.
        writer: makes the writer of an answer.
    """

    path: str
    read: Callable[[Mapping[str, Any], Mapping[str, str], str], Asked | Ready]
    writer: Callable[[Facts], Writer]


@dataclass(frozen=True)
class Count:
    """A path that counts a prompt's tokens.

    Attributes:
        path: of the URL.
        read: reads the body and the headers for a model of the given name. Raises FieldError.
        body: the answer for a number of tokens.
    """

    path: str
    read: Callable[[Mapping[str, Any], Mapping[str, str], str], Asked]
    body: Callable[[int], dict[str, Any]]


async def body_of(request: Request) -> Mapping[str, Any]:
    """A request's JSON object. Raises FieldError for anything else."""
    try:
        body = loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise FieldError("body", f"no JSON ({error})") from None
    if not isinstance(body, dict):
        raise FieldError("body", "expected a JSON object")
    return body


def dumps(content: Mapping[str, Any] | str) -> str:
    """JSON in one line."""
    return _ENCODER.encode(content)


def event(content: Mapping[str, Any], name: str = "") -> str:
    """A server-sent event, with a name where the protocol has them."""
    return (f"event: {name}\n" if name else "") + f"data: {dumps(content)}\n\n"


def sol(asked: Asked, result: Generation) -> dict[str, Any]:
    """The object `sol` of an answer: what the dial did and why, and the fields that were ignored."""
    return {
        **(result.told if isinstance(result, Served) else {}),
        "ignored": list(asked.ignored),
        "schedule": result.schedule,
        "requested_budget": result.requested_budget,
        "achieved_budget": result.achieved_budget,
        "expected_loss": result.expected_loss,
        "prefill": result.prefill,
        "drafted_tokens": result.drafted_tokens,
        "accepted_tokens": result.accepted_tokens,
        "actions": result.actions,
        "tokens_per_second": result.tokens_per_second,
    }


def logprobs(facts: Facts, tokens: Sequence[GeneratedToken]) -> list[dict[str, Any]]:
    """Each token's log-probability and the likeliest others, as chat's clients read them."""

    def named(token: int, logprob: float) -> dict[str, Any]:
        text = facts.text_of(token)
        part = "\ufffd" in text  # of a character, whose bytes a text can't hold
        return {"token": text, "logprob": logprob, "bytes": None if part else list(text.encode())}

    return [
        named(token.token, token.logprob) | {"top_logprobs": [named(*likely) for likely in token.top_logprobs]}
        for token in tokens
    ]


def arguments(block: Block) -> dict[str, Any]:
    """The arguments of a tool call as an object. A text that is none comes as `arguments`, so that nothing is lost."""
    with suppress(ValueError, RecursionError):
        found = json.loads(block.text or "{}")
        if isinstance(found, dict):
            return found
    return {"arguments": block.text}
