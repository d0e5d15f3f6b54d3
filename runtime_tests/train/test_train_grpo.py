"""GRPO's arithmetic against the same in NumPy float64, and what it learns where the best choice is known."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from helpers.made_configs import made_config, with_losses  # noqa: E402
from sol_rt.budget.cost.model import BytesCost  # noqa: E402
from sol_rt.budget.dial import Dial  # noqa: E402
from sol_rt.budget.hull import Hull  # noqa: E402
from sol_rt.export.graphs.policy_graph import PolicyShape  # noqa: E402
from sol_rt.generate.native.plan import Plan  # noqa: E402
from sol_rt.train import grpo  # noqa: E402
from sol_rt.train.config import GrpoConfig  # noqa: E402
from sol_rt.train.multipliers import Multipliers  # noqa: E402
from sol_rt.train.policy_network import PolicyNetwork  # noqa: E402
from sol_rt.train.rollouts.rollout import Episode, Observation  # noqa: E402
from sol_rt.train.run.distributed import Group  # noqa: E402

K, T, A, HIDDEN = 6, 5, 3, 32


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small only wait for threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _episode(seed: int = 0) -> Episode:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    action = torch.randint(0, A, (K, T), generator=draw)
    previous = torch.cat([torch.full((K, 1), -1), action[:, :-1]], 1)
    return Episode(
        context=20,
        budget=torch.full((K,), 0.5),
        token=torch.randint(0, 9, (T,), generator=draw),
        hidden=normal(K, T, HIDDEN),
        scalars=normal(K, T, 2),
        previous=previous,
        action=action,
        log_likelihood=normal(K, T),
        cost=torch.rand(K, T, generator=draw),
        kl=normal(K, T).abs(),
    )


def test_centred_returns_by_definition() -> None:
    episode = _episode()
    config = GrpoConfig(gamma=0.8, penalty=7.0, tolerance=0.05)
    got = grpo.centred_returns(episode, 0.9, config)
    kl, cost = (value.double().numpy() for value in (episode.kl, episode.cost))
    returns = np.zeros((K, T))
    for k in range(K):
        beyond = max(0.0, abs(cost[k].mean() - 0.5) - 0.05)
        for t in range(T):
            reward = [-kl[k, s] - 0.9 * cost[k, s] for s in range(t, T)]
            returns[k, t] = sum(0.8**ahead * value for ahead, value in enumerate(reward)) - 7.0 * beyond**2
    expected = returns - returns.mean(0)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


def test_whitened_advantages_have_unit_variance() -> None:
    draw = torch.Generator().manual_seed(3)
    values = torch.cat([5 * torch.randn(4, 7, generator=draw) + 1, torch.randn(4, 7, generator=draw)])
    whole = grpo.whitened(values, Group())
    assert float(whole.mean()) == pytest.approx(0, abs=1e-5)
    assert float(whole.square().mean()) == pytest.approx(1, abs=1e-5)


def test_ppo_losses_by_definition() -> None:
    draw, config = torch.Generator().manual_seed(1), GrpoConfig(clip=0.2, entropy=0.03)
    logprobs = torch.log_softmax(torch.randn(K, T, A, generator=draw), -1)
    action = torch.randint(0, A, (K, T), generator=draw)
    old, advantage = torch.randn(K, T, generator=draw) - 1, torch.randn(K, T, generator=draw)
    nothing = torch.zeros(0)
    temperature = torch.tensor([config.temperature, config.temperature / 50] * K)[:K]
    batch = grpo.Batch(nothing, nothing, nothing, nothing, action, nothing, temperature, advantage)
    got = grpo.ppo_losses(logprobs, old, batch, config)
    p = logprobs.double().numpy()
    gain = entropy = bonus = 0.0
    for k in range(K):
        for t in range(T):
            ratio = np.exp(p[k, t, action[k, t]] - float(old[k, t]))
            a = float(advantage[k, t])
            gain += min(ratio * a, np.clip(ratio, 0.8, 1.2) * a) / (K * T)
            own = -(np.exp(p[k, t]) * p[k, t]).sum() / (K * T)
            entropy += own
            bonus += own if k % 2 == 0 else own / 50
    assert float(got.total) == pytest.approx(-gain - 0.03 * bonus, abs=1e-5)
    assert float(got.entropy) == pytest.approx(entropy, abs=1e-5)


def _network() -> PolicyNetwork:
    torch.manual_seed(0)
    return PolicyNetwork(PolicyShape(HIDDEN, 2, A, horizon=T, width=16, heads=2, scalar_size=8, action_size=8))


def _embed(tokens: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(tokens, HIDDEN).float()


def test_sampling_follows_the_charged_distribution_whatever_runs_beside() -> None:
    network, rows = _network(), 4000
    noise = grpo.gumbel(np.random.default_rng(0), rows, T, A)
    charge = torch.tensor([[0.0, 1.0, 2.0]]).expand(T, A)
    hidden, scalars = torch.randn(1, HIDDEN), torch.randn(1, 2)

    def drawn(start: int, stop: int) -> torch.Tensor:
        choose = grpo.SampledChoice(network, _embed, charge, 1.3, noise)
        count = stop - start
        first = torch.full((count,), -1)
        return choose(Observation(0, slice(start, stop), 3, hidden.expand(count, -1), scalars.expand(count, -1), first))

    together = drawn(0, rows)
    assert torch.equal(together[100:103], torch.cat([drawn(row, row + 1) for row in range(100, 103)]))
    with torch.no_grad():
        logits, _ = network.step(
            hidden, _embed(torch.tensor([3])), scalars, torch.tensor([-1]), 0, network.new_state(1)
        )
    expected = torch.softmax((logits[0] - charge[0]) / 1.3, -1)
    shares = torch.bincount(together, minlength=A) / rows
    np.testing.assert_allclose(shares.numpy(), expected.numpy(), atol=0.03)  # 4 standard errors


def test_the_two_actions_that_hull_takes_are_drawn_alone() -> None:
    """At every context and budget, as the schedule of the core takes them."""
    config = with_losses(made_config())
    cost = BytesCost(config)
    hull = Hull(cost.schedule_actions("hull"), cost)
    contexts = range(500, 660)
    for budget in (0.3, 0.45, 0.6, 0.75, 0.9):
        plan = Plan(cost, Dial(budget, "hull"))
        taken = [hull.actions.index(plan.step(context).action) for context in contexts]
        mixed = grpo.mixed_actions(hull, budget, contexts)
        assert set(mixed.sum(1).tolist()) <= {1, 2}
        assert all(bool(mixed[row, place]) for row, place in enumerate(taken))
    network, noise = _network(), grpo.gumbel(np.random.default_rng(0), 500, T, A)
    charge = torch.tensor([[0.0, 0.0, grpo._NEVER]]).expand(T, A)
    choose = grpo.SampledChoice(network, _embed, charge, 1.3, noise)
    seen = Observation(0, slice(0, 500), 3, torch.zeros(500, HIDDEN), torch.zeros(500, 2), torch.full((500,), -1))
    assert set(choose(seen).tolist()) == {0, 1}


@pytest.mark.slow
def test_updates_find_the_rewarded_action() -> None:
    """The token determines the rewarded action, and a few hundred updates learn it."""
    network, config, rows = _network(), GrpoConfig(gamma=0.0, entropy=0.0, penalty=0.0), 24
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    right = []
    for update in range(400):
        random = np.random.default_rng(update)
        token = torch.from_numpy(random.integers(0, A, T))
        hidden, scalars = torch.zeros(rows, T, HIDDEN), torch.zeros(rows, T, 2)
        choose = grpo.SampledChoice(network, _embed, torch.zeros(T, A), 1.0, grpo.gumbel(random, rows, T, A))
        previous, actions = torch.full((rows,), -1), []
        for t in range(T):
            actions.append(choose(Observation(t, slice(0, rows), int(token[t]), hidden[:, t], scalars[:, t], previous)))
            previous = actions[-1]
        action = torch.stack(actions, 1)
        rewarded = (action == token).float()
        right.append(float(rewarded.mean()))
        before = torch.cat([torch.full((rows, 1), -1), action[:, :-1]], 1)
        zeros = torch.zeros(rows, T)
        ran = Episode(9, torch.ones(rows), token, hidden, scalars, before, action, zeros, zeros, kl=-rewarded)
        centred = grpo.centred_returns(ran, 0.0, config)
        advantage = grpo.whitened(centred, Group())
        charge = torch.zeros(rows, T, A)
        batch = grpo.Batch(token.expand(rows, -1), hidden, scalars, before, action, charge, torch.ones(rows), advantage)
        logprobs = grpo.log_probabilities(network, _embed, batch)
        old = logprobs.detach().gather(-1, action[..., None]).squeeze(-1)
        optimizer.zero_grad()
        grpo.ppo_losses(logprobs, old, batch, config).total.backward()
        optimizer.step()
    assert np.mean(right[:5]) < 0.6
    assert np.mean(right[-10:]) > 0.9


def test_multipliers_meet_their_budgets() -> None:
    """Two actions, of cost 1 and 0.2, whose losses are 0 and 0.3 on average: the mix at a multiplier is known."""
    multipliers = Multipliers(0.3, 0.9)

    def mean_cost(multiplier: float) -> float:
        share = 1 / (1 + np.exp((multiplier * 0.8 - 0.3) / 0.1))  # of the dear one
        return float(share + (1 - share) * 0.2)

    multipliers.fit(mean_cost)
    for budget in multipliers.budgets.tolist():
        assert mean_cost(multipliers.at(budget)) == pytest.approx(budget, abs=1e-6)
    multipliers.logarithms += 1.0
    for _ in range(200):
        budgets = [0.4, 0.55, 0.8]
        multipliers.follow(budgets, [mean_cost(multipliers.at(budget)) for budget in budgets], 0.5)
    for budget in budgets:
        assert mean_cost(multipliers.at(budget)) == pytest.approx(budget, abs=0.005)
