"""Searches how many MLP channels are active in each layer, for each target share of MLP weights read.

The search minimises the divergence from the dense graph, measured with the runtime on calibration text. Equal shares in
all layers are near the best; what can be gained lies in whole groups of neighbouring layers. So the search is short:

1. At the target nearest to one half, the inactive share of each group is raised and lowered by a factor, alone. Half
   the difference of the two divergences is the group's slope.
2. Moves against the slopes, of all groups together and of several lengths, are measured at every target. The best one
   is taken if its gain is certain, otherwise equal shares.

All arrays over matrices have the MLP's first matrices of all layers, then its second matrices: float64 [2 layers].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import SolConfig
from sol_rt.errors import UsageError
from sol_rt.export.actions.losses import Candidate, token_divergences
from sol_rt.export.graphs.graph import mlp_counts, weight_bytes
from sol_rt.export.runs import open_runs
from sol_rt.export.sources.decoder import Decoder
from sol_rt.generate.native.session import Session
from sol_rt.progress import Progress, silent

_LEAST_SHARE = 1 / 32  # of a matrix's channels
_GROUPS = 5  # groups of neighbouring layers, each for first and for second matrices
_STEP = 1.25  # factor on the inactive share of a group
_LENGTHS = (0.5, 1.0, 2.0)  # of the moves, in steps of the group with the largest slope
_TINY = 1e-7
_MOST_WEIGHTS = 500_000_000
"""Largest number of MLP weights for a search. For larger models it would take half an hour or more."""

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DensityLevels:
    """Active channels at the inputs of the first and the second MLP matrix, one count for each layer."""

    active_up: tuple[int, ...]
    active_down: tuple[int, ...]


@dataclass(frozen=True)
class MlpSizes:
    """The sizes of the MLPs.

    Attributes:
        layers: number of layers.
        channels_in, channels_mid: input channels of the first and of the second MLP matrix.
        weights_in, weights_mid: weights of one input channel of the first and of the second matrix.
    """

    layers: int
    channels_in: int
    channels_mid: int
    weights_in: int
    weights_mid: int

    @classmethod
    def of(cls, config: SolConfig) -> MlpSizes:
        (hidden, columns), (inner, outputs) = (_shape(config, f"layers.0.{name}") for name in ("up", "down"))
        return cls(config.model.num_layers, hidden, inner, columns, outputs)

    @property
    def total(self) -> int:
        """The number of weights of all MLP matrices."""
        return self.layers * (self.channels_in * self.weights_in + self.channels_mid * self.weights_mid)

    @property
    def channels(self) -> _Array:
        """Input channels of each matrix, [2 layers]."""
        return np.repeat([float(self.channels_in), float(self.channels_mid)], self.layers)

    @property
    def weights(self) -> _Array:
        """The share of all MLP weights that each matrix holds, [2 layers]."""
        sizes = np.array([self.channels_in * self.weights_in, self.channels_mid * self.weights_mid], np.float64)
        return np.repeat(sizes / (sizes.sum() * self.layers), self.layers)

    def equal(self, share: float) -> _Array:
        """Active shares that are the same in all layers, as an export without calibration has them, [2 layers]."""
        first, second = (self.channels_in, self.weights_in), (self.channels_mid, self.weights_mid)
        counts = mlp_counts(round(100 * share) / 100, first, second)
        return np.repeat(np.array(counts, np.float64), self.layers) / self.channels

    def levels(self, counts: Sequence[int]) -> DensityLevels:
        """Splits 2 * layers counts, first those of up and then those of down, into density levels."""
        return DensityLevels(tuple(counts[: self.layers]), tuple(counts[self.layers :]))

    def share(self, levels: DensityLevels) -> float:
        """The share of all MLP weights that these counts read; exactly 1 if all channels are active."""
        return (sum(levels.active_up) * self.weights_in + sum(levels.active_down) * self.weights_mid) / self.total


def _shape(config: SolConfig, matrix: str) -> tuple[int, int]:
    """Input channels and outputs of a layer's matrix, which may have nested levels, level 3, or both."""
    base = config.tensors.get(f"{matrix}.base")
    channels, columns = (base or config.tensors[f"{matrix}.low"]).shape
    return channels, columns if base is not None else 4 * columns


def find_levels(
    engine: Session,
    windows: Sequence[Sequence[int]],
    targets: Sequence[float],
    bits: int,
    progress: Progress = silent,
) -> dict[float, DensityLevels]:
    """Finds the active channels for every target.

    No count of a lower target is above that of a higher one. The same arguments give the same result.

    Args:
        engine: runs the bundle, which has a variant of these bits at channel density 1. Its active channels are as
            before afterwards.
        windows: calibration text as token ids.
        targets: shares of the MLP weights read. 1 makes all channels active.
        bits: bits of the graph to measure with. The result serves all graphs; the one of fewest bits is the fastest.
        progress: reports how far the search is.

    Raises UsageError for a target that cannot be met.
    """
    sizes = MlpSizes.of(engine.bundle.config)
    check_targets(targets)
    passes = 1 + sum(target < 1 for target in set(targets))

    def report(step: str, done: float, total: float) -> None:
        progress("searching density levels", min(search.passes + done / total, passes), passes)

    search = _Search(engine, windows, bits, sizes, report)
    counts = sizes.channels.astype(int)
    sparse = [target for target in targets if target < 1]
    slopes = search.slopes(min(sparse, key=lambda target: abs(target - 0.5))) if sparse else None
    found = {}
    for target in sorted(set(targets), reverse=True):
        if slopes is not None and target < 1:
            counts = search.run(target, counts, slopes)
        found[target] = sizes.levels(counts.tolist())
    progress("searching density levels", passes, passes)
    return {target: found[target] for target in targets}


def check_targets(targets: Sequence[float]) -> None:
    """Raises UsageError for a target that cannot be met."""
    for target in targets:
        if not _LEAST_SHARE < target <= 1:
            raise UsageError(f"channel_density: got {target}, expected {math.ceil(100 * _LEAST_SHARE) / 100} to 1")


def with_levels(
    folder: Path, config: SolConfig, decoder: Decoder, windows: Sequence[Sequence[int]], progress: Progress = silent
) -> SolConfig:
    """The config of the bundle in `folder` with searched active channels of the MLPs, at each channel density.

    Every density reads as many MLP weights as before, and all graphs get the same counts. A model of more than
    _MOST_WEIGHTS keeps its counts, equal in all layers. Raises BundleError, UsageError.
    """
    sizes = MlpSizes.of(config)
    if sizes.total > _MOST_WEIGHTS:
        return config
    shares = {key: sizes.share(DensityLevels(v.active_up, v.active_down)) for key, v in config.variants.items()}
    targets = sorted(set(shares.values()), reverse=True)
    bits = min(variant.bits for variant in config.variants.values() if variant.channel_density == 1.0)
    levels = find_levels(open_runs(folder), windows, targets, bits, progress)
    variants = {}
    for key, variant in config.variants.items():
        found = levels[shares[key]]
        pruned = replace(variant, active_up=found.active_up, active_down=found.active_down)
        variants[key] = replace(pruned, weight_bytes=weight_bytes(decoder, config.tensors, pruned))
    return replace(config, variants=variants)


def scaled_to(kept: _Array, weights: _Array, share: float, most: _Array) -> _Array:
    """Scales the inactive shares, 1 - kept, by the one factor at which weights * kept sums to `share`.

    No result is above `most` or below _LEAST_SHARE.
    """

    def at(factor: float) -> _Array:
        return np.clip(1 - factor * np.maximum(1 - kept, _TINY), _LEAST_SHARE, most)

    low, high = 0.0, 1 / _TINY
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (weights * at(middle)).sum() > share else (low, middle)
    return at(low)


def whole_counts(kept: _Array, sizes: MlpSizes, share: float, most: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Whole counts near the active shares `kept`, none above `most`.

    They read `share` of the weights, or one channel more.
    """
    exact = kept * sizes.channels
    counts = np.clip(np.floor(exact + 1e-9).astype(np.int64), 1, most)
    each = sizes.weights / sizes.channels
    # counts that rounding cut most are raised first, in turns
    order = np.argsort(-(exact - counts), kind="stable")
    place = 0
    while (counts * each).sum() < share - 1e-12:
        matrix = order[place % len(order)]
        counts[matrix] += counts[matrix] < most[matrix]
        place += 1
    return counts


class _Search:
    def __init__(
        self, engine: Session, windows: Sequence[Sequence[int]], bits: int, sizes: MlpSizes, progress: Progress
    ) -> None:
        self.engine, self.windows, self.sizes, self.progress = engine, windows, sizes, progress
        self.action = Action(1.0, 1.0, bits)
        self.passes = 0  # passes over the text, each with a set of counts

    def slopes(self, share: float) -> _Array:
        """Rise of the divergence if a group's inactive share grows by _STEP, for the group of each matrix.

        Measured where all layers have equal active shares that read `share` of the weights: [2 layers].
        """
        sizes, groups = self.sizes, self._groups()
        equal, all_channels = sizes.equal(share), np.ones_like(sizes.channels)
        moves = [
            scaled_to(1 - (1 - equal) * np.where(group, factor, 1.0), sizes.weights, share, all_channels)
            for group in groups
            for factor in (_STEP, 1 / _STEP)
        ]
        means = self._divergences(moves, share, sizes.channels.astype(np.int64)).mean(1)
        return np.asarray(sum((means[2 * at] - means[2 * at + 1]) / 2 * group for at, group in enumerate(groups)))

    def run(self, share: float, most: npt.NDArray[np.int64], slopes: _Array) -> npt.NDArray[np.int64]:
        """The counts [2 layers] that read `share` of the weights, none above `most`."""
        sizes = self.sizes
        weights, bound = sizes.weights, most / sizes.channels
        equal = scaled_to(np.minimum(sizes.equal(share), bound), weights, share, bound)
        largest = max(float(np.abs(slopes).max()), _TINY)
        choices = [equal] + [
            scaled_to(1 - (1 - equal) * _STEP ** (-length * slopes / largest), weights, share, bound)
            for length in _LENGTHS
        ]
        rows = self._divergences(choices, share, most)
        gains = _sure_gains(rows, rows[0])
        return whole_counts(choices[int(gains.argmax())], sizes, share, most)

    def _groups(self) -> list[npt.NDArray[np.bool_]]:
        layers = np.arange(self.sizes.layers)
        near = layers * min(_GROUPS, self.sizes.layers) // self.sizes.layers
        none = np.zeros_like(layers, bool)
        masks = [near == group for group in range(int(near[-1]) + 1)]
        return [np.concatenate(pair) for mask in masks for pair in ((mask, none), (none, mask))]

    def _divergences(self, kept: Sequence[_Array], share: float, most: npt.NDArray[np.int64]) -> _Array:
        """The divergences of every set of active shares, float64 [sets, tokens]."""
        levels = [self.sizes.levels(whole_counts(each, self.sizes, share, most).tolist()) for each in kept]
        candidates = [Candidate(self.action, each.active_up, each.active_down) for each in levels]
        found = token_divergences(self.engine, self.windows, self.action, candidates, self.progress)
        self.passes += 1
        return found


def _sure_gains(rows: _Array, current: _Array) -> _Array:
    """The mean of `current` [tokens] minus that of each of `rows` [rows, tokens]; 0 if below its standard error.

    A few hundred tokens must not decide by luck.
    """
    gains = current - rows
    mean, error = gains.mean(1), gains.std(1) / np.sqrt(gains.shape[1])
    return np.asarray(np.where(mean > error, mean, 0.0))
