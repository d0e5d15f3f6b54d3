"""The text of every SolError, one line that no terminal obeys and no longer than a few, and where users import it."""

from __future__ import annotations

import sol_rt
from sol_rt import errors
from sol_rt.errors import BundleError, SolError, UsageError

NOT_OF_A_RUN = {"CheckpointError", "HubError", "HubUnreachableError", "WriteError"}
"""Raised by exports, pulls and writers of files."""


def test_an_error_is_one_line_of_plain_characters() -> None:
    error = UsageError("first\nsecond\x1b[31m\r\x00\u2028\ud800 é\x1b]0;title\x07")
    assert str(error) == "first second\\r\\x00\\u2028\\ud800 é\\x1b]0;title\\x07"
    assert str(SolError()) == ""


def test_an_error_is_cut() -> None:
    assert len(str(SolError("A" * 5000))) == 1000


def test_values_of_a_file_are_cut_in_errors() -> None:
    error = BundleError("bundle", "k" * 500, "g" * 500, 10**100, "next")
    assert all(letter * 199 in str(error) for letter in "kg")
    assert not any(letter * 200 in str(error) for letter in "kg")
    assert str(error).endswith(f"expected {10**100}; next")


def test_the_package_names_the_errors_of_a_run() -> None:
    """Errors that a program has to tell apart from others, as docs/reference/python.md does with BusyError."""
    found = {name for name, each in vars(errors).items() if isinstance(each, type) and issubclass(each, SolError)}
    assert found - NOT_OF_A_RUN <= set(sol_rt.__all__)
    for name in sol_rt.__all__:
        assert getattr(sol_rt, name) is getattr(errors, name, getattr(sol_rt, name)), name
