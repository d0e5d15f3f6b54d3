"""The documentation: links that lead somewhere, an index that has every page, tests that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from helpers.places import ROOT

DOCS = sorted((ROOT / "docs").rglob("*.md"))
SECURITY = ROOT / "SECURITY.md"
BENCHMARKS = ROOT / "benchmarks"
PAGES = [ROOT / "README.md", SECURITY, BENCHMARKS / "README.md", *DOCS]
CODE = [ROOT / name for name in ("sol_rt", "export", "train", "core", "bindings/web/src")]

_LINK = re.compile(r"\]\(([^()\s]+)\)")
_IMAGE = re.compile(r"<img[^>]*\bsrc=\"([^\"]+)\"")
_PAGE = re.compile(r"docs/[\w/-]+\.md")
_FENCE = re.compile(r"\s*(```|~~~)")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines outside fenced code, with their numbers."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            yield number, line


def anchors(text: str) -> set[str]:
    """Names of the headings, as GitHub makes them; a repeated heading gets -1, -2, …"""
    found: set[str] = set()
    for _, line in text_lines(text):
        if heading := re.match(r"#{1,6}\s+(.*?)\s*$", line):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
            name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
            count = 0
            while (unique := f"{name}-{count}" if count else name) in found:
                count += 1
            found.add(unique)
    return found


def broken_links(page: Path, root: Path = ROOT) -> list[str]:
    """Links and pictures of a page that lead out of the repository, to no file, or to no heading."""
    broken = []
    for number, line in text_lines(page.read_text(encoding="utf-8")):
        for target in _LINK.findall(line) + _IMAGE.findall(line):
            if re.match(r"[a-z]+:", target):
                continue  # another site
            where, _, anchor = unquote(target).partition("#")
            file = (page.parent / where).resolve() if where else page
            if not file.is_relative_to(root.resolve()) or not file.exists():
                broken.append(f"line {number}: {target}: no such file")
            elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8")):
                broken.append(f"line {number}: {target}: no such heading")
    return broken


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    assert broken_links(page) == []


def headless_tables(text: str) -> list[int]:
    """Numbers of lines that begin a table without a heading, as after a blank line within one."""
    lines = dict(text_lines(text))
    begins = [at for at, line in lines.items() if line.startswith("|") and not lines.get(at - 1, "").startswith("|")]
    return [at for at in begins if not re.fullmatch(r"[|:\-\s]+", lines.get(at + 1, ""))]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_tables_have_headings(page: Path) -> None:
    assert headless_tables(page.read_text(encoding="utf-8")) == []


def test_a_table_that_a_blank_line_cuts_is_found() -> None:
    assert headless_tables("| a |\n|---|\n| 1 |\n\n| 2 |\n| 3 |\n") == [5]


def test_the_index_has_every_page() -> None:
    index = ROOT / "docs/README.md"
    linked = {target.partition("#")[0] for target in _LINK.findall(index.read_text(encoding="utf-8"))}
    assert {page.relative_to(index.parent).as_posix() for page in DOCS} - {"README.md"} <= linked


def test_the_table_of_benchmarks_has_every_command() -> None:
    """Two programs that only other benchmarks start, and workers of peers, have no row."""
    listed = re.findall(r"^\| `.*\| `(\w+(?:\.\w+)+)[ `]", (BENCHMARKS / "README.md").read_text(encoding="utf-8"), re.M)
    programs = [path for path in BENCHMARKS.glob("*/**/*.py") if "__main__" in path.read_text(encoding="utf-8")]
    names = {".".join(path.relative_to(BENCHMARKS).with_suffix("").parts) for path in programs}
    started = {"peers.hf_folder", "peers.importance", *(name for name in names if name.startswith("peers.workers."))}
    assert sorted(listed) == sorted(names - started)


@pytest.mark.parametrize("folder", CODE, ids=_name)
def test_pages_that_code_names_are_there(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.suffix in {".py", ".h", ".cc", ".cu", ".js", ".yaml"}]
    named = {(page, file) for file in files for page in _PAGE.findall(file.read_text(encoding="utf-8"))}
    assert [f"{_name(file)}: {page}" for page, file in sorted(named) if not (ROOT / page).is_file()] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs/results").glob("*.md")), ids=_name)
def test_pages_with_figures_say_when_and_by_which_code(page: Path) -> None:
    """A date and a commit."""
    text = page.read_text(encoding="utf-8")
    assert re.search(r"\b202\d-\d\d-\d\d\b|\b202\d\b|\d Nov\b", text)
    assert re.search(r"`[0-9a-f]{7}`", text)


def missing_tests(text: str, folder: Path) -> list[str]:
    """Tests that a page names as `test_file.py::Class::test_name` and that are not there."""
    missing = []
    for file, names in re.findall(r"`(test_\w+\.py)::([\w:]+)`", text):
        path = next(folder.rglob(file), None)
        body = ast.parse(path.read_text(encoding="utf-8")).body if path else []
        for name in names.split("::"):
            found = [each for each in body if isinstance(each, (ast.FunctionDef, ast.ClassDef)) and each.name == name]
            body = found[0].body if found else []
            if not found:
                missing.append(f"{file}::{names}")
                break
    return missing


def test_every_threat_names_tests_that_exist() -> None:
    text = SECURITY.read_text(encoding="utf-8")
    assert missing_tests(text, ROOT / "runtime_tests") == []
    section = text.partition("## Threats")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 15
    assert [row for row in rows if "::test_" not in row] == []


def test_names_of_missing_tests_are_found(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("class A:\n    def test_b(self): ...\ndef test_c(): ...\n")
    names = [f"test_{name}" for name in ("a.py::A::test_b", "a.py::test_c", "a.py::test_b", "d.py::test_c")]
    text = " ".join(f"`{name}`" for name in names)
    assert missing_tests(text, tmp_path) == names[2:]


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    lines = ["# One", "## One", "[file](page.md#one-1) [site](https://a.b/c)", "[gone](gone.md)", "[x](#two)"]
    page.write_text("\n".join([*lines, "```", "[in code](gone.md)", "```"]))
    assert broken_links(page, tmp_path) == ["line 4: gone.md: no such file", "line 5: #two: no such heading"]
