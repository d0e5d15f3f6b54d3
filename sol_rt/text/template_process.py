"""Renders a chat template. `chat_template.py` runs this file as a process, which answers each line of JSON with one.

Templates come from untrusted sources. They run in Jinja's immutable sandbox and without a loader, so they can reach
neither files nor attributes of Python objects. The operating system bounds the processor time of a rendering, and the
memory beyond what the process and the conversation take. A rendering that needs more ends with the process.

Arguments of the command: seconds of processor time, bytes of memory, and the folders of jinja2 and markupsafe. This
file imports nothing of sol_rt, and the interpreter reads no site-packages, so the process starts in about 0.1 s.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import signal
import sys
from collections.abc import Iterator
from typing import Any

if __name__ == "__main__":
    sys.path += sys.argv[3:]

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

_LARGEST_OUTPUT = 1 << 24  # characters
_LARGEST_LOOP = 1 << 20  # numbers that all calls of range() in one rendering may yield
_LARGEST_TEXT = 1 << 20  # characters of one repeated or padded text


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox with the helpers that transformers gives to templates.

    Its own limits on loops and repetition give a clear message where the process's limits would only end it.
    """

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


def _rendered(environment: Sandbox, template: jinja2.Template, values: dict[str, Any]) -> str:
    environment.loop_items = 0
    pieces, length = [], 0
    for piece in template.generate(values):
        length += len(piece)
        if length > _LARGEST_OUTPUT:
            raise jinja2.TemplateError(f"it writes more than {_LARGEST_OUTPUT} characters")
        pieces.append(piece)
    return "".join(pieces)


@contextlib.contextmanager
def _limited(seconds: float, memory_bytes: int) -> Iterator[None]:
    """Bounds processor time and memory of what runs inside. Systems without such limits are bounded by the caller."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    except (ImportError, OSError):
        yield
        return
    signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends the process
    resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        signal.setitimer(signal.ITIMER_PROF, 0)


def _failed(error: Exception) -> dict[str, Any]:
    message = " ".join(str(error)[:4000].split())[:200] or type(error).__name__
    return {"error": message, "line": error.lineno if isinstance(error, jinja2.TemplateSyntaxError) else None}


def main() -> None:
    """Answers every line of stdin: the first holds the template's source, each later one the values of a rendering."""
    seconds, memory_bytes = float(sys.argv[1]), int(sys.argv[2])
    environment = Sandbox()
    template: jinja2.Template | None = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            with _limited(seconds, memory_bytes):
                if template is None:
                    template = environment.from_string(request["source"])
                    text = ""
                else:
                    text = _rendered(environment, template, request["values"])
            answer = {"text": text}
        except MemoryError:
            answer = {"error": f"it needs more than {memory_bytes >> 20} MB", "line": None}
        except Exception as error:  # an untrusted template may cause any exception; the user gets one line
            answer = _failed(error)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
