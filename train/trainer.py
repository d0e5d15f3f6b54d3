"""A training from text to policy.safetensors: counterfactuals, stage 1 (regression.py), stage 2 (grpo.py).

Everything that is drawn comes from a generator seeded by (seed, stage, update, window): the state of a training is its
parameters, its optimizer's moments and a count, and several processes draw what one would. Updates are whole: a killed
run goes on from its last checkpoint with the same numbers, bit by bit.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sol_rt.bundle.policy_inputs import KNOWN_SCALARS
from sol_rt.errors import CheckpointError, NumericError, UsageError
from sol_rt.export.graphs.policy_graph import PolicyShape
from sol_rt.export.policy_file import TrainedPolicy, write_policy
from sol_rt.store.progress import Progress
from sol_rt.train import grpo, holdout, regression
from sol_rt.train.config import TrainConfig
from sol_rt.train.data.windows import Windows
from sol_rt.train.multipliers import Multipliers
from sol_rt.train.policy_network import PolicyNetwork
from sol_rt.train.rollouts.counterfactuals import Counterfactuals, CounterfactualStore, measure
from sol_rt.train.rollouts.observation import relative_costs
from sol_rt.train.rollouts.rollout import Rollouts
from sol_rt.train.run.checkpoints import CHECKPOINT, load_checkpoint, save_checkpoint
from sol_rt.train.run.distributed import Group
from sol_rt.train.run.log import TrainLog

POLICY = "policy.safetensors"
CONFIG = "config.yaml"
_WARM, _GRPO, _DONE = "warm start", "grpo", "done"
_SEED_OF = {_WARM: 1, _GRPO: 2, "held out": 3}
_MEASURES = 40  # times that stage 1 looks at the held-out windows
_MULTIPLIERS = 12  # at which it does
_FITTED = 256  # episodes that multipliers are set on, for each length of window
_LEAST_TEMPERATURE = 0.02  # share of the config's: a thousandth of a nat where a logit is a twentieth


@dataclass(frozen=True)
class TrainSetup:
    """What a training works on.

    Attributes:
        rollouts: the source of episodes; its spec has actions, costs and scalars.
        embed: rows of the model's embedding.
        windows: of text.
        config: all settings.
        folder: where everything is written.
        counterfactuals: folder of stage 1's measurements, which trainings may share.
        model: name of the model.
        identity: of weights and variants: what the counterfactuals are valid for.
        minutes: wall-clock limit; the stages fit themselves into it. None: the config's counts alone.
    """

    rollouts: Rollouts
    embed: grpo.Embed
    windows: Windows
    config: TrainConfig
    folder: Path
    counterfactuals: Path
    model: str
    identity: str
    minutes: float | None = None


class Trainer:
    """Runs a training, or goes on with one.

    Args:
        setup: what on. group: the processes. resume: go on from the folder's checkpoint. report: told how far it is.
        note: told a line now and then.

    Raises UsageError where the folder has a training and `resume` is not set, or is set and the training had other
    settings; CheckpointError where there is nothing to resume.
    """

    def __init__(
        self, setup: TrainSetup, group: Group, *, resume: bool, report: Progress, note: Callable[[str], None]
    ) -> None:
        self.setup, self.group, self.report, self.note = setup, group, report, note
        self.config, spec = setup.config, setup.rollouts.spec
        for name, count in (
            ("warm_start.batch", self.config.warm_start.batch),
            ("grpo.windows", self.config.grpo.windows),
        ):
            if count % group.size:
                raise UsageError(f"{name}: got {count}, expected a multiple of the {group.size} processes")
        self.actions, self.columns = spec.actions, spec.scalars
        self.network = new_network(self.config, len(self.columns), setup)
        self.parallel: nn.Module = self.network
        if group.size > 1:
            self.parallel = nn.parallel.DistributedDataParallel(self.network)
        self.multipliers = [Multipliers(*self.config.grpo.budget) for _ in setup.windows.lengths]  # by length of window
        self.stage, self.update, self.step, self.seconds = _WARM, 0, 0, 0.0
        self.best = self._nothing_yet()
        self.measured = 0  # windows that stage 1 learns from
        self.losses = torch.zeros(len(setup.windows.lengths), len(self.actions), dtype=torch.float64)
        self.optimizer = self._new_optimizer()
        self.began = time.monotonic()
        self.first = group.rank == 0
        log_bytes = 0
        if resume:
            log_bytes = self._restore(load_checkpoint(setup.folder))
        elif (setup.folder / CHECKPOINT).exists():
            raise UsageError(f"{setup.folder} has a training already; go on with --resume, or choose another -o")
        group.wait()  # the first process writes a checkpoint as soon as it runs
        self.log = TrainLog(setup.folder, log_bytes, self.step) if self.first else None
        if self.log is not None:
            if self.log.note:
                self.note(self.log.note)
            (setup.folder / CONFIG).write_text(self.config.to_yaml(), encoding="utf-8")

    # The run

    def run(self) -> Path:
        """All that is left to do. Returns the policy's file.

        Raises NumericError where a loss is not finite; the last checkpoint, from before it, stays.
        """
        try:
            self._checkpoint(now=not self.step)
            if self.stage != _DONE:
                examples = self._counterfactuals()
                if self.stage == _WARM:
                    self._warm_start(*examples)
            if self.stage == _WARM:
                self._begin(_GRPO)
            if self.stage == _GRPO:
                self._grpo()
            path = self.setup.folder / POLICY
            if self.first:
                self.write_policy(path)
            self.group.wait()
            return path
        finally:
            if self.log is not None:
                self.log.close()

    def write_policy(self, path: Path) -> None:
        """Writes the policy as it is now, aside and then renamed."""
        updates = self.best["update"] if self.stage == _DONE and self.config.grpo.updates else 0  # of what was kept
        done = f"{updates} GRPO updates" if updates else "no GRPO"
        policy = TrainedPolicy(
            self.network.shape,
            self.columns,
            self.actions,
            f"warm start on {self.measured} windows, {done}, seed {self.config.seed}",
            self.network.exported(),
            self.setup.model,
        )
        aside = path.with_name(f"{path.name}.{os.getpid()}")
        write_policy(aside, policy)
        aside.replace(path)

    # Stage 1

    def _counterfactuals(self) -> tuple[list[Counterfactuals], list[Counterfactuals], list[int]]:
        """(to train on, to measure on, window kinds of both in a row); measured where they are not there yet.

        What has learned from some windows goes on with these, however much time there is now or others have measured.
        """
        warm, windows, group = self.config.warm_start, self.setup.windows, self.group
        begun = self.stage != _WARM or self.update > 0
        held = windows.held_out[: self.config.evaluation.windows]
        wanted = held + windows.training[: self.measured if begun else warm.windows]
        names = [f"held-{i:06d}" for i in range(len(held))]
        names += [f"train-{i:06d}" for i in range(len(wanted) - len(held))]
        store = CounterfactualStore(self.setup.counterfactuals, self._about(), KNOWN_SCALARS, create=self.first)
        group.wait()
        missing = [number for number in range(len(wanted)) if not store.has(names[number])]
        group.wait()  # nobody writes before all have looked
        for done, number in enumerate(missing):
            if number > len(held) and not begun and self._spent(warm.share):
                break
            self.report("measuring every action", len(wanted) - len(missing) + done, len(wanted))
            if done % self.config.checkpoint_every == 0:
                self._checkpoint(now=True)
            if number % group.size == group.rank:
                store.write(names[number], measure(self.setup.rollouts, windows.tokens(wanted[number]), warm.positions))
        group.wait()
        there = list(itertools.takewhile(lambda number: store.has(names[number]), range(len(wanted))))
        self.report("measuring every action", len(wanted), len(wanted))
        measured = [store.read(names[number], self.columns) for number in there]
        count = sum(number < len(held) for number in there)
        self.measured = len(measured) - count
        if not self.measured:
            raise UsageError(f"--minutes {self.setup.minutes}: too short to measure one window; give more")
        kinds = [wanted[number].kind for number in there]
        for kind in range(len(self.losses)):  # static mixes know the context's class, too
            members = [row for row, of in zip(measured[count:], kinds[count:], strict=True) if of == kind]
            for row in members or measured[count:]:
                self.losses[kind] += row.kl.double().mean(0) / len(members or measured[count:])
        return measured[count:], measured[:count], kinds[count:] + kinds[:count]

    def _about(self) -> dict[str, object]:
        return {
            "identity": self.setup.identity,
            "actions": [action.tag for action in self.actions],
            "positions": self.config.warm_start.positions,
            "windows": list(self.config.data.windows),
            "held_out": self.config.data.held_out,
            "text": self.setup.windows.digest,
        }

    def _warm_start(self, training: list[Counterfactuals], held: list[Counterfactuals], kinds: list[int]) -> None:
        warm, shape = self.config.warm_start, self.network.shape
        examples, held_out = (regression.Examples.of(part, self.setup.rollouts.spec) for part in (training, held))
        multipliers = self._multiplier_range(examples)
        grid = np.geomspace(*multipliers, _MULTIPLIERS).tolist()
        check = self._held_out_episodes(held_out, multipliers)
        groups = torch.tensor(kinds[len(training) :]).repeat_interleave(len(check.multiplier) // len(held))
        if self.update == 0:
            random = np.random.default_rng([self.config.seed, _SEED_OF[_WARM]])
            shown = regression.draw_episodes(
                examples, 2048, shape.horizon, multipliers, warm.unit, self.columns, random
            )
            self.network.standardise(
                shown.hidden.flatten(0, 1), self.setup.embed(shown.token).flatten(0, 1), shown.scalars.flatten(0, 1)
            )
            self.network.begin_at(-examples.added.mean(dim=(0, 1)) / warm.unit)
        every = max(warm.updates // _MEASURES, 1)
        while self.update < warm.updates and self.best["since"] < warm.patience:
            rate = 0.5 * warm.learning_rate * (1 + math.cos(math.pi * self.update / warm.updates))
            loss = self._warm_update(examples, multipliers, rate)
            self.update, self.step = self.update + 1, self.step + 1
            values: dict[str, float | str] = {"loss": loss, "learning_rate": rate}
            if self.update % every == 0 or self.update == warm.updates:
                gain = regression.lagrangian_gain(
                    self.network, self.setup.embed(check.token), check, grid, warm.unit, groups
                )
                values["held_out_gain"] = gain
                self._remember_best(gain)
            self._tell(_WARM, values)
            self.report("stage 1: regression", self.update, warm.updates)
            self._checkpoint()
        self.network.load_state_dict(self.best["network"])
        self._fit_multipliers(examples, kinds[: len(training)])
        if warm.updates:
            self.note(f"stage 1: {self.best['gain']:.4f} nats a step over static actions on held-out windows")
        self._begin(_GRPO)
        self._evaluate_replayed(held, kinds[len(training) :])
        self._checkpoint(now=True)

    def _warm_update(self, examples: regression.Examples, multipliers: tuple[float, float], rate: float) -> float:
        warm, shape = self.config.warm_start, self.network.shape
        random = np.random.default_rng([self.config.seed, _SEED_OF[_WARM], self.update])
        whole = regression.draw_episodes(
            examples, warm.batch, shape.horizon, multipliers, warm.unit, self.columns, random
        )
        shown = regression.shown_features((warm.batch, shape.horizon, 2 * shape.hidden_size), warm.dropout, random)
        mine = slice(self.group.rank, None, self.group.size)
        batch = regression.EpisodeBatch(**{name: value[mine] for name, value in vars(whole).items()})
        embedding = self.setup.embed(batch.token)
        logits = self.parallel(
            batch.hidden, embedding, batch.scalars, batch.previous, None if shown is None else shown[mine]
        )
        loss = regression.objective(logits, batch, warm.unit)
        for group in self.optimizer.param_groups:
            group["lr"], group["weight_decay"] = rate, warm.weight_decay
        self._descend(loss, 1.0)
        return float(self.group.sum(loss.detach()) / self.group.size)

    def _held_out_episodes(
        self, held: regression.Examples, multipliers: tuple[float, float]
    ) -> regression.EpisodeBatch:
        """All episodes of the held-out windows, one behind the other."""
        horizon, (windows, positions) = self.network.shape.horizon, held.token.shape
        begins = torch.arange(0, positions - horizon + 1, horizon)
        window = torch.arange(windows).repeat_interleave(len(begins))
        random = np.random.default_rng([self.config.seed, _SEED_OF["held out"]])
        multiplier = regression.random_multipliers(random, multipliers, len(window))
        return regression.episodes_at(
            held, window, begins.repeat(windows), horizon, multiplier, self.config.warm_start.unit, self.columns, random
        )

    def _multiplier_range(self, examples: regression.Examples) -> tuple[float, float]:
        low, high = self.config.grpo.budget
        reached = float(examples.cost.mean(dim=(0, 1)).min())
        return regression.multiplier_range(examples, self.config.warm_start.unit, (max(low, min(reached, high)), high))

    @torch.no_grad()
    def _fit_multipliers(self, examples: regression.Examples, kinds: Sequence[int]) -> None:
        """Prices at which the network's own sampled choices come to each budget, for each length of window."""
        warm, horizon = self.config.warm_start, self.network.shape.horizon
        random = np.random.default_rng([self.config.seed, _SEED_OF[_GRPO]])
        multipliers = self._multiplier_range(examples)
        for kind, fitted in enumerate(self.multipliers):
            members = [row for row, of in enumerate(kinds) if of == kind] or list(range(len(kinds)))
            part = regression.Examples(**{name: value[members] for name, value in vars(examples).items()})
            batch = regression.draw_episodes(part, _FITTED, horizon, multipliers, warm.unit, self.columns, random)
            logits = self.network(batch.hidden, self.setup.embed(batch.token), batch.scalars, batch.previous)
            fitted.fit(functools.partial(self._mean_cost, logits, batch.cost))

    def _mean_cost(self, logits: Tensor, cost: Tensor, multiplier: float) -> float:
        """Of sampled choices; logits and costs [..., A]."""
        charged = (logits - multiplier * cost / self.config.warm_start.unit) / self._temperature(multiplier)
        return float((torch.softmax(charged, -1) * cost).sum(-1).mean())

    def _temperature(self, multiplier: float) -> float:
        """Of GRPO's choices, in logits. Below a multiplier of 1 it goes with the multiplier: where a dense step's cost
        is worth a hundredth of a nat, thousandths decide, and choices that don't tell them apart teach nothing but
        noise."""
        return self.config.grpo.temperature * min(max(multiplier, _LEAST_TEMPERATURE), 1.0)

    # Stage 2

    def _grpo(self) -> None:
        config = self.config.grpo
        if self.update == 0 and config.updates:
            self._evaluate_run("before")
        while self.update < config.updates and not self._spent(1.0):
            self._tell(_GRPO, self._grpo_update())
            self.update, self.step = self.update + 1, self.step + 1
            if self.update % self.config.evaluation.every == 0:
                self._evaluate_run("after")
            self.report("stage 2: GRPO", self.update, config.updates)
            self._checkpoint()
        if self.update % self.config.evaluation.every:
            self._evaluate_run("after")
        if config.updates:
            self.network.load_state_dict(self.best["network"])
        self.stage = _DONE
        self._checkpoint(now=True)

    def _grpo_update(self) -> dict[str, float | str]:
        config, began = self.config.grpo, time.monotonic()
        parts = [
            self._sampled(number, episode)
            for number in self.group.mine(config.windows)
            for episode in range(config.episodes)
        ]
        names = ("token", "hidden", "scalars", "previous", "action", "charge", "temperature")
        batch = grpo.Batch(
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in names},
            advantage=torch.cat(grpo.scaled([part.centred for part in parts], self.group)),
        )
        sampled = time.monotonic()
        with torch.no_grad():
            logprobs = grpo.log_probabilities(self.network, self.setup.embed, batch)
            old = logprobs.gather(-1, batch.action[..., None]).squeeze(-1)
        for group in self.optimizer.param_groups:
            group["lr"], group["weight_decay"] = config.learning_rate, config.weight_decay
        for _ in range(config.epochs):
            logprobs = grpo.log_probabilities(self.parallel, self.setup.embed, batch)
            losses = grpo.ppo_losses(logprobs, old, batch, config)
            norm = self._descend(losses.total, config.grad_norm)
        rows = [(part.kind, part.budget, part.cost, part.likelihood) for part in parts]
        everyone = torch.zeros(config.windows * config.episodes, 4, dtype=torch.float64)
        places = [n * config.episodes + e for n in self.group.mine(config.windows) for e in range(config.episodes)]
        everyone[places] = torch.tensor(rows, dtype=torch.float64)
        everyone = self.group.sum(everyone)
        for kind, multipliers in enumerate(self.multipliers):
            budgets, means = everyone[everyone[:, 0] == kind, 1:3].T.tolist()
            multipliers.follow(budgets, means, config.multiplier_rate)
        budget, cost, likelihood = everyone[:, 1:].mean(0).tolist()
        return {
            "loss": float(self.group.sum(losses.total.detach()) / self.group.size),
            "log_likelihood": likelihood,
            "cost_over_budget": cost - budget,
            "entropy": float(losses.entropy.detach()),
            "clipped": float(losses.clipped),
            "gradient_norm": norm,
            "sampling_seconds": sampled - began,
            "seconds": time.monotonic() - began,
        }

    def _sampled(self, number: int, episode: int) -> _Sampled:
        """Episode `episode` of window `number` of this update under K sampled schedules."""
        config, horizon, windows = self.config.grpo, self.network.shape.horizon, self.setup.windows
        rollouts, spec = self.setup.rollouts, self.setup.rollouts.spec
        random = np.random.default_rng([self.config.seed, _SEED_OF[_GRPO], self.update, number, episode])
        at = self.config.warm_start.windows + self.update * config.windows + number
        window = windows.trained_on(at)
        tokens = windows.tokens(window)
        if episode == 0:
            rollouts.open(tokens)
        start = int(random.integers(min(len(tokens) // 2, len(tokens) - horizon - 1), len(tokens) - horizon))
        costs = torch.from_numpy(relative_costs(spec, spec.actions, range(start, start + horizon))).float()
        low, high = config.budget
        reached = float(costs.min(1).values.max())  # what the cheapest action doesn't reach is no budget
        budget = float(np.float32(random.uniform(min(max(low, reached), high), high)))
        multiplier = self.multipliers[window.kind].at(budget)
        temperature = self._temperature(multiplier)
        charge = multiplier * costs / self.config.warm_start.unit
        noise = grpo.gumbel(random, config.schedules, horizon, len(spec.actions))
        choose = grpo.SampledChoice(self.network, self.setup.embed, charge, temperature, noise)
        ran = grpo.on_cpu(rollouts.run(start, horizon, budget, choose, config.schedules))
        return _Sampled(
            token=ran.token.expand(config.schedules, -1),
            hidden=ran.hidden.float(),
            scalars=ran.scalars,
            previous=ran.previous,
            action=ran.action,
            charge=charge.expand(config.schedules, -1, -1),
            temperature=torch.full((config.schedules,), temperature),
            centred=grpo.centred_returns(ran, multiplier, config),
            kind=window.kind,
            budget=budget,
            cost=float(ran.cost.mean()),
            likelihood=float(ran.log_likelihood.mean()),
        )

    # Measuring

    def _evaluate_replayed(self, held: Sequence[Counterfactuals], kinds: Sequence[int]) -> None:
        """What stage 1 gave, from the held-out counterfactuals."""
        if not self.first:
            return
        costs = [regression.costs_of(measured, self.setup.rollouts.spec) for measured in held]
        middle = torch.stack(costs).double().mean(dim=(0, 1))
        for budget in self.config.evaluation.budgets:
            scores = []
            for number, (measured, kind) in enumerate(zip(held, kinds, strict=True)):
                row = {}
                for name, steps in self._schedules(budget, kind):
                    row[name] = holdout.replayed(steps, measured, costs[number])
                scores.append(row)
            self._tell_comparison(f"{_WARM} replayed", holdout.compare(scores, budget, self._points(middle)))

    def _evaluate_run(self, when: str) -> None:
        """Episodes on the held-out windows under each schedule. The policy that gains most over both rivals, the mean
        over budgets, is what the training ends with."""
        settings, horizon = self.config.evaluation, self.network.shape.horizon
        held, rollouts = self.setup.windows.held_out[: settings.windows], self.setup.rollouts
        names, budgets = holdout.SCHEDULES, settings.budgets
        table = torch.zeros(len(held), len(budgets), len(names), 2, dtype=torch.float64)
        for number in self.group.mine(len(held)):
            self.report("measuring on held-out windows", number, len(held))
            tokens = self.setup.windows.tokens(held[number])
            episodes = max(min(settings.positions, len(tokens) - 2) // horizon, 1)
            start = len(tokens) - 1 - episodes * horizon
            rollouts.open(tokens)
            for row, budget in enumerate(budgets):
                for column, (_, steps) in enumerate(self._schedules(budget, held[number].kind)):
                    score = holdout.run(steps, rollouts, start, episodes, horizon, budget)
                    table[number, row, column] = torch.tensor(score, dtype=torch.float64)
        table = self.group.sum(table)
        middle = round(sum(window.length for window in held) / len(held) - settings.positions / 2)
        points = self._points(torch.from_numpy(relative_costs(rollouts.spec, self.actions, [middle])[0]))
        gains: list[float] = []
        for row, budget in enumerate(budgets):
            scores = [
                {name: holdout.Score(*table[number, row, column].tolist()) for column, name in enumerate(names)}
                for number in range(len(held))
            ]
            found = holdout.compare(scores, budget, points)
            gains += found.gain.values()
            self._tell_comparison(f"{_GRPO} {when}", found)
        self._remember_best(sum(gains) / len(gains))

    def _schedules(self, budget: float, kind: int) -> Iterator[tuple[str, holdout.Steps]]:
        spec, losses = self.setup.rollouts.spec, self.losses[kind].numpy()
        return holdout.all_steps(self.network, self.setup.embed, spec, self.columns, budget, losses)

    def _points(self, costs: Tensor) -> list[tuple[float, float]]:
        return list(zip(costs.tolist(), self.losses.mean(0).tolist(), strict=True))

    def _tell_comparison(self, stage: str, found: holdout.Comparison) -> None:
        numbers: dict[str, float | str] = {"budget": found.budget, **found.numbers()}
        self._tell(stage, numbers, f"budget {found.budget:g}/")
        if self.first:
            rivals = ", ".join(
                f"{rival} {found.loss[rival]:.4f} ({found.avoided(rival):+.0%}, ±{found.stderr[rival]:.4f})"
                for rival in found.gain
            )
            self.note(
                f"{stage}, update {self.update}, budget {found.budget:g}: nats over dense: sol {found.loss['sol']:.4f} "
                f"at {found.cost['sol']:.3f}, {rivals}"
            )

    # State

    def _descend(self, loss: Tensor, grad_norm: float) -> float:
        """One step of the optimizer; the gradient's norm. Raises NumericError where loss or gradient is not finite."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), grad_norm))
        if float(self.group.sum(torch.tensor(float(not math.isfinite(norm + float(loss.detach())))))):
            raise NumericError(
                f"{self.stage}, update {self.update}: loss {float(loss.detach()):g} with gradient {norm:g}, expected "
                f"finite numbers; {self.setup.folder / CHECKPOINT} is from before it: lower the stage's learning_rate, "
                "or look at the data"
            )
        self.optimizer.step()
        return norm

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.network.parameters(), lr=0.0)

    def _begin(self, stage: str) -> None:
        self.stage, self.update, self.optimizer = stage, 0, self._new_optimizer()
        self.best = self._nothing_yet()

    def _nothing_yet(self) -> dict[str, Any]:
        return {"gain": -math.inf, "network": self.network.state_dict(), "since": 0, "update": 0}

    def _remember_best(self, gain: float) -> None:
        """Keeps the network where `gain`, measured on held-out windows, is the stage's largest so far."""
        if gain > self.best["gain"]:
            state = {name: value.clone() for name, value in self.network.state_dict().items()}
            self.best = {"gain": gain, "network": state, "since": 0, "update": self.update}
        else:
            self.best["since"] += 1

    def _tell(self, stage: str, values: dict[str, float | str], part: str = "") -> None:
        if self.log is not None:
            self.log.write(stage, self.step, {"update": self.update, **values}, part)

    def _elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.began

    def _spent(self, share: float) -> bool:
        """Whether this share of the time has gone; all processes agree."""
        minutes = self.setup.minutes
        return minutes is not None and self.group.from_first(self._elapsed()) > share * minutes * 60

    def _checkpoint(self, now: bool = False) -> None:
        if not self.first or not (now or self.step % self.config.checkpoint_every == 0):
            return
        assert self.log is not None
        save_checkpoint(
            self.setup.folder,
            {
                "config": self.config.to_yaml(),
                "about": self._made_for(),
                "stage": self.stage,
                "update": self.update,
                "step": self.step,
                "seconds": self._elapsed(),
                "log_bytes": self.log.size,
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "multipliers": torch.from_numpy(np.stack([multipliers.logarithms for multipliers in self.multipliers])),
                "best": self.best,
                "measured": self.measured,
            },
        )

    def _made_for(self) -> dict[str, str]:
        """What has to be the same when a training goes on."""
        spec = self.setup.rollouts.spec
        costs = relative_costs(spec, spec.actions, [64, 512, 4096]).tobytes()
        return {
            "model weights": self.setup.identity,
            "text": self.setup.windows.digest,
            "actions": " ".join(action.tag for action in spec.actions),
            "measured costs": hashlib.sha256(costs).hexdigest(),
        }

    def _restore(self, state: dict[str, Any]) -> int:
        """Takes up a checkpoint; bytes of the log that belong to it."""
        for name, value in self._made_for().items():
            if state["about"][name] != value:
                raise UsageError(f"--resume: {self.setup.folder} was trained with other {name}; choose another -o")
        before, after = state["config"].splitlines(), self.config.to_yaml().splitlines()
        if before != after:
            pairs = itertools.zip_longest(before, after, fillvalue="nothing more")
            had, has = next((a, b) for a, b in pairs if a != b)
            raise UsageError(
                f"--resume: {self.setup.folder} was trained with {had.strip()}, got {has.strip()}; give the config it "
                f"had, {self.setup.folder / CONFIG}, or choose another -o"
            )
        try:
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{self.setup.folder / CHECKPOINT}: of another network ({' '.join(str(error).split())[:120]}); begin "
                "anew with another -o"
            ) from None
        for multipliers, logarithms in zip(self.multipliers, state["multipliers"].numpy(), strict=True):
            multipliers.logarithms[:] = logarithms
        self.stage, self.update, self.step = state["stage"], state["update"], state["step"]
        self.seconds, self.best, self.measured = state["seconds"], state["best"], state["measured"]
        return int(state["log_bytes"])


@dataclass(frozen=True)
class _Sampled:
    """K schedules of an episode on their way into a batch, and what is told of them."""

    token: Tensor
    hidden: Tensor
    scalars: Tensor
    previous: Tensor
    action: Tensor
    charge: Tensor
    temperature: Tensor
    centred: Tensor
    kind: int
    budget: float
    cost: float
    likelihood: float


def new_network(config: TrainConfig, num_scalars: int, setup: TrainSetup) -> PolicyNetwork:
    """An untrained network whose parameters the seed fixes."""
    policy, actions = config.policy, setup.rollouts.spec.actions
    hidden = setup.embed(torch.zeros(1, dtype=torch.int64)).shape[-1]
    shape = PolicyShape(
        hidden,
        num_scalars,
        len(actions),
        policy.horizon,
        policy.width,
        policy.heads,
        policy.scalar_size,
        policy.action_size,
    )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return PolicyNetwork(shape, use_hidden=policy.use_hidden, use_embedding=policy.use_embedding)
