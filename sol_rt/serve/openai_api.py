"""OpenAI's protocol: shapes of answers to `/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sol_rt.generate.results import GeneratedToken, Generation
from sol_rt.serve.request import Asked

Names = Callable[[int], str]
"""The text of one token."""


@dataclass(frozen=True)
class Shape:
    """Writes the objects of one answer.

    Attributes:
        asked: the request.
        model: the model's name.
        name_of: gives the text of a token, for log-probabilities.
        chat: messages; False for plain completions.
    """

    asked: Asked
    model: str
    name_of: Names
    chat: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def answer_id(self) -> str:
        """The answer's id, by which `/v1/budget/ID` finds it."""
        return f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}"

    def first_chunk(self) -> dict[str, Any] | None:
        """The chunk before all text; None where the protocol has none."""
        return self._chunk([self._choice({"role": "assistant", "content": ""}, None, None)]) if self.chat else None

    def chunk(self, token: GeneratedToken) -> dict[str, Any] | None:
        """The chunk of a token; None where it adds neither text nor anything else."""
        if not token.text and self.asked.top_logprobs is None:
            return None
        part: Any = {"content": token.text} if self.chat else token.text
        return self._chunk([self._choice(part, None, self._logprobs([token]))])

    def last_chunk(self, finish: str) -> dict[str, Any]:
        """The chunk that says why the text ended."""
        return self._chunk([self._choice({} if self.chat else "", _FINISH.get(finish, "stop"), None)])

    def usage_chunk(self, result: Generation | None) -> dict[str, Any]:
        """The chunk with the usage, after which nothing comes."""
        return self._chunk([]) | self._usage(result)

    def whole(self, tokens: list[GeneratedToken], result: Generation) -> dict[str, Any]:
        """The answer in one object."""
        text, finish = "".join(token.text for token in tokens), _FINISH.get(result.finish_reason, "stop")
        choice = self._choice(text, finish, self._logprobs(tokens))
        if self.chat:
            del choice["delta"]
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        kind = "chat.completion" if self.chat else "text_completion"
        return self._chunk([choice]) | {"object": kind} | self._usage(result)

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {"id": self.answer_id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _choice(self, part: Any, finish: str | None, logprobs: Any) -> dict[str, Any]:
        return {"index": 0, "delta" if self.chat else "text": part, "finish_reason": finish, "logprobs": logprobs}

    def _logprobs(self, tokens: list[GeneratedToken]) -> dict[str, Any] | None:
        if self.asked.top_logprobs is None:
            return None
        if self.chat:
            return {
                "content": [
                    self._named(token.token, token.logprob)
                    | {"top_logprobs": [self._named(*likely) for likely in token.top_logprobs]}
                    for token in tokens
                ]
            }
        return {
            "tokens": [self.name_of(token.token) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self.name_of(one): value for one, value in token.top_logprobs} for token in tokens],
        }

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.name_of(token)
        part = "\ufffd" in text  # of a character, whose bytes a text can't hold
        return {"token": text, "logprob": logprob, "bytes": None if part else list(text.encode())}

    def _usage(self, result: Generation | None) -> dict[str, Any]:
        """Counts of tokens, and what the dial did: `sol`."""
        prompt, made, cached = 0, 0, 0
        sol: dict[str, Any] = {"ignored": list(self.asked.ignored)}
        if result is not None:
            prompt, made, cached = result.prompt_tokens, len(result.tokens), result.cached_tokens
            sol |= {
                "schedule": result.schedule,
                "requested_budget": result.requested_budget,
                "achieved_budget": result.achieved_budget,
                "expected_loss": result.expected_loss,
                "prefill": result.prefill,
                "actions": result.actions,
                "tokens_per_second": result.tokens_per_second,
            }
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": made,
            "total_tokens": prompt + made,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        return {"usage": usage, "sol": sol}


_FINISH = {"stop": "stop", "length": "length"}
