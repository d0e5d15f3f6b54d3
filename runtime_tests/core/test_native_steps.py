"""Runs, scores, schedules and costs of the caller's in the native core, beside the Python engine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import sol_rt.ops
from helpers.places import TINY
from helpers.random_decoder import STATES, TRAITS
from helpers.tiny_bundle import write_bundle
from sol_rt.budget.cost.bytes_model import Line
from sol_rt.budget.cost.cost_table import CostTable
from sol_rt.budget.dial import Dial
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine.engine import Engine
from sol_rt.engine.step import StepOutput
from sol_rt.errors import ContextError, SolError, UsageError
from sol_rt.evaluation.quality.perplexity import perplexity
from sol_rt.evaluation.quality.runs import detached
from sol_rt.export.actions.losses import Candidate, losses_and_divergences, token_losses
from sol_rt.export.runs import open_runs
from sol_rt.generate.model import SolModel
from sol_rt.generate.native.library import default_options
from sol_rt.generate.native.model import NativeModel
from sol_rt.generate.native.session import NativeSession

SMOLLM = os.environ.get("SOL_RT_TEST_BUNDLE", "")
"""A real bundle, for the comparison that tiny ones can't make."""
PROMPT = [368, 14, 279, 363, 264, 345]


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    if sol_rt.ops.core_path() is None:
        pytest.skip("the package was installed without the native core")


@pytest.fixture(scope="module")
def python(_library: None) -> SolModel:
    return SolModel.from_pretrained(TINY, provider="cpu", measure_costs=False)


@pytest.fixture
def native(_library: None) -> NativeModel:
    return NativeModel.from_pretrained(TINY, measure_costs=False)


def tokens_of(bundle: Bundle, count: int, seed: int = 0) -> list[int]:
    draw = np.random.default_rng(seed)
    return [int(token) for token in draw.integers(0, bundle.config.model.vocab_size, count)]


def assert_same_runs(folder: Path, prompt: int, *, native_ops: bool = True) -> None:
    """Prompts with one and with many rows of results, steps, rewinds and changed channels, in both engines."""
    bundle = Bundle.open(folder)
    engine = Engine(bundle, provider="cpu", native_ops=native_ops)
    session = NativeModel.from_pretrained(folder, native_ops=native_ops, measure_costs=False).session()
    dense, actions = bundle.config.dense, [entry.action for entry in bundle.config.actions]

    def run(tokens: list[int], action: Action, rows: int = 1) -> None:
        expected = engine.forward(tokens, action, num_logits=rows)
        got = session.forward(tokens, action, num_logits=rows)
        assert got.logits.shape == expected.logits.shape
        same: Callable[..., Any] = np.array_equal if native_ops else _is_close
        assert same(got.logits, expected.logits), (action.tag, len(tokens), rows)
        assert same(got.hidden, expected.hidden), (action.tag, len(tokens), rows)
        if native_ops:
            assert got.distribution.top == expected.distribution.top
            assert got.distribution.log_sum == expected.distribution.log_sum
            assert got.distribution.entropy == expected.distribution.entropy
        assert session.length == engine.length

    run(tokens_of(bundle, prompt), dense)
    for number, action in enumerate(actions):
        engine.truncate(prompt)
        session.truncate(prompt)
        run(tokens_of(bundle, 1, number), action)
        run(tokens_of(bundle, 9 + number, number), action, rows=1 + number)
        run(tokens_of(bundle, 5, number), Action(0.5, action.channel_density, action.bits))
        run(tokens_of(bundle, 1, number), Action(0.5, action.channel_density, action.bits))
    for length in (prompt // 2, 3, 0):
        engine.truncate(length)
        session.truncate(length)
        run(tokens_of(bundle, prompt, length + 1), actions[-1], rows=prompt - 1)
    variant = bundle.config.variants[actions[-1].variant]
    few = {"active_down": [max(count // 2, 1) for count in variant.active_down]}
    for counts in (few, {}):
        engine.set_active_channels(variant.key, counts)
        session.set_active_channels(variant.key, counts)
        run(tokens_of(bundle, 1), actions[-1])
        run(tokens_of(bundle, 7), actions[-1], rows=7)
    assert session.tokens == list(engine.tokens)


def _is_close(got: np.ndarray, expected: np.ndarray) -> bool:
    return np.allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("native_ops", [True, False], ids=["native", "bodies"])
def test_runs_give_the_numbers_of_python(native_ops: bool) -> None:
    assert_same_runs(TINY, 150, native_ops=native_ops)


@pytest.mark.parametrize("family", sorted(TRAITS | STATES))
def test_runs_of_other_families(family: str, tmp_path: Path) -> None:
    assert_same_runs(write_bundle(tmp_path / "tiny", family), 70)


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM, reason="$SOL_RT_TEST_BUNDLE names no bundle")
def test_runs_of_a_real_model() -> None:
    assert_same_runs(Path(SMOLLM), 700)


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


@pytest.mark.parametrize("dial", DIALS, ids=str)
@pytest.mark.filterwarnings("ignore::sol_rt.errors.QualityWarning")
def test_scores_are_those_of_python(python: SolModel, native: NativeModel, dial: dict[str, Any]) -> None:
    tokens = tokens_of(python.bundle, 200)
    for context in (1, 120):
        expected, got = (model.score(tokens, context=context, **dial) for model in (python, native))
        assert np.array_equal(got.logprobs, expected.logprobs)
        assert got.actions == expected.actions
        assert got.achieved_budget == pytest.approx(expected.achieved_budget, rel=1e-12)


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM, reason="$SOL_RT_TEST_BUNDLE names no bundle")
@pytest.mark.parametrize("dial", [{}, {"budget": 0.5}], ids=str)
def test_scores_of_a_real_model(dial: dict[str, Any]) -> None:
    models = (
        SolModel.from_pretrained(SMOLLM, provider="cpu", measure_costs=False),
        NativeModel.from_pretrained(SMOLLM, measure_costs=False),
    )
    tokens = tokens_of(models[0].bundle, 300)
    expected, got = (model.score(tokens, context=200, **dial) for model in models)
    assert np.array_equal(got.logprobs, expected.logprobs)
    assert got.actions == expected.actions


@pytest.mark.parametrize(
    "how",
    [{"schedule": "fixed:k100-s100-q8"}, {"schedule": "fixed:k050-s060-q4"}, {"budget": 0.7}, {"budget": 0.5}],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::sol_rt.errors.QualityWarning")
def test_perplexity_is_that_of_python(python: SolModel, native: NativeModel, how: dict[str, Any]) -> None:
    text = "Ben and the cat sat by the lamp. It was late and the lamp was dim. " * 12
    expected, got = (perplexity(model, text, size=64, chunks=3, **how) for model in (python, native))
    assert (got.ppl, got.stderr, got.nll, got.actions) == (
        expected.ppl,
        expected.stderr,
        expected.nll,
        expected.actions,
    )
    assert f"{got.achieved_budget:.6f}" == f"{expected.achieved_budget:.6f}"


def test_hidden_states_of_a_score_are_those_of_its_steps(native: NativeModel) -> None:
    tokens, options = tokens_of(native.bundle, 30), default_options()
    options.schedule = b"fixed:k100-s100-q4"
    session, other = native.session(), native.session()
    scored = session.score(tokens, 20, options, hidden=True)
    assert scored.actions == ["k100-s100-q4"] * 9
    assert scored.hidden is not None
    expected = [other.forward(tokens[:20], native.bundle.config.dense).hidden[0]]
    expected += [other.forward([token], Action.parse("k100-s100-q4")).hidden[0] for token in tokens[20:-1]]
    assert np.array_equal(scored.hidden, expected)


@pytest.mark.parametrize(
    "dial", [{}, {"budget": 0.6}, {"budget": 0.7, "schedule": "entropy"}, {"max_loss": 0.05}], ids=str
)
def test_steps_are_those_of_python(python: SolModel, native: NativeModel, dial: dict[str, Any]) -> None:
    """Two runs after one prompt; the second one rewinds to it."""
    tokens, session = tokens_of(python.bundle, 150), native.session()
    ours = [native.decoder(Dial(**dial), session)]
    theirs = [python.decoder(Dial(**dial))[1]]
    for decoder in (ours[0], theirs[0]):
        decoder.prefill(tokens[:60])
    prompts = [detached(decoder.output) for decoder in (theirs[0], ours[0])]
    for again in (False, True):
        if again:
            ours.append(native.decoder(Dial(**dial), session))
            theirs.append(python.decoder(Dial(**dial))[1])
            theirs[1].rewind(60, prompts[0])
            ours[1].rewind(60, prompts[1])
        for token in tokens[60:]:
            expected, got = theirs[-1].step(token), ours[-1].step(token)
            assert (got.action, got.context) == (expected.action, expected.context)
            assert got.cost == pytest.approx(expected.cost, rel=1e-12)
            assert np.array_equal(ours[-1].output.logits, theirs[-1].output.logits)
            assert np.array_equal(ours[-1].output.hidden, theirs[-1].output.hidden)
        assert ours[-1].achieved == pytest.approx(theirs[-1].controller.achieved, rel=1e-12)
        assert (ours[-1].actions, ours[-1].floored) == (theirs[-1].actions, theirs[-1].controller.floored)
    session.reset()
    with pytest.raises(UsageError, match="no results of the token before"):
        ours[1].step(1)
    with pytest.raises(UsageError, match="rewind: got 3, expected 1 to 0"):
        ours[1].rewind(3, prompts[1])


def test_losses_of_an_export_are_those_of_python() -> None:
    bundle, core_runs = Bundle.open(TINY), open_runs(TINY)
    assert isinstance(core_runs, NativeSession)
    engine, dense = Engine(bundle, provider="cpu"), bundle.config.dense
    windows = [tokens_of(bundle, 150, seed) for seed in range(2)]
    candidates = [
        Candidate(Action(1.0, 1.0, 4)),
        Candidate(Action(0.3, 0.6, 6)),
        Candidate(Action(1.0, 0.6, 4), (40, 50), (60, 30)),
    ]
    for keep in (False, True):
        expected, got = (token_losses(runs, windows, candidates, keep=keep) for runs in (engine, core_runs))
        assert np.array_equal(got, expected)
    for found, wanted in zip(
        losses_and_divergences(core_runs, windows, dense, candidates),
        losses_and_divergences(engine, windows, dense, candidates),
        strict=True,
    ):
        assert np.array_equal(found, wanted)


def test_wrong_runs_and_scores(native: NativeModel) -> None:
    session, dense = native.session(), native.bundle.config.dense
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
        native.score([1, 2], context=2)
    with pytest.raises(UsageError, match="--budget"):
        native.score([1, 2, 3], budget=float("nan"))


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
def test_an_own_schedule_chooses_in_both_engines(python: SolModel, native: NativeModel, dial: dict[str, Any]) -> None:
    made: list[Alternating] = []

    def make(controller: Any) -> Alternating:
        made.append(Alternating(controller))
        return made[-1]

    settings = {"max_new_tokens": 60, "eos_token_id": [], "schedule": make, **dial}
    expected, got = python.generate(PROMPT, **settings), finished(native.stream(PROMPT, **settings))
    assert (got.tokens, got.actions, got.schedule) == (expected.tokens, expected.actions, "alternating")
    assert got.achieved_budget == pytest.approx(expected.achieved_budget, rel=1e-12)
    assert made[1].seen == made[0].seen
    scores = [model.score(PROMPT * 5, context=4, schedule=make, **dial) for model in (python, native)]
    assert np.array_equal(scores[1].logprobs, scores[0].logprobs)
    assert scores[1].actions == scores[0].actions


def test_errors_of_an_own_schedule(native: NativeModel) -> None:
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
        tokens.extend(native.stream(PROMPT, schedule=Failing, **settings))
    with pytest.raises(UsageError, match=r"chose .*, expected one of the controller's actions"):
        finished(native.stream(PROMPT, schedule=Foreign, **settings))
    with pytest.raises(UsageError, match="got context 7, expected 6"):
        finished(native.stream(PROMPT, schedule=Elsewhere, **settings))
    with pytest.raises(UsageError, match="no step is being chosen"):
        native.stream(PROMPT, schedule=lambda controller: controller.allowed(3), **settings)
    with pytest.raises(UsageError, match="expected a function that takes the controller"):
        native.stream(PROMPT, schedule=lambda controller: 3, **settings)
    with pytest.raises(UsageError, match="keeps no loss"):
        native.stream(PROMPT, schedule=Alternating, max_loss=0.01, **settings)
    assert len(finished(native.stream(PROMPT, budget=1.0, **settings)).tokens) == 9  # the session is well


def finished(stream: Any) -> Any:
    for _ in stream:
        pass
    return stream.result


@pytest.mark.filterwarnings("ignore::sol_rt.errors.QualityWarning")
def test_costs_of_the_caller(native: NativeModel) -> None:
    config = native.bundle.config
    lines = {
        key: {1.0: Line(1.0 + (0.0 if variant.bits == 8 else 1.0), 0.0, 0.0, 0.0)}
        for key, variant in config.variants.items()
    }
    table = CostTable(native.bundle.identity, "the caller's", "", 0.0, lines)
    native.set_costs(table)
    result = finished(native.stream(PROMPT, budget=0.9, schedule="uniform", max_new_tokens=20, eos_token_id=[]))
    assert result.cost_model == native.cost.name == "measured"
    assert all(action.endswith("q8") for action in result.actions)  # the others cost twice as much
    with pytest.raises(SolError, match="made for another bundle"):
        native.set_costs(CostTable("0" * 64, "the caller's", "", 0.0, lines))
    native.set_costs(None)
    result = finished(native.stream(PROMPT, budget=0.9, max_new_tokens=5, eos_token_id=[]))
    assert result.cost_model == native.cost.name == "bytes"


def test_the_core_drives_an_engine_of_python(python: SolModel, native: NativeModel) -> None:
    tokens = tokens_of(python.bundle, 120)
    options = default_options()
    options.budget = 0.6
    expected = native.session().score(tokens, 50, options)
    session = native.session(python.engine)
    got = session.score(tokens, 50, options)
    rows = session.forward(tokens[:9], native.bundle.config.dense, num_logits=4)
    assert session.tokens == [*tokens[:-1], *tokens[:9]] == list(python.engine.tokens)
    assert np.array_equal(got.logprobs, expected.logprobs)
    assert got.actions == expected.actions
    python.engine.truncate(len(tokens) - 1)
    again = python.engine.forward(tokens[:9], python.bundle.config.dense, num_logits=4)
    assert np.array_equal(rows.logits, again.logits)


def test_errors_of_an_engine_of_python(python: SolModel, native: NativeModel) -> None:
    class Broken:
        truncate, reusable_prefix = python.engine.truncate, python.engine.reusable_prefix

        def forward(self, tokens: Any, action: Action, *, num_logits: int = 1) -> Any:
            raise OSError("unplugged")

    session = native.session(Broken())
    with pytest.raises(OSError, match="unplugged"):
        session.forward([1, 2], native.bundle.config.dense)
    assert session.length == 0


@pytest.mark.parametrize("row", ["logits", "hidden"])
def test_an_engine_of_python_with_results_of_another_shape(python: SolModel, native: NativeModel, row: str) -> None:
    class Given:
        truncate, reusable_prefix = python.engine.truncate, python.engine.reusable_prefix

        def forward(self, tokens: Any, action: Action, *, num_logits: int = 1) -> Any:
            output = python.engine.forward(tokens, action, num_logits=num_logits)
            given = {"logits": output.logits, "hidden": output.hidden}
            given[row] = np.repeat(given[row], 3, axis=0)
            return StepOutput(given["logits"], given["hidden"], output.distribution)

    session = native.session(Given())
    with pytest.raises(UsageError, match=rf"Given.forward: {row}: got an array \(3, \d+\), expected \(1, \d+\)"):
        session.forward([1, 2], native.bundle.config.dense)
    assert session.length == 0
