"""Gets the calibration text: from a file that the user names, written by the model itself, or from the package.

Some windows are held out: weights and active channels are fitted to the others. On fitted windows losses would come out
too low.

Losses of short contexts are measured on the held-out windows of the user's file. Without one, they are measured on
sample_text/, one window of each of its kinds. Losses on text that the model wrote would be too low, and a short own
text is of one kind. docs/results/quality.md has the difference. A large model would write for minutes, so it is fitted
to sample_text/fitted/, which none of the scored windows is from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import PAGE_SIZE
from sol_rt.errors import SolError, UsageError
from sol_rt.export.runs import open_model
from sol_rt.generate.model import SolModel
from sol_rt.progress import Progress, silent
from sol_rt.read_file import require_regular
from sol_rt.text.tokenizer import Tokenizer

WINDOW = 512  # tokens of a window
LONG = 4608  # tokens of the long stretch
CONTEXTS = (512, 2048, 4096)
"""Contexts in tokens at which losses are measured, as far as the model and the text reach."""
_SCORED = 256  # tokens that follow a context
_HELD_OUT = 4  # of the windows beside the long stretch, every fourth is held out
_LEAST_WINDOWS = 8  # of a file; a Hessian over fewer tokens than channels knows nothing of most directions
_LEAST_LONG = 2 * WINDOW  # a shorter stretch shows nothing that windows do not

_WHOLE_BYTES = 2 << 20  # of a larger file only slices are read
_SLICE_BYTES = 1 << 16

_SAMPLES = Path(__file__).with_name("sample_text")
_FITTED = _SAMPLES / "fitted"

_FREE = 8  # tokens after an opener are drawn from the whole distribution: they set the window's topic
_FREELY: dict[str, Any] = {
    "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "logit_bias": {}, "eos_token_id": [], "stop_strings": [],
}  # fmt: skip
"""Settings of a draw from the whole distribution, whatever the model's own are."""
_TOP_P = 0.9  # for all other tokens: without it, a small model's text falls apart after a page
_RUN = 4  # tokens of the runs by which repetition is found
_LEAST_DISTINCT = 0.5  # share of a window's runs that differ; texts have over 0.9
_TRIES = 3
_DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>")  # ends of a document, unlike those of a chat turn
_MARK = "\ue000"  # stands for the user's message


@dataclass(frozen=True)
class CalibrationText:
    """Tokens of a calibration text, in windows of WINDOW tokens, or of the model's context if that is shorter.

    Attributes:
        fitted: the windows that weights and active channels are fitted to.
        held_out: windows of the same text that nothing is fitted to.
        scored: the windows that losses of short contexts are measured on.
        long: one stretch of up to LONG tokens; empty if there is none longer than two windows. Of what follows a
            context of `contexts`, nothing is in a fitted window.
        origin: where the text comes from, in a few words.
        by_divergence: losses are divergences from the dense action, not what is added on the text's tokens: the model
            drew the text, or nobody chose it.
    """

    fitted: tuple[tuple[int, ...], ...]
    held_out: tuple[tuple[int, ...], ...]
    scored: tuple[tuple[int, ...], ...]
    long: tuple[int, ...]
    origin: str
    by_divergence: bool = False

    @classmethod
    def of(
        cls,
        long: Sequence[int],
        parts: Sequence[tuple[int, tuple[int, ...]]],
        others: Sequence[tuple[int, ...]],
        origin: str,
    ) -> CalibrationText:
        """Decides which windows are held out, and scores those.

        Args:
            long: the long stretch.
            parts: windows that are part of it, each with the place of its first token.
            others: further windows.
            origin: the attribute.
        """
        long = long if len(long) >= _LEAST_LONG else ()
        places = contexts(len(long), len(long))
        scored = [any(at < place + WINDOW and place < at + len(window) for place in places) for at, window in parts]
        if not any(scored):
            others, parts = [*(window for _, window in parts), *others], ()
        chosen = [window for (_, window), held_out in zip(parts, scored, strict=False) if held_out]
        fitted = [window for (_, window), held_out in zip(parts, scored, strict=False) if not held_out]
        held_out = (*chosen, *others[_HELD_OUT - 1 :: _HELD_OUT])
        return cls(
            fitted=(*fitted, *(window for index, window in enumerate(others) if (index + 1) % _HELD_OUT)),
            held_out=held_out,
            scored=held_out,
            long=tuple(long),
            origin=origin,
        )


def contexts(tokens: int, max_context: int) -> tuple[int, ...]:
    """The contexts at which losses are measured on a stretch of `tokens` tokens, ascending.

    Those of CONTEXTS after which enough tokens follow. The first that does not fit is replaced by the longest that
    does, if that is a quarter longer than the others.
    """
    longest = (min(tokens, max_context) - _SCORED - 1) // PAGE_SIZE * PAGE_SIZE
    found = [context for context in CONTEXTS if context <= longest]
    if found and len(found) < len(CONTEXTS) and longest >= found[-1] * 5 // 4:
        found.append(longest)
    return tuple(found)


def read_text(path: Path, tokenizer: Tokenizer, max_context: int, windows: int = 32) -> CalibrationText:
    """Takes a long stretch from the beginning of a UTF-8 text file, and windows spread evenly over the rest.

    Args:
        path: the file.
        tokenizer: the model's tokenizer.
        max_context: the model's longest context in tokens.
        windows: most windows, those of the long stretch included.

    Raises UsageError if the file is missing, no text, or shorter than 4096 tokens.
    """
    size, prefix = min(WINDOW, max_context), _prefix(tokenizer)
    body = size - len(prefix)
    pieces = [tokenizer.encode(piece, add_special_tokens=False) for piece in _pieces(path, windows)]
    first, found = pieces[0], sum(map(len, pieces))
    stretch = min(len(first), min(LONG, max_context) - len(prefix)) if max_context >= _LEAST_LONG else 0
    stretch = stretch if stretch >= _LEAST_LONG else 0
    parts = [(at, (*prefix, *first[at : at + body])) for at in range(0, stretch - body + 1, body)]
    if len(pieces) == 1:
        rest = len(first) - stretch
        count = min(windows - len(parts), rest // body)
        starts = stretch + np.linspace(0, rest - body, count).astype(int) if count > 0 else ()
        others = [(*prefix, *first[start : start + body]) for start in starts]
    else:
        whole = [(*prefix, *piece[:body]) for piece in pieces[1:] if len(piece) >= body]
        count = min(windows - len(parts), len(whole))
        others = [whole[index] for index in np.linspace(0, len(whole) - 1, count).astype(int)] if count > 0 else []
    if len(parts) + len(others) < _LEAST_WINDOWS:
        raise UsageError(
            f"calibration {path}: got {found} tokens, expected {_LEAST_WINDOWS * size} or more; "
            "name a longer text, or leave --calibration out"
        )
    return CalibrationText.of((*prefix, *first[:stretch]), parts, others, path.name)


def generate_text(
    folder: Path, writer: Action, windows: int, long: int = LONG, progress: Progress = silent, *, seed: int = 0
) -> CalibrationText:
    """Lets the model write the text, drawn from its own distribution, and scores the package's sample texts.

    It writes one long stretch, which is cut into windows, then further windows. With a chat template it writes both
    sides of conversations, otherwise documents. Every window has its own seed, so that topics differ.

    Args:
        folder: a bundle.
        writer: the action that writes.
        windows: windows in all, 1 or more.
        long: tokens of the long stretch, if the windows and the model's context suffice.
        progress: reports the tokens written.
        seed: equal seeds give equal text on one machine.

    Raises SolError if the bundle cannot run.
    """
    bundle = Bundle.open(folder)
    draw = _Writer(open_model(folder, writer.variant), writer, seed)
    tokenizer = bundle.tokenizer()
    size = min(WINDOW, draw.engine.max_context)
    opener = _opener(bundle, tokenizer)
    stage = "writing calibration text"
    progress(stage, 0, windows * size)
    stretch: list[int] = []
    for piece in range(max(1, min(long, draw.engine.max_context, windows * size) // size)):
        draw.extend(stretch, size, opener, piece)
        progress(stage, len(stretch), windows * size)
    parts = [(start, tuple(stretch[start : start + size])) for start in range(0, len(stretch), size)]
    others: list[tuple[int, ...]] = []
    while len(parts) + len(others) < windows:
        others.append(draw.window(opener, size, len(parts) + len(others)))
        progress(stage, (len(parts) + len(others)) * size, windows * size)
    text = CalibrationText.of(stretch, parts, others, "the model's own text and the package's samples")
    return replace(text, scored=sample_windows(tokenizer, draw.engine.max_context), by_divergence=True)


def package_text(tokenizer: Tokenizer, max_context: int, long: int) -> CalibrationText:
    """Takes the package's own texts: an article as the long stretch, and a window of each of some other kinds.

    Args:
        tokenizer: the model's tokenizer.
        max_context: the model's longest context in tokens.
        long: most tokens of the long stretch.
    """
    prefix, size = _prefix(tokenizer), min(WINDOW, max_context)
    article, *others = ((*prefix, *tokens) for tokens in _encoded(tokenizer, _FITTED))
    article = article[: min(long, max_context)]
    parts = [(at, article[at : at + size]) for at in range(0, len(article) - size + 1, size)]
    whole = [window[:size] for window in others if len(window) >= size]
    text = CalibrationText.of(article, parts, whole, "the package's sample texts")
    return replace(text, scored=sample_windows(tokenizer, max_context), by_divergence=True)


def sample_windows(tokenizer: Tokenizer, max_context: int) -> tuple[tuple[int, ...], ...]:
    """The beginning of each of the package's sample texts, up to WINDOW tokens or the model's longest context."""
    prefix, size = _prefix(tokenizer), min(WINDOW, max_context)
    return tuple((*prefix, *tokens)[:size] for tokens in _encoded(tokenizer, _SAMPLES))


def _encoded(tokenizer: Tokenizer, folder: Path) -> list[list[int]]:
    """The token ids of the texts in a folder, without the tokenizer's prefix."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))]
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


class _Writer:
    """Draws text with the engine, and draws again if it repeats itself."""

    def __init__(self, model: SolModel, action: Action, seed: int) -> None:
        self._model, self.engine, self._action, self._seed = model, model.engine, action, seed

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
            free = len(text) + _FREE if attempt or not start else start
            self._draw(text, min(free, start + size), draw_seed)
            self._draw(text, start + size, draw_seed, top_p=_TOP_P)
            if distinct_runs(text[start:]) >= _LEAST_DISTINCT:
                return

    def _draw(self, text: list[int], length: int, seed: int, **how: float) -> None:
        """Appends tokens until there are `length`."""
        if len(text) >= length:
            return
        text += self._model.generate(
            text,
            schedule=f"fixed:{self._action.tag}",
            max_new_tokens=length - len(text),
            reuse_cache=True,
            seed=seed,
            **{**_FREELY, **how},
        ).tokens


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


def _pieces(path: Path, count: int) -> list[str]:
    """The whole file; of a large one, `count` slices spread evenly over it. Raises UsageError if it is no text."""
    try:
        require_regular(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            slices = [file.read()] if size <= _WHOLE_BYTES else list(_slices(file, size, count))
    except OSError as error:
        raise UsageError(f"calibration {path}: {error.strerror or error}; name a file of UTF-8 text") from None
    pieces = [_text(data, path) for data in slices]
    if not any(piece.strip() for piece in pieces):
        raise UsageError(
            f"calibration {path}: the file is empty; name a longer text, or leave --calibration out: the model then "
            "writes one"
        )
    return pieces


def _slices(file: BinaryIO, size: int, count: int) -> Iterator[bytes]:
    for start in np.linspace(0, size - _SLICE_BYTES, count).astype(int):
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
