"""The native CPU operators of the domain `sol`: one shared library that ONNX Runtime loads."""

from pathlib import Path


def library_path() -> Path | None:
    """Path of the shared library to register with ONNX Runtime, or None where the package was built without it."""
    path = Path(__file__).with_name("libsol_ops_cpu.so")
    return path if path.is_file() else None
