"""Chat templates: a model's own Jinja template turns messages into a prompt.

Templates come from untrusted sources, so they are rendered in a sandbox, in a process of its own, with limits on time
and memory (`template_process.py`).
"""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sol_rt.errors import BundleError, SolError, UsageError
from sol_rt.read_file import read_bytes

_Made = TypeVar("_Made")

FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"
_SCRIPT = str(Path(__file__).with_name("template_process.py"))
_LONGEST = 1 << 20
"""Characters of a template's source; usual ones have some thousands."""
_SECONDS = 1.0
"""Processor time of one rendering."""
_MEMORY_BYTES = 64 << 20
"""Memory of one rendering, beyond that of the process and the conversation."""
_HAS_TIMER = hasattr(signal, "setitimer")
_SECONDS_AT_MOST = 30.0 if _HAS_TIMER else 2.0
"""Real time of one rendering. Where the process cannot bound its processor time, this is the only bound."""
_SECONDS_TO_START = 60.0
"""Real time in which the process must say that it is ready."""


class ChatTemplate:
    """A compiled template and the special tokens that it may name. Threads may share it."""

    def __init__(self, source: str, variables: Mapping[str, Any] | None = None) -> None:
        """Compiles a template.

        Args:
            source: the template's text.
            variables: values that every rendering sees, such as `bos_token`.

        Raises SolError if the template does not parse, or has more than 1,048,576 characters.
        """
        if len(source) > _LONGEST:
            raise _failed(f"got {len(source)} characters, expected at most {_LONGEST}")
        self._source, self._variables = source, dict(variables or {})
        self._lock = threading.Lock()
        self._process = _tried_twice(lambda: _Process(source))

    @property
    def source(self) -> str:
        """The template's text."""
        return self._source

    @classmethod
    def from_folder(
        cls, folder: Path, files: Collection[str], read: Callable[[str], bytes] | None = None
    ) -> ChatTemplate:
        """Reads a model's chat template.

        Args:
            folder: folder of the model.
            files: names of the folder's files that may be read.
            read: gives the content of the file of a name; by default it is read from the folder.

        Raises UsageError if the model has no template, BundleError if its files are unreadable.
        """
        source, config = _read(folder, files, read)
        if not source:
            raise UsageError(
                f"{folder}: this model has no chat template; use sol-rt generate -p, or put a {FILE} into the "
                "checkpoint and export again"
            )
        return cls(source, _special_tokens(config))

    @staticmethod
    def source_in_folder(folder: Path, files: Collection[str], read: Callable[[str], bytes] | None = None) -> str:
        """Reads a template's text alone, which starts no process; empty if there is none. As `from_folder` otherwise.

        Raises BundleError.
        """
        return _read(folder, files, read)[0]

    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Renders a conversation as a prompt.

        Args:
            messages: dicts with `role` and `content`.
            add_generation_prompt: whether the prompt ends where the assistant's answer begins.
            variables: further variables of the template, such as `tools` or `enable_thinking`.

        Raises UsageError, in one line, for any error in the template, including its own calls of `raise_exception`, and
        for values that JSON cannot hold. Raises SolError for a template that crashes or takes too long.
        Limits: 1 s of processor time, 64 MB, and 4 times the conversation's characters plus 262,144. The same error
        comes if the machine is so busy that two tries took 30 s each.
        """
        values = {"tools": None, "documents": None, **self._variables, **variables}
        values |= {"messages": [dict(message) for message in messages], "add_generation_prompt": add_generation_prompt}
        try:
            request = json.dumps({"values": values})
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"messages: {error}; expected texts, numbers, lists and dicts") from None
        with self._lock:
            return _tried_twice(lambda: self._ask(request))

    def _ask(self, request: str) -> str:
        if not self._process.alive:
            self._process = _Process(self._source)
        return self._process.ask(request)


class _StalledError(Exception):
    """A process did not answer in time, and had not used up its processor time."""


def _tried_twice(do: Callable[[], _Made]) -> _Made:
    """Calls `do` and returns its result. Calls it once more if a busy machine gives the process too little time.

    Raises SolError.
    """
    for _ in range(2):
        try:
            return do()
        except _StalledError:
            pass
    got = f"no answer within {_SECONDS_AT_MOST:g} s, twice"
    expected = f"one that takes at most {_SECONDS:g} s of processor time"
    raise SolError(f"chat template: got {got}, expected {expected}; this machine is busy, so try again later")


class _Process:
    """A process that compiled a template and renders it: `template_process.py`.

    Raises SolError if the process cannot be started, or the template does not parse; _StalledError as `ask` does.
    """

    def __init__(self, source: str) -> None:
        if not sys.executable or getattr(sys, "frozen", False):
            raise SolError(
                "chat template: this program cannot start a Python process to render it; give a plain prompt"
            )
        found = [importlib.util.find_spec(name) for name in ("jinja2", "markupsafe")]
        folders = [str(Path(spec.origin).parents[1]) for spec in found if spec is not None and spec.origin]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", _SCRIPT, str(_SECONDS), str(_MEMORY_BYTES), *dict.fromkeys(folders)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="ascii",
                start_new_session=True,  # Ctrl-C is for this process alone
            )
        except OSError as error:
            raise SolError(f"chat template: no process to render it: {error.strerror}; give a plain prompt") from None
        self._end = weakref.finalize(self, _end, self._process)
        self._timed_out = False
        if not self._line("", _SECONDS_TO_START):
            raise SolError("chat template: the process that renders it does not start; give a plain prompt")
        self._compiled = False
        self.ask(json.dumps({"source": source}))
        self._compiled = True

    def ask(self, request: str) -> str:
        """Sends a line of JSON and returns the text of the answer.

        Raises UsageError for values that the template refuses, SolError otherwise; the process may then be dead. Raises
        _StalledError if the process was ended for its real time.
        """
        line = self._line(request + "\n", _SECONDS_AT_MOST)
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            if self._compiled:
                raise UsageError(f"chat template: {answer['error']}; change the messages, or correct {FILE}")
            raise _failed(answer["error"], answer["line"])
        return str(answer["text"])

    def _ended(self) -> Exception:
        """Explains the end of a process that gave no answer."""
        code = self._process.returncode
        if self._timed_out and _HAS_TIMER:
            return _StalledError()
        if self._timed_out or (_HAS_TIMER and code == -signal.SIGPROF):
            of = " of processor time" if _HAS_TIMER else ""
            return _failed(f"it takes more than {_SECONDS if _HAS_TIMER else _SECONDS_AT_MOST:g} s{of}")
        return _failed(f"it crashes its process (exit code {code})")

    def _line(self, request: str, seconds: float) -> str:
        """Sends a request and returns the next line of the process, which is ended if that takes longer.

        Returns an empty text if there is no line.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(seconds, self._time_out)
        timer.start()
        try:
            process.stdin.write(request)
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        except BaseException:  # an answer that nobody read would be taken for the next one
            self.stop()
            raise
        finally:
            timer.cancel()
            timer.join()  # its thread holds this object, whose end ends the process
        if not line.endswith("\n"):
            self.stop()
            return ""
        return line

    def _time_out(self) -> None:
        self._timed_out = True
        self._process.kill()

    @property
    def alive(self) -> bool:
        """True while the rendering process is running."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Ends the process."""
        self._end()


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()  # closes the pipes and takes the exit code


def _failed(message: str, line: int | None = None) -> SolError:
    where = "" if line is None else f" line {line}"
    return SolError(f"chat template{where}: {message}; correct {FILE} or generate from a plain prompt")


def _read(folder: Path, files: Collection[str], read: Callable[[str], bytes] | None) -> tuple[str, Mapping[str, Any]]:
    """A template's text, and the configuration of the tokenizer. Raises BundleError."""

    def content(name: str) -> bytes:
        return read_bytes(folder / name) if read is None else read(name)

    config = {}
    if CONFIG_FILE in files:
        config = _tokenizer_config(folder / CONFIG_FILE, lambda: content(CONFIG_FILE))
    if FILE not in files:
        return default_template(config.get("chat_template")), config
    try:
        return content(FILE).decode("utf-8"), config
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(folder / FILE, "", f"an unreadable file ({error})", "UTF-8 text") from None


def _tokenizer_config(path: Path, content: Callable[[], bytes]) -> dict[str, Any]:
    try:
        raw = json.loads(content().decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(path, "", f"unreadable JSON ({error})", "a JSON object") from None
    if not isinstance(raw, dict):
        raise BundleError(path, "", type(raw).__name__, "a JSON object")
    return raw


def default_template(templates: Any) -> str:
    """The template in `tokenizer_config.json`, which holds one text, or a list of named texts with one `default`."""
    if isinstance(templates, list):
        named = [item.get("template") for item in templates if isinstance(item, dict) and item.get("name") == "default"]
        templates = named[-1] if named else None
    return templates if isinstance(templates, str) else ""


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens such as `bos_token`. Each is a text, or a dict with the text under `content`."""
    found = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found
