"""The grammar of an answer that calls a tool, from the response template of the model's family."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sol_rt.generate.grammar import JSON_SPACES
from sol_rt.serve.response_templates import Field

_JSON: dict[str, Any] = {"x-guidance": JSON_SPACES}


def call_grammar(
    fields: Sequence[Field],
    tools: Sequence[Mapping[str, Any]],
    added: Mapping[int, str],
    opened: Field | None,
    schema: dict[str, Any] | None = None,
) -> str:
    """A grammar in llguidance's Lark: reasoning, if the model wants it, and a call with arguments by its tool's schema.

    Args:
        fields: of the response template, one of tools among them.
        tools: in OpenAI's form.
        added: texts of the added tokens by their ids: llguidance takes no text for one in angle brackets.
        opened: the field that the prompt begins.
        schema: JSON that may stand in place of a call; None where a call has to be.
    """
    ids = {text: number for number, text in added.items()}
    field = next(field for field in reversed(fields) if field.kind == "tool")
    rules = [f"call: {' | '.join(f'call_{n}' for n in range(len(tools)))}", 'ws: " " | "\\n"']
    for number, tool in enumerate(tools):
        rules += _call(f"call_{number}", tool["function"], field, ids)
    opening = "" if field.at_start else f"{_marker(field.open[0], ids)} ws?"
    closing = f"ws? {_marker(field.close[0], ids)}" if field.close else ""
    said = f"{opening} call {closing}"
    if schema is not None:
        said = f"({said} | answer)"
        rules.append(f"answer: %json {json.dumps(_JSON | schema)}")
    thought = opened or next((field for field in fields if field.kind == "reasoning"), None)
    if thought is None or thought.kind != "reasoning":
        return "\n".join([f"start: {said}", *rules])
    start = "thought" if opened else f"({_marker(thought.open[0], ids)} thought)?"
    close = thought.close[0]
    if close in ids:
        rules += [f"thought: /(.|\\n)*/ {_marker(close, ids)} ws? ws?"]
    else:
        ending = re.escape(close).replace("/", "\\/")
        rules += ["thought: until_close ws? ws?", f"until_close[lazy]: /(.|\\n)*{ending}/"]
    return "\n".join([f"start: {start} {said}", *rules])


def _call(rule: str, function: Mapping[str, Any], field: Field, ids: Mapping[str, int]) -> list[str]:
    """Rules of a call of one function."""
    name, parameters = function["name"], {"type": "object", **function["parameters"]}
    if field.content == "named-json":
        separator = "" if field.separator == "{" else _marker(field.separator, ids)
        return [
            f"{rule}: {_text(name)} {separator} {rule}_json",
            f"{rule}_json: %json {json.dumps(parameters | _JSON)}",
        ]
    key = "parameters" if field.at_start else "arguments"
    definitions = {at: parameters.pop(at) for at in ("$defs", "definitions") if at in parameters}
    call = {
        "type": "object",
        "properties": {"name": {"const": name}, key: parameters},
        "required": ["name", key],
        "additionalProperties": False,
    }
    in_list = field.content == "python-call-list" or not (field.close or field.at_start)
    written = f'"[" {rule}_json "]"' if in_list else f"{rule}_json"
    return [f"{rule}: {written}", f"{rule}_json: %json {json.dumps(call | definitions | _JSON)}"]


def _marker(text: str, ids: Mapping[str, int]) -> str:
    """A marker, each added token in it as a token."""
    if not ids:
        return _text(text)
    pieces = re.split(f"({'|'.join(map(re.escape, sorted(ids, key=len, reverse=True)))})", text)
    return " ".join(f"<[{ids[piece]}]>" if piece in ids else _text(piece) for piece in pieces if piece)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
