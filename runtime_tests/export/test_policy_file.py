"""A trained policy's file: read back as it was written, and damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from sol_rt.bundle.actions import Action
from sol_rt.errors import CheckpointError
from sol_rt.export.graphs.policy_graph import PolicyShape, random_policy_parameters
from sol_rt.export.policy_file import TrainedPolicy, read_policy, write_policy

ACTIONS = (Action(1.0, 1.0, 8), Action(0.3, 0.5, 4))


def _written(path: Path, **sizes: Any) -> TrainedPolicy:
    shape = PolicyShape(64, 2, len(ACTIONS), **sizes)
    parameters = random_policy_parameters(0, shape)
    policy = TrainedPolicy(shape, ("budget", "entropy"), ACTIONS, "made up", parameters, "tiny")
    write_policy(path, policy)
    return policy


def _rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes what the file says of its sizes."""
    with safe_open(str(path), framework="np") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    sizes = json.loads(metadata["sizes"])
    change(sizes)
    save_file(tensors, path, {**metadata, "sizes": json.dumps(sizes)})


@pytest.mark.parametrize("sizes", [{}, {"use_hidden": False}, {"width": 0, "use_embedding": False}])
def test_a_policy_is_read_as_it_was_written(sizes: dict[str, Any], tmp_path: Path) -> None:
    written = _written(tmp_path / "policy", **sizes)
    read = read_policy(tmp_path / "policy")
    assert {**vars(read), "parameters": None} == {**vars(written), "parameters": None}
    assert read.parameters.keys() == written.parameters.keys() == written.shape.parameters().keys()
    assert all(np.array_equal(read.parameters[name], written.parameters[name]) for name in written.parameters)


@pytest.mark.parametrize(
    "damage",
    [{"use_hidden": 1}, {"use_embedding": None}, {"width": -1}, {"width": True}, {"heads": 0}, {"horizon": "16"}],
)
def test_damaged_sizes_are_refused(damage: dict[str, Any], tmp_path: Path) -> None:
    _written(tmp_path / "policy")
    _rewrite(tmp_path / "policy", lambda sizes: sizes.update(damage))
    with pytest.raises(CheckpointError, match="got no policy"):
        read_policy(tmp_path / "policy")
