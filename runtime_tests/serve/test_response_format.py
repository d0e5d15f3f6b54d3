"""Answers in JSON, asked for by OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jsonschema
import openai
import pydantic
import pytest
from test_serve import client_of, served

from helpers.json_schemas import SCHEMAS
from helpers.places import GOLDEN

MESSAGES: list[Any] = [{"role": "user", "content": "Tell me of the sea."}]


class Animal(pydantic.BaseModel):
    name: Literal["fish", "bird"]
    legs: int = pydantic.Field(ge=0, le=4)
    young: list[bool] = pydantic.Field(max_length=2)


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    """Of a server whose model has a token for every byte."""
    with served(GOLDEN / "tiny", "--sessions", "2") as address:
        yield client_of(address)


def ask(client: openai.OpenAI, shape: Any, **arguments: Any) -> Any:
    given = {"model": client.models.list().data[0].id, "messages": MESSAGES, "max_tokens": 150, "temperature": 2.0}
    return client.chat.completions.create(**{**given, **arguments}, response_format=shape)


def shape_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def test_the_client_s_own_helper_reads_an_object(client: openai.OpenAI) -> None:
    model = client.models.list().data[0].id
    read = client.chat.completions.parse(
        model=model, messages=MESSAGES, response_format=Animal, max_tokens=150, temperature=2.0
    )
    assert isinstance(read.choices[0].message.parsed, Animal)
    assert read.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("name", ["nested", "call of a tool", "oneOf by name", "enum"])
def test_answers_are_valid_whole_and_in_pieces_and_two_at_a_time(client: openai.OpenAI, name: str) -> None:
    def answer(seed: int) -> str:
        if seed % 2:
            choice = ask(client, shape_of(SCHEMAS[name]), seed=seed).choices[0]
            return str(choice.message.content) if choice.finish_reason == "stop" else ""
        chunks = [c.choices[0] for c in ask(client, shape_of(SCHEMAS[name]), seed=seed, stream=True)]
        whole = "".join(chunk.delta.content or "" for chunk in chunks)
        return whole if chunks[-1].finish_reason == "stop" else ""

    with ThreadPoolExecutor(2) as pool:
        texts = [text for text in pool.map(answer, range(6)) if text]
    assert texts
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMAS[name])


def test_an_object_without_a_schema(client: openai.OpenAI) -> None:
    answers = [ask(client, {"type": "json_object"}, seed=seed, temperature=1.0).choices[0] for seed in range(6)]
    complete = [each.message.content for each in answers if each.finish_reason == "stop"]
    assert complete
    assert all(isinstance(json.loads(text), dict) for text in complete)


def test_a_text_stays_a_text(client: openai.OpenAI) -> None:
    free = ask(client, {"type": "text"}, temperature=0).choices[0].message.content
    assert free == ask(client, openai.omit, temperature=0).choices[0].message.content
    with pytest.raises(ValueError, match=r"Expecting|Extra data"):
        json.loads(free)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"type": "yaml"}, "expected type text, type json_object, or type json_schema"),
        ("json_schema", "expected type text"),
        ({"type": "json_schema"}, "expected type text"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": [1]}}, "expected type text"),
        (shape_of({"type": "strin"}), "Invalid type: strin"),
        (shape_of({"not": {"type": "null"}}), "Unimplemented keys"),
    ],
)
def test_shapes_that_can_t_be_held_are_refused_with_the_reason(client: openai.OpenAI, shape: Any, reason: str) -> None:
    with pytest.raises(openai.BadRequestError, match=reason) as refused:
        ask(client, shape)
    assert refused.value.param == "response_format"


def test_the_reason_names_the_protocol_s_own_field(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "name": "answer", "schema": {"type": "strin"}}
    with pytest.raises(openai.BadRequestError, match="Invalid type: strin") as refused:
        client.responses.create(model="tiny", input="Tell me of the sea.", text={"format": form})
    assert refused.value.param == "text.format"
