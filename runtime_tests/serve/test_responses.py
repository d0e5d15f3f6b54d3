"""`/v1/responses`, asked by OpenAI's own client."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from test_tools import TEMPLATE, bytes_bundle

from helpers.servers import CHAT_TOOLS, CHAT_WITH_TOOLS, WEATHER, in_thread, left, outcome, running
from sol_rt.generate.model import SolModel
from sol_rt.serve import responses_api
from sol_rt.serve.app import Server
from sol_rt.serve.request import read_chat

PROMPT = "w3 w4 w5 w6"
NEVER_ENDS = {"logit_bias": {"0": -100, "2": -100}}
ENDS = {"logit_bias": {"2": 100}}


def client_of(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return client_of(address)


def ask(client: openai.OpenAI, **arguments: Any) -> Any:
    given = {"model": "tiny", "input": PROMPT, "max_output_tokens": 12, "temperature": 0, **arguments}
    return client.responses.create(**given)


def test_an_answer_is_that_of_the_model(client: openai.OpenAI, model: SolModel) -> None:
    messages = [{"role": "system", "content": "w7"}, {"role": "user", "content": PROMPT}]
    expected = model.generate(messages, max_new_tokens=12, do_sample=False, schedule="dense")
    answer = ask(client, instructions="w7", extra_body={"schedule": "dense"})
    assert answer.output_text == expected.text
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage.input_tokens == expected.prompt_tokens
    assert answer.usage.output_tokens == len(expected.tokens)
    assert answer.usage.input_tokens_details.cached_tokens is not None
    assert answer.usage.output_tokens_details.reasoning_tokens == 0
    assert answer.sol["actions"] == expected.actions
    assert ask(client, extra_body=ENDS).status == "completed"


def test_a_stream_s_events(client: openai.OpenAI) -> None:
    whole = ask(client, max_output_tokens=3)
    events = list(ask(client, stream=True, max_output_tokens=3))
    kinds = [event.type for event in events]
    assert [kind for kind in kinds if kind != "response.output_text.delta"] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == whole.output_text
    assert all((event.output_index, event.content_index, event.logprobs) == (0, 0, []) for event in deltas)
    assert {event.item_id for event in deltas} == {events[2].item.id, events[-2].item.id}
    assert events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage.output_tokens == 3
    assert events[-1].response.sol["actions"] == whole.sol["actions"]


def test_the_client_s_own_helper_reads_a_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(model="tiny", input=PROMPT, temperature=0, extra_body=ENDS) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().status == "completed"


def test_reasoning_and_calls_of_tools(thinking: str) -> None:
    client = client_of(thinking)
    whole = ask(client, extra_body=NEVER_ENDS)
    with client.responses.stream(model="tiny", input=PROMPT, temperature=0, extra_body=ENDS) as stream:
        assert "response.reasoning_text.delta" in [event.type for event in stream]
    events = list(ask(client, stream=True, extra_body=NEVER_ENDS))
    for answer in (whole, events[-1].response):
        thought, said, *calls = answer.output
        assert thought.content[0].text == "let me see"
        assert said.content[0].text == "I ask."
        assert [(call.type, call.call_id, call.name, json.loads(call.arguments)) for call in calls] == [
            ("function_call", "call_a", "weather", {"city": "Ulm"}),
            ("function_call", "call_b", "time", {"zone": "CET"}),
        ]
        assert all(item.id not in ("call_a", "call_b") for item in answer.output)
        assert [item.status for item in answer.output] == ["completed"] * 3 + ["incomplete"]
        assert answer.usage.output_tokens_details.reasoning_tokens == 2
    arguments = [event for event in events if event.type == "response.function_call_arguments.delta"]
    assert [event.output_index for event in arguments] == [2, 2, 3, 3]
    done = [event for event in events if event.type == "response.output_item.done"]
    assert [event.item.to_dict() for event in done] == [item.to_dict() for item in events[-1].response.output]


def test_the_helper_reads_calls_of_tools(thinking: str) -> None:
    with client_of(thinking).responses.stream(model="tiny", input=PROMPT, max_output_tokens=12) as stream:
        told = [event for event in stream if event.type == "response.function_call_arguments.delta"]
    assert [event.snapshot for event in told] == ['{"city":', '{"city": "Ulm"}', '{"zone":', '{"zone": "CET"}']


@pytest.mark.parametrize(
    "how", [{"extra_body": {"budget": 0.4}}, {"extra_headers": {"X-Sol-Budget": "0.4"}}, {"model": "tiny@0.4"}]
)
def test_the_dial_is_in_the_request(client: openai.OpenAI, how: dict[str, Any]) -> None:
    assert ask(client, **how).sol["requested_budget"] == 0.4
    assert list(ask(client, stream=True, **how))[-1].response.sol["requested_budget"] == 0.4


def test_the_dial_by_other_fields_and_in_the_background(client: openai.OpenAI) -> None:
    assert ask(client, extra_body={"schedule": "dense"}).sol["schedule"] == "dense"
    assert ask(client, extra_body={"max_loss": 0.5}).sol["expected_loss"] <= 0.5
    assert ask(client, model="tiny:background").output_text


def test_the_dial_moves_while_an_answer_runs(address: str, client: openai.OpenAI) -> None:
    stream = ask(client, stream=True, max_output_tokens=2000, extra_body=NEVER_ENDS | {"budget": 1.0})
    first = next(iter(stream)).response
    assert httpx.post(f"{address}/v1/budget/{first.id}", json={"budget": 0.3}).status_code == 200
    *_, last = stream
    assert last.response.sol["achieved_budget"] < 1.0


def test_a_conversation_is_that_of_chat(client: openai.OpenAI) -> None:
    items: list[Any] = [
        {"role": "developer", "content": "w7"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "w3 w4"}]},
        {"type": "message", "role": "assistant", "id": "msg_1", "content": [{"type": "output_text", "text": "w9"}]},
        {"role": "user", "content": PROMPT},
    ]
    messages: list[Any] = [
        {"role": "system", "content": "w7"},
        {"role": "user", "content": "w3 w4"},
        {"role": "assistant", "content": "w9"},
        {"role": "user", "content": PROMPT},
    ]
    chat = client.chat.completions.create(model="tiny", messages=messages, max_tokens=12, temperature=0)
    answer = ask(client, input=items)
    assert answer.output_text == chat.choices[0].message.content
    assert answer.usage.input_tokens == chat.usage.prompt_tokens  # type: ignore[union-attr]


def test_a_conversation_with_tools_is_that_of_chat() -> None:
    body = {
        "instructions": "w7",
        "input": [
            {"role": "user", "content": "w3"},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "w5"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "w4"}]},
            {"type": "function_call", "call_id": "call_0", "name": "weather", "arguments": '{"city": "Köln"}'},
            {"type": "function_call", "call_id": "call_1", "name": "time", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_0", "output": "w8"},
            {"type": "function_call_output", "call_id": "call_1", "output": [{"type": "input_text", "text": "w9"}]},
            {"role": "user", "content": "w10"},
        ],
    }
    chat = {"messages": CHAT_WITH_TOOLS}
    assert outcome(responses_api.read, body) == outcome(read_chat, chat)
    tools: dict[str, Any] = {
        "tools": [{"type": "function", "name": "weather", "description": "w3", "parameters": WEATHER}],
        "tool_choice": {"type": "function", "name": "weather"},
    }
    assert outcome(responses_api.read, body | tools) == outcome(read_chat, chat | CHAT_TOOLS)
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]}
    more = {"tools": [*tools["tools"], {"type": "function", "name": "time"}], "tool_choice": allowed}
    required = CHAT_TOOLS | {"tool_choice": "required"}
    assert outcome(responses_api.read, body | more) == outcome(read_chat, chat | required)


def test_log_probabilities(client: openai.OpenAI) -> None:
    asked: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "max_output_tokens": 4}
    whole = ask(client, **asked)
    found = whole.output[0].content[0].logprobs
    assert len(found) == 4
    assert all(len(place.top_logprobs) == 2 for place in found)
    events = list(ask(client, stream=True, **asked))
    told = [place for event in events if event.type == "response.output_text.delta" for place in event.logprobs]
    assert [place.token for place in told] == [place.token for place in found]


def test_requests_that_can_t_be_followed(address: str) -> None:
    def refusal(status: int, **body: Any) -> dict[str, Any]:
        got = httpx.post(f"{address}/v1/responses", json={"input": PROMPT, "max_output_tokens": 2} | body)
        assert got.status_code == status, got.text
        error = got.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    assert refusal(404, model="other")["code"] == "model_not_found"
    assert refusal(400, previous_response_id="resp_1")["param"] == "previous_response_id"
    assert refusal(400, conversation="conv_1")["param"] == "conversation"
    assert refusal(400, background=True)["param"] == "background"
    assert refusal(400, prompt={"id": "p"})["param"] == "prompt"
    assert refusal(400, truncation="auto")["param"] == "truncation"
    assert refusal(400, input=[])["param"] == "input"
    assert refusal(400, input=None)["param"] == "input"
    assert refusal(400, input=["w3"])["param"] == "input"
    assert refusal(400, max_output_tokens=0)["param"] == "max_output_tokens"
    assert refusal(400, input=[{"type": "item_reference", "id": "x"}])["param"] == "input[0]"
    image = [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]
    assert refusal(400, input=image)["param"] == "input[0].content"
    assert refusal(400, input=PROMPT * 9000)["code"] == "context_length_exceeded"


def test_fields_without_a_meaning_are_named(client: openai.OpenAI) -> None:
    answer = ask(
        client,
        store=True,
        metadata={"a": "b"},
        tools=[{"type": "web_search"}],
        reasoning={"effort": "low", "summary": "auto"},
        text={"verbosity": "low", "format": {"type": "text"}},
        include=["reasoning.encrypted_content"],
        extra_body={"frobnicate": 1},
    )
    assert answer.sol["ignored"] == ["frobnicate", "text.verbosity", "tools[0]"]


def test_an_answer_repeats_what_was_asked(tmp_path: Path) -> None:
    weather: Any = {"type": "function", "name": "weather", "description": "w3", "parameters": WEATHER, "strict": True}
    form: Any = {"type": "json_schema", "name": "answer", "schema": {"type": "boolean"}}
    asked: dict[str, Any] = {
        "model": "tiny", "input": "w3", "max_output_tokens": 20,
        "tools": [weather, {"type": "web_search"}], "tool_choice": "none", "parallel_tool_calls": False,
        "reasoning": {"effort": "low", "summary": "auto"}, "text": {"format": form},
    }  # fmt: skip
    with in_thread(bytes_bundle(tmp_path / "tiny", TEMPLATE)) as (address, _):
        client = client_of(address)
        whole, events = client.responses.create(**asked), list(client.responses.create(stream=True, **asked))
        plain = client.responses.create(model="tiny", input="w3", max_output_tokens=2)
        hostile = '{"model":"tiny","input":"w3","max_output_tokens":2,"text":{"format":{"type":"text"}},"tools":%s}'
        far = httpx.post(f"{address}/v1/responses", content=hostile % '[{"type":"function","name":"f","x":1e999}]')
        half = httpx.post(f"{address}/v1/responses", content=hostile % '[{"type":"function","name":"f","x":"\\ud800"}]')
    for answer in (whole, events[0].response, events[-1].response):
        assert (answer.tool_choice, answer.parallel_tool_calls, answer.reasoning.effort) == ("none", False, "low")
        assert [tool.to_dict() for tool in answer.tools] == [weather]
        assert answer.text.format.to_dict() == form
    assert (plain.tool_choice, plain.parallel_tool_calls, plain.tools) == ("auto", True, [])
    assert (plain.reasoning.effort, plain.text.format.type) == (None, "text")  # type: ignore[union-attr]
    assert (far.status_code, far.json()["error"]["param"]) == (400, "tools")
    assert (half.status_code, half.json()["tools"][0]["x"]) == (200, "?")


def test_a_count_is_that_of_the_answer(client: openai.OpenAI) -> None:
    counted = client.responses.input_tokens.count(model="tiny", input=PROMPT, instructions="w7")
    assert counted.input_tokens == ask(client, instructions="w7").usage.input_tokens


def test_pings_while_a_stream_waits_and_an_error_that_ends_it(slow: tuple[str, Server]) -> None:
    address, server = slow
    first = ask(client_of(address), stream=True, max_output_tokens=8000, extra_body=NEVER_ENDS)
    events = iter(first)
    while next(events).type != "response.output_text.delta":
        pass
    body = {"model": "tiny", "input": PROMPT, "stream": True}
    with httpx.stream("POST", f"{address}/v1/responses", json=body) as waiting:
        lines = waiting.iter_lines()
        while (line := next(lines)) != ": waiting":
            assert line != "event: response.output_item.added"
        closing = threading.Thread(target=server.scheduler.close)
        closing.start()
        rest = [line for line in lines if line.startswith("data")]
    closing.join()
    failed, error = (json.loads(line.removeprefix("data: ")) for line in rest)
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["error"]["code"] == error["code"] == "closing"
    assert error["type"] == "error"
    with pytest.raises(openai.APIError, match="closing"):
        list(events)


def test_a_client_that_leaves_ends_its_answer(address: str, client: openai.OpenAI) -> None:
    with left(address), ask(client, stream=True, max_output_tokens=8000, extra_body=NEVER_ENDS) as stream:
        events = iter(stream)
        while next(events).type != "response.output_text.delta":
            pass
        assert running(address) == 1
