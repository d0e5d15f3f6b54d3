"""The command line within the tests' own process."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sol_rt.cli import main


def fails(capsys: pytest.CaptureFixture[str], argv: Sequence[str], code: int, *parts: str) -> None:
    """Asserts an exit code, an empty stdout and exactly one line of error that holds `parts`."""
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert out == ""
    errors = [line for line in err.splitlines() if line.startswith("sol-rt: error: ")]
    assert len(errors) == 1, err
    assert "Traceback" not in err
    for part in parts:
        assert part in errors[0]
