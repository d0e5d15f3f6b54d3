"""Hardware of this machine: processor and cores, memory, GPUs; and the best settings of operators on it.

May import: sol_rt.store, sol_rt.ops, sol_rt.atomic_write.
"""

from sol_rt.engine.hardware.cores import allowed_cores, check_threads, usable_cores
from sol_rt.engine.hardware.gpus import Gpu, cuda_driver_version, cuda_gpus, cuda_library, vulkan_gpus
from sol_rt.engine.hardware.memory import available_memory, free_memory_bytes, peak_rss_mb
from sol_rt.engine.hardware.processor import is_older, processor_name, release

__all__ = [
    "Gpu",
    "allowed_cores",
    "available_memory",
    "check_threads",
    "cuda_driver_version",
    "cuda_gpus",
    "cuda_library",
    "free_memory_bytes",
    "is_older",
    "peak_rss_mb",
    "processor_name",
    "release",
    "usable_cores",
    "vulkan_gpus",
]
