"""The response template of each family: the markers that models write around their reasoning and tool calls.

The words are those of transformers' `response_template`: a field is the text between `open` and `close`, of a kind of
`content`. A family is known by the markers in its chat template. An entry is data; `response_parser.py` reads answers
by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Field:
    """A part of answers between markers. An answer without a `close` ends it, too.

    Attributes:
        kind: `text`, `reasoning`, or `tool` for calls.
        open: markers that begin it.
        close: markers that end it; none where the end of the answer does.
        content: `text`, or the form of calls: `json`, objects with `name` and `arguments`, alone or in a list;
            `named-json`, a name, the separator and the arguments; `python-call-list`, as in `[f(x=1)]`.
        separator: ends the name in `named-json`.
        quote: stands around texts in arguments that are JSON otherwise, with bare keys.
        at_start: begins only where the answer's text does, and belongs to the content; a tool of another name than
            those of the request is then text.
    """

    kind: Literal["text", "reasoning", "tool"]
    open: tuple[str, ...]
    close: tuple[str, ...] = ()
    content: Literal["text", "json", "named-json", "python-call-list"] = "text"
    separator: str = ""
    quote: str = ""
    at_start: bool = False

    @property
    def literals(self) -> tuple[str, ...]:
        """All texts that the field is known by."""
        return tuple(filter(None, (*self.open, *self.close, self.separator, self.quote)))


@dataclass(frozen=True)
class Family:
    """Models whose answers have the same fields.

    Attributes:
        markers: texts that all of their chat templates have.
        fields: of their answers.
        absent: texts that none of their chat templates has.
    """

    markers: tuple[str, ...]
    fields: tuple[Field, ...]
    absent: tuple[str, ...] = ()


_THINK = Field("reasoning", ("<think>",), ("</think>",))
_LFM2 = Field("tool", ("<|tool_call_start|>",), ("<|tool_call_end|>",), "python-call-list")

REASONING = {
    "hunyuan": Family(("</think>", "<answer>"), (_THINK, Field("text", ("<answer>",), ("</answer>",)))),
    "granite3": Family(("</think>", "<response>"), (_THINK, Field("text", ("<response>",), ("</response>",)))),
    "think": Family(("</think>",), (_THINK,)),  # Qwen3, DeepSeek-R1's distilled models, SmolLM3, EXAONE 4, OLMo 3
    "mistral": Family(("[THINK]",), (Field("reasoning", ("[THINK]",), ("[/THINK]",)),)),
}
"""The first one whose markers are there holds."""

CALLS = {
    "ministral3": Family(
        ("[TOOL_CALLS]", "[ARGS]"), (Field("tool", ("[TOOL_CALLS]",), content="named-json", separator="[ARGS]"),)
    ),
    "mistral": Family(("[TOOL_CALLS]",), (Field("tool", ("[TOOL_CALLS]",), content="json"),)),
    "functiongemma": Family(
        ("<start_function_call>",),
        (
            Field(
                "tool",
                ("<start_function_call>call:",),
                ("<end_function_call>",),
                "named-json",
                separator="{",
                quote="<escape>",
            ),
        ),
    ),
    "lfm2": Family(("<|tool_list_start|>",), (_LFM2,)),
    "lfm2.5": Family(("<|tool_call_start|>",), (_LFM2,)),
    "olmo3": Family(
        ("<function_calls>",), (Field("tool", ("<function_calls>",), ("</function_calls>",), "python-call-list"),)
    ),
    "phi4": Family(("<|tool|>",), (Field("tool", ("<|tool_call|>", "functools["), ("<|/tool_call|>",), "json"),)),
    "granite3": Family(("<|tool_call|>",), (Field("tool", ("<|tool_call|>",), content="json"),)),
    "hermes": Family(  # Qwen2.5, Qwen3, SmolLM3, Granite 4, EXAONE 4
        ("<tool_call>", "arguments"),
        (Field("tool", ("<tool_call>",), ("</tool_call>",), "json"),),
        absent=("<tool_calls>", "<function=", "<arg_key>"),
    ),
    "llama3": Family(
        ("ipython", "parameters"),
        (Field("tool", ("<|python_tag|>",), content="json"), Field("tool", ("{",), content="json", at_start=True)),
    ),
}
"""The first one whose markers are there holds."""


def fields_of(template: str) -> tuple[Field, ...]:
    """The fields of the answers to prompts of a chat template, which is given by its source."""
    found: list[Field] = []
    for families in (REASONING, CALLS):
        for family in families.values():
            if all(text in template for text in family.markers) and not any(text in template for text in family.absent):
                found += family.fields
                break
    return tuple(found)
