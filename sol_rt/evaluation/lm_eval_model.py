"""`sol_rt` as a model of EleutherAI's lm-evaluation-harness. The extra `eval` installs the harness.

    lm_eval --model sol_rt --model_args pretrained=BUNDLE,budget=0.4,schedule=sol --tasks …

The command above needs a release that finds models by entry point (later than 0.4.13). `python -m
sol_rt.evaluation.lm_eval` takes the same arguments and works with every release from 0.4.9 on.

A prompt is prefilled dense up to its last token. The last token and the tokens of the continuation are decode steps
under the schedule. Continuations of one token each, such as the letters of a multiple choice, share one step.

Each generated answer has an account of the budget of its own, as in use. Scored answers share one: it ends with the
question of its 64th decode step, the first one at which the controller holds the budget, or with the task. With
`--log_samples` each question's first request has one argument more, what all its requests cost:

    {"spent": …, "full": …, "steps": …, "achieved_budget": spent / full, "account": …}

`spent` is the cost of the decode steps, and `full` the dense cost of the same steps, in the cost model's unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from sol_rt.budget.cost.model import BytesCost
from sol_rt.budget.dial import Dial
from sol_rt.bundle.bundle import Bundle
from sol_rt.errors import UsageError
from sol_rt.evaluation.quality.continuations import PromptScorer
from sol_rt.generate.model import SolModel
from sol_rt.store.home import find_bundle

_COSTS = ("device", "bytes")
_MAX_NEW_TOKENS = 256
_HELD_FROM = 64  # decode steps from which on a budget is held (docs/reference/decode-loop.md section 2)
_IGNORED = {"batch_size", "max_batch_size", "device", "trust_remote_code", "dtype"}  # the harness sends these to all


@dataclass(frozen=True)
class _Spent:
    """Cost of decode steps, the dense cost of the same steps, both in the cost model's unit, and their number."""

    spent: float = 0.0
    full: float = 0.0
    steps: int = 0

    def plus(self, spent: float, full: float, steps: int) -> _Spent:
        return _Spent(self.spent + spent, self.full + full, self.steps + steps)

    @property
    def achieved(self) -> float:
        """Share of the dense cost; 1.0 where there was no step."""
        return self.spent / self.full if self.full else 1.0


class SolLM(TemplateLM):
    """A bundle under a budget, as a model of the harness.

    Args:
        pretrained: folder or name of a bundle.
        budget: share of the dense cost, 0 to 1.
        schedule: one of the schedules of `sol-rt generate`; default: the bundle's.
        seed: seed of the schedule `random` and of sampling in the first account; each later one adds 1.
        costs: unit of the budget. `bytes` depends on no machine; `device` is milliseconds where these were measured,
            else bytes.
        provider, gpu, threads, native_ops: see `SolModel.from_pretrained`, which calls `gpu` `device`.
        max_length: context in tokens; default: the model's. Longer prompts lose their beginning.
        max_gen_toks: tokens to generate if a task sets no limit.
        others: arguments that the harness gives to every model; this model ignores them.

    Raises what `SolModel.from_pretrained` raises, and UsageError for an unknown argument.
    """

    def __init__(
        self,
        pretrained: str,
        budget: float = 1.0,
        schedule: str | None = None,
        seed: int | None = 0,
        costs: str = "device",
        provider: str = "auto",
        gpu: int = 0,
        threads: int | None = None,
        native_ops: bool = True,
        max_length: int | None = None,
        max_gen_toks: int = _MAX_NEW_TOKENS,
        **others: Any,
    ) -> None:
        super().__init__()
        unknown = sorted(set(others) - _IGNORED)
        if unknown:
            names = "pretrained, budget, schedule, seed, costs, provider, gpu, threads, native_ops, max_length"
            names += ", max_gen_toks"
            raise UsageError(f"--model_args {unknown[0]}: unknown, expected some of {names}")
        if costs not in _COSTS:
            raise UsageError(f"--model_args costs={costs}: expected one of {', '.join(_COSTS)}")
        bundle = Bundle.open(find_bundle(pretrained))
        self.model = SolModel.from_pretrained(
            bundle,
            provider=provider,
            device=gpu,
            threads=threads,
            native_ops=native_ops,
            max_context=max_length,
            cost=BytesCost(bundle.config) if costs == "bytes" else None,
            measure_costs=False,
        )
        self._dial = Dial(_number("budget", budget), schedule, seed=seed)
        self._max_new_tokens = max_gen_toks
        self._scorer = PromptScorer(self.model)
        self._total, self._accounts, self._task = _Spent(), 0, None
        self._decoder = self.model.decoder(self._dial)  # refuses a bad request before the first question

    @property
    def max_length(self) -> int:
        return self.model.engine.max_context

    @property
    def eot_token_id(self) -> int:
        tokens = self.model.bundle.config.model.eos_token_ids
        if not tokens:
            raise UsageError(
                "the bundle has neither a BOS nor an end token, one of which must stand before a text without a prompt"
            )
        return tokens[0]

    @property
    def prefix_token_id(self) -> int:
        bos = self.model.bundle.config.model.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Name under which the harness caches this model's prompts."""
        return f"sol_rt-{self.model.bundle.identity[:16]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        special = not self._begins(string) if add_special_tokens is None else add_special_tokens
        return list(self.model.tokenizer.encode(string, add_special_tokens=special))

    def _begins(self, string: str) -> bool:
        """True if a text begins with the token that begins texts, as some chat templates write it."""
        bos = self.model.bundle.config.model.bos_token_id
        return bos is not None and string.startswith(self.model.tokenizer.decode([bos], skip_special_tokens=False))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        template = self.model.bundle.chat_template()
        return template.render(chat_history, add_generation_prompt=add_generation_prompt)

    def get_model_info(self) -> dict[str, Any]:
        """Facts that the harness writes beside its results: schedule, budgets, decode steps and cost model of the
        scores.
        """
        return {
            "schedule": self._dial.schedule or self.model.default_schedule(),
            "requested_budget": self._decoder.requested,
            "achieved_budget": self._total.achieved,
            "decode_steps": self._total.steps,
            "cost_model": self.model.cost.name,
        }

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Scores continuations, all of a question one after another."""
        found: list[tuple[float, bool]] = []
        asked = tqdm(requests, desc="Scoring", disable=disable_tqdm)
        for _, group in groupby(asked, key=lambda request: (request.task_name, request.doc_id)):
            question = list(group)
            before = self._begin(question[0])
            found += super().loglikelihood(question, disable_tqdm=True)
            self._log(question[0], before)
        return found

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = []
        for prompt, group in groupby(requests, key=lambda request: request[1]):
            same_prompt = list(group)
            scores = self._scores(prompt, [continuation for _, _, continuation in same_prompt])
            for request, score in zip(same_prompt, scores, strict=True):
                self.cache_hook.add_partial("loglikelihood", request[0], score)
            found += scores
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Scores each text in windows as long as the model's context, every token once."""
        found = []
        for request in tqdm(requests, desc="Scoring", disable=disable_tqdm):
            text, before = request.args[0], self._begin(request)
            total = sum(self._score(prompt, scored)[0] for prompt, scored in self._rolling(text))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            self._log(request, before)
            found.append(total)
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        found = []
        for request in tqdm(requests, desc="Generating", disable=disable_tqdm):
            prompt, settings = request.args[:2]
            before, self._task = self._total, None
            text = self._generate(prompt, dict(settings))
            self.cache_hook.add_partial("generate_until", (prompt, settings), text)
            self._log(request, before)
            found.append(text)
        return found

    def _next_account(self) -> Dial:
        """Counts another account and returns its dial."""
        self._accounts += 1
        seed = self._dial.seed
        return self._dial if seed is None else replace(self._dial, seed=seed + self._accounts - 1)

    def _begin(self, request: Any) -> _Spent:
        """Begins an account if the last one has ended, and returns the costs so far."""
        if request.task_name != self._task or self._decoder.steps >= _HELD_FROM:
            self._decoder = self.model.decoder(self._next_account())
        self._task = request.task_name
        return self._total

    def _log(self, request: Any, before: _Spent) -> None:
        """Adds to the request's arguments, which the harness logs, what was spent since `before`."""
        now = self._total
        cost = _Spent(now.spent - before.spent, now.full - before.full, now.steps - before.steps)
        logged = {**asdict(cost), "achieved_budget": cost.achieved, "account": self._accounts}
        request.arguments = (*request.args, logged)

    def _scores(self, prompt: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[tuple[float, bool]]:
        """`_score` of each continuation. One decode step predicts all of them if each has one token."""
        first = self._score(prompt, continuations[0])
        if any(len(continuation) != 1 for continuation in continuations):
            return [first, *(self._score(prompt, continuation) for continuation in continuations[1:])]
        row = self._decoder.output.distribution
        return [(row.log_probability(token), row.top == token) for (token,) in continuations]

    def _score(self, prompt: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """Log-probability of the continuation in nats, and whether greedy decoding gives this continuation."""
        # the continuation's last token is scored but takes no place in the cache
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise UsageError(f"a continuation has {len(continuation)} tokens, expected at most {self.max_length}")
        self._scorer.open(prompt[-room:])
        before = self._decoder.steps
        result = self._scorer.score(self._decoder, continuation)
        self._total = self._total.plus(result.spent, result.full, self._decoder.steps - before)
        return float(result.logprobs.sum()), result.greedy

    def _rolling(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        tokens = self.tok_encode(text, add_special_tokens=False)
        windows = get_rolling_token_windows(
            token_list=tokens, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
        )
        yield from map(make_disjoint_window, windows)

    def _generate(self, prompt: str, settings: dict[str, Any]) -> str:
        stops = settings.pop("until", [])
        limit = int(settings.pop("max_gen_toks", settings.pop("max_new_tokens", self._max_new_tokens)))
        sampled = bool(settings.pop("do_sample", False)) and float(settings.get("temperature", 1.0) or 0.0) > 0
        given = {name: settings[name] for name in ("temperature", "top_k", "top_p") if sampled and name in settings}
        if limit >= self.max_length:
            raise UsageError(
                f"max_gen_toks: got {limit}, expected less than {self.max_length}, the model's context: nothing of the "
                "prompt would be left; set it in the task's generation_kwargs"
            )
        tokens = self.tok_encode(prompt)[-(self.max_length - limit) :]
        dial = self._next_account()
        stream = self.model.stream(
            tokens,
            budget=dial.budget,
            schedule=dial.schedule,
            seed=dial.seed,
            max_new_tokens=limit,
            stop_strings=[stop for stop in ([stops] if isinstance(stops, str) else stops) if stop],
            do_sample=sampled,
            repetition_penalty=1.0,
            reuse_cache=True,  # examples that all prompts begin with
            **given,
        )
        for token in stream:
            if token.cost:  # the prompt's own step predicts the first token
                self._total = self._total.plus(token.cost, token.cost / token.relative_cost, 1)
        assert stream.result is not None
        return stream.result.text


def _number(name: str, value: float | str) -> float:
    """Converts an argument to a number. The harness passes an argument that is not a number as text."""
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"--model_args {name}={value}: expected a number") from None
