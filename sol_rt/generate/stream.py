"""A running generation: what `SolModel.stream` returns. It writes the trace and sums up at the end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from sol_rt.budget.losses import ActionLosses
from sol_rt.budget.schedules import is_constant
from sol_rt.bundle.actions import Action
from sol_rt.engine.hardware import peak_rss_mb
from sol_rt.engine.turns import Turns
from sol_rt.errors import UsageError
from sol_rt.generate.generation_config import GenerationConfig
from sol_rt.generate.loop import Decoder, StepRecord, generate_steps
from sol_rt.generate.results import GeneratedToken, Generation, Progress
from sol_rt.generate.trace import Trace, TraceRecord, TraceWriter, first_difference
from sol_rt.text.tokenizer import Tokenizer


class Stream(Iterator[GeneratedToken]):
    """The tokens of a running generation. `close` ends it early; Ctrl-C inside it does so too.

    `budget` and `tokens_per_second` may be set between any two tokens: what the steps before were allowed stays
    allowed, and the next steps are held to the new request. Setting either of them ends the hold on the other one, and
    on a loss.

    Any thread may take the next token, set the budget or the rate, and close the stream; all of these wait for the
    token in progress.

    Args:
        schedule: name of the schedule, for the summary.
        decoder: a fresh decoder.
        prompt: tokens of the prompt.
        config: how to sample and when to end.
        tokenizer: the bundle's tokenizer.
        turns: the engine's turns.
        losses: what each action is expected to lose.
        reuse: whether to keep the tokens of the prompt that the cache begins with.
        trace: where to write every step; the stream closes it.
        replay: the trace whose actions run again, or None.
    """

    def __init__(
        self,
        schedule: str,
        decoder: Decoder,
        prompt: Sequence[int],
        config: GenerationConfig,
        tokenizer: Tokenizer,
        *,
        turns: Turns,
        losses: ActionLosses,
        reuse: bool = False,
        trace: TraceWriter | None = None,
        replay: Trace | None = None,
    ) -> None:
        self._schedule, self._decoder, self._prompt = schedule, decoder, prompt
        self._losses, self._trace, self._replay = losses, trace, replay
        self._progress = Progress()
        self._steps = generate_steps(decoder, prompt, config, tokenizer, self._progress, reuse=reuse)
        self._turns = turns
        self._result: Generation | None = None
        self._begun = self._ended = self._running = self._closing = False

    def __next__(self) -> GeneratedToken:
        with self._turns.step(self, first=not self._begun):
            self._begun = self._running = True
            try:
                generated, record = next(self._steps)
                if self._trace is not None:
                    self._trace.write(_trace_record(generated, record, len(self._progress.tokens) - 1))
            except BaseException:
                self._running = False
                self._end()
                raise
            self._running = False
            if self._closing:
                self._end()
            return generated

    def close(self) -> None:
        """Ends the generation. The trace is then complete, and the model ready for the next generation.

        In a signal's handler it returns at once, and the generation ends after the token in progress.
        """
        self._end()

    @property
    def budget(self) -> float | None:
        """The budget that the next step holds, 0 to 1; None under a rate, a loss or axis targets, and where the action
        is fixed.

        Setting it raises UsageError for a value out of range, under axis targets, and where the action is fixed.
        """
        return None if self._fixed else self._decoder.controller.budget

    @budget.setter
    def budget(self, budget: float) -> None:
        with self._turns.paused():
            self._require_free("budget")
            self._decoder.controller.set_budget(budget)

    @property
    def tokens_per_second(self) -> float | None:
        """The rate that the next step holds; None if none is held.

        Setting it raises UsageError for a value out of range, without measured costs, under axis targets, and where the
        action is fixed.
        """
        return None if self._fixed else self._decoder.controller.tokens_per_second

    @tokens_per_second.setter
    def tokens_per_second(self, rate: float) -> None:
        with self._turns.paused():
            self._require_free("tokens_per_second")
            self._decoder.controller.set_rate(rate)

    @property
    def _fixed(self) -> bool:
        return self._replay is not None or is_constant(self._schedule)

    def _require_free(self, name: str) -> None:
        if self._fixed:
            which = "a replay runs the trace's actions" if self._replay is not None else f"{self._schedule} fixes them"
            raise UsageError(f"{name}: cannot change the actions of this run: {which}; start another one")

    @property
    def result(self) -> Generation | None:
        """The summary once the generation has ended; None before, and where it ended without a token."""
        return self._result

    def _end(self) -> None:
        with self._turns.closing(self):
            if self._ended:
                return
            if self._running:  # a signal's handler closes in the middle of a token: the stream ends after it
                self._closing = True
                return
            self._ended = True
            self._steps.close()
            if self._trace is not None:
                self._trace.close()
            if self._progress.tokens:
                self._result = self._summary()

    def _summary(self) -> Generation:
        controller, progress = self._decoder.controller, self._progress
        rate = _rate(len(progress.tokens) - 1, progress.decode_ms / 1e3)
        requested = None if self._schedule.startswith("fixed:") else controller.requested
        return Generation(
            text="".join(progress.pieces),
            tokens=progress.tokens,
            schedule=self._schedule,
            requested_budget=controller.achieved if requested is None else requested,
            achieved_budget=controller.achieved,
            cost_model=controller.cost.name,
            prefill=self._decoder.prompt_action.variant,
            prompt_tokens_per_second=_rate(progress.prefilled, progress.prefill_seconds),
            tokens_per_second=rate,
            time_to_first_token_ms=progress.first_token_ms,
            actions=dict(self._decoder.actions),
            peak_rss_mb=peak_rss_mb(),
            finish_reason=progress.finish_reason,
            floored=controller.floored,
            fastest_tokens_per_second=controller.fastest_rate(self._decoder.engine.length),
            dense_tokens_per_second=rate * controller.achieved,
            expected_loss=self._expected_loss(),
            prompt_tokens=len(self._prompt),
            cached_tokens=len(self._prompt) - progress.prefilled,
            first_difference=None if self._replay is None else first_difference(self._replay, progress.tokens),
            logprobs=progress.logprobs,
            top_logprobs=progress.top_logprobs,
        )

    def _expected_loss(self) -> float | None:
        """Mean expected loss of the steps, each action's taken at the middle of the generation."""
        actions = self._decoder.actions
        middle = len(self._prompt) + len(self._progress.tokens) // 2
        losses = {tag: self._losses.at(Action.parse(tag), middle) for tag in actions}
        if not actions or any(math.isnan(loss) for loss in losses.values()):
            return None
        return sum(losses[tag] * count for tag, count in actions.items()) / sum(actions.values())


def _trace_record(generated: GeneratedToken, record: StepRecord, index: int) -> TraceRecord:
    return TraceRecord(
        step=index,
        token=generated.token,
        text=generated.text,
        action=generated.action.tag if index else None,
        context=record.context,
        cost=generated.cost,
        relative_cost=generated.relative_cost,
        logprob=generated.logprob,
        ms=generated.ms,
        achieved=generated.achieved_budget,
    )


def _rate(count: int, seconds: float) -> float:
    return count / seconds if count and seconds > 0 else 0.0
