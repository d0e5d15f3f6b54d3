"""The native core's engine: a cache that lives on in a file, errors of one line, and hosts of several kinds."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import full_disk, no_network
from helpers.core_build import ADDRESS, THREAD, core_build, ort_library, valgrind
from helpers.core_steps import Core
from helpers.places import TESTS
from helpers.policy_session import PolicySession
from helpers.random_decoder import hf_config, screenable
from helpers.tiny_bundle import seal, write_bundle
from sol_rt.budget.cost.cost_table import CostTable
from sol_rt.budget.cost.model import Line
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import Screen
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.policy_inputs import KNOWN_SCALARS
from sol_rt.engine.hardware.tuning import Tuning
from sol_rt.export.graphs.policy_graph import PolicyShape, random_policy_parameters
from sol_rt.export.policy_file import TrainedPolicy, give_policy, write_policy
from sol_rt.export.sources.decoder import from_hf_config
from sol_rt.generate.native.engine import Engine

USAGE, BUNDLE, RUNTIME, CONTEXT, WRITE = 1, 2, 3, 4, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("native") / "tiny", policy=True)


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("native") / "int8", kv="int8", dense_layers=(0,))


def test_a_vocabulary_that_no_graph_has_takes_no_memory(folder: Path, tmp_path: Path) -> None:
    """The config alone says that the logits are 2 GB."""
    edited = tmp_path / "edited"
    shutil.copytree(folder, edited)
    config = json.loads((edited / "sol_config.json").read_text(encoding="utf-8"))
    config["model"]["vocab_size"] = 2**29
    del config["weights"]["tensors"]["embed.scale"]  # its shape repeats the vocabulary
    (edited / "sol_config.json").write_text(json.dumps(config), encoding="utf-8")
    with Core(tmp_path / "results") as core:
        core.do(f"load {edited}")
        core.do("engine")
        core.fails("forward k100-s100-q8 3 4", BUNDLE, str(edited))
        status = Path(f"/proc/{core.process.pid}/status").read_text(encoding="utf-8")
        peak = int(status.partition("VmHWM:")[2].split()[0])  # kB
        assert peak < 1_000_000


LINEAR: dict[str, dict[str, Any]] = {
    "both": {},
    "hidden": {"use_embedding": False},
    "embedding": {"use_hidden": False, "scalar_size": 40},
    "scalars": {"use_hidden": False, "use_embedding": False, "scalar_size": 3},
}


@pytest.mark.parametrize("name", ["transformer", *LINEAR])
def test_core_runs_the_policy_as_its_graph_does(name: str, tmp_path: Path) -> None:
    """A network of two layers is the core's own arithmetic; ONNX Runtime runs the other."""
    bundle = Bundle.open(write_bundle(tmp_path / "tiny", policy=True))
    folder = bundle.path
    if name in LINEAR:
        actions = tuple(entry.action for entry in bundle.config.actions)
        shape = PolicyShape(bundle.config.model.hidden_size, len(KNOWN_SCALARS), len(actions), width=0, **LINEAR[name])
        parameters = random_policy_parameters(0, shape)
        write_policy(tmp_path / "linear", TrainedPolicy(shape, KNOWN_SCALARS, actions, "", parameters))
        bundle = give_policy(folder, tmp_path / "linear")
    policy = PolicySession(bundle)
    engine = Engine(bundle, provider="cpu")
    draw = np.random.default_rng(1)
    with Core(tmp_path / "results") as core:
        core.do(f"load {folder}")
        core.do("engine")
        for episode in range(2):
            for step in range(policy.spec.horizon):
                output = engine.forward([step + 3], bundle.config.dense)
                core.forward(bundle.config.dense, [step + 3])
                scalars = draw.standard_normal(len(policy.spec.scalars)).astype(np.float32)
                given = dict(zip(policy.spec.scalars, scalars.tolist(), strict=True))
                previous = step % (len(policy.spec.actions) + 1) - 1
                expected = policy.decide(output.hidden, step, given, previous, step)
                asked = f"decide {step} {previous} {step} {' '.join(f'{value:.9g}' for value in scalars)}"
                assert core.do(asked) == (name in LINEAR)
                np.testing.assert_allclose(core.floats(), expected, rtol=0, atol=1e-5, err_msg=f"{episode}, {step}")
            policy.reset()
            core.do("reset")


def test_wrong_calls(folder: Path, tmp_path: Path) -> None:
    with Core(tmp_path / "results") as core:
        core.fails(f"load {tmp_path / 'none'}", BUNDLE, "no such folder")
        core.do(f"load {folder} 40")
        core.do("engine")
        core.fails("forward k100-s100-q8 90", USAGE, "token 90", "0 to 89")
        core.fails("forward k100-s100-q8 -1", USAGE, "token -1")
        core.fails("forward k100-s100-q8", USAGE, "one or more")
        core.fails("forward k100-s070-q8 3", USAGE, "variant s070-q8", "not in this bundle")
        core.fails(f"forward k100-s100-q8 {' '.join(['3'] * 41)}", CONTEXT, "41 tokens", "at most 40")
        core.do(f"forward k100-s100-q8 {' '.join(['3'] * 40)}")
        core.fails("forward k100-s100-q8 3", CONTEXT, "at most 40")
        core.fails("truncate 41", USAGE, "0 to 40")
        core.do("truncate 39")
        core.do("forward k100-s100-q8 3")


def test_a_rewound_cache_goes_on_as_a_fresh_one(folder: Path, tmp_path: Path) -> None:
    dense, sparse = Action(1.0, 1.0, 8), Action(0.3, 0.5, 4)
    with Core(tmp_path / "results") as core:
        core.do(f"load {folder}")
        core.do("engine")
        core.forward(dense, list(range(3, 73)))
        core.do("truncate 30")
        rewound = core.forward(sparse, [5])
        core.do("engine")
        core.forward(dense, list(range(3, 33)))
        assert np.array_equal(core.forward(sparse, [5]), rewound)


@pytest.mark.parametrize("cache", ["float16", "int8"])
def test_a_saved_cache_goes_on_where_it_was(folder: Path, int8: Path, tmp_path: Path, cache: str) -> None:
    dense, sparse = Action(1.0, 1.0, 8), Action(0.3, 0.5, 4)
    with Core(tmp_path / "results") as core:
        core.do(f"load {folder if cache == 'float16' else int8}")
        core.do("engine")
        core.forward(dense, list(range(3, 76)))
        core.do(f"save {tmp_path / 'session'}")
        expected = [core.forward(sparse, [token]) for token in (5, 6, 7, 8, 9)]
        core.do("engine")
        assert core.do(f"restore {tmp_path / 'session'}") == 73
        assert all(
            np.array_equal(core.forward(sparse, [token]), numbers)
            for token, numbers in zip((5, 6, 7, 8, 9), expected, strict=True)
        )


def test_damaged_and_foreign_session_files(folder: Path, int8: Path, tmp_path: Path) -> None:
    session, damaged = tmp_path / "session", tmp_path / "damaged"
    with Core(tmp_path / "results") as core:
        core.do(f"load {folder}")
        core.do("engine")
        core.forward(Action(1.0, 1.0, 8), list(range(3, 30)))
        core.do(f"save {session}")
        content = session.read_bytes()
        for at in [*range(0, 110, 3), *range(110, len(content), len(content) // 60), len(content) - 1]:
            damaged.write_bytes(content[:at] + bytes([content[at] ^ 0x41]) + content[at + 1 :])
            core.fails(f"restore {damaged}", BUNDLE, "session file")
            assert core.do("use 0") == 0
        for size in (0, 7, 100, len(content) - 1):
            damaged.write_bytes(content[:size])
            core.fails(f"restore {damaged}", BUNDLE, "ends too early")
        assert core.do(f"restore {session}") == 27
        core.do(f"load {int8}")
        core.do("engine")
        core.fails(f"restore {session}", BUNDLE, "another bundle")
    with Core(tmp_path / "results", native=False) as core:
        core.do(f"load {folder}")
        core.do("engine")
        assert core.do(f"restore {session}") == 27
        core.do(f"save {tmp_path / 'bodies'}")
    with Core(tmp_path / "results") as core:
        core.do(f"load {folder}")
        core.do("engine")
        core.fails(f"restore {tmp_path / 'bodies'}", BUNDLE, "function bodies")


def test_tokens_that_a_session_file_does_not_hold_take_no_memory(tmp_path: Path) -> None:
    """Its header alone says that the cache is 560 MB."""
    sizes: dict[str, Any] = {"num_key_value_heads": 4, "head_dim": 64, "num_hidden_layers": 8}
    config = {**hf_config("llama"), **sizes, "max_position_embeddings": 1 << 16}
    made = {"bits": (8,), "channel_densities": (1.0,), "kv_densities": (1.0,)}
    folder, session = write_bundle(tmp_path / "long", decoder=from_hf_config(config), **made), tmp_path / "session"
    with Core(tmp_path / "results") as core:
        core.do(f"load {folder}")
        core.do("engine")
        core.forward(Action(1.0, 1.0, 8), list(range(3, 30)))
        core.do(f"save {session}")
        content = bytearray(session.read_bytes())
        for tokens in (60_000, 6000):
            struct.pack_into("<Q", content, 96, tokens)
            firsts = 104 + 4 * tokens  # after header and tokens: by layer the first token that is held, here 0
            content[firsts : firsts + 8 * 8] = bytes(len(content[firsts : firsts + 8 * 8]))
            session.write_bytes(content)
            core.fails(f"restore {session}", BUNDLE, "ends too early")
        status = Path(f"/proc/{core.process.pid}/status").read_text(encoding="utf-8")
        peak = int(status.partition("VmHWM:")[2].split()[0])  # kB
        assert peak < 300_000


def test_a_full_disk_keeps_the_old_session_file(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "disk"
    kept.mkdir()
    (kept / "session").write_bytes(b"old")
    for changes in range(6):
        environment = {
            key: value for key, value in full_disk.environment(kept, changes).items() if key not in os.environ
        }
        with Core(tmp_path / "results", **environment) as core:
            core.do(f"load {folder}")
            core.do("engine")
            core.forward(Action(1.0, 1.0, 8), list(range(3, 80)))
            answer = core.say(f"save {kept / 'session'}")
            written = answer.startswith("ok")
            assert written or (answer.startswith(f"error {WRITE} ") and "cannot be written" in answer), answer
        if written:
            break
        assert (kept / "session").read_bytes() == b"old"
        assert changes > 0 or [entry.name for entry in kept.iterdir()] == ["session"]
    assert changes > 0
    assert (kept / "session").stat().st_size > 1000


def test_no_telemetry(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime 1.32 writes its telemetry's files as soon as it is used, and sends them seconds later."""
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    with Core(tmp_path / "results", **no_network.environment(tmp_path / "machine")) as core:
        core.do(f"load {folder}")
        core.do("engine")
        core.do("forward k100-s100-q8 3 4 5")
    assert not no_network.traces(tmp_path / "machine")


def test_weights_that_are_written_to_while_in_use(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "tiny"))
    with Core(tmp_path / "results") as core:
        core.do(f"load {copy}")
        core.do("engine")
        core.do("forward k100-s100-q8 3 4 5")
        with (copy / "weights.bin").open("r+b") as file:
            file.write(b"x")
        core.fails("forward k100-s100-q8 6", BUNDLE, "other content", "load the bundle again")


def test_a_graph_that_is_replaced_before_its_first_use(folder: Path, tmp_path: Path) -> None:
    """The graph that was hashed when the bundle was opened is the graph that runs."""
    copy, dense = Path(shutil.copytree(folder, tmp_path / "tiny")), Action(1.0, 1.0, 8)
    with Core(tmp_path / "results") as core:
        core.do(f"load {folder}")
        core.do("engine")
        expected = core.forward(dense, [3])
        core.do(f"load {copy}")
        core.do("engine")
        shutil.copy(copy / "model.q4.onnx", copy / "model.q8.onnx")
        assert np.array_equal(core.forward(dense, [3]), expected)
        core.fails(f"load {copy}", BUNDLE, "model.q8.onnx")


def test_a_graph_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "tiny"))
    (copy / "model.q8.onnx").write_bytes(b"no graph")
    seal(copy, Bundle.open(folder).config)
    with Core(tmp_path / "results") as core:
        core.do(f"load {copy}")
        core.do("engine")
        for _ in range(2):
            core.fails("forward k100-s100-q8 3", BUNDLE, "model.q8.onnx: got bytes that are not an ONNX model")
        (copy / "model.q8.onnx").write_bytes(b"not that")
        core.fails("forward k100-s100-q8 3", BUNDLE, "model.q8.onnx", "the bundle was replaced")
        core.do("forward k100-s100-q4 3")
        core.do(f"forward k100-s100-q4 {' '.join(['3'] * 100)}")  # the cache grows beside what failed


def test_two_models_at_once(folder: Path, int8: Path, tmp_path: Path) -> None:
    tokens, dense = [3, 4, 5, 6], Action(1.0, 1.0, 8)
    with Core(tmp_path / "results") as core:
        core.do(f"load {folder}")
        core.do("engine")
        core.do(f"load {int8}")
        core.do("engine")
        second = core.forward(dense, tokens)
        core.do("use 0")
        first = core.forward(dense, tokens)
        core.do("use 1")
        core.do("truncate 0")
        assert np.array_equal(core.forward(dense, tokens), second)
        assert not np.array_equal(first, second)
        core.do("drop")


def fake_library(folder: Path, version: str | None, *options: str) -> Path:
    """A library in ONNX Runtime's place that answers with a version and no functions; None: without its entry."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler for Linux")
    source = TESTS / "helpers" / "fake_runtime.c"
    if version is None:
        source = folder / "no_entry.c"
        source.write_text("int unused;")
    built = folder / "libfake.so"
    command = [compiler, "-shared", "-fPIC", f'-DFAKE_VERSION="{version}"', "-o", str(built), str(source), *options]
    subprocess.run(command, check=True)
    return built


@pytest.mark.parametrize(
    ("library", "parts"),
    [
        ("/nowhere/libonnxruntime.so.1", ("'/nowhere/libonnxruntime.so.1'", "cannot be used")),
        (None, ("no function OrtGetApiBase",)),
        ("1.16.3", ("version '1.16.3' in '", "/libfake.so', expected 1.23 or newer; upgrade it")),
        ("1.22.1", ("version '1.22.1' in '", "/libfake.so', expected 1.23 or newer; upgrade it")),
        ("1.40.0", ("version '1.40.0' in '", "/libfake.so', without version 21 of its C API", "; use another release")),
    ],
)
def test_onnx_runtime_that_is_missing_or_too_old(tmp_path: Path, library: str | None, parts: tuple[str, ...]) -> None:
    path = library if library is not None and "/" in library else str(fake_library(tmp_path, library))
    command = [str(core_build("engine_steps") / "engine_steps"), path, "1", "2", str(tmp_path / "results")]
    done = subprocess.run(command, input="", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith(f"error {RUNTIME} ONNX Runtime: got ")
    assert all(part in done.stdout for part in parts), done.stdout
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("version", ["1.26.0", "1.27.0"])
def test_a_refused_function_body_names_the_oldest_runtime(folder: Path, tmp_path: Path, version: str) -> None:
    copy, graph = Path(shutil.copytree(folder, tmp_path / "tiny")), "model.q8.onnx"
    (copy / graph).write_bytes((copy / graph).read_bytes().replace(b"RMSNormalization", b"RMXNormalization"))
    seal(copy, Bundle.open(folder).config)
    library = fake_library(tmp_path, version, f'-DFAKE_REAL="{ort_library()}"', "-ldl")
    command = [core_build("engine_steps") / "engine_steps", library, "0", "2", tmp_path / "results"]
    steps = f"load {copy}\nengine\nforward k100-s100-q8 3\n"
    answers = subprocess.run(command, input=steps, capture_output=True, text=True, check=True).stdout.splitlines()
    assert answers[0] == f"ok {version}"
    says = "ONNX Runtime 1.27 or newer for function bodies, this is 1.26.0; upgrade it, or use native operators"
    if version == "1.27.0":
        says = "a graph of this bundle; export the bundle again"
    assert f"{graph}: got a graph that ONNX Runtime refuses (" in answers[-1]
    assert answers[-1].endswith(f", expected {says}")


def with_table(core: Core, bundle: Bundle, file: Path, tuning: Tuning | None, threads: int = 2) -> Tuning:
    """Settings of the operators after the core has loaded a table of costs that names settings."""
    lines = {key: {1.0: Line(1.0, 1e-3, 0.0, 0.01)} for key in bundle.config.variants}
    device = f"a processor, {threads} threads, cpu, kernels"
    made = CostTable(bundle.identity, device, "now", 0.0, lines, tuning=tuning)
    file.write_text(made.to_json(), encoding="utf-8")
    packed = core.do(f"costs {file}")
    return Tuning(packed >> 40 & 0xFF, packed & 0xFFFFFF, packed >> 24 & 0xFFFF, bool(packed >> 48))


def test_a_table_brings_the_settings_of_the_operators(folder: Path, tmp_path: Path) -> None:
    """The table's times were taken under these settings, which count for as many threads as the table's: here two."""
    bundle, file, named = Bundle.open(folder), tmp_path / "table", Tuning(1, 49152, 1)
    with Core(tmp_path / "results") as core:
        core.do(f"load {folder}")
        assert with_table(core, bundle, file, None) == Tuning()
        assert with_table(core, bundle, file, named, threads=8) == Tuning()
        assert with_table(core, bundle, file, named) == named
        assert with_table(core, bundle, file, None) == named


def test_a_table_brings_copies_where_memory_has_room(tmp_path: Path) -> None:
    """Four times what they take must be free, in a container eight times. Mounts in its own view show a process other
    memory.
    """
    heads: dict[str, Any] = {"lm_head_bits": {8: 8, 4: 8}, "screens": {4: Screen(20, 0.5, 3)}}
    folder = write_bundle(tmp_path / "tiny", decoder=screenable("llama"), bits=(8, 4), **heads)
    bundle, memory = Bundle.open(folder), tmp_path / "meminfo"
    memory.touch()
    container = tmp_path / "cgroup"
    container.mkdir()
    mounts = f"mount --bind {memory} /proc/meminfo && mount --bind {container} /sys/fs/cgroup"
    before = ("unshare", "-rm", "sh", "-c", f'{mounts} && exec "$@"', "sh")
    if shutil.which("unshare") is None or subprocess.run([*before, "true"], check=False).returncode != 0:
        pytest.skip("a process here cannot have mounts of its own")
    bases = sum(entry.bytes for name, entry in bundle.config.tensors.items() if entry.dtype == "uint4")
    (places,) = bundle.config.tensors["embed.screen.output_scale"].shape
    copied = bases * 19 // 16 + places * bundle.config.model.hidden_size * 13 // 32  # 3 bits, and 8 for each block
    needed = -(-4 * copied // 1024)
    assert needed > 1
    with Core(tmp_path / "results", before=before) as core:
        core.do(f"load {folder}")
        for line, limit, room in (
            (f"Available: {needed} kB", "", True),
            (f"Available: {needed - 1} kB", "", False),
            ("", "", True),  # the machine has more than a tiny model needs
            (f"Available: {needed} kB", "max", True),
            (f"Available: {needed} kB", f"{needed * 2048}", True),
            (f"Available: {needed} kB", f"{needed * 2048 - 2048}", False),
        ):
            memory.write_text(f"MemTotal: 123456789 kB\nMemFree: 123456789 kB\nMem{line}\n", encoding="ascii")
            (container / "memory.max").write_text(f"{limit}\n", encoding="ascii")
            assert with_table(core, bundle, tmp_path / "table", Tuning(copies=True)) == Tuning(copies=room), line


def chosen(core: Core, times: np.ndarray) -> int:
    """Place of the setting that the core takes, by times [rounds, settings]."""
    return core.do(f"choose {times.shape[1]} " + " ".join(map(str, (times[:, :1] / times).ravel().tolist())))


def test_the_fastest_setting_is_taken_where_it_is_faster_in_most_rounds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times = np.array([10.0, 8.0, 12.0]) * rng.uniform(0.99, 1.01, (20, 3))
    with Core(tmp_path / "results") as core:
        assert chosen(core, times) == 1
        assert chosen(core, times * rng.uniform(1.0, 3.0, 20)[:, None]) == 1  # a machine that slows down for all


def test_the_default_setting_stays_where_none_is_clearly_faster(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with Core(tmp_path / "results") as core:
        assert chosen(core, rng.uniform(0.99, 1.01, (20, 8))) == 0
        assert chosen(core, rng.uniform(0.5, 2.0, (20, 8))) == 0
        for rounds, scatter in product((4, 6, 12), (0.05, 0.15)):
            left = [chosen(core, np.exp(scatter * rng.normal(size=(rounds, 5)))) != 0 for _ in range(400)]
            assert np.mean(left) < 0.06  # one in six where only the order of the times counts


def fitted(core: Core, samples: Sequence[tuple[float, float, float]]) -> Line:
    """The line that the core fits to (tokens read, pages scored, milliseconds)."""
    core.do("fit " + " ".join(repr(float(number)) for sample in samples for number in sample))
    return Line(*map(float, core.floats()))


def test_a_fit_finds_exact_lines_and_never_goes_negative(tmp_path: Path) -> None:
    samples = [(t, p, 3.0 + 0.01 * t + 0.02 * p) for t, p in ((100, 0), (500, 30), (1000, 5), (4000, 250))]
    with Core(tmp_path / "results") as core:
        line = fitted(core, samples)
        assert (line.fixed, line.per_token, line.per_page) == pytest.approx((3.0, 0.01, 0.02))
        assert line.error < 1e-6
        falling = fitted(core, [(100, 0, 5.0), (1000, 0, 4.0), (2000, 0, 3.9)])
        assert (falling.per_token, falling.per_page) == (0, 0)
        assert falling.error > 0.05
        random = np.random.default_rng(0)
        for count in range(1, 13):  # of anything
            made = random.uniform((1, 0, 0.01), (9000, 600, 100), (count, 3))
            line = fitted(core, [(tokens, pages, ms) for tokens, pages, ms in made.tolist()])
            numbers = (line.fixed, line.per_token, line.per_page, line.error)
            assert min(numbers) >= 0
            assert np.isfinite(numbers).all()


def test_a_few_disturbed_timings_do_not_move_the_line(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    samples = []
    for number, (tokens, pages) in enumerate((t, p) for t in (64, 512, 2048, 8000) for p in (0, 4, 120, 499)):
        clean = (3.0 + 4e-4 * tokens + 1e-3 * pages) * float(random.uniform(0.99, 1.01))
        samples.append((tokens, pages, clean * (3.0 if number in (3, 9, 14) else 1.0)))
    with Core(tmp_path / "results") as core:
        line = fitted(core, samples)
    for tokens, pages, _ in samples:
        assert line.at(tokens, pages) == pytest.approx(3.0 + 4e-4 * tokens + 1e-3 * pages, rel=0.02)
    assert line.error > 0.2  # and what it is off by is said


@pytest.mark.parametrize("timings", ["", "1 0 0", "1 0 -1"])
def test_a_fit_refuses_unusable_timings(timings: str, tmp_path: Path) -> None:
    with Core(tmp_path / "results") as core:
        core.fails(f"fit {timings}", 5, "no usable timing; run `sol-rt profile` again")


def test_a_host_with_an_environment_of_its_own(folder: Path, tmp_path: Path) -> None:
    """A process has one environment; this one has no threads to share, so each session gets its own."""
    dense, numbers = Action(1.0, 1.0, 8), []
    for host in ("", "host:"):
        with Core(tmp_path / f"results{len(host)}", host=host) as core:
            core.do(f"load {folder}")
            core.do("engine")
            numbers.append(core.forward(dense, list(range(3, 40))))
            assert core.do("threads 2 20") == 0
    assert np.array_equal(*numbers)


def test_two_engines_in_two_threads(folder: Path, tmp_path: Path) -> None:
    with Core(tmp_path / "results") as core:
        core.do(f"load {folder}")
        assert core.do("threads 4 60") == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_a_thousand_loads_leave_nothing_behind(folder: Path, tmp_path: Path) -> None:
    def held(process: int) -> tuple[int, int]:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
        resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(resident.split()[1]), len(list(Path(f"/proc/{process}/fd").iterdir()))

    with Core(tmp_path / "results") as core:
        core.do(f"cycles 100 {folder}")
        before = held(core.process.pid)
        core.do(f"cycles 1000 {folder}")
        after = held(core.process.pid)
    assert after[1] == before[1]
    assert after[0] - before[0] < 3000, (before, after)  # KiB: 3 bytes a load


def run_a_little(core: Core, folder: Path, session: Path) -> None:
    core.do(f"load {folder}")
    core.do("engine")
    core.do(f"forward k100-s100-q8 {' '.join(map(str, range(3, 80)))}")
    for tag in ("k030-s050-q4", "k100-s050-q6", "k030-s100-q8"):
        core.do(f"forward {tag} 5")
    core.do("truncate 50")
    core.do(f"save {session}")
    core.do(f"restore {session}")
    core.do("forward k030-s050-q4 6")
    core.do("decide 4 -1 0 0 0 0 0 0 0 0 0 0 0")
    core.fails("forward k100-s100-q8 90", USAGE)
    core.do("threads 2 6")
    core.do("drop")


@pytest.mark.slow
@pytest.mark.parametrize("sanitize", [ADDRESS, THREAD])
def test_under_sanitizers(folder: Path, tmp_path: Path, sanitize: str) -> None:
    """The core's own code; test_sanitizers.py has the operators."""
    build = core_build("engine_steps", sanitize=sanitize, operators=False)
    with Core(tmp_path / "results", native=False, build=build) as core:
        run_a_little(core, folder, tmp_path / "session")


@pytest.mark.slow
def test_under_valgrind(folder: Path, tmp_path: Path) -> None:
    with Core(tmp_path / "results", before=valgrind()) as core:
        run_a_little(core, folder, tmp_path / "session")
