"""OpenAI's protocol: `/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from sol_rt.generate.results import GeneratedToken, Generation
from sol_rt.serve.content import Block, Delta
from sol_rt.serve.protocol import Endpoint, Facts, Failure, Writer, dumps, event, logprobs, sol
from sol_rt.serve.request import read_chat, read_completion


def error(failure: Failure) -> dict[str, Any]:
    """The body of an error."""
    about = {"message": failure.message, "type": failure.kind, "param": failure.param, "code": failure.code}
    return {"error": about}


class _OpenAiWriter(Writer):
    """Answers of chat and plain completions alike."""

    kind, chunk_kind, prefix = "", "", ""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts, f"{self.prefix}-{uuid.uuid4().hex}")
        self._created = int(time.time())

    def end(self, result: Generation) -> str:
        last = event(self._chunk([self._last(self._finish(result))]))
        if self.facts.asked.usage_chunk:
            last += event(self._chunk([]) | self._usage(result))
        return last + "data: [DONE]\n\n"

    def failed(self, failure: Failure) -> str:
        return event(error(failure))

    def whole(self, result: Generation) -> dict[str, Any]:
        choice = self._choice(self._finish(result), self._logprobs(self.content.tokens)) | self._all()
        return self._chunk([choice]) | {"object": self.kind} | self._usage(result)

    def _last(self, finish: str) -> dict[str, Any]:
        """The choice that says why the text ended."""
        raise NotImplementedError

    def _all(self) -> dict[str, Any]:
        """The answer's content within a choice."""
        raise NotImplementedError

    def _logprobs(self, tokens: Sequence[GeneratedToken]) -> dict[str, Any] | None:
        """Log-probabilities; None where nobody asked for them."""
        raise NotImplementedError

    def _finish(self, result: Generation) -> str:
        if result.finish_reason == "length":
            return "length"
        return "tool_calls" if self.content.calls() else "stop"

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        about = {"id": self.answer_id, "object": self.chunk_kind, "created": self._created, "model": self.facts.model}
        return about | {"choices": choices}

    @staticmethod
    def _choice(finish: str | None, logprobs: Any) -> dict[str, Any]:
        return {"index": 0, "finish_reason": finish, "logprobs": logprobs}

    def _usage(self, result: Generation) -> dict[str, Any]:
        """Counts of tokens, and what the dial did: `sol`."""
        prompt, made = result.prompt_tokens, len(result.tokens)
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": made,
            "total_tokens": prompt + made,
            "prompt_tokens_details": {"cached_tokens": result.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.content.reasoning_tokens},
        }
        return {"usage": usage, "sol": sol(self.facts.asked, result)}


class _ChatWriter(_OpenAiWriter):
    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def begin(self) -> str:
        return self._delta({"role": "assistant", "content": ""}, None)

    def part(self, token: GeneratedToken, deltas: Sequence[Delta]) -> str:
        asked = self._logprobs([token])
        step = {} if self.facts.step_of is None else {"sol": self.facts.step_of(token)}
        if asked is None and not step:
            return "".join(map(self._plain, deltas))
        *before, last = [_delta(delta) for delta in deltas] or [{"content": ""}]
        return "".join(self._delta(each, None) for each in before) + self._delta(last, asked, step)

    def _plain(self, delta: Delta) -> str:
        """A delta alone; of a text only the text is written anew."""
        if delta.block.kind != "text":
            return self._delta(_delta(delta), None)
        before, after = self._around_text
        return before + dumps(delta.text) + after

    @cached_property
    def _around_text(self) -> tuple[str, str]:
        before, _, after = self._delta({"content": ""}, None).rpartition('""')
        return before, after

    def _delta(self, delta: dict[str, Any], logprobs: Any, more: dict[str, Any] | None = None) -> str:
        return event(self._chunk([self._choice(None, logprobs) | {"delta": delta}]) | (more or {}))

    def _last(self, finish: str) -> dict[str, Any]:
        return self._choice(finish, None) | {"delta": {}}

    def _all(self) -> dict[str, Any]:
        calls, text = self.content.calls(), self.content.text("text")
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
        if reasoning := self.content.text("reasoning"):
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = [_call(block, block.text) for block in calls]
        return {"message": message}

    def _logprobs(self, tokens: Sequence[GeneratedToken]) -> dict[str, Any] | None:
        return None if self.facts.asked.top_logprobs is None else {"content": logprobs(self.facts, tokens)}


class _CompletionWriter(_OpenAiWriter):
    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def begin(self) -> str:
        return ""

    def part(self, token: GeneratedToken, deltas: Sequence[Delta]) -> str:
        asked, text = self._logprobs([token]), "".join(delta.text for delta in deltas)
        return event(self._chunk([self._choice(None, asked) | {"text": text}])) if text or asked else ""

    def _last(self, finish: str) -> dict[str, Any]:
        return self._choice(finish, None) | {"text": ""}

    def _all(self) -> dict[str, Any]:
        return {"text": self.content.text("text")}

    def _logprobs(self, tokens: Sequence[GeneratedToken]) -> dict[str, Any] | None:
        if self.facts.asked.top_logprobs is None:
            return None
        text_of = self.facts.text_of
        return {
            "tokens": [text_of(token.token) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{text_of(one): value for one, value in token.top_logprobs} for token in tokens],
        }


def _delta(delta: Delta) -> dict[str, Any]:
    """A chat delta. Clients need a tool call's index in each, its id and name in the first."""
    if delta.block.kind == "tool":
        if delta.first:
            return {"tool_calls": [{"index": delta.block.index} | _call(delta.block, delta.text)]}
        return {"tool_calls": [{"index": delta.block.index, "function": {"arguments": delta.text}}]}
    return {"content" if delta.block.kind == "text" else "reasoning_content": delta.text}


def _call(block: Block, arguments: str) -> dict[str, Any]:
    return {"id": block.call_id, "type": "function", "function": {"name": block.name, "arguments": arguments}}


ENDPOINTS = (
    Endpoint("/v1/chat/completions", read_chat, _ChatWriter),
    Endpoint("/v1/completions", read_completion, _CompletionWriter),
)
