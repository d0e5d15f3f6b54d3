"""The torch reference model: runs a decoder under any action with the runtime's own arithmetic.

docs/reference/bundle-details.md, sections 2 and 3, has the arithmetic.

It dequantizes nested weights in float32, rounds activations before every nested product, and takes exactly the largest
channels. Keys and values are float16 or int8, and old tokens are chosen by 4-bit codes of their keys. So runtime and
reference model differ only in the order of float32 additions, unless products are in bfloat16, which GPUs run faster.
The decoder is frozen: no gradient flows through it.

Shapes: B rows, S tokens per row in a pass, T tokens of the longest row, H query heads, Hk KV heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import THREE, Precision, screen_matrix
from sol_rt.bundle.config import BLOCK, CONFIG_NAME, PAGE_SIZE
from sol_rt.bundle.config_reader import read_config
from sol_rt.export.sources.rope import table_names
from sol_rt.train.reference_model.kv_cache import Cache, KVCache, Reading, Slots, soft_cap
from sol_rt.train.reference_model.weights import ModelWeights, read_bundle

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}
_ACTIVE_UP, _ACTIVE_DOWN, _ACTIVE_QKV, _ACTIVE_O = range(4)
_LARGEST_CODE = {3: 127, 4: 127, 6: 127, 8: 32258}
"""Largest activation code by bits: of one int8, and of 254 * c1 + c2 where two int8 make a code."""
_NEVER = -1e30
"""Logit of a token that must not be chosen. It is finite, so that a row without old tokens gives no NaN."""
_LOWEST_SCORE = 2.0**-100
"""Smaller scores of tokens count as 0."""


@dataclass(frozen=True)
class Arithmetic:
    """Roundings of the reference model. The defaults are the runtime's.

    Attributes:
        rounded_activations: whether the input of every nested product is rounded, in blocks of 32 channels.
        kv_dtype: dtype of keys and values.
        products: dtype of weights and inputs in all products but the LM head's, whose logits stay float32.
    """

    rounded_activations: bool = True
    kv_dtype: torch.dtype = torch.float16
    products: torch.dtype = torch.float32


UNROUNDED = Arithmetic(rounded_activations=False, kv_dtype=torch.float32)
"""Rounds nothing: for checks of the architecture."""


class _Rows(Protocol):
    """Some rows of a batch that are treated alike."""

    @property
    def rows(self) -> Tensor | slice:
        """Indices of the rows in the batch, or a slice of them."""


@dataclass(frozen=True)
class _Precision:
    """Rows that read the same weights."""

    rows: Tensor | slice
    precision: Precision


@dataclass(frozen=True)
class _ActiveChannels:
    """Rows that have the same active channels: a variant's active_up, active_down, active_qkv and active_o.

    Each of the four holds a count per layer.
    """

    rows: Tensor | slice
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Batch:
    """Grouping of the rows of a pass.

    Attributes:
        precisions: the rows by precision, so that a matrix is read once per precision, whatever the channel densities.
        channels: the rows by active channels.
        pages: how many old KV pages each row reads, int64 [B]; None where every row reads all.
    """

    precisions: Sequence[_Precision]
    channels: Sequence[_ActiveChannels]
    pages: Tensor | None


class ReferenceModel(nn.Module):
    """A decoder that runs every row under an action of its own.

    Args:
        weights: from `sol_rt.train.reference_model.weights`.
        arithmetic: what is rounded.
        page_size: tokens in a KV page.
        sinks: tokens at the start that attention always reads.
        dense_layers: layers whose attention always reads all tokens.
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
    def from_bundle(cls, path: Path | str, products: torch.dtype = torch.float32) -> ReferenceModel:
        """The reference model of a bundle folder, with the bundle's cache and attention. Raises BundleError."""
        kv = read_config(Path(path) / CONFIG_NAME).kv
        arithmetic = Arithmetic(kv_dtype=getattr(torch, kv.dtype), products=products)
        levels = {"page_size": kv.page_size, "sinks": kv.sinks}
        return cls(read_bundle(path), arithmetic, **levels, dense_layers=kv.dense_layers)

    def new_cache(self, rows: int) -> KVCache:
        """An empty cache for `rows` sequences."""
        device = self.weights.vector("rope.cos").device
        return KVCache.empty(self.decoder, rows, self.arithmetic.kv_dtype, device)

    @torch.no_grad()
    def forward(
        self, tokens: Tensor, action: Action, past: Cache, num_logits: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Appends S tokens to every row under one action.

        Args:
            tokens: int64 [B, S]. Attention is dense where S > 1, as in the runtime.
            action: the action of all rows.
            past: cache of B rows, appended to in place.
            num_logits: for how many positions from the end to compute logits; None: all.

        Returns:
            Logits float32 [B, n, vocab] and final norm output float32 [B, n, hidden].
        """
        pages = None if tokens.shape[1] > 1 else self._pages([action] * len(tokens), past)
        return self._run(tokens, self._batch([action], pages), past, num_logits)

    @torch.no_grad()
    def step(self, tokens: Tensor, actions: Sequence[Action], past: Cache) -> tuple[Tensor, Tensor]:
        """Runs one decode step of every row, each under its own action. Rows of the same bits run together.

        Args:
            tokens: int64 [B].
            actions: B actions.
            past: cache of B rows, appended to in place.

        Returns:
            Logits float32 [B, vocab] and final norm output float32 [B, hidden].
        """
        if len(actions) != len(tokens):
            raise ValueError(f"step: got {len(actions)} actions for {len(tokens)} rows")
        batch = self._batch(actions, self._pages(actions, past))
        logits, hidden = self._run(tokens.unsqueeze(1), batch, past, None)
        return logits[:, 0], hidden[:, 0]

    @torch.no_grad()
    def logits(self, hidden: Tensor, action: Action) -> Tensor:
        """Applies the LM head alone: logits, float32 [..., vocab], of final norm outputs [..., hidden]."""
        return self._head(hidden, self._batch([action], None))

    def _batch(self, actions: Sequence[Action], pages: Tensor | None) -> Batch:
        """The batch of one action per row, or of a single action for all rows."""
        device, weights = self.weights.vector("rope.cos").device, self.weights
        precisions = _alike([weights.precision(action) for action in actions], device)
        channels = _alike([weights.active_counts(action) for action in actions], device)
        return Batch(
            [_Precision(rows, own) for own, rows in precisions],
            [_ActiveChannels(rows, counts) for counts, rows in channels],
            pages,
        )

    def _pages(self, actions: Sequence[Action], past: Cache) -> Tensor | None:
        """Number of old KV pages that each row reads, int64 [B]; None if every row reads all."""
        if all(action.kv_density == 1.0 for action in actions):
            return None
        lengths = past.lengths.tolist()
        counts = [action.pages(length, self.page_size) for action, length in zip(actions, lengths, strict=True)]
        return torch.tensor(counts, device=self.weights.vector("rope.cos").device)

    def _run(self, tokens: Tensor, batch: Batch, past: Cache, num_logits: int | None) -> tuple[Tensor, Tensor]:
        decoder, slots = self.decoder, past.open(tokens.shape[1])
        if slots.longest > self.weights.vector("rope.cos").shape[0]:
            raise ValueError(f"{slots.longest} tokens exceed the model's context of {decoder.max_context}")
        x = self.weights.matrix("embed").rows(tokens) * decoder.embedding_scale
        for layer in range(decoder.num_layers):
            name = f"layers.{layer}"
            normed = self._norm_at(x, "before", f"{name}.attn_norm")
            mixer = self._attention if decoder.kind(layer) == "attention" else self._short_conv
            attended = self._norm_at(mixer(normed, layer, batch, past, slots), "after", f"{name}.attn_post_norm")
            if decoder.parallel_residual:
                mlp_in = normed if decoder.shared_norm else self._norm(x, f"{name}.mlp_norm")
                x = x + attended + self._mlp(mlp_in, layer, batch)
            else:
                x = x + attended
                inner = self._mlp(self._norm_at(x, "before", f"{name}.mlp_norm"), layer, batch)
                x = x + self._norm_at(inner, "after", f"{name}.mlp_post_norm")
        past.close(slots)
        hidden = self._norm(x if num_logits is None else x[:, -num_logits:], "final_norm")
        return self._head(hidden, batch), hidden

    def _norm_at(self, x: Tensor, place: str, name: str) -> Tensor:
        """The norm of x, or x where the blocks have no norm `before` or `after` attention and MLP."""
        return self._norm(x, name) if self.decoder.norm_place in (place, "around") else x

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights.vector(f"{name}.weight"), self.weights.vector_or_none(f"{name}.bias")
        if self.decoder.norm == "layer":
            return F.layer_norm(x, x.shape[-1:], weight, bias, self.decoder.norm_eps)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.decoder.norm_eps) * weight

    def _head(self, x: Tensor, batch: Batch) -> Tensor:
        cap, bias = self.decoder.logits_cap, self.weights.vector_or_none("head.bias")
        logits = _by_rows(batch.precisions, x, lambda part, group: self._head_product(part, group.precision))
        if bias is not None:
            logits = logits + bias
        return cap * torch.tanh(logits / cap) if cap else logits

    def _head_product(self, x: Tensor, precision: Precision) -> Tensor:
        """x [B, S, hidden] times the LM head, without bias: [B, S, vocab]."""
        name, screen = self.decoder.lm_head, precision.lm_head_screen
        logits = self._product(x, name, precision.lm_head_bits)
        if screen is None:
            return logits
        first = name if screen.bits != THREE else screen_matrix(name)
        scores = self._product(x, first, screen.bits)[..., : self.decoder.vocab_size]
        candidates = scores.topk(screen.candidates, dim=-1).indices
        return (scores + screen.tail_offset).scatter(-1, candidates, logits.gather(-1, candidates))

    def _active(self, x: Tensor, layer: int, matrix: int, batch: Batch) -> Tensor:
        """x [B, S, K] with all but each row's active channels set to 0; `matrix` is _ACTIVE_UP … _ACTIVE_O."""
        return _by_rows(batch.channels, x, lambda part, group: keep_largest(part, group.counts[matrix][layer]))

    def _linear(self, x: Tensor, name: str, batch: Batch) -> Tensor:
        """x [B, S, K] times a matrix [N, K] at each row's bits, plus its bias: [B, S, N]."""
        return _by_rows(
            batch.precisions,
            x,
            lambda part, group: self._product(part, name, group.precision.of(name), f"{name}.bias"),
        )

    def _product(self, x: Tensor, name: str, bits: int, bias: str = "") -> Tensor:
        if self.arithmetic.rounded_activations:
            x = round_activations(x, bits)
        of_head = name in (self.decoder.lm_head, screen_matrix(self.decoder.lm_head))
        dtype = torch.float32 if of_head else self.arithmetic.products
        added = self.weights.vector_or_none(bias)
        y = F.linear(x.to(dtype), self.weights.matrix(name).at(bits, dtype), None if added is None else added.to(dtype))
        return y.float()

    def _mlp(self, x: Tensor, layer: int, batch: Batch) -> Tensor:
        name = f"layers.{layer}"
        up = self._linear(self._active(x, layer, _ACTIVE_UP, batch), f"{name}.up", batch)
        act = _ACTIVATIONS[self.decoder.activation]
        if self.decoder.gated:
            gate, up = up.chunk(2, dim=-1)
            middle = act(gate) * up
        else:
            middle = act(up)
        return self._linear(self._active(middle, layer, _ACTIVE_DOWN, batch), f"{name}.down", batch)

    def _attention(self, x: Tensor, layer: int, batch: Batch, past: Cache, slots: Slots) -> Tensor:
        d, name = self.decoder, f"layers.{layer}"
        qkv = self._linear(self._active(x, layer, _ACTIVE_QKV, batch), f"{name}.qkv", batch)
        heads = torch.unflatten(qkv, -1, (-1, d.head_dim))  # [B, S, H + 2 Hk, D]
        q, k, v = torch.split(heads, [d.num_heads, d.num_kv_heads, d.num_kv_heads], dim=2)
        tables = table_names(d.rope_of_layer[layer])
        cos, sin = (self.weights.vector(table)[slots.positions].unsqueeze(2) for table in tables)
        if d.qk_norm_after_rope:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if d.qk_norm != "none":
            q, k = self._qk_norm(q, k, self.weights.vector(f"{name}.qk_norm.weight"))
        if not d.qk_norm_after_rope:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        q = q.transpose(1, 2)  # [B, H, S, D]
        past.append(slots, layer, k, v)
        pages = None if layer in self.dense_layers else batch.pages
        window = d.window(layer)
        read = None if pages is None else self._read(q, past, layer, pages, slots)
        reading = Reading(d.softmax_scale, read, window, d.attention_cap)
        y = past.attend(layer, q, slots, reading).transpose(1, 2).flatten(2)
        return self._linear(self._active(y, layer, _ACTIVE_O, batch), f"{name}.o", batch)

    def _short_conv(self, x: Tensor, layer: int, batch: Batch, past: Cache, slots: Slots) -> Tensor:
        name, size = f"layers.{layer}", self.decoder.conv_size
        projected = self._linear(self._active(x, layer, _ACTIVE_QKV, batch), f"{name}.qkv", batch)
        b, c, u = projected.chunk(3, dim=-1)
        read = past.filtered(slots, layer, b * u, size - 1)
        filters, bias = self.weights.vector(f"{name}.conv.weight"), self.weights.vector_or_none(f"{name}.conv.bias")
        y = c * F.conv1d(read.mT, filters.unsqueeze(1), bias, groups=len(filters)).mT
        return self._linear(self._active(y, layer, _ACTIVE_O, batch), f"{name}.o", batch)

    def _qk_norm(self, q: Tensor, k: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """q [B, S, H, D] and k [B, S, Hk, D] normalized by head or by row, and times `weight` [(H + Hk) D]."""
        d = self.decoder
        dims = (-1,) if d.qk_norm == "head" else (-2, -1)
        parts = torch.split(torch.unflatten(weight, 0, (-1, d.head_dim)), [d.num_heads, d.num_kv_heads])
        normed = []
        for x, own in zip((q, k), parts, strict=True):
            if d.norm == "layer":
                x = x - x.mean(dims, keepdim=True)
            normed.append(x * torch.rsqrt(x.square().mean(dims, keepdim=True) + d.norm_eps) * own)
        return normed[0], normed[1]

    def _read(self, q: Tensor, past: Cache, layer: int, pages: Tensor, slots: Slots) -> Tensor:
        """Marks the tokens that each query head of a single new token reads, bool [B, H, T]. Later tokens have any
        value.

        These are the newest page's, the sinks, and the `4 Hk pages` (KV head, old token) pairs with the highest scores.
        The KV heads of a layer share that quota. The highest scores get it; of equal ones the lower head, then the
        earlier token. In a layer with a window, only the tokens in it count, and as large a share of their pages is
        read as of all pages.

        Args:
            q: query heads, float32 [B, H, 1, D].
            pages: old pages to read, int64 [B].
        """
        d, window = self.decoder, self.decoder.window(layer)
        newest = slots.positions // self.page_size * self.page_size  # [B, 1], first token of each row's newest page
        query = torch.unflatten(q[:, :, 0], 1, (d.num_kv_heads, -1))  # [B, Hk, H / Hk, D]
        at = torch.arange(slots.longest, device=q.device)
        first = (slots.positions - window + 1).clamp(min=0) if window else torch.zeros_like(newest)  # [B, 1]
        inside = (at >= first).unsqueeze(1)  # [B, 1, T]
        if window:
            of_all, of_window = newest[:, 0], newest[:, 0] - first[:, 0] // self.page_size * self.page_size
            pages = -(-pages * of_window // of_all.clamp(min=1))  # rounded up
        old = (at < newest).unsqueeze(1) & inside
        logits = soft_cap(
            d.softmax_scale * past.token_scores(layer, query, slots), d.attention_cap
        )  # [B, Hk, H / Hk, T]
        score = logits.masked_fill(~old.unsqueeze(2), _NEVER).softmax(-1).sum(2)
        score = score.where(score >= _LOWEST_SCORE, 0.0).masked_fill(~old, -1.0).flatten(1)
        order = score.argsort(dim=-1, descending=True, stable=True)
        ranks = torch.arange(order.shape[-1], device=q.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(-1, order, ranks)
        count = pages * self.page_size * d.num_kv_heads  # [B]
        best = torch.unflatten(rank < count.unsqueeze(1), -1, (d.num_kv_heads, -1))
        tokens = best & old | (at >= newest).unsqueeze(1) | (at < self.sinks)
        return (tokens & inside).repeat_interleave(d.num_heads // d.num_kv_heads, dim=1)


_Setting = TypeVar("_Setting", bound=Hashable)
_Group = TypeVar("_Group", bound=_Rows)


def _alike(settings: Sequence[_Setting], device: torch.device) -> list[tuple[_Setting, Tensor | slice]]:
    """Groups rows by their setting: each setting that occurs, with the numbers of its rows."""
    rows: dict[_Setting, list[int]] = {}
    for row, setting in enumerate(settings):
        rows.setdefault(setting, []).append(row)
    if len(rows) == 1:
        return [(settings[0], slice(None))]
    return [(setting, torch.tensor(members, device=device)) for setting, members in rows.items()]


def _by_rows(groups: Sequence[_Group], x: Tensor, function: Callable[[Tensor, _Group], Tensor]) -> Tensor:
    """Applies `function` to each group's rows of x [B, ...]. Returns the results in the order of the rows."""
    if len(groups) == 1:
        return function(x, groups[0])
    parts = [function(x[group.rows], group) for group in groups]
    out = parts[0].new_empty(len(x), *parts[0].shape[1:])
    for group, part in zip(groups, parts, strict=True):
        out[group.rows] = part
    return out


def fast_products(device: torch.device) -> torch.dtype:
    """The dtype of products on a device: bfloat16 on a GPU that computes in it, else float32."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def round_activations(x: Tensor, bits: int) -> Tensor:
    """Rounds x, float32 [..., K], as the runtime does in front of a product at `bits` bits of weight.

    In blocks of 32 channels: step = max |x| / largest code, result = round(x / step) * step, rounded half to even. The
    largest code is 127 at 3, 4 and 6 bits, 32258 at 8.
    """
    blocks = torch.unflatten(x, -1, (-1, BLOCK))
    step = blocks.abs().amax(-1, keepdim=True) / _LARGEST_CODE[bits]
    codes = torch.where(step > 0, torch.round(blocks / step), 0.0)
    return (codes * step).flatten(-2)


def keep_largest(x: Tensor, count: int) -> Tensor:
    """x [..., K] with all but the `count` channels of largest magnitude set to 0; of equal ones the lower index stays.

    A count of 0 leaves all channels, as in the graph.
    """
    if count == 0 or count >= x.shape[-1]:
        return x
    size = x.abs()
    threshold = size.topk(count, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above, tied = size > threshold, size == threshold
    free = count - above.sum(-1, keepdim=True)
    return x * (above | (tied & (tied.cumsum(-1) <= free)))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotary embedding of x [..., D] by tables [..., rotary_dim / 2].

    Channels beyond rotary_dim stay as they are.
    """
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
