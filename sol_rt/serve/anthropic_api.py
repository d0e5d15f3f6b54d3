"""Anthropic's protocol: `/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sol_rt.errors import brief
from sol_rt.generate.results import GeneratedToken, Generation
from sol_rt.serve.content import Block, Delta
from sol_rt.serve.protocol import Count, Endpoint, Facts, Failure, Writer, arguments, event, sol
from sol_rt.serve.request import (
    Asked,
    FieldError,
    as_json,
    joined,
    objects,
    one_of,
    read_as_chat,
    refuse,
    taken,
    text_of,
)

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_NAMES = {
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "reasoning_effort": "thinking",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
}
"""Anthropic's names of chat's fields."""


def error(failure: Failure) -> dict[str, Any]:
    """The body of an error."""
    kind = _KINDS.get(failure.status, "invalid_request_error" if failure.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": failure.message}}


def read(body: Mapping[str, Any], headers: Mapping[str, str], known_as: str) -> Asked:
    """A request of `/v1/messages`. Raises FieldError."""
    if body.get("max_tokens") is None:
        raise FieldError("max_tokens", "expected a number of tokens; the protocol requires it")
    return _read(body, headers, known_as)


def read_count(body: Mapping[str, Any], headers: Mapping[str, str], known_as: str) -> Asked:
    """A request of `/v1/messages/count_tokens`. Raises FieldError."""
    return _read(body, headers, known_as)


def _read(body: Mapping[str, Any], headers: Mapping[str, str], known_as: str) -> Asked:
    fields = dict(body)
    refuse(fields, "container", "mcp_servers")
    messages: list[dict[str, Any]] = []
    if (system := fields.pop("system", None)) not in (None, "", []):
        messages.append({"role": "system", "content": joined("system", system)})
    for place, message in enumerate(objects("messages", fields.pop("messages", None))):
        for each in _messages(f"messages[{place}]", message):
            _append(messages, each)
    if messages and messages[-1]["role"] == "assistant":
        raise FieldError("messages", "the last is the assistant's, which cannot be continued; end with one of the user")
    chat: dict[str, Any] = {"messages": messages}
    if (stops := taken(fields, "stop_sequences", list)) is not None:
        chat["stop"] = stops
    chat |= _thinking(fields) | _tools(fields)
    return read_as_chat(fields | chat, headers, known_as, _NAMES)


def _messages(where: str, message: dict[str, Any]) -> list[dict[str, Any]]:
    """A message in chat's shape. Results of tools become messages of their own, before the rest."""
    role = one_of(f"{where}.role", message.get("role"), ("user", "assistant", "system"))
    content = message.get("content")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    texts, reasoning, calls, results = [], [], [], []
    for place, block in enumerate(objects(f"{where}.content", content)):
        here, kind = f"{where}.content[{place}]", block.get("type")
        if kind == "text":
            texts.append(text_of(here, block, "text"))
        elif kind == "thinking" and role == "assistant":
            reasoning.append(text_of(here, block, "thinking"))
        elif kind == "redacted_thinking" and role == "assistant":
            continue
        elif kind == "tool_use" and role == "assistant":
            called = {
                "name": text_of(here, block, "name"),
                "arguments": as_json(f"{here}.input", block.get("input") or {}),
            }
            calls.append({"id": text_of(here, block, "id"), "type": "function", "function": called})
        elif kind == "tool_result" and role == "user":
            said = joined(f"{here}.content", block.get("content") or "")
            results.append({"role": "tool", "tool_call_id": text_of(here, block, "tool_use_id"), "content": said})
        else:
            raise FieldError(here, f"got type {brief(kind)}, which is not supported for {role}; leave it out")
    if not texts and not calls and results:
        return results
    given: dict[str, Any] = {"role": role, "content": "".join(texts)}
    if reasoning:
        given["reasoning_content"] = "".join(reasoning)
    if calls:
        given["tool_calls"] = calls
    return [*results, given]


def _append(messages: list[dict[str, Any]], message: dict[str, Any]) -> None:
    """Adds a message. Texts of one role that follow each other are one turn."""
    last = messages[-1] if messages else {}
    both_texts = message.keys() == last.keys() == {"role", "content"}
    if both_texts and message["role"] == last["role"] != "system":
        last["content"] += "\n\n" + message["content"]
    else:
        messages.append(message)


def _thinking(fields: dict[str, Any]) -> dict[str, Any]:
    """Effort and form of the answer, in chat's words."""
    found: dict[str, Any] = {}
    thinking, output = taken(fields, "thinking", dict), taken(fields, "output_config", dict) or {}
    disabled = thinking is not None and thinking.get("type") == "disabled"
    if "effort" in output:
        found["reasoning_effort"] = output["effort"]
        if disabled:
            fields["thinking"] = thinking  # to be named as ignored
    elif thinking is not None:
        found["reasoning_effort"] = "none" if disabled else "medium"
    form = output.get("format") or fields.pop("output_format", None)
    if isinstance(form, dict) and form.get("type") == "json_schema":
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": form.get("schema")}}
    return found if form is None else found | {"response_format": form}


def _tools(fields: dict[str, Any]) -> dict[str, Any]:
    """Tools in chat's shape. Those of Anthropic's own servers are left out and named as ignored."""
    found: dict[str, Any] = {}
    for place, tool in enumerate(objects("tools", fields.pop("tools", None) or [])):
        if tool.get("type") not in (None, "custom"):
            fields[f"tools[{place}]"] = tool
            continue
        function = {"name": text_of(f"tools[{place}]", tool, "name"), "parameters": tool.get("input_schema") or {}}
        if "description" in tool:
            function["description"] = tool["description"]
        found.setdefault("tools", []).append({"type": "function", "function": function})
    choice = taken(fields, "tool_choice", dict)
    if choice is None:
        return found
    kind = one_of("tool_choice", choice.get("type"), ("auto", "any", "tool", "none"))
    if kind == "tool":
        found["tool_choice"] = {"type": "function", "function": {"name": text_of("tool_choice", choice, "name")}}
    else:
        found["tool_choice"] = "required" if kind == "any" else kind
    if choice.get("disable_parallel_tool_use"):
        found["parallel_tool_calls"] = False
    return found


class _MessageWriter(Writer):
    def __init__(self, facts: Facts) -> None:
        super().__init__(facts, f"msg_{uuid.uuid4().hex}")

    def begin(self) -> str:
        usage = {"input_tokens": self.facts.prompt_tokens, "output_tokens": 0}
        return _event("message_start", message=self._message([], usage, None, None))

    def part(self, token: GeneratedToken, deltas: Sequence[Delta]) -> str:
        said = ""
        for delta in deltas:
            if delta.first:
                said += self._stop(delta.block.place - 1)
                said += _event("content_block_start", index=delta.block.place, content_block=_block(delta.block, {}))
            if delta.text:
                said += _event("content_block_delta", index=delta.block.place, delta=_delta(delta))
        return said

    def end(self, result: Generation) -> str:
        reason, text = self._reason(result)
        about = {"delta": {"stop_reason": reason, "stop_sequence": text}, "usage": self._usage(result)}
        last = _event("message_delta", **about, sol=sol(self.facts.asked, result))
        return self._stop(len(self.content.blocks) - 1) + last + _event("message_stop")

    def failed(self, failure: Failure) -> str:
        return event(error(failure), "error")

    def ping(self) -> str:
        return _event("ping")

    def whole(self, result: Generation) -> dict[str, Any]:
        blocks = [_block(block, arguments(block), block.text) for block in self.content.blocks]
        message = self._message(blocks, self._usage(result), *self._reason(result))
        return message | {"sol": sol(self.facts.asked, result)}

    def _stop(self, place: int) -> str:
        """The end of the block at that place, if there is one."""
        return _event("content_block_stop", index=place) if place >= 0 else ""

    def _message(
        self, content: list[dict[str, Any]], usage: Mapping[str, Any], reason: str | None, text: str | None
    ) -> dict[str, Any]:
        about = {"id": self.answer_id, "type": "message", "role": "assistant", "model": self.facts.model}
        return about | {"content": content, "stop_reason": reason, "stop_sequence": text, "usage": usage}

    def _reason(self, result: Generation) -> tuple[str, str | None]:
        """Why the answer ended, and the stop sequence if one did that."""
        if result.finish_reason == "length":
            return "max_tokens", None
        if self.content.calls():
            return "tool_use", None
        text = self.facts.stop_of(result)
        return ("end_turn" if text is None else "stop_sequence"), text

    def _usage(self, result: Generation) -> dict[str, Any]:
        """Counts of tokens: of the prompt, those that the cache had are apart."""
        return {
            "input_tokens": result.prompt_tokens - result.cached_tokens,
            "cache_read_input_tokens": result.cached_tokens,
            "cache_creation_input_tokens": 0,
            "output_tokens": len(result.tokens),
            "output_tokens_details": {"thinking_tokens": self.content.reasoning_tokens},
        }


def _event(kind: str, **content: Any) -> str:
    return event({"type": kind, **content}, kind)


def _block(block: Block, called_with: Mapping[str, Any], text: str = "") -> dict[str, Any]:
    """A content block: of a stream its beginning, which is empty."""
    if block.kind == "tool":
        return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": called_with}
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": text, "signature": ""}
    return {"type": "text", "text": text}


def _delta(delta: Delta) -> dict[str, Any]:
    if delta.block.kind == "tool":
        return {"type": "input_json_delta", "partial_json": delta.text}
    if delta.block.kind == "reasoning":
        return {"type": "thinking_delta", "thinking": delta.text}
    return {"type": "text_delta", "text": delta.text}


ENDPOINTS = (Endpoint("/v1/messages", read, _MessageWriter),)
COUNTS = (Count("/v1/messages/count_tokens", read_count, lambda tokens: {"input_tokens": tokens}),)
