"""Traces: a line of JSON for each step of a generation, so that the run can be drawn, compared and replayed.

The first line is the header, each further line one generated token. The first token comes from the prefill: it
has no action and no cost.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.errors import SolError, UsageError, brief, cut
from sol_rt.read_file import read_bytes

FORMAT = "sol_rt.trace"
FORMAT_VERSION = 1
_LARGEST = 2**31 - 1  # of a token id or a context
_LARGEST_INT = 2**63 - 1
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
        lines = read_bytes(path, pipes=True).decode("utf-8").split("\n")
    except OSError as error:
        raise SolError(f"trace {cut(path)}: {error.strerror}; give a file that `--trace` wrote") from None
    except UnicodeDecodeError:
        raise SolError(f"trace {path}: not UTF-8 text; give a file that `--trace` wrote") from None
    except ValueError as error:  # a NUL in the name, or half of a surrogate pair
        raise SolError(f"trace {brief(str(path))}: {error}; give a file that `--trace` wrote") from None
    header = _header(path, lines[0])
    records: list[TraceRecord] = []
    for number, line in enumerate(lines[1:], 2):
        if not line and number == len(lines):
            break
        last = number == len(lines)
        records.append(_record(path, number, line, last, len(records)))
    return Trace(header, tuple(records))


def _parsed(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _header(path: Path, line: str) -> TraceHeader:
    raw = _parsed(line)
    if raw.pop("format", None) != FORMAT:
        raise SolError(f"trace {path}: line 1 is not a trace's header; give a file that `--trace` wrote")
    version = raw.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise SolError(
            f"trace {path}: format version {brief(version)}, expected {FORMAT_VERSION}; record the run again"
        )
    kinds = {
        "bundle": str, "config_sha256": str, "prompt_tokens": list, "prompt": str, "schedule": str,
        "budget": (int, float, type(None)), "cost_model": str, "generation": dict,
    }  # fmt: skip
    if "prefill" in raw:
        kinds["prefill"] = str
    problem = _problem(raw, kinds)
    if not problem and not (raw["prompt_tokens"] and all(_is_token(token) for token in raw["prompt_tokens"])):
        problem = "prompt_tokens are not token ids"
    for key in ("schedule", "cost_model"):
        if not problem and not is_name(raw[key]):
            problem = f"{key}: got {brief(raw[key])}, expected a name of 1 to {_LONGEST_NAME} printable characters"
    if not problem and not _is_finite(raw["generation"]):
        problem = "generation: got a number that is not finite"
    if problem:
        raise SolError(f"trace {path}: line 1: {problem}; record the run again")
    return TraceHeader(**{**raw, "prompt_tokens": tuple(raw["prompt_tokens"])})


def _record(path: Path, number: int, line: str, cut: bool, step: int) -> TraceRecord:
    raw = _parsed(line)
    if not raw:
        got = "cut off" if cut else "not a record"
        hint = "remove the line to use the rest" if cut else "record the run again"
        raise SolError(f"trace {path}: line {number} is {got}; {hint}")
    number_kind = (int, float)
    kinds = {
        "step": int, "token": int, "text": str, "action": (str, type(None)), "context": int, "cost": number_kind,
        "relative_cost": number_kind, "logprob": number_kind, "ms": number_kind, "achieved": number_kind,
    }  # fmt: skip
    problem = _problem(raw, kinds)
    if not problem and raw["step"] != step:
        problem = f"step {brief(raw['step'])}, expected {step}"
    if not problem and not (_is_token(raw["token"]) and 0 <= raw["context"] <= _LARGEST):
        problem = f"token {brief(raw['token'])}, context {brief(raw['context'])}, expected numbers from 0"
    if not problem and (raw["action"] is None) != (step == 0):
        problem = f"{'no' if step else 'an'} action at step {step}, expected one at every step but 0"
    if not problem and raw["action"] is not None:
        try:
            Action.parse(raw["action"])
        except UsageError as error:
            problem = str(error)
    if problem:
        raise SolError(f"trace {path}: line {number}: {problem}; record the run again")
    return TraceRecord(**raw)


def _problem(raw: dict[str, Any], kinds: dict[str, Any]) -> str:
    """Describes a wrong key or type of a line; empty if all are right."""
    for name, kind in kinds.items():
        if name not in raw:
            return f"no key {name!r}"
        value = raw[name]
        good = isinstance(value, bool) if kind is bool else _is_number(value, kind)
        if not good:
            return f"{name}: got {brief(value)}, which has the wrong type"
        if isinstance(value, int) and abs(value) > _LARGEST_INT:
            return f"{name}: got {brief(value)}, expected a number of at most 63 bits"
    unknown = sorted(set(raw) - set(kinds))
    return f"unknown key {brief(unknown[0])}" if unknown else ""


def _is_finite(settings: dict[str, Any]) -> bool:
    """True if JSON can hold every number of `settings`. Python's own reader takes NaN, Infinity and 1e999."""
    try:
        json.dumps(settings, allow_nan=False)
    except ValueError:
        return False
    return True


def is_name(text: str) -> bool:
    """True if a text can be the name of a schedule or of costs in a trace's header."""
    return 0 < len(text) <= _LONGEST_NAME and text.isprintable()


def _is_token(value: Any) -> bool:
    return _is_number(value, int) and 0 <= value <= _LARGEST


def _is_number(value: Any, kind: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, kind):
        return False
    return not isinstance(value, float) or math.isfinite(value)
