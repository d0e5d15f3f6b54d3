"""The style that all HTML pages share: colours, text, headings and tiles."""

from __future__ import annotations

STYLE = """\
:root { color-scheme: light dark; --page:#fff; --ink:#1c2128; --quiet:#59636e; --line:#d5dbe1; --panel:#f6f8fa;
 --blue:#0a5bbd; --dot:#8b949e; }
@media (prefers-color-scheme: dark) { :root { --page:#0f141a; --ink:#e8ecf1; --quiet:#9aa6b2; --line:#2c3641;
 --panel:#161d25; --blue:#6cb0ff; --dot:#6b7683; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1.25rem 3rem; background: var(--page); color: var(--ink);
 font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 2.25rem 0 .6rem; }
dl { display: flex; flex-wrap: wrap; gap: .75rem; margin: 0; }
dl div { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .55rem .9rem;
 min-width: 7rem; }
dt { color: var(--quiet); font-size: .8rem; }
dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }"""

CHART_STYLE = """\
.key { display: flex; flex-wrap: wrap; gap: 0 1.5rem; color: var(--quiet); font-size: .8rem; margin: 0 0 .6rem; }
.key span { display: inline-flex; align-items: center; }
svg { display: block; width: 100%; min-width: 36rem; height: auto; font-size: 12px; }
svg text { fill: var(--quiet); font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums;
 margin: .8rem 0; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); font-weight: 400; }
th:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--quiet); font-size: .8rem; }
footer { color: var(--quiet); font-size: .8rem; margin-top: 2rem; overflow-wrap: anywhere; }"""
"""The style of pages with charts and tables: keys, axes, tables and footers."""
