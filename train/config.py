"""The settings of `sol-rt train`: frozen dataclasses that the YAML file of `--config` mirrors, key by key.

A key that the file leaves out has its default; an unknown one is refused.
"""

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
from sol_rt.errors import UsageError, brief
from sol_rt.read_file import read_bytes

SHIPPED = Path(__file__).with_name("configs")
"""Folder of the configs that ship. `--config NAME` finds `NAME.yaml` there."""

_Section = TypeVar("_Section")


@dataclass(frozen=True)
class PolicyConfig:
    """The policy network (policy_network.py)."""

    horizon: int = 16
    """Decode steps in an episode. The policy's memory ends with it."""
    width: int = 64
    """Size of the transformer layer's hidden state; a multiple of `heads`. 0 leaves the layer out: two linear layers
    then read scalars, hidden state and embedding, remember no earlier step, and take a few microseconds."""
    heads: int = 4
    """Attention heads of the transformer layer."""
    scalar_size: int = 32
    """Size of the scalars' part of the network's input, and of the layer between scalars and logits."""
    action_size: int = 16
    """Size of the previous action's embedding."""
    use_hidden: bool = True
    """True if the policy reads the model's last hidden state."""
    use_embedding: bool = True
    """True if the policy reads the embedding of the token about to be processed."""
    scalars: tuple[str, ...] = KNOWN_SCALARS
    """Names of the scalars that the policy reads, out of those of docs/reference/bundle-details.md, section 5."""
    actions: tuple[str, ...] = ()
    """Tags of the actions that the policy picks among, dense among them. Without any: those on the lower hull of the
    bundle's losses at a length of `data.windows`. Every action more makes measuring longer."""


@dataclass(frozen=True)
class DataConfig:
    """Settings of the windows that are cut from text (data/windows.py)."""

    windows: tuple[int, ...] = (512, 2048, 4096)
    """Lengths in tokens, at most the model's context. They take turns, so a length named twice comes twice as often."""
    held_out: int = 8
    """Every Nth window is held out: measured on, never trained on."""


@dataclass(frozen=True)
class WarmStartConfig:
    """Stage 1 (warm_start.py), and the counterfactuals that it learns from."""

    windows: int = 400
    """Training windows that are measured. Multipliers and the static mixes of comparisons come from them, too."""
    positions: int = 128
    """Positions that are measured, at the end of each window."""
    along: tuple[float, ...] = ()
    """Lowest and highest budget, drawn for each window, of a run by the schedule `hull` whose steps the measured
    positions follow, as they do in use. Without them they follow dense steps. A window's dense distributions
    are held meanwhile: 4 bytes times positions times vocabulary."""
    share: float = 0.6
    """Share of `--minutes` after which measuring stops."""
    updates: int = 2000
    """Optimizer steps at most. 0 leaves the stage out."""
    batch: int = 128
    """Episodes in an update; a multiple of the number of processes."""
    learning_rate: float = 5e-4
    """AdamW's learning rate at the start. It falls to 0 along a cosine."""
    weight_decay: float = 0.1
    """AdamW's weight decay."""
    dropout: float = 0.8
    """Share of the features of hidden state and embedding that an update hides, drawn per episode."""
    unit: float = 0.05
    """Nats that a logit of 1 stands for."""
    patience: int = 8
    """Measurements on the held-out windows without a new best after which the stage ends, out of 40 in a full stage."""


@dataclass(frozen=True)
class GrpoConfig:
    """Stage 2 (grpo.py, whose formulas name most of these)."""

    updates: int = 400
    """Updates at most. 0 leaves the stage out."""
    windows: int = 4
    """Windows in an update; a multiple of the number of processes."""
    episodes: int = 2
    """Episodes of each window, at different positions."""
    schedules: int = 16
    """K: schedules sampled per episode, each judged against their mean."""
    temperature: float = 1.3
    """Sampling temperature. It falls with the multiplier where that is below 1 nat per dense step."""
    gamma: float = 0.85
    """Discount of a reward per step that it lies ahead."""
    budget: tuple[float, ...] = (0.4, 0.9)
    """Lowest and highest budget drawn, as shares of the dense cost."""
    penalty: float = 1.0
    """Weight of the budget penalty: every return loses penalty * excess^2 nats, the excess being over the tolerance."""
    tolerance: float = 0.1
    """Distance of an episode's mean cost from its budget that costs no penalty, as a share of the dense cost."""
    multiplier_rate: float = 0.2
    """Rate at which the multipliers follow the spending of episodes (`Multipliers.follow`)."""
    clip: float = 0.2
    """PPO's clip: ratios count within 1 - clip to 1 + clip."""
    epochs: int = 1
    """Optimizer steps on each batch of sampled schedules."""
    entropy: float = 0.01
    """Weight of the entropy bonus, per nat of entropy."""
    learning_rate: float = 1e-4
    """AdamW's learning rate, constant."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    grad_norm: float = 2.0
    """Gradients of a larger norm are scaled down to it."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Comparisons on the held-out windows (holdout.py)."""

    every: int = 50
    """GRPO updates between two comparisons."""
    windows: int = 12
    """Held-out windows at most."""
    positions: int = 128
    """Decode steps in each window, rounded down to whole episodes."""
    budgets: tuple[float, ...] = (0.5, 0.6, 0.7)
    """Budgets that are compared at, as shares of the dense cost."""


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training."""

    seed: int = 0
    """Fixes everything that is drawn."""
    checkpoint_every: int = 10
    """Updates between two checkpoints."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    data: DataConfig = field(default_factory=DataConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def to_yaml(self) -> str:
        """The config as text of a YAML file. `read_config` reads an equal one back."""
        return yaml.safe_dump(_plain(dataclasses.asdict(self)), sort_keys=False)


def read_config(path: Path | str | None) -> TrainConfig:
    """Reads a config.

    Args:
        path: a YAML file, or the name of a shipped config; None gives the defaults.

    Raises UsageError where the file is missing or no YAML, a key is unknown, or a value is out of range.
    """
    if path is None:
        return TrainConfig()
    file = Path(path)
    if not file.exists() and file.name == str(path) and (SHIPPED / f"{path}.yaml").is_file():
        file = SHIPPED / f"{path}.yaml"
    try:
        raw = yaml.safe_load(read_bytes(file).decode("utf-8"))
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
    """Makes a dataclass of parsed YAML; `where` and `prefix` name file and section in messages."""
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
    """Checks a parsed value against a field's type and converts it."""
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        items = value if isinstance(value, list) else [value]
        return tuple(_value(inner, item, where, name) for item in items)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    said = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}[hint]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # a number beyond every float stays what it is, and is refused
            value = float(value)
    right = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    if not right or (isinstance(value, float) and not math.isfinite(value)):
        raise UsageError(f"{where}: {name}: got {brief(value)}, expected {said}")
    return value


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
        "policy.width": policy.width,
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
    distinct = len(set(policy.actions)) == len(policy.actions) != 1
    need(distinct, "policy.actions", policy.actions, "nothing, or two different tags or more")
    least = policy.horizon + 2  # an episode needs a token before it and one after it
    need(min(data.windows, default=0) >= least, "data.windows", data.windows, f"{least} tokens or more")
    need(data.held_out >= 2, "data.held_out", data.held_out, "2 or more")
    need(0 < warm.share <= 1, "warm_start.share", warm.share, "over 0 to 1")
    need(0 <= warm.dropout < 1, "warm_start.dropout", warm.dropout, "0 to below 1")
    most = min(data.windows) - 2
    right = policy.horizon <= warm.positions <= most
    need(right, "warm_start.positions", warm.positions, f"{policy.horizon}, an episode, to {most}, the shortest window")
    ordered = not warm.along or (len(warm.along) == 2 and 0 < warm.along[0] <= warm.along[1] <= 1)
    need(ordered, "warm_start.along", warm.along, "nothing, or the lowest and the highest budget, over 0 to 1")
    need(grpo.schedules >= 2, "grpo.schedules", grpo.schedules, "2 or more, to be judged against each other")
    need(0 <= grpo.gamma <= 1, "grpo.gamma", grpo.gamma, "0 to 1")
    ordered = len(grpo.budget) == 2 and 0 < grpo.budget[0] <= grpo.budget[1] <= 1
    need(ordered, "grpo.budget", grpo.budget, "the lowest and the highest, over 0 to 1")
    need(bool(evaluation.budgets), "evaluation.budgets", list(evaluation.budgets), "one or more")
    for budget in evaluation.budgets:
        need(0 < budget < 1, "evaluation.budgets", budget, "shares between 0 and 1")


def _plain(value: Any) -> Any:
    """The value with lists in the place of tuples, which YAML has no plain form for."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
