"""Gets the calibration text: from a file that the user names, or written by the model itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sol_rt.bundle.bundle import Bundle
from sol_rt.engine.engine import Engine
from sol_rt.errors import SolError, UsageError
from sol_rt.generate.generation_config import GenerationConfig
from sol_rt.generate.sampling import Sampler
from sol_rt.store.progress import Progress, silent
from sol_rt.text.tokenizer import Tokenizer

WINDOW = 512  # tokens of a window
LONG = 4608  # tokens of the long stretch
_WINDOWS = 32
_HELD_OUT = 4  # every fourth window is left to measure losses on
_LEAST_WINDOWS = 8  # of a file; a Hessian over fewer tokens than channels knows nothing of most directions
_LEAST_LONG = 2 * WINDOW  # a shorter stretch shows nothing that windows do not

_WHOLE_BYTES = 2 << 20  # of a larger file only slices are read
_SLICE_BYTES = 1 << 16

_MAX_SECONDS = 110.0  # for the model's own text: two minutes in all
_LEAST_OWN_WINDOWS = 4
_FREE = 8  # tokens after an opener are drawn from the whole distribution: they set the window's topic
_TOP_P = 0.9  # for all other tokens: without it, a small model's text falls apart after a page
_RUN = 4  # tokens of the runs by which repetition is found
_LEAST_DISTINCT = 0.5  # share of a window's runs that differ; texts have over 0.9
_TRIES = 3
_DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>")  # ends of a document, unlike those of a chat turn
_MARK = "\ue000"  # stands for the user's message


@dataclass(frozen=True)
class CalibrationText:
    """Tokens of a calibration text.

    Attributes:
        windows: stretches of WINDOW tokens, or of the model's context if that is shorter. Each starts a context.
        long: one stretch of up to LONG tokens; empty if there is none longer than two windows.
        origin: where the text comes from, in a few words.
    """

    windows: tuple[tuple[int, ...], ...]
    long: tuple[int, ...]
    origin: str

    def split(self) -> tuple[list[tuple[int, ...]], CalibrationText]:
        """The windows to fit weights to, and the text with the others, to measure losses on.

        On fitted windows losses would come out too low.
        """
        held_out = self.windows[::_HELD_OUT]
        fitted = [window for index, window in enumerate(self.windows) if index % _HELD_OUT]
        return fitted, replace(self, windows=held_out)


def read_text(path: Path, tokenizer: Tokenizer, max_context: int) -> CalibrationText:
    """Takes windows spread evenly over a UTF-8 text file, and a long stretch if it has one.

    Args:
        path: the file.
        tokenizer: the model's tokenizer.
        max_context: the model's longest context in tokens.

    Raises UsageError if the file is missing, no text, or shorter than 4096 tokens.
    """
    size, prefix = min(WINDOW, max_context), _prefix(tokenizer)
    body = size - len(prefix)
    pieces = [tokenizer.encode(piece, add_special_tokens=False) for piece in _pieces(path)]
    found = sum(map(len, pieces))
    if len(pieces) == 1:
        count = min(_WINDOWS, found // body)
        starts = np.linspace(0, found - body, count).astype(int) if count else ()
        windows = [pieces[0][start : start + body] for start in starts]
    else:
        windows = [piece[:body] for piece in pieces if len(piece) >= body]
    if len(windows) < _LEAST_WINDOWS:
        raise UsageError(
            f"calibration {path}: got {found} tokens, expected {_LEAST_WINDOWS * size} or more; "
            "name a longer text, or leave --calibration out: the model then writes one"
        )
    longest = max(pieces, key=len)[: min(LONG, max_context) - len(prefix)]
    return CalibrationText(
        windows=tuple((*prefix, *window) for window in windows),
        long=(*prefix, *longest) if len(longest) >= _LEAST_LONG else (),
        origin=path.name,
    )


def generate_text(
    folder: Path,
    progress: Progress = silent,
    *,
    seed: int = 0,
    windows: int = _WINDOWS,
    max_seconds: float = _MAX_SECONDS,
) -> CalibrationText:
    """Lets the model write the text, drawn from its dense distribution.

    It writes one long stretch, which is cut into windows, then further windows. With a chat template it writes both
    sides of conversations, otherwise documents. Every window has its own seed, so that topics differ.

    Args:
        folder: a bundle, whose dense action writes.
        progress: reports the tokens written.
        seed: equal seeds give equal text on one machine, except that `max_seconds` may end one earlier.
        windows: most windows, 1 or more.
        max_seconds: most seconds, by the rate of the first window. The number of windows it allows is a power of two.

    Raises SolError if the bundle cannot run.
    """
    bundle = Bundle.open(folder)
    writer = _Writer(Engine(bundle, provider="cpu"), seed)
    tokenizer = bundle.tokenizer()
    size = min(WINDOW, writer.engine.max_context)
    opener = _opener(bundle, tokenizer)
    progress("writing calibration text", 0, windows * size)

    began = time.monotonic()
    first = writer.window(opener, size, 0)
    affordable = int(max_seconds / max(time.monotonic() - began, 1e-6))
    affordable = 1 << max(affordable, _LEAST_OWN_WINDOWS).bit_length() - 1  # the same from one run to the next, mostly
    count = min(windows, affordable)
    progress("writing calibration text", size, count * size)

    pieces = min(LONG, writer.engine.max_context, count // 2 * size) // size
    long = list(first)
    for piece in range(1, pieces):
        writer.extend(long, size, opener, piece)
        progress("writing calibration text", len(long), count * size)
    found = [tuple(long[start : start + size]) for start in range(0, len(long), size)]
    while len(found) < count:
        found.append(writer.window(opener, size, len(found)))
        progress("writing calibration text", len(found) * size, count * size)
    return CalibrationText(tuple(found), tuple(long) if len(long) >= _LEAST_LONG else (), "the model's own text")


class _Writer:
    """Draws text with the engine, and draws again if it repeats itself."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine = engine
        self._seed = seed
        self._dense = engine.bundle.config.dense
        self._vocabulary = engine.bundle.config.model.vocab_size

    def window(self, opener: Sequence[int], size: int, index: int) -> tuple[int, ...]:
        """`size` tokens that begin with the opener."""
        self.engine.reset()
        text: list[int] = []
        self.extend(text, size, opener, index)
        return tuple(text)

    def extend(self, text: list[int], size: int, opener: Sequence[int], index: int) -> None:
        """Appends `size` tokens. An empty text, or one that repeats itself, continues with the opener."""
        start = len(text)
        for attempt in range(_TRIES):
            del text[start:]
            self.engine.truncate(min(self.engine.length, max(start - 1, 0)))
            if attempt or not start:
                text += opener[: size - 1]
            draw_seed = (self._seed * 4096 + index) * _TRIES + attempt
            freely = GenerationConfig(do_sample=True, top_k=0, seed=draw_seed)
            self._draw(text, len(text) + _FREE if attempt or not start else start, start + size, freely)
            self._draw(text, start + size, start + size, freely.updated(top_p=_TOP_P))
            if distinct_runs(text[start:]) >= _LEAST_DISTINCT:
                return

    def _draw(self, text: list[int], length: int, limit: int, how: GenerationConfig) -> None:
        sampler = Sampler(how, self._vocabulary)
        while len(text) < min(length, limit):
            step = self.engine.forward(text[self.engine.length :], self._dense)
            text.append(sampler.sample(step.distribution, text)[0])


def distinct_runs(tokens: Sequence[int]) -> float:
    """The share of distinct runs among all runs of four tokens: near 1 for texts, near 0 for a loop."""
    runs = list(zip(*(tokens[first:] for first in range(_RUN)), strict=False))
    return len(set(runs)) / len(runs) if runs else 1.0


def _opener(bundle: Bundle, tokenizer: Tokenizer) -> list[int]:
    """The tokens that texts begin with: the start of a user's turn if there is a chat template, else of a document.

    Chat models write both sides of a conversation well. Without a template, half of what they write is no text.
    """
    try:
        rendered = bundle.chat_template().render([{"role": "user", "content": _MARK}])
    except SolError:
        rendered = ""
    before, mark, _ = rendered.partition(_MARK)
    chat = tokenizer.encode(before, add_special_tokens=False)
    if mark and 0 < len(chat) <= WINDOW // 4:
        return chat
    model = bundle.config.model
    ends = [token for name in _DOCUMENT_ENDS if (token := tokenizer.token_id(name)) is not None]
    fallback = [model.bos_token_id, *model.eos_token_ids, 0]
    return _prefix(tokenizer) or ends[:1] or [next(token for token in fallback if token is not None)]


def _prefix(tokenizer: Tokenizer) -> list[int]:
    """The tokens that the tokenizer puts before every text."""
    bare = tokenizer.encode("a", add_special_tokens=False)
    full = tokenizer.encode("a", add_special_tokens=True)
    return full[: full.index(bare[0])] if bare and bare[0] in full else []


def _pieces(path: Path) -> list[str]:
    """The whole file; of a large one, slices spread evenly over it. Raises UsageError if it is no text."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            slices = [file.read()] if size <= _WHOLE_BYTES else list(_slices(file, size))
    except OSError as error:
        raise UsageError(f"calibration {path}: {error.strerror or error}; name a file of UTF-8 text") from None
    pieces = [_text(data, path) for data in slices]
    if not any(piece.strip() for piece in pieces):
        raise UsageError(
            f"calibration {path}: the file is empty; name a longer text, or leave --calibration out: the model then "
            "writes one"
        )
    return pieces


def _slices(file: BinaryIO, size: int) -> Iterator[bytes]:
    for start in np.linspace(0, size - _SLICE_BYTES, _WINDOWS).astype(int):
        file.seek(int(start))
        data = file.read(_SLICE_BYTES)
        # cut at whole characters: continuation bytes are 10xxxxxx, and a character has at most 4 bytes
        first = next((at for at in range(4) if data[at] & 0xC0 != 0x80), 0)
        last = next((at for at in range(1, 5) if data[-at] & 0xC0 != 0x80), 1)
        yield data[first:-last]


def _text(data: bytes, path: Path) -> str:
    try:
        if b"\0" in data:
            raise ValueError
        return data.decode("utf-8-sig")
    except ValueError:
        raise UsageError(f"calibration {path}: got binary data, expected UTF-8 text; name another file") from None
