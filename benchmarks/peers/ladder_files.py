"""Makes the files of llama.cpp's quantization ladder from one .gguf. ladder.py uses it.

- F32 holds exactly the weights that sol_rt's export reads, in float32.
- The rungs are what llama.cpp's own quantization makes from F32. Those with `-I` have an importance matrix
  (importance.py), the others have none.
- FILE is the .gguf itself, which llama.cpp runs as it is: the strongest rival, as it is quantized once.
- RTN holds F32's weights after plain rounding, stored in float32, so that only the rounding is measured.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from peers.peer_models import run_tool
from sol_rt.errors import UsageError
from sol_rt.export.sources.decoder import family_of_gguf
from sol_rt.export.sources.open_checkpoint import open_checkpoint

SOURCE = "F32"
AS_IT_IS = "FILE"
RUNGS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", AS_IT_IS)
MORE_RUNGS = ("Q4_0", "Q5_K_M-I", "Q4_K_M-I", "Q4_0-I", "Q3_K_M-I")
WITH_IMPORTANCE = "-I"
BLOCK = 32
_QUANTIZE = Path(__file__).parent / "workers" / "llama_cpp_quantize.py"
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"


@dataclass(frozen=True)
class Contents:
    """The contents of a .gguf.

    A decode step reads all matrices except an embedding that is not also the LM head.

    Attributes:
        file_bytes: size of the file.
        bits: mean bits per weight over the matrices that a decode step reads.
        weights: number of weights in these matrices.
        head_share: share of these weights in the LM head.
        step_bytes: bytes that a decode step reads, of these matrices and of all vectors.
        types: share of these weights by tensor type, the largest first.
    """

    file_bytes: int
    bits: float
    weights: int
    head_share: float
    step_bytes: int
    types: dict[str, float]

    @classmethod
    def of(cls, path: Path) -> Contents:
        tensors = gguf.GGUFReader(str(path)).tensors
        head = _OUTPUT if any(tensor.name == _OUTPUT for tensor in tensors) else _EMBEDDING
        read = [tensor for tensor in tensors if tensor.name in (head, *_others(tensors))]
        matrices = [tensor for tensor in read if len(tensor.shape) > 1]
        weights: Counter[str] = Counter()
        for tensor in matrices:
            weights[tensor.tensor_type.name] += int(tensor.n_elements)
        total = sum(weights.values())
        return cls(
            path.stat().st_size,
            8 * sum(int(tensor.n_bytes) for tensor in matrices) / total,
            total,
            sum(int(tensor.n_elements) for tensor in matrices if tensor.name == head) / total,
            sum(int(tensor.n_bytes) for tensor in read),
            {name: count / total for name, count in weights.most_common()},
        )


def _others(tensors: Sequence[Any]) -> list[str]:
    """Names of all tensors except embedding and LM head."""
    return [tensor.name for tensor in tensors if tensor.name not in (_EMBEDDING, _OUTPUT)]


@dataclass(frozen=True)
class Rounding:
    """Plain round-to-nearest: `bits` per weight, `lm_head_bits` in embedding and LM head. `RTN4` or `RTN4-H8`."""

    bits: int
    lm_head_bits: int

    @property
    def name(self) -> str:
        return f"RTN{self.bits}" + ("" if self.lm_head_bits == self.bits else f"-H{self.lm_head_bits}")

    def bits_a_weight(self, head_share: float) -> float:
        """Bits per weight, including what a bundle stores beside the codes of 32 weights: a float16 step and 8 bits of
        zero point.
        """
        return self.bits + (self.lm_head_bits - self.bits) * head_share + (16 + 8) / BLOCK

    @classmethod
    def parse(cls, name: str) -> Rounding:
        """Reads a name such as `RTN4-H8`. Raises UsageError for any other text."""
        match = re.fullmatch(r"RTN(\d)(?:-H(\d))?", name)
        if not match or not all(2 <= int(bits) <= 8 for bits in match.groups() if bits):
            raise UsageError(f"got {name!r}, expected RTN and 2 to 8 bits, as in RTN4 or RTN4-H8 (LM head at 8 bits)")
        return cls(int(match[1]), int(match[2] or match[1]))


def round_to_nearest(w: np.ndarray, bits: int) -> np.ndarray:
    """Rounds weights, float32 [..., K], in blocks of 32, asymmetrically between the block's minimum and maximum.

    s = (max - min) / (2^bits - 1) in float16, z = round(-min / s), w' = s (clamp(round(w / s) + z, 0, 2^bits - 1) - z).
    The range always includes 0, so that z is one of the codes. The formula is that of GPTQ's reference implementation
    (Quantizer.find_params).
    """
    top = np.float32(2**bits - 1)
    blocks = w.reshape(-1, BLOCK)
    low, high = np.minimum(blocks.min(1, keepdims=True), 0), np.maximum(blocks.max(1, keepdims=True), 0)
    step = ((high - low) / top).astype(np.float16).astype(np.float32)
    step[step == 0] = 1
    zero = np.clip(np.rint(-low / step), 0, top)
    codes = np.clip(np.rint(blocks / step) + zero, 0, top)
    return (step * (codes - zero)).astype(np.float32).reshape(w.shape)


class Ladder:
    """A folder with the files of one source. Missing files are made when they are asked for.

    Args:
        source: a .gguf.
        cache: folder that holds a folder per source.
        python: Python of llama.cpp's environment.
        threads: threads for llama.cpp's quantization.
        text: text for importance matrices; None if no rung has one.

    Attributes:
        folder: folder of this source.

    Raises UsageError if the source is not a .gguf.
    """

    def __init__(self, source: Path, cache: Path, python: Path, threads: int, text: Path | None = None) -> None:
        if source.suffix.lower() != ".gguf":
            raise UsageError(
                f"{source}: got a checkpoint folder, expected a .gguf; llama.cpp's convert_hf_to_gguf.py makes one "
                "(--outtype f32)"
            )
        self.folder = cache / f"{source.stem}-{_digest(source)[:8]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._source, self._python, self._threads, self._text = source, python, threads, text

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the folder, because two runs would write the same files. Raises UsageError if another run holds it."""
        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"{self.folder}: in use by another run, expected to be alone; wait for it, or give another --cache"
                ) from None
            yield

    def path(self, name: str) -> Path:
        """Path of a rung's file, whether it exists or not."""
        return self.folder / f"{name}.gguf"

    def source(self) -> Path:
        """The file with the weights that sol_rt's export reads, in float32; metadata and tokenizer are unchanged."""
        return self._made(SOURCE, self._write_source)

    def rung(self, name: str) -> Path:
        """The file that llama.cpp makes from the float32 weights; `name` is a type of llama-quantize, with `-I` for an
        importance matrix; or the .gguf as it is.
        """
        if name == AS_IT_IS:
            return self._source
        kind = name.removesuffix(WITH_IMPORTANCE)
        more = [] if kind == name else ["--importance", str(self._importance())]

        def quantize(part: Path) -> None:
            run_tool([self._python, _QUANTIZE, self.source(), part, kind, "--threads", str(self._threads), *more])

        return self._made(self.key(name), quantize)

    def key(self, name: str) -> str:
        """Names a rung's file and its scores: with an importance matrix of another text it is another rung."""
        return f"{name}-{self._text_digest()}" if name.endswith(WITH_IMPORTANCE) else name

    def _text_digest(self) -> str:
        if self._text is None:
            raise UsageError("--rungs: those with -I need a text for their importance matrix: --importance FILE")
        return _digest(self._text)[:8]

    def _importance(self) -> Path:
        dest, part = self.folder / f"importance-{self._text_digest()}.npz", self.folder / "importance.part"
        assert self._text is not None  # else it has no digest
        if not dest.exists():
            run_tool([sys.executable, Path(__file__).with_name("importance.py"), self._source, self._text, part])
            part.rename(dest)
        return dest

    def rounded(self, rounding: Rounding) -> Path:
        """The file with the float32 weights after rounding every matrix."""

        def write(part: Path) -> None:
            reader = gguf.GGUFReader(str(self.source()))

            def values(tensor: Any) -> np.ndarray:
                head = tensor.name in (_EMBEDDING, _OUTPUT)
                bits = rounding.lm_head_bits if head else rounding.bits
                return round_to_nearest(tensor.data, bits) if tensor.data.ndim > 1 else tensor.data

            _write_float32(part, reader, [(tensor, values) for tensor in reader.tensors])

        return self._made(rounding.name, write)

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        dest, part = self.path(name), self.folder / f"{name}.part"
        if not dest.exists():
            print(f"making {dest}", file=sys.stderr)
            make(part)
            part.rename(dest)
        return dest

    def _write_source(self, part: Path) -> None:
        """Writes the float32 file. If export ties the LM head to the embedding, the file has only the embedding."""
        reader, checkpoint = gguf.GGUFReader(str(self._source)), open_checkpoint(self._source)
        tied = bool(checkpoint.config["tie_word_embeddings"])
        plain = {name: field for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
        family, _ = family_of_gguf({name: field.contents() for name, field in plain.items()})
        embedding = family.names.embed

        def values(tensor: Any) -> np.ndarray:
            if tied and tensor.name == _EMBEDDING:
                return checkpoint.read(f"{embedding}.weight")
            return gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)

        kept = [tensor for tensor in reader.tensors if not (tied and tensor.name == _OUTPUT)]
        _write_float32(part, reader, [(tensor, values) for tensor in kept])


def _digest(path: Path) -> str:
    """A file's sha256 in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 24):
            digest.update(part)
    return digest.hexdigest()


def _write_float32(path: Path, like: gguf.GGUFReader, tensors: list[tuple[Any, Callable[[Any], np.ndarray]]]) -> None:
    """Writes a .gguf with the metadata of `like`; only one tensor is in memory at a time."""
    writer = gguf.GGUFWriter(path, str(like.fields["general.architecture"].contents()))
    for name, kind, inner, value in _metadata(like):
        writer.add_key_value(name, value, kind, inner)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor, _ in tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), 4 * int(tensor.n_elements))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, values in tensors:
        writer.write_tensor_data(np.ascontiguousarray(values(tensor)))
    writer.close()


def _metadata(reader: gguf.GGUFReader) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yields name, type, element type and value of every key that the writer does not write itself."""
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        array = field.types[0] == gguf.GGUFValueType.ARRAY
        yield name, field.types[0], field.types[-1] if array else None, field.contents()
