"""Stage 1: the objective finds the expected added loss, choices are Lagrangian, episodes are consistent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from helpers.made_configs import made_config  # noqa: E402
from sol_rt.budget.cost.model import BytesCost  # noqa: E402
from sol_rt.bundle.actions import Action  # noqa: E402
from sol_rt.bundle.policy_inputs import KNOWN_SCALARS  # noqa: E402
from sol_rt.export.graphs.policy_graph import PolicyShape  # noqa: E402
from sol_rt.train import warm_start  # noqa: E402
from sol_rt.train.holdout import SCHEDULES, Score, compare  # noqa: E402
from sol_rt.train.policy_network import PolicyNetwork  # noqa: E402
from sol_rt.train.rollouts.counterfactuals import Counterfactuals  # noqa: E402
from sol_rt.train.rollouts.rollout import RolloutSpec  # noqa: E402

HIDDEN, POSITIONS, WINDOWS, UNIT = 32, 48, 12, 0.1
KINDS = torch.tensor([[0.0, 0.3], [0.0, 0.05]])
"""Expected added loss of the two actions after tokens of either kind. The token decides the kind."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small only wait for threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _spec() -> RolloutSpec:
    config = made_config()
    dense = config.dense
    cheap = next(entry.action for entry in config.actions if entry.action.variant != dense.variant)
    return RolloutSpec((dense, Action(1.0, cheap.channel_density, cheap.bits)), BytesCost(config), KNOWN_SCALARS)


def _window(seed: int) -> Counterfactuals:
    draw = torch.Generator().manual_seed(seed)
    token = torch.randint(0, 2, (POSITIONS,), generator=draw)
    noise = 0.2 * torch.randn(POSITIONS, 2, generator=draw)
    base = torch.rand(POSITIONS, 1, generator=draw) * 3
    noise[:, 0] = 0
    scalars = torch.zeros(POSITIONS, len(KNOWN_SCALARS))
    hidden = torch.randn(POSITIONS, HIDDEN, generator=draw)
    return Counterfactuals(token, hidden, scalars, base + KINDS[token] + noise, KINDS[token] + noise / 2, 100)


def _embed(tokens: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(tokens, HIDDEN).float()


def _examples(windows: Sequence[int]) -> warm_start.Examples:
    return warm_start.Examples.of([_window(seed) for seed in windows], _spec())


def _trained() -> tuple[PolicyNetwork, Callable[[warm_start.EpisodeBatch], torch.Tensor]]:
    torch.manual_seed(0)
    shape = PolicyShape(HIDDEN, len(KNOWN_SCALARS), 2, horizon=4, width=16, heads=2, scalar_size=8, action_size=8)
    network = PolicyNetwork(shape)
    examples = _examples(range(WINDOWS))
    multipliers, optimizer = (0.05, 0.5), torch.optim.AdamW(network.parameters(), lr=3e-3)
    for update in range(150):
        random = np.random.default_rng(update)
        batch = warm_start.draw_episodes(examples, 64, 4, multipliers, UNIT, KNOWN_SCALARS, random)
        logits = network(0 * batch.hidden, _embed(batch.token), batch.scalars, batch.previous)
        optimizer.zero_grad()
        warm_start.objective(logits, batch, UNIT).backward()
        optimizer.step()
    return network, lambda batch: network(0 * batch.hidden, _embed(batch.token), batch.scalars, batch.previous)


def test_logits_become_minus_the_expected_added_loss() -> None:
    _, logits_of = _trained()
    random = np.random.default_rng(99)
    examples = _examples(range(100, 104))
    batch = warm_start.draw_episodes(examples, 200, 4, (0.1, 0.3), UNIT, KNOWN_SCALARS, random)
    with torch.no_grad():
        logits = logits_of(batch)
    found = UNIT * (logits[..., 0] - logits[..., 1])  # how much more the cheap action is thought to lose
    for kind, expected in enumerate((0.3, 0.05)):
        assert float(found[batch.token == kind].mean()) == pytest.approx(expected, abs=0.05)


def test_the_gain_is_that_of_knowing_the_token() -> None:
    network, _ = _trained()
    examples, multiplier = _examples(range(200, 212)), 0.3
    window = torch.arange(12).repeat_interleave(POSITIONS // 4)
    begin = torch.arange(0, POSITIONS, 4).repeat(12)
    multipliers = torch.full((len(window),), multiplier)
    random = np.random.default_rng(0)
    batch = warm_start.episodes_at(examples, window, begin, 4, multipliers, UNIT, KNOWN_SCALARS, random)
    batch = warm_start.EpisodeBatch(**{**vars(batch), "hidden": 0 * batch.hidden})
    gain = warm_start.lagrangian_gain(
        network, _embed(batch.token), batch, [multiplier], UNIT, torch.zeros(len(window), dtype=torch.int64)
    )
    value = batch.added + multiplier * batch.cost
    best = torch.where(batch.token == 0, value[..., 0], value[..., 1])  # dense only after tokens that need it
    static = min(float(value[..., action].mean()) for action in range(2))
    assert gain == pytest.approx(static - float(best.mean()), abs=0.01)
    assert gain > 0.01


@pytest.mark.parametrize("horizon", [4, 16, 20])
def test_episodes_tell_what_a_run_would(horizon: int) -> None:
    """Scalars that follow from earlier choices are those of the decode loop's own code."""
    from sol_rt.bundle.policy_inputs import RECENT, PolicyInputs, StepObservation
    from sol_rt.train.rollouts.observation import RowDistribution

    examples = _examples(range(3))
    random = np.random.default_rng(5)
    batch = warm_start.draw_episodes(examples, 20, horizon, (0.1, 0.3), UNIT, KNOWN_SCALARS, random)
    column = {name: index for index, name in enumerate(KNOWN_SCALARS)}
    for row in range(20):
        inputs = PolicyInputs(KNOWN_SCALARS, horizon)
        budget = float(batch.scalars[row, 0, column["budget"]])
        for _ in range(RECENT):  # before the episode the budget was held
            inputs.record(-1, budget)
        for t in range(horizon):
            if t:
                action = int(batch.previous[row, t])
                inputs.record(action, float(batch.cost[row, t - 1, action]))
            told = inputs.at(t, StepObservation(100, 0, RowDistribution(0.0, 0.0, 0.0, 0.0), budget))
            assert int(batch.previous[row, t]) == inputs.previous
            for name in ("step_fraction", "spend_deviation", "recent_spend", *(["previous_cost"] if t else [])):
                assert float(batch.scalars[row, t, column[name]]) == pytest.approx(told[name], abs=1e-5)


def test_multipliers_are_those_that_the_budgets_ask_for() -> None:
    examples = _examples(range(WINDOWS))
    low, high = warm_start.multiplier_range(examples, UNIT, (0.75, 0.9))
    added, cost = examples.added.mean(1), examples.cost.mean(1)
    for multiplier, budget in ((low, 0.9), (high, 0.75)):
        cheap = 1 / (1 + torch.exp((added[:, 1] - added[:, 0] + multiplier * (cost[:, 1] - cost[:, 0])) / UNIT))
        assert float((cost[:, 0] * (1 - cheap) + cost[:, 1] * cheap).mean()) == pytest.approx(budget, abs=1e-3)


def test_one_held_out_window_shows_nothing() -> None:
    scores = {name: Score(0.1 + 0.01 * place, 0.5) for place, name in enumerate(SCHEDULES)}
    points = [(1.0, 0.0), (0.4, 0.5)]
    assert math.isinf(compare([scores], [0], 0.5, points).stderr["static"])
    assert compare([scores, scores], [0, 0], 0.5, points).stderr["static"] == 0.0
