"""The native operators of the domain `sol`: one shared library per provider, which ONNX Runtime loads.

May import: nothing of sol_rt.
"""

from pathlib import Path


def library_path(provider: str = "cpu") -> Path | None:
    """Path of a provider's shared library, which ONNX Runtime can register.

    Returns None if the package was built without that library.
    """
    path = Path(__file__).with_name(f"libsol_ops_{provider}.so")
    return path if path.is_file() else None
