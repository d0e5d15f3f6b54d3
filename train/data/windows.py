"""Cuts text into the windows that training and measuring use. Their order is the same for every training on a text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sol_rt.errors import UsageError
from sol_rt.train.config import DataConfig
from sol_rt.train.data.corpus import Tokens


@dataclass(frozen=True)
class Window:
    """A piece of a document.

    Attributes:
        document: index of the document.
        begin: its first token.
        length: tokens.
        kind: index of the length in `Windows.lengths`.
    """

    document: int
    begin: int
    length: int
    kind: int


class Windows:
    """The windows of some documents: they do not overlap, are shuffled, and some are held out.

    Args:
        documents: token ids of each, int64 [n].
        config: lengths, which take turns, and how many windows are held out.
        longest: the model's context in tokens; longer lengths are cut to it.
        bos: replaces the first token of every window, as `sol-rt perplexity` does; None leaves it.

    Attributes:
        training, held_out: the windows.
        lengths: the different lengths in tokens, in the config's order.
        digest: sha256 of the documents' tokens.

    Raises UsageError where the text is too short for one window to train on and one to measure on.
    """

    def __init__(self, documents: Sequence[Tokens], config: DataConfig, longest: int, bos: int | None = None) -> None:
        self._documents, self._bos = documents, bos
        self.digest = hashlib.sha256(b"".join(document.tobytes() + b"/" for document in documents)).hexdigest()
        lengths = [min(length, longest) for length in config.windows]
        self.lengths = tuple(dict.fromkeys(lengths))
        windows: list[Window] = []
        for number, document in enumerate(documents):
            begin = turn = 0
            # lengths take turns; those that no longer fit drop out
            while fitting := [length for length in lengths if begin + length <= len(document)]:
                length = fitting[turn % len(fitting)]
                windows.append(Window(number, begin, length, self.lengths.index(length)))
                begin, turn = begin + length, turn + 1
        order = np.random.default_rng(len(windows)).permutation(len(windows)).tolist()
        self.held_out = [windows[at] for at in order[:: config.held_out]]
        self.training = [windows[at] for place, at in enumerate(order) if place % config.held_out]
        if not self.training or not self.held_out:
            total, shortest = sum(map(len, documents)), min(lengths)
            raise UsageError(
                f"--data: got {total} tokens, {len(windows)} windows of {', '.join(map(str, lengths))}, expected at "
                f"least two, so a text of {2 * shortest} tokens; give more text, or set shorter data.windows"
            )

    def tokens(self, window: Window) -> list[int]:
        """The token ids of a window."""
        tokens: list[int] = self._documents[window.document][window.begin : window.begin + window.length].tolist()
        return tokens if self._bos is None else [self._bos, *tokens[1:]]

    def trained_on(self, number: int) -> Window:
        """Training window `number`, counted from 0; after the last one the first follows."""
        return self.training[number % len(self.training)]
