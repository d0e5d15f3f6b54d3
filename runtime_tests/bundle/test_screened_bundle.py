"""Bundles with a screened LM head: their graphs, what a step reads, what an export chooses, and what hosts without the
kernel get."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("torch", reason="exporting comes with the extra export")
pytest.importorskip("gguf", reason="exporting comes with the extra export")
from helpers.random_decoder import RandomDecoder, screenable
from helpers.tiny_bundle import seal, write_bundle
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import MIXED, SCREENED, Screen
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import SolConfig
from sol_rt.cli import main
from sol_rt.errors import UsageError
from sol_rt.evaluation.inspect import describe as describe_bundle
from sol_rt.export.actions import lm_head_bits
from sol_rt.export.actions.lm_head_bits import Head, HeadPoint, choose_lm_head_bits, with_heads, worth_reading
from sol_rt.export.actions.stored import StoredCalibration
from sol_rt.export.actions.tail_offset import Tails, last_logits
from sol_rt.export.graphs.gpu_graph import gpu_graph
from sol_rt.export.graphs.graph import weight_bytes
from sol_rt.export.runs import open_under
from sol_rt.export.sources.decoder import Decoder, from_hf_config
from sol_rt.export.sources.open_checkpoint import open_checkpoint
from sol_rt.export.web import write_web_bundle
from sol_rt.generate.model import SolModel
from sol_rt.generate.native.engine import Engine
from sol_rt.ops import library_path
from sol_rt.progress import silent

needs_kernels = pytest.mark.skipif(library_path() is None, reason="the native operators are not built")
TOKENS = list(range(20, 52))
SCREEN = Screen(30, 0.5)
WINDOWS = [np.random.default_rng(seed).integers(0, 320, 64).tolist() for seed in range(2)]


@pytest.fixture(scope="module", params=[4, 3])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose graph of 4 bits has a screened LM head, beside one of 8 bits that has none; by bits of the first
    pass."""
    folder = tmp_path_factory.mktemp("screened") / "tiny"
    levels = {"bits": (8, 4), "lm_head_bits": {8: 8, 4: 8}, "screens": {4: SCREEN._replace(bits=request.param)}}
    return write_bundle(folder, "phi", decoder=screenable("phi"), policy=True, **levels)


def test_weight_bytes_count_a_cache_line_for_every_block_of_a_candidate(made: Path) -> None:
    """Bytes that the first pass reads count whole."""
    config = Bundle.open(made).config
    decoder, tensors = screenable("phi"), config.tensors
    variant = config.variants["s100-q4"]
    first = variant.lm_head_screen.bits
    head = "embed" if decoder.tied else "head"
    whole_head = weight_bytes(decoder, tensors, replace(variant, lm_head_screen=None))
    parts = ["plane1", "plane2"] if first == 4 else ["plane1", "plane2", "base", "scale", "zero"]
    some = [tensors[f"{head}.{part}"] for part in parts]
    own = sum(entry.bytes for name, entry in tensors.items() if name.startswith(f"{head}.screen.")) if first == 3 else 0
    assert (own > 0) == (first == 3)
    few = weight_bytes(decoder, tensors, replace(variant, lm_head_screen=Screen(1, 0.0, first)))
    assert whole_head - few == sum(entry.bytes - min(entry.bytes, 64 * entry.shape[0]) for entry in some) - own
    many = weight_bytes(decoder, tensors, replace(variant, lm_head_screen=Screen(decoder.vocab_size - 1, 0.0, first)))
    assert many == whole_head + own  # no more than all of a plane is read


@pytest.mark.parametrize("first", [4, 3])
def test_inspect_says_what_a_screen_saves(first: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few, decoder = tmp_path / "few", screenable("llama")
    levels = {"bits": (8, 4), "lm_head_bits": {4: 8}, "screens": {4: Screen(3, 0.5, first)}}
    write_bundle(few, "llama", decoder=decoder, **levels)
    entry = next(each for each in describe_bundle(few)["variants"] if each["key"] == "s100-q4")
    config = Bundle.open(few).config
    plain = weight_bytes(decoder, config.tensors, replace(config.variants["s100-q4"], lm_head_screen=None))
    saved = plain - config.variants["s100-q4"].weight_bytes
    assert entry["lm_head_screen"] == {"candidates": 3, "tail_offset": 0.5, "bits": first, "saved_bytes": saved}
    assert main(["inspect", "-m", str(few)]) == 0
    out = capsys.readouterr().out
    assert f"8 bits of the 3 rows with the highest scores: {saved / 1e6:.1f} MB less than 8 bits of all rows" in out
    assert f"{first} (top 3: 8)" in out
    assert f"a step reads {first} bits of the LM head" in out


def test_a_gpu_gets_a_graph_that_reads_the_lm_head_whole(made: Path) -> None:
    """The node of the plain overload, without the attributes; its body inlined gives the whole product."""
    config = Bundle.open(made).config
    for inline in (False, True):
        graph = gpu_graph((made / "model.q4.onnx").read_bytes(), inline=inline, bits=4, kv=config.kv)
        model = onnx.load_from_string(graph.model)
        assert "TopK" not in {node.op_type for node in model.graph.node}
        heads = [node for node in model.graph.node if node.op_type == "NestedMatMul"]
        assert len(heads) == (0 if inline else 1)
        for node in heads:
            assert node.overload == ""
            assert {attribute.name for attribute in node.attribute} == {"K", "N", "bits"}
            assert len(node.input) == 6
        assert not any(".screen." in tensor.name for tensor in model.graph.initializer)
        assert not any(function.overload == SCREENED for function in model.functions)


@needs_kernels
def test_the_graph_has_both_bodies_and_the_kernel_takes_the_screened_node(tmp_path: Path) -> None:
    screens = {8: Screen(20, 0.5, 3), MIXED: Screen(20, 0.5), 4: Screen(20, 0.5, 3)}
    levels = {"bits": (8, MIXED, 4), "lm_head_bits": {8: 8, MIXED: 8, 4: 6}, "screens": screens}
    for family in ("llama", "phi"):
        levels["decoder"] = described = screenable(family)
        folder = write_bundle(tmp_path / family, family, channel_densities=(1.0,), kv_densities=(1.0,), **levels)
        decoder = RandomDecoder.write(described, tmp_path, 0, lm_head_bits={8: 8, MIXED: 8, 4: 6}, screens=screens)
        engine = Engine(Bundle.open(folder), provider="cpu")
        bodies_engine = Engine(Bundle.open(folder), provider="cpu", native_ops=False)
        for bits in (8, MIXED, 4):
            model = onnx.load(folder / f"model.q{'mix' if bits == MIXED else bits}.onnx", load_external_data=False)
            onnx.checker.check_model(str(folder / f"model.q{'mix' if bits == MIXED else bits}.onnx"))
            overloads = [function.overload for function in model.functions if function.name == "NestedMatMul"]
            assert overloads == ["", SCREENED]
            expected, _ = decoder.logits(TOKENS, 1.0, bits)
            for each in (engine, bodies_engine):
                each.reset()
                got = each.forward(TOKENS, Action(1.0, 1.0, bits), num_logits=len(TOKENS)).logits
                error = np.sqrt(np.mean((got - expected) ** 2)) / np.sqrt(np.mean(expected**2))
                assert error < (0.03 if each is engine else 0.1), (family, bits, error)


@pytest.fixture
def exported(llama_checkpoint: Path, llama_bundle: Path, tmp_path: Path) -> tuple[Path, SolConfig, Decoder]:
    """A bundle to be changed: folder, config and decoder."""
    folder = shutil.copytree(llama_bundle, tmp_path / "tiny")
    return folder, Bundle.open(folder).config, from_hf_config(open_checkpoint(llama_checkpoint).config)


def test_an_export_tries_screened_heads_and_takes_the_best(
    exported: tuple[Path, SolConfig, Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the widest graph. The config is read back as it was written, and the logits of the likeliest tokens are
    those of the whole LM head."""
    folder, config, decoder = exported
    monkeypatch.setattr(
        lm_head_bits, "_CANDIDATES", {4: (10, 30, 41), 3: ()}
    )  # the last one for more rows than the vocabulary has
    asked: list[dict[Head, HeadPoint]] = []

    def choose(points: dict[Head, HeadPoint], wider: list[HeadPoint]) -> Head:
        asked.append(points)
        return next(head for head in points if head.candidates == 30)

    monkeypatch.setattr(lm_head_bits, "worth_reading", choose)
    found = choose_lm_head_bits(folder, config, decoder, WINDOWS, silent)
    for points in asked:
        assert [head.candidates for head in sorted(points) if head.candidates] == [10, 30]
        few, many = (next(head for head in points if head.candidates == size) for size in (10, 30))
        whole = Head(8)
        assert points[few].weight_bytes < points[many].weight_bytes < points[whole].weight_bytes
        assert points[few].loss > points[many].loss > points[whole].loss
        assert few.tail_offset != 0 != many.tail_offset
    widest = config.dense.bits
    for variant in found.variants.values():
        assert (variant.lm_head_screen is None) == (variant.bits == widest)
    seal(folder, found)
    assert replace(Bundle.open(folder).config, files={}) == replace(found, files={})
    action = Action(1.0, 1.0, 4)
    screened = Engine(Bundle.open(folder), provider="cpu").forward(WINDOWS[0], action, num_logits=8).logits
    plain = with_heads(folder, found, decoder, {**{v.bits: Head.of(v) for v in found.variants.values()}, 4: Head(8)})
    expected = open_under(folder, plain).forward(WINDOWS[0], action, num_logits=8).logits
    np.testing.assert_array_equal(screened.argmax(-1), expected.argmax(-1))
    assert not np.allclose(screened, expected, atol=1e-3)


def test_a_vocabulary_of_few_rows_is_not_screened(
    exported: tuple[Path, SolConfig, Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config, decoder = exported
    monkeypatch.setattr(lm_head_bits, "worth_reading", lambda points, wider: max(points))
    found = choose_lm_head_bits(folder, config, decoder, WINDOWS, silent)
    assert all(variant.lm_head_screen is None for variant in found.variants.values())


def test_a_screened_head_is_taken_where_it_reads_less_and_loses_little() -> None:
    """0.01 nats a byte from (80, 0.5) to (120, 0.1)."""
    wider = [HeadPoint(120, 0.1)]
    whole = {Head(4): HeadPoint(80, 0.5), Head(6): HeadPoint(90, 0.28), Head(8): HeadPoint(100, 0.2)}
    assert worth_reading(whole, wider) == Head(6)
    assert worth_reading({**whole, Head(8, 512, 0.1): HeadPoint(83, 0.3)}, wider) == Head(8, 512, 0.1)
    assert worth_reading({**whole, Head(8, 512, 0.1): HeadPoint(83, 0.45)}, wider) == Head(6)


def selected(scores: np.ndarray, candidates: int) -> np.ndarray:
    """Marks the highest scores."""
    chosen = np.zeros(scores.shape, bool)
    np.put_along_axis(chosen, np.argsort(-scores, axis=-1)[:, :candidates], True, -1)
    return chosen


def test_the_offset_gives_the_tail_its_mean_probability() -> None:
    rng = np.random.default_rng(0)
    exact = 3 * rng.standard_normal((200, 400)).astype(np.float32)
    scores = (exact - 0.75 + 0.1 * rng.standard_normal(exact.shape)).astype(np.float32)
    offset = Tails.of(scores, exact, [50])[50].fitted_offset()
    chosen = selected(scores, 50)
    mixed, wanted = np.exp(np.where(chosen, exact, scores + offset)), np.exp(exact)
    tails = [(np.where(chosen, 0, each).sum(-1) / each.sum(-1)).mean() for each in (mixed, wanted)]
    assert tails[0] == pytest.approx(tails[1], abs=1e-5)
    assert offset == pytest.approx(0.75, abs=0.05)


def test_a_screens_divergence_equals_that_of_whole_distributions() -> None:
    rng = np.random.default_rng(1)
    exact = 3 * rng.standard_normal((50, 400)).astype(np.float32)
    scores = (exact + 0.3 * rng.standard_normal(exact.shape)).astype(np.float32)
    chosen = selected(scores, 50)
    p, q = (np.exp(each.astype(float)) for each in (exact, np.where(chosen, exact, scores + np.float32(0.2))))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    expected = (p * np.log(p / q)).sum(-1).mean()
    of_sizes = Tails.of(scores, exact, [10, 50, 200])
    assert of_sizes[50].divergence(0.2) == pytest.approx(expected, rel=1e-4)
    assert of_sizes[10].divergence(0.2) > of_sizes[50].divergence(0.2) > of_sizes[200].divergence(0.2)
    assert expected > 1e-3


def test_offsets_are_fitted_behind_the_beginnings_of_the_windows(made: Path) -> None:
    """There the tokenizer's prefix is, without which no text begins."""
    engine, action = Engine(Bundle.open(made), provider="cpu"), Action(1.0, 1.0, 4)
    window = [token % 60 + 3 for token in range(300)]
    got, _ = last_logits(engine, [window], action)
    engine.reset()
    engine.forward(window[:128], engine.bundle.config.dense)
    np.testing.assert_array_equal(got, engine.forward(window[128:192], action, num_logits=64).logits)


def test_a_stored_calibration_keeps_the_screen(tmp_path: Path) -> None:
    screen = {"candidates": 40, "tail_offset": 0.25, "bits": 4}
    kept = StoredCalibration.read(stored_with(tmp_path, {"8": 8, "4": 8}, {"4": screen}))
    kept.write(tmp_path / "again.json")
    assert StoredCalibration.read(tmp_path / "again.json") == kept
    assert kept.lm_heads == {8: Head(8), 4: Head(8, 40, 0.25)}


@pytest.mark.parametrize(
    "screens",
    [
        {"6": {"candidates": 40, "tail_offset": 0.25, "bits": 4}},
        {"4": {"candidates": 0, "tail_offset": 0.25, "bits": 4}},
        {"4": {"candidates": 4.5, "tail_offset": 0.25, "bits": 4}},
        {"4": {"candidates": 40, "bits": 4}},
        {"4": {"candidates": 40, "tail_offset": 0.25}},
        {"4": {"candidates": 40, "tail_offset": float("nan"), "bits": 4}},
        {"4": 3},
        ["4"],
    ],
)
def test_a_damaged_screen_of_a_stored_calibration_is_refused(tmp_path: Path, screens: object) -> None:
    with pytest.raises(UsageError, match="not readable"):
        StoredCalibration.read(stored_with(tmp_path, {"8": 8, "4": 8}, screens))


def stored_with(folder: Path, heads: dict[str, int], screens: object) -> Path:
    """A stored calibration of no candidates with these LM heads."""
    settings = {
        "checkpoint": "0" * 64,
        "bits": [8, 4],
        "channel_density": [1.0],
        "kv_density": [1.0],
        "kv": "float16",
        "max_context": 512,
        "bundle_format": 1,
        "rules": 1,
    }
    document = {
        "format": "sol_rt.stored_calibration",
        "format_version": 1,
        "settings": settings,
        "origin": "a test",
        "most_channels": None,
        "lm_head_bits": heads,
        "lm_head_screens": screens,
        "active_channels": {},
        "collapse_loss": None,
        "contexts": {},
        "losses": {},
        "fitted": [[1, 2]],
    }
    path = folder / "stored.calibration.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_a_web_bundle_reads_the_lm_head_whole(exported: tuple[Path, SolConfig, Decoder], tmp_path: Path) -> None:
    folder, config, decoder = exported
    heads = {variant.bits: Head.of(variant) for variant in config.variants.values()}
    seal(folder, with_heads(folder, config, decoder, {**heads, 4: Head(8, 3, 0.5)}))
    kept = write_web_bundle(folder, tmp_path / "web")
    plain = with_heads(folder, config, decoder, {**heads, 4: Head(8)})
    assert kept.variants["s100-q4"].lm_head_screen is None
    assert kept.variants["s100-q4"].weight_bytes == plain.variants["s100-q4"].weight_bytes
    model = onnx.load(tmp_path / "web" / "model.q4.onnx", load_external_data=False)
    assert not any(function.overload == SCREENED for function in model.functions)


@needs_kernels
def test_a_generation_takes_the_likeliest_tokens_of_the_screened_head(made: Path) -> None:
    action = Action.parse("k100-s100-q4")
    model = SolModel.from_pretrained(made, provider="cpu", measure_costs=False, prefill="s100-q4")
    result = model.generate(TOKENS, schedule=f"fixed:{action.tag}", max_new_tokens=24, do_sample=False, eos_token_id=[])
    engine, tokens = Engine(Bundle.open(made), provider="cpu"), list(TOKENS)
    for token, logprob in zip(result.tokens, result.logprobs, strict=True):
        seen = engine.forward(tokens[engine.length :], action).distribution
        assert (seen.top, seen.log_probability(token)) == (token, pytest.approx(logprob, abs=1e-3))
        tokens.append(token)
