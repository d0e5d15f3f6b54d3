"""Runs of given tokens: equal results by every route, growth, rewinding, errors, providers."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.random_decoder import TRAITS, RandomDecoder, describe
from helpers.saved_session import saved
from helpers.tiny_bundle import write_bundle
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.cache_layout import CacheLayout
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.engine.providers import Provider
from sol_rt.errors import BundleError, ContextError, ProviderError, UsageError
from sol_rt.generate.native.engine import Engine
from sol_rt.ops import library_path

DENSE, CHEAP = Action(1.0, 1.0, 8), Action(0.3, 0.5, 4)
TOKENS = [int(token) for token in np.random.default_rng(1).integers(0, 90, 250)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(write_bundle(tmp_path_factory.mktemp("engine") / "tiny", gpu=True))


@pytest.fixture(scope="module")
def int8_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(write_bundle(tmp_path_factory.mktemp("engine") / "int8", kv="int8"))


@pytest.fixture(params=[("bundle", True), ("bundle", False), ("int8_bundle", True), ("int8_bundle", False)])
def engine(request: pytest.FixtureRequest) -> Engine:
    """With float16 and int8 caches, by kernels and bodies."""
    name, native = request.param
    if native and library_path() is None:
        pytest.skip("the native operators are not built")
    return Engine(request.getfixturevalue(name), provider="cpu", native_ops=native)


@pytest.fixture
def long(tmp_path: Path) -> Engine:
    """With a context of more than a chunk."""
    return Engine(Bundle.open(write_bundle(tmp_path / "long", decoder=replace(describe("llama"), max_context=1024))))


def _logits(engine: Engine, tokens: list[int], action: Action = DENSE) -> np.ndarray:
    """float32 [tokens, vocab], one decode step a token."""
    return np.stack([engine.forward([token], action).logits[0] for token in tokens])


def test_a_prompt_gives_the_reference_logits(engine: Engine, tmp_path: Path) -> None:
    decoder = RandomDecoder.write(describe("llama"), tmp_path, kv=engine.bundle.config.kv)
    reference, _ = decoder.logits(TOKENS[:40], 1.0, 8)
    output = engine.forward(TOKENS[:40], DENSE, num_logits=40)
    assert output.logits.shape == (40, 90)
    assert output.hidden.shape == (40, 64)
    assert np.abs(output.logits - reference).max() < 0.05


@pytest.mark.parametrize("family", sorted(TRAITS))
def test_every_family_gives_the_reference_logits(family: str, tmp_path: Path) -> None:
    """A prompt and steps after it, of the core's kernels."""
    decoder = RandomDecoder.write(describe(family), tmp_path)
    engine = Engine(Bundle.open(decoder.write_bundle(tmp_path, [(1.0, 8)])), provider="cpu")
    tokens = TOKENS[:40]
    reference, _ = decoder.logits(tokens, 1.0, 8)
    prompt = engine.forward(tokens[:30], DENSE, num_logits=30).logits
    got = np.concatenate([prompt, _logits(engine, tokens[30:])])
    assert np.abs(got - reference).max() < 0.02 * np.abs(reference).max()


def test_steps_chunks_and_batches_agree(engine: Engine) -> None:
    whole = engine.forward(TOKENS, DENSE, num_logits=len(TOKENS)).logits
    engine.reset()
    assert np.abs(_logits(engine, TOKENS) - whole).max() < 0.05
    engine.reset()
    few = [
        engine.forward(TOKENS[at : at + 16], DENSE, num_logits=len(TOKENS[at : at + 16])).logits.copy()
        for at in range(0, len(TOKENS), 16)
    ]
    assert np.abs(np.concatenate(few) - whole).max() < 0.05
    engine.reset()
    for start in range(0, len(TOKENS), 50):
        part = engine.forward(TOKENS[start : start + 50], DENSE, num_logits=2).logits
        assert np.abs(part - whole[start + 48 : start + 50]).max() < 0.05


@pytest.mark.skipif(library_path() is None, reason="the native operators are not built")
@pytest.mark.parametrize("name", ["bundle", "int8_bundle"])
def test_a_few_tokens_at_once_have_the_bits_of_steps(name: str, request: pytest.FixtureRequest) -> None:
    """Hidden states, logits and the cache, at every count, width and density of channels, all tokens attended."""
    bundle: Bundle = request.getfixturevalue(name)
    few, alone = (Engine(bundle, provider="cpu") for _ in range(2))
    actions = [listed.action for listed in bundle.config.actions if listed.action.kv_density == 1.0]
    assert len(actions) == 6
    for index, action in enumerate(actions):
        few.reset()
        few.forward(TOKENS[: 30 + index], action)
        alone.reset()
        alone.forward(TOKENS[: 30 + index], action)
        for count in range(2, 17):
            tokens = TOKENS[few.length : few.length + count]
            got = few.forward(tokens, action, num_logits=count)
            steps = [alone.forward([token], action) for token in tokens]
            assert np.array_equal(got.logits, np.concatenate([step.logits for step in steps])), (action, count)
            assert np.array_equal(got.hidden, np.concatenate([step.hidden for step in steps])), (action, count)
        caches = saved(few)[0], saved(alone)[0]
        assert caches[0].keys() == caches[1].keys()
        for tensor, rows in caches[0].items():
            assert rows.tobytes() == caches[1][tensor].tobytes(), (action, tensor)


@pytest.mark.skipif(library_path() is None, reason="the native operators are not built")
@pytest.mark.parametrize("family", sorted(TRAITS))
def test_a_few_tokens_of_every_family_have_the_bits_of_steps(family: str, tmp_path: Path) -> None:
    """Norms, windows, biases, activations: after a context longer than a window, and from an empty cache."""
    bundle = Bundle.open(RandomDecoder.write(describe(family), tmp_path).write_bundle(tmp_path, [(1.0, 8), (1.0, 4)]))
    few, alone = (Engine(bundle, provider="cpu") for _ in range(2))
    for bits in (8, 4):
        action = Action(1.0, 1.0, bits)
        for context in (0, 40):
            few.reset()
            alone.reset()
            if context > 0:
                few.forward(TOKENS[:context], action)
                alone.forward(TOKENS[:context], action)
            for count in (2, 3, 7, 16):
                tokens = TOKENS[few.length : few.length + count]
                got = few.forward(tokens, action, num_logits=count)
                steps = _logits(alone, tokens, action)
                assert np.array_equal(got.logits, steps), (bits, context, count)


def test_a_batch_that_ends_in_a_chunk_of_one_token_attends_all(long: Engine) -> None:
    """Whatever the step before it chose: a graph takes a chunk of one token for a step. A chunk has 512 tokens."""
    tokens = TOKENS * 3
    whole = long.forward(tokens[:513], DENSE).logits
    long.forward(tokens[513:514], Action(0.03, 1.0, 8))
    long.reset()
    assert np.array_equal(long.forward(tokens[:513], DENSE).logits, whole)


def test_a_run_leaves_what_the_step_before_gave(engine: Engine) -> None:
    """Whoever runs a batch between steps may still sample from the step before it."""
    engine.forward(TOKENS[:50], DENSE)
    output = engine.forward(TOKENS[50:51], CHEAP)
    logits, hidden = output.logits.copy(), output.hidden.copy()
    engine.truncate(3)
    batch = engine.forward(TOKENS[3:51], DENSE)
    assert not np.array_equal(batch.logits, logits)
    assert np.array_equal(output.logits, logits)
    assert np.array_equal(output.hidden, hidden)


def test_logits_of_the_last_positions_only(engine: Engine) -> None:
    whole = engine.forward(TOKENS, DENSE, num_logits=len(TOKENS)).logits
    engine.reset()
    assert np.array_equal(engine.forward(TOKENS, DENSE, num_logits=200).logits, whole[50:])


def test_the_cache_grows_in_steps(engine: Engine) -> None:
    grown, before = [], engine.private_bytes
    for token in TOKENS:
        engine.forward([token], CHEAP)
        if engine.private_bytes > before:
            grown.append((engine.length, engine.private_bytes - before))
            before = engine.private_bytes
    step = CacheLayout(engine.bundle.config.model, engine.bundle.config.kv).bytes_at(64)
    assert [(length, added) for length, added in grown if added >= step] == [
        (1, grown[0][1]), (65, step), (129, step), (193, step)
    ]  # fmt: skip


def test_growth_of_the_cache_changes_no_logits(engine: Engine) -> None:
    roomy = Engine(engine.bundle, provider="cpu", native_ops=engine.native)
    roomy.forward(TOKENS[:200], DENSE)
    roomy.reset()
    assert np.array_equal(_logits(engine, TOKENS[:130], CHEAP), _logits(roomy, TOKENS[:130], CHEAP))


def test_variants_continue_each_other(engine: Engine) -> None:
    """Whatever ran before, a step's result depends only on the cache: two engines with equal steps stay equal."""
    other = Engine(engine.bundle, provider="cpu", native_ops=engine.native)
    for key in reversed(engine.bundle.config.variants):
        other.forward([3], Action.parse(f"k100-{key}"))
    other.reset()
    for index, token in enumerate(TOKENS[:80]):
        action = engine.bundle.config.actions[index % len(engine.bundle.config.actions)].action
        assert np.array_equal(engine.forward([token], action).logits, other.forward([token], action).logits)


def test_native_operators_agree_with_the_bodies(bundle: Bundle) -> None:
    if library_path() is None:
        pytest.skip("the native operators are not built")
    native, bodies = (Engine(bundle, provider="cpu", native_ops=flag) for flag in (True, False))
    assert (native.native, bodies.native) == (True, False)
    for tokens, action in (
        (TOKENS[:60], DENSE),
        (TOKENS[60:61], DENSE),
        (TOKENS[61:62], Action(1.0, 1.0, 4)),
    ):
        a, b = (engine.forward(tokens, action) for engine in (native, bodies))
        assert np.abs(a.logits - b.logits).max() < (0.3 if action.bits == 4 else 0.05)


def test_rewinding_repeats_exactly(engine: Engine) -> None:
    engine.forward(TOKENS[:40], DENSE)
    first = _logits(engine, TOKENS[40:60], CHEAP)
    engine.truncate(40)
    assert engine.length == 40
    assert list(engine.tokens) == TOKENS[:40]
    _logits(engine, TOKENS[100:130], DENSE)
    engine.truncate(40)
    assert np.array_equal(_logits(engine, TOKENS[40:60], CHEAP), first)
    with pytest.raises(UsageError, match="truncate"):
        engine.truncate(61)


def test_a_lower_kv_density_reads_fewer_pages(engine: Engine) -> None:
    engine.forward(TOKENS[:200], DENSE)
    dense = engine.forward([5], DENSE).logits
    engine.truncate(200)
    assert not np.array_equal(engine.forward([5], Action(0.1, 1.0, 8)).logits, dense)
    engine.truncate(200)
    assert np.array_equal(engine.forward([5], Action(1.0, 1.0, 8)).logits, dense)


def test_context_limits(engine: Engine) -> None:
    engine.forward([1] * 256, DENSE)
    with pytest.raises(ContextError, match=r"257 tokens, expected at most 256"):
        engine.forward([1], DENSE)
    assert engine.length == 256
    capped = Engine(engine.bundle, provider="cpu", max_context=20)
    with pytest.raises(ContextError, match="21 tokens"):
        capped.forward([1] * 21, DENSE)
    assert capped.length == 0


@pytest.mark.parametrize("tokens", [[], [90], [-1], [1, 2, 90], [1, -1]])
def test_tokens_outside_the_vocabulary(engine: Engine, tokens: list[int]) -> None:
    with pytest.raises(UsageError):
        engine.forward(tokens, DENSE)
    assert engine.length == 0


def test_unknown_variant(engine: Engine) -> None:
    with pytest.raises(UsageError, match="s025-q8"):
        engine.forward([1], Action(1.0, 0.25, 8))


@pytest.mark.slow
def test_steps_allocate_nothing_that_grows(engine: Engine) -> None:
    actions = [entry.action for entry in engine.bundle.config.actions]
    engine.forward(TOKENS[:60], DENSE)

    def rounds(count: int) -> None:
        for index in range(count):
            engine.truncate(40)
            engine.forward((7,), actions[index % len(actions)])

    rounds(50)
    gc.collect()
    tracemalloc.start()
    rounds(20)
    before = tracemalloc.get_traced_memory()[0]
    rounds(2000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 8 * 2000  # less than one reference a step


def test_one_pool_a_process(bundle: Bundle) -> None:
    threads = Engine(bundle, provider="cpu").threads
    Engine(bundle, provider="cpu", threads=threads)
    with pytest.raises(UsageError, match=f"already runs {threads}"):
        Engine(bundle, provider="cpu", threads=threads + 1)
    with pytest.raises(UsageError, match=r"expected a whole number from 1"):
        Engine(bundle, provider="cpu", threads=0)


def test_providers_by_name(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="expected one of auto, cpu"):
        Engine(bundle, provider="gpu")
    with pytest.raises(ProviderError, match="onnxruntime-gpu"):
        Engine(bundle, provider="cuda")


_IN_A_PROCESS = """
import sys
from sol_rt.bundle.bundle import Bundle
from sol_rt.generate.native.engine import Engine
from sol_rt.errors import SolError
try:
    engine = Engine(Bundle.open(sys.argv[1]), provider=sys.argv[2])
    print("chose", engine.provider_name, engine.provider.software, end=";")
    engine.forward([1, 2, 3, 4], engine.bundle.config.dense)
    for index in range(70):
        actions = [entry.action for entry in engine.bundle.config.actions if entry.action.variant.startswith("s100")]
        actions = [action for action in actions if action.kv_density == 1.0]
        output = engine.forward([index % 90], actions[-index % len(actions)])
    print(" ".join(f"{value:.4f}" for value in output.logits[0]))
except SolError as error:
    print(type(error).__name__, error)
"""


def _process(bundle: Bundle, provider: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ORT_WEBGPU")}
    return subprocess.run(
        [sys.executable, "-c", _IN_A_PROCESS, str(bundle.path), provider],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )


@pytest.fixture
def software_vulkan() -> dict[str, str]:
    pytest.importorskip("onnxruntime_ep_webgpu")
    return {"ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1"}


@pytest.mark.slow
def test_an_asked_for_provider_runs_with_its_own_cache(bundle: Bundle, software_vulkan: dict[str, str]) -> None:
    run = _process(bundle, "webgpu", **software_vulkan)
    if "ProviderError" in run.stdout:
        pytest.skip(f"no software Vulkan here: {run.stdout}")
    chosen, _, logits = run.stdout.partition(";")
    assert chosen == "chose webgpu True"
    on_cpu = _process(bundle, "cpu").stdout.partition(";")[2]
    difference = np.array(logits.split(), float) - np.array(on_cpu.split(), float)
    assert np.abs(difference).max() < 0.2


def test_auto_passes_over_a_software_adapter_and_says_so(bundle: Bundle, software_vulkan: dict[str, str]) -> None:
    run = _process(bundle, "auto", **software_vulkan)
    assert run.stdout.startswith("chose cpu False")
    assert "webgpu" in run.stderr


def test_auto_is_quiet_where_there_is_no_device(bundle: Bundle) -> None:
    pytest.importorskip("onnxruntime_ep_webgpu")
    run = _process(bundle, "auto", VK_DRIVER_FILES="/nonexistent", VK_ICD_FILENAMES="/nonexistent")
    if not run.stdout.startswith("chose cpu"):
        pytest.skip("a GPU is here")
    assert run.stderr == ""


def test_a_provider_without_a_device_is_an_error(bundle: Bundle) -> None:
    pytest.importorskip("onnxruntime_ep_webgpu")
    run = _process(bundle, "webgpu", VK_DRIVER_FILES="/nonexistent", VK_ICD_FILENAMES="/nonexistent")
    if run.stdout.startswith("chose webgpu False"):
        pytest.skip("a GPU is here")
    assert run.stdout.startswith("ProviderError provider webgpu")
    assert "\n" not in run.stdout.strip()


@pytest.mark.parametrize("native", [True, False])
def test_an_int8_cache_is_near_a_float16_one(bundle: Bundle, int8_bundle: Bundle, native: bool) -> None:
    """The same weights: logits differ, by a few percent of their deviation at most."""
    if native and library_path() is None:
        pytest.skip("the native operators are not built")
    a, b = (Engine(made, provider="cpu", native_ops=native) for made in (bundle, int8_bundle))
    outputs = [engine.forward(TOKENS[:200], DENSE, num_logits=200).logits for engine in (a, b)]
    steps = [_logits(engine, TOKENS[200:220]) for engine in (a, b)]
    for first, second in (outputs, steps):
        assert 0 < np.sqrt(np.mean((first - second) ** 2)) < 0.03 * first.std()


def test_webgpu_refuses_an_int8_cache_and_auto_passes_it_over(int8_bundle: Bundle) -> None:
    with pytest.raises(ProviderError, match=r"provider webgpu: has no operators on int8.*--provider cpu"):
        Engine(int8_bundle, provider="webgpu")
    assert Engine(int8_bundle, provider="auto").provider_name != "webgpu"


def test_a_graph_of_the_other_cache_is_refused(int8_bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(int8_bundle.path, folder)
    document = json.loads((folder / CONFIG_NAME).read_text())
    document["kv"]["dtype"] = "float16"
    (folder / CONFIG_NAME).write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"(past|present).*the graph belongs to another bundle"):
        Engine(Bundle.open(folder), provider="cpu").forward([1], DENSE)


def test_the_probes_are_what_their_source_says() -> None:
    from probe_graph import models

    from sol_rt.engine import probes

    folder = Path(str(probes.__file__)).parent
    assert {path.stem for path in folder.glob("*.onnx")} == models().keys()
    for name, model in models().items():
        path = folder / f"{name}.onnx"
        assert path.read_bytes() == model.SerializeToString(deterministic=True), path.name


def test_a_library_that_is_none_is_named(tmp_path: Path) -> None:
    library = tmp_path / "libsol_ops_cpu.so"
    library.write_text("not a library")
    for name, instead in {"cpu": "--no-native-ops", "cuda": "use --provider cpu"}.items():
        with pytest.raises(ProviderError) as caught:
            Provider(name, 1, library).options()
        assert str(library) in str(caught.value)
        assert instead in str(caught.value)
        assert "\n" not in str(caught.value)
