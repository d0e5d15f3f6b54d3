"""Measures how much of the loss any policy could avoid, and how much a given policy avoids.

    python benchmarks quality.policy_bound BUNDLE counterfactuals --policy policy.safetensors -b 0.45,0.5,0.55,0.6

Prints a Markdown table with a row per budget. The program replays the counterfactuals of a training: on its held-out
windows, every action's loss at every position is known. At each budget it compares

    static    the mix of the two actions of the lower hull around the budget, by mean losses of the training windows
    uniform   the decode loop's own schedule, over the same actions
    sol       the policy, through the decode loop's schedule and controller
    oracle    the best choice in hindsight: for every token the action of least divergence + multiplier * cost, with the
              multiplier at which a window's mean cost is the budget; no policy avoids more divergence at that cost
    again     with --again FOLDER: the oracle's choices by that folder's counterfactuals. These are of the same windows
              and other arithmetic, as `sol-rt train --rollouts reference` measures them. What the oracle has and this
              one has not is the luck of rounding, which flips channels and codes, and which nobody can foresee.

Losses are divergences from dense in nats per step, each after what the counterfactuals follow: dense steps, or a
run of cheap ones, after which the dense action has a divergence, too. They are given at exactly the budget's cost: what
a schedule spent above or below it counts at the static mix's exchange rate. The columns `true token` judge the same
choices by the loss of the true next token, which also depends on luck that no policy can foresee. Intervals are
standard errors over windows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from sol_rt.budget.cost.cost_table import cpu_device, stored_cost
from sol_rt.budget.cost.model import BytesCost
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.policy_inputs import KNOWN_SCALARS
from sol_rt.evaluation.quality.oracle import hindsight
from sol_rt.export.policy_file import TrainedPolicy, read_policy
from sol_rt.store.home import find_bundle
from sol_rt.train import holdout, warm_start
from sol_rt.train.policy_network import PolicyNetwork
from sol_rt.train.reference_model.weights import read_matrix
from sol_rt.train.rollouts.counterfactuals import ABOUT, Counterfactuals, CounterfactualStore
from sol_rt.train.rollouts.rollout import RolloutSpec

Measured = list[tuple[int, Counterfactuals]]
"""Windows, each with the nominal length that its own length is nearest to."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or the name of an exported bundle")
    parser.add_argument("counterfactuals", type=Path)
    parser.add_argument("--policy", type=Path, help="policy.safetensors; default: none, static and oracle alone")
    parser.add_argument("-b", "--budget", default="0.45,0.5,0.55,0.6")
    parser.add_argument("-t", "--threads", type=int, help="with a cost table of so many, costs are milliseconds")
    parser.add_argument("--again", type=Path, help="counterfactuals of the held-out windows in other arithmetic")
    parser.add_argument("--by-length", action="store_true", help="a row for each length of window, too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    bundle = Bundle.open(find_bundle(given.bundle))
    policy = None if given.policy is None else read_policy(given.policy)
    about = json.loads((given.counterfactuals / ABOUT).read_text(encoding="utf-8"))
    actions = tuple(map(Action.parse, about["actions"]))
    cost = BytesCost(bundle.config) if given.threads is None else stored_cost(bundle, cpu_device(given.threads))
    spec = RolloutSpec(actions, cost, KNOWN_SCALARS, midway=True)
    if policy is not None and policy.actions != actions:
        parser.error(f"{given.policy}: made for {policy.actions}, the counterfactuals have {actions}")
    store = CounterfactualStore(given.counterfactuals, about, about["scalars"], create=False)
    training, held = (list(windows_of(store, name, policy, about["windows"])) for name in ("train", "held"))
    if not training or not held:
        parser.error(f"{given.counterfactuals}: no windows of both kinds; `sol-rt train` measures them")
    other = None
    if given.again is not None:
        same = CounterfactualStore(given.again, about, about["scalars"], create=False)
        other = {id(window): same.read(f"held-{number:06d}", KNOWN_SCALARS) for number, (_, window) in enumerate(held)}
    bound = Bound(bundle, spec, policy, training, other)
    print(f"{len(held)} held-out windows, {len(training)} for the mix; costs in {cost.name}\n")
    names = ["static", *(["uniform", "sol"] if policy is not None else []), "oracle"]
    names += ["again"] if other is not None else []
    heads = ["windows", "budget", *(f"{name}" for name in names), *(f"{name} avoids" for name in names[1:])]
    print("| " + " | ".join([*heads, *(f"true token: {name}" for name in names)]) + " |")
    print("|---|" + "--:|" * (len(heads) + len(names) - 1))
    groups = [("all", held)]
    if given.by_length:
        lengths = sorted({length for length, _ in held})
        groups += [(str(length), [row for row in held if row[0] == length]) for length in lengths]
    for budget in map(float, given.budget.split(",")):
        scored = {id(row): bound.scores(*row, budget) for _, row in enumerate(held)}
        for label, rows in groups:
            print(line(label, budget, [scored[id(row)] for row in rows], names))


def windows_of(
    store: CounterfactualStore, part: str, policy: TrainedPolicy | None, lengths: Sequence[int]
) -> Iterator[tuple[int, Counterfactuals]]:
    columns = KNOWN_SCALARS if policy is None else policy.scalars
    for path in sorted(store.folder.glob(f"{part}-*.safetensors")):
        window = store.read(path.stem, columns)
        tokens = window.context + len(window) + 1
        yield min(lengths, key=lambda length: abs(length - tokens)), window


Scores = dict[str, tuple[float, float]]
"""By schedule: divergence and true token's added loss, nats a step at the budget's cost."""


class Bound:
    """Scores windows.

    Args:
        bundle, spec, policy: what is scored.
        training: determines the static mix of each length.
        other: by `id` of a window, its counterfactuals in other arithmetic.
    """

    def __init__(
        self,
        bundle: Bundle,
        spec: RolloutSpec,
        policy: TrainedPolicy | None,
        training: Measured,
        other: dict[int, Counterfactuals] | None,
    ) -> None:
        self._spec, self._policy, self._training, self._other = spec, policy, training, other or {}
        self._dense = spec.actions.index(spec.cost.dense_action)
        self._embed = read_matrix(bundle.file(bundle.config.weights_file), bundle.config.tensors, "embed").rows
        self._network = None if policy is None else network_of(policy)

    def scores(self, length: int, window: Counterfactuals, budget: float) -> Scores:
        costs, kl = warm_start.costs_of(window, self._spec).double(), window.kl.double()
        true = (window.loss - window.loss[:, self._dense : self._dense + 1]).double()
        alike = [row for of, row in self._training if of == length] or [row for _, row in self._training]
        losses = torch.stack([row.kl.double().mean(0) for row in alike]).mean(0)
        chosen = {"oracle": torch.from_numpy(hindsight(kl.numpy(), costs.numpy(), budget))}
        if (other := self._other.get(id(window))) is not None:
            chosen["again"] = torch.from_numpy(hindsight(other.kl.double().numpy(), costs.numpy(), budget))
        for name, steps in self._schedules(budget, losses.tolist()):
            chosen[name] = torch.tensor(
                [
                    steps.choose(window.context + at, token, window.hidden[at : at + 1], window.scalars[at])
                    for at, token in enumerate(window.token.tolist())
                ]
            )
        points = list(zip(costs.mean(0).tolist(), losses.tolist(), strict=True))
        rate = holdout.exchange_rate(points, budget)
        found = {}
        for name, actions in chosen.items():
            at = actions[:, None]
            beside = rate * (float(costs.gather(1, at).mean()) - budget)
            found[name] = float(kl.gather(1, at).mean()) + beside, float(true.gather(1, at).mean()) + beside
        return found

    def _schedules(self, budget: float, losses: Sequence[float]) -> Iterator[tuple[str, holdout.Steps]]:
        spec = self._spec
        if self._network is None or self._policy is None:
            cost = holdout.planning_cost(spec, losses, KNOWN_SCALARS)
            yield "static", holdout.Steps(spec.actions, cost, "hull", budget)
            return
        columns = self._policy.scalars
        cost = holdout.planning_cost(spec, losses, columns, self._policy.shape)
        yield from holdout.all_steps(self._network, self._embed, spec, columns, budget, cost)


def network_of(policy: TrainedPolicy) -> PolicyNetwork:
    network = PolicyNetwork(policy.shape)
    values = {name: torch.from_numpy(value) for name, value in policy.parameters.items()}
    missing = network.load_state_dict(values, strict=False).unexpected_keys
    assert not missing
    return network


def line(label: str, budget: float, rows: Sequence[Scores], names: Sequence[str]) -> str:
    table = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in names}
    means = {name: values.mean(0).tolist() for name, values in table.items()}
    cells = [f"{label} ({len(rows)})", f"{budget:g}"]
    for name in names:
        less = table[name][:, 0] - table["static"][:, 0]
        error = float(less.std() / len(rows) ** 0.5) if len(rows) > 1 else 0.0
        cells.append(f"{means[name][0]:.4f}" + ("" if name == "static" else f" ±{error:.4f}"))
    static = means["static"][0]
    cells += [f"{1 - means[name][0] / static:.0%}" if static > 0 else "" for name in names[1:]]
    cells += [f"{means[name][1]:+.4f}" for name in names]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
