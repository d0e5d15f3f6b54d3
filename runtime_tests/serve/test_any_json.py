"""Every end point reads a request with any value in any place, or says which field is wrong."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from helpers.servers import CHAT_TOOLS, CHAT_WITH_TOOLS
from sol_rt.serve import anthropic_api, ollama_api, openai_api, responses_api
from sol_rt.serve.protocol import Ready
from sol_rt.serve.request import Asked, FieldError

ODD: list[Any] = [None, True, 0, -1, 10**400, math.inf, "", "\ud800", [], [[]], [{}], {}, {"a": math.inf}]
SCHEMA = {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
COMMON: dict[str, Any] = {"model": "tiny@0.5", "budget": 0.5, "schedule": "dense", "temperature": 0.5, "stream": True}
TEXT = [{"type": "text", "text": "w3"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": CHAT_WITH_TOOLS, "stop": ["w3"], "max_tokens": 3, **CHAT_TOOLS},
    "/v1/completions": {"prompt": ["w3"], "logprobs": 1},
    "/v1/responses": {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "w3"}]},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "w3"}]},
            {"type": "function_call", "call_id": "call_0", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_0", "output": [{"type": "input_text", "text": "w3"}]},
        ],
        "instructions": "w3",
        "include": ["message.output_text.logprobs"],
        "tools": [{"type": "function", "name": "weather", "parameters": {}}],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]},
        "text": {"format": SCHEMA},
        "reasoning": {"effort": "low"},
    },
    "/v1/messages": {
        "max_tokens": 3,
        "system": TEXT,
        "messages": [
            {"role": "user", "content": TEXT},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "w3"}, *TEXT]},
            {"role": "user", "content": "w3"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "i", "name": "n", "input": {"a": 1}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "i", "content": TEXT}, *TEXT]},
        ],
        "stop_sequences": ["w3"],
        "tools": [{"name": "weather", "input_schema": {}}],
        "tool_choice": {"type": "tool", "name": "weather"},
        "thinking": {"type": "enabled"},
        "output_config": {"effort": "low", "format": SCHEMA},
    },
    "/api/chat": {
        "messages": [
            {"role": "user", "content": "w3", "images": []},
            {"role": "assistant", "thinking": "w3", "tool_calls": [{"function": {"name": "n", "arguments": {"a": 1}}}]},
            {"role": "tool", "tool_name": "n", "content": "w3"},
        ],
        "tools": CHAT_TOOLS["tools"],
        "format": {"type": "object"},
        "think": "low",
        "keep_alive": -1,
        "options": {"num_predict": 3, "stop": ["w3"], "budget": 0.5, "num_ctx": 9},
    },
    "/api/generate": {"prompt": "w3", "system": "w3", "raw": False, "format": "json", "options": {"num_predict": 3}},
}
ENDPOINTS = [end for api in (openai_api, responses_api, anthropic_api, ollama_api) for end in api.ENDPOINTS]


def places(value: Any, *way: Any) -> Iterator[tuple[Any, ...]]:
    """Ways to every value within a value."""
    if way:
        yield way
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, *way, key)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
def test_any_value_in_any_place_is_read_or_refused(endpoint: Any) -> None:
    body = COMMON | BODIES[endpoint.path]
    for *way, last in places(body):
        for odd in ODD:
            changed = copy.deepcopy(body)
            inner: Any = changed
            for key in way:
                inner = inner[key]
            inner[last] = odd
            with suppress(FieldError):
                assert isinstance(endpoint.read(changed, {}, "tiny"), (Asked, Ready))
