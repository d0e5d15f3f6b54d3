"""Execution providers: which of them run here, and how sessions are made on them.

A GPU provider counts only if a session that may not fall back gives the CPU's numbers. ONNX Runtime itself also lists
providers that have no device, and then computes on the CPU without a word.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from sol_rt.engine.gpu import cuda, webgpu
from sol_rt.engine.hardware import Gpu, check_threads, processor_name, usable_cores
from sol_rt.engine.probes import attention_probe
from sol_rt.errors import BundleError, ProviderError, UsageError, brief, one_line
from sol_rt.native.simd_targets import check_simd_targets
from sol_rt.ops import library_path

import onnxruntime as ort

if TYPE_CHECKING:
    from sol_rt.bundle.bundle import Bundle
    from sol_rt.engine.gpu.device_memory import DeviceMemory

NAMES = ("auto", "cpu", "cuda", "webgpu")
_CPU = "CPUExecutionProvider"
_GPUS = {"cuda": cuda, "webgpu": webgpu}
_PROBE = Path(__file__).with_name("probes") / "probe.onnx"
_PROBE_BODIES = _PROBE.with_name("probe_bodies.onnx")
_PROBE_NATIVE = _PROBE.with_name("probe_native.onnx")
_PROBE_TOLERANCE = 2e-3
_QUIET = 4
_NO_CPU = "session.disable_cpu_ep_fallback"
_CPU_REFUSED = "fallback to CPU EP has been explicitly disabled"

_pool_threads: int | None = None


@dataclass(frozen=True)
class Provider:
    """A provider that works on this machine.

    Attributes:
        name: `cpu`, `cuda` or `webgpu`.
        threads: threads of the process-wide pool.
        library: native operators to register, None where the function bodies run.
        device: number of the GPU.
        gpu: the GPU; None on the CPU.
        floats: type of the KV cache and of everything else that is float16 in graph files: float16 or float32.
        most_tokens: how many new tokens the attention of function bodies may get at once; None for any number.
    """

    name: str
    threads: int
    library: Path | None = None
    device: int = 0
    gpu: Gpu | None = None
    floats: str = "float16"
    most_tokens: int | None = None
    _ep_device: Any = field(default=None, repr=False, compare=False)

    @property
    def native(self) -> bool:
        """True if native operators run, False if the graphs' function bodies do."""
        return self.library is not None

    @property
    def software(self) -> bool:
        """True if the GPU is emulated on the processor. `auto` never chooses such a GPU."""
        return self.gpu is not None and self.gpu.software

    @property
    def device_name(self) -> str:
        """Name of the GPU, as its driver has it; on the CPU the name of the processor."""
        return processor_name() if self.gpu is None else self.gpu.name

    @property
    def gpu_name(self) -> str:
        """Name of the GPU for cost tables, with `float32` where it computes in that type; empty on the CPU."""
        if self.gpu is None:
            return ""
        return self.gpu.name if self.floats == "float16" else f"{self.gpu.name}, {self.floats}"

    def as_json(self) -> dict[str, str]:
        """The keys by which every command's JSON says where it ran."""
        return {"provider": self.name, "device": self.device_name}

    def options(self) -> ort.SessionOptions:
        """Session options for a bundle's graph: quiet, on the global pool, no memory kept between runs."""
        options = ort.SessionOptions()
        options.log_severity_level = _QUIET
        options.use_per_session_threads = False
        options.enable_mem_pattern = False
        options.enable_cpu_mem_arena = False
        if self.library is not None:
            self._register(options, self.library)
        else:
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
            options.add_session_config_entry("session.enable_dq_matmulnbits_fusion", "1")
        return options

    def _register(self, options: ort.SessionOptions, library: Path) -> None:
        try:
            options.register_custom_ops_library(str(library))
        except Exception as error:
            what = f"native operators {library}: {one_line(error)}"
            instead = "go without them (--no-native-ops)" if self.name == "cpu" else "use --provider cpu"
            raise ProviderError(f"{what}; install sol-rt again, or {instead}") from None

    def session(
        self, path: Path, options: ort.SessionOptions, graph: bytes | None = None, *, capture: bool = False
    ) -> ort.InferenceSession:
        """A session on this provider alone.

        Args:
            path: the graph's file.
            options: made by `options`.
            graph: a serialized model to run instead of the file's content.
            capture: record the commands of the first run and send them again in every later run.

        Raises BundleError where ONNX Runtime refuses the graph, ProviderError on a GPU.
        """
        try:
            return self._session(path if graph is None else graph, options, capture=capture, name=path.name)
        except (
            Exception
        ) as error:  # ONNX Runtime's exceptions share no useful base, and their text is for its developers
            reason = one_line(error)
            if self.name != "cpu":
                raise ProviderError(f"provider {self.name}: cannot run {path}: {reason}; use --provider cpu") from None
            got = f"a graph that ONNX Runtime refuses ({reason})"
            raise BundleError(path, "", got, "a graph of this bundle") from None

    def _session(
        self,
        model: Path | bytes,
        options: ort.SessionOptions,
        *,
        strict: bool = False,
        capture: bool = False,
        name: str = "a graph",
    ) -> ort.InferenceSession:
        source = model if isinstance(model, bytes) else str(model)
        if self.name == "webgpu":
            settings = {**webgpu.STRICT, **(webgpu.CAPTURE if capture else {})}
            options.add_provider_for_devices([self._ep_device], settings)
            options.add_session_config_entry(_NO_CPU, "1")
            return ort.InferenceSession(source, options, enable_fallback=0)
        if self.name == "cpu":
            return ort.InferenceSession(source, options, providers=[_CPU], enable_fallback=0)
        providers = [(cuda.ORT_NAME, cuda.options(self.device, capture=capture))]

        def make() -> ort.InferenceSession:
            return ort.InferenceSession(source, options, providers=providers, enable_fallback=0)

        if strict:
            options.add_session_config_entry(_NO_CPU, "1")
            return make()
        return strict_where_possible(make, options, f"provider {self.name}: {name}")

    def probe_session(self, model: bytes) -> ort.InferenceSession:
        """A session of a serialized model. On a GPU, none of its nodes may run on the CPU."""
        return self._session(model, self.options(), strict=self.name != "cpu")

    def memory(self) -> DeviceMemory:
        """The GPU's memory."""
        from sol_rt.engine.gpu.device_memory import CudaMemory, WebGpuMemory

        where = f"provider {self.name}: {self.device_name}"
        if self.name == "cuda":
            return CudaMemory(cuda.driver(self.device), where, self._made_there, self.floats)
        return WebGpuMemory(self._ep_device, where, self._made_there, self._free_bytes, self.floats)

    def _made_there(self, model: bytes) -> ort.InferenceSession:
        return self._session(model, self.options())

    def _free_bytes(self) -> int | None:
        """Free memory of the GPU now."""
        if self.name == "cuda":
            return cuda.driver(self.device).free_bytes()
        return webgpu.gpu(self._ep_device).free_bytes

    @property
    def can_capture(self) -> bool:
        """True if runs are captured on this provider.

        WebGPU needs an ONNX Runtime that can free captured buffers. On a software adapter capturing takes memory and
        saves nothing, so there it has to be asked for with $SOL_RT_CAPTURE=1. With 0 nothing is captured anywhere.
        """
        wanted = os.environ.get("SOL_RT_CAPTURE", "0" if self.software else "1") != "0"
        if self.name == "webgpu":
            return wanted and hasattr(ort.InferenceSession, "release_captured_graph")
        return wanted and self.name == "cuda"


def strict_where_possible(
    make: Callable[[], ort.InferenceSession], options: ort.SessionOptions, what: str
) -> ort.InferenceSession:
    """A session whose nodes all run on the GPU if that is possible.

    Nodes without a GPU kernel, and arithmetic on shapes that ONNX Runtime leaves to the CPU, run on the CPU. A line on
    stderr counts these nodes. The same line is printed once.

    Args:
        make: makes the session with `options`, on the GPU's provider alone.
        options: the session's options; changed here.
        what: the beginning of the line.
    """
    options.add_session_config_entry(_NO_CPU, "1")
    try:
        return make()
    except Exception as error:
        if _CPU_REFUSED not in str(error):
            raise
    options.add_session_config_entry(_NO_CPU, "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = make()
    parts = session.get_provider_graph_assignment_info()
    on_cpu = [node.op_type for part in parts if part.ep_name == _CPU for node in part.get_nodes()]
    count = sum(len(part.get_nodes()) for part in parts)
    kinds = ", ".join(sorted(set(on_cpu)))
    _tell_once(f"{what}: {len(on_cpu)} of {count} nodes run on the CPU, with copies between it and the GPU ({kinds})")
    return session


def start_pool(threads: int | None) -> int:
    """Makes the thread pool that all sessions of the process share, and returns its size.

    With a pool for each session, switching between variants would be many times slower. Raises UsageError if a pool of
    another size is already running.
    """
    global _pool_threads
    check_threads(threads)
    if _pool_threads is None:
        ort.set_default_logger_severity(_QUIET)
        wanted = threads or usable_cores()
        try:
            ort.set_global_thread_pool_sizes(wanted, 1)
        except Exception as error:
            if "already" not in str(error):
                raise
        _pool_threads = wanted
    elif threads is not None and threads != _pool_threads:
        raise UsageError(f"threads: got {threads}, but this process already runs {_pool_threads}; use another process")
    return _pool_threads


def tell(message: str) -> None:
    """Prints one line about the choice of a provider to stderr."""
    print(f"sol-rt: {message}", file=sys.stderr)


@functools.cache
def _tell_once(message: str) -> None:
    tell(message)


def choose(
    name: str = "auto",
    *,
    threads: int | None = None,
    native_ops: bool = True,
    device: int = 0,
    unfit: Mapping[str, str] = MappingProxyType({}),
) -> Provider:
    """Chooses the provider to run on.

    `auto` takes webgpu if it is installed and passes the probe, else cpu. If it passes over a provider that has a
    device, it says why: cuda, which has not run on a GPU yet, must be asked for. It says nothing of providers without
    a device: `sol-rt doctor` does.

    Args:
        name: `auto`, `cpu`, `cuda` or `webgpu`.
        threads: size of the process-wide thread pool; all usable processors by default.
        native_ops: whether native operators may run.
        device: number of the GPU.
        unfit: providers that cannot run what they are chosen for, each with the reason.

    Raises UsageError for an unknown name or a bad device number, ProviderError if a provider or a device that was asked
    for does not work.
    """
    if not isinstance(name, str) or name not in NAMES:
        raise UsageError(f"provider: got {brief(name)}, expected one of {', '.join(NAMES)}")
    if not isinstance(device, int) or not 0 <= device < 1 << 31:
        raise UsageError(f"device: got {brief(device)}, expected a GPU's number, from 0")
    check_simd_targets()
    pool = start_pool(threads)
    cpu = Provider("cpu", pool, library_path() if native_ops else None)
    if name == "cpu":
        if device:
            raise UsageError(f"device: got {device}, but the cpu provider has one device; leave it out or name a GPU's")
        return cpu
    if name in unfit:
        raise ProviderError(f"provider {name}: {unfit[name]}")
    if name != "auto":
        return _gpu(name, pool, device, native_ops)
    for candidate in _GPUS:
        if not _has_device(candidate):
            continue
        if candidate == "cuda":
            tell("provider cuda: experimental, for it has not run on a GPU yet; --provider cuda takes it")
            continue
        try:
            if candidate in unfit:
                raise ProviderError(f"provider {candidate}: {unfit[candidate]}")
            provider = _gpu(candidate, pool, device, native_ops)
        except ProviderError as error:
            tell(f"{error} (continuing on the next provider)")
            continue
        if not provider.software:
            return provider
        tell(f"provider {candidate}: only a software adapter is here, slower than the cpu provider, which is used")
    if device:
        raise ProviderError(
            f"device {device}: no GPU provider that works here has it; leave it out, or see sol-rt doctor"
        )
    return cpu


def unfit(bundle: Bundle) -> dict[str, str]:
    """Providers that cannot run the bundle, each with the reason."""
    if bundle.config.kv.convolving:
        why = f"has no operators for the short convolutions of {bundle.path}; use --provider cpu"
        return dict.fromkeys(("cuda", "webgpu"), why)
    if bundle.config.kv.dtype != "int8":
        return {}
    why = f"has no operators on int8, the type of the KV cache of {bundle.path}"
    return {"webgpu": f"{why}; use --provider cpu, or export with --kv float16"}


def _has_device(name: str) -> bool:
    """True if a GPU provider is installed and the machine has a device for it."""
    if not _GPUS[name].installed():
        return False
    try:
        return cuda.present() if name == "cuda" else bool(webgpu.devices())
    except ProviderError as error:
        tell(f"{error} (continuing on the next provider)")
        return False


@functools.cache
def _gpu(name: str, pool: int, device: int, native_ops: bool) -> Provider:
    if not _GPUS[name].installed():
        raise ProviderError(f"provider {name}: not installed; {_GPUS[name].INSTALL}")
    if name == "cuda":
        provider = Provider(name, pool, library_path(name) if native_ops else None, device, cuda.gpu(device))
        cuda.load_libraries()
        probe(provider)
        return provider
    # no native operators: ONNX Runtime would not inline them, and there they would run on the CPU
    entry = webgpu.device(device)
    provider = Provider(name, pool, device=device, gpu=webgpu.gpu(entry), _ep_device=entry)
    probe(provider)
    known = attention_probe.FLOATS if os.environ.get("SOL_RT_WEBGPU_FLOAT16", "1") != "0" else ("float32",)
    memory = entry.memory_info(ort.OrtDeviceMemoryType.DEFAULT)
    reference = Provider("cpu", pool).probe_session
    floats, most_tokens = attention_probe.examine(name, provider.probe_session, reference, memory, known)
    return replace(provider, floats=floats, most_tokens=most_tokens)


def probe(provider: Provider) -> None:
    """Runs tiny models on a GPU and on the CPU, and compares the results.

    One is tried everywhere, a second one by what the provider runs. Native operators may be built for another GPU or a
    newer driver. Function bodies multiply by 2 bits, which ONNX Runtime's CUDA provider took for 4
    (https://github.com/microsoft/onnxruntime/pull/32693).
    Raises ProviderError if a model cannot run on the provider or gives other numbers there.
    """
    _compare(provider, _PROBE)
    if not provider.native:
        _compare(provider, _PROBE_BODIES, "function bodies")
    elif (library := library_path()) is not None:
        _compare(provider, _PROBE_NATIVE, "native operators", library)


def _compare(provider: Provider, path: Path, part: str = "", library: Path | None = None) -> None:
    """Compares a probe's result on the provider with the CPU's, which runs with the native operators of `library`.

    `part` is what the probe tries, for the message; empty for the provider as a whole.
    """
    feed = {"ids": np.arange(8, dtype=np.int64)[None]}
    model = path.read_bytes()
    what = f"provider {provider.name}: " + (f"{part}: " if part else "")
    try:
        expected = _probe_run(Provider("cpu", provider.threads, library), model, feed)
        got = _probe_run(provider, model, feed)
    except Exception as error:
        if part:
            found = cuda.short_memory(error, provider.gpu) or f"{one_line(error)}; use --provider cpu"
        else:
            found = _GPUS[provider.name].reason(error, provider.gpu)
        raise ProviderError(f"{what}{found}") from None
    difference = float(np.abs(got - expected).max())
    if not difference <= _PROBE_TOLERANCE:
        text = f"numbers that differ from the CPU's by {difference:.3g}, expected at most {_PROBE_TOLERANCE}"
        raise ProviderError(f"{what}{text}; {'use --provider cpu' if part else 'update its driver'}")


def _probe_run(provider: Provider, model: bytes, feed: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.asarray(provider.probe_session(model).run(None, dict(feed))[0])
