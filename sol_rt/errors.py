"""The errors a user can meet. Each says what, where, got, expected and the next step, in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class SolError(Exception):
    """Base of every error that a user's input or environment can cause. The command line prints it as one line.

    Args:
        message: the text. Line breaks become spaces, other control characters their escapes, and what goes beyond 1000
            characters is cut, because parts of the text may come from a file.

    Attributes:
        whole: the text as it was given, for the command line, which knows what of it the user wrote.
    """

    exit_code = 1

    def __init__(self, message: object = "") -> None:
        self.whole = str(message)
        super().__init__(plain(self.whole)[:_LONGEST_ERROR])


class UsageError(SolError):
    """The command or call itself is wrong: unknown value, contradictory options."""

    exit_code = 2


class BusyError(UsageError):
    """Another thread, or a newer generation of the same thread, is using the model. Its text is not affected."""


class BundleError(SolError):
    """A bundle is missing, truncated, foreign or inconsistent.

    Args:
        path: file or folder concerned.
        key: key, tensor or file inside it; empty where the whole is meant.
        got: what was found.
        expected: what should be there.
        hint: the next step for the user.
    """

    def __init__(
        self, path: object, key: str, got: object, expected: object, hint: str = "export the bundle again"
    ) -> None:
        key, got, expected = (cut(part) for part in (key, got, expected))
        self.path, self.key, self.got, self.expected, self.hint = str(path), key, got, expected, hint
        where = f"{path}: {key}" if key else str(path)
        super().__init__(f"{where}: got {got}, expected {expected}; {hint}")

    @classmethod
    def of(cls, message: str) -> BundleError:
        """The error with a text that is complete; its attributes are empty."""
        error = cls("", "", "", "", "")
        SolError.__init__(error, message)
        return error


class CheckpointError(SolError):
    """A source checkpoint cannot be exported: missing or non-finite tensors, unknown architecture or type."""


class HubError(SolError):
    """The model hub refuses a request, or serves something else than was expected."""


class HubUnreachableError(HubError):
    """The model hub cannot be asked: there is no network, or `HF_HUB_OFFLINE` is set."""


class WriteError(SolError):
    """A file or folder cannot be written: the disk is full, or the system refuses. What was there stays as it was.

    Args:
        path: the file or folder.
        reason: what the system said.
    """

    def __init__(self, path: object, reason: str) -> None:
        self.path, self.reason = str(path), reason
        super().__init__(f"{path}: cannot be written ({reason}); make room, change its permissions or write elsewhere")


class ContextError(SolError):
    """A prompt or generation does not fit the model's context."""


class ProviderError(SolError):
    """An execution provider that was asked for does not work here."""


class DeviceError(SolError):
    """A GPU failed while it computed: it was lost, ran out of memory, or its driver stopped. The process can go on.

    Args:
        where: provider and GPU.
        reason: what the provider said.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where} failed: {reason}; run again, or use --provider cpu")


class NumericError(SolError):
    """The model produced non-finite logits: weights are damaged or the arithmetic overflowed."""


class QualityWarning(UserWarning):
    """A request below which this bundle's text suffers visibly. It is served all the same."""


_LONGEST_ERROR = 1000
_LONGEST = 200
_BRIEF = 60
_CAUSES = ("CUDA failure", "CUDA error", "Failed to allocate", "Available memory")
"""Words that start the cause in a provider's message. A C++ signature of more than a line stands before them."""
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
"""Escape sequences that colour a terminal's text; torch writes them into messages."""
_BEHIND = " ; GPU="
"""Start of what the CUDA provider appends to the cause: the host's name and lines of its own source code."""


def plain(text: str) -> str:
    """The text in one line, without characters that a terminal would obey."""
    text = " ".join(_STYLE.sub("", text).split("\n"))
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cut(part: object) -> str:
    """Shortens a part of a message to 200 characters. A file or a user may have written it at any length."""
    text = str(part)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def brief(value: object) -> str:
    """Describes a value of a file or of a call in an error: its repr on one line, cut to 60 characters."""
    if isinstance(value, int) and abs(value) >= 10**_BRIEF:
        return "a number of more than 60 digits"  # Python itself refuses to write one of more than 4300
    cut = value[:_BRIEF] if isinstance(value, (str, bytes, list, tuple)) else value
    try:
        text = " ".join(repr(cut).split())
    except Exception:  # a repr may do anything
        text = f"a {type(value).__name__}"
    return text if len(text) <= _BRIEF else f"{text[: _BRIEF - 1]}…"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Asks for the known names that begin with `name`, else for those spelled most like it; empty if none is near.

    It names three at most. Case is ignored.
    """
    by_lower, wanted = {each.lower(): each for each in known}, name.lower()
    if wanted in by_lower:
        near = [wanted]
    else:
        beginning = [each for each in by_lower if wanted and each.startswith(wanted)]
        near = beginning[:3] or difflib.get_close_matches(wanted, by_lower, 2)
    return f"did you mean {' or '.join(repr(by_lower[each]) for each in near)}?" if near else ""


def one_line(error: BaseException) -> str:
    """An exception's text on one line of at most 200 characters.

    A longer text is cut, so that it starts at the words that name the cause.
    """
    said = (isinstance(error, OSError) and error.strerror) or str(error)  # without the number and the path again
    text = " ".join(_STYLE.sub("", said).split()) or type(error).__name__
    text = text.partition(_BEHIND)[0]
    starts = [at for cause in _CAUSES if (at := text.find(cause)) >= 0]
    if len(text) > _LONGEST and starts:
        text = text[min(starts) :]
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


@contextmanager
def device_errors(where: str, what: str = "") -> Iterator[None]:
    """Turns any exception that ONNX Runtime raises on a GPU into a DeviceError. A SolError passes through unchanged.

    Args:
        where: provider and GPU.
        what: the operation that failed; empty if the message need not name it.
    """
    try:
        yield
    except SolError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no useful base
        raise DeviceError(where, f"{what}: {one_line(error)}" if what else one_line(error)) from None
