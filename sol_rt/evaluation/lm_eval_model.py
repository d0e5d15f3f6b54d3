"""`sol_rt` as a model of EleutherAI's lm-evaluation-harness. The extra `eval` installs the harness.

    lm_eval --model sol_rt --model_args pretrained=BUNDLE,budget=0.4,schedule=sol --tasks …

The command above needs a release that finds models by entry point (later than 0.4.13). `python -m
sol_rt.evaluation.lm_eval` takes the same arguments and works with every release from 0.4.9 on.

A prompt is prefilled dense up to its last token. The last token and the tokens of the continuation are decode steps
under the schedule. One controller keeps the budget over all requests of a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from sol_rt.budget.dial import Dial
from sol_rt.errors import UsageError
from sol_rt.evaluation.quality.continuations import PromptScorer
from sol_rt.generate.model import SolModel

_MAX_NEW_TOKENS = 256
_IGNORED = {"batch_size", "max_batch_size", "device", "trust_remote_code", "dtype"}  # the harness sends these to all


class SolLM(TemplateLM):
    """A bundle under a budget, as a model of the harness.

    Args:
        pretrained: folder or name of a bundle.
        budget: share of the dense cost, 0 to 1.
        schedule: one of the schedules of `sol-rt generate`; default: the bundle's.
        seed: seed of the schedule `random`.
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
            names = "pretrained, budget, schedule, seed, provider, gpu, threads, native_ops, max_length"
            names += ", max_gen_toks"
            raise UsageError(f"--model_args {unknown[0]}: unknown, expected some of {names}")
        self.model = SolModel.from_pretrained(
            pretrained,
            provider=provider,
            device=gpu,
            threads=threads,
            native_ops=native_ops,
            max_context=max_length,
            measure_costs=False,
        )
        self._dial = Dial(_number("budget", budget), schedule, seed=seed)
        self._max_new_tokens = max_gen_toks
        self._name, self._decoder = self.model.decoder(self._dial)
        self._scorer = PromptScorer(self.model.engine)

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
        controller = self._decoder.controller
        return {
            "schedule": self._name,
            "requested_budget": controller.requested,
            "achieved_budget": controller.achieved,
            "decode_steps": controller.steps,
            "cost_model": controller.cost.name,
        }

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = []
        for request, prompt, continuation in tqdm(requests, desc="Scoring", disable=disable_tqdm):
            result = self._score(prompt, continuation)
            self.cache_hook.add_partial("loglikelihood", request, result)
            found.append(result)
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Scores each text in windows as long as the model's context, every token once."""
        found = []
        for request in tqdm(requests, desc="Scoring", disable=disable_tqdm):
            (text,) = request.args
            total = sum(self._score(prompt, scored)[0] for prompt, scored in self._rolling(text))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            found.append(total)
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        found = []
        for request in tqdm(requests, desc="Generating", disable=disable_tqdm):
            prompt, settings = request.args
            text = self._generate(prompt, dict(settings))
            self.cache_hook.add_partial("generate_until", request.args, text)
            found.append(text)
        return found

    def _score(self, prompt: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """Log-probability of the continuation in nats, and whether greedy decoding gives this continuation."""
        # the continuation's last token is scored but takes no place in the cache
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise UsageError(f"a continuation has {len(continuation)} tokens, expected at most {self.max_length}")
        self._scorer.open(prompt[-room:])
        result = self._scorer.score(self._decoder, continuation)
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
        result = self.model.generate(
            tokens,
            budget=self._dial.budget,
            schedule=self._dial.schedule,
            seed=self._dial.seed,
            max_new_tokens=limit,
            stop_strings=[stop for stop in ([stops] if isinstance(stops, str) else stops) if stop],
            do_sample=sampled,
            repetition_penalty=1.0,
            **given,
        )
        return result.text


def _number(name: str, value: float | str) -> float:
    """Converts an argument to a number. The harness passes an argument that is not a number as text."""
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"--model_args {name}={value}: expected a number") from None
