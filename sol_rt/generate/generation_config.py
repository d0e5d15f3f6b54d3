"""The settings of a generation, under Hugging Face's names: how tokens are picked and when the text ends."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from sol_rt.errors import BundleError, UsageError, brief, one_line
from sol_rt.read_file import read_bytes

FILE = "generation_config.json"
PENALTY_LIMIT = 2.0
"""Largest size of a presence or frequency penalty, as in OpenAI's API."""
BIAS_LIMIT = 100.0
"""Largest size of a logit bias, as in OpenAI's API."""
TOP_LOGPROBS_LIMIT = 20
_LARGEST_INT = 2**63 - 1
_ID = re.compile("[0-9]{1,19}")
"""A token id as text. Python refuses to read numbers of more than 4300 digits, and no id has more than 19."""


@dataclass(frozen=True)
class GenerationConfig:
    """Settings of one generation. A sampling setting that is 1.0, 0 or None changes nothing.

    Attributes:
        max_new_tokens: tokens to generate at most.
        do_sample: draw from the distribution; False takes the likeliest token.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: sample among this many likeliest tokens; 0 for all.
        top_p: sample among the likeliest tokens that together hold this probability.
        min_p: drop tokens less likely than this share of the likeliest one.
        repetition_penalty: divides (multiplies, where negative) the logits of tokens that occurred; over 0.
        presence_penalty: subtracted from the logits of tokens that were generated; -2 to 2, as in OpenAI's API.
        frequency_penalty: subtracted from a token's logit once for each time that it was generated; -2 to 2, as in
            OpenAI's API.
        logit_bias: added to the logits, by token id; -100 to 100, as in OpenAI's API.
        top_logprobs: likeliest tokens to report with every token; 0 to 20. Changes no token.
        stop_strings: end before any of these appears.
        seed: of sampling; None draws a fresh one.
        eos_token_id: tokens that end the text.

    Raises UsageError for values that are out of range or of another type.
    """

    max_new_tokens: int = 256
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int = 0
    stop_strings: tuple[str, ...] = ()
    seed: int | None = None
    eos_token_id: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None or item.default is not None:
                # the way to set what the class's own __init__ has frozen
                object.__setattr__(self, item.name, _checked(item.name, value))

    def with_file(self, path: Path) -> GenerationConfig:
        """A copy changed by a file `generation_config.json`. Keys that are no settings are ignored.

        Raises BundleError for a file or values that cannot be used.
        """
        try:
            raw = json.loads(read_bytes(path).decode("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(path, "", f"unreadable JSON ({one_line(error)})", "a JSON object") from None
        if not isinstance(raw, dict):
            raise BundleError(path, "", type(raw).__name__, "a JSON object")
        known = {field.name for field in fields(self)}
        try:
            return self.updated(**{name: value for name, value in raw.items() if name in known})
        except UsageError as error:
            raise BundleError(path, "", str(error), "settings in range") from None

    def updated(self, **changes: Any) -> GenerationConfig:
        """A copy with some settings changed; None leaves a setting as it is.

        `stop_strings` and `eos_token_id` also take a single value; the ids of `logit_bias` may be strings, as in JSON.
        Raises UsageError for unknown names and bad values.
        """
        known = [field.name for field in fields(self)]
        given: dict[str, Any] = {}
        for name, value in changes.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                raise UsageError(f"generation setting {brief(name)}: unknown; {hint}")
            if value is not None:
                given[name] = value
        return replace(self, **given)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises UsageError if `logit_bias` names a token that a vocabulary of `vocab_size` tokens lacks."""
        if beyond := [token for token in self.logit_bias if token >= vocab_size]:
            raise UsageError(f"logit bias: got token {beyond[0]}, expected ids from 0 to {vocab_size - 1}")


def _checked(name: str, value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if name == "stop_strings":
        strings = (value,) if isinstance(value, str) else value
        if isinstance(strings, (list, tuple)) and all(isinstance(item, str) and item for item in strings):
            return tuple(strings)
        raise _refused(name, value, "non-empty strings")
    if name == "eos_token_id":
        ids = (value,) if isinstance(value, int) else value
        if isinstance(ids, (list, tuple)) and all(_is_int(item, 0) for item in ids):
            return tuple(ids)
        raise _refused(name, value, "token ids")
    if name == "do_sample":
        if isinstance(value, bool):
            return value
        raise _refused(name, value, "True or False")
    if name == "logit_bias":
        return _checked_bias(value)
    if name in {"presence_penalty", "frequency_penalty"}:
        if _is_number(value, PENALTY_LIMIT):
            return float(value)
        raise _refused(name, value, f"a number from {-PENALTY_LIMIT:g} to {PENALTY_LIMIT:g}")
    if name == "top_logprobs":
        if _is_int(value, 0) and value <= TOP_LOGPROBS_LIMIT:
            return int(value)
        raise _refused(name, value, f"a whole number from 0 to {TOP_LOGPROBS_LIMIT}")
    if name in {"max_new_tokens", "top_k", "seed"}:
        low = 1 if name == "max_new_tokens" else 0
        if _is_int(value, low):
            return int(value)
        raise _refused(name, value, f"a whole number from {low}")
    if not _is_number(value, sys.float_info.max) or value < 0:
        raise _refused(name, value, "a number from 0")
    if name in {"top_p", "min_p"} and value > 1:
        raise _refused(name, value, "a number from 0 to 1")
    if name == "repetition_penalty" and value == 0:
        raise _refused(name, value, "a number over 0")
    return float(value)


def _checked_bias(value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise _refused("logit_bias", value, "a bias for each token id, as in {50256: -100}")
    biases: dict[int, float] = {}
    for given, bias in value.items():
        token = int(given) if isinstance(given, str) and _ID.fullmatch(given) else given
        if not _is_int(token, 0):
            raise _refused("logit_bias", given, "token ids")
        if not _is_number(bias, BIAS_LIMIT):
            raise _refused("logit_bias", bias, f"numbers from {-BIAS_LIMIT:g} to {BIAS_LIMIT:g}")
        biases[token] = float(bias)
    return biases


def _is_number(value: Any, limit: float) -> bool:
    """True if `value` is a number from -limit to limit."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -limit <= value <= limit


def _is_int(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= _LARGEST_INT


def _refused(name: str, value: Any, expected: str) -> UsageError:
    return UsageError(f"generation setting {name}: got {brief(value)}, expected {expected}")
