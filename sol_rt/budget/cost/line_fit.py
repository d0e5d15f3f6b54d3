"""Fits a line of the measured cost model to timings, so that a few disturbed timings do not move it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from sol_rt.budget.cost.model import Line
from sol_rt.errors import SolError

_REWEIGHTINGS = 30
_SMALL_RESIDUAL = 1e-3  # relative: below it residuals count by their square, as noise does


def fit_line(samples: Sequence[tuple[float, float, float]]) -> Line:
    """Fits a line to timings. No coefficient is negative, and the sum of absolute relative residuals is smallest.

    Absolute residuals, unlike squares, keep a few timings that something else disturbed from moving the line.

    Args:
        samples: (tokens read, pages scored, milliseconds) of each timing, as `reads` counts them.

    Raises SolError if there is no timing, or a time is not positive.
    """
    fixed, per_token, per_page, error = _fit([(1.0, tokens, pages, ms) for tokens, pages, ms in samples])
    return Line(fixed, per_token, per_page, error)


def _fit(rows: Sequence[tuple[float, float, float, float]]) -> tuple[float, float, float, float]:
    data = np.array(rows, np.float64).reshape(-1, 4)
    times = data[:, 3]
    if not len(data) or not (np.isfinite(data).all() and (times > 0).all()):
        raise SolError("profile: no usable timing; run `sol-rt profile` again on an idle machine")
    features = data[:, :3] / times[:, None]
    best, least = np.array([float(np.median(times)), 0.0, 0.0]), math.inf
    # three coefficients: trying every set of non-zero ones finds the non-negative optimum exactly
    for columns in itertools.chain.from_iterable(itertools.combinations(range(3), size) for size in (1, 2, 3)):
        part = _least_absolute(features[:, columns])
        if (part < 0).any():
            continue
        found = np.zeros(3)
        found[list(columns)] = part
        size = float(np.abs(features @ found - 1.0).sum())
        if size < least - 1e-12:
            best, least = found, size
    fixed, first, second = best.tolist()
    return fixed, first, second, float(np.sqrt(np.mean((features @ best - 1.0) ** 2)))


def _least_absolute(features: np.ndarray) -> np.ndarray:
    """The coefficients [n] that minimize the sum of |features [samples, n] @ coefficients - 1|.

    Found by iteratively reweighted least squares.
    """
    weights = np.ones(len(features))
    for _ in range(_REWEIGHTINGS):
        found, *_ = np.linalg.lstsq(features * weights[:, None], weights, rcond=None)
        weights = 1 / np.sqrt(np.maximum(np.abs(features @ found - 1.0), _SMALL_RESIDUAL))
    return np.asarray(found)
