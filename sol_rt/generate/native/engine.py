"""`Engine`: opens a bundle in the native core, on the provider that is chosen, for runs of given tokens.

Opening one makes a process-wide thread pool, in the core's ONNX Runtime. Other sessions of the same program then have
to use a pool of that kind, too: `SessionOptions.use_per_session_threads = False`.
"""

from __future__ import annotations

import weakref
from ctypes import byref, c_void_p, sizeof
from typing import TYPE_CHECKING, Any

from sol_rt.budget.cost.cost_table import cpu_device, loaded_cost
from sol_rt.budget.cost.model import BytesCost
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.bundle.file_state import FileState
from sol_rt.engine import providers
from sol_rt.engine.hardware import processor_name
from sol_rt.engine.hardware.tuning import Tuning
from sol_rt.engine.providers import Provider
from sol_rt.errors import BundleError, DeviceError, ProviderError, one_line
from sol_rt.generate.native.session import Session
from sol_rt.native import structs
from sol_rt.native.library import core, model_info, path_bytes, runtime
from sol_rt.ops import library_name, library_path
from sol_rt.store.home import costs_dir

if TYPE_CHECKING:
    from sol_rt.engine.gpu.gpu_engine import GpuEngine


class Engine(Session):
    """A session on a bundle that it opens itself. A `SolModel` has one, for text; alone it runs given tokens.

    Args:
        bundle: an opened bundle.
        provider: `auto`, `cpu`, `cuda` or `webgpu`.
        threads: size of the process-wide thread pool; all usable processors by default.
        native_ops: use the native operators where they are built; without them the graphs' function bodies run.
        device: number of the GPU.
        max_context: a cap in tokens below the model's own.
        prefill: key of the variant that runs prompts, as `s100-q4`; None: of a generation the dial chooses it, of all
            else it is the dense one.
        costs: a `sol_cost_source` of `structs`; by default tables of `sol-rt profile` alone.

    Attributes:
        provider: where the graphs run.
        prefill: the action that runs prompts, of that variant.
        gpu: runs the graphs on a GPU; None on the CPU, where the core does.
        model: the `sol_model`.
        info: facts about it.
        device: names what measured costs depend on: processor, threads and libraries, or the GPU with its own.
        cost: costs of `device`, with which the model was loaded.

    Raises BundleError, ProviderError, UsageError.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        provider: str = "auto",
        threads: int | None = None,
        native_ops: bool = True,
        device: int = 0,
        max_context: int | None = None,
        prefill: str | None = None,
        costs: int = structs.COSTS_PROFILED,
    ) -> None:
        library = core()
        context, self.prefill = bundle.config.model.context_limit(max_context), bundle.config.prefill_action(prefill)
        self.provider, self.gpu = _choose(bundle, provider, threads=threads, native_ops=native_ops, device=device)
        options, self.model = structs.ModelOptions(), c_void_p()
        library.sol_model_options_init(byref(options), sizeof(options))
        options.verify = int(bundle.verify)  # small files are compared once more, for the core reads them itself
        options.max_context, options.prefill = context, None if prefill is None else self.prefill.variant.encode()
        pool = runtime(self.provider.threads, native_ops)
        if self.gpu is None:
            self.device = cpu_device(self.provider.threads, native=native_ops)
        else:
            self.device = _gpu_device(self.provider)
            options.device = self.device.encode()
        options.costs, options.costs_folder = costs, path_bytes(costs_dir())
        library.sol_model_load(pool, path_bytes(bundle.path), byref(options), byref(self.model))
        weakref.finalize(self, library.sol_model_release, self.model).atexit = False  # another thread may be in it
        self.info = model_info(self.model)
        _require_same(bundle, self.info)
        self.cost = loaded_cost(bundle, self.model)
        if self.gpu is not None and costs != structs.COSTS_BYTES and not self.cost.note and self.cost.name == "bytes":
            hint = f"run `sol-rt profile --provider {self.provider.name}`"  # on a processor time follows bytes
            self.cost = BytesCost(bundle.config, f"not measured on {self.provider.gpu_name}; costs are bytes: {hint}")
        super().__init__(self.model, bundle, self.gpu)
        self.native = bool(self.info.native) if self.gpu is None else self.provider.native

    @property
    def provider_name(self) -> str:
        """`cpu`, `cuda` or `webgpu`."""
        return self.provider.name

    @property
    def threads(self) -> int:
        """Size of the process-wide thread pool."""
        return self.provider.threads

    @staticmethod
    def tuning() -> Tuning:
        """The settings of the core's operators, which all engines of this process share."""
        now = structs.Tuning(size=sizeof(structs.Tuning))
        core().sol_tuning_get(byref(now))
        return Tuning(now.cache_level, now.row_bytes_ahead, now.members, now.copies != 0)

    @staticmethod
    def set_tuning(tuning: Tuning, *, keep_copies: bool = False) -> None:
        """Sets how the core's operators run from now on, those of every engine of this process. No result changes.

        Without `tuning.copies`, copies that there are, are freed; with `keep_copies` they stay, for settings that
        follow.
        """
        copies = 1 if tuning.copies else 2 if keep_copies else 0
        given = (tuning.cache_level, tuning.row_bytes_ahead, tuning.members, copies)
        core().sol_tuning_set(byref(structs.Tuning(sizeof(structs.Tuning), *given)))


def _choose(bundle: Bundle, name: str, **options: Any) -> tuple[Provider, GpuEngine | None]:
    """The provider, and the engine that has the bundle's memory there if it is a GPU's.

    If a GPU has too little memory, `auto` goes on to the next provider.
    """
    unfit = providers.unfit(bundle)
    while True:
        provider = providers.choose(name, unfit=unfit, **options)
        if provider.gpu is None:
            return provider, None
        from sol_rt.engine.gpu.gpu_engine import GpuEngine

        try:
            return provider, GpuEngine(bundle, provider)
        except (ProviderError, DeviceError) as error:
            if name != "auto":
                raise
            unfit[provider.name] = str(error).removeprefix(f"provider {provider.name}: ")


def _gpu_device(provider: Provider) -> str:
    """Names what milliseconds depend on where a GPU computes. Native kernels are named by the hash of their library."""
    import onnxruntime

    library = library_path(provider.name) if provider.native else None
    kernels = "ONNX Runtime kernels" if library is None else library_name(library, provider.name)
    machine = f"{provider.gpu_name}, {processor_name()}, {provider.threads} threads"
    return f"{machine}, {provider.name}, onnxruntime {onnxruntime.__version__}, {kernels}"


def _require_same(bundle: Bundle, info: structs.ModelInfo) -> None:
    """Raises BundleError if the core has just loaded other files than those of `bundle`.

    Renaming a file changes its state. So this finds other weights also if the right ones are back by now.
    """
    hint, path = "the bundle was replaced meanwhile: load it again", bundle.file(bundle.config.weights_file)
    if info.identity.decode() != bundle.identity:
        raise BundleError(bundle.path, CONFIG_NAME, "another file", "the file that was read before", hint)
    try:
        state = FileState.of(path)
    except OSError as error:
        raise BundleError(path, "", one_line(error), "the file whose hash was compared", hint) from None
    bundle.require_weights(state)
