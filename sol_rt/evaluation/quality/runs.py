"""Runs one schedule over one window and records its loss, its cost and its divergence from the dense model."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sol_rt.budget.cost.cost_table import stored_cost
from sol_rt.budget.cost.model import BytesCost, CostModel
from sol_rt.budget.dial import Dial, MakeSchedule
from sol_rt.budget.schedules import is_constant
from sol_rt.bundle.actions import Action
from sol_rt.engine.distribution import Distribution, Reference
from sol_rt.engine.step import StepOutput
from sol_rt.evaluation.quality.mix import MixSchedule
from sol_rt.evaluation.quality.oracle import hindsight
from sol_rt.evaluation.quality.windows import Window
from sol_rt.generate.model import SolModel
from sol_rt.generate.native.decoder import Decoder


@dataclass(frozen=True)
class Setting:
    """A schedule and its parameters.

    Attributes:
        schedule: `dense`, `fixed:TAG`, a schedule's name, `mix` or `oracle`.
        budget: share of the dense cost; None for `dense` and `fixed:TAG`.
        seed: seed of `random`.
        mixed: the two actions of `mix`.
    """

    schedule: str
    budget: float | None = None
    seed: int | None = None
    mixed: tuple[Action, Action] | None = None

    @property
    def key(self) -> str:
        """Name of the setting, for example `uniform@0.4` or `random:17@0.4`."""
        name = self.schedule if self.seed is None else f"{self.schedule}:{self.seed}"
        if self.mixed is not None:
            name = f"{name}:{'+'.join(action.tag for action in self.mixed)}"
        return name if self.budget is None else f"{name}@{self.budget:g}"


DENSE = Setting("dense")
_KL, _SPENT, _FULL, _COLUMNS = 1, 3, 4, 7
"""A step's numbers: nll, kl, agreed, spent, full, spent_also, full_also."""


@dataclass(frozen=True)
class WindowRun:
    """A schedule's run over a window. Lists hold one sum per block of consecutive tokens.

    Attributes:
        tokens: number of scored tokens.
        nll: negative log-likelihood of the scored tokens, nats.
        kl: KL(dense || schedule) of the next-token distributions, nats.
        agreed: number of tokens where dense model and schedule have the same likeliest token.
        spent: cost of the decode steps, including the policy, in the cost model's unit.
        full: dense cost of the same steps.
        spent_also, full_also: the same two in `other_cost`'s unit; empty where there is no other cost model.
        actions: number of decode steps by action tag.
        floored: whether the budget was below the cheapest action.
    """

    tokens: list[int]
    nll: list[float]
    kl: list[float]
    agreed: list[int]
    spent: list[float]
    full: list[float]
    actions: dict[str, int] = field(default_factory=dict)
    floored: bool = False
    spent_also: list[float] = field(default_factory=list)
    full_also: list[float] = field(default_factory=list)


def other_cost(model: SolModel) -> CostModel | None:
    """Bytes where budgets are counted in milliseconds; milliseconds, where this device was measured, if in bytes.

    What a load measures quickly does not count: it changes from one run of an evaluation to the next.
    """
    if model.cost.name != "bytes":
        return BytesCost(model.bundle.config)
    measured = stored_cost(model.bundle, model.device, quick=False)
    return None if measured.name == "bytes" else measured


class WindowScorer:
    """Runs schedules over one window after another. All runs of a window start from the same dense prefill.

    Args:
        model: an open model; its cache is overwritten.
        block: tokens per block; a run stores its sums by block.
    """

    def __init__(self, model: SolModel, *, block: int) -> None:
        self._model, self._block, self._also = model, block, other_cost(model)
        self._window: Window
        self._prefilled: StepOutput
        self._dense: list[Reference]

    def open(self, window: Window) -> WindowRun:
        """Prefills the window's context and runs its scored part dense. Later runs are compared with this dense run."""
        engine = self._model.engine
        self._window, self._dense = window, []
        engine.owner = self
        engine.reset()
        self._prefilled = engine.forward(window.tokens[: window.context], self._model.bundle.config.dense)
        return self.run(DENSE)

    def run(self, setting: Setting) -> WindowRun:
        """Runs the opened window under a schedule."""
        window, dense = self._window, self._dense
        steps = self._decoder(setting)
        steps.rewind(window.context, self._prefilled)
        first = not dense
        scored = window.tokens[window.context :]
        rows = np.empty((window.steps, _COLUMNS), np.float64)
        for index, (token, target) in enumerate(itertools.pairwise(scored)):
            context = window.context + index
            taken = steps.step(token)
            distribution = steps.output.distribution
            if first:
                dense.append(Reference(distribution, np.float32))
            policy = setting.schedule == "sol"
            rows[index] = self._row(dense[index], distribution, target, taken.action, context, taken.cost, policy)
        return self._sums(rows, dict(steps.actions), steps.floored)

    def oracle(self, actions: Sequence[Action], budgets: Sequence[float]) -> list[WindowRun]:
        """Runs every action at every token of the opened window, each after a dense cache, and chooses in hindsight.

        Args:
            actions: the actions to choose from.
            budgets: shares of the dense cost, each of which the window's tokens cost on average.

        Returns a run for each budget. No schedule avoids more of the divergence from dense at that cost, after dense
        caches, but for what one step more may buy; a real one goes on from caches that its own cheap steps filled.
        """
        window, engine, dense_action = self._window, self._model.engine, self._model.bundle.config.dense
        engine.owner = self
        engine.truncate(window.context)
        rows = np.empty((window.steps, len(actions), _COLUMNS), np.float64)
        for index, (token, target) in enumerate(itertools.pairwise(window.tokens[window.context :])):
            context = window.context + index
            for column, action in enumerate(actions):
                distribution = engine.forward((token,), action).distribution
                cost = self._model.cost.step(action, context)
                rows[index, column] = self._row(self._dense[index], distribution, target, action, context, cost)
                engine.truncate(context)
            engine.forward((token,), dense_action)
        costs = rows[..., _SPENT] / rows[..., _FULL].mean()
        runs = []
        for budget in budgets:
            chosen = hindsight(rows[..., _KL], costs, budget)
            counts = Counter(actions[column].tag for column in chosen.tolist())
            floored = float(costs.min(1).mean()) > budget
            runs.append(self._sums(rows[np.arange(window.steps), chosen], dict(counts), floored))
        return runs

    def _row(
        self,
        dense: Reference,
        distribution: Distribution,
        target: int,
        action: Action,
        context: int,
        cost: float,
        policy: bool = False,
    ) -> tuple[float, ...]:
        """A step's numbers, [_COLUMNS]; `policy` says whether its cost has a run of the policy in it."""
        kl, agreed = dense.divergence(distribution), distribution.top == dense.top
        own = -distribution.log_probability(target), kl, agreed, cost, self._model.cost.dense(context)
        if self._also is None:
            return (*own, 0.0, 0.0)
        also = self._also.step(action, context) + (self._also.policy() if policy else 0.0)
        return (*own, also, self._also.dense(context))

    def _sums(self, rows: npt.NDArray[np.float64], actions: dict[str, int], floored: bool) -> WindowRun:
        steps = len(rows)
        edges = np.arange(0, steps, self._block)
        nll, kl, agreed, spent, full, spent_also, full_also = np.add.reduceat(rows, edges, axis=0).T
        also = self._also is not None
        return WindowRun(
            tokens=np.diff([*edges.tolist(), steps]).tolist(),
            nll=nll.tolist(),
            kl=kl.tolist(),
            agreed=agreed.astype(int).tolist(),
            spent=spent.tolist(),
            full=full.tolist(),
            actions=actions,
            floored=floored,
            spent_also=spent_also.tolist() if also else [],
            full_also=full_also.tolist() if also else [],
        )

    def _decoder(self, setting: Setting) -> Decoder:
        budget = 1.0 if setting.budget is None or is_constant(setting.schedule) else setting.budget
        pair = setting.mixed
        schedule: str | MakeSchedule = setting.schedule
        if pair is not None:
            schedule = lambda controller: MixSchedule(controller, pair)  # noqa: E731
        return self._model.decoder(Dial(budget, schedule, seed=setting.seed))


def device_words(model: SolModel) -> str:
    """Describes a model's GPU or processor, threads, provider and kernels in words."""
    provider = model.provider
    kernels = "native kernels" if model.native else "ONNX Runtime kernels"
    return f"{provider.device_name}, {provider.threads} threads, {provider.name}, {kernels}"
