"""`sol_rt` as a model of lm-evaluation-harness, or of what stands in for the harness where it is not installed."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helpers import lm_eval_stand_in
from helpers.logprobs import full_logprobs
from helpers.tiny_bundle import END, write_bundle
from sol_rt.budget.dial import Dial
from sol_rt.budget.schedules import PolicyInput
from sol_rt.bundle.actions import Action
from sol_rt.errors import UsageError
from sol_rt.evaluation.quality.continuations import PromptScorer
from sol_rt.generate.model import SolModel

PROMPT = "w5 w9 w13 w7"
INSTALLED = importlib.util.find_spec("lm_eval") is not None


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def model(bundle: Path) -> SolModel:
    return SolModel.from_pretrained(bundle)


@pytest.mark.parametrize("tail", [1, 3])
def test_dense_continuations_are_those_of_one_batch(model: SolModel, tail: int) -> None:
    scorer, (_, decoder) = PromptScorer(model.engine, tail), model.decoder(Dial())
    prompts = [[5, 9, 13, 7, 20], [5, 9, 13, 7, 21, 22], [5, 9], [8]]
    answers = [[30], [31, 32, 33], [34, 35]]
    for prompt in prompts:
        for answer in answers:
            expected = full_logprobs(model.engine, [*prompt, *answer])[-len(answer) :]
            scorer.open(prompt)
            result = scorer.score(decoder, answer)
            np.testing.assert_allclose(result.logprobs, expected, atol=2e-3)
            assert result.spent == result.full


def test_the_common_prefix_of_two_prompts_stays_in_the_cache(model: SolModel) -> None:
    scorer, (_, decoder) = PromptScorer(model.engine), model.decoder(Dial(0.7, "uniform"))
    calls: list[int] = []
    forward = model.engine.forward

    def counted(tokens: Any, *arguments: Any, **named: Any) -> Any:
        calls.append(len(tokens))
        return forward(tokens, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.engine, "forward", counted)
        scorer.open([3, 4, 5, 6, 7, 8])
        scorer.score(decoder, [9, 10])
        scorer.open([3, 4, 5, 6, 7, 8])
        scorer.open([3, 4, 5, 16, 17, 8, 9])
    assert calls == [5, 1, 1, 3]


def test_one_account_runs_over_all_prompts(model: SolModel) -> None:
    scorer, (_, decoder) = PromptScorer(model.engine), model.decoder(Dial(0.7, "uniform"))
    spent = full = 0.0
    random = np.random.default_rng(0)
    for _ in range(40):
        scorer.open(random.integers(3, 86, 12).tolist())
        result = scorer.score(decoder, random.integers(3, 86, 3).tolist())
        spent, full = spent + result.spent, full + result.full
    assert decoder.controller.steps == 120
    assert spent / full == pytest.approx(decoder.controller.achieved)
    assert spent / full == pytest.approx(0.7, abs=0.02)


def test_every_answer_begins_an_episode(model: SolModel) -> None:
    scorer, (_, decoder) = PromptScorer(model.engine), model.decoder(Dial(0.8, "uniform"))
    inner, steps = decoder.schedule, []

    class Recorded:
        name = inner.name

        def choose(self, step: PolicyInput) -> Action:
            steps.append(step.step)
            return inner.choose(step)

    decoder.schedule = Recorded()
    for first in (3, 4):
        scorer.open([first, 4, 5])
        scorer.score(decoder, [20, 21, 22])
    assert steps == [0, 1, 2, 0, 1, 2]


@pytest.fixture(scope="module")
def adapter() -> Iterator[Any]:
    """The class of models that the harness gets."""
    name = "sol_rt.evaluation.lm_eval_model"
    if INSTALLED:
        yield importlib.import_module(name).SolLM
        return
    with pytest.MonkeyPatch.context() as patch:
        lm_eval_stand_in.install(patch)
        yield importlib.import_module(name).SolLM
        del sys.modules[name]


@pytest.fixture
def harness(adapter: Any, bundle: Path) -> Any:
    return adapter(str(bundle))


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=each) for each in arguments]


def test_loglikelihoods_are_those_of_the_full_logits(harness: Any) -> None:
    pairs = [(PROMPT, " w20 w21"), (PROMPT, " w22"), ("", "w30 w31 w32")]
    results = harness.loglikelihood(requests(*pairs), disable_tqdm=True)
    engine, encode = harness.model.engine, harness.tok_encode
    for (prompt, continuation), (logprob, greedy) in zip(pairs, results, strict=True):
        scored = encode(continuation)
        tokens = [*(encode(prompt) if prompt else [END]), *scored]
        expected = full_logprobs(engine, tokens)[-len(scored) :]
        assert logprob == pytest.approx(expected.sum(), abs=2e-3 * len(scored))
        assert isinstance(greedy, bool)


def test_greedy_continuations_are_said_to_be(harness: Any) -> None:
    (text,) = harness.generate_until(
        requests((PROMPT, {"until": ["w999"], "max_gen_toks": 4, "do_sample": False})), disable_tqdm=True
    )
    assert len(text.split()) == 4
    words = text.split()
    (short,) = harness.generate_until(requests((PROMPT, {"until": words[2], "max_gen_toks": 4})), disable_tqdm=True)
    assert short.split() == words[:2]
    other = "w3 w4 w5 w6" if words[0] != "w3" else "w4 w4 w5 w6"
    (yes, no) = harness.loglikelihood(requests((PROMPT, " " + text), (PROMPT, " " + other)), disable_tqdm=True)
    assert yes[1]
    assert not no[1]
    assert yes[0] > no[0]


def test_long_texts_roll(adapter: Any, bundle: Path, model: SolModel) -> None:
    harness = adapter(str(bundle), max_length=16)
    words = [f"w{index}" for index in np.random.default_rng(1).integers(3, 86, 40)]
    (total,) = harness.loglikelihood_rolling(requests((" ".join(words),)), disable_tqdm=True)
    tokens = harness.tok_encode(" ".join(words))
    # every token once, as much context as fits where a window is new only at its end
    expected = full_logprobs(model.engine, [END, *tokens[:16]]).sum()
    expected += full_logprobs(model.engine, tokens[15:32]).sum()
    expected += full_logprobs(model.engine, tokens[23:40])[-8:].sum()
    assert total == pytest.approx(expected, abs=0.05)


def test_budget_and_what_it_came_to_are_in_the_results(adapter: Any, bundle: Path) -> None:
    harness = adapter(str(bundle), budget=0.7, schedule="uniform", batch_size=1)
    pairs = [(PROMPT, " " + " ".join(f"w{index + at}" for at in range(4))) for index in range(30)]
    harness.loglikelihood(requests(*pairs), disable_tqdm=True)
    info = harness.get_model_info()
    assert info["requested_budget"] == 0.7
    assert info["achieved_budget"] == pytest.approx(0.7, abs=0.02)
    assert info["decode_steps"] == 120
    with pytest.raises(UsageError, match="budgett: unknown"):
        adapter(str(bundle), budgett=0.7)
    with pytest.raises(UsageError, match="budget=half: expected a number"):
        adapter(str(bundle), budget="half")


@pytest.mark.skipif(not INSTALLED, reason="the harness comes with the extra eval")
def test_the_harness_runs_a_local_task(bundle: Path, tmp_path: Path) -> None:
    rows = [("w5 w6", "w7", "w8", 0), ("w9 w3", "w20", "w21 w22", 1)]
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("question", "a", "b", "answer"), *rows])
    task = {
        "task": "local_rows",
        "dataset_path": "csv",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.csv")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{[a, b]}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "local_rows.yaml").write_text(json.dumps(task), encoding="utf-8")
    argv = ["--model", "sol_rt", "--model_args", f"pretrained={bundle},budget=0.7,schedule=uniform"]
    argv += ["--tasks", "local_rows", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    program = "import sys; from sol_rt.evaluation.lm_eval import main; sys.exit(main())"
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", program, *argv],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (result,) = (tmp_path / "out").rglob("results_*.json")
    document = json.loads(result.read_text(encoding="utf-8"))
    assert document["results"]["local_rows"]["acc,none"] in (0.0, 0.5, 1.0)
    assert document["config"]["schedule"] == "uniform"
