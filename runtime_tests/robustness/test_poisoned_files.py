"""Every value of the text files that a user may bring, replaced by something unexpected: it works, or a short line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.poison import LONG, poisoned, refusals, texts
from helpers.random_checkpoint import PRESETS, write_random_checkpoint
from helpers.tiny_bundle import write_bundle
from sol_rt import SolModel
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.bundle.config_reader import read_config
from sol_rt.cli.run.saved_chat import SavedChat
from sol_rt.cli.run.saved_chat import read as read_chat
from sol_rt.errors import SolError
from sol_rt.generate.generation_config import GenerationConfig
from sol_rt.generate.trace import read_trace
from sol_rt.text.chat_template import ChatTemplate
from sol_rt.text.tokenizer import Tokenizer

GENERATION = {
    "bos_token_id": 1, "eos_token_id": [2, 3], "max_new_tokens": 5, "do_sample": True, "temperature": 0.6, "top_k": 20,
    "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1, "transformers_version": "5.0",
}  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("poison") / "tiny", policy=True)


@pytest.fixture(scope="module")
def model(bundle: Path) -> SolModel:
    return SolModel.from_pretrained(bundle, provider="cpu")


def reader(path: Path, read: Callable[[Path], object]) -> Callable[[str], object]:
    """Writes a text to `path` and reads that."""

    def run(text: str) -> object:
        path.write_text(text, encoding="utf-8")
        return read(path)

    return run


@pytest.mark.slow
def test_a_bundles_config(bundle: Path, tmp_path: Path) -> None:
    document = json.loads((bundle / CONFIG_NAME).read_text(encoding="utf-8"))
    document["weights"]["tensors"] = dict(list(document["weights"]["tensors"].items())[:4])
    refused, wrong = refusals(reader(tmp_path / CONFIG_NAME, read_config), texts(document))
    assert not wrong
    assert refused > 1000


def test_generation_config(tmp_path: Path) -> None:
    def read(path: Path) -> None:
        GenerationConfig().with_file(path).check_vocabulary(90)

    refused, wrong = refusals(reader(tmp_path / "generation_config.json", read), texts(GENERATION))
    assert not wrong
    assert refused > 60


def test_generation_settings_run(model: SolModel) -> None:
    """Settings that the reader takes give text."""

    def run(document: dict[str, Any]) -> None:
        known = {
            name: value for name, value in document.items() if name not in {"bos_token_id", "transformers_version"}
        }
        model.generate("w1 w2", **{**known, "max_new_tokens": 2})

    inputs = ((what, made) for what, made in poisoned(GENERATION) if "max_new" not in what and "a long key" not in what)
    refused, wrong = refusals(run, inputs)
    assert not wrong
    assert refused > 60


@pytest.mark.slow
def test_tokenizer_config(tmp_path: Path) -> None:
    document = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "special": True},
        "chat_template": [{"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"}],
    }

    def read(path: Path) -> None:
        ChatTemplate.from_folder(path.parent, ["tokenizer_config.json"]).render([{"role": "user", "content": "x"}])

    refused, wrong = refusals(reader(tmp_path / "tokenizer_config.json", read), texts(document))
    assert not wrong
    assert refused > 30


def test_tokenizer(bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    document = json.loads((bundle / "tokenizer.json").read_text(encoding="utf-8"))
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "w1", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"w1": {"id": "w1", "ids": [1], "tokens": ["w1"]}},
    }
    document["decoder"] = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    document["model"]["vocab"] = {"w0": 0, "w1": 1, "w2": 2, "<unk>": 3}
    folder = tmp_path / "model"
    folder.mkdir()
    panics = []

    def read(path: Path) -> None:
        tokenizer = Tokenizer.from_folder(path.parent, 90)
        tokenizer.stream(tokenizer.encode("w0 w1 w2 ? w1")).add(2)

    def checked(path: Path) -> None:
        try:
            read(path)
        except SolError as error:
            panics.append("a tokenizer that fails" in str(error))
            raise

    refused, wrong = refusals(reader(folder / "tokenizer.json", checked), texts(document))
    assert not wrong
    assert refused > 300
    assert any(panics), "no edit makes the library panic any more"
    assert "panicked" not in capfd.readouterr().err


def test_trace(model: SolModel, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    model.generate("w1 w2 w3", budget=0.7, max_new_tokens=4, eos_token_id=[], trace=path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 5

    def replay(text: str) -> None:
        path.write_text(text, encoding="utf-8")
        model.generate(replay=read_trace(path))

    for number, line in enumerate(lines):
        inputs = (
            (f"line {number}: {what}", "\n".join([*lines[:number], changed_line, *lines[number + 1 :]]) + "\n")
            for what, changed_line in texts(json.loads(line))
        )
        refused, wrong = refusals(replay, inputs)
        assert not wrong
        assert refused > 100
    with pytest.raises(SolError, match="action at step 2"):
        replay("\n".join([*lines[:3], re.sub('"k[^"]*"', "null", lines[3]), lines[4]]) + "\n")


def test_saved_chat(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    path = SavedChat("tiny", "w5", said, {"budget": 0.5, "temperature": 0.5}).write(str(tmp_path / "c.json"))
    document = json.loads(path.read_text(encoding="utf-8"))
    refused, wrong = refusals(reader(path, lambda file: read_chat(str(file))), texts(document))
    assert not wrong
    assert refused > 80


@pytest.mark.parametrize("preset", ["tiny-llama", "tiny-qwen2", "tiny-phi3", "tiny-phi"])
def test_config_of_a_checkpoint(preset: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from sol_rt.export.sources.decoder import from_hf_config
    from sol_rt.export.sources.folder.hf_checkpoint import read_json

    write_random_checkpoint(tmp_path, PRESETS[preset])
    document = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    document["rope_scaling"] = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    document["rope_scaling"]["original_max_position_embeddings"] = 512
    refused, wrong = refusals(
        reader(tmp_path / "config.json", lambda path: from_hf_config(read_json(path))), texts(document)
    )
    assert not wrong
    assert refused > 150


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "key", "value", "said"),
    [
        ("config.json", "tie_word_embeddings", 3, "tie_word_embeddings: got 3"),
        ("config.json", "model_type", "gpt2", "model_type: got 'gpt2', expected 'llama'"),
        ("config.json", "model_type", LONG, "model_type: got 'AAAA"),
        ("generation_config.json", "bos_token_id", "x", "bos_token_id: got 'x'"),
        ("generation_config.json", "bos_token_id", True, "bos_token_id: got True"),
        ("generation_config.json", "top_p", 10**60, "generation_config.json: got"),
        ("generation_config.json", "max_new_tokens", 10**60, "a number of more than 60 digits"),
        ("tokenizer.json", "truncation", 3, "tokenizer"),
    ],
)
def test_a_damaged_checkpoint_is_refused_before_work_begins(
    file: str, key: str, value: Any, said: str, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    from sol_rt.export.pipeline import export_bundle

    source = write_random_checkpoint(tmp_path / "source", PRESETS["tiny-llama"])
    document = json.loads((source / file).read_text(encoding="utf-8"))
    (source / file).write_text(json.dumps({**document, key: value}), encoding="utf-8")
    stages: list[str] = []
    with pytest.raises(SolError, match=re.escape(said)) as error:
        export_bundle(
            str(source), tmp_path / "out", calibration="none", parity=False,
            progress=lambda stage, *_: stages.append(stage),
        )  # fmt: skip
    assert LONG[:201] not in str(error.value)
    assert "rounding weights" not in stages
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
