"""The native operators of the domain `sol`: one shared library per provider, which ONNX Runtime loads.

May import: nothing of sol_rt.
"""

import ctypes
import functools
import hashlib
import sys
from pathlib import Path

_SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")

HOW_TO_INSTALL = (
    "install a wheel of sol-rt; or run scripts/install-packages.sh build in a checkout, then "
    "pip install --force-reinstall --no-deps ."
)
"""The next step for users whose installation has no native operators. Ends a line."""


def library_path(provider: str = "cpu") -> Path | None:
    """Path of a provider's shared library, which ONNX Runtime can register.

    Returns None if the package was built without that library.
    """
    path = Path(__file__).with_name(f"libsol_ops_{provider}{_SUFFIX}")
    return path if path.is_file() else None


def core_path() -> Path | None:
    """Path of the native core, libsol_rt (core/). Returns None if the package was built without it."""
    path = Path(__file__).with_name(f"libsol_rt{_SUFFIX}")
    return path if path.is_file() else None


@functools.cache
def library_name(library: Path, provider: str) -> str:
    """Names a build of the operators: by the hash of the library and, on the CPU, its SIMD target here.

    The file is read once a process.
    """
    digest = hashlib.sha256(library.read_bytes()).hexdigest()[:12]
    if provider != "cpu":
        return f"native kernels {digest}"
    target = ctypes.CDLL(str(library)).SolOpsTarget
    target.restype = ctypes.c_char_p
    return f"native kernels {digest} ({target().decode()})"
