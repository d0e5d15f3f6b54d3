"""`selection.json`: the exporter's measurements of every candidate action, which actions it kept, and why.

The format is section 6 of docs/reference/bundle-details.md.
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
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Measured:
    """A candidate at one context: bytes that a decode step reads, loss over dense in nats, and its standard error.

    Both have the margin for other kinds of text, unless a user chose the text.
    """

    bytes: float
    loss: float
    stderr: float


@dataclass(frozen=True)
class Candidate:
    """An action that the exporter considered for the bundle.

    Attributes:
        action: the action.
        kept: whether the bundle has the action.
        reason: why the action was kept or dropped, in one line.
        at: measurements by context in tokens; contexts without a measurement are left out.
    """

    action: Action
    kept: bool
    reason: str
    at: dict[int, Measured]


@dataclass(frozen=True)
class Setting:
    """A context at which candidates were measured: number of scored tokens, and the dense loss in nats per token."""

    tokens: int
    dense_loss: float


@dataclass(frozen=True)
class Selection:
    """The contents of `selection.json`.

    Attributes:
        dense: the dense action, to which losses are relative.
        text: source of the scored text.
        max_actions: largest number of actions to keep.
        collapse_loss: loss in nats from which output counts as collapsed; None if the dense action makes no use of
            context.
        contexts: settings by context in tokens.
        candidates: the kept and the dropped candidates.
    """

    dense: Action
    text: str
    max_actions: int
    collapse_loss: float | None
    contexts: dict[int, Setting]
    candidates: tuple[Candidate, ...]

    def to_json_dict(self) -> dict[str, Any]:
        """The JSON object that `read_selection` reads back."""
        document = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        document["dense"] = self.dense.tag
        document["contexts"] = {str(context): asdict(setting) for context, setting in self.contexts.items()}
        document["candidates"] = [
            {
                "tag": candidate.action.tag,
                "kept": candidate.kept,
                "reason": candidate.reason,
                "at": {str(context): asdict(point) for context, point in candidate.at.items()},
            }
            for candidate in self.candidates
        ]
        return document

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(self.to_json_dict(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def of(cls, bundle: Bundle) -> Selection | None:
        """Reads a bundle's file; None if the exporter measured nothing. Raises BundleError if the file is invalid."""
        if SELECTION not in bundle.config.files:
            return None
        path, content = bundle.path / SELECTION, bundle.read(SELECTION)
        try:
            return read_selection(json.loads(content.decode("utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, UsageError) as error:
            problem = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            raise BundleError(
                path, "", f"a file that is not readable ({problem})", f"{FORMAT} {FORMAT_VERSION}"
            ) from None


def read_selection(raw: Any) -> Selection:
    """Reads the JSON object. Raises ValueError, KeyError, TypeError, AttributeError or UsageError for any other."""
    if raw["format"] != FORMAT or raw["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format {raw['format']!r} version {raw['format_version']!r}")
    candidates = [
        Candidate(
            Action.parse(entry["tag"]),
            bool(entry["kept"]),
            str(entry["reason"]),
            {
                int(context): Measured(*(_finite(point[key]) for key in ("bytes", "loss", "stderr")))
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
