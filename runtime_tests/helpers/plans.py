"""Plans of the native core whose actions a test picks itself, and policies that answer what a test says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sol_rt.budget.cost.model import CostModel
from sol_rt.budget.dial import Dial
from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import SolConfig
from sol_rt.generate.native.plan import Asked, Plan

Pick = Callable[[np.ndarray, np.ndarray, np.random.Generator, int], int]
"""(allowed, relative costs, random, step) -> index of an allowed action."""


def cheapest(allowed: np.ndarray, costs: np.ndarray, random: np.random.Generator, step: int) -> int:
    return int(np.argmin(np.where(allowed, costs, np.inf)))


def dearest(allowed: np.ndarray, costs: np.ndarray, random: np.random.Generator, step: int) -> int:
    return int(np.argmax(np.where(allowed, costs, -np.inf)))


def anything(allowed: np.ndarray, costs: np.ndarray, random: np.random.Generator, step: int) -> int:
    return int(random.choice(np.flatnonzero(allowed)))


def swinging(allowed: np.ndarray, costs: np.ndarray, random: np.random.Generator, step: int) -> int:
    """Long stretches of one extreme, then of the other: the worst to be in front of an end."""
    return (cheapest if step // 37 % 2 else dearest)(allowed, costs, random, step)


def waves(allowed: np.ndarray, costs: np.ndarray, random: np.random.Generator, step: int) -> int:
    """Eight steps of one extreme, then eight of the other."""
    return (dearest if step % 16 > 7 else cheapest)(allowed, costs, random, step)


def one_action(allowed: np.ndarray, costs: np.ndarray, random: np.random.Generator, step: int) -> int:
    return int(np.flatnonzero(allowed)[0])


PICKS = (cheapest, dearest, anything, swinging, waves, one_action)


@dataclass
class Seen:
    """The controller's answers before a step. A is the number of actions."""

    allowed: np.ndarray
    costs: np.ndarray
    target: float
    allowance: float
    floor: float
    budget: float | None
    achieved: float
    index: int


@dataclass
class Picking:
    """A schedule that picks by `pick` and keeps what the controller said."""

    controller: Any
    pick: Pick
    random: np.random.Generator
    name: str = "picking"
    seen: list[Seen] = field(default_factory=list)

    def choose(self, step: Any) -> Action:
        told, at = self.controller, step.context
        allowed, costs = told.allowed(at), told.relative_costs(at)
        assert allowed.any()
        index = self.pick(allowed, costs, self.random, step.step)
        assert allowed[index]
        self.seen.append(
            Seen(allowed, costs, told.target(at), told.allowance(at), told.floor(at), told.budget, told.achieved, index)
        )
        action: Action = told.actions[index]
        return action


class Picked:
    """A plan by `pick`.

    Attributes:
        plan: the plan.
        actions: what the schedule picks from.
        seen: what the controller said before each step.
    """

    def __init__(
        self, cost: CostModel, dial: dict[str, Any], pick: Pick = anything, seed: int = 0,
        actions: Sequence[Action] | None = None,
    ) -> None:  # fmt: skip
        made: list[Picking] = []

        def make(controller: Any) -> Picking:
            made.append(Picking(controller, pick, np.random.default_rng(seed)))
            return made[-1]

        self.plan = Plan(cost, Dial(schedule=make, **dial), actions)
        self.actions: tuple[Action, ...] = made[0].controller.actions
        self.seen = made[0].seen

    def error(self) -> float:
        """|achieved - requested|; 0 before the 64th step."""
        assert self.plan.requested is not None
        return abs(self.plan.achieved - self.plan.requested) if self.plan.steps >= 64 else 0.0


@dataclass
class ScriptedPolicy:
    """Returns given logits and keeps what it was asked."""

    config: SolConfig
    logits: np.ndarray
    asked: list[tuple[dict[str, float], int, int]] = field(default_factory=list)
    fresh: int = 0

    def __call__(self, asked: Asked) -> np.ndarray:
        assert self.config.policy is not None
        scalars = dict(zip(self.config.policy.scalars, asked.scalars.tolist(), strict=True))
        self.asked.append((scalars, asked.previous_action, asked.step))
        self.fresh += asked.fresh
        return self.logits


def follow(plan: Plan, steps: int, context: int = 300, logits: np.ndarray | None = None) -> list[Action]:
    """Takes so many steps of the plan. Returns their actions."""
    return [plan.step(context + step, 7, logits=logits).action for step in range(steps)]
