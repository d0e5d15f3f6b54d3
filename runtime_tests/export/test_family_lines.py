"""Lines of data of a model family: at most 50, and as many as docs/reference/models.md says."""

from __future__ import annotations

import ast
import re

import pytest

from helpers.places import ROOT

FAMILIES = ROOT / "export" / "sources" / "families"
MOST_LINES = 50
_ROW = re.compile(r"\| `(\w+)` \|")


def assigned(module: ast.Module) -> dict[str, ast.Assign]:
    """The assignments of a module by each name that they set."""
    found = {}
    for node in module.body:
        if isinstance(node, ast.Assign):
            names = (name for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name))
            found.update({name.id: node for name in names})
    return found


def used(name: str, known: dict[str, ast.Assign]) -> set[ast.Assign]:
    """The assignment to a name, and those of the same module that it takes something from."""
    found: set[ast.Assign] = set()
    waiting = [name]
    while waiting:
        node = known.get(waiting.pop())
        if node is not None and node not in found:
            found.add(node)
            waiting += [inner.id for inner in ast.walk(node.value) if isinstance(inner, ast.Name)]
    return found


def lines_of(source: str) -> dict[str, int]:
    """The lines of each family of a module, by its `model_type`."""
    known, lines = assigned(ast.parse(source)), {}
    for name, node in known.items():
        keywords = node.value.keywords if isinstance(node.value, ast.Call) else []
        for keyword in keywords:
            if keyword.arg == "model_type" and isinstance(keyword.value, ast.Constant):
                nodes = used(name, known)
                lines[str(keyword.value.value)] = len(
                    {line for each in nodes for line in range(each.lineno, (each.end_lineno or 0) + 1)}
                )
    return lines


@pytest.fixture(scope="module")
def lines() -> dict[str, int]:
    found: dict[str, int] = {}
    for path in sorted(FAMILIES.glob("*.py")):
        found.update(lines_of(path.read_text(encoding="utf-8")))
    return found


def test_lines_of_a_family_include_the_names_that_it_reads() -> None:
    source = '_KEYS = {\n "a": 1,\n}\n_OTHER = 2\nONE = Family(\n model_type="one",\n keys=_KEYS,\n)\n'
    source += 'TWO = replace(ONE, model_type="two")\n'
    assert lines_of(source) == {"one": 7, "two": 8}


def test_no_family_takes_more_than_50_lines(lines: dict[str, int]) -> None:
    assert len(lines) > 20
    assert {family: count for family, count in lines.items() if count > MOST_LINES} == {}


def test_the_page_says_how_many(lines: dict[str, int]) -> None:
    page = (ROOT / "docs/reference/models.md").read_text(encoding="utf-8").splitlines()
    column = next(line for line in page if line.startswith("| family")).split("|").index(" lines ")
    said = {match[1]: int(line.split("|")[column]) for line in page if (match := _ROW.match(line))}
    assert said == lines
    assert f"of {min(lines.values())} to {max(lines.values())} lines." in "\n".join(page)


def test_every_family_is_counted(lines: dict[str, int]) -> None:
    pytest.importorskip("torch", reason="exporting comes with the extra export")
    from sol_rt.export.sources.families import FAMILIES as exported

    assert set(lines) == set(exported)
