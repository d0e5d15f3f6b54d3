"""Made-up contents for the HTML pages: crowded charts, long and hostile texts."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from sol_rt.bundle.actions import Action
from sol_rt.bundle.selection import Candidate, Measured, Selection, Setting
from sol_rt.evaluation.quality.bootstrap import Figure, Resampling
from sol_rt.evaluation.report.report import Comparison, Evaluation, Result, SizeReport
from sol_rt.generate.trace import Trace, TraceHeader, TraceRecord

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>&'
TAGS = tuple(
    f"k{kv:03d}-s{channels:03d}-q{bits}"
    for kv in (100, 25, 10)
    for channels, bits in ((100, "8"), (100, "mix"), (100, "4"), (75, "4"), (50, "4"), (40, "4"))
)
_T = TypeVar("_T")


def _made(kind: type[_T], **values: Any) -> _T:
    """A dataclass from those of the values that it has."""
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in values.items() if name in known})


def _cost(action: Action) -> float:
    bits = {8: 1.0, 5: 0.85, 4: 0.62}[action.bits]
    return bits * (0.5 + 0.5 * action.channel_density) * (0.93 + 0.07 * action.kv_density)


def _loss(action: Action) -> float:
    bits = {8: 0.0, 5: 0.0009, 4: 0.0048}[action.bits]
    return bits + 0.7 * (1 - action.channel_density) ** 1.5 + 0.008 * (1 - action.kv_density)


def selection(kept: int = 16, contexts: tuple[int, ...] = (512, 4096), reason: str = "best of its cost") -> Selection:
    """Candidates of which the first `kept` are kept, measured at every context; one that was not measured besides."""
    candidates = []
    for index, tag in enumerate(TAGS):
        action = Action.parse(tag)
        point = _made(
            Measured, ms=8 * _cost(action), bytes=1.6e8 * _cost(action), loss=_loss(action), stderr=0.05 * _loss(action)
        )
        candidates.append(Candidate(action, index < kept, reason, dict.fromkeys(contexts, point)))
    candidates.append(Candidate(Action.parse("k050-s025-q4"), False, "not measured: s025-q4 collapsed", {}))
    return _made(
        Selection,
        dense=Action.parse(TAGS[0]),
        text="a text",
        device="a processor",
        slowdown=0.0,
        max_actions=16,
        collapse_loss=1.5,
        contexts={context: Setting(510, 2.0) for context in contexts},
        candidates=tuple(candidates),
    )


def _figure(value: float) -> Figure:
    return Figure(value, value * 0.8, value * 1.3)


def _result(schedule: str, budget: float | None, cost: float, added: float) -> Result:
    return Result(
        schedule=schedule,
        budget=budget,
        chosen="",
        achieved=_figure(cost),
        achieved_also=None,
        worst=None,
        floored=False,
        nll=_figure(3.0 + added),
        perplexity=_figure(20.0),
        added=_figure(added),
        kl=_figure(added),
        agreement=_figure(0.9),
        actions={},
    )


def evaluation(model: str = "tiny", text: str = "held-out.txt") -> Evaluation:
    """Six schedules at three budgets, and all actions, in windows of two sizes."""
    names = ("static", "mix", "random", "uniform", "entropy", "sol")
    results = [
        _result(name, budget, budget + 0.002 * place, (1 - budget) ** 4 * (1 + 0.4 * place))
        for budget in (0.4, 0.5, 0.7)
        for place, name in enumerate(names)
    ]
    singles = [_result(f"fixed:{tag}", None, _cost(Action.parse(tag)), _loss(Action.parse(tag))) for tag in TAGS]
    rival = Comparison("sol", "uniform", 0.5, True, 0.5, 0.51, _figure(-0.02), _figure(-0.4), _figure(0.2))
    sizes = [
        SizeReport(size, size - 64, 16, 1024, 16, _result("dense", None, 1.0, 0.0), singles, results, [rival])
        for size in (512, 4096)
    ]
    return Evaluation(model, "ab" * 32, "bytes", None, "a processor", [text], 100, 1, Resampling(), "sol", sizes)


def trace(prompt: str = "Once upon a time", steps: int = 120, name: str = "tiny") -> Trace:
    """A generation of words of all lengths, one of them longer than a narrow page, under all actions."""
    header = TraceHeader(
        name, "ab" * 32, (1, 2, 3), prompt, "sol", 0.6, "bytes",
        {"do_sample": True, "temperature": 0.8, "top_k": 0, "top_p": 0.95, "seed": 7, "stop_strings": [HOSTILE]},
    )  # fmt: skip
    texts = (" the", " sea\n", " " + "long" * 40, " and", "<b>", " 深い")
    records = [TraceRecord(0, 5, " It", None, 3, 0.0, 0.0, -1.5, 30.0, 1.0)]
    for step in range(1, steps + 1):
        tag = TAGS[step % len(TAGS)]
        cost = _cost(Action.parse(tag))
        records.append(
            TraceRecord(step, step, texts[step % len(texts)], tag, step + 2, 1e8 * cost, cost, -0.5, 3.5, 0.62)
        )
    return Trace(header, tuple(records))
