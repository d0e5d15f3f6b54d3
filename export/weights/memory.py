"""Estimates the memory and disk that an export needs, and refuses before it starts if this machine has less.

It also says before the work whether this machine has the memory to run the bundle.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sol_rt.bundle.cache_layout import CacheLayout
from sol_rt.bundle.config import SolConfig
from sol_rt.engine.hardware import available_memory
from sol_rt.errors import CheckpointError
from sol_rt.evaluation.footprint import fitting_context, footprint
from sol_rt.export.sources.decoder import Decoder, from_hf_config, short_context

__all__ = [
    "PIECE_WEIGHTS",
    "available_memory",
    "needed_memory",
    "require_disk",
    "require_memory",
    "running_advice",
    "short_limit",
]

PIECE_WEIGHTS = 1 << 20  # weights that a thread quantizes at once

_MB = 1 << 20
_LIBRARIES = 700 * _MB  # interpreter, torch, transformers, onnxruntime
_PIECE_BYTES = 16  # for each weight of a piece: two float32 copies, codes, planes and their packed form
_TEXT_TOKENS, _LONG_TOKENS, _LOGIT_ROWS, _REFERENCES = 1 << 13, 4608, 128, 511  # as in actions/
_SQUARES = 6  # matrices [K, K] in memory at once, K being the largest number of input channels


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


def short_limit(config: Mapping[str, Any], kv: str, available: int | None) -> int | None:
    """The context to export at by default, if it is shorter than the model's own; None for the latter.

    Factors of longrope for long texts serve a whole bundle, short texts too. So the bundle has the short ones if this
    machine has no memory for a longer text: for weights of a byte each, and the KV cache.

    Args:
        config: config.json.
        kv: type of the cache's keys and values.
        available: bytes of memory, None if not known.
    """
    short = short_context(config)
    if short is None or available is None:
        return None
    decoder = from_hf_config(config)
    if decoder.max_context <= short:
        return None
    unnamed = dict.fromkeys(("name", "architecture", "source", "license"), "")
    cache = CacheLayout(decoder.dims(**unnamed, bos_token_id=None, eos_token_ids=()), decoder.kv(kv))
    return short if decoder.weights + cache.most_held(cache.capacity_for(short + 1)) > available else None


def running_advice(config: SolConfig, available: int | None) -> str:
    """One line for people if this machine has too little memory to run a bundle at its longest context, else empty."""
    longest = config.model.max_context
    needed = footprint(config, longest)
    if available is None or needed.total <= available:
        return ""
    takes = f"memory: at its context of {longest} tokens this model takes {_size(needed.total)}"
    free = f"available are {_size(available)}"
    fitting = fitting_context(config, available - needed.weights)
    if not fitting:
        return f"{takes}, {free}; its weights alone take {_size(needed.weights)}, so every step may read from the disk"
    instead = "" if config.kv.dtype == "int8" else "; --kv int8 takes half as much cache"
    return f"{takes}, {free}; texts of up to {fitting} tokens fit, and -c {fitting} makes that the limit{instead}"


def require_disk(folder: Path, needed: int) -> None:
    """Raises CheckpointError if the disk of `folder` has less than `needed` bytes free. `folder` need not exist."""
    existing = folder.absolute()
    while not existing.exists():
        if existing == existing.parent:
            raise CheckpointError(f"disk: {folder} is on a drive that is not there; choose another -o")
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise CheckpointError(
            f"disk: the bundle needs {_size(needed)}, free in {existing} are {_size(free)}; "
            "make room or choose another -o"
        )


def _largest_matrix(decoder: Decoder) -> int:
    return decoder.hidden_size * max(decoder.vocab_size, decoder.up_size, _widest_qkv(decoder))


def _hessians(decoder: Decoder) -> int:
    """The Hessians of a layer, the matrices in which the largest is factorised, and the hidden states of the text. The
    states are a layer's inputs and outputs, and the inputs of its matrices.
    """
    channels = max(decoder.hidden_size, decoder.intermediate_size, decoder.num_heads * decoder.head_dim)
    states = _TEXT_TOKENS * (5 * decoder.hidden_size + decoder.up_size + decoder.intermediate_size)
    return 4 * (_SQUARES * channels * channels + states)


def _measuring(decoder: Decoder) -> int:
    """The KV cache of a long context, the logits of a batch, and the dense distributions that actions are compared
    with."""
    attending = sum(decoder.kind(layer) == "attention" for layer in range(decoder.num_layers))
    cache = _LONG_TOKENS * attending * decoder.num_kv_heads * decoder.head_dim * 4
    return cache + (_LOGIT_ROWS + _REFERENCES) * decoder.vocab_size * 4


def _widest_qkv(decoder: Decoder) -> int:
    return max(decoder.mixer_shapes(kind)[0][1] for kind in set(decoder.layer_kinds or ("attention",)))


def _layer_weights(decoder: Decoder) -> int:
    attention = decoder.hidden_size * (_widest_qkv(decoder) + decoder.num_heads * decoder.head_dim)
    return attention + decoder.hidden_size * (decoder.up_size + decoder.intermediate_size)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
