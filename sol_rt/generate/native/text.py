"""Turns texts and messages into tokens in the core."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref, c_int32, c_size_t, c_void_p
from typing import Any

from sol_rt.errors import UsageError, brief
from sol_rt.generate.prompt import check_length
from sol_rt.native import structs
from sol_rt.native.library import core

_ADD_SPECIAL, _PARSE_SPECIAL = 1, 2
_ROLES = ("system", "user", "assistant")


def encode(model: c_void_p, text: str, *, parse_special: bool = False) -> list[int]:
    """Tokens of a text, with what the model wants around it. Raises UsageError, SolError."""
    try:
        content = text.encode("utf-8") if isinstance(text, str) else None
    except UnicodeEncodeError:
        raise UsageError("prompt: not valid Unicode, it has lone surrogates; convert it") from None
    if content is None:
        raise UsageError(f"prompt: got {brief(text)}, expected a text")
    flags = _ADD_SPECIAL | (_PARSE_SPECIAL if parse_special else 0)
    count, capacity = c_size_t(), len(content) + 8
    while True:
        tokens = (c_int32 * capacity)()
        core().sol_model_encode(model, content, len(content), flags, tokens, capacity, byref(count))
        if count.value <= capacity:
            return tokens[: count.value]
        capacity = count.value


def encode_chat(model: c_void_p, messages: Sequence[Any], most: int) -> list[int]:
    """Tokens of a conversation of plain messages, with the beginning of the answer.

    Raises ContextError for a message that is much too long for `most` tokens, and SolError.
    """
    for message in messages:
        check_length(message["content"], lambda part: encode(model, part), most)
    plain = [structs.Message(message["role"].encode(), message["content"].encode()) for message in messages]
    given = (structs.Message * len(plain))(*plain)
    count, capacity = c_size_t(), 64 + sum(len(message["content"].encode()) + 64 for message in messages)
    while True:
        tokens = (c_int32 * capacity)()
        core().sol_model_encode_chat(model, given, len(plain), tokens, capacity, byref(count))
        if count.value <= capacity:
            return tokens[: count.value]
        capacity = count.value


def is_plain(message: Any) -> bool:
    """True if the core takes this message: a role that it knows and a text, and nothing else."""
    return (
        isinstance(message, dict)
        and set(message) == {"role", "content"}
        and all(isinstance(part, str) and _fits_c(part) for part in message.values())
        and message["role"] in _ROLES
    )


def _fits_c(text: str) -> bool:
    """True if C's strings can hold a text: neither a NUL nor half of a surrogate pair is in it."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
