"""Traces survive the file, damage is one line, and the page shows them safely."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sol_rt.errors import SolError
from sol_rt.evaluation.pages.trace import (
    _DARK_RAMP,
    _LIGHT_RAMP,
    DARK_TEXT,
    LIGHT_TEXT,
    SHADES,
    render_trace_html,
    shades,
)
from sol_rt.generate.generation_config import GenerationConfig
from sol_rt.generate.trace import Trace, TraceHeader, TraceRecord, read_trace

HEADER = TraceHeader("tiny", "ab" * 32, (1, 2, 3), "Once upon", "sol", 0.5, "bytes")
TAGS = ("k100-s100-q8", "k050-s050-q4")


def made_trace(steps: int = 40, texts: tuple[str, ...] = (" the", " sea\n")) -> Trace:
    first = TraceRecord(0, 5, texts[0], None, 3, 0.0, 0.0, -1.5, 30.0, 1.0)
    records = [
        TraceRecord(
            step, 5 + step, texts[step % len(texts)], TAGS[step % 2], 2 + step, 1e8,
            (1.0, 0.4)[step % 2], -0.25 * step, 3.5, 0.7,
        )
        for step in range(1, steps + 1)
    ]  # fmt: skip
    return Trace(HEADER, (first, *records))


def write(path: Path, trace: Trace) -> None:
    path.write_text(trace.to_jsonl(), encoding="utf-8", newline="")


def test_trace_survives_the_file(tmp_path: Path) -> None:
    trace = made_trace(texts=(" the", "\u2028 \r\n深", "", '"<b>'))
    write(tmp_path / "t.jsonl", trace)
    assert read_trace(tmp_path / "t.jsonl") == trace
    trace = Trace(dataclasses.replace(HEADER, budget=None, prompt=""), ())
    write(tmp_path / "t.jsonl", trace)
    assert read_trace(tmp_path / "t.jsonl") == trace


def lines_of(tmp_path: Path) -> list[str]:
    write(tmp_path / "t.jsonl", made_trace(4))
    return (tmp_path / "t.jsonl").read_text(encoding="utf-8").splitlines()


def failing(tmp_path: Path, content: str | bytes) -> str:
    path = tmp_path / "t.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SolError, match="trace") as error:
        read_trace(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def test_truncated_trace(tmp_path: Path) -> None:
    lines = lines_of(tmp_path)
    text = "\n".join(lines)
    assert "line 6 is cut off" in failing(tmp_path, text[:-9])
    assert "line 3 is not a record" in failing(tmp_path, "\n".join([*lines[:2], lines[2][:20], *lines[3:]]))
    assert "line 1" in failing(tmp_path, lines[0][:30])


@pytest.mark.parametrize("content", ["", "hello", "[1]", '{"format": "other"}', b"\xff\xfe", "[" * 10**5])
def test_foreign_file(tmp_path: Path, content: str | bytes) -> None:
    failing(tmp_path, content)


def test_json_that_only_some_readers_take(tmp_path: Path) -> None:
    """A NUL ends JSON for the core's library, which also passes over a byte order mark; Python's refuses both."""
    header, *records = lines_of(tmp_path)
    for first, second in (
        (header + "\0{}", records[0]),
        ("\ufeff" + header, records[0]),
        (header, "\ufeff" + records[0]),
    ):
        failing(tmp_path, "\n".join([first, second, *records[1:]]) + "\n")


def test_edited_trace(tmp_path: Path) -> None:
    lines = lines_of(tmp_path)

    def edited(number: int, **changes: object) -> str:
        raw = {**json.loads(lines[number]), **changes}
        return failing(tmp_path, "\n".join([*lines[:number], json.dumps(raw), *lines[number + 1 :]]) + "\n")

    assert "format version 2, expected 1" in edited(0, format_version=2)
    assert "budget" in edited(0, budget="much")
    assert "prompt_tokens" in edited(0, prompt_tokens=[1, "2"])
    for large in (10**400, -(10**310)):
        assert "line 1 is not a trace's header" in edited(0, budget=large)
        assert "line 3 is not a record" in edited(2, cost=large)
    lines[2] = json.dumps(json.loads(lines[2]) | {"relative_cost": 10**60})
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert read_trace(tmp_path / "t.jsonl").records[1].relative_cost == 1e60
    for text in ("x" * 10_000, "", "\x1b[31mred", "two\nlines"):
        for key in ("schedule", "cost_model"):
            assert f"line 1: {key}: got '" in (said := edited(0, **{key: text}))
            assert len(said) < 400
    assert "line 3: step 7, expected 1" in edited(2, step=7)
    assert "line 3: cost" in edited(2, cost=None)
    assert "line 3 is not a record" in edited(2, ms=float("nan"))
    assert "action tag" in edited(2, action="fast")
    assert "unknown key 'speed'" in edited(2, speed=1)
    missing = json.dumps({"step": 0})
    assert "no key 'token'" in failing(tmp_path, f"{lines[0]}\n{missing}\n")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SolError, match="--trace"):
        read_trace(tmp_path / "none.jsonl")


@pytest.mark.parametrize("name", ["a\0b", "\ud800"], ids=["NUL", "half a surrogate pair"])
def test_names_that_no_file_can_have_are_one_line(name: str) -> None:
    with pytest.raises(SolError, match=r"^trace '") as caught:
        read_trace(name)
    assert str(caught.value).isprintable()


class Page(html.parser.HTMLParser):
    """Checks nesting, and collects tags, attributes and the text inside tokens."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tokens: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append((tag, dict(attrs)))
        if (dict(attrs).get("class") or "").split(" ")[0] == "t":
            self.tokens.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if any((attrs.get("class") or "").split(" ")[0] == "t" for _, attrs in self.open):
            self.tokens[-1] += data


def test_page_shows_every_token_and_its_numbers() -> None:
    trace = made_trace()
    page = Page(render_trace_html(trace))
    assert page.tokens == [record.text for record in trace.records]
    titles = [attrs["title"] or "" for _, attrs in page.tags if (attrs.get("class") or "") in ("t", "t first")]
    assert "from the prefill" in titles[0]
    assert "k050-s050-q4" in titles[1]
    assert "0.400 of dense" in titles[1]
    assert "token 6" in titles[1]
    (dots,) = re.findall('<g class="mark-symbol role-mark.*?</g>', render_trace_html(trace))
    assert dots.count("<path") == 40
    assert "requested 0.500" in page.text
    cells = re.findall(r"<code>(.*?)</code>.*?<td>(\d+)</td><td>(\d+)%</td><td>([\d.]+)</td>", render_trace_html(trace))
    assert cells == [("k100-s100-q8", "20", "50", "1.000"), ("k050-s050-q4", "20", "50", "0.400")]


def test_page_loads_nothing() -> None:
    text = render_trace_html(made_trace())
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<link|<img|<iframe| src=", text)
    assert "default-src 'none'" in text


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=4))
def test_page_escapes_any_text(texts: list[str]) -> None:
    trace = made_trace(6, (*texts, '</span><script>alert("&lt;")</script>'))
    hostile = dataclasses.replace(
        HEADER, bundle="<img onerror=x>", prompt='"><script>1</script>', schedule="<i>", config_sha256="<b>" * 9
    )
    page = Page(render_trace_html(Trace(hostile, trace.records)))
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any(tag in ("img", "b") and attrs for tag, attrs in page.tags if "class" not in attrs)
    for token, record in zip(page.tokens, trace.records, strict=True):
        shown = re.sub("[\x00-\x08\x0b-\x1f]", lambda match: chr(0x2400 + ord(match.group())), record.text)
        assert token == (shown or "·")


def test_settings_that_change_nothing_are_not_listed() -> None:
    generation = {**dataclasses.asdict(GenerationConfig()), "do_sample": False}
    page = Page(render_trace_html(Trace(dataclasses.replace(HEADER, generation=generation), ())))
    assert "Settings: likeliest token at every step (greedy)" in page.text
    assert "penalty" not in page.text
    assert "logit_bias" not in page.text


def test_page_of_short_runs() -> None:
    for steps in (0, 1, 2):
        Page(render_trace_html(made_trace(steps)))
    page = Page(render_trace_html(Trace(dataclasses.replace(HEADER, budget=None), ())))
    assert "No decode steps" in page.text


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("ramp", "ink"), [(_LIGHT_RAMP, LIGHT_TEXT), (_DARK_RAMP, DARK_TEXT)])
def test_text_is_readable_on_every_shade(ramp: tuple[str, ...], ink: str) -> None:
    colours = shades(ramp)
    assert len(colours) == SHADES
    assert min(contrast(colour, ink) for colour in colours) >= 4.5
    # readable without colour vision: the scale is a scale of brightness, too
    brightness = [luminance(colour) for colour in colours]
    assert brightness in (sorted(brightness), sorted(brightness, reverse=True))
    assert f"--ink:{ink}" in render_trace_html(made_trace())


def test_an_error_repeats_little_of_a_long_name() -> None:
    with pytest.raises(SolError, match=r"trace x+…: File name too long; ") as caught:
        read_trace("x" * 10**6)
    assert len(str(caught.value)) < 300
