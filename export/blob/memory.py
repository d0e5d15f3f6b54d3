"""Estimates the memory and disk that an export needs, and refuses before it starts if this machine has less."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from sol_rt.errors import CheckpointError
from sol_rt.export.sources.decoder import Decoder

PIECE_WEIGHTS = 1 << 20  # weights that a thread quantizes at once

_MB = 1 << 20
_LIBRARIES = 700 * _MB  # interpreter, torch, transformers, onnxruntime
_PIECE_BYTES = 16  # for each weight of a piece: two float32 copies, codes, planes and their packed form
_TEXT_TOKENS, _LONG_TOKENS, _LOGIT_ROWS = 1 << 13, 4608, 128  # as in actions/
_SQUARES = 6  # matrices [K, K] in memory at once, K being the largest number of input channels
_CGROUP = Path("/sys/fs/cgroup")


def needed_memory(decoder: Decoder, parity: bool, weight_bytes: int, native: bool, calibration: bool = False) -> int:
    """The peak of an export's memory in bytes, without mapped files.

    Args:
        decoder: the model.
        parity: the export ends with a parity report, which holds one layer in float32 and the exported graph.
        weight_bytes: the size of weights.bin.
        native: the native operators run, which read the mapped weights in place. Function bodies unpack them into
            memory.
        calibration: the export fits weights to a text and measures actions on it.
    """
    quantizing = min(PIECE_WEIGHTS, _largest_matrix(decoder)) * _PIECE_BYTES * torch.get_num_threads()
    layer = _layer_weights(decoder) * 4 * 3 // 2
    stages = [quantizing]
    if parity:
        stages.append(layer)
    if parity or calibration:
        stages.append(0 if native else 4 * weight_bytes)
    if calibration:
        stages += [quantizing + layer + _hessians(decoder), _measuring(decoder)]
    return _LIBRARIES + max(stages)


def require_memory(needed: int, available: int | None) -> None:
    """Raises CheckpointError if `needed` is more than `available` bytes. None: not known, so nothing is refused."""
    if available is not None and needed > available:
        raise CheckpointError(
            f"memory: this export needs {_size(needed)}, available are {_size(available)}; "
            "close other programs, or leave out parts with --calibration none and --no-parity"
        )


def require_disk(folder: Path, needed: int) -> None:
    """Raises CheckpointError if the disk of `folder` has less than `needed` bytes free. `folder` need not exist."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise CheckpointError(
            f"disk: the bundle needs {_size(needed)}, free in {existing} are {_size(free)}; "
            "make room or choose another -o"
        )


def available_memory() -> int | None:
    """Free memory in bytes: the machine's or the container's, whichever is less. None if neither can be read."""
    readings = (_of_machine, _of_container)
    known = [value for value in (reading() for reading in readings) if value is not None]
    return min(known, default=None)


def _of_machine() -> int | None:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # not every system reports free pages
    except (ValueError, OSError, AttributeError):
        return None


def _of_container() -> int | None:
    """Bytes below the limit of the control group, version 2 or 1. Cached file pages count as free."""
    old = _CGROUP / "memory"
    readings = (
        _below_limit(_CGROUP / "memory.max", _CGROUP / "memory.current", _CGROUP / "memory.stat", "inactive_file "),
        _below_limit(
            old / "memory.limit_in_bytes",
            old / "memory.usage_in_bytes",
            old / "memory.stat",
            "total_inactive_file ",
        ),
    )
    return next((reading for reading in readings if reading is not None), None)


def _below_limit(limit: Path, used: Path, stat: Path, key: str) -> int | None:
    try:
        reclaimable = next((int(line.split()[1]) for line in stat.read_text().splitlines() if line.startswith(key)), 0)
        return max(0, int(limit.read_text()) - int(used.read_text()) + reclaimable)
    except (OSError, ValueError):  # no such controller, or "max"
        return None


def _largest_matrix(decoder: Decoder) -> int:
    return decoder.hidden_size * max(decoder.vocab_size, decoder.up_size, decoder.qkv_size)


def _hessians(decoder: Decoder) -> int:
    """The Hessians of a layer, the matrices in which the largest is factorised, and the hidden states of the text: what
    goes into a layer, comes out of it, and goes into its matrices.
    """
    channels = max(decoder.hidden_size, decoder.intermediate_size, decoder.num_heads * decoder.head_dim)
    states = _TEXT_TOKENS * (5 * decoder.hidden_size + decoder.up_size + decoder.intermediate_size)
    return 4 * (_SQUARES * channels * channels + states)


def _measuring(decoder: Decoder) -> int:
    """The KV cache of a long context, and the logits of a batch."""
    cache = _LONG_TOKENS * decoder.num_layers * decoder.num_kv_heads * decoder.head_dim * 4
    return cache + _LOGIT_ROWS * decoder.vocab_size * 4


def _layer_weights(decoder: Decoder) -> int:
    attention = decoder.hidden_size * (decoder.qkv_size + decoder.num_heads * decoder.head_dim)
    return attention + decoder.hidden_size * (decoder.up_size + decoder.intermediate_size)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
