"""Grammars of answers that have to call a tool: what each family may write under them, and what the parser reads."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from sol_rt.serve.call_grammar import call_grammar
from sol_rt.serve.response_parser import ResponseParser
from sol_rt.serve.response_templates import CALLS, REASONING, Field

llguidance = pytest.importorskip("llguidance")

ADDED = ("<tool_call>", "</tool_call>", "<think>", "</think>", "[/THINK]", "<|python_tag|>")
SPECIAL = ("<eos>", "[TOOL_CALLS]", "<|tool_call|>", "<start_function_call>")
TOOLS = [
    {"type": "function", "function": {"name": "time", "description": "", "parameters": {"type": "object"}}},
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "",
            "parameters": {
                "properties": {"city": {"$ref": "#/$defs/City"}},
                "required": ["city"],
                "$defs": {"City": {"type": "string"}},
            },
        },
    },
]
NAMED = '{"name": "weather", "arguments": {"city": "Ulm"}}'
WRITTEN = {
    "hermes": f"<tool_call>\n{NAMED}\n</tool_call>",
    "llama3": NAMED.replace("arguments", "parameters"),
    "mistral": f"[TOOL_CALLS] [{NAMED}]",
    "ministral3": '[TOOL_CALLS]weather[ARGS]{"city": "Ulm"}',
    "functiongemma": '<start_function_call>call:weather{"city": "Ulm"}<end_function_call>',
    "lfm2": f"<|tool_call_start|>[{NAMED}]<|tool_call_end|>",
    "lfm2.5": f"<|tool_call_start|>[{NAMED}]<|tool_call_end|>",
    "olmo3": f"<function_calls>[{NAMED}]</function_calls>",
    "phi4": f"<|tool_call|>{NAMED}<|/tool_call|>",
    "granite3": f"<|tool_call|>[{NAMED}]",
}


def byte_tokenizer() -> tokenizers.Tokenizer:
    """A token for every byte, with special tokens and others among the markers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({character: place for place, character in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL))
    made.add_tokens(list(ADDED))
    return made


TOKENIZER = byte_tokenizer()
FOR_MASKS = llguidance.LLTokenizer(TOKENIZER.to_str(), TOKENIZER.get_vocab_size(), [TOKENIZER.token_to_id("<eos>")])
IDS = {number: token.content for number, token in TOKENIZER.get_added_tokens_decoder().items()}


def fits(
    text: str, fields: tuple[Field, ...], opened: Field | None = None, tools: Any = TOOLS, schema: Any = None
) -> bool:
    """True if a whole answer is in the grammar."""
    compiled = llguidance.LLMatcher.grammar_from_lark(call_grammar(fields, tools, IDS, opened, schema))
    matcher = llguidance.LLMatcher(FOR_MASKS, compiled, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = TOKENIZER.encode(text).ids
    if matcher.validate_tokens(tokens) < len(tokens):
        return False
    return bool(matcher.consume_tokens(tokens) and matcher.is_accepting())


@pytest.mark.parametrize("reasoning", [None, "think", "mistral"])
@pytest.mark.parametrize("family", CALLS)
def test_a_call_of_each_family(family: str, reasoning: str | None) -> None:
    thought = REASONING[reasoning].fields if reasoning else ()
    fields, text = thought + CALLS[family].fields, WRITTEN[family]
    assert fits(text, fields)
    for other in ("Yes.", text[:-1], text + "Yes.", text.replace("weather", "wind"), text.replace('"Ulm"', "3")):
        assert not fits(other, fields)
    for field in thought:
        begin, end = field.open[0], field.close[0]
        assert fits(f"{begin}hm <\n{end}\n\n{text}", fields)
        assert fits(f"hm <\n{end}{text}", fields, field)
        assert not fits(text, fields, field)


@pytest.mark.parametrize("family", CALLS)
def test_a_call_or_json(family: str) -> None:
    form = {"properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
    fields = REASONING["think"].fields + CALLS[family].fields
    for text in (WRITTEN[family], '{"a": true}'):
        for thought in ("", "<think>hm</think>\n\n"):
            assert fits(thought + text, fields, schema=form)
    for text in ('{"a": 1}', "Yes.", WRITTEN[family] + '{"a": true}', '{"a": true}' + WRITTEN[family]):
        assert not fits(text, fields, schema=form)


@pytest.mark.parametrize("family", CALLS)
def test_the_parser_reads_what_the_grammar_allows(family: str) -> None:
    parser = ResponseParser(CALLS[family].fields, tools=["weather"])
    first, *rest = parser.feed(WRITTEN[family]) + parser.finish()
    assert (first.kind, first.name) == ("tool", "weather")
    assert json.loads("".join(piece.text for piece in rest)) == {"city": "Ulm"}


def test_any_arguments_of_a_tool_without_parameters_are_an_object() -> None:
    call = '<tool_call>{"name": "time", "arguments": %s}</tool_call>'
    assert fits(call % '{"a": 1}', CALLS["hermes"].fields)
    assert not fits(call % "1", CALLS["hermes"].fields)
