"""Ollama's protocol: `/api/chat` and `/api/generate`. A stream has one JSON object a line."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from sol_rt.errors import brief
from sol_rt.generate.results import GeneratedToken, Generation
from sol_rt.serve.content import Block, Delta
from sol_rt.serve.protocol import Endpoint, Facts, Failure, Ready, Writer, arguments, dumps, logprobs, sol
from sol_rt.serve.request import (
    DIAL,
    SAMPLING,
    Asked,
    FieldError,
    as_json,
    objects,
    read_as_chat,
    read_completion,
    refuse,
    split_name,
    taken,
)

LATEST = ":latest"
"""Tag that Ollama's programs add to a name without one."""
_OPTIONS = {"num_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}
"""Chat's names of options that it calls otherwise."""
_NAMES = {
    "max_tokens": "options.num_predict",
    "stop": "options.stop",
    "response_format": "format",
    "reasoning_effort": "think",
}
"""Ollama's names of chat's fields."""


def error(failure: Failure) -> dict[str, Any]:
    """The body of an error."""
    return {"error": failure.message}


def read_chat(body: Mapping[str, Any], headers: Mapping[str, str], known_as: str) -> Asked | Ready:
    """A request of `/api/chat`. Raises FieldError."""
    fields = _common(body, known_as)
    messages = _messages(objects("messages", taken(fields, "messages", list) or []))
    if not messages:
        return _loaded(fields, known_as, {"message": {"role": "assistant", "content": ""}})
    return read_as_chat(_without_keep_alive(fields) | {"messages": messages}, headers, known_as, _NAMES)


def read_generate(body: Mapping[str, Any], headers: Mapping[str, str], known_as: str) -> Asked | Ready:
    """A request of `/api/generate`. Raises FieldError."""
    fields = _common(body, known_as)
    refuse(fields, "suffix", "template", "context", "images")
    prompt, system, raw = taken(fields, "prompt", str), taken(fields, "system", str), taken(fields, "raw", bool)
    if not prompt:
        return _loaded(fields, known_as, {"response": ""})
    fields = _without_keep_alive(fields)
    if raw:
        tops = taken(fields, "top_logprobs", int) or 0
        if taken(fields, "logprobs", bool):
            fields["logprobs"] = tops
        asked = read_as_chat(fields | {"prompt": prompt}, headers, known_as, _NAMES, read_completion)
        return replace(asked, max_tokens=fields.get("max_tokens"))
    messages = [{"role": "system", "content": system}] if system else []
    return read_as_chat(
        fields | {"messages": [*messages, {"role": "user", "content": prompt}]}, headers, known_as, _NAMES
    )


def base_name(model: str, known_as: str) -> str:
    """A model's name without the tag `:latest`, unless the served one has it."""
    return model if model.startswith(known_as) and known_as.endswith(LATEST) else model.removesuffix(LATEST)


def _common(body: Mapping[str, Any], known_as: str) -> dict[str, Any]:
    """The fields that both end points have, under chat's names."""
    fields = dict(body)
    if (model := taken(fields, "model", str)) is not None:
        fields["model"] = base_name(model, known_as)
    stream = taken(fields, "stream", bool)
    fields["stream"] = True if stream is None else stream
    for name, value in (taken(fields, "options", dict) or {}).items():
        known = _OPTIONS.get(name, name)
        if known in (*SAMPLING, *DIAL, "stop", "max_tokens"):
            fields.setdefault(known, value)
        else:
            fields[f"options.{name}"] = value  # unknown, and so named as ignored
    if isinstance(most := fields.get("max_tokens"), int) and most < 0:
        del fields["max_tokens"]  # -1 and -2: no bound
    if form := fields.pop("format", None):
        schema = {"name": "answer", "schema": form}
        fields["response_format"] = (
            {"type": "json_object"} if form == "json" else {"type": "json_schema", "json_schema": schema}
        )
    if (think := fields.pop("think", None)) is not None:
        fields["reasoning_effort"] = ("medium" if think else "none") if isinstance(think, bool) else think
    return fields


def _without_keep_alive(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != "keep_alive"}


def _loaded(fields: dict[str, Any], known_as: str, empty: Mapping[str, Any]) -> Ready:
    """The answer to a request without a prompt, which asks to load the model, or to drop it. It stays loaded."""
    split_name(taken(fields, "model", str) or known_as, known_as)
    reason = "unload" if fields.get("keep_alive") in (0, "0") else "load"
    return Ready({"model": known_as, "created_at": _now(), **empty, "done": True, "done_reason": reason})


def _messages(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages in chat's shape. Calls of tools, which have names alone here, get ids as Mistral's templates want."""
    messages: list[dict[str, Any]] = []
    open_calls: list[tuple[str, str]] = []  # name and id of calls without a result
    for place, message in enumerate(given):
        where = f"messages[{place}]"
        if message.get("images"):
            raise FieldError(f"{where}.images", "are not supported; leave them out")
        content = message.get("content")
        converted: dict[str, Any] = {"role": message.get("role"), "content": "" if content is None else content}
        if message.get("thinking"):
            converted["reasoning_content"] = message["thinking"]
        for call in objects(f"{where}.tool_calls", message.get("tool_calls") or []):
            called = call.get("function")
            if not isinstance(called, dict) or not isinstance(name := called.get("name"), str):
                raise FieldError(f"{where}.tool_calls", f"got {brief(call)}, expected a function with a name")
            number = sum(len(each.get("tool_calls", ())) for each in (*messages, converted))
            written = as_json(f"{where}.tool_calls", called.get("arguments") or {})
            function = {"name": name, "arguments": written}
            known = call.get("id")
            made = {"id": known if isinstance(known, str) else f"call{number:05d}", "type": "function"}
            converted.setdefault("tool_calls", []).append(made | {"function": function})
            open_calls.append((name, made["id"]))
        if message.get("role") == "tool":
            converted["tool_call_id"] = _answered(message, open_calls)
        messages.append(converted)
    return messages


def _answered(message: Mapping[str, Any], open_calls: list[tuple[str, str]]) -> str:
    """Id of the call whose result a message has: the first open one of its name, else the first open one."""
    if isinstance(given := message.get("tool_call_id"), str):
        open_calls[:] = [call for call in open_calls if call[1] != given]
        return given
    name = message.get("tool_name", message.get("name"))
    found = next((call for call in open_calls if call[0] == name), open_calls[0] if open_calls else ("", "call00000"))
    open_calls[:] = [call for call in open_calls if call is not found]
    return found[1]


class _OllamaWriter(Writer):
    """Answers of chat and generate alike."""

    media_type = "application/x-ndjson"

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts, f"ollama-{uuid.uuid4().hex}")
        self._begun_ns, self._sent = time.monotonic_ns(), 0

    def begin(self) -> str:
        return ""

    def part(self, token: GeneratedToken, deltas: Sequence[Delta]) -> str:
        said, asked = "", self._logprobs([token])
        for delta in deltas:
            if delta.first:
                said += self._calls(delta.block.place)
            if delta.block.kind != "tool" and delta.text:
                said += self._line(**{delta.block.kind: delta.text}, logprobs=asked)
                asked = None
        return said + (self._line(logprobs=asked) if asked else "")

    def end(self, result: Generation) -> str:
        calls = self._calls(len(self.content.blocks))
        return calls + dumps(self._chunk() | self._end(result)) + "\n"

    def failed(self, failure: Failure) -> str:
        return dumps(error(failure)) + "\n"

    def ping(self) -> str:
        return self._line()  # programs read every line as JSON: an empty one would end them

    def whole(self, result: Generation) -> dict[str, Any]:
        text, reasoning, asked = (
            self.content.text("text"),
            self.content.text("reasoning"),
            self._logprobs(self.content.tokens),
        )
        chunk = self._chunk(text=text, reasoning=reasoning, calls=self.content.calls())
        return chunk | ({"logprobs": asked} if asked is not None else {}) | self._end(result)

    def _said(self, text: str, reasoning: str, calls: Sequence[Block]) -> dict[str, Any]:
        """The content within a line."""
        raise NotImplementedError

    def _calls(self, before: int) -> str:
        """Tool calls that are complete and have not been sent: those of blocks before a place."""
        ready = [block for block in self.content.blocks[self._sent : before] if block.kind == "tool"]
        self._sent = before
        return "".join(dumps(self._chunk(calls=[block])) + "\n" for block in ready)

    def _line(self, *, text: str = "", reasoning: str = "", logprobs: Any = None) -> str:
        more = {"logprobs": logprobs} if logprobs else {}
        return dumps(self._chunk(text=text, reasoning=reasoning) | more) + "\n"

    def _chunk(self, *, text: str = "", reasoning: str = "", calls: Sequence[Block] = ()) -> dict[str, Any]:
        about = {"model": self.facts.model, "created_at": _now()}
        return about | self._said(text, reasoning, calls) | {"done": False}

    def _end(self, result: Generation) -> dict[str, Any]:
        """Why the answer ended, with counts of tokens and times in nanoseconds."""
        made, rate = len(result.tokens), result.tokens_per_second
        return {
            "done": True,
            "done_reason": "length" if result.finish_reason == "length" else "stop",
            "total_duration": time.monotonic_ns() - self._begun_ns,
            "load_duration": 0,
            "prompt_eval_count": result.prompt_tokens,
            "prompt_eval_duration": int(result.time_to_first_token_ms * 1e6),
            "eval_count": made,
            "eval_duration": int((made - 1) / rate * 1e9) if rate else 0,
            "sol": sol(self.facts.asked, result),
        }

    def _logprobs(self, tokens: Sequence[GeneratedToken]) -> list[dict[str, Any]] | None:
        return None if self.facts.asked.top_logprobs is None else logprobs(self.facts, tokens)


class _ChatWriter(_OllamaWriter):
    def _said(self, text: str, reasoning: str, calls: Sequence[Block]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if reasoning:
            message["thinking"] = reasoning
        if calls:
            message["tool_calls"] = [_call(block) for block in calls]
        return {"message": message}


class _GenerateWriter(_OllamaWriter):
    def _said(self, text: str, reasoning: str, calls: Sequence[Block]) -> dict[str, Any]:
        said: dict[str, Any] = {"response": text}
        if reasoning:
            said["thinking"] = reasoning
        if calls:
            said["tool_calls"] = [_call(block) for block in calls]
        return said


def _call(block: Block) -> dict[str, Any]:
    function = {"index": block.index, "name": block.name, "arguments": arguments(block)}
    return {"id": block.call_id, "function": function}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")


ENDPOINTS = (Endpoint("/api/chat", read_chat, _ChatWriter), Endpoint("/api/generate", read_generate, _GenerateWriter))
