"""Draws a trace as one self-contained HTML page.

The page shows the text shaded by each token's cost, the achieved budget over time, and the actions taken.
"""

from __future__ import annotations

import html
import unicodedata
from collections import Counter
from collections.abc import Sequence

from sol_rt.evaluation.pages.style import STYLE
from sol_rt.generate.trace import Trace, TraceRecord

SHADES = 12
"""Number of colours on the cost scale."""
LIGHT_TEXT, DARK_TEXT = "#1c2128", "#e8ecf1"
_LIGHT_RAMP = ("#eef3f8", "#f6d9a8", "#ee9150")
_DARK_RAMP = ("#1d2733", "#5c4216", "#93401a")

_WIDTH, _HEIGHT = 880, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 12, 12, 28
_TOLERANCE = 0.02


def render_trace_html(trace: Trace) -> str:
    """Returns the page as text, UTF-8. The page loads nothing from elsewhere, and text from the trace is escaped."""
    header, records = trace.header, trace.records
    steps = [record for record in records if record.action is not None]
    costs = [record.relative_cost for record in steps]
    scale = (min(costs, default=0.0), max(costs, default=1.0))
    title = html.escape(f"{header.bundle}: {header.schedule}")
    return _PAGE.format(
        style=STYLE,
        title=title,
        light_shades=_shade_rules(_LIGHT_RAMP),
        dark_shades=_shade_rules(_DARK_RAMP),
        heading=html.escape(header.bundle),
        summary=_summary(trace, steps),
        scale=_scale(scale),
        prompt=_prompt(header.prompt),
        text="".join(_token(record, scale) for record in records),
        chart=_chart(trace, steps),
        actions=_actions(steps, scale),
        foot=html.escape(
            f"{len(header.prompt_tokens)} prompt tokens · costs in {_unit(header.cost_model)} · config "
            f"{header.config_sha256[:12]}"
        ),
    )


def shades(ramp: Sequence[str]) -> list[str]:
    """SHADES colours, interpolated between the colours of a ramp."""
    points = [tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in ramp]
    found = []
    for index in range(SHADES):
        at = index / (SHADES - 1) * (len(points) - 1)
        low = min(int(at), len(points) - 2)
        mixed = (round(a + (b - a) * (at - low)) for a, b in zip(points[low], points[low + 1], strict=True))
        found.append("#" + "".join(f"{part:02x}" for part in mixed))
    return found


def _shade_rules(ramp: Sequence[str]) -> str:
    return "".join(f"--s{index}:{colour};" for index, colour in enumerate(shades(ramp)))


def _shade(cost: float, scale: tuple[float, float]) -> int:
    low, high = scale
    if high - low < 1e-9:
        return SHADES // 2
    return min(max(round((cost - low) / (high - low) * (SHADES - 1)), 0), SHADES - 1)


def _unit(cost_model: str) -> str:
    return "measured milliseconds" if cost_model == "calibrated" else "bytes read"


def _visible(text: str) -> str:
    """Escapes text. Control characters, which a page must not contain, become their Unicode pictures."""
    kept = (
        chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else "\ufffd" if unicodedata.category(c) == "Cs" else c
        for c in text
    )
    return html.escape("".join(kept))


def _summary(trace: Trace, steps: Sequence[TraceRecord]) -> str:
    budget = trace.header.budget
    tiles = [
        ("schedule", html.escape(trace.header.schedule)),
        ("requested", "–" if budget is None else f"{budget:.3f}"),
        ("achieved", f"{trace.records[-1].achieved:.3f}" if trace.records else "–"),
        ("tokens", f"{len(trace.records)}"),
        ("a decode step", f"{sum(record.ms for record in steps) / len(steps):.1f} ms" if steps else "–"),
    ]
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in tiles)


def _scale(scale: tuple[float, float]) -> str:
    cells = "".join(f'<i style="background:var(--s{index})"></i>' for index in range(SHADES))
    return f"<span>{scale[0]:.2f}</span>{cells}<span>{scale[1]:.2f} of the dense step</span>"


def _prompt(prompt: str) -> str:
    return f'<span class="prompt">{_visible(prompt)}</span>' if prompt else ""


def _token(record: TraceRecord, scale: tuple[float, float]) -> str:
    facts = f"token {record.token} · log-probability {record.logprob:.2f} · {record.ms:.1f} ms"
    if record.action is None:
        facts = f"from the prefill\n{facts}"
        shade = ""
    else:
        facts = (
            f"step {record.step} · {record.action} · {record.relative_cost:.3f} of dense\n{facts}\n"
            f"context {record.context} · achieved so far {record.achieved:.3f}"
        )
        shade = f' style="background:var(--s{_shade(record.relative_cost, scale)})"'
    kind = "t first" if record.action is None else "t"
    text = _visible(record.text) if record.text else '<span class="none">·</span>'
    step = "" if record.action is None else f' data-step="{record.step}"'
    return f'<span class="{kind}"{shade}{step} title="{html.escape(facts)}">{text}</span>'


def _chart(trace: Trace, steps: Sequence[TraceRecord]) -> str:
    """Draws the achieved budget after each step, the requested budget, and each step's cost as a dot."""
    if not steps:
        return '<p class="quiet">No decode steps.</p>'
    last = max(steps[-1].step, 2)
    top = max(1.0, *(record.relative_cost for record in steps), *(record.achieved for record in steps))

    def x(step: float) -> float:
        return _LEFT + (step - 1) / (last - 1) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (1 - value / top) * (_HEIGHT - _TOP - _BOTTOM)

    right = _WIDTH - _RIGHT
    parts = []
    for tick in range(5):
        value = tick / 4
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    for tick in _ticks(last):
        parts.append(f'<text x="{x(tick):.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{tick}</text>')
    budget = trace.header.budget
    if budget is not None:
        height = y(budget - _TOLERANCE) - y(budget + _TOLERANCE)
        parts.append(
            f'<rect class="band" x="{_LEFT}" y="{y(budget + _TOLERANCE):.1f}" width="{right - _LEFT}" '
            f'height="{height:.1f}"/>'
        )
        parts.append(
            f'<line class="asked" x1="{_LEFT}" x2="{right}" y1="{y(budget):.1f}" y2="{y(budget):.1f}">'
            f"<title>requested {budget:.3f}</title></line>"
        )
    for record in steps:
        parts.append(f'<circle cx="{x(record.step):.1f}" cy="{y(min(record.relative_cost, top)):.1f}" r="1.8"/>')
    line = " ".join(f"{x(record.step):.1f},{y(record.achieved):.1f}" for record in steps)
    parts.append(f'<polyline class="got" points="{line}"/>')
    parts.append(f'<line id="cursor" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" x1="0" x2="0" visibility="hidden"/>')
    label = f"Achieved budget after each step, at the end {steps[-1].achieved:.3f}" + (
        "" if budget is None else f", requested {budget:.3f}"
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}" data-left="{_LEFT}" '
        f'data-right="{right}" data-last="{last}">{"".join(parts)}</svg>'
    )


def _ticks(last: int) -> list[int]:
    """At most nine round step numbers for the axis."""
    size = 1
    for size in (factor * 10**power for power in range(7) for factor in (1, 2, 5)):
        if last / size <= 8:
            break
    return [1, *range(size, last + 1, size)] if size > 1 else list(range(1, last + 1))


def _actions(steps: Sequence[TraceRecord], scale: tuple[float, float]) -> str:
    """One table row per action, the most expensive first."""
    counts = Counter(record.action for record in steps)
    mean = {}
    for action in counts:
        costs = [record.relative_cost for record in steps if record.action == action]
        mean[action] = sum(costs) / len(costs)
    most = max(counts.values(), default=1)
    rows = []
    for action in sorted(counts, key=lambda action: (-mean[action], action or "")):
        bar = f"width:{100 * counts[action] / most:.1f}%;background:var(--s{_shade(mean[action], scale)})"
        cells = (str(counts[action]), f"{100 * counts[action] / len(steps):.0f}%", f"{mean[action]:.3f}")
        rows.append(
            f'<tr><th scope="row"><code>{html.escape(action or "")}</code></th>'
            f'<td class="bar"><i style="{bar}"></i></td>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        )
    return "".join(rows)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}
:root {{ --tip:#1c2128; --tip-ink:#fff; {light_shades} }}
@media (prefers-color-scheme: dark) {{ :root {{ --tip:#e8ecf1; --tip-ink:#0f141a; {dark_shades} }} }}
.key {{ display: flex; flex-wrap: wrap; align-items: center; gap: 0 1.5rem; color: var(--quiet); font-size: .8rem;
 margin: 0 0 .6rem; }}
.key > span {{ display: inline-flex; align-items: center; }}
.key i {{ width: 1.1rem; height: .8rem; }}
.key span span {{ margin: 0 .5rem; }}
.key span span:first-child {{ margin-left: 0; }}
.key b {{ width: 1.4rem; height: 0; margin-right: .4rem; border-top: 2.5px solid var(--blue); }}
.key b.asked {{ border-top: 2px dashed var(--ink); }}
.key b.one {{ width: .45rem; height: .45rem; border: 0; border-radius: 50%; background: var(--dot); }}
#text {{ white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line); border-radius: 8px;
 padding: 1rem 1.1rem; line-height: 1.85; }}
.prompt {{ color: var(--quiet); }}
.t {{ padding: .14em 0; border-radius: 3px; cursor: default; box-decoration-break: clone;
 -webkit-box-decoration-break: clone; }}
.first {{ border-bottom: 1px dotted var(--quiet); }}
.t.on {{ outline: 2px solid var(--blue); }}
.none {{ color: var(--quiet); font-size: .8em; }}
#text:focus-visible {{ outline: 2px solid var(--blue); outline-offset: 2px; }}
svg {{ display: block; width: 100%; height: auto; font-size: 12px; }}
svg text {{ fill: var(--quiet); font-variant-numeric: tabular-nums; }}
.grid {{ stroke: var(--line); }}
.band {{ fill: var(--blue); opacity: .14; }}
.asked {{ stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 6 4; }}
circle {{ fill: var(--dot); opacity: .75; }}
.got {{ fill: none; stroke: var(--blue); stroke-width: 2.5; stroke-linejoin: round; }}
#cursor {{ stroke: var(--ink); }}
table {{ border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); font-weight: 400; }}
th:first-child {{ text-align: left; padding-left: 0; }}
thead th {{ color: var(--quiet); font-size: .8rem; }}
.bar {{ width: 50%; text-align: left; }}
.bar i {{ display: block; height: .95rem; border-radius: 3px; min-width: 2px; border: 1px solid var(--dot); }}
#tip {{ position: absolute; z-index: 1; max-width: 22rem; padding: .45rem .65rem; border-radius: 6px;
 background: var(--tip); color: var(--tip-ink); font-size: .8rem; white-space: pre-line; pointer-events: none; }}
.quiet, footer {{ color: var(--quiet); font-size: .8rem; }}
footer {{ margin-top: 2rem; overflow-wrap: anywhere; }}
</style>
</head>
<body>
<h1>{heading}</h1>
<dl>{summary}</dl>
<h2 id="cost">Cost of each token</h2>
<p class="key"><span>{scale}</span></p>
<div id="text" dir="auto" tabindex="0" role="group" aria-labelledby="cost" aria-describedby="tip">{prompt}{text}</div>
<h2>Budget</h2>
<p class="key"><span><b></b>achieved so far</span><span><b class="asked"></b>requested, ± 0.02</span>
<span><b class="one"></b>one step</span></p>
{chart}
<h2>Actions</h2>
<table><thead><tr><th scope="col">action</th><th></th><th scope="col">steps</th><th scope="col">share</th>
<th scope="col">of dense</th></tr></thead><tbody>{actions}</tbody></table>
<footer>{foot}</footer>
<div id="tip" role="status" hidden></div>
<script>
const text = document.getElementById("text"), tip = document.getElementById("tip");
const chart = document.querySelector("svg"), cursor = document.getElementById("cursor");
const tokens = [...text.querySelectorAll(".t")];
for (const token of tokens) {{ token.dataset.facts = token.title; token.removeAttribute("title"); }}
let at = -1;
function show(index) {{
  if (at >= 0) tokens[at].classList.remove("on");
  at = index;
  tip.hidden = at < 0;
  if (cursor) cursor.setAttribute("visibility", "hidden");
  if (at < 0) return;
  const token = tokens[at];
  token.classList.add("on");
  tip.textContent = token.dataset.facts;
  const box = token.getClientRects()[0] || token.getBoundingClientRect();
  const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
  tip.style.left = Math.max(8, left) + scrollX + "px";
  tip.style.top = box.bottom + scrollY + 6 + "px";
  if (cursor && token.dataset.step) {{
    const {{left, right, last}} = chart.dataset;
    const x = +left + (token.dataset.step - 1) / (last - 1) * (right - left);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
  }}
}}
text.addEventListener("pointerover", event => {{
  const token = event.target.closest(".t");
  if (token) show(tokens.indexOf(token));
}});
text.addEventListener("pointerleave", () => show(-1));
text.addEventListener("blur", () => show(-1));
text.addEventListener("keydown", event => {{
  const step = {{ArrowRight: 1, ArrowLeft: -1}}[event.key];
  if (step && tokens.length) {{
    event.preventDefault();
    show(Math.min(Math.max(at + step, 0), tokens.length - 1));
  }}
  if (event.key === "Escape") show(-1);
}});
</script>
</body>
</html>
"""
