"""`sol-rt chat`: commands, saved conversations, messages of several lines, pipes that go on after a wrong command."""

from __future__ import annotations

import io
import itertools
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.cost_tables import save_table
from helpers.program import started
from helpers.tiny_bundle import with_word, write_bundle
from sol_rt.bundle.bundle import Bundle
from sol_rt.cli import main
from sol_rt.cli.run import chat_input, generate
from sol_rt.cli.run.chat import Conversation
from sol_rt.cli.run.chat_input import Entry, entries
from sol_rt.cli.run.interrupts import Interrupts
from sol_rt.errors import DeviceError
from sol_rt.generate.model import SolModel
from sol_rt.generate.stream import Stream
from sol_rt.text.chat_template import ChatTemplate

Chat = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx", reason="writing a bundle comes with the extra export")
    return write_bundle(tmp_path_factory.mktemp("chat") / "tiny")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty home, and the tiny bundle as the default model."""
    for name in list(os.environ):
        if name.startswith("SOL_RT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SOL_RT_MODEL", str(bundle))


@pytest.fixture
def chat(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Chat:
    """Pipes lines into a chat, and returns stdout and stderr."""

    def run(*lines: str, code: int = 0, options: tuple[str, ...] = ()) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        assert main(["chat", "-n", "5", "--temperature", "0", *options]) == code
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, str]]]:
    """The messages of every answer that a chat asks for; the model then answers as always."""
    asked: list[list[dict[str, str]]] = []
    stream = SolModel.stream

    def noted(model: SolModel, prompt: Any = None, **arguments: Any) -> Any:
        asked.append([dict(message) for message in prompt])
        return stream(model, prompt, **arguments)

    monkeypatch.setattr(SolModel, "stream", noted)
    return asked


def test_a_named_policy_that_takes_long_is_told(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_bundle(tmp_path / "policy", policy=True, losses=True)
    monkeypatch.setenv("SOL_RT_MODEL", str(folder))
    save_table(Bundle.open(folder))
    told = "schedule sol: a run of the policy takes "
    _, err = chat("/schedule sol", "/schedule hull")
    assert err.count(told) == 1
    _, err = chat("w1", options=("--schedule", "sol"))
    assert err.count(told) == 1
    for name, argv in (("hull", []), ("sol", ["--schedule", "sol"])):
        assert main(["generate", "-p", "w1", "-n", "5", "-b", "0.7", *argv]) == 0
        err = capsys.readouterr().err
        assert f"({name})" in err
        assert err.count(told) == (name == "sol")


@pytest.mark.parametrize(
    "line",
    [
        "/budget 2",
        "/budget much",
        "/budget nan",
        "/max-loss 2",
        "/max-loss -1",
        "/max-loss much",
        "/max-loss nan",
        "/schedule nonsense",
        "/nonsense",
        "/save",
        "/load",
        "/load no-such-file.json",
        "/save no/such/folder.json",
        "/save .",
        "/save ~nosuchuser/chat.json",
        "/load ~nosuchuser/chat.json",
        "/save a\0b",
        "/load a\0b",
    ],
)
def test_a_pipe_goes_on_after_a_wrong_command(chat: Chat, line: str) -> None:
    out, err = chat("w1 w2", line, "w3", code=1)
    assert len(out.splitlines()) == 2, "both messages were answered"
    errors = [entry for entry in err.splitlines() if "error" in entry]
    assert len(errors) == 1
    assert errors[0].startswith("sol-rt: error: ")
    assert line.split()[0].removeprefix("/") in errors[0]


def test_a_pipe_stops_at_an_error_of_the_engine(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    run_next, calls = Stream._run_next, itertools.count(1)

    def failing(stream: Stream) -> None:
        if next(calls) > 5:
            raise DeviceError("a GPU", "it is lost")
        run_next(stream)

    monkeypatch.setattr(Stream, "_run_next", failing)
    out, err = chat("w1", "w2", "w3", code=1)
    assert len(out.splitlines()) == 1
    assert err.splitlines()[-1].startswith("sol-rt: error: a GPU failed: it is lost")


def test_a_message_that_is_too_long_does_not_end_the_chat(chat: Chat) -> None:
    out, err = chat("w1 " * 300, "w3", code=1)
    assert len(out.splitlines()) == 1
    (error,) = (line for line in err.splitlines() if "error" in line)
    assert error.startswith("sol-rt: error: prompt: got ")
    assert "full" not in error


def test_a_full_conversation_is_kept_or_forgotten(
    chat: Chat, prompts: list[list[dict[str, str]]], tmp_path: Path
) -> None:
    file = tmp_path / "chat.json"
    out, err = chat("w1", "w2 " * 20, f"/save {file}", "/reset", "w3", options=("-c", "24"), code=1)
    assert len(out.splitlines()) == 2
    (error,) = (line for line in err.splitlines() if "error" in line)
    assert re.fullmatch(
        r"sol-rt: error: the conversation is full: got \d+ tokens, expected at most 24, the model's context; "
        r"/save FILE keeps it, /reset begins a new one; sol-rt chat -c 256 has more room",
        error,
    )
    assert len(json.loads(file.read_text(encoding="utf-8"))["messages"]) == 2
    assert prompts[-1] == [{"role": "user", "content": "w3"}]


@pytest.mark.slow
def test_a_loss_may_be_set_and_the_default_taken_again(
    chat: Chat, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = write_bundle(tmp_path_factory.mktemp("losses") / "tiny", losses=True)
    monkeypatch.setenv("SOL_RT_MODEL", str(measured))
    lines = ("/max-loss 2%", "/max-loss", "/budget 0.8", "/budget default", "/max-loss 0.01", "/max-loss default")
    _, err = chat(*lines, "/schedule dense", "/max-loss 1%", "/budget default")
    default = "none is set: the fastest mix that loses at most 0.5% runs"
    losses = ["max loss 0.02", "max loss 0.02", "budget 0.8", default, "max loss 0.01", default]
    assert err.splitlines()[-9:] == [*losses, "schedule dense", "max loss 0.01", default]


def test_budget_alone_shows_the_dial(chat: Chat) -> None:
    _, err = chat("/budget", "/budget 0.8", "/budget", "/schedule random", "/budget")
    said = [line for line in err.splitlines() if line.startswith("budget ")]
    assert said[-2:] == ["budget 0.8", "budget 0.8, schedule random"]


def test_drafts_give_the_dense_text_until_the_dial_is_set(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    dense, _ = chat("w1 w2", "w3", options=("--budget", "1"))
    drafted, err = chat("w1 w2", f"/save {file}", "/budget", "w3", "/budget 0.8", options=("--lossless",))
    assert drafted == dense
    assert err.splitlines()[-1] == "budget 0.8"
    assert "lossless: the text of budget 1, by drafts" in err.splitlines()
    assert json.loads(file.read_text(encoding="utf-8"))["settings"]["lossless"] is True
    loaded, err = chat(f"/load {file}", "w3", "/schedule dense", "/stats", "w3")
    assert dense.endswith(loaded.splitlines(keepends=True)[0])
    assert "2 messages, lossless: the text of budget 1, by drafts" in err


def test_a_tab_separates_a_command_from_its_argument(chat: Chat) -> None:
    _, err = chat("/budget\t0.8", "/system \t w8  w9", "/system")
    assert "budget 0.8" in err.splitlines()
    assert err.splitlines()[-1] == "system message: w8  w9"


def test_text_that_is_not_unicode_does_not_end_the_chat(chat: Chat, tmp_path: Path) -> None:
    out, err = chat("w1", "/system w8 \udcff", f"/save {tmp_path / 'chat.json'}", "/system w9", "w2", code=1)
    assert len(out.splitlines()) == 2
    (error,) = (line for line in err.splitlines() if "error" in line)
    assert error.startswith("sol-rt: error: /system: not valid Unicode text")
    assert (tmp_path / "chat.json").exists()


def test_a_message_that_is_not_utf8_does_not_end_the_chat(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "StringIO", lambda text: io.TextIOWrapper(io.BytesIO(b"w1\nw\xff\nw2\n"), "utf-8"))
    out, err = chat(code=1)
    assert len(out.splitlines()) == 2
    (error,) = (line for line in err.splitlines() if "error" in line)
    assert error == "sol-rt: error: chat: message 2: got text that is not UTF-8; convert it with iconv"


def test_help_lists_every_command(chat: Chat) -> None:
    _, err = chat("/help")
    for name in (
        "/budget",
        "/max-loss",
        "/schedule",
        "/stats",
        "/system",
        "/save",
        "/load",
        "/reset",
        "/help",
        "/exit",
        '"""',
    ):
        assert name in err


def test_a_system_message_begins_a_new_conversation(chat: Chat, prompts: list[list[dict[str, str]]]) -> None:
    _, err = chat("w1", "/system w8 w9", "w2", "/system", options=("--system", "w5"))
    assert prompts[0][0] == {"role": "system", "content": "w5"}
    assert prompts[1] == [{"role": "system", "content": "w8 w9"}, {"role": "user", "content": "w2"}]
    assert err.splitlines()[-1] == "system message: w8 w9"


def test_a_question_that_cannot_be_asked_is_forgotten(chat: Chat, prompts: list[list[dict[str, str]]]) -> None:
    # a schedule of another bundle would raise before the first token
    _, err = chat("/schedule fixed:k100-s033-q4", "w1", code=1)
    assert "no variant" in err
    assert prompts == [[{"role": "user", "content": "w1"}]]


def test_a_schedule_that_the_dial_cannot_have_is_refused_at_once(chat: Chat) -> None:
    _, err = chat("/schedule uniform", "/budget", options=("--max-loss", "0.01"), code=1)
    errors = [line for line in err.splitlines() if "error" in line]
    assert errors == [
        "sol-rt: error: --max-loss: the schedule uniform keeps no loss; leave out --schedule, or give --budget"
    ]
    assert err.splitlines()[-1] == "max loss 0.01"


def test_save_and_load_go_on_as_if_nothing_had_happened(
    chat: Chat, prompts: list[list[dict[str, str]]], tmp_path: Path
) -> None:
    file = tmp_path / "chat.json"
    options = ("--system", "w5", "--logit-bias", "7=-3", "--frequency-penalty", "0.5", "--stop", "w80")
    through, _ = chat("w1 w2", "/budget 0.7", "w3", options=options)
    first, _ = chat("w1 w2", "/budget 0.7", f"/save {file}", options=options)
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert saved["system"] == "w5"
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"]
    assert (saved["settings"]["budget"], saved["settings"]["logit_bias"]) == (0.7, {"7": -3})
    second, err = chat(f"/load {file}", "w3", "/budget")
    assert first + second == through
    assert prompts[-1] == prompts[1]
    assert "2 messages, budget 0.7" in err
    assert list(tmp_path.glob("chat.json*")) == [file]


GOOD = {
    "format": "sol_rt.chat",
    "format_version": 1,
    "model": "tiny",
    "system": None,
    "settings": {},
    "messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}],
}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("{", "not JSON"),
        ([], "not a saved chat"),
        ({"format": "other"}, "not a saved chat"),
        ({"format_version": 2}, "format version 2, expected 1"),
        ({"more": 1}, "unknown key 'more'"),
        ({"system": 3}, "model and system"),
        ({"settings": []}, "settings has to be an object"),
        ({"settings": {"temprature": 1}}, "did you mean 'temperature'"),
        ({"settings": {"temperature": "hot"}}, "temperature: got 'hot'"),
        ({"settings": {"budget": "low"}}, "budget: got 'low', expected a number"),
        ({"settings": {"budget": 7}}, "budget: got 7"),
        ({"settings": {"lossless": 1}}, "lossless: got 1, expected True or False"),
        ({"settings": {"schedule": "nonsense"}}, "nonsense"),
        ({"settings": {"logit_bias": {"5000": 1}}}, "logit bias: got token 5000"),
        ({"settings": {"logit_bias": {"1" * 5000: 1}}}, "logit_bias: got '111"),
        ({"messages": [{"role": "user", "content": "w1"}]}, "questions and answers in turn"),
        ({"messages": [{"role": "assistant", "content": "a"}] * 2}, "message 0: expected role 'user'"),
        ({"messages": [{"role": "user", "content": 1}] * 2}, "message 0: its content is not a text"),
        ({"messages": [{"role": "user", "content": "\ud800"}] * 2}, "message 0: its content is not a text"),
        ({"system": "\ud800"}, "model and system"),
    ],
)
def test_a_file_that_is_wrong_changes_nothing(
    chat: Chat, prompts: list[list[dict[str, str]]], tmp_path: Path, change: Any, part: str
) -> None:
    file = tmp_path / "chat.json"
    content = (
        change if isinstance(change, str) else json.dumps({**GOOD, **change} if isinstance(change, dict) else change)
    )
    file.write_text(content, encoding="utf-8")
    _, err = chat("w1", f"/load {file}", "w2", code=1)
    errors = [line for line in err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert errors[0].startswith(f"sol-rt: error: /load {file}: ")
    assert part in errors[0]
    assert [message["content"] for message in prompts[1]][::2] == ["w1", "w2"]


def test_names_in_a_saved_chat_are_plain_and_short(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    file.write_text(json.dumps({**GOOD, "model": "\x1b[2J\x1b]0;pwn\x07\n" + "m" * 5000, "system": "a\x1b]0;b\x07\nc"}))
    _, err = chat(f"/load {file}", "/system")
    assert "held with \\x1b[2J\\x1b]0;pwn" in err
    assert "m" * 200 not in err
    assert "system message: a\\x1b]0;b\\x07\nc\n" in err
    assert all(line.isprintable() for line in err.splitlines())


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> list[Entry]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return list(entries(False, Interrupts()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\n\n  \ntwo", [("one", False), ("two", False)]),
        ("one\\\ntwo\\\n\\\nthree\nfour", [("one\ntwo\n\nthree", False), ("four", False)]),
        ("one\\\n", [("one", False)]),
        ('"""one\n two\nthree"""\nfour', [("one\n two\nthree", False), ("four", False)]),
        ('"""\none\n\ntwo\n"""  \n', [("one\n\ntwo", False)]),
        ('"""one line"""\n""""""\n', [("one line", False)]),
        ('"""\n/budget 1\n"""\n/budget 1\n', [("/budget 1", False), ("/budget 1", True)]),
        ("/system one\\\ntwo\n", [("/system one\ntwo", True)]),
    ],
)
def test_messages_of_several_lines(
    monkeypatch: pytest.MonkeyPatch, text: str, expected: list[tuple[str, bool]]
) -> None:
    assert typed(monkeypatch, text) == expected


def test_a_message_that_is_not_closed_is_an_error(chat: Chat) -> None:
    assert 'end the message with """' in chat('"""w1', "w2", code=2)[1]


def test_one_question(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, chat: Chat) -> None:
    answer, _ = chat("w1 w2")
    out, err = chat("never read", options=("-p", "w1 w2"))
    assert out == answer
    assert "tokens/s" in err
    assert "prompt is empty" in chat(options=("-p", " "), code=2)[1]


@contextmanager
def terminal(*argv: str) -> Iterator[tuple[int, Callable[[bytes], bytes]]]:
    """A chat on a terminal: where to type, and a function that reads until it sees some text."""
    master, slave = pty.openpty()
    with started(*argv, stdin=slave, stdout=slave, stderr=slave):
        os.close(slave)
        screen = b""

        def until(marker: bytes) -> bytes:
            nonlocal screen
            deadline = time.monotonic() + 60
            while marker not in screen and time.monotonic() < deadline:
                if select.select([master], [], [], 1.0)[0]:
                    screen += os.read(master, 4096)
            assert marker in screen, screen.decode(errors="replace")
            before, screen = screen.split(marker, 1)
            return before

        yield master, until
    os.close(master)


def test_several_lines_on_a_terminal(tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    with terminal("chat", "-n", "2", "--temperature", "0") as (keyboard, until):
        until(b"> ")
        os.write(keyboard, b'"""w1\n')
        until(b"... ")
        os.write(keyboard, b'w2"""\n')
        until(b"h> ")  # after the sequence that allows pasting
        os.write(keyboard, b"w3\\\n")
        until(b"... ")
        os.write(keyboard, b"w4\n")
        until(b"h> ")  # after the sequence that allows pasting
        os.write(keyboard, b"\x1b[200~w5\nw6\nw7\x1b[201~\n")  # as a terminal sends what is pasted
        until(b"w7")
        until(b"h> ")
        os.write(keyboard, f"/save {file}\n".encode())
        until(b"saved")
        os.write(keyboard, b"/exit\n")
    said = json.loads(file.read_text(encoding="utf-8"))["messages"]
    assert [message["content"] for message in said[::2]] == ["w1\nw2", "w3\nw4", "w5\nw6\nw7"]


OBEYED = "\x1b]0;title\x07\x9b2J\r\u202e\u2066\x7f"
SHOWN = r"\x1b]0;title\x07\x9b2J\r\u202e\u2066\x7f"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose token 7 is text that a terminal obeys."""
    return with_word(write_bundle(tmp_path_factory.mktemp("hostile") / "tiny"), 7, f"é\t{OBEYED}")


@pytest.mark.parametrize(
    ("command", "options"), [("generate", ()), ("generate", ("--json",)), ("chat", ()), ("run", ())]
)
def test_a_terminal_sees_what_it_would_obey_and_a_pipe_gets_it(
    command: str, options: tuple[str, ...], hostile: Path
) -> None:
    model = [str(hostile)] if command == "run" else ["-m", str(hostile)]
    argv = [command, *model, "-p", "w1", "-n", "2", "--temperature", "0", "--logit-bias", "7=100", *options]
    with terminal(*argv) as (_, until):
        screen = until(b"device" if options else b"dial:").decode()
    if options:
        assert json.loads(f'"{SHOWN}"'.replace(r"\x", r"\u00")) == OBEYED
        assert SHOWN.replace(r"\x", r"\u00") in screen
    else:
        assert f"é\t{SHOWN}" in screen
    piped = subprocess.run([sys.executable, "-m", "sol_rt", *argv], capture_output=True, check=True, timeout=60)
    text = json.loads(piped.stdout)["text"] if options else piped.stdout.decode()
    assert text.count(OBEYED) == 2


class Keyboard(io.StringIO):
    """Lines that count as typed on a terminal."""

    def isatty(self) -> bool:
        return True


def interrupt_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """Ctrl-C comes as the `call`-th call of a function begins."""
    function, calls = getattr(owner, name), itertools.count(1)

    def interrupted(*arguments: Any, **named: Any) -> Any:
        if next(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return function(*arguments, **named)

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize(
    ("owner", "name", "call", "kept"),
    [
        (Conversation, "answer", 1, 0),  # between Enter and the answer
        (SolModel, "stream", 1, 0),
        (ChatTemplate, "render", 1, 0),
        (Stream, "__next__", 1, 0),
        (Stream, "_run_next", 1, 0),  # the prompt
        (Stream, "__next__", 3, 2),
        (Stream, "_run_next", 3, 2),
        (Stream, "close", 1, 0),
        (generate, "bought", 1, 2),  # the answer is there
        (chat_input, "_line", 2, 2),  # at the next prompt
        (Interrupts, "forget", 2, 2),  # between the two
    ],
)
def test_ctrl_c_at_any_moment_keeps_the_chat(
    owner: Any,
    name: str,
    call: int,
    kept: int,
    prompts: list[list[dict[str, str]]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if (owner, name) == (Stream, "close"):
        interrupt_at(monkeypatch, SolModel, "stream", 1)  # a second Ctrl-C meets the end of the first answer
    monkeypatch.setattr(sys, "stdin", Keyboard("w1\n\nw2\n/stats\n/exit\n"))
    interrupt_at(monkeypatch, owner, name, call)
    assert main(["chat", "-n", "5", "--temperature", "0"]) == 0
    assert [message["content"] for message in prompts[-1]][kept:] == ["w2"]
    assert prompts[-1][0]["content"] == ("w1" if kept else "w2")
    captured = capsys.readouterr()
    assert "tokens/s" in captured.err  # /stats of the second answer
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_a_command_keeps_the_chat(
    prompts: list[list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Keyboard("/stats\nw1\n/exit\n"))
    interrupt_at(monkeypatch, Conversation, "command", 1)
    assert main(["chat", "-n", "5", "--temperature", "0"]) == 0
    assert [message["content"] for message in prompts[-1]] == ["w1"]


def test_ctrl_c_while_a_question_is_piped_ends_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("w1\nw2\n"))
    interrupt_at(monkeypatch, SolModel, "stream", 1)
    assert main(["chat", "-n", "5", "--temperature", "0"]) == 130


def test_interrupts_are_heeded_once_and_kept_until_then() -> None:
    interrupts = Interrupts()
    with interrupts.installed():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), interrupts.heeded():
            raise AssertionError("the body must not run")
        with interrupts.heeded():
            pass
        with pytest.raises(KeyboardInterrupt), interrupts.heeded():
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        interrupts.forget()
        with interrupts.heeded():
            pass
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts().installed():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
