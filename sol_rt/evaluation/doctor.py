"""Checks what works on this machine: one finding per part of the installation, with the next step if one is needed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sol_rt import __version__

EXTRAS = {
    "export": ("torch", "transformers", "onnx", "gguf", "safetensors", "numba"),
    "train": ("torch", "yaml", "safetensors", "onnx"),
    "plot": ("altair", "vl_convert"),
    "grammar": ("llguidance",),
    "serve": ("starlette", "uvicorn", "prometheus_client"),
}
"""Modules that an extra of the package brings, and that what it is for cannot do without."""


@dataclass(frozen=True)
class Finding:
    """One line of the check.

    Attributes:
        state: `ok`; `missing` (an optional part is not there); `broken` (generation will fail or be slower).
        what: the part that was checked.
        detail: what was found, and the next step if the part does not work.
    """

    state: Literal["ok", "missing", "broken"]
    what: str
    detail: str


def examine() -> list[Finding]:
    """Checks the installation. Never raises: each error becomes a finding."""
    return [
        Finding(
            "ok",
            "sol_rt",
            f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        ),
        *_onnxruntime(),
        _native_operators(),
        _core(),
        _processor(),
        *_tuning(),
        _memory(),
        _gpu("webgpu"),
        _gpu("cuda"),
        *_extras(),
        *_home(),
    ]


def not_installed(modules: Iterable[str]) -> list[str]:
    """Names the modules that are not installed."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def _onnxruntime() -> list[Finding]:
    try:
        import onnxruntime
    except Exception as error:
        return [Finding("broken", "onnxruntime", f"{error}; run pip install --force-reinstall onnxruntime")]
    return [
        Finding("ok", "onnxruntime", f"{onnxruntime.__version__}, {', '.join(onnxruntime.get_available_providers())}")
    ]


def _native_operators() -> Finding:
    from sol_rt.ops import HOW_TO_INSTALL, library_name, library_path

    library = library_path()
    if library is None:
        detail = f"left out of this installation; standard ones run, several times slower; {HOW_TO_INSTALL}"
        return Finding("missing", "native operators", detail)
    try:
        import onnxruntime

        onnxruntime.SessionOptions().register_custom_ops_library(str(library))
        name = library_name(library, "cpu")
    except Exception as error:
        return Finding(
            "broken",
            "native operators",
            f"{library}: {' '.join(str(error).split())}; pass --no-native-ops, or install sol-rt again",
        )
    return Finding("ok", "native operators", f"{library}: {name}")


def _core() -> Finding:
    from sol_rt.errors import SolError
    from sol_rt.native.library import core
    from sol_rt.ops import core_path

    try:
        core()
    except (SolError, OSError) as error:
        return Finding("broken", "native core", " ".join(str(error).split()))
    return Finding("ok", "native core", str(core_path()))


def _processor() -> Finding:
    from sol_rt.engine.hardware import allowed_cores, processor_name, usable_cores

    allowed, usable = len(allowed_cores()), usable_cores()
    left = "" if usable == allowed else f" of {allowed}: a quota or slower cores; --threads sets another number"
    return Finding("ok", "processor", f"{processor_name()}, {usable} threads by default{left}")


def _tuning() -> list[Finding]:
    """Reports the settings of the operators that were measured last on this processor."""
    from sol_rt.budget.cost.cost_table import CostTable, cpu_device
    from sol_rt.errors import SolError
    from sol_rt.ops import library_path
    from sol_rt.store.home import costs_dir

    if library_path() is None:
        return []
    try:
        device, found = cpu_device(), []
        for path in costs_dir().glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                table = CostTable.from_json(path.read_text(encoding="utf-8"))
                if table.device == device and table.tuning is not None:
                    found.append((table.created, path.name, table))
        if not found:
            return [Finding("missing", "tuning", "nothing measured on this processor yet; sol-rt profile does")]
        _, name, table = max(found, key=lambda each: each[:2])
        detail = f"{table.tuning}; measured {table.created} ({name})"
        if not table.steady:
            detail += "; the times scattered: run sol-rt profile while no other program runs"
        return [Finding("ok", "tuning", detail)]
    except (SolError, OSError, AttributeError) as error:
        return [Finding("broken", "tuning", " ".join(str(error).split()))]


def _memory() -> Finding:
    from sol_rt.engine.hardware import available_memory

    available = available_memory()
    free = "free memory unknown on this system" if available is None else f"{_gib(available)} available"
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return Finding("ok", "memory", free)
    return Finding("ok", "memory", f"{_gib(total)}, {free}")


def _model_memory(path: Path) -> Finding:
    """Checks the memory that the default model takes at its longest context; if it is short, names what fits."""
    from sol_rt.bundle.bundle import Bundle
    from sol_rt.engine.hardware import available_memory

    try:
        from sol_rt.evaluation.footprint import fitting_context, footprint, windowed_layers
    except Exception as error:
        return Finding("broken", "model memory", f"unknown without onnxruntime: {' '.join(str(error).split())}")
    config = Bundle.open(path).config
    longest = config.model.max_context
    needed, available = footprint(config, longest), available_memory()
    cache = f"{_gib(needed.cache)} of it KV cache"
    if kept := sum(layers.layers for layers in windowed_layers(config)):
        attending = len(config.kv.attending(config.model.num_layers))
        cache += f" ({kept} of {attending} layers keep what their window needs)"
    detail = f"the default model takes {_gib(needed.total)} at its context of {longest} tokens, {cache}"
    if available is None or needed.total <= available:
        return Finding("ok", "model memory", detail)
    fitting = fitting_context(config, available - needed.weights)
    if fitting:
        return Finding("missing", "model memory", f"{detail}; here up to {fitting} fit: pass --ctx-size {fitting}")
    return Finding(
        "missing", "model memory", f"{detail}; close other programs, or every step may read weights from the disk"
    )


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _gpu(name: str) -> Finding:
    """Compares the numbers of a GPU provider with those of the CPU."""
    from sol_rt.errors import SolError

    try:
        from sol_rt.engine.providers import choose  # needs onnxruntime, as every session does

        provider = choose(name)
        provider.memory()
    except SolError as error:
        return Finding("missing", name, str(error).removeprefix(f"provider {name}: "))
    except Exception as error:
        return Finding("broken", name, " ".join(str(error).split()))
    parts = [f"{provider.device_name} computes the same numbers as the CPU"]
    if name == "cuda":
        parts.append("native operators" if provider.native else "no native operators built")
        parts.append("experimental, used only with --provider cuda")
    if provider.floats != "float16":
        parts.append(f"computes in {provider.floats}, without float16")
    if provider.most_tokens is not None:
        parts.append(f"prompts are split into parts of {provider.most_tokens} tokens: longer attention is wrong here")
    if provider.software:
        parts.append(f"a software adapter, used only with --provider {name}")
    return Finding("ok", name, "; ".join(parts))


def _extras() -> list[Finding]:
    findings = []
    for extra, modules in EXTRAS.items():
        missing = not_installed(modules)
        detail = f"lacks {', '.join(missing)}; run pip install 'sol-rt[{extra}]'" if missing else "complete"
        findings.append(Finding("missing" if missing else "ok", f"extra {extra}", detail))
    return findings


def _home() -> list[Finding]:
    from sol_rt.errors import SolError
    from sol_rt.store.home import bundle_names, home

    findings = []
    try:
        folder = home()
    except SolError as error:
        return [Finding("broken", "home", str(error))]
    try:
        existing = next(part for part in (folder, *folder.absolute().parents) if part.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
        findings.append(Finding("ok", "home", f"{folder}, {shutil.disk_usage(existing).free / 2**30:.1f} GiB free"))
    except OSError as error:
        return [Finding("broken", "home", f"{folder}: {error.strerror}; set SOL_RT_HOME to a writable folder")]
    try:
        names = bundle_names()
        listed = ", ".join(names) or "none; run sol-rt export -m smollm2-135m"
        findings.append(Finding("ok" if names else "missing", "bundles", listed))
    except OSError as error:
        where = error.filename or folder
        findings.append(Finding("broken", "bundles", f"{where}: {error.strerror}; make it readable"))
    findings += _default_model()
    if sys.prefix == sys.base_prefix:
        findings.append(Finding("ok", "environment", f"{sys.prefix}, no virtual environment"))
    return findings


def _default_model() -> list[Finding]:
    """Checks which bundle commands use by default, and the memory that it takes."""
    from sol_rt.errors import SolError
    from sol_rt.store.home import find_bundle

    try:
        path = find_bundle(None)
        memory = _model_memory(path)
    except SolError as error:
        return [Finding("missing", "default model", str(error))]
    except OSError as error:
        where = error.filename or "the default model"
        return [Finding("broken", "default model", f"{where}: {error.strerror}; make it readable")]
    return [Finding("ok", "default model", str(path)), memory]
