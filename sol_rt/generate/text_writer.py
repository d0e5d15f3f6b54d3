"""Turns generated tokens into pieces of text, and finds where end tokens or stop strings end it."""

from __future__ import annotations

from collections.abc import Sequence

from sol_rt.generate.generation_config import GenerationConfig
from sol_rt.text.stop_strings import StopStrings
from sol_rt.text.tokenizer import Tokenizer


class TextWriter:
    """The text of one generation, token by token.

    Args:
        tokenizer: the bundle's tokenizer.
        prompt: tokens of the prompt: the first piece of text depends on the last of them.
        config: its end tokens and stop strings are used.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], config: GenerationConfig) -> None:
        self._stream = tokenizer.stream(prompt)
        self._stop = StopStrings(config.stop_strings)
        self._end_tokens = frozenset(config.eos_token_id)

    def add(self, token: int) -> tuple[str, str | None]:
        """The text that became certain with `token`, and `stop` where the text ends with it, else None."""
        if token in self._end_tokens:
            return self.flush(), "stop"
        text, stopped = self._stop.feed(self._stream.add(token))
        return text, "stop" if stopped else None

    def flush(self) -> str:
        """The text that was held back: an incomplete character, or what may be the beginning of a stop string."""
        text, stopped = self._stop.feed(self._stream.flush())
        return text if stopped else text + self._stop.flush()
