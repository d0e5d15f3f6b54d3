"""JSON schemas for answers, from one word to nested objects."""

from __future__ import annotations

from typing import Any


def _object(required: str = "", **properties: Any) -> dict[str, Any]:
    """An object with these properties alone; all are required, or those named."""
    names = required.split() or list(properties)
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


_WORD = {"type": "string", "pattern": "^[a-z]{1,8}$"}
_POINT = _object(
    x={"type": "number", "minimum": -9, "maximum": 9}, y={"type": "integer", "minimum": -99, "maximum": 99}
)

SCHEMAS: dict[str, dict[str, Any]] = {
    "null": {"type": "null"},
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer"},
    "integer in a range": {"type": "integer", "minimum": -3, "maximum": 120},
    "integer beyond bounds": {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 1000},
    "number": {"type": "number"},
    "number in a range": {"type": "number", "minimum": 0.25, "maximum": 99.5},
    "multiple": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 500},
    "string": {"type": "string", "maxLength": 40},
    "string of a length": {"type": "string", "minLength": 3, "maxLength": 6},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
    "part of a string": {"type": "string", "pattern": "[0-9]", "maxLength": 12},
    "long address": {"type": "string", "format": "ipv6"},
    "duration": {"type": "string", "format": "duration"},
    "uuid": {"type": "string", "format": "uuid"},
    "address": {"type": "string", "format": "ipv4"},
    "enum": {"enum": ["red", "green", "blue"]},
    "enum of kinds": {"enum": [1, "one", None, True, [1], {"a": 1}]},
    "unicode": {"enum": ["深海", "naïve", "🐟", 'quote"', "tab\t"]},
    "const": {"const": {"a": [1, 2, {"b": None}]}},
    "several types": {"type": ["integer", "null", "boolean"]},
    "array": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 5},
    "array of a length": {"type": "array", "items": _WORD, "minItems": 2, "maxItems": 3},
    "tuple": {
        "type": "array",
        "prefixItems": [_WORD, {"type": "boolean"}, {"type": "null"}],
        "items": False,
        "minItems": 3,
    },
    "arrays in arrays": {
        "type": "array",
        "maxItems": 2,
        "items": {"type": "array", "maxItems": 2, "items": {"type": "boolean"}},
    },
    "object": _object(name=_WORD, age={"type": "integer", "minimum": 0, "maximum": 150}),
    "optional": _object("b", a={"type": "boolean"}, b=_WORD, c={"type": "null"}),
    "empty object": _object(),
    "any values": {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 3},
    "odd names": _object(**{"a b": _WORD, 'c"d': {"type": "boolean"}, "é": {"type": "null"}, "": {"const": 0}}),
    "nested": _object(person=_object(name=_WORD, at=_POINT), tags={"type": "array", "items": _WORD, "maxItems": 2}),
    "deep": _object(a=_object(b=_object(c=_object(d=_object(e={"type": "boolean"}))))),
    "array of objects": {"type": "array", "items": _POINT, "minItems": 1, "maxItems": 3},
    "anyOf": {"anyOf": [_WORD, {"type": "integer", "minimum": 0, "maximum": 9}, _object(z={"type": "null"})]},
    "oneOf by type": {"oneOf": [{"type": "boolean"}, {"type": "integer", "maximum": 5, "minimum": 1}]},
    "oneOf by name": {
        "oneOf": [
            _object(kind={"const": "circle"}, radius={"type": "integer", "minimum": 1, "maximum": 9}),
            _object(kind={"const": "square"}, side={"type": "integer", "minimum": 1, "maximum": 9}),
        ]
    },
    "allOf": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 30}]},
    "reference": {
        "$defs": {"point": _POINT},
        "type": "object",
        "properties": {"from": {"$ref": "#/$defs/point"}, "to": {"$ref": "#/$defs/point"}},
        "required": ["from", "to"],
        "additionalProperties": False,
    },
    "recursion": {
        "$defs": {
            "list": {
                "anyOf": [{"type": "null"}, _object(head={"type": "boolean"}, tail={"$ref": "#/$defs/list"})],
            }
        },
        "$ref": "#/$defs/list",
    },
    "call of a tool": _object(
        name={"enum": ["weather", "clock"]},
        arguments=_object(
            "city",
            city={"type": "string", "maxLength": 10},
            days={"type": "integer", "minimum": 1, "maximum": 14},
            unit={"enum": ["C", "F"]},
        ),
    ),
}
"""Forty schemas by name. Most have few answers without end, so that a random model ends within some hundred tokens."""
