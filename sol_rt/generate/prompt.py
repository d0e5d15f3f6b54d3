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


def prompt_tokens(
    prompt: Prompt, tokenizer: Tokenizer, template: ChatTemplate | None, *, parse_special: bool = False
) -> list[int]:
    """The prompt's token ids.

    Text gets what the model wants around a text; special tokens written in it become those tokens only if
    `parse_special` says so. Chat messages go through `template`; special tokens in their content stay text.

    Raises UsageError for an empty prompt, and for messages that the template refuses.
    """
    if isinstance(prompt, str):
        tokens = tokenizer.encode(prompt, parse_special=parse_special) if prompt else []
    elif template is not None and is_chat(prompt):
        user = tokenizer.marked_messages(prompt)
        tokens = tokenizer.encode_rendered(template.render(user.marked), user)
    else:
        tokens = [int(token) for token in prompt]  # type: ignore[arg-type]
    if not tokens:
        raise UsageError("prompt: got an empty one, expected at least one token")
    return tokens
