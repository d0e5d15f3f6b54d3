"""The native core refuses and takes the bundles that Python does, mostly with the same words."""

from __future__ import annotations

import hashlib
import json
import random
import runpy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from helpers.core_build import core_program, run_lines
from helpers.places import ROOT, TESTS
from helpers.poison import texts
from helpers.random_decoder import THREE_BIT_LAYERS, screenable
from helpers.tiny_bundle import seal, write_bundle
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import Screen
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.bundle.config_reader import read_config
from sol_rt.bundle.graph_file import external_tensors
from sol_rt.bundle.verify import verify_bundle
from sol_rt.bundle.weights import SharedWeights
from sol_rt.errors import SolError

CORPUS = TESTS / "corpus"
GRAPH = "model.q8.onnx"
ERROR_BYTES = 1000  # the core counts bytes where Python counts characters


@pytest.fixture(scope="module")
def program() -> Path:
    """Under the sanitizers: hostile input must break nothing."""
    return core_program("bundle_check")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(
        tmp_path_factory.mktemp("bundle") / "tiny",
        decoder=screenable("llama"),
        channel_densities=(1.0, 0.5),
        bits=(8, 4),
        lm_head_bits={8: 8, 4: 8},
        screens={4: Screen(20, 0.5, 3)},
        policy=True,
    )


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "tiny"))


def python_says(read: Callable[[Path], object], path: Path) -> str:
    try:
        read(path)
    except SolError as error:
        return str(error)
    return "ok"


def compare(program: Path, kind: str, read: Callable[[Path], object], paths: list[Path]) -> list[tuple[str, str]]:
    """Returns the messages of core and Python on each path. Both take a path, or both refuse it in one line."""
    said = run_lines([str(program), kind], [str(path) for path in paths])
    assert len(said) == len(paths)
    pairs = []
    for path, core in zip(paths, said, strict=True):
        python = python_says(read, path)
        assert (core == "ok") == (python == "ok"), (path.read_bytes()[:300] if path.is_file() else path, core, python)
        assert len(core.encode()) <= ERROR_BYTES
        pairs.append((core, python))
    return pairs


@pytest.mark.slow
def test_poisoned_configs(program: Path, pristine: Path, tmp_path: Path) -> None:
    document = json.loads((pristine / CONFIG_NAME).read_text(encoding="utf-8"))
    document["weights"]["tensors"] = dict(list(document["weights"]["tensors"].items())[:4])
    document["kv"]["windows"] = [16] * document["model"]["num_layers"]
    paths = []
    for number, (_, text) in enumerate(texts(document)):
        paths.append(tmp_path / str(number) / CONFIG_NAME)
        paths[-1].parent.mkdir()
        paths[-1].write_text(text, encoding="utf-8", errors="surrogatepass")
    pairs = compare(program, "config", read_config, paths)
    assert sum(core != "ok" for core, _ in pairs) > 1000
    assert all(core == python for core, python in pairs)


@pytest.mark.parametrize("name", sorted(path.name for path in (CORPUS / "config").iterdir()))
def test_configs_that_broke_a_reader_once(program: Path, name: str) -> None:
    compare(program, "config", read_config, [CORPUS / "config" / name])


def test_core_and_python_take_the_seeds_of_the_fuzz_target(program: Path, tmp_path: Path) -> None:
    """Mutations of a config that is refused at once would reach none of the later checks."""
    seeds = runpy.run_path(str(ROOT / "core" / "tests" / "fuzz" / "seeds.py"))
    paths = []
    for number, config in enumerate(seeds["small_configs"]()):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(json.dumps(config), encoding="utf-8")
        assert paths[-1].stat().st_size < seeds["LONGEST"]
    assert {core for _, core in compare(program, "config", read_config, paths)} == {"ok"}


def graphs_said(program: Path, paths: list[Path]) -> list[str]:
    """Returns what the core says of each graph file: `ok`, or that it is none."""
    said = run_lines([str(program), "graph"], [str(path) for path in paths])
    for path, line in zip(paths, said, strict=True):
        assert line == "ok" or line.startswith(f"{path}: got bytes that are not an ONNX model, expected an ONNX graph")
    return said


def test_graphs_that_broke_a_reader_once(program: Path) -> None:
    paths = sorted((CORPUS / "graph").iterdir())
    taken = {path.stem for path, line in zip(paths, graphs_said(program, paths), strict=True) if line == "ok"}
    assert taken == {"weight-elsewhere", "weight-of-a-long-name", "weight-of-control-characters"}
    for path in (path for path in paths if path.stem in taken):
        weights = [each for each in onnx.load(path, load_external_data=False).graph.initializer if each.external_data]
        expected = [
            (each.name, tuple(each.dims), {entry.key: entry.value for entry in each.external_data}["location"])
            for each in weights
        ]
        assert [(each.name, each.shape, each.location) for each in external_tensors(path)] == expected != []


def test_graphs_with_changed_bytes(program: Path, pristine: Path, tmp_path: Path) -> None:
    draw, paths = random.Random(3), []
    for number in range(600):
        content = bytearray((pristine / ("policy.onnx" if number % 2 else GRAPH)).read_bytes())
        for _ in range(draw.choice((1, 1, 2, 5))):
            content[draw.randrange(len(content))] = draw.randrange(256)
        if number % 10 == 0:
            del content[draw.randrange(len(content)) :]
        paths.append(tmp_path / f"{number}.onnx")
        paths[-1].write_bytes(content)
    assert 20 < sum(line != "ok" for line in graphs_said(program, paths)) < 600


def open_fully(path: Path) -> None:
    """All that the core does on opening: sizes, hashes, dims, and graphs against the config."""
    verify_bundle(path)


def open_without_hashes(path: Path) -> None:
    bundle = Bundle.open(path, verify=False)
    weights = SharedWeights(bundle)
    for file in dict.fromkeys(variant.file for variant in bundle.config.variants.values()):
        weights.check(file)


def damage(bundle: Path, what: str) -> None:
    config = read_config(bundle / CONFIG_NAME)
    graph, weights = bundle / GRAPH, bundle / "weights.bin"
    if what == "short":
        graph.write_bytes(graph.read_bytes()[:-1])
    elif what == "long":
        weights.write_bytes(weights.read_bytes() + b" ")
    elif what == "gone":
        (bundle / "tokenizer.json").unlink()
    elif what == "folder":
        graph.unlink()
        graph.mkdir()
    elif what in ("bit", "weight bit"):
        path = graph if what == "bit" else weights
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif what == "link":
        weights.rename(bundle.parent / "blob")
        weights.symlink_to(bundle.parent / "blob")
    elif what == "no config":
        (bundle / CONFIG_NAME).unlink()
    elif what == "other weights":
        other = write_bundle(bundle.parent / "other", "qwen2", channel_densities=(1.0, 0.5), bits=(8, 4))
        shutil.copy(other / GRAPH, graph)
        seal(bundle, config)
    elif what in ("hello", "empty"):
        graph.write_bytes(b"hello" if what == "hello" else b"")
        seal(bundle, config)
    elif what == "elsewhere":
        graph.write_bytes(graph.read_bytes().replace(b"weights.bin", b"weights.bim"))
        seal(bundle, config)
    elif what == "bits":
        tensors = {name: entry for name, entry in config.tensors.items() if "plane" not in name}
        seal(bundle, replace(config, tensors=tensors))
    elif what != "nothing":
        name, value = what.split("=")
        seal(bundle, replace(config, model=replace(config.model, **{name: int(value)})))


DAMAGES = [
    "nothing", "short", "long", "gone", "folder", "bit", "weight bit", "link", "no config", "other weights", "hello",
    "empty", "elsewhere", "bits", "vocab_size=91", "hidden_size=96", "head_dim=32", "max_context=512", "num_heads=8",
]  # fmt: skip


def test_folders_are_named_as_python_names_them(program: Path) -> None:
    """Two slashes at the beginning are no one: on Windows a server's name follows."""
    given = ["//no/bundle", "//no//bundle/", "///no/bundle", "/no/./bundle", "./no/bundle/", "no", "//", "/", "."]
    said = run_lines([str(program), "fast"], given)
    assert said == [python_says(open_without_hashes, Path(text)) for text in given]


@pytest.mark.parametrize("what", DAMAGES)
def test_damaged_bundles(program: Path, bundle: Path, what: str) -> None:
    damage(bundle, what)
    (pair,) = compare(program, "bundle", open_fully, [bundle])
    assert pair[0] == pair[1]
    if what not in ("bit", "weight bit"):  # only a hash shows it
        (pair,) = compare(program, "fast", open_without_hashes, [bundle])
        assert pair[0] == pair[1]


@pytest.fixture(scope="module")
def convolving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose first layer has a state."""
    return write_bundle(tmp_path_factory.mktemp("convolving") / "tiny", "lfm2", bits=(8, 4))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"layers": ["conv"]},
        {"layers": []},
        {"layers": ["conv", "delta"]},
        {"layers": ["conv", "conv"]},
        {"layers": ["attention", "attention"]},
        {"layers": ["attention", "conv"]},
        {"layers": None},
        {"layers": ["conv", 1]},
        {"conv_size": 1},
        {"conv_size": 3},
        {"conv_size": 33},
        {"conv_size": None},
        {"dense_layers": [0]},
        {"dense_layers": [1]},
        {"dense_layers": [1, 1], "windows": ["x"]},
        {"model.head_dim": 8},
        {"without": "layers"},
        {"without": "conv_size"},
    ],
    ids=str,
)
def test_layers_with_a_state(program: Path, convolving: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    folder = Path(shutil.copytree(convolving, tmp_path / "tiny"))
    document = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    for key, value in change.items():
        if key == "without":
            del document["kv"][value]
        else:
            table, _, name = key.rpartition(".")
            document[table or "kv"][name] = value
    (folder / CONFIG_NAME).write_text(json.dumps(document), encoding="utf-8")
    (pair,) = compare(program, "bundle", open_fully, [folder])
    assert pair[0] == pair[1]
    assert (pair[0] == "ok") == (change in ({}, {"dense_layers": [1]}))


def test_poisoned_layers(program: Path, convolving: Path, tmp_path: Path) -> None:
    document = json.loads((convolving / CONFIG_NAME).read_text(encoding="utf-8"))
    document["weights"]["tensors"] = dict(list(document["weights"]["tensors"].items())[:1])
    paths = []
    for number, (where, text) in enumerate(texts(document)):
        if "layers" in where or "conv_size" in where:
            paths.append(tmp_path / str(number) / CONFIG_NAME)
            paths[-1].parent.mkdir()
            paths[-1].write_text(text, encoding="utf-8", errors="surrogatepass")
    pairs = compare(program, "config", read_config, paths)
    assert sum(core != "ok" for core, _ in pairs) > 50
    assert all(core == python for core, python in pairs)


def test_wrong_folders(program: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    paths = [tmp_path / name for name in ("none", "file", "empty")]
    assert all(core == python for core, python in compare(program, "bundle", Bundle.open, paths))


def test_config_of_another_format(program: Path, bundle: Path) -> None:
    config = bundle / CONFIG_NAME
    for version in (0, 2, 7):
        document = json.loads(config.read_text(encoding="utf-8")) | {"format_version": version}
        config.write_text(json.dumps(document), encoding="utf-8")
        ((core, python),) = compare(program, "config", read_config, [config])
        assert core == python != "ok"


def test_bundles_of_three_bits(program: Path, tmp_path: Path) -> None:
    """Core and Python take them, and say the same of configs that describe the level wrongly."""
    pristine = write_bundle(tmp_path / "three", bits=(8, 4, 3), three_bit_layers=THREE_BIT_LAYERS)
    ((core, python),) = compare(program, "bundle", open_fully, [pristine])
    assert (core, python) == ("ok", "ok")
    document = json.loads((pristine / CONFIG_NAME).read_text(encoding="utf-8"))
    tensors = document["weights"]["tensors"]
    edits: list[dict[str, Any]] = [
        *(
            _with_row(document, row)
            for row in ([3, 3, 3, 6], [3, 3, 3, True], [3, 3, 3], [3, 3, 3, 3, 3], [2, 3, 3, 3], "3333", [3.5, 3, 3, 3])
        ),
        *(
            document
            | {"weights": document["weights"] | {"tensors": tensors | {"codebook": tensors["codebook"] | edit}}}
            for edit in ({"shape": [8, 4]}, {"dtype": "uint8"}, {"shape": [32]})
        ),
    ]
    folders = []
    for number, edited in enumerate(edits):
        folders.append(Path(shutil.copytree(pristine, tmp_path / str(number))))
        (folders[-1] / CONFIG_NAME).write_text(json.dumps(edited), encoding="utf-8")
    for core, python in compare(program, "bundle", open_fully, folders):
        assert core == python != "ok"


def _with_row(document: dict[str, Any], row: object) -> dict[str, Any]:
    variants = {key: variant | {} for key, variant in document["variants"].items()}
    variants["s050-q3"]["layer_bits"] = [variants["s050-q3"]["layer_bits"][0], row]
    return document | {"variants": variants}


def test_action_tags(program: Path) -> None:
    tags = [
        "k030-s050-q4",
        "k100-s100-qmix",
        "k100-s100-q16",
        "k001-s001-q1",
        "k100-s100-q5",
        "k000-s100-q8",
        "k101-s100-q8",
    ]
    tags += [
        "",
        "k30-s050-q4",
        "k030-s050-q04",
        "k030-s050-q17",
        "k030-s050-q",
        "k030_s050_q4",
        "k030-s050-q4 ",
        "x" * 100,
    ]
    tags += ["k030-s050-qmixed", "k030-s050-q0", "é"]
    for tag, said in zip(tags, run_lines([str(program), "action"], tags), strict=True):
        assert said == in_words(tag), tag


def in_words(tag: str) -> str:
    """Line that the program prints of a tag."""
    try:
        action = Action.parse(tag)
    except SolError as error:
        return str(error)
    return f"ok {action.tag} {round(action.kv_density * 100)} {round(action.channel_density * 100)} {action.bits}"


def test_hashes(program: Path, tmp_path: Path) -> None:
    """SHA-256 of every length around a block's end, as hashlib computes it."""
    draw, paths = random.Random(5), []
    for size in [*range(140), 1000, (1 << 20) - 1, 1 << 20, (1 << 20) + 7]:
        paths.append(tmp_path / str(size))
        paths[-1].write_bytes(draw.randbytes(size))
    said = run_lines([str(program), "sha256"], [str(path) for path in paths])
    assert said == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
