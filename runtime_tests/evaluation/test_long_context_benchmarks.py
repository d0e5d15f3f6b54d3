"""The windows and haystacks that the long-context benchmarks measure on, and the questions after a haystack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quality import kv_density, needle
from sol_rt.budget.dial import Dial
from sol_rt.generate.model import SolModel


class Characters:
    """A tokenizer with a token a character."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(map(ord, text))


@given(
    size=st.integers(60, 400),
    depths=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    spare=st.integers(0, 50),
    seed=st.integers(0, 9),
)
def test_haystack_has_its_size_and_its_needle_at_its_depth(
    size: int, depths: list[float], spare: int, seed: int
) -> None:
    book = list(range(1000, 1000 + size + spare))
    made = list(needle.haystacks(book, size, depths, Characters(), np.random.default_rng(seed)))  # type: ignore[arg-type]
    for depth, (tokens, fact) in zip(sorted(depths, reverse=True), made, strict=True):
        assert len(tokens) == size
        planted = [ord(letter) for letter in fact.sentence]
        at = next(i for i, token in enumerate(tokens) if token < 1000)
        assert tokens[at : at + len(planted)] == planted
        text = tokens[:at] + tokens[at + len(planted) :]
        assert text == list(range(text[0], text[0] + len(text)))  # a stretch of the book, nothing left out
        assert abs(at - depth * len(text)) <= 0.5


def test_book_too_short_is_one_line() -> None:
    with pytest.raises(SystemExit, match=r"has 10 tokens, a context of 60 needs as many"):
        next(needle.haystacks(range(10), 60, [0.5], Characters(), np.random.default_rng(0)))  # type: ignore[arg-type]
    with pytest.raises(SystemExit, match=r"2 windows of 10 need 30"):
        kv_density.cut(range(29), 10, 2)


@given(size=st.integers(2, 50), count=st.integers(1, 5), spare=st.integers(0, 200))
def test_windows_do_not_overlap(size: int, count: int, spare: int) -> None:
    book = list(range(size * (count + 1) + spare))
    windows = kv_density.cut(book, size, count)
    assert [len(window) for window in windows] == [size] * count
    flat = [token for window in windows for token in window]
    assert flat == sorted(set(flat))


def test_asking_and_scoring_on_a_bundle(llama_bundle: Path) -> None:
    model = SolModel.from_pretrained(llama_bundle, provider="cpu")
    dense = model.bundle.config.dense
    tokens = list(range(3, 60))
    for dial in (Dial(schedule="dense"), Dial(0.7, "uniform")):
        decoder = model.decoder(dial)
        for haystack in (tokens, [*tokens[:40], 1, 2]):
            fact = needle.Needle("a", "1")
            needle.answers(model, haystack, fact, decoder)
            question = model.tokenizer.encode(fact.question, add_special_tokens=False)
            asked = [*haystack, *question]
            assert model.engine.tokens[: len(asked)] == asked

    losses, times = kv_density.losses(model, tokens, 20, [dense])
    together = model.score(tokens, context=len(tokens) - 20, schedule="dense")
    # `score` predicts its first token by the prefill, `losses` by a step
    np.testing.assert_allclose(losses[0, 1:], -np.array(together.logprobs)[1:], atol=1e-4)
    assert times.shape == (1,)
