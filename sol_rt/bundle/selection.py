"""`selection.json`: what the exporter measured of every candidate action, which it kept, and why.

The format is section 6 of docs/bundle.md.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.errors import BundleError, UsageError

SELECTION = "selection.json"
FORMAT = "sol_rt.selection"
FORMAT_VERSION = 2


@dataclass(frozen=True)
class Measured:
    """A candidate at one context: milliseconds of a decode step, nats over dense and their standard error."""

    ms: float
    loss: float
    stderr: float


@dataclass(frozen=True)
class Candidate:
    """An action that the bundle might have had.

    Attributes:
        action: the action.
        kept: whether the bundle has it.
        reason: why, or why not, in one line.
        at: by context in tokens, what was measured; contexts where it was not are left out.
    """

    action: Action
    kept: bool
    reason: str
    at: dict[int, Measured]


@dataclass(frozen=True)
class Setting:
    """How all candidates were measured at a context: tokens scored, and nats a token under the dense action."""

    tokens: int
    dense_loss: float


@dataclass(frozen=True)
class Selection:
    """The whole file.

    Attributes:
        dense: the action that losses are over.
        text: where the text came from.
        device: what the milliseconds hold for.
        slowdown: how much longer a middling dense step took than what counts as its time; near 0 on an idle machine.
        max_actions: how many actions were to be kept at most.
        collapse_loss: loss in nats from which output counts as collapsed; null where the dense action
            itself makes no use of context.
        contexts: by context in tokens.
        candidates: kept and dropped ones.
    """

    dense: Action
    text: str
    device: str
    slowdown: float
    max_actions: int
    collapse_loss: float | None
    contexts: dict[int, Setting]
    candidates: tuple[Candidate, ...]

    def to_json(self) -> str:
        document = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        document["dense"] = self.dense.tag
        document["candidates"] = [
            {"tag": candidate.action.tag, **{key: value for key, value in asdict(candidate).items() if key != "action"}}
            for candidate in self.candidates
        ]
        return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def of(cls, bundle: Bundle) -> Selection | None:
        """The bundle's, None where it was exported without measuring. Raises BundleError for a file of another kind."""
        if SELECTION not in bundle.config.files:
            return None
        path = bundle.file(SELECTION)
        try:
            return _read(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
            problem = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            raise BundleError(
                path, "", f"a file that is not readable ({problem})", f"{FORMAT} {FORMAT_VERSION}"
            ) from None


def _read(raw: Any) -> Selection:
    if raw["format"] != FORMAT or raw["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format {raw['format']!r} version {raw['format_version']!r}")
    candidates = [
        Candidate(
            Action.parse(entry["tag"]),
            bool(entry["kept"]),
            str(entry["reason"]),
            {
                int(context): Measured(*(_finite(point[key]) for key in ("ms", "loss", "stderr")))
                for context, point in entry["at"].items()
            },
        )
        for entry in raw["candidates"]
    ]
    dense = Action.parse(raw["dense"])
    measured = next((candidate.at for candidate in candidates if candidate.action == dense), {})
    for context in map(int, raw["contexts"]):
        if context not in measured:
            raise ValueError(f"{dense.tag} is not measured at {context}")
    return Selection(
        dense=dense,
        text=str(raw["text"]),
        device=str(raw["device"]),
        slowdown=_finite(raw["slowdown"]),
        max_actions=int(raw["max_actions"]),
        collapse_loss=None if raw["collapse_loss"] is None else _finite(raw["collapse_loss"]),
        contexts={
            int(context): Setting(int(setting["tokens"]), _finite(setting["dense_loss"]))
            for context, setting in raw["contexts"].items()
        },
        candidates=tuple(candidates),
    )


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number
