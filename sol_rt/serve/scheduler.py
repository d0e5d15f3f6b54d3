"""Runs several answers on one model: in rounds of one step each, which read weights once, prompts in chunks between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from sol_rt.budget.governor import Reading
from sol_rt.bundle.config import KvLayout
from sol_rt.errors import SolError
from sol_rt.generate.model import SolModel
from sol_rt.generate.native.decoder import common_prefix
from sol_rt.generate.native.session import Session
from sol_rt.generate.results import GeneratedToken, Generation
from sol_rt.generate.stream import Stream, next_of_each
from sol_rt.serve.answer_dial import AnswerDial
from sol_rt.serve.budget_control import BudgetControl, least_budget
from sol_rt.serve.deadline import DeadlineMissedError
from sol_rt.serve.load import LoadSettings
from sol_rt.serve.prefix_cache import Entry, PrefixCache

CHUNK_SECONDS = 0.2
"""Time that a chunk of a prompt may take; the others wait for it."""
BACKGROUND_ROUNDS = 4
"""Beside other answers, one in the background gets a step every so many rounds."""
_WORTH_REUSE = 0.5
"""Share of a prompt, or of what a cache holds, from which on its beginning is worth the rest of that cache."""
_FIRST_CHUNK, _LEAST_CHUNK, _MOST_CHUNK = 64, 16, 1024  # tokens

Event = GeneratedToken | Generation | Exception
"""One token; the summary, which comes last; or the error that ended the answer. No summary: it was cancelled early."""


class QueueFullError(SolError):
    """As many answers wait as may."""


class ClosingError(SolError):
    """The scheduler ends."""

    def __init__(self) -> None:
        super().__init__("the server is closing; ask again when it is back")


@dataclass(eq=False)
class Job:
    """An answer to run.

    Attributes:
        stream: the checked generation, which has not begun. It reuses the cache.
        prompt: its tokens.
        tell: gets each event, in the scheduler's thread.
        dial: its dial.
        background: gives way to the others.
        cancelled: set by anyone; the answer then ends after the step in progress.
        waited_ms: time in the queue.
        cached: tokens of the prompt that the session's cache had.
    """

    stream: Stream
    prompt: Sequence[int]
    tell: Callable[[Event | None], None]
    dial: AnswerDial
    background: bool = False
    cancelled: bool = False
    waited_ms: float = 0.0
    cached: int = 0
    queued_at: float = field(default_factory=time.monotonic)

    @property
    def rank(self) -> int:
        """Place among those that wait: the priority first, the background last."""
        return 0 if self.dial.priority else 1 + self.background


class _Held(NamedTuple):
    """Tokens in a session's cache, and how many of the first ones the dense variant read."""

    tokens: Sequence[int] = ()
    dense: int = 0

    @classmethod
    def by(cls, session: Session) -> _Held:
        """The tokens of a session, which a check of another request may be in."""
        with session.turns.paused():
            return cls(session.tokens, session.dense_tokens)

    def kept(self, job: Job, kv: KvLayout) -> int:
        """The tokens that a job's prompt keeps."""
        shared = common_prefix(self.tokens, job.prompt)
        shared = min(shared, self.dense) if job.stream.dense_prompt else shared
        return shared if kv.goes_back(len(self.tokens), shared) else 0


@dataclass(eq=False)
class _Seat:
    """A session, and the job that runs in it."""

    session: Session
    job: Job | None = None
    left: int = 0  # tokens of the job's prompt that are not in the cache
    used_at: float = 0.0
    begun_at: float = 0.0
    stepped_at: float = field(default_factory=time.monotonic)
    held: _Held = field(default_factory=_Held)  # when its last job ended
    opening: Future[None] | None = None  # saves what the cache had, and restores what the prompt begins with


class Scheduler:
    """Runs jobs on a model's sessions, in a thread of its own.

    Args:
        model: nobody else runs it meanwhile.
        sessions: answers at a time; each has a KV cache, which keeps its tokens for the next prompt that begins alike.
        queue: answers that may wait beside them.
        load: bounds of the budgets and targets of load; by default load moves nothing.
        sensors: reads battery and heat for the governor; None for no governor.
        prefixes: keeps caches that others take the sessions of; None for none.
        deliver: called in the scheduler's thread once jobs were told of events, those of a round together.

    Attributes:
        control: sets the budgets.
    """

    def __init__(
        self,
        model: SolModel,
        *,
        sessions: int = 4,
        queue: int = 64,
        load: LoadSettings | None = None,
        sensors: Callable[[], Reading] | None = None,
        prefixes: PrefixCache | None = None,
        deliver: Callable[[], None] = lambda: None,
    ) -> None:
        self._model, self._most, self._prefixes, self._deliver = model, sessions + queue, prefixes, deliver
        self.control = BudgetControl(model, load or LoadSettings(least_budget(model)), sensors, 1 / BACKGROUND_ROUNDS)
        self._files = ThreadPoolExecutor(1, "sol-rt caches")
        self._kv = model.bundle.config.kv
        self._seats = [_Seat(model.engine), *(_Seat(model.session()) for _ in range(sessions - 1))]
        self._waiting: list[Job] = []
        self._changed = threading.Condition()
        self._closing = False
        self._chunk, self._round = _FIRST_CHUNK, 0
        self._stepped_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="sol-rt scheduler", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Answers that run."""
        return sum(seat.job is not None for seat in self._seats)

    @property
    def waiting(self) -> int:
        """Answers in the queue."""
        return sum(not job.cancelled for job in tuple(self._waiting))

    def seconds_without_a_step(self) -> float:
        """Seconds since the last step; 0 where there is nothing to run."""
        return time.monotonic() - self._stepped_at if self.running or self._waiting else 0.0

    def alive(self) -> bool:
        """True until `close`."""
        return self._thread.is_alive() and not self._closing

    def require_room(self) -> None:
        """Raises QueueFullError if as many answers run and wait as may; ClosingError after `close`."""
        if not self.alive():
            raise ClosingError
        if self.running + self.waiting >= self._most:
            raise QueueFullError(f"{self.waiting} requests wait, expected fewer; try again later")

    def submit(self, job: Job) -> None:
        """Queues a job. Raises what `require_room` raises, and DeadlineImpossibleError."""
        with self._changed:
            self.require_room()
            self._admit(job)
            if not self.running and not self._waiting:
                self._stepped_at = time.monotonic()
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Ends all jobs after the step in progress, then the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _admit(self, job: Job) -> None:
        """Raises DeadlineImpossibleError for a deadline that cannot be met."""
        if job.dial.deadline is None:
            return
        running = [seat.job for seat in tuple(self._seats) if seat.job is not None]
        before = sum(other.rank <= job.rank and not other.cancelled for other in self._waiting)
        free = len(self._seats) - len(running)
        shared = max((seat.held.kept(job, self._kv) for seat in self._seats if seat.job is None), default=0)
        if self._prefixes is not None:
            shared = max(shared, self._find(job, self._prefixes)[1])
        self.control.admit(
            job.dial,
            running,
            ahead=max(before + 1 - free, 0),
            sessions=len(self._seats),
            prompt=len(job.prompt) - shared,
        )

    def _run(self) -> None:
        failed: Exception = ClosingError()
        try:
            while True:
                with self._changed:
                    while not (self._waiting or self.running or self._closing):
                        self._changed.wait()
                    if self._closing:
                        break
                    self._seat_jobs()
                self._deliver()
                self._step_all()
                self._deliver()
        except Exception as error:
            failed = error
        except BaseException as error:  # a panic of a library in Rust
            failed = SolError(f"the scheduler has ended by {type(error).__name__}; start the server again")
        with self._changed:
            self._closing = True
            left = [*(seat.job for seat in self._seats if seat.job is not None), *self._waiting]
            self._waiting.clear()
        for job in left:
            with suppress(BaseException):  # one that can't be told keeps no other from it
                job.stream.close()
                job.tell(failed)
        self._deliver()
        self._files.shutdown()
        if self._prefixes is not None and self._prefixes.lasting:
            for seat in sorted(self._seats, key=lambda seat: seat.used_at):
                self._keep(seat, self._prefixes)

    def _seat_jobs(self) -> None:
        """Gives free sessions to waiting jobs: by rank, and in order within one."""
        for job in [job for job in self._waiting if job.cancelled]:
            self._waiting.remove(job)
            job.tell(None)
        for job in [job for job in self._waiting if job.dial.late()]:
            self._waiting.remove(job)
            job.tell(DeadlineMissedError())
        for job in sorted(self._waiting, key=lambda job: job.rank):
            free = [seat for seat in self._seats if seat.job is None]
            if not free:
                return
            self._waiting.remove(job)
            job.waited_ms = (time.monotonic() - job.queued_at) * 1e3
            self._sit(job, free)

    def _sit(self, job: Job, free: Sequence[_Seat]) -> None:
        """Takes the session whose cache begins with most of the prompt, if that is worth it, else the oldest one."""
        kept, held = {}, {}
        for seat in free:
            seat.held = _Held.by(seat.session)
            kept[id(seat)], held[id(seat)] = seat.held.kept(job, self._kv), len(seat.held.tokens)
        best = max(free, key=lambda seat: kept[id(seat)])
        oldest = min(free, key=lambda seat: (held[id(seat)] > 0, seat.used_at))
        saved = self._saved(job, kept[id(best)])
        poor = kept[id(best)] < _WORTH_REUSE * min(held[id(best)], len(job.prompt)) or not kept[id(best)]
        if poor or saved is not None:
            best = oldest
        best.job, best.begun_at = job, time.monotonic()
        dropped = held[id(best)] - (0 if saved is not None else kept[id(best)])
        if self._prefixes is not None and (saved is not None or dropped >= self._prefixes.least):
            best.opening = self._files.submit(self._open, best, saved, self._prefixes)

    def _saved(self, job: Job, shared: int) -> Entry | None:
        """The saved cache that is worth restoring; None where the sessions have about as much."""
        if self._prefixes is None:
            return None
        entry, length = self._find(job, self._prefixes)
        return entry if length >= shared + self._prefixes.least else None

    def _find(self, job: Job, prefixes: PrefixCache) -> tuple[Entry | None, int]:
        return prefixes.find(job.prompt, dense=job.stream.dense_prompt)

    def _open(self, seat: _Seat, saved: Entry | None, prefixes: PrefixCache) -> None:
        """Saves a seat's cache and restores another, beside the steps of the others."""
        self._keep(seat, prefixes)
        if saved is None:
            return
        with seat.session.turns.paused():
            prefixes.restore(saved, seat.session)

    def _keep(self, seat: _Seat, prefixes: PrefixCache) -> None:
        with seat.session.turns.paused():
            prefixes.save(seat.session)

    def _step_all(self) -> None:
        self._round += 1
        busy = [(seat, seat.job) for seat in self._seats if seat.job is not None]
        opening = [seat.opening for seat, _ in busy if seat.opening is not None]
        if len(opening) == len(busy):
            wait(opening, return_when=FIRST_COMPLETED)
        busy = [(seat, job) for seat, job in busy if seat.opening is None or seat.opening.done()]
        self.control.turn([job for _, job in busy], self.waiting)
        gives_way = any(not job.background for _, job in busy) and self._round % BACKGROUND_ROUNDS != 0
        busy = [(seat, job) for seat, job in busy if not (gives_way and job.background and not job.cancelled)]
        together = [(seat, job) for seat, job in busy if job.dial.made and job.stream.open and not job.cancelled]
        for seat, job in busy:
            if (seat, job) not in together:
                self._advance(seat, job, partial(self._step, seat, job))
                self._deliver()  # a first token waits for no round
        if not together:
            return
        begun = time.monotonic()
        made = next_of_each([job.stream for _, job in together])
        seconds = time.monotonic() - begun
        costs = sum(token.relative_cost for token in made if not isinstance(token, Exception))
        for (seat, job), token in zip(together, made, strict=True):
            if not isinstance(token, Exception) and costs > 0:  # its share of the round
                self.control.took(token, seconds * token.relative_cost / costs)
            self._advance(seat, job, partial(self._end_step, seat, job, token, begun))

    def _advance(self, seat: _Seat, job: Job, step: Callable[[], bool]) -> None:
        """Runs a part of a job, which returns True at its end, and then frees the seat."""
        begins = not job.dial.made
        try:
            if seat.opening is not None:
                opened, seat.opening = seat.opening, None
                opened.result()
            with seat.session.turns.paused():
                ended = step()
            if begins and job.dial.made:  # not in the turn, which a client that moves the dial waits for
                job.dial.begin()
        except Exception as error:
            job.tell(error)
            ended = True
        self._stepped_at = time.monotonic()
        if ended:
            seat.job, seat.used_at = None, time.monotonic()
            seat.held = _Held.by(seat.session)
            self.control.ended(seat.used_at - seat.begun_at)

    def _step(self, seat: _Seat, job: Job) -> bool:
        """Runs a chunk of the prompt, or its last part and the first token. Returns True if the job has ended."""
        if job.cancelled:
            job.stream.close()
            job.tell(job.stream.result)
            return True
        begun = time.monotonic()
        if job.dial.late():
            job.stream.close()
            raise DeadlineMissedError
        if self._read_prompt(seat, job):
            seat.stepped_at = begun
            return False
        token = next(job.stream)
        if seat.left >= _LEAST_CHUNK:
            self.control.read(seat.left, time.monotonic() - begun)
        return self._end_step(seat, job, token, begun)

    def _end_step(self, seat: _Seat, job: Job, token: GeneratedToken | Exception, begun: float) -> bool:
        """Tells of a token, whose step began then. Returns True if the job has ended."""
        if isinstance(token, Exception):
            raise token
        before, seat.stepped_at = seat.stepped_at, begun
        if job.dial.made and not job.background:
            self.control.waited(begun - before)
        job.dial.made += 1
        # without a number of tokens, the last one is that after which the next would be late
        if token.finish_reason is None and job.dial.late(0.0 if job.dial.limit is not None else begun - before):
            token = replace(token, finish_reason="length")
            job.dial.cut()
            job.stream.close()
        job.tell(token)
        if token.finish_reason is None:
            return False
        job.tell(job.stream.result)
        return True

    def _read_prompt(self, seat: _Seat, job: Job) -> bool:
        """Runs a chunk of the prompt, if more is left than a chunk. Returns True if it did."""
        if not job.stream.open:
            job.stream.move_to(seat.session)
            seat.left = job.stream.read_prompt(0)
            job.cached = len(job.prompt) - seat.left
        if seat.left <= self._chunk:
            return False
        begun = time.monotonic()
        seat.left = job.stream.read_prompt(self._chunk)
        seconds = time.monotonic() - begun
        self.control.read(self._chunk, seconds)
        rate = self._chunk / seconds
        self._chunk = int(min(max(rate * CHUNK_SECONDS, _LEAST_CHUNK), _MOST_CHUNK))
        return True
