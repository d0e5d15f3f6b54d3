"""The episodes that a policy is trained on: T teacher-forced steps of one text under K schedules.

This file says what a source of episodes gives and what it asks of a policy. There are two sources: the runtime, which
runs one schedule after the other (runtime.py), and the torch reference model, which runs all at once (reference.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from sol_rt.budget.cost.model import CostModel
from sol_rt.bundle.actions import Action


@dataclass(frozen=True)
class RolloutSpec:
    """Inputs and actions of a policy.

    Attributes:
        actions: in the order of the policy's outputs.
        cost: the cost model. Its dense action fills the cache before an episode.
        scalars: names out of `sol_rt.bundle.policy_inputs.KNOWN_SCALARS`, in the order of the policy's inputs.
        midway: what scalars say of the steps before an episode. True: they held the episode's budget, as in the middle
            of a run. False: they were dense, as before a run's first episode.
    """

    actions: tuple[Action, ...]
    cost: CostModel
    scalars: tuple[str, ...]
    midway: bool = False


@dataclass(frozen=True)
class Observation:
    """Inputs of a policy when it chooses the actions of one step, for B of the K schedules.

    Attributes:
        step: number of the step in the episode, 0 … T - 1.
        rows: which of the K schedules these are. A source runs all together (B = K) or one after the other (B = 1).
            Rows go through steps 0 … T - 1 before the next ones begin, so a policy takes B fresh states at step 0.
        token: the token about to be processed, the same in all rows.
        hidden: float32 [B, H], final norm output of the step before.
        scalars: float32 [B, n], in the order of `RolloutSpec.scalars`.
        previous: int64 [B], action of the step before; -1 at step 0.
    """

    step: int
    rows: slice
    token: int
    hidden: Tensor
    scalars: Tensor
    previous: Tensor


class Choose(Protocol):
    """Picks the actions of a step."""

    def __call__(self, seen: Observation) -> Tensor:
        """Returns one action per row, as indices into `RolloutSpec.actions`, int64 [B]."""


@dataclass(frozen=True)
class Episode:
    """K schedules of T steps over the same tokens. Tensors lie on the source's device.

    Step t processes `token[t]`, which follows `context` + t tokens. The token after it scores the step.

    Attributes:
        context: tokens before the episode, all of them in the cache from dense steps.
        budget: float32 [K], requested.
        token: int64 [T].
        hidden: float32 [K, T, H], final norm output of the step before.
        scalars: float32 [K, T, n], in the order of `RolloutSpec.scalars`.
        previous: int64 [K, T], action of the step before, -1 at the start.
        action: int64 [K, T], the chosen actions.
        log_likelihood: float32 [K, T], log-probability of the true next token, nats.
        cost: float32 [K, T], cost of the action, in dense steps at the same context.
        kl: float32 [K, T], KL(dense || step) in nats, where all steps before the dense one were dense, too.
    """

    context: int
    budget: Tensor
    token: Tensor
    hidden: Tensor
    scalars: Tensor
    previous: Tensor
    action: Tensor
    log_likelihood: Tensor
    cost: Tensor
    kl: Tensor


@dataclass(frozen=True)
class PolicyView:
    """Inputs of a policy at n positions, each as step 0 of an episode.

    Attributes:
        token: int64 [n], the tokens about to be processed.
        hidden: float32 [n, H], final norm output of the step before.
        scalars: float32 [n, len(KNOWN_SCALARS)], in that order. Those of spending are as if all steps before had been
            dense, those of the last distribution are of the step before, whatever action it took.
    """

    token: Tensor
    hidden: Tensor
    scalars: Tensor


@dataclass(frozen=True)
class StepLosses:
    """Losses of A actions at n positions.

    Attributes:
        loss: float32 [n, A], loss of the true next token, nats.
        kl: float32 [n, A], KL(dense || action) in nats, where all steps before the dense one were dense. So along a run
            of cheap steps the dense action has a divergence, too.
    """

    loss: Tensor
    kl: Tensor


class Rollouts(Protocol):
    """A source of episodes. It works on one text at a time.

    Attributes:
        products: dtype of products, of which losses of another one are not continued.
    """

    spec: RolloutSpec
    products: str

    def open(self, tokens: Sequence[int]) -> None:
        """Takes up a text. A dense pass over it serves every call until the next text.

        Raises ContextError where it is longer than the model's context, UsageError for tokens outside the vocabulary.
        """

    def run(self, start: int, horizon: int, budget: float | Tensor, choose: Choose, schedules: int) -> Episode:
        """Runs an episode that processes tokens `start` … `start` + `horizon` - 1 of the text.

        Args:
            start: 1 or more. `start` + `horizon` is less than the text's length, because a token has to follow.
            horizon: T.
            budget: of all schedules, or float32 [K].
            choose: picks the actions.
            schedules: K.

        Raises UsageError where the episode does not lie in the text.
        """

    def losses(self, start: int, length: int, actions: Sequence[Action]) -> StepLosses:
        """Losses of actions at positions `start` … `start` + `length` - 1, each position after a dense cache of its
        own.

        Bounds and errors are those of `run`.
        """

    def policy_inputs(self, start: int, length: int, budget: float) -> PolicyView:
        """Inputs of a policy at the positions that `losses` measures. Bounds and errors are those of `run`."""

    def losses_along_run(self, start: int, taken: Sequence[int], budget: float) -> tuple[PolicyView, StepLosses]:
        """Inputs of a policy, and losses of all actions of `spec`, along a run that takes given actions.

        The run begins after dense steps. Each position follows what the run's own steps left in the cache.

        Args:
            start: the first position. Bounds and errors are those of `run`.
            taken: the run's action at each position, as an index into `spec.actions`.
            budget: what the scalar `budget` says.
        """
