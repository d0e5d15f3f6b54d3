"""Checks a bundle completely: every hash, whether graphs and tokenizer fit the model, and that weights are finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sol_rt.bundle.bundle import Bundle, check_hash, sha256_in_one_state
from sol_rt.bundle.file_state import FileState
from sol_rt.bundle.weights import SharedWeights
from sol_rt.errors import BundleError
from sol_rt.text.tokenizer import FILE

_CHUNK = 8 << 20


@dataclass(frozen=True)
class VerifyReport:
    """Numbers, sizes and hashes of a check of a bundle's files.

    Attributes:
        files, tensors: their numbers.
        bytes: size of all files.
        weights: state of the weights file that was checked.
        weights_sha256: its hash, lower-case hex.
    """

    files: int
    tensors: int
    bytes: int
    weights: FileState
    weights_sha256: str


def verify_bundle(path: Path | str, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Checks a bundle completely.

    The checks are those of Bundle.open and the hash of the weights file. Graphs and tokenizer must belong to the model,
    and all values of float tensors must be finite.

    Args:
        path: the bundle folder.
        progress: called with the bytes of the weights file that were hashed, and its size in bytes.

    Raises BundleError at the first fault.
    """
    bundle = Bundle.open(path)
    config = bundle.config
    weights = bundle.file(config.weights_file)
    entry = config.files[config.weights_file]
    report = None if progress is None else lambda done: progress(done, entry.bytes)
    digest, state = sha256_in_one_state(weights, report)
    check_hash(weights, entry, digest)
    shared = SharedWeights(replace(bundle, weights_state=state))
    for file in dict.fromkeys(variant.file for variant in config.variants.values()):
        shared.check(file)
    if config.policy is not None:
        shared.check(config.policy.file)
    if FILE in config.files:
        bundle.tokenizer()
    for name, tensor in config.tensors.items():
        if tensor.dtype not in {"float16", "float32"}:
            continue
        values = shared.raw(name).view(tensor.dtype)
        for start in range(0, values.size, _CHUNK):
            finite = np.isfinite(values[start : start + _CHUNK])
            if not finite.all():
                index = start + int(np.argmin(finite))
                got = f"{values[index]} at element {index}"
                raise BundleError(weights, name, got, "finite numbers", "export again from an undamaged checkpoint")
    shared.require_unchanged()
    size = sum(file.bytes for file in config.files.values())
    return VerifyReport(len(config.files), len(config.tensors), size, state, digest)
