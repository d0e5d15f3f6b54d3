"""The KV cache of the torch reference model: many rows, each with its own length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sol_rt.export.sources.decoder import Decoder


@dataclass(frozen=True)
class Slots:
    """Places of S new tokens of every row. All layers share them, so a pass computes them once.

    Attributes:
        count: S.
        longest: T, tokens of the longest row, with its new ones.
        row: int64 [B, 1].
        positions: int64 [B, S], position of each new token.
    """

    count: int
    longest: int
    row: Tensor
    positions: Tensor


@dataclass(frozen=True)
class Reading:
    """Settings of a layer's attention.

    Attributes:
        scale: factor on the products of q and k.
        read: which tokens each query head of a single new token reads, bool [B, H, T]; None: all.
        window: how many tokens a token attends to, itself included; 0: all.
        cap: the soft cap on the products, after their factor; 0: none.
    """

    scale: float
    read: Tensor | None = None
    window: int = 0
    cap: float = 0.0


class Cache(Protocol):
    """Interface of a cache of B rows. H: query heads, Hk: KV heads, G: H / Hk, D: head size."""

    @property
    def lengths(self) -> Tensor:
        """int64 [B], tokens in each row."""

    def open(self, count: int) -> Slots:
        """Reserves room for `count` tokens per row and says where they go."""

    def append(self, slots: Slots, layer: int, keys: Tensor, values: Tensor) -> None:
        """Writes a layer's new tokens: keys and values [B, S, Hk, D] of any float dtype, and codes of the keys."""

    def filtered(self, slots: Slots, layer: int, inputs: Tensor, before: int) -> Tensor:
        """Writes what the filters of a layer with a short convolution get for the new tokens.

        Args:
            inputs: float32 [B, S, hidden].
            before: n, how many tokens before the new ones the filters read as well.

        Returns:
            The inputs of these tokens and of the new ones, [B, n + S, hidden]; before a text they are 0.
        """

    def close(self, slots: Slots) -> None:
        """Counts the appended tokens into every row's length, once all layers have them."""

    def token_scores(self, layer: int, query: Tensor, slots: Slots) -> Tensor:
        """Scores [B, Hk, G, T] of tokens for one step's query heads [B, Hk, G, D]. Tokens to come have any score."""

    def attend(self, layer: int, q: Tensor, slots: Slots, reading: Reading) -> Tensor:
        """Attention [B, H, S, D] of query heads q [B, H, S, D] over the tokens up to their own."""


class KVCache:
    """Keys, values and codes of the keys of every layer for B rows.

    Attributes:
        keys, values: [L, B, Hk, C, D] in the cache's dtype. Content beyond a row's length is finite and never read.
        key_codes: uint8 [L, B, Hk, C, D], 0 to 15, by which old tokens are chosen; unpacked, unlike the runtime's.
        key_ranges: float16 [L, B, Hk, C, 2], minimum and step of a token's key: key = minimum + step * code.
        key_scales, value_scales: float16 [L, B, Hk, C], factors of a token's int8 codes; empty (C = 0) where the cache
            has another dtype.
        lengths: int64 [B], tokens in each row, on the CPU, which decides by them.
        inputs: by layer with a short convolution, what its filters get, float32 [B, C, hidden]. The runtime holds those
            of the last tokens alone; with all of them, a rewind is a shorter length here as well.
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        key_codes: Tensor,
        key_ranges: Tensor,
        key_scales: Tensor,
        value_scales: Tensor,
        lengths: Tensor,
        inputs: dict[int, Tensor] | None = None,
    ) -> None:
        self.keys, self.values, self.lengths = keys, values, lengths
        self.key_codes, self.key_ranges = key_codes, key_ranges
        self.key_scales, self.value_scales = key_scales, value_scales
        self.inputs = inputs or {}

    @classmethod
    def empty(cls, decoder: Decoder, rows: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> KVCache:
        """A cache without tokens and without capacity. `open` grows it."""
        shape = (decoder.num_layers, rows, decoder.num_kv_heads, 0, decoder.head_dim)
        nothing = torch.zeros(shape, dtype=dtype, device=device)
        no_range = torch.zeros((*shape[:4], 2), dtype=torch.float16, device=device)
        no_scale = torch.zeros(shape[:4], dtype=torch.float16, device=device)
        lengths = torch.zeros(rows, dtype=torch.int64)
        inputs = {
            layer: torch.zeros((rows, 0, decoder.hidden_size), device=device)
            for layer in range(decoder.num_layers)
            if decoder.kind(layer) == "conv"
        }
        return cls(nothing, nothing, nothing.to(torch.uint8), no_range, no_scale, no_scale, lengths, inputs)

    @property
    def capacity(self) -> int:
        """Tokens that fit into a row before the cache has to grow."""
        return self.keys.shape[3]

    def reserve(self, tokens: int, step: int = 256) -> None:
        """Grows the capacity to `tokens` tokens per row, rounded up to a multiple of `step`. Content stays."""
        if tokens <= self.capacity:
            return
        extra = -(-tokens // step) * step - self.capacity
        self.keys, self.values, self.key_codes, self.key_ranges = (
            _padded(tensor, extra) for tensor in (self.keys, self.values, self.key_codes, self.key_ranges)
        )
        self.inputs = {layer: _padded(tensor, extra, axis=1) for layer, tensor in self.inputs.items()}
        if self.keys.dtype == torch.int8:
            self.key_scales, self.value_scales = (
                _padded(tensor, extra) for tensor in (self.key_scales, self.value_scales)
            )

    def open(self, count: int) -> Slots:
        """Reserves room for `count` tokens per row and says where they go."""
        longest = int(self.lengths.max()) + count
        self.reserve(longest)
        device = self.keys.device
        return Slots(
            count=count,
            longest=longest,
            row=torch.arange(len(self.lengths), device=device).unsqueeze(1),
            positions=(self.lengths.unsqueeze(1) + torch.arange(count)).to(device),
        )

    def append(self, slots: Slots, layer: int, keys: Tensor, values: Tensor) -> None:
        """Writes a layer's new tokens and the codes of their keys.

        Args:
            keys, values: [B, S, Hk, D] of any float dtype; rounded to the cache's.
        """
        at = slots.row, slice(None), slots.positions
        if self.keys.dtype == torch.int8:
            keys, scales = quantize(keys)
            values, self.value_scales[layer][at] = quantize(values)
            self.key_scales[layer][at] = scales
            held = keys * scales.float().unsqueeze(-1)
        else:
            held = keys = keys.to(self.keys.dtype)
        self.keys[layer][at] = keys
        self.values[layer][at] = values.to(self.values.dtype)
        self.key_codes[layer][at], self.key_ranges[layer][at] = four_bit_codes(held)

    def filtered(self, slots: Slots, layer: int, inputs: Tensor, before: int) -> Tensor:
        """Does what `Cache.filtered` says."""
        self.inputs[layer][slots.row, slots.positions] = inputs
        at = positions_before(slots, before)
        old = self.inputs[layer][slots.row, at.clamp(min=0)]
        return torch.cat([old.where((at >= 0).unsqueeze(-1), 0.0), inputs], dim=1)

    def held(self, layer: int, length: int) -> tuple[Tensor, Tensor]:
        """A layer's first `length` keys and values as attention reads them, float32 [B, Hk, length, D]."""
        keys, values = (part[layer, :, :, :length].float() for part in (self.keys, self.values))
        if self.keys.dtype == torch.int8:
            keys = keys * self.key_scales[layer, :, :, :length, None].float()
            values = values * self.value_scales[layer, :, :, :length, None].float()
        return keys, values

    def token_scores(self, layer: int, query: Tensor, slots: Slots) -> Tensor:
        """Scores [B, Hk, G, T] of tokens for one step's query heads [B, Hk, G, D]. Tokens to come have any score."""
        codes, ranges = (part[layer, :, :, : slots.longest].float() for part in (self.key_codes, self.key_ranges))
        return token_scores(query, codes, ranges)

    def attend(self, layer: int, q: Tensor, slots: Slots, reading: Reading) -> Tensor:
        """Attention [B, H, S, D] of query heads q [B, H, S, D] over the tokens up to their own."""
        keys, values = self.held(layer, slots.longest)
        at = torch.arange(slots.longest, device=q.device)
        query_at = slots.positions.unsqueeze(-1)  # [B, S, 1]
        mask = at <= query_at
        if reading.window:
            mask = mask & (at > query_at - reading.window)
        mask = mask.unsqueeze(1)  # [B, 1, S, T]
        if reading.read is not None:
            mask = mask & reading.read.unsqueeze(2)
        group = q.shape[1] // keys.shape[1]
        if reading.cap:
            keys, values = (part.repeat_interleave(group, dim=1) for part in (keys, values))
            logits = soft_cap(reading.scale * q @ keys.mT, reading.cap).masked_fill(~mask, -torch.inf)
            return logits.softmax(-1) @ values
        return F.scaled_dot_product_attention(
            q, keys, values, attn_mask=mask, scale=reading.scale, enable_gqa=group != 1
        )

    def close(self, slots: Slots) -> None:
        """Counts the appended tokens into every row's length, once all layers have them."""
        self.lengths = self.lengths + slots.count

    def truncate(self, lengths: int | Tensor) -> None:
        """Rewinds rows to `lengths` tokens, one number or int64 [B]. Raises ValueError where a row is shorter."""
        wanted = torch.as_tensor(lengths, dtype=torch.int64).expand_as(self.lengths)
        if bool((wanted > self.lengths).any()) or bool((wanted < 0).any()):
            raise ValueError(f"truncate: got lengths {wanted.tolist()}, the rows hold {self.lengths.tolist()}")
        self.lengths = wanted.clone()

    def select(self, rows: Tensor) -> KVCache:
        """A new cache of the given rows, int64 [n] on the CPU, repeats allowed."""
        return KVCache(
            self.keys[:, rows],
            self.values[:, rows],
            self.key_codes[:, rows],
            self.key_ranges[:, rows],
            self.key_scales[:, rows],
            self.value_scales[:, rows],
            self.lengths[rows],
            {layer: tensor[rows] for layer, tensor in self.inputs.items()},
        )


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows x [..., D] as int8 codes [..., D] and float16 scales [...]: scale = max |x| / 127, code = round(x / scale).

    Codes are 0 where the scale is 0. They are cut to 127 where float16 rounds a small scale down.
    """
    x = x.float()
    scales = (x.abs().amax(-1) / 127).half()
    steps = scales.float().unsqueeze(-1)
    codes = torch.where(steps > 0, torch.round(x / steps), 0.0).clamp(-127, 127)
    return codes.to(torch.int8), scales


def four_bit_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows x [..., D] as codes uint8 [..., D], 0 to 15, and float16 ranges [..., 2], minimum and step of the codes.

    step = (maximum - minimum) / 15, code = round((x - minimum) / step). Codes are 0 where the step is 0. They are cut
    to 0 … 15 where float16 rounds minimum or step.
    """
    x = x.float()
    low, high = x.aminmax(dim=-1)
    ranges = torch.stack([low, (high - low) / 15], dim=-1).half()
    least, step = ranges.float().unsqueeze(-2).unbind(-1)
    codes = torch.where(step > 0, torch.round((x - least) / step), 0.0).clamp(0, 15)
    return codes.to(torch.uint8), ranges


def token_scores(query: Tensor, codes: Tensor, ranges: Tensor) -> Tensor:
    """Scores [..., G, T] of tokens for queries [..., G, D], from codes [..., T, D] and ranges [..., T, 2] of keys.

    score = query · (minimum + step * code), with the query rounded to multiples of max |query| / 127. All are float32.
    """
    step = query.abs().amax(-1, keepdim=True) / 127
    whole = torch.where(step > 0, torch.round(query / step), 0.0)
    least, key_step = ranges.unsqueeze(-3).unbind(-1)
    return step * (key_step * (whole @ codes.transpose(-1, -2)) + least * whole.sum(-1, keepdim=True))


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap); x itself where the cap is 0."""
    return cap * torch.tanh(x / cap) if cap else x


def positions_before(slots: Slots, count: int) -> Tensor:
    """The positions of the `count` tokens before the new ones, int64 [B, count]; negative before a row's text."""
    return slots.positions[:, :1] + torch.arange(-count, 0, device=slots.positions.device)


def _padded(tensor: Tensor, extra: int, axis: int = 3) -> Tensor:
    """The tensor with `extra` zeros more along an axis."""
    shape = list(tensor.shape)
    shape[axis] = extra
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=axis)
