"""Answers split into text, reasoning and tool calls, by the templates of families."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sol_rt.serve.pieces import Piece
from sol_rt.serve.response_parser import ResponseParser
from sol_rt.serve.response_templates import CALLS, REASONING, Field, fields_of

THINK = REASONING["think"].fields
HERMES = THINK + CALLS["hermes"].fields
FAMILIES = {f"{name} calls": THINK + family.fields for name, family in CALLS.items()}
FAMILIES |= {f"{name} reasoning": family.fields for name, family in REASONING.items()}
TOOLS = ("weather", "time")
CALL = '{"name": "weather", "arguments": {"city": "Ulm"}}'


def pieces_of(
    fields: Sequence[Field], parts: Sequence[str], prompt: str = "", tools: Sequence[str] = TOOLS
) -> list[Piece]:
    """Pieces of an answer that comes in parts."""
    parser = ResponseParser(fields, prompt=prompt, tools=tools)
    return [*(piece for part in parts for piece in parser.feed(part)), *parser.finish()]


def said(pieces: Sequence[Piece]) -> list[tuple[Any, ...]]:
    """Kind and text of what the pieces say, with the name of a tool."""
    found: list[list[Any]] = []
    for piece in pieces:
        if piece.name or not found or found[-1][0] != piece.kind:
            found.append([piece.kind, "", piece.index, piece.name])
        found[-1][1] += piece.text
        assert piece.kind != "tool" or found[-1][2] == piece.index
    return [(kind, text, name) if kind == "tool" else (kind, text) for kind, text, _, name in found]


def read(family: str, text: str, **how: Any) -> list[tuple[Any, ...]]:
    return said(pieces_of(FAMILIES[family], [text], **how))


ULM, CET = ("tool", '{"city": "Ulm"}', "weather"), ("tool", '{"zone": "CET"}', "time")


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("hermes", '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>\n<tool_call>{"name":'
        ' "time", "arguments": {"zone": "CET"}}</tool_call>'),
        ("hermes", '<tool_call>{"arguments": {"city": "Ulm"}, "name": "weather"}</tool_call><tool_call>{"type":'
        ' "function", "function": {"name": "time", "arguments": "{\\"zone\\": \\"CET\\"}"}}</tool_call>'),
        ("llama3", '{"name": "weather", "parameters": {"city": "Ulm"}}; {"type": "function", "name": "time",'
        ' "parameters": {"zone": "CET"}}'),
        ("llama3", '<|python_tag|>{"name": "weather", "parameters": {"city": "Ulm"}};{"function": "time",'
        ' "parameters": {"zone": "CET"}}'),
        ("mistral", '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Ulm"}, "id": "123456789"}, {"arguments":'
        ' {"zone": "CET"}, "name": "time"}]'),
        ("ministral3", '[TOOL_CALLS]weather[ARGS]{"city": "Ulm"}[TOOL_CALLS]time[ARGS] {"zone": "CET"}'),
        ("functiongemma", "<start_function_call>call:weather{city:<escape>Ulm<escape>}<end_function_call>"
        "<start_function_call>call:time{zone:<escape>CET<escape>}<end_function_call>"),
        ("lfm2", '<|tool_call_start|>[weather(city="Ulm"), time(zone=\'CET\')]<|tool_call_end|>'),
        ("lfm2", '<|tool_call_start|>[{"name": "weather", "arguments": {"city": "Ulm"}}, {"name": "time", "arguments":'
        ' {"zone": "CET"}}]<|tool_call_end|>'),
        ("olmo3", '<function_calls>weather(city="Ulm")\ntime(zone="CET")</function_calls>'),
        ("phi4", '<|tool_call|>[{"name": "weather", "arguments": {"city": "Ulm"}}, {"name": "time", "parameters":'
        ' {"zone": "CET"}}]<|/tool_call|>'),
        ("phi4", 'functools[{"name": "weather", "arguments": {"city": "Ulm"}}, {"arguments": {"zone": "CET"}, "name":'
        ' "time"}]'),
        ("granite3", '<|tool_call|>[{"name": "weather", "arguments": {"city": "Ulm"}}, {"name": "time", "arguments":'
        ' {"zone": "CET"}}]'),
    ],
)  # fmt: skip
def test_calls_of_each_family(family: str, text: str) -> None:
    assert read(f"{family} calls", text) == [ULM, CET]
    thought = f"<think>\nhm\n</think>\n\n{text}"
    assert read(f"{family} calls", thought) == [("reasoning", "hm"), ULM, CET]
    calls = [piece for piece in pieces_of(FAMILIES[f"{family} calls"], [text]) if piece.name]
    assert [piece.index for piece in calls] == [0, 1]
    assert all(len(piece.call_id) == 9 and not piece.text for piece in calls)
    assert calls[0].call_id != calls[1].call_id


@pytest.mark.parametrize(
    ("family", "text", "expected"),
    [
        ("think", "a <b> c", [("text", "a <b> c")]),
        ("think", " <think>\nhm\n</think>\n\nYes. ", [("reasoning", "hm"), ("text", "Yes. ")]),
        ("think", "<think>hm", [("reasoning", "hm")]),
        ("think", "<think></think>yes", [("text", "yes")]),
        ("mistral", "[THINK]hm[/THINK]yes", [("reasoning", "hm"), ("text", "yes")]),
        ("hunyuan", "<think>hm</think>\n<answer>\nyes\n</answer>", [("reasoning", "hm"), ("text", "yes")]),
        ("granite3", "<think>hm</think><response>yes</response>", [("reasoning", "hm"), ("text", "yes")]),
    ],
)
def test_reasoning_of_each_family(family: str, text: str, expected: list[tuple[str, str]]) -> None:
    assert read(f"{family} reasoning", text) == expected


@pytest.mark.parametrize("end", ["<think>", "<|assistant|><think>\n"])
def test_the_prompt_may_begin_the_reasoning(end: str) -> None:
    assert read("think reasoning", "hm\n</think>\n\nyes", prompt=end) == [("reasoning", "hm"), ("text", "yes")]
    assert read("think reasoning", "yes", prompt=end + "\n</think>\n\n") == [("text", "yes")]


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("hermes", '<tool_call>{"nme": "weather", "arguments": {}}</tool_call> then'),
        ("hermes", "<tool_call>weather()</tool_call>"),
        ("hermes", '<tool_call>{"name": 3, "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"arguments": {"x": NaN}, "name": "weather"}</tool_call>'),
        ("hermes", '<tool_call>{"function": 3}</tool_call>'),
        ("hermes", "<tool_call>[1]</tool_call>"),
        ("hermes", '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "weath'),
        ("hermes", "<tool_call>" + "[" * 100_000),
        ("hermes", '<tool_call>{"name": "' + "x" * 3000),
        ("hermes", '<tool_call>{"name": "x", ' + '"type": "y", ' * 3000),
        ("hermes", "<tool_cal"),
        ("llama3", '{"name": "other", "parameters": {}} and  more'),
        ("llama3", ' \n{"a": 1}  {"name": "weather", "parameters": {}}'),
        ("llama3", 'So: {"name": "weather", "parameters": {}}'),
        ("llama3", '<|python_tag|>print("hi")'),
        ("mistral", "[TOOL_CALLS] weather"),
        ("ministral3", "[TOOL_CALLS]the weather[ARGS]{}"),
        ("ministral3", "[TOOL_CALLS]weather"),
        ("functiongemma", "<start_function_call>call:weather{city:Ulm}<end_function_call>"),
        ("lfm2", "<|tool_call_start|>[weather('Ulm')]<|tool_call_end|>"),
        ("lfm2", "<|tool_call_start|>[weather(city=b'Ulm')]<|tool_call_end|>"),
        ("lfm2", "<|tool_call_start|>[weather(city=open('x'))]<|tool_call_end|>"),
        ("lfm2", "<|tool_call_start|>import os<|tool_call_end|>"),
        ("lfm2", "<|tool_call_start|>" + "(" * 5000 + "<|tool_call_end|>"),
        ("lfm2", "<|tool_call_start|>\0<|tool_call_end|>"),
    ],
)  # fmt: skip
def test_a_malformed_call_is_text(family: str, text: str) -> None:
    assert read(f"{family} calls", text) == [("text", text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": Ulm</tool_call> then', [("tool", '{"a": Ulm', "weather"), ("text", "then")]),
        ('{"a": 1}</tool_call>', [("tool", '{"a": 1}', "weather")]),
        ('{"a": 1}}}\n</tool_call>then', [("tool", '{"a": 1}', "weather"), ("text", "then")]),
        ('{"a": "</tool_call>\\""}}</tool_call>', [("tool", '{"a": "</tool_call>\\""}', "weather")]),
        ('{"a": "b', [("tool", '{"a": "b', "weather")]),
        ('{"a": 1} then', [("tool", '{"a": 1}', "weather"), ("text", " then")]),
    ],
)
def test_arguments_are_as_the_model_wrote_them(text: str, expected: list[tuple[str, ...]]) -> None:
    assert read("hermes calls", f'<tool_call>{{"name": "weather", "arguments": {text}') == expected


def test_a_text_in_arguments_may_be_the_marker_s_beginning() -> None:
    parts = ['<tool_call>{"name": "weather", "arguments": {"a": "x"', ", <", "/tool_c", "all> then"]
    expected = [("tool", '{"a": "x", ', "weather"), ("text", "then")]
    assert said(pieces_of(HERMES, parts)) == expected


def test_an_endless_head_is_text_at_once_where_no_marker_ends_it() -> None:
    parser = ResponseParser(CALLS["llama3"].fields, tools=TOOLS)
    assert parser.feed('{"type": "x", ' + '"type": "y", ' * 300)


def test_arguments_come_while_they_are_written() -> None:
    parser = ResponseParser(HERMES, tools=TOOLS)
    assert parser.feed("Let me see. ") == [Piece("text", "Let me see.")]
    assert parser.feed("<tool_call>") == []
    assert [piece.name for piece in parser.feed('{"name": "weather", "arguments": {"ci')] == ["weather", ""]
    for part in ('ty": "U', "lm"):
        assert parser.feed(part) == [Piece("tool", part)]
    assert parser.feed('"}}</tool_call>') == [Piece("tool", '"}')]
    assert parser.finish() == []


def test_calls_are_text_in_an_answer_to_a_request_without_tools() -> None:
    text = f"<tool_call>{CALL}</tool_call>"
    assert said(pieces_of(HERMES, [text], tools=())) == [("text", text)]


def test_families_are_known_by_their_templates() -> None:
    qwen3 = '<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}</tool_call> </think>'
    assert fields_of(qwen3) == HERMES
    assert fields_of("{{ message.content.split('</think>')[-1] }}") == THINK
    assert fields_of("[TOOL_CALLS][ARGS][THINK]") == REASONING["mistral"].fields + CALLS["ministral3"].fields
    assert fields_of('{"name": function name, "parameters": dictionary} ipython') == CALLS["llama3"].fields
    assert fields_of("<|tool_call_start|>") == fields_of("<|tool_list_start|>") == CALLS["lfm2"].fields
    assert fields_of("<tool_call> <function=name> arguments") == ()  # another form, which is not known
    assert fields_of("{{ message.content }}") == ()


@pytest.mark.parametrize("name", FAMILIES)
def test_no_marker_begins_another(name: str) -> None:
    markers = [text for field in FAMILIES[name] for text in field.open]
    assert not [(a, b) for a in markers for b in markers if a is not b and b.startswith(a)]


WORDS = [
    *sorted({text for fields in FAMILIES.values() for field in fields for text in field.literals}),
    *("weather", "{", "}", '"', "\\", ",", ":", "[", "]", " ", "\n", "é", "word", '"type": "function", ', "time(a=1)"),
]
ARGUMENTS = [
    CALL,
    CALL[:-9],
    '{"name": "weather", ',
    '"parameters": {}',
    '"arguments": ',
    '{"a": "\\""}',
    '"function": ',
]
answers = st.lists(st.sampled_from(WORDS + ARGUMENTS), max_size=14).map("".join)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=150, deadline=None)
@given(text=answers, cuts=st.lists(st.floats(0, 1), max_size=12), opened=st.booleans())
def test_cuts_change_nothing(name: str, text: str, cuts: list[float], opened: bool) -> None:
    places = [0, *sorted(round(cut * len(text)) for cut in cuts), len(text)]
    prompt = FAMILIES[name][0].open[0] if opened else ""
    whole = said(pieces_of(FAMILIES[name], [text], prompt))
    parts = [text[begin:end] for begin, end in pairwise(places)]
    assert said(pieces_of(FAMILIES[name], parts, prompt)) == whole
    assert said(pieces_of(FAMILIES[name], list(text), prompt)) == whole


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.sampled_from(WORDS), max_size=14))
def test_words_are_not_lost(name: str, parts: list[str]) -> None:
    pieces = said(pieces_of(FAMILIES[name], parts))
    assert "".join("".join(each) for each in pieces).count("word") == "".join(parts).count("word")


@settings(max_examples=100, deadline=None)
@given(
    arguments=st.dictionaries(st.text(), st.recursive(st.text() | st.integers() | st.none(), st.lists, max_leaves=4))
)
def test_any_arguments(arguments: dict[str, Any]) -> None:
    call = json.dumps({"name": "weather", "arguments": arguments})
    [(_, written, _)] = said(pieces_of(HERMES, list(f"<tool_call>\n{call}\n</tool_call>")))
    assert json.loads(written) == arguments


def test_the_same_as_transformers() -> None:
    parsing = pytest.importorskip("transformers.utils.chat_parsing")
    template = {
        "start_anchor": "<|assistant|>",
        "fields": {
            "reasoning_content": {"open": "<think>", "close": "</think>"},
            "tool_calls": {"open": "<tool_call>", "close": "</tool_call>", "content": "json", "repeats": True},
            "content": {},
        },
    }
    for text in (
        "yes",
        f"<think>\nhm\n</think>\n\nyes\n<tool_call>\n{CALL}\n</tool_call><tool_call>{CALL}</tool_call>",
    ):
        expected = parsing.parse_response(text, template, prefix="<|assistant|>")
        ours: dict[str, Any] = {}
        for kind, content, *name in said(pieces_of(HERMES, [text])):
            if kind == "tool":
                ours.setdefault("tool_calls", []).append({"name": name[0], "arguments": json.loads(content)})
            else:
                ours["reasoning_content" if kind == "reasoning" else "content"] = content
        assert ours == expected
