"""Runs a training from text to `policy.safetensors`: stages, checkpoints, and measurements on held-out windows.

    counterfactuals   what every action loses at positions of the text   rollouts/counterfactuals.py
    stage 1           the policy learns from them                        warm_start.py
    stage 2           GRPO on schedules that the policy samples          grpo.py
    measurements      against two rivals on held-out windows             holdout.py
    state             what a checkpoint holds                            run/state.py

Whatever is drawn comes from generators seeded by the config's seed, the stage and the update. So a killed training goes
on from its last checkpoint with the same numbers, bit by bit, and several processes draw what one process draws. Their
processors may round otherwise, so the first process measures what decides, and gives it to all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sol_rt.atomic_write import write_text
from sol_rt.bundle.policy_inputs import KNOWN_SCALARS
from sol_rt.errors import CheckpointError, NumericError, UsageError
from sol_rt.export.policy_file import TrainedPolicy, write_policy
from sol_rt.progress import Progress
from sol_rt.train.data.windows import Window
from sol_rt.train.grpo import Grpo
from sol_rt.train.holdout import Comparison, HeldOutComparison
from sol_rt.train.multipliers import Multipliers
from sol_rt.train.policy_network import new_network
from sol_rt.train.rollouts.counterfactuals import (
    Counterfactuals,
    CounterfactualStore,
    MeasuredWindows,
    measure,
)
from sol_rt.train.run.checkpoints import CHECKPOINT, CONFIG, check_resumable, load_checkpoint, save_checkpoint
from sol_rt.train.run.distributed import Group
from sol_rt.train.run.exchange import exchange, missing_everywhere
from sol_rt.train.run.log import TrainLog
from sol_rt.train.run.progress import MEASURING, STAGE_1, STAGE_2, Report, TrainingProgress
from sol_rt.train.run.setup import TrainSetup
from sol_rt.train.run.state import DONE, GRPO, WARM_START, TrainingState
from sol_rt.train.warm_start import Examples, WarmStart

POLICY = "policy.safetensors"
_BUDGET_SEED = 6  # second number of the seeds of the runs that positions follow; the first is the training's
_MEASUREMENTS = 40  # how often stage 1 looks at the held-out windows


class Trainer:
    """Runs a training, or goes on with one.

    Args:
        setup: what it works on.
        group: the processes.
        resume: whether to go on from the folder's checkpoint.
        report: progress callback.
        note: called with a line for the user now and then.

    Raises UsageError if the folder has a training and `resume` is not set, or the training to resume had other
    settings. Raises CheckpointError if there is nothing to resume.
    """

    def __init__(
        self, setup: TrainSetup, group: Group, *, resume: bool, report: Progress, note: Callable[[str], None]
    ) -> None:
        self.setup, self.group, self.note = setup, group, note
        self.config, self.spec, self.windows = setup.config, setup.rollouts.spec, setup.windows
        self.first = group.rank == 0
        setup.check_processes(group.size)
        group.require_same(setup.resume_key() | setup.counterfactuals_key() | {"config": self.config.to_yaml()})
        hidden_size = setup.embed(torch.zeros(1, dtype=torch.int64)).shape[-1]
        sizes = hidden_size, len(self.spec.scalars), len(self.spec.actions)
        self.network = new_network(self.config.policy, self.config.seed, *sizes)
        self.parallel: nn.Module = self.network
        if group.size > 1:
            self.parallel = nn.parallel.DistributedDataParallel(self.network)
        multipliers = [Multipliers(*self.config.grpo.budget) for _ in self.windows.lengths]
        self.state = TrainingState(self.network, multipliers)
        log_bytes = self._restore(group.from_process(0, lambda: self._saved(resume)))
        self.progress = TrainingProgress(report, setup, self.state)
        group.wait()  # the first process writes a checkpoint as soon as it runs
        self.log = TrainLog(setup.folder, log_bytes, self.state.step) if self.first else None
        if self.log is not None:
            if self.log.note:
                self.note(self.log.note)
            write_text(setup.folder / CONFIG, self.config.to_yaml())

    def run(self) -> Path:
        """Does all that is left to do. Returns the path of the policy.

        Raises NumericError where a loss is not finite; the last checkpoint is from before it and stays.
        """
        try:
            self._checkpoint(now=not self.state.step)
            if self.state.stage != DONE:
                training, held_out = self._counterfactuals()
                losses = training.mean_losses(len(self.windows.lengths))
                settings, embed = self.config.evaluation, self.setup.embed
                comparison = HeldOutComparison(settings, self.network, embed, self.spec, losses)
                if self.state.stage == WARM_START:
                    self._warm_start(training, held_out, comparison)
                self._grpo(comparison)
            path = self.setup.folder / POLICY
            if self.first:
                self.write_policy(path)
            self.group.wait()
            return path
        except NumericError as error:
            checkpoint, advice = self.setup.folder / CHECKPOINT, "lower the stage's learning_rate, or look at the data"
            raise NumericError(f"{error}; {checkpoint} is from before it: {advice}") from None
        finally:
            if self.log is not None:
                self.log.close()

    def write_policy(self, path: Path) -> None:
        """Writes the policy as it is now. Raises WriteError."""
        ran_grpo = self.state.stage == DONE and self.config.grpo.updates
        updates = self.state.best.update if ran_grpo else 0  # of the network that was kept
        done = f"{updates} GRPO updates" if updates else "no GRPO"
        policy = TrainedPolicy(
            self.network.shape,
            self.spec.scalars,
            self.spec.actions,
            f"warm start on {self.state.measured} windows, {done}, seed {self.config.seed}",
            self.network.exported(),
            self.setup.model,
        )
        write_policy(path, policy)

    # Stages

    def _counterfactuals(self) -> tuple[MeasuredWindows, MeasuredWindows]:
        """The counterfactuals of the training windows and of the held-out ones. Measures those that are missing.

        A training that has begun to learn keeps to the windows that it began with.
        """
        warm, windows, group, state = self.config.warm_start, self.windows, self.group, self.state
        begun = state.stage != WARM_START or state.update > 0
        held = windows.held_out[: self.config.evaluation.windows]
        wanted = held + windows.training[: state.measured if begun else warm.windows]
        names = [f"held-{i:06d}" for i in range(len(held))]
        names += [f"train-{i:06d}" for i in range(len(wanted) - len(held))]
        about = self.setup.counterfactuals_key()
        store = CounterfactualStore(self.setup.counterfactuals, about, KNOWN_SCALARS, create=group.local_rank == 0)
        missing = missing_everywhere(store, names, group)
        with self.progress.stage(MEASURING, warm.share) as report:
            for done, number in enumerate(missing):
                if number > len(held) and not begun and self._out_of_time(warm.share):
                    break
                report(len(wanted) - len(missing) + done, len(wanted))
                if done % self.config.checkpoint_every == 0:
                    self._checkpoint(now=True)
                if done % group.size == group.rank:
                    is_held = number < len(held)
                    place = number if is_held else number - len(held)
                    store.write(names[number], self._measured(wanted[number], is_held, place))
            there = exchange(store, names, group)
        read = [store.read(name, self.spec.scalars) for name in names[:there]]
        kinds = [window.kind for window in wanted[:there]]
        training = MeasuredWindows(read[len(held) :], kinds[len(held) :])
        state.measured = len(training.windows)
        if not state.measured:
            raise UsageError(f"--minutes {self.setup.minutes}: too short to measure one window; give more")
        return training, MeasuredWindows(read[: len(held)], kinds[: len(held)])

    def _measured(self, window: Window, is_held: bool, place: int) -> Counterfactuals:
        """The counterfactuals of a window, the `place`-th of the held-out ones or of the others."""
        warm, budget = self.config.warm_start, None
        if warm.along:
            seed = [self.config.seed, _BUDGET_SEED, int(is_held), place]
            low, high = warm.along
            budget = float(np.random.default_rng(seed).uniform(low, high))
        tokens = self.windows.tokens(window)
        return measure(self.setup.rollouts, tokens, warm.positions, budget)

    def _warm_start(self, training: MeasuredWindows, held_out: MeasuredWindows, comparison: HeldOutComparison) -> None:
        """Stage 1. It ends with the network that gained most on the held-out windows."""
        updates, patience, state = self.config.warm_start.updates, self.config.warm_start.patience, self.state
        stage = WarmStart(
            config=self.config,
            network=self.network,
            parallel=self.parallel,
            optimizer=state.optimizer,
            embed=self.setup.embed,
            columns=self.spec.scalars,
            training=Examples.of(training.windows, self.spec),
            held_out=Examples.of(held_out.windows, self.spec),
            held_out_kinds=held_out.kinds,
            group=self.group,
        )
        if state.update == 0:
            begins_with_bundle_s = stage.begin(self.setup.first_layer)
            self.network.load_state_dict(self.group.from_process(0, self.network.state_dict))
            gain = self.group.from_process(0, stage.held_out_gain)
            state.best.measured(self.network, gain, 0)
            if begins_with_bundle_s:
                self.note(f"stage 1 begins at the bundle's policy: {gain:.4f} nats a step over static actions")
        every = max(updates // _MEASUREMENTS, 1)
        with self.progress.stage(STAGE_1) as report:
            while state.update < updates and state.best.since < patience:
                values = stage.update(state.update)
                state.count_update()
                if state.update % every == 0 or state.update == updates:
                    values["held_out_gain"] = gain = self.group.from_process(0, stage.held_out_gain)
                    state.best.measured(self.network, gain, state.update)
                self._log(WARM_START, values)
                report(state.update, updates)
                self._checkpoint()
        if updates:  # without any, nothing was measured, and the best is what `begin` found
            self.network.load_state_dict(state.best.network)
        stage.fit_multipliers(state.multipliers, training.kinds)
        fitted = self.group.from_process(0, lambda: [each.logarithms for each in state.multipliers])
        for multipliers, logarithms in zip(state.multipliers, fitted, strict=True):
            multipliers.logarithms[:] = logarithms
        if updates:
            self.note(f"stage 1: {state.best.gain:.4f} nats a step over static actions on held-out windows")
        state.begin(GRPO)
        if self.first:
            self._log_comparisons(f"{WARM_START} replayed", comparison.replay(held_out.windows, held_out.kinds))
        self._checkpoint(now=True)

    def _grpo(self, comparison: HeldOutComparison) -> None:
        """Stage 2. It ends with the network that gained most on the held-out windows, which may be stage 1's."""
        updates, every, state = self.config.grpo.updates, self.config.evaluation.every, self.state
        stage = Grpo(
            config=self.config,
            network=self.network,
            parallel=self.parallel,
            optimizer=state.optimizer,
            multipliers=state.multipliers,
            embed=self.setup.embed,
            rollouts=self.setup.rollouts,
            windows=self.windows,
            hulls=comparison.hulls,
            group=self.group,
        )
        with self.progress.stage(STAGE_2, 1.0) as report:
            if state.update == 0 and updates:
                self._measure(comparison, "before", report)
            while state.update < updates and not self._out_of_time(1.0):
                self._log(GRPO, stage.update(state.update))
                state.count_update()
                if state.update % every == 0:
                    self._measure(comparison, "after", report)
                self.progress.grpo(report)
                self._checkpoint()
            if state.update % every:
                self._measure(comparison, "after", report)
        if updates:
            self.network.load_state_dict(state.best.network)
        if state.update < updates:
            self.note(f"stage 2: --minutes ended it after {state.update} of {updates} updates, for good")
        state.stage = DONE
        self._checkpoint(now=True)

    def _measure(self, comparison: HeldOutComparison, when: str, report: Report) -> None:
        """Compares by running episodes. The mean gain over both rivals at all budgets decides which network is kept."""

        def window(done: int, total: int) -> None:
            self.progress.grpo(report, done / total)

        found = comparison.run(self.setup.rollouts, self.windows, self.group, window)
        self.progress.measured()
        self._log_comparisons(f"{GRPO} {when}", found)
        gains = [gain for each in found for gain in each.gain.values()]
        self.state.best.measured(self.network, sum(gains) / len(gains), self.state.update)

    # Log, time and checkpoints

    def _log(self, stage: str, values: dict[str, float | str], part: str = "") -> None:
        if self.log is not None:
            self.log.write(stage, self.state.step, {"update": self.state.update, **values}, part)

    def _log_comparisons(self, stage: str, comparisons: Sequence[Comparison]) -> None:
        for found in comparisons:
            self._log(stage, {"budget": found.budget, **found.numbers()}, f"budget {found.budget:g}/")
            if self.first:
                self.note(f"{stage}, update {self.state.update}, {found.line()}")

    def _out_of_time(self, share: float) -> bool:
        """True if this share of `--minutes` has passed. The first process decides for all."""
        minutes = self.setup.minutes
        return minutes is not None and self.group.from_process(0, lambda: self.state.seconds) > share * minutes * 60

    def _checkpoint(self, now: bool = False) -> None:
        """Saves the state: now, or where another `checkpoint_every` updates have passed."""
        if self.log is not None and (now or self.state.step % self.config.checkpoint_every == 0):
            about = {"config": self.config.to_yaml(), "about": self.setup.resume_key(), "log_bytes": self.log.size}
            save_checkpoint(self.setup.folder, {**about, **self.state.to_dict()})

    def _saved(self, resume: bool) -> dict[str, Any] | None:
        """The folder's checkpoint, which the first process alone has for sure; None for a new training."""
        folder = self.setup.folder
        if not resume:
            if (folder / CHECKPOINT).exists():
                raise UsageError(f"{folder} has a training already; go on with --resume, or choose another -o")
            return None
        saved = load_checkpoint(folder)
        check_resumable(folder, saved, self.setup.resume_key(), self.config.to_yaml())
        return saved

    def _restore(self, saved: dict[str, Any] | None) -> int:
        """Goes back to a checkpoint, if there is one. Returns how many bytes of the log belong to it."""
        if saved is None:
            return 0
        try:
            self.state.restore(saved)
        except (RuntimeError, ValueError) as error:
            problem = " ".join(str(error).split())[:120]
            raise CheckpointError(
                f"{self.setup.folder / CHECKPOINT}: of another network ({problem}); begin anew with another -o"
            ) from None
        return int(saved["log_bytes"])
