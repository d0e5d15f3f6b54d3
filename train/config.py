"""What `sol-rt train` can be told: frozen dataclasses that the YAML file mirrors, section by section, key by key."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sol_rt.bundle.policy_inputs import KNOWN_SCALARS
from sol_rt.errors import UsageError

SHIPPED = Path(__file__).with_name("configs")

_Section = TypeVar("_Section")


@dataclass(frozen=True)
class PolicyConfig:
    """The network (policy_network.py).

    Attributes:
        horizon: steps of an episode; the policy's memory ends with it.
        width, heads: of the transformer layer.
        scalar_size, action_size: of the scalars' and the previous action's part of the observation.
        use_hidden, use_embedding: whether the policy reads the model's hidden state and the token's embedding.
        scalars: names of docs/bundle.md section 5.
    """

    horizon: int = 16
    width: int = 64
    heads: int = 4
    scalar_size: int = 32
    action_size: int = 16
    use_hidden: bool = True
    use_embedding: bool = True
    scalars: tuple[str, ...] = KNOWN_SCALARS


@dataclass(frozen=True)
class DataConfig:
    """The text.

    Attributes:
        windows: lengths in tokens, taken in turn, so that one named twice comes twice as often; those beyond the
            model's context are cut to it.
        held_out: every so manieth window is kept for measuring and never trained on.
    """

    windows: tuple[int, ...] = (512, 2048, 4096)
    held_out: int = 8


@dataclass(frozen=True)
class WarmStartConfig:
    """Stage 1, learning from every action's loss at every position (regression.py). `updates` 0 leaves it out.

    Attributes:
        windows: how many windows are measured, which multipliers and the static mixes of comparisons come from as well.
        positions: scored at the end of each.
        share: of `--minutes`, at most how much goes into measuring.
        updates, batch: optimizer steps, and episodes a step.
        learning_rate, weight_decay: of AdamW; the rate falls to 0 along a cosine.
        dropout: share of the model's hidden state and embedding that an update hides.
        unit: nats that a logit of 1 stands for.
        patience: measurements on the held-out windows without gain after which the stage ends.
    """

    windows: int = 400
    positions: int = 128
    share: float = 0.6
    updates: int = 2000
    batch: int = 128
    learning_rate: float = 5e-4
    weight_decay: float = 0.1
    dropout: float = 0.8
    unit: float = 0.05
    patience: int = 8


@dataclass(frozen=True)
class GrpoConfig:
    """Stage 2, GRPO on sampled schedules (grpo.py). `updates` 0 leaves it out.

    Attributes:
        updates: optimizer rounds.
        windows, episodes: texts an update, and episodes of each, at different contexts.
        schedules: sampled an episode, against whose mean each is judged.
        temperature: of sampling; below a multiplier of 1 nat a dense step it falls with the multiplier.
        gamma: discount of later rewards.
        budget: lowest and highest budget drawn, as shares of the dense cost.
        penalty, tolerance: minus penalty * max(0, |mean cost - budget| - tolerance)^2 at every step.
        multiplier_rate: how fast the multipliers of budgets follow what episodes spend.
        clip, epochs, entropy, learning_rate, weight_decay, grad_norm: of PPO's update by AdamW.
    """

    updates: int = 400
    windows: int = 4
    episodes: int = 2
    schedules: int = 16
    temperature: float = 1.3
    gamma: float = 0.85
    budget: tuple[float, ...] = (0.4, 0.9)
    penalty: float = 1.0
    tolerance: float = 0.1
    multiplier_rate: float = 0.2
    clip: float = 0.2
    epochs: int = 1
    entropy: float = 0.01
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    grad_norm: float = 2.0


@dataclass(frozen=True)
class EvaluationConfig:
    """Measuring on the held-out windows.

    Attributes:
        every: GRPO updates between two measurements.
        windows: measured on, of the held-out ones.
        positions: decode steps in each.
        budgets: at which.
    """

    every: int = 50
    windows: int = 12
    positions: int = 128
    budgets: tuple[float, ...] = (0.5, 0.6, 0.7)


@dataclass(frozen=True)
class TrainConfig:
    """The whole file.

    Attributes:
        seed: of everything drawn.
        checkpoint_every: updates between two checkpoints.
    """

    seed: int = 0
    checkpoint_every: int = 10
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    data: DataConfig = field(default_factory=DataConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def to_yaml(self) -> str:
        """The file that `read_config` reads back to an equal config."""
        return yaml.safe_dump(_plain(dataclasses.asdict(self)), sort_keys=False)


def read_config(path: Path | str | None) -> TrainConfig:
    """The config of a YAML file, or of the name of a shipped one; the default without.

    Raises UsageError in one line for a file that is not there or no YAML, an unknown key, or a value out of range.
    """
    if path is None:
        return TrainConfig()
    file = Path(path)
    if not file.exists() and file.name == str(path) and (SHIPPED / f"{path}.yaml").is_file():
        file = SHIPPED / f"{path}.yaml"
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        shipped = ", ".join(sorted(entry.stem for entry in SHIPPED.glob("*.yaml")))
        raise UsageError(
            f"--config {path}: {problem}; expected a YAML file, or the name of a shipped one: {shipped}"
        ) from None
    config = _section(TrainConfig, {} if raw is None else raw, f"--config {path}", "")
    _check(config, f"--config {path}")
    return config


def _section(kind: type[_Section], raw: object, where: str, prefix: str) -> _Section:
    if not isinstance(raw, dict):
        raise UsageError(f"{where}: {prefix.rstrip('.') or 'the file'}: got {raw!r}, expected keys with values")
    hints, known = typing.get_type_hints(kind), [entry.name for entry in dataclasses.fields(kind)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            meant = f"did you mean {prefix}{near[0]}?" if near else f"expected one of {', '.join(known)}"
            raise UsageError(f"{where}: unknown key {prefix}{key}; {meant}")
        hint = hints[key]
        name = f"{prefix}{key}"
        values[key] = (
            _section(hint, value, where, f"{name}.")
            if isinstance(hint, type) and dataclasses.is_dataclass(hint)
            else _value(hint, value, where, name)
        )
    return kind(**values)


def _value(hint: Any, value: object, where: str, name: str) -> object:
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        items = value if isinstance(value, list) else [value]
        return tuple(_value(inner, item, where, name) for item in items)
    if hint is float and isinstance(value, str):  # YAML 1.1 takes 1e-4 for text
        with contextlib.suppress(ValueError):
            value = float(value)
    said = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}[hint]
    right = isinstance(value, hint) or (hint is float and isinstance(value, int))
    if not right or (isinstance(value, bool) and hint is not bool) or (hint is float and not math.isfinite(value)):  # type: ignore[arg-type]
        raise UsageError(f"{where}: {name}: got {value!r}, expected {said}")
    return hint(value)


def _check(config: TrainConfig, where: str) -> None:
    """Raises UsageError where a value is out of range."""
    policy, data, warm, grpo, evaluation = (
        config.policy,
        config.data,
        config.warm_start,
        config.grpo,
        config.evaluation,
    )

    def need(right: bool, name: str, got: object, expected: str) -> None:
        if not right:
            raise UsageError(f"{where}: {name}: got {got}, expected {expected}")

    positive = {
        "checkpoint_every": config.checkpoint_every,
        "policy.horizon": policy.horizon,
        "policy.width": policy.width,
        "policy.heads": policy.heads,
        "policy.scalar_size": policy.scalar_size,
        "policy.action_size": policy.action_size,
        "warm_start.windows": warm.windows,
        "warm_start.positions": warm.positions,
        "warm_start.batch": warm.batch,
        "warm_start.unit": warm.unit,
        "warm_start.patience": warm.patience,
        "grpo.windows": grpo.windows,
        "grpo.episodes": grpo.episodes,
        "grpo.temperature": grpo.temperature,
        "grpo.epochs": grpo.epochs,
        "grpo.grad_norm": grpo.grad_norm,
        "evaluation.every": evaluation.every,
        "evaluation.windows": evaluation.windows,
        "evaluation.positions": evaluation.positions,
    }
    for name, value in positive.items():
        need(value > 0, name, value, "a number over 0")
    rates = {
        "seed": config.seed,
        "warm_start.updates": warm.updates,
        "warm_start.learning_rate": warm.learning_rate,
        "warm_start.weight_decay": warm.weight_decay,
        "grpo.updates": grpo.updates,
        "grpo.penalty": grpo.penalty,
        "grpo.tolerance": grpo.tolerance,
        "grpo.multiplier_rate": grpo.multiplier_rate,
        "grpo.clip": grpo.clip,
        "grpo.entropy": grpo.entropy,
        "grpo.learning_rate": grpo.learning_rate,
        "grpo.weight_decay": grpo.weight_decay,
    }
    for name, value in rates.items():
        need(value >= 0, name, value, "a number from 0")
    need(policy.width % policy.heads == 0, "policy.width", policy.width, f"a multiple of {policy.heads} heads")
    for scalar in policy.scalars:
        near = difflib.get_close_matches(scalar, KNOWN_SCALARS, 1)
        need(scalar in KNOWN_SCALARS, "policy.scalars", scalar, near[0] if near else ", ".join(KNOWN_SCALARS))
    need(len(set(policy.scalars)) == len(policy.scalars) > 0, "policy.scalars", policy.scalars, "different names")
    least = policy.horizon + 2  # a token before an episode, and one after it
    need(min(data.windows, default=0) >= least, "data.windows", data.windows, f"{least} tokens or more")
    need(data.held_out >= 2, "data.held_out", data.held_out, "2 or more")
    need(0 < warm.share <= 1, "warm_start.share", warm.share, "over 0 to 1")
    need(0 <= warm.dropout < 1, "warm_start.dropout", warm.dropout, "0 to below 1")
    most = min(data.windows) - 2
    right = policy.horizon <= warm.positions <= most
    need(right, "warm_start.positions", warm.positions, f"{policy.horizon}, an episode, to {most}, the shortest window")
    need(grpo.schedules >= 2, "grpo.schedules", grpo.schedules, "2 or more, to be judged against each other")
    need(0 <= grpo.gamma <= 1, "grpo.gamma", grpo.gamma, "0 to 1")
    ordered = len(grpo.budget) == 2 and 0 < grpo.budget[0] <= grpo.budget[1] <= 1
    need(ordered, "grpo.budget", grpo.budget, "the lowest and the highest, over 0 to 1")
    for budget in evaluation.budgets:
        need(0 < budget < 1, "evaluation.budgets", budget, "shares between 0 and 1")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
