"""Settings of the CPU's operators that are best on this processor: the core tries them."""

from __future__ import annotations

import datetime
import math
from ctypes import byref, sizeof
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sol_rt.budget.cost.model import BytesCost
from sol_rt.bundle.weights import SharedWeights
from sol_rt.engine.hardware.reads import PlainReads
from sol_rt.engine.hardware.tuning import Tuning
from sol_rt.native import structs
from sol_rt.native.library import core
from sol_rt.progress import Progress

if TYPE_CHECKING:
    from sol_rt.generate.native.engine import Engine

_CONTEXT = 16  # tokens, at which the core times steps
_READS = 5
_READ_BYTES = 512 << 20  # of the weights, in a read


@dataclass(frozen=True)
class Tuned:
    """Settings and rates that were measured on a machine.

    Attributes:
        tuning: the settings that were best.
        gain: how much faster steps are than with `Tuning()`, a factor of at least 1.
        gain_of_copies: the same of whole 4-bit steps by copies of matrices, 1 where it is not clear; None if not tried.
        step_gb_per_second: weights and cache that a dense step read, in 10^9 bytes a second.
        plain_gb_per_second: plain reads of the weights after these steps, in the same unit.
        model: name of the model whose steps were timed.
        quick: False; a table of a first load is quick.
        created: date and time, ISO 8601.
        steady: whether the gains agreed from round to round.
    """

    tuning: Tuning
    gain: float
    gain_of_copies: float | None
    step_gb_per_second: float
    plain_gb_per_second: float
    model: str
    quick: bool
    created: str
    steady: bool

    @property
    def rates(self) -> str:
        """The rate of a dense step, beside that of plain reads at the same time."""
        plain = f"plain reads of the weights at that time: {self.plain_gb_per_second:.1f} GB/s"
        return f"{self.step_gb_per_second:.1f} GB/s; {plain}"


def tune(engine: Engine, progress: Progress, *, seconds: float) -> Tuned:
    """Times dense and cheapest steps under candidate settings and applies the best one.

    Args:
        engine: an engine on the CPU with native operators.
        progress: progress callback.
        seconds: about how long to take, at most twice that, and a third of it for copies.
    """

    def report(_: Any, what: bytes, done: int, total: int) -> int:
        progress(what.decode(), done, total)
        return 0

    found, config = structs.Tuned(size=sizeof(structs.Tuned)), engine.bundle.config
    core().sol_model_tune(engine.model, seconds, structs.Progress(report), None, byref(found))
    with PlainReads(SharedWeights(engine.bundle).beginning(_READ_BYTES), engine.threads) as reads:
        plain = sorted(reads.gb_per_second() for _ in range(_READS))
    return Tuned(
        engine.tuning(),
        found.gain,
        None if math.isnan(found.gain_of_copies) else found.gain_of_copies,
        BytesCost(config).dense(_CONTEXT) / found.dense_ms / 1e6,
        plain[-2],
        model=config.model.name,
        quick=False,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        steady=bool(found.steady),
    )
