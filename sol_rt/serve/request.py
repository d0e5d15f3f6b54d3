"""Reads the JSON of a request: the conversation, the dial and the settings of its generation."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from sol_rt.errors import UsageError, brief, plain
from sol_rt.generate.grammar import Grammar, GrammarError

_HELD = ("budget", "max_loss", "tokens_per_second")
DIAL = (*_HELD, "schedule", "lossless")
"""Fields of the dial."""
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""Values of `reasoning_effort`, from the least on."""
TIERS = ("auto", "default", "flex", "priority", "standard_only")
"""Values of `service_tier`: flex is the background, priority comes first; the others are alike."""
SAMPLING = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "seed": int,
    "presence_penalty": float,
    "frequency_penalty": float,
    "repetition_penalty": float,
}
"""Fields that choose tokens, and their types."""
_WITHOUT_EFFECT = {"user", "metadata", "store", "prompt_cache_key", "safety_identifier"}
"""Fields that change nothing about an answer: they are taken without a word."""
_COMPLETION_TOKENS = 16
"""Tokens of a plain completion that asks for no number, as in OpenAI's API."""
_MOST_STOPS, _MOST_MESSAGES = 64, 4096
_MOST_NAMES, _LONGEST_NAME = 32, 60
_TOOL_NAME = re.compile(r"[\w.\-/]{1,128}")
_KINDS = {
    float: "a number",
    int: "a whole number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


class FieldError(UsageError):
    """A field of a request that cannot be followed.

    Attributes:
        field: its name.
        reason: the message without it.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field, self.reason = field, message


@dataclass(frozen=True)
class Asked:
    """A request of a protocol, checked as far as that goes without the model.

    Attributes:
        prompt: a text, token ids, or messages with role and content.
        arguments: of `SolModel.stream`, the dial among them.
        max_tokens: tokens to generate at most; None for all that fit.
        stream: the answer comes in pieces.
        usage_chunk: the stream ends with the usage.
        step_facts: the stream tells what each step did: `stream_options.include_sol`.
        top_logprobs: likeliest tokens to report; None for no log-probabilities at all.
        background: gives way to other requests.
        ignored: fields that this server does not know.
        tools: functions that the model may call, in OpenAI's form.
        tool_choice: `none`, `auto`, or `required`: the answer is a call. A request for one tool has no others.
        priority: comes before other requests, and load does not lower its budget.
        deadline_ms: time in which the answer is to be complete, from `arrived_at` on; None for any.
        effort: `reasoning_effort`, one of EFFORTS; None where it is not given.
        by_effort: the budget comes from the effort.
        most_budget: budget that a proxy before this server leaves it, 0 to 1: header `X-Sol-Budget-Max`.
        arrived_at: time when it was read, of the monotonic clock, seconds.
        names: the protocol's names of chat's fields, where it has others.
        repeated: fields of the request that the answer repeats, as they were given.
    """

    prompt: Any
    arguments: Mapping[str, Any]
    max_tokens: int | None = None
    stream: bool = False
    usage_chunk: bool = False
    step_facts: bool = False
    top_logprobs: int | None = None
    background: bool = False
    ignored: tuple[str, ...] = field(default=())
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: str = "auto"
    priority: bool = False
    deadline_ms: float | None = None
    effort: str | None = None
    by_effort: bool = False
    most_budget: float = 1.0
    arrived_at: float = field(default_factory=time.monotonic, compare=False)
    names: Mapping[str, str] = field(default_factory=dict, compare=False)
    repeated: Mapping[str, Any] = field(default_factory=dict, compare=False)


def read_chat(body: Mapping[str, Any], headers: Mapping[str, str], known_as: str) -> Asked:
    """A request of `/v1/chat/completions`. `known_as` is the model's name. Raises FieldError."""
    reader = _Reader(body)
    messages = reader.take("messages", list)
    if not messages or len(messages) > _MOST_MESSAGES:
        raise FieldError("messages", f"got {len(messages or ())}, expected 1 to {_MOST_MESSAGES}")
    tops = reader.take("top_logprobs", int)
    top_logprobs = (tops or 0) if reader.take("logprobs", bool) else None
    newer, older = reader.take("max_completion_tokens", int), reader.take("max_tokens", int)
    tools, choice = _tools(reader.take("tools", list) or [], reader.fields.pop("tool_choice", None))
    asked = reader.asked(
        _with_names_of_tools([_message(n, each) for n, each in enumerate(messages)]),
        older if newer is None else newer,
        top_logprobs,
        headers,
        known_as,
    )
    return replace(asked, tools=tools, tool_choice=choice)


def read_completion(body: Mapping[str, Any], headers: Mapping[str, str], known_as: str) -> Asked:
    """A request of `/v1/completions`. Raises FieldError."""
    reader = _Reader(body)
    prompt = reader.fields.pop("prompt", None)
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if not prompt or not (
        isinstance(prompt, str) or (isinstance(prompt, list) and all(type(t) is int for t in prompt))
    ):
        raise FieldError("prompt", f"got {brief(prompt)}, expected one text, or token ids")
    for name, kind, only in (("echo", bool, False), ("suffix", str, ""), ("best_of", int, 1)):
        if reader.take(name, kind) not in (None, only):
            raise FieldError(name, "is not supported; leave it out")
    most = reader.take("max_tokens", int)
    return reader.asked(
        prompt, _COMPLETION_TOKENS if most is None else most, reader.take("logprobs", int), headers, known_as
    )


def read_as_chat(
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    known_as: str,
    names: Mapping[str, str],
    read: Callable[[Mapping[str, Any], Mapping[str, str], str], Asked] = read_chat,
) -> Asked:
    """A request of another protocol, whose fields were given chat's names; `names` has the protocol's own for those.

    Raises FieldError.
    """
    try:
        asked = read(body, headers, known_as)
    except FieldError as error:
        raise FieldError(names.get(error.field, error.field), error.reason) from None
    return replace(asked, ignored=tuple(names.get(name, name) for name in asked.ignored), names=names)


def taken(fields: dict[str, Any], name: str, kind: type) -> Any:
    """Takes a field out and returns its value; None where it is missing or null. Raises FieldError."""
    value = fields.pop(name, None)
    if value is None:
        return None
    if kind is float and type(value) in (int, float):
        return number(name, value)
    if type(value) is not kind:
        raise FieldError(name, f"got {brief(value)}, expected {_KINDS[kind]}")
    return value


def refuse(fields: dict[str, Any], *names: str) -> None:
    """Takes out fields that would make a wrong answer if they were ignored. Raises FieldError for one with a value."""
    for name in names:
        if fields.pop(name, None) not in (None, False, "", [], {}):
            raise FieldError(name, "is not supported; leave it out")


def objects(where: str, values: Any) -> list[dict[str, Any]]:
    """A list of objects, which are copied. Raises FieldError."""
    if not isinstance(values, list) or not all(isinstance(each, dict) for each in values):
        raise FieldError(where, f"got {brief(values)}, expected a list of objects")
    return [dict(each) for each in values]


def joined(where: str, content: Any, kinds: tuple[str, ...] = ("text",)) -> str:
    """A text that is given as one or as parts of those types. Raises FieldError."""
    if isinstance(content, str):
        return content
    parts = objects(where, content)
    if wrong := [part for part in parts if part.get("type") not in kinds or not isinstance(part.get("text"), str)]:
        raise FieldError(where, f"got {brief(wrong[0])}, expected a text or parts of type {' or '.join(kinds)}")
    return "".join(part["text"] for part in parts)


def one_of(where: str, value: Any, known: Iterable[str]) -> str:
    """A text that is one of those known. Raises FieldError."""
    if not isinstance(value, str) or value not in known:
        raise FieldError(where, f"got {brief(value)}, expected {', '.join(known)}")
    return value


def text_of(where: str, fields: Mapping[str, Any], name: str) -> str:
    """A field of an object that must be a text. Raises FieldError."""
    if not isinstance(value := fields.get(name), str):
        raise FieldError(f"{where}.{name}", f"got {brief(value)}, expected a text")
    return value


def as_json(where: str, value: Any) -> str:
    """A value as JSON's text. Raises FieldError for a number too large for it, or what is nested too deep."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise FieldError(where, f"no JSON ({error})") from None


def split_name(model: str, known_as: str) -> tuple[float | None, bool]:
    """The budget and whether the request is of the background: `NAME@0.5`, `NAME:background`. Raises FieldError."""
    how = model.removeprefix(known_as)
    if not model.startswith(known_as) or (how and how[0] not in "@:"):
        raise FieldError("model", f"got {brief(model)}, this server has {known_as}")
    if how in ("", ":background"):
        return None, bool(how)
    try:
        return number("model", how.removeprefix("@")), False
    except FieldError:
        raise FieldError(
            "model", f"got {brief(model)}, expected {known_as}, {known_as}@BUDGET or {known_as}:background"
        ) from None


def number(name: str, value: Any) -> float:
    """A finite number, given as one or as a text. Raises FieldError."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise FieldError(name, f"got {brief(value)}, expected a number")
    return found


class _Reader:
    """Takes the fields of a body one by one; what is left is unknown."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self.fields = dict(body)

    def take(self, name: str, kind: type) -> Any:
        """The field's value; None where it is missing or null."""
        return taken(self.fields, name, kind)

    def asked(
        self, prompt: Any, max_tokens: int | None, top_logprobs: int | None, headers: Mapping[str, str], known_as: str
    ) -> Asked:
        """The request with all fields that both protocols have."""
        named_budget, background = split_name(self.take("model", str) or known_as, known_as)
        if max_tokens is not None and max_tokens < 1:
            raise FieldError("max_tokens", f"got {max_tokens}, expected 1 or more")
        arguments = {name: value for name, kind in SAMPLING.items() if (value := self.take(name, kind)) is not None}
        if "temperature" in arguments:
            arguments["do_sample"] = arguments["temperature"] > 0
        if (stop := self.fields.pop("stop", None)) is not None:
            if isinstance(stop, list) and len(stop) > _MOST_STOPS:
                raise FieldError("stop", f"got {len(stop)} texts, expected at most {_MOST_STOPS}")
            arguments["stop_strings"] = stop
        if (bias := self.take("logit_bias", dict)) is not None:
            arguments["logit_bias"] = bias
        if (grammar := _grammar(self.fields.pop("response_format", None))) is not None:
            arguments["grammar"] = grammar
        arguments |= self._dial(headers, named_budget)
        options = self.take("stream_options", dict) or {}
        self._refuse()
        tier = self._word("service_tier", TIERS)
        deadline_ms, effort = self._deadline_ms(headers), self._word("reasoning_effort", EFFORTS)
        if effort == "none":
            self.fields["reasoning_effort"] = effort  # nothing keeps a model from reasoning
        stream = self.take("stream", bool) or False
        if self.fields.get("parallel_tool_calls") in (None, True):  # what every answer may have
            self.fields.pop("parallel_tool_calls", None)
        ignored = tuple(plain(name)[:_LONGEST_NAME] for name in sorted(self.fields.keys() - _WITHOUT_EFFECT))[
            :_MOST_NAMES
        ]
        usage, facts = (bool(options.get(name, False)) for name in ("include_usage", "include_sol"))
        return Asked(
            prompt,
            arguments,
            max_tokens,
            stream,
            usage,
            facts,
            top_logprobs,
            background or tier == "flex",
            ignored,
            priority=tier == "priority",
            deadline_ms=deadline_ms,
            effort=effort,
            most_budget=_most_budget(headers),
        )

    def _word(self, name: str, words: tuple[str, ...]) -> str | None:
        """A field's value among some; None where it is missing."""
        word: str | None = self.take(name, str)
        if word is not None and word not in words:
            raise FieldError(name, f"got {brief(word)}, expected one of {', '.join(words)}")
        return word

    def _deadline_ms(self, headers: Mapping[str, str]) -> float | None:
        """The deadline by field or header, milliseconds."""
        given = self.take("deadline_ms", float)
        if given is None and (text := headers.get(_header("deadline_ms"))) is not None:
            given = number("deadline_ms", text)
        if given is not None and not given > 0:
            raise FieldError("deadline_ms", f"got {given:g}, expected milliseconds over 0")
        return given

    def _dial(self, headers: Mapping[str, str], budget: float | None) -> dict[str, Any]:
        """The dial: by field, by header `X-Sol-Budget` and the like, or by the model's name, in that order."""
        fields = {name: value for name in _HELD if (value := self.take(name, float)) is not None}
        lossless, schedule = self.take("lossless", bool), self.take("schedule", str)
        by_header = not fields and not lossless
        given = {name: text for name in _HELD if by_header and (text := headers.get(_header(name))) is not None}
        found: dict[str, Any] = fields or {name: number(name, text) for name, text in given.items()}
        if by_header and lossless is None and schedule is None:
            lossless = _lossless(headers)
        if budget is not None and not found and not lossless:
            found["budget"] = budget
        if schedule is None and (by_header or not lossless):
            schedule = headers.get(_header("schedule"))
        if schedule is not None:
            found["schedule"] = schedule
        if lossless:
            if found:
                raise FieldError("lossless", f"gives the text of full quality; leave out {next(iter(found))}")
            found["lossless"] = True
        return found

    def _refuse(self) -> None:
        """Refuses what would be a wrong answer if it were ignored."""
        if self.fields.pop("functions", None):
            raise FieldError("functions", "are not supported; give tools")
        if self.take("n", int) not in (None, 1):
            raise FieldError("n", "expected 1; ask several times")


def _header(name: str) -> str:
    return "x-sol-" + name.replace("_", "-")


def _lossless(headers: Mapping[str, str]) -> bool:
    """True if a header asks for drafts that are checked at full quality. Raises FieldError."""
    text = headers.get(_header("lossless"), "false")
    if text not in ("true", "false"):
        raise FieldError("lossless", f"got {brief(text)}, expected true or false")
    return text == "true"


def _most_budget(headers: Mapping[str, str]) -> float:
    """The budget, 0 to 1, that a proxy leaves the request. Raises FieldError."""
    most = number("budget_max", headers.get(_header("budget_max"), 1.0))
    if not 0 <= most <= 1:
        raise FieldError("budget_max", f"got {most:g}, expected 0 to 1")
    return most


def _grammar(shape: Any) -> Grammar | None:
    """The grammar of a `response_format`; None for text. Raises FieldError."""
    if shape is None or shape == {"type": "text"}:
        return None
    kind = shape.get("type") if isinstance(shape, dict) else None
    if kind == "json_object":
        return Grammar.json_schema({"type": "object"})
    named = shape.get("json_schema") if kind == "json_schema" else None
    schema = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict):
        expected = "type text, type json_object, or type json_schema with an object json_schema.schema"
        raise FieldError("response_format", f"got {brief(shape)}, expected {expected}")
    try:
        return Grammar.json_schema(schema)
    except GrammarError as error:
        raise FieldError("response_format", error.reason) from None


def _message(place: int, message: Any) -> dict[str, Any]:
    """A message with its content as one text. Raises FieldError."""
    where = f"messages[{place}]"
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise FieldError(where, f"got {brief(message)}, expected an object with role and content")
    content, more = message.get("content"), _about_tools(where, message)
    if content is None and "tool_calls" in more:
        content = ""
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        texts = [text for part in parts if isinstance(text := part.get("text"), str)]
        if len(texts) != len(content):
            raise FieldError(f"{where}.content", "expected parts of type text alone")
        content = "".join(texts)
    if not isinstance(content, str):
        raise FieldError(f"{where}.content", f"got {brief(content)}, expected a text")
    role = "system" if message["role"] == "developer" else message["role"]
    return {"role": role, "content": content, **more}


def _about_tools(where: str, message: Mapping[str, Any]) -> dict[str, Any]:
    """A message's further fields: its reasoning, its calls, or the call that it answers. Raises FieldError."""
    names = {"assistant": ("reasoning_content",), "tool": ("tool_call_id", "name")}.get(message["role"], ())
    found = {name: value for name in names if (value := message.get(name)) is not None}
    for name, value in found.items():
        if not isinstance(value, str):
            raise FieldError(f"{where}.{name}", f"got {brief(value)}, expected a text")
    if message["role"] != "assistant" or not (calls := message.get("tool_calls")):
        return found
    if not isinstance(calls, list):
        raise FieldError(f"{where}.tool_calls", f"got {brief(calls)}, expected a list")
    return found | {"tool_calls": [_call(f"{where}.tool_calls[{n}]", each) for n, each in enumerate(calls)]}


def _call(where: str, call: Any) -> dict[str, Any]:
    """A call of a tool as chat templates read it: with its arguments as an object, if they are one."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise FieldError(where, f"got {brief(call)}, expected an object with id, type and function")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):  # a model's own mistake comes back as it was
            read = json.loads(arguments)
            arguments = read if isinstance(read, dict) else arguments
    if not isinstance(arguments, (dict, str)) or not isinstance(call.get("id", ""), str):
        raise FieldError(where, f"got {brief(call)}, expected an id that is a text, and arguments as JSON")
    named = {"name": function["name"], "arguments": arguments}
    return {"id": call.get("id", ""), "type": "function", "function": named}


def _with_names_of_tools(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the tool's name at its results, which templates write and clients leave out."""
    names: dict[str, str] = {}
    found = []
    for message in messages:
        names |= {call["id"]: call["function"]["name"] for call in message.get("tool_calls", ())}
        name = names.get(message.get("tool_call_id", ""))
        found.append({"name": name, **message} if name is not None else message)
    return found


def _tools(tools: list[Any], choice: Any) -> tuple[tuple[dict[str, Any], ...], str]:
    """The functions that may be called, and the choice. Other kinds of tools are left out. Raises FieldError."""
    found: dict[Any, dict[str, Any]] = {}
    for place, tool in enumerate(tools):
        where = f"tools[{place}]"
        if not isinstance(tool, dict):
            raise FieldError(where, f"got {brief(tool)}, expected an object")
        if tool.get("type", "function") != "function":
            continue
        function = tool.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
            raise FieldError(where, f"got {brief(tool)}, expected a function with a name")
        about = {"name": name, "description": function.get("description") or ""}
        parameters = function.get("parameters")
        if parameters is None or parameters == {}:
            parameters = {"type": "object", "properties": {}}
        if not isinstance(about["description"], str) or not isinstance(parameters, dict):
            raise FieldError(where, "expected a text as description and a JSON schema as parameters")
        found[name] = {"type": "function", "function": {**about, "parameters": parameters}}
    if isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        name = choice["function"].get("name")
        if not isinstance(name, str) or name not in found:
            raise FieldError("tool_choice", f"got {brief(name)}, expected one of the tools")
        return (found[name],), "required"
    if choice not in (None, "none", "auto", "required"):
        raise FieldError("tool_choice", f"got {brief(choice)}, expected none, auto, required or a function")
    if choice == "required" and not found:
        raise FieldError("tool_choice", "got required, expected tools beside it")
    return () if choice == "none" else tuple(found.values()), choice or "auto"
