"""Does what the last cheap step left out hint at the next step's loss? Asked of the torch twin, whose steps tell it.

    python benchmarks/left_out.py BUNDLE --data BOOK [--data BOOK …]
    ... -c 512 --windows 8      windows, and the tokens of each
    ... --episodes 8            episodes of 16 steps a window, each under 16 schedules that draw their actions at random

A step's divergence from dense is predicted from its action, the action before and more and more of what a policy may be
told: the scalars of the decode loop, the hidden state (its 64 main components), and the two shares of
`sol_rt.train.rollout.LEFT_OUT`. The predictor is a ridge regression of the divergence's logarithm, every input with a
weight of its own under each action, fitted to all windows but one and judged on that one. `explained` is the share of
the variance within an action that it predicts, mean over windows and its standard error; `by left out` is what the
two shares add to it, paired by window.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sol_rt.bundle import Bundle
from sol_rt.cost import BytesCost
from sol_rt.perplexity import starting_token
from sol_rt.policy_inputs import KNOWN_SCALARS
from sol_rt.train.config import DataConfig
from sol_rt.train.corpus import read_documents
from sol_rt.train.rollout import LEFT_OUT, Episode, Observation, RolloutSpec
from sol_rt.train.rollout_twin import TwinRollouts
from sol_rt.train.twin import Twin
from sol_rt.train.windows import Windows

HORIZON, SCHEDULES, COMPONENTS = 16, 16, 64
RIDGES = (1.0, 10.0, 100.0, 1000.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("-c", "--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("-t", "--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    bundle = Bundle.open(given.bundle)
    config, tokenizer = bundle.config, bundle.tokenizer()
    documents = read_documents(given.data, tokenizer, lambda done, total: None)
    bos = starting_token(tokenizer, config.model)
    windows = Windows(documents, DataConfig(windows=(given.context,)), config.model.max_context, bos)
    cost = BytesCost(config)
    spec = RolloutSpec(tuple(entry.action for entry in config.actions), cost, KNOWN_SCALARS)
    rollouts = TwinRollouts(Twin.from_bundle(bundle.path), spec, kl=True, left_out=True)
    samples = []
    for number in range(given.windows):
        samples.append(sampled(rollouts, windows.tokens(windows.trained_on(number)), given.episodes, number))
        print(f"window {number + 1} of {given.windows}: {len(samples[-1].kl)} steps", flush=True)
    report(samples, len(spec.actions))


class Samples:
    """Steps of one window that follow a step of the same episode, n of them.

    Attributes:
        action, previous: int64 [n]. kl: float64 [n], nats. told, hidden, left_out: float64 [n, …].
    """

    def __init__(self, episodes: Sequence[Episode]) -> None:
        def steps(name: str) -> np.ndarray:
            return torch.cat([getattr(episode, name)[:, 1:].flatten(0, 1) for episode in episodes]).numpy()

        self.action, self.previous = steps("action"), steps("previous")
        self.kl, self.hidden = steps("kl").astype(float), steps("hidden").astype(float)
        scalars = steps("scalars").astype(float)
        self.told, self.left_out = scalars[:, : -len(LEFT_OUT)], scalars[:, -len(LEFT_OUT) :]


def sampled(rollouts: TwinRollouts, tokens: Sequence[int], count: int, seed: int) -> Samples:
    """Episodes at the end of a text, one after the other, each from a dense cache."""
    draw = torch.Generator().manual_seed(seed)
    actions = len(rollouts.spec.actions)

    def choose(seen: Observation) -> torch.Tensor:
        return torch.randint(actions, (SCHEDULES,), generator=draw)

    rollouts.open(tokens)
    first = len(tokens) - 1 - count * HORIZON
    with torch.no_grad():
        return Samples([rollouts.run(first + at * HORIZON, HORIZON, 1.0, choose, SCHEDULES) for at in range(count)])


def report(samples: Sequence[Samples], actions: int) -> None:
    hidden = np.concatenate([one.hidden for one in samples])
    centre = hidden.mean(0)
    components = np.linalg.svd(hidden - centre, full_matrices=False)[2][:COMPONENTS].T

    def inputs(one: Samples, *parts: str) -> np.ndarray:
        columns = [np.eye(actions)[one.previous]]
        columns += [one.told] if "scalars" in parts else []
        columns += [(one.hidden - centre) @ components] if "hidden" in parts else []
        columns += [one.left_out] if "left out" in parts else []
        return np.concatenate(columns, axis=1)

    print("\n| told, besides both actions | explained | by left out |\n|---|--:|--:|")
    for parts in ((), ("scalars",), ("hidden",), ("scalars", "hidden")):
        without = explained(samples, [inputs(one, *parts) for one in samples], actions)
        given = explained(samples, [inputs(one, *parts, "left out") for one in samples], actions)
        print(f"| {' and '.join(parts) or 'nothing'} | {interval(without)} | {interval(given - without)} |")


def explained(samples: Sequence[Samples], inputs: Sequence[np.ndarray], actions: int) -> np.ndarray:
    """Share of the variance of log divergence within an action that inputs [n, k] predict, of each window [windows]."""
    shares = np.empty((len(RIDGES), len(samples)))
    targets = [np.log(one.kl.clip(1e-6)) for one in samples]
    for out in range(len(samples)):
        rest = [at for at in range(len(samples)) if at != out]
        left = whole = np.zeros(len(RIDGES))
        for action in range(actions):
            mine = [one.action == action for one in samples]
            x = np.concatenate([inputs[at][mine[at]] for at in rest])
            y = np.concatenate([targets[at][mine[at]] for at in rest])
            if y.std() < 1e-3:  # dense itself
                continue
            mean, scale = x.mean(0), x.std(0) + 1e-9
            x, middle = (x - mean) / scale, y.mean()
            held = (inputs[out][mine[out]] - mean) / scale
            truth = targets[out][mine[out]]
            square, product = x.T @ x, x.T @ (y - middle)
            fits = [held @ np.linalg.solve(square + ridge * np.eye(len(square)), product) + middle for ridge in RIDGES]
            left = left + [((truth - fit) ** 2).sum() for fit in fits]
            whole = whole + ((truth - middle) ** 2).sum()
        shares[:, out] = 1 - left / whole
    return shares[shares.mean(1).argmax()]


def interval(values: np.ndarray) -> str:
    return f"{values.mean():.1%} ± {values.std(ddof=1) / len(values) ** 0.5:.1%}"


if __name__ == "__main__":
    main()
