"""Renders a chat template. `chat_template.py` runs this file as a process, which answers each line of JSON with one.

Templates come from untrusted sources. They run in Jinja's immutable sandbox and without a loader, so they can reach
neither files nor attributes of Python objects. The operating system bounds the processor time of a rendering, and the
memory beyond what the process and the conversation take. A rendering that needs more ends with the process. What it
writes is bounded by the length of the conversation.

Arguments of the command: seconds of processor time, bytes of memory, and the folders of jinja2 and markupsafe. The
process writes an empty object once it is ready. This file imports nothing of sol_rt, and the interpreter reads no
site-packages, so the process starts in about 0.1 s.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import Any

if __name__ == "__main__":
    sys.path += sys.argv[3:]

import jinja2
import jinja2.compiler
import jinja2.exceptions
import jinja2.ext
import jinja2.filters
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

_OUTPUT = 1 << 18  # characters that a rendering may write, beyond _REPEATED times those of the conversation
_REPEATED = 4
_LARGEST_LOOP = 1 << 20  # numbers that all calls of range() in one rendering may yield
_LARGEST_TEXT = 1 << 20  # characters of one repeated, padded or joined text, unless the conversation is longer


class _Code(jinja2.compiler.CodeGenerator):
    """Compiles the operator `~` to a call of the sandbox, which bounds what it makes."""

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: jinja2.compiler.Frame) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox with the helpers that transformers gives to templates.

    Its own limits on loops and repetition give a clear message where the process's limits would only end it. They are
    the only limits on memory where the system has none.
    """

    intercepted_binops = frozenset(["+", "*", "**", "%"])
    code_generator_class = _Code

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
        self.begin({})
        self.filters["tojson"] = _tojson
        self.filters["join"] = _join
        self.filters["replace"] = _replace
        self.globals.pop("lipsum", None)
        self.globals["range"] = self._range
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def begin(self, values: dict[str, Any]) -> None:
        """Prepares for a rendering, whose limits depend on the length of its values."""
        self.loop_items = 0
        self.largest_output = _OUTPUT + _REPEATED * _length(values)
        self.largest_text = max(_LARGEST_TEXT, self.largest_output)

    def check_text(self, characters: int) -> None:
        """Raises TemplateError for a text or list that is longer than any that the rendering needs."""
        if characters > self.largest_text:
            raise jinja2.TemplateError(f"it makes a text or list of more than {self.largest_text} items")

    def joined(self, parts: Iterable[Any], between: str = "") -> str:
        """The parts as one text, as the operator `~` and the filter `join` make it."""
        texts, length = [], 0
        for part in parts:
            texts.append(str(part))
            length += len(texts[-1]) + len(between)
            self.check_text(length)
        return between.join(texts)

    def call(self, context: jinja2.runtime.Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        text = getattr(function, "__self__", None)
        if isinstance(text, str) and args:
            match function.__name__:
                case "join":
                    return self.joined(args[0], text)
                case "replace" if len(args) > 1:
                    self.check_text(_replaced_length(text, *args[:2]))
                case "translate" if isinstance(args[0], dict):
                    self.check_text(len(text) * max((len(str(item)) for item in args[0].values()), default=1))
                case "center" | "ljust" | "rjust" | "zfill" if isinstance(args[0], int):
                    self.check_text(args[0])
                case "expandtabs" if isinstance(args[0], int):
                    self.check_text(len(text) + text.count("\t") * args[0])
        return super().call(context, function, *args, **kwargs)

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
        if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            self.check_text(len(left) + len(right))
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


@jinja2.pass_environment
def _join(environment: Sandbox, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = map(jinja2.filters.make_attrgetter(environment, attribute), value)
    return environment.joined(value, str(d))


@jinja2.pass_environment
def _replace(environment: Sandbox, s: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = str(s), str(old), str(new)
    environment.check_text(_replaced_length(text, old, new))
    return text.replace(old, new, -1 if count is None else count)


def _replaced_length(text: str, old: Any, new: Any) -> int:
    """Characters that are left of a text if all occurrences are replaced."""
    if not isinstance(old, str) or not isinstance(new, str):
        return 0
    return len(text) + text.count(old) * (len(new) - len(old))


def _length(value: Any) -> int:
    """Characters of all texts in a value, keys included."""
    length, left = 0, [value]
    while left:
        value = left.pop()
        if isinstance(value, str):
            length += len(value)
        elif isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value
    return length


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def _rendered(environment: Sandbox, template: jinja2.Template, values: dict[str, Any]) -> str:
    environment.begin(values)
    pieces, length = [], 0
    for piece in template.generate(values):
        length += len(piece)
        if length > environment.largest_output:
            limit = f"{environment.largest_output} characters, {_REPEATED} times the conversation's and {_OUTPUT}"
            raise jinja2.TemplateError(f"it writes more than {limit}")
        pieces.append(piece)
    return "".join(pieces)


@contextlib.contextmanager
def _limited(seconds: float, memory_bytes: int) -> Iterator[None]:
    """Bounds processor time and memory of what runs inside, each where the system can. The caller bounds real time."""
    has_timer = hasattr(signal, "setitimer")
    if has_timer:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends the process
    try:
        with _limited_memory(memory_bytes):
            yield
    finally:
        if has_timer:
            signal.setitimer(signal.ITIMER_PROF, 0)


@contextlib.contextmanager
def _limited_memory(memory_bytes: int) -> Iterator[None]:
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    except (ImportError, OSError):
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _failed(error: Exception) -> dict[str, Any]:
    message = " ".join(str(error)[:4000].split())[:200] or type(error).__name__
    return {"error": message, "line": error.lineno if isinstance(error, jinja2.TemplateSyntaxError) else None}


def main() -> None:
    """Answers every line of stdin: the first holds the template's source, each later one the values of a rendering."""
    seconds, memory_bytes = float(sys.argv[1]), int(sys.argv[2])
    if hasattr(signal, "setitimer"):  # the caller may have ignored or blocked the signal, which is inherited
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    environment = Sandbox()
    template: jinja2.Template | None = None
    print("{}", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            with _limited(seconds, memory_bytes):
                try:
                    if template is None:
                        template = environment.from_string(request["source"])
                        text = ""
                    else:
                        text = _rendered(environment, template, request["values"])
                    answer = {"text": text}
                except MemoryError:
                    raise
                except Exception as error:  # an untrusted template may cause any exception; the user gets one line
                    answer = _failed(error)  # within the limits, for the text may take as much as a rendering
        except MemoryError:
            answer = {"error": f"it needs more than {memory_bytes >> 20} MB", "line": None}
        except RecursionError:
            answer = {"error": "it raises an error whose text nests too deeply", "line": None}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
