"""`sol_config.json`: exact round trip, one-line errors, and nothing but those under random damage."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.places import ROOT
from helpers.tiny_bundle import write_bundle
from sol_rt.bundle.bits import MIXED, Screen
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.bundle.config_reader import parse_config, read_config
from sol_rt.errors import BundleError, SolError
from sol_rt.generate.model import SolModel

DOCS = ROOT / "docs/reference/bundle.md"
SCREEN = {"candidates": 8, "tail_offset": 0.5, "bits": 4}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(
        tmp_path_factory.mktemp("config") / "tiny", channel_densities=(1.0, 0.5), bits=(8, MIXED, 4), policy=True
    )


@pytest.fixture(scope="module")
def damaged(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy for the tests that damage one file and put it back."""
    return Path(shutil.copytree(bundle, tmp_path_factory.mktemp("damaged") / "tiny"))


@pytest.fixture
def raw(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / CONFIG_NAME).read_text()))


def test_round_trip_is_exact(bundle: Path, raw: dict[str, Any]) -> None:
    config = read_config(bundle / CONFIG_NAME)
    assert config.to_json_dict() == raw
    assert parse_config(config.to_json_dict(), Path("x")) == config
    assert config.policy is not None


def test_the_range_that_older_exports_gave_a_policy_is_left_out(raw: dict[str, Any]) -> None:
    older = {**raw, "policy": raw["policy"] | {"gain_over_hull": 0.002, "gain_budgets": [0.35, 0.5]}}
    assert parse_config(older, Path("x")).to_json_dict() == raw


def test_losses_by_context_round_trip(raw: dict[str, Any]) -> None:
    raw["actions"][0]["losses"] = {"4096": 0.5, "512": -0.25}
    config = parse_config(raw, Path("x"))
    assert config.actions[0].losses == {512: -0.25, 4096: 0.5}
    assert config.to_json_dict() == raw


def test_a_screened_lm_head_round_trips(raw: dict[str, Any]) -> None:
    for key in ("s100-q8", "s050-q8"):
        raw["variants"][key]["lm_head_screen"] = SCREEN
    config = parse_config(raw, Path("x"))
    assert config.variants["s050-q8"].precision.lm_head_screen == Screen(8, 0.5)
    assert config.variants["s100-q4"].lm_head_screen is None
    assert config.to_json_dict() == raw


@pytest.mark.parametrize("losses", [{"0": 1.0}, {"512": None}, {"many": 1.0}, {"512": 1e9}, [1.0]])
def test_wrong_losses_by_context_are_refused(raw: dict[str, Any], losses: object) -> None:
    raw["actions"][0]["losses"] = losses
    with pytest.raises(BundleError, match=r"actions\[0\]\.losses"):
        parse_config(raw, Path("x"))


def test_the_documented_example_is_read() -> None:
    text = re.search(r"```jsonc\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert text is not None
    every_layer = re.sub(r"\[(\d+), …\]", lambda match: str([int(match[1])] * 30), re.sub(r"\s+//.*", "", text[1]))
    example = json.loads(every_layer)
    empty = {"bytes": 1 << 30, "sha256": "0" * 64}
    example["files"] = {"weights.bin": empty, "model.q8.onnx": empty}
    config = parse_config(example, Path("x"))
    assert config.model.num_layers == 30
    assert config.to_json_dict() == example


def _set(raw: dict[str, Any], key: str, value: object) -> None:
    *parents, last = key.split("/")
    for parent in parents:
        raw = raw[parent]
    raw[last] = value


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("format", "other", ["format", '"other"', "sol_rt.bundle"]),
        ("format_version", 0, ["format_version: got 0, expected 1; export the bundle again with `sol-rt export"]),
        ("format_version", 7, ["format_version: got 7, expected 1; export the bundle again with `sol-rt export"]),
        ("model/vocab_sizes", 3, ["model.vocab_sizes", "unknown key", "'vocab_size'"]),
        ("model/hidden_size", "64", ["model.hidden_size", '"64"', "integer"]),
        ("model/hidden_size", 64.0, ["model.hidden_size", "64.0", "integer"]),
        ("model/num_layers", True, ["model.num_layers", "true", "integer"]),
        ("model/num_layers", 0, ["model.num_layers", "got 0"]),
        ("model/num_kv_heads", 3, ["num_kv_heads", "divisor"]),
        ("model/eos_token_ids", [90], ["eos_token_ids", "89"]),
        ("kv/dtype", "int7", ["kv.dtype", '"int7"', "float16 or int8"]),
        ("kv/page_size", 16, ["kv.page_size", "4"]),
        ("kv/capacity_step", 42, ["capacity_step", "multiple of page_size"]),
        ("dense", "k100-s100-q9", ["dense", "not in the bundle"]),
        ("dense", "k030-s100-q8", ["dense", "k100"]),
        ("dense", "fast", ["dense", "action tag"]),
        ("variants/s100-q8/file", "../model.onnx", ["file", "plain file name"]),
        ("variants/s100-q8/file", "other.onnx", ["other.onnx", "listed under `files`"]),
        ("variants/s100-q8/channel_density", 0.5, ["s100-q8", "s050-q8"]),
        ("kv/dense_layers", [2], ["kv.dense_layers", "[2]", "0 to 1"]),
        ("kv/dense_layers", [1, 0], ["kv.dense_layers", "[1, 0]", "ascending"]),
        ("kv/dense_layers", 0, ["kv.dense_layers", "list of integers"]),
        ("kv/windows", [16], ["kv.windows", "[16]", "one for each of the 2 layers"]),
        ("kv/windows", [16, -1], ["kv.windows", "list of integers from 0"]),
        ("variants/s100-q8/active_up", [64, 65], ["s100-q8.active_up", "[64, 65]", "1 to 64"]),
        ("variants/s100-q8/active_up", 64, ["s100-q8.active_up", "list of integers"]),
        ("variants/s100-q8/active_down", [96], ["s100-q8.active_down", "1 counts", "2, one per layer"]),
        ("variants/s100-q8/active_down", [0, 96], ["s100-q8.active_down", "[0, 96]", "1 to 96"]),
        ("variants/s100-q8/active_qkv", [64, 65], ["s100-q8.active_qkv", "[64, 65]", "1 to 64"]),
        ("variants/s100-q8/active_o", [64], ["s100-q8.active_o", "1 counts", "2, one per layer"]),
        ("variants/s100-q4/lm_head_bits", 3, ["s100-q4.lm_head_bits", "got 3", "from 4"]),
        ("variants/s050-q4/lm_head_bits", 8, ["s050-q4.lm_head_bits", "4 and 4", "s100-q4"]),
        ("variants/s100-q4/lm_head_screen", SCREEN, ["s100-q4.lm_head_screen", "lm_head_bits 4", "6 or 8 bits"]),
        ("variants/s050-q8/lm_head_screen", SCREEN, ["s050-q8.lm_head_screen", "8 candidates", "no screen", "s100-q8"]),
        ("variants/s100-q8/lm_head_screen", SCREEN | {"candidates": 90}, ["lm_head_screen.candidates", "1 to 89"]),
        ("variants/s100-q8/lm_head_screen", SCREEN | {"candidates": 0}, ["lm_head_screen.candidates", "1 to 89"]),
        ("variants/s100-q8/lm_head_screen", SCREEN | {"tail_offset": "0"}, ["screen.tail_offset", "finite number"]),
        ("variants/s100-q8/lm_head_screen", SCREEN | {"tail_offset": 1e9}, ["screen.tail_offset", "finite number"]),
        ("variants/s100-q8/lm_head_screen", SCREEN | {"candidate": 8}, ["screen.candidate", "an unknown key"]),
        ("variants/s100-q8/lm_head_screen", SCREEN | {"bits": 2}, ["lm_head_screen.bits", "3 to 4"]),
        ("variants/s100-q8/lm_head_screen", SCREEN | {"bits": 3}, ["lm_head_screen.bits", "90 rows", "multiple of 32"]),
        ("variants/s100-q8/lm_head_screen", {"candidates": 8}, ["screen.tail_offset", "no such key"]),
        ("variants/s100-q8/lm_head_screen", {"candidates": 8, "tail_offset": 0}, ["screen.bits", "no such key"]),
        ("variants/s100-q8/lm_head_screen", 8, ["s100-q8.lm_head_screen", "got 8"]),
        ("variants/s100-qmix/layer_bits", [[8, 4, 4, 6]], ["s100-qmix.layer_bits", "1 layers", "2"]),
        ("variants/s100-qmix/layer_bits", [[8, 4, 4, 6], [4, 4, 5, 4]], ["s100-qmix.layer_bits", "qkv, o, up, down"]),
        ("variants/s100-qmix/layer_bits", [[8, 4, 4, 6], [4, 4, [4], 4]], ["s100-qmix.layer_bits", "4, 6 or 8"]),
        ("variants/s100-qmix/layer_bits", [[8, 4, 4, 6], [4, 4, 4]], ["s100-qmix.layer_bits", "lists of 4"]),
        ("variants/s050-qmix/layer_bits", [[4] * 4] * 2, ["s050-qmix.layer_bits", "those of s100-qmix"]),
        ("variants/s100-q4/layer_bits", [[4] * 4] * 2, ["s100-q4.layer_bits"]),
        ("actions", [], ["actions", "non-empty"]),
        ("policy/scalars", ["entropi"], ["policy.scalars", "'entropy'"]),
        ("policy/state_shape", [1, 2, 4, 8, 8], ["state_shape", "16"]),
        ("weights/tensors/embed.scale/bytes", 1, ["embed.scale.bytes", "360"]),
        ("weights/tensors/embed.scale/offset", 8, ["offset", "4096"]),
        ("weights/tensors/embed.scale/offset", 1 << 30, ["offset", "the file's size"]),
        ("weights/tensors/embed.scale/dtype", "float8", ["dtype", "float16"]),
        ("files/weights.bin/sha256", "xyz", ["sha256", "hex"]),
    ],
)
def test_errors_name_key_found_and_expected(raw: dict[str, Any], key: str, value: object, parts: list[str]) -> None:
    _set(raw, key, value)
    with pytest.raises(BundleError) as caught:
        parse_config(raw, Path("folder/sol_config.json"))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("folder/sol_config.json: ")
    for part in parts:
        assert part in message


def test_a_missing_key_names_the_one_that_may_be_meant(raw: dict[str, Any]) -> None:
    raw["model"]["hiden_size"] = raw["model"].pop("hidden_size")
    with pytest.raises(BundleError, match=r"model\.hidden_size: got no such key but 'hiden_size'"):
        parse_config(raw, Path("x"))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"3", b'{"format": NaN}', b"9" * 5000])
def test_files_that_are_no_config(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / CONFIG_NAME
    path.write_bytes(content)
    with pytest.raises(BundleError) as caught:
        read_config(path)
    assert "\n" not in str(caught.value)


def _nodes(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield (*path, key)
        yield from _nodes(child, (*path, key))


def _delete(parent: Any, key: Any, value: Any) -> None:
    del parent[key]


def _replace(parent: Any, key: Any, value: Any) -> None:
    parent[key] = value


def _rename(parent: Any, key: Any, value: Any) -> None:
    if isinstance(parent, dict):
        parent[f"{key}s"] = parent.pop(key)
    else:
        parent.append(value)


def _nudge(parent: Any, key: Any, value: Any) -> None:
    old = parent[key]
    if isinstance(old, int):
        parent[key] = old * 2 if isinstance(value, str) else old - 1
    elif isinstance(old, str):
        parent[key] = old[:-1] or "x"
    else:
        parent[key] = [old]


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 200),
    st.sampled_from([1 << 31, 1 << 62, -1 << 63, 10**400]),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["weights.bin", "policy.onnx", "model.s100-q4.onnx", "k100-s100-q4", "float32", "uint8", "int8"]),
    st.lists(st.integers(-1, 99), max_size=5),
    st.just({}),
)
_MUTATIONS = st.sampled_from([_delete, _replace, _replace, _rename, _nudge, _nudge])


def _complaint(folder: Path) -> str:
    """Error of opening and running; empty if both work. Any error but SolError fails the test."""
    try:
        model = SolModel.from_pretrained(folder, provider="cpu")
        model.generate("w1 w2 w3", budget=0.6, max_new_tokens=4)
    except SolError as error:
        return str(error)
    return ""


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), mutate=_MUTATIONS, value=_VALUES)
def test_any_edit_of_the_config_is_an_error_or_works(
    damaged: Path, raw: dict[str, Any], data: st.DataObject, mutate: Callable[[Any, Any, Any], None], value: Any
) -> None:
    edited = copy.deepcopy(raw)
    *parents, key = data.draw(st.sampled_from(list(_nodes(raw))))
    parent: Any = edited
    for step in parents:
        parent = parent[step]
    mutate(parent, key, value)
    (damaged / CONFIG_NAME).write_text(json.dumps(edited), encoding="utf-8")
    try:
        assert "\n" not in _complaint(damaged)
    finally:
        (damaged / CONFIG_NAME).write_text(json.dumps(raw), encoding="utf-8")


@settings(max_examples=40, deadline=None)
@given(
    cut=st.none() | st.integers(0, 1 << 17),
    flips=st.lists(st.tuples(st.integers(0, 1 << 17), st.integers(0, 255)), max_size=40),
)
def test_any_damage_of_the_weights_is_an_error_or_works(
    bundle: Path, damaged: Path, cut: int | None, flips: list[tuple[int, int]]
) -> None:
    weights = damaged / "weights.bin"
    content = bytearray((bundle / "weights.bin").read_bytes())
    for index, value in flips:
        content[index % len(content)] = value
    weights.write_bytes(content[:cut])
    try:
        assert "\n" not in _complaint(damaged)
    finally:
        weights.write_bytes((bundle / "weights.bin").read_bytes())


def test_the_undamaged_bundle_opens(damaged: Path) -> None:
    keys = {f"s{share}-q{bits}" for share in ("100", "050") for bits in (8, "mix", 4)}
    assert Bundle.open(damaged).config.variants.keys() == keys
