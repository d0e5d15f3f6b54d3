"""Frameworks that put their own words over the protocols. They are large: without them these tests are skipped."""

from __future__ import annotations

from typing import Any

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
