"""`sol-rt perplexity` measures perplexity on a text under a budget, in llama-perplexity's convention."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from sol_rt.cli import options
from sol_rt.cli.console import note, print_json, progress

if TYPE_CHECKING:
    from sol_rt.evaluation.quality.perplexity import Estimate


def perplexity(
    file: Annotated[Path, options.option("-f", "--file", env=False, help="Text file to score; - is stdin.")],
    model: options.Model = None,
    ctx_size: Annotated[
        int,
        options.option("-c", "--ctx-size", env=False, min=4, help="Window size in tokens; the first half is context."),
    ] = 512,
    chunks: Annotated[
        int | None, options.option("--chunks", env=False, min=1, help="Largest number of windows; default: all.")
    ] = None,
    budget: options.Budget = None,
    schedule: options.Schedule = None,
    tokens_per_second: options.TokensPerSecond = None,
    max_loss: options.MaxLoss = None,
    kv_density: options.KvDensity = None,
    channel_density: options.ChannelDensity = None,
    bits: options.Bits = None,
    seed: options.Seed = None,
    prefill: options.Prefill = None,
    provider: options.Provider = "auto",
    device: options.Device = 0,
    threads: options.Threads = None,
    native_ops: options.NativeOps = True,
    verify: options.Verify = True,
    output: options.Output = options.Format.text,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure perplexity on a text file. The second half of every window is scored, one decode step per token."""
    from sol_rt.budget.cost.model import in_unit
    from sol_rt.cli.loading import dial, load, note_ineffective, read_text
    from sol_rt.evaluation.quality.perplexity import perplexity as measure

    how = dial(schedule, budget, tokens_per_second, kv_density, channel_density, bits, max_loss)
    text = read_text(file)
    machine: dict[str, Any] = {"provider": provider, "threads": threads, "native_ops": native_ops, "device": device}
    loaded = load(model, **machine, prefill=prefill, verify=verify, measure_costs=False)
    note_ineffective(loaded, how)
    finished: list[Estimate] = []
    try:
        with progress() as report:

            def window(done: int, total: int, so_far: Estimate) -> None:
                finished.append(so_far)
                report("windows", done, total)

            result = measure(loaded, text, size=ctx_size, chunks=chunks, seed=seed, progress=window, **how)
    except KeyboardInterrupt:
        if finished:
            last = finished[-1]
            note(f"after {last.chunks} windows: PPL = {last.ppl:.4f} +/- {last.stderr:.5f}")
        raise
    summary = {key: value for key, value in asdict(result).items() if key != "actions"}
    summary |= {
        "cost_model": loaded.cost.name,
        "prefill": loaded.prefill.variant,
        **loaded.provider.as_json(),
    }
    if json or output is options.Format.json:
        print_json(summary)
        return
    note(f"{result.tokens} tokens in {result.chunks} windows, {result.nll:.4f} nats per token")
    note(f"achieved budget {result.achieved_budget:.3f} of dense, {in_unit(loaded.cost.name)}")
    for tag, count in sorted(result.actions.items(), reverse=True):
        note(f"  {tag}  {count}")
    print(f"Final estimate: PPL = {result.ppl:.4f} +/- {result.stderr:.5f}")
