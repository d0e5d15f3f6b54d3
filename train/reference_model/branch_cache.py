"""A cache for many continuations of one text: rows share its keys and values, and each has its own new tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sol_rt.export.sources.decoder import Decoder
from sol_rt.train.reference_model.kv_cache import KVCache, Reading, Slots, positions_before, soft_cap, token_scores


@dataclass(frozen=True)
class Prefix:
    """A text of N tokens as attention reads it. All steps and rows share it. All tensors are float32.

    Attributes:
        keys, values: [L, Hk, N, D].
        codes: [L, Hk, N, D], 4-bit codes of the keys.
        ranges: [L, Hk, N, 2], minimum and step of each key's codes.
        inputs: by layer with a short convolution, what its filters get, [N, hidden].
    """

    keys: Tensor
    values: Tensor
    codes: Tensor
    ranges: Tensor
    inputs: Mapping[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, cache: KVCache) -> Prefix:
        """Makes the prefix of a cache that has one row."""
        length = int(cache.lengths[0])
        held = [cache.held(layer, length) for layer in range(len(cache.keys))]
        keys, values = (torch.stack([part[0] for part in parts]) for parts in zip(*held, strict=True))
        codes, ranges = (part[:, 0, :, :length].float() for part in (cache.key_codes, cache.key_ranges))
        inputs = {layer: tensor[0, :length] for layer, tensor in cache.inputs.items()}
        return cls(keys, values, codes, ranges, inputs)


class BranchCache:
    """A cache of B rows for decode steps. Row b has the first `starts[b]` tokens of a prefix, then tokens of its own.

    Args:
        prefix: the shared text.
        starts: int64 [B], on the CPU.
        decoder, dtype: as for KVCache.
        capacity: own tokens per row to make room for.
    """

    def __init__(
        self, prefix: Prefix, starts: Tensor, decoder: Decoder, dtype: torch.dtype, capacity: int = 16
    ) -> None:
        self._prefix, self._starts = prefix, starts
        self._places = starts.unsqueeze(1).to(prefix.keys.device)
        self._own = KVCache.empty(decoder, len(starts), dtype, prefix.keys.device)
        self._own.reserve(capacity, step=1)
        self._width = int(starts.max())
        self._ragged = int(starts.min()) < self._width

    @property
    def lengths(self) -> Tensor:
        """int64 [B], tokens in each row."""
        return self._starts + self._own.lengths

    def open(self, count: int) -> Slots:
        """Does what `Cache.open` says. Raises ValueError unless `count` is 1."""
        if count != 1:
            raise ValueError(f"branch cache: got {count} tokens a row, expected 1, as rows branch step by step")
        own = self._own.open(count)
        return replace(own, longest=own.longest + self._width, positions=own.positions + self._places)

    def append(self, slots: Slots, layer: int, keys: Tensor, values: Tensor) -> None:
        self._own.append(self._own_slots(slots), layer, keys, values)

    def filtered(self, slots: Slots, layer: int, inputs: Tensor, before: int) -> Tensor:
        """Does what `Cache.filtered` says."""
        mine = self._own.filtered(self._own_slots(slots), layer, inputs, before)
        at = positions_before(slots, before)
        shared = self._prefix.inputs[layer]
        old = shared[at.clamp(0, len(shared) - 1)].where((at >= 0).unsqueeze(-1), 0.0)
        own = (at >= self._places).unsqueeze(-1)
        return torch.cat([mine[:, :before].where(own, old), mine[:, before:]], dim=1)

    def _own_slots(self, slots: Slots) -> Slots:
        """The places of new tokens among the rows' own."""
        return replace(slots, positions=slots.positions - self._places)

    def close(self, slots: Slots) -> None:
        self._own.close(slots)

    def follow(self, row: int) -> None:
        """Gives every row the own tokens of row `row`. All rows have to start alike."""
        assert not self._ragged
        self._own = self._own.select(torch.full((len(self._starts),), row))

    def token_scores(self, layer: int, query: Tensor, slots: Slots) -> Tensor:
        """Does what `Cache.token_scores` says."""
        count = slots.longest - self._width
        codes, ranges = self._prefix.codes[layer, :, : self._width], self._prefix.ranges[layer, :, : self._width]
        mine = self._own.token_scores(layer, query, replace(slots, longest=count))
        old = token_scores(_gathered(query), codes, ranges)
        return self._placed(old, mine, slots).transpose(0, 1)

    def attend(self, layer: int, q: Tensor, slots: Slots, reading: Reading) -> Tensor:
        """Does what `Cache.attend` says."""
        prefix_keys, prefix_values = (
            part[layer, :, : self._width] for part in (self._prefix.keys, self._prefix.values)
        )
        keys, values = self._own.held(layer, slots.longest - self._width)  # [B, Hk, t, D]
        query = torch.unflatten(q[:, :, 0] * reading.scale, 1, (len(prefix_keys), -1))  # [B, Hk, G, D]
        logits = self._placed(_gathered(query) @ prefix_keys.mT, query @ keys.mT, slots)  # [Hk, B, G, T]
        logits = soft_cap(logits, reading.cap)
        if self._ragged or reading.window:
            at = torch.arange(slots.longest, device=q.device)
            unseen = at > slots.positions
            if reading.window:
                unseen = unseen | (at <= slots.positions - reading.window)
            logits = logits.masked_fill(unseen.unsqueeze(1), -torch.inf)
        if reading.read is not None:
            grouped = torch.unflatten(reading.read, 1, (len(prefix_keys), -1)).transpose(0, 1)
            logits = logits.masked_fill(~grouped, -torch.inf)
        weights = logits.softmax(-1)
        at = self._own_positions(slots, weights)
        own_weights = weights.gather(-1, at)
        if self._ragged:
            weights.scatter_(-1, at, 0.0)
        rows, group = weights.shape[1:3]
        y = torch.unflatten(weights.flatten(1, 2)[..., : self._width] @ prefix_values, 1, (rows, group))
        return (y.transpose(0, 1) + own_weights.transpose(0, 1) @ values).flatten(1, 2).unsqueeze(2)

    def _placed(self, old: Tensor, mine: Tensor, slots: Slots) -> Tensor:
        """Puts one number per token at the tokens' positions: [Hk, B, G, T].

        Args:
            old: the prefix's numbers, [Hk, B * G, width].
            mine: the rows' own, [B, Hk, G, t].

        Positions that a row has not reached hold the prefix's number there, or 0.
        """
        rows = len(self._starts)
        shape = (len(old), rows, old.shape[1] // rows)
        out = old.new_zeros(*shape, slots.longest)
        out[..., : self._width] = torch.unflatten(old, 1, shape[1:])
        return out.scatter_(-1, self._own_positions(slots, out), mine.transpose(0, 1))

    def _own_positions(self, slots: Slots, like: Tensor) -> Tensor:
        """Positions of the rows' own tokens, int64 [Hk, B, G, t], for a tensor `like` [Hk, B, G, T]."""
        own = torch.arange(slots.longest - self._width, device=like.device)
        positions = (self._places + own).unsqueeze(1)  # [B, 1, t]
        return positions.expand(*like.shape[:-1], -1)


def _gathered(query: Tensor) -> Tensor:
    """Puts the query heads of all rows that read one KV head side by side: [B, Hk, G, D] -> [Hk, B * G, D]."""
    return query.transpose(0, 1).flatten(1, 2)
