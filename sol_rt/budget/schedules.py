"""Schedules: who picks the action of each decode step.

`sol` asks the bundle's policy; `uniform`, `random` and the hand-made rule `entropy` are what it is compared with;
`fixed:TAG` and `dense` are constant. All but the constant ones choose only what the controller allows, so all of them
hold the same budget through the same code.
"""

from __future__ import annotations

import functools
import itertools
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from sol_rt.budget.controller import AxisTargets, Controller
from sol_rt.budget.multiplier import Multiplier
from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import PolicySpec, SolConfig
from sol_rt.bundle.policy_inputs import PolicyInputs, StepObservation
from sol_rt.engine.distribution import Distribution
from sol_rt.errors import UsageError

NAMES = ("sol", "uniform", "entropy", "random", "fixed:TAG", "dense")
_KV_DENSITY, _CHANNEL_DENSITY, _BITS = range(3)  # the axes
_GRID = 160  # positions of the uniform mix between all-cheapest and dense
_UNCERTAINTY_MEMORY = 0.95  # how slowly what is usual follows
_UNCERTAINTY_GAIN = 0.5  # turns that an uncertainty of one standard deviation is worth


class PolicyInput(NamedTuple):
    """What is known when an action is picked.

    Attributes:
        context: tokens in the cache.
        token: the token about to be processed.
        hidden: float32 [1, hidden], final hidden state of the step that produced `token`; only `sol` needs it.
        distribution: of the tokens after that step; only `sol` and `entropy` read it.
        step: decode steps done before this one.
    """

    context: int
    token: int
    hidden: np.ndarray | None
    distribution: Distribution
    step: int


class Schedule(Protocol):
    name: str

    def choose(self, step: PolicyInput) -> Action:
        """The action for this step. The loop then reports it to the controller with `record`."""


class Policy(Protocol):
    """What `sol` needs of a policy session (policy.py)."""

    spec: PolicySpec

    def reset(self) -> None: ...

    def decide(
        self, hidden: np.ndarray, token: int, scalars: Mapping[str, float], previous_action: int, step: int
    ) -> np.ndarray:
        """Logits over the policy's actions, float32 [A]."""


def is_constant(name: str) -> bool:
    """Whether the schedule `name` takes one action whatever the budget."""
    return name == "dense" or name.startswith("fixed:")


def default_schedule(config: SolConfig) -> str:
    """`sol` where the bundle has a policy, else `uniform`."""
    return "uniform" if config.policy is None else "sol"


def schedule_actions(config: SolConfig, name: str, axis_targets: AxisTargets | None = None) -> tuple[Action, ...]:
    """The actions that the controller and the schedule `name` work with; the dense one is always among them.

    `sol`: the policy's, in its order. `random`: the bundle's action set. `uniform` and `entropy`, and every schedule
    but `sol` under axis targets: every KV density of the action set with every variant.
    """
    if name == "sol" and config.policy is not None:
        actions = config.policy.actions
    elif name in ("uniform", "entropy") or (axis_targets is not None and axis_targets.any()):
        kv_densities = sorted({entry.action.kv_density for entry in config.actions} | {1.0}, reverse=True)
        variants = sorted(config.variants.values(), key=lambda variant: (-variant.bits, -variant.channel_density))
        actions = tuple(
            Action(kv_density, variant.channel_density, variant.bits)
            for variant in variants
            for kv_density in kv_densities
        )
    else:
        actions = tuple(entry.action for entry in config.actions)
    return actions if config.dense in actions else (*actions, config.dense)


def make_schedule(
    name: str,
    controller: Controller,
    *,
    seed: int | None = None,
    policy: Policy | None = None,
    variants: Sequence[str] | None = None,
) -> Schedule:
    """Builds the schedule `name` over the controller's actions.

    Args:
        name: `sol`, `uniform`, `entropy`, `random`, `fixed:TAG` or `dense`.
        controller: gives actions, limits and target.
        seed: of `random`; None draws a fresh one.
        policy: of `sol`.
        variants: variant keys of the bundle, which `fixed:TAG` is checked against.

    Raises UsageError for an unknown name, a tag whose variant the bundle lacks, and `sol` without a policy.
    """
    if name == "dense":
        return ConstantSchedule(name, controller.dense)
    if name.startswith("fixed:"):
        action = Action.parse(name.removeprefix("fixed:"))
        if variants is not None and action.variant not in variants:
            raise UsageError(
                f"--schedule {name}: no variant {action.variant} in this bundle; it has {', '.join(variants)}"
            )
        return ConstantSchedule(name, action)
    if name == "uniform":
        return UniformSchedule(controller)
    if name == "entropy":
        return EntropySchedule(controller)
    if name == "random":
        return RandomSchedule(controller, seed)
    if name == "sol":
        if policy is None:
            raise UsageError("--schedule sol: this bundle has no policy; use uniform, or train one with `sol-rt train`")
        return SolSchedule(controller, policy)
    raise UsageError(f"--schedule: got {name!r}, expected one of {', '.join(NAMES)}")


class ConstantSchedule:
    """The same action at every step, whatever the budget: `fixed:TAG` and `dense`."""

    def __init__(self, name: str, action: Action) -> None:
        self.name = name
        self.action = action

    def choose(self, step: PolicyInput) -> Action:
        return self.action


class UniformSchedule:
    """The hand-made mix that needs no policy: on each axis the two nearest settings in turn.

    A single position u in [0, 1] turns the axes down one after the other: bits, which cost least quality for what they
    save, then pages or channels, whichever can save more at this context (reading fewer pages of a short cache would
    save nothing), then the other; the lowest settings of both come last, for they cost most. u is where the mix's
    expected cost is the controller's target. Under axis targets each axis is at its own target instead. Error diffusion
    on each axis deals out the two settings around its position.
    """

    name = "uniform"

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._axes = _axes_of(controller.actions)
        # thirds apart, so that the axes don't all turn cheap on the same step
        self._carry = [0.0, 1 / 3, 2 / 3]
        self._forward = 0.0  # how much of a turn the higher settings come early

    def choose(self, step: PolicyInput) -> Action:
        controller = self._controller
        if controller.dense_only:
            return controller.dense
        kv_density, channel_density, bits = (self._deal(axis, at) for axis, at in enumerate(self._wanted(step.context)))
        index = self._axes.nearest((kv_density, channel_density, bits))
        if not controller.allows(index, step.context):
            allowed = controller.allowed(step.context)
            costs = controller.relative_costs(step.context)
            # nearest in cost holds a budget; nearest in setting holds axis targets
            distance = np.abs(costs - costs[index])
            if controller.axis_targets is not None:
                settings = self._axes.settings
                distance = np.abs(settings - settings[index]).sum(axis=1)
            index = int(np.argmin(np.where(allowed, distance, np.inf)))
        return controller.actions[index]

    def _deal(self, axis: int, position: float) -> float:
        """One of the two settings around `position`, so that their mean over the steps is what the positions ask."""
        low, high, share = self._axes.around(axis, position)
        if share >= 1.0:
            return high
        self._carry[axis] += share
        if self._carry[axis] < 1.0 - self._forward - 1e-9:
            return low
        self._carry[axis] -= 1.0
        return high

    def _wanted(self, context: int) -> list[float]:
        """Position of each axis for this step, [3]: two densities and bits."""
        controller, axes = self._controller, self._axes
        targets = controller.axis_targets
        if targets is not None:
            given = (targets.kv_density, targets.channel_density, targets.bits)
            return [top if value is None else value for value, top in zip(given, axes.scale.tolist(), strict=True)]
        # the nearest existing combination may be cheaper higher up: the running maximum keeps the curve invertible
        costs = controller.relative_costs(context)
        pages_first = bool(costs[axes.sparsest_kv] < costs[axes.sparsest_channels])
        # einsum, as a product of this size may wake threads of BLAS, which then keep cores from the next step
        expected = np.maximum.accumulate(np.einsum("ja,a->j", axes.mixes(pages_first), costs))
        wanted = min(max(controller.target(context), float(expected[0])), float(expected[-1]))
        above = int(expected.searchsorted(wanted))
        if above == 0:
            return axes.positions(0.0, pages_first)
        below, rise = expected[above - 1], expected[above] - expected[above - 1]
        return axes.positions(float(above - 1 + (wanted - below) / rise) / _GRID, pages_first)


class EntropySchedule(UniformSchedule):
    """A hand-made rule: the mix of `uniform`, its dearer settings on the steps where the model was uncertain before.

    Uncertainty is the entropy of the last step's distribution in nats, and one minus the margin between its two
    likeliest tokens; each in standard deviations from what is usual in this text, and the mean of both, from -2 to 2.
    It brings an axis' turn to take its higher setting forward or puts it off; how often each setting comes is as in
    `uniform`.
    """

    name = "entropy"

    def __init__(self, controller: Controller) -> None:
        super().__init__(controller)
        self._scores = (RunningZScore(), RunningZScore())

    def choose(self, step: PolicyInput) -> Action:
        entropy, margin = self._scores
        distribution = step.distribution
        uncertainty = (entropy.update(distribution.entropy) + margin.update(1.0 - distribution.margin)) / 2
        self._forward = _UNCERTAINTY_GAIN * uncertainty
        return super().choose(step)


class RunningZScore:
    """Running mean and variance of a number."""

    def __init__(self) -> None:
        self._mean = self._variance = self._weight = 0.0

    def update(self, value: float) -> float:
        """How many standard deviations `value` is over the mean of those before it, -2 to 2; it then counts itself."""
        deviation = math.sqrt(self._variance)
        found = (value - self._mean) / deviation if deviation > 0 else 0.0
        # the first values weigh alike, later ones fade
        self._weight = _UNCERTAINTY_MEMORY * self._weight + 1.0
        share = 1.0 / self._weight
        step = value - self._mean
        self._mean += share * step
        self._variance = (1 - share) * (self._variance + share * step * step)
        return min(max(found, -2.0), 2.0)


class _Axes:
    """The three axes of an action set: their levels, the way from the lowest ones to dense, and the mixes along it.

    Attributes:
        levels: of KV density, channel density and bits, ascending.
        scale: [3], the highest level of each.
        settings: [A, 3], each action's settings over `scale`.
        sparsest_kv, sparsest_channels: the action of the lowest density on that axis, the others at their highest.
    """

    def __init__(self, actions: Sequence[Action]) -> None:
        axes = ([a.kv_density for a in actions], [a.channel_density for a in actions], [a.bits for a in actions])
        self.levels = [sorted({float(value) for value in values}) for values in axes]
        self.scale = np.array([levels[-1] for levels in self.levels])
        self.settings = np.array([(a.kv_density, a.channel_density, a.bits) for a in actions], np.float64) / self.scale
        self._found: dict[tuple[float, float, float], int] = {}
        kv_density, channel_density, bits = self.scale.tolist()
        self.sparsest_kv = self.nearest((self.levels[_KV_DENSITY][0], channel_density, bits))
        self.sparsest_channels = self.nearest((kv_density, self.levels[_CHANNEL_DENSITY][0], bits))
        self._paths = {pages_first: self._path(pages_first) for pages_first in (False, True)}
        self._mixes: dict[bool, np.ndarray] = {}

    def positions(self, u: float, pages_first: bool) -> list[float]:
        """Of each axis, [3]: the point at share u of the path."""
        path = self._paths[pages_first]
        at = u * (len(path) - 1)
        below = min(int(at), len(path) - 2)
        corners = zip(path[below], path[below + 1], strict=True)
        return [start + (at - below) * (end - start) for start, end in corners]

    def around(self, axis: int, position: float) -> tuple[float, float, float]:
        """(setting below, setting above, share of the one above) whose mean is `position`."""
        levels = self.levels[axis]
        above = min(bisect_left(levels, position), len(levels) - 1)
        low, high = levels[max(above - 1, 0)], levels[above]
        return low, high, 1.0 if high == low else min(max((position - low) / (high - low), 0.0), 1.0)

    def nearest(self, settings: tuple[float, float, float]) -> int:
        """Index of the existing action nearest to these settings, of which there are few: found once each."""
        index = self._found.get(settings)
        if index is None:
            index = int(np.argmin(np.abs(self.settings - np.array(settings) / self.scale).sum(axis=1)))
            self._found[settings] = index
        return index

    def mixes(self, pages_first: bool) -> np.ndarray:
        """Share of each action at the points of the path, [_GRID + 1, A]."""
        if pages_first not in self._mixes:
            points = [self.positions(index / _GRID, pages_first) for index in range(_GRID + 1)]
            self._mixes[pages_first] = np.stack([self._mix(point) for point in points])
        return self._mixes[pages_first]

    def _path(self, pages_first: bool) -> list[list[float]]:
        """Corners of the way from the lowest settings (first) to dense (last), [6, 3]; one axis moves between two."""
        corner = self.scale.tolist()
        corners = [corner]
        axes = (_KV_DENSITY, _CHANNEL_DENSITY) if pages_first else (_CHANNEL_DENSITY, _KV_DENSITY)
        for axis, rank in ((_BITS, 0), (axes[0], 1), (axes[1], 1), (axes[0], 0), (axes[1], 0)):
            corner = corner.copy()
            corner[axis] = self.levels[axis][min(rank, len(self.levels[axis]) - 1)]
            corners.append(corner)
        return corners[::-1]

    def _mix(self, positions: Sequence[float]) -> np.ndarray:
        """Share of each action, [A], when the axes are dealt out independently around `positions`."""
        mix = np.zeros(len(self.settings))
        around = [self.around(axis, position) for axis, position in enumerate(positions)]
        for ups in itertools.product((False, True), repeat=3):
            share = math.prod(s if up else 1 - s for up, (_, _, s) in zip(ups, around, strict=True))
            kv_density, channel_density, bits = (
                high if up else low for up, (low, high, _) in zip(ups, around, strict=True)
            )
            if share > 0:
                mix[self.nearest((kv_density, channel_density, bits))] += share
        return mix


@functools.lru_cache(maxsize=8)
def _axes_of(actions: tuple[Action, ...]) -> _Axes:
    """Kept from one generation to the next: the mixes of an action set take milliseconds, a step's worth and more."""
    return _Axes(actions)


class RandomSchedule:
    """Draws actions with probability proportional to exp(-rate * cost), the rate such that the expected cost is the
    target.
    """

    name = "random"

    def __init__(self, controller: Controller, seed: int | None) -> None:
        self._controller = controller
        self._random = np.random.default_rng(int(np.random.SeedSequence(seed).generate_state(1)[0]))

    def choose(self, step: PolicyInput) -> Action:
        controller = self._controller
        if controller.dense_only:
            return controller.dense
        candidates = np.flatnonzero(controller.allowed(step.context))
        if controller.axis_targets is not None:
            return controller.actions[int(self._random.choice(candidates))]
        shares = tilted(controller.relative_costs(step.context)[candidates], controller.target(step.context))
        return controller.actions[int(candidates[int(self._random.choice(len(candidates), p=shares))])]


def tilted(costs: np.ndarray, target: float) -> np.ndarray:
    """The distribution [A] of largest entropy whose expected cost is `target`, or as near to it as `costs` [A]
    allow.
    """
    low, high = -500.0, 500.0
    for _ in range(40):
        rate = (low + high) / 2
        exponents = -rate * costs
        shares = np.exp(exponents - exponents.max())
        shares = shares / shares.sum()
        if float(shares @ costs) > target:
            low = rate
        else:
            high = rate
    return np.asarray(shares)


class SolSchedule:
    """The policy's choice at a multiplier: argmax over allowed actions of logits - multiplier * relative cost
    (multiplier.py)."""

    name = "sol"

    def __init__(self, controller: Controller, policy: Policy) -> None:
        self._controller = controller
        self._policy = policy
        policy.reset()
        self._inputs = PolicyInputs(policy.spec.scalars, policy.spec.horizon)
        self._multiplier = Multiplier()

    def choose(self, step: PolicyInput) -> Action:
        controller = self._controller
        if controller.dense_only:
            return controller.dense
        if step.hidden is None:
            raise UsageError("schedule sol: needs the hidden state of the last step")
        inputs, budget = self._inputs, 1.0 if controller.requested is None else controller.requested
        scalars = inputs.at(step.step, StepObservation(step.context, step.token, step.distribution, budget))
        logits = self._policy.decide(step.hidden, step.token, scalars, inputs.previous, inputs.position)
        values = logits.astype(np.float64)
        costs, known = controller.relative_costs(step.context), len(logits)
        target = controller.target(step.context)
        if controller.axis_targets is None:
            values -= self._multiplier.at(values, costs[:known], target) * costs[:known]
        if known < len(costs):
            # a dense action that the policy does not know follows its actions, and is taken only where nothing else is
            # allowed
            values = np.append(values, -1e9)
        index = int(values.argmax())
        if not controller.allows(index, step.context):
            index = int(np.where(controller.allowed(step.context), values, -np.inf).argmax())
        cost = float(costs[index])
        inputs.record(index if index < known else -1, cost)
        return controller.actions[index]
