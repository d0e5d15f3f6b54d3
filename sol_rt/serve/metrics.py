"""Figures of `/metrics`, in Prometheus' text format."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sol_rt.generate.results import GeneratedToken, Generation
from sol_rt.serve.scheduler import Scheduler

_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """Counters of one server."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._registry = CollectorRegistry()
        registry: dict[str, Any] = {"registry": self._registry}
        self._requests = Counter("sol_rt_requests", "Requests by path and status", ("path", "status"), **registry)
        self._prompt = Counter("sol_rt_prompt_tokens", "Tokens of prompts", **registry)
        self._cached = Counter("sol_rt_cached_tokens", "Tokens of prompts that the cache had", **registry)
        self._generated = Counter("sol_rt_generated_tokens", "Tokens generated", **registry)
        self._between = Histogram("sol_rt_token_seconds", "Time of a decode step", buckets=_SECONDS, **registry)
        self._first = Histogram(
            "sol_rt_last_chunk_seconds", "Time of a prompt's last chunk", buckets=_SECONDS, **registry
        )
        self._queued = Histogram("sol_rt_queue_seconds", "Time in the queue", buckets=_SECONDS, **registry)
        self._budget = Histogram(
            "sol_rt_achieved_budget", "Achieved budget of answers", buckets=[n / 10 for n in range(1, 11)], **registry
        )
        for name, about, value in (
            ("sol_rt_running", "Answers that run", lambda: scheduler.running),
            ("sol_rt_waiting", "Answers in the queue", lambda: scheduler.waiting),
        ):
            Gauge(name, about, **registry).set_function(value)

    def request(self, path: str, status: int) -> None:
        """Counts a request."""
        self._requests.labels(path, str(status)).inc()

    def token(self, token: GeneratedToken, *, first: bool) -> None:
        """Counts a token. The first one's time is that of the prompt."""
        self._generated.inc()
        (self._first if first else self._between).observe(token.ms / 1e3)

    def end(self, result: Generation, waited_ms: float) -> None:
        """Counts an answer that has ended."""
        self._queued.observe(waited_ms / 1e3)
        self._prompt.inc(result.prompt_tokens)
        self._cached.inc(result.cached_tokens)
        self._budget.observe(result.achieved_budget)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
