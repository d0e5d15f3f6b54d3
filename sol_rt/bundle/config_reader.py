"""Reads `sol_config.json` strictly: unknown, missing and impossible values are errors.

Every fault raises BundleError with the file, the key, what was found and what was expected. bundle.py checks the
bundle's other files.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import MIXED, THREE, LayerBits, Screen, bits_name, parse_bits_name
from sol_rt.bundle.config import (
    ALIGNMENT,
    BLOCK,
    CONFIG_NAME,
    DTYPE_BITS,
    FORMAT,
    FORMAT_VERSION,
    KV_DTYPES,
    LAYER_KINDS,
    LONGEST_FILTER,
    MATRIX_BITS,
    PAGE_SIZE,
    ActionEntry,
    FileEntry,
    KvLayout,
    ModelDims,
    PolicySpec,
    SolConfig,
    TensorEntry,
    Variant,
    tensor_bytes,
)
from sol_rt.bundle.policy_inputs import KNOWN_SCALARS
from sol_rt.errors import BundleError, UsageError
from sol_rt.read_file import read_bytes

_LARGEST = 1 << 48  # a larger count or number of bytes is damage
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def read_config(path: Path, content: bytes | None = None) -> SolConfig:
    """Reads and checks a file `sol_config.json`, or its `content`.

    Raises BundleError, in one line, if it is not a valid config.
    """
    try:
        raw = json.loads((read_bytes(path) if content is None else content).decode("utf-8"))
    except OSError as error:
        raise BundleError(path, "", error.strerror or "an unreadable file", "a bundle's config") from None
    except (ValueError, RecursionError) as error:
        raise BundleError(path, "", f"text that is not JSON ({_short(str(error))})", "UTF-8 JSON") from None
    return parse_config(raw, path)


def parse_config(raw: object, path: Path) -> SolConfig:
    """Checks the parsed JSON of a config. Errors name `path`. Raises BundleError."""
    return _read_config(_Table(path, "", raw))


def _short(text: object, limit: int = 80) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


class _Table:
    """A JSON object that is being checked.

    Every getter raises an error that names its key. `done` raises an error for keys that no getter has read. A config
    has thousands of values, so what an error says is put together only where there is one.
    """

    __slots__ = ("_asked", "_name", "_outer", "path", "raw")

    def __init__(self, path: Path, name: str, raw: object, outer: _Table | None = None) -> None:
        self.path, self._name, self._outer = path, name, outer
        if not isinstance(raw, dict):
            raise BundleError(path, self.where or "top level", _short(json.dumps(raw)), "a JSON object")
        self.raw: dict[str, object] = raw
        self._asked: set[str] = set()

    @property
    def where(self) -> str:
        """The key of this object; empty at the top level."""
        return self._name if self._outer is None else self._outer.key(self._name)

    def key(self, name: str) -> str:
        return f"{self.where}.{_short(name)}" if self.where else _short(name)

    def fail(self, name: str, got: object, expected: object, hint: str | None = None) -> BundleError:
        if hint is None:
            return BundleError(self.path, self.key(name), got, expected)
        return BundleError(self.path, self.key(name), got, expected, hint)

    def value(self, name: str) -> object:
        self._asked.add(name)
        if name not in self.raw:
            others = set(self.raw) - self._asked
            near = difflib.get_close_matches(name, others, 1)
            got = f"no such key but {near[0]!r}" if near else "no such key"
            raise self.fail(name, got, "a value")
        return self.raw[name]

    def typed(self, name: str, test: Callable[[object], bool], expected: str) -> Any:
        value = self.value(name)
        if not test(value):
            raise self.fail(name, _short(json.dumps(value)), expected)
        return value

    def text(self, name: str) -> str:
        return str(self.typed(name, lambda v: isinstance(v, str), "a string"))

    def choice(self, name: str, allowed: Collection[str]) -> str:
        value = self.value(name)
        if not isinstance(value, str) or value not in allowed:
            raise self.fail(name, _short(json.dumps(value)), " or ".join(sorted(allowed)))
        return value

    def integer(self, name: str, low: int = 1, high: int = _LARGEST) -> int:
        value = self.value(name)
        if not _is_int(value, low, high):
            raise self.fail(name, _short(json.dumps(value)), f"an integer from {low} to {high}")
        return value

    def integers(self, name: str, low: int = 1, high: int = _LARGEST) -> tuple[int, ...]:
        values = self.value(name)
        if isinstance(values, list):
            for item in values:
                if not _is_int(item, low, high):
                    break
            else:
                return tuple(values)
        raise self.fail(name, _short(json.dumps(values)), f"a list of integers from {low} to {high}")

    def texts(self, name: str) -> tuple[str, ...]:
        values = self.typed(
            name, lambda v: isinstance(v, list) and all(isinstance(item, str) for item in v), "a list of strings"
        )
        return tuple(values)

    def file_name(self, name: str) -> str:
        expected = "a plain file name inside the bundle"
        return str(self.typed(name, lambda v: isinstance(v, str) and is_file_name(v), expected))

    def table(self, name: str) -> _Table:
        return _Table(self.path, name, self.value(name), self)

    def tables(self) -> Iterator[tuple[str, _Table]]:
        """Yields every key and its value as a table, for objects whose keys are names."""
        for name in self.raw:
            yield name, self.table(name)

    def done(self) -> None:
        for name in self.raw:
            if name not in self._asked:
                near = difflib.get_close_matches(name, self._asked, 1)
                known = ", ".join(sorted(self._asked))
                expected = f"{near[0]!r}" if near else f"one of {known}"
                hint = "correct the key, or use a newer sol_rt if a newer one wrote the bundle"
                raise self.fail(_short(name), "an unknown key", expected, hint)


def _is_int(value: object, low: int, high: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_file_name(name: str) -> bool:
    """True if `name` is a plain file name: no folder, no leading dot, no character that a shell or browser changes."""
    return bool(_FILE_NAME.fullmatch(name)) and name != CONFIG_NAME and len(name) < 200


def _action(table: _Table, name: str, tag: object, variants: Mapping[str, Variant]) -> Action:
    try:
        action = Action.parse(tag if isinstance(tag, str) else json.dumps(tag))
    except UsageError:
        raise table.fail(name, _short(json.dumps(tag)), "an action tag such as k030-s050-q4") from None
    if action.variant not in variants:
        raise table.fail(name, f"{action.tag}, whose variant {action.variant} is not in the bundle", _listed(variants))
    return action


def _listed(variants: Mapping[str, Variant]) -> str:
    return "a variant of " + ", ".join(variants)


def _read_config(top: _Table) -> SolConfig:
    found = top.value("format")
    if found != FORMAT:
        raise top.fail(
            "format", _short(json.dumps(found)), f'"{FORMAT}"', "point at a folder that `sol-rt export` wrote"
        )
    version = top.integer("format_version", 0)
    if version != FORMAT_VERSION:
        hint = "export the bundle again with `sol-rt export -m MODEL`"
        raise top.fail("format_version", version, FORMAT_VERSION, hint)
    generator = top.text("generator")
    model = _read_model(top.table("model"))
    kv = _read_kv(top.table("kv"), model)
    variants = _read_variants(top.table("variants"), model)
    dense = _action(top, "dense", top.value("dense"), variants)
    if dense.kv_density != 1.0:
        raise top.fail("dense", dense.tag, "an action that reads all KV pages (k100)")
    actions = _read_actions(top, variants)
    if dense not in {entry.action for entry in actions}:
        raise top.fail("actions", "a list without the dense action", dense.tag)
    policy = None if top.value("policy") is None else _read_policy(top.table("policy"), variants)
    files = _read_files(top.table("files"))
    weights = top.table("weights")
    weights_file = weights.file_name("file")
    if weights_file not in files:
        raise weights.fail("file", weights_file, "a file listed under `files`")
    tensors = _read_tensors(weights.table("tensors"), files[weights_file].bytes)
    weights.done()
    for key, variant in variants.items():
        if variant.file not in files:
            raise top.fail(f"variants.{key}.file", variant.file, "a file listed under `files`")
    if policy is not None and policy.file not in files:
        raise top.fail("policy.file", policy.file, "a file listed under `files`")
    top.done()
    return SolConfig(generator, model, kv, dense, variants, actions, policy, weights_file, tensors, files)


def _read_model(table: _Table) -> ModelDims:
    vocab_size = table.integer("vocab_size", 1, 1 << 30)
    last_id = vocab_size - 1
    bos = None if table.value("bos_token_id") is None else table.integer("bos_token_id", 0, last_id)
    model = ModelDims(
        name=table.text("name"),
        architecture=table.text("architecture"),
        source=table.text("source"),
        license=table.text("license"),
        vocab_size=vocab_size,
        hidden_size=table.integer("hidden_size", 1, 1 << 20),
        num_layers=table.integer("num_layers", 1, 1024),
        num_heads=table.integer("num_heads", 1, 4096),
        num_kv_heads=table.integer("num_kv_heads", 1, 4096),
        head_dim=table.integer("head_dim", 1, 4096),
        intermediate_size=table.integer("intermediate_size", 1, 1 << 24),
        max_context=table.integer("max_context", 1, 1 << 27),
        bos_token_id=bos,
        eos_token_ids=table.integers("eos_token_ids", 0, last_id),
    )
    if model.num_heads % model.num_kv_heads:
        raise table.fail("num_kv_heads", model.num_kv_heads, f"a divisor of num_heads = {model.num_heads}")
    table.done()
    return model


def _read_kv(table: _Table, model: ModelDims) -> KvLayout:
    layers = table.texts("layers") if "layers" in table.raw else ()
    if not set(layers) <= set(LAYER_KINDS) or ("layers" in table.raw and len(layers) != model.num_layers):
        expected = f"{' or '.join(LAYER_KINDS)} for each of the {model.num_layers} layers"
        raise table.fail("layers", _short(json.dumps(layers)), expected)
    if layers and set(layers) != set(LAYER_KINDS):
        raise table.fail("layers", f"{layers[0]} alone", "layers of both kinds; without this key all layers attend")
    if layers and model.num_heads * model.head_dim != model.hidden_size:
        raise table.fail("layers", f"{model.num_heads} heads of {model.head_dim}", f"{model.hidden_size} channels")
    layout = KvLayout(
        dtype=table.choice("dtype", KV_DTYPES),
        page_size=table.integer("page_size", PAGE_SIZE, PAGE_SIZE),
        sinks=table.integer("sinks", 0, PAGE_SIZE),
        capacity_step=table.integer("capacity_step", PAGE_SIZE, 1 << 20),
        dense_layers=table.integers("dense_layers", 0, model.num_layers - 1),
        windows=table.integers("windows", 0, model.max_context) if "windows" in table.raw else (),
        layers=layers,
        conv_size=table.integer("conv_size", 2, LONGEST_FILTER) if layers else 0,
    )
    if list(layout.dense_layers) != sorted(set(layout.dense_layers)):
        raise table.fail("dense_layers", list(layout.dense_layers), "each layer once, in ascending order")
    if layout.windows and len(layout.windows) != model.num_layers:
        raise table.fail("windows", list(layout.windows), f"one for each of the {model.num_layers} layers")
    if layers and any(layers[layer] != "attention" for layer in layout.dense_layers):
        raise table.fail("dense_layers", list(layout.dense_layers), "layers that attend")
    if layout.capacity_step % layout.page_size:
        raise table.fail("capacity_step", layout.capacity_step, f"a multiple of page_size = {layout.page_size}")
    table.done()
    return layout


def _read_variants(table: _Table, model: ModelDims) -> dict[str, Variant]:
    variants: dict[str, Variant] = {}
    for key, entry in table.tables():
        bits = _read_bits(entry)
        variant = Variant(
            key=key,
            file=entry.file_name("file"),
            channel_density=_read_density(entry, "channel_density"),
            bits=bits,
            **{name: _read_counts(entry, name, most, model.num_layers) for name, most in model.channels.items()},
            weight_bytes=entry.integer("weight_bytes", 1),
            lm_head_bits=entry.integer("lm_head_bits", min(MATRIX_BITS) if bits in (THREE, MIXED) else bits, 16),
            layer_bits=_read_layer_bits(entry, bits, model),
            lm_head_screen=_read_screen(entry, model),
            prompt_losses=_read_losses(entry.table("prompt_losses")) if "prompt_losses" in entry.raw else {},
        )
        entry.done()
        if variant.lm_head_bits not in MATRIX_BITS:
            raise entry.fail("lm_head_bits", variant.lm_head_bits, "4, 6 or 8")
        if variant.lm_head_screen is not None and variant.lm_head_bits == min(MATRIX_BITS):
            raise entry.fail("lm_head_screen", f"lm_head_bits {variant.lm_head_bits}", "6 or 8 bits for candidates")
        name = Action(1.0, variant.channel_density, variant.bits).variant
        if key != name:
            raise table.fail(
                _short(key),
                f"channel_density {variant.channel_density} and bits {bits_name(variant.bits)}",
                f"the key {name}",
            )
        for other in variants.values():
            if other.file == variant.file and (other.bits, other.lm_head_bits) != (bits, variant.lm_head_bits):
                raise entry.fail(
                    "lm_head_bits",
                    f"bits {bits_name(bits)} and lm_head_bits {variant.lm_head_bits}",
                    f"{bits_name(other.bits)} and {other.lm_head_bits}, those of {other.key}, which runs this graph",
                )
            if other.file == variant.file and other.layer_bits != variant.layer_bits:
                raise entry.fail(
                    "layer_bits", "other bits", f"those of {other.key}, which runs the same graph {other.file}"
                )
            if other.file == variant.file and other.lm_head_screen != variant.lm_head_screen:
                raise entry.fail(
                    "lm_head_screen",
                    _screen_text(variant.lm_head_screen),
                    f"{_screen_text(other.lm_head_screen)}, as {other.key}, which runs the same graph {other.file}",
                )
        variants[key] = variant
    if not variants:
        raise BundleError(table.path, table.where, "no variants", "at least the dense one")
    return variants


def _read_screen(entry: _Table, model: ModelDims) -> Screen | None:
    if "lm_head_screen" not in entry.raw:
        return None
    table = entry.table("lm_head_screen")
    offset = table.typed("tail_offset", lambda v: v is not None and _is_loss(v), "a finite number")
    bits = table.integer("bits", THREE, min(MATRIX_BITS))
    screen = Screen(table.integer("candidates", 1, model.vocab_size - 1), float(offset), bits)
    table.done()
    if bits == THREE and model.vocab_size % BLOCK:
        raise table.fail("bits", bits, f"4: {model.vocab_size} rows are no multiple of {BLOCK}")
    return screen


def _screen_text(screen: Screen | None) -> str:
    if screen is None:
        return "no screen"
    first = f" behind {THREE} bits" if screen.bits == THREE else ""
    return f"{screen.candidates} candidates{first} with offset {screen.tail_offset}"


def _read_bits(entry: _Table) -> int:
    raw = entry.typed("bits", _is_bits, 'an integer from 1 to 16, or "mixed"')
    bits = parse_bits_name(raw)
    assert bits is not None
    return bits


def _is_bits(value: object) -> bool:
    bits = None if isinstance(value, str) and value.isdecimal() else parse_bits_name(value)
    return bits is not None and 1 <= bits <= 16


def _read_density(entry: _Table, name: str) -> float:
    return float(entry.typed(name, _is_density, "a share from 0.01 to 1 in hundredths"))


def _is_density(value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return 0.01 <= value <= 1 and value == round(value, 2)


def _read_layer_bits(entry: _Table, bits: int, model: ModelDims) -> tuple[LayerBits, ...] | None:
    name, size = "layer_bits", len(LayerBits._fields)
    if bits != MIXED and not (bits == THREE and name in entry.raw):
        return None
    levels = (THREE, 4) if bits == THREE else MATRIX_BITS
    rows = entry.typed(
        name,
        lambda v: (
            isinstance(v, list)
            and all(isinstance(row, list) and len(row) == size and all(_is_one_of(b, levels) for b in row) for row in v)
        ),
        f"a list of lists of {size} numbers of bits ({'3 or 4' if bits == THREE else '4, 6 or 8'}), "
        f"for {', '.join(LayerBits._fields)}",
    )
    if len(rows) != model.num_layers:
        raise entry.fail(name, f"{len(rows)} layers", f"{model.num_layers}")
    return tuple(LayerBits(*row) for row in rows)


def _is_one_of(value: object, levels: Collection[int]) -> bool:
    return _is_int(value, min(levels), max(levels)) and value in levels


def _read_counts(entry: _Table, name: str, channels: int, layers: int) -> tuple[int, ...]:
    counts = entry.integers(name, 1, channels)
    if len(counts) != layers:
        raise entry.fail(name, f"{len(counts)} counts", f"{layers}, one per layer")
    return counts


def _read_actions(top: _Table, variants: Mapping[str, Variant]) -> tuple[ActionEntry, ...]:
    raw = top.typed("actions", lambda v: isinstance(v, list) and len(v) > 0, "a non-empty list")
    entries: list[ActionEntry] = []
    for index, item in enumerate(raw):
        table = _Table(top.path, f"actions[{index}]", item)
        action = _action(table, "tag", table.value("tag"), variants)
        if any(entry.action == action for entry in entries):
            raise table.fail("tag", f"{action.tag} for the second time", "each action once")
        loss = table.typed("loss", _is_loss, "a finite number of nats, or null")
        losses = _read_losses(table.table("losses")) if "losses" in table.raw else {}
        table.done()
        entries.append(ActionEntry(action, None if loss is None else float(loss), losses))
    return tuple(entries)


def _read_losses(table: _Table) -> dict[int, float]:
    losses = {}
    for name in table.raw:
        if not re.fullmatch(r"[1-9][0-9]{0,8}", name):
            raise table.fail(_short(name), "this key", "a context in tokens, such as 512")
        loss = table.typed(name, lambda v: v is not None and _is_loss(v), "a finite number of nats")
        losses[int(name)] = float(loss)
    return dict(sorted(losses.items()))


def _is_loss(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6


def _read_policy(table: _Table, variants: Mapping[str, Variant]) -> PolicySpec:
    horizon = table.integer("horizon", 1, 4096)
    scalars = table.texts("scalars")
    for name in scalars:
        if name not in KNOWN_SCALARS:
            near = difflib.get_close_matches(name, KNOWN_SCALARS, 1)
            raise table.fail("scalars", _short(name), repr(near[0]) if near else ", ".join(KNOWN_SCALARS))
    tags = table.texts("actions")
    actions = tuple(_action(table, "actions", tag, variants) for tag in tags)
    if not actions or len(set(actions)) != len(actions):
        raise table.fail(
            "actions", f"{len(actions)} tags, {len(set(actions))} of them distinct", "each action once, at least one"
        )
    state_shape = table.integers("state_shape", 1, 1 << 16)
    if len(state_shape) != 5 or state_shape[1] != 2 or state_shape[3] != horizon or math.prod(state_shape) > 1 << 28:
        raise table.fail("state_shape", list(state_shape), f"[layers, 2, heads, {horizon}, size]")
    for name in ("gain_over_hull", "gain_budgets"):  # of older exports; nobody reads them
        if name in table.raw:
            table.value(name)
    file, description = table.file_name("file"), table.text("description")
    spec = PolicySpec(file, horizon, scalars, actions, state_shape, description)
    table.done()
    return spec


def _read_files(table: _Table) -> dict[str, FileEntry]:
    files = {}
    for name, entry in table.tables():
        if not is_file_name(name):
            raise table.fail(_short(name), "this name", "a plain file name inside the bundle")
        digest = entry.text("sha256")
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise entry.fail("sha256", _short(digest), "64 lower-case hex digits")
        files[name] = FileEntry(entry.integer("bytes", 0), digest)
        entry.done()
    return files


def _read_tensors(table: _Table, weights_bytes: int) -> dict[str, TensorEntry]:
    tensors = {}
    for name, entry in table.tables():
        dtype = entry.choice("dtype", DTYPE_BITS)
        shape = entry.integers("shape", 0)
        tensor = TensorEntry(dtype, shape, entry.integer("offset", 0), entry.integer("bytes", 0))
        entry.done()
        wanted = tensor_bytes(dtype, shape)
        if tensor.bytes != wanted:
            raise entry.fail("bytes", tensor.bytes, f"{wanted} for {dtype} {list(shape)}")
        if tensor.offset % ALIGNMENT:
            raise entry.fail("offset", tensor.offset, f"a multiple of {ALIGNMENT}")
        if tensor.offset + tensor.bytes > weights_bytes:
            raise entry.fail(
                "offset", f"an end at {tensor.offset + tensor.bytes}", f"at most {weights_bytes}, the file's size"
            )
        tensors[name] = tensor
    if not tensors:
        raise BundleError(table.path, table.where, "no tensors", "every tensor of the model")
    return tensors
