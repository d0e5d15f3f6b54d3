"""Tensors in a GPU's memory: allocated, written, read, resized and zeroed in the same way for every GPU provider."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sol_rt.bundle.weights import ONNX_UINT4
from sol_rt.engine.gpu.cuda_memory import Block, CudaDriver, size_bytes
from sol_rt.errors import ProviderError, SolError, device_errors, one_line

import onnxruntime as ort

_FLOATS = ("float16", "float32")
_PROBES = Path(__file__).parents[1] / "probes"
_ALIGNMENT = 256  # of tensors that share a block, in bytes: what CUDA gives by itself


class DeviceMemory(ABC):
    """The memory of one GPU.

    Args:
        where: the provider and the GPU, for messages.
        session: makes a session there of a serialized model.
        free_bytes: how much memory is free now, None where nobody knows.
        floats: type in which it holds what is float16 elsewhere.
    """

    def __init__(
        self,
        where: str,
        session: Callable[[bytes], ort.InferenceSession],
        free_bytes: Callable[[], int | None],
        floats: str = "float16",
    ) -> None:
        self.floats = floats
        self._where, self._make_session, self._free_bytes = where, session, free_bytes
        self._pads: dict[str, ort.InferenceSession] = {}

    @abstractmethod
    def _allocate(self, shape: Sequence[int], dtype: Any) -> ort.OrtValue:
        """Allocates a tensor of a NumPy type. Raises whatever ONNX Runtime raises if that fails."""

    @abstractmethod
    def read(self, values: Sequence[ort.OrtValue], into: Sequence[ort.OrtValue]) -> None:
        """Copies tensors into tensors in main memory, and waits until that is done."""

    def bind_four_bits(self, binding: ort.IOBinding, name: str, packed: ort.OrtValue, shape: Sequence[int]) -> None:
        """Binds the bytes of a tensor of 4-bit numbers to a graph's input. Raises ProviderError where none are read."""
        raise ProviderError(f"{self._where}: reads no 4-bit tensors, as {name} is; use --provider cpu")

    def mirror(self, arrays: Mapping[str, np.ndarray], apart: Collection[str] = ()) -> Mirror:
        """Tensors on the GPU for arrays in main memory; those `apart` are large or seldom copied. Raises as `place`."""
        return Mirror(self, arrays)

    def lost(self) -> bool:
        """True if the GPU is known to have stopped answering."""
        return False

    def require(self, needed_bytes: int, what: str) -> None:
        """Raises ProviderError if the driver says that so much memory is not free. Some drivers notice only later."""
        free = self._free_bytes()
        if free is not None and needed_bytes > free:
            raise ProviderError(self._too_little(needed_bytes, what, free))

    def empty(self, shape: Sequence[int], dtype: Any) -> ort.OrtValue:
        """A tensor with undefined content. Raises ProviderError if there is no room for it, DeviceError."""
        with self._shortage(size_bytes(shape, dtype)):
            return self._allocate(shape, np.dtype(dtype).type)

    def place(self, array: np.ndarray) -> ort.OrtValue:
        """A copy of an array on the GPU. Raises ProviderError if there is no room, DeviceError if copying fails."""
        value = self.empty(array.shape, array.dtype)
        with self.errors():
            value.update_inplace(np.ascontiguousarray(array))
        return value

    def zeros(self, shape: Sequence[int], dtype: str) -> ort.OrtValue:
        """A tensor of zeros on the GPU. Raises as `place`."""
        return self.place(np.zeros(shape, dtype))

    def grown(self, value: ort.OrtValue, shape: Sequence[int], dtype: str) -> ort.OrtValue:
        """A tensor that is larger in the third axis: the old content first, then zeros.

        Raises as `place`.
        """
        new, added = self.empty(shape, dtype), shape[2] - value.shape()[2]
        with self.errors():
            if dtype in _FLOATS:
                self._pad(value, added, new, f"pad_{dtype}_{len(shape)}.onnx")
            else:  # WebGPU pads no bytes
                new.update_inplace(
                    np.pad(value.numpy(), [(0, added if axis == 2 else 0) for axis in range(len(shape))])
                )
        return new

    def wipe(self, value: ort.OrtValue, dtype: str, start: int, stop: int) -> None:
        """Zeroes places `start` to `stop` of the third axis of a tensor, where it holds floats."""
        if dtype in _FLOATS:
            with self.errors():
                array = value.numpy().copy()
                array[:, :, start:stop] = 0
                value.update_inplace(array)

    def _pad(self, value: ort.OrtValue, added: int, new: ort.OrtValue, model: str) -> None:
        """Writes into `new` the content of `value`, and `added` zeros behind it in the third axis."""
        if model not in self._pads:
            self._pads[model] = self._make_session((_PROBES / model).read_bytes())
        binding = self._pads[model].io_binding()
        pads = np.zeros(2 * len(value.shape()), np.int64)
        pads[len(pads) // 2 + 2] = added
        binding.bind_ortvalue_input("x", value)
        binding.bind_ortvalue_input("pads", ort.OrtValue.ortvalue_from_numpy(pads))
        binding.bind_ortvalue_output("y", new)
        self._pads[model].run_with_iobinding(binding)

    def errors(self) -> AbstractContextManager[None]:
        """Makes DeviceErrors of what ONNX Runtime raises within."""
        return device_errors(self._where)

    @contextmanager
    def _shortage(self, needed_bytes: int) -> Iterator[None]:
        try:
            yield
        except SolError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no useful base
            why = self._too_little(needed_bytes, "a tensor", self._free_bytes())
            raise ProviderError(f"{why} ({one_line(error)})") from None

    def _too_little(self, needed_bytes: int, what: str, free_bytes: int | None) -> str:
        free = "an unknown amount" if free_bytes is None else f"{free_bytes / 1e6:.1f} MB"
        return (
            f"{self._where}: {what} needs {needed_bytes / 1e6:.1f} MB of GPU memory, {free} is free; "
            "close other programs, use a smaller model or --provider cpu"
        )


class WebGpuMemory(DeviceMemory):
    """Buffers of the plug-in's own device, which all its sessions share.

    Args:
        entry: ONNX Runtime's entry of the device.
        others: as of DeviceMemory.
    """

    def __init__(self, entry: Any, *others: Any) -> None:
        super().__init__(*others)
        self._info = entry.memory_info(ort.OrtDeviceMemoryType.DEFAULT)

    def _allocate(self, shape: Sequence[int], dtype: Any) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, memory_info=self._info)

    def read(self, values: Sequence[ort.OrtValue], into: Sequence[ort.OrtValue]) -> None:
        ort.copy_tensors(values, into)


class CudaMemory(DeviceMemory):
    """Memory of a CUDA device.

    Args:
        driver: CUDA's, on that device.
        where, session, floats: as of DeviceMemory.
    """

    def __init__(
        self, driver: CudaDriver, where: str, session: Callable[[bytes], ort.InferenceSession], floats: str = "float16"
    ) -> None:
        super().__init__(where, session, driver.free_bytes, floats)
        self._driver = driver

    def _allocate(self, shape: Sequence[int], dtype: Any) -> ort.OrtValue:
        block = Block(self._driver, size_bytes(shape, dtype))
        with self.errors():
            return block.tensor(shape, dtype)

    def lost(self) -> bool:
        return not self._driver.answers()

    def read(self, values: Sequence[ort.OrtValue], into: Sequence[ort.OrtValue]) -> None:
        for value, target in zip(values, into, strict=True):
            np.copyto(target.numpy(), value.numpy())

    def mirror(self, arrays: Mapping[str, np.ndarray], apart: Collection[str] = ()) -> Mirror:
        def block(needed_bytes: int) -> Callable[[Sequence[int], Any, int], ort.OrtValue]:
            with self._shortage(needed_bytes):
                return Block(self._driver, needed_bytes).tensor

        return PackedMirror(self, arrays, apart, block)

    def bind_four_bits(self, binding: ort.IOBinding, name: str, packed: ort.OrtValue, shape: Sequence[int]) -> None:
        binding.bind_input(name, "cuda", self._driver.device, ONNX_UINT4, shape, packed.data_ptr())


class Mirror:
    """Tensors on the GPU and arrays in main memory that mirror each other. Each is copied by itself.

    Attributes:
        values: the tensors by name; their addresses never change.
        arrays: the arrays by the same names.
    """

    def __init__(self, memory: DeviceMemory, arrays: Mapping[str, np.ndarray]) -> None:
        self._memory, self.arrays = memory, dict(arrays)
        self._sent: dict[str, np.ndarray] = {}
        self._host = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        self.values = {name: memory.place(array) for name, array in arrays.items()}

    def send(self) -> None:
        """Writes the arrays that changed since the last call; the first call writes all of them."""
        for name in self._host:
            array, sent = self.arrays[name], self._sent.get(name)
            if sent is None or not np.array_equal(array, sent):
                self.values[name].update_inplace(array)
                self._sent[name] = array.copy()

    def receive(self, names: Collection[str]) -> None:
        """Reads these tensors into their arrays, and waits until that is done."""
        self._memory.read([self.values[name] for name in names], [self._host[name] for name in names])


class PackedMirror(Mirror):
    """A mirror with one copy in each direction. Small tensors lie side by side, for every copy waits for the GPU.

    Args:
        memory, arrays: as of Mirror.
        apart: names of tensors with memory of their own, copied by themselves.
        block: makes so many bytes there; returns what makes tensors of a shape, a type and an offset in them.
    """

    def __init__(
        self,
        memory: DeviceMemory,
        arrays: Mapping[str, np.ndarray],
        apart: Collection[str],
        block: Callable[[int], Callable[[Sequence[int], Any, int], ort.OrtValue]],
    ) -> None:
        super().__init__(memory, {name: array for name, array in arrays.items() if name in apart})
        packed = {name: array for name, array in arrays.items() if name not in apart}
        ends = np.cumsum([0, *(-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in packed.values())])
        offsets = dict(zip(packed, ends.tolist(), strict=False))
        self._bytes = np.zeros(int(ends[-1]), np.uint8)
        tensor = block(self._bytes.nbytes)
        with memory.errors():
            self._all = tensor(self._bytes.shape, np.uint8, 0)
        self._all_host = ort.OrtValue.ortvalue_from_numpy(self._bytes)
        self._packed: dict[str, np.ndarray] = {}
        for name, array in packed.items():
            start = offsets[name]
            self._packed[name] = self._bytes[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
            self._packed[name][...] = array
            with memory.errors():
                self.values[name] = tensor(array.shape, array.dtype, start)
        with memory.errors():
            self._all.update_inplace(self._bytes)
        self.arrays |= packed

    def send(self) -> None:
        changed = False
        for name, known in self._packed.items():
            if not np.array_equal(known, self.arrays[name]):
                known[...] = self.arrays[name]
                changed = True
        if changed:
            self._all.update_inplace(self._bytes)
        super().send()

    def receive(self, names: Collection[str]) -> None:
        if any(name in self._packed for name in names):
            self._memory.read([self._all], [self._all_host])
            for name, known in self._packed.items():
                self.arrays[name][...] = known
        super().receive([name for name in names if name not in self._packed])
