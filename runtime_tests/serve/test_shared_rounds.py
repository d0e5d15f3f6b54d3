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
    {"temperature": 1.2, "extra_body": {"lossless": True}},
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


@pytest.mark.parametrize("temperature", [0, 1.2])
def test_a_lossless_answer_is_the_dense_one_with_drafts(client: openai.OpenAI, temperature: float) -> None:
    asked: dict[str, Any] = {"temperature": temperature, "max_tokens": 60}
    dense = ask(client, 7, extra_body={"schedule": "dense"}, **asked)
    drafted = ask(client, 7, extra_body={"lossless": True}, **asked)
    assert drafted.choices[0].message.content == dense.choices[0].message.content
    assert drafted.sol["actions"] == dense.sol["actions"]
    assert dense.sol["drafted_tokens"] == 0
    assert drafted.sol["drafted_tokens"] > 0
    assert drafted.sol["asked"] == {"lossless": True}
    by_header = ask(client, 7, extra_body={}, extra_headers={"X-Sol-Lossless": "true"}, stream=True, **asked)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in by_header if chunk.choices)
    assert said == dense.choices[0].message.content


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        ({"lossless": True, "budget": 0.5}, {}, "lossless: gives the text of full quality; leave out budget"),
        ({"lossless": True, "schedule": "hull"}, {}, "lossless: gives the text of full quality; leave out schedule"),
        ({"lossless": "yes"}, {}, "lossless: got 'yes', expected true or false"),
        ({}, {"X-Sol-Lossless": "yes"}, "lossless: got 'yes', expected true or false"),
    ],
)
def test_lossless_beside_another_dial_is_refused(
    client: openai.OpenAI, body: dict[str, Any], headers: dict[str, str], message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        ask(client, 7, extra_body=body, extra_headers=headers)
