"""Reads and writes a trained policy's file, and gives a bundle the graph of a policy.

The file is safetensors: the parameters, and as metadata the policy's sizes, inputs, actions, model and training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sol_rt.atomic_write import write_bytes
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import PolicySpec, SolConfig
from sol_rt.bundle.policy_inputs import KNOWN_SCALARS
from sol_rt.errors import CheckpointError, UsageError, brief, one_line
from sol_rt.export.actions.readout import SCALARS, Readout
from sol_rt.export.bundle_folder import give_file
from sol_rt.export.graphs.policy_graph import PolicyShape, build_policy
from sol_rt.read_file import require_regular

_LARGEST_SIZE = 1 << 20
_SIZES = ("hidden_size", "horizon", "width", "heads", "scalar_size", "action_size")
_READS = ("use_hidden", "use_embedding")


@dataclass(frozen=True)
class TrainedPolicy:
    """A policy before it is bound to a bundle.

    Attributes:
        shape: the policy's sizes.
        scalars: names of its scalar inputs, in order.
        actions: the actions that it chooses among, in order.
        description: one line on how it was trained.
        parameters: float32 arrays by the names of `PolicyShape.parameters`.
        model: name of the model that it was trained on; empty if unknown.
    """

    shape: PolicyShape
    scalars: tuple[str, ...]
    actions: tuple[Action, ...]
    description: str
    parameters: Mapping[str, npt.NDArray[np.float32]]
    model: str = ""


def readout_policy(readout: Readout, actions: Sequence[Action], order: Sequence[Action], model: str) -> TrainedPolicy:
    """The policy whose logit of an action is a readout's score times the negative of its place for the action.

    Args:
        readout: the fitted one.
        actions: the bundle's.
        order: the channels and bits of the actions at KV density 1, from the most bytes to the fewest.
        model: the model's name.
    """
    weights = np.array(readout.weights, np.float32)
    places = readout.places(order)[[order.index(replace(action, kv_density=1.0)) for action in actions]]
    # the two layers hold a regression as it is, since gelu(x) - gelu(-x) = x
    parameters = {
        "direct.0.weight": np.stack([weights, -weights]),
        "direct.0.bias": np.zeros(2, np.float32),
        "direct.2.weight": np.stack([-places, places], 1),
        "direct.2.bias": np.zeros(len(actions), np.float32),
    }
    shape = PolicyShape(
        len(weights) - len(SCALARS), len(SCALARS), len(actions), width=0, scalar_size=2, use_embedding=False
    )
    description = (
        f"fitted at export; of what random steps add it avoids about {readout.avoided:.0%} on windows left out"
    )
    return TrainedPolicy(shape, SCALARS, tuple(actions), description, parameters, model)


def write_policy(path: Path, policy: TrainedPolicy) -> None:
    """Writes a policy's file. Raises WriteError; an older file is then as it was."""
    from safetensors.numpy import save

    metadata = {
        "sizes": json.dumps({name: getattr(policy.shape, name) for name in (*_SIZES, *_READS)}),
        "scalars": json.dumps(policy.scalars),
        "actions": json.dumps([action.tag for action in policy.actions]),
        "description": policy.description,
        "model": policy.model,
    }
    write_bytes(path, save({name: np.ascontiguousarray(value) for name, value in policy.parameters.items()}, metadata))


def read_policy(path: Path) -> TrainedPolicy:
    """Reads a policy's file. Raises CheckpointError if it is damaged or no policy."""
    from safetensors import SafetensorError, safe_open

    try:
        require_regular(path)
        with safe_open(str(path), framework="np") as file:
            metadata = file.metadata() or {}
            parameters = {name: np.asarray(file.get_tensor(name), np.float32) for name in file.keys()}  # noqa: SIM118
        scalars = tuple(str(name) for name in json.loads(metadata["scalars"]))
        actions = tuple(Action.parse(tag) for tag in json.loads(metadata["actions"]))
        told_sizes = json.loads(metadata["sizes"])
        sizes: dict[str, Any] = {name: _size(told_sizes[name], least=0 if name == "width" else 1) for name in _SIZES}
        reads = {name: _flag(told_sizes[name]) for name in _READS}
        if sizes["width"] % sizes["heads"]:
            raise ValueError(f"{sizes['heads']} heads of a width of {sizes['width']}")
        description, model = metadata["description"], metadata["model"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError, UsageError) as error:
        raise CheckpointError(
            f"{path}: got no policy ({one_line(error)}), expected a file that sol-rt train wrote"
        ) from error
    shape = PolicyShape(num_scalars=len(scalars), num_actions=len(actions), **sizes, **reads)
    return TrainedPolicy(shape, scalars, actions, description, parameters, model)


def _size(value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST_SIZE:
        raise ValueError(f"a size of {brief(value)}")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{brief(value)} where true or false is expected")
    return value


def check_fits(
    path: Path,
    policy: TrainedPolicy,
    model: str,
    hidden_size: int,
    variants: Collection[str],
    actions: Collection[Action],
) -> None:
    """Raises CheckpointError if a policy is for another model or picks actions that a bundle cannot run.

    The message lists all differences.

    Args:
        path: the policy's file, for the message.
        policy: the policy.
        model, hidden_size: name and hidden size of the bundle's model.
        variants: keys of the bundle's variants.
        actions: the bundle's actions, for the message.
    """
    differs = []
    if policy.model and policy.model != model:
        differs.append(f"model: trained on {policy.model[:60]}, the bundle has {model}")
    if policy.shape.hidden_size != hidden_size:
        differs.append(f"made for hidden size {policy.shape.hidden_size}, the bundle's model has {hidden_size}")
    missing = [action.tag for action in policy.actions if action.variant not in variants]
    if missing:
        extra = [action.tag for action in actions if action not in policy.actions]
        unknown = f" and has {', '.join(extra)}, which the policy doesn't know" if extra else ""
        differs.append(f"the policy picks {', '.join(missing)}, which the bundle can't run{unknown}")
    unread = [name for name in policy.scalars if name not in KNOWN_SCALARS]
    if unread:
        differs.append(
            f"scalars: it reads {', '.join(name[:60] for name in unread[:3])}, "
            f"expected some of {', '.join(KNOWN_SCALARS)}"
        )
    if differs:
        raise CheckpointError(f"{path}: {'; '.join(differs)}; train a policy for this bundle with sol-rt train -m")


def write_policy_graph(folder: Path, policy: TrainedPolicy, config: SolConfig, name: str) -> PolicySpec:
    """Writes the graph of a policy that fits to `folder` / `name`. Returns its entry in the config."""
    content, spec = _policy_graph(policy, config)
    (folder / name).write_bytes(content)
    return replace(spec, file=name)


def read_fitting(source: Path, config: SolConfig) -> TrainedPolicy:
    """Reads a policy's file for a bundle.

    Raises CheckpointError if the file is no policy, or one for another model or other actions.
    """
    policy = read_policy(source)
    actions = [entry.action for entry in config.actions]
    check_fits(source, policy, config.model.name, config.model.hidden_size, config.variants, actions)
    return policy


def _policy_graph(policy: TrainedPolicy, config: SolConfig) -> tuple[bytes, PolicySpec]:
    """The graph of a policy, and its entry in the config, which lacks the file's name."""
    graph = build_policy(policy.shape, policy.parameters, config.tensors, config.weights_file)
    shape = policy.shape
    spec = PolicySpec("", shape.horizon, policy.scalars, policy.actions, shape.state_shape, policy.description)
    return graph.SerializeToString(), spec


def give_policy(path: Path, source: Path) -> Bundle:
    """Gives the bundle in the folder `path` the policy in the file `source`. It replaces the bundle's policy, if any.

    Raises BundleError if `path` is not a complete bundle or would not be one with the policy, and CheckpointError for
    the reasons of `read_fitting`, or where it cannot write.
    """

    def make(bundle: Bundle) -> tuple[bytes, Callable[[str], SolConfig]]:
        content, spec = _policy_graph(read_fitting(source, bundle.config), bundle.config)
        return content, lambda name: replace(bundle.config, policy=replace(spec, file=name))

    return give_file(path, "policy", ".onnx", make)
