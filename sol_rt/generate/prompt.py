"""Prompts: text, token ids or chat messages, turned into the tokens that are prefilled."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from sol_rt.errors import ContextError, SolError, UsageError, brief
from sol_rt.text.chat_template import ChatTemplate
from sol_rt.text.tokenizer import Tokenizer
from sol_rt.text.user_text import blank, without_content

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""Text, token ids, or chat messages with `role` and `content`."""
Tools = Sequence[Mapping[str, Any]]
"""Functions in OpenAI's form: `type`, and `function` with `name`, `description` and `parameters`, a JSON schema."""


_TOKENS_TO_SPARE = 1024
_CHARACTERS_A_TOKEN = 8  # twice what text usually has, so that few prompts that fit are encoded twice
_READS_TOOLS_OF_A_MESSAGE = re.compile(r"""message(\.tools|\[['"]tools['"]\])""")  # as that of Phi-4-mini


def is_chat(prompt: Prompt) -> bool:
    """True if the prompt consists of chat messages."""
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def prompt_tokens(
    prompt: Prompt,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    vocab_size: int,
    *,
    parse_special: bool = False,
    max_context: int | None = None,
    tools: Tools = (),
) -> list[int]:
    """The prompt's token ids, all below `vocab_size`.

    Text gets what the model wants around a text; special tokens written in it become those tokens only if
    `parse_special` says so. Chat messages go through `template` with the `tools` that the model may call; special
    tokens in their texts stay text.

    Raises UsageError for an empty prompt, for anything that is no prompt, for messages that the template refuses, and
    for tools if the template has none.
    Raises ContextError for a text much too long for `max_context` tokens, before all of it is encoded.
    """
    if isinstance(prompt, str):
        check_length(prompt, lambda part: tokenizer.encode(part, False, parse_special), max_context)
        tokens = (tokenizer.encode if parse_special else tokenizer.encode_plain)(prompt) if prompt else []
    elif template is not None and is_chat(prompt):
        for number, message in enumerate(prompt):
            _check_message(number, message)
        messages, variable, functions = _with_tools(template, cast(Sequence[Mapping[str, Any]], prompt), tools)
        user = tokenizer.marked_messages([messages, functions])
        rendered = template.render(user.marked[0], **{variable: user.marked[1]})
        bare = template.render(without_content(messages), **{variable: blank(functions)})
        if tokenizer.special_in(rendered) != tokenizer.special_in(bare):
            got = "text that the chat template turns into special tokens, or that changes which ones it writes"
            raise UsageError(f"messages: got {got}; leave out what reads like one, or escapes one")
        check_length(user.unmarked(rendered), lambda part: tokenizer.encode(part, False), max_context)
        tokens = tokenizer.encode_rendered(rendered, user)
    else:
        return given_tokens(prompt, vocab_size)
    return at_least_one(tokens)


def check_tools(prompt: object, tools: object) -> None:
    """Raises UsageError for anything but tools in OpenAI's form, and for tools beside a prompt without messages."""
    if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
        raise UsageError(f"tools: got {brief(tools)}, expected dicts in OpenAI's form")
    if tools and not (isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)):
        raise UsageError(f"tools: got a prompt of {brief(prompt)}, expected chat messages; put the tools into the text")


def _with_tools(
    template: ChatTemplate, messages: Sequence[Mapping[str, Any]], tools: Tools
) -> tuple[Sequence[Mapping[str, Any]], str, Tools | None]:
    """Messages as the template takes them, and its variable for tools. Raises UsageError if it takes no tools."""
    if not tools:
        return messages, "tools", None
    try:
        plain = template.render(messages)
    except SolError:  # it may not do without tools
        plain = ""
    for variable in ("tools", "xml_tools"):  # the latter is SmolLM3's
        given: dict[str, Any] = {variable: tools}
        if template.render(messages, **given) != plain:
            return messages, variable, tools
    if not _READS_TOOLS_OF_A_MESSAGE.search(template.source):
        raise UsageError("tools: this model's chat template has no tools; leave them out, or take a model with tools")
    first = messages[0] if messages[0]["role"] == "system" else {"role": "system", "content": ""}
    functions = json.dumps([tool.get("function", tool) for tool in tools], ensure_ascii=False)
    return [{**first, "tools": functions}, *(messages[1:] if first is messages[0] else messages)], "tools", None


def check_length(text: str, encode: Callable[[str], Sequence[int]], max_context: int | None) -> None:
    """Raises ContextError for a text that is much too long for `max_context` tokens. It takes little memory for that.

    Ever longer beginnings of the text are encoded, until one has too many tokens. A shorter text is left to the engine.
    """
    if max_context is None:
        return
    # a beginning may end within a word, which then has other tokens, but not as many more as this
    most = max_context + _TOKENS_TO_SPARE
    characters = _CHARACTERS_A_TOKEN * most
    while characters < len(text):
        count = len(encode(text[:characters]))
        if count > most:
            got = f"got {len(text)} characters, the first {characters} of which are {count} tokens"
            raise ContextError(f"prompt: {got}, expected at most {max_context} tokens; shorten the prompt")
        characters *= 4


def _check_message(number: int, message: object) -> None:
    if not isinstance(message, Mapping):
        raise UsageError(f"prompt: got {brief(message)} among messages, expected dicts with role and content")
    if not isinstance(role := message.get("role"), str):
        got = brief(role) if "role" in message else "none"
        raise UsageError(f"prompt: message {number}: role: got {got}, expected a name such as 'user'")
    if message.get("content") is None and not message.get("tool_calls"):  # a call of a tool needs no text
        got = "None" if "content" in message else "none"
        raise UsageError(f"prompt: message {number}: content: got {got}, expected a text")


def given_tokens(prompt: object, vocab_size: int) -> list[int]:
    """A prompt that is token ids, as a list. Raises UsageError for an empty one, and as `token_ids` does."""
    return at_least_one(token_ids("prompt", prompt, vocab_size))


def at_least_one(tokens: list[int]) -> list[int]:
    """The tokens of a prompt as given. Raises UsageError if there are none."""
    if not tokens:
        raise UsageError("prompt: got an empty one, expected at least one token")
    return tokens


def token_ids(what: str, tokens: object, vocab_size: int) -> list[int]:
    """Token ids that a caller gave, as a list. `what` names them in errors.

    Raises UsageError for anything but a sequence of whole numbers from 0 to `vocab_size` - 1.
    """
    if isinstance(tokens, np.ndarray) and tokens.ndim == 1:
        tokens = tokens.tolist()
    if not isinstance(tokens, Sequence) or isinstance(tokens, (str, bytes, bytearray, memoryview)):
        raise UsageError(f"{what}: got {brief(tokens)}, expected token ids, as in [1, 2, 3]")
    found = []
    for place, token in enumerate(tokens):
        if isinstance(token, (bool, np.bool_)) or not isinstance(token, (int, np.integer)):
            raise UsageError(f"{what}: got {brief(token)} at place {place}, expected a token id, a whole number")
        if not 0 <= token < vocab_size:
            raise UsageError(f"{what}: got token {brief(int(token))} at place {place}, expected 0 to {vocab_size - 1}")
        found.append(int(token))
    return found
