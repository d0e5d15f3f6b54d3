"""Runs one schedule over one window and records its loss, its cost and its divergence from the dense model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sol_rt.budget.controller.budget import Controller
from sol_rt.budget.dial import Dial
from sol_rt.budget.schedules import is_constant
from sol_rt.bundle.actions import Action
from sol_rt.engine.distribution import Distribution, Reference
from sol_rt.engine.step import StepOutput
from sol_rt.evaluation.quality.mix import MixSchedule
from sol_rt.evaluation.quality.windows import Window
from sol_rt.generate.loop import Decoder
from sol_rt.generate.model import SolModel


@dataclass(frozen=True)
class Setting:
    """A schedule and its parameters.

    Attributes:
        schedule: `dense`, `fixed:TAG`, `uniform`, `random`, `entropy`, `sol`, or `mix`.
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


class WindowScorer:
    """Runs schedules over one window after another. All runs of a window start from the same dense prefill.

    Args:
        model: an open model; its cache is overwritten.
        block: tokens per block; a run stores its sums by block.
    """

    def __init__(self, model: SolModel, *, block: int) -> None:
        self._model, self._block = model, block
        self._window: Window
        self._prefilled: StepOutput
        self._dense: list[Reference]

    def open(self, window: Window) -> WindowRun:
        """Prefills the window's context and runs its scored part dense. Later runs are compared with this dense run."""
        engine = self._model.engine
        self._window, self._dense = window, []
        engine.owner = self
        engine.reset()
        given = engine.forward(window.tokens[: window.context], self._model.bundle.config.dense)
        self._prefilled = detached(given)
        return self.run(DENSE)

    def run(self, setting: Setting) -> WindowRun:
        """Runs the opened window under a schedule."""
        window, dense = self._window, self._dense
        decoder = self._decoder(setting)
        decoder.rewind(window.context, self._prefilled)
        first = not dense
        scored = window.tokens[window.context :]
        rows = np.empty((window.steps, 5), np.float64)  # nll, kl, agreed, spent, full
        for index, (token, target) in enumerate(itertools.pairwise(scored)):
            context = window.context + index
            taken = decoder.step(token)
            distribution = decoder.output.distribution
            if first:
                dense.append(Reference(distribution, np.float32))
            row = dense[index]
            kl = row.divergence(distribution)
            agreed = distribution.top == row.top
            spent, full = taken.cost, decoder.controller.cost.dense(context)
            rows[index] = -distribution.log_probability(target), kl, agreed, spent, full
        edges = np.arange(0, window.steps, self._block)
        nll, kl, agreed, spent, full = np.add.reduceat(rows, edges, axis=0).T
        return WindowRun(
            tokens=np.diff([*edges.tolist(), window.steps]).tolist(),
            nll=nll.tolist(),
            kl=kl.tolist(),
            agreed=agreed.astype(int).tolist(),
            spent=spent.tolist(),
            full=full.tolist(),
            actions=dict(decoder.actions),
            floored=decoder.controller.floored,
        )

    def _decoder(self, setting: Setting) -> Decoder:
        if setting.mixed is not None:
            assert setting.budget is not None
            return mixed_decoder(self._model, setting.mixed, setting.budget)
        budget = 1.0 if setting.budget is None or is_constant(setting.schedule) else setting.budget
        return self._model.decoder(Dial(budget, setting.schedule, seed=setting.seed))[1]


def mixed_decoder(model: SolModel, actions: tuple[Action, Action], budget: float) -> Decoder:
    """A decoder that alternates between two actions so that their mean cost is the budget."""
    config = model.bundle.config
    known: Sequence[Action] = actions if config.dense in actions else (*actions, config.dense)
    controller = Controller(known, model.cost, budget)
    return Decoder(model.engine, controller, MixSchedule(controller))


def detached(output: StepOutput) -> StepOutput:
    """Copies an output, because later steps overwrite the engine's arrays."""
    logits = output.logits[-1:].copy()
    return StepOutput(logits, output.hidden[-1:].copy(), Distribution(logits[0]))


def device_words(model: SolModel) -> str:
    """Describes a model's GPU or processor, threads, provider and kernels in words."""
    engine = model.engine
    kernels = "native kernels" if engine.native else "ONNX Runtime kernels"
    return f"{engine.provider.device_name}, {engine.threads} threads, {engine.provider_name}, {kernels}"
