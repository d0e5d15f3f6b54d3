"""`/api`, asked by Ollama's own client, and `/props`."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from helpers.servers import CHAT_TOOLS, CHAT_WITH_TOOLS, in_thread, left, outcome, running
from sol_rt.generate.model import SolModel
from sol_rt.serve import ollama_api
from sol_rt.serve.app import Server
from sol_rt.serve.request import read_chat

MESSAGES: list[Any] = [{"role": "user", "content": "w3 w4 w5 w6"}]
GREEDY = {"temperature": 0, "num_predict": 12}
LONG: Any = {
    "messages": MESSAGES,
    "options": {"temperature": 0, "num_predict": 8000},
    "logit_bias": {"0": -100, "2": -100},
}
"""A request whose answer does not end by itself."""


@pytest.fixture(scope="module")
def client(address: str) -> ollama.Client:
    return ollama.Client(address)


def ask(client: ollama.Client, *, options: Any = GREEDY, **arguments: Any) -> Any:
    given = {"model": "tiny", "messages": MESSAGES, "options": options, **arguments}
    return client.chat(**given)


def test_an_answer_is_that_of_the_model(client: ollama.Client, model: SolModel) -> None:
    expected = model.generate(MESSAGES, max_new_tokens=12, do_sample=False, schedule="dense")
    answer = ask(client, options=GREEDY | {"schedule": "dense"})
    assert answer.message.role == "assistant"
    assert answer.message.content == expected.text
    assert answer.done_reason == "length"
    assert answer.prompt_eval_count == expected.prompt_tokens
    assert answer.eval_count == len(expected.tokens)
    assert answer.total_duration >= answer.eval_duration + answer.prompt_eval_duration > 0
    assert answer.load_duration == 0


def test_a_stream_is_the_same_answer_in_pieces(client: ollama.Client) -> None:
    whole = ask(client)
    *parts, last = ask(client, stream=True)
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert not any(part.done for part in parts)
    assert (last.done, last.done_reason, last.message.content) == (True, "length", "")
    assert (last.eval_count, last.prompt_eval_count) == (whole.eval_count, whole.prompt_eval_count)


def test_a_stream_is_what_comes_unless_it_is_declined(address: str) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "options": GREEDY}
    answer = httpx.post(f"{address}/api/chat", json=body)
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert len(lines) > 2
    assert lines[-1]["sol"]["actions"]
    assert httpx.post(f"{address}/api/chat", json=body | {"stream": False}).json()["done"] is True


def test_generate_is_chat_with_one_message(client: ollama.Client, model: SolModel) -> None:
    messages = [{"role": "system", "content": "w7"}, *MESSAGES]
    dense = GREEDY | {"schedule": "dense"}
    expected = model.generate(messages, max_new_tokens=12, do_sample=False, schedule="dense").text
    arguments: Any = {"model": "tiny", "prompt": "w3 w4 w5 w6", "system": "w7", "options": dense}
    assert client.generate(**arguments).response == expected
    *parts, last = client.generate(stream=True, **arguments)
    assert "".join(part.response for part in parts) == expected
    assert last.eval_count == 12
    raw = model.generate("w3 w4 w5 w6", max_new_tokens=12, do_sample=False, schedule="dense").text
    assert client.generate(model="tiny", prompt="w3 w4 w5 w6", raw=True, options=dense).response == raw


def test_a_request_without_a_prompt_loads(client: ollama.Client) -> None:
    assert client.generate(model="tiny").done_reason == "load"
    assert client.generate(model="tiny", keep_alive=0).done_reason == "unload"
    assert client.chat(model="tiny:latest", keep_alive=-1).done_reason == "load"
    with pytest.raises(ollama.ResponseError):
        client.generate(model="other")


def test_reasoning_and_calls_of_tools(thinking: str) -> None:
    client = ollama.Client(thinking)
    whole = ask(client)
    parts = list(ask(client, stream=True))
    assert whole.message.thinking == "".join(part.message.thinking or "" for part in parts) == "let me see"
    assert whole.message.content == "".join(part.message.content for part in parts) == "I ask."
    calls = [call for part in parts for call in part.message.tool_calls or ()]
    for found in (whole.message.tool_calls, calls):
        assert [(call.function.name, call.function.arguments) for call in found] == [
            ("weather", {"city": "Ulm"}),
            ("time", {"zone": "CET"}),
        ]
    assert not parts[-1].message.tool_calls
    generated = client.generate(model="tiny", prompt="w3", options=GREEDY)
    assert (generated.thinking, generated.response) == ("let me see", "I ask.")


def sol(address: str, path: str = "chat", **body: Any) -> dict[str, Any]:
    prompt = {"messages": MESSAGES} if path == "chat" else {"prompt": "w3 w4"}
    given: dict[str, Any] = {"stream": False, "options": GREEDY, **prompt}
    answer = httpx.post(f"{address}/api/{path}", json=given | body)
    assert answer.status_code == 200, answer.text
    return answer.json()["sol"]


@pytest.mark.parametrize("path", ["chat", "generate"])
def test_the_dial_is_in_the_request(address: str, path: str) -> None:
    for how in (
        {"budget": 0.4},
        {"options": GREEDY | {"budget": 0.4}},
        {"budget": 0.4, "options": GREEDY | {"budget": 0.9}},
        {"model": "tiny@0.4"},
        {"model": "tiny@0.4:latest"},
    ):
        assert sol(address, path, **how)["requested_budget"] == 0.4
    assert sol(address, path, options=GREEDY | {"schedule": "dense"})["schedule"] == "dense"
    assert sol(address, path, options=GREEDY | {"max_loss": 0.5})["expected_loss"] <= 0.5
    for name in ("tiny", "tiny:latest", "tiny:background"):
        assert sol(address, path, model=name)["actions"]
    headers = {"X-Sol-Budget": "0.4"}
    body = {"messages": MESSAGES, "prompt": "w3", "stream": False, "options": GREEDY}
    answer = httpx.post(f"{address}/api/{path}", json=body, headers=headers)
    assert answer.json()["sol"]["requested_budget"] == 0.4


def test_a_name_that_has_the_tag_itself(bundle: Path) -> None:
    with in_thread(bundle, name="tiny:latest") as (address, _):
        assert httpx.get(f"{address}/api/tags").json()["models"][0]["name"] == "tiny:latest"
        assert sol(address, model="tiny:latest")["actions"]


def test_options_and_fields_without_a_meaning_are_named(address: str) -> None:
    options = GREEDY | {"num_ctx": 4096, "mirostat": 1, "repeat_penalty": 1.1, "top_k": 5, "stop": ["w99"], "n": 3}
    told = sol(address, options=options, keep_alive=-1, think=False, truncate=True)
    assert told["ignored"] == ["options.mirostat", "options.n", "options.num_ctx", "think", "truncate"]


def test_stop_and_no_bound(client: ollama.Client) -> None:
    words = ask(client).message.content.split()
    stopped = ask(client, options={"temperature": 0, "num_predict": -1, "stop": [words[4]]})
    assert stopped.done_reason == "stop"
    assert stopped.message.content.split() == words[: words.index(words[4])]


def test_a_conversation_with_tools_is_that_of_chat() -> None:
    calls = [
        {"function": {"name": "weather", "arguments": {"city": "Köln"}}},
        {"function": {"name": "time", "arguments": {}}},
    ]
    messages = [
        {"role": "system", "content": "w7"},
        {"role": "user", "content": "w3"},
        {"role": "assistant", "content": "w4", "thinking": "w5", "tool_calls": calls},
        {"role": "tool", "tool_name": "weather", "content": "w8"},
        {"role": "tool", "content": "w9"},
        {"role": "user", "content": "w10"},
    ]
    ids = '"call0000'  # of 9 letters and digits, as Mistral's templates want them
    known = json.loads(json.dumps(CHAT_WITH_TOOLS).replace('"call_', ids))
    body, chat = {"messages": messages, "stream": False}, {"messages": known}
    assert outcome(ollama_api.read_chat, body) == outcome(read_chat, chat)
    tools = {"tools": CHAT_TOOLS["tools"]}
    assert outcome(ollama_api.read_chat, body | tools) == outcome(read_chat, chat | tools)


def test_log_probabilities(client: ollama.Client) -> None:
    whole = ask(client, logprobs=True, top_logprobs=2)
    assert len(whole.logprobs) == 12
    assert all(len(place.top_logprobs) == 2 for place in whole.logprobs)
    told = [place.token for part in ask(client, logprobs=True, stream=True) for place in part.logprobs or ()]
    assert told == [place.token for place in whole.logprobs]


def test_requests_that_can_t_be_followed(address: str, client: ollama.Client) -> None:
    def refusal(status: int, path: str = "chat", **body: Any) -> str:
        got = httpx.post(f"{address}/api/{path}", json={"messages": MESSAGES, "prompt": "w3", "options": GREEDY} | body)
        assert got.status_code == status, got.text
        assert set(got.json()) == {"error"}
        return got.json()["error"]

    for path in ("chat", "generate"):
        assert "this server has tiny" in refusal(404, path, model="other")
        assert refusal(400, path, options={"num_predict": 0}).startswith("options.num_predict:")
        assert refusal(400, path, options={"temperature": "warm"}).startswith("temperature:")
        assert refusal(400, path, options=[]).startswith("options:")
        assert "1.5" in refusal(400, path, options={"budget": 1.5})
    assert refusal(400, messages=[{"role": "user", "content": "w3", "images": ["x"]}]).startswith("messages[0].images:")
    assert refusal(400, messages="w3").startswith("messages:")
    assert refusal(400, messages=False).startswith("messages:")
    assert refusal(400, stream=[]).startswith("stream:")
    assert refusal(400, messages=[{"role": "user", "content": "w3 " * 9000}]).startswith("prompt:")
    assert refusal(400, "generate", images=["x"]).startswith("images:")
    assert refusal(400, "generate", raw=True, options={"num_predict": 0}).startswith("options.num_predict:")
    assert refusal(400, "generate", suffix="w3").startswith("suffix:")
    assert refusal(400, "generate", template="x").startswith("template:")
    assert refusal(400, "generate", context=[1]).startswith("context:")
    assert refusal(404, "pull", model="tiny")
    assert set(httpx.get(f"{address}/api/chat").json()) == {"error"}
    with pytest.raises(ollama.ResponseError, match="this server has tiny") as missing:
        ask(client, model="other")
    assert missing.value.status_code == 404


def test_what_is_asked_about_the_model(address: str, client: ollama.Client, bundle: Path) -> None:
    (listed,) = client.list().models
    assert listed.model == "tiny:latest"
    assert listed.size == sum(file.stat().st_size for file in bundle.iterdir() if file.name != "sol_config.json")
    assert listed.digest is not None
    assert len(listed.digest) == 64
    assert listed.details is not None
    assert (listed.details.format, listed.details.family, listed.details.quantization_level) == (
        "sol_rt", "llama", "Q8",
    )  # fmt: skip
    assert listed.modified_at is not None
    (loaded,) = client.ps().models
    assert (loaded.name, loaded.size_vram, loaded.context_length) == ("tiny:latest", 0, 8192)
    assert loaded.expires_at is not None
    assert loaded.expires_at > listed.modified_at
    for name in ("tiny", "tiny:latest"):
        shown = client.show(name)
        assert shown.capabilities is not None
        assert "completion" in shown.capabilities
        assert shown.modelinfo is not None
        assert shown.modelinfo["general.architecture"] == "llama"
        assert shown.modelinfo["llama.context_length"] == 8192
        assert shown.template is not None
        assert "add_generation_prompt" in shown.template
    assert httpx.post(f"{address}/api/show", json={"name": "tiny"}).status_code == 200
    with pytest.raises(ollama.ResponseError):
        client.show("other")
    version = httpx.get(f"{address}/api/version").json()["version"]
    assert tuple(int(part) for part in version.split(".")) >= (0, 6, 4)
    tags: Any = httpx.get(f"{address}/api/tags").json()["models"][0]
    assert tags.keys() >= {"name", "modified_at", "size", "digest", "details"}
    assert tags["details"].keys() >= {"format", "family", "parameter_size", "quantization_level"}


def test_props(address: str) -> None:
    props = httpx.get(f"{address}/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 8192
    assert props["total_slots"] == 2
    assert "add_generation_prompt" in props["chat_template"]


def test_pings_while_a_stream_waits_and_an_error_that_ends_it(slow: tuple[str, Server]) -> None:
    address, server = slow
    with httpx.stream("POST", f"{address}/api/chat", json=LONG) as first:
        lines = first.iter_lines()
        next(lines)
        waiting = ask(ollama.Client(address), stream=True)
        ping = next(waiting)
        assert (ping.message.content, ping.done) == ("", False)
        closing = threading.Thread(target=server.scheduler.close)
        closing.start()
        with pytest.raises(ollama.ResponseError, match="closing"):
            list(waiting)
        *_, last = lines
    closing.join()
    assert json.loads(last) == {"error": "the server is closing; ask again when it is back"}


def test_a_client_that_leaves_ends_its_answer(address: str) -> None:
    with left(address), httpx.stream("POST", f"{address}/api/chat", json=LONG) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert running(address) == 1
