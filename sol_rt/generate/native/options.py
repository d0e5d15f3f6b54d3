"""Fills the options of a generation or a score for the core."""

from __future__ import annotations

import math
from collections.abc import Sequence
from ctypes import c_char_p, c_int32
from pathlib import Path
from typing import Any

from sol_rt.budget.cost.model import CostModel
from sol_rt.budget.dial import Dial
from sol_rt.budget.schedules import NAMES
from sol_rt.bundle.actions import Action
from sol_rt.errors import UsageError, brief
from sol_rt.generate.generation_config import GenerationConfig
from sol_rt.generate.native.own_schedule import Controller, OwnSchedule
from sol_rt.generate.native.token_mask import TokenMask
from sol_rt.native import structs
from sol_rt.native.library import default_options, path_bytes

_LARGEST = 2**31 - 1
_LARGEST_SEED = 2**63 - 1
_DIAL = ("budget", "kv_density", "channel_density", "bits", "tokens_per_second", "max_loss")
_COUNTS = ("max_new_tokens", "top_k", "top_logprobs")
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


class Options:
    """Options as the core takes them, with all that they point to.

    Args:
        cost: the cost model, with the bundle's config.
        dial: the request for decode steps.
        actions: what a schedule of the caller's chooses from; None for the core's own choice.

    Attributes:
        struct: the `sol_generate_options`, valid as long as this object.
        own: the caller's schedule that the core asks, or None.
        mask: the mask that the core asks, or None.

    Raises UsageError.
    """

    def __init__(self, cost: CostModel, dial: Dial, actions: Sequence[Action] | None = None) -> None:
        self.struct = default_options()
        self._config = cost.config
        self._kept: list[Any] = []
        self.mask: TokenMask | None = None
        self.own = self._set_dial(dial, cost, actions)
        if dial.seed is not None:
            if dial.seed > _LARGEST_SEED:
                raise UsageError(f"--seed: got {brief(dial.seed)}, expected a whole number from 0 to {_LARGEST_SEED}")
            self.struct.seed = int(dial.seed)

    def _set_dial(self, dial: Dial, cost: CostModel, actions: Sequence[Action] | None) -> OwnSchedule | None:
        for name in _DIAL:
            if (value := getattr(dial, name)) is not None:
                if math.isnan(value):  # to the core this is an option that was left out
                    raise UsageError(f"--{name.replace('_', '-')}: got nan, expected a number")
                setattr(self.struct, name, value)
        if dial.schedule is None:
            return None
        if isinstance(dial.schedule, str):
            if not dial.schedule or "\0" in dial.schedule:
                raise UsageError(f"--schedule: got {brief(dial.schedule)}, expected one of {', '.join(NAMES)}")
            self.struct.schedule = dial.schedule.encode("utf-8", "replace")
            return None
        if actions is None:
            actions = cost.schedule_actions("own", axis_targets=dial.axis_targets.any())
        own = OwnSchedule(dial.schedule, Controller(actions, self._config.dense))
        self.struct.schedule, self.struct.choose = own.name.encode("utf-8", "replace"), own.callback
        return own

    def set_generation(self, given: dict[str, Any]) -> None:
        """Sets what `GenerationConfig` has. The model's own settings stand for all that is not given."""
        options, config = self.struct, GenerationConfig().updated(**given)
        for name in given.keys() & set(_NUMBERS):
            setattr(options, name, getattr(config, name))
        for name in given.keys() & set(_COUNTS):
            setattr(options, name, min(getattr(config, name), _LARGEST))
        if config.seed is not None:
            options.seed = config.seed
        if "do_sample" in given:
            options.do_sample = int(config.do_sample)
        if "logit_bias" in given:
            config.check_vocabulary(self._config.model.vocab_size)
            biases = (structs.LogitBias * max(len(config.logit_bias), 1))(
                *(structs.LogitBias(token, bias) for token, bias in config.logit_bias.items())
            )
            options.logit_bias, options.num_logit_bias = biases, len(config.logit_bias)
            self._kept.append(biases)
        if "stop_strings" in given:
            if cut := [text for text in config.stop_strings if "\0" in text]:
                raise UsageError(f"generation setting stop_strings: got {brief(cut[0])}, expected no NUL; leave it out")
            strings = (c_char_p * max(len(config.stop_strings), 1))(  # one that is empty has no address
                *(text.encode("utf-8", "replace") for text in config.stop_strings)
            )
            options.stop_strings, options.num_stop_strings = strings, len(config.stop_strings)
            self._kept.append(strings)
        if "eos_token_id" in given:
            ids = [token for token in config.eos_token_id if token <= _LARGEST]
            ends = (c_int32 * max(len(ids), 1))(*ids)
            options.end_tokens, options.num_end_tokens = ends, len(ids)
            self._kept.append(ends)

    def set_mask(self, mask: TokenMask) -> None:
        """Sets the mask of the tokens that may be picked. It serves one generation."""
        self.mask, self.struct.mask = mask, mask.callback

    def set_trace(self, path: Path | str) -> None:
        """Sets the file to write every step to."""
        self.struct.trace = given_path("trace", path, "choose another file")


def given_path(what: str, path: Path | str, hint: str) -> bytes:
    """The path as the core takes it. Raises UsageError for a name that no file can have, where C's string would end."""
    try:
        name = path_bytes(path)
    except UnicodeEncodeError:
        raise UsageError(f"{what} {brief(str(path))}: half of a surrogate pair; {hint}") from None
    if b"\0" in name:
        raise UsageError(f"{what} {brief(str(path))}: a NUL in the name; {hint}")
    return name
