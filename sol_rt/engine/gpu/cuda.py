"""The CUDA provider: whether the GPU build of ONNX Runtime is here and whole, and which GPU it would run on."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
from collections.abc import Mapping
from pathlib import Path

from sol_rt.engine import hardware
from sol_rt.engine.gpu.cuda_memory import CudaDriver
from sol_rt.errors import ProviderError, one_line

import onnxruntime as ort

ORT_NAME = "CUDAExecutionProvider"
INSTALL = (
    "pip install 'sol-rt[cuda]', then pip uninstall -y onnxruntime, then pip install --force-reinstall --no-deps "
    "onnxruntime-gpu"
)
_WHEELS = ("onnxruntime", "onnxruntime-gpu")
_OLDEST_RUNTIME = "1.26"
"""Older ONNX Runtimes take no memory of others from Python, by DLPack."""
_CUDA_13_SINCE = "1.27"
"""The wheels of onnxruntime-gpu are built for CUDA 13 from here on, for CUDA 12 before."""
_MEMORY_IS_SHORT = ("out of memory", "Failed to allocate memory", "Available memory")
_FAILED = ("CUDA failure", "CUDA error")


def installed() -> bool:
    return ORT_NAME in ort.get_available_providers()


def present() -> bool:
    """True if an NVIDIA driver is installed and finds a GPU."""
    return bool(hardware.cuda_gpus())


def load_libraries() -> None:
    """Loads CUDA's own libraries from their wheels, where they came with the extra; else the system's are found.

    What it prints of missing ones is dropped: the probe fails for it and says so.
    """
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()


def options(device: int, *, capture: bool) -> dict[str, str]:
    """Provider options: numbers of full precision, and memory taken as it is needed, as other sessions share it."""
    given = {"device_id": str(device), "use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
    return {**given, "enable_cuda_graph": "1"} if capture else given


def gpu(number: int) -> hardware.Gpu:
    """GPU `number` in CUDA's order.

    Raises ProviderError for a wheel that is mixed with another or too old, for a missing or old driver, and for a
    missing GPU. In these cases ONNX Runtime would crash, or go on on the CPU.
    """
    check_wheels(wheel_versions(), ort.__version__)
    if hardware.is_older(ort.__version__, _OLDEST_RUNTIME):
        raise ProviderError(
            f"provider cuda: needs onnxruntime-gpu {_OLDEST_RUNTIME} or newer, this is {ort.__version__}; {INSTALL}"
        )
    driver = hardware.cuda_driver_version()
    if driver is None:
        raise ProviderError("provider cuda: no NVIDIA driver is here; install one, or use --provider cpu")
    needed = 12 if hardware.is_older(ort.__version__, _CUDA_13_SINCE) else 13
    if driver[0] < needed:
        has = f"the NVIDIA driver runs CUDA {driver[0]}.{driver[1]}"
        raise ProviderError(f"provider cuda: {has}, onnxruntime {ort.__version__} needs {needed}; update the driver")
    found = hardware.cuda_gpus()
    if not found:
        raise ProviderError("provider cuda: the NVIDIA driver finds no GPU; check CUDA_VISIBLE_DEVICES and nvidia-smi")
    if number >= len(found):
        names = ", ".join(f"{index}: {one.name}" for index, one in enumerate(found))
        raise ProviderError(f"provider cuda: has no device number {number}; there are {names}")
    return found[number]


def driver(number: int) -> CudaDriver:
    """Returns the allocator of GPU `number`. Raises ProviderError if memory is short, and DeviceError."""
    try:
        return CudaDriver(hardware.cuda_library(), number)
    except MemoryError as error:
        raise ProviderError(f"provider cuda: {error}; close other programs, or use --provider cpu") from None


def short_memory(error: Exception, gpu: hardware.Gpu | None) -> str | None:
    """Explains a probe that found too little memory, with the next step; None for another failure."""
    if not any(marker in str(error) for marker in _MEMORY_IS_SHORT):
        return None
    free = "an unknown amount" if gpu is None or gpu.free_bytes is None else f"{gpu.free_bytes / 1e6:.0f} MB"
    what = f"GPU memory is short even for a tiny model, {free} was free"
    return f"{what} ({one_line(error)}); close other programs on the GPU, or use --provider cpu"


def reason(error: Exception, gpu: hardware.Gpu | None) -> str:
    """Explains the failure of a probe, with the next step: memory, a missing library, or a GPU that fails."""
    if short := short_memory(error, gpu):
        return short
    if any(marker in str(error) for marker in _FAILED):
        return f"{one_line(error)}; check nvidia-smi, or use --provider cpu"
    return f"{missing_library(Path(ort.__file__).parent / 'capi') or one_line(error)}; {INSTALL}"


def missing_library(folder: Path) -> str | None:
    """Returns the system loader's error for the provider's library in `folder`; None if the library loads.

    ONNX Runtime only says that the provider is not there.
    """
    names = ("onnxruntime_providers_shared", "onnxruntime_providers_cuda")
    for name in names:
        file = folder / (f"{name}.dll" if os.name == "nt" else f"lib{name}.so")
        try:
            ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            return one_line(error)
    return None


def wheel_versions() -> dict[str, str]:
    """Versions of the wheels that hold ONNX Runtime, of those that are installed."""
    import importlib.metadata  # brings the parser of mail

    versions = {}
    for name in _WHEELS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def check_wheels(versions: Mapping[str, str], running: str) -> None:
    """Raises ProviderError where two wheels have written into one folder: the provider's library of one version
    crashes in a runtime of another.
    """
    if any(hardware.release(version) != hardware.release(running) for version in versions.values()):
        both = " and ".join(f"{name} {version}" for name, version in versions.items())
        what = f"{both} are installed over each other, {running} runs"
        raise ProviderError(
            f"provider cuda: {what}; pip uninstall -y {' '.join(versions)}, then pip install onnxruntime-gpu"
        )
