"""Makes a rung of llama.cpp's ladder from a float32 .gguf.

python llama_cpp_quantize.py F32.gguf DEST.gguf Q4_K_M --threads N [--importance FILE.npz]
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from pathlib import Path

import llama_cpp
import numpy as np

_ERROR = 4  # GGML_LOG_LEVEL_ERROR; below it there is a line a tensor


@llama_cpp.llama_log_callback
def _errors_only(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    if level == _ERROR:
        sys.stderr.write(text.decode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("dest", type=Path)
    parser.add_argument("type", help="as llama-quantize names it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--importance", type=Path, help="tensor name -> mean squares of its inputs, float32 [K]")
    args = parser.parse_args()
    llama_cpp.llama_log_set(_errors_only, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{args.type}")
    params.nthread = args.threads
    found = {} if args.importance is None else dict(np.load(args.importance))
    if found:
        # the list ends with an entry without a name
        entries = (llama_cpp.llama_model_imatrix_data * (len(found) + 1))()
        for entry, (name, values) in zip(entries, found.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    status = llama_cpp.llama_model_quantize(str(args.source).encode(), str(args.dest).encode(), ctypes.byref(params))
    if status:
        raise SystemExit(f"{args.source}: llama_model_quantize to {args.type} gave status {status}, expected 0")


if __name__ == "__main__":
    main()
