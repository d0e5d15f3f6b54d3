"""The operators of docs/reference/bundle-details.md in NumPy, float64, and random weights in their storage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
SHIFT = {4: 0.0, 6: 6.5, 8: 8.0}
LARGEST_CODE = {3: 127, 4: 127, 6: 127, 8: 32258}
PAGE = 4


@dataclass(frozen=True)
class Nested:
    """A quantized matrix, W[k, n]. q, b, c: [K, N] codes of the three planes; scale float16, zero uint8 [K / 32, N]."""

    q: Array
    b: Array
    c: Array
    scale: Array
    zero: Array

    @classmethod
    def random(cls, rng: np.random.Generator, k: int, n: int) -> Nested:
        """Codes over their whole range, zero points off centre, scales that active products near 1."""
        q, b, c = (rng.integers(0, top, (k, n)).astype(np.uint8) for top in (16, 4, 4))
        scale = rng.uniform(0.5, 1.5, (k // 32, n)) * 0.2 / math.sqrt(k)
        return cls(q, b, c, scale.astype(np.float16), rng.integers(80, 176, (k // 32, n)).astype(np.uint8))

    def weights(self, bits: int) -> Array:
        """float64 [K, N] at a level."""
        code = 16.0 * self.q
        if bits >= 6:
            code += 4.0 * self.b
        if bits == 8:
            code += self.c
        scale, zero = (np.repeat(part.astype(np.float64), 32, axis=0) for part in (self.scale, self.zero))
        return scale / 16 * (code - SHIFT[bits] - zero)

    def tensors(self, name: str, *, channel_major: bool = False) -> dict[str, Array]:
        """All five stored tensors; a channel-major base comes as its packed bytes, uint8 [K, N / 2]."""
        k, n = self.q.shape
        blocks = self.q.reshape(k // 32, 32, n).transpose(0, 2, 1)  # [KB, N, 32]
        base = self.q[:, 0::2] | self.q[:, 1::2] << 4 if channel_major else blocks[..., 0::2] | blocks[..., 1::2] << 4
        out = {f"{name}.base": base, f"{name}.scale": self.scale, f"{name}.zero": self.zero}
        for index, plane in enumerate((self.b, self.c)):
            codes = plane.reshape(k // 32, 8, 4, n).transpose(0, 3, 1, 2)  # [KB, N, 8, 4]
            out[f"{name}.plane{index + 1}"] = sum(codes[..., i] << 2 * i for i in range(4)).astype(np.uint8)
        return {key: np.ascontiguousarray(value) for key, value in out.items()}


@dataclass(frozen=True)
class Coded:
    """A matrix at level 3, W[k, n].

    code: [K, N], 0 … 7; scale 0 … 63 and table 0 … 3: uint8 [K / 32, N]; output_scale: float16 [N]; codebook: int8
    [4, 8].
    """

    code: Array
    scale: Array
    table: Array
    output_scale: Array
    codebook: Array

    @classmethod
    def random(cls, rng: np.random.Generator, k: int, n: int, codebook: Array) -> Coded:
        """Codes, scales and tables over their whole range, output scales that make products near 1."""
        output_scale = rng.uniform(0.5, 1.5, n) / (2500 * math.sqrt(k))
        return cls(
            rng.integers(0, 8, (k, n)).astype(np.uint8),
            rng.integers(0, 64, (k // 32, n)).astype(np.uint8),
            rng.integers(0, 4, (k // 32, n)).astype(np.uint8),
            output_scale.astype(np.float16),
            codebook,
        )

    def weights(self, bits: int = 3) -> Array:
        """float64 [K, N], whatever the bits."""
        scale, table = (np.repeat(part.astype(np.int64), 32, axis=0) for part in (self.scale, self.table))
        return self.output_scale.astype(np.float64) * scale * self.codebook[table, self.code]

    @classmethod
    def screening(cls, rng: np.random.Generator, weights: Nested, codebook: Array) -> Coded:
        """A matrix that gives scores near the products of `weights`, with places for more outputs after."""
        k, n = weights.q.shape
        columns = 256 * (-(-n // 256) | 1)
        made = cls.random(rng, k, columns, codebook)
        wide = np.zeros((k, columns))
        wide[:, :n] = weights.weights(8)
        blocks = wide.reshape(k // 32, 32, columns)
        largest = np.abs(blocks).max(1)
        step = np.maximum(largest.max(0) / 127, 1e-4).astype(np.float16).astype(np.float64) / 63
        output_scale = step.astype(np.float16)
        scale = np.clip(np.rint(largest / 127 / output_scale), 1, 63).astype(np.uint8)
        values = (output_scale * scale)[:, None, :, None] * codebook[made.table][:, None].astype(float)
        code = np.abs(blocks[..., None] - values).argmin(-1).astype(np.uint8).reshape(k, columns)
        code[:, n:] = made.code[:, n:]
        return cls(code, scale, made.table, output_scale, codebook)

    def arrays(self) -> dict[str, Array]:
        """The four stored tensors of the matrix's own, then the codebook: the order of an operator's inputs."""
        k, n = self.code.shape
        first, second, third, last = np.moveaxis(self.code.reshape(k, n // 32, 4, 8), 2, 0)  # [K, N / 32, 8] each
        top = last >> 2
        high = third[..., :4] | third[..., 4:] << 3 | top[..., :4] << 6 | top[..., 4:] << 7
        return {
            "low": (first | second << 3 | (last & 3) << 6).reshape(k, n // 4),
            "high": high.reshape(k, n // 8),
            "block_scale": (self.scale | self.table << 6).astype(np.uint8),
            "output_scale": self.output_scale,
            "codebook": self.codebook,
        }

    def tensors(self, name: str) -> dict[str, Array]:
        """The stored tensors of the matrix's own, with the names of a bundle."""
        return {f"{name}.{part}": array for part, array in self.arrays().items() if part != "codebook"}


Weights = Nested | Coded


def random_codebook(rng: np.random.Generator) -> Array:
    """Four tables of 8 ascending entries, int8 [4, 8]."""
    return np.sort(rng.choice(np.arange(-127, 128), (4, 8), replace=False), axis=1).astype(np.int8)


def rounded_activations(x: Array, bits: int) -> Array:
    """x [..., K] as codes of a level stand for each block of 32."""
    blocks = x.astype(np.float32).reshape(*x.shape[:-1], x.shape[-1] // 32, 32)
    step = np.abs(blocks).max(-1, keepdims=True) / np.float32(LARGEST_CODE[bits])
    codes = np.rint(np.divide(blocks, step, out=np.zeros_like(blocks), where=step > 0))
    return (codes.astype(np.float64) * step).reshape(x.shape)


def nested_matmul(x: Array, weights: Weights, bits: int) -> Array:
    """x [..., K] -> float64 [..., N]."""
    return rounded_activations(x, bits) @ weights.weights(bits)


def screened_matmul(
    x: Array, weights: Nested, bits: int, candidates: int, tail_offset: float, screen: Coded | None = None
) -> Array:
    """x [rows, K] -> float64 [rows, N]: at `bits` where the product of the first pass is among the highest, else that
    product. The first pass is `weights` at level 4, or the first N outputs of `screen`.
    """
    n = weights.q.shape[1]
    scores = nested_matmul(x, weights, 4) if screen is None else nested_matmul(x, screen, 3)[..., :n]
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :candidates]
    out = scores + tail_offset
    np.put_along_axis(out, order, np.take_along_axis(nested_matmul(x, weights, bits), order, -1), -1)
    return out


def nested_gather(ids: Array, weights: Nested, bits: int) -> Array:
    """ids [1, S] -> float64 [1, S, K]."""
    return weights.weights(bits).T[ids]


def largest(x: Array, active: int) -> Array:
    """x with all but the `active` largest magnitudes of the last axis zero; ties go to the lower index."""
    order = np.argsort(-np.abs(x), axis=-1, kind="stable")[..., :active]
    out = np.zeros_like(x)
    np.put_along_axis(out, order, np.take_along_axis(x, order, -1), -1)
    return out


def activation(x: Array, name: str) -> Array:
    if name == "silu":
        return x / (1 + np.exp(-x))
    if name == "relu":
        return np.maximum(x, 0)
    if name == "relu2":
        return np.maximum(x, 0) ** 2
    if name == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def pruned_mlp(
    x: Array,
    up: Weights,
    down: Weights,
    bits: tuple[int, int],
    *,
    gated: bool,
    act: str,
    active_up: int,
    active_down: int,
    up_bias: Array | float = 0.0,
    down_bias: Array | float = 0.0,
) -> Array:
    """x [..., K] -> float64 [..., K]; `bits` of the first matrix and of the second."""
    u = nested_matmul(largest(x, active_up), up, bits[0]) + up_bias
    h = activation(u[..., : u.shape[-1] // 2], act) * u[..., u.shape[-1] // 2 :] if gated else activation(u, act)
    return nested_matmul(largest(h, active_down), down, bits[1]) + down_bias


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Half-split rotation of the leading channels of x [S, heads, D] by cos, sin [S, rotary_dim / 2]."""
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    c, s = cos[:, None], sin[:, None]
    return np.concatenate([first * c - second * s, second * c + first * s, x[..., 2 * half :]], -1)


def quantized_rows(x: Array) -> tuple[Array, Array]:
    """Rows [..., D] of a token's key or value as int8 codes and float16 scales [...]."""
    x = x.astype(np.float32)
    scale = (np.abs(x).max(-1) / np.float32(127)).astype(np.float16)
    step = scale.astype(np.float32)[..., None]
    steps = np.divide(x, step, out=np.zeros_like(x), where=step > 0)
    return np.clip(np.rint(steps), -127, 127).astype(np.int8), scale


def scaled_rows(codes: Array, scale: Array) -> Array:
    """Values of codes [..., D] with scales [...], float64 [..., D]."""
    return codes.astype(np.float64) * scale.astype(np.float64)[..., None]


def key_codes(keys: Array) -> tuple[Array, Array]:
    """Codes uint8 [..., D / 2] and ranges float16 [..., 2], minimum and step, of keys [..., D] as the cache holds them:
    the specification's float32 arithmetic.
    """
    keys = keys.astype(np.float32)
    low, high = keys.min(-1), keys.max(-1)
    ranges = np.stack([low, (high - low) / np.float32(15)], -1).astype(np.float16)
    least, step = (ranges[..., i : i + 1].astype(np.float32) for i in (0, 1))
    steps = np.divide(keys - least, step, out=np.zeros_like(keys), where=step > 0)
    codes = np.clip(np.rint(steps), 0, 15).astype(np.uint8)
    return codes[..., 0::2] | codes[..., 1::2] << 4, ranges


def unpacked(codes: Array) -> Array:
    """Codes [..., D / 2] -> float64 [..., D]."""
    return np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:-1], -1).astype(np.float64)


def in_pages(codes: Array, ranges: Array) -> tuple[Array, Array]:
    """Codes [..., T, D / 2] and ranges [..., T, 2] in the order of the cache, T a multiple of 4: in a page four bytes
    of each token in turn, then what is left of each; minima of a page's tokens, then their steps.
    """
    paged = codes.reshape(*codes.shape[:-2], -1, PAGE, codes.shape[-1])
    whole = codes.shape[-1] // 4 * 4
    fours = paged[..., :whole].reshape(*paged.shape[:-1], -1, 4).swapaxes(-3, -2)
    parts = [part.reshape(*paged.shape[:-2], -1) for part in (fours, paged[..., whole:])]
    turned = ranges.reshape(*ranges.shape[:-2], -1, PAGE, 2).swapaxes(-2, -1)
    return np.concatenate(parts, -1).reshape(codes.shape), turned.reshape(ranges.shape)


def by_token(codes: Array, ranges: Array) -> tuple[Array, Array]:
    """The inverse of `in_pages`."""
    width = codes.shape[-1]
    whole = width // 4 * 4
    paged = codes.reshape(*codes.shape[:-2], -1, PAGE * width)
    fours = paged[..., : PAGE * whole].reshape(*paged.shape[:-1], -1, PAGE, 4).swapaxes(-3, -2)
    rest = paged[..., PAGE * whole :].reshape(*paged.shape[:-1], PAGE, -1)
    rows = np.concatenate([fours.reshape(*paged.shape[:-1], PAGE, -1), rest], -1)
    turned = ranges.reshape(*ranges.shape[:-2], -1, 2, PAGE).swapaxes(-2, -1)
    return rows.reshape(codes.shape), turned.reshape(ranges.shape)


def query_codes(query: Array) -> tuple[Array, Array]:
    """Query [..., D] as whole numbers within -127 … 127, float64, and steps [..., 1]."""
    step = np.abs(query).max(-1, keepdims=True) / 127
    return np.rint(np.divide(query, step, out=np.zeros_like(query), where=step > 0)), step


def capped(logits: Array, cap: float) -> Array:
    """cap * tanh(logits / cap); the logits themselves where the cap is 0."""
    return cap * np.tanh(logits / cap) if cap else logits


def qk_norm(
    qkv: Array, weight: Array, *, heads: int, kv_heads: int, by_row: bool, layer_norm: bool, epsilon: float
) -> Array:
    """qkv [..., (H + 2 Hk) D] with q and k normalized by head or by row, times `weight` [(H + Hk) D]."""
    size = weight.size // (heads + kv_heads)
    parts = np.split(qkv, [heads * size, weight.size], axis=-1)
    for index, count in enumerate((heads, kv_heads)):
        x = parts[index].reshape(*qkv.shape[:-1], 1 if by_row else count, -1)
        if layer_norm:
            x = x - x.mean(-1, keepdims=True)
        parts[index] = (x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)).reshape(parts[index].shape)
    return np.concatenate([np.concatenate(parts[:2], -1) * weight, parts[2]], -1)


def token_scores(query: Array, codes: Array, ranges: Array, scale: float, cap: float = 0.0) -> Array:
    """Scores of old tokens for a KV head's rotated queries [group, D], from codes [tokens, D / 2] and ranges
    [tokens, 2]: float64 [tokens], what the group's softmaxes give each in sum.
    """
    whole, step = query_codes(query)
    least, key_step = ranges.astype(np.float64).T
    products = step * (key_step * (whole @ unpacked(codes).T) + least * whole.sum(-1, keepdims=True))
    return _shares(capped(scale * products, cap))


def _shares(logits: Array) -> Array:
    """Sums over a group [group, tokens] of its softmaxes."""
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    scores = (weights / weights.sum(-1, keepdims=True)).sum(0)
    return np.where(scores < 2.0**-100, 0.0, scores)


def best_tokens(scores: Array, count: int, rows: int = 1) -> Array:
    """The `count` pairs of KV head and old token with the highest scores [Hk, tokens], as bool of the same shape.

    With more than one row token t is in row t mod rows, and ranks are shared out among the rows one by one.
    """
    kept = np.zeros(scores.shape, bool)
    for row in range(rows):
        part = scores[:, row::rows]
        chosen = np.zeros(part.size, bool)
        chosen[np.argsort(-part.ravel(), kind="stable")[: len(range(row, count, rows))]] = True
        kept[:, row::rows] = chosen.reshape(part.shape)
    return kept


def sparse_attention(
    qkv: Array,
    cache: Sequence[Array],
    past: int,
    kv_pages: int,
    cos: Array,
    sin: Array,
    *,
    heads: int,
    kv_heads: int,
    sinks: int,
    scale: float,
    by_keys: bool = False,
    dealt: tuple[int, int] | None = None,
    window: int = 0,
    cap: float = 0.0,
) -> tuple[Array, ...]:
    """qkv [1, S, (H + 2 Hk) D] and a layer's cache: keys, values, codes and ranges of the keys and, where keys and
    values are int8, the scales of both -> y float64 [1, S, H D] and the new cache. Tokens are chosen by the codes or,
    as function bodies do, by the keys themselves, `dealt` to rows of at most so many tokens, and so many rows at least.
    A token attends to the last `window` ones, or to all where that is 0. `cap` is the soft cap on products.
    """
    key, value, codes, ranges, *scales = (part.copy() for part in cache)
    codes, ranges = by_token(codes, ranges)
    size, count = key.shape[-1], qkv.shape[1]
    split = qkv[0].astype(np.float64).reshape(count, -1, size)
    rows = slice(past, past + count)
    cos, sin = cos[rows].astype(np.float64), sin[rows].astype(np.float64)
    q, k = rotate(split[:, :heads], cos, sin), rotate(split[:, heads : heads + kv_heads], cos, sin)
    k, v = k.transpose(1, 0, 2), split[:, heads + kv_heads :].transpose(1, 0, 2)
    if scales:
        key[0, :, rows], scales[0][0, :, rows] = quantized_rows(k)
        value[0, :, rows], scales[1][0, :, rows] = quantized_rows(v)
        keys, values = scaled_rows(key, scales[0])[0], scaled_rows(value, scales[1])[0]
    else:
        key[0, :, rows], value[0, :, rows] = k, v
        keys, values = key[0].astype(np.float64), value[0].astype(np.float64)
    total = past + count
    codes[0, :, rows], ranges[0, :, rows] = key_codes(keys[:, rows])
    old = -(-total // PAGE) - 1

    attended = np.ones((kv_heads, total), bool)
    first = max(0, total - window) if window else 0
    pages = -(-kv_pages * (old - first // PAGE) // max(old, 1)) if kv_pages < old else old
    if count == 1 and pages < old - first // PAGE:
        queries = q[0].reshape(kv_heads, heads // kv_heads, size)
        rows = slice(first, old * PAGE)
        if by_keys:
            scores = [_shares(capped(scale * queries[h] @ keys[h, rows].T, cap)) for h in range(kv_heads)]
        else:
            scores = [
                token_scores(queries[h], codes[0, h, rows], ranges[0, h, rows], scale, cap) for h in range(kv_heads)
            ]
        count_of_rows = 1 if dealt is None else max(-(-old * PAGE // dealt[0]), dealt[1])
        scored = np.full((kv_heads, old * PAGE), -1.0)
        scored[:, rows] = scores
        attended[:, : old * PAGE] = best_tokens(scored, kv_heads * pages * PAGE, count_of_rows) & (scored >= 0)
        attended[:, first:sinks] = True
    y = np.zeros((count, heads, size))
    for head in range(kv_heads):
        group = range(head * heads // kv_heads, (head + 1) * heads // kv_heads)
        for g in group:
            for s in range(count):
                seen = np.flatnonzero(attended[head, : past + s + 1])
                seen = seen[seen > past + s - window] if window else seen
                logits = capped(scale * (keys[head, seen] @ q[s, g]), cap)
                weights = np.exp(logits - logits.max())
                y[s, g] = weights / weights.sum() @ values[head, seen]
    return y.reshape(1, count, -1), key, value, *in_pages(codes, ranges), *scales
