"""Options that environment variables set: which of them the command line overrules, and which one an error is about."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from typer.core import TyperCommand

from sol_rt.errors import SolError

_COSTS = {"budget", "tokens_per_second", "max_loss"}
_AXES = {"kv_density", "channel_density", "bits"}
_DIAL = ("governor", "schedule", "replay", "lossless", *_COSTS, *_AXES)
"""The governor is first: where a variable sets it and the command line excludes it, it no longer joins the others."""
_ALSO = {"schedule": ("action tag",)}
"""Beginnings of errors about an option, other than its name."""


class Command(TyperCommand):
    """A subcommand whose errors name the variable that they come from, and whose command line wins over variables."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _origin_named(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _origin_named(ctx):
            _overrule(ctx)
            return super().invoke(ctx)


@contextmanager
def _origin_named(ctx: Any) -> Iterator[None]:
    """Names, in a SolError, the variables of the options that it is about."""
    try:
        yield
    except SolError as error:
        variables = [
            f"${parameter.envvar}"
            for parameter in ctx.command.params
            if _is_from(ctx, parameter.name, "ENVIRONMENT") and _is_about(error.whole, parameter)
        ]
        if variables:
            error.whole += f" (from {' and '.join(variables)})"
        raise


def _is_given(value: Any) -> bool:
    return value is not None and value is not False and value != []


def _is_about(message: str, parameter: Any) -> bool:
    """Returns whether a message has one of the parameter's flags, or begins with its name."""
    flags = "|".join(map(re.escape, (*parameter.opts, *parameter.secondary_opts)))
    names = "|".join((parameter.name, *_ALSO.get(parameter.name, ())))
    return re.search(rf"(?<![\w-])(?:{flags})(?![\w-])|^(?:generation setting )?(?:{names})\b", message) is not None


def _is_from(ctx: Any, name: str, source: str) -> bool:
    found = ctx.get_parameter_source(name)
    return found is not None and found.name == source


def _overrule(ctx: Any) -> None:
    """Drops the settings of the dial that come from a variable and contradict one of the command line."""
    given = {name: ctx.params[name] for name in _DIAL if _is_given(ctx.params.get(name))}
    typed = {name for name in given if _is_from(ctx, name, "COMMANDLINE")}
    for name in [name for name in given if _is_from(ctx, name, "ENVIRONMENT")]:
        if any(_contradict({name, other}, given) for other in typed):
            del given[name]
            ctx.params[name] = False if name == "governor" else None


def _contradict(pair: set[str], given: Mapping[str, Any]) -> bool:
    """Returns whether two of the settings in `given` cannot be had together."""
    from sol_rt.budget.dial import KEEP_LOSS
    from sol_rt.budget.schedules import is_constant

    if "lossless" in pair:
        return bool(pair & (_COSTS | _AXES | {"governor", "schedule"}))
    if "schedule" in pair:
        value = given["schedule"]
        schedules = [value] if isinstance(value, str) else value  # `bench` takes several
        constant = all(map(is_constant, schedules))
        if "max_loss" in pair:
            return not all(schedule in KEEP_LOSS for schedule in schedules)
        return constant and bool(pair & (_COSTS | _AXES | {"governor"}))
    if "governor" in pair:
        return bool(pair & (_AXES | {"replay"}))
    if pair <= _COSTS:
        return "governor" not in given  # it keeps all three
    return bool(pair & _COSTS) and bool(pair & _AXES)
