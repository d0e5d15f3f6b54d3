"""The torch twin: runs a decoder under any action with the runtime's own arithmetic (docs/bundle.md, sections 2 and 3).

Nested weights dequantized in float32, activations rounded in front of every nested matmul, exact top-k pruning,
float16 or int8 keys and values, pages chosen by 4-bit codes of their keys. Runtime and twin differ only in the order of
float32 additions. Inference only: the decoder is frozen, no gradient flows through it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sol_rt.actions import Action
from sol_rt.config import CONFIG_NAME, PAGE_SIZE, SolConfig
from sol_rt.export.architecture import BLOCK
from sol_rt.train.kv_cache import KVCache, Slots
from sol_rt.train.weights import ModelWeights, read_bundle

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}
_LARGEST_CODE = {4: 127, 6: 127, 8: 32258}
"""Largest activation code, by level: what an int8 and what 254 c1 + c2 of two of them holds."""


@dataclass(frozen=True)
class Arithmetic:
    """What the twin rounds. The default is what the runtime does.

    Attributes:
        rounded_activations: round the input of every nested matmul as its level does, by blocks of 32 channels.
        kv_dtype: type of keys and values.
    """

    rounded_activations: bool = True
    kv_dtype: torch.dtype = torch.float16


UNROUNDED = Arithmetic(rounded_activations=False, kv_dtype=torch.float32)


@dataclass(frozen=True)
class _Group:
    """Rows of a batch that run the same variant."""

    rows: Tensor | slice
    bits: int
    head_bits: int
    keep_in: tuple[int, ...]
    keep_mid: tuple[int, ...]
    keep_qkv: tuple[int, ...]
    keep_o: tuple[int, ...]


class Twin(nn.Module):
    """A decoder that runs every row under the action it is given.

    Args:
        weights: from `sol_rt.train.weights`.
        arithmetic: what is rounded.
        page_size, sinks: tokens a KV page, and tokens at the start that attention always reads: `kv` of the bundle.
        dense_layers: layers whose attention always reads all pages.
    """

    def __init__(
        self,
        weights: ModelWeights,
        arithmetic: Arithmetic | None = None,
        *,
        page_size: int = PAGE_SIZE,
        sinks: int = 4,
        dense_layers: Collection[int] = (),
    ) -> None:
        super().__init__()
        self.weights = weights
        self.decoder = weights.decoder
        self.arithmetic = arithmetic or Arithmetic()
        self.page_size, self.sinks, self.dense_layers = page_size, sinks, frozenset(dense_layers)

    @classmethod
    def from_bundle(cls, path: Path | str) -> Twin:
        """The twin of a bundle folder, its cache and attention as the bundle has them. Raises BundleError."""
        kv = SolConfig.from_json(Path(path) / CONFIG_NAME).kv
        arithmetic = Arithmetic(kv_dtype=getattr(torch, kv.dtype))
        levels = {"page_size": kv.page_size, "sinks": kv.sinks}
        return cls(read_bundle(path), arithmetic, **levels, dense_layers=kv.dense_layers)

    def new_cache(self, rows: int) -> KVCache:
        """An empty cache for `rows` sequences."""
        device = self.weights.vector("rope.cos").device
        return KVCache.empty(self.decoder, rows, self.arithmetic.kv_dtype, device)

    @torch.no_grad()
    def forward(
        self, tokens: Tensor, action: Action, past: KVCache, num_logits: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Appends S tokens to every row under one action.

        Args:
            tokens: int64 [B, S]. Attention is dense where S > 1, as in the runtime.
            action: the action of all rows.
            past: cache of B rows, appended to in place.
            num_logits: positions from the end that logits are wanted for; all where None.

        Returns:
            Logits float32 [B, n, vocab] and final norm output float32 [B, n, hidden].
        """
        pages = None if tokens.shape[1] > 1 else self._pages([action] * len(tokens), past)
        return self._run(tokens, [self._group(slice(None), action)], pages, past, num_logits)

    @torch.no_grad()
    def step(self, tokens: Tensor, actions: Sequence[Action], past: KVCache) -> tuple[Tensor, Tensor]:
        """One decode step of every row, each under its own action; rows of one variant run together.

        Args:
            tokens: int64 [B].
            actions: B actions.
            past: cache of B rows, appended to in place.

        Returns:
            Logits float32 [B, vocab] and final norm output float32 [B, hidden].
        """
        if len(actions) != len(tokens):
            raise ValueError(f"step: got {len(actions)} actions for {len(tokens)} rows")
        rows: dict[str, list[int]] = {}
        for row, action in enumerate(actions):
            rows.setdefault(action.variant, []).append(row)
        groups = [
            self._group(torch.tensor(members, device=tokens.device), actions[members[0]]) for members in rows.values()
        ]
        if len(groups) == 1:
            groups = [self._group(slice(None), actions[0])]
        logits, hidden = self._run(tokens.unsqueeze(1), groups, self._pages(actions, past), past, None)
        return logits[:, 0], hidden[:, 0]

    def _group(self, rows: Tensor | slice, action: Action) -> _Group:
        return _Group(rows, action.bits, self.weights.head_bits(action), *self.weights.keep_counts(action))

    def _pages(self, actions: Sequence[Action], past: KVCache) -> Tensor | None:
        """Old pages that each row reads, int64 [B]; None where every row reads all."""
        if all(action.keep == 100 for action in actions):
            return None
        lengths = past.lengths.tolist()
        counts = [action.pages(length, self.page_size) for action, length in zip(actions, lengths, strict=True)]
        return torch.tensor(counts, device=past.lengths.device)

    def _run(
        self, tokens: Tensor, groups: list[_Group], pages: Tensor | None, past: KVCache, num_logits: int | None
    ) -> tuple[Tensor, Tensor]:
        decoder, slots = self.decoder, past.open(tokens.shape[1])
        if slots.longest > self.weights.vector("rope.cos").shape[0]:
            raise ValueError(f"{slots.longest} tokens exceed the model's context of {decoder.max_context}")
        x = self.weights.matrix("embed").rows(tokens) * decoder.embedding_scale
        for layer in range(decoder.num_layers):
            name = f"layers.{layer}"
            normed = self._norm(x, f"{name}.attn_norm")
            attended = self._attention(normed, layer, groups, pages, past, slots)
            if decoder.parallel_residual:
                mlp_in = normed if decoder.shared_norm else self._norm(x, f"{name}.mlp_norm")
                x = x + attended + self._mlp(mlp_in, layer, groups)
            else:
                x = x + attended
                x = x + self._mlp(self._norm(x, f"{name}.mlp_norm"), layer, groups)
        past.close(slots)
        hidden = self._norm(x if num_logits is None else x[:, -num_logits:], "final_norm")
        return self._head(hidden, groups), hidden

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights.vector(f"{name}.weight"), self.weights.vector_or_none(f"{name}.bias")
        if self.decoder.norm == "layer":
            return F.layer_norm(x, x.shape[-1:], weight, bias, self.decoder.norm_eps)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.decoder.norm_eps) * weight

    def _head(self, x: Tensor, groups: list[_Group]) -> Tensor:
        name = "embed" if self.decoder.tied else "head"
        return _by_group(groups, x, lambda part, group: self._linear(part, name, group.head_bits, "head.bias"))

    def _projected(
        self, x: Tensor, layer: int, matrix: str, groups: list[_Group], keep: Callable[[_Group], tuple[int, ...]]
    ) -> Tensor:
        """The kept channels of x [B, S, K] times a matrix [N, K] at each group's level, plus its bias: [B, S, N]."""

        def product(part: Tensor, group: _Group) -> Tensor:
            return self._linear(keep_largest(part, keep(group)[layer]), f"layers.{layer}.{matrix}", group.bits)

        return _by_group(groups, x, product)

    def _linear(self, x: Tensor, name: str, bits: int, bias: str | None = None) -> Tensor:
        if self.arithmetic.rounded_activations:
            x = round_activations(x, bits)
        return F.linear(x, self.weights.matrix(name).at(bits), self.weights.vector_or_none(bias or f"{name}.bias"))

    def _mlp(self, x: Tensor, layer: int, groups: list[_Group]) -> Tensor:
        return _by_group(groups, x, lambda part, group: self._pruned_mlp(part, layer, group))

    def _pruned_mlp(self, x: Tensor, layer: int, group: _Group) -> Tensor:
        name = f"layers.{layer}"
        up = self._linear(keep_largest(x, group.keep_in[layer]), f"{name}.up", group.bits)
        act = _ACTIVATIONS[self.decoder.activation]
        if self.decoder.gated:
            gate, up = up.chunk(2, dim=-1)
            middle = act(gate) * up
        else:
            middle = act(up)
        return self._linear(keep_largest(middle, group.keep_mid[layer]), f"{name}.down", group.bits)

    def _attention(
        self, x: Tensor, layer: int, groups: list[_Group], pages: Tensor | None, past: KVCache, slots: Slots
    ) -> Tensor:
        d = self.decoder
        qkv = self._projected(x, layer, "qkv", groups, lambda group: group.keep_qkv)
        heads = torch.unflatten(qkv, -1, (-1, d.head_dim))  # [B, S, H + 2 Hk, D]
        q, k, v = torch.split(heads, [d.num_heads, d.num_kv_heads, d.num_kv_heads], dim=2)
        cos, sin = (self.weights.vector(f"rope.{part}")[slots.positions].unsqueeze(2) for part in ("cos", "sin"))
        q = rotate(q, cos, sin).transpose(1, 2)  # [B, H, S, D]
        keys, values = past.append(slots, layer, rotate(k, cos, sin), v)
        keys, values = keys.float(), values.float()  # [B, Hk, T, D]
        at = torch.arange(slots.longest, device=x.device)
        mask = (at <= slots.positions.unsqueeze(-1)).unsqueeze(1)  # [B, 1, S, T]
        if pages is not None and layer not in self.dense_layers:
            mask = mask & self._read(q, past, layer, pages, slots).unsqueeze(2)
        y = F.scaled_dot_product_attention(
            q, keys, values, attn_mask=mask, scale=d.softmax_scale, enable_gqa=d.num_heads != d.num_kv_heads
        )
        return self._projected(y.transpose(1, 2).flatten(2), layer, "o", groups, lambda group: group.keep_o)

    def _read(self, q: Tensor, past: KVCache, layer: int, pages: Tensor, slots: Slots) -> Tensor:
        """The tokens that one step's query heads read: bool [B, H, T] for q [B, H, 1, D] and pages [B]."""
        d, size = self.decoder, self.page_size
        count = math.ceil(slots.longest / size)
        newest = slots.positions // size  # [B, 1], page P - 1 of each row
        query = torch.unflatten(q[:, :, 0], 1, (d.num_kv_heads, -1))  # [B, Hk, H / Hk, D]
        codes, ranges = (part[layer, :, :, : slots.longest].float() for part in (past.key_codes, past.key_ranges))
        score = token_scores(query, codes, ranges).amax(2)  # [B, Hk, T]
        score = torch.unflatten(F.pad(score, (0, count * size - slots.longest)), -1, (count, size)).amax(-1)
        page = torch.arange(count, device=q.device)
        old = (page < newest).unsqueeze(1)  # [B, 1, pages]
        score = score.masked_fill(~old, -math.inf)
        order = score.argsort(dim=-1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(-1, order, page.expand_as(order))
        kept = (rank < pages[:, None, None]) & old | (page == newest).unsqueeze(1)
        tokens = kept.repeat_interleave(size, dim=-1)[..., : slots.longest]
        tokens = tokens | (torch.arange(slots.longest, device=q.device) < self.sinks)
        return tokens.repeat_interleave(d.num_heads // d.num_kv_heads, dim=1)


def _by_group(groups: list[_Group], x: Tensor, function: Callable[[Tensor, _Group], Tensor]) -> Tensor:
    """Applies `function` to every group's rows of x [B, ...] and puts the results back in place."""
    if len(groups) == 1:
        return function(x, groups[0])
    parts = [function(x[group.rows], group) for group in groups]
    out = parts[0].new_empty(len(x), *parts[0].shape[1:])
    for group, part in zip(groups, parts, strict=True):
        out[group.rows] = part
    return out


def round_activations(x: Tensor, bits: int) -> Tensor:
    """x [..., K] float32 as its codes at a level stand for it: max |x| of a block of 32 channels gets the largest code.

    Codes are rounded half to even; the largest is 127 at levels 4 and 6, 32258 at level 8.
    """
    blocks = torch.unflatten(x, -1, (-1, BLOCK))
    step = blocks.abs().amax(-1, keepdim=True) / _LARGEST_CODE[bits]
    codes = torch.where(step > 0, torch.round(blocks / step), 0.0)
    return (codes * step).flatten(-2)


def token_scores(query: Tensor, codes: Tensor, ranges: Tensor) -> Tensor:
    """Scores [..., G, T] of tokens for queries [..., G, D], from codes [..., T, D] and ranges [..., T, 2] of keys.

    The query is rounded to whole steps of 1 / 127 of its largest number; all float32.
    """
    step = query.abs().amax(-1, keepdim=True) / 127
    whole = torch.where(step > 0, torch.round(query / step), 0.0)
    least, key_step = ranges.unsqueeze(-3).unbind(-1)
    return step * (key_step * (whole @ codes.transpose(-1, -2)) + least * whole.sum(-1, keepdim=True))


def keep_largest(x: Tensor, count: int) -> Tensor:
    """x [..., K] with all but the `count` channels of largest magnitude 0; of equal ones the lower index stays.

    A count of 0 keeps all, as in the graph.
    """
    if count == 0 or count >= x.shape[-1]:
        return x
    size = x.abs()
    threshold = size.topk(count, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above, tied = size > threshold, size == threshold
    free = count - above.sum(-1, keepdim=True)
    return x * (above | (tied & (tied.cumsum(-1) <= free)))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotary embedding of x [..., D] by tables [..., rotary_dim / 2]; channels beyond rotary_dim pass."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
