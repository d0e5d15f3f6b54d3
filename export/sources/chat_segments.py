"""Takes the texts around messages out of a chat template, for hosts that have no Jinja: `chat_segments.json`.

Such a host puts a fixed text between two messages, which depends on their roles alone. That is enough for most
templates. Whether it is for this one is measured: random conversations are rendered both ways, and only where all of
them agree the segments are kept.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sol_rt.errors import SolError, UsageError
from sol_rt.export.sources import tokenizer_files
from sol_rt.text.chat_template import FILE as TEMPLATE
from sol_rt.text.chat_template import ChatTemplate

FILE = "chat_segments.json"
FORMAT_VERSION = 1
START, ANSWER = "start", "answer"
"""Names that stand for a role before the first message and after the last one."""
_SYSTEM, _USER, _ASSISTANT = ROLES = ("system", "user", "assistant")

Message = dict[str, str]

_USUAL = ((_USER,), (_USER, _ASSISTANT, _USER))
_WITH_SYSTEM = ((_SYSTEM, _USER), (_SYSTEM, _USER, _ASSISTANT, _USER))
_UNUSUAL = (
    (_SYSTEM,),
    (_ASSISTANT, _USER),
    (_USER, _USER),
    (_USER, _ASSISTANT),
    (_SYSTEM, _ASSISTANT, _USER),
    (_SYSTEM, _SYSTEM, _USER),
    (_USER, _SYSTEM, _USER),
    (_USER, _ASSISTANT, _SYSTEM, _USER),
    (_USER, _ASSISTANT, _ASSISTANT, _USER),
)
"""Orders of roles that many templates refuse, or render as the usual ones."""
_CONVERSATIONS = 200
_LONGEST = 9  # messages
_SECONDS = 30.0
"""Time for one template; one that takes longer gets no segments."""
_CONTENTS = (
    *(
        "",
        " ",
        "\n",
        "yes",
        " leading",
        "trailing \n",
        "\n\n both \t",
        "a\r\nb",
        "\x1cseparator\x1f",
        "\xa0no-break\xa0",
        "\u3000full",
    ),
    *(
        "Is it 12°?",
        "{{ messages }}",
        "{% if true %}{% endif %}",
        "{# note #}",
        "a 'quoted' \"text\" \\n",
        "a & b < c > d",
        "None",
        "true",
    ),
    *(
        '{"name": "f", "arguments": {}}',
        "深海 🐟",
        "e\u0301",
        "<think>\nhm\n</think>\n\nyes",
        "</think>",
        "<tool_call>\n</tool_call>",
    ),
    *(
        "/no_think",
        "[INST] x [/INST]",
        "<<SYS>>",
        "system",
        "user",
        "assistant\n",
        "```python\nprint(1)\n```",
        "word " * 400,
    ),
)


@dataclass(frozen=True)
class ChatSegments:
    """Segments from which a host renders conversations.

    Attributes:
        between: by the role before, or START, and the role after, or ANSWER: the text between two messages. What is
            missing here the template refuses, or renders in a way that depends on more than the two roles.
        trimmed: roles whose content loses the spaces at both ends, as Python's `str.strip` takes them.
        filled: roles whose content must not be empty: the template leaves such a message out.
    """

    between: Mapping[str, Mapping[str, str]]
    trimmed: frozenset[str] = frozenset()
    filled: frozenset[str] = frozenset()

    def render(self, messages: Sequence[Message]) -> str | None:
        """The conversation and the beginning of an answer; None for what the segments do not cover."""
        parts: list[str] = []
        before = START
        for role, content in [*((message["role"], message["content"]) for message in messages), (ANSWER, "")]:
            text = self.between.get(before, {}).get(role)
            if text is None or (role in self.filled and not content):
                return None
            parts += [text, content.strip() if role in self.trimmed else content]
            before = role
        return "".join(parts)

    def to_json_dict(self) -> dict[str, Any]:
        """The content of the file."""
        order = [*ROLES, START, ANSWER]
        return {
            "format_version": FORMAT_VERSION,
            "trimmed": [role for role in ROLES if role in self.trimmed],
            "filled": [role for role in ROLES if role in self.filled],
            "between": {
                before: {after: row[after] for after in order if after in row}
                for before, row in ((name, self.between.get(name, {})) for name in (START, *ROLES))
                if row
            },
        }


def write_chat_segments(folder: Path) -> bool:
    """Writes `chat_segments.json` into a bundle's folder, beside its tokenizer and chat template, if there are segments
    that agree with the template. Returns whether it did.
    """
    content = chat_segments_of(folder)
    if content is not None:
        (folder / FILE).write_bytes(content)
    return content is not None


def chat_segments_of(folder: Path) -> bytes | None:
    """The content of `chat_segments.json` for the tokenizer and the template in a folder; None if there are none."""
    tokenizer = folder / tokenizer_files.TOKENIZER
    if not (folder / TEMPLATE).is_file() or not tokenizer.is_file() or not _keeps_specials_apart(tokenizer):
        return None
    if "strftime_now" in (folder / TEMPLATE).read_text(encoding="utf-8"):  # another text tomorrow
        return None
    try:
        template = ChatTemplate.from_folder(folder, {path.name for path in folder.iterdir()})
        segments = find_segments(template, _special_texts(tokenizer))
    except SolError:  # the template fails, and whoever chats will hear of it
        return None
    if segments is None:
        return None
    return (json.dumps(segments.to_json_dict(), indent=2, ensure_ascii=False) + "\n").encode()


def find_segments(template: ChatTemplate, special: Sequence[str] = ()) -> ChatSegments | None:
    """The segments of a template, or None if it does more than put texts between messages.

    Args:
        template: the template.
        special: texts that the conversations to compare should hold, too.

    Raises SolError if the template's process fails.
    """
    probe = _Probe(template, special, time.monotonic() + _SECONDS)
    usual = probe.between(_USUAL)
    if usual is None:
        return None
    with_system = _merged(usual, probe.between(_WITH_SYSTEM))
    found = probe.checked(ChatSegments(with_system or usual)) or probe.checked(ChatSegments(usual))
    if found is None:
        return None
    more = found
    for roles in _UNUSUAL:
        between = _merged(more.between, probe.between([roles]))
        if between is not None and probe.agrees(replace(more, between=between), _CONVERSATIONS // 5):
            more = replace(more, between=between)
    return more if probe.agrees(more, _CONVERSATIONS) else found


class _Probe:
    """Renders conversations with a template until the time is up."""

    def __init__(self, template: ChatTemplate, special: Sequence[str], until: float) -> None:
        self._template = template
        self._contents = [*_CONTENTS, *special, *(f"say {text} please" for text in special)]
        self._until = until

    def render(self, messages: Sequence[Message]) -> str | None:
        """The template's text; None if it refuses the conversation."""
        if time.monotonic() > self._until:
            raise UsageError(f"chat template: it takes more than {_SECONDS:g} s for {_CONVERSATIONS} conversations")
        try:
            return self._template.render(messages)
        except SolError:
            return None

    def between(self, orders: Sequence[Sequence[str]]) -> dict[str, dict[str, str]] | None:
        """The texts between messages in these orders of roles; None where the template refuses one of them, or does not
        render each message once and in order.
        """
        found: dict[str, dict[str, str]] = {}
        for roles in orders:
            marks = [f"Zq{index}wXk{index}vJ" for index in range(len(roles))]
            rest = self.render([{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)])
            if rest is None or any(rest.count(mark) != 1 for mark in marks):
                return None
            before = START
            for role, mark in zip(roles, marks, strict=True):
                text, separator, rest = rest.partition(mark)
                if not separator:  # it stands before the last one
                    return None
                found.setdefault(before, {}).setdefault(role, text)
                before = role
            found.setdefault(before, {}).setdefault(ANSWER, rest)
        return found

    def checked(self, segments: ChatSegments) -> ChatSegments | None:
        """The segments with what the template does to the content of each role; None if they do not agree with it."""
        for role, roles in ((_SYSTEM, (_SYSTEM, _USER)), (_USER, (_USER,)), (_ASSISTANT, (_USER, _ASSISTANT, _USER))):
            if not any(role in row for row in segments.between.values()):
                continue
            spaced, empty = (
                [{"role": each, "content": content if each == role else "mark"} for each in roles]
                for content in (" \n mark \t\n", "")
            )
            if segments.render(spaced) != self.render(spaced):
                segments = replace(segments, trimmed=segments.trimmed | {role})
            if segments.render(empty) != self.render(empty):
                segments = replace(segments, filled=segments.filled | {role})
        return segments if self.agrees(segments, _CONVERSATIONS) else None

    def agrees(self, segments: ChatSegments, conversations: int) -> bool:
        """True if template and segments render random conversations alike."""
        draw = random.Random(0)
        drawn = (self._conversation(segments, draw) for _ in range(conversations))
        return all(self.render(messages) == segments.render(messages) for messages in drawn)

    def _conversation(self, segments: ChatSegments, draw: random.Random) -> list[Message]:
        """A random conversation that the segments can render."""
        messages: list[Message] = []
        role, length = START, draw.randint(1, _LONGEST)
        while len(messages) < length or ANSWER not in segments.between[role]:
            follow = [each for each in ROLES if each in segments.between[role]]
            if not follow:
                break
            role = draw.choice(follow)
            contents = self._contents[1:] if role in segments.filled else self._contents  # the first one is empty
            messages.append({"role": role, "content": draw.choice(contents)})
        return messages


def _merged(
    first: Mapping[str, Mapping[str, str]], then: Mapping[str, Mapping[str, str]] | None
) -> dict[str, dict[str, str]] | None:
    """Merges the two tables; None if there is no second one, or they differ."""
    if then is None:
        return None
    merged = {before: dict(row) for before, row in first.items()}
    for before, row in then.items():
        for after, text in row.items():
            if merged.setdefault(before, {}).setdefault(after, text) != text:
                return None
    return merged


def _added_tokens(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text(encoding="utf-8")).get("added_tokens") or [])


def _special_texts(path: Path) -> list[str]:
    return [token["content"] for token in _added_tokens(path) if token.get("special")][:40]


def _keeps_specials_apart(path: Path) -> bool:
    """True if special tokens are found in the text as it is.

    In normalized text a host can't tell which of the special tokens the template wrote.
    """
    return not any(token.get("special") and token.get("normalized") for token in _added_tokens(path)) or (
        json.loads(path.read_text(encoding="utf-8")).get("normalizer")
        in (None, {"type": "Sequence", "normalizers": []})
    )
