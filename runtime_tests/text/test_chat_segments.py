"""Chat segments: what the exporter takes from templates, which templates have none, and the native core's tokens."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from helpers.native_text import NativeError, NativeText, driver
from sol_rt.errors import UsageError
from sol_rt.text.chat_template import ChatTemplate
from sol_rt.text.tokenizer import Tokenizer

pytest.importorskip("torch", reason="the exporter comes with the extra export")

from helpers.made_tokenizers import byte_level, sentence_pieces
from sol_rt.export.sources import chat_segments
from sol_rt.export.sources.chat_segments import ANSWER, FILE, START, ChatSegments, find_segments, write_chat_segments

# In the styles of SmolLM2, Qwen2.5, Llama 3, Llama 2, Gemma 3 and Phi-3
TEMPLATES = {
    "smollm": (
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|system|>Be brief.<|end|>\n{% endif %}"
        "<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "qwen": (
        "{%- if tools %}<|system|>{{ tools | tojson }}{% elif messages[0].role == 'system' %}"
        "{{- '<|system|>\n' + messages[0].content + '<|end|>\n' }}{% else %}{{- '<|system|>\nDefault.<|end|>\n' }}"
        "{% endif %}{%- for m in messages %}{%- if m.role in ('user', 'assistant') or not loop.first %}"
        "{{- '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endif %}{% endfor %}"
        "{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{% endif %}"
    ),
    "llama3": (
        "{% for m in messages %}{% set text = '<|' + m.role + '|>\n\n' + m.content | trim + '<|end|>' %}"
        "{% if loop.first %}{% set text = bos_token + text %}{% endif %}{{ text }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n\n' }}{% endif %}"
    ),
    "llama2": (
        "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
        "{% set start = '<<S>>\n' + messages[0].content + '\n<</S>>\n\n' %}"
        "{% else %}{% set rest = messages %}{% set start = '' %}{% endif %}{% for m in rest %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if m.role == 'user' %}{{ bos_token + '[I] ' + (start if loop.first else '') + m.content + ' [/I]' }}"
        "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set start = messages[0].content + '\n\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set start = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no') }}{% endif %}"
        "{% set role = 'model' if m.role == 'assistant' else m.role %}"
        "{{ '<|' + role + '|>' + (start if loop.first else '') + m.content | trim + '<|end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|model|>' }}{% endif %}"
    ),
    "phi": (
        "{% for m in messages %}{% if m.role == 'system' and m.content %}{{ '<|system|>\n' + m.content + '<|end|>\n' }}"
        "{% elif m.role == 'user' %}{{ '<|user|>\n' + m.content + '<|end|>\n' }}{% elif m.role == 'assistant' %}"
        "{{ '<|assistant|>\n' + m.content + '<|end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
}
_TURN = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)
ODD = {
    "numbers the messages": _TURN.replace("[end]", "{{ loop.index }}"),
    "changes case": _TURN.replace("m.content", "m.content | upper"),
    "strips one end": _TURN.replace("m.content", "m.content.lstrip()"),
    "escapes": _TURN.replace("m.content", "m.content | e"),
    "drops thoughts": _TURN.replace("m.content", "m.content.split('</think>')[-1]"),
    "looks at the content": _TURN.replace("[end]", "{% if 'true' in m.content %}!{% endif %}"),
    "puts the system's message last": _TURN.replace("[end]", "{% if loop.last %}{{ messages[0].content }}{% endif %}"),
    "looks far back": _TURN.replace("[end]", "{% if loop.index > 4 %}.{% endif %}"),
    "looks far ahead": _TURN.replace("[end]", "{% if messages | length > 7 %}.{% endif %}"),
    "renders a message twice": _TURN.replace("[end]", "{{ m.content }}"),
    "draws": _TURN.replace("[end]", "{{ ['a', 'b', 'c'] | random }}"),
    "reads no messages": "hello",
    "does not parse": "{% for %}",
    "never ends": "{% for a in range(1000000) %}{% for b in range(1000) %}{% endfor %}{% endfor %}" + _TURN,
    "refuses all": "{{ raise_exception('no') }}",
    "needs memory": "{{ 'x' * 10000000 }}" + _TURN,
}
_VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
_SPECIAL = ("<s>", "</s>", *(f"<|{name}|>" for name in ("system", "user", "assistant", "model", "end")))


def _segments(source: str) -> ChatSegments | None:
    return find_segments(ChatTemplate(source, _VARIABLES))


@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATES)
def test_usual_templates_have_segments(name: str) -> None:
    segments = _segments(TEMPLATES[name])
    assert segments is not None
    template = ChatTemplate(TEMPLATES[name], _VARIABLES)
    user, answer = {"role": "user", "content": " a\n"}, {"role": "assistant", "content": "b"}
    for messages in (
        [user],
        [user, answer, user],
        [{"role": "system", "content": "c"}, user, answer, user, answer, user],
    ):
        assert segments.render(messages) == template.render(messages)
    assert (segments.filled == {"system"}) is (name == "phi")


def test_segments_are_what_the_template_writes() -> None:
    segments = _segments(TEMPLATES["gemma"])
    assert segments is not None
    assert segments.to_json_dict() == {
        "format_version": 1,
        "trimmed": ["user", "assistant"],
        "filled": [],
        "between": {
            "start": {"system": "<s><|user|>", "user": "<s><|user|>"},
            "system": {"user": "\n\n"},
            "user": {"assistant": "<|end|>\n<|model|>", "answer": "<|end|>\n<|model|>"},
            "assistant": {"user": "<|end|>\n<|user|>", "answer": "<|end|>\n<|model|>"},
        },
    }


@pytest.mark.parametrize("name", ODD)
def test_other_templates_have_no_segments(tmp_path: Path, name: str) -> None:
    folder = _folder(tmp_path, ODD[name], byte_level())
    assert not write_chat_segments(folder)
    assert not (folder / FILE).exists()


def test_a_template_that_looks_back_keeps_what_does_not_depend_on_it() -> None:
    """Two answers in a row are told apart by what precedes them: the segments leave that order out."""
    source = _TURN.replace(
        "[end]", "{% if m.role == 'user' and loop.previtem and loop.previtem.role == 'user' %}!{% endif %}"
    )
    segments = _segments(source)
    assert segments is not None
    assert "user" not in segments.between["user"]
    assert segments.between["assistant"]["user"] == "[user]"


def _folder(path: Path, source: str, tokenizer: Any) -> Path:
    tokenizer.add_special_tokens(list(_SPECIAL))
    path.mkdir(exist_ok=True)
    (path / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(_VARIABLES), encoding="utf-8")
    (path / "chat_template.jinja").write_text(source, encoding="utf-8")
    return path


def test_a_template_that_writes_the_date_has_no_segments(tmp_path: Path) -> None:
    source = "{% set day = strftime_now('%d %b %Y') %}" + TEMPLATES["smollm"].replace(
        "Be brief.", "Today is {{ day }}."
    )
    assert not write_chat_segments(_folder(tmp_path, source, byte_level()))


def test_special_tokens_in_normalized_text_have_none(tmp_path: Path) -> None:
    """A host could not tell the template's special tokens from those that a user types."""
    from tokenizers import normalizers

    assert not write_chat_segments(
        _folder(tmp_path / "a", TEMPLATES["smollm"], byte_level(normalizer=normalizers.NFC()))
    )
    folder = _folder(tmp_path / "b", TEMPLATES["smollm"], byte_level(normalizer=normalizers.NFC()))
    _without_normalized_specials(folder)
    assert write_chat_segments(folder)


def _without_normalized_specials(folder: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for token in document["added_tokens"]:
        token["normalized"] = token["normalized"] and not token["special"]
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")


def test_a_slow_template_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(chat_segments, "_SECONDS", 0.0)
    assert not write_chat_segments(_folder(tmp_path, TEMPLATES["smollm"], byte_level()))


@pytest.fixture(scope="module")
def program() -> Path:
    return driver()


@pytest.mark.slow
@pytest.mark.parametrize("style", ["bytes", "pieces", "first"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_native_core_has_the_tokens_of_the_python_runtime(
    tmp_path: Path, program: Path, name: str, style: str
) -> None:
    from tokenizers import normalizers, pre_tokenizers

    if style == "bytes":
        made = byte_level()
    elif style == "first":
        made = sentence_pieces(pre_tokenizers.Metaspace(prepend_scheme="first"))
    else:
        made = sentence_pieces(
            normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        )
    folder = _folder(tmp_path, TEMPLATES[name], made)
    _without_normalized_specials(folder)
    assert write_chat_segments(folder)
    segments = json.loads((folder / FILE).read_text(encoding="utf-8"))
    template = ChatTemplate.from_folder(folder, {path.name for path in folder.iterdir()})
    reference = Tokenizer.from_file(folder / "tokenizer.json")
    draw = random.Random(1)
    contents = [
        *chat_segments._CONTENTS,
        *_SPECIAL,
        *(f"x{text}\ny" for text in _SPECIAL),
        "<|us",
        "er|>",
        "<",
        "|end|> ",
        "</s> ",
    ]
    with NativeText(program, folder / "tokenizer.json") as native:
        for _ in range(60):
            roles = ["user", *["assistant", "user"] * draw.randrange(3)]
            if "system" in segments["between"][START] and draw.random() < 0.5:
                roles = ["system", *roles]
            messages = [{"role": role, "content": draw.choice(contents)} for role in roles]
            user = reference.marked_messages(messages)
            rendered = template.render(user.marked)
            try:
                expected: Any = reference.encode_rendered(rendered, user)
            except UsageError as error:  # the vocabulary has the text of a special token
                expected = str(error)
            try:
                got = native.ask("chat", segments=json.dumps(segments), messages=messages)
            except NativeError as error:
                got = str(error)
            assert got == expected, messages


@pytest.fixture
def native(tmp_path: Path, program: Path) -> Any:
    folder = _folder(tmp_path, TEMPLATES["smollm"], byte_level())
    with NativeText(program, folder / "tokenizer.json") as opened:
        yield opened


def test_the_native_core_refuses_what_the_segments_lack(native: NativeText) -> None:
    segments = json.dumps(
        {
            "format_version": 1,
            "trimmed": [],
            "filled": [],
            "between": {START: {"user": "<|user|>"}, "user": {ANSWER: "\n"}},
        }
    )
    user = {"role": "user", "content": "a"}
    assert native.ask("chat", segments=segments, messages=[user])
    for messages, problem in (
        ([], "an answer at the start"),
        ([{"role": "tool", "content": "a"}], "the role 'tool'"),
        ([{"role": "system", "content": "a"}, user], "a message of the system at the start"),
        ([user, user], "a message of the user after one of the user"),
    ):
        with pytest.raises(NativeError, match=f"messages: got {problem}") as error:
            native.ask("chat", segments=segments, messages=messages)
        assert str(error.value).endswith("; render the chat template on the host and encode its text")
        assert error.value.code == 1
    with pytest.raises(NativeError, match="not valid Unicode") as error:
        native.ask("chat", segments=segments, messages=[{"role": "user", "content": [0xFF]}])
    assert error.value.code == 10


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "[" * 100000,
        '{"format_version": 2, "trimmed": [], "filled": [], "between": {}}',
        '{"format_version": 1, "filled": [], "between": {}}',
        '{"format_version": 1, "trimmed": ["tool"], "filled": [], "between": {}}',
        '{"format_version": 1, "trimmed": [], "filled": [], "between": []}',
        '{"format_version": 1, "trimmed": [], "filled": [], "between": {"start": "x"}}',
        '{"format_version": 1, "trimmed": [], "filled": [], "between": {"start": {"user": 7}}}',
    ],
)
def test_the_native_core_refuses_damaged_segments(native: NativeText, text: str) -> None:
    with pytest.raises(NativeError, match=r"^chat_segments\.json: ") as error:
        native.ask("chat", segments=text, messages=[{"role": "user", "content": "a"}])
    assert error.value.code == 2
