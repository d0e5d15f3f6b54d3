"""The state of a training on disk: one file, replaced as a whole, from which a killed run goes on bit by bit."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from sol_rt.errors import CheckpointError

CHECKPOINT = "checkpoint.pt"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Writes the file aside, on disk for certain, then renames it."""
    path = folder / CHECKPOINT
    aside = path.with_name(f"{CHECKPOINT}.{os.getpid()}")
    with aside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """What was saved last. Raises CheckpointError where there is none or it is damaged."""
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
