"""Check of every benchmark: a bad option is refused in one line, before anything runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from types import ModuleType

import pytest


def assert_refused(
    program: ModuleType,
    runner: str,
    argv: Sequence[str],
    option: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Asserts that `program` exits by 2, names `option` with what was got and expected, and never calls `runner`."""
    monkeypatch.setattr(program, runner, lambda args: pytest.fail("ran"))
    monkeypatch.setattr(sys, "argv", [f"{program.__name__}.py", "smollm2-135m", *argv])
    with pytest.raises(SystemExit) as caught:
        program.main()
    assert caught.value.code == 2
    assert re.search(f"argument .*{option}.*: .*got .*expected", capsys.readouterr().err)
