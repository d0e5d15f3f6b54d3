"""A trained policy as one safetensors file: parameters, and as metadata what they were trained for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sol_rt.actions import Action
from sol_rt.errors import CheckpointError, UsageError
from sol_rt.export.policy_graph import PolicyShape

_SIZES = ("hidden_size", "horizon", "width", "heads", "scalar_size", "action_size")


@dataclass(frozen=True)
class TrainedPolicy:
    """A policy before it is bound to a bundle.

    Attributes:
        shape: its sizes.
        scalars: names of its scalar inputs, in order.
        actions: what it chooses among, in order.
        description: how it was trained, one line.
        parameters: float32 arrays by the names of `PolicyShape.parameters`.
    """

    shape: PolicyShape
    scalars: tuple[str, ...]
    actions: tuple[Action, ...]
    description: str
    parameters: Mapping[str, npt.NDArray[np.float32]]


def write_policy(path: Path, policy: TrainedPolicy) -> None:
    """Writes the file."""
    from safetensors.numpy import save_file

    metadata = {
        "sizes": json.dumps({name: getattr(policy.shape, name) for name in _SIZES}),
        "scalars": json.dumps(policy.scalars),
        "actions": json.dumps([action.tag for action in policy.actions]),
        "description": policy.description,
    }
    save_file({name: np.ascontiguousarray(value) for name, value in policy.parameters.items()}, str(path), metadata)


def read_policy(path: Path) -> TrainedPolicy:
    """Reads the file. Raises CheckpointError where it is damaged or something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as file:
            metadata = file.metadata() or {}
            parameters = {name: np.asarray(file.get_tensor(name), np.float32) for name in file.keys()}  # noqa: SIM118
        scalars = tuple(str(name) for name in json.loads(metadata["scalars"]))
        actions = tuple(Action.parse(tag) for tag in json.loads(metadata["actions"]))
        sizes = {name: int(json.loads(metadata["sizes"])[name]) for name in _SIZES}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, UsageError) as error:
        raise CheckpointError(f"{path}: got no policy ({error}), expected a file that sol-rt train wrote") from error
    shape = PolicyShape(num_scalars=len(scalars), num_actions=len(actions), **sizes)
    return TrainedPolicy(shape, scalars, actions, metadata.get("description", ""), parameters)
