"""The parity ladder: every family on a tiny checkpoint of random weights, against transformers and step by step down.

graph       the float32 model is transformers' model, for a prompt and 32 decode steps; the exported graph of 8 bits is
            near it
rungs       every level of bits, channels and KV density of the default export is the reference model of its arithmetic
bodies      without the native library the function bodies give what the kernels do
generation  64 greedy tokens of the dense action are the reference model's
source      a GGUF file gives the same bundle as the folder

Differences are in units of the logits' standard deviation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from helpers.gguf_file import GgufFile  # noqa: E402
from helpers.greedy import TIE, Run, assert_same_choices, greedy  # noqa: E402
from helpers.random_checkpoint import PRESETS, write_random_checkpoint  # noqa: E402
from helpers.reference_steps import (  # noqa: E402
    FLIP,
    NEAR,
    PRUNED_FLIP,
    check_steps,
    difference,
    random_tokens,
    take_over,
)
from sol_rt.bundle.actions import Action  # noqa: E402
from sol_rt.bundle.bits import MIXED  # noqa: E402
from sol_rt.bundle.bundle import Bundle  # noqa: E402
from sol_rt.export.actions.candidates import BITS, CHANNEL_DENSITIES, KV_DENSITIES  # noqa: E402
from sol_rt.export.pipeline import export_bundle  # noqa: E402
from sol_rt.export.sources.checkpoint import Checkpoint  # noqa: E402
from sol_rt.export.sources.decoder import from_hf_config  # noqa: E402
from sol_rt.export.sources.families import FAMILIES  # noqa: E402
from sol_rt.export.sources.open_checkpoint import open_checkpoint  # noqa: E402
from sol_rt.export.sources.source_model import SourceModel  # noqa: E402
from sol_rt.export.weights import memory  # noqa: E402
from sol_rt.generate.native.engine import Engine  # noqa: E402
from sol_rt.ops import library_path  # noqa: E402
from sol_rt.train.reference_model.model import UNROUNDED, ReferenceModel  # noqa: E402
from sol_rt.train.reference_model.weights import FloatMatrix, read_checkpoint  # noqa: E402

NAMES = [name for name in PRESETS if name.startswith("tiny-")]
DENSE = Action(1.0, 1.0, 8)
UNROUNDED_MOST = 1e-4
EIGHT_BITS = 0.04  # root mean square, of 8-bit weights; two layers of 64 channels average little out
LEVELS: dict[str, Any] = {
    "bits": tuple(bits for bits in BITS if bits != MIXED),  # float checkpoints have no codes to mix
    "channel_density": CHANNEL_DENSITIES,
    "kv_density": KV_DENSITIES,
}
"""Of the default export."""
PROMPT, STEPS = 40, 32
FIGURES = os.environ.get("SOL_RT_PARITY_FIGURES")
"""A file to which the figures of docs/reference/models.md are appended."""


@dataclass(frozen=True)
class Model:
    """A tiny checkpoint and what is made of it, once for all tests."""

    name: str
    folder: Path

    @cached_property
    def checkpoint(self) -> Path:
        return write_random_checkpoint(self.folder / self.name, PRESETS[self.name])

    @cached_property
    def bundle(self) -> Bundle:
        export_bundle(str(self.checkpoint), self.folder / "bundle", **LEVELS, calibration="none", parity=False)
        return Bundle.open(self.folder / "bundle")

    @cached_property
    def source(self) -> torch.nn.Module:
        return transformers.AutoModelForCausalLM.from_pretrained(
            self.checkpoint, dtype=torch.float32, attn_implementation="eager"
        ).eval()


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Torch's threads would wait for processors that ONNX Runtime's are spinning on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(request.param, tmp_path_factory.mktemp(request.param))


on_every_family = pytest.mark.parametrize(
    "model",
    [pytest.param(name, marks=() if name in ("tiny-llama", "tiny-phi") else pytest.mark.slow) for name in NAMES],
    indirect=True,
)
"""Quick runs take two families."""


def test_every_family_has_a_tiny_checkpoint() -> None:
    assert {PRESETS[name].family for name in NAMES} == set(FAMILIES)


def _graph(model: Model) -> None:
    tokens = torch.from_numpy(random_tokens(PROMPT + STEPS, 300))[None]
    with torch.no_grad():
        expected = model.source(tokens).logits
    weights = read_checkpoint(model.checkpoint, FloatMatrix)
    exact = ReferenceModel(weights, UNROUNDED)
    cache = exact.new_cache(1)
    prompt, _ = exact(tokens[:, :PROMPT], DENSE, cache)
    steps = [exact.step(tokens[:, i], [DENSE], cache)[0] for i in range(PROMPT, PROMPT + STEPS)]
    exactly = difference(torch.cat([prompt, torch.stack(steps, dim=1)], dim=1), expected.numpy())

    assert model.bundle.config.kv.windows == from_hf_config(open_checkpoint(model.checkpoint).config).windows
    engine = Engine(model.bundle, provider="cpu")
    ids = tokens[0].tolist()
    logits = [engine.forward(ids[:PROMPT], DENSE, num_logits=PROMPT).logits]
    logits += [engine.forward([token], DENSE).logits for token in ids[PROMPT:]]
    errors = np.concatenate(logits) - expected[0].numpy()
    rms = float(np.sqrt(np.mean(errors**2))) / float(expected.std())
    if FIGURES and model.name in NAMES:
        with open(FIGURES, "a", encoding="utf-8") as file:
            file.write(f"{PRESETS[model.name].family} {exactly:.1e} {rms:.4f}\n")
    assert exactly < UNROUNDED_MOST
    assert rms < EIGHT_BITS


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("odd-")])
def test_odd_sizes_are_padded(name: str, tmp_path: Path) -> None:
    model = Model(name, tmp_path)
    assert from_hf_config(open_checkpoint(model.checkpoint).config).unpadded is not None
    _graph(model)


@pytest.mark.slow
@pytest.mark.parametrize("native", [True, False], ids=["kernels", "bodies"])
def test_a_window_of_several_chunks(native: bool, tmp_path: Path) -> None:
    """As long as real ones, which are longer than a chunk of a prompt and than the kernels' blocks."""
    config = {**PRESETS["tiny-gemma3"].config, "sliding_window": 511}
    folder = write_random_checkpoint(
        tmp_path / "checkpoint", replace(PRESETS["tiny-gemma3"], max_context=2048, config=config)
    )
    levels = {"bits": (8,), "channel_density": (1.0,), "kv_density": (1.0,)}
    export_bundle(str(folder), tmp_path / "bundle", **levels, calibration="none", parity=False)
    engine = Engine(Bundle.open(tmp_path / "bundle"), provider="cpu", native_ops=native)
    source = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokens = random_tokens(1216, 300)
    with torch.no_grad():
        expected = source(torch.from_numpy(tokens)[None]).logits[0, -128:].numpy()
    logits = [engine.forward(tokens[:-16].tolist(), DENSE, num_logits=112).logits]
    logits += [engine.forward([int(token)], DENSE).logits for token in tokens[-16:]]
    errors = np.sqrt(np.mean((np.concatenate(logits) - expected) ** 2, axis=1)) / expected.std()
    assert errors.max() < 2 * EIGHT_BITS
    assert errors.mean() < EIGHT_BITS


@pytest.mark.slow
def test_longrope_beyond_its_original_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default the long factors hold, for the whole bundle: texts beyond the original context are transformers' own,
    shorter ones are not. Where memory is short, it is the other way round.
    """
    factors = {"short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
    config = {"original_max_position_embeddings": 64, "rope_scaling": {"type": "longrope", **factors}}
    shape = replace(PRESETS["tiny-phi3"], max_context=512, config=config)
    folder = write_random_checkpoint(tmp_path / "checkpoint", shape)
    source = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokens = random_tokens(300, 300)

    def error(bundle: Path, length: int) -> float:
        """Root mean square over the last tokens of a text that runs as a prompt and four steps."""
        with torch.no_grad():
            expected = source(torch.from_numpy(tokens[:length])[None], use_cache=False).logits[0, -20:].numpy()
        engine = Engine(Bundle.open(bundle), provider="cpu")
        logits = [engine.forward(tokens[: length - 4].tolist(), DENSE, num_logits=16).logits]
        logits += [engine.forward([int(token)], DENSE).logits for token in tokens[length - 4 : length]]
        return float(np.sqrt(np.mean((np.concatenate(logits) - expected) ** 2))) / float(expected.std())

    options = {"bits": (8,), "channel_density": (1.0,), "kv_density": (1.0,), "calibration": "none", "parity": False}
    said: list[str] = []
    export_bundle(str(folder), tmp_path / "long", **options, say=said.append)
    assert Bundle.open(tmp_path / "long").config.model.max_context == 512
    for length in (65, 100, 300):
        assert error(tmp_path / "long", length) < EIGHT_BITS, length
    assert error(tmp_path / "long", 60) > 2 * EIGHT_BITS
    assert said == []

    limit = memory.short_limit
    monkeypatch.setattr(memory, "short_limit", lambda config, kv, _: limit(config, kv, 50_000))
    export_bundle(str(folder), tmp_path / "short", **options, say=said.append)
    assert Bundle.open(tmp_path / "short").config.model.max_context == 64
    assert error(tmp_path / "short", 60) < EIGHT_BITS
    assert said == [
        "memory: too little for texts of more than 64 tokens, so the bundle has the rope factors of shorter ones; a "
        "larger -c takes the long ones"
    ]


@pytest.mark.slow
def test_a_context_that_ends_before_the_models_own_is_said(tmp_path: Path) -> None:
    folder = write_random_checkpoint(tmp_path / "source", replace(PRESETS["tiny-ministral3"], max_context=512))
    levels = {"bits": (8,), "channel_density": (1.0,), "kv_density": (1.0,)}
    said: list[str] = []
    for name, limit in (("own", None), ("given", 64)):
        where = tmp_path / name
        export_bundle(
            str(folder), where, **levels, calibration="none", parity=False, max_context=limit, say=said.append
        )
    assert said == [
        "context: 256 tokens, less than the model's own; positions from there on scale q (llama_4_scaling_beta), which "
        "is not supported"
    ]


@pytest.mark.slow
@pytest.mark.skipif(library_path() is None, reason="the native operators are not built")
@on_every_family
def test_parity_of_every_action(model: Model) -> None:
    """Three steps of every action; then several in a row, without pruning and with."""
    engine, exact = Engine(model.bundle, provider="cpu"), ReferenceModel.from_bundle(model.bundle.path)
    assert len(model.bundle.config.actions) == 4 * 5 * 4
    # the flip of one token shows at several densities
    check_steps(engine, exact, KV_DENSITIES, count=3, flip=PRUNED_FLIP)
    check_steps(engine, exact, (1.0, 0.1), ("s100-q8", "s050-q4"))


def _bodies(model: Model) -> None:
    """Steps that choose nothing against the reference model; then greedy tokens against the kernels."""
    engine, exact = (
        Engine(model.bundle, provider="cpu", native_ops=False),
        ReferenceModel.from_bundle(model.bundle.path),
    )
    tokens = random_tokens(PROMPT + 1, 300)
    for bits, most in ((8, NEAR), (6, FLIP), (4, FLIP), (3, FLIP)):
        engine.reset()
        engine.forward(tokens[:PROMPT], DENSE)
        cache = exact.new_cache(1)
        take_over(engine, cache)
        action = Action(1.0, 1.0, bits)
        logits, _ = exact.step(torch.tensor(tokens[PROMPT:]), [action], cache)
        assert difference(logits, engine.forward(tokens[PROMPT:], action).logits) < most, bits
    if library_path() is not None:
        kernels = Engine(model.bundle, provider="cpu")
        runs = [{"s100-q8": greedy(one, tokens.tolist(), DENSE, 16)} for one in (engine, kernels)]
        assert_same_choices(*runs)


def _generation(model: Model) -> None:
    prompt = random_tokens(PROMPT, 300).tolist()
    got = greedy(Engine(model.bundle, provider="cpu"), prompt, DENSE, 64)
    exact = ReferenceModel.from_bundle(model.bundle.path)
    cache, run = exact.new_cache(1), Run([], [])
    logits = exact(torch.tensor([prompt]), DENSE, cache, num_logits=1)[0][0, 0]
    while len(run.tokens) < 64:
        second, best = logits.sort().values[-2:].tolist()
        run.tokens.append(int(logits.argmax()))
        run.margins.append((best - second) / abs(best))
        logits = exact.step(torch.tensor(run.tokens[-1:]), [DENSE], cache)[0][0]
    equal = [a == b for a, b in zip(got.tokens, run.tokens, strict=True)]
    assert all(equal) or run.margins[equal.index(False)] <= TIE[8] / 10, (got.tokens, run.tokens)


@torch.inference_mode()
def _source_run(checkpoint: Checkpoint) -> torch.Tensor:
    """Runs transformers' model on a prompt, with a checkpoint's config and weights: float32 [PROMPT, hidden]."""
    decoder, tokens = from_hf_config(checkpoint.config), random_tokens(PROMPT, 300).tolist()
    model = SourceModel(checkpoint, decoder, FAMILIES[decoder.family], PROMPT)
    x = model.embed(tokens)[None]
    for layer in model.layers():
        x = model.run(layer, x)
    return model.final_norm(x)[0]


def _source(model: Model) -> None:
    family = FAMILIES[PRESETS[model.name].family]
    if family.gguf is None:
        pytest.skip("llama.cpp has no form of its own for the family")
    folder = open_checkpoint(model.checkpoint)
    decoder = from_hf_config(folder.config)
    path = model.folder / f"{model.name}.gguf"
    GgufFile(path, model.checkpoint).metadata(decoder.rotary_dim).tensors().head_norms().write()
    file = open_checkpoint(path)
    read = from_hf_config(file.config)
    assert replace(read, ropes=()) == replace(decoder, ropes=())
    for got, expected in zip(read.ropes, decoder.ropes, strict=True):  # GGUF has bases in float32
        np.testing.assert_allclose(got.inverse_frequencies, expected.inverse_frequencies, rtol=1e-6)
        assert got.attention_factor == pytest.approx(expected.attention_factor)
    assert set(file.names()) == set(folder.names())
    for name in folder.names():
        # llama.cpp's offset of norms costs the last bit
        np.testing.assert_allclose(file.read(name), folder.read(name), atol=1e-7 if family.norm_offset else 0.0, rtol=0)
    runs = [_source_run(one) for one in (file, folder)]  # what calibration and the parity report compare with
    torch.testing.assert_close(*runs, rtol=0, atol=1e-4)
    export_bundle(str(path), model.folder / "gguf", **LEVELS, calibration="none", parity=False)
    made, wanted = Bundle.open(model.folder / "gguf").config, model.bundle.config
    assert made.tensors == wanted.tensors
    assert made.variants == wanted.variants
    blobs = [(folder / "weights.bin").read_bytes() for folder in (model.folder / "gguf", model.bundle.path)]
    assert blobs[0] == blobs[1] or family.norm_offset


def test_parity_of_the_graph(model: Model) -> None:
    _graph(model)


@on_every_family
@pytest.mark.parametrize("rung", [_bodies, _generation, _source], ids=lambda rung: rung.__name__.strip("_"))
def test_parity(model: Model, rung: Callable[[Model], None]) -> None:
    rung(model)
