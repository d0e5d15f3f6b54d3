"""Errors of Python functions that the native core calls back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

from sol_rt.errors import SolError

T = TypeVar("T")


class Callbacks:
    """Base of objects whose methods the core calls. An exception must not reach the core, so it waits here."""

    def __init__(self) -> None:
        self._failed: BaseException | None = None

    def answer(self, call: Callable[[], T], failed: T) -> T:
        """The result of `call`. If that raises, `failed`, on which the core ends its call."""
        try:
            return call()
        except BaseException as error:
            self._failed = error
            return failed

    @contextmanager
    def raising(self) -> Iterator[None]:
        """While the core runs: raises an exception of a callback in place of the core's error that it caused."""
        try:
            yield
        except SolError:
            failed, self._failed = self._failed, None
            if failed is None:
                raise
            raise failed from None


def raising_of(callbacks: Callbacks | None) -> AbstractContextManager[None]:
    """`callbacks.raising()`; a context that changes nothing where there are none."""
    return nullcontext() if callbacks is None else callbacks.raising()
