"""Sampling in the core against transformers' own processors, and generation settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.draws import FREELY, GREEDY, draws
from helpers.frequencies import FILTERS, LOGITS, chi_square, filtered
from helpers.gumbel import gumbel, token_words
from helpers.tiny_bundle import write_bundle
from sol_rt.engine.distribution import Distribution
from sol_rt.errors import BundleError, UsageError
from sol_rt.generate.generation_config import GenerationConfig
from sol_rt.generate.model import SolModel

VOCAB = 90  # of the tiny bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SolModel:
    return SolModel.from_pretrained(write_bundle(tmp_path_factory.mktemp("sampling") / "tiny"), provider="cpu")


def logits_of(seed: int, size: int = VOCAB) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(size=size) * random.uniform(0.5, 6)).astype(np.float32)


def many(model: SolModel, logits: np.ndarray, count: int, seed: int, **settings: Any) -> np.ndarray:
    """`count` tokens that are drawn from the same logits."""
    found: list[int] = []
    while len(found) < count:
        rows = [logits] * min(200, count - len(found))
        found += [each.token for each in draws(model, rows, [1], **{**FREELY, **settings, "seed": seed + len(found)})]
    return np.array(found)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 1.7, "top_k": 5},
        {"top_k": 1},
        {"top_k": 1000, "top_p": 0.95},
        {"top_p": 0.5},
        {"top_p": 0.0},
        {"min_p": 0.05},
        {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.3},
        {"min_p": 1.0},
    ],
    ids=str,
)
def test_draws_follow_the_distribution_of_transformers(model: SolModel, seed: int, settings: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    logits = logits_of(seed)
    steps = []
    if (temperature := settings.get("temperature", 1.0)) != 1.0:
        steps.append(process.TemperatureLogitsWarper(temperature))
    if top_k := settings.get("top_k", 0):
        steps.append(process.TopKLogitsWarper(top_k))
    if (top_p := settings.get("top_p", 1.0)) < 1.0:
        steps.append(process.TopPLogitsWarper(top_p))
    if (min_p := settings.get("min_p")) is not None:
        steps.append(process.MinPLogitsWarper(min_p))
    scores = process.LogitsProcessorList(steps)(torch.tensor([[1]]), torch.tensor(logits)[None])
    expected = torch.softmax(scores.double(), -1)[0].numpy()
    drawn = many(model, logits, 1000, 1000 * seed, **settings)
    assert np.isfinite(scores[0].numpy())[drawn].all()
    shares = np.bincount(drawn, minlength=VOCAB) / len(drawn)
    spread = np.sqrt(expected * (1 - expected) / len(drawn))
    assert (np.abs(shares - expected) <= 5 * spread + 2 / len(drawn)).all()


def test_the_only_token_with_any_weight_is_drawn_wherever_it_lies(model: SolModel) -> None:
    for place in (0, 1, 44, VOCAB - 1):
        logits = np.full(VOCAB, -1e4, np.float32)
        logits[place] = 0
        assert set(many(model, logits, 20, 3)) == {place}


def test_a_draw_is_the_largest_sum_of_score_and_noise(model: SolModel) -> None:
    rows = [logits_of(place) for place in range(40)]
    found = draws(model, rows, [1, 2, 3], **{**FREELY, "temperature": 0.8, "seed": 5})
    for place, (logits, token) in enumerate(zip(rows, found, strict=True)):
        noise = gumbel(token_words(5, 3 + place, np.arange(VOCAB), VOCAB))
        assert token.token == int(np.argmax(logits.astype(np.float64) / 0.8 + noise))


@pytest.mark.slow
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_draws_follow_the_distribution(model: SolModel, filters: dict[str, float]) -> None:
    """100,000 draws; the seeds are fixed, so that the outcome is, too."""
    logits = np.full(VOCAB, -1e4, np.float32)
    logits[: len(LOGITS)] = LOGITS
    found = many(model, logits, 100_000, 2**40, **filters)
    expected = filtered(LOGITS, **filters)
    statistic, limit = chi_square(np.bincount(found, minlength=len(LOGITS)), expected)
    assert statistic < limit


def test_ties_at_the_edge_of_top_k_stay(model: SolModel) -> None:
    logits = np.full(VOCAB, -50.0, np.float32)
    logits[:5] = [3, 2, 2, 2, 1]
    assert set(many(model, logits, 300, 0, top_k=2)) == {0, 1, 2, 3}


def test_greedy_takes_the_likeliest_after_the_penalty(model: SolModel) -> None:
    logits = np.full(VOCAB, -30.0, np.float32)
    logits[:4] = [1.0, 4.0, 3.5, -1.0]
    total = np.log(np.exp(logits.astype(np.float64)).sum())
    for how in (GREEDY, {**FREELY, "temperature": 0.0}):
        (first,) = draws(model, [logits], [1], **how)
        assert first.token == 1
        assert first.logprob == pytest.approx(4.0 - total, rel=1e-6)
    (first,) = draws(model, [logits], [1, 1, 0], **{**GREEDY, "repetition_penalty": 1.5})
    assert first.token == 2
    # the reported log-probability is the model's, before any penalty
    assert first.logprob == pytest.approx(3.5 - total, rel=1e-6)


def changed_in_float64(
    logits: np.ndarray,
    prompt: list[int],
    drawn: list[int],
    *,
    presence: float = 0.0,
    frequency: float = 0.0,
    bias: dict[int, float] | None = None,
    repetition: float = 1.0,
) -> np.ndarray:
    """Logits after bias and penalties, by OpenAI's documentation. The repetition penalty comes between, as in
    llama.cpp.
    """
    scores = [float(logit) + (bias or {}).get(token, 0.0) for token, logit in enumerate(logits)]
    for token in {*prompt, *drawn}:
        scores[token] = scores[token] / repetition if scores[token] >= 0 else scores[token] * repetition
    for token in set(drawn):
        count = drawn.count(token)
        scores[token] -= presence * (count > 0) + frequency * count
    return np.array(scores)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-10, 10), max_size=6),
    repetition=st.sampled_from([1.0, 1.3, 0.7]),
    steps=st.integers(1, 30),
)
def test_greedy_picks_with_penalties_and_bias_are_those_of_float64(
    model: SolModel, seed: int, presence: float, frequency: float, bias: dict[int, float], repetition: float, steps: int
) -> None:
    prompt = np.random.default_rng(seed).integers(0, VOCAB, 5).tolist()
    rows = [logits_of(seed + step % 3) for step in range(steps)]
    given = {"presence_penalty": presence, "frequency_penalty": frequency, "logit_bias": bias}
    picked = draws(model, rows, prompt, **{**GREEDY, **given, "repetition_penalty": repetition})
    drawn: list[int] = []
    for logits, token in zip(rows, picked, strict=True):
        expected = changed_in_float64(
            logits, prompt, drawn, presence=presence, frequency=frequency, bias=bias, repetition=repetition
        )
        assert expected[token.token] >= expected.max() - 1e-4
        drawn.append(token.token)


def test_a_bias_bans_and_forces_tokens(model: SolModel) -> None:
    logits = logits_of(3)
    top = int(logits.argmax())
    for how in (GREEDY, {**FREELY, "seed": 0}):
        assert top not in [each.token for each in draws(model, [logits] * 50, [1], **how, logit_bias={top: -100})]
        (forced,) = draws(model, [logits], [1], **how, logit_bias={7: 100})
        assert forced.token == 7
        # the reported log-probability is the model's, before the bias
        assert forced.logprob == pytest.approx(Distribution(logits).log_probability(7))


def test_a_bias_outside_the_vocabulary_is_refused(model: SolModel) -> None:
    with pytest.raises(UsageError, match="logit bias: got token 90, expected ids from 0 to 89"):
        draws(model, [logits_of(1)], [1], logit_bias={"90": 1})


extreme = st.sampled_from([5e-324, 1e-320, 1e-40, 1e-30, 1e-7, 0.5, 1.0, 3.0, 1e7, 1e30, 1e38, 1e39, 1e308])


@settings(max_examples=200, deadline=None)
@given(
    temperature=extreme,
    repetition_penalty=extreme,
    top_p=st.sampled_from([0.0, 5e-324, 1e-40, 0.5, 1.0]),
    min_p=st.sampled_from([0.0, 5e-324, 0.1, 1.0]),
    top_k=st.sampled_from([0, 1, 3, 2**63 - 1]),
    penalty=st.sampled_from([-2.0, 0.0, 2.0]),
    bias=st.sampled_from([-100.0, 0.0, 100.0]),
    scale=st.sampled_from([0.0, 1e-38, 1.0, 30.0, 1e4, 1e30]),
    offset=st.sampled_from([0.0, -20.0, -120.0, 1e30, -1e30]),
    seed=st.integers(0, 9),
)
def test_extreme_settings_give_a_token(
    model: SolModel, temperature: float, repetition_penalty: float, top_p: float, min_p: float, top_k: int,
    penalty: float, bias: float, scale: float, offset: float, seed: int,
) -> None:  # fmt: skip
    logits = (np.random.default_rng(seed).standard_normal(VOCAB) * scale + offset).astype(np.float32)
    found = draws(
        model, [logits] * 3, [1, 2, 3], do_sample=True, temperature=temperature, top_p=top_p, min_p=min_p, top_k=top_k,
        repetition_penalty=repetition_penalty, presence_penalty=penalty, frequency_penalty=penalty,
        logit_bias={3: bias}, seed=seed, eos_token_id=[],
    )  # fmt: skip
    assert all(0 <= each.token < VOCAB and np.isfinite(each.logprob) for each in found)


def test_the_coldest_temperature_takes_the_likeliest_token(model: SolModel) -> None:
    for offset in (0.0, -20.0, -120.0):
        logits = np.full(VOCAB, -300.0, np.float32)
        logits[:4] = np.array([0.1, 2.0, 1.99, -3.0], np.float32) + np.float32(offset)
        for temperature in (5e-324, 1e-320, 1e-37, 1e-30, 1e-7):
            for more in ({"min_p": 0.1}, {"top_k": 3}, {"top_p": 0.5}, {}):
                assert set(many(model, logits, 20, 1, temperature=temperature, **more)) == {1}


def test_the_likeliest_tokens_of_a_generation(model: SolModel) -> None:
    for seed in range(20):
        logits = np.round(logits_of(seed)) if seed % 2 else logits_of(seed)
        (found,) = draws(model, [logits], [1], **GREEDY, top_logprobs=20)
        order = sorted(range(VOCAB), key=lambda token: (-logits[token], token))[:20]
        assert [token for token, _ in found.top_logprobs] == order
        exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
        assert [logprob for _, logprob in found.top_logprobs] == pytest.approx(exact[order], abs=1e-5)


def test_seed_repeats_and_differs(model: SolModel) -> None:
    runs = []
    for seed in (1, 1, 2):
        rows = [logits_of(step) for step in range(30)]
        runs.append([each.token for each in draws(model, rows, [1], **{**FREELY, "seed": seed})])
    assert runs[0] == runs[1] != runs[2]


def test_log_probability_of_large_logits() -> None:
    logits = np.array([1e4, 1e4 - 1, -1e4], np.float32)
    assert Distribution(logits).log_probability(0) == pytest.approx(-np.log1p(np.exp(-1)), rel=1e-5)
    assert Distribution(logits).log_probability(2) == pytest.approx(-2e4, rel=1e-3)


def settings_file(folder: Path, content: str) -> Path:
    (folder / "generation_config.json").write_text(content)
    return folder / "generation_config.json"


def test_settings_of_a_file(tmp_path: Path) -> None:
    raw = {
        "_from_model_config": True,
        "bos_token_id": 1,
        "eos_token_id": [2, 5],
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 20,
        "min_p": None,
        "transformers_version": "4.57.0",
    }
    config = GenerationConfig().with_file(settings_file(tmp_path, json.dumps(raw)))
    assert config.eos_token_id == (2, 5)
    assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (True, 0.6, 20, 1.0)


@pytest.mark.parametrize("content", ["{", "[]", '{"temperature": "hot"}', '{"top_p": 7}', '{"eos_token_id": -1}'])
def test_unusable_settings_file_is_one_line(tmp_path: Path, content: str) -> None:
    with pytest.raises(BundleError, match=r"generation_config\.json") as error:
        GenerationConfig().with_file(settings_file(tmp_path, content))
    assert "\n" not in str(error.value)


def test_updates_check_names_and_keep_unset_values() -> None:
    config = GenerationConfig().updated(temperature=0.5, stop_strings="END", seed=None, eos_token_id=7, top_p=None)
    assert config == GenerationConfig(temperature=0.5, stop_strings=("END",), eos_token_id=(7,))
    with pytest.raises(UsageError, match="did you mean 'temperature'"):
        config.updated(temprature=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 1.5),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.1),
        ("presence_penalty", float("nan")),
        ("frequency_penalty", -3),
        ("frequency_penalty", True),
        ("logit_bias", [1, 2]),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {-1: 1}),
        ("logit_bias", {"1" * 5000: 1}),
        ("logit_bias", {1: 101}),
        ("logit_bias", {1: float("nan")}),
        ("top_logprobs", 21),
        ("seed", -3),
        ("do_sample", 1),
        ("stop_strings", [""]),
        ("stop_strings", 3),
        ("eos_token_id", "2"),
    ],
)
def test_values_out_of_range(name: str, value: object) -> None:
    for make in (GenerationConfig, GenerationConfig().updated):
        with pytest.raises(UsageError, match=name):
            make(**{name: value})  # type: ignore[arg-type]
