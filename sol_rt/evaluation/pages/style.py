"""Parts that all HTML pages share: frame, colours, text, headings, tiles, charts and tables."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

COLOURS = {
    "page": ("#ffffff", "#0f141a"),
    "ink": ("#1c2128", "#e8ecf1"),
    "quiet": ("#59636e", "#9aa6b2"),
    "line": ("#d5dbe1", "#2c3641"),
    "panel": ("#f6f8fa", "#161d25"),
    "blue": ("#0a5bbd", "#6cb0ff"),
    "orange": ("#b35900", "#f0a34a"),
    "green": ("#1a7f37", "#5cc878"),
    "purple": ("#8250df", "#c297ff"),
    "pink": ("#b3246b", "#ff8fc4"),
    "grey": ("#646d76", "#9aa6b2"),
    "dot": ("#8b949e", "#6b7683"),
}
"""Colours by name, for light and for dark mode. All but `line`, `panel`, `page` and `dot` are readable as text."""

_SHARED = """\
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1.25rem 3rem; background: var(--page); color: var(--ink);
 font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.25rem 0 .4rem; overflow-wrap: anywhere; }
p { margin: 0 0 .8rem; overflow-wrap: anywhere; }
.read { max-width: 46rem; }
.quiet, footer { color: var(--quiet); font-size: .8rem; }
footer { margin-top: 2rem; overflow-wrap: anywhere; }
code { font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
dl { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0 0; }
dl div { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .55rem .9rem;
 min-width: 7rem; max-width: 100%; }
dt { color: var(--quiet); font-size: .8rem; }
dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
figure { margin: 0 0 1rem; }
svg { display: block; width: 100%; min-width: 46rem; height: auto; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums;
 margin: .8rem 0; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); font-weight: 400;
 white-space: nowrap; vertical-align: top; }
th:first-child { text-align: left; padding-left: 0; }
th small { display: block; color: var(--quiet); }
thead th { color: var(--quiet); font-size: .8rem; vertical-align: bottom; }
.why { text-align: left; white-space: normal; min-width: 16rem; }"""

_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'{scripts}">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def page(title: str, body: str, style: str = "", *, scripts: bool = False) -> str:
    """A whole page that loads nothing from elsewhere.

    Args:
        title: plain text.
        body, style: HTML and CSS of this page.
        scripts: whether the body has a script.
    """
    sheet = f"{colours()}\n{_SHARED}\n{style}".strip()
    allowed = "; script-src 'unsafe-inline'" if scripts else ""
    return _FRAME.format(title=html.escape(title), style=sheet, body=body, scripts=allowed)


def colours() -> str:
    """CSS of the colours: variables for a page, and rules for charts, whose marks have the colours of light mode."""
    light, dark = (";".join(f"--{name}:{both[mode]}" for name, both in COLOURS.items()) for mode in (0, 1))
    marks = "\n".join(
        f'svg [{side}="{both[0]}"] {{ {side}: var(--{name}); }}'
        for name, both in COLOURS.items()
        for side in ("fill", "stroke")
    )
    return (
        f":root {{ color-scheme: light dark; {light}; }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark}; }} }}\n{marks}"
    )


def tiles(entries: Iterable[tuple[str, str]]) -> str:
    """A row of named values, both plain text."""
    cells = (f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in entries)
    return f"<dl>{''.join(cells)}</dl>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], why: bool = False) -> str:
    """A table of HTML cells. The first cell of a row is its heading; with `why` the last is a sentence that wraps."""

    def cell(tag: str, content: str, last: bool, scope: str = "") -> str:
        kind = ' class="why"' if why and last else ""
        return f"<{tag}{scope}{kind}>{content}</{tag}>"

    head = "".join(cell("th", content, index == len(heads) - 1, ' scope="col"') for index, content in enumerate(heads))
    lines = []
    for row in rows:
        first, *rest = row
        cells = "".join(cell("td", content, index == len(rest) - 1) for index, content in enumerate(rest))
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
