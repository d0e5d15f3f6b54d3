"""The GPUs of this machine, by name and memory.

ONNX Runtime does not report them on every system. The drivers' own libraries do: Vulkan for any GPU, CUDA and NVML for
NVIDIA's.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from dataclasses import dataclass
from typing import Any

_VK_SOFTWARE = 4  # VK_PHYSICAL_DEVICE_TYPE_CPU
_VK_API_1_1 = (1 << 22) | (1 << 12)
_VK_MEMORY_PROPERTIES_2, _VK_MEMORY_BUDGET = 1000059006, 1000237000
_VK_HEAPS_AT = 264  # of VkPhysicalDeviceMemoryProperties, after 32 memory types


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver reports it.

    Attributes:
        name: the driver's name of the GPU.
        vendor_id, device_id: PCI numbers; 0 if the driver does not report it.
        software: whether it is an emulation that runs on the processor.
        total_bytes: size of its memory, its own or shared with the processor; 0 if the driver does not report it.
        free_bytes: how much of that is free now; None if the driver does not report it.
    """

    name: str
    vendor_id: int = 0
    device_id: int = 0
    software: bool = False
    total_bytes: int = 0
    free_bytes: int | None = None


def vulkan_gpus() -> list[Gpu]:
    """GPUs with a Vulkan driver; none where there is no Vulkan."""
    library = _load("vulkan-1.dll", "libvulkan.so.1")
    if library is None:
        return []
    try:
        return _vulkan(library)
    except (AttributeError, OSError):
        return []


def cuda_library() -> Any:
    """CUDA's driver, None where there is none."""
    return _load("nvcuda.dll", "libcuda.so.1")


def cuda_gpus() -> list[Gpu]:
    """NVIDIA GPUs in CUDA's own order, which CUDA_VISIBLE_DEVICES changes; none without a driver."""
    library = cuda_library()
    if library is None or library.cuInit(0) != 0:
        return []
    count = ctypes.c_int()
    library.cuDeviceGetCount(ctypes.byref(count))
    return [_cuda_gpu(library, number) for number in range(count.value)]


def cuda_driver_version() -> tuple[int, int] | None:
    """Newest CUDA version that the NVIDIA driver runs; None without a driver."""
    library = cuda_library()
    version = ctypes.c_int()
    if library is None or library.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def _load(windows: str, linux: str) -> Any:
    if sys.platform == "darwin":
        return None
    try:
        return ctypes.CDLL(windows if os.name == "nt" else linux)
    except OSError:
        return None


def _vulkan(library: Any) -> list[Gpu]:
    application = _structure(0, "PIPII", 0, 0, 0, 0, _VK_API_1_1)
    create = _structure(1, "IPIPIP", 0, ctypes.addressof(application), 0, 0, 0, 0)
    instance = ctypes.c_void_p()
    if library.vkCreateInstance(create, None, ctypes.byref(instance)) != 0:
        return []
    try:
        count = ctypes.c_uint32()
        library.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
        devices = (ctypes.c_void_p * count.value)()
        library.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), devices)
        return [_vulkan_gpu(library, ctypes.c_void_p(device)) for device in devices[: count.value]]
    finally:
        library.vkDestroyInstance(instance, None)


def _structure(kind: int, fields: str, *values: int) -> Any:
    """A Vulkan structure: its type, no extension, and fields in C's own layout (P pointers, I numbers)."""
    data = struct.pack(f"@iP{fields}", kind, 0, *values)
    return ctypes.create_string_buffer(data, len(data) + 8)


def _vulkan_gpu(library: Any, device: ctypes.c_void_p) -> Gpu:
    properties = ctypes.create_string_buffer(4096)  # larger than VkPhysicalDeviceProperties ever was
    library.vkGetPhysicalDeviceProperties(device, properties)
    _, _, vendor, number, kind = struct.unpack_from("=5I", properties)
    name = properties.raw[20:276].partition(b"\0")[0].decode("utf-8", "replace")
    budgets = ctypes.create_string_buffer(16 + 2 * 16 * 8)
    struct.pack_into("@iP", budgets, 0, _VK_MEMORY_BUDGET, 0)
    memory = ctypes.create_string_buffer(16 + 1024)
    struct.pack_into("@iP", memory, 0, _VK_MEMORY_PROPERTIES_2, ctypes.addressof(budgets))
    library.vkGetPhysicalDeviceMemoryProperties2(device, memory)
    heaps = struct.unpack_from("=I", memory, 16 + _VK_HEAPS_AT - 4)[0]
    found = [struct.unpack_from("=QI", memory, 16 + _VK_HEAPS_AT + 16 * heap) for heap in range(heaps)]
    local = [heap for heap, (_, flags) in enumerate(found) if flags & 1] or list(range(heaps))
    if not local:
        return Gpu(name, vendor, number, kind == _VK_SOFTWARE)
    largest = max(local, key=lambda heap: int(found[heap][0]))
    budget, used = (struct.unpack_from("=Q", budgets, at + 8 * largest)[0] for at in (16, 16 + 16 * 8))
    free = max(budget - used, 0) if budget else None  # a driver without the extension leaves zeros
    return Gpu(name, vendor, number, kind == _VK_SOFTWARE, int(found[largest][0]), free)


def _cuda_gpu(library: Any, number: int) -> Gpu:
    name, total, address = ctypes.create_string_buffer(256), ctypes.c_size_t(), ctypes.create_string_buffer(64)
    device = ctypes.c_int()
    library.cuDeviceGet(ctypes.byref(device), number)
    library.cuDeviceGetName(name, 256, device)
    library.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    library.cuDeviceGetPCIBusId(address, 64, device)
    return Gpu(
        name.value.decode("utf-8", "replace"),
        0x10DE,
        total_bytes=total.value,
        free_bytes=_nvml_free_bytes(address.value),
    )


def _nvml_free_bytes(address: bytes) -> int | None:
    """Free memory of the GPU at a PCI address; None where NVIDIA's management library is missing or, as on Jetsons,
    knows only a part.
    """
    library = _load("nvml.dll", "libnvidia-ml.so.1")
    handle, sizes = ctypes.c_void_p(), (ctypes.c_uint64 * 3)()
    try:
        if (
            library is None
            or library.nvmlInit_v2() != 0
            or library.nvmlDeviceGetHandleByPciBusId_v2(address, ctypes.byref(handle)) != 0
            or library.nvmlDeviceGetMemoryInfo(handle, sizes) != 0
        ):
            return None
    except AttributeError:
        return None
    return int(sizes[1])
