"""Parts of a training, and the keys that its files are checked against when they are used again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from sol_rt.budget.hull import Hull
from sol_rt.errors import UsageError
from sol_rt.train.config import TrainConfig
from sol_rt.train.data.windows import Windows
from sol_rt.train.policy_network import Embed
from sol_rt.train.rollouts.observation import relative_costs
from sol_rt.train.rollouts.rollout import Rollouts
from sol_rt.train.run.first_layer import FirstLayer


@dataclass(frozen=True)
class TrainSetup:
    """Parts of a training.

    Attributes:
        rollouts: runs episodes; its spec has actions, costs and scalars.
        embed: looks up rows of the model's embedding.
        windows: of text.
        config: all settings.
        folder: where everything is written.
        counterfactuals: folder of the counterfactuals, which several trainings may share.
        model: name of the model.
        identity: hash of weights and variants, for which the counterfactuals are valid.
        hull: of the bundle's losses; None where it has none.
        first_layer: of the bundle's policy; None where it has none to begin with.
        minutes: wall-clock limit over all runs of the training. None: the config's counts alone end it.
    """

    rollouts: Rollouts
    embed: Embed
    windows: Windows
    config: TrainConfig
    folder: Path
    counterfactuals: Path
    model: str
    identity: str
    hull: Hull | None = None
    first_layer: FirstLayer | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        """Raises UsageError where the config wants runs by `hull` and the bundle has no losses."""
        if self.config.warm_start.along and self.hull is None:
            got = f"warm_start.along: {self.model} has no measured losses, which the schedule hull needs"
            raise UsageError(f"{got}; export the bundle anew, or leave the key out")

    def resume_key(self) -> dict[str, str]:
        """Values, by name, that have to be the same when a training goes on."""
        spec = self.rollouts.spec
        costs = relative_costs(spec, spec.actions, [64, 512, 4096]).tobytes()
        return {
            "model weights": self.identity,
            "text": self.windows.digest,
            "actions": " ".join(action.tag for action in spec.actions),
            "measured costs": hashlib.sha256(costs).hexdigest(),
            "products": self.rollouts.products,
        }

    def counterfactuals_key(self) -> dict[str, object]:
        """Values, by name, that have to be the same where trainings share counterfactuals."""
        return {
            "identity": self.identity,
            "actions": [action.tag for action in self.rollouts.spec.actions],
            "positions": self.config.warm_start.positions,
            "along": self._run_along(),
            "windows": list(self.config.data.windows),
            "held_out": self.config.data.held_out,
            "text": self.windows.digest,
            "products": self.rollouts.products,
        }

    def _run_along(self) -> dict[str, object] | None:
        """Settings of the run that counterfactuals follow; None if they follow dense steps."""
        if self.hull is None or not self.config.warm_start.along:
            return None
        corners = [self.hull.corners(context) for context in self.windows.lengths]
        return {
            "budgets": list(self.config.warm_start.along),
            "seed": self.config.seed,
            "hull": hashlib.sha256(repr(corners).encode()).hexdigest(),
        }

    def check_processes(self, size: int) -> None:
        """Raises UsageError where `size` processes can't share an update evenly."""
        config = self.config
        for name, count in (("warm_start.batch", config.warm_start.batch), ("grpo.windows", config.grpo.windows)):
            if count % size:
                raise UsageError(f"{name}: got {count}, expected a multiple of the {size} processes")
