"""Counterfactuals: what every action would lose at every position of some windows of text. Measured once, and stored.

A folder has one file per window, each written under another name and then renamed. So an interrupted measurement goes
on where it stopped, and several trainings, such as those of an ablation, can share a folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sol_rt.atomic_write import write_bytes, write_text
from sol_rt.budget.dial import Dial
from sol_rt.errors import CheckpointError, UsageError
from sol_rt.generate.native.plan import Plan
from sol_rt.train.rollouts.rollout import Rollouts, RolloutSpec

ABOUT = "about.json"
_BUDGET = 1.0  # what the stored scalars say; stage 1 gives every episode a budget of its own


@dataclass(frozen=True)
class Counterfactuals:
    """Losses of every action at n consecutive positions of a text, after a dense cache or along a run.

    Attributes:
        token: int64 [n], the tokens about to be processed.
        hidden: float32 [n, H], final norm output of the step before.
        scalars: float32 [n, number of scalars], each row as at step 0 of an episode. `measure` gives all KNOWN_SCALARS,
            a store those that its reader names.
        loss: float32 [n, A], loss of the true next token under each action, nats.
        kl: float32 [n, A], divergence of each action from dense, nats.
        context: tokens before the first position.
    """

    token: Tensor
    hidden: Tensor
    scalars: Tensor
    loss: Tensor
    kl: Tensor
    context: int

    def __len__(self) -> int:
        return len(self.token)


@dataclass(frozen=True)
class MeasuredWindows:
    """The counterfactuals of several windows.

    Attributes:
        windows: their counterfactuals.
        kinds: for each the index of its length in `Windows.lengths`.
    """

    windows: list[Counterfactuals]
    kinds: list[int]

    def mean_losses(self, lengths: int) -> Tensor:
        """Mean added loss of every action at each of `lengths` lengths of window, float64 [lengths, A], nats per step.

        A length that no window has takes the mean over all windows.
        """
        losses = torch.zeros(lengths, self.windows[0].kl.shape[1], dtype=torch.float64)
        for kind in range(lengths):
            members = [window for window, of in zip(self.windows, self.kinds, strict=True) if of == kind]
            for window in members or self.windows:
                losses[kind] += window.kl.double().mean(0) / len(members or self.windows)
        return losses


def measure(rollouts: Rollouts, tokens: Sequence[int], positions: int, budget: float | None = None) -> Counterfactuals:
    """Measures a window: its last `positions` positions that a token to score follows, or as many as it has.

    The positions follow dense steps, or where there is a budget along the run of the schedule `hull` at that budget.
    """
    length = min(positions, len(tokens) - 2)
    start = len(tokens) - 1 - length
    rollouts.open(tokens)
    if budget is None:
        view = rollouts.policy_inputs(start, length, _BUDGET)
        losses = rollouts.losses(start, length, rollouts.spec.actions)
    else:
        taken = hull_actions(rollouts.spec, budget, range(start, start + length))
        view, losses = rollouts.losses_along_run(start, taken, _BUDGET)
    parts = (view.token, view.hidden.float(), view.scalars.float(), losses.loss, losses.kl)
    token, hidden, scalars, loss, kl = (part.cpu() for part in parts)
    return Counterfactuals(token, hidden, scalars, loss, kl, start)


def hull_actions(spec: RolloutSpec, budget: float, contexts: Sequence[int]) -> list[int]:
    """The actions that the schedule `hull` takes at a budget, as indices into `spec.actions`, one for each context.

    It goes by the bundle's losses.
    """
    plan = Plan(spec.cost, Dial(budget, "hull"), spec.actions)
    return [spec.actions.index(plan.step(context).action) for context in contexts]


class CounterfactualStore:
    """A folder of counterfactuals. It keeps all known scalars, so that trainings that see different ones can share it.

    Args:
        folder: where the files are.
        about: what they are measured with, by name; JSON values.
        stored: names of the scalars in the files, in order.
        create: whether this process may begin the folder.

    Raises UsageError where the folder was measured with something else.
    """

    def __init__(self, folder: Path, about: Mapping[str, object], stored: Sequence[str], *, create: bool) -> None:
        self.folder, self._stored = folder, tuple(stored)
        about = {**about, "scalars": list(stored)}
        path = folder / ABOUT
        if path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                found = {}
            differs = [name for name in about if found.get(name) != about[name]]
            if differs:
                raise UsageError(
                    f"counterfactuals {folder}: measured with another {differs[0]}: got {found.get(differs[0])}, "
                    f"expected {about[differs[0]]}; choose another folder"
                )
        elif create:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(about, indent=1) + "\n")

    def path(self, window: str) -> Path:
        """The file of the window of this name."""
        return self.folder / f"{window}.safetensors"

    def has(self, window: str) -> bool:
        """True if the window has been measured and its file is whole."""
        try:
            with safe_open(str(self.path(window)), framework="pt"):  # refuses a file of another length than it says
                return True
        except (SafetensorError, OSError):
            return False

    def write(self, window: str, measured: Counterfactuals) -> None:
        """Stores a window's counterfactuals. Hidden states become float16, which keeps them to a thousandth."""
        tensors = {name: value.contiguous() for name, value in vars(measured).items() if name != "context"}
        tensors["context"] = torch.tensor(measured.context)
        tensors["hidden"] = tensors["hidden"].half()
        write_bytes(self.path(window), save(tensors))

    def read(self, window: str, columns: Sequence[str]) -> Counterfactuals:
        """A window's counterfactuals with the scalars named by `columns`, in that order.

        Raises CheckpointError where the file is damaged.
        """
        path = self.path(window)
        wanted = [self._stored.index(name) for name in columns]
        try:
            with safe_open(str(path), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            tensors["hidden"] = tensors["hidden"].float()
            tensors["scalars"] = tensors["scalars"][:, wanted]
            return Counterfactuals(**{**tensors, "context": int(tensors["context"])})
        except (SafetensorError, OSError, TypeError, KeyError, IndexError) as error:
            problem = " ".join(str(error).split())[:120]
            raise CheckpointError(
                f"{path}: not readable ({problem}), expected a window's counterfactuals; delete it and run again"
            ) from None
