"""Flags and environment variables that are gone: each gives one line that says what to do instead."""

from __future__ import annotations

import os

from sol_rt.errors import UsageError

GUIDE = "docs/migration.md"

RENAMED = {"--keep": "--kv-density", "--prune": "--channel-density"}
"""Old flag to the flag that replaced it. The old one's environment variable is refused as well."""

REMOVED: dict[str, str] = {
    "--refresh": "repairing cheap KV entries saved nothing at the same cost; leave it out",
    "--no-refresh": "KV entries are never repaired; leave it out",
}
"""Removed flag to the reason and what to do."""


def advice(flag: str) -> str:
    """One line on what to do instead of a flag that is gone; empty for any other."""
    if flag in RENAMED:
        return f"{flag} is now {RENAMED[flag]}; see {GUIDE}"
    if flag in REMOVED:
        return f"{flag} was removed: {REMOVED[flag]}; see {GUIDE}"
    return ""


def check_environment() -> None:
    """Raises UsageError where the environment sets a flag that is gone."""
    for flag in (*RENAMED, *REMOVED):
        variable = variable_of(flag)
        if variable in os.environ:
            raise UsageError(f"{advice(flag)}; unset ${variable}")


def variable_of(flag: str) -> str:
    """The environment variable of a long flag: `SOL_RT_TOP_K` of `--top-k`."""
    return "SOL_RT_" + flag.lstrip("-").replace("-", "_").upper()
