"""`Grammar`: what a generated text has to be. Needs the package llguidance, of the extra `grammar`."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sol_rt.errors import SolError, UsageError, brief, cut
from sol_rt.generate.native.token_mask import FILLED, STOP, TokenMask

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    import llguidance

    from sol_rt.text.tokenizer import Tokenizer

JSON_SPACES: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Spaces as `json.dumps` writes them: with free ones a small model may write nothing else. A schema's `x-guidance`
changes that."""
_STACK_BYTES = 256 << 20  # the library recurses over references: a schema of 50 KB can overflow a usual stack
_MOST_CHARACTERS = 1 << 19  # of a grammar: that stack holds what they can nest


class GrammarError(UsageError):
    """A grammar that cannot be held.

    Attributes:
        reason: the message without the word grammar.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"grammar: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class Grammar:
    """A grammar. A text under it is complete, unless the number of tokens or a stop string cuts it off.

    Attributes:
        kind: `json_schema`, `regex` or `lark`.
        text: the schema as JSON, the regular expression, or the grammar.

    Raises GrammarError for another kind, and for what is no text.
    """

    kind: str
    text: str

    def __post_init__(self) -> None:
        if self.kind not in ("json_schema", "regex", "lark") or not isinstance(self.text, str):
            raise GrammarError(f"got {brief(self)}, expected Grammar.json_schema, .regex or .lark of a text")

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> Grammar:
        """JSON that is valid under a schema, given as a mapping or as JSON. Raises GrammarError if it is neither."""
        try:
            found = json.loads(schema) if isinstance(schema, str) else schema
            if isinstance(found, Mapping):
                return cls("json_schema", json.dumps(found))
            wrong = f"got {brief(schema)}, expected an object"
        except RecursionError:
            wrong = "nested too deeply"
        except (TypeError, ValueError) as error:
            wrong = f"got no JSON ({error}), expected an object"
        raise GrammarError(f"JSON schema: {wrong}")

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """A text that a regular expression matches from its beginning to its end, in the syntax of Rust's `regex`."""
        return cls("regex", pattern)

    @classmethod
    def lark(cls, grammar: str) -> Grammar:
        """A text of a grammar in llguidance's variant of Lark, whose rule `start` is the whole text."""
        return cls("lark", grammar)


class Matchers:
    """Makes the masks of a model's generations. Any thread may use it.

    Args:
        tokenizer: the model's.
        vocab_size: of the model.
        end_ids: tokens that end a text: a complete one allows them.

    Raises GrammarError if llguidance is not installed, or cannot read the tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: Collection[int]) -> None:
        try:
            import llguidance
        except ImportError:
            raise GrammarError(
                "needs the package llguidance; run pip install 'sol-rt[grammar]', or leave it out"
            ) from None
        self._matcher, self._compiler = llguidance.LLMatcher, _compiler()
        try:
            self._tokenizer = llguidance.LLTokenizer(tokenizer.to_json(), vocab_size, sorted(end_ids) or None)
        except Exception as error:  # the library raises plain Exception
            raise GrammarError(f"llguidance cannot read this model's tokenizer: {cut(error)}") from None

    def mask(self, grammar: Grammar) -> TokenMask:
        """A mask that keeps one generation in the grammar. Raises GrammarError with the reason for a bad one."""
        if (size := len(grammar.text)) > _MOST_CHARACTERS:
            expected = f"expected at most {_MOST_CHARACTERS}"
            raise GrammarError(f"{grammar.kind}: got {size} characters, {expected}; make it shorter")
        return self._compiler.submit(self._mask, grammar).result()

    def _mask(self, grammar: Grammar) -> TokenMask:
        try:
            matcher = self._matcher(self._tokenizer, self._compiled(grammar), log_level=0)
            problem = _reason(matcher)
        except ValueError as error:  # a text that is no Unicode, numbers that no JSON has
            problem = cut(error)
        if problem:
            raise GrammarError(f"{grammar.kind}: {problem}; change it")
        return TokenMask(_Fill(matcher))

    def _compiled(self, grammar: Grammar) -> str:
        if grammar.kind == "json_schema":
            return self._matcher.grammar_from_json_schema(grammar.text, defaults=JSON_SPACES)
        if grammar.kind == "regex":
            return self._matcher.grammar_from_regex(grammar.text)
        return self._matcher.grammar_from_lark(grammar.text)


class _Fill:
    """Fills the masks of one generation."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    def __call__(self, tokens: Sequence[int], mask: int, size: int) -> int:
        matcher = self._matcher
        matcher.consume_tokens(list(tokens))
        if tokens and matcher.is_stopped() and not matcher.is_error():
            return STOP
        matcher.unsafe_compute_mask_ptr(mask, size)
        if matcher.is_error():
            raise SolError(
                f"grammar: {_reason(matcher)}; simplify it, or allow characters that the model has tokens for"
            )
        return FILLED


def _reason(matcher: llguidance.LLMatcher) -> str:
    """Describes in one line why the matcher failed; empty if it did not."""
    return cut(" ".join(matcher.get_error().partition("<state>")[0].partition("<backtrace>")[0].split()))


def _compiler() -> ThreadPoolExecutor:
    """A thread whose stack is large enough for any schema that the library takes."""
    from concurrent.futures import ThreadPoolExecutor  # takes a while, and a generation without a grammar needs none

    before = threading.stack_size(_STACK_BYTES)
    try:
        pool = ThreadPoolExecutor(1, "sol-rt grammars")
        pool.submit(int).result()  # starts it
        return pool
    finally:
        threading.stack_size(before)
