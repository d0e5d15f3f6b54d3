"""Clients that ask at once: their answers share rounds, and each is the answer that its client gets alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from test_serve import client_of

from helpers.json_schemas import SCHEMAS
from helpers.places import GOLDEN
from helpers.servers import left, served

NESTED = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMAS["nested"]}}
WAYS: list[dict[str, Any]] = [
    {"temperature": 0, "extra_body": {"schedule": "dense"}},
    {"temperature": 0, "extra_body": {"budget": 0.4}},
    {"temperature": 1.2, "extra_body": {"budget": 0.8}},
    {"temperature": 1.2, "extra_body": {"budget": 0.6}, "response_format": NESTED},
]
CLIENTS = 12


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(GOLDEN / "tiny", "--sessions", "5") as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return client_of(address)


def ask(client: openai.OpenAI, number: int, **more: Any) -> Any:
    prompt = f"{number}: " + "tell me of the sea and of " * (2 + number % 3) + "the wind."
    return client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": prompt}],
        seed=number,
        **{"max_tokens": 30 + 3 * number, **WAYS[number % len(WAYS)], **more},
    )


def answer(client: openai.OpenAI, number: int) -> tuple[str, str, int, Any]:
    said = ask(client, number)
    choice = said.choices[0]
    return choice.message.content, choice.finish_reason, said.usage.completion_tokens, said.sol["actions"]


def test_clients_at_once_get_what_each_gets_alone(address: str, client: openai.OpenAI) -> None:
    """Beside one that leaves in the middle of its answer."""
    alone = [answer(client, number) for number in range(CLIENTS)]
    assert len({text for text, *_ in alone}) == CLIENTS
    with left(address), ask(client, 40, max_tokens=2000, stream=True) as stream:
        next(iter(stream))
        with ThreadPoolExecutor(CLIENTS) as pool:
            together = pool.map(lambda number: answer(client, number), range(CLIENTS))
            first = next(together)
            stream.close()
            assert [first, *together] == alone
