"""Sampling against transformers' own processors, and generation settings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.frequencies import FILTERS, LOGITS, chi_square, filtered
from helpers.made_configs import made_config
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import FileEntry
from sol_rt.engine.distribution import Distribution
from sol_rt.errors import BundleError, UsageError
from sol_rt.generate.generation_config import GenerationConfig
from sol_rt.generate.gumbel import gumbel, token_words
from sol_rt.generate.sampling import Sampler
from sol_rt.philox import philox

VOCAB = 300


def logits_of(seed: int, size: int = VOCAB) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(size=size) * random.uniform(0.5, 6)).astype(np.float32)


def distribution(config: GenerationConfig, logits: np.ndarray) -> np.ndarray:
    """Probability of each token, float64 [vocab]."""
    tokens, scores = Sampler(config, len(logits)).candidates(logits)
    weights = np.exp(scores.astype(np.float64))
    found = np.zeros(len(logits))
    found[tokens] = weights / weights.sum()
    return found


def draws(sampler: Sampler, logits: np.ndarray, count: int) -> list[int]:
    """The tokens of positions 0 to count - 1, all from the same logits."""
    return [sampler.sample(Distribution(logits), range(position))[0] for position in range(count)]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([1.0, 0.3, 0.8, 1.7]),
    top_k=st.sampled_from([0, 1, 5, 50, VOCAB, 1000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.1, 0.0]),
    min_p=st.sampled_from([None, 0.0, 0.05, 0.3, 1.0]),
    penalty=st.sampled_from([1.0, 1.3, 0.7]),
)
def test_same_distribution_as_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float | None, penalty: float
) -> None:
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    logits = logits_of(seed)
    history = np.random.default_rng(seed).integers(0, VOCAB, 40)
    steps = [process.RepetitionPenaltyLogitsProcessor(penalty)] if penalty != 1.0 else []
    steps += [process.TemperatureLogitsWarper(temperature)] if temperature != 1.0 else []
    steps += [process.TopKLogitsWarper(top_k)] if top_k else []
    steps += [process.TopPLogitsWarper(top_p)] if top_p < 1.0 else []
    steps += [process.MinPLogitsWarper(min_p)] if min_p is not None else []
    scores = process.LogitsProcessorList(steps)(torch.tensor(history)[None], torch.tensor(logits)[None])
    expected = torch.softmax(scores.double(), -1)[0].numpy()

    config = GenerationConfig(
        do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty
    )
    sampler = Sampler(config, VOCAB)
    penalised = sampler._changed(logits, history)
    # who stays, not whose probability float32 can hold: the least likely ones round to 0
    assert sorted(sampler.candidates(penalised)[0].tolist()) == torch.isfinite(scores[0]).nonzero()[:, 0].tolist()
    assert distribution(config, penalised) == pytest.approx(expected, abs=1e-6)


def test_a_flat_nucleus_larger_than_the_first_guess() -> None:
    logits = (np.arange(5000) % 7 * 1e-3).astype(np.float32)
    found = distribution(GenerationConfig(do_sample=True, top_k=0, top_p=0.9), logits)
    assert (found > 0).sum() == pytest.approx(4500, rel=0.01)
    assert found.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("size", [1, 2, 511, 512, 513, 5000, 100_001])
def test_draws_over_all_tokens(size: int) -> None:
    logits = np.zeros(size, np.float32)
    sampler = Sampler(GenerationConfig(do_sample=True, top_k=0, seed=0), size)
    found = np.array(draws(sampler, logits, 400))
    assert found.min() >= 0
    assert found.max() < size
    assert found.mean() == pytest.approx((size - 1) / 2, abs=0.05 * size)
    # the only token with any weight is drawn wherever it lies
    logits[:] = -1e4
    logits[size - 1] = 0
    assert sampler.sample(Distribution(logits), ())[0] == size - 1


@pytest.mark.parametrize("filters", [{}, {"top_k": 700}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 1e-3}])
@pytest.mark.parametrize("size", [90, 3000])
def test_a_draw_is_the_largest_sum_of_score_and_noise(filters: dict[str, float], size: int) -> None:
    config = GenerationConfig(do_sample=True, temperature=0.8, seed=5).updated(**{"top_k": 0, **filters})
    sampler = Sampler(config, size)
    for position in range(40):
        logits = logits_of(position, size) if position % 4 else np.round(logits_of(position, size))
        tokens, scores = sampler.candidates(logits)
        noise = -np.log(-np.log((token_words(5, position, np.arange(size), size) + 0.5) / 2**32))
        wanted = tokens[np.argmax(scores.astype(np.float64) + noise[tokens])]
        assert sampler.sample(Distribution(logits), range(position))[0] == wanted


def test_ties_at_the_edge_of_top_k_stay() -> None:
    logits = np.array([3, 2, 2, 2, 1], np.float32)
    assert (distribution(GenerationConfig(do_sample=True, top_k=2), logits) > 0).tolist() == [1, 1, 1, 1, 0]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_draws_follow_the_distribution(filters: dict[str, float]) -> None:
    """100,000 draws; the seed is fixed, so that the outcome is, too."""
    config = GenerationConfig(do_sample=True, seed=2**40 + 3).updated(**{"top_k": 0, **filters})
    count, size = 100_000, len(LOGITS)
    sampler = Sampler(config, size)
    tokens, scores = sampler.candidates(LOGITS)
    counters = np.zeros((4, count, (size + 3) // 4), np.uint64)
    counters[0], counters[1] = np.arange(counters.shape[2]), np.arange(count)[:, None]
    words = philox(counters.reshape(4, -1), 2**40 + 3).reshape(count, -1)
    found = tokens[np.argmax(scores + gumbel(words[:, tokens].ravel()).reshape(count, -1), axis=1)]
    assert found[:500].tolist() == draws(sampler, LOGITS, 500)
    statistic, limit = chi_square(np.bincount(found, minlength=size), filtered(LOGITS, **filters))
    assert statistic < limit


@pytest.mark.parametrize("seed", [0, 9])
def test_a_draw_depends_on_the_position_and_not_on_draws_before(seed: int) -> None:
    config = GenerationConfig(do_sample=True, top_k=0, seed=seed)
    steps = [Distribution(logits_of(step)) for step in range(30)]
    run = [Sampler(config, VOCAB).sample(step, range(7 + place))[0] for place, step in enumerate(steps)]
    sampler = Sampler(config, VOCAB)
    for place in (*range(29, -1, -1), *range(30)):
        assert sampler.sample(steps[place], range(7 + place))[0] == run[place]
    moved = [sampler.sample(step, range(8 + place))[0] for place, step in enumerate(steps)]
    assert moved != run


def test_greedy_takes_the_likeliest_after_the_penalty() -> None:
    logits = np.array([1.0, 4.0, 3.5, -1.0], np.float32)
    for config in (GenerationConfig(), GenerationConfig(do_sample=True, temperature=0.0)):
        token, logprob = Sampler(config, 4).sample(Distribution(logits), [1])
        assert token == 1
        assert logprob == pytest.approx(4.0 - np.log(np.exp(logits).sum()), rel=1e-6)
    token, logprob = Sampler(GenerationConfig(repetition_penalty=1.5), 4).sample(Distribution(logits), [1, 1, 0])
    assert token == 2
    # the reported log-probability is the model's, before any penalty
    assert logprob == pytest.approx(3.5 - np.log(np.exp(logits).sum()), rel=1e-6)
    assert logits.tolist() == [1.0, 4.0, 3.5, -1.0]


def changed_in_float64(
    logits: np.ndarray,
    prompt: list[int],
    drawn: list[int],
    *,
    presence: float = 0.0,
    frequency: float = 0.0,
    bias: dict[int, float] | None = None,
    repetition: float = 1.0,
) -> list[float]:
    """Logits after bias and penalties, by OpenAI's documentation. The repetition penalty comes between, as in
    llama.cpp.
    """
    scores = [float(logit) + (bias or {}).get(token, 0.0) for token, logit in enumerate(logits)]
    for token in {*prompt, *drawn}:
        scores[token] = scores[token] / repetition if scores[token] >= 0 else scores[token] * repetition
    for token in set(drawn):
        count = drawn.count(token)
        scores[token] -= presence * (count > 0) + frequency * count
    return scores


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    bias=st.dictionaries(st.integers(0, 39), st.floats(-100, 100), max_size=6),
    repetition=st.sampled_from([1.0, 1.3, 0.7]),
    steps=st.integers(1, 12),
)
def test_penalties_and_bias_against_a_reference_in_float64(
    seed: int, presence: float, frequency: float, bias: dict[int, float], repetition: float, steps: int
) -> None:
    config = GenerationConfig(do_sample=True, top_k=0, temperature=1.5, seed=seed).updated(
        presence_penalty=presence, frequency_penalty=frequency, logit_bias=bias, repetition_penalty=repetition
    )
    size = 40
    prompt = np.random.default_rng(seed).integers(0, size, 5).tolist()
    sampler, history = Sampler(config, size), list(prompt)
    for step in range(steps):
        logits = logits_of(seed + step, size)
        before = logits.copy()
        expected = changed_in_float64(
            logits,
            prompt,
            history[len(prompt) :],
            presence=presence,
            frequency=frequency,
            bias=bias,
            repetition=repetition,
        )
        assert sampler._changed(logits, history) == pytest.approx(expected, rel=1e-5, abs=1e-4)
        history.append(sampler.sample(Distribution(logits), history)[0])
        assert (logits == before).all(), "the step's own logits stay as they are"


@pytest.mark.parametrize("config", [{"presence_penalty": 1.5}, {"frequency_penalty": 0.75}])
def test_greedy_follows_the_counts(config: dict[str, float]) -> None:
    logits = np.array([2.0, 1.0, 0.5, -3.0], np.float32)
    sampler = Sampler(GenerationConfig(**config), 4)  # type: ignore[arg-type]
    drawn: list[int] = []
    for _ in range(8):
        expected = changed_in_float64(
            logits,
            [],
            drawn,
            presence=config.get("presence_penalty", 0),
            frequency=config.get("frequency_penalty", 0),
        )
        drawn.append(sampler.sample(Distribution(logits), ())[0])
        assert drawn[-1] == int(np.argmax(expected))
    assert len(set(drawn)) > 1


def test_a_bias_bans_and_forces_tokens() -> None:
    logits = logits_of(3)
    top = int(logits.argmax())
    for sampled in (False, True):
        config = GenerationConfig(do_sample=sampled, top_k=0, seed=0)
        banned = Sampler(config.updated(logit_bias={top: -100}), VOCAB)
        assert top not in draws(banned, logits, 50)
        forced = Sampler(config.updated(logit_bias={7: 100}), VOCAB)
        token, logprob = forced.sample(Distribution(logits), ())
        assert token == 7
        # the reported log-probability is the model's, before the bias
        assert logprob == pytest.approx(Distribution(logits).log_probability(7))


def test_a_bias_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(UsageError, match="logit bias: got token 300, expected ids from 0 to 299"):
        Sampler(GenerationConfig().updated(logit_bias={"300": 1}), VOCAB)


def test_without_penalties_a_greedy_step_reads_no_logits() -> None:
    class Untouched(Distribution):
        @property
        def logits(self) -> np.ndarray:
            pytest.fail("read the logits")

        def log_probability(self, token: int) -> float:
            return 0.0

    sampler = Sampler(GenerationConfig().updated(logit_bias={1: 0}), VOCAB)
    logits = logits_of(1)
    assert [sampler.sample(Untouched(logits), [1, 2])[0] for _ in range(3)] == [int(logits.argmax())] * 3


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), count=st.sampled_from([0, 1, 3, 20, VOCAB, 1000]), ties=st.booleans())
def test_the_likeliest_tokens(seed: int, count: int, ties: bool) -> None:
    logits = logits_of(seed)
    if ties:
        logits = np.round(logits)
    found = Distribution(logits).likeliest(count)
    order = sorted(range(VOCAB), key=lambda token: (-logits[token], token))[:count]
    assert [token for token, _ in found] == order
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    assert [logprob for _, logprob in found] == pytest.approx(exact[order], abs=1e-5)


def test_seed_repeats_and_differs() -> None:
    runs = []
    for seed in (1, 1, 2):
        sampler = Sampler(GenerationConfig(do_sample=True, top_k=0, seed=seed), VOCAB)
        runs.append([sampler.sample(Distribution(logits_of(step)), range(step))[0] for step in range(30)])
    assert runs[0] == runs[1] != runs[2]


def test_log_probability_of_large_logits() -> None:
    logits = np.array([1e4, 1e4 - 1, -1e4], np.float32)
    assert Distribution(logits).log_probability(0) == pytest.approx(-np.log1p(np.exp(-1)), rel=1e-5)
    assert Distribution(logits).log_probability(2) == pytest.approx(-2e4, rel=1e-3)


def test_wrong_shape_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"\[300\]"):
        Sampler(GenerationConfig(), VOCAB).sample(Distribution(np.zeros(VOCAB + 1, np.float32)), ())


def bundle_with(tmp_path: Path, content: str | None) -> Bundle:
    config = made_config()
    if content is not None:
        (tmp_path / "generation_config.json").write_text(content)
        config.files["generation_config.json"] = FileEntry(len(content), "0" * 64)
    return Bundle(tmp_path, config, "b" * 64, verify=False)


def test_settings_of_a_bundle(tmp_path: Path) -> None:
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
    config = GenerationConfig.from_bundle(bundle_with(tmp_path, json.dumps(raw)))
    assert config.eos_token_id == (2, 5)
    assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (True, 0.6, 20, 1.0)


def test_settings_without_a_file(tmp_path: Path) -> None:
    config = GenerationConfig.from_bundle(bundle_with(tmp_path, None))
    assert config == GenerationConfig(eos_token_id=(2,))
    assert config.greedy


@pytest.mark.parametrize("content", ["{", "[]", '{"temperature": "hot"}', '{"top_p": 7}', '{"eos_token_id": -1}'])
def test_unusable_settings_file_is_one_line(tmp_path: Path, content: str) -> None:
    with pytest.raises(BundleError, match=r"generation_config\.json") as error:
        GenerationConfig.from_bundle(bundle_with(tmp_path, content))
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
