"""Measures what the best of many random schedules loses beside `hull`, chosen fairly and chosen in hindsight.

    python benchmarks/random_schedules.py BUNDLE counterfactuals -b 0.35,0.4,0.45,0.5 --schedules 500

A random schedule is a row of actions, drawn step by step from the distribution of largest entropy whose expected cost
is the budget, and kept if its cost is within 0.002 of it. `turns` are random rows of the two actions that `hull` takes.
The program replays them on the windows of a training's counterfactuals, as `policy_bound.py` does:

    mean        of all schedules, on the held-out windows: what a random one loses
    chosen      the schedule that loses least on the training windows, on the held-out windows
    hindsight   the schedule that loses least on the held-out windows themselves
    each        for every held-out window the schedule that loses least on it

Losses are divergences from dense in nats a step at exactly the budget's cost, or with --true what the true next tokens
lose more than dense; the choice goes by the same. ± is the standard error over windows of the difference from `hull`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from policy_bound import windows_of

from sol_rt.budget.cost.bytes_model import BytesCost
from sol_rt.budget.hull import Hull
from sol_rt.budget.schedules.random_schedule import tilted
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.policy_inputs import KNOWN_SCALARS
from sol_rt.store.home import find_bundle
from sol_rt.train import holdout, warm_start
from sol_rt.train.rollouts.counterfactuals import ABOUT, Counterfactuals, CounterfactualStore, hull_actions
from sol_rt.train.rollouts.rollout import RolloutSpec

_NEAR = 0.002  # of the budget, in dense steps: what a schedule may cost more or less
_DRAWN = 2000  # schedules drawn at once
_MOST = 200  # such draws


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or the name of an exported bundle")
    parser.add_argument("counterfactuals", type=Path)
    parser.add_argument("-b", "--budget", default="0.35,0.4,0.45,0.5")
    parser.add_argument("--schedules", type=int, default=500)
    parser.add_argument("--true", action="store_true", help="choose and judge by the true next tokens")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    bundle = Bundle.open(find_bundle(given.bundle))
    about = json.loads((given.counterfactuals / ABOUT).read_text(encoding="utf-8"))
    actions, cost = tuple(map(Action.parse, about["actions"])), BytesCost(bundle.config)
    spec = RolloutSpec(actions, cost, KNOWN_SCALARS, midway=True)
    store = CounterfactualStore(given.counterfactuals, about, about["scalars"], create=False)
    training, held = (list(windows_of(store, name, None, about["windows"])) for name in ("train", "held"))
    if not training or not held:
        parser.error(f"{given.counterfactuals}: no windows of both kinds; `sol-rt train` measures them")
    print(f"{len(held)} held-out windows, {len(training)} to choose on, {given.schedules} schedules\n")
    kinds = [f"{name}: {kind}" for name in ("random", "turns") for kind in ("mean", "chosen", "hindsight", "each")]
    print("| budget | hull | " + " | ".join(kinds) + " |\n|" + "--:|" * (2 + len(kinds)))
    for budget in map(float, given.budget.split(",")):
        random = np.random.default_rng([given.seed, round(1000 * budget)])
        replay = Replay(spec, training, budget, given.schedules, given.true, random)
        learnt, judged = (np.array([replay.losses(*row) for row in rows]) for rows in (training, held))
        cells = [f"{budget:g}", f"{judged[:, 0, 0].mean():.4f}"]  # [windows, random or turns, hull and schedules]
        for kind in range(2):
            hull, fair, seen = judged[:, kind, 0], learnt[:, kind, 1:].mean(0), judged[:, kind, 1:]
            for found in (seen.mean(1), seen[:, fair.argmin()], seen[:, seen.mean(0).argmin()], seen.min(1)):
                cells.append(f"{found.mean():.4f} ± {(found - hull).std(ddof=1) / len(held) ** 0.5:.4f}")
        print("| " + " | ".join(cells) + " |", flush=True)


class Replay:
    """Replays `hull` and random schedules at a budget.

    Args:
        spec: actions and costs.
        training: windows whose mean losses determine what `hull` takes, each with its nominal length.
        budget: requested relative cost.
        schedules: number of random schedules of each kind.
        true: whether losses are those of the true next tokens.
        random: draws the schedules.
    """

    def __init__(
        self,
        spec: RolloutSpec,
        training: list[tuple[int, Counterfactuals]],
        budget: float,
        schedules: int,
        true: bool,
        random: np.random.Generator,
    ) -> None:
        self._spec, self._training, self._budget = spec, training, budget
        self._schedules, self._true, self._random = schedules, true, random
        self._rows: dict[tuple[int, int, int], tuple[np.ndarray, np.ndarray]] = {}

    def losses(self, length: int, window: Counterfactuals) -> np.ndarray:
        """Losses of a window at the budget's cost, nats a step, [2, 1 + schedules]: of `hull`, then of random schedules
        of all actions, and in the second row of random turns of the two actions of `hull`."""
        dense = self._spec.actions.index(self._spec.cost.dense_action)
        costs = warm_start.costs_of(window, self._spec).double()
        added = (window.loss - window.loss[:, dense : dense + 1] if self._true else window.kl).double().numpy()
        means = self._means(length)
        rate = holdout.exchange_rate(list(zip(costs.mean(0).tolist(), means.tolist(), strict=True)), self._budget)
        place = length, window.context, len(window)
        if place not in self._rows:
            self._rows[place] = self._drawn(window, costs.numpy(), means)
        at = np.arange(len(window))
        return np.array(
            [
                [
                    float(added[at, row].mean()) + rate * (float(costs.numpy()[at, row].mean()) - self._budget)
                    for row in rows
                ]
                for rows in self._rows[place]
            ]
        )

    def _means(self, length: int) -> torch.Tensor:
        """Mean divergence of each action on the training windows of a length, float64 [A]."""
        alike = [row for of, row in self._training if of == length] or [row for _, row in self._training]
        return torch.stack([row.kl.double().mean(0) for row in alike]).mean(0)

    def _drawn(self, window: Counterfactuals, costs: np.ndarray, means: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Actions of `hull` in such a window, and of the random schedules: twice int64 [1 + schedules, n]."""
        known = means.numpy()
        hull = Hull(self._spec.actions, self._spec.cost, lambda actions, context: known)
        contexts = range(window.context, window.context + len(window))
        taken = np.array(hull_actions(self._spec, hull, self._budget, contexts))
        members, counts = np.unique(taken, return_counts=True)
        pair, every = members[np.argsort(counts)[-2:]], np.arange(len(self._spec.actions))
        first, second = (np.concatenate([taken[None], self._schedules_of(part, costs)]) for part in (every, pair))
        return first, second

    def _schedules_of(self, part: np.ndarray, costs: np.ndarray) -> np.ndarray:
        """Random schedules of some actions, int64 [schedules, n], that cost the budget. `costs` is float64 [n, A]."""
        shares, at, kept = tilted(costs[:, part].mean(0), self._budget), np.arange(len(costs)), []
        for _ in range(_MOST):
            drawn = part[self._random.choice(len(part), (_DRAWN, len(costs)), p=shares)]
            kept.append(drawn[np.abs(costs[at, drawn].mean(1) - self._budget) <= _NEAR])
            if sum(map(len, kept)) >= self._schedules:
                return np.concatenate(kept)[: self._schedules]
        raise SystemExit(f"random_schedules.py: too few schedules cost {self._budget:g}; choose another budget")


if __name__ == "__main__":
    main()
