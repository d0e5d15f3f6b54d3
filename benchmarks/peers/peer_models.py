"""Makes the model that each peer runs from the same file that sol_rt's bundle is exported from.

llama.cpp reads a .gguf itself. onnxruntime-genai and optimum read only Hugging Face folders: they get the file's
weights in float32 and quantize them on their own. Models that are already there are kept. peers.py uses this module.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from sol_rt.errors import SolError, UsageError
from sol_rt.store.home import bundle_names, find_bundle

_HERE = Path(__file__).parent


def bundle_of(source: str, name: str) -> Path:
    """The folder of the bundle called `name`; exports `source` if there is no such bundle."""
    if name not in bundle_names():
        run_tool([sys.executable, "-m", "sol_rt", "export", "-m", source])
    return find_bundle(name)


def model_of(peer: str, checkpoint: Path, python: Path, folder: Path) -> Path:
    """The model that the worker of a peer loads; it is made first if it is missing.

    Args:
        peer: `llama.cpp`, `genai` or `optimum`.
        checkpoint: .gguf file or Hugging Face folder.
        python: Python of the peer's environment.
        folder: folder of the models made from this checkpoint.

    Raises UsageError if the peer cannot read the checkpoint, SolError if making its model fails.
    """
    if peer == "llama.cpp":
        if checkpoint.suffix != ".gguf":
            raise UsageError(f"llama.cpp: got {checkpoint.name}, expected a .gguf; do without: --peers genai,optimum")
        return checkpoint
    dest = folder / peer
    if dest.is_dir():
        return dest
    source, part = float32_folder(checkpoint, folder), folder / f"{peer}.part"
    shutil.rmtree(part, ignore_errors=True)
    if peer == "genai":
        how: list[str | Path] = ["-p", "int4", "-e", "cpu", "-c", folder / "cache"]
        # logits of a prompt's last token only: a quarter faster on the 135M than the builder's default, all logits
        how += ["--extra_options", "int4_accuracy_level=4", "prune_lm_head=true"]
        run_tool([python, "-m", "onnxruntime_genai.models.builder", "-m", source, "-o", part, *how])
    else:
        run_tool([python, _HERE / "workers" / "optimum_export.py", source, part])
    part.rename(dest)
    return dest


def float32_folder(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint as a Hugging Face folder in float32."""
    dest, part = folder / "source", folder / "source.part"
    if not dest.is_dir():
        shutil.rmtree(part, ignore_errors=True)
        run_tool([sys.executable, _HERE / "hf_folder.py", checkpoint, part])
        part.rename(dest)
    return dest


def run_tool(command: list[str | Path]) -> None:
    """Runs another program's command and sends its output to stderr. Raises SolError if the command fails."""
    run = subprocess.run([str(part) for part in command], check=False, stdout=sys.stderr)
    if run.returncode:
        raise SolError(f"{' '.join(map(str, command))}: ended with {run.returncode}; its own message is above")
