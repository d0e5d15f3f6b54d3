"""The ladder of a named model, on a tiny file: equal all the way down, and a tensor that differs is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="exporting comes with the extra export")
pytest.importorskip("transformers", reason="exporting comes with the extra export")
pytest.importorskip("gguf", reason="exporting comes with the extra export")

from safetensors.numpy import load_file, save_file

from helpers.gguf_file import GgufFile
from helpers.random_checkpoint import PRESETS, write_random_checkpoint
from quality import parity


@pytest.mark.slow
def test_the_row_of_a_gguf_file(tmp_path: Path) -> None:
    source = write_random_checkpoint(tmp_path / "source", PRESETS["tiny-qwen3"])
    file = GgufFile(tmp_path / "tiny.gguf", source).metadata(32).tensors("Q8_0").head_norms().write()
    name, tensors, exact, rounded, generated = (
        cell.strip() for cell in parity.run(str(file), tmp_path / "work").strip("| ").split("|")
    )
    assert (name, tensors) == ("tiny", "24")
    assert float(exact) < 1e-4
    assert float(rounded) < 0.04
    assert generated.startswith("64 of 64") or float(generated.split()[-1]) < 1e-3

    folder = tmp_path / "work" / "source"
    changed = load_file(folder / "model.safetensors")
    changed["model.norm.weight"] += np.float32(0.5)
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SystemExit, match=r"tensor model\.norm\.weight is another one in the folder"):
        parity.check_source(file, folder)
