"""Runs, scores, schedules, costs and engines of the caller's in the core."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from helpers.places import TINY
from sol_rt.budget.cost.cost_table import CostTable, MeasuredCost
from sol_rt.budget.cost.model import BytesCost, Line
from sol_rt.budget.dial import Dial
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine.distribution import Distribution
from sol_rt.engine.step import StepOutput
from sol_rt.errors import BusyError, ContextError, UsageError
from sol_rt.generate.model import SolModel
from sol_rt.native.library import default_options

PROMPT = [368, 14, 279, 363, 264, 345]


@pytest.fixture
def model() -> SolModel:
    return SolModel.from_pretrained(TINY, provider="cpu", measure_costs=False)


def tokens_of(bundle: Bundle, count: int, seed: int = 0) -> list[int]:
    draw = np.random.default_rng(seed)
    return [int(token) for token in draw.integers(0, bundle.config.model.vocab_size, count)]


DIALS: list[dict[str, Any]] = [
    {},
    {"budget": 0.6},
    {"schedule": "hull"},
    {"max_loss": 0.05},
    {"budget": 0.5, "schedule": "uniform"},
    {"budget": 0.7, "schedule": "entropy"},
    {"kv_density": 0.5, "bits": 6},
    {"schedule": "fixed:k050-s060-q4"},
]


def test_hidden_states_of_a_score_are_those_of_its_steps(model: SolModel) -> None:
    tokens, options = tokens_of(model.bundle, 30), default_options()
    options.schedule = b"fixed:k100-s100-q4"
    session, other = model.session(), model.session()
    scored = session.score(tokens, 20, options, hidden=True)
    assert scored.actions == ["k100-s100-q4"] * 9
    assert scored.hidden is not None
    expected = [other.forward(tokens[:20], model.bundle.config.dense).hidden[0]]
    expected += [other.forward([token], Action.parse("k100-s100-q4")).hidden[0] for token in tokens[20:-1]]
    assert np.array_equal(scored.hidden, expected)


@pytest.mark.parametrize("dial", DIALS, ids=str)
@pytest.mark.filterwarnings("ignore::sol_rt.errors.QualityWarning")
def test_steps_are_those_of_a_score(model: SolModel, dial: dict[str, Any]) -> None:
    """Two runs after one prompt; the second one rewinds to it."""
    tokens, asked = tokens_of(model.bundle, 150), Dial(**dial)
    if asked.is_empty:  # a score's budget is then 1
        asked = replace(asked, budget=1.0)
    expected = model.score(tokens, context=60, **dial)
    decoder = model.decoder(asked)
    decoder.prefill(tokens[:60])
    prompt = decoder.output
    for again in (False, True):
        if again:
            decoder = model.decoder(asked)
            decoder.rewind(60, prompt)
        logprobs = [prompt.distribution.log_probability(tokens[60])]
        for index, (token, target) in enumerate(itertools.pairwise(tokens[60:])):
            taken = decoder.step(token)
            assert taken.context == 60 + index
            assert taken.cost / taken.relative == pytest.approx(model.cost.dense(taken.context))
            logprobs.append(decoder.output.distribution.log_probability(target))
        assert logprobs == expected.logprobs.tolist()
        assert decoder.achieved == expected.achieved_budget
        assert dict(decoder.actions) == expected.actions
    model.engine.reset()
    with pytest.raises(BusyError, match="interrupted"):
        decoder.step(1)
    with pytest.raises(UsageError, match="rewind: got 3, expected 1 to 0"):
        decoder.rewind(3, prompt)


def test_a_newer_run_takes_over(model: SolModel) -> None:
    older = model.decoder(Dial(budget=1.0))
    older.prefill([1, 2, 3])
    newer = model.decoder(Dial(budget=1.0))
    for call in (lambda: older.prefill([1, 2]), lambda: older.rewind(2, older.output)):
        with pytest.raises(BusyError, match="interrupted by another one"):
            call()
    newer.prefill([1, 2, 3])
    newer.step(4)


def test_wrong_runs_and_scores(model: SolModel) -> None:
    session, dense = model.session(), model.bundle.config.dense
    with pytest.raises(UsageError, match="expected an Action"):
        session.forward([1], cast("Action", "k100-s100-q8"))
    with pytest.raises(UsageError, match="num_logits: got 2 for 1 tokens"):
        session.forward([1], dense, num_logits=2)
    with pytest.raises(UsageError, match="not in this bundle"):
        session.forward([1], Action(1.0, 0.7, 4))
    with pytest.raises(UsageError, match="forward: got token 384 at place 0"):
        session.forward([384], dense)
    with pytest.raises(ContextError, match="expected at most 768"):
        session.forward([1] * 769, dense)
    with pytest.raises(UsageError, match="truncate: got 1, expected 0 to 0"):
        session.truncate(1)
    for counts in ({"active_up": [1]}, {"active_up": [1, 2**40]}, {"active_up": [1, 0]}, {"active": [1, 1]}, [1, 1]):
        with pytest.raises(UsageError, match="active"):
            session.set_active_channels("s060-q4", cast("Any", counts))
    with pytest.raises(UsageError, match="expected 1 to fewer than all"):
        model.score([1, 2], context=2)
    with pytest.raises(UsageError, match="--budget"):
        model.score([1, 2, 3], budget=float("nan"))


class Alternating:
    """The cheapest action that keeps the budget at every third token, the nearest to the target elsewhere."""

    name = "alternating"

    def __init__(self, controller: Any) -> None:
        self.controller = controller
        self.seen: list[tuple[int, int, int, float]] = []

    def choose(self, step: Any) -> Action:
        controller, context = self.controller, step.context
        self.seen.append((step.step, context, step.token, float(step.hidden[0, 0]) + step.distribution.entropy))
        costs, allowed = controller.relative_costs(context), controller.allowed(context)
        if step.token % 3 == 0:
            index = int(np.argmin(np.where(allowed, costs, np.inf)))
        else:
            index = controller.nearest_allowed(int(np.argmin(np.abs(costs - controller.target(context)))), context)
        assert controller.allows(index, context)
        return cast("Action", controller.actions[index])


@pytest.mark.parametrize("dial", [{"budget": 0.6}, {"kv_density": 0.6, "bits": 7}, {}], ids=str)
@pytest.mark.filterwarnings("ignore::sol_rt.errors.QualityWarning")
def test_an_own_schedule_is_asked_before_each_step(model: SolModel, dial: dict[str, Any]) -> None:
    made: list[Alternating] = []

    def make(controller: Any) -> Alternating:
        made.append(Alternating(controller))
        return made[-1]

    result = model.generate(PROMPT, max_new_tokens=60, eos_token_id=[], schedule=make, **dial)
    assert result.schedule == "alternating"
    if "budget" in dial:
        assert result.achieved_budget == pytest.approx(dial["budget"], abs=0.03)
    seen = [(0, len(PROMPT) + index, token) for index, token in enumerate(result.tokens[:-1])]
    assert [each[1:3] for each in made[0].seen] == [each[1:] for each in seen]
    assert [each[0] for each in made[0].seen] == list(range(59))
    # what it saw are the results of the steps before
    session = model.session()
    output = session.forward(PROMPT, model.bundle.config.dense)
    assert made[0].seen[0][3] == float(output.hidden[0, 0]) + output.distribution.entropy
    tokens = [*PROMPT, *result.tokens]
    scores = model.score(tokens, context=len(PROMPT), schedule=make, **dial)
    assert scores.logprobs.tolist() == result.logprobs
    assert scores.actions == result.actions


def test_errors_of_an_own_schedule(model: SolModel) -> None:
    class Failing(Alternating):
        def choose(self, step: Any) -> Action:
            if step.step == 2:
                raise KeyError("mine")
            return cast("Action", self.controller.dense)

    class Foreign(Alternating):
        def choose(self, step: Any) -> Action:
            return Action(0.17, 1.0, 4)

    class Elsewhere(Alternating):
        def choose(self, step: Any) -> Action:
            self.controller.allowed(step.context + 1)
            raise AssertionError

    settings = {"max_new_tokens": 9, "eos_token_id": []}
    tokens = []
    with pytest.raises(KeyError, match="mine"):
        tokens.extend(model.stream(PROMPT, schedule=Failing, **settings))
    with pytest.raises(UsageError, match=r"chose .*, expected one of the controller's actions"):
        finished(model.stream(PROMPT, schedule=Foreign, **settings))
    with pytest.raises(UsageError, match="got context 7, expected 6"):
        finished(model.stream(PROMPT, schedule=Elsewhere, **settings))
    with pytest.raises(UsageError, match="no step is being chosen"):
        model.stream(PROMPT, schedule=lambda controller: controller.allowed(3), **settings)
    with pytest.raises(UsageError, match="expected a function that takes the controller"):
        model.stream(PROMPT, schedule=lambda controller: 3, **settings)
    with pytest.raises(UsageError, match="keeps no loss"):
        model.stream(PROMPT, schedule=Alternating, max_loss=0.01, **settings)
    assert len(finished(model.stream(PROMPT, budget=1.0, **settings)).tokens) == 9  # the session is well


def finished(stream: Any) -> Any:
    for _ in stream:
        pass
    return stream.result


@pytest.mark.filterwarnings("ignore::sol_rt.errors.QualityWarning")
def test_costs_of_the_caller(model: SolModel) -> None:
    config = model.bundle.config
    lines = {
        key: {1.0: Line(1.0 + (0.0 if variant.bits == 8 else 1.0), 0.0, 0.0, 0.0)}
        for key, variant in config.variants.items()
    }
    table = CostTable(model.bundle.identity, "the caller's", "", 0.0, lines)
    model.cost = MeasuredCost(config, table)
    result = finished(model.stream(PROMPT, budget=0.9, schedule="uniform", max_new_tokens=20, eos_token_id=[]))
    assert result.cost_model == model.cost.name == "measured"
    assert all(action.endswith("q8") for action in result.actions)  # the others cost twice as much
    own = SolModel.from_pretrained(TINY, provider="cpu", cost=MeasuredCost(config, table))
    assert own.generate(PROMPT, budget=0.9, schedule="uniform", max_new_tokens=20, eos_token_id=[]) is not None
    assert own.cost.step(config.dense, 9) == 1.0
    model.cost = BytesCost(config)
    result = finished(model.stream(PROMPT, budget=0.9, max_new_tokens=5, eos_token_id=[]))
    assert result.cost_model == model.cost.name == "bytes"


def test_errors_of_an_engine_of_python(model: SolModel) -> None:
    class Broken:
        def truncate(self, length: int) -> None: ...

        def reusable_prefix(self, length: int) -> int:
            return length

        def forward(self, tokens: Any, action: Action, *, num_logits: int = 1) -> Any:
            raise OSError("unplugged")

    session = model.session(Broken())
    with pytest.raises(OSError, match="unplugged"):
        session.forward([1, 2], model.bundle.config.dense)
    assert session.length == 0


class Given:
    """An engine of Python with results of given shapes."""

    def __init__(self, logits: tuple[int, int], hidden: tuple[int, int]) -> None:
        self._output = StepOutput(
            np.zeros(logits, np.float32), np.zeros(hidden, np.float32), Distribution(np.zeros(logits[1], np.float32))
        )

    def truncate(self, length: int) -> None: ...

    def reusable_prefix(self, length: int) -> int:
        raise OSError("unplugged")

    def forward(self, tokens: Any, action: Action, *, num_logits: int = 1) -> StepOutput:
        return self._output


@pytest.mark.parametrize(
    ("rows", "hidden_rows", "told"),
    [
        (3, 1, r"Given.forward: logits: got an array \(3, \d+\), expected \(1, \d+\)"),
        (1, 0, "hidden: got"),
        (0, 1, "logits: got"),
    ],
)
def test_an_engine_of_python_with_results_of_another_shape(
    model: SolModel, rows: int, hidden_rows: int, told: str
) -> None:
    dims = model.bundle.config.model
    session = model.session(Given((rows, dims.vocab_size), (hidden_rows, dims.hidden_size)))
    with pytest.raises(UsageError, match=told):
        session.forward([1, 2], model.bundle.config.dense)
    with pytest.raises(UsageError, match="on the CPU alone"):
        session.set_active_channels("s060-q4", {})
    assert session.length == 0


def test_a_long_prompt_reports_its_progress(model: SolModel) -> None:
    prompt, told = tokens_of(model.bundle, 600), list[tuple[int, int]]()
    settings: dict[str, Any] = {"max_new_tokens": 3, "eos_token_id": [], "do_sample": False}
    expected = model.generate(prompt, **settings).tokens
    got = model.generate(prompt, progress=lambda done, total: told.append((done, total)), **settings)
    assert got.tokens == expected
    assert told == [(512, 600), (600, 600)], "nothing of the steps"
    assert model.generate(prompt, **settings).tokens == expected
    assert len(told) == 2, "the next generation has none"
    model.generate(prompt, progress=lambda *seen: told.append(seen), reuse_cache=True, **settings)
    assert told[2:] == [], "one token of the prompt is not in the cache"
    with pytest.raises(UsageError, match="progress: got 3, expected a function"):
        model.stream(prompt, progress=3)  # type: ignore[arg-type]


def test_an_error_in_progress_ends_the_prompt(model: SolModel) -> None:
    def failing(done: int, total: int) -> None:
        raise KeyError("mine")

    stream = model.stream(tokens_of(model.bundle, 600), progress=failing)
    with pytest.raises(KeyError, match="mine"):
        next(stream)
    assert model.engine.length == 512
    assert next(stream, None) is None
    assert len(model.generate(PROMPT, max_new_tokens=3, eos_token_id=[]).tokens) == 3


def test_an_error_that_the_core_can_go_on_without_is_raised_once(model: SolModel) -> None:
    dims = model.bundle.config.model
    model.engine = session = model.session(Given((1, dims.vocab_size), (1, dims.hidden_size)))
    assert len(list(model.stream(PROMPT, max_new_tokens=2, eos_token_id=[]))) == 2
    with pytest.raises(OSError, match="unplugged"):
        next(model.stream(PROMPT, reuse_cache=True))
    with pytest.raises(ContextError):
        session.forward([1] * (session.max_context + 1), model.bundle.config.dense)


def test_costs_of_another_class_are_refused(model: SolModel) -> None:
    class Flat(BytesCost):
        def step(self, action: Action, context: int) -> float:
            return 1.0

    with pytest.raises(UsageError, match="cost: got"):
        model.cost = Flat(model.bundle.config)
