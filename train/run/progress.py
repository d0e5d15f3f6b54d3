"""Progress of a training: its stages as one whole, weighted by about how many decode steps each of them runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sol_rt.progress import Progress, Stages
from sol_rt.train.run.setup import TrainSetup
from sol_rt.train.run.state import WARM_START, TrainingState

MEASURING, STAGE_1, STAGE_2 = "measuring every action", "stage 1: warm start", "stage 2: GRPO"
_PROMPT_TOKEN = 0.1  # decode steps that a token of a prompt takes
_WARM_UPDATE = 10.0  # decode steps that an update of stage 1 takes: it runs the policy alone
_COMPARED = 3  # schedules that a measurement on held-out windows runs at each budget

Report = Callable[[float, float], None]
"""Called with the amount done and the total of a stage."""


class TrainingProgress:
    """Reports the stages of a training.

    Args:
        report: progress callback of the whole.
        setup: what the training works on.
        state: the training's state; its clock counts where `--minutes` limits the training.
    """

    def __init__(self, report: Progress, setup: TrainSetup, state: TrainingState) -> None:
        self._setup, self._state, self._measured = setup, state, 0
        config, spec = setup.config, setup.rollouts.spec
        prefill = _PROMPT_TOKEN * sum(setup.windows.lengths) / len(setup.windows.lengths)
        warm, grpo, evaluation = config.warm_start, config.grpo, config.evaluation
        window = warm.positions * len(spec.actions) + prefill
        update = grpo.windows * (grpo.episodes * grpo.schedules * config.policy.horizon + prefill)
        held = evaluation.windows * (evaluation.positions * len(evaluation.budgets) * _COMPARED + prefill)
        self._measurements = math.ceil(grpo.updates / evaluation.every) + 1 if grpo.updates else 0
        self._updates_a_measurement = held / update if grpo.updates else 0.0
        in_stage_1 = state.stage == WARM_START
        weights = {
            MEASURING: warm.windows * window,
            STAGE_1: (warm.updates - state.update if in_stage_1 else 0) * _WARM_UPDATE,
            STAGE_2: (grpo.updates - (0 if in_stage_1 else state.update)) * update + self._measurements * held,
        }
        if setup.minutes is not None:
            total = sum(weights.values())
            weights |= {MEASURING: warm.share * total, STAGE_2: (1 - warm.share) * total}
        self._stages = Stages(report, weights)

    @contextmanager
    def stage(self, name: str, share: float | None = None) -> Iterator[Report]:
        """Begins a stage. `share` is the share of `--minutes` after which it ends even if something is left to do."""
        with self._stages(name) as progress:

            def report(done: float, total: float) -> None:
                minutes = self._setup.minutes
                if share is not None and minutes is not None:
                    done = max(done, total * min(self._state.seconds / (share * minutes * 60), 1.0))
                progress(name, done, total)

            yield report

    def grpo(self, report: Report, part: float = 0.0) -> None:
        """Reports stage 2: its updates, the measurements between them, and `part` (0 to 1) of the next measurement."""
        updates = self._setup.config.grpo.updates
        worth = self._updates_a_measurement
        report(self._state.update + (self._measured + part) * worth, updates + self._measurements * worth)

    def measured(self) -> None:
        """Counts a measurement on the held-out windows."""
        self._measured += 1
