"""A summary of a step's logits, computed on the GPU, so that a few numbers are copied instead of a whole vocabulary.

The vocabulary is cut into rows. For each row the graph computes its two largest logits with their places, their softmax
shares within the row, and the mean logit under the row's softmax. The host combines the rows. On WebGPU this takes 6
kernels; 49152 tokens become 3.5 kB.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from sol_rt.engine.distribution import NOT_FINITE, Distribution, SoftmaxSums

PARTS, PLACES = "logit_parts", "logit_places"
"""Names of the outputs that `append` adds to a graph."""
_NARROWEST, _WIDTH, _WIDEST = 64, 512, 2048
"""Widths of a row. WebGPU's TopK takes up to 2048 numbers at once, and is faster with fewer."""
_COLUMNS = 5


def summary_shape(vocab_size: int) -> tuple[int, int] | None:
    """(rows, width) into which the vocabulary is reshaped; None if no width from 64 to 2048 divides it."""
    widths = [width for width in range(_NARROWEST, _WIDEST + 1) if vocab_size % width == 0]
    if not widths:
        return None
    width = min(widths, key=lambda width: abs(math.log(width / _WIDTH)))
    return vocab_size // width, width


def append(graph: onnx.GraphProto, rows: int, width: int) -> None:
    """Adds the outputs PARTS, float [rows, 5], and PLACES, int64 [rows, 2], to a graph.

    The graph has the output `logits`, float [1, rows * width].
    """
    numbers = {"summary.shape": [rows, width], "summary.two": [2], "summary.axis": [1]}
    graph.initializer.extend(
        helper.make_tensor(name, TensorProto.INT64, [len(values)], values) for name, values in numbers.items()
    )
    node = helper.make_node
    graph.node.extend(
        [
            node("Reshape", ["logits", "summary.shape"], ["summary.rows"]),
            node("TopK", ["summary.rows", "summary.two"], ["summary.largest", PLACES], axis=1),
            node("Softmax", ["summary.rows"], ["summary.shares"], axis=1),
            node("GatherElements", ["summary.shares", PLACES], ["summary.their_shares"], axis=1),
            node("Mul", ["summary.shares", "summary.rows"], ["summary.products"]),
            node("ReduceSum", ["summary.products", "summary.axis"], ["summary.means"], keepdims=1),
            node("Concat", ["summary.largest", "summary.their_shares", "summary.means"], [PARTS], axis=1),
        ]
    )
    graph.output.append(helper.make_tensor_value_info(PARTS, TensorProto.FLOAT, [rows, _COLUMNS]))
    graph.output.append(helper.make_tensor_value_info(PLACES, TensorProto.INT64, [rows, 2]))


class LogitSummary:
    """Both outputs of a graph's summary in main memory.

    Args:
        rows, width: as of `append`.

    Attributes:
        arrays: float32 [rows, 5] and int64 [rows, 2] by the outputs' names; a step fills them.
    """

    def __init__(self, rows: int, width: int) -> None:
        self.width, self.vocab_size = width, rows * width
        self.arrays: dict[str, np.ndarray] = {
            PARTS: np.zeros((rows, _COLUMNS), np.float32),
            PLACES: np.zeros((rows, 2), np.int64),
        }

    def read(self) -> SoftmaxSums:
        """The softmax sums over the vocabulary."""
        parts, places = self.arrays[PARTS].astype(np.float64), self.arrays[PLACES]
        largest = parts[:, 0]
        row = int(largest.argmax())
        top = float(largest[row])
        with np.errstate(all="ignore"):  # logits that are not finite are found below
            totals = np.exp(largest - top) / parts[:, 2]
            total, moment = float(totals.sum()), float(np.einsum("i,i->", totals, parts[:, 4] - top))
        largest[row] = parts[row, 1]
        second = float(largest.max())
        if not (math.isfinite(top) and math.isfinite(total) and math.isfinite(moment)):
            return NOT_FINITE
        return SoftmaxSums(row * self.width + int(places[row, 0]), total, moment, second, top)


class SummarisedDistribution(Distribution):
    """The probabilities of the next token, of a summary; the logits come when something asks for more than that.

    Args:
        summary: of the logits. What it holds now counts.
        fetch: gives the logits, float32 [vocab].
    """

    def __init__(self, summary: LogitSummary, fetch: Callable[[], np.ndarray]) -> None:
        self._sums = summary.read()
        self._size, self._fetch = summary.vocab_size, fetch

    @property
    def logits(self) -> np.ndarray:
        return self._fetch()

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._size,)

    def log_probability(self, token: int) -> float:
        return -math.log(self._sums.total) if token == self.top else super().log_probability(token)
