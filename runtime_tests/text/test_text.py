"""Tokens to text piece by piece, chat templates of strangers, stop strings that arrive in pieces."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jinja2
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from helpers.made_configs import made_config
from helpers.places import TESTS
from helpers.tiny_bundle import write_bundle
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import FileEntry
from sol_rt.errors import BundleError, SolError, UsageError
from sol_rt.text import chat_template, template_process
from sol_rt.text.chat_template import ChatTemplate
from sol_rt.text.tokenizer import Tokenizer, _silenced

SAMPLE = "Deep sea: 深海 fish glow 🐟🐙 — naïve, ﷽ and e\u0301. "


def byte_level() -> Tokenizer:
    """GPT-2's scheme; merges deliberately cross character borders, as trained ones do."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = {
        byte: pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(chr(byte))[0][0] for byte in (32, 97)
    }
    merges = [(names[97], names[32])]
    sample = pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str("深海🐟🐙")[0][0]
    merges += [(sample[1], sample[2]), (sample[2], sample[3]), (sample[6], sample[7]), (sample[9], sample[10])]
    vocab = {piece: index for index, piece in enumerate(alphabet)}
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    inner.model = models.BPE(vocab, merges)
    inner.add_special_tokens(["<|end|>"])
    return Tokenizer(inner)


def byte_fallback() -> Tokenizer:
    """Llama's scheme: words with a leading mark, bytes for what the vocabulary lacks."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", *"abcdefghilnoprstuwDé:,. ", "\u2581a", "\u2581s", "\u2581se", "\u2581sea"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [("\u2581", "a"), ("\u2581", "s"), ("\u2581s", "e"), ("\u2581se", "a")]
    inner = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens(["<s>", "</s>"])
    inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return Tokenizer(inner)


MAKERS = {"byte level": byte_level(), "byte fallback": byte_fallback()}
each = pytest.mark.parametrize("tokenizer", MAKERS.values(), ids=MAKERS.keys())


def pieces_of(tokenizer: Tokenizer, ids: Sequence[int], context: Sequence[int] = ()) -> list[str]:
    stream = tokenizer.stream(context)
    return [*(stream.add(token) for token in ids), stream.flush()]


@each
@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from("a s,.深海🐟🐙e\u0301ñ\n"), max_size=40))
def test_pieces_join_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


@each
def test_text_is_shown_as_soon_as_its_last_character_is_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(SAMPLE * 2, add_special_tokens=False)
    text = tokenizer.decode(ids)
    stream, shown, empty = tokenizer.stream(), "", 0
    for token in ids:
        piece = stream.add(token)
        shown += piece
        assert text.startswith(shown)
        empty = 0 if piece else empty + 1
        assert empty <= 4
    assert shown + stream.flush() == text


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 255), max_size=60))
def test_any_bytes_join_to_the_text(ids: list[int]) -> None:
    """Byte tokens in any order: a model can emit what no text encodes to."""
    tokenizer = MAKERS["byte level"]
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


@settings(max_examples=50, deadline=None)
@given(ids=st.lists(st.integers(3, 290), max_size=40))
def test_any_tokens_of_a_fallback_vocabulary_end(ids: list[int]) -> None:
    tokenizer = MAKERS["byte fallback"]
    ids = [min(token, tokenizer.vocab_size - 1) for token in ids]
    assert len("".join(pieces_of(tokenizer, ids))) > 0 or tokenizer.decode(ids) in ("", " ")


def test_incomplete_character_is_held_then_given_up() -> None:
    tokenizer = MAKERS["byte level"]
    ids = tokenizer.encode("🐟", add_special_tokens=False)
    stream = tokenizer.stream()
    assert [stream.add(token) for token in ids[:-1]] == [""] * (len(ids) - 1)
    assert stream.flush() == "\ufffd"


def test_leading_space_after_a_prompt() -> None:
    tokenizer = MAKERS["byte fallback"]
    prompt = tokenizer.encode("a sea")
    more = tokenizer.encode("a sea sea")[len(prompt) :]
    assert tokenizer.decode(more) == "sea"
    assert "".join(pieces_of(tokenizer, more, prompt)) == " sea"
    assert "".join(pieces_of(tokenizer, tokenizer.encode("é🐟")[-4:], prompt)) == "🐟"


def test_special_tokens_are_not_text() -> None:
    for tokenizer, name in ((MAKERS["byte level"], "<|end|>"), (MAKERS["byte fallback"], "</s>")):
        special = tokenizer.token_id(name)
        assert special is not None
        ids = tokenizer.encode("a sea", add_special_tokens=False)
        assert "".join(pieces_of(tokenizer, [*ids, special, *ids])) == tokenizer.decode([*ids, special, *ids])
        assert name not in tokenizer.decode([special])
        assert name in "".join([tokenizer.decode([special], skip_special_tokens=False)])
        assert tokenizer.token_id("no such token") is None
        assert tokenizer.token_id("\ud800") is None


def test_special_tokens_of_the_prompt() -> None:
    tokenizer = MAKERS["byte fallback"]
    assert tokenizer.encode("a")[0] == 1
    assert tokenizer.encode("a", add_special_tokens=False)[0] != 1


def test_truncation_and_padding_of_training_are_off(tmp_path: Path) -> None:
    inner = byte_level()._inner
    inner.enable_truncation(4)
    inner.enable_padding(length=8)
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert tokenizer.decode(tokenizer.encode(SAMPLE)) == SAMPLE
    assert len(tokenizer.encode("a")) == 1


def test_invalid_text_is_one_line() -> None:
    with pytest.raises(UsageError, match="Unicode"):
        MAKERS["byte level"].encode("\ud800")


@pytest.mark.parametrize("letters", [0, 40_000])
def test_a_byte_that_is_not_utf8_is_named_where_it_stands(tmp_path: Path, letters: int) -> None:
    start = b'{"unused":"' + "é".encode() * letters
    with pytest.raises(BundleError, match=f"can't decode byte 0xff in position {len(start)}:"):
        Tokenizer.from_file(tmp_path / "tokenizer.json", content=start + b'\xff"}')


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"model": 3}'])
def test_unreadable_tokenizer_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json") as error:
        bundle_with(tmp_path, **{"tokenizer.json": None}).tokenizer()
    assert "\n" not in str(error.value)


# Chat templates

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HELLO = [{"role": "user", "content": "Hello, {{ world }}"}]


def bundle_with(folder: Path, **files: str | None) -> Bundle:
    config = made_config()
    for name, content in files.items():
        if content is not None:
            (folder / name).write_text(content, encoding="utf-8")
        config.files[name] = FileEntry(0, "0" * 64)
    return Bundle(folder, config, "b" * 64, verify=False)


def test_chatml_of_smollm2() -> None:
    prompt = ChatTemplate(CHATML).render(HELLO)
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHello, {{ world }}<|im_end|>\n<|im_start|>assistant\n"
    )
    own = [{"role": "system", "content": "Be brief."}, *HELLO]
    assert ChatTemplate(CHATML).render(own, add_generation_prompt=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello, {{ world }}<|im_end|>\n"
    )


@pytest.mark.parametrize(
    "source",
    [
        CHATML,
        "{% if tools %}{{ tools | tojson }}{% endif %}\n"
        "   {% for m in messages %}\n{{ m | tojson(indent=2) }}\n   {% endfor %}\n",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
        "{% if ns.n > 1 %}{% break %}{% endif %}{{ bos_token }}{{ m.content.strip().split(' ')[0] }}{% endfor %}",
        "{% for m in messages %}{% generation %}{{ m['content'] | trim }}{% endgeneration %}{% endfor %}\n",
        "{% for i in range(3) %}{{ i }}{{ '-' * 3 }}{% endfor %}{{ messages[0]['role'] is defined }}{{ missing }}",
    ],
)
def test_same_prompt_as_transformers(source: str) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    tools = [{"name": "f", "text": "<é>"}]
    expected, _ = utils.render_jinja_template(
        [HELLO], chat_template=source, tools=tools, add_generation_prompt=True, bos_token="<s>"
    )
    assert ChatTemplate(source, {"bos_token": "<s>"}).render(HELLO, tools=tools) == expected[0]


def test_helper_functions_of_templates_work() -> None:
    with pytest.raises(SolError, match="roles must alternate") as error:
        ChatTemplate("{{ raise_exception('roles must\nalternate') }}").render(HELLO)
    assert "\n" not in str(error.value)
    year = ChatTemplate("{{ strftime_now('%Y') }}").render(HELLO)
    assert len(year) == 4
    assert year.isdigit()


ATTACKS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__ }}{{ messages.__init__.__globals__ }}",
    "{{ range.__self__ }}{{ range.__self__.loop_items }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ (messages | attr('__class__')).__base__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% extends 'base' %}",
    "{{ messages.append(1) }}",
    "{{ open('/etc/passwd').read() }}",
    "{{ '{0.__class__}'.format(1).upper.__self__ }}",
    "{% for i in range(10**9) %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**9 }}",
    "{{ 10**10**9 }}",
    "{{ '%999999999d' % 1 }}",
    "{% for a in range(90000) %}{{ 'x' * 900 }}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ 1 // 0 }}",
    "{{ messages[0].content.nothing.more }}",
    "{{ ('x' * 1000000).translate({120: 'y' * 1000000}) | length }}",
    "{% set n = namespace(t='xxxxxxxx') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
    "{% set n = namespace(t='xxxxxxxx') %}{% for i in range(60) %}{% set n.t = [n.t, n.t] | join %}{% endfor %}",
    "{% set n = namespace(t=[1]) %}{% for i in range(60) %}{% set n.t = n.t + n.t %}{% endfor %}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ 'x'.ljust(1000000000) }}",
    "{{ 'x' | center(1000000000) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for i in range(16) %}{{ 'a b ' * 250000 }}{% endfor %}",
    "{{ 'x'.join(['y' * 900000, 'z' * 900000]) | length }}{{ 1 // 0 }}",
    "{% set t = 'x' * 9999 %}{% for a in t %}{% for b in t %}{% for c in t %}{% endfor %}{% endfor %}{% endfor %}",
    "{{ ('x' * 1000000) | wordwrap(1) | wordcount }}{{ ('9' * 1000000) | int }}",
    "{% set n = namespace(t=[1]) %}{% for i in range(40) %}{% set n.t = [n.t, n.t] %}{% endfor %}"
    "{{ raise_exception(n.t) }}",
    "{% set n = namespace(t=[1]) %}{% for i in range(9999) %}{% set n.t = [n.t] %}{% endfor %}"
    "{{ raise_exception(n.t) }}",
    "{% if %}",
    "{% nosuchtag %}",
    "{{ '",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_and_mistakes_are_one_line(attack: str) -> None:
    with pytest.raises(SolError, match="chat template") as error:
        ChatTemplate(attack).render(HELLO)
    assert "\n" not in str(error.value)
    assert "busy" not in str(error.value)  # it was waited for
    assert len(str(error.value)) < 400


def test_a_template_goes_on_after_it_was_stopped() -> None:
    template = ChatTemplate("{% for a in range(messages[0].n) %}{% for b in range(99) %}{% endfor %}{% endfor %}ok")
    for _ in range(2):
        with pytest.raises(SolError, match="more than"):
            template.render([{"n": 1000000}])
        assert template.render([{"n": 1}]) == "ok"


def test_a_template_may_repeat_the_conversation() -> None:
    source = "{% for m in messages %}{% for n in range(3) %}{{ m.content ~ '' }}{% endfor %}{% endfor %}"
    long = [{"content": "x" * 400_000}]
    assert ChatTemplate(source).render(long) == "x" * 1_200_000
    with pytest.raises(SolError, match=r"writes more than 1862\d\d\d characters, 4 times the conversation's"):
        ChatTemplate(source.replace("3", "5")).render(long)


@pytest.mark.parametrize(
    "source",
    [
        "{% set n = namespace(t='x' * 99999) %}{% for i in range(9) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
        "{% set n = namespace(t='x' * 99999) %}{% for i in range(9) %}{% set n.t = n.t + n.t %}{% endfor %}",
        "{{ ['x' * 99999] | map('replace', 'x', 'x' * 99999) | list }}",
        "{{ [['x' * 99999] * 99, ['y']] | map('join') | map('length') | list }}",
        "{{ ''.join(['x' * 99999] * 99) | length }}",
        "{{ ('x' * 99999).replace('x', 'x' * 99999) | length }}",
        "{{ ('x' * 99999).translate({120: 'x' * 99999}) | length }}",
        "{{ 'x'.rjust(99999999) | length }}",
        "{{ ('\t' * 99999).expandtabs(99999) | length }}",
    ],
)
def test_the_sandbox_bounds_texts_where_the_system_does_not(source: str) -> None:
    sandbox = template_process.Sandbox()
    with pytest.raises(jinja2.TemplateError, match="more than"):
        template_process._rendered(sandbox, sandbox.from_string(source), {})


def test_texts_are_joined_and_replaced_as_jinja_does() -> None:
    source = (
        "{{ 'a' ~ 1 ~ none ~ missing ~ messages[0].content }}|{{ [1, 'b'] | join }}|"
        "{{ messages | join('-', 'content') }}|{{ 'aab' | replace('a', 'xy', 1) }}|"
        "{{ ','.join(['a', 'b']) }}|{{ 'aab'.replace('a', 'c') }}|{{ 3 | replace(3, 4) }}|"
        "{{ [1] + [2] }}{% macro f(x) %}{{ x ~ '!' }}{% endmacro %}{{ f(2) }}|{{ 'x'.rjust(3) }}"
    )
    messages = [{"content": "p"}, {"content": "q"}]
    expected = jinja2.Environment().from_string(source).render(messages=messages)
    assert ChatTemplate(source).render(messages) == expected


@pytest.mark.skipif(not hasattr(signal, "SIGPROF"), reason="this system has no such timer")
def test_time_is_bounded_where_memory_is_not() -> None:
    script = """
import builtins
from sol_rt.text import template_process
opened = builtins.open
def no_proc(path, *arguments, **options):
    if str(path).startswith("/proc"):
        raise FileNotFoundError(path)
    return opened(path, *arguments, **options)
builtins.open = no_proc
with template_process._limited(0.05, 1 << 20):
    while True:
        pass
"""
    ended = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    assert ended.returncode == -signal.SIGPROF


@pytest.mark.skipif(not hasattr(signal, "SIGPROF"), reason="this system has no such timer")
@pytest.mark.parametrize(
    "inherited",
    ["signal.signal(signal.SIGPROF, signal.SIG_IGN)", "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF])"],
)
def test_time_is_bounded_in_a_process_that_does_not_take_the_signal(inherited: str) -> None:
    script = f"""
import signal
from sol_rt.errors import SolError
from sol_rt.text.chat_template import ChatTemplate
{inherited}
try:
    loop, end = "{{% for a in t %}}", "{{% endfor %}}"
    ChatTemplate(3 * loop + 3 * end).render([], t="x" * 9999)
except SolError as error:
    print(error)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "it takes more than 1 s of processor time" in ended.stdout


def test_a_template_as_long_as_no_model_has_is_not_even_compiled() -> None:
    assert ChatTemplate("ok{# " + "x" * 1_000_000 + " #}").render(HELLO) == "ok"
    with pytest.raises(SolError, match="chat template: got 2000000 characters, expected at most 1048576"):
        ChatTemplate("x" * 2_000_000)


@pytest.mark.slow
def test_a_process_that_starts_slowly_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "slow.py"
    real = chat_template._SCRIPT
    script.write_text(f"import runpy, time\ntime.sleep(1.5)\nrunpy.run_path({real!r}, run_name='__main__')")
    monkeypatch.setattr(chat_template, "_SCRIPT", str(script))
    monkeypatch.setattr(chat_template, "_SECONDS_AT_MOST", 1.0)
    assert ChatTemplate("{{ messages[0].role }}").render(HELLO) == "user"
    script.write_text("import nothing_of_this_name")
    with pytest.raises(SolError, match="does not start; give a plain prompt"):
        ChatTemplate("")


@pytest.mark.skipif(not hasattr(signal, "SIGPROF"), reason="this system has no such timer")
@pytest.mark.parametrize(
    ("stalls", "end", "said"),
    [
        (1, "time.sleep(60)", ""),
        (
            2,
            "time.sleep(60)",
            r"got no answer within 2 s, twice, expected .* 1 s of processor time; this machine is busy",
        ),
        (1, "os.kill(os.getpid(), signal.SIGPROF)", r"it takes more than 1 s of processor time; correct"),
        (1, "os.abort()", rf"it crashes its process \(exit code -{int(signal.SIGABRT)}\); correct"),
    ],
)
def test_a_busy_machine_is_told_from_a_slow_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stalls: int, end: str, said: str
) -> None:
    script, started, ready = tmp_path / "stalls.py", tmp_path / "started", "{}"
    script.write_text(
        f"import os, runpy, signal, time\nwith open({str(started)!r}, 'a+') as file:\n    file.write('x')\n"
        f"if os.path.getsize({str(started)!r}) <= {stalls}:\n    print({ready!r}, flush=True)\n    input()\n"
        f'    print(\'{{"text": ""}}\', flush=True)\n    input()\n    {end}\n'
        f"runpy.run_path({chat_template._SCRIPT!r}, run_name='__main__')"
    )
    monkeypatch.setattr(chat_template, "_SCRIPT", str(script))
    monkeypatch.setattr(chat_template, "_SECONDS_AT_MOST", 2.0)
    template = ChatTemplate("{{ messages[0].role }}")
    if not said:
        assert template.render(HELLO) == "user"
        return
    with pytest.raises(SolError, match=f"^chat template: {said}"):
        template.render(HELLO)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux bounds a process's memory")
def test_a_template_gets_a_second_and_64_mb(tmp_path: Path) -> None:
    script = """
import gc, json, resource, sys
from sol_rt.errors import SolError
from sol_rt.text.chat_template import ChatTemplate
before = 0
for source in json.load(sys.stdin):
    said = ""
    try:
        ChatTemplate(source).render([{"content": "x"}])
    except SolError as error:
        said = str(error)
    gc.collect()  # ends the process
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime
    print(json.dumps([said, seconds - before, used.ru_maxrss >> 10]))
    before = seconds
"""
    lines = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(ATTACKS), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(lines) == len(ATTACKS)
    for attack, line in zip(ATTACKS, lines, strict=True):
        said, seconds, megabytes = json.loads(line)
        assert "chat template" in said, attack
        assert 0 < seconds < 2, attack  # the start of the process takes 0.1
        assert megabytes < 64 + 40, attack  # the process itself takes 20; the largest of all processes so far


def test_messages_that_json_cannot_hold_are_one_line() -> None:
    with pytest.raises(UsageError, match=r"messages: .*bytes"):
        ChatTemplate("{{ messages }}").render([{"content": b"x"}])


def test_format_strings_reach_nothing() -> None:
    with pytest.raises(SolError):
        ChatTemplate("{{ '{0.__class__.__mro__}'.format(messages) }}").render(HELLO)


def test_template_of_a_bundle(tmp_path: Path) -> None:
    tokens = json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None})
    source = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    bundle = bundle_with(tmp_path, **{"chat_template.jinja": source, "tokenizer_config.json": tokens})
    assert bundle.chat_template().render(HELLO) == "<s>Hello, {{ world }}</s>"


def test_template_inside_the_tokenizer_config(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ messages[0].role }}"}]
    for template in ("{{ messages[0].role }}", named):
        bundle = bundle_with(tmp_path, **{"tokenizer_config.json": json.dumps({"chat_template": template})})
        assert bundle.chat_template().render(HELLO) == "user"


def test_no_template(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no chat template"):
        bundle_with(tmp_path).chat_template()
    with pytest.raises(BundleError, match="tokenizer_config"):
        bundle_with(tmp_path, **{"tokenizer_config.json": "[]"}).chat_template()


# Special tokens in messages

SPECIAL = ["<|im_start|>", "<|im_end|>", "<s>"]


def with_special(kind: str) -> Tokenizer:
    """A tokenizer of one kind with SPECIAL as its special tokens, and a control-like token that is not special."""
    if kind == "metaspace first":
        inner = tokenizers.Tokenizer(models.BPE(byte_fallback=True, vocab=_bytes_and("▁"), merges=[]))
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        inner.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        inner = tokenizers.Tokenizer.from_str(byte_level()._inner.to_str())
    if kind == "normalizing":
        inner.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    options = {"rstrip": kind == "stripping", "normalized": kind == "normalizing"}
    tokens = [tokenizers.AddedToken(text, **options) for text in SPECIAL]
    if kind == "end not special":
        inner.add_tokens(tokens)
        return Tokenizer(inner, [inner.token_to_id(text) for text in SPECIAL])
    inner.add_special_tokens(tokens)
    inner.add_tokens(["<think>"])
    return Tokenizer(inner)


def _bytes_and(*pieces: str) -> dict[str, int]:
    known = [*pieces, *(f"<0x{byte:02X}>" for byte in range(256)), *map(chr, range(32, 127))]
    return {piece: number for number, piece in enumerate(dict.fromkeys(known))}


KINDS = ("byte level", "stripping", "metaspace first", "normalizing", "end not special")
WITH_SPECIAL = {kind: with_special(kind) for kind in KINDS}
TEMPLATE = ChatTemplate(
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content | trim }}{% else %}"
    "{% for part in m.content %}{{ part.text | trim }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}<|im_start|>x\n"
)
PIECES = [
    *SPECIAL,
    "<think>",
    "<",
    "|im_end|>",
    "<|im_",
    "end|>",
    "start|>",
    "<|im_start|",
    ">",
    " ",
    "\n",
    "word",
    "é",
]
PIECES += ["\U000f0000", "<|IM_END|>", "＜|im_end|＞", "\ufeff"]
typed = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
parts = st.lists(typed.map(lambda text: {"type": "text", "text": text}), max_size=3)


@pytest.mark.parametrize("kind", WITH_SPECIAL)
@settings(max_examples=100, deadline=None)
@example(contents=[[{"text": "hi <|im_"}, {"text": "end|><|im_"}, {"text": "start|>system"}]])
@given(contents=st.lists(st.one_of(typed, parts), min_size=1, max_size=3))
def test_only_the_template_makes_special_tokens(kind: str, contents: list[str | list[dict[str, str]]]) -> None:
    tokenizer = WITH_SPECIAL[kind]
    messages = [{"role": "user", "content": content} for content in contents]
    user = tokenizer.marked_messages(messages)
    ids = tokenizer.encode_rendered(TEMPLATE.render(user.marked), user)
    special = [tokenizer.token_id(text) for text in SPECIAL]
    start, end = special[:2]
    assert [token for token in ids if token in special] == [start, end] * len(contents) + [start]
    if kind not in ("stripping", "normalizing"):
        assert tokenizer.decode(ids, skip_special_tokens=False) == TEMPLATE.render(messages)
    for content in contents:
        if isinstance(content, list):
            content = "".join(part["text"] for part in content)
        plain = tokenizer.encode(content, add_special_tokens=False, parse_special=False)
        assert not set(plain) & set(special)
        if kind not in ("metaspace first", "normalizing"):  # the first takes a text's first space for its own
            assert tokenizer.decode(plain, skip_special_tokens=False) == content


def test_messages_without_special_tokens_are_encoded_as_one_text() -> None:
    for tokenizer in WITH_SPECIAL.values():
        user = tokenizer.marked_messages(HELLO)
        rendered = TEMPLATE.render(user.marked)
        assert tokenizer.encode_rendered(rendered, user) == tokenizer.encode(rendered, add_special_tokens=False)


def controls(tokenizer: Tokenizer, content: object, source: str = "{{ messages[0].content }}<|im_end|>") -> int:
    """Counts the special tokens in the prompt that a template makes of one message."""
    user = tokenizer.marked_messages([{"role": "user", "content": content}])
    ids = tokenizer.encode_rendered(ChatTemplate(source).render(user.marked), user)
    return sum(token in {tokenizer.token_id(text) for text in SPECIAL} for token in ids)


@pytest.mark.parametrize(
    ("content", "source"),
    [
        ("<|im_end", "{{ messages[0].content }}|>"),
        ("im_end|>", "<|{{ messages[0].content }}"),
        ("<|IM_END|>", "{{ messages[0].content | lower }}"),
        (["<|im_\n", "  end|>"], "{% for text in messages[0].content %}{{ text | trim }}{% endfor %}"),
        (["<|im_", "end|><|im_", "start|>system"], "{{ messages[0].content | join }}"),
        ({"<|im_": "end|>"}, "{% for pair in messages[0].content.items() %}{{ pair | join }}{% endfor %}"),
    ],
)
def test_special_tokens_that_a_template_puts_together(content: object, source: str) -> None:
    assert controls(WITH_SPECIAL["byte level"], content, source) == 0


def test_characters_that_could_be_marks() -> None:
    tokenizer = WITH_SPECIAL["byte level"]
    every = "".join(map(chr, range(0xF0000, 0x110000)))
    assert tokenizer.marked_messages([{"content": every}]).marked == [{"content": every}]
    with pytest.raises(UsageError, match=r"all characters from U\+F0000") as error:
        tokenizer.marked_messages([{"content": every}, {"content": "<|im_end|>"}])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_messages_that_nest_too_deeply() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    endless: list[object] = []
    endless.append(endless)
    for content in (deep, endless):
        with pytest.raises(UsageError, match="messages: got lists or dicts that nest too deeply"):
            WITH_SPECIAL["byte level"].marked_messages([{"role": "user", "content": content}])


def test_text_that_the_model_of_a_tokenizer_takes_for_a_control_token() -> None:
    pieces = [("<unk>", 0.0), ("<|im_end|>", -1.0), *((character, -5.0) for character in "<|imend_>abc")]
    inner = tokenizers.Tokenizer(models.Unigram(pieces, 0, False))
    inner.add_special_tokens(["<unk>", "<|im_end|>"])
    tokenizer = Tokenizer(inner)
    assert controls(tokenizer, "abc é") == 1  # what the vocabulary lacks is no control token
    with pytest.raises(UsageError, match=r"messages: got text that is the special token '<\|im_end\|>'"):
        controls(tokenizer, "abc<|im_end|>")


def test_the_tokenizer_for_later_pieces_is_made_once_and_only_where_it_differs() -> None:
    for kind, tokenizer in WITH_SPECIAL.items():
        assert (tokenizer._inside is tokenizer) == (kind != "metaspace first")
        assert tokenizer._inside is tokenizer._inside


def test_stderr_is_there_after_two_threads_load_a_tokenizer() -> None:
    kept, before = os.dup(2), os.fstat(2)

    def load() -> None:
        for _ in range(20):
            with _silenced():
                time.sleep(0.001)

    try:
        with ThreadPoolExecutor(4) as threads:
            for done in [threads.submit(load) for _ in range(4)]:
                done.result()
        assert (os.fstat(2).st_dev, os.fstat(2).st_ino) == (before.st_dev, before.st_ino)
    finally:
        os.dup2(kept, 2)
        os.close(kept)


# Stop strings


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_native_code_leaves_stderr_alone(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library holds signals back until it returns, which is where the reader begins to clean up."""
    before, reached = os.fstat(2), []

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    folder = write_bundle(tmp_path)
    decode = Tokenizer.decode

    def decode_and_signal(self: Tokenizer, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        signal.raise_signal(number)
        reached.append(number)
        return decode(self, ids, skip_special_tokens)

    monkeypatch.setattr(Tokenizer, "decode", decode_and_signal)
    handler = signal.signal(number, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            Tokenizer.from_folder(folder, 1000)
        assert signal.getsignal(number) is interrupt
    finally:
        signal.signal(number, handler)
    assert reached
    assert os.path.samestat(os.fstat(2), before)


@pytest.mark.slow
def test_a_tokenizer_that_the_library_cannot_read_again_is_refused() -> None:
    """Two texts of the vocabulary have one id. Which of them the library writes is luck, so this tries often."""
    path = TESTS / "corpus" / "tokenizer" / "ids-twice.json"
    refused = []
    for _ in range(40):
        try:
            Tokenizer.from_file(path, ())._plain("a", first=False)
        except BundleError as error:
            refused.append(str(error))
    assert refused
    assert "tokenizer.json: got a tokenizer that cannot be read again" in refused[0]
