"""Frameworks that put their own words over the protocols. They are large: without them these tests are skipped."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

MESSAGES: list[Any] = [{"role": "user", "content": "w3 w4 w5 w6"}]


def test_langchain(address: str) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    settings: dict[str, Any] = {"base_url": f"{address}/v1", "api_key": "none", "model": "tiny", "max_retries": 0}
    chat = langchain.ChatOpenAI(temperature=0, max_tokens=12, extra_body={"budget": 0.5}, **settings)
    whole = chat.invoke("w3 w4 w5 w6")
    assert whole.usage_metadata["output_tokens"] == 12
    parts = list(chat.stream("w3 w4 w5 w6", stream_usage=True))
    assert "".join(part.text for part in parts) == whole.text
    assert sum(part.usage_metadata["output_tokens"] for part in parts if part.usage_metadata) == 12
    responses = langchain.ChatOpenAI(temperature=0, max_tokens=12, use_responses_api=True, **settings)
    assert "".join(part.text for part in responses.stream("w3 w4 w5 w6")) == responses.invoke("w3 w4 w5 w6").text
    plain = langchain.OpenAI(temperature=0, max_tokens=12, **settings)
    assert "".join(plain.stream("w3 w4")) == plain.invoke("w3 w4") != ""


@pytest.mark.parametrize("prefix", ["openai", "anthropic", "ollama", "ollama_chat"])
def test_litellm(address: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it looks prices up as it is imported
    litellm = pytest.importorskip("litellm", reason="litellm is not installed")
    where = f"{address}/v1" if prefix == "openai" else address
    asked: dict[str, Any] = {
        "model": f"{prefix}/tiny",
        "api_base": where,
        "api_key": "none",
        "messages": MESSAGES,
        "temperature": 0,
        "max_tokens": 12,
        "num_retries": 0,
    }
    whole = litellm.completion(**asked)
    assert whole.usage.completion_tokens == 12
    if prefix != "ollama":  # there it says "stop" whatever the server says
        assert whole.choices[0].finish_reason == "length"
    parts = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(stream=True, **asked)]
    assert "".join(parts).strip() == whole.choices[0].message.content.strip()
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**asked | {"model": f"{prefix}/other"})


ZED = {
    "model": "tiny@0.6",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "w3 w4"}]}],
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_completion_tokens": 5,
    "stop": [],
    "temperature": 0.0,
    "tools": [],
    "parallel_tool_calls": True,
    "prompt_cache_key": "thread",
    "reasoning_effort": "high",
}
OPEN_WEBUI = {
    "model": "tiny:background",
    "messages": MESSAGES,
    "stream": False,
    "max_completion_tokens": 5,
    "metadata": {"task": "title_generation", "chat_id": "c"},
}


@pytest.mark.parametrize("body", [ZED, OPEN_WEBUI], ids=["Zed", "Open WebUI"])
def test_requests_of_programs_that_are_no_packages(address: str, body: dict[str, Any]) -> None:
    assert [model["id"] for model in httpx.get(f"{address}/v1/models").json()["data"]] == ["tiny"]
    answer = httpx.post(f"{address}/v1/chat/completions", json=body).raise_for_status()
    if body["stream"]:
        *lines, end = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
        assert end == "[DONE]"
        last = json.loads(lines[-1])
    else:
        last = answer.json()
    assert last["usage"]["completion_tokens"] == 5
    assert last["sol"]["ignored"] == []
    assert last["sol"]["asked"] == ({"budget": 0.6} if body is ZED else {})
