"""An engine of Python's for a session of the native core: the core's loop chooses, the engine runs."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import sizeof
from typing import Any, Protocol

import numpy as np

from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import ModelDims
from sol_rt.engine.step import StepOutput
from sol_rt.errors import UsageError
from sol_rt.generate.native.callbacks import Callbacks
from sol_rt.native import structs


class CacheEngine(Protocol):
    """An engine with a KV cache, as `GpuEngine` is one."""

    def forward(self, tokens: Sequence[int], action: Action, *, num_logits: int = 1) -> StepOutput:
        """Appends tokens to the cache and returns the output of the last `num_logits` of them."""

    def truncate(self, length: int) -> None:
        """Keeps the first `length` tokens of the cache."""

    def reusable_prefix(self, length: int) -> int:
        """Number of the first `length` tokens that need no re-run after `truncate(length)`: `length` or 0."""


class HostEngine(Callbacks):
    """The callbacks of an engine.

    Args:
        engine: runs what the core asks for. Nobody else uses it meanwhile.
        model: gives the widths of its results.

    Attributes:
        struct: the `sol_host_engine` to hand over; its functions are valid as long as this object.
    """

    def __init__(self, engine: CacheEngine, model: ModelDims) -> None:
        super().__init__()
        self._engine, self._model = engine, model
        self.struct = structs.HostEngine(
            size=sizeof(structs.HostEngine),
            forward=structs.RunForward(
                lambda _, run, logits, hidden: self.answer(lambda: self._forward(run.contents, logits, hidden), 1)
            ),
            held=structs.HeldTokens(lambda _, length: self.answer(lambda: engine.reusable_prefix(length), 0)),
        )

    def _forward(self, run: structs.Run, logits: Any, hidden: Any) -> int:
        self._engine.truncate(run.past)
        action = Action.parse(run.action.decode())
        output = self._engine.forward(run.tokens[: run.num_tokens], action, num_logits=run.num_logits)
        for name, target, values, width in (
            ("logits", logits, output.logits, self._model.vocab_size),
            ("hidden", hidden, output.hidden, self._model.hidden_size),
        ):
            whole, expected = np.ascontiguousarray(values, np.float32), (int(run.num_logits), width)
            if whole.shape != expected:
                what = f"{type(self._engine).__name__}.forward: {name}"
                raise UsageError(f"{what}: got an array {whole.shape}, expected {expected}")
            ctypes.memmove(target, whole.ctypes.data, whole.nbytes)
        return 0
