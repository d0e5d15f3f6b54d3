"""Errors of Python functions that the native core calls back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

from sol_rt.errors import SolError
from sol_rt.generate.native.turns import Turns

T = TypeVar("T")


class Callbacks:
    """Base of objects whose methods the core calls. An exception must not reach the core, so it waits here."""

    def __init__(self) -> None:
        self._failed: BaseException | None = None
        self._turns: Turns | None = None

    def answer(self, call: Callable[[], T], failed: T) -> T:
        """The result of `call`. If that raises, `failed`, on which the core ends its call or goes on."""
        try:
            with nullcontext() if self._turns is None else self._turns.asking():
                return call()
        except BaseException as error:
            self._failed = error
            return failed

    @contextmanager
    def raising(self, turns: Turns) -> Iterator[None]:
        """While the core runs: raises an exception of a callback, in place of the core's error if there is one.

        Args:
            turns: of the session that runs. A callback that uses the session gets a BusyError.
        """
        self._failed, self._turns = None, turns
        try:
            yield
        except SolError:
            if self._failed is None:
                raise
        finally:
            self._turns = None
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed


def raising_of(callbacks: Callbacks | None, turns: Turns) -> AbstractContextManager[None]:
    """`callbacks.raising(turns)`; a context that changes nothing where there are none."""
    return nullcontext() if callbacks is None else callbacks.raising(turns)
