"""Compares schedules on held-out text: all of them run on the same windows, the same prefill and the same tokens.

First, every window runs dense, under every action, and under `hull`, `uniform`, `entropy` and `sol` at every budget.
Random schedules with many seeds run on the first windows only. These runs determine the best static action, the best
mix of two actions and the best random schedule. The chosen mix and random schedule then run on all windows. `oracle`,
where it is asked for, runs every action at every token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from sol_rt.budget.cost.model import CostModel
from sol_rt.budget.dial import KEEP_LOSS
from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import SolConfig
from sol_rt.errors import ContextError, UsageError
from sol_rt.evaluation.quality.mix import hull_pair
from sol_rt.evaluation.quality.perplexity import added_bos
from sol_rt.evaluation.quality.runs import DENSE, Setting, WindowRun, WindowScorer, other_cost
from sol_rt.evaluation.quality.state import State
from sol_rt.evaluation.quality.windows import Window, spread_windows
from sol_rt.generate.model import SolModel
from sol_rt.progress import Progress, Stages

BUDGETED = ("hull", "uniform", "random", "entropy", "sol")
"""Schedules that take a budget."""
SCHEDULES = ("dense", "static", *BUDGETED)
"""Schedules that run by default."""
ORACLE = "oracle"
BUDGETS = (0.4, 0.5, 0.6, 0.7)
SIZES = (512, 2048, 4096, 8000)
_PROMPT_TOKEN = 0.1  # decode steps that a token of a prompt takes, for the progress bar


@dataclass(frozen=True)
class Plan:
    """Plan of a measurement on held-out text.

    Attributes:
        sizes: window sizes in tokens.
        budgets: shares of the dense cost, over 0 and under 1.
        schedules: names from SCHEDULES, and `oracle`; `dense` always runs.
        chunks: number of windows of each size at most; None means all.
        scored: tokens scored in each window; None means the second half, at most 256.
        random: number of random schedules, of which the best is chosen.
        searched: number of first windows on which the best random schedule is chosen.
        block: tokens per block; a run stores its sums by block.
    """

    sizes: tuple[int, ...] = SIZES
    budgets: tuple[float, ...] = BUDGETS
    schedules: tuple[str, ...] = SCHEDULES
    chunks: int | None = None
    scored: int | None = None
    random: int = 100
    searched: int = 1
    block: int = 64

    def check(self, config: SolConfig) -> None:
        """Raises UsageError or ContextError if the plan does not fit the bundle."""
        limit = config.model.max_context
        for size in self.sizes:
            if size < 4:
                raise UsageError(f"--ctx-size: got {size}, expected 4 or more tokens")
            if size > limit:
                raise ContextError(f"--ctx-size {size}: the model's context is {limit} tokens")
        for budget in self.budgets:
            if not 0 < budget < 1:
                raise UsageError(f"--budget: got {budget}, expected shares of the dense cost over 0 and under 1")
        for name in self.schedules:
            if name not in (*SCHEDULES, ORACLE):
                raise UsageError(f"--schedules: got {name!r}, expected some of {', '.join((*SCHEDULES, ORACLE))}")
        if "sol" in self.schedules and config.policy is None:
            raise UsageError("--schedules sol: this bundle has no policy; leave it out, or train one")
        for name in KEEP_LOSS:
            if name in self.schedules and not config.losses_measured:
                raise UsageError(
                    f"--schedules {name}: this bundle's losses were not measured; leave it out, or export again"
                )


@dataclass(frozen=True)
class SizeRuns:
    """All runs at one window size.

    Attributes:
        size: tokens per window.
        windows: the windows; every list of runs has their order.
        dense: the dense run of each window.
        fixed: by action tag, the run of each window; empty if `static` is not in the plan.
        budgeted: by schedule and budget, the run of each window; `mix` and `random` are the chosen ones.
        chosen: by schedule and budget, the chosen actions of `mix` and the chosen seed of `random`, in words.
    """

    size: int
    windows: list[Window]
    dense: list[WindowRun]
    fixed: dict[str, list[WindowRun]]
    budgeted: dict[tuple[str, float], list[WindowRun]]
    chosen: dict[tuple[str, float], str]


def measure(
    model: SolModel, texts: Mapping[str, str], plan: Plan, state: State, progress: Progress
) -> Iterator[SizeRuns]:
    """Runs the plan, one window size after another.

    Args:
        model: an open model; its cache is overwritten.
        texts: held-out texts by name.
        plan: what to measure.
        state: holds the results of earlier runs and stores the new ones.
        progress: progress callback.

    Raises UsageError if a text is shorter than a window, and SolError if a run fails.
    """
    plan.check(model.bundle.config)
    tokens = {name: model.tokenizer.encode(text, add_special_tokens=False) for name, text in texts.items()}
    bos = added_bos(model)
    windows = {size: spread_windows(tokens, size, bos, plan.chunks, plan.scored) for size in plan.sizes}
    measuring = [_Measuring(model, plan, state, size, windows[size]) for size in plan.sizes]
    weights = {stage: weight for each in measuring for stage, weight in each.stage_weights().items()}
    stages = Stages(progress, weights)
    for each in measuring:
        yield each.run(stages)


def state_settings(model: SolModel, block: int | None = None) -> dict[str, object]:
    """The settings for which the results in a state file are valid.

    The policy is not among them, because the key of each run of a policy names the policy.
    """
    document = model.bundle.config.to_json_dict()
    policy = document.pop("policy", None)
    dropped = {"README.md", policy["file"] if policy else None}
    document["files"] = {name: entry for name, entry in document["files"].items() if name not in dropped}
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    kernels = "native" if model.native else model.provider.name
    return {
        "bundle": digest[:16],
        "cost": " and ".join(
            _cost_words(cost, model.bundle.config) for cost in (model.cost, other_cost(model)) if cost
        ),
        "kernels": kernels,
        "block": block,
    }


def _cost_words(cost: CostModel, config: SolConfig) -> str:
    costs = {action.tag: cost.step(action, 511) for action in _actions(config)}
    return f"{cost.unit} {hashlib.sha256(json.dumps(costs).encode()).hexdigest()[:16]}"


class _Measuring:
    """Runs the plan at one window size."""

    def __init__(self, model: SolModel, plan: Plan, state: State, size: int, windows: Sequence[Window]) -> None:
        self._model, self._plan, self._state = model, plan, state
        self._size, self._windows = size, list(windows)
        self._scorer = WindowScorer(model, block=plan.block)
        self._actions = actions = _actions(model.bundle.config)
        self._statics = {action: Setting(f"fixed:{action.tag}") for action in actions if "static" in plan.schedules}
        self._steady = [
            Setting(name, budget)
            for name in (*BUDGETED, ORACLE)
            if name in plan.schedules and name != "random"
            for budget in plan.budgets
        ]
        seeds = range(plan.random if "random" in plan.schedules else 0)
        self._drawn = [Setting("random", budget, seed) for budget in plan.budgets for seed in seeds]
        everywhere = [DENSE, *self._statics.values(), *self._steady]
        self._wanted = [everywhere + self._drawn * (index < plan.searched) for index in range(len(windows))]
        self._first, self._second = f"{size}: schedules", f"{size}: best mix, best random"

    def stage_weights(self) -> dict[str, float]:
        """About how long both stages take, in decode steps. The second one's settings are not known yet."""
        first = sum(
            window.steps * self._passes(missing) + window.context * _PROMPT_TOKEN
            for window, settings in zip(self._windows, self._wanted, strict=True)
            if (missing := self._missing(window, settings))
        )
        chosen = len(self._plan.budgets) * (bool(self._statics) + bool(self._drawn))
        second = sum(window.steps * chosen + window.context * _PROMPT_TOKEN for window in self._windows)
        return {self._first: first, self._second: second if chosen else 0.0}

    def run(self, stages: Stages) -> SizeRuns:
        plan, statics, drawn = self._plan, self._statics, self._drawn
        with stages(self._first) as progress:
            self._run(self._wanted, progress)
        fixed = {action: self._runs(setting) for action, setting in statics.items()}

        chosen: dict[tuple[str, float], Setting] = {}
        for budget in plan.budgets:
            if fixed:
                pair = hull_pair({action: (cost_of(runs), nll_of(runs)) for action, runs in fixed.items()}, budget)
                if pair is not None:
                    chosen["mix", budget] = Setting("mix", budget, mixed=pair)
            tried = [setting for setting in drawn if setting.budget == budget]
            if tried:
                searched = slice(plan.searched)
                chosen["random", budget] = min(tried, key=lambda each: nll_of(self._runs(each, searched)))
        with stages(self._second) as progress:
            self._run([list(chosen.values()) for _ in self._windows], progress)
        settings = {(each.schedule, each.budget): each for each in self._steady} | chosen
        return SizeRuns(
            self._size,
            self._windows,
            self._runs(DENSE),
            {action.tag: runs for action, runs in fixed.items()},
            {(name, budget): self._runs(setting) for (name, budget), setting in settings.items() if budget is not None},
            {at: _words(setting) for at, setting in chosen.items()},
        )

    def _run(self, wanted: Sequence[Sequence[Setting]], progress: Progress) -> None:
        """Runs each window under its settings that have no stored result yet."""
        missing = [self._missing(window, settings) for window, settings in zip(self._windows, wanted, strict=True)]
        total = sum(window.steps * self._passes(given) for window, given in zip(self._windows, missing, strict=True))
        done = 0
        for window, settings in zip(self._windows, missing, strict=True):
            if not settings:
                continue
            dense = self._scorer.open(window)
            for setting in settings:
                if setting.schedule == ORACLE:
                    continue
                result = dense if setting == DENSE else self._scorer.run(setting)
                self._state.put(self._key(window, setting), asdict(result))
                done += window.steps
                progress("", done, total)
            budgets = {setting: setting.budget for setting in settings if setting.schedule == ORACLE}
            if budgets:
                results = self._scorer.oracle(self._actions, [each for each in budgets.values() if each is not None])
                for setting, result in zip(budgets, results, strict=True):
                    self._state.put(self._key(window, setting), asdict(result))
                done += window.steps * self._passes(list(budgets))
                progress("", done, total)

    def _passes(self, settings: Sequence[Setting]) -> int:
        """Counts the passes over a window's steps. The oracle runs every action and dense once for all budgets."""
        others = sum(setting.schedule != ORACLE for setting in settings)
        return others + (len(self._actions) + 1) * (others < len(settings))

    def _missing(self, window: Window, settings: Sequence[Setting]) -> list[Setting]:
        """The settings that have no stored result for the window."""
        return [setting for setting in settings if self._state.get(self._key(window, setting)) is None]

    def _runs(self, setting: Setting, which: slice = slice(None)) -> list[WindowRun]:
        return [WindowRun(**self._state.get(self._key(window, setting))) for window in self._windows[which]]

    def _key(self, window: Window, setting: Setting) -> str:
        config = self._model.bundle.config
        policy = config.files[config.policy.file].sha256[:16] if setting.schedule == "sol" and config.policy else ""
        return f"{window.identity} {setting.key} {policy}".strip()


def _words(setting: Setting) -> str:
    """Describes a chosen setting: the seed of `random`, or the action tags of `mix`."""
    if setting.mixed is None:
        return f"seed {setting.seed}"
    return " and ".join(dict.fromkeys(action.tag for action in setting.mixed))


def cost_of(runs: Sequence[WindowRun]) -> float:
    """Cost of all decode steps divided by their dense cost."""
    return sum(sum(run.spent) for run in runs) / sum(sum(run.full) for run in runs)


def nll_of(runs: Sequence[WindowRun]) -> float:
    """Mean negative log-likelihood, nats per token."""
    return sum(sum(run.nll) for run in runs) / sum(sum(run.tokens) for run in runs)


def _actions(config: SolConfig) -> list[Action]:
    """The bundle's action set, with the dense action added if the set lacks it."""
    found = [entry.action for entry in config.actions]
    return found if config.dense in found else [config.dense, *found]
