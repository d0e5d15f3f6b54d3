"""Renamed and removed flags and environment variables. Using one gives one line that says what to do instead."""

from __future__ import annotations

import os

from sol_rt.errors import UsageError

GUIDE = "docs/migration.md"

RENAMED = {"--keep": "--kv-density", "--prune": "--channel-density"}
"""Old flag to the flag that replaced it. The environment variable of an old flag is refused as well."""

REMOVED: dict[str, str] = {
    "--refresh": "repairing cheap KV entries saved nothing at the same cost; leave it out",
    "--no-refresh": "KV entries are never repaired; leave it out",
}
"""Removed flag to the reason for its removal and what to do instead."""


def advice(flag: str) -> str:
    """One line on what to do instead of a renamed or removed flag; empty for any other flag."""
    if flag in RENAMED:
        return f"{flag} is now {RENAMED[flag]}; see {GUIDE}"
    if flag in REMOVED:
        return f"{flag} was removed: {REMOVED[flag]}; see {GUIDE}"
    return ""


def check_environment() -> None:
    """Raises UsageError if an environment variable sets a renamed or removed flag."""
    for flag in (*RENAMED, *REMOVED):
        variable = variable_of(flag)
        if variable in os.environ:
            raise UsageError(f"{advice(flag)}; unset ${variable}")


def variable_of(flag: str) -> str:
    """The environment variable of a long flag, for example `SOL_RT_TOP_K` for `--top-k`."""
    return "SOL_RT_" + flag.lstrip("-").replace("-", "_").upper()
