"""Makes inputs out of others, each from a number: bytes, texts, JSON, lines of JSON, safetensors, ONNX graphs."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

from helpers.poison import LONG, POISONS, places

INTERESTING = (0, 1, -1, 2, 7, 16, 127, 128, 255, 256, 1 << 15, (1 << 15) - 1, 1 << 16, (1 << 31) - 1, 1 << 31,
               (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
TOKENS = (
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xf0\x9f", b"\xed\xa0\x80", b"GGUF", b"PK\x03\x04", b"\x80\x02", b"null",
    b"true", b"NaN", b"Infinity", b"-Infinity", b"1e999", b"1e-320", b"-0", b"9" * 60, b"9" * 5000, b"[" * 3000,
    b'{"a":' * 3000, b'"', b"\\ud800", b"\\u0000", b"\x1b[31m", "\u2028".encode(), "\x85".encode(), b"../../etc/passwd",
    b"/dev/zero", b"\n", b"\r\n", b"%s%n", b"A" * 5000,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    *POISONS, 1, 2, 7, 64, 255, 10**18, -(2**63), 2**64, 10**400, float("inf"), float("nan"), 0.5, -0.0, 1e-320, -1.5,
    1e19, False, "\x1b[2J", "\r", "w1",
    "\ud800", "../x", ".", "k100-s100-q8", "s100-q4", [0], [1, 2, 3], [[]], [None], {"": 0}, "9" * 400, [1] * 3000,
)  # fmt: skip
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_LARGEST = 1 << 20  # bytes of an input
Rng = random.Random


def mutated(kind: str, rng: Rng, seeds: Sequence[bytes], words: Sequence[bytes] = ()) -> bytes:
    """An input of a kind, made out of one of the seeds by one to four changes."""
    data = rng.choice(list(seeds))
    if rng.random() < 0.02:
        return data
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        make = _KINDS[kind] if rng.random() < 0.85 else _bytes
        with contextlib.suppress(RecursionError, ValueError):  # nests too deep, or has more digits than Python writes
            data = make(rng, data, seeds, words)[:_LARGEST]
    return data


def _bytes(rng: Rng, data: bytes, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Changes bytes. Four of five places lie in the first 4 KB, where formats keep their headers."""
    if not data:
        return rng.choice(TOKENS)
    near = rng.random() < 0.8
    at = rng.randrange(min(len(data), 4096) if near else len(data))
    size = rng.choice((1, 1, 2, 4, 8, 16, 64, 256, 1024))
    piece, rest = data[at : at + size], data[at + size :]
    match rng.randrange(10):
        case 0:
            return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        case 1:
            return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        case 2 | 3:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice(INTERESTING) & ((1 << 8 * width) - 1)
            at -= at % width if rng.random() < 0.5 else 0
            return data[:at] + number.to_bytes(width, rng.choice(("little", "big"))) + data[at + width :]
        case 4:
            return data[:at] + rest
        case 5:
            return data[:at] + piece * rng.choice((2, 3, 50)) + rest
        case 6:
            return data[: at if rng.random() < 0.5 else rng.randrange(len(data))]
        case 7:
            word = rng.choice([*TOKENS, *words])
            return data[:at] + word + (rest if rng.random() < 0.5 else data[at + len(word) :])
        case 8:
            other = rng.choice(list(seeds))
            return data[:at] + other[rng.randrange(len(other) + 1) :]
        case _:
            width = rng.choice((1, 2, 4, 8))
            number = int.from_bytes(data[at : at + width], "little") + rng.choice((-1, 1, 2, -8, 16, 256))
            return data[:at] + (number & ((1 << 8 * width) - 1)).to_bytes(width, "little") + data[at + width :]


def _text(rng: Rng, data: bytes, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Changes words, numbers and lines."""
    match rng.randrange(6):
        case 0 if found := list(_NUMBER.finditer(data)):
            hit = rng.choice(found)
            number = rng.choice((b"9" * 60, b"-1", b"0", b"1e999", b"1e-320", b"1000000000", str(1 << 63).encode()))
            return data[: hit.start()] + number + data[hit.end() :]
        case 1 | 2 if words:
            at = rng.randrange(len(data) + 1)
            return data[:at] + rng.choice(list(words)) + data[at + rng.choice((0, 0, 1, 4, 16)) :]
        case 3:
            lines = data.split(b"\n")
            at = rng.randrange(len(lines))
            lines[at : at + 1] = lines[at : at + 1] * rng.choice((0, 2, 3))
            return b"\n".join(lines)
        case 4:
            lines = data.split(b"\n")
            rng.shuffle(lines)
            return b"\n".join(lines)
        case _:
            return _bytes(rng, data, seeds, words)


def _json(rng: Rng, data: bytes, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Changes a value of the document, or the text if it is none."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return _text(rng, data, seeds, words)
    if rng.random() < 0.05:
        return rng.choice(
            (b"", b"null", b"[]", b"{}", data + data, data[: len(data) // 2], b"[" * 100_000, b"9" * 6000)
        )
    return json.dumps(edited(rng, document, words)).encode()


def edited(rng: Rng, document: Any, words: Sequence[bytes] = ()) -> Any:
    """A JSON document with one change. Texts that are JSON themselves are changed inside half of the time."""
    found = list(places(document))
    if not found:
        return rng.choice(VALUES)
    path = rng.choice(found)
    document = copy.deepcopy(document)
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    key, value = path[-1], inner[path[-1]]
    match rng.randrange(9):
        case 0 | 1 | 2:
            inner[key] = copy.deepcopy(rng.choice(VALUES))
        case 3:
            del inner[key]
        case 4:
            other: Any = document
            for step in rng.choice(found):
                other = other[step]
            inner[key] = copy.deepcopy(other)
        case 5 if isinstance(inner, dict):
            inner[rng.choice([*map(str, inner), "a", LONG, *(word.decode("utf-8", "replace") for word in words)])] = (
                value
            )
        case 6 if isinstance(value, list) and len(value) < 1000:
            inner[key] = value * rng.choice((0, 2, 100))
        case 7:
            inner[key] = [value] if rng.random() < 0.5 else {"a": value}
        case _:
            inner[key] = _nudged(rng, value, words)
    return document


def _nudged(rng: Rng, value: Any, words: Sequence[bytes]) -> Any:
    """A value near the one given."""
    if isinstance(value, bool) or value is None:
        return rng.choice((True, False, None, 0, 1))
    if isinstance(value, int):
        return rng.choice(
            (value + 1, value - 1, -value, value * 2, value // 2, float(value % (1 << 50)), str(value)[:99])
        )
    if isinstance(value, float):
        return rng.choice((-value, value * 10, value / 10, 1 - value, 0.0, str(value)))
    if isinstance(value, str):
        try:
            inner = json.loads(value)
        except (ValueError, RecursionError):
            inner = None
        if isinstance(inner, (dict, list)) and rng.random() < 0.7:
            return json.dumps(edited(rng, inner, words))
        raw = value.encode("utf-8", "replace")
        return _text(rng, raw, [raw], words).decode("utf-8", "replace")
    return rng.choice(VALUES)


def _lines(rng: Rng, data: bytes, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Changes one line of a file of JSON lines."""
    lines = data.split(b"\n")
    if rng.random() < 0.15:
        return _text(rng, data, seeds, words)
    at = 0 if rng.random() < 0.4 else rng.randrange(len(lines))
    lines[at] = _json(rng, lines[at], [lines[at]], words)
    return b"\n".join(lines)


def _safetensors(rng: Rng, data: bytes, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Changes the JSON header and keeps its length right, or changes bytes anywhere."""
    if len(data) < 8 or rng.random() < 0.2:
        return _bytes(rng, data, seeds, words)
    (length,) = struct.unpack("<Q", data[:8])
    if length > len(data):
        return _bytes(rng, data, seeds, words)
    header = _json(rng, data[8 : 8 + length], [data[8 : 8 + length]], words)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def _onnx(rng: Rng, data: bytes, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Changes a node, an attribute, a weight, an input or an output of the graph, or bytes."""
    import onnx

    if rng.random() < 0.3:
        return _bytes(rng, data, seeds, words)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:  # protobuf's own error; it is no model any more
        return _bytes(rng, data, seeds, words)
    graphs = [model.graph, *model.functions]
    graph = model.graph if rng.random() < 0.7 else rng.choice(graphs)
    names = [name for node in graph.node for name in (*node.input, *node.output)] or ["x"]
    if not graph.node:
        return _bytes(rng, data, seeds, words)
    node = rng.choice(graph.node)
    match rng.randrange(11):
        case 0 | 1 | 2 if node.attribute:
            _change_attribute(rng, rng.choice(node.attribute))
        case 3 if node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice([*names, "", "missing", LONG])
        case 4 if node.input:
            del node.input[rng.randrange(len(node.input))]
        case 5:
            node.op_type = rng.choice([*(other.op_type for other in graph.node), "Identity", "Loop", "Expand", LONG])
        case 6 if model.graph.initializer:
            _change_weight(rng, rng.choice(model.graph.initializer))
        case 7:
            value = rng.choice([*model.graph.input, *model.graph.output])
            shape = value.type.tensor_type.shape
            if shape.dim and rng.random() < 0.7:
                rng.choice(shape.dim).dim_value = _int64(rng)
            else:
                value.type.tensor_type.elem_type = rng.randrange(24)
        case 8:
            _wrap(graph, node)
        case 9:
            del graph.node[rng.randrange(len(graph.node))]
        case _:
            part = rng.choice((*model.opset_import, model))
            if part is model:
                model.ir_version = _int64(rng)
            else:
                part.version = _int64(rng)
    return bytes(model.SerializeToString())


def _wrap(graph: Any, node: Any) -> None:
    """Puts a node into both branches of an If."""
    from onnx import TensorProto, ValueInfoProto, helper

    inner = type(node)()
    inner.CopyFrom(node)
    outputs = [ValueInfoProto(name=name) for name in node.output]
    branch = helper.make_graph([inner], "branch", [], outputs)
    name = f"condition_{len(graph.node)}"
    graph.node.insert(
        0, helper.make_node("Constant", [], [name], value=helper.make_tensor("", TensorProto.BOOL, [], [1]))
    )
    node.CopyFrom(helper.make_node("If", [name], list(inner.output), then_branch=branch, else_branch=branch))


def _int64(rng: Rng) -> int:
    number = rng.choice(INTERESTING)
    return number if -(1 << 63) <= number < 1 << 63 else 3


def _change_attribute(rng: Rng, attribute: Any) -> None:
    if attribute.ints:
        at = rng.randrange(len(attribute.ints))
        attribute.ints[at] = rng.choice((_int64(rng), attribute.ints[at] + 1, 0))
    elif attribute.s:
        attribute.s = rng.choice((b"", b"x", LONG.encode(), b"\xff"))
    elif attribute.f:
        attribute.f = rng.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
    else:
        attribute.i = rng.choice((_int64(rng), max(attribute.i - 1, -9), min(attribute.i + 1, 99), -attribute.i % 999))


def _change_weight(rng: Rng, weight: Any) -> None:
    match rng.randrange(5):
        case 0 if weight.dims:
            weight.dims[rng.randrange(len(weight.dims))] = _int64(rng)
        case 1:
            weight.data_type = rng.randrange(30)
        case 2 if weight.external_data:
            rng.choice(weight.external_data).value = rng.choice(("0", "-1", "4096", "9" * 30, "x", "/etc/passwd", LONG))
        case 3:
            weight.name = rng.choice(("", LONG, "x"))
        case _:
            weight.raw_data = weight.raw_data[:-1] if weight.raw_data else b"\0" * 8


_KINDS: dict[str, Callable[[Rng, bytes, Sequence[bytes], Sequence[bytes]], bytes]] = {
    "bytes": _bytes,
    "text": _text,
    "json": _json,
    "lines": _lines,
    "safetensors": _safetensors,
    "onnx": _onnx,
}
