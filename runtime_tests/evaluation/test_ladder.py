"""The comparison with llama.cpp's quantization ladder: what is kept, paired and concluded, and the files it makes."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.bad_options import assert_refused
from helpers.tiny_bundle import write_bundle
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine.providers import start_pool
from sol_rt.errors import UsageError
from sol_rt.export.actions.losses import Candidate, token_losses
from sol_rt.generate.native.engine import Engine

gguf = pytest.importorskip("gguf", reason="exporting comes with the extra export")

from peers import ladder, ladder_figure, ladder_files  # noqa: E402
from peers.ladder_files import Contents, Ladder, Rounding, round_to_nearest  # noqa: E402
from peers.ladder_report import Row, Verdict, check_table, checks, table, verdict, verdicts  # noqa: E402
from peers.ladder_scores import Difference, Loss, Scores, difference, students_t  # noqa: E402
from peers.workers.client import WITHOUT_FLASH  # noqa: E402

NATS = st.lists(st.floats(0, 20), min_size=3, max_size=3)


def loss_of(*windows: Sequence[float]) -> Loss:
    """A loss by every token's nats."""
    return Loss(
        len(windows[0]), np.array([sum(w) for w in windows]), np.array([sum(x * x for x in w) for w in windows])
    )


def row(name: str, nats: float, rate: float = 1.0, bits: float = 4.75, whole: float | None = None) -> Row:
    """Two windows whose losses differ by the same, so that no difference has an error."""
    alone = None if whole is None else loss_of([whole, whole], [whole + 1, whole + 1])
    return Row(name, bits, 10**6, loss_of([nats, nats], [nats + 1, nats + 1]), alone, [rate, 2 * rate])


@given(st.lists(NATS, min_size=2, max_size=6))
def test_perplexity_and_its_error_are_those_of_the_tokens(windows: list[list[float]]) -> None:
    loss = loss_of(*windows)
    tokens = np.array(windows).ravel()
    assert loss.ppl == pytest.approx(math.exp(tokens.mean()))
    # llama-perplexity: exp(mean) sqrt((mean of squares - square of mean) / (n - 1))
    assert loss.ppl_error == pytest.approx(loss.ppl * tokens.std() / math.sqrt(tokens.size - 1), abs=1e-5 * loss.ppl)


@given(st.lists(st.tuples(NATS, NATS, NATS), min_size=2, max_size=6), st.floats(0.1, 1))
def test_differences_are_paired_by_window(triples: list[tuple[list[float], ...]], share: float) -> None:
    one, two, base = (loss_of(*windows) for windows in zip(*triples, strict=True))
    means = np.array(triples).mean(2)  # [windows, 3]
    plain, against = difference(one, two), difference(one, two, share, base)
    for found, each in (
        (plain, means[:, 0] - means[:, 1]),
        (against, means[:, 0] - means[:, 2] - share * (means[:, 1] - means[:, 2])),
    ):
        assert found.mean == pytest.approx(each.mean(), abs=1e-9)
        assert found.error == pytest.approx(each.std(ddof=1) / math.sqrt(len(each)), abs=1e-9)
        assert found.low <= found.mean <= found.high


def test_a_single_window_tells_no_error_and_others_make_no_pair() -> None:
    assert difference(loss_of([1.0, 2.0]), loss_of([1.0, 1.0])).error == math.inf
    with pytest.raises(ValueError, match="different windows"):
        difference(loss_of([1.0, 2.0]), loss_of([1.0, 2.0], [1.0, 2.0]))


@pytest.mark.parametrize(
    ("degrees", "table"),
    [
        (1, 12.706),
        (2, 4.303),
        (3, 3.182),
        (4, 2.776),
        (5, 2.571),
        (11, 2.201),
        (19, 2.093),
        (39, 2.023),
        (10**6, 1.960),
    ],
)
def test_intervals_of_few_windows_are_as_wide_as_students_t(degrees: int, table: float) -> None:
    assert students_t(degrees) == pytest.approx(table, abs=0.005)
    found = Difference(-2.5, 1.0, degrees + 1)
    assert (found.low, found.high) == (pytest.approx(-2.5 - table, abs=0.005), pytest.approx(-2.5 + table, abs=0.005))


def test_a_verdict_of_three_windows_needs_more_than_two_errors() -> None:
    rung = Row("Q6_K", 8.0, 1, loss_of([1.0], [1.0], [1.0]), None, [1.0])
    three = Row("a", 8.0, 1, loss_of([0.9], [0.8], [0.5]), None, [1.0])  # -0.267 ± 0.120
    assert verdict(rung, [three]).text == "lower perplexity, within the error"
    again = [
        Row(each.name, 8.0, 1, loss_of(*[[nats] for nats in 4 * each.loss.sums.tolist()]), None, [1.0])
        for each in (rung, three)
    ]
    assert verdict(again[0], again[1:]).text == "lower perplexity"


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    windows = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 8, 7, 6]]
    scores = Scores(tmp_path / "scores.json")
    for window in windows[:2]:
        scores.keep("m", window, [float(window[0]), 2.0])
    again = Scores(tmp_path / "scores.json")
    assert again.missing("m", windows) == [windows[2]]
    with pytest.raises(KeyError):
        again.loss("m", windows)
    again.keep("m", windows[2], np.array([9.0, 2.0]))
    loss = Scores(tmp_path / "scores.json").loss("m", [windows[2], windows[0]])
    assert loss.tokens == 2
    assert loss.sums.tolist() == [11, 3]
    assert loss.squares.tolist() == [85, 5]
    # another model, a changed token, a longer window: nothing is known
    assert again.missing("n", windows) == windows
    assert again.missing("m", [[1, 2, 3, 5], [1, 2, 3, 4, 0]]) == [[1, 2, 3, 5], [1, 2, 3, 4, 0]]


def test_the_verdict_takes_the_best_at_its_speed_and_the_fastest_at_its_perplexity() -> None:
    rung = row("Q4_K_M", 2.0, 10)
    slow, equal, fast = row("a", 1.5, 9), row("b", 1.9, 10), row("c", 2.1, 20)
    found = verdict(rung, [slow, fast, equal])
    assert found.at_speed is equal
    assert found.at_loss is equal
    assert found.loss is not None
    assert found.loss.mean == pytest.approx(-0.1)
    assert found.held
    assert found.text == "lower perplexity"
    quick = verdict(rung, [fast, row("d", 2.0, 13.1)])
    assert quick.at_loss is not None
    assert quick.at_loss.name == "d"
    assert quick.at_speed is quick.at_loss
    assert not quick.lower
    assert quick.held
    assert quick.text == "1.3 × faster"
    lost = verdict(rung, [slow, fast, row("e", 2.0, 12.9)])
    assert (lost.held, lost.text) == (False, "no")
    assert lost.faster == pytest.approx([1.29, 1.29])


def test_a_rung_that_nothing_reaches() -> None:
    found = verdict(row("Q8_0", 1.0, 10), [row("a", 1.5, 9)])
    assert found == Verdict(found.rung, None, None, None, ())
    assert not found.held
    assert verdicts([found]).splitlines()[-1] == "| `Q8_0` | none |  | none |  | no |"


def test_a_lower_perplexity_within_the_error_says_so() -> None:
    rung = Row("Q6_K", 8.0, 1, loss_of([1.0], [3.0]), None, [1.0])
    noisy = Row("a", 8.0, 1, loss_of([2.0], [1.9]), None, [1.0])
    assert verdict(rung, [noisy]).text == "lower perplexity, within the error"


def test_widths_are_held_against_their_bounds_over_whole_windows() -> None:
    source = row("F32", 2.0)
    rungs = [row("Q4_K_M", 2.08), row("Q3_K_M", 2.3)]
    roundings = [row("RTN4", 2.2, bits=4.75), row("RTN4-H8", 2.1, bits=5.5), row("RTN3", 2.9, bits=3.75)]
    actions = [
        row("k100-s100-q8", 2.9, bits=8.75, whole=2.002),
        row("k100-s100-q4", 2.0, bits=5.2, whole=2.06),
        row("k100-s100-q3", 2.3, bits=3.8),
        row("k100-s075-q4", 2.0),
    ]
    found = {(check.row.name[-2:], check.bound): check for check in checks(actions, rungs, roundings, source)}
    expected = {
        ("q8", "+0.30%"): 0.002 - math.log(1.003),
        ("q4", "half of `RTN4-H8` +10.52%"): 0.06 - 0.05,
        ("q4", "`Q4_K_M` +8.33%"): 0.06 - 0.08,
        ("q3", "half of `RTN3` +145.96%"): 0.3 - 0.45,
        ("q3", "`Q3_K_M` +34.99%"): 0.0,
    }
    assert found.keys() == expected.keys()
    for key, over in expected.items():
        assert found[key].over.mean == pytest.approx(over, abs=1e-9)
    assert [check.held for check in found.values()] == [True, False, True, True, True]
    assert check_table(list(found.values()), source).count("| no |") == 1


def test_the_table_has_the_fastest_row_first_and_needs_no_speeds() -> None:
    rows = [row("a", 2.0, 5), row("b", 2.5, 10, whole=2.6)]
    lines = table(rows, row("F32", 2.0), rows[0]).splitlines()
    assert [line.split("`")[1] for line in lines[2:]] == ["b", "a"]
    assert lines[2].endswith("| +64.87% | +0.5000 ± 0.0000 | +82.21% | 15.0 [12.5, 17.5] | 2.00 [2.00, 2.00] |")
    assert {line.count("|") for line in lines} == {10}
    untimed = [Row(each.name, each.bits, None, each.loss) for each in rows]
    lines = table(untimed, untimed[0], untimed[0]).splitlines()
    assert [line.split("`")[1] for line in lines[2:]] == ["a", "b"]
    assert {line.count("|") for line in lines} == {8}


@given(st.integers(2, 8), st.integers(0, 99), st.floats(-3, 1))
def test_rounding_is_the_nearest_code_of_the_blocks_grid(bits: int, seed: int, power: float) -> None:
    rng = np.random.default_rng(seed)
    w = (rng.normal(0.01, 10**power, (3, 64))).astype(np.float32)
    got = round_to_nearest(w, bits)
    for block, rounded in zip(w.reshape(-1, 32), got.reshape(-1, 32), strict=True):
        low, high = min(block.min(), 0.0), max(block.max(), 0.0)
        step = float(np.float16((high - low) / (2**bits - 1)))
        zero = min(max(round(-low / step), 0), 2**bits - 1)
        grid = step * (np.arange(2**bits) - zero)
        assert len(np.unique(rounded)) <= 2**bits
        nearest = np.abs(block.astype(np.float64)[:, None] - grid).min(1)
        np.testing.assert_allclose(np.abs(block.astype(np.float64) - rounded), nearest, atol=1e-5 * float(high - low))


def test_zeros_and_weights_of_one_sign_are_rounded() -> None:
    assert not round_to_nearest(np.zeros((1, 32), np.float32), 4).any()
    ones = np.full((1, 32), 15.0, np.float32)
    np.testing.assert_array_equal(round_to_nearest(ones, 4), ones)


@pytest.mark.parametrize(("name", "bits", "head"), [("RTN4", 4, 4), ("RTN3-H6", 3, 6)])
def test_a_roundings_name_reads_back(name: str, bits: int, head: int) -> None:
    rounding = Rounding.parse(name)
    assert (rounding.bits, rounding.lm_head_bits, rounding.name) == (bits, head, name)
    assert rounding.bits_a_weight(0.25) == bits + 0.25 * (head - bits) + 0.75


def write_gguf(path: Path, untied: bool) -> dict[str, np.ndarray]:
    """A one-layer Llama of Q8_0 matrices, its output matrix a finer copy of the embedding or one of its own."""
    rng, writer = np.random.default_rng(0), gguf.GGUFWriter(path, "llama")
    shapes = {"token_embd": (40, 32), "output": (40, 32), "output_norm": (32,)}
    parts = {"attn_q": (32, 32), "attn_k": (32, 32), "attn_v": (32, 32), "attn_output": (32, 32)}
    parts |= {"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64), "attn_norm": (32,), "ffn_norm": (32,)}
    shapes |= {f"blk.0.{name}": shape for name, shape in parts.items()}
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(7)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"w{i}" for i in range(40)])
    held = {f"{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    if not untied:
        held["output.weight"] = held["token_embd.weight"].copy()
    for name, values in held.items():
        if values.ndim == 1:
            writer.add_tensor(name, values)
            continue
        kind = gguf.GGMLQuantizationType.Q4_0 if name == "token_embd.weight" else gguf.GGMLQuantizationType.Q8_0
        packed = gguf.quants.quantize(values, kind)
        held[name] = gguf.quants.dequantize(packed, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


@pytest.mark.parametrize("untied", [False, True])
def test_the_float32_file_holds_what_export_reads_and_is_made_once(
    untied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = write_gguf(tmp_path / "tiny.gguf", untied)
    made = Ladder(tmp_path / "tiny.gguf", tmp_path / "cache", Path("python"), 1)
    path = made.source()
    reader, source = gguf.GGUFReader(path), gguf.GGUFReader(tmp_path / "tiny.gguf")
    if not untied:  # one matrix, the finer
        held["token_embd.weight"] = held.pop("output.weight")
    assert {tensor.name for tensor in reader.tensors} == held.keys()
    for tensor in reader.tensors:
        np.testing.assert_array_equal(tensor.data, held[tensor.name])
    for name, field in source.fields.items():
        if name not in ("general.file_type", "GGUF.tensor_count"):
            assert reader.fields[name].contents() == field.contents(), name
    assert reader.fields["general.file_type"].contents() == 0
    contents = Contents.of(path)
    assert contents.weights == 4 * 32 * 32 + 3 * 64 * 32 + 40 * 32
    assert contents.head_share == pytest.approx(40 * 32 / contents.weights)
    assert contents.step_bytes == 4 * (contents.weights + 3 * 32)
    assert (contents.bits, contents.types) == (32, {"F32": 1.0})

    rounded = {tensor.name: tensor.data for tensor in gguf.GGUFReader(made.rounded(Rounding(4, 8))).tensors}
    for name, values in held.items():
        bits = 8 if name in ("token_embd.weight", "output.weight") else 4
        np.testing.assert_array_equal(rounded[name], round_to_nearest(values, bits) if values.ndim > 1 else values)

    monkeypatch.setattr(made, "_write_source", lambda part: pytest.fail("made again"))
    assert made.source() == path
    other = tmp_path / "other" / "tiny.gguf"
    other.parent.mkdir()
    write_gguf(other, not untied)
    assert Ladder(other, tmp_path / "cache", Path("python"), 1).folder != made.folder


def test_a_rung_that_was_not_finished_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "tiny.gguf", False)
    made = Ladder(tmp_path / "tiny.gguf", tmp_path / "cache", Path("python"), 3)
    commands: list[list[str]] = []

    def tool(command: list[str | Path]) -> None:
        commands.append([str(part) for part in command])
        Path(command[3]).write_text("half")
        if len(commands) == 1:
            raise UsageError("stopped")

    monkeypatch.setattr(ladder_files, "run_tool", tool)
    with pytest.raises(UsageError, match="stopped"):
        made.rung("Q4_K_M")
    assert made.rung("Q4_K_M") == made.rung("Q4_K_M") == made.folder / "Q4_K_M.gguf"
    assert len(commands) == 2
    assert commands[1][2:] == [str(made.source()), str(made.folder / "Q4_K_M.part"), "Q4_K_M", "--threads", "3"]


def test_a_folder_has_one_run_at_a_time(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", False)
    one, two = (Ladder(tmp_path / "tiny.gguf", tmp_path / "cache", Path("python"), 1) for _ in range(2))
    with one.locked(), pytest.raises(UsageError, match="in use by another run"):
        with two.locked():
            pytest.fail("both")
    with two.locked():
        pass


def test_a_checkpoint_folder_is_refused_with_what_makes_a_file_of_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected a .gguf; .*convert_hf_to_gguf"):
        Ladder(tmp_path, tmp_path / "cache", Path("python"), 1)


@pytest.mark.parametrize(
    "argv",
    [
        ["--contexts", "512,0"],
        ["--windows", "none"],
        ["--rungs", "Q4_K_M,Q9"],
        ["--roundings", "RTN1"],
        ["--roundings", "RTN4-8"],
        ["--actions", "fast"],
        ["-r", "0"],
    ],
)
def test_bad_options_are_refused_before_anything_runs(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(ladder, "Run", ["-f", "text", *argv], argv[0], monkeypatch, capsys)


def test_the_file_as_it_is_is_a_rung_that_needs_no_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[argparse.Namespace] = []

    def run(args: argparse.Namespace) -> None:
        asked.append(args)
        raise UsageError("stopped")

    monkeypatch.setattr(ladder, "Run", run)
    monkeypatch.setattr(sys, "argv", ["ladder.py", "tiny.gguf", "-f", "text"])
    with pytest.raises(SystemExit, match="stopped"):
        ladder.main()
    assert asked[0].rungs == ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "FILE"]
    write_gguf(tmp_path / "tiny.gguf", False)
    made = Ladder(tmp_path / "tiny.gguf", tmp_path / "cache", Path("python"), 1)
    assert made.rung("FILE") == tmp_path / "tiny.gguf"


def test_an_environment_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"llama.cpp.bin.python: .*make ladder"):
        ladder.Run(argparse.Namespace(environments=tmp_path))


def test_a_run_from_scores_to_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but llama.cpp: its files and losses are made up."""
    write_gguf(tmp_path / "tiny.gguf", False)
    bundle = write_bundle(tmp_path / "tiny")
    (tmp_path / "text").write_text(" ".join(f"w{i % 80}" for i in range(70)))
    python = tmp_path / "llama.cpp" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    monkeypatch.setattr(ladder, "resolve", lambda *how: (tmp_path / "tiny.gguf", "tiny"))
    monkeypatch.setattr(Ladder, "rung", lambda self, name: self.source())
    opened: list[Path] = []

    class Made:
        def __init__(self, python: Path, file: Path, threads: int) -> None:
            opened.append(file)

        def __enter__(self) -> ladder.Score:
            return lambda window: [4.0] * (len(window) - len(window) // 2 - 1)

        def __exit__(self, *how: object) -> None:
            pass

    monkeypatch.setattr(ladder, "file_scorer", Made)
    args = argparse.Namespace(
        model="tiny.gguf",
        file=tmp_path / "text",
        bundle=str(bundle),
        environments=tmp_path,
        cache=tmp_path / "cache",
        contexts=[16],
        windows=[3],
        rungs=["Q4_K_M"],
        importance=None,
        roundings=[Rounding(4, 4)],
        actions=[Action(1.0, 1.0, 4), Action(0.3, 1.0, 4)],
        count=2,
        repetitions=2,
        threads=start_pool(None),
    )
    run = ladder.Run(args)
    run.score()
    assert [path.stem for path in opened] == ["F32", "F32", "RTN4"]
    contents = {"F32": Contents.of(run.ladder.source()), "Q4_K_M": Contents.of(run.ladder.source())}
    rates = {"Q4_K_M": [1.0, 1.0], "k100-s100-q8": [2.0, 2.0], "k100-s100-q4": [3.0, 3.0], "k030-s100-q4": [4.0, 4.0]}
    result = run.result(run.cuts[0], contents, rates)
    page = ladder.page(run, contents, [result], "command")
    assert "3 windows of 16 tokens, 21 scored" in page
    assert "The cheapest action, `k030-s100-q4`, takes 0.500" in page
    document = ladder.document(run, [result], "command")
    assert (document["file"], document["command"]) == ("text", "command")
    drawn = ladder_figure.figure([json.loads(json.dumps(document))], [None], narrow=True)
    assert all(f">{mark['facts']}</title>" in drawn for mark in ladder_figure.marks(document))
    assert f"{args.threads} threads, {document['date']}" in drawn
    (figures,) = document["contexts"]
    assert figures["verdicts"].keys() == {"Q4_K_M"}
    (dense, four, sparse) = figures["actions"]
    assert dense["ppl"] == dense["whole_ppl"]
    assert four["ppl"] != four["whole_ppl"]
    assert "whole_ppl" not in sparse
    assert sparse["bits_per_weight"] == pytest.approx(8 * run.step_bytes["s100-q4"] / contents["F32"].weights)
    window = run.cuts[0].windows[1]
    engine = Engine(Bundle.open(bundle), provider="cpu")
    for tag, whole in (("k030-s100-q4", ""), ("k100-s100-q4", ""), ("k100-s100-q4", " whole")):
        action = Action.parse(tag)
        expected = token_losses(engine, [window], [Candidate(action)], prefill=action if whole else None)
        kept = run.scores.loss(f"{tag} {run.revision}{whole}", [window])
        assert kept.sums == pytest.approx(expected.sum(), abs=1e-3)
    monkeypatch.setattr(ladder, "token_losses", lambda *what, **how: pytest.fail("scored again"))
    ladder.Run(args).score()
    assert len(opened) == 3
    untimed = run.result(run.cuts[0], contents, {})
    assert "cheapest" not in ladder.page(run, contents, [untimed], "command")
    for number, text in enumerate(("one", "two", "one")):  # an importance matrix of another text is scored anew
        args.rungs, args.importance = ["Q4_K_M-I"], tmp_path / text
        args.importance.write_text(text)
        ladder.Run(args).score()
        assert len(opened) == min(4 + number, 5)


LLAMA = """
import json, sys
print(json.dumps({"version": "1", "settings": ""}), flush=True)
ms = 8.0 if "--no-flash-attention" in sys.argv else 10.0
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "prompt":
        ms = 18.0 - ms if len(request["tokens"]) > 100 else ms
    print(json.dumps({"ms": ms * request.get("count", 1)}), flush=True)
"""
"""A worker in llama.cpp's place: flash attention loses after a short prompt and wins after a long one."""


def test_a_rung_is_timed_as_llama_cpp_decodes_it_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worker.py").write_text(LLAMA)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/worker.py" "$@"\n')
    python.chmod(0o755)
    run = object.__new__(ladder.Run)
    run.args = argparse.Namespace(rungs=["Q4_K_M"], threads=2, count=4)
    run.python, run.ladder = python, object.__new__(Ladder)
    monkeypatch.setattr(Ladder, "rung", lambda self, name: tmp_path / name)
    assert run._faster_engine([1] * 10) == WITHOUT_FLASH
    assert run._faster_engine([1] * 200) == "llama.cpp"


def test_a_command_is_shown_without_folders() -> None:
    shown = ladder.shown_command(["ladder.py", "/somewhere/m.gguf", "-f", "data/t.txt", "--roundings", ""])
    assert shown == "python benchmarks peers.ladder m.gguf -f t.txt --roundings ''"
