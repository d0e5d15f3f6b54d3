"""The progress callback of long work, and `Stages`, which makes one total of several stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

Progress = Callable[[str, float, float], None]
"""Called with what is being done, the amount done and the total, in a unit of the caller's own."""


def silent(step: str, done: float, total: float) -> None:
    """A progress callback that reports nothing."""


class Stages:
    """Several stages as one whole: what a stage reports reaches the callback as a part of the total over all stages.

        stages = Stages(report, {"quantizing weights": 30, "measuring losses": 60})
        with stages("quantizing weights") as progress:
            fill(progress)

    A stage's own callback takes any description. One that differs from the stage's name is shown after it. A stage may
    have stages of its own: give its callback to another `Stages`.

    Args:
        report: the callback of the whole.
        weights: the stages in the order in which they run, each with about how long it takes, in any unit. A stage that
            did not run no longer counts once a later one begins.
    """

    def __init__(self, report: Progress, weights: Mapping[str, float]) -> None:
        self._report = report
        self._weights = dict(weights)
        self._done: dict[str, float] = {}  # share of each stage that was begun

    @contextmanager
    def __call__(self, name: str) -> Iterator[Progress]:
        """Begins the stage `name` and gives its callback. At the end the stage counts as done, unless it failed.

        Raises KeyError for a stage that was not named at the start.
        """
        if name not in self._weights:
            raise KeyError(name)
        for earlier in list(self._weights):
            if earlier == name:
                break
            if earlier not in self._done:
                del self._weights[earlier]
        self._done.setdefault(name, 0.0)

        def progress(description: str, done: float, total: float) -> None:
            if total > 0:
                # a stage of several steps may count each from 0; the whole never goes back
                self._done[name] = max(self._done[name], min(done / total, 1.0))
            self._tell(name if description in ("", name) else f"{name}: {description}")

        self._tell(name)
        yield progress
        self._done[name] = 1.0
        self._tell(name)

    def _tell(self, description: str) -> None:
        done = sum(self._weights[name] * share for name, share in self._done.items())
        self._report(description, done, sum(self._weights.values()))
