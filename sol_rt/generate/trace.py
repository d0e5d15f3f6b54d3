"""Traces: a line of JSON for each step of a generation, so that the run can be drawn, compared and replayed.

The first line is the header, each further line one generated token. The first token comes from the prefill: it
has no action and no cost.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sol_rt.bundle.bundle import Bundle
from sol_rt.errors import SolError, UsageError, brief, cut
from sol_rt.native.library import core
from sol_rt.read_file import read_bytes

FORMAT = "sol_rt.trace"
FORMAT_VERSION = 1
_LONGEST_NAME = 200


@dataclass(frozen=True)
class TraceHeader:
    """Settings of the generation that a trace records.

    Attributes:
        bundle: name of the model.
        config_sha256: `Bundle.identity`.
        prompt_tokens: the whole prompt as token ids.
        prompt: the prompt as text; decoded, with the markers of the chat template, if it was given as tokens or
            messages. Empty where the native core cannot read the tokenizer.
        schedule: name of the schedule.
        budget: requested budget; under a rate or a loss, what it comes to after the prompt. None under axis targets.
        cost_model: "bytes" or "measured".
        generation: settings of `GenerationConfig` on which the tokens depend. The seed is among them, so that a replay
            draws the same tokens.
        prefill: key of the variant that ran the prompt; None for the dense one, which the file then does not name.
    """

    bundle: str
    config_sha256: str
    prompt_tokens: tuple[int, ...]
    prompt: str
    schedule: str
    budget: float | None
    cost_model: str
    generation: dict[str, Any] = field(default_factory=dict)
    prefill: str | None = None


@dataclass(frozen=True)
class TraceRecord:
    """One generated token and the step that produced it.

    Attributes:
        step: 0 for the token from the prefill; then the number of the decode step, from 1.
        token: id of the token.
        text: the text that the token added; empty while a character is incomplete.
        action: tag of the action; None for the prefill.
        context: tokens in the cache before the step.
        cost: cost of the step, the policy's run included, in the cost model's unit.
        relative_cost: the same in dense steps.
        logprob: log-probability of the token, in nats, under the step's raw distribution.
        ms: measured milliseconds from the start of the step to the token.
        achieved: achieved budget after the step.
    """

    step: int
    token: int
    text: str
    action: str | None
    context: int
    cost: float
    relative_cost: float
    logprob: float
    ms: float
    achieved: float


@dataclass(frozen=True)
class Trace:
    """A trace that was read: its header, and a record for each generated token."""

    header: TraceHeader
    records: tuple[TraceRecord, ...]

    def to_jsonl(self) -> str:
        """The content of the file: a line for the header, and one for each record."""
        header = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self.header)}
        if self.header.prefill is None:
            del header["prefill"]
        lines = [header, *map(asdict, self.records)]
        return "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)


def check_trace_path(bundle: Bundle, path: object) -> None:
    """Raises UsageError for what is no path, and for one at which a trace would overwrite a file of the bundle."""
    if not isinstance(path, (str, Path)):
        raise UsageError(f"trace: got {brief(path)}, expected a file to write to")
    if (name := bundle.file_at(path)) is not None:
        got = f"{name} of the bundle {bundle.path}"
        raise UsageError(f"trace {brief(str(path))}: got {got}, which a trace would overwrite; choose another file")


def read_trace(path: Path | str) -> Trace:
    """Reads a trace. Raises SolError in one line for a file that is missing, no trace, damaged or cut off."""
    if not isinstance(path, (str, os.PathLike)):
        raise UsageError(f"trace: got {brief(path)}, expected a file that `--trace` wrote")
    path = Path(path)
    try:
        text = read_bytes(path, pipes=True)
    except OSError as error:
        raise SolError(f"trace {cut(path)}: {error.strerror}; give a file that `--trace` wrote") from None
    except ValueError as error:  # a NUL in the name, or half of a surrogate pair
        raise SolError(f"trace {brief(str(path))}: {error}; give a file that `--trace` wrote") from None
    try:
        core().sol_trace_check(text, len(text), str(path).encode("utf-8", "replace"))
    except UsageError as error:
        raise SolError(str(error)) from None
    header, *records = map(_loads, text.decode("utf-8").rstrip("\n").split("\n"))
    del header["format"], header["format_version"]
    header["prompt_tokens"] = tuple(header["prompt_tokens"])
    return Trace(TraceHeader(**header), tuple(TraceRecord(**record) for record in records))


def _loads(line: str) -> dict[str, Any]:
    """The object of a line, with numbers as the core reads them: what 63 bits don't hold is a float."""

    def number(digits: str) -> int | float:
        return value if -(2**63) <= (value := int(digits)) < 2**63 else float(value)

    return dict(json.loads(line, parse_int=number))


def is_name(text: str) -> bool:
    """True if a text can be the name of a schedule or of costs in a trace's header."""
    return 0 < len(text) <= _LONGEST_NAME and text.isprintable()
