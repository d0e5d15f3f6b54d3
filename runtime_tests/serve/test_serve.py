"""`sol-rt serve` as a process, asked by OpenAI's own client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from helpers.servers import in_thread, left, running, served
from helpers.tiny_bundle import seal, write_bundle
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.bundle.config_reader import read_config
from sol_rt.generate.model import SolModel
from sol_rt.serve.app import Server

MESSAGES: list[Any] = [{"role": "user", "content": "w3 w4 w5 w6"}]
LONG = " ".join(f"w{n % 80 + 3}" for n in range(400))


def client_of(address: str, **settings: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, **settings)


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return client_of(address)


def ask(client: openai.OpenAI, **arguments: Any) -> Any:
    given = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "temperature": 0, **arguments}
    return client.chat.completions.create(**given)


def test_an_answer_is_that_of_the_model(client: openai.OpenAI, model: SolModel) -> None:
    expected = model.generate(MESSAGES, max_new_tokens=12, do_sample=False, schedule="fixed:k030-s100-q4")
    answer = ask(client, extra_body={"schedule": "fixed:k030-s100-q4"})
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage.prompt_tokens == expected.prompt_tokens
    assert answer.usage.completion_tokens == len(expected.tokens)
    assert answer.sol["actions"] == expected.actions


def test_a_stream_is_the_same_answer_in_pieces(client: openai.OpenAI) -> None:
    whole = ask(client)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_client_s_own_helper_reads_a_stream(client: openai.OpenAI) -> None:
    whole = ask(client).choices[0].message.content
    stop = whole.split()[5]
    arguments: Any = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "stop": stop}
    with client.chat.completions.stream(**arguments) as stream:
        for _ in stream:
            pass
        said = stream.get_final_completion().choices[0].message.content
    assert said == whole[: whole.index(stop)]


@pytest.mark.parametrize(
    "how",
    [
        {"extra_body": {"budget": 0.4}},
        {"extra_headers": {"X-Sol-Budget": "0.4"}},
        {"model": "tiny@0.4"},
        {"extra_body": {"budget": 0.4}, "extra_headers": {"X-Sol-Budget": "0.9"}, "model": "tiny@1"},
    ],
)
def test_the_dial_is_in_the_request(client: openai.OpenAI, how: dict[str, Any]) -> None:
    assert ask(client, **how).sol["requested_budget"] == 0.4


def test_a_dial_that_can_t_be_held_names_the_reason(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="budget"):
        ask(client, extra_body={"budget": 1.5})
    with pytest.raises(openai.BadRequestError, match="budget"):
        ask(client, extra_body={"tokens_per_second": 1e9, "budget": 0.5})


def test_many_clients_get_their_own_answers(client: openai.OpenAI) -> None:
    prompts = [
        [{"role": "user", "content": " ".join(f"w{3 + (n * k) % 80}" for k in range(1, 40))}] for n in range(1, 9)
    ]
    alone = [ask(client, messages=messages).choices[0].message.content for messages in prompts]
    assert len(set(alone)) > 4
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda messages: ask(client, messages=messages).choices[0].message.content, prompts))
    assert together == alone


def test_a_prompt_that_begins_alike_is_not_read_again(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": LONG}]
    ask(client, messages=messages)
    again = ask(client, messages=messages)
    assert again.usage.prompt_tokens_details.cached_tokens >= again.usage.prompt_tokens - 1


def test_plain_completions_with_log_probabilities(client: openai.OpenAI, model: SolModel) -> None:
    expected = model.generate("w3 w4", max_new_tokens=5, do_sample=False, top_logprobs=2, schedule="dense")
    answer = client.completions.create(
        model="tiny", prompt="w3 w4", max_tokens=5, temperature=0, logprobs=2, extra_body={"schedule": "dense"}
    )
    assert answer.choices[0].text == expected.text
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.token_logprobs == expected.logprobs
    chat = ask(client, logprobs=True, top_logprobs=3)
    assert all(len(place.top_logprobs) == 3 for place in chat.choices[0].logprobs.content)


def test_the_dial_moves_while_an_answer_runs(address: str, client: openai.OpenAI, model: SolModel) -> None:
    never = {str(token): -100 for token in model.bundle.config.model.eos_token_ids}
    told: dict[str, Any] = {"stream_options": {"include_usage": True}, "extra_body": {"budget": 1.0}}
    stream = ask(client, max_tokens=2000, stream=True, logit_bias=never, **told)
    chunks = iter(stream)
    first = next(chunks)
    moved = httpx.post(f"{address}/v1/budget/{first.id}", json={"budget": 0.3})
    assert moved.json() == {"id": first.id, "budget": 0.3}
    *_, last = chunks
    assert last.sol["achieved_budget"] < 1.0
    assert httpx.post(f"{address}/v1/budget/{first.id}", json={"budget": 0.3}).status_code == 404


def test_reasoning_and_calls_of_tools(thinking: str) -> None:
    client = client_of(thinking)
    whole: Any = ask(client)
    deltas = [chunk.choices[0].delta for chunk in ask(client, stream=True)]
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    ids = [(call.index, call.id) for call in calls]
    assert ids == [(0, "call_a"), (0, None), (0, None), (1, "call_b"), (1, None)]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "let me see"
    with client.chat.completions.stream(model="tiny", messages=MESSAGES, logit_bias={"2": 100}) as stream:
        ended = stream.until_done().get_final_completion()
    assert ended.choices[0].finish_reason == "tool_calls"
    for completion in (whole, ended):
        message: Any = completion.choices[0].message
        assert message.content == "I ask."
        assert [(call.id, call.type, call.function.name, call.function.arguments) for call in message.tool_calls] == [
            ("call_a", "function", "weather", '{"city": "Ulm"}'),
            ("call_b", "function", "time", '{"zone": "CET"}'),
        ]
    assert whole.choices[0].message.reasoning_content == "let me see"
    assert whole.usage.completion_tokens_details.reasoning_tokens == 2


def test_comments_while_a_stream_waits(slow: tuple[str, Server]) -> None:
    address, _ = slow
    never = {"0": -100, "2": -100}
    with ask(client_of(address), max_tokens=8000, stream=True, logit_bias=never) as first:
        chunks = iter(first)
        next(chunks)
        body = {"messages": MESSAGES, "max_tokens": 3, "stream": True}
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body) as waiting:
            assert ": waiting" in waiting.iter_lines()


def test_a_client_that_leaves_ends_its_answer(address: str, client: openai.OpenAI) -> None:
    never = {"0": -100, "2": -100}
    with left(address), ask(client, max_tokens=8000, stream=True, logit_bias=never) as stream:
        chunks = iter(stream)
        next(chunks)
        assert running(address) == 1
    body = {"messages": MESSAGES, "max_tokens": 8000, "temperature": 0, "logit_bias": never}
    with left(address), pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{address}/v1/chat/completions", json=body, timeout=0.3)


def test_requests_that_can_t_be_followed(address: str) -> None:
    def refusal(status: int, path: str = "chat/completions", **body: Any) -> dict[str, Any]:
        got = httpx.post(f"{address}/v1/{path}", json={"messages": MESSAGES, "max_tokens": 2} | body)
        assert got.status_code == status, got.text
        error = got.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    assert refusal(404, model="other")["code"] == "model_not_found"
    assert refusal(400, messages=[])["param"] == "messages"
    assert refusal(400, temperature="warm")["param"] == "temperature"
    assert refusal(400, tools=[{"type": "function"}])["param"] == "tools[0]"
    assert refusal(400, response_format={"type": "yaml"})["param"] == "response_format"
    assert refusal(400, n=2)["param"] == "n"
    assert (
        refusal(400, messages=[{"role": "user", "content": [{"type": "image_url"}]}])["param"] == "messages[0].content"
    )
    assert refusal(400, messages=[{"role": "user", "content": LONG * 30}])["code"] == "context_length_exceeded"
    assert refusal(400, "completions", prompt=["w3", "w4"])["param"] == "prompt"
    assert refusal(400, stop=[1])["type"] == "invalid_request_error"
    assert refusal(404, "embeddings")["code"] == "not_found"
    for content in (b"{", b"[1]", b"\xff", b'{"temperature": NaN}', b"[" * 100_000):
        assert httpx.post(f"{address}/v1/chat/completions", content=content).status_code == 400
    assert httpx.post(f"{address}/v1/chat/completions", content=b" " * (9 << 20)).status_code == 413
    assert httpx.get(f"{address}/v1/chat/completions").status_code == 405


def test_fields_without_a_meaning_are_named(client: openai.OpenAI) -> None:
    assert ask(client, user="me", extra_body={"frobnicate": 1}).sol["ignored"] == ["frobnicate"]


def test_models_and_health(address: str, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}


def test_pages_of_other_origins_and_names_are_refused(address: str) -> None:
    assert httpx.get(f"{address}/v1/models", headers={"Origin": "http://evil.example"}).status_code == 403
    assert httpx.get(f"{address}/v1/models", headers={"Origin": address}).status_code == 200
    assert httpx.get(f"{address}/v1/models", headers={"Host": "evil.example"}).status_code == 421


def test_a_key_and_a_full_queue(bundle: Path) -> None:
    with served(bundle, "--sessions", "1", "--queue", "0", SOL_RT_API_KEY="secret") as address:
        assert httpx.get(f"{address}/health").status_code == 200
        with pytest.raises(openai.AuthenticationError):
            client_of(address).models.list()
        path = {"Host": "x/health?"}  # of which some versions of starlette make the URL's path
        assert httpx.get(f"{address}/v1/models", headers=path).status_code == 401
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0)
        with ask(client, max_tokens=8000, stream=True) as stream:
            chunks = iter(stream)
            next(chunks)
            with pytest.raises(openai.RateLimitError) as refused:
                ask(client)
            assert refused.value.response.headers["retry-after"] == "1"


def test_elsewhere_than_here_a_key_is_needed(bundle: Path) -> None:
    command = [sys.executable, "-m", "sol_rt", "serve", str(bundle), "--host", "0.0.0.0"]
    environment = {name: value for name, value in os.environ.items() if name != "SOL_RT_API_KEY"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 2
    assert "SOL_RT_API_KEY" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_the_chat_template_refuses(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "tiny")
    config = read_config(bundle / CONFIG_NAME)
    template = "{% if messages[-1].role != 'user' %}{{ raise_exception('end with the user') }}{% endif %}assistant "
    (bundle / "chat_template.jinja").write_text(template, encoding="utf-8")
    seal(bundle, config)
    with in_thread(bundle) as (address, _):
        with pytest.raises(openai.BadRequestError, match="chat template: end with the user") as refused:
            ask(client_of(address), messages=[*MESSAGES, {"role": "assistant", "content": "w3"}])
        assert refused.value.type == "invalid_request_error"
        assert ask(client_of(address)).usage.completion_tokens


def test_a_stream_s_lines(address: str) -> None:
    """Every line but comments is JSON or the end."""
    body = {"messages": MESSAGES, "max_tokens": 3, "stream": True}
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: "))["object"] == "chat.completion.chunk" for line in lines[:-1])


def test_a_server_that_ends_tells_its_clients(bundle: Path) -> None:
    failed: list[Exception] = []

    def wait(client: openai.OpenAI) -> None:
        try:
            ask(client)
        except openai.APIError as error:
            failed.append(error)

    with served(bundle, "--sessions", "1") as address:
        client = client_of(address)
        stream = ask(client, max_tokens=8000, stream=True, logit_bias={"2": -100, "0": -100})
        chunks = iter(stream)
        next(chunks)
        waiting = threading.Thread(target=wait, args=(client,))
        waiting.start()
        while "sol_rt_waiting 1.0" not in httpx.get(f"{address}/metrics").text:
            time.sleep(0.02)
    with pytest.raises(openai.APIError, match="closing"):
        list(chunks)
    waiting.join()
    assert isinstance(failed[0], openai.InternalServerError)
    assert failed[0].status_code == 503


def test_the_key_comes_from_a_file(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("secret\n")
    with served(bundle, "--api-key-file", str(file), SOL_RT_API_KEY="another") as address:
        statuses = [
            httpx.get(f"{address}/v1/models", headers={"x-api-key": key}).status_code for key in ("another", "secret")
        ]
    assert statuses == [401, 200]


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff", b"k" * 5000])
def test_a_file_without_a_key_is_named(bundle: Path, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    command = [sys.executable, "-m", "sol_rt", "serve", str(bundle), "--api-key-file", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"--api-key-file {file}: " in done.stderr
    assert "Traceback" not in done.stderr
