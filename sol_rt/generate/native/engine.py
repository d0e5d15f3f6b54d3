"""`Engine`: opens a bundle in the native core, on the provider that is chosen, for runs of given tokens.

Opening one makes a process-wide thread pool, in the core's ONNX Runtime. Other sessions of the same program then have
to use a pool of that kind, too: `SessionOptions.use_per_session_threads = False`.
"""

from __future__ import annotations

import weakref
from ctypes import byref, c_void_p, sizeof
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.bundle.file_state import FileState
from sol_rt.engine import providers
from sol_rt.engine.hardware import tuning
from sol_rt.engine.hardware.tuning import Tuning
from sol_rt.engine.providers import Provider
from sol_rt.errors import BundleError, DeviceError, ProviderError, one_line
from sol_rt.generate.native.session import Session
from sol_rt.native import structs
from sol_rt.native.library import core, model_info, path_bytes, runtime

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
        prefill: key of the variant that runs prompts, as `s100-q4`; None for the dense one.

    Attributes:
        provider: where the graphs run.
        prefill: the action that runs prompts, of that variant.
        gpu: runs the graphs on a GPU; None on the CPU, where the core does.
        model: the `sol_model`.
        info: facts about it.

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
    ) -> None:
        library = core()
        context, self.prefill = bundle.config.model.context_limit(max_context), bundle.config.prefill_action(prefill)
        self.provider, self.gpu = _choose(bundle, provider, threads=threads, native_ops=native_ops, device=device)
        options, self.model = structs.ModelOptions(), c_void_p()
        library.sol_model_options_init(byref(options), sizeof(options))
        options.verify = int(bundle.verify)  # small files are compared once more, for the core reads them itself
        options.max_context, options.prefill = context, self.prefill.variant.encode()
        pool = runtime(self.provider.threads, native_ops)
        library.sol_model_load(pool, path_bytes(bundle.path), byref(options), byref(self.model))
        weakref.finalize(self, library.sol_model_release, self.model).atexit = False  # another thread may be in it
        self.info = model_info(self.model)
        _require_same(bundle, self.info)
        _tune(bundle, self.provider)
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

    @property
    def machine(self) -> tuple[str, int, bool, str]:
        """Facts that costs depend on: provider, threads, True if native operators run, and the GPU's name.

        The GPU is named, with `float32` added where it computes in that type instead of float16; on the CPU the name
        is empty.
        """
        return self.provider.name, self.threads, self.native, self.provider.gpu_name

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
        from sol_rt.engine.gpu.gpu_engine import GpuEngine  # needs onnx, which only the GPU extras install

        try:
            return provider, GpuEngine(bundle, provider)
        except (ProviderError, DeviceError) as error:
            if name != "auto":
                raise
            unfit[provider.name] = str(error).removeprefix(f"provider {provider.name}: ")


def _tune(bundle: Bundle, provider: Provider) -> None:
    """Applies the settings of the operators that were measured on this machine, for all sessions of the process."""
    if provider.gpu is not None or provider.library is None:
        return
    config, key = bundle.config, tuning.machine_key(provider.threads, provider.library)
    tuned, gain = tuning.stored(key), tuning.gains_of_copies(key).get(config.model.name)
    if tuned is None and gain is None:
        return
    copies = (gain or 1.0) > 1 and tuning.room_for_copies(config.tensors)
    Engine.set_tuning(replace(Engine.tuning() if tuned is None else tuned.tuning, copies=copies))


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
