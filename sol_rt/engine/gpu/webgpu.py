"""The WebGPU provider, a plug-in of the stock ONNX Runtime: its library, devices, options and the adapter's name."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sol_rt.engine import hardware
from sol_rt.errors import ProviderError, one_line

import onnxruntime as ort

ORT_NAME = "WebGpuExecutionProvider"
INSTALL = "pip install 'sol-rt[webgpu]', and a Vulkan, D3D12 or Metal driver"
_NEEDS_DRIVER = "finds no device; it needs a GPU with a Vulkan, D3D12 or Metal driver"
_DISTRIBUTION = "onnxruntime-ep-webgpu"
_OLDEST_RUNTIME = "1.28"
"""Older ONNX Runtimes make no tensors in a plug-in's memory from Python; before 1.24.4 they cannot load it at all."""
_OPTION_PREFIX = "ep.webgpuexecutionprovider."
STRICT = {"enableInt64": "1"}
CAPTURE = {"enableGraphCapture": "1"}


def installed() -> bool:
    return importlib.util.find_spec("onnxruntime_ep_webgpu") is not None


@functools.cache
def devices() -> list[Any]:
    """ONNX Runtime's entries of WebGPU devices. Raises ProviderError where the plug-in cannot be loaded."""
    library = _registered_library()
    found = [entry for entry in ort.get_ep_devices() if entry.ep_name == ORT_NAME]
    if found:  # looking through the library takes longer than loading it
        check_options(library, [*STRICT, *CAPTURE])
    return found


@functools.cache  # apart from what may fail after it: a library can be registered once only
def _registered_library() -> Path:
    """The plug-in's library, which is now registered. Raises ProviderError where it cannot be loaded."""
    check_runtime(ort.__version__)
    library = _library()
    try:
        ort.register_execution_provider_library("webgpu", str(library))
    except Exception as error:
        raise ProviderError(f"provider webgpu: {one_line(error)}; {INSTALL}") from None
    return library


def device(number: int) -> Any:
    """ONNX Runtime's entry of device `number`. Raises ProviderError where there is none."""
    found = devices()
    if not found:
        raise ProviderError(f"provider webgpu: {_NEEDS_DRIVER}")
    if number >= len(found):
        count = f"{len(found)} in all" if len(found) > 1 else "0 is the only one"
        raise ProviderError(f"provider webgpu: has no device number {number}, {count}; the plug-in chooses the adapter")
    return found[number]


def is_software(entry: Any) -> bool:
    """True if the adapter is emulated on the CPU (llvmpipe)."""
    return bool(entry.device.type == ort.OrtHardwareDeviceType.CPU)


def gpu(entry: Any) -> hardware.Gpu:
    """The adapter behind a device, as the driver names it; where no driver does, as the system does."""
    wanted = (entry.device.vendor_id, entry.device.device_id)
    found = hardware.vulkan_gpus()
    for candidate in found:
        same = candidate.software if is_software(entry) else (candidate.vendor_id, candidate.device_id) == wanted
        if same:
            return candidate
    vendor = entry.device.vendor or f"vendor {wanted[0]:#06x}"
    name = entry.device.metadata.get("Description") or f"{vendor} GPU {wanted[1]:#06x}"
    return hardware.Gpu(str(name), *wanted, software=is_software(entry))


def reason(error: Exception, _: hardware.Gpu | None) -> str:
    """Explains the failure of a probe, with the next step."""
    return f"{one_line(error)}; {INSTALL}"


def check_runtime(version: str) -> None:
    """Raises ProviderError for an ONNX Runtime that cannot load the plug-in."""
    if hardware.is_older(version, _OLDEST_RUNTIME):
        import importlib.metadata  # brings the parser of mail

        plugin = f"{_DISTRIBUTION} {importlib.metadata.version(_DISTRIBUTION)}"
        what = f"{plugin} needs onnxruntime {_OLDEST_RUNTIME} or newer, this is {version}"
        raise ProviderError(f"provider webgpu: {what}; pip install -U onnxruntime")


def check_options(library: Path, names: Iterable[str]) -> None:
    """Raises ProviderError for an option that the plug-in's library does not know: it would ignore it in silence."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for name in names:
            if content.find(_OPTION_PREFIX.encode() + name.encode() + b"\0") >= 0:
                continue
            near = difflib.get_close_matches(name, _options(content), 1)
            hint = f"did you mean {near[0]}?" if near else "install the plug-in that sol-rt[webgpu] names"
            raise ProviderError(f"provider webgpu: {library.name} knows no option {name}; {hint}")


def _options(content: mmap.mmap) -> list[str]:
    """Every option that the library names."""
    prefix, names, at = _OPTION_PREFIX.encode(), [], 0
    while (at := content.find(prefix, at)) >= 0:
        at += len(prefix)
        names.append(content[at : content.find(b"\0", at)].decode("ascii", "replace"))
    return names


def _library() -> Path:
    import onnxruntime_ep_webgpu

    try:
        return Path(onnxruntime_ep_webgpu.get_library_path())
    except RuntimeError as error:
        raise ProviderError(f"provider webgpu: {one_line(error)}; {INSTALL}") from None
