"""The description of the server's HTTP interface at `/openapi.json`, OpenAPI 3.1.

It has the fields of requests that are checked; all others of the protocols are read as their own references say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sol_rt import __version__
from sol_rt.serve.request import EFFORTS, SAMPLING, TIERS

Schema = dict[str, Any]
_TEXT, _OBJECT = {"type": "string"}, {"type": "object"}
_TYPES = {float: "number", int: "integer", str: "string", bool: "boolean", list: "array", dict: "object"}


def _maybe(kind: type, **more: Any) -> Schema:
    """A field that may be null, which is as if it were missing."""
    return {"type": [_TYPES[kind], "null"], **more}


def _words(words: Sequence[str]) -> Schema:
    return {"enum": [*words, None]}


_DIAL: Schema = {
    "budget": _maybe(float, minimum=0, maximum=1, description="share of the full cost of a step"),
    "max_loss": _maybe(float, minimum=0, description="bound of the expected loss, a share of the dense model's"),
    "tokens_per_second": _maybe(float, exclusiveMinimum=0, description="rate to hold"),
    "schedule": _maybe(str, description="what chooses each step's action"),
    "lossless": _maybe(bool, description="the text of full quality, sooner where it repeats itself or the prompt"),
}
_COMMON: Schema = {
    **_DIAL,
    **{name: _maybe(kind) for name, kind in SAMPLING.items()},
    "deadline_ms": _maybe(float, exclusiveMinimum=0, description="time for the whole answer, from its arrival on"),
    "reasoning_effort": _words(EFFORTS),
    "service_tier": _words(TIERS),
    "stream": _maybe(bool),
    "max_tokens": _maybe(int, minimum=1),
}
_MESSAGES: Schema = {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["role"]}}
_TOOLS = _maybe(list, items=_OBJECT)
_FIELDS: dict[str, tuple[str, Schema, Sequence[str]]] = {
    "/v1/chat/completions": (
        "OpenAI's chat",
        {**_COMMON, "messages": _MESSAGES, "tools": _TOOLS, "response_format": _maybe(dict)},
        ("messages",),
    ),
    "/v1/completions": (
        "OpenAI's completion of a text",
        {**_COMMON, "prompt": {"type": ["string", "array"], "items": {"type": ["integer", "string", "array"]}}},
        ("prompt",),
    ),
    "/v1/responses": (
        "OpenAI's responses, stateless",
        {**_DIAL, "input": {"type": ["string", "array"]}, "max_output_tokens": _maybe(int, minimum=1)},
        ("input",),
    ),
    "/v1/responses/input_tokens": ("Tokens of a prompt", {"input": {"type": ["string", "array"]}}, ("input",)),
    "/v1/messages": (
        "Anthropic's messages",
        {**_DIAL, "messages": _MESSAGES, "max_tokens": {"type": "integer", "minimum": 1}, "stream": _maybe(bool)},
        ("messages", "max_tokens"),
    ),
    "/v1/messages/count_tokens": ("Tokens of a prompt", {"messages": _MESSAGES}, ("messages",)),
    "/api/chat": (
        "Ollama's chat; a stream unless `stream` is false",
        {"messages": {"type": ["array", "null"], "items": _OBJECT}, "stream": _maybe(bool), "options": _maybe(dict)},
        (),
    ),
    "/api/generate": (
        "Ollama's completion; a stream unless `stream` is false",
        {"prompt": _maybe(str), "system": _maybe(str), "stream": _maybe(bool), "options": _maybe(dict)},
        (),
    ),
    "/api/show": ("Ollama's facts of the model", {}, ()),
    "/v1/budget/{id}": (
        "Moves the dial of an answer that runs; `id` is the answer's",
        {"budget": {"type": ["number", "string"]}},
        ("budget",),
    ),
}
_PLAIN = {
    "/v1/models": "The model, for OpenAI's and Anthropic's programs",
    "/v1/models/{name}": "The model by its name",
    "/api/tags": "The model, for Ollama's programs",
    "/api/ps": "The loaded model",
    "/api/version": "The version of Ollama's protocol, and of sol_rt",
    "/props": "Context, sessions and chat template",
    "/health": "Answers 503 where the model takes no step",
}
_STREAMS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/api/chat", "/api/generate")
_ERRORS = {
    "/v1/messages": {
        "required": ["type", "error"],
        "properties": {"type": {"const": "error"}, "error": {"type": "object", "required": ["type", "message"]}},
    },
    "/api/": {"required": ["error"], "properties": {"error": _TEXT}},
    "/": {
        "required": ["error"],
        "properties": {"error": {"type": "object", "required": ["message", "type", "param", "code"]}},
    },
}
_STATUSES = {
    "400": "a field that cannot be followed",
    "401": "a wrong key or none",
    "403": "asked by a page of another origin",
    "404": "no such model or answer",
    "413": "a body that is too long",
    "421": "asked by another host name",
    "429": "too many answers wait; `retry-after` says how long",
    "503": "the server ends, or is not well",
    "504": "a deadline that passed before the first token",
}


def openapi(model: str) -> Schema:
    """The document for a server of a model of that name."""
    escaped = re.sub(r"[\\^$.*+?()\[\]{}|/]", r"\\\g<0>", model)  # as JavaScript reads it
    name = _maybe(str, pattern=rf"^({escaped}(@(0([.]\d+)?|1)|:background)?)?$")
    paths: Schema = {path: {"get": _operation(path, about, None)} for path, about in _PLAIN.items()}
    for path, (about, fields, required) in _FIELDS.items():
        named = {} if path.startswith("/v1/budget") else {"model": name}
        body = {"type": "object", "properties": {**named, **fields}, "required": list(required)}
        paths[path] = {"post": _operation(path, about, body)}
    paths["/metrics"] = {"get": {"summary": "Figures for Prometheus", "responses": _answers("/metrics", "text/plain")}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "sol_rt", "version": __version__},
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
        "paths": paths,
    }


def _operation(path: str, about: str, body: Mapping[str, Any] | None) -> Schema:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    found: Schema = {"summary": about, "responses": _answers(path)}
    if names:
        found["parameters"] = [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in names]
    if body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return found


def _answers(path: str, kind: str = "application/json") -> Schema:
    """The answers of a path by status."""
    content: Schema = {kind: {"schema": _OBJECT if kind == "application/json" else _TEXT}}
    if path in _STREAMS:
        content["application/x-ndjson" if path.startswith("/api/") else "text/event-stream"] = {"schema": _TEXT}
    shape = next(shape for beginning, shape in _ERRORS.items() if path.startswith(beginning))
    failed = {"application/json": {"schema": {"type": "object", **shape}}}
    refused = {status: {"description": about, "content": failed} for status, about in _STATUSES.items()}
    return {"200": {"description": "the answer", "content": content}, **refused}
