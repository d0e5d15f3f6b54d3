"""`sol_rt` as a model of lm-evaluation-harness, or of what stands in for the harness where it is not installed."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import lm_eval_stand_in
from helpers.logprobs import full_logprobs
from helpers.tiny_bundle import END, write_bundle
from quality import task_pairs
from sol_rt import Controller
from sol_rt.budget.dial import Dial
from sol_rt.budget.schedules import PolicyInput
from sol_rt.bundle.actions import Action
from sol_rt.errors import UsageError
from sol_rt.evaluation.quality.continuations import PromptScorer
from sol_rt.generate.model import SolModel
from sol_rt.generate.prompt import prompt_tokens

PROMPT = "w5 w9 w13 w7"
TASKS = Path(__file__).resolve().parents[2] / "benchmarks/quality/tasks"
INSTALLED = importlib.util.find_spec("lm_eval") is not None


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def model(bundle: Path) -> SolModel:
    return SolModel.from_pretrained(bundle)


def test_dense_continuations_are_those_of_one_batch(model: SolModel) -> None:
    scorer, decoder = PromptScorer(model), model.decoder(Dial())
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
    scorer, decoder = PromptScorer(model), model.decoder(Dial(0.7, "uniform"))
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
    assert calls == [5, 3]  # the steps of the continuation are the decoder's


def test_one_account_runs_over_all_prompts(model: SolModel) -> None:
    scorer, decoder = PromptScorer(model), model.decoder(Dial(0.7, "uniform"))
    spent = full = 0.0
    random = np.random.default_rng(0)
    for _ in range(40):
        scorer.open(random.integers(3, 86, 12).tolist())
        result = scorer.score(decoder, random.integers(3, 86, 3).tolist())
        spent, full = spent + result.spent, full + result.full
    assert decoder.steps == 120
    assert spent / full == pytest.approx(decoder.achieved)
    assert spent / full == pytest.approx(0.7, abs=0.02)


def test_every_answer_begins_an_episode(model: SolModel) -> None:
    steps = []

    class Recorded:
        name = "recorded"

        def __init__(self, controller: Controller) -> None:
            self._controller = controller

        def choose(self, step: PolicyInput) -> Action:
            steps.append(step.step)
            return self._controller.dense

    scorer, decoder = PromptScorer(model), model.decoder(Dial(0.8, Recorded))
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


@dataclass
class Request:
    """A request as the harness makes it."""

    arguments: tuple[Any, ...]
    doc_id: int
    task_name: str = "words"

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments


def requests(*arguments: tuple[Any, ...], choices: int = 1) -> list[Any]:
    """Requests about questions of `choices` requests each."""
    return [Request(each, index // choices) for index, each in enumerate(arguments)]


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
    assert info["cost_model"] == "bytes"
    with pytest.raises(UsageError, match="budgett: unknown"):
        adapter(str(bundle), budgett=0.7)
    with pytest.raises(UsageError, match="budget=half: expected a number"):
        adapter(str(bundle), budget="half")
    with pytest.raises(UsageError, match="costs=joules: expected one of device, bytes"):
        adapter(str(bundle), costs="joules")


def test_every_question_logs_its_cost_and_its_account(adapter: Any, bundle: Path) -> None:
    harness = adapter(str(bundle), budget=0.7, schedule="uniform", costs="bytes")
    random = np.random.default_rng(2)
    prompts = [" ".join(f"w{word}" for word in random.integers(3, 86, 6)) for _ in range(40)]
    pairs = [(prompt, f" w{first} w{first + 1}") for prompt in prompts for first in (10, 20)]
    asked = requests(*pairs, choices=2)
    harness.loglikelihood(asked, disable_tqdm=True)
    costs = [request.args[2] for request in asked[::2]]
    assert all(len(request.args) == 2 for request in asked[1::2])
    assert [cost["steps"] for cost in costs] == [4] * 40
    assert [cost["account"] for cost in costs] == [1] * 16 + [2] * 16 + [3] * 8  # 64 steps are 16 questions
    for account in (1, 2):
        held = [cost for cost in costs if cost["account"] == account]
        achieved = sum(cost["spent"] for cost in held) / sum(cost["full"] for cost in held)
        assert achieved == pytest.approx(0.7, abs=0.02)
    settings = {"until": [], "max_gen_toks": 5, "do_sample": False}
    written = requests((PROMPT, settings), (PROMPT, settings))
    harness.generate_until(written, disable_tqdm=True)
    assert [request.args[2]["account"] for request in written] == [4, 5]
    assert all(request.args[2]["steps"] == 4 for request in written)  # the prompt predicts the first token
    other = requests((PROMPT, " w9 w10"))
    harness.loglikelihood(other, disable_tqdm=True)
    assert other[0].args[2]["account"] == 6
    info = harness.get_model_info()
    assert info["decode_steps"] == 4 * 40 + 2 * 4 + 2
    logged = [*costs, *(request.args[2] for request in (*written, *other))]
    total = sum(cost["spent"] for cost in logged) / sum(cost["full"] for cost in logged)
    assert info["achieved_budget"] == pytest.approx(total)


def test_letters_share_one_step(adapter: Any, bundle: Path) -> None:
    harness = adapter(str(bundle), budget=0.7, schedule="uniform")
    asked = requests(*((PROMPT, f" w{letter}") for letter in (40, 41, 42, 43)), choices=4)
    scores = harness.loglikelihood(asked, disable_tqdm=True)
    assert asked[0].args[2]["steps"] == harness.get_model_info()["decode_steps"] == 1
    alone = adapter(str(bundle), budget=0.7, schedule="uniform")
    (first, *_) = alone.loglikelihood(requests((PROMPT, " w40")), disable_tqdm=True)
    assert scores[0] == first
    assert len({score for score, _ in scores}) == 4


def test_chat_prompts_are_those_of_a_chat(harness: Any) -> None:
    messages = [{"role": "user", "content": "w5 w6"}]
    rendered = harness.apply_chat_template(messages)
    bundle = harness.model.bundle
    expected = prompt_tokens(messages, harness.model.tokenizer, bundle.chat_template(), bundle.config.model.vocab_size)
    assert harness.tok_encode(rendered) == expected


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="the harness comes with the extra eval")
def test_the_harness_asks_the_tasks_from_files_and_the_runs_pair(bundle: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(4)

    def words(count: int) -> str:
        return " ".join(f"w{word}" for word in random.integers(3, 85, count))

    for part in ("test", "dev"):
        (tmp_path / part).mkdir()
        for subject in ("maths", "some_history"):
            with (tmp_path / part / f"{subject}_{part}.csv").open("w", newline="", encoding="utf-8") as file:
                heads = ["question", "choice0", "choice1", "choice2", "choice3", "answer"]
                csv.writer(file).writerows([heads, *([*(words(3) for _ in range(5)), "2"] for _ in range(2))])
    problems = [{"question": words(4), "answer": f"{words(2)}\n#### {index}"} for index in range(8)]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(each) + "\n" for each in problems), encoding="utf-8")
    files = {"mmlu": str(tmp_path), "shots": 1, "gsm8k": f"{tmp_path}/gsm8k.jsonl"}
    argv = ["run", "--model", "sol_rt", "--include_path", str(TASKS), "--metadata", json.dumps(files), "--limit", "3"]
    argv += ["--tasks", "mmlu_letter,mmlu_text,gsm8k_chat", "--gen_kwargs", "max_gen_toks=8"]
    argv += ["--apply_chat_template", "--num_fewshot", "1", "--log_samples"]
    program = "import sys; from sol_rt.evaluation.lm_eval import main; sys.exit(main())"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    for name, dial in (("dense", "schedule=dense"), ("uniform", "schedule=uniform,budget=0.7,costs=bytes")):
        given = ["--model_args", f"pretrained={bundle},{dial}", "--output_path", str(tmp_path / name)]
        done = subprocess.run(
            [sys.executable, "-c", program, *argv, *given],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    (result,) = (tmp_path / "uniform").rglob("results_*.json")
    assert json.loads(result.read_text(encoding="utf-8"))["config"]["schedule"] == "uniform"
    runs = [task_pairs.read_run(tmp_path / name) for name in ("dense", "uniform")]
    for task in ("mmlu_letter", "mmlu_text", "gsm8k_chat"):
        answers = next(answers for (name, _, _), answers in runs[1].items() if name == task)
        assert len(answers) == 3
        assert all(answer.full > 0 for answer in answers.values())
    assert "| mmlu_letter | acc | 3 |" in task_pairs.table(["dense", "uniform"], runs)
