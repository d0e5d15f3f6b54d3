"""The state of a training on disk: one file, replaced as a whole, from which a killed training goes on bit by bit."""

from __future__ import annotations

import io
import itertools
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sol_rt.atomic_write import write_bytes
from sol_rt.errors import CheckpointError, UsageError

CHECKPOINT = "checkpoint.pt"
CONFIG = "config.yaml"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Replaces the last checkpoint by this state. Raises WriteError; the last one is then as it was.

    `state` holds what `torch.load(weights_only=True)` reads: tensors, numbers, strings; dicts, lists, tuples of them.
    """
    buffer = io.BytesIO()  # torch reports a full disk as a RuntimeError without a reason
    torch.save(state, buffer)
    write_bytes(folder / CHECKPOINT, buffer.getvalue())


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """The state that was saved last. Raises CheckpointError where there is none or it is damaged."""
    path = folder / CHECKPOINT
    try:
        state = torch.load(path, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file, expected a training to go on with; leave out --resume") from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        problem = " ".join(str(error).split())[:120]
        raise CheckpointError(f"{path}: not readable ({problem}); begin anew with another -o") from None
    assert isinstance(state, dict)
    return state


def check_resumable(folder: Path, state: Mapping[str, Any], resume_key: Mapping[str, str], config: str) -> None:
    """Raises UsageError where a checkpoint is of another training than the one that is to go on.

    Args:
        folder: of the training, for messages.
        state: the checkpoint; "about" and "config" are what it was saved with.
        resume_key: by name, what has to be the same: weights, text, actions, costs.
        config: the training's config as YAML.
    """
    for name, value in resume_key.items():
        if state["about"][name] != value:
            raise UsageError(f"--resume: {folder} was trained with other {name}; choose another -o")
    before, after = state["config"].splitlines(), config.splitlines()
    if before != after:
        pairs = itertools.zip_longest(before, after, fillvalue="nothing more")
        had, has = next((a, b) for a, b in pairs if a != b)
        raise UsageError(
            f"--resume: {folder} was trained with {had.strip()}, got {has.strip()}; give the config it had, "
            f"{folder / CONFIG}, or choose another -o"
        )
