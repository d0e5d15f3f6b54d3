"""Memory that CUDA's driver gives, with a driver whose memory is the host's; small tensors side by side; errors."""

from __future__ import annotations

import ctypes
import gc
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.main_memory import MainMemory
from helpers.places import TESTS
from sol_rt.engine.gpu import cuda, cuda_memory, device_sessions
from sol_rt.engine.gpu.cuda_memory import Block, CudaDriver
from sol_rt.engine.gpu.device_memory import CudaMemory, DeviceMemory
from sol_rt.engine.hardware import Gpu
from sol_rt.errors import DeviceError, ProviderError, one_line

import onnxruntime as ort

COMPILER = shutil.which("c++")
SOURCE = TESTS / "native" / "cuda_driver.cc"
LIMIT = 1 << 20
pytestmark = pytest.mark.skipif(
    not hasattr(ort.OrtValue, "from_dlpack"), reason="this ONNX Runtime takes no memory of others from Python"
)
LOST = 700
WHERE = "provider cuda: a GPU"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("driver") / "libcuda.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", str(SOURCE), "-o", str(library)], check=True)
    return library


@pytest.fixture
def library(file: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(file))
    library.used_bytes.restype = library.most_used_bytes.restype = ctypes.c_size_t
    library.fail_with(0)
    library.share_memory(0)
    gc.collect()
    assert library.used_bytes() == 0
    return library


def _device_of(value: ort.OrtValue) -> int:
    """The device's number, as DLPack hands it on."""
    return int(value._ortvalue.__dlpack_device__()[1])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "int8", "float16", "float32", "int64", "bool"])
def test_a_tensor_takes_what_it_holds_and_gives_it_back(library: ctypes.CDLL, dtype: str) -> None:
    block = Block(CudaDriver(library, 3), 960)
    assert library.used_bytes() == 960
    whole = block.tensor((2, 3, 5), dtype)
    part = block.tensor((4,), dtype, offset=256)
    assert (whole.shape(), part.shape()) == ([2, 3, 5], [4])
    assert whole.element_type() == ort.OrtValue.ortvalue_from_numpy(np.zeros(1, dtype)).element_type()
    assert whole.device_name() == "cuda"
    assert _device_of(whole) == 3
    assert part.data_ptr() - whole.data_ptr() == 256
    del block, whole
    gc.collect()
    assert library.used_bytes() == 960
    del part
    gc.collect()
    assert library.used_bytes() == 0
    assert library.open_contexts() == 0


def test_a_tensor_may_outlive_everything_else(file: Path) -> None:
    code = f"""
import ctypes
from sol_rt.engine.gpu.cuda_memory import Block, CudaDriver
kept = [Block(CudaDriver(ctypes.CDLL({str(file)!r}), 0), 64).tensor((64,), "uint8") for _ in range(100)]
print("ends")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ends\n", "")


def _session(model: bytes) -> ort.InferenceSession:
    raise AssertionError(model)


def test_short_memory_names_what_is_needed_and_free(library: ctypes.CDLL) -> None:
    memory = CudaMemory(CudaDriver(library, 0), WHERE, _session)
    memory.require(LIMIT, "weights")
    kept = memory.empty((LIMIT // 4,), np.float16)
    assert library.used_bytes() == LIMIT // 2
    with pytest.raises(ProviderError, match=r"weights needs 0.6 MB of GPU memory, 0.5 MB is free"):
        memory.require(600_000, "weights")
    with pytest.raises(
        ProviderError, match=r"a GPU: a tensor needs 0.6 MB of GPU memory, 0.5 MB is free.*out of memory"
    ):
        memory.empty((600_000,), np.uint8)
    with pytest.raises(ProviderError, match=r"needs 0.6 MB"):
        memory.mirror({"x": np.zeros(600_000, np.uint8)})
    del kept
    gc.collect()
    memory.empty((600_000,), np.uint8)
    assert library.most_used_bytes() <= LIMIT


def test_an_empty_tensor_has_a_shape(library: ctypes.CDLL) -> None:
    value = CudaMemory(CudaDriver(library, 0), WHERE, _session).empty((0, 4), np.float32)
    assert value.shape() == [0, 4]


def test_a_tensor_that_cannot_be_handed_over_keeps_nothing(
    library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = CudaMemory(CudaDriver(library, 0), WHERE, _session)

    def fail(_: object) -> ort.OrtValue:
        raise RuntimeError("no DLPack")

    monkeypatch.setattr(ort.OrtValue, "from_dlpack", fail)
    for make in (lambda: memory.empty((4,), np.uint8), lambda: memory.mirror({"x": np.zeros(4)})):
        with pytest.raises(DeviceError, match="a GPU failed: no DLPack"):
            make()
    gc.collect()
    assert library.used_bytes() == 0


def test_memory_that_files_fill_is_free_where_it_is_the_processors(
    library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_memory, "free_memory_bytes", lambda: 5 * LIMIT)
    assert CudaDriver(library, 0).free_bytes() == LIMIT
    library.share_memory(1)
    assert CudaDriver(library, 0).free_bytes() == 5 * LIMIT
    monkeypatch.setattr(cuda_memory, "free_memory_bytes", lambda: None)
    assert CudaDriver(library, 0).free_bytes() == LIMIT


def test_full_memory_is_no_lost_gpu(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.hardware, "cuda_library", lambda: library)
    driver = cuda.driver(0)
    kept = Block(driver, LIMIT)
    memory = CudaMemory(driver, WHERE, _session)
    assert driver.free_bytes() == 0
    assert not memory.lost()
    del kept
    library.fail_with(2)
    assert not memory.lost()
    with pytest.raises(ProviderError, match="CUDA error 2: out of memory; close other programs"):
        cuda.driver(0)


def test_a_lost_gpu_is_no_shortage(library: ctypes.CDLL) -> None:
    driver = CudaDriver(library, 0)
    memory = CudaMemory(driver, WHERE, _session)
    block = Block(driver, 8)
    library.fail_with(LOST)
    assert driver.free_bytes() is None
    memory.require(LIMIT, "weights")
    with pytest.raises(DeviceError, match="CUDA error 700: the GPU is lost"):
        memory.empty((4,), np.uint8)
    with pytest.raises(DeviceError, match="CUDA error 700"):
        cuda.CudaDriver(library, 0)
    assert memory.lost()
    del block
    gc.collect()
    assert library.used_bytes() == 8  # nothing was given back, and nothing raised
    library.forget()


class _Counting(MainMemory):
    def __init__(self) -> None:
        super().__init__()
        self.reads: list[int] = []

    def read(self, values: list[ort.OrtValue], into: list[ort.OrtValue]) -> None:  # type: ignore[override]
        self.reads.append(len(values))
        super().read(values, into)


def _writes(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Arrays that are copied to tensors from now on."""
    written: list[np.ndarray] = []
    write = ort.OrtValue.update_inplace
    monkeypatch.setattr(ort.OrtValue, "update_inplace", lambda *call: (written.append(call[1]), write(*call)))
    return written


def test_small_tensors_go_in_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = _Counting()
    arrays = {"a": np.arange(3), "b": np.ones((2, 2), np.float32), "logits": np.zeros((1, 7), np.float32)}
    mirror = memory.mirror(arrays, apart=["logits"])
    for name, array in arrays.items():
        assert mirror.values[name].shape() == list(array.shape)
        np.testing.assert_array_equal(mirror.values[name].numpy(), array)
    assert (mirror.values["b"].data_ptr() - mirror.values["a"].data_ptr()) % 256 == 0
    mirror.send()
    written = _writes(monkeypatch)
    mirror.send()
    assert written == []
    arrays["a"][1], arrays["b"][0, 1], arrays["logits"][0, 2] = 9, 3, 5
    mirror.send()
    assert [array.nbytes for array in written] == [512, arrays["logits"].nbytes]
    for name, array in arrays.items():
        np.testing.assert_array_equal(mirror.values[name].numpy(), array)

    there = {name: array + 1 for name, array in arrays.items()}
    for name, array in there.items():
        mirror.values[name].update_inplace(array)
    mirror.receive(["a", "b"])
    assert memory.reads == [1, 0]
    np.testing.assert_array_equal(arrays["a"], there["a"])
    np.testing.assert_array_equal(arrays["b"], there["b"])
    assert arrays["logits"][0, 2] == 5
    mirror.receive(["logits"])
    np.testing.assert_array_equal(arrays["logits"], there["logits"])


class _MayBeLost(MainMemory):
    gone = False

    def lost(self) -> bool:
        return self.gone


@pytest.mark.parametrize("gone", [False, True])
def test_a_session_outlives_a_lost_gpu(gone: bool) -> None:
    memory, session = _MayBeLost(), object()
    memory.gone = gone
    before = sys.getrefcount(session)
    device_sessions._let_go(session, memory)  # type: ignore[arg-type]
    assert sys.getrefcount(session) - before == gone


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_a_library_that_the_provider_misses_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.cc").touch()
    for missing in ("shared", "cuda"):
        library = tmp_path / f"libonnxruntime_providers_{missing}.so"
        assert library.name in str(cuda.missing_library(tmp_path))
        subprocess.run([str(COMPILER), "-shared", str(tmp_path / "empty.cc"), "-o", str(library)], check=True)
    assert cuda.missing_library(tmp_path) is None


def test_main_memory_is_not_lost() -> None:
    memory: DeviceMemory = MainMemory()
    assert not memory.lost()


SIGNATURE = "std::conditional_t<THRW, void, Status> onnxruntime::CudaCall(ERRTYPE, const char*, const char*) " * 3
FAILURE = f"/src/cuda_call.cc:154 {SIGNATURE} CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; file=f ; line=9"


def test_a_long_text_of_the_provider_is_cut_to_its_cause() -> None:
    assert one_line(RuntimeError(FAILURE)) == "CUDA failure 2: out of memory"
    assert one_line(RuntimeError("short;\n text")) == "short; text"
    assert one_line(RuntimeError("x" * 300)) == "x" * 199 + "…"
    assert one_line(RuntimeError()) == "RuntimeError"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (FAILURE, ["memory is short even for a tiny model, 3 MB was free", "close other programs"]),
        (FAILURE.replace("2: out of memory", "700: illegal address"), ["CUDA failure 700: illegal address; check"]),
        ("This session contains graph nodes that fall back", ["libonnxruntime_providers_shared", "pip install"]),
    ],
)
def test_reasons_of_a_failed_probe_name_the_next_step(
    text: str, parts: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cuda.ort, "__file__", str(tmp_path / "__init__.py"))
    reason = cuda.reason(RuntimeError(text), Gpu("a GPU", free_bytes=3_000_000))
    for part in parts:
        assert part in reason
