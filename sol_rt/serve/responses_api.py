"""OpenAI's newer protocol: `/v1/responses`. Nothing is kept between requests."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sol_rt.errors import brief
from sol_rt.generate.results import GeneratedToken, Generation
from sol_rt.serve.content import Block, Delta
from sol_rt.serve.protocol import Count, Endpoint, Facts, Failure, Writer, event, logprobs, sol
from sol_rt.serve.request import Asked, FieldError, as_json, joined, objects, read_as_chat, refuse, taken, text_of

_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
"""Names that this protocol has for chat's fields."""
_PARTS = ("input_text", "output_text", "text")
_LOGPROBS = "message.output_text.logprobs"


def read(body: Mapping[str, Any], headers: Mapping[str, str], known_as: str) -> Asked:
    """A request of `/v1/responses`. Raises FieldError."""
    fields = dict(body)
    refuse(fields, "previous_response_id", "conversation", "background", "prompt")
    if taken(fields, "truncation", str) not in (None, "disabled"):
        raise FieldError("truncation", "expected disabled: a prompt is never cut")
    messages: list[dict[str, Any]] = []
    if instructions := taken(fields, "instructions", str):
        messages.append({"role": "system", "content": instructions})
    given = fields.pop("input", None)
    messages += [{"role": "user", "content": given}] if isinstance(given, str) else _messages(objects("input", given))
    chat: dict[str, Any] = {"messages": messages}
    if (most := taken(fields, "max_output_tokens", int)) is not None:
        chat["max_tokens"] = most
    if _LOGPROBS in (taken(fields, "include", list) or ()):
        chat["logprobs"] = True
    chat |= _form(fields) | _tools(fields)
    return replace(read_as_chat(fields | chat, headers, known_as, _NAMES), repeated=_repeated(body))


def _repeated(body: Mapping[str, Any]) -> dict[str, Any]:
    """The request, as the answer repeats it. Raises FieldError for what JSON cannot hold."""
    functions = [tool for tool in body.get("tools") or () if tool.get("type") == "function"]
    form, choice = (body.get("text") or {}).get("format"), body.get("tool_choice")
    found = {
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "reasoning": {"effort": (body.get("reasoning") or {}).get("effort"), "summary": None},
        "text": {"format": {"type": "text"} if form is None else form},
        "tool_choice": "auto" if choice is None else choice,
        "tools": functions,
    }
    return {name: json.loads(as_json(name, value).encode(errors="replace")) for name, value in found.items()}


def _messages(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation in chat's shape. Reasoning and calls join the assistant's message that they belong to."""
    messages: list[dict[str, Any]] = []

    def of_assistant() -> dict[str, Any]:
        if not messages or messages[-1]["role"] != "assistant" or "tool_calls" in messages[-1]:
            messages.append({"role": "assistant", "content": ""})
        return messages[-1]

    for place, item in enumerate(items):
        where, kind = f"input[{place}]", item.get("type", "message")
        if kind == "message":
            role = text_of(where, item, "role")
            content = joined(f"{where}.content", item.get("content"), _PARTS)
            if role == "assistant" and messages and messages[-1].keys() == {"role", "content", "reasoning_content"}:
                messages[-1]["content"] += content
            else:
                messages.append({"role": role, "content": content})
        elif kind == "reasoning":
            parts = objects(f"{where}.content", item.get("content") or [])
            said = joined(f"{where}.content", parts, ("reasoning_text", "text"))
            messages.append({"role": "assistant", "content": "", "reasoning_content": said})
        elif kind == "function_call":
            called = {name: text_of(where, item, name) for name in ("name", "arguments")}
            call = {"id": text_of(where, item, "call_id"), "type": "function", "function": called}
            last = messages[-1] if messages and "tool_calls" in messages[-1] else of_assistant()
            last.setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            said = joined(f"{where}.output", item.get("output"), _PARTS)
            messages.append({"role": "tool", "tool_call_id": text_of(where, item, "call_id"), "content": said})
        else:
            raise FieldError(where, f"got type {brief(kind)}, which is not supported; leave it out")
    return messages


def _form(fields: dict[str, Any]) -> dict[str, Any]:
    """The form of the answer and how long to think, in chat's words."""
    found: dict[str, Any] = {}
    text, reasoning = taken(fields, "text", dict) or {}, taken(fields, "reasoning", dict) or {}
    form = text.get("format")
    if isinstance(form, dict) and form.get("type") == "json_schema":
        form = {"type": "json_schema", "json_schema": {name: form[name] for name in form if name != "type"}}
    if form is not None:
        found["response_format"] = form
    if reasoning.get("effort") is not None:
        found["reasoning_effort"] = reasoning["effort"]
    fields |= {f"text.{name}": text[name] for name in text if name != "format"}
    return found


def _tools(fields: dict[str, Any]) -> dict[str, Any]:
    """Functions in chat's shape. Other tools, as of a web search, are left out and named as ignored."""
    found: dict[str, Any] = {}
    for place, tool in enumerate(objects("tools", fields.pop("tools", None) or [])):
        if tool.get("type") != "function":
            fields[f"tools[{place}]"] = tool
            continue
        function = {name: tool[name] for name in tool if name != "type"}
        found.setdefault("tools", []).append({"type": "function", "function": function})
    choice = fields.pop("tool_choice", None)
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = [tool.get("name") for tool in objects("tool_choice.tools", choice.get("tools"))]
        found["tools"] = [tool for tool in found.get("tools", []) if tool["function"].get("name") in allowed]
        choice = choice.get("mode", "auto")
    elif isinstance(choice, dict) and choice.get("type") == "function":
        choice = {"type": "function", "function": {"name": text_of("tool_choice", choice, "name")}}
    elif choice is not None and not isinstance(choice, str):
        raise FieldError("tool_choice", f"got {brief(choice)}, expected a function or one of auto, required, none")
    return found if choice is None else found | {"tool_choice": choice}


class _ResponseWriter(Writer):
    def __init__(self, facts: Facts) -> None:
        self._id = uuid.uuid4().hex
        super().__init__(facts, f"resp_{self._id}")
        self._created, self._events = int(time.time()), 0

    def begin(self) -> str:
        response = self._response("in_progress")
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def part(self, token: GeneratedToken, deltas: Sequence[Delta]) -> str:
        said = ""
        for delta in deltas:
            if delta.first:
                said += self._done(delta.block.place - 1) + self._added(delta.block)
            if delta.text:
                more = {"logprobs": self._logprobs([token])} if delta.block.kind == "text" else {}
                said += self._of(delta.block, f"{_DELTAS[delta.block.kind]}.delta", delta=delta.text, **more)
        return said

    def end(self, result: Generation) -> str:
        status = _status(result)
        response = self._response(status, result)
        return self._done(len(self.content.blocks) - 1, status) + self._event(f"response.{status}", response=response)

    def failed(self, failure: Failure) -> str:
        """Two events: programs of one kind wait for `response.failed`, those of another for `error`."""
        code = failure.code or failure.kind
        response = self._response("failed") | {"error": {"code": code, "message": failure.message}}
        about = {"code": code, "message": failure.message, "param": failure.param}
        told = self._event("response.failed", response=response)
        return told + self._event("error", **about, error={"type": failure.kind, **about})

    def whole(self, result: Generation) -> dict[str, Any]:
        return self._response(_status(result), result)

    def _event(self, kind: str, **content: Any) -> str:
        number, self._events = self._events, self._events + 1
        return event({"type": kind, "sequence_number": number, **content}, kind)

    def _of(self, block: Block, kind: str, **content: Any) -> str:
        """An event within an item."""
        where = {"item_id": self._item_id(block), "output_index": block.place}
        return self._event(kind, **where, **({} if block.kind == "tool" else {"content_index": 0}), **content)

    def _added(self, block: Block) -> str:
        item = self._item(block, "in_progress", "")
        said = self._event("response.output_item.added", output_index=block.place, item=item)
        if block.kind == "tool":
            return said
        return said + self._of(block, "response.content_part.added", part=self._part(block, ""))

    def _done(self, place: int, status: str = "completed") -> str:
        """The end of the item at that place, if there is one."""
        if place < 0:
            return ""
        block = self.content.blocks[place]
        if block.kind == "tool":
            said = self._of(block, f"{_DELTAS['tool']}.done", name=block.name, arguments=block.text)
        else:
            more = {"logprobs": self._logprobs(block.tokens)} if block.kind == "text" else {}
            said = self._of(block, f"{_DELTAS[block.kind]}.done", text=block.text, **more)
            said += self._of(block, "response.content_part.done", part=self._part(block, block.text))
        item = self._item(block, status, block.text)
        return said + self._event("response.output_item.done", output_index=place, item=item)

    def _item_id(self, block: Block) -> str:
        return f"{_PREFIXES[block.kind]}_{self._id}_{block.place}"

    def _item(self, block: Block, status: str, text: str) -> dict[str, Any]:
        """An item of the output; one that begins has no text and no parts."""
        about = {"id": self._item_id(block), "status": status}
        if block.kind == "tool":
            return about | {
                "type": "function_call", "call_id": block.call_id, "name": block.name, "arguments": text,
            }  # fmt: skip
        content = [] if status == "in_progress" else [self._part(block, text)]
        if block.kind == "reasoning":
            return about | {"type": "reasoning", "summary": [], "content": content}
        return about | {"type": "message", "role": "assistant", "content": content}

    def _part(self, block: Block, text: str) -> dict[str, Any]:
        if block.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        found = self._logprobs(block.tokens) if text else []
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": found}

    def _logprobs(self, tokens: Sequence[GeneratedToken]) -> list[dict[str, Any]]:
        return [] if self.facts.asked.top_logprobs is None else logprobs(self.facts, tokens)

    def _response(self, status: str, result: Generation | None = None) -> dict[str, Any]:
        asked = self.facts.asked
        response: dict[str, Any] = {
            "id": self.answer_id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self.facts.model,
            "output": [],
            "instructions": None,
            "max_output_tokens": asked.max_tokens,
            "metadata": {},
            "previous_response_id": None,
            "store": False,
            "temperature": asked.arguments.get("temperature"),
            "top_p": asked.arguments.get("top_p"),
            "truncation": "disabled",
            "usage": None,
            **asked.repeated,
        }
        if result is None:
            return response
        blocks = self.content.blocks
        output = [self._item(block, "completed", block.text) for block in blocks[:-1]]
        output += [self._item(block, status, block.text) for block in blocks[-1:]]
        prompt, made = result.prompt_tokens, len(result.tokens)
        usage = {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": result.cached_tokens},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": self.content.reasoning_tokens},
            "total_tokens": prompt + made,
        }
        return response | {"output": output, "usage": usage, "sol": sol(asked, result)}


def _status(result: Generation) -> str:
    return "incomplete" if result.finish_reason == "length" else "completed"


_DELTAS = {
    "text": "response.output_text",
    "reasoning": "response.reasoning_text",
    "tool": "response.function_call_arguments",
}
_PREFIXES = {"text": "msg", "reasoning": "rs", "tool": "fc"}

ENDPOINTS = (Endpoint("/v1/responses", read, _ResponseWriter),)
COUNTS = (
    Count(
        "/v1/responses/input_tokens", read, lambda tokens: {"object": "response.input_tokens", "input_tokens": tokens}
    ),
)
