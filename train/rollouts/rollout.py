"""Episodes that a policy is trained on: T teacher-forced steps of one text under K counterfactual schedules.

What every source of episodes gives, and what it asks of a policy. The sources are the torch reference model, all
schedules at once (rollout_twin.py), and the runtime, one schedule after the other (rollout_runtime.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from sol_rt.budget.cost import CostModel
from sol_rt.bundle.actions import Action


@dataclass(frozen=True)
class RolloutSpec:
    """What a policy chooses from and sees.

    Attributes:
        actions: in the order of the policy's outputs.
        cost: the cost model; its dense action fills the cache before an episode.
        scalars: names out of `sol_rt.bundle.policy_inputs.KNOWN_SCALARS`, in the order of the policy's inputs.
        midway: whether policies are told that the steps before an episode held its budget, as those of a long run have,
            instead of having been dense, as before a run's first episode.
    """

    actions: tuple[Action, ...]
    cost: CostModel
    scalars: tuple[str, ...]
    midway: bool = False


@dataclass(frozen=True)
class Observation:
    """What is known when the actions of step `step` are chosen, for B of the K schedules.

    Attributes:
        step: within the episode, 0 … T - 1.
        rows: which of the K schedules these are. A source may run them together (B = K) or one after the other (B = 1);
            each set of rows goes through steps 0 … T - 1 before the next begins, so at step 0 a policy starts anew with
            B fresh states.
        token: the token about to be processed, the same in all rows.
        hidden: float32 [B, hidden], final norm output of the step before.
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
    def __call__(self, seen: Observation) -> Tensor:
        """Indices into `RolloutSpec.actions`, int64 [B]."""


@dataclass(frozen=True)
class Episode:
    """K schedules of T steps over the same tokens. Tensors lie on the source's device.

    Step t processes `token[t]`, which follows `context` + t tokens, and is scored by the token after it.

    Attributes:
        context: tokens before the episode, all of them dense in the cache.
        budget: float32 [K], what `spend_deviation` is measured from.
        token: int64 [T].
        hidden: float32 [K, T, hidden], final norm output of the step before.
        scalars: float32 [K, T, n], in the order of `RolloutSpec.scalars`.
        previous: int64 [K, T], action of the step before, -1 at the start.
        action: int64 [K, T].
        log_likelihood: float32 [K, T], of the true next token under the step, in nats.
        cost: float32 [K, T], of the action in dense steps at the same context.
        kl: float32 [K, T], KL(dense || step) in nats, dense having run all earlier steps too.
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
class DenseView:
    """What a policy sees at n positions when every step before was dense, each as step 0 of an episode.

    Attributes:
        token: int64 [n], the tokens about to be processed.
        hidden: float32 [n, hidden].
        scalars: float32 [n, all of KNOWN_SCALARS], in that order.
    """

    token: Tensor
    hidden: Tensor
    scalars: Tensor


@dataclass(frozen=True)
class StepLosses:
    """What one action loses at n positions, each behind a dense cache.

    Attributes:
        loss: float32 [n], nats of the true next token.
        kl: float32 [n], KL(dense || action) in nats.
        cost: float32 [n], as in Episode.
    """

    loss: Tensor
    kl: Tensor
    cost: Tensor


class Rollouts(Protocol):
    """A source of episodes."""

    spec: RolloutSpec

    def open(self, tokens: Sequence[int]) -> None:
        """Takes up a text; a dense pass over it serves every call until the next text.

        Raises ContextError where it is longer than the model's context, UsageError for tokens outside the vocabulary.
        """

    def run(self, start: int, horizon: int, budget: float | Tensor, choose: Choose, schedules: int) -> Episode:
        """An episode that processes tokens `start` … `start` + `horizon` - 1 of the text.

        Args:
            start: 1 or more; `start` + `horizon` is less than the text's length, as the token after is scored.
            horizon: T.
            budget: of all schedules, or float32 [K].
            choose: the policy.
            schedules: K.

        Raises UsageError where the episode doesn't lie in the text.
        """

    def losses(self, start: int, length: int, action: Action) -> StepLosses:
        """Losses of the steps at positions `start` … `start` + `length` - 1, each on the dense cache of the tokens
        before it: no step feels another one's damage. Bounds and errors as in `run`.
        """

    def view(self, start: int, length: int, budget: float) -> DenseView:
        """The inputs that belong to `losses` of the same positions. Bounds and errors as in `run`."""
