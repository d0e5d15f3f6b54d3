"""`sol-rt generate` with arguments of any bytes, judged by its exit code and by all that it prints."""

from __future__ import annotations

import contextlib
import io
import json
import unicodedata
from pathlib import Path

from fuzz.bundle_targets import tiny
from fuzz.targets import Reader
from sol_rt.cli import main
from sol_rt.errors import SolError

_MOST_LINE = 1000
"""Characters of a line on stderr."""
_TYPED = {"\n", "\t", "\r"}  # what a model's text may hold, and progress


def command(folder: Path) -> Reader:
    """`sol-rt generate`: a line of the input is an argument; those that name files to write are left out."""
    bundle = tiny(folder)
    (folder / "prompt.txt").write_text("w1 w2 w3", encoding="utf-8")
    trace = folder / "t.jsonl"
    always = ["generate", "-m", str(bundle), "--provider", "cpu", "-t", "1"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main([*always, "-p", "w1", "-n", "3", "--trace", str(trace)]) == 0

    def read(data: bytes) -> None:
        lines = data.decode("utf-8", "surrogateescape").replace("\0", "").split("\n")
        _run([*always, *(line for line in lines if not line.startswith("--trace")), "-c", "64"])

    seeds = [
        ["-p", "w1 w2", "-n", "3", "--temperature", "0.7", "--top-k", "5", "--top-p", "0.9", "--min-p", "0.1"],
        ["-p", "w1 w2", "-n", "3", "-b", "0.7", "--schedule", "uniform", "--seed", "3", "--repetition-penalty", "1.2"],
        ["-f", str(folder / "prompt.txt"), "-n", "2", "--budget", "0.8", "--logit-bias", "3=5", "--stop", "w4"],
        ["-p", "w1", "--chat", "--system", "w2", "-n", "2", "--kv-density", "0.5", "--bits", "5", "-o", "json"],
        ["--replay", str(trace), "--top-logprobs", "2"],
    ]
    return Reader(read, ["\n".join(seed).encode() for seed in seeds])


def _run(argv: list[str]) -> None:
    """Raises SolError with the line of a refusal, AssertionError for what the command may not do or say."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(argv)
    said = err.getvalue()
    assert code in {0, 1, 2}, f"exit code {code}: {said[-300:]}"
    for text in (out.getvalue(), said):
        odd = [c for c in text if unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} and c not in _TYPED]
        assert not odd, f"control characters {odd[:5]}"
    lines = said.splitlines()
    errors = [line for line in lines if line.startswith("sol-rt: error: ")]
    assert all(len(line) <= _MOST_LINE for line in lines), f"a line of {max(map(len, lines))} characters"
    assert "Traceback" not in said, said[-300:]
    assert "Warning" not in said, said[-300:]
    assert ": unexpected " not in said, said[-300:]
    assert len(errors) == (code != 0), f"exit code {code} with {len(errors)} errors: {said[-300:]}"
    if errors:
        raise SolError(errors[0])
    if "json" in argv and out.getvalue().startswith("{"):
        json.loads(out.getvalue())
