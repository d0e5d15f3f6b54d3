"""Episodes: what they say is what the engine does step by step, whichever way they were run."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from helpers.made_configs import with_losses  # noqa: E402
from helpers.random_decoder import WEIGHTS, RandomDecoder, describe  # noqa: E402
from helpers.tiny_bundle import write_bundle  # noqa: E402
from sol_rt.budget.cost.model import BytesCost  # noqa: E402
from sol_rt.budget.dial import Dial  # noqa: E402
from sol_rt.bundle.actions import Action  # noqa: E402
from sol_rt.bundle.bundle import Bundle  # noqa: E402
from sol_rt.bundle.config import FileEntry  # noqa: E402
from sol_rt.bundle.policy_inputs import KNOWN_SCALARS  # noqa: E402
from sol_rt.engine.step import StepOutput  # noqa: E402
from sol_rt.errors import ContextError, UsageError  # noqa: E402
from sol_rt.generate.native.engine import Engine  # noqa: E402
from sol_rt.generate.native.plan import Asked, Plan  # noqa: E402
from sol_rt.train.reference_model.branch_cache import BranchCache, Prefix  # noqa: E402
from sol_rt.train.reference_model.model import UNROUNDED, Arithmetic, ReferenceModel  # noqa: E402
from sol_rt.train.reference_model.weights import read_blob  # noqa: E402
from sol_rt.train.rollouts.observation import relative_costs  # noqa: E402
from sol_rt.train.rollouts.reference import ReferenceRollouts  # noqa: E402
from sol_rt.train.rollouts.rollout import Episode, Observation, Rollouts, RolloutSpec  # noqa: E402
from sol_rt.train.rollouts.runtime import RuntimeRollouts  # noqa: E402

START, HORIZON, SCHEDULES, BUDGET = 70, 6, 4, 0.6


@dataclass(frozen=True)
class Tiny:
    engine: Engine
    other: Engine
    reference: ReferenceModel
    spec: RolloutSpec
    tokens: list[int]

    @property
    def dense(self) -> Action:
        return self.spec.cost.dense_action


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Torch's threads would wait for processors that ONNX Runtime's are spinning on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(
    scope="module",
    params=[("llama", "float16", ()), ("llama", "int8", (1,)), ("lfm2", "float16", ()), ("gemma2", "float16", ())],
    ids=["float16", "int8", "states", "window"],
)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    family, kv, dense_layers = request.param
    folder = tmp_path_factory.mktemp("tiny")
    bundle = Bundle.open(write_bundle(folder, family, bits=(8, 4), policy=True, kv=kv, dense_layers=dense_layers))
    config = bundle.config
    weights = read_blob(folder / config.weights_file, config.tensors, describe(family), config.variants)
    reference = ReferenceModel(weights, Arithmetic(kv_dtype=getattr(torch, kv)), dense_layers=dense_layers)
    cost = BytesCost(bundle.config)
    assert bundle.config.policy is not None
    spec = RolloutSpec(bundle.config.policy.actions, cost, KNOWN_SCALARS)
    tokens = np.random.default_rng(5).integers(3, bundle.config.model.vocab_size, 120).tolist()
    return Tiny(Engine(bundle, provider="cpu"), Engine(bundle, provider="cpu"), reference, spec, tokens)


class Script:
    """Chooses what a table [K, T] says and keeps what it was shown."""

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.seen: list[Observation] = []

    def __call__(self, seen: Observation) -> Tensor:
        self.seen.append(seen)
        return self.table[seen.rows, seen.step]


def drawn(seed: int = 0, schedules: int = SCHEDULES, horizon: int = HORIZON) -> Tensor:
    return torch.randint(8, (schedules, horizon), generator=torch.Generator().manual_seed(seed))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())


def test_runtime_episode_is_what_the_engine_does(tiny: Tiny) -> None:
    """Every schedule against steps of the engine by hand, in float64 where the numbers come from logits."""
    rollouts = RuntimeRollouts(tiny.engine, tiny.spec)
    rollouts.open(tiny.tokens)
    table = drawn()
    episode = rollouts.run(START, HORIZON, BUDGET, Script(table), SCHEDULES)
    assert torch.equal(episode.action, table)
    assert torch.equal(episode.previous, torch.cat([torch.full((SCHEDULES, 1), -1), table[:, :-1]], dim=1))
    assert episode.token.tolist() == tiny.tokens[START : START + HORIZON]
    engine, column = tiny.engine, {name: i for i, name in enumerate(rollouts.spec.scalars)}
    for row in range(SCHEDULES):
        engine.reset()
        output = engine.forward(tiny.tokens[:START], tiny.dense)
        before, hidden = log_softmax(output.logits[0]), output.hidden[0].copy()
        for t in range(HORIZON):
            at, scalars = START + t, episode.scalars[row, t]
            np.testing.assert_allclose(episode.hidden[row, t], hidden, rtol=1e-4, atol=1e-4)
            probabilities = np.sort(np.exp(before))
            expected = {
                "step_fraction": t / HORIZON,
                "budget": BUDGET,
                "spend_deviation": float(episode.cost[row, :t].mean()) - BUDGET if t else 0.0,
                "entropy": -(np.exp(before) * before).sum(),
                "top_probability": probabilities[-1],
                "surprise": -before[tiny.tokens[at]],
                "log_context": math.log2(at / 16),
                "margin": probabilities[-1] - probabilities[-2],
                "previous_cost": float(episode.cost[row, t - 1]) if t else 1.0,
                "recent_spend": (float(episode.cost[row, :t].sum()) + 16 - t) / 16,
            }
            assert set(expected) == set(column)
            for name, value in expected.items():
                assert float(scalars[column[name]]) == pytest.approx(value, rel=1e-4, abs=1e-4), (name, row, t)
            output = engine.forward([tiny.tokens[at]], tiny.spec.actions[table[row, t]])
            before, hidden = log_softmax(output.logits[0]), output.hidden[0].copy()
            assert float(episode.log_likelihood[row, t]) == pytest.approx(before[tiny.tokens[at + 1]], abs=1e-4)
            engine_kl = _divergence(tiny, at, before)
            assert float(episode.kl[row, t]) == pytest.approx(engine_kl, abs=1e-4)


def _divergence(tiny: Tiny, at: int, other: np.ndarray, prompt: int = START) -> float:
    """KL(dense || other) after token `at`."""
    dense = log_softmax(_dense(tiny, tiny.other, at + 1, prompt).logits[0])
    return float((np.exp(dense) * (dense - other)).sum())


def _dense(tiny: Tiny, engine: Engine, stop: int, prompt: int = START) -> StepOutput:
    """The output of token `stop` - 1 in the engine, from a prompt of the first `prompt` tokens and dense steps."""
    engine.reset()
    output = engine.forward(tiny.tokens[:prompt], tiny.dense)
    for token in tiny.tokens[prompt:stop]:
        output = engine.forward([token], tiny.dense)
    return output


def test_costs_are_those_of_steps(tiny: Tiny) -> None:
    def shares(context: int) -> np.ndarray:
        cost = tiny.spec.cost
        return np.array([cost.step(action, context) / cost.dense(context) for action in tiny.spec.actions])

    contexts = [1, 63, 64, 500]
    expected = np.stack([shares(context) for context in contexts])
    np.testing.assert_allclose(relative_costs(tiny.spec, tiny.spec.actions, contexts), expected, rtol=1e-12)
    rollouts = RuntimeRollouts(tiny.engine, tiny.spec)
    rollouts.open(tiny.tokens)
    table = drawn(1)
    episode = rollouts.run(START, HORIZON, BUDGET, Script(table), SCHEDULES)
    for t in range(HORIZON):
        np.testing.assert_allclose(episode.cost[:, t], shares(START + t)[table[:, t]], rtol=1e-6)


class _Told:
    """A policy of the decode loop with random likings, which keeps the inputs that it got."""

    def __init__(self, actions: int) -> None:
        self._actions, self._random = actions, np.random.default_rng(2)
        self.scalars: list[np.ndarray] = []
        self.hidden: list[np.ndarray] = []

    def __call__(self, asked: Asked) -> np.ndarray:
        self.scalars.append(asked.scalars.copy())
        self.hidden.append(asked.hidden[0].copy())
        return self._random.standard_normal(self._actions).astype(np.float32)


def test_scalars_are_those_of_the_decode_loop(tiny: Tiny) -> None:
    """The choices of `sol` in a run, replayed as an episode, show the policy the same inputs."""
    config = tiny.engine.bundle.config
    assert config.policy is not None
    assert config.policy.scalars == tiny.spec.scalars
    horizon, spec, policy = config.policy.horizon, tiny.spec, _Told(len(config.policy.actions))
    free = with_losses(replace(config, files={**config.files, config.policy.file: FileEntry(0, "0" * 64)}))
    plan = Plan(BytesCost(free), Dial(BUDGET, "sol"), policy=policy)
    engine, taken = tiny.engine, []
    engine.reset()
    output = engine.forward(tiny.tokens[:START], config.dense)
    for token in tiny.tokens[START : START + horizon]:
        step = plan.step(engine.length, token, hidden=output.hidden, logits=output.logits[0])
        taken.append(step.action)
        output = engine.forward((token,), step.action)
    rollouts = RuntimeRollouts(tiny.engine, spec)
    rollouts.open(tiny.tokens)
    table = torch.tensor([[tiny.spec.actions.index(action) for action in taken]])
    assert len(set(taken)) >= 2
    episode = rollouts.run(START, horizon, BUDGET, Script(table), 1)
    np.testing.assert_allclose(episode.scalars[0], policy.scalars, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(episode.hidden[0], policy.hidden, rtol=1e-4, atol=1e-4)


def test_episodes_midway_are_told_that_the_budget_was_held(tiny: Tiny) -> None:
    """Of a run with even spending, every episode but the first."""
    table, budget = drawn(6, 2), torch.tensor([0.4, 0.7])
    plain, midway = (RuntimeRollouts(tiny.engine, replace(tiny.spec, midway=midway)) for midway in (False, True))
    got, column = [], {name: i for i, name in enumerate(plain.spec.scalars)}
    for rollouts in (plain, midway):
        rollouts.open(tiny.tokens)
        got.append(rollouts.run(START, HORIZON, budget, Script(table), 2))
    dense_steps = (16 - torch.arange(HORIZON)) / 16 * (1 - budget[:, None])
    recent = [episode.scalars[..., column["recent_spend"]] for episode in got]
    torch.testing.assert_close(recent[1], recent[0] - dense_steps)
    torch.testing.assert_close(got[1].scalars[:, 0, column["previous_cost"]], budget)
    same = [name not in ("recent_spend", "previous_cost") for name in plain.spec.scalars]
    torch.testing.assert_close(got[1].scalars[..., same], got[0].scalars[..., same], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[1].scalars[:, 1:, column["previous_cost"]], got[1].cost[:, :-1])


def test_runtime_losses_are_single_steps_on_a_dense_cache(tiny: Tiny) -> None:
    """More positions than one call gives the bits of steps."""
    rollouts, count = RuntimeRollouts(tiny.engine, tiny.spec), 20
    for action in (tiny.dense, Action(0.3, 0.5, 4)):
        rollouts.open(tiny.tokens)
        losses, engine = rollouts.losses(START, count, (action, tiny.spec.actions[-1])), tiny.engine
        view = rollouts.policy_inputs(START, count, BUDGET)
        for i in range(count):
            episode = rollouts.run(START + i, 1, BUDGET, Script(torch.zeros(1, 1, dtype=torch.int64)), 1)
            assert torch.equal(view.hidden[i], episode.hidden[0, 0])
            np.testing.assert_allclose(view.scalars[i], episode.scalars[0, 0], rtol=1e-6, atol=1e-6)
            _dense(tiny, engine, START + i)
            got = log_softmax(engine.forward([tiny.tokens[START + i]], action).logits[0])
            assert float(losses.loss[i, 0]) == pytest.approx(-got[tiny.tokens[START + i + 1]], abs=1e-6)
            assert float(losses.kl[i, 0]) == pytest.approx(_divergence(tiny, START + i, got), abs=1e-6)
        assert view.token.tolist() == tiny.tokens[START : START + count]


def test_losses_along_a_run_are_steps_after_that_run(tiny: Tiny) -> None:
    """Every position by an engine that ran the same actions before, and one action more."""
    rollouts, engine = RuntimeRollouts(tiny.engine, tiny.spec), tiny.engine
    rollouts.open(tiny.tokens)
    taken = [5, 0, 7, 7, 2, 6]
    view, losses = rollouts.losses_along_run(START, taken, BUDGET)
    assert losses.loss.shape == losses.kl.shape == (len(taken), len(tiny.spec.actions))
    for at in range(len(taken)):
        for place, action in enumerate(tiny.spec.actions):
            hidden = _dense(tiny, engine, START, START - 1).hidden[-1]
            for earlier in range(at):
                step = engine.forward([tiny.tokens[START + earlier]], tiny.spec.actions[taken[earlier]])
                hidden = step.hidden[-1].copy()
            got = log_softmax(engine.forward([tiny.tokens[START + at]], action).logits[0])
            assert float(losses.loss[at, place]) == pytest.approx(-got[tiny.tokens[START + at + 1]], abs=1e-6)
            divergence = _divergence(tiny, START + at, got, START - 1)
            assert float(losses.kl[at, place]) == pytest.approx(divergence, abs=1e-5)
        assert np.array_equal(view.hidden[at], hidden)
    assert view.token.tolist() == tiny.tokens[START : START + len(taken)]
    again = rollouts.losses(START + 3, 1, tiny.spec.actions)  # the cache has no cheap steps any more
    rollouts.open(tiny.tokens)
    rollouts.policy_inputs(START, 1, BUDGET)  # a prompt as long as before
    assert torch.equal(rollouts.losses(START + 3, 1, tiny.spec.actions).kl, again.kl)


def test_calls_in_any_order_and_another_user_of_the_engine_change_nothing(tiny: Tiny) -> None:
    rollouts = RuntimeRollouts(tiny.engine, tiny.spec)
    rollouts.open(tiny.tokens)
    table = drawn(2)
    first = rollouts.run(START, HORIZON, BUDGET, Script(table), SCHEDULES)
    rollouts.losses(40, 5, tiny.spec.actions[-1:])
    rollouts.run(START + 20, HORIZON, BUDGET, Script(table), SCHEDULES)
    tiny.engine.owner = None
    tiny.engine.reset()
    tiny.engine.forward(tiny.tokens[5:80], tiny.spec.actions[-1])
    again = rollouts.run(START, HORIZON, BUDGET, Script(table), SCHEDULES)
    torch.testing.assert_close(again.log_likelihood, first.log_likelihood, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again.scalars, first.scalars, rtol=1e-5, atol=1e-5)


def test_reference_model_and_runtime_give_the_same_episodes(tiny: Tiny) -> None:
    """Each action throughout, and mixtures. Costs are equal."""
    sources: list[Rollouts] = [
        RuntimeRollouts(tiny.engine, tiny.spec),
        ReferenceRollouts(tiny.reference, tiny.spec),
    ]
    table = torch.cat([torch.arange(8).unsqueeze(1).expand(8, HORIZON), drawn(4, 8)])
    scripts = [Script(table), Script(table)]
    expected, got = (_episode(source, tiny, script) for source, script in zip(sources, scripts, strict=True))
    assert [len(seen.hidden) for seen in scripts[1].seen] == [16] * HORIZON
    assert torch.equal(got.cost, expected.cost)
    for name in ("budget", "token", "previous", "action"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name
    for name in ("log_likelihood", "kl", "hidden", "scalars"):
        _check_close(getattr(got, name), getattr(expected, name), tiny, name)
    exact = [scalar not in ("entropy", "top_probability", "surprise", "margin") for scalar in KNOWN_SCALARS]
    torch.testing.assert_close(got.scalars[..., exact], expected.scalars[..., exact], rtol=1e-6, atol=1e-6)


def _episode(source: Rollouts, tiny: Tiny, script: Script) -> Episode:
    source.open(tiny.tokens)
    return source.run(START, HORIZON, BUDGET, script, len(script.table))


def _check_close(got: Tensor, expected: Tensor, tiny: Tiny, name: str) -> None:
    """As test_reference_model.py has it: most numbers agree to what float32 order explains; those after a flip of a
    code, a channel or a page are off by a flip's worth. One in the int8 codes of a dense cache shows in all steps
    after it.
    """
    difference = (got - expected).abs().flatten()
    # Off by 1e-6, the reference model itself agrees in no more than 0.13 to 0.44 of an action's losses on int8 caches.
    share = 0.75 if tiny.reference.arithmetic.kv_dtype == torch.float16 else 0.3
    if tiny.reference.decoder.norm_place == "around":  # a norm of a small output makes more of one number
        share = 0.65
    assert (difference < 1e-3).float().mean() >= share, name
    assert difference.square().mean().sqrt() < 0.05, name
    assert difference.max() < 0.5, name


def test_rows_that_share_a_text_are_steps_of_a_plain_cache(tiny: Tiny) -> None:
    """Windows and soft caps included: here both caches hold the same numbers."""
    rollouts, ids = ReferenceRollouts(tiny.reference, tiny.spec), torch.tensor(tiny.tokens)
    rollouts.open(tiny.tokens)
    got = rollouts.losses(30, 70, tiny.spec.actions).loss
    cache = tiny.reference.new_cache(1)
    cache.reserve(len(ids), step=1)
    tiny.reference(ids[None], tiny.dense, cache)
    differences = []
    for at in range(30, 100, 5):
        for place, action in enumerate(tiny.spec.actions):
            cache.lengths[:] = at
            logits, _ = tiny.reference.step(ids[at : at + 1], [action], copy.deepcopy(cache))
            expected = torch.nn.functional.cross_entropy(logits, ids[at + 1 : at + 2])
            differences.append(float((got[at - 30, place] - expected).abs()))
    assert np.mean(np.array(differences) < 1e-3) > 0.95, differences
    assert max(differences) < 0.05, differences


def test_reference_model_and_runtime_give_the_same_losses_and_views(tiny: Tiny) -> None:
    runtime, reference = RuntimeRollouts(tiny.engine, tiny.spec), ReferenceRollouts(tiny.reference, tiny.spec)
    for source in (runtime, reference):
        source.open(tiny.tokens)
    expected, got = (source.losses(30, 70, tiny.spec.actions) for source in (runtime, reference))
    for place, action in enumerate(tiny.spec.actions):
        _check_close(got.loss[:, place], expected.loss[:, place], tiny, action.tag)
        _check_close(got.kl[:, place], expected.kl[:, place], tiny, action.tag)
    assert ((got.loss - expected.loss).abs() < 1e-3).float().mean() >= 0.7  # of all actions' losses
    taken = [(at * at) % len(tiny.spec.actions) for at in range(40)]
    (_, expected), (_, got) = (source.losses_along_run(30, taken, BUDGET) for source in (runtime, reference))
    _check_close(got.loss, expected.loss, tiny, "loss along a run")
    _check_close(got.kl, expected.kl, tiny, "kl along a run")
    views = runtime.policy_inputs(30, 70, BUDGET), reference.policy_inputs(30, 70, BUDGET)
    assert torch.equal(views[0].token, views[1].token)
    _check_close(views[1].hidden, views[0].hidden, tiny, "hidden")
    _check_close(views[1].scalars, views[0].scalars, tiny, "scalars")


@pytest.mark.parametrize("family", ["llama", "lfm2"])
@pytest.mark.parametrize("starts", [[70] * 5, [70, 41, 66, 2, 70]])
def test_branches_equal_caches_of_their_own(starts: list[int], family: str) -> None:
    """Steps of rows that share a text against steps on a copy of it each, nothing rounded."""
    torch.manual_seed(0)
    decoder = describe(family)
    reference, tokens = _unrounded(family), torch.randint(3, decoder.vocab_size, (1, 70))
    whole = reference.new_cache(1)
    reference(tokens, Action(1.0, 1.0, 8), whole)
    copies = whole.select(torch.zeros(len(starts), dtype=torch.int64))
    copies.truncate(torch.tensor(starts))
    branches = BranchCache(Prefix.of(whole), torch.tensor(starts), decoder, torch.float32, 2)
    for tags in (
        ("k025-s100-q8", "k050-s050-q8", "k100-s100-q4", "k010-s050-q8", "k025-s075-q4"),
        ("k100-s100-q8", "k100-s050-q8", "k100-s100-q4", "k100-s050-q8", "k100-s075-q4"),
        ("k010-s100-q8",) * 5,
    ):
        actions = [Action.parse(tag) for tag in tags]
        ids = torch.randint(3, decoder.vocab_size, (5,))
        expected = reference.step(ids, actions, copies)
        got = reference.step(ids, actions, branches)
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert branches.lengths.tolist() == copies.lengths.tolist()


def _unrounded(family: str) -> ReferenceModel:
    """A reference model of random float32 weights."""
    decoder = describe(family)
    with tempfile.TemporaryDirectory() as folder:
        made = RandomDecoder.write(decoder, Path(folder))
        weights = read_blob(Path(folder) / WEIGHTS, made.tensors, decoder)
    return ReferenceModel(weights, UNROUNDED)


def test_budgets_may_differ_between_schedules(tiny: Tiny) -> None:
    rollouts = RuntimeRollouts(tiny.engine, tiny.spec)
    rollouts.open(tiny.tokens)
    budgets = torch.tensor([0.4, 0.9])
    script = Script(drawn(3, 2, 3))
    episode = rollouts.run(START, 3, budgets, script, 2)
    assert torch.equal(episode.budget, budgets)
    at = rollouts.spec.scalars.index("budget")
    torch.testing.assert_close(episode.scalars[:, :, at], budgets[:, None].expand(2, 3))
    assert [(seen.step, seen.rows.start) for seen in script.seen] == [(t, row) for row in range(2) for t in range(3)]


@pytest.mark.parametrize("source", ["runtime", "reference"])
def test_bad_calls(tiny: Tiny, source: str) -> None:
    rollouts: Rollouts = RuntimeRollouts(tiny.engine, tiny.spec)
    if source == "reference":
        rollouts = ReferenceRollouts(tiny.reference, tiny.spec)
    with pytest.raises(ContextError, match=r"9000 tokens.*at most \d+"):
        rollouts.open([3] * 9000)
    with pytest.raises(UsageError, match="token 100000: expected 0 to 89"):
        rollouts.open([3, 100000])
    rollouts.open(tiny.tokens)
    for start, horizon in ((0, 4), (115, 5), (10, 0)):
        with pytest.raises(UsageError, match=rf"{horizon} positions from {start} on.*within 1 to 118"):
            rollouts.run(start, horizon, BUDGET, Script(drawn()), 1)
    for wrong in (torch.tensor([[8]]), torch.tensor([[-1]]), torch.tensor([[0.5]])):
        with pytest.raises(ValueError, match="expected 1 integers from 0 to 7"):
            rollouts.run(START, 1, BUDGET, Script(wrong), 1)
