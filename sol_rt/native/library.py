"""Opens libsol_rt and turns its errors into this package's."""

from __future__ import annotations

import ctypes
import errno
import functools
import importlib.util
import os
from collections.abc import Callable, Iterable
from ctypes import (
    POINTER,
    byref,
    c_char_p,
    c_double,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
    sizeof,
)
from pathlib import Path
from typing import Any

from sol_rt.errors import BundleError, BusyError, ContextError, NumericError, ProviderError, SolError, UsageError
from sol_rt.native import structs
from sol_rt.native.simd_targets import check_simd_targets
from sol_rt.ops import HOW_TO_INSTALL, core_path

_VERSION = 2  # of the interface
_CODES: dict[int, Callable[[str], SolError]] = {
    1: UsageError,
    2: BundleError.of,
    3: ProviderError,
    4: ContextError,
    5: NumericError,
    6: BusyError,
    8: lambda message: _unwritten(message),
    10: UsageError,
}
CANCELLED = 7
_FAILING: dict[str, tuple[Any, ...]] = {
    "sol_runtime_create": (POINTER(structs.RuntimeOptions), POINTER(c_void_p)),
    "sol_model_load": (c_void_p, c_char_p, POINTER(structs.ModelOptions), POINTER(c_void_p)),
    "sol_model_get_info": (c_void_p, POINTER(structs.ModelInfo)),
    "sol_model_set_costs": (c_void_p, c_char_p),
    "sol_tuning_get": (POINTER(structs.Tuning),),
    "sol_tuning_set": (POINTER(structs.Tuning),),
    "sol_model_encode": (c_void_p, c_char_p, c_size_t, c_uint32, POINTER(c_int32), c_size_t, POINTER(c_size_t)),
    "sol_model_encode_chat": (
        c_void_p, POINTER(structs.Message), c_size_t, POINTER(c_int32), c_size_t, POINTER(c_size_t),
    ),
    "sol_session_create": (c_void_p, POINTER(c_void_p)),
    "sol_session_create_on": (c_void_p, POINTER(structs.HostEngine), POINTER(c_void_p)),
    "sol_session_set_progress": (c_void_p, structs.PromptProgress, c_void_p),
    "sol_session_tokens": (c_void_p, POINTER(c_int32), c_size_t, POINTER(c_size_t)),
    "sol_session_dense_tokens": (c_void_p, POINTER(c_size_t)),
    "sol_session_rewind": (c_void_p, c_size_t),
    "sol_session_save": (c_void_p, c_char_p),
    "sol_session_restore": (c_void_p, c_char_p),
    "sol_session_forward": (
        c_void_p, POINTER(c_int32), c_size_t, c_char_p, POINTER(structs.Rows), POINTER(structs.Distribution),
    ),
    "sol_session_set_active_channels": (c_void_p, c_char_p, *(POINTER(c_int32),) * 4, c_size_t),
    "sol_session_score": (
        c_void_p, POINTER(c_int32), c_size_t, c_size_t, POINTER(structs.GenerateOptions), POINTER(structs.Scores),
    ),
    "sol_session_plan": (c_void_p, POINTER(structs.GenerateOptions)),
    "sol_session_step": (
        c_void_p, c_int32, POINTER(structs.Rows), POINTER(structs.Distribution), POINTER(structs.Step),
    ),
    "sol_session_resume": (c_void_p, c_size_t, c_void_p, c_size_t, c_void_p, c_size_t),
    "sol_session_start": (c_void_p, POINTER(c_int32), c_size_t, POINTER(structs.GenerateOptions)),
    "sol_session_read_prompt": (c_void_p, c_size_t, POINTER(c_size_t)),
    "sol_session_next": (c_void_p, POINTER(structs.Token)),
    "sol_batch_next": (POINTER(c_void_p), c_size_t, POINTER(POINTER(structs.Token)), POINTER(c_void_p)),
    "sol_session_stop": (c_void_p,),
    "sol_session_result": (c_void_p, POINTER(structs.Result)),
    "sol_session_set_budget": (c_void_p, c_double),
    "sol_session_set_tokens_per_second": (c_void_p, c_double),
    "sol_governor_begin": (POINTER(structs.GovernorSettings), POINTER(structs.GovernorState)),
    "sol_governor_step": (
        POINTER(structs.GovernorSettings), POINTER(structs.GovernorReading), POINTER(structs.GovernorState),
    ),
    # of sol_plan.h
    "sol_config_check": (c_char_p, c_size_t, c_char_p, c_int32),
    "sol_graph_weights": (c_char_p, c_size_t, c_char_p, c_char_p, c_size_t, POINTER(c_size_t)),
    "sol_trace_check": (c_char_p, c_size_t, c_char_p),
    "sol_costs_find": (c_char_p, c_char_p, c_char_p, c_int32, POINTER(c_void_p)),
    "sol_costs_keep": (c_void_p, c_char_p),
    "sol_costs_get_table": (c_void_p, POINTER(structs.CostTable)),
    "sol_model_get_cost_table": (c_void_p, POINTER(structs.CostTable)),
    "sol_session_profile": (c_void_p, POINTER(structs.Profile)),
    "sol_model_tune": (c_void_p, c_double, structs.Progress, c_void_p, POINTER(structs.Tuned)),
    "sol_costs_create": (c_char_p, c_char_p, POINTER(c_void_p)),
    "sol_costs_steps": (c_void_p, POINTER(c_char_p), c_size_t, c_void_p, c_size_t, c_void_p),
    "sol_costs_reads": (c_void_p, c_char_p, c_int64, POINTER(c_double), POINTER(c_double)),
    "sol_costs_losses": (c_void_p, POINTER(c_char_p), c_size_t, c_int64, c_void_p),
    "sol_costs_actions": (c_void_p, c_char_p, c_int32, c_char_p, c_size_t, POINTER(c_size_t)),
    "sol_costs_default_schedule": (c_void_p, c_int32, POINTER(c_char_p)),
    "sol_costs_schedule_note": (c_void_p, c_char_p, c_char_p, c_size_t, POINTER(c_size_t)),
    "sol_hull_create": (c_void_p, POINTER(c_char_p), c_size_t, POINTER(c_void_p)),
    "sol_hull_corners": (
        c_void_p, c_int64, POINTER(c_size_t), POINTER(c_double), POINTER(c_double), POINTER(c_size_t),
    ),
    "sol_hull_cost_at": (c_void_p, c_double, c_int64, POINTER(c_double)),
    "sol_lower_hull": (c_void_p, c_void_p, POINTER(c_size_t), c_int32),
    "sol_plan_create": (c_void_p, POINTER(structs.PlanOptions), POINTER(c_void_p)),
    "sol_plan_step": (c_void_p, POINTER(structs.PlanSeen), POINTER(structs.Step)),
    "sol_plan_set_budget": (c_void_p, c_double),
    "sol_plan_set_tokens_per_second": (c_void_p, c_double),
}  # fmt: skip
_OTHERS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "sol_interface_version": (c_uint32, ()),
    "sol_error_code": (c_int, (c_void_p,)),
    "sol_error_message": (c_char_p, (c_void_p,)),
    "sol_error_release": (None, (c_void_p,)),
    "sol_runtime_options_init": (None, (POINTER(structs.RuntimeOptions), c_uint32)),
    "sol_runtime_device": (c_char_p, (c_void_p,)),
    "sol_model_options_init": (None, (POINTER(structs.ModelOptions), c_uint32)),
    "sol_model_release": (None, (c_void_p,)),
    "sol_session_release": (None, (c_void_p,)),
    "sol_session_private_bytes": (c_uint64, (c_void_p,)),
    "sol_session_cancel": (None, (c_void_p,)),
    "sol_generate_options_init": (None, (POINTER(structs.GenerateOptions), c_uint32)),
    "sol_governor_settings_init": (None, (POINTER(structs.GovernorSettings), c_uint32)),
    "sol_governor_reading_init": (None, (POINTER(structs.GovernorReading), c_uint32)),
    "sol_costs_release": (None, (c_void_p,)),
    "sol_costs_policy": (c_double, (c_void_p,)),
    "sol_hull_release": (None, (c_void_p,)),
    "sol_plan_release": (None, (c_void_p,)),
}


def _unwritten(message: str) -> SolError:
    """The error for a file that cannot be written. Raises BrokenPipeError where its reader has left."""
    if os.strerror(errno.EPIPE) in message:  # the interface has no number for it
        raise BrokenPipeError(errno.EPIPE, message)
    return UsageError(message)


class Cancelled(SolError):
    """A call ended because another thread cancelled it."""


@functools.cache
def core() -> Any:
    """libsol_rt with its functions' types. Those that can fail raise what `SolModel` raises.

    Raises ProviderError where the package was built without the library, UsageError for a wrong mask of targets.
    """
    path = core_path()
    if path is None:
        raise ProviderError(
            f"this installation has no native core, libsol_rt, which reads bundles and runs models; {HOW_TO_INSTALL}"
        )
    check_simd_targets()
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in _OTHERS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    if (found := library.sol_interface_version()) < _VERSION:
        raise ProviderError(f"{path}: interface version {found}, expected {_VERSION}; install sol-rt again")
    for name, arguments in _FAILING.items():
        function = getattr(library, name)
        function.restype, function.argtypes = c_void_p, arguments
        function.errcheck = lambda error, _, __: raise_error(error)
    return library


def default_options() -> structs.GenerateOptions:
    """`sol_generate_options` in which nothing is asked for."""
    options = structs.GenerateOptions()
    core().sol_generate_options_init(byref(options), sizeof(options))
    return options


def model_info(model: c_void_p) -> structs.ModelInfo:
    """Facts about a `sol_model`. Its texts live as long as the model."""
    info = structs.ModelInfo(size=sizeof(structs.ModelInfo))
    core().sol_model_get_info(model, byref(info))
    return info


def raise_error(error: int | None) -> None:
    """Raises what a `sol_error` says, and frees it; of None, nothing."""
    if not error:
        return
    library = core()
    try:
        code, message = library.sol_error_code(error), library.sol_error_message(error).decode("utf-8", "replace")
    finally:
        library.sol_error_release(error)
    raise Cancelled(message) if code == CANCELLED else _CODES.get(code, SolError)(message)


def path_bytes(path: Path | str) -> bytes:
    """A path as the core takes it."""
    return str(path).encode("utf-8", "surrogateescape")


def c_strings(texts: Iterable[str]) -> Any:
    """An array of C strings, which keeps them."""
    encoded = [text.encode() for text in texts]
    return (c_char_p * max(len(encoded), 1))(*encoded)


def onnxruntime_library() -> bytes:
    """Path of the shared library that the package onnxruntime uses. Raises ProviderError where it is not found."""
    spec = importlib.util.find_spec("onnxruntime")  # does not import it, which takes a while
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        for pattern in ("libonnxruntime.so*", "libonnxruntime*.dylib", "onnxruntime.dll"):
            if found := sorted((Path(folder) / "capi").glob(pattern)):
                return path_bytes(found[0])
    raise ProviderError("the package onnxruntime has no shared library; pip install --force-reinstall onnxruntime")


@functools.cache
def runtime(threads: int, native_ops: bool) -> c_void_p:
    """A `sol_runtime`. It lives as long as the process: ONNX Runtime's thread pool is there once."""
    options, made = structs.RuntimeOptions(), c_void_p()
    core().sol_runtime_options_init(byref(options), sizeof(options))
    options.ort_library, options.threads, options.native_operators = onnxruntime_library(), threads, int(native_ops)
    core().sol_runtime_create(byref(options), byref(made))
    return made
