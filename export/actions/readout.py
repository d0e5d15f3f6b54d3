"""Fits a readout in closed form, so that every bundle has a policy: a score of how much compute helps at a step.

At a budget, `sol` gives the dearer of two actions to the steps at which it helps most, so a policy is asked for the
order of the steps alone. Steps at which one action loses much are those at which others do. So one ridge regression
serves all pairs of actions. From scalars and the hidden state of the step before it predicts

    mean over neighbours in the order of bytes of sign(g) sqrt(|g|) / deviation,

where g is what the cheaper neighbour adds to the dearer one. The root tames the few steps that lose a hundred times
the mean. The step before may have run any action, so all actions' inputs are examples.

Cross-validation over windows of text judges the fit. One that is not ahead of chance by 3 standard errors, or avoids
less than 2% of the loss, is no policy, and `sol` is then `hull`. Each pair of neighbours has its own gate, too: where
the score is not ahead of chance by 1 standard error, both have equal logits, and `sol` is `hull` between them. A pair
is a range of expected loss, and the same on every machine. The score does not order the losses of low KV densities, so
actions that differ in KV density alone have equal logits as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sol_rt.budget.cost.model import BytesCost
from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import SolConfig
from sol_rt.bundle.policy_inputs import PolicyInputs, StepObservation
from sol_rt.engine.distribution import Distribution
from sol_rt.export.actions.calibration_text import CONTEXTS, CalibrationText
from sol_rt.export.actions.losses import Candidate, Losses, losses_and_divergences
from sol_rt.export.runs import open_runs
from sol_rt.generate.native.session import Session
from sol_rt.progress import Progress

SCALARS = ("entropy", "top_probability", "surprise", "margin")
"""Scalars that the policy reads, before the hidden state."""
_PENALTY = 10.0  # of standardised hidden states, times the number of examples
_OF_SCALARS = 1 / 400  # of that penalty: four numbers that say much need none
_SHARES = (0.25, 0.5, 0.75)  # of the dearer action, at which the fit is judged
_ROWS = 16  # tokens in a call, the most that have the bits of single steps
_SHORTEST = 4  # tokens of a window in which no step follows one of the same action
_STRETCH = 64  # most steps whose gains count as one observation
_CERTAIN = 3.0  # standard errors, for a policy
_LIKELY = 1.0  # and for a pair
_LEAST_AVOIDED = 0.02  # less would not pay for the policy's own time
_LEAST_DEVIATION = 1e-6  # a number that varies less is constant

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Readout:
    """The fitted regression, which does not depend on the actions that a bundle keeps.

    Attributes:
        weights: of SCALARS and the hidden state.
        avoided: share of what random steps under a cheaper action add that its choice of the steps avoids, in
            cross-validation; mean over neighbouring actions, 0 for those of a closed gate.
        closed: tags of actions without the KV density, whose gate to the neighbour of more bytes is closed.
    """

    weights: tuple[float, ...]
    avoided: float
    closed: tuple[str, ...] = ()

    def places(self, order: Sequence[Action]) -> npt.NDArray[np.float32]:
        """Places of actions in the order of `plain_actions`, float32 [actions]; those of a closed gate are equal."""
        return np.cumsum([place > 0 and action.tag not in self.closed for place, action in enumerate(order)]).astype(
            np.float32
        )


@dataclass(frozen=True)
class Steps:
    """Steps of one window, under each of some actions from the most bytes to the fewest.

    Attributes:
        inputs: float16 [actions, n, SCALARS + H], what a policy sees if the step before ran the action.
        added: float64 [actions, n], the action's divergence from the dense one at the step, in nats.
    """

    inputs: npt.NDArray[np.float16]
    added: Losses


def plain_actions(config: SolConfig) -> list[Action]:
    """Channels and bits of a bundle's actions at KV density 1, from the most bytes, the dense one's, to the fewest."""
    cost, found = BytesCost(config), {replace(entry.action, kv_density=1.0) for entry in config.actions}
    return sorted(found, key=lambda action: -cost.step(action, CONTEXTS[0]))


def fit_readout(folder: Path, text: CalibrationText, most: int, progress: Progress) -> Readout | None:
    """Fits a readout to the second halves of the text's scored windows; None if it avoids too little.

    Args:
        folder: the unfinished bundle.
        text: has the windows.
        most: windows to score.
        progress: reports how far the steps are.
    """
    engine = open_runs(folder)
    windows = [window for window in text.scored[:most] if len(window) > _SHORTEST]
    order, found = plain_actions(engine.bundle.config), []
    if len(order) < 2 or len(windows) < 2:
        return None
    for number, window in enumerate(windows):

        def report(step: str, done: float, total: float, number: int = number) -> None:
            progress("steps", number + done / total, len(windows))

        found.append(steps_of(engine, window, order, report))
    progress("steps", 1, 1)
    return fit_steps(found, order)


def steps_of(engine: Session, window: Sequence[int], order: Sequence[Action], progress: Progress) -> Steps:
    """Runs the second half of a window under each action."""
    scalars = PolicyInputs(SCALARS, 1)
    seen: dict[Action, list[npt.NDArray[np.float16]]] = {action: [] for action in order}

    def watch(action: Action, distribution: Distribution, token: int, hidden: npt.NDArray[np.float32]) -> None:
        told = scalars.at(0, StepObservation(1, token, distribution, 1.0)).values()
        seen[action].append(np.concatenate([[*told], hidden]).astype(np.float16))

    dense, *others = order
    candidates = [Candidate(action) for action in others]
    _, found = losses_and_divergences(engine, [window], dense, candidates, progress, watch=watch, rows=_ROWS)
    added = np.concatenate([np.zeros_like(found[:1]), found])
    # the first step follows the prompt, so nothing that the action left
    return Steps(np.array([seen[action][:-1] for action in order]), added[:, 1:])


def fit_steps(windows: Sequence[Steps], order: Sequence[Action]) -> Readout | None:
    """Fits a readout to steps of two windows or more under the actions of `order`; None if it avoids too little."""
    gaps = np.diff(np.concatenate([window.added for window in windows], 1), axis=0)
    targets = np.sign(gaps) * np.sqrt(np.abs(gaps))
    targets = ((targets - targets.mean(1, keepdims=True)) / _deviation(targets, 1)).mean(0)
    ends = np.cumsum([window.added.shape[1] for window in windows])[:-1]
    moments = [_Moments.of(window.inputs, own) for window, own in zip(windows, np.split(targets, ends), strict=True)]
    others = [[each for each in moments if each is not own] for own in moments]
    gained = gains(windows, [_Moments.sum(each).ridge() for each in others])
    likely = _ahead(gained, _LIKELY)
    gained = np.where(likely, gained, 0.0).mean(1)
    avoided = float(gained.sum()) / gaps.shape[1]
    if not _ahead(gained, _CERTAIN) or avoided < _LEAST_AVOIDED:
        return None
    closed = tuple(action.tag for action, open_gate in zip(order[1:], likely, strict=True) if not open_gate)
    return Readout(tuple(map(float, _Moments.sum(moments).ridge().astype(np.float32))), avoided, closed)


def _ahead(gained: Floats, errors: float) -> npt.NDArray[np.bool_]:
    """True where the sum of gains along the first axis is more than this many of its standard errors."""
    ahead: npt.NDArray[np.bool_] = gained.sum(0) > errors * gained.std(0, ddof=1) * len(gained) ** 0.5
    return ahead


def gains(windows: Sequence[Steps], weights: Sequence[Floats]) -> Floats:
    """Gains of a choice of steps by score over a random one, float64 [stretches of up to 64 steps, pairs].

    Their unit is what random steps under the cheaper action of a pair add to one step; so the sum over the number of
    steps is the share that the choice avoids.

    Args:
        windows: the steps.
        weights: for each window, those of its scores, [inputs].
    """
    added = np.concatenate([window.added for window in windows], 1)
    steps = np.diff(added, axis=0).mean(1)  # [pairs], nats
    random = np.array([added[1:].mean(1) - share * steps for share in _SHARES]).mean(0)
    found = []
    for window, own in zip(windows, weights, strict=True):
        scores, gaps = window.inputs.astype(np.float64) @ own, np.diff(window.added, axis=0)
        for at in range(0, scores.shape[1], _STRETCH):
            found.append(_gain(scores[:, at : at + _STRETCH], gaps[:, at : at + _STRETCH], random))
    return np.array(found)


def _gain(scores: Floats, gaps: Losses, random: Floats) -> list[float]:
    """Gains of all pairs on a stretch, mean over _SHARES, in the unit of `gains`.

    Args:
        scores: float64 [actions, n]; a pair is judged by those after its dear action and after its cheap one.
        gaps: float64 [pairs, n], in nats.
        random: float64 [pairs], nats per step.
    """
    found = []
    for pair, gap in enumerate(gaps):
        nats = []
        for score in scores[pair : pair + 2]:
            ordered = gap[np.argsort(-score, kind="stable")]
            nats += [ordered[: round(share * len(gap))].sum() - share * gap.sum() for share in _SHARES]
        found.append(float(np.mean(nats)) / float(random[pair]) if random[pair] > 0 else 0.0)
    return found


def _deviation(values: Floats, axis: int) -> Floats:
    """Standard deviation along an axis, which is kept; infinite where it is next to nothing."""
    found = values.std(axis, keepdims=True)
    return np.where(found > _LEAST_DEVIATION, found, np.inf)


@dataclass(frozen=True)
class _Moments:
    """Sums over examples.

    Attributes:
        count: of the examples.
        first: float64 [inputs], of inputs.
        second: float64 [inputs, inputs], of products of inputs.
        mixed: float64 [inputs], of products of inputs and targets.
        target: of targets.
    """

    count: int
    first: Floats
    second: Floats
    mixed: Floats
    target: float

    @classmethod
    def of(cls, inputs: npt.NDArray[np.float16], targets: Floats) -> _Moments:
        """The moments of inputs [actions, n, inputs] and targets [n]."""
        examples = inputs.reshape(-1, inputs.shape[-1]).astype(np.float64)
        of_all = np.tile(targets, len(inputs))
        return cls(len(examples), examples.sum(0), examples.T @ examples, examples.T @ of_all, float(of_all.sum()))

    @classmethod
    def sum(cls, parts: Sequence[_Moments]) -> _Moments:
        """The moments of all examples of the parts."""
        return cls(
            sum(part.count for part in parts),
            np.sum([part.first for part in parts], 0),
            np.sum([part.second for part in parts], 0),
            np.sum([part.mixed for part in parts], 0),
            sum(part.target for part in parts),
        )

    def ridge(self) -> Floats:
        """Weights [inputs] of the inputs as they are; the constant is left out."""
        mean = self.first / self.count
        square = self.second / self.count - np.outer(mean, mean)
        variance = np.diag(square)
        scale = np.where(variance > _LEAST_DEVIATION**2, 1 / np.sqrt(np.maximum(variance, _LEAST_DEVIATION**2)), 0.0)
        penalty = np.full(len(mean), _PENALTY)
        penalty[: len(SCALARS)] *= _OF_SCALARS
        mixed = (self.mixed - mean * self.target) / self.count * scale
        found: Floats = np.linalg.solve(square * np.outer(scale, scale) + np.diag(penalty), mixed) * scale
        return found
