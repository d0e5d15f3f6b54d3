"""The text of every SolError: one line that no terminal obeys, and no longer than a few."""

from __future__ import annotations

from sol_rt.errors import BundleError, SolError, UsageError


def test_an_error_is_one_line_of_plain_characters() -> None:
    error = UsageError("first\nsecond\x1b[31m\r\x00\u2028\ud800 é\x1b]0;title\x07")
    assert str(error) == "first second\\r\\x00\\u2028\\ud800 é\\x1b]0;title\\x07"
    assert str(SolError()) == ""


def test_an_error_is_cut() -> None:
    assert len(str(SolError("A" * 5000))) == 1000


def test_what_a_file_says_is_cut() -> None:
    error = BundleError("bundle", "k" * 500, "g" * 500, 10**100, "next")
    assert all(letter * 199 in str(error) for letter in "kg")
    assert not any(letter * 200 in str(error) for letter in "kg")
    assert str(error).endswith(f"expected {10**100}; next")
