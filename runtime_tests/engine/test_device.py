"""A bundle on a GPU: on software Vulkan where there is none, and what becomes of a machine without either."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helpers.device_run import NO_ADAPTER, PROMPT, steps, unpruned
from helpers.greedy import TIE
from helpers.places import TESTS
from helpers.tiny_bundle import write_bundle
from sol_rt.budget.cost.cost_table import CostTable, MeasuredCost, keep
from sol_rt.budget.cost.model import Line
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine import hardware, providers
from sol_rt.engine.gpu import cuda, webgpu
from sol_rt.errors import ProviderError, UsageError
from sol_rt.export.gpu import add_gpu_graphs
from sol_rt.generate.native.engine import Engine, _gpu_device

_NO_DRIVER = {"VK_DRIVER_FILES": "/dev/null", "VK_ICD_FILENAMES": "/dev/null"}
_SOFTWARE = {"ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1"}
_CAPTURE = {"SOL_RT_CAPTURE": "1"}
_NO_FLOAT16 = {"SOL_RT_WEBGPU_FLOAT16": "0"}
_ALLOWED = 0.05
"""Relative root mean square error of a step's logits: WebGPU rounds activations otherwise than the CPU."""


def _python(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ORT_WEBGPU")}
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**environment, **variables},
        cwd=TESTS,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=300)
    if process.returncode == NO_ADAPTER:
        pytest.skip(f"no WebGPU adapter, not even software Vulkan: {err.strip()}")
    assert process.returncode == 0, err
    return dict(json.loads(out))


def _device(folder: Path, *what: str, **variables: str) -> subprocess.Popen[str]:
    pytest.importorskip("onnxruntime_ep_webgpu", reason="the WebGPU plugin comes with the extra webgpu")
    return _python("-m", "helpers.device_run", str(folder), *what, **_SOFTWARE, **variables)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("device") / "tiny"
    return write_bundle(path, "phi", policy=True, dense_layers=(1,), losses=True, gpu=True)


@pytest.fixture(scope="module", params=["float16", "float32"])
def answers(folder: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Answers of an adapter with float16, and of one without."""
    floats = _NO_FLOAT16 if request.param == "float32" else {}
    answer = _answer(_device(folder, "cache", "greedy", "steps", "broken", "wiped", "load", **_CAPTURE, **floats))
    assert answer["load"]["floats"] == request.param
    return answer


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{}, _NO_FLOAT16])
def test_every_variant_of_an_exported_bundle_loads_strictly(
    llama_bundle: Path, tmp_path: Path, variables: dict[str, str]
) -> None:
    bundle = add_gpu_graphs(shutil.copytree(llama_bundle, tmp_path / "tiny"))
    load, config = _answer(_device(bundle.path, "load", **variables))["load"], bundle.config
    # 3 bits have weights of their own, as bytes with float32 scales
    own = 4 * sum(entry.bytes for name, entry in config.tensors.items() if name.endswith((".low", ".block_scale")))
    assert 0 < load["one_bytes"] <= load["all_bytes"] <= 1.05 * load["one_bytes"] + own
    assert load["provider"]["provider"] == "webgpu"
    assert load["provider"]["device"] in [gpu.name for gpu in hardware.vulkan_gpus()]
    assert load["gpu"] == load["provider"]["device"] + (", float32" if variables else "")  # costs are kept apart by it


@pytest.mark.slow
def test_a_host_opens_a_graph_strictly_by_its_dims(folder: Path) -> None:
    """Hosts that do not rewrite graphs do so by docs/reference/bundle-details.md."""
    assert _answer(_device(folder, "dims"))["dims"] == [True, True]


@pytest.mark.slow
def test_no_shader_needs_float16_where_there_is_none(folder: Path, tmp_path: Path) -> None:
    shaders = {}
    for floats, variables in {"float16": {}, "float32": _NO_FLOAT16}.items():
        dump = tmp_path / floats
        _answer(_device(folder, "cache", "steps", **variables, ORT_WEBGPU_EP_SHADER_DUMP_FILE=str(dump)))
        shaders[floats] = dump.read_text(encoding="utf-8", errors="replace")
    assert "enable f16;" in shaders["float16"]
    assert "f16" not in shaders["float32"]


@pytest.mark.slow
def test_thirty_two_greedy_tokens_are_the_cpus(folder: Path, answers: dict[str, Any]) -> None:
    """Each is what the CPU chooses after the ones before it, but where its two best are nearly equal."""
    bundle = Bundle.open(folder)
    engine = Engine(bundle, provider="cpu", native_ops=False)
    for action in unpruned(bundle):
        tokens = answers["greedy"][action.tag]["tokens"]
        assert len(tokens) == 32
        engine.reset()
        logits = engine.forward(PROMPT, action).logits[0]
        equal = 0
        for token in tokens:
            best = logits.max()
            assert best - logits[token] <= TIE[action.bits] * abs(best), action.tag
            equal += token == logits.argmax()
            logits = engine.forward([token], action).logits[0]
        assert equal >= 29, action.tag


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "phi"])  # rotary embedding fused with attention, and before it
def test_captured_steps_are_right(family: str, tmp_path: Path) -> None:
    """Every graph passes its comparison with plain steps, and all of them give the CPU's logits."""
    folder = write_bundle(tmp_path / family, family, gpu=True)
    answer = _answer(_device(folder, "captured", "steps", **_CAPTURE))
    assert answer["captured"]["captured"] == answer["captured"]["graphs"] > 0
    expected = steps(Engine(Bundle.open(folder), provider="cpu", native_ops=False), len(answer["steps"]))
    for step, (got, wanted) in enumerate(zip(answer["steps"], expected, strict=True)):
        assert np.sqrt(np.mean((np.array(got) - wanted) ** 2) / np.mean(wanted**2)) <= _ALLOWED, step
    if hardware.vulkan_gpus() and all(gpu.software for gpu in hardware.vulkan_gpus()):
        assert _answer(_device(folder, "captured"))["captured"]["captured"] == 0


@pytest.mark.slow
def test_variants_take_turns_on_one_cache_that_grows(folder: Path, answers: dict[str, Any]) -> None:
    expected = steps(Engine(Bundle.open(folder), provider="cpu", native_ops=False), len(answers["steps"]))
    for step, (got, wanted) in enumerate(zip(answers["steps"], expected, strict=True)):
        error = np.sqrt(np.mean((np.array(got) - wanted) ** 2) / np.mean(wanted**2))
        assert error <= _ALLOWED, step


@pytest.mark.slow
def test_generations_of_the_core_run_on_the_device(folder: Path) -> None:
    """Each token is what the CPU chooses after those before it, under the same action, but for near ties."""
    found, bundle = _answer(_device(folder, "generated"))["generated"], Bundle.open(folder)
    engine = Engine(bundle, provider="cpu", native_ops=False)
    for name in ("greedy", "policy", "entropy"):
        tokens, actions = found[name]["tokens"], [bundle.config.dense.tag, *found[name]["actions"]]
        assert len(tokens) == len(actions) > 2
        engine.reset()
        given = PROMPT
        for token, tag in zip(tokens, actions, strict=True):
            action = Action.parse(tag)
            logits = engine.forward(given, action).logits[0]
            if action.channel_density == 1.0:
                assert logits.max() - logits[token] <= TIE[action.bits] * abs(logits.max()), name
            given = [token]
    assert len(set(found["policy"]["actions"])) > 1
    again = _answer(_device(folder, "generated"))["generated"]
    assert again == found  # the sampled one, too


@pytest.mark.slow
def test_a_failed_run_is_one_line_and_the_engine_goes_on(answers: dict[str, Any]) -> None:
    broken = answers["broken"]
    assert broken["error"].startswith("provider webgpu: ")
    assert " failed: " in broken["error"]
    assert "\n" not in broken["error"]
    assert broken["same_afterwards"]
    assert broken["length"] == 4  # the token of the failed run does not count


@pytest.mark.slow
def test_numbers_that_are_not_finite_do_not_stay_in_the_cache(answers: dict[str, Any]) -> None:
    assert "non-finite numbers at token 3" in answers["wiped"]["error"]
    assert answers["wiped"]["finite"]


@pytest.mark.slow
def test_a_cache_that_cannot_grow_is_one_line_and_the_engine_goes_on(answers: dict[str, Any]) -> None:
    cache = answers["cache"]
    assert "a KV cache of 190 tokens needs" in cache["error"]
    assert "more than is free on " in cache["error"]
    assert "expected 0 to 0, those that are left; begin anew with reset()" in cache["lost"]
    assert cache["length"] == 0
    assert cache["same"]


@pytest.mark.slow
def test_short_memory_is_reported_and_auto_goes_on(folder: Path) -> None:
    memory = _answer(_device(folder, "memory"))["memory"]
    assert "weights needs 0.1 MB of GPU memory, 0.0 MB is free" in memory["error"]
    assert memory["auto"] == "cpu"
    assert memory["left"] == []
    (told,) = memory["told"]
    assert told.startswith("sol-rt: provider webgpu: ")
    assert "GPU memory" in told
    assert told.endswith("(continuing on the next provider)")


def test_auto_says_why_it_passes_a_gpu_over(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_ep_webgpu")
    folder = write_bundle(tmp_path / "int8", kv="int8")
    code, out, err = _generate(folder, "--provider", "auto", "--json", **_SOFTWARE)
    assert code == 0, err
    if json.loads(out)["provider"] == "cuda" or not hardware.vulkan_gpus():
        pytest.skip("WebGPU was not to be chosen")
    assert "provider webgpu: has no operators on int8" in err
    assert "(continuing on the next provider)" in err


@pytest.mark.slow
def test_nodes_that_run_on_the_cpu_are_counted(folder: Path) -> None:
    """CUDA sessions count such nodes where they cannot be strict. With WebGPU such nodes are errors then."""
    counted, again, strict = _answer(_device(folder, "on the cpu"))["on the cpu"]
    said = "a graph: 1 of 3 nodes run on the CPU, with copies between it and the GPU (BitShift)"
    assert counted == f"sol-rt: {said}\n"
    assert again == strict == ""


@pytest.mark.slow
def test_actions_that_save_nothing_are_reported_where_chosen(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_ep_webgpu")
    if not hardware.vulkan_gpus():
        pytest.skip("no Vulkan adapter, not even a software one")
    bundle = Bundle.open(folder)
    variants = bundle.config.variants.items()
    lines = {key: dict.fromkeys((1.0, 0.3), Line(10 * variant.channel_density, 0.0, 0.01)) for key, variant in variants}
    device = _gpu_device(providers.Provider("webgpu", 2, gpu=hardware.vulkan_gpus()[0]))
    table = CostTable(bundle.identity, device, "now", 0.0, lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOL_RT_HOME", str(tmp_path))
        keep(MeasuredCost(bundle.config, table))
        options = ("--provider", "webgpu", "-t", "2", "--schedule", "fixed:k030-s100-q8", "--json")
        code, out, err = _generate(folder, *options, **_SOFTWARE)
    if "finds no device" in err:
        pytest.skip("no WebGPU adapter, not even software Vulkan")
    assert code == 0, err
    assert "on webgpu k030-s100-q8 saves nothing over k100-s100-q8; it runs as asked" in err.splitlines()
    assert set(json.loads(out)["actions"]) == {"k030-s100-q8"}


@pytest.mark.slow
def test_two_processes_share_a_device(folder: Path) -> None:
    both = [_device(folder, "load") for _ in range(2)]
    loads = [_answer(process)["load"] for process in both]
    assert loads[0] == loads[1]


def _generate(folder: Path, *options: str, **variables: str) -> tuple[int, str, str]:
    run = _python("-m", "sol_rt", "generate", "-m", str(folder), "-p", "w1 w2", "-n", "3", *options, **variables)
    out, err = run.communicate(timeout=300)
    return run.returncode, out, err


@pytest.mark.slow
def test_the_command_line_names_the_device(folder: Path) -> None:
    pytest.importorskip("onnxruntime_ep_webgpu")
    code, out, err = _generate(folder, "--provider", "webgpu", "--json", **_SOFTWARE)
    if "finds no device" in err:
        pytest.skip("no WebGPU adapter, not even software Vulkan")
    assert code == 0, err
    result = json.loads(out)
    assert result["provider"] == "webgpu"
    assert f"device: {result['device']} (webgpu)" in err.splitlines()


def test_on_the_cpu_the_json_names_the_processor(folder: Path) -> None:
    code, out, err = _generate(folder, "--provider", "cpu", "--json")
    assert code == 0
    assert json.loads(out)["provider"] == "cpu"
    assert json.loads(out)["device"] == hardware.processor_name()
    assert "device:" not in err


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--provider", "wgpu"), 2, "got 'wgpu', expected one of auto, cpu, cuda, webgpu"),
        (("--provider", "cpu", "--device", "1"), 2, "the cpu provider has one device"),
        (("--provider", "webgpu"), 1, "finds no device"),
        (("--provider", "cuda"), 1, "provider cuda: "),
    ],
)
def test_a_provider_that_does_not_work_is_one_line(
    folder: Path, options: tuple[str, ...], code: int, said: str
) -> None:
    if "webgpu" in options:
        pytest.importorskip("onnxruntime_ep_webgpu")
    if "cuda" in options and hardware.cuda_gpus():
        pytest.skip("a CUDA device is here")
    got, out, err = _generate(folder, *options, **_NO_DRIVER)
    if got == 0 and "webgpu" in options:
        pytest.skip("a GPU without Vulkan is here")
    assert (got, out) == (code, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_doctor_says_what_each_provider_lacks(folder: Path) -> None:
    out, _ = _python("-m", "sol_rt", "doctor", "--json", **_NO_DRIVER).communicate(timeout=300)
    findings = {finding["what"]: finding for finding in json.loads(out)["findings"]}
    for name in ("webgpu", "cuda"):
        assert findings[name]["state"] in ("ok", "missing")
        if findings[name]["state"] == "missing":
            assert any(word in findings[name]["detail"] for word in ("pip install", "driver", "install one"))


@pytest.mark.slow
def test_doctor_says_what_an_adapter_cannot_do() -> None:
    pytest.importorskip("onnxruntime_ep_webgpu")
    program = (
        "from dataclasses import replace; from sol_rt.engine import providers; choose = providers.choose; "
        "from sol_rt.evaluation import doctor; "
        "print(doctor._gpu('webgpu').detail); "
        "providers.choose = lambda name: replace(choose(name), floats='float32', most_tokens=16); "
        "print(doctor._gpu('webgpu').detail)"
    )
    out, err = _python("-c", program, **_SOFTWARE).communicate(timeout=300)
    if "finds no device" in out:
        pytest.skip("no WebGPU adapter, not even software Vulkan")
    plain, poor = out.splitlines()
    assert "computes the same numbers as the CPU" in plain, err
    assert "float16" not in plain
    assert "computes in float32, without float16" in poor
    assert "prompts are split into parts of 16 tokens" in poor


def test_a_runtime_that_the_plugin_cannot_use_is_refused() -> None:
    pytest.importorskip("onnxruntime_ep_webgpu")
    webgpu.check_runtime("1.28.0")
    webgpu.check_runtime("1.100.0")
    with pytest.raises(ProviderError, match=r"needs onnxruntime 1\.28 or newer, this is 1\.27\.9"):
        webgpu.check_runtime("1.27.9")


def test_an_option_that_the_plugin_does_not_know_is_refused() -> None:
    pytest.importorskip("onnxruntime_ep_webgpu")
    library = webgpu._library()
    webgpu.check_options(library, [*webgpu.STRICT, *webgpu.CAPTURE])
    with pytest.raises(ProviderError, match="knows no option enableInt46; did you mean enableInt64"):
        webgpu.check_options(library, ["enableInt46"])


def test_a_library_that_is_registered_already_hides_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[str] = []

    def register(name: str, _: str) -> None:
        if name in registered:
            raise RuntimeError(f"{name} is already registered")
        registered.append(name)

    def refuse(*_: Any) -> None:
        raise ProviderError("knows no option enableInt64")

    for cached in ("devices", "_registered_library"):
        monkeypatch.setattr(webgpu, cached, functools.cache(getattr(webgpu, cached).__wrapped__))
    monkeypatch.setattr(webgpu, "check_runtime", lambda version: None)
    monkeypatch.setattr(webgpu, "_library", lambda: Path("library"))
    monkeypatch.setattr(webgpu, "check_options", refuse)
    monkeypatch.setattr(webgpu.ort, "register_execution_provider_library", register)
    monkeypatch.setattr(webgpu.ort, "get_ep_devices", lambda: [SimpleNamespace(ep_name=webgpu.ORT_NAME)])
    for _ in range(2):
        with pytest.raises(ProviderError, match="knows no option enableInt64"):
            webgpu.devices()


def test_wheels_over_each_other_are_refused() -> None:
    cuda.check_wheels({"onnxruntime-gpu": "1.31.1"}, "1.31.1")
    cuda.check_wheels({"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}, "1.31.1")
    with pytest.raises(ProviderError, match=r"1\.32\.0 and onnxruntime-gpu 1\.31\.1 are installed over each other"):
        cuda.check_wheels({"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}, "1.32.0")


def test_cuda_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    if hardware.cuda_driver_version() is not None:
        pytest.skip("an NVIDIA driver is here")
    monkeypatch.setattr(cuda, "wheel_versions", dict)
    monkeypatch.setattr(cuda.ort, "__version__", "1.26.0")
    with pytest.raises(ProviderError, match="no NVIDIA driver is here"):
        cuda.gpu(0)
    monkeypatch.setattr(cuda.ort, "__version__", "1.25.1")
    with pytest.raises(ProviderError, match=r"needs onnxruntime-gpu 1\.26 or newer, this is 1\.25\.1; pip install"):
        cuda.gpu(0)


def test_a_device_of_the_cpu_provider_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="device: got 3"):
        providers.choose("cpu", device=3)


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "webgpu"])
@pytest.mark.parametrize("device", [-1, "0", None, 0.5])
def test_a_device_is_a_number(name: str, device: Any) -> None:
    with pytest.raises(UsageError, match=f"device: got {device!r}, expected a GPU's number, from 0"):
        providers.choose(name, device=device)


def test_a_device_that_no_provider_has_is_no_silent_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "_has_device", lambda *_: False)
    assert providers.choose("auto").name == "cpu"
    with pytest.raises(ProviderError, match="device 1: no GPU provider that works here has it"):
        providers.choose("auto", device=1)


def test_auto_takes_no_provider_that_has_not_run_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "_has_device", lambda name: name == "cuda")
    said: list[str] = []
    monkeypatch.setattr(providers, "tell", said.append)
    assert providers.choose("auto").name == "cpu"
    assert said == ["provider cuda: experimental, for it has not run on a GPU yet; --provider cuda takes it"]


def test_a_management_library_that_knows_a_part_reports_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware.gpus, "_load", lambda *_: SimpleNamespace(nvmlInit_v2=lambda: 0))
    assert hardware.gpus._nvml_free_bytes(b"0000:01:00.0") is None


@pytest.mark.skipif(not hardware.cuda_gpus(), reason="no CUDA device is here")
def test_cuda_gives_the_cpus_logits(folder: Path) -> None:
    bundle = Bundle.open(folder)
    try:
        engine = Engine(bundle, provider="cuda")
    except ProviderError as error:
        pytest.skip(str(error))
    expected = steps(Engine(bundle, provider="cpu"), 60)
    for got, wanted in zip(steps(engine, 60), expected, strict=True):
        assert np.sqrt(np.mean((got - wanted) ** 2) / np.mean(wanted**2)) <= _ALLOWED
    assert engine.gpu is not None
    one = engine.gpu.weight_bytes
    for variant in bundle.config.variants:
        engine.gpu.open(Action.parse(f"k100-{variant}"))
    assert engine.gpu.weight_bytes <= 1.05 * one
