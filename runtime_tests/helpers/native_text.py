"""The text part of the native core, asked through `text_driver`, and its comparison with `tokenizers`.

    python -m runtime_tests.helpers.native_text TOKENIZER.JSON... [--count 1000000] [--seed 0]

compares tokens and texts of random strings for each tokenizer, and says how many of them agree.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from sol_rt.errors import SolError
from sol_rt.text.tokenizer import Tokenizer

from .core_build import core_build

_BATCH = 500
_SPACES = " \t\n\r\x0b\x0c\x85\xa0\u1680\u180e\u2003\u200b\u2028\u202f\u205f\u3000\ufeff"
_TEXT = (
    "the Quick don't I'LL WE'RE it'ſ 'S 's x's 12345 3.14 ½ ² Ⅷ ٣٤ १२ foo_bar HTTPServer café naïve ﬁn Straße İstanbul "
    "ΑΒΓ привет мир 深海 東京タワー ひらがな 한국어 ไทย हिन्दी العربية עברית 👩\u200d👩\u200d👧 🇩🇪 🐟 "
    "e\u0301 a\u0323\u0302 ꙮ ᄒ ᅡ ᆫ ▁ ▁a <0x41> </s> "
    "<|im_start|> {{x}} -> ... !? \\n // ## ~~ ``` $1 #! \u200d \ufffd \U000f0000"
)
WORDS = tuple(_TEXT.split())


def driver(sanitize: str = "") -> Path:
    """The program, built. Skips the test where it cannot be built."""
    return core_build("text_driver", sanitize=sanitize, operators=not sanitize) / "text_driver"


class NativeError(Exception):
    """An error of the core: its code and its one line."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class NativeText:
    """A tokenizer that the core reads.

    Raises NativeError if the core refuses it, RuntimeError if the program dies.
    """

    def __init__(self, program: Path, file: Path, end_ids: Sequence[int] = ()) -> None:
        self._process = subprocess.Popen(
            [str(program), str(file), *map(str, end_ids)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        self.answer()

    def __enter__(self) -> NativeText:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the program. Raises RuntimeError if it found a fault, such as a leak."""
        _, report = self._process.communicate()
        if self._process.returncode not in (0, 1):
            raise RuntimeError(f"text_driver: exit {self._process.returncode}\n{report[-4000:]}")

    def ask(self, op: str, **question: Any) -> Any:
        """The answer of the core."""
        self.pose(op, **question)
        return self.answer()

    def pose(self, op: str, **question: Any) -> None:
        """Lets the core begin. `answer` is to be called before the next question."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"op": op, **question}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            _, report = self._process.communicate()
            raise RuntimeError(f"text_driver: exit {self._process.returncode}\n{report[-4000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise NativeError(answer["error"], answer["message"])
        return answer["ok"]


def random_text(draw: random.Random, added: Sequence[str]) -> str:
    """Up to 40 characters of all kinds, or up to 12 words and pieces. `added` are the tokenizer's added tokens."""
    kind = draw.randrange(8)
    length = draw.randrange(40)
    if kind == 0:  # any character
        return "".join(_character(draw) for _ in range(length))
    if kind == 1:  # any character of the planes in use, with marks
        return "".join(
            chr(draw.choice((draw.randrange(0x20, 0x3100), 0x300 + draw.randrange(0x70)))) for _ in range(length)
        )
    if kind == 2:
        return "".join(chr(draw.randrange(0x7F)) for _ in range(length))
    if kind == 3:  # runs
        return "".join(
            draw.choice((_character(draw), draw.choice(_SPACES), "a", "1", "-", "'")) * draw.randrange(9)
            for _ in range(6)
        )
    pieces = []
    for _ in range(draw.randrange(12)):
        choice = draw.randrange(10)
        if choice < 5:
            pieces.append(draw.choice(WORDS))
        elif choice < 7:
            pieces.append(draw.choice(_SPACES) * draw.choice((1, 1, 1, 2, 3, 7)))
        elif choice == 7 and added:
            token = draw.choice(added)
            pieces.append(token if draw.randrange(3) else token[: draw.randrange(len(token) + 1)])
        elif choice == 8:
            pieces.append("".join(_character(draw) for _ in range(3)))
        else:
            pieces.append("".join(chr(draw.randrange(0x20, 0x7F)) for _ in range(4)))
        if draw.randrange(2):
            pieces.append(" ")
    return "".join(pieces)


def _character(draw: random.Random) -> str:
    while True:
        code = draw.randrange(draw.choice((0x250, 0x3000, 0xFFFF, 0x20000, 0x110000)))
        if not 0xD800 <= code < 0xE000:
            return chr(code)


def differences(
    native: NativeText, reference: tokenizers.Tokenizer, count: int, seed: int = 0, skip: Sequence[bool] = (True, False)
) -> Iterator[str]:
    """Yields a line for each random text whose tokens, or whose tokens' text, differ between the two.

    The core may refuse a text whose special tokens are to stay text, and that has one in the reference's tokens.
    """
    draw = random.Random(seed)
    decoder = reference.get_added_tokens_decoder()
    added = [token.content for token in decoder.values()]
    special = {number for number, token in decoder.items() if token.special}
    last = max(reference.get_vocab().values(), default=0)
    for begin in range(0, count, _BATCH):
        texts = [random_text(draw, added) for _ in range(min(_BATCH, count - begin))]
        add, parse = draw.random() < 0.5, draw.random() < 0.5
        reference.encode_special_tokens = not parse
        expected = [encoding.ids for encoding in reference.encode_batch(texts, add_special_tokens=add)]
        for text, want, have in zip(texts, expected, _encoded(native, texts, add, parse), strict=True):
            if (
                have is None
                and not parse
                and not special.isdisjoint(reference.encode_batch([text], add_special_tokens=False)[0].ids)
            ):
                continue
            if want != have:
                yield f"add {add}, parse {parse}, {text!a}: got {have}, expected {want}"
        tokens = expected + [[draw.randrange(last + 1) for _ in range(draw.randrange(12))] for _ in range(_BATCH // 5)]
        for skips in skip:
            decoded = reference.decode_batch(tokens, skip_special_tokens=skips)
            for ids, want, have in zip(tokens, decoded, native.ask("decode", tokens=tokens, skip=skips), strict=True):
                if want != have:
                    yield f"skip {skips}, tokens {ids}: got {have!a}, expected {want!a}"


def _encoded(native: NativeText, texts: Sequence[str], add: bool, parse: bool) -> list[list[int] | None]:
    """The core's tokens of each text; None for one that it refuses."""
    try:
        return list(native.ask("encode", texts=texts, add=add, parse=parse))
    except NativeError:
        return [None] if len(texts) == 1 else [_encoded(native, [text], add, parse)[0] for text in texts]


def main() -> int:
    """Compares the tokenizers that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--count", type=int, default=1_000_000, help="random strings for each tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    program = driver()
    failed = 0
    for file in arguments.files:
        began = time.monotonic()
        try:
            reference = Tokenizer.from_file(file)._inner
            with NativeText(program, file) as native:
                found = list(differences(native, reference, arguments.count, arguments.seed))
        except (SolError, NativeError) as error:
            print(error, flush=True)
            failed += 1
            continue
        print(
            f"{file}: {arguments.count} strings, {len(found)} differences, {time.monotonic() - began:.0f} s", flush=True
        )
        for line in found[:10]:
            print("  " + line)
        failed += bool(found)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
