"""Prompts: text, token ids or chat messages, turned into the tokens that are prefilled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sol_rt.errors import UsageError
from sol_rt.text.chat_template import ChatTemplate
from sol_rt.text.tokenizer import Tokenizer

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""Text, token ids, or chat messages with `role` and `content`."""


def is_chat(prompt: Prompt) -> bool:
    """Whether the prompt consists of chat messages."""
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def prompt_tokens(prompt: Prompt, tokenizer: Tokenizer, template: ChatTemplate | None) -> list[int]:
    """The prompt's token ids. Text gets the tokenizer's special tokens; chat messages go through `template`.

    Raises UsageError for an empty prompt, and for messages that the template refuses.
    """
    if isinstance(prompt, str):
        tokens = tokenizer.encode(prompt, add_special_tokens=True) if prompt else []
    elif template is not None and is_chat(prompt):
        rendered = template.render(prompt)  # type: ignore[arg-type]
        tokens = tokenizer.encode(rendered, add_special_tokens=False)
    else:
        tokens = [int(token) for token in prompt]  # type: ignore[arg-type]
    if not tokens:
        raise UsageError("prompt: got an empty one, expected at least one token")
    return tokens
