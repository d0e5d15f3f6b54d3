"""The HTML pages: what their charts name, and how a browser shows them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import screenshots

from helpers.made_pages import HOSTILE, TAGS, evaluation, selection, trace
from helpers.places import ROOT
from sol_rt.evaluation.pages.chart import in_words
from sol_rt.evaluation.pages.evaluation import render_evaluation_html
from sol_rt.evaluation.pages.frontier import render_frontier_html
from sol_rt.evaluation.pages.style import COLOURS
from sol_rt.evaluation.pages.trace import render_trace_html

PAGES: dict[str, Callable[[], str]] = {
    "trace": lambda: render_trace_html(trace()),
    "actions": lambda: render_frontier_html("tiny", selection()),
    "schedules": lambda: render_evaluation_html(evaluation()),
}


def drawings(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(drawn) for drawn in re.findall("<svg.*?</svg>", page, re.DOTALL)]


def labels(page: str) -> list[list[str]]:
    """The tags that are written in each chart."""
    return [
        [
            text.text or ""
            for group in chart.iter("g")
            if "mark-text role-mark" in group.get("class", "")
            for text in group
        ]
        for chart in drawings(page)
    ]


def facts(page: str) -> list[list[str]]:
    """Texts of each chart's marks, which a browser shows where the reader points."""
    return [[title.text or "" for title in chart.iter("title")] for chart in drawings(page)]


@pytest.mark.parametrize("name", PAGES)
def test_a_chart_names_what_is_seen_and_both_axes(name: str) -> None:
    page = PAGES[name]()
    charts = drawings(page)
    assert len(charts) == page.count("<figcaption>") == {"trace": 1, "actions": 2, "schedules": 2}[name]
    for chart in charts:
        titles = [each.text or "" for each in chart.findall(".//g[@class='mark-text role-axis-title']/text")]
        (cost,) = (title for title in titles if "share of the dense step’s" in title)
        assert cost.endswith(", in bytes")
        if name == "trace":
            assert "decode step" in titles
        else:
            assert "loss over dense, nats per token (log scale)" in titles
            assert "perplexity over dense" in titles
    words = unescape(re.sub("<style>.*</style>|<[^>]*>", "", page, flags=re.DOTALL))
    assert "budget" in words
    assert "nats" in words


@pytest.mark.parametrize("name", PAGES)
def test_a_row_of_a_table_has_a_cell_for_every_heading(name: str) -> None:
    tables = re.findall("<table>(.*?)</table>", PAGES[name](), re.DOTALL)
    assert tables
    for table in tables:
        heads, *rows = ([*re.findall("<t[hd]", row)] for row in re.findall("<tr>.*?</tr>", table, re.DOTALL))
        assert rows
        assert {len(row) for row in rows} == {len(heads)}


def test_every_kept_action_is_drawn_and_every_candidate_its_reason() -> None:
    chosen = selection(kept=11)
    page = render_frontier_html("tiny", chosen)
    for told, written in zip(facts(page), labels(page), strict=True):
        kept = [text.split(":")[0] for text in told if "\nkept: " in text]
        assert sorted(kept) == sorted(TAGS[:11])
        assert 0 < len(told) - len(kept) <= len(TAGS) - 11
        assert len(set(written) & set(kept)) == len(written) > 3
    rows = re.findall(r'<tr><th scope="row"><code>([^<]*)</code></th>.*?<td class="why">([^<]*)</td></tr>', page)
    assert rows == [
        (candidate.action.tag, f"{'kept' if candidate.kept else 'dropped'}: {candidate.reason}")
        for candidate in chosen.candidates
    ]


@pytest.mark.parametrize("name", PAGES)
def test_every_budget_and_cost_has_its_unit(name: str) -> None:
    page = unescape(PAGES[name]())
    unit = "in bytes"
    heads = [
        head for head in re.findall(r'<th scope="col">([^<]*)</th>', page) if re.search(r"\b(cost|budget)\b", head)
    ]
    told = re.findall(r"<title>([^<]*\b(?:cost|budget) [^<]*)</title>", page)
    assert heads or name == "trace"
    assert [text for text in (*heads, *told) if unit not in text] == []
    assert page.count("of dense") == page.count(f"of dense, {unit}")


def test_actions_are_drawn_in_the_unit_that_budgets_have_here() -> None:
    """Candidates that the bundle lacks have no times."""
    timed = {tag: 0.9 if tag.startswith("k100") else 0.5 for tag in TAGS[:12]}
    chosen = selection(kept=8)
    page = unescape(render_frontier_html("tiny", chosen, "measured", lambda action, context: timed.get(action.tag)))
    for told in facts(page):
        assert [sum(f"\n{outcome}: " in text for text in told) for outcome in ("kept", "dropped")] == [8, 4]
    assert page.count("share of the dense step’s, in measured ms</text>") == len(chosen.contexts)
    assert f"{len(TAGS) - 12} dropped are not drawn" in page
    assert page.count("50% of dense, in measured ms") == len(chosen.contexts)


def test_a_selection_of_one_action_is_drawn() -> None:
    for kept in (1, 2):
        assert len(drawings(render_frontier_html("tiny", selection(kept, (64,))))) == 1


def test_schedules_and_single_actions_are_named() -> None:
    page = render_evaluation_html(evaluation())
    legend = [text.text for text in drawings(page)[0].findall(".//g[@class='mark-text role-legend-label']/text")]
    assert legend == ["mix", "random", "uniform", "entropy", "sol"]
    assert set(labels(page)[0]) & set(TAGS)


@pytest.mark.slow
def test_pages_escape_names_reasons_and_texts() -> None:
    pages = (
        render_trace_html(trace(prompt=HOSTILE, name=HOSTILE)),
        render_frontier_html(HOSTILE, selection(reason=HOSTILE)),
        render_evaluation_html(evaluation(HOSTILE, HOSTILE)),
    )
    for page, scripts in zip(pages, (1, 0, 0), strict=True):
        assert page.count("<script") == scripts
        assert "<img" not in page
        assert "alert(1)" in page
        assert not re.search(r"https?:|url\(|@import|<link|<iframe| src=", page.replace("src=x onerror", ""))


def test_the_trace_page_shows_prompt_settings_and_actions() -> None:
    page = unescape(render_trace_html(trace()))
    assert '<div class="box prompt" dir="auto">Once upon a time</div>' in page
    assert "sampled · temperature 0.8 · top_p 0.95 · seed 7" in page
    assert "top_k" not in page  # 0 changes nothing
    assert "285.7 tokens/s" in page  # 3.5 ms a step
    assert len(labels(page)[0]) > 3
    greedy = trace()
    greedy = dataclasses.replace(greedy, header=dataclasses.replace(greedy.header, generation={"do_sample": False}))
    assert "Settings: likeliest token at every step (greedy)</p>" in render_trace_html(greedy)


def test_a_trace_without_the_prompts_text() -> None:
    """Bundles without a tokenizer give such traces."""
    assert "prompt: 3 tokens; its text is not in the trace" in render_trace_html(trace(prompt=""))


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ("k100-s100-q8", "8 bits"),
        ("k010-s050-q4", "4 bits, channel density 0.5, KV density 0.1"),
        ("k100-s100-qmix", "mixed bits"),
        ("Q4_K_M", ""),
    ],
)
def test_a_tag_is_said_in_words(tag: str, words: str) -> None:
    assert in_words(tag) == words


def contrast(first: str, second: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_colours_of_text_have_contrast(mode: int) -> None:
    for name, colour in COLOURS.items():
        if name in ("page", "panel", "line"):
            continue
        least = 3.0 if name == "dot" else 4.5  # the dot is never text
        assert contrast(colour[mode], COLOURS["page"][mode]) >= least, name
    for name in ("ink", "quiet"):
        assert contrast(COLOURS[name][mode], COLOURS["panel"][mode]) >= 4.5


MEASURE = """<!doctype html><meta charset="utf-8"><title>measure</title>
%s
<pre id="found"></pre>
<script>
function parts(colour) { return colour.match(/[\\d.]+/g).map(Number); }
function luminance(colour) {
  const [r, g, b] = parts(colour).slice(0, 3).map(v => v / 255).map(
    v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function behind(view, element) {
  for (; element; element = element.parentElement) {
    const colour = view.getComputedStyle(element).backgroundColor, alpha = parts(colour)[3];
    if (alpha === undefined || alpha > 0) return colour;
  }
}
addEventListener("load", () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, view = frame.contentWindow;
    const names = page.querySelectorAll("svg .mark-text.role-mark text, svg .role-legend-label text");
    const boxes = [...names].map(label => {
      const {left, top, right, bottom} = label.getBoundingClientRect();
      const svg = [...page.querySelectorAll("svg")].indexOf(label.ownerSVGElement);
      const area = label.ownerSVGElement.getBoundingClientRect();
      const inside = left >= area.left && right <= area.right && top >= area.top && bottom <= area.bottom;
      return {name: label.textContent, svg, left, top, right, bottom, inside};
    });
    const contrasts = [];
    const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const element = walker.currentNode.parentElement;
      if (!walker.currentNode.data.trim() || element.closest("script, title, style, [hidden]")) continue;
      const style = view.getComputedStyle(element);
      const drawn = element.closest("svg") ? style.fill : style.color;
      const pair = [luminance(drawn), luminance(behind(view, element))].sort((a, b) => a - b);
      contrasts.push([(pair[1] + 0.05) / (pair[0] + 0.05), walker.currentNode.data.trim().slice(0, 30)]);
    }
    contrasts.sort((a, b) => a[0] - b[0]);
    found[frame.id] = {
      boxes, worst: contrasts[0], texts: contrasts.length,
      background: view.getComputedStyle(page.body).backgroundColor,
      overflow: page.documentElement.scrollWidth - view.innerWidth,
    };
  }
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>
"""
WIDTHS = (1280, 400)
Shown = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Shown, str]]:
    """Layouts that the browser made of all pages at all widths, and its messages, in light and in dark mode."""
    try:
        browser = screenshots.find_browser()
    except screenshots.BrowserError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("pages")
    frames = []
    for name, render in PAGES.items():
        (folder / f"{name}.html").write_text(render(), encoding="utf-8")
        frames += [
            f'<iframe id="{name}-{width}" src="{name}.html" width="{width}" height="900"></iframe>' for width in WIDTHS
        ]
    (folder / "measure.html").write_text(MEASURE % "".join(frames), encoding="utf-8")
    # a page may look into its frames only if files are of one origin
    options = ["--allow-file-access-from-files", "--enable-logging=stderr", "--window-size=1400,900", "--dump-dom"]
    modes = {}
    for mode in ("light", "dark"):
        dom, messages = screenshots.browse(browser, folder / "measure.html", options, dark=mode == "dark")
        found = re.search('<pre id="found">(.*?)</pre>', dom, re.DOTALL)
        assert found, messages
        modes[mode] = json.loads(unescape(found[1])), messages
    return modes


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_in_a_browser(shown: dict[str, tuple[Shown, str]], mode: str) -> None:
    found, messages = shown[mode]
    assert "CONSOLE" not in messages
    assert set(found) == {f"{name}-{width}" for name in PAGES for width in WIDTHS}
    for page, facts in found.items():
        assert facts["overflow"] <= 0, page
        assert facts["texts"] > 50
        assert facts["worst"][0] >= 4.5, (page, facts["worst"])
        boxes = facts["boxes"]
        assert boxes
        assert all(box["inside"] for box in boxes), page
        for one, other in itertools.combinations(boxes, 2):
            apart = (
                one["svg"] != other["svg"]
                or one["right"] <= other["left"]
                or other["right"] <= one["left"]
                or one["bottom"] <= other["top"] + 1
                or other["bottom"] <= one["top"] + 1
            )
            assert apart, (page, one, other)


@pytest.mark.slow
def test_the_page_is_dark_where_the_reader_prefers_it(shown: dict[str, tuple[Shown, str]]) -> None:
    for page in shown["light"][0]:
        assert shown["light"][0][page]["background"] == "rgb(255, 255, 255)"
        assert shown["dark"][0][page]["background"] == "rgb(15, 20, 26)"


@pytest.mark.slow
def test_the_browser_reports_a_scripts_error(tmp_path: Path) -> None:
    try:
        browser = screenshots.find_browser()
    except screenshots.BrowserError as error:
        pytest.skip(str(error))
    page = tmp_path / "page.html"
    page.write_text("<script>gone()</script>", encoding="utf-8")
    _, messages = screenshots.browse(browser, page, ["--enable-logging=stderr", "--dump-dom"])
    assert "CONSOLE" in messages


def test_a_machine_without_a_browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["screenshots.py", "tiny", "-o", str(tmp_path / "pictures")])
    with pytest.raises(SystemExit, match=r"error: no Chromium in PATH .* apt-get install chromium"):
        screenshots.main()
    assert not (tmp_path / "pictures").exists()


def test_pictures_in_the_docs_are_small() -> None:
    pictures = sorted((ROOT / "docs/images").glob("page-*.png"))
    names = [f"page-{name}-{mode}" for name in sorted(PAGES) for mode in ("dark", "light")]
    assert [picture.stem for picture in pictures] == names, "run `make screenshots`"
    assert max(picture.stat().st_size for picture in pictures) <= screenshots.MOST_BYTES
    for mode in ("dark", "light"):
        assert (ROOT / f"docs/images/playground-{mode}.png").stat().st_size < 150_000
