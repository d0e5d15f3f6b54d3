"""`/v1/messages` and its count of tokens, asked by Anthropic's own client."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import anthropic
import httpx
import pytest

from helpers.servers import CHAT_TOOLS, CHAT_WITH_TOOLS, WEATHER, in_thread, left, outcome, running
from sol_rt.generate.model import SolModel
from sol_rt.serve import anthropic_api
from sol_rt.serve.app import Server
from sol_rt.serve.request import read_chat

MESSAGES: list[Any] = [{"role": "user", "content": "w3 w4 w5 w6"}]
NEVER_ENDS = {"logit_bias": {"0": -100, "2": -100}}
ENDS = {"logit_bias": {"2": 100}}


def client_of(address: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=address, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def client(address: str) -> anthropic.Anthropic:
    return client_of(address)


def ask(client: anthropic.Anthropic, **arguments: Any) -> Any:
    return client.messages.create(**given(**arguments))


def given(*, extra_body: Mapping[str, Any] = MappingProxyType({}), **arguments: Any) -> Any:
    """Arguments of a request; the newest client has no temperature any more."""
    body = {"temperature": 0, **extra_body}
    return {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "extra_body": body, **arguments}


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_an_answer_is_that_of_the_model(client: anthropic.Anthropic, model: SolModel) -> None:
    expected = model.generate(MESSAGES, max_new_tokens=12, do_sample=False, schedule="dense")
    answer = ask(client, extra_body={"schedule": "dense"})
    assert [block.type for block in answer.content] == ["text"]
    assert text_of(answer) == expected.text
    assert answer.role == "assistant"
    assert answer.stop_reason == "max_tokens"
    assert answer.usage.input_tokens + answer.usage.cache_read_input_tokens == expected.prompt_tokens
    assert answer.usage.output_tokens == len(expected.tokens)
    assert answer.sol["actions"] == expected.actions


def test_a_stream_is_the_same_answer_in_pieces(client: anthropic.Anthropic) -> None:
    whole = ask(client)
    with client.messages.stream(**given()) as stream:
        text = "".join(stream.text_stream)
        answer = stream.get_final_message()
    assert text == text_of(whole) == text_of(answer)
    assert answer.stop_reason == whole.stop_reason
    for usage in (answer.usage, whole.usage):
        assert usage.input_tokens + usage.cache_read_input_tokens == 6
    assert answer.usage.output_tokens == whole.usage.output_tokens


def test_a_stream_s_events(client: anthropic.Anthropic) -> None:
    events = list(ask(client, stream=True, max_tokens=3))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert events[0].message.usage.input_tokens == 6
    assert events[0].message.content == []
    assert events[-2].sol["actions"]


def test_reasoning_and_calls_of_tools(thinking: str) -> None:
    client = client_of(thinking)
    whole = ask(client)
    with client.messages.stream(**given()) as stream:
        events = [event.type for event in stream]
        streamed: Any = stream.get_final_message()
    assert events.count("content_block_start") == events.count("content_block_stop") == 4
    for message in (whole, streamed):
        thought, said, *calls = message.content
        assert (thought.type, thought.thinking, thought.signature) == ("thinking", "let me see", "")
        assert said.text == "I ask."
        assert [(call.type, call.id, call.name, call.input) for call in calls] == [
            ("tool_use", "call_a", "weather", {"city": "Ulm"}),
            ("tool_use", "call_b", "time", {"zone": "CET"}),
        ]
        assert message.usage.output_tokens_details.thinking_tokens == 2


def test_a_call_that_ends_the_answer_is_the_reason(thinking: str) -> None:
    assert ask(client_of(thinking)).stop_reason == "max_tokens"
    assert ask(client_of(thinking), extra_body=ENDS).stop_reason == "tool_use"


def test_stop_sequences_and_the_one_that_ended_it(client: anthropic.Anthropic) -> None:
    words = text_of(ask(client)).split()
    answer = ask(client, stop_sequences=["nowhere", words[4]])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", words[4])
    assert text_of(answer).split() == words[: words.index(words[4])]
    ended = ask(client, extra_body=ENDS, stop_sequences=["nowhere"])
    assert (ended.stop_reason, ended.stop_sequence, ended.content) == ("end_turn", None, [])


@pytest.mark.parametrize(
    "how",
    [
        {"extra_body": {"budget": 0.4}},
        {"extra_headers": {"X-Sol-Budget": "0.4"}},
        {"model": "tiny@0.4"},
    ],
)
def test_the_dial_is_in_the_request(client: anthropic.Anthropic, how: dict[str, Any]) -> None:
    assert ask(client, **how).sol["requested_budget"] == 0.4
    assert list(ask(client, stream=True, **how))[-2].sol["requested_budget"] == 0.4


def test_the_dial_by_other_fields_and_in_the_background(client: anthropic.Anthropic) -> None:
    assert ask(client, extra_body={"schedule": "dense"}).sol["schedule"] == "dense"
    assert ask(client, extra_body={"max_loss": 0.5}).sol["expected_loss"] <= 0.5
    assert text_of(ask(client, model="tiny:background")) == text_of(ask(client))


def test_a_system_prompt_is_a_text_or_blocks(client: anthropic.Anthropic, model: SolModel) -> None:
    messages = [{"role": "system", "content": "w7 w8"}, *MESSAGES]
    expected = model.generate(messages, max_new_tokens=12, do_sample=False, schedule="dense").text
    dense: Any = {"extra_body": {"schedule": "dense"}}
    blocks = [{"type": "text", "text": "w7 "}, {"type": "text", "text": "w8", "cache_control": {"type": "ephemeral"}}]
    assert text_of(ask(client, system="w7 w8", **dense)) == expected
    assert text_of(ask(client, system=blocks, **dense)) == expected
    parts = [{"type": "text", "text": "w3 w4"}, {"type": "text", "text": " w5 w6"}]
    again = ask(client, system="w7 w8", messages=[{"role": "user", "content": parts}], **dense)
    assert text_of(again) == expected


def test_a_count_is_that_of_the_answer(client: anthropic.Anthropic) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "w9"}, {"role": "user", "content": "w10"}]
    arguments: Any = {"model": "tiny", "system": "w7 w8", "messages": messages}
    counted = client.messages.count_tokens(**arguments).input_tokens
    usage = client.messages.create(max_tokens=1, **arguments).usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_what_claude_code_sends_is_taken(address: str) -> None:
    body = {
        "model": "tiny",
        "max_tokens": 4,
        "messages": MESSAGES,
        "system": [{"type": "text", "text": "w7", "cache_control": {"type": "ephemeral"}}],
        "metadata": {"user_id": "me"},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "context_management": {"edits": []},
        "tools": [{"type": "web_search_20250305", "name": "web_search"}],
    }
    headers = {
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14",
        "anthropic-dangerous-direct-browser-access": "true",
        "x-api-key": "none",
        "x-app": "cli",
    }
    answer = httpx.post(f"{address}/v1/messages?beta=true", json=body, headers=headers)
    assert answer.status_code == 200
    assert answer.json()["sol"]["ignored"] == ["context_management", "tools[0]"]


@pytest.mark.parametrize("more", [{}, {"output_config": {"effort": "low"}}])
def test_reasoning_that_is_turned_off_is_named_as_ignored(address: str, more: dict[str, Any]) -> None:
    body = {"max_tokens": 2, "messages": MESSAGES, "thinking": {"type": "disabled"}, **more}
    assert httpx.post(f"{address}/v1/messages", json=body).json()["sol"]["ignored"] == ["thinking"]


def test_a_conversation_with_tools_is_that_of_chat() -> None:
    thought = {"type": "thinking", "thinking": "w5", "signature": ""}
    calls = [
        {"type": "tool_use", "id": "call_0", "name": "weather", "input": {"city": "Köln"}},
        {"type": "tool_use", "id": "call_1", "name": "time", "input": {}},
    ]
    results = [
        {"type": "tool_result", "tool_use_id": "call_0", "content": [{"type": "text", "text": "w8"}]},
        {"type": "tool_result", "tool_use_id": "call_1", "content": "w9"},
    ]
    body = {
        "max_tokens": 4,
        "system": "w7",
        "messages": [
            {"role": "user", "content": "w3"},
            {"role": "assistant", "content": [thought, {"type": "text", "text": "w4"}, *calls]},
            {"role": "user", "content": [*results, {"type": "text", "text": "w10"}]},
        ],
    }
    chat = {"messages": CHAT_WITH_TOOLS, "max_tokens": 4}
    assert outcome(anthropic_api.read, body) == outcome(read_chat, chat)
    tools = {
        "tools": [{"name": "weather", "description": "w3", "input_schema": WEATHER}],
        "tool_choice": {"type": "tool", "name": "weather"},
    }
    assert outcome(anthropic_api.read, body | tools) == outcome(read_chat, chat | CHAT_TOOLS)


def test_turns_of_one_role_are_one() -> None:
    messages = [{"role": "user", "content": "w3"}, {"role": "user", "content": [{"type": "text", "text": "w4"}]}]
    read = anthropic_api.read({"messages": messages, "max_tokens": 1}, {}, "tiny")
    assert read.prompt == [{"role": "user", "content": "w3\n\nw4"}]


def test_requests_that_can_t_be_followed(address: str) -> None:

    def refused(**body: Any) -> str:
        got = httpx.post(f"{address}/v1/messages", json={"messages": MESSAGES, "max_tokens": 2} | body)
        assert got.status_code == 400, got.text
        error = got.json()
        assert error["type"] == "error"
        assert error["error"]["type"] == "invalid_request_error"
        return error["error"]["message"]

    assert refused(max_tokens=None).startswith("max_tokens:")
    assert refused(max_tokens=0).startswith("max_tokens:")
    assert refused(messages=None).startswith("messages:")
    assert refused(messages=[]).startswith("messages:")
    assert refused(messages=[{"role": "tool", "content": "w3"}]).startswith("messages[0].role:")
    image = {"type": "image", "source": {"type": "url", "url": "http://x"}}
    assert refused(messages=[{"role": "user", "content": [image]}]).startswith("messages[0].content[0]:")
    assert refused(stop_sequences="w3").startswith("stop_sequences:")
    assert refused(stop_sequences=["w3"] * 65).startswith("stop_sequences:")
    assert refused(mcp_servers=[{"type": "url"}]).startswith("mcp_servers:")
    assert refused(tool_choice={"type": "some"}).startswith("tool_choice:")
    assert "budget: got 1.5" in refused(budget=1.5)
    assert "continued" in refused(messages=[*MESSAGES, {"role": "assistant", "content": "w9"}])
    assert refused(system=[{"type": "image"}]).startswith("system:")


def test_errors_in_the_protocol_s_own_shape(address: str, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        ask(client, model="other")
    assert missing.value.body == {
        "type": "error",
        "error": {"type": "not_found_error", "message": "model: got 'other', this server has tiny"},
    }
    with pytest.raises(anthropic.NotFoundError):
        client.messages.count_tokens(model="other", messages=MESSAGES)
    with pytest.raises(anthropic.BadRequestError, match="shorten the conversation"):
        ask(client, messages=[{"role": "user", "content": "w3 " * 9000}])
    wrong_method = httpx.get(f"{address}/v1/messages")
    assert (wrong_method.status_code, wrong_method.json()["type"]) == (405, "error")
    too_long = httpx.post(f"{address}/v1/messages", content=b" " * (9 << 20))
    assert too_long.json()["error"]["type"] == "request_too_large"


def test_a_key_is_taken_from_both_headers(bundle: Any) -> None:
    with in_thread(bundle, api_key="secret") as (address, _):
        with pytest.raises(anthropic.AuthenticationError) as refused:
            ask(client_of(address))
        assert isinstance(refused.value.body, dict)
        assert refused.value.body["error"]["type"] == "authentication_error"
        for key in ({"api_key": "secret"}, {"auth_token": "secret", "api_key": None}):
            assert ask(anthropic.Anthropic(base_url=address, max_retries=0, **key), max_tokens=1).role == "assistant"


def test_pings_while_a_stream_waits_and_an_error_that_ends_it(
    slow: tuple[str, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With steps of a millisecond and more, so that the first answer outlasts the other's wait."""
    address, server = slow
    monkeypatch.setattr(server.scheduler.control, "took", lambda token, seconds: time.sleep(1e-3))
    first = ask(client_of(address), stream=True, max_tokens=8000, extra_body=NEVER_ENDS)
    events = iter(first)
    while next(events).type != "content_block_delta":
        pass
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 4, "stream": True}
    with httpx.stream("POST", f"{address}/v1/messages", json=body) as waiting:
        lines = waiting.iter_lines()
        while (line := next(lines)) != "event: ping":
            assert line != "event: content_block_start"
        assert next(lines) == 'data: {"type": "ping"}'
        closing = threading.Thread(target=server.scheduler.close)
        closing.start()
        rest = list(lines)
    closing.join()
    assert rest[-3] == "event: error"
    assert '"overloaded_error"' in rest[-2]
    with pytest.raises(anthropic.APIStatusError, match="closing"):
        list(events)


def test_a_client_that_leaves_ends_its_answer(address: str, client: anthropic.Anthropic) -> None:
    with left(address), ask(client, stream=True, max_tokens=8000, extra_body=NEVER_ENDS) as stream:
        events = iter(stream)
        while next(events).type != "content_block_delta":
            pass
        assert running(address) == 1


def test_models_in_anthropic_s_words(client: anthropic.Anthropic) -> None:
    assert [(model.id, model.type, model.display_name) for model in client.models.list()] == [("tiny", "model", "tiny")]
