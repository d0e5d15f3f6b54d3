"""Cost of a decode step: bytes read from memory, or milliseconds measured on this device. The native core computes it.

docs/reference/bundle-details.md section 4 has the formula.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Sequence
from ctypes import byref, c_char_p, c_double, c_int64, c_size_t, c_void_p, create_string_buffer
from dataclasses import dataclass
from typing import Any

import numpy as np

from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import SolConfig
from sol_rt.native.library import c_strings, core


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


class CostModel:
    """Cost of decode steps and of policy runs. `context` is the number of tokens in the cache before the step.

    Args:
        config: the bundle's config.
        table: text of the cost table; None for bytes.
        note: in one line, why this model is used instead of a better one; empty where there is nothing to say.

    Attributes:
        config, note: as given.
        unit: "bytes" or "milliseconds".
        name: "bytes" or "measured".
        dense_action: the dense action, whose cost relative costs are shares of.
        handle: the core's `sol_costs`.

    Raises BundleError for a config, and SolError for a table, that the core refuses.
    """

    unit: str
    name: str

    def __init__(self, config: SolConfig, table: str | None, note: str) -> None:
        self.config, self.note, self.dense_action = config, note, config.dense
        self.handle = c_void_p()
        text = json.dumps(config.to_json_dict()).encode()
        core().sol_costs_create(text, None if table is None else table.encode(), byref(self.handle))
        weakref.finalize(self, core().sol_costs_release, self.handle).atexit = False

    def step(self, action: Action, context: int) -> float:
        """Cost of one decode step, without the policy's run."""
        found = c_double()
        core().sol_costs_steps(self.handle, c_strings((action.tag,)), 1, byref(c_int64(context)), 1, byref(found))
        return found.value

    def dense(self, context: int) -> float:
        """Cost of a step of the dense action."""
        return self.step(self.dense_action, context)

    def table(self, actions: Sequence[Action]) -> Callable[[np.ndarray], np.ndarray]:
        """A function that takes contexts, int64 [n], and returns the cost of each action at each of them, [n, A]."""
        tags = c_strings(action.tag for action in actions)

        def costs(contexts: np.ndarray) -> np.ndarray:
            at = np.ascontiguousarray(contexts, np.int64)
            found = np.empty((len(at), len(actions)), np.float64)
            core().sol_costs_steps(self.handle, tags, len(actions), at.ctypes.data, len(at), found.ctypes.data)
            return found

        return costs

    def reads(self, action: Action, context: int) -> tuple[float, float]:
        """Cached tokens that a decode step reads, and KV pages whose key codes it scores.

        Both are means over the layers that attend. They do not depend on the cost model.
        """
        tokens, pages = c_double(), c_double()
        core().sol_costs_reads(self.handle, action.tag.encode(), context, byref(tokens), byref(pages))
        return tokens.value, pages.value

    def policy(self) -> float:
        """Cost of one run of the policy; 0 if the bundle has none."""
        return float(core().sol_costs_policy(self.handle))

    def schedule_actions(self, schedule: str, *, axis_targets: bool = False) -> tuple[Action, ...]:
        """The actions that a schedule works with, the dense action among them; `own` is a schedule of the caller's.

        `axis_targets` says whether it holds targets on the axes.
        """
        tags = _text(core().sol_costs_actions, self.handle, schedule.encode("utf-8", "replace"), axis_targets)
        return tuple(map(Action.parse, tags.split()))

    def default_schedule(self, *, axis_targets: bool = False) -> str:
        """The schedule of a run that names none: `sol` where the bundle has a policy, else `hull`.

        `hull`, too, where a run of the policy takes over 3% of a dense step's measured time. `uniform` where no losses
        were measured, and where `axis_targets` says that the run holds targets on the axes.
        """
        name = c_char_p()
        core().sol_costs_default_schedule(self.handle, axis_targets, byref(name))
        assert name.value is not None
        return name.value.decode()

    def schedule_note(self, schedule: str) -> str:
        """One line on the time of the policy of a schedule that is named, where `hull` is the default for it.

        Empty where there is nothing to say.
        """
        return _text(core().sol_costs_schedule_note, self.handle, schedule.encode("utf-8", "replace"))

    def losses(self, actions: Sequence[Action], context: int) -> np.ndarray:
        """Expected added loss of A actions over dense in nats per token, float64 [A]; NaN if not measured."""
        found = np.empty(len(actions), np.float64)
        tags = c_strings(action.tag for action in actions)
        core().sol_costs_losses(self.handle, tags, len(actions), context, found.ctypes.data)
        return found


def _text(function: Any, *arguments: object) -> str:
    """The text of a function of the core that fills a buffer of the caller's."""
    length = c_size_t()
    function(*arguments, None, 0, byref(length))
    text = create_string_buffer(length.value + 1)
    function(*arguments, text, len(text), byref(length))
    return text.value.decode()


class BytesCost(CostModel):
    """The bytes model: bytes of weights and KV cache that a step reads.

    It is right wherever memory bandwidth is the limit, and the same on every device.
    """

    unit = "bytes"
    name = "bytes"

    def __init__(self, config: SolConfig, note: str = "") -> None:
        super().__init__(config, None, note)


class FunctionBodyBytes(BytesCost):
    """Bytes that a step reads where the graphs' function bodies run on a GPU. There only fewer bits save bytes.

    Function bodies read all channels and mask them afterwards, and choosing tokens costs what reading fewer saves.
    """

    def table(self, actions: Sequence[Action]) -> Callable[[np.ndarray], np.ndarray]:
        variants = self.config.variants.values()
        most = {
            bits: max(variant.channel_density for variant in variants if variant.bits == bits)
            for bits in {action.bits for action in actions}
        }
        return super().table([Action(1.0, most[action.bits], action.bits) for action in actions])
