"""`sol-rt generate` under a JSON schema, a grammar and a regular expression."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from helpers.json_schemas import SCHEMAS
from helpers.places import GOLDEN
from sol_rt.cli import main

GENERATE = ["generate", "-m", str(GOLDEN / "tiny"), "-p", "Once upon a time", "-n", "120", "--schedule", "dense"]
SCHEMA = SCHEMAS["object"]


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA), encoding="utf-8")
    return tmp_path / "schema.json"


def test_a_schema_gives_json(schema: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GENERATE, "--json-schema", str(schema)]) == 0
    jsonschema.validate(json.loads(capsys.readouterr().out), SCHEMA)


def test_a_grammar_and_a_regular_expression_give_their_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "answer.lark").write_text('start: "yes" | "no"\n', encoding="utf-8")
    assert main([*GENERATE, "--grammar", str(tmp_path / "answer.lark")]) == 0
    assert capsys.readouterr().out in ("yes\n", "no\n")
    assert main([*GENERATE, "--regex", "[0-9]{4}"]) == 0
    assert len(capsys.readouterr().out.strip()) == 4
    assert main([*GENERATE, "--regex", "[0-9]{4}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["finish_reason"] == "stop"


def test_bad_grammars_are_errors_of_a_line(schema: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad").write_text("[", encoding="utf-8")
    for flags, reason in (
        (["--json-schema", str(tmp_path / "bad")], "JSON schema: got no JSON"),
        (["--grammar", str(tmp_path / "bad")], "grammar: lark: "),
        (["--regex", "a("], "unclosed group"),
        (["--json-schema", str(tmp_path / "none.json")], "none.json: No such file"),
        (["--json-schema", str(schema), "--regex", "a"], "give one"),
    ):
        assert main([*GENERATE, *flags]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.splitlines()[-1].startswith("sol-rt: error: ")
        assert reason in err
