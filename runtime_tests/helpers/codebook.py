"""Matrices of 3 bits in NumPy, float64: random ones, in their storage and as the numbers that they stand for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx

from helpers.reference import Array

TABLES = np.array(
    [
        [-113, -73, -41, -14, 13, 41, 73, 114],
        [-103, -48, -24, -7, 7, 24, 49, 103],
        [-127, -76, -48, -22, 1, 25, 50, 83],
        [-83, -50, -24, -1, 22, 48, 78, 127],
    ],
    np.int8,
)


@dataclass(frozen=True)
class Codebook:
    """A matrix W[k, n]: codes [K, N] in 0 … 7, block_scale uint8 [K / 32, N], output_scale float16 [N], int8 tables."""

    codes: Array
    block_scale: Array
    output_scale: Array
    tables: Array = field(default_factory=lambda: TABLES)

    @classmethod
    def random(cls, rng: np.random.Generator, k: int, n: int) -> Codebook:
        """Codes, scales and tables over their whole range; scales that active products near 1."""
        block_scale = rng.integers(0, 256, (k // 32, n)).astype(np.uint8)
        output_scale = rng.uniform(0.5, 1.5, n) / (70 * 32 * math.sqrt(k))
        return cls(rng.integers(0, 8, (k, n)).astype(np.uint8), block_scale, output_scale.astype(np.float16))

    def weights(self, bits: int = 3) -> Array:
        """float64 [K, N], whatever the bits."""
        return self._weights

    @cached_property
    def _weights(self) -> Array:
        scale, table = (np.repeat(part, 32, axis=0) for part in (self.block_scale & 63, self.block_scale >> 6))
        return self.output_scale.astype(np.float64) * scale * self.tables[table, self.codes].astype(np.float64)

    def arrays(self) -> dict[str, Array]:
        """The stored tensors in the order of an operator's inputs."""
        k, n = self.codes.shape
        pairs = (self.codes & 3).reshape(k, n // 32, 4, 8)  # outputs j, j + 8, j + 16, j + 24 in byte j
        low = sum(pairs[:, :, i] << 2 * i for i in range(4)).astype(np.uint8).reshape(k, n // 4)
        high = np.packbits(self.codes >> 2, axis=1, bitorder="little")
        return {
            "low": low,
            "high": high,
            "block_scale": self.block_scale,
            "output_scale": self.output_scale,
            "codebook": self.tables,
        }

    def tensors(self, prefix: str) -> list[onnx.TensorProto]:
        """The same, named with a prefix."""
        return [onnx.numpy_helper.from_array(array, prefix + name) for name, array in self.arrays().items()]


def product(x: Array, w: Codebook) -> Array:
    """x W with activations of 8 bits, their sums exact: x float32 [M, K] -> float64 [M, N]."""
    blocks = x.astype(np.float32).reshape(len(x), x.shape[1] // 32, 32)
    step = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    codes = np.rint(np.divide(blocks, step, out=np.zeros_like(blocks), where=step > 0)).astype(np.float64)
    return (codes * step.astype(np.float64)).reshape(x.shape) @ w.weights()
