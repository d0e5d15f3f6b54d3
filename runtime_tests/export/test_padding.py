"""Checkpoints whose sizes are no multiples of 32: the padded bundle computes what transformers does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exporting comes with the extra export")
transformers = pytest.importorskip("transformers", reason="exporting comes with the extra export")

from helpers.gguf_file import GgufFile  # noqa: E402
from helpers.random_checkpoint import RandomCheckpoint, write_random_checkpoint  # noqa: E402
from sol_rt.bundle.actions import Action  # noqa: E402
from sol_rt.bundle.bundle import Bundle  # noqa: E402
from sol_rt.bundle.verify import verify_bundle  # noqa: E402
from sol_rt.errors import CheckpointError  # noqa: E402
from sol_rt.export import export_bundle  # noqa: E402
from sol_rt.export.sources.decoder import Sizes, from_hf_config  # noqa: E402
from sol_rt.export.sources.open_checkpoint import open_checkpoint  # noqa: E402
from sol_rt.export.weights.padding import PaddedTensors, padded_inputs  # noqa: E402
from sol_rt.generate.native.engine import Engine  # noqa: E402
from sol_rt.train.reference_model.model import UNROUNDED, ReferenceModel  # noqa: E402
from sol_rt.train.reference_model.weights import FloatMatrix, read_bundle, read_checkpoint  # noqa: E402

ODD = {
    "llama": RandomCheckpoint("llama", hidden_size=72, num_heads=3, num_kv_heads=1, intermediate_size=100),
    "qwen2": RandomCheckpoint("qwen2", hidden_size=80, num_heads=4, intermediate_size=72, tied=False),
    "phi3": RandomCheckpoint("phi3", hidden_size=72, num_heads=3, num_kv_heads=3, intermediate_size=100, tied=False),
    "phi": RandomCheckpoint(
        "phi", hidden_size=72, num_heads=3, num_kv_heads=3, intermediate_size=90, tied=False, rotary_fraction=0.5
    ),
    "only-mlp": RandomCheckpoint("llama", intermediate_size=172),
}
PADDED = {
    "llama": (96, 32, 128),
    "qwen2": (96, 24, 96),
    "phi3": (96, 32, 128),
    "phi": (96, 32, 96),
    "only-mlp": (64, 16, 192),
}
IDS = list(range(5, 45))
OUTPUTS = ("blk.0.attn_output", "blk.1.attn_output")


@pytest.fixture(scope="session", params=sorted(ODD))
def odd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A family and a checkpoint of odd sizes. Not to be written to."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, write_random_checkpoint(folder, ODD[request.param])


def expected_logits(folder: Path, ids: list[int]) -> np.ndarray:
    """The logits of transformers, float32 [T, vocab]."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        found: np.ndarray = model(torch.tensor([ids])).logits[0].numpy()
    return found


def test_sizes_grow_to_the_next_that_blocks_divide(odd: tuple[str, Path]) -> None:
    name, folder = odd
    shape, decoder = ODD[name], from_hf_config(json.loads((folder / "config.json").read_text()))
    assert (decoder.hidden_size, decoder.head_dim, decoder.intermediate_size) == PADDED[name]
    head_dim = shape.hidden_size // shape.num_heads
    assert decoder.unpadded == Sizes(shape.hidden_size, head_dim, shape.intermediate_size)
    assert decoder.source.unpadded is None
    assert decoder.source.hidden_size == shape.hidden_size
    assert decoder.softmax_scale == pytest.approx(head_dim**-0.5)
    assert decoder.rotary_dim == head_dim * shape.rotary_fraction


def test_the_padded_model_in_float32_is_transformers_model(odd: tuple[str, Path]) -> None:
    model = ReferenceModel(read_checkpoint(odd[1], FloatMatrix), UNROUNDED)
    with torch.inference_mode():
        got = model(torch.tensor([IDS]), Action(1.0, 1.0, 8), model.new_cache(1))[0][0].numpy()
    np.testing.assert_allclose(got, expected_logits(odd[1], IDS), atol=1e-4)


@pytest.mark.slow
def test_a_bundle_of_odd_sizes_is_close_to_its_source(odd: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = odd
    levels = {"bits": (8, 4), "channel_density": (1.0, 0.5), "kv_density": (1.0, 0.25)}
    report = export_bundle(str(folder), tmp_path / "out", calibration="none", **levels)
    assert report.parity is not None
    assert report.parity.rows[0].kl < 2e-3
    verify_bundle(tmp_path / "out")
    bundle = Bundle.open(tmp_path / "out")
    model = bundle.config.model
    assert (model.hidden_size, model.head_dim, model.intermediate_size) == PADDED[name]
    engine = Engine(bundle, provider="cpu")
    got = engine.forward(IDS, bundle.config.dense, num_logits=len(IDS)).logits
    steps = [engine.forward([token], bundle.config.dense).logits[-1] for token in range(60, 92)]
    expected = expected_logits(folder, [*IDS, *range(60, 92)])
    spread = expected.std()
    assert np.abs(got - expected[: len(IDS)]).max() < 0.2 * spread
    assert np.abs(np.stack(steps) - expected[len(IDS) :]).max() < 0.2 * spread
    twin = ReferenceModel(read_bundle(tmp_path / "out"))
    assert twin.weights.decoder.hidden_size == PADDED[name][0]


@pytest.mark.slow
def test_weights_of_odd_sizes_are_fitted_to_a_text(odd: tuple[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The old man of the sea told a tale of ships and of the stars above the bay. " * 120)
    levels = {"bits": (8, 4), "channel_density": (1.0,), "kv_density": (1.0,)}
    plain = export_bundle(str(odd[1]), tmp_path / "plain", calibration="none", **levels)
    fitted = export_bundle(str(odd[1]), tmp_path / "fitted", calibration=text, **levels)
    assert plain.parity is not None
    assert fitted.parity is not None
    assert fitted.parity.rows[0].kl < 2e-3
    assert fitted.parity.rows[-1].kl < 1.1 * plain.parity.rows[-1].kl


def test_padding_is_zero_and_rows_come_in_any_pieces(odd: tuple[str, Path]) -> None:
    _, folder = odd
    checkpoint = open_checkpoint(folder)
    decoder = from_hf_config(checkpoint.config)
    padded = PaddedTensors(checkpoint, decoder)
    names = [name for name in checkpoint.names() if ".layers.1." in name and name.endswith(".weight")]
    for name in names:
        module = name.split(".")[-2]
        target = f"layers.1.{ {'dense': 'o', 'fc1': 'up', 'fc2': 'down'}.get(module, _part(module)) }"
        target += ".weight" if target.endswith("norm") else ""
        whole = padded.read(target, name)
        assert whole.shape == padded.shape(target, name)
        for start, stop in ((0, 2), (22, 26), (len(whole) - 3, len(whole))):
            assert np.array_equal(padded.read(target, name, start, stop), whole[start:stop])
        centred = decoder.norm == "layer" and target.endswith((".o", ".down")) and decoder.unpadded is not None
        if whole.ndim == 2 and not centred:
            assert np.count_nonzero(whole) == np.count_nonzero(checkpoint.read(name))
            assert whole.sum() == pytest.approx(checkpoint.read(name).sum(), rel=1e-3, abs=1e-3)


def _part(module: str) -> str:
    if module.endswith("norm"):
        return "attn_norm"
    return {"o": "o", "g": "up", "u": "up", "d": "down"}.get(module[0] if module != "qkv_proj" else "q", "qkv")


def test_inputs_are_padded_as_weights_are(odd: tuple[str, Path]) -> None:
    _, folder = odd
    checkpoint = open_checkpoint(folder)
    decoder = from_hf_config(checkpoint.config)
    own = decoder.source
    sizes = {"o": own.num_heads * own.head_dim, "down": own.intermediate_size, "up": own.hidden_size}
    for matrix, size in sizes.items():
        inputs = torch.randn(5, size)
        wide = padded_inputs(decoder, f"layers.0.{matrix}", inputs)
        assert wide.square().sum() == pytest.approx(float(inputs.square().sum()), rel=1e-6)
        assert wide.shape[1] % 32 == 0


def test_codes_of_a_file_stay_where_only_rows_are_padded(tmp_path: Path) -> None:
    shape = RandomCheckpoint("llama", hidden_size=64, num_heads=4, num_kv_heads=2, intermediate_size=100)
    source = write_random_checkpoint(tmp_path / "hf", shape)
    file = GgufFile(tmp_path / "model.gguf", source).metadata(16)
    file.tensors("Q4_0", leave_out=("blk.0.ffn_down", "blk.1.ffn_down"))  # rows of 100 have no whole blocks
    for i in range(2):
        file.add(f"blk.{i}.ffn_down.weight", open_checkpoint(source).read(f"model.layers.{i}.mlp.down_proj.weight"))
    checkpoint = open_checkpoint(file.write())
    decoder = from_hf_config(checkpoint.config)
    padded = PaddedTensors(checkpoint, decoder)
    name = "model.layers.0.mlp.gate_proj.weight"
    codes = padded.codes("layers.0.up", name, 96, 104)
    own = checkpoint.codes(name, 96, 100)
    assert codes is not None
    assert own is not None
    assert np.array_equal(codes.q[:4], own.q)
    assert not codes.representable[4:].any()
    levels = {"bits": (8, 4), "channel_density": (1.0,), "kv_density": (1.0,)}
    report = export_bundle(str(checkpoint.path), tmp_path / "out", calibration="none", **levels)
    assert report.parity is not None
    assert report.parity.rows[0].kl < 2e-3


def test_a_tied_head_behind_layer_norms_of_odd_width_is_refused(tmp_path: Path) -> None:
    folder = write_random_checkpoint(tmp_path / "phi", ODD["phi"])
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match="hidden_size: got 72, expected a multiple of 32; models with LayerNorm"):
        from_hf_config({**config, "tie_word_embeddings": True})


LARGE_EPSILON = {"rms_norm_eps": 0.5}  # near the variance of q and k
NORMED = {
    "heads": RandomCheckpoint("qwen3", config={"head_dim": 18, **LARGE_EPSILON}),
    "hidden state": RandomCheckpoint("qwen3", hidden_size=60, config={"head_dim": 16, **LARGE_EPSILON}),
    "both": RandomCheckpoint("gemma3_text", 60, 2, 3, 1, 90, config={"head_dim": 18, **LARGE_EPSILON}),
    "after rope": RandomCheckpoint("hunyuan_v1_dense", config={"head_dim": 18, **LARGE_EPSILON}),
    "rows": RandomCheckpoint("olmo2", tied=False, config={"head_dim": 18, **LARGE_EPSILON}),
}


@pytest.mark.parametrize("what", NORMED)
def test_norms_of_q_and_k_keep_their_epsilon(what: str, tmp_path: Path) -> None:
    """Padded by another share than the hidden state is."""
    folder = write_random_checkpoint(tmp_path, NORMED[what])
    decoder = from_hf_config(json.loads((folder / "config.json").read_text()))
    own = decoder.source
    assert decoder.qk_norm != "none"
    assert own.hidden_size * decoder.head_dim != decoder.hidden_size * own.head_dim
    model = ReferenceModel(read_checkpoint(folder, FloatMatrix), UNROUNDED)
    with torch.inference_mode():
        got = model(torch.tensor([IDS]), Action(1.0, 1.0, 8), model.new_cache(1))[0][0].numpy()
    expected = expected_logits(folder, IDS)
    np.testing.assert_allclose(got, expected, atol=1e-4 * expected.std())


def test_codes_of_normed_heads_are_padded_as_their_values(tmp_path: Path) -> None:
    source = write_random_checkpoint(tmp_path / "hf", NORMED["heads"])
    file = GgufFile(tmp_path / "model.gguf", source).metadata(18).tensors("Q4_0", leave_out=OUTPUTS)
    for i, name in enumerate(OUTPUTS):  # rows of 72 have no whole blocks
        file.add(f"{name}.weight", open_checkpoint(source).read(f"model.layers.{i}.self_attn.o_proj.weight"))
    checkpoint = open_checkpoint(file.write())
    padded = PaddedTensors(checkpoint, from_hf_config(checkpoint.config))
    for part in "qkv":
        name = f"model.layers.0.self_attn.{part}_proj.weight"
        values = padded.read("layers.0.qkv", name, 10, 30)
        codes = padded.codes("layers.0.qkv", name, 10, 30)
        assert codes is not None
        scale, zero = (np.repeat(part.astype(np.float32), 32, axis=1) for part in (codes.scale, codes.zero))
        kept = np.repeat(codes.representable, 32, axis=1)
        assert kept[:8].all()
        np.testing.assert_allclose((scale / 16 * (16.0 * codes.q - zero))[kept], values[kept], rtol=2e-3, atol=1e-6)
