"""Computes figures with intervals from the runs of an evaluation.

The dataclasses mirror the JSON that `sol-rt eval --json` prints.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sol_rt.evaluation.quality.bootstrap import Bootstrap, CurvePoint, Figure, Floats, Resampling, Sample, at_cost
from sol_rt.evaluation.quality.held_out import ORACLE, Plan, SizeRuns, cost_of, nll_of
from sol_rt.evaluation.quality.runs import WindowRun, device_words, other_cost
from sol_rt.generate.model import SolModel

FORMAT, VERSION = "sol_rt.evaluation", 1
_TINY = 1e-6


@dataclass(frozen=True)
class Result:
    """A schedule's result at one budget.

    Attributes:
        schedule: name of the schedule.
        budget: requested budget; None for a fixed action.
        chosen: the chosen action, mix or seed, in words; empty for schedules without a choice.
        achieved: cost of all decode steps divided by their dense cost.
        achieved_also: the same by the other cost model (`Evaluation.other_cost_model`); None without one.
        worst: largest |achieved - budget| of a window; None for a fixed action.
        floored: whether the budget was below the cheapest action.
        nll: mean negative log-likelihood, nats per token.
        perplexity: exp(nll).
        added: nll minus the dense nll of the same windows, nats per token.
        kl: mean KL(dense || schedule) of the next-token distributions, nats.
        agreement: share of tokens where schedule and dense model have the same likeliest token.
        actions: number of decode steps by action tag.
    """

    schedule: str
    budget: float | None
    chosen: str
    achieved: Figure
    achieved_also: Figure | None
    worst: float | None
    floored: bool
    nll: Figure
    perplexity: Figure
    added: Figure
    kl: Figure
    agreement: Figure
    actions: dict[str, int]


@dataclass(frozen=True)
class Comparison:
    """A comparison of a schedule with a rival at the same budget.

    The rival's loss is estimated at the cost that the schedule achieved.

    Attributes:
        schedule, rival: names of the schedules.
        budget: budget requested of both.
        matched: whether the rival's loss was moved to the schedule's cost; False if the rival ran a single action.
        cost: relative cost that the schedule achieved (dense = 1).
        rival_cost: relative cost that the rival achieved.
        nll: the schedule's nll minus the rival's, nats per token; below 0 the schedule is better.
        perplexity: the schedule's perplexity minus the rival's.
        avoided: share of the rival's added loss over dense that the schedule avoids; None if the rival adds no loss.
    """

    schedule: str
    rival: str
    budget: float
    matched: bool
    cost: float
    rival_cost: float
    nll: Figure
    perplexity: Figure
    avoided: Figure | None


@dataclass(frozen=True)
class SizeReport:
    """Figures at one window size.

    Attributes:
        size: tokens per window.
        context: tokens at the beginning of a window that are prefilled.
        windows, tokens: number of scored windows and tokens.
        units: number of units that the bootstrap draws from.
        dense: result of the dense model.
        static: result of every single action.
        results: result of every schedule at every budget; `static` and `mix` are chosen from the single actions.
        comparisons: comparisons of the subject (see `Evaluation.subject`) with each other schedule.
    """

    size: int
    context: int
    windows: int
    tokens: int
    units: int
    dense: Result
    static: list[Result]
    results: list[Result]
    comparisons: list[Comparison]


@dataclass(frozen=True)
class Evaluation:
    """The whole evaluation, and how it was measured.

    Attributes:
        model: name of the model.
        bundle: `Bundle.identity`.
        cost_model: unit of every cost: `measured` (milliseconds) or `bytes`.
        other_cost_model: the other unit, if its costs are known here; None otherwise.
        device: GPU or processor, threads, provider and kernels, in words.
        texts: names of the scored texts.
        random_schedules: number of random schedules, of which the best was chosen.
        random_searched: number of windows on which the best random schedule was chosen; its result is of all windows.
        resampling: how the 95% intervals were computed.
        subject: the schedule that is compared with the others: `sol`, else `hull`, else `entropy`; None without these.
        sizes: one report per window size.
    """

    model: str
    bundle: str
    cost_model: str
    other_cost_model: str | None
    device: str
    texts: list[str]
    random_schedules: int
    random_searched: int
    resampling: Resampling
    subject: str | None
    sizes: list[SizeReport]

    def as_json(self) -> dict[str, Any]:
        """The JSON object that docs/design/evaluation.md describes."""
        return {"format": FORMAT, "format_version": VERSION, **asdict(self)}


def report_of(
    model: SolModel, texts: Sequence[str], plan: Plan, resampling: Resampling, sizes: Sequence[SizeReport]
) -> Evaluation:
    """Combines the reports of all window sizes with the settings of the evaluation."""
    also = other_cost(model)
    return Evaluation(
        model=model.bundle.config.model.name,
        bundle=model.bundle.identity,
        cost_model=model.cost.name,
        other_cost_model=None if also is None else also.name,
        device=device_words(model),
        texts=list(texts),
        random_schedules=plan.random if "random" in plan.schedules else 0,
        random_searched=plan.searched if "random" in plan.schedules else 0,
        resampling=resampling,
        subject=subject(plan.schedules),
        sizes=list(sizes),
    )


def size_report(runs: SizeRuns, plan: Plan, resampling: Resampling) -> SizeReport:
    """Computes the figures of all runs at one window size."""
    return _Reporter(runs, plan, resampling).report()


def subject(schedules: Sequence[str]) -> str | None:
    """The schedule that is compared with the others: `sol`, else `hull`, else `entropy`; None without these."""
    return next((name for name in ("sol", "hull", "entropy") if name in schedules), None)


class _Reporter:
    def __init__(self, runs: SizeRuns, plan: Plan, resampling: Resampling) -> None:
        self._runs, self._plan = runs, plan
        self._by_block = resampling.unit == "blocks"
        self._dense = self._sample(runs.dense)
        self._bootstrap = Bootstrap(self._dense.tokens.size, resampling.draws, resampling.seed)
        self._dense_point = self._point(self._dense)
        self._budgeted = dict(runs.budgeted)
        self._chosen = dict(runs.chosen)
        for budget in plan.budgets:
            affordable = {tag: each for tag, each in runs.fixed.items() if cost_of(each) <= budget + _TINY}
            if affordable:
                best = min(affordable, key=lambda tag: nll_of(affordable[tag]))
                self._budgeted["static", budget] = affordable[best]
                self._chosen["static", budget] = best

    def report(self) -> SizeReport:
        runs, window = self._runs, self._runs.windows[0]
        order = ("static", "mix", "hull", "uniform", "random", "entropy", "sol", ORACLE)
        names = [name for name in order if any((name, budget) in self._budgeted for budget in self._plan.budgets)]
        ours = subject(names)
        return SizeReport(
            size=runs.size,
            context=window.context,
            windows=len(runs.windows),
            tokens=int(self._dense.tokens.sum()),
            units=self._dense.tokens.size,
            dense=self._result("dense", None, runs.dense),
            static=[self._result(f"fixed:{tag}", None, each) for tag, each in runs.fixed.items()],
            results=[
                self._result(name, budget, self._budgeted[name, budget])
                for budget in self._plan.budgets
                for name in names
                if (name, budget) in self._budgeted
            ],
            comparisons=[
                self._comparison(ours, name, budget)
                for budget in self._plan.budgets
                for name in names
                if ours is not None
                and name not in (ours, ORACLE)
                and {(name, budget), (ours, budget)} <= set(self._budgeted)
            ],
        )

    def _result(self, name: str, budget: float | None, runs: Sequence[WindowRun]) -> Result:
        sample, figure, mean = self._sample(runs), self._bootstrap.figure, self._bootstrap.mean
        nll, actions = mean(sample.nll, sample.tokens), Counter[str]()
        for run in runs:
            actions.update(run.actions)
        constant = budget is None or name == "static"
        return Result(
            schedule=name,
            budget=budget,
            chosen="" if budget is None else self._chosen.get((name, budget), ""),
            achieved=figure(mean(sample.spent, sample.full)),
            achieved_also=self._achieved_also(runs),
            worst=None if constant or budget is None else max(abs(cost_of([run]) - budget) for run in runs),
            floored=any(run.floored for run in runs),
            nll=figure(nll),
            perplexity=figure(np.exp(nll)),
            added=figure(nll - self._dense_point.nll),
            kl=figure(mean(sample.kl, sample.tokens)),
            agreement=figure(mean(sample.agreed, sample.tokens)),
            actions=dict(actions.most_common()),
        )

    def _comparison(self, ours: str, rival: str, budget: float) -> Comparison:
        mine = self._point(self._sample(self._budgeted[ours, budget]))
        budgets = [each for each in self._plan.budgets if (rival, each) in self._budgeted]
        curve = [self._point(self._sample(self._budgeted[rival, each])) for each in budgets]
        index = budgets.index(budget)
        # a rival that ran a single action cannot spend more or less
        matched = len({tag for run in self._budgeted[rival, budget] for tag in run.actions}) != 1
        theirs = at_cost([*curve, self._dense_point], index, mine.cost) if matched else curve[index].nll
        figure = self._bootstrap.figure
        added = theirs - self._dense_point.nll
        return Comparison(
            schedule=ours,
            rival=rival,
            budget=budget,
            matched=matched,
            cost=float(mine.cost[0]),
            rival_cost=float(curve[index].cost[0]),
            nll=figure(mine.nll - theirs),
            perplexity=figure(np.exp(mine.nll) - np.exp(theirs)),
            avoided=figure((theirs - mine.nll) / added) if (added > _TINY).all() else None,
        )

    def _achieved_also(self, runs: Sequence[WindowRun]) -> Figure | None:
        if not runs[0].full_also:
            return None
        spent, full = (self._column(runs, name) for name in ("spent_also", "full_also"))
        return self._bootstrap.figure(self._bootstrap.mean(spent, full))

    def _point(self, sample: Sample) -> CurvePoint:
        mean = self._bootstrap.mean
        return CurvePoint(mean(sample.spent, sample.full), mean(sample.nll, sample.tokens))

    def _sample(self, runs: Sequence[WindowRun]) -> Sample:
        return Sample(*(self._column(runs, name) for name in ("tokens", "nll", "kl", "agreed", "spent", "full")))

    def _column(self, runs: Sequence[WindowRun], name: str) -> Floats:
        values = [np.array(getattr(run, name), np.float64) for run in runs]
        return np.concatenate(values) if self._by_block else np.array([each.sum() for each in values])
