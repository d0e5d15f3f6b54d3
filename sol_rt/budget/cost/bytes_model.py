"""Cost of a decode step: bytes read from memory, or milliseconds measured on this device.

Both models are lines over what a step reads (docs/reference/bundle-details.md section 4): fixed + per_token *
tokens_read + per_page * pages_scored. The bytes model takes the three coefficients from the bundle, the measured one
from a table that `sol-rt profile` measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sol_rt.bundle.actions import Action, hundredths
from sol_rt.bundle.config import SolConfig


class CostModel(Protocol):
    """Cost of decode steps and of policy runs. `context` is the number of tokens in the cache before the step.

    Attributes:
        unit: "bytes" or "milliseconds".
        name: "bytes" or "measured".
        note: in one line, why this model is used instead of a better one; empty where there is nothing to say.
        dense_action: the dense action, whose cost relative costs are shares of.
    """

    unit: str
    name: str
    note: str
    dense_action: Action

    def step(self, action: Action, context: int) -> float:
        """Cost of one decode step, without the policy's run."""

    def table(self, actions: Sequence[Action]) -> Callable[[np.ndarray], np.ndarray]:
        """A function that takes contexts, int64 [n], and returns the cost of each action at each of them, [n, A]."""

    def dense(self, context: int) -> float:
        """Cost of a step of the dense action."""

    def policy(self) -> float:
        """Cost of one run of the policy; 0 if the bundle has none."""


def in_unit(cost_model: str) -> str:
    """The unit of costs and budgets for people, by the cost model's name: `in measured ms` or `in bytes`."""
    return "in measured ms" if cost_model == "measured" else f"in {cost_model}"


@dataclass(frozen=True)
class Line:
    """cost = fixed + per_token * tokens_read + per_page * pages_scored, in the cost model's unit.

    Attributes:
        fixed: the part of the cost that does not depend on the context.
        per_token: cost of each cached token that attention reads.
        per_page: cost of each KV page whose key codes attention scores.
        error: root mean square of the fit's relative residuals; 0 for a line that was not fitted.
    """

    fixed: float
    per_token: float
    per_page: float
    error: float = 0.0

    def at(self, tokens_read: float, pages_scored: float) -> float:
        """Cost of a step, from the cached tokens that it reads and the pages that it scores."""
        return self.fixed + self.per_token * tokens_read + self.per_page * pages_scored


def reads(action: Action, context: int, config: SolConfig) -> tuple[float, float]:
    """Counts the cached tokens that a decode step reads, and the KV pages whose key codes it scores.

    Both are means over the layers that attend.
    """
    kv, layers = config.kv, len(config.kv.attending(config.model.num_layers))
    old_pages = -(-(context + 1) // kv.page_size) - 1
    pages = action.pages(context, kv.page_size)
    if kv.windows:
        total, scored = _reads_by_window(context + 1, old_pages, pages, config)
        return float(total) / layers, float(scored) / layers
    if pages >= old_pages:
        return context + 1, 0
    sparse, dense = layers - len(kv.dense_layers), len(kv.dense_layers)
    tokens = min(context + 1, kv.page_size * (pages + 1) + kv.sinks)
    return (sparse * tokens + dense * (context + 1)) / layers, sparse * old_pages / layers


def _reads_by_window(held: Any, old_pages: Any, pages: Any, config: SolConfig) -> tuple[Any, Any]:
    """Tokens read and pages scored, sums over layers of which some have a window.

    Args:
        held: tokens in the cache with the new one, an integer or an array int64, as the others.
        old_pages, pages: KV pages before the newest, and those to be read of them where a layer attends to all tokens.
    """
    kv = config.kv
    tokens: Any = 0
    scored: Any = 0
    for (window, dense), layers in kv.layer_kinds.items():
        seen = np.minimum(held, window) if window else held
        before = (held - seen) // kv.page_size
        old = old_pages - before
        kept = -(-pages * old // np.maximum(old_pages, 1))
        fewer = (pages < old_pages) & (kept < old) & (not dense)
        read = np.minimum(seen, kv.page_size * (kept + 1) + np.maximum(kv.sinks - kv.page_size * before, 0))
        tokens = tokens + layers * np.where(fewer, read, seen)
        scored = scored + layers * np.where(fewer, old, 0)
    return tokens, scored


class LineCost:
    """A cost model in which the cost of each action is a line over what its step reads.

    Args:
        config: the bundle's config.
        line: gives the line of an action.
        note: as in CostModel.
    """

    unit: str
    name: str

    def __init__(self, config: SolConfig, line: Callable[[Action], Line], note: str) -> None:
        self.dense_action = config.dense
        self.note = note
        self._config = config
        self._line = line
        self._dense_line = line(config.dense)

    def step(self, action: Action, context: int) -> float:
        return self._line(action).at(*reads(action, context, self._config))

    def dense(self, context: int) -> float:
        return self._dense_line.at(*reads(self.dense_action, context, self._config))

    def table(self, actions: Sequence[Action]) -> Callable[[np.ndarray], np.ndarray]:
        lines = [self._line(action) for action in actions]
        fixed = np.array([line.fixed for line in lines], np.float64)
        per_token = np.array([line.per_token for line in lines], np.float64)
        per_page = np.array([line.per_page for line in lines], np.float64)
        kept = np.array([hundredths(action.kv_density) for action in actions], np.int64)
        page, sinks = self._config.kv.page_size, self._config.kv.sinks
        layers = len(self._config.kv.attending(self._config.model.num_layers))
        dense = len(self._config.kv.dense_layers) / layers

        def costs(contexts: np.ndarray) -> np.ndarray:
            held = contexts[:, None] + 1
            old_pages = -(-held // page) - 1
            pages = -(-old_pages * kept // 100)
            if self._config.kv.windows:
                total, scored = _reads_by_window(held, old_pages, pages, self._config)
                return np.asarray(fixed + per_token * (total / layers) + per_page * (scored / layers))
            sparse = (pages < old_pages) * (1 - dense)
            tokens = held + sparse * (np.minimum(held, page * (pages + 1) + sinks) - held)
            return np.asarray(fixed + per_token * tokens + per_page * (sparse * old_pages))

        return costs


class BytesCost(LineCost):
    """The bytes model: bytes of weights and KV cache that a step reads.

    It is right wherever memory bandwidth is the limit, and the same on every device.
    """

    unit = "bytes"
    name = "bytes"

    def __init__(self, config: SolConfig, note: str = "") -> None:
        model = config.model
        heads = len(config.kv.attending(model.num_layers)) * model.num_kv_heads
        self._states = 2 * config.kv.state_bytes(model.hidden_size)  # read and written
        self._per_token = float(heads * config.kv.token_bytes(model.head_dim))
        self._per_page = float(heads * config.kv.page_size * (model.head_dim // 2 + 4))  # codes and range of a token
        self._variants = config.variants
        self._policy = 0.0 if config.policy is None else float(config.files[config.policy.file].bytes)
        super().__init__(config, self._bytes_line, note)

    def _bytes_line(self, action: Action) -> Line:
        fixed = self._variants[action.variant].weight_bytes + self._states
        return Line(float(fixed), self._per_token, self._per_page)

    @property
    def page_bytes(self) -> float:
        """Bytes of the key codes of one KV page, all layers and heads together."""
        return self._per_page

    def policy(self) -> float:
        return self._policy


class FunctionBodyBytes(BytesCost):
    """Bytes that a step reads where the graphs' function bodies run on a GPU. There only fewer bits save bytes.

    Function bodies read all channels and mask them afterwards, and choosing tokens costs what reading fewer saves.
    """

    def table(self, actions: Sequence[Action]) -> Callable[[np.ndarray], np.ndarray]:
        most = {
            bits: max(v.channel_density for v in self._variants.values() if v.bits == bits)
            for bits in {a.bits for a in actions}
        }
        return super().table([Action(1.0, most[action.bits], action.bits) for action in actions])
