"""Arguments of the Python API that are no prompt, no number or no token."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.tiny_bundle import write_bundle
from sol_rt import SolModel
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.errors import SolError, UsageError, brief
from sol_rt.generate.trace import read_trace

NO_TOKENS: list[Any] = [
    [-1], ["a"], 123, b"ab", bytearray(b"a"), [1.5], [True], [10**9], [10**60], np.array([1.5]), np.array([[1]]),
    [None], {"a": 1}, {1}, [[1]], [np.float32(1)], "", [], object(), memoryview(b"ab"),
]  # fmt: skip
NO_PROMPTS: list[Any] = [
    *NO_TOKENS,
    "\ud800",
    [{"role": "user", "content": "\ud800"}],
    [{"role": "user", "content": "x"}, 3],
    [{"role": "user", "content": b"x"}],
    [{"role": "user", "content": {1, 2}}],
    [{"role": "user", "content": "x", ("a",): 1}],
    (number for number in [1]),
]
NUMBERS = ("budget", "kv_density", "channel_density", "bits", "tokens_per_second", "max_loss", "temperature", "top_p")
NO_NUMBERS: list[Any] = ["x", b"x", [1], {"a": 1}, object(), float("nan"), 10**5000, -1]
TYPES: dict[str, Any] = {
    "schedule": [3, b"x", [1], 1.5], "trace": [3, b"x", [1]], "replay": ["x", 3, {}], "seed": ["x", 1.5, [1]],
    "top_k": ["x", 1.5, -1, 10**60], "max_new_tokens": [0, 1.5, "x", True], "stop_strings": [3, [3], [""]],
    "eos_token_id": ["x", [1.5], -1], "logit_bias": [3, {"x": 1}, {1: "x"}, {1: 10**5000}], "nonsense": [1],
}  # fmt: skip
SHORT = {"max_new_tokens": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SolModel:
    return SolModel.from_pretrained(write_bundle(tmp_path_factory.mktemp("api") / "tiny", policy=True), provider="cpu")


def is_one_short_line(error: BaseException) -> bool:
    return "\n" not in str(error) and len(str(error)) < 300


def named(value: Any) -> str:
    """A test's name, the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", brief(value))


@pytest.mark.parametrize("prompt", NO_PROMPTS, ids=named)
def test_wrong_prompts_are_refused(model: SolModel, prompt: Any) -> None:
    with pytest.raises(UsageError, match=r"prompt|token|messages") as error:
        model.generate(prompt, **SHORT)
    assert is_one_short_line(error.value)


@pytest.mark.parametrize("tokens", [*NO_TOKENS, "w1 w2 w3"], ids=named)
def test_wrong_lists_of_tokens_are_refused(model: SolModel, tokens: Any) -> None:
    with pytest.raises(UsageError, match="score: got") as error:
        model.score(tokens)
    assert is_one_short_line(error.value)


@pytest.mark.parametrize(
    "tokens", [[1.7], ["1"], [10**60], [1.5, 2.0], ["1", "2"], [10**60, 1], [-1, 1], [[1]]], ids=named
)
def test_an_engine_refuses_wrong_tokens(model: SolModel, tokens: Any) -> None:
    model.engine.reset()
    with pytest.raises(UsageError, match="token"):
        model.engine.forward(tokens, model.bundle.config.dense)
    assert model.engine.length == 0


def test_a_negative_seed(model: SolModel) -> None:
    with pytest.raises(UsageError, match="seed"):
        model.score([1, 2, 3], schedule="random", seed=-1)


@pytest.mark.parametrize("context", ["a", 0, -1, 1.5, None, True, 3])
def test_wrong_contexts_are_refused(model: SolModel, context: Any) -> None:
    with pytest.raises(UsageError, match="a context of"):
        model.score([1, 2, 3], context=context)


def test_tokens_may_be_numpy_integers(model: SolModel) -> None:
    assert model.generate(np.array([1, 2, 3]), **SHORT).tokens == model.generate([1, 2, 3], **SHORT).tokens
    assert model.generate((np.int32(1), 2, 3), **SHORT).tokens == model.generate([1, 2, 3], **SHORT).tokens
    got = model.generate("w1", budget=np.float32(0.9), temperature=np.float32(0.5), top_k=np.int64(3), max_new_tokens=2)
    assert got.tokens


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", NO_NUMBERS, ids=named)
def test_wrong_numbers_are_refused(model: SolModel, name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name.replace("_", "[-_]")) as error:
        model.generate("w1 w2", **SHORT, **{name: value})
    assert is_one_short_line(error.value)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in TYPES.items() for value in values])
def test_arguments_of_another_type(model: SolModel, name: str, value: Any) -> None:
    with pytest.raises(UsageError) as error:
        model.generate("w1 w2", **{**SHORT, name: value})
    assert is_one_short_line(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"provider": 3},
        {"threads": "a"},
        {"threads": 0},
        {"device": "x"},
        {"device": 10**400},
        {"provider": np.array([1, 2])},
        {"native_ops": np.array([1, 2])},
        {"measure_costs": "no"},
        {"verify": None},
        {"max_context": "a"},
        {"max_context": 0},
        {"max_context": True},
    ],
    ids=str,
)
def test_settings_of_a_model(model: SolModel, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as error:
        SolModel.from_pretrained(model.bundle.path, **{"provider": "cpu", **settings})
    assert is_one_short_line(error.value)


class Unnamed:
    """No schedule: it has no name that a trace could hold."""

    name = "x\n"

    def choose(self, step: object) -> None:
        """Is never called."""


DENSE = Action(1.0, 1.0, 8)
CALLS: dict[str, Callable[[SolModel], object]] = {
    "schedule: a number": lambda model: model.generate("w1", schedule=lambda controller: 3, **SHORT),
    "schedule: int": lambda model: model.generate("w1", schedule=int, **SHORT),
    "schedule: a name of two lines": lambda model: model.generate("w1", schedule=lambda controller: Unnamed(), **SHORT),
    "decoder": lambda model: model.decoder(None),  # type: ignore[arg-type]
    "cost": lambda model: SolModel.from_pretrained(model.bundle, provider="cpu", cost="x"),  # type: ignore[arg-type]
    "action: a tag": lambda model: model.engine.forward([1, 2], "k100-s100-q8"),  # type: ignore[arg-type]
    "action: a list": lambda model: model.engine.forward([1], [1]),  # type: ignore[arg-type]
    "tokens: a number": lambda model: model.engine.forward(3, DENSE),  # type: ignore[arg-type]
    "num_logits: a text": lambda model: model.engine.forward([1, 2], DENSE, num_logits="x"),  # type: ignore[arg-type]
    "num_logits: 1.5": lambda model: model.engine.forward([1, 2], DENSE, num_logits=1.5),  # type: ignore[arg-type]
    "truncate": lambda model: model.engine.truncate("x"),  # type: ignore[arg-type]
    "truncate: 0.0": lambda model: model.engine.truncate(0.0),  # type: ignore[arg-type]
    "channels: a name": lambda model: model.engine.set_active_channels("s100-q8", {"nope": [1]}),
    "channels: texts": lambda model: model.engine.set_active_channels("s100-q8", {"active_up": ["a", "b"]}),  # type: ignore[list-item]
    "channels: 1.5": lambda model: model.engine.set_active_channels("s100-q8", {"active_up": [1.5, 1]}),  # type: ignore[list-item]
    "channels: a number": lambda model: model.engine.set_active_channels("s100-q8", {"active_up": 3}),  # type: ignore[dict-item]
    "channels: no names": lambda model: model.engine.set_active_channels("s100-q8", [1]),  # type: ignore[arg-type]
    "parse: a number": lambda model: Action.parse(3),  # type: ignore[arg-type]
    "parse: wide digits": lambda model: Action.parse("k１００-s100-q8"),
    "action: no share": lambda model: Action("x", 1.0, 8),  # type: ignore[arg-type]
    "action: a huge share": lambda model: Action(10**400, 1.0, 8),
    "bundle": lambda model: Bundle.open(None),  # type: ignore[arg-type]
    "trace": lambda model: read_trace(None),  # type: ignore[arg-type]
    "decode: -1": lambda model: model.tokenizer.decode([-1]),
    "decode: a text": lambda model: model.tokenizer.decode("ab"),  # type: ignore[arg-type]
    "decode: None": lambda model: model.tokenizer.decode(None),  # type: ignore[arg-type]
    "token_id": lambda model: model.tokenizer.token_id(3),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_with_arguments_of_another_type(model: SolModel, name: str) -> None:
    with pytest.raises(UsageError, match=r": got .*expected") as error:
        CALLS[name](model)
    assert is_one_short_line(error.value)


def test_numbers_of_numpy_are_whole_numbers_too(model: SolModel) -> None:
    engine = model.engine
    engine.reset()
    assert len(engine.forward(np.array([1, 2, 3]), DENSE, num_logits=np.int64(2)).logits) == 2  # type: ignore[arg-type]
    engine.truncate(np.int64(1))  # type: ignore[arg-type]
    assert engine.length == 1
    assert Action(np.float32(0.5), 1.0, 8) == Action(0.5, 1.0, 8)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["", "\0", "~nobody-of-that-name/x", "x" * 5000, "no/such/folder"])
def test_paths_without_a_bundle_are_refused_in_one_line(
    path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path))
    with pytest.raises(SolError) as error:
        SolModel.from_pretrained(path)
    assert "\n" not in str(error.value)
