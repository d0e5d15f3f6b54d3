"""Figures with intervals from the runs of an evaluation; the dataclasses are the JSON that `sol-rt eval` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sol_rt.evaluation.quality.bootstrap import Bootstrap, CurvePoint, Figure, Resampling, Sample, at_cost
from sol_rt.evaluation.quality.held_out import Plan, SizeRuns, cost_of, nll_of
from sol_rt.evaluation.quality.runs import WindowRun, device_words
from sol_rt.generate.model import SolModel

FORMAT, VERSION = "sol_rt.evaluation", 1
_TINY = 1e-6


@dataclass(frozen=True)
class Result:
    """What a schedule came to.

    Attributes:
        schedule: its name.
        budget: asked for; None where an action is fixed.
        chosen: what was chosen for it, in words; empty where nothing was.
        achieved: cost of all steps over their dense cost.
        worst: largest |achieved - budget| of a window; None where an action is fixed.
        floored: whether the budget lay below the cheapest action.
        nll: nats a token.
        perplexity: exp of it.
        added: nats a token over dense, paired with it.
        kl: mean divergence of the dense distribution from the schedule's, nats.
        agreement: share of tokens where both have the same likeliest token.
        actions: decode steps of every action tag.
    """

    schedule: str
    budget: float | None
    chosen: str
    achieved: Figure
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
    """A schedule against a rival at the same budget, the rival's loss taken at the schedule's achieved cost.

    Attributes:
        schedule, rival: names.
        budget: asked of both.
        matched: whether the rival's loss was moved to the schedule's cost; not where it ran one action throughout.
        cost: achieved by the schedule, over dense.
        rival_cost: achieved by the rival.
        nll: of the schedule less the rival's, nats a token: below 0 the schedule is better.
        perplexity: the same of perplexities.
        avoided: share of what the rival adds over dense that the schedule avoids; None where the rival adds nothing.
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
        size: tokens of a window.
        context: those of them that are prefilled.
        windows, tokens: scored.
        units: what was resampled, how many.
        dense: the dense model.
        static: every action of the set.
        results: every schedule at every budget; `static` and `mix` are chosen from the actions.
        comparisons: of the schedule in question with each other one.
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
    """All of it, and how it was made.

    Attributes:
        model: the model's name.
        bundle: `Bundle.identity`.
        cost_model: `calibrated` (milliseconds) or `bytes`: what every cost is counted in.
        device: provider, threads and kernels.
        texts: what was scored.
        random_schedules: of how many random schedules the best was taken.
        random_searched: windows that it was chosen on; its figures are of all windows.
        resampling: how intervals were made; they hold 95%.
        subject: the schedule that is compared with the others; None where there are constant ones only.
        sizes: by window size.
    """

    model: str
    bundle: str
    cost_model: str
    device: str
    texts: list[str]
    random_schedules: int
    random_searched: int
    resampling: Resampling
    subject: str | None
    sizes: list[SizeReport]

    def as_json(self) -> dict[str, Any]:
        """The JSON object that docs/evaluation.md describes."""
        return {"format": FORMAT, "format_version": VERSION, **asdict(self)}


def report_of(
    model: SolModel, texts: Sequence[str], plan: Plan, resampling: Resampling, sizes: Sequence[SizeReport]
) -> Evaluation:
    """Puts the figures of all sizes together with how they were made."""
    return Evaluation(
        model=model.bundle.config.model.name,
        bundle=model.bundle.identity,
        cost_model=model.cost.name,
        device=device_words(model),
        texts=list(texts),
        random_schedules=plan.random if "random" in plan.schedules else 0,
        random_searched=plan.searched if "random" in plan.schedules else 0,
        resampling=resampling,
        subject=subject(plan.schedules),
        sizes=list(sizes),
    )


def size_report(runs: SizeRuns, plan: Plan, resampling: Resampling) -> SizeReport:
    """Figures of all runs at one window size."""
    return _Reporter(runs, plan, resampling).report()


def subject(schedules: Sequence[str]) -> str | None:
    """The schedule that is compared with the others: `sol`, else `entropy`, None where neither is there."""
    return next((name for name in ("sol", "entropy") if name in schedules), None)


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
        order = ("static", "mix", "uniform", "random", "entropy", "sol")
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
                if ours is not None and name != ours and {(name, budget), (ours, budget)} <= set(self._budgeted)
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
        # one action is what it is: spending more on it, or less, is no choice that it has
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

    def _point(self, sample: Sample) -> CurvePoint:
        mean = self._bootstrap.mean
        return CurvePoint(mean(sample.spent, sample.full), mean(sample.nll, sample.tokens))

    def _sample(self, runs: Sequence[WindowRun]) -> Sample:
        columns = []
        for name in ("tokens", "nll", "kl", "agreed", "spent", "full"):
            values = [np.array(getattr(run, name), np.float64) for run in runs]
            columns.append(np.concatenate(values) if self._by_block else np.array([each.sum() for each in values]))
        return Sample(*columns)
