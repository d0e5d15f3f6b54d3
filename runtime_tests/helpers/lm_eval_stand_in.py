"""Stand-in for the parts of lm-evaluation-harness that `sol_rt.evaluation.lm_eval_model` imports."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

Tokens = Sequence[int]


class TemplateLM:
    """Base class of models: it tokenizes what is to be scored, and the model scores tokens."""

    def __init__(self) -> None:
        self.cache_hook = SimpleNamespace(add_partial=lambda method, request, result: None)

    def loglikelihood(self: Any, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The scores of continuations, each tokenized after its context."""
        tokenized = []
        for context, continuation in (request.args for request in requests):
            whole = self.tok_encode(context + continuation)
            prompt = self.tok_encode(context) if context else []
            scored = whole[len(prompt) :]
            tokenized.append(((context, continuation), prompt or [self.prefix_token_id], scored))
        scores: list[tuple[float, bool]] = self._loglikelihood_tokens(tokenized, disable_tqdm=disable_tqdm)
        return scores


def get_rolling_token_windows(
    token_list: Tokens, prefix_token: int, max_seq_len: int, context_len: int
) -> Iterator[tuple[Tokens, Tokens]]:
    """Inputs and the tokens that they predict, so that every token is predicted once.

    An input has at most `max_seq_len` tokens. Each prediction but those of the first window has at least `context_len`
    tokens of input.
    """
    inputs = [prefix_token, *token_list]
    begin, end = 0, min(max_seq_len, len(token_list))
    while begin < len(token_list):
        yield inputs[max(end - max_seq_len, 0) : end], token_list[begin:end]
        begin, end = end, min(end + max_seq_len - context_len + 1, len(token_list))


def make_disjoint_window(pair: tuple[Tokens, Tokens]) -> tuple[Tokens, Tokens]:
    """The part of the inputs that comes before the first predicted token, and the predicted tokens."""
    inputs, predicted = pair
    return inputs[: len(inputs) - len(predicted) + 1], predicted


def install(patch: pytest.MonkeyPatch) -> None:
    """Lets `import lm_eval` find these names."""
    modules = {name: ModuleType(name) for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model", "lm_eval.utils")}
    vars(modules["lm_eval.api.model"])["TemplateLM"] = TemplateLM
    for function in (get_rolling_token_windows, make_disjoint_window):
        vars(modules["lm_eval.utils"])[function.__name__] = function
    for name, module in modules.items():
        patch.setitem(sys.modules, name, module)
