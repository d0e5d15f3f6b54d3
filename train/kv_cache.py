"""The KV cache of the torch twin: many rows, each with its own length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sol_rt.export.architecture import Decoder


@dataclass(frozen=True)
class Slots:
    """Where S new tokens of every row go; the same for all layers, so it is worked out once a pass.

    Attributes:
        count: S.
        longest: T, tokens of the longest row with its new ones.
        row: int64 [B, 1].
        positions: int64 [B, S], position of each new token.
        pages: int64 [B, n], the pages that may get one.
        page_positions: int64 [B, n, page_size], positions of these pages' tokens.
        page_valid: bool [B, n, page_size, 1, 1], whether a token is there after the append.
    """

    count: int
    longest: int
    row: Tensor
    positions: Tensor
    pages: Tensor
    page_positions: Tensor
    page_valid: Tensor


class KVCache:
    """Keys, values and page summaries of every layer for B rows.

    Attributes:
        keys, values: [L, B, Hk, C, D] in the cache's dtype. Content beyond a row's length is finite and never read.
        page_min, page_max: [L, B, Hk, C / page_size, D], per page the minimum and maximum of its keys; float16 where
            keys are int8, else of their dtype.
        key_scales, value_scales: float16 [L, B, Hk, C], what a token's int8 codes are multiplied by; of no tokens where
            the cache is of another dtype.
        lengths: int64 [B], tokens in each row.
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        page_min: Tensor,
        page_max: Tensor,
        key_scales: Tensor,
        value_scales: Tensor,
        lengths: Tensor,
        page_size: int,
    ) -> None:
        self.keys, self.values, self.page_min, self.page_max, self.lengths = keys, values, page_min, page_max, lengths
        self.key_scales, self.value_scales = key_scales, value_scales
        self.page_size = page_size

    @classmethod
    def empty(
        cls, decoder: Decoder, rows: int, page_size: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> KVCache:
        """A cache without tokens and without capacity; `open` gives it some."""
        shape = (decoder.num_layers, rows, decoder.num_kv_heads, 0, decoder.head_dim)
        nothing = torch.zeros(shape, dtype=dtype, device=device)
        no_page = nothing.half() if dtype == torch.int8 else nothing
        no_scale = torch.zeros(shape[:4], dtype=torch.float16, device=device)
        lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        return cls(nothing, nothing, no_page, no_page, no_scale, no_scale, lengths, page_size)

    @property
    def capacity(self) -> int:
        """Tokens that fit into a row before the cache has to grow."""
        return self.keys.shape[3]

    def reserve(self, tokens: int, step: int = 256) -> None:
        """Makes room for `tokens` tokens a row, in steps of `step` (a multiple of the page size); content stays."""
        if tokens <= self.capacity:
            return
        extra = -(-tokens // step) * step - self.capacity
        self.keys, self.values = (_padded(tensor, extra) for tensor in (self.keys, self.values))
        self.page_min, self.page_max = (
            _padded(tensor, extra // self.page_size) for tensor in (self.page_min, self.page_max)
        )
        if self.keys.dtype == torch.int8:
            self.key_scales, self.value_scales = (
                _padded(tensor, extra) for tensor in (self.key_scales, self.value_scales)
            )

    def open(self, count: int) -> Slots:
        """Reserves `count` tokens a row and says where they go."""
        longest = int(self.lengths.max()) + count
        self.reserve(longest)
        device, size = self.keys.device, self.page_size
        touched = (count + 2 * size - 2) // size  # pages that `count` tokens can reach from any place in a page
        last = self.capacity // size - 1
        pages = (self.lengths.unsqueeze(1) // size + torch.arange(touched, device=device)).clamp(max=last)
        page_positions = pages.unsqueeze(2) * size + torch.arange(size, device=device)
        return Slots(
            count=count,
            longest=longest,
            row=torch.arange(len(self.lengths), device=device).unsqueeze(1),
            positions=self.lengths.unsqueeze(1) + torch.arange(count, device=device),
            pages=pages,
            page_positions=page_positions,
            page_valid=(page_positions < (self.lengths + count)[:, None, None])[..., None, None],
        )

    def append(self, slots: Slots, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes a layer's new tokens and recomputes the summaries of their pages.

        Args:
            keys, values: [B, S, Hk, D] of any float dtype; rounded to the cache's.

        Returns:
            The layer's keys and values [B, Hk, T, D] as attention reads them: in the cache's dtype, of int8 float32.
        """
        if self.keys.dtype == torch.int8:
            keys, self.key_scales[layer][slots.row, :, slots.positions] = quantize(keys)
            values, self.value_scales[layer][slots.row, :, slots.positions] = quantize(values)
        self.keys[layer][slots.row, :, slots.positions] = keys.to(self.keys.dtype)
        self.values[layer][slots.row, :, slots.positions] = values.to(self.values.dtype)
        all_keys, all_values = self.keys[layer, :, :, : slots.longest], self.values[layer, :, :, : slots.longest]
        in_pages = self.keys[layer][slots.row.unsqueeze(2), :, slots.page_positions]  # [B, n, size, Hk, D]
        if self.keys.dtype == torch.int8:
            scales = self.key_scales[layer]
            all_keys = all_keys * scales[:, :, : slots.longest, None].float()
            all_values = all_values * self.value_scales[layer, :, :, : slots.longest, None].float()
            in_pages = in_pages * scales[slots.row.unsqueeze(2), :, slots.page_positions].unsqueeze(-1).float()
            in_pages = in_pages.half()
        infinite = torch.tensor(float("inf"), dtype=in_pages.dtype, device=in_pages.device)
        # A page beyond the newest gets infinities: it is never scored, and is written again when a token reaches it.
        self.page_min[layer][slots.row, :, slots.pages] = in_pages.where(slots.page_valid, infinite).amin(2)
        self.page_max[layer][slots.row, :, slots.pages] = in_pages.where(slots.page_valid, -infinite).amax(2)
        return all_keys, all_values

    def close(self, slots: Slots) -> None:
        """Counts the appended tokens into every row's length, once all layers have them."""
        self.lengths = self.lengths + slots.count

    def truncate(self, lengths: int | Tensor) -> None:
        """Rewinds rows to `lengths` tokens (one number for all, or int64 [B]); ValueError where a row is shorter."""
        wanted = torch.as_tensor(lengths, dtype=torch.int64, device=self.lengths.device).expand_as(self.lengths)
        if bool((wanted > self.lengths).any()) or bool((wanted < 0).any()):
            raise ValueError(f"truncate: got lengths {wanted.tolist()}, the rows hold {self.lengths.tolist()}")
        self.lengths = wanted.clone()

    def select(self, rows: Tensor) -> KVCache:
        """A new cache of the given rows (int64 [n], repeats allowed), for example one row forked into K schedules."""
        return KVCache(
            self.keys[:, rows],
            self.values[:, rows],
            self.page_min[:, rows],
            self.page_max[:, rows],
            self.key_scales[:, rows],
            self.value_scales[:, rows],
            self.lengths[rows],
            self.page_size,
        )


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows x [..., D] as int8 codes [..., D] and float16 scales [...]: max |x| / 127, and whole steps of it.

    Codes are 0 where the scale is, and at most 127 where float16 rounds a small scale down.
    """
    x = x.float()
    scales = (x.abs().amax(-1) / 127).half()
    steps = scales.float().unsqueeze(-1)
    codes = torch.where(steps > 0, torch.round(x / steps), 0.0).clamp(-127, 127)
    return codes.to(torch.int8), scales


def _padded(tensor: Tensor, extra: int) -> Tensor:
    shape = list(tensor.shape)
    shape[3] = extra
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=3)
