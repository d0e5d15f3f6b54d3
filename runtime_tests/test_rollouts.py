"""Episodes: what they say is what the engine does step by step, whichever way they were run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tiny_bundle import write_bundle  # noqa: E402
from torch import Tensor  # noqa: E402

from sol_rt.actions import Action  # noqa: E402
from sol_rt.bundle import Bundle  # noqa: E402
from sol_rt.controller import Controller  # noqa: E402
from sol_rt.cost import BytesCost  # noqa: E402
from sol_rt.engine import Engine  # noqa: E402
from sol_rt.errors import ContextError, UsageError  # noqa: E402
from sol_rt.generation import Decoder  # noqa: E402
from sol_rt.policy_inputs import KNOWN_SCALARS  # noqa: E402
from sol_rt.schedules import SolSchedule  # noqa: E402
from sol_rt.train.observation import relative_costs  # noqa: E402
from sol_rt.train.rollout import Observation, RolloutSpec  # noqa: E402
from sol_rt.train.rollout_runtime import RuntimeRollouts  # noqa: E402

START, HORIZON, SCHEDULES, BUDGET = 70, 6, 4, 0.6


@dataclass(frozen=True)
class Tiny:
    engine: Engine
    other: Engine
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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    bundle = Bundle.open(write_bundle(folder, bits=(8, 4), policy=True))
    cost = BytesCost(bundle.config)
    assert bundle.config.policy is not None
    spec = RolloutSpec(bundle.config.policy.actions, cost, KNOWN_SCALARS, cost.policy())
    tokens = np.random.default_rng(5).integers(3, bundle.config.model.vocab_size, 120).tolist()
    return Tiny(Engine(bundle, provider="cpu"), Engine(bundle, provider="cpu"), spec, tokens)


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
    rollouts = RuntimeRollouts(tiny.engine, tiny.spec, kl=True)
    rollouts.open(tiny.tokens)
    table = drawn()
    episode = rollouts.run(START, HORIZON, BUDGET, Script(table), SCHEDULES)
    assert torch.equal(episode.action, table)
    assert torch.equal(episode.previous, torch.cat([torch.full((SCHEDULES, 1), -1), table[:, :-1]], dim=1))
    assert episode.token.tolist() == tiny.tokens[START : START + HORIZON]
    engine, column = tiny.engine, {name: i for i, name in enumerate(rollouts.columns)}
    assert episode.kl is not None
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


def _divergence(tiny: Tiny, at: int, other: np.ndarray) -> float:
    """KL(dense || other) after token `at`."""
    tiny.other.reset()
    dense = log_softmax(tiny.other.forward(tiny.tokens[: at + 1], tiny.dense).logits[0])
    return float((np.exp(dense) * (dense - other)).sum())


def test_costs_are_the_controller_s(tiny: Tiny) -> None:
    controller = Controller(tiny.spec.actions, tiny.spec.cost, 0.5, policy_cost=True)
    contexts = [1, 63, 64, 500]
    expected = np.stack([controller.relative_costs(context) for context in contexts])
    np.testing.assert_allclose(relative_costs(tiny.spec, contexts), expected, rtol=1e-12)
    rollouts = RuntimeRollouts(tiny.engine, tiny.spec)
    rollouts.open(tiny.tokens)
    table = drawn(1)
    episode = rollouts.run(START, HORIZON, BUDGET, Script(table), SCHEDULES)
    for t in range(HORIZON):
        np.testing.assert_allclose(episode.cost[:, t], controller.relative_costs(START + t)[table[:, t]], rtol=1e-6)
    assert episode.kl is None


class _Told:
    """A policy of the decode loop with random likings, which keeps what it was told."""

    def __init__(self, tiny: Tiny) -> None:
        spec = tiny.engine.bundle.config.policy
        assert spec is not None
        self.spec, self._random = spec, np.random.default_rng(2)
        self.scalars: list[Mapping[str, float]] = []
        self.hidden: list[np.ndarray] = []

    def reset(self) -> None: ...

    def decide(
        self, hidden: np.ndarray, token: int, scalars: Mapping[str, float], previous_action: int, step: int
    ) -> np.ndarray:
        self.scalars.append(scalars)
        self.hidden.append(hidden[0].copy())
        return self._random.standard_normal(len(self.spec.actions)).astype(np.float32)


def test_scalars_are_those_of_the_decode_loop(tiny: Tiny) -> None:
    """What `sol` chose in generation, replayed as an episode: the policy is shown what it was told then."""
    policy = _Told(tiny)
    horizon = policy.spec.horizon
    spec = replace(tiny.spec, policy_cost=0.0)  # beside so small a model a policy leaves no choice
    controller = Controller(spec.actions, spec.cost, BUDGET)
    loop = Decoder(tiny.engine, controller, SolSchedule(controller, policy))
    loop.prefill(tiny.tokens[:START])
    taken = [loop.step(token).action for token in tiny.tokens[START : START + horizon]]
    rollouts = RuntimeRollouts(tiny.engine, spec)
    rollouts.open(tiny.tokens)
    table = torch.tensor([[tiny.spec.actions.index(action) for action in taken]])
    assert len(set(taken)) > 3
    episode = rollouts.run(START, horizon, BUDGET, Script(table), 1)
    told = [[scalars[name] for name in rollouts.columns] for scalars in policy.scalars]
    np.testing.assert_allclose(episode.scalars[0], told, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(episode.hidden[0], policy.hidden, rtol=1e-4, atol=1e-4)


def test_runtime_losses_are_single_steps_on_a_dense_cache(tiny: Tiny) -> None:
    rollouts = RuntimeRollouts(tiny.engine, tiny.spec)
    rollouts.open(tiny.tokens)
    for action in (tiny.dense, Action(30, 50, 4)):
        losses, engine = rollouts.losses(START, 9, action), tiny.engine
        view = rollouts.view(START, 9, BUDGET)
        for i in range(9):
            episode = rollouts.run(START + i, 1, BUDGET, Script(torch.zeros(1, 1, dtype=torch.int64)), 1)
            np.testing.assert_allclose(view.hidden[i], episode.hidden[0, 0], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(view.scalars[i], episode.scalars[0, 0], rtol=1e-4, atol=1e-4)
            engine.reset()
            engine.forward(tiny.tokens[: START + i], tiny.dense)
            got = log_softmax(engine.forward([tiny.tokens[START + i]], action).logits[0])
            assert float(losses.loss[i]) == pytest.approx(-got[tiny.tokens[START + i + 1]], abs=1e-4)
            assert float(losses.kl[i]) == pytest.approx(_divergence(tiny, START + i, got), abs=1e-4)
        assert view.token.tolist() == tiny.tokens[START : START + 9]


def test_calls_in_any_order_and_another_user_of_the_engine_change_nothing(tiny: Tiny) -> None:
    rollouts = RuntimeRollouts(tiny.engine, tiny.spec)
    rollouts.open(tiny.tokens)
    table = drawn(2)
    first = rollouts.run(START, HORIZON, BUDGET, Script(table), SCHEDULES)
    rollouts.losses(40, 5, tiny.spec.actions[-1])
    rollouts.run(START + 20, HORIZON, BUDGET, Script(table), SCHEDULES)
    tiny.engine.owner = None
    tiny.engine.reset()
    tiny.engine.forward(tiny.tokens[5:80], tiny.spec.actions[-1])
    again = rollouts.run(START, HORIZON, BUDGET, Script(table), SCHEDULES)
    torch.testing.assert_close(again.log_likelihood, first.log_likelihood, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again.scalars, first.scalars, rtol=1e-5, atol=1e-5)


def test_budgets_may_differ_between_schedules(tiny: Tiny) -> None:
    rollouts = RuntimeRollouts(tiny.engine, tiny.spec)
    rollouts.open(tiny.tokens)
    budgets = torch.tensor([0.4, 0.9])
    script = Script(drawn(3, 2, 3))
    episode = rollouts.run(START, 3, budgets, script, 2)
    assert torch.equal(episode.budget, budgets)
    at = rollouts.columns.index("budget")
    torch.testing.assert_close(episode.scalars[:, :, at], budgets[:, None].expand(2, 3))
    assert [(seen.step, seen.rows.start) for seen in script.seen] == [(t, row) for row in range(2) for t in range(3)]


def test_bad_calls(tiny: Tiny) -> None:
    rollouts = RuntimeRollouts(tiny.engine, tiny.spec)
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
