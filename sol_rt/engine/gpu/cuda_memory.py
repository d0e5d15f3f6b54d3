"""Memory of an NVIDIA GPU from CUDA's driver: as much as is asked for, given back when the last tensor in it goes.

The allocator behind tensors that ONNX Runtime makes for Python takes memory in doubling steps and keeps what is freed:
2.15 GB for 1.71 GB of weights. Tensors here are views of the driver's memory, handed over by DLPack
(https://dmlc.github.io/dlpack/latest/c_api.html).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from sol_rt.engine.hardware import free_memory_bytes
from sol_rt.errors import DeviceError

import onnxruntime as ort

_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
_INTEGRATED = 18  # CU_DEVICE_ATTRIBUTE_INTEGRATED
_CUDA = 2  # kDLCUDA
_KINDS = {"i": 0, "u": 1, "f": 2, "b": 6}  # kDLInt, kDLUInt, kDLFloat, kDLBool
_CAPSULE = b"dltensor"
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _DLManagedTensor(ctypes.Structure):
    _fields_ = (("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


def _let_go(managed: int, _from: Any = _DLManagedTensor.from_address, _c: Any = ctypes) -> None:
    _c.pythonapi.Py_DecRef(_c.py_object(_c.cast(_from(managed).context, _c.py_object).value))


# A tensor may go when the interpreter does, after this module.
_release = _Deleter(_let_go)
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_release))


class _View:
    """DLPack's record of a tensor, with the memory that the tensor shows. Lives as long as the tensor."""

    def __init__(self, block: Block, shape: Sequence[int], dtype: np.dtype[Any], offset: int) -> None:
        self._block = block
        self._shape = (ctypes.c_int64 * len(shape))(*shape)
        self._managed = _DLManagedTensor()
        tensor = self._managed.tensor
        tensor.data, tensor.device_type, tensor.device_id = block.address + offset, _CUDA, block.device
        tensor.ndim, tensor.shape = len(shape), self._shape
        tensor.code, tensor.bits, tensor.lanes = _KINDS[dtype.kind], 8 * dtype.itemsize, 1
        self._managed.context, self._managed.deleter = id(self), _release

    def value(self) -> ort.OrtValue:
        capsule = _new_capsule(ctypes.addressof(self._managed), _CAPSULE, None)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))  # until the tensor's owner calls _release
        try:
            return ort.OrtValue.from_dlpack(capsule)
        except BaseException:
            ctypes.pythonapi.Py_DecRef(ctypes.py_object(self))
            raise


class Block:
    """Bytes on the GPU.

    Attributes:
        address: where they begin.
        device: number of the GPU.
    """

    def __init__(self, driver: CudaDriver, size_bytes: int) -> None:
        self._driver, self.device = driver, driver.device
        self.address = driver.allocate(size_bytes)

    def tensor(self, shape: Sequence[int], dtype: Any, offset: int = 0) -> ort.OrtValue:
        """A tensor of a NumPy type whose bytes begin at `offset`. It keeps the block."""
        return _View(self, shape, np.dtype(dtype), offset).value()

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self._driver.free(self.address)


class CudaDriver:
    """Allocates in a GPU's primary context, which is ONNX Runtime's as well.

    Args:
        library: CUDA's driver.
        device: number of the GPU.

    Making one and `allocate` raise MemoryError where memory is short, DeviceError where the GPU or its driver fails
    otherwise.
    """

    def __init__(self, library: ctypes.CDLL, device: int) -> None:
        self._library, self.device = library, device
        self._context = ctypes.c_void_p()  # never released: ONNX Runtime keeps it to the process' end
        number = ctypes.c_int()
        self._check(library.cuInit(0))
        self._check(library.cuDeviceGet(ctypes.byref(number), device))
        self._check(library.cuDevicePrimaryCtxRetain(ctypes.byref(self._context), number))
        integrated = ctypes.c_int()
        self._check(library.cuDeviceGetAttribute(ctypes.byref(integrated), _INTEGRATED, number))
        self._integrated = integrated.value != 0

    def allocate(self, size_bytes: int) -> int:
        """The address of new memory."""
        address = ctypes.c_uint64()
        with self._current():
            self._check(self._library.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(max(size_bytes, 1))))
        return address.value

    def free(self, address: int) -> None:
        """Waits for what still reads the memory. Of a lost GPU there is nothing left to give back."""
        try:
            with self._current():
                self._library.cuMemFree_v2(ctypes.c_uint64(address))
        except (DeviceError, MemoryError):
            return

    def free_bytes(self) -> int | None:
        """Memory that programs can still get, bytes; None where the driver does not report it.

        A GPU that shares the processor's memory also gets what files fill there, which CUDA does not count.
        """
        if self._integrated and (free := free_memory_bytes()) is not None:
            return free
        try:
            return self._told_free_bytes()
        except (DeviceError, MemoryError):
            return None

    def answers(self) -> bool:
        """True if the GPU still answers. A lost GPU gives its error to every call."""
        try:
            self._told_free_bytes()
        except MemoryError:
            return True
        except DeviceError:
            return False
        return True

    def _told_free_bytes(self) -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        with self._current():
            self._check(self._library.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))
        return free.value

    @contextmanager
    def _current(self) -> Iterator[None]:
        self._check(self._library.cuCtxPushCurrent_v2(self._context))
        try:
            yield
        finally:
            self._library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    def _check(self, error: int) -> None:
        if error == 0:
            return
        name = ctypes.c_char_p()
        self._library.cuGetErrorString(error, ctypes.byref(name))
        text = f"CUDA error {error}: {(name.value or b'unknown').decode('utf-8', 'replace')}"
        if error == _OUT_OF_MEMORY:
            raise MemoryError(text)
        raise DeviceError(f"provider cuda: device {self.device}", text)


def size_bytes(shape: Sequence[int], dtype: Any) -> int:
    """Bytes of a tensor of a NumPy type."""
    return math.prod(shape) * np.dtype(dtype).itemsize
