"""Chat templates: a model's own Jinja template turns messages into a prompt.

Templates come from untrusted sources. They run in Jinja's immutable sandbox and without a loader, so they can reach
neither files nor attributes of Python objects. Their loops, repetitions and output are limited.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from sol_rt.errors import BundleError, SolError, UsageError

FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"
_LARGEST_OUTPUT = 1 << 24  # characters
_LARGEST_LOOP = 1 << 20  # numbers that all calls of range() in one rendering may yield
_LARGEST_TEXT = 1 << 20  # characters of one repeated or padded text


class ChatTemplate:
    """A compiled template and the special tokens that it may name."""

    def __init__(self, source: str, variables: Mapping[str, Any] | None = None) -> None:
        """Compiles a template.

        Args:
            source: the template's text.
            variables: values that every rendering sees, such as `bos_token`.

        Raises SolError if the template does not parse.
        """
        self._variables = dict(variables or {})
        self._environment = _Sandbox()
        try:
            self._template = self._environment.from_string(source)
        except Exception as error:  # an untrusted template may cause any exception; the user gets one line
            raise _failed(error) from None

    @classmethod
    def from_folder(cls, folder: Path, files: Collection[str]) -> ChatTemplate:
        """Reads a model's chat template.

        Args:
            folder: folder of the model.
            files: names of the folder's files that may be read.

        Raises UsageError if the model has no template, BundleError if its files are unreadable.
        """
        config = _tokenizer_config(folder / CONFIG_FILE) if CONFIG_FILE in files else {}
        if FILE in files:
            path = folder / FILE
            try:
                source = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise BundleError(path, "", f"an unreadable file ({error})", "UTF-8 text") from None
        else:
            source = _default(config.get("chat_template"))
        if not source:
            raise UsageError(f"{folder}: this model has no chat template; generate from a plain prompt instead")
        return cls(source, _special_tokens(config))

    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Renders a conversation as a prompt.

        Args:
            messages: dicts with `role` and `content`.
            add_generation_prompt: whether the prompt ends where the assistant's answer begins.
            variables: further variables of the template, such as `tools` or `enable_thinking`.

        Raises SolError, in one line, for any error in the template, including its own calls of `raise_exception`.
        """
        values = {"tools": None, "documents": None, **self._variables, **variables}
        self._environment.loop_items = 0
        pieces, length = [], 0
        try:
            rendering = self._template.generate(
                messages=[dict(message) for message in messages], add_generation_prompt=add_generation_prompt, **values
            )
            for piece in rendering:
                length += len(piece)
                if length > _LARGEST_OUTPUT:
                    raise jinja2.TemplateError(f"it writes more than {_LARGEST_OUTPUT} characters")
                pieces.append(piece)
        except Exception as error:  # an untrusted template may cause any exception; the user gets one line
            raise _failed(error) from None
        return "".join(pieces)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox with the helpers that transformers gives to templates, and limits on loops and repetition."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
        self.loop_items = 0
        self.filters["tojson"] = _tojson
        self.globals.pop("lipsum", None)
        self.globals["range"] = self._range
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        # Jinja's own sandbox would render a single forbidden access as empty text
        kind = type(obj).__name__
        raise jinja2.exceptions.SecurityError(f"it accesses the forbidden attribute {attribute!r} of a {kind}")

    def _range(self, *arguments: int) -> range:
        items = range(*arguments)
        self.loop_items += len(items)
        if self.loop_items > _LARGEST_LOOP:
            raise jinja2.TemplateError(f"it loops over more than {_LARGEST_LOOP} numbers")
        return items

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str) and any(len(part) > 4 for part in _digits(left)):
            raise jinja2.TemplateError("it pads text to more than 9999 characters")
        if operator == "*":
            for sequence, count in ((left, right), (right, left)):
                if hasattr(sequence, "__len__") and isinstance(count, int) and len(sequence) * count > _LARGEST_TEXT:
                    raise jinja2.TemplateError(f"it repeats something to more than {_LARGEST_TEXT} items")
        if operator == "**" and not (_is_small(left) and _is_small(right)):
            raise jinja2.TemplateError("it computes a power of numbers beyond 1000")
        return super().call_binop(context, operator, left, right)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words for training. Here the block is rendered as its content."""

    tags = {"generation"}  # noqa: RUF012 - declared so by Jinja

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _digits(text: str) -> list[str]:
    return "".join(c if c.isdigit() else " " for c in text).split()


def _is_small(number: Any) -> bool:
    return isinstance(number, (int, float)) and abs(number) <= 1000


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes characters for HTML; a prompt needs them unescaped
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def _failed(error: Exception) -> SolError:
    message = " ".join(str(error).split())[:200] or type(error).__name__
    line = f" line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
    return SolError(f"chat template{line}: {message}; correct {FILE} or generate from a plain prompt")


def _tokenizer_config(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(path, "", f"unreadable JSON ({error})", "a JSON object") from None
    if not isinstance(raw, dict):
        raise BundleError(path, "", type(raw).__name__, "a JSON object")
    return raw


def _default(templates: Any) -> str:
    """The template in `tokenizer_config.json`, which holds one text, or a list of named texts with one `default`."""
    if isinstance(templates, list):
        named = {item.get("name"): item.get("template") for item in templates if isinstance(item, dict)}
        templates = named.get("default")
    return templates if isinstance(templates, str) else ""


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens such as `bos_token`. Each is a text, or a dict with the text under `content`."""
    found = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found
