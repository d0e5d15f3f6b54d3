"""Makes optimum's model from a Hugging Face folder: its exporter writes ONNX, its quantizer makes that dynamic int8.

    python optimum_export.py SOURCE DEST

Dynamic int8 is the fastest form that optimum offers on a CPU: float32 decodes at half the speed.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from pathlib import Path

from optimum.onnxruntime import AutoQuantizationConfig, ORTModelForCausalLM, ORTQuantizer


def quantization() -> object:
    """optimum's own configuration for this processor."""
    if platform.machine() in ("aarch64", "arm64"):
        return AutoQuantizationConfig.arm64(is_static=False, per_channel=True)
    info = Path("/proc/cpuinfo")
    vnni = info.exists() and "avx512_vnni" in info.read_text()
    choose = AutoQuantizationConfig.avx512_vnni if vnni else AutoQuantizationConfig.avx2
    return choose(is_static=False, per_channel=True)


def main() -> None:
    source, dest = (Path(argument) for argument in sys.argv[1:])
    with tempfile.TemporaryDirectory(dir=dest.parent) as folder:
        ORTModelForCausalLM.from_pretrained(source, export=True).save_pretrained(folder)
        ORTQuantizer.from_pretrained(folder).quantize(save_dir=dest, quantization_config=quantization())


if __name__ == "__main__":
    main()
