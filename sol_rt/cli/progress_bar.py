"""Progress of a command on stderr: one bar for the whole on a terminal, lines in a pipe or a log file."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress

LINE_SECONDS = 60.0
"""In a pipe, a line is printed at least this often."""


@contextmanager
def progress(timed: bool = False, after: float = 0.0) -> Iterator[Shown]:
    """Shows the progress of a command: its task, the share done and the time left. Gives a progress callback.

    On a terminal that is one bar, whatever the descriptions. Elsewhere one line is printed when the description is
    new, and one a minute.

    Args:
        timed: the command measures time. The bar is then redrawn only when the caller reports progress, so that drawing
            takes no time from what is measured between two reports, and it is removed at the end.
        after: seconds after which the bar appears, for work that is usually short; it is then removed at the end.
    """
    shown = _Bar(timed, transient=timed or after > 0) if sys.stderr.isatty() else _Lines(timed=timed)
    begin = threading.Timer(after, shown.begin)
    begin.daemon = True
    try:
        if after > 0:
            begin.start()
        else:
            shown.begin()
        yield shown
    finally:
        begin.cancel()
        shown.end()


class Shown:
    """A progress callback whose calls are shown.

    Args:
        clock: seconds, for the estimate of the time left.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._description = ""
        self._first: tuple[float, float] | None = None  # time and share of the first report
        self._latest = 0.0, 0.0

    def __call__(self, description: str, done: float, total: float) -> None:
        now, share = self._clock(), min(max(done / total, 0.0), 1.0) if total > 0 else 0.0
        if (
            self._first is None or share < self._latest[1] - 1e-6
        ):  # a caller without a total over all its steps begins anew
            self._first = now, share
        self._description, self._latest = description, (now, share)

    def begin(self) -> None:
        """Shows what was reported so far, and from then on every report."""

    def end(self) -> None:
        """Shows nothing more."""

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Takes the bar away while the caller prints."""
        yield

    @property
    def share(self) -> float:
        """The share of the whole that is done, 0 to 1."""
        return self._latest[1]

    @property
    def seconds_left(self) -> float | None:
        """Estimate by the time that the share done so far has taken; None before anything was done."""
        if self._first is None or self.share <= self._first[1]:
            return None
        (began, before), (reported, share) = self._first, self._latest
        left = (reported - began) / (share - before) * (1 - share)
        return max(left - (self._clock() - reported), 0.0)


class _Bar(Shown):
    """One bar. It moves by itself between two reports, unless the caller measures time."""

    def __init__(self, timed: bool, transient: bool) -> None:
        super().__init__()
        self._timed, self._transient = timed, transient
        self._progress: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None
        self._ended = False
        self._lock = threading.Lock()  # a timer may begin it while the caller reports or ends it

    def __call__(self, description: str, done: float, total: float) -> None:
        super().__call__(description, done, total)
        with self._lock:
            if self._progress is not None:
                self._move(self._progress)

    def _move(self, bar: rich.progress.Progress) -> None:
        if self._task is None:
            self._task = bar.add_task(self._description, total=1.0)
        bar.update(self._task, description=self._description, completed=self.share)
        if self._timed:
            bar.refresh()

    def begin(self) -> None:
        with self._lock:
            if not self._ended:
                self._progress = _rich_bar(self, self._timed, self._transient)
                self._progress.start()
                if self._description:
                    self._move(self._progress)

    def end(self) -> None:
        with self._lock:
            self._ended = True
            if self._progress is not None:
                self._progress.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        with self._lock:  # so that a timer does not begin it meanwhile
            if self._progress is not None:
                self._progress.stop()
            try:
                yield
            finally:
                if self._progress is not None:
                    self._progress.start()


def _rich_bar(shown: Shown, timed: bool, transient: bool) -> rich.progress.Progress:
    """The bar that rich draws. Its import takes a tenth of a short command's time, so only who draws pays for it."""
    import rich.progress
    from rich.console import Console
    from rich.text import Text

    class TimeLeft(rich.progress.ProgressColumn):
        def render(self, task: rich.progress.Task) -> Text:
            return Text(_left(shown))

    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.percentage:>3.0f}%"),
        rich.progress.TimeElapsedColumn(),
        TimeLeft(),
        console=Console(stderr=True, highlight=False, soft_wrap=True),
        transient=transient,
        auto_refresh=not timed,
        refresh_per_second=4,
        redirect_stdout=False,  # results stay on stdout, wherever that leads
    )


class _Lines(Shown):
    """Lines for a pipe: one for each new description, and one when nothing was printed for a minute."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, seconds: float = LINE_SECONDS, timed: bool = False
    ) -> None:
        super().__init__(clock)
        self._seconds = seconds
        self._told: set[str] = set()
        self._printed = clock()
        self._begun = False
        self._lock = threading.Lock()
        self._ended = threading.Event()
        # without a thread of its own, only reports print: nothing runs beside what is measured
        self._thread = None if timed else threading.Thread(target=self._print_now_and_then, daemon=True)

    def __call__(self, description: str, done: float, total: float) -> None:
        with self._lock:
            super().__call__(description, done, total)
            if self._begun:
                self._print_if_due()

    def begin(self) -> None:
        with self._lock:
            self._begun = True
            if self._description:
                self._print_if_due()
        if self._thread is not None:
            self._thread.start()

    def end(self) -> None:
        self._ended.set()

    def _print_now_and_then(self) -> None:
        while not self._ended.wait(self._seconds / 10):
            with self._lock:
                if self._description:
                    self._print_if_due()

    def _print_if_due(self) -> None:
        new = self._description not in self._told
        if not new and self._clock() - self._printed < self._seconds:
            return
        self._told.add(self._description)
        self._printed = self._clock()
        figures = [f"{self.share:.0%}", _left(self)] if self.share > 0 else []
        print(f"{self._description} ... {', '.join(filter(None, figures))}".rstrip(), file=sys.stderr, flush=True)


def _left(shown: Shown) -> str:
    seconds = shown.seconds_left
    if seconds is None or seconds < 1 or shown.share >= 1:  # below a second the estimate was too low
        return ""
    return f"{duration(seconds)} left"


def duration(seconds: float) -> str:
    """A time for people: `40 s`, `3 min`, `1 h 20 min`."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
