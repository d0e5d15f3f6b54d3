"""Turns text into tokens and back. A streaming decoder returns text while tokens arrive."""

from __future__ import annotations

import codecs
import functools
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sol_rt.errors import BundleError, UsageError, brief, one_line
from sol_rt.read_file import read_bytes
from sol_rt.text.user_text import UserText

if TYPE_CHECKING:
    import tokenizers  # its functions import it, so that a session that is opened ahead begins before

FILE = "tokenizer.json"
_REPLACEMENT = "\ufffd"
_UTF8_LENGTH = 4  # bytes of the longest character
_SAMPLE = "Is it 12°? Yes!\n\tno\u3000ﬁn 深海 🐟"  # spaces, digits, and characters of one to four bytes
_PIECE = 1 << 16
_FROM_BUFFER = "Cannot instantiate Tokenizer from buffer: "  # the library says it in front of the reason
_STDERR_LOCK = threading.Lock()
_CONTEXT = 6  # prompt tokens that are enough for the decoder to place a leading space


class Tokenizer:
    """The bundle's `tokenizer.json`.

    Args:
        inner: the tokenizer of the library.
        end_ids: tokens that end a text. Added tokens among them count as special, also if the file does not say so.
    """

    def __init__(self, inner: tokenizers.Tokenizer, end_ids: Collection[int] = ()) -> None:
        self._inner = inner
        added = self._inner.get_added_tokens_decoder()
        for number in set(end_ids) & set(added):
            added[number].special = True
            self._inner.add_special_tokens([added[number]])
        # files that were saved for training truncate and pad
        self._inner.no_truncation()
        self._inner.no_padding()
        self._lengths: dict[tuple[int, bool], int] = {}
        self._lock = threading.Lock()
        special = {number: token.content for number, token in added.items() if token.special and token.content}
        self._special: dict[int, str] = special
        # the token for what the vocabulary lacks is special, too, but plain text makes it
        self._controls = special.keys() - (self._unknown() - set(end_ids))

    @classmethod
    def from_folder(
        cls, folder: Path, vocab_size: int, end_ids: Collection[int] = (), *, content: bytes | None = None
    ) -> Tokenizer:
        """Reads `tokenizer.json` in a folder, for a model with `vocab_size` tokens, of which `end_ids` end a text.

        `content` is the file's, if it was read already.

        Raises BundleError if the file is missing or unreadable, or has tokens that the model does not know.
        """
        tokenizer = cls.from_file(folder / FILE, end_ids, content=content)
        if tokenizer.vocab_size > vocab_size:
            got, expected = f"{tokenizer.vocab_size} tokens", f"at most the model's {vocab_size}"
            raise BundleError(folder, FILE, got, expected, "export again with the model's own tokenizer")
        return tokenizer

    @classmethod
    def from_file(cls, path: Path, end_ids: Collection[int] = (), *, content: bytes | None = None) -> Tokenizer:
        """Reads a file `tokenizer.json`, or its `content`.

        Raises BundleError if it is missing, unreadable, or fails on a short text.
        """
        import tokenizers

        try:
            with _silenced(), _no_panic():  # a panic of the library prints lines of its own
                raw = read_bytes(path) if content is None else content
                _check_utf8(raw)
                tokenizer = cls(tokenizers.Tokenizer.from_buffer(raw), end_ids)
                for special in (True, False):
                    tokenizer.decode(tokenizer.encode(_SAMPLE, parse_special=special), skip_special_tokens=special)
                tokenizer.decode([])
            return tokenizer
        except BundleError as error:
            raise BundleError(path, "", error.got, error.expected, error.hint) from None
        except UsageError:
            raise
        except Exception as error:  # the library raises plain Exception
            problem = " ".join(str(error).removeprefix(_FROM_BUFFER).split())[:120]
            raise BundleError(path, "", f"an unreadable tokenizer ({problem})", "a tokenizers file") from None

    def to_json(self) -> str:
        """The content of a `tokenizer.json` for other libraries."""
        return self._inner.to_str()

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added tokens included."""
        return int(self._inner.get_vocab_size(with_added_tokens=True))

    @property
    def last_id(self) -> int:
        """The largest id of a token; -1 in an empty vocabulary."""
        return max(self._inner.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(self, text: str, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """Returns the token ids of `text`.

        Args:
            text: the text.
            add_special_tokens: whether to add what the model wants around a text, such as a token for its beginning.
            parse_special: whether special tokens that are written in the text become those tokens, or plain text.

        Raises UsageError for text that is not valid Unicode (lone surrogates).
        """
        return list(self._encoding(text, add_special_tokens, parse_special).ids)

    def encode_plain(self, text: str) -> list[int]:
        """Returns the token ids of a prompt whose special tokens are text, with what the model wants around it.

        Raises UsageError if the tokenizer makes a special token of that text: some have those in their vocabulary.
        """
        encoding = self._encoding(text, True, False)
        added = encoding.special_tokens_mask  # what the model wants around a text
        self._refuse("prompt", [token for token, put in zip(encoding.ids, added, strict=True) if not put])
        return list(encoding.ids)

    @property
    def special_tokens(self) -> Mapping[int, str]:
        """Texts of the special tokens by their ids."""
        return self._special

    @property
    def added_tokens(self) -> Mapping[int, str]:
        """Texts of the tokens beside the model's vocabulary by their ids, special or not."""
        return {number: token.content for number, token in self._inner.get_added_tokens_decoder().items()}

    def marked_messages(self, messages: Any) -> UserText:
        """Messages for a chat template, and tools, with marks at the special tokens that they contain as text.

        Raises UsageError for messages that nest too deeply, or leave no character for marks.
        """
        return UserText(self._special.values(), messages)

    def special_in(self, text: str) -> list[str]:
        """The special tokens that are written in a text, in order."""
        return [] if self._special_pattern is None else self._special_pattern.findall(text)

    @cached_property
    def _special_pattern(self) -> re.Pattern[str] | None:
        longest_first = sorted({token.strip() for token in self._special.values()} - {""}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def encode_rendered(self, rendered: str, user: UserText) -> list[int]:
        """Returns the token ids of a prompt that a chat template rendered from `user.marked`.

        Special tokens of the template become those tokens; what came from the messages is plain text. So is a special
        token in another spelling, which the tokenizer's normalizer would turn into that token.

        Raises UsageError if a special token is left in what came from the messages.
        """
        encoding = self._encoding(rendered, False, True)
        ids: list[int] = []
        start, plain = 0, []  # where the piece since the last special token begins, and its tokens
        for token, (begin, end) in [*zip(encoding.ids, encoding.offsets, strict=True), (-1, (len(rendered), 0))]:
            if token >= 0 and not self._spells(rendered[begin:end], token):
                plain.append(token)
                continue
            piece = rendered[start:begin]
            if user.marks(piece) or not self._controls.isdisjoint(plain):
                plain = self._plain(user.restored(piece), first=start == 0)
            ids += plain
            ids += [token] if token >= 0 else []
            start, plain = end, []
        return ids

    def _unknown(self) -> set[int]:
        """The token for what the vocabulary lacks, if there is one."""
        import tokenizers

        model = self._inner.model
        if not isinstance(model, tokenizers.models.Unigram):
            found = model.token_to_id(model.unk_token) if model.unk_token else None
            return set() if found is None else {found}
        try:
            return {token.id for token in model.tokenize("\U0010ffff")}  # such a model does not name it
        except Exception:  # it has none
            return set()

    def _spells(self, text: str, token: int) -> bool:
        """True if a text is a special token as the vocabulary writes it, with or without spaces around it."""
        return token in self._special and text.strip() == self._special[token].strip()

    def _plain(self, text: str, first: bool) -> list[int]:
        """Token ids of a piece of a longer text, without special tokens; `first` if the text begins with it."""
        ids = (self if first else self._inside).encode(text, add_special_tokens=False, parse_special=False)
        self._refuse("messages", ids)
        return ids

    def _refuse(self, what: str, ids: Iterable[int]) -> None:
        """Raises UsageError if plain text became a special token; `what` names the text."""
        for token in self._controls.intersection(ids):
            got = f"text that is the special token {brief(self._special[token])} to this tokenizer"
            raise UsageError(f"{what}: got {got}; leave it out")

    @cached_property
    def _inside(self) -> Tokenizer:
        """The tokenizer for a piece that another one precedes.

        Some tokenizers put a space before the first piece of a text only. Raises BundleError.
        """
        before = self._inner.pre_tokenizer
        first, never = '"prepend_scheme":"first"', '"prepend_scheme":"never"'
        if before is None or first not in before.__getstate__().decode():
            return self
        import tokenizers

        try:
            with _no_panic():
                return Tokenizer(tokenizers.Tokenizer.from_str(self._inner.to_str().replace(first, never)))
        except BundleError:
            raise
        except Exception as error:  # the library reads some files, and not what it writes of them
            got = f"a tokenizer that cannot be read again ({one_line(error)})"
            raise BundleError(FILE, "", got, "one that can", "export again with the model's own") from None

    def _encoding(self, text: str, add_special_tokens: bool, parse_special: bool) -> tokenizers.Encoding:
        with self._lock:  # the switch is the tokenizer's, not the call's
            self._inner.encode_special_tokens = not parse_special
            try:
                with _no_panic():
                    return self._inner.encode(text, add_special_tokens=add_special_tokens)
            except (UnicodeEncodeError, TypeError):
                raise UsageError("prompt: not valid Unicode text; give it as UTF-8") from None

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Returns the text of the token ids. Raises UsageError for what is no list of ids from 0 to 2^32 - 1."""
        try:
            with _no_panic():
                return str(self._inner.decode(list(ids), skip_special_tokens=skip_special_tokens))
        except (TypeError, OverflowError):
            raise UsageError(f"decode: got {brief(ids)}, expected token ids, as in [1, 2, 3]") from None

    def length_alone(self, token: int, skip_special_tokens: bool) -> int:
        """Number of characters that one token decodes to if no token precedes it."""
        key = token, skip_special_tokens
        length = self._lengths.get(key)
        if length is None:
            length = self._lengths[key] = len(self.decode([token], skip_special_tokens))
        return length

    def token_id(self, token: str) -> int | None:
        """Id of a token that is given as the vocabulary writes it; None if the vocabulary lacks it.

        Raises UsageError for what is no text.
        """
        if not isinstance(token, str):
            raise UsageError(f"token_id: got {brief(token)}, expected a token's text")
        try:
            found = self._inner.token_to_id(token)
        except UnicodeEncodeError:  # half of a surrogate pair, which no token has
            return None
        return None if found is None else int(found)

    def stream(self, context: Sequence[int] = (), skip_special_tokens: bool = True) -> TextStream:
        """Returns a decoder for tokens that arrive one by one.

        Args:
            context: the prompt's tokens, which precede the stream; their text is not returned.
            skip_special_tokens: whether special tokens give no text.
        """
        return TextStream(self, context, skip_special_tokens)


def _check_utf8(content: bytes) -> None:
    """Raises UnicodeDecodeError. The library checks only the strings that it keeps."""
    decoder, view = codecs.getincrementaldecoder("utf-8")(), memoryview(content)
    try:
        for start in range(0, len(content), _PIECE):  # the whole text would take twice the memory, and time to fill it
            decoder.decode(view[start : start + _PIECE])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        content.decode("utf-8")  # its error names the place in the file


@contextmanager
def _no_panic() -> Iterator[None]:
    """Turns a panic of the library, which is no Exception, into a BundleError."""
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        got = f"a tokenizer that fails ({one_line(error)})"
        raise BundleError(FILE, "", got, "one that encodes and decodes", "export again with the model's own") from None


@contextmanager
def _signals_held() -> Iterator[None]:
    """Lets signals wait until the end. A handler that raises right after native code would skip a cleanup there."""
    held: list[int] = []
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # handlers run only there
        numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name)]
        handlers = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    try:
        for number in handlers:
            signal.signal(number, lambda number, _: held.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in held:
            signal.raise_signal(number)


@contextmanager
def _silenced() -> Iterator[None]:
    """Drops what native code writes to stderr. What Python writes to sys.stderr still gets there."""
    # another thread would keep the silenced one for the real one, and a signal could leave it silenced
    with _STDERR_LOCK, _signals_held():
        try:
            kept = os.dup(2)
        except OSError:  # there is no stderr
            yield
            return
        python, real = sys.stderr, None
        try:
            python.flush()
            if _is_stderr(python):  # not a test's, nor a notebook's
                real = sys.stderr = _real_stderr(python.encoding, python.errors)
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            if real is not None and sys.stderr is real:
                sys.stderr = python


@functools.cache
def _real_stderr(encoding: str, errors: str) -> io.TextIOWrapper:
    """A stream of its own to where stderr leads. It stays open, for another thread may just be printing to it."""
    return io.TextIOWrapper(io.FileIO(os.dup(2), "w", closefd=False), encoding, errors, write_through=True)


def _is_stderr(stream: Any) -> bool:
    try:
        return bool(stream.fileno() == 2)
    except (AttributeError, OSError, ValueError):
        return False


class TextStream:
    """Incremental decoder. Its pieces joined are the text of all tokens, and no piece ends inside a character.

    Each token is decoded together with the piece before it, because decoders look back: a token has its leading space
    only if another token precedes it.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int], skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids = self._tail(context)
        self._given = len(self._decode())
        self._fresh = len(self._ids)  # index of the first token whose text was not yet returned completely

    def add(self, token: int) -> str:
        """Adds a token. Returns the text that is now certain; empty while a character is incomplete."""
        self._ids.append(token)
        text = self._decode()
        if not text.endswith(_REPLACEMENT):
            return self._give_out(text)
        if len(self._ids) - self._fresh <= _UTF8_LENGTH:
            return ""
        # more tokens than one character has bytes: only the last 3 replacement characters may still change
        end = len(text)
        while end > self._given and text[end - 1] == _REPLACEMENT and len(text) - end < _UTF8_LENGTH - 1:
            end -= 1
        piece = text[self._given : end]
        self._given = max(self._given, end)
        return piece

    def flush(self) -> str:
        """Returns the rest of the text: the replacement character if the text stops inside a character."""
        return self._give_out(self._decode())

    def _give_out(self, text: str) -> str:
        piece = text[self._given :]
        if piece:
            del self._ids[: self._fresh]
            self._fresh = len(self._ids)
            alone = self._fresh == 1  # the usual case
            self._given = self._tokenizer.length_alone(self._ids[0], self._skip) if alone else len(self._decode())
        return piece

    def _decode(self) -> str:
        return self._tokenizer.decode(self._ids, self._skip)

    def _tail(self, context: Sequence[int]) -> list[int]:
        """The fewest last tokens of the context whose text starts at a character boundary."""
        for length in range(1, min(_CONTEXT, len(context)) + 1):
            tail = [int(token) for token in context[len(context) - length :]]
            text = self._tokenizer.decode(tail, self._skip)
            if text and not text.startswith(_REPLACEMENT):
                return tail
        return []
