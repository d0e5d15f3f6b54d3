"""Draws a trace as one self-contained HTML page.

The page shows the prompt, the settings, the text shaded by each token's cost, the budget over time, and the actions.
"""

from __future__ import annotations

import html
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

import altair as alt

from sol_rt.budget.cost.model import in_unit
from sol_rt.evaluation.pages.chart import LIGHT, MONOSPACE, WIDTH, colours, figure, rows, tag_and_words
from sol_rt.evaluation.pages.style import COLOURS, page, tiles
from sol_rt.generate.trace import Trace, TraceRecord

SHADES = 12
"""Number of colours on the cost scale."""
LIGHT_TEXT, DARK_TEXT = COLOURS["ink"]
_LIGHT_RAMP = ("#eef3f8", "#f6d9a8", "#ee9150")
_DARK_RAMP = ("#1d2733", "#5c4216", "#93401a")

_HEIGHT = 300  # pixels between the axes
_TOLERANCE = 0.02
_TAG_HEIGHT = 15.0  # pixels

_READ = """\
<p class="read">The model wrote this text one token at a time. Each token is shaded by the <b>cost</b> of its decode
step, a share of what a dense step costs at the same context, {unit}; a dense step reads everything. The
<b>budget</b> is the mean cost that was asked for. Before each step the schedule picks an <b>action</b>, which says what
the step reads, and the controller keeps the mean at the budget. Point at a token to see its step, or use the arrow keys
in the text.</p>"""


def render_trace_html(trace: Trace) -> str:
    """Returns the page as text, UTF-8. The page loads nothing from elsewhere, and text from the trace is escaped."""
    header, records = trace.header, trace.records
    steps = [record for record in records if record.action is not None]
    costs = [record.relative_cost for record in steps]
    scale = (min(costs, default=0.0), max(costs, default=1.0))
    identity = header.config_sha256[:12]
    unit = in_unit(header.cost_model)
    foot = f"costs are shares of dense, {unit} · log-probabilities in nats · config {identity}"
    body = [
        f"<h1>{html.escape(header.bundle)}: a generation, token by token</h1>",
        _READ.format(unit=html.escape(unit)),
        tiles(_facts(trace, steps)),
        _settings(header.generation),
        _prompt(header.prompt, len(header.prompt_tokens)),
        '<h2 id="cost">The text, and what each token cost</h2>',
        f'<p class="key"><span>{_scale(scale, unit)}</span>'
        "<span><u>underlined</u>: from the prompt’s own run</span></p>",
        '<div id="text" class="box" dir="auto" tabindex="0" role="group" aria-labelledby="cost" aria-describedby="tip">'
        f"{''.join(_token(record, scale, unit) for record in records)}</div>",
        _chart(trace, steps),
        "<h2>How often each action was taken</h2>",
        _actions(steps, scale, unit),
        f"<footer>{html.escape(foot)}</footer>",
        '<div id="tip" role="status" hidden></div>',
        _SCRIPT,
    ]
    style = (
        f":root {{ {_shade_rules(_LIGHT_RAMP)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {_shade_rules(_DARK_RAMP)} }} }}\n{_STYLE}"
    )
    return page(f"{header.bundle}: {header.schedule}", "\n".join(body), style, scripts=True)


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


def _visible(text: str) -> str:
    """Escapes text. Control characters, which a page must not contain, become their Unicode pictures."""
    kept = (
        chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else "\ufffd" if unicodedata.category(c) == "Cs" else c
        for c in text
    )
    return html.escape("".join(kept))


def _facts(trace: Trace, steps: Sequence[TraceRecord]) -> list[tuple[str, str]]:
    header, unit = trace.header, in_unit(trace.header.cost_model)
    ms = sum(record.ms for record in steps)
    return [
        ("schedule", header.schedule),
        (f"budget requested, {unit}", "–" if header.budget is None else f"{header.budget:.3f}"),
        (f"budget achieved, {unit}", f"{trace.records[-1].achieved:.3f}" if trace.records else "–"),
        ("speed", f"{1000 * len(steps) / ms:.1f} tokens/s" if ms > 0 else "–"),
        ("prompt", _count(len(header.prompt_tokens), "token")),
        ("text", _count(len(trace.records), "token")),
    ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _settings(generation: Mapping[str, object]) -> str:
    """Shows the settings of sampling in one line; empty for a trace without settings."""
    if not generation:
        return ""
    sampled = bool(generation.get("do_sample")) and generation.get("temperature") != 0
    shown = {name: value for name, value in generation.items() if name not in _ALWAYS_SAID and value not in _OFF}
    if not sampled:
        shown = {name: value for name, value in shown.items() if name not in _OF_SAMPLING}
    parts = ["sampled" if sampled else "likeliest token at every step (greedy)"]
    parts += [f"{name} {_value(value)}" for name, value in shown.items() if (name, value) not in _CHANGES_NOTHING]
    return f'<p class="quiet settings">{_visible("Settings: " + " · ".join(parts))}</p>'


_ALWAYS_SAID = ("do_sample", "eos_token_id")
_OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed")
_OFF: tuple[object, ...] = (None, [], (), {})
_CHANGES_NOTHING = (
    ("repetition_penalty", 1.0),
    ("presence_penalty", 0.0),
    ("frequency_penalty", 0.0),
    ("top_k", 0),
    ("top_p", 1.0),
    ("min_p", 0.0),
)


def _value(value: object) -> str:
    return ", ".join(map(repr, value)) if isinstance(value, (list, tuple)) else str(value)


def _prompt(prompt: str, tokens: int) -> str:
    heading = "<h2>The prompt</h2>"
    if not prompt:
        return f'{heading}<p class="quiet">prompt: {_count(tokens, "token")}; its text is not in the trace.</p>'
    return f'{heading}<div class="box prompt" dir="auto">{_visible(prompt)}</div>'


def _scale(scale: tuple[float, float], unit: str) -> str:
    cells = "".join(f'<i style="background:var(--s{index})"></i>' for index in range(SHADES))
    return (
        f"<span>cost {scale[0]:.2f}</span>{cells}<span>{scale[1]:.2f} of the dense step’s, {html.escape(unit)}</span>"
    )


def _token(record: TraceRecord, scale: tuple[float, float], unit: str) -> str:
    facts = f"token {record.token} · log-probability {record.logprob:.2f} · {record.ms:.1f} ms"
    if record.action is None:
        facts = f"from the prefill\n{facts}"
        shade = ""
    else:
        facts = (
            f"step {record.step} · {record.action} · {record.relative_cost:.3f} of dense, {unit}\n{facts}\n"
            f"context {record.context} · achieved so far {record.achieved:.3f}"
        )
        shade = f' style="background:var(--s{_shade(record.relative_cost, scale)})"'
    kind = "t first" if record.action is None else "t"
    shown = _visible(record.text) if record.text else '<span class="none">·</span>'
    step = "" if record.action is None else f' data-step="{record.step}"'
    return f'<span class="{kind}"{shade}{step} title="{html.escape(facts)}">{shown}</span>'


def _chart(trace: Trace, steps: Sequence[TraceRecord]) -> str:
    """Draws the achieved budget after each step, the requested budget, and each step's cost as a dot."""
    title = "The cost of each step, and the budget achieved so far"
    if not steps:
        return f'<h2>{title}</h2><p class="quiet">No decode steps.</p>'
    budget, last = trace.header.budget, max(steps[-1].step, 2)
    top = max(1.0, *(record.relative_cost for record in steps), *(record.achieved for record in steps))
    one, mean, asked = "one step", "mean cost so far: the achieved budget", f"requested budget, ± {_TOLERANCE}"
    x = alt.X("step:Q", title="decode step", scale=alt.Scale(domain=[1, last], nice=False), axis=alt.Axis(grid=False))
    cost = f"cost, share of the dense step’s, {in_unit(trace.header.cost_model)}"
    y = alt.Y("cost:Q", title=cost, scale=alt.Scale(domain=[0, top], nice=False))
    kinds = {one: "dot", mean: "blue"} | ({} if budget is None else {asked: "ink"})
    colour = alt.Color("kind:N", scale=colours(kinds))
    costs = [{"kind": one, "step": each.step, "cost": each.relative_cost} for each in steps]
    means = [{"kind": mean, "step": each.step, "cost": each.achieved} for each in steps]
    layers: list[alt.Chart] = []
    if budget is not None:
        band = rows([{"cost": budget - _TOLERANCE, "high": budget + _TOLERANCE}])
        line = rows([{"kind": asked, "cost": budget, "facts": f"requested {budget:.3f}"}])
        layers = [
            band.mark_rect(aria=False, opacity=0.14, color=LIGHT["blue"]).encode(y=y, y2="high:Q"),
            line.mark_rule(strokeDash=[6, 4], strokeWidth=1.5).encode(y, colour, description="facts:N"),
        ]
    layers += [
        rows(costs).mark_circle(aria=False, size=16, opacity=1).encode(x, y, colour),
        rows(means).mark_line(aria=False, strokeWidth=2.5).encode(x, y, colour),
        rows(_beside(steps, top))
        .mark_text(aria=False, font=MONOSPACE, fontSize=12, align="left", fill=LIGHT["ink"])
        .encode(y=y, x=alt.value(WIDTH + 8), text="tag:N"),
    ]
    summary = f"Achieved budget after each step, at the end {steps[-1].achieved:.3f}"
    summary += "" if budget is None else f", requested {budget:.3f}"
    chart = alt.layer(*layers).properties(width=WIDTH, height=_HEIGHT)
    return figure(title, chart, summary, "Tags at the right stand at the mean costs of the actions taken most often.")


def _beside(steps: Sequence[TraceRecord], top: float) -> list[dict[str, object]]:
    """The tags that stand beside the chart: those of the actions taken most often that have room there."""
    placed: dict[str, float] = {}
    for action, _ in _counted(steps).most_common():
        cost = _mean_cost(steps, action)
        if all(abs(cost - other) * _HEIGHT / top >= _TAG_HEIGHT for other in placed.values()):
            placed[action] = cost
    return [{"tag": action, "cost": cost} for action, cost in placed.items()]


def _counted(steps: Sequence[TraceRecord]) -> Counter[str]:
    return Counter(record.action for record in steps if record.action is not None)


def _mean_cost(steps: Sequence[TraceRecord], action: str) -> float:
    costs = [record.relative_cost for record in steps if record.action == action]
    return sum(costs) / len(costs)


def _actions(steps: Sequence[TraceRecord], scale: tuple[float, float], unit: str) -> str:
    """One table row per action, the most expensive first."""
    counts = _counted(steps)
    mean = {action: _mean_cost(steps, action) for action in counts}
    most = max(counts.values(), default=1)
    rows = []
    for action in sorted(counts, key=lambda action: (-mean[action], action)):
        bar = f"width:{100 * counts[action] / most:.1f}%;background:var(--s{_shade(mean[action], scale)})"
        cells = (str(counts[action]), f"{100 * counts[action] / len(steps):.0f}%", f"{mean[action]:.3f}")
        rows.append(
            f'<tr><th scope="row">{tag_and_words(action)}</th>'
            f'<td class="bar"><i style="{bar}"></i></td>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        )
    heads = "".join(
        f'<th scope="col">{html.escape(head)}</th>'
        for head in ("action", "", "steps", "share of steps", f"mean cost of dense, {unit}")
    )
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


_STYLE = """\
.box { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line); border-radius: 8px;
 padding: 1rem 1.1rem; }
.prompt { background: var(--panel); max-height: 22rem; overflow-y: auto; }
.settings { margin: .8rem 0 0; }
#text { line-height: 1.85; }
#text:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; }
.t { padding: .14em 0; border-radius: 3px; cursor: default; box-decoration-break: clone;
 -webkit-box-decoration-break: clone; }
.first, .key u { text-decoration: underline dotted var(--quiet); text-underline-offset: .25em; }
.t.on { outline: 2px solid var(--blue); }
.none { font-size: .8em; }
.key { display: flex; flex-wrap: wrap; align-items: center; gap: 0 1.5rem; color: var(--quiet); font-size: .8rem;
 margin: 0 0 .6rem; }
.key > span { display: inline-flex; align-items: center; }
.key i { width: clamp(.4rem, 1.5vw, 1.1rem); height: .8rem; }
.key u { margin-right: 0; }
.key span span { margin: 0 .5rem; white-space: nowrap; }
.key span span:first-child { margin-left: 0; }
.role-mark .on { stroke: var(--ink); stroke-width: 7; }
.bar { width: 40%; min-width: 8rem; text-align: left; }
.bar i { display: block; height: .95rem; border-radius: 3px; min-width: 2px; border: 1px solid var(--dot); }
#tip { position: absolute; z-index: 1; max-width: min(22rem, calc(100vw - 1rem)); padding: .45rem .65rem;
 border-radius: 6px; background: var(--ink); color: var(--page); font-size: .8rem; white-space: pre-line;
 pointer-events: none; }"""

_SCRIPT = """\
<script>
const text = document.getElementById("text"), tip = document.getElementById("tip");
const steps = document.querySelectorAll(".mark-symbol.role-mark path");
const tokens = [...text.querySelectorAll(".t")];
for (const token of tokens) { token.dataset.facts = token.title; token.removeAttribute("title"); }
let at = -1;
function show(index) {
  for (const shown of document.querySelectorAll(".on")) shown.classList.remove("on");
  at = index;
  tip.hidden = at < 0;
  if (at < 0) return;
  const token = tokens[at];
  token.classList.add("on");
  tip.textContent = token.dataset.facts;
  const box = token.getClientRects()[0] || token.getBoundingClientRect();
  const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
  tip.style.left = Math.max(8, left) + scrollX + "px";
  tip.style.top = box.bottom + scrollY + 6 + "px";
  steps[token.dataset.step - 1]?.classList.add("on");
}
text.addEventListener("pointerover", event => {
  const token = event.target.closest(".t");
  if (token) show(tokens.indexOf(token));
});
text.addEventListener("pointerleave", () => show(-1));
text.addEventListener("blur", () => show(-1));
text.addEventListener("keydown", event => {
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (step && tokens.length) {
    event.preventDefault();
    show(Math.min(Math.max(at + step, 0), tokens.length - 1));
  }
  if (event.key === "Escape") show(-1);
});
</script>"""
