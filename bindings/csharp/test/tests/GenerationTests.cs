using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Threading;
using System.Threading.Tasks;

namespace SolRt.Tests;

internal static class GenerationTests
{
    private static Case Long => Case.Read(native: false).OrderByDescending(one => one.Tokens.Length).First();
    private static Case Short => Case.Read(native: false).Where(one => one.Tokens.Length > 8).MinBy(one => one.Tokens.Length)!;

    private static SolGenerateOptions Greedy(int tokens, string? schedule = null) =>
        new() { MaxNewTokens = tokens, DoSample = false, EndTokens = [], Schedule = schedule };

    public static async Task TokensComeOneByOne()
    {
        using var model = SolModel.Load(Given.Bundle);
        using var session = model.CreateSession();
        var lengths = new List<int>();
        await foreach (var token in session.GenerateAsync(Long.Prompt, Greedy(8)))
        {
            Given.Equal(lengths.Count + 1, session.Result.NumTokens, "tokens so far");
            lengths.Add(session.Tokens.Length);
        }
        Given.Same(Enumerable.Range(Long.Prompt.Length, 8), lengths, "the cache grows a token at a time");
        var result = session.Result;
        Given.Equal(SolFinish.Length, result.Finish, "why it ended");
        Given.Equal(Long.Prompt.Length, result.PromptTokens, "tokens of the prompt");
        Given.True(result.TimeToFirstTokenMs > 0 && result.TokensPerSecond > 0 && session.PrivateBytes > 0, result.ToString());
    }

    public static async Task LeavingTheLoopEndsTheGeneration()
    {
        using var model = SolModel.Load(Given.Bundle);
        using var session = model.CreateSession();
        await foreach (var _ in session.GenerateAsync(Long.Prompt, Greedy(50)))
        {
            break;
        }
        await Given.Throws<FormatException>(async () =>
        {
            await foreach (var _ in session.GenerateAsync(Long.Prompt, Greedy(50)))
            {
                throw new FormatException("the host's own");
            }
        }, "what the loop throws arrives");
        session.Rewind(0);
        await Long.Play(session);
    }

    public static async Task ACallInTheLoopEndsTheGeneration()
    {
        using var model = SolModel.Load(Given.Bundle);
        using var session = model.CreateSession();
        var alone = (await Given.All(session.GenerateAsync(Long.Prompt, Greedy(8, "dense")))).Select(token => token.Token).ToArray();
        var file = Path.Combine(Given.Scratch, "ends");
        session.Save(file);
        var nowhere = Path.Combine(Given.Scratch, "none", "session");
        foreach (var (call, name) in new (Action, string)[]
        {
            (() => session.Rewind(2), "rewind"), (() => session.Save(file), "save"), (() => session.Restore(file), "restore"),
            (() => Given.Throws<SolWriteException>(() => session.Save(nowhere), "a folder that is not there"), "a save that fails"),
        })
        {
            var seen = new List<int>();
            await foreach (var token in session.GenerateAsync(Long.Prompt, Greedy(8, "dense")))
            {
                seen.Add(token.Token);
                if (seen.Count == 3)
                {
                    call();
                }
            }
            Given.Same(alone.Take(3), seen, name);
        }
        var all = 0;
        await foreach (var _ in session.GenerateAsync(Long.Prompt, Greedy(8, "dense")))
        {
            ++all;
            Given.Throws<SolUsageException>(() => session.Rewind(100_000), "more than the cache has");
        }
        Given.Equal(8, all, "a call that is refused ends nothing");
    }

    public static async Task CancellingEndsAStep()
    {
        using var model = SolModel.Load(Given.Bundle);
        using var session = model.CreateSession();
        var random = new Random(5);
        var ended = 0;
        var after = Short;
        for (var round = 0; round < 100; ++round)
        {
            using var cancel = new CancellationTokenSource();
            var wait = random.Next(0, 3000);
            var other = Task.Run(() =>
            {
                Thread.SpinWait(wait * 20);
                if (wait % 2 == 0)
                {
                    cancel.Cancel();
                }
                else
                {
                    session.Cancel();
                }
            });
            try
            {
                await foreach (var _ in session.GenerateAsync(Long.Prompt, Greedy(200), cancel.Token))
                {
                }
            }
            catch (OperationCanceledException error)
            {
                Given.True(wait % 2 == 1 || error.CancellationToken == cancel.Token, "whose cancellation it was");
                ++ended;
            }
            await other;
            // A cancellation ends the generation that it was meant for, and none after it.
            session.Rewind(0);
            await after.Play(session);
            session.Rewind(0);
        }
        Given.True(ended > 20, $"{ended} of 100 generations were cancelled");
        using var before = new CancellationTokenSource();
        before.Cancel();
        await Given.Throws<OperationCanceledException>(() => Given.All(session.GenerateAsync(Long.Prompt, null, before.Token)), "cancelled before");
    }

    public static async Task CancellingEndsThePromptBetweenItsChunks()
    {
        using var runtime = new SolRuntime(new SolRuntimeOptions { NativeOperators = false });  // its chunks are the smallest
        using var model = SolModel.Load(Given.Bundle, new SolModelOptions { Runtime = runtime });
        var prompt = Enumerable.Range(0, 700).Select(place => Long.Prompt[place % Long.Prompt.Length]).ToArray();
        for (var round = 0; round < 200; ++round)
        {
            using var session = model.CreateSession();
            using var cancel = new CancellationTokenSource();
            var other = Task.Run(() =>
            {
                Thread.SpinWait(round % 50 * 40_000);
                cancel.Cancel();
            });
            try
            {
                await foreach (var _ in session.GenerateAsync(prompt, Greedy(1), cancel.Token))
                {
                }
            }
            catch (OperationCanceledException)
            {
            }
            await other;
            if (session.Tokens.Length is > 0 and < 700)
            {
                return;  // a part of the prompt is in the cache, so the cancellation came while it ran
            }
        }
        throw new InvalidOperationException("200 cancellations, and none ended a prompt that ran");
    }

    public static async Task BudgetMovesWhileTextStreams()
    {
        using var model = SolModel.Load(Given.Bundle);
        using var session = model.CreateSession();
        var dense = model.Info.Dense;
        var actions = new List<string>();
        var options = Greedy(40, "uniform");
        options.Budget = 1;
        await foreach (var token in session.GenerateAsync(Long.Prompt, options))
        {
            actions.Add(token.Action);
            if (actions.Count == 12)
            {
                await Task.Run(() => session.SetBudget(0.1));
                Given.Throws<SolUsageException>(() => session.SetBudget(1.5), "a budget above 1");
                Given.Throws<SolUsageException>(() => session.SetBudget(double.NaN), "a budget that is no number");
                Given.Throws<SolUsageException>(() => session.SetTokensPerSecond(10), "a rate without measured costs");
            }
        }
        Given.True(actions.Take(12).All(action => action == dense), $"dense at budget 1: {string.Join(' ', actions)}");
        Given.True(actions.Skip(12).Count(action => action != dense) > 20, $"cheaper at budget 0.1: {string.Join(' ', actions)}");
        Given.Throws<SolUsageException>(() => session.SetBudget(0.5), "a budget without a generation");
        session.Rewind(0);
        await foreach (var token in session.GenerateAsync(Long.Prompt, Greedy(8, "dense")))
        {
            Given.Throws<SolUsageException>(() => session.SetBudget(0.5), "the budget of a schedule of one action");
            break;
        }
    }

    public static async Task ForwardGivesTheLogitsOfAGeneration()
    {
        using var model = SolModel.Load(Given.Bundle);
        using var session = model.CreateSession();
        var expected = await Given.All(session.GenerateAsync(Long.Prompt, Greedy(6, "dense")));
        session.Rewind(0);
        IReadOnlyList<int> run = Long.Prompt;
        foreach (var token in expected)
        {
            var made = session.Forward(run);
            Given.Equal(token.Token, Array.IndexOf(made.Logits, made.Logits.Max()), "the likeliest token");
            Given.Equal(model.Info.HiddenSize, made.Hidden.Length, "the hidden state");
            run = [token.Token];
        }
        Given.Throws<SolUsageException>(() => session.Forward(Long.Prompt, "k100"), "a wrong tag");
        Given.Throws<SolUsageException>(() => session.Forward([]), "no tokens");
    }

    public static async Task AScoreHasTheNumbersOfTheGeneration()
    {
        using var model = SolModel.Load(Given.Bundle);
        using var session = model.CreateSession();
        var options = Greedy(20, "hull");
        options.Budget = 0.6;
        var made = await Given.All(session.GenerateAsync(Long.Prompt, options));
        int[] tokens = [.. Long.Prompt, .. made.Select(token => token.Token)];
        var scores = session.Score(tokens, Long.Prompt.Length, options);
        Given.Same(made.Select(token => token.Logprob), scores.Logprobs, "log-probabilities");
        Given.Same(made.Skip(1).Select(token => token.Action), scores.Actions, "actions");
        Given.Same(made.Skip(1).Select(token => token.Cost), scores.Costs, "costs");
        Given.Equal("hull", scores.Schedule, "the schedule");
        Given.Equal(made[^1].AchievedBudget, scores.AchievedBudget, "the budget");
        foreach (var wrong in new[] { -1, 0, tokens.Length, tokens.Length + 1 })
        {
            Given.Throws<SolUsageException>(() => session.Score(tokens, wrong, options), $"a context of {wrong}");
        }
    }

    public static async Task AScheduleOfTheAppsPicksTheActions()
    {
        using var model = SolModel.Load(Given.Bundle);
        using var session = model.CreateSession();
        var (tag, info, calls) = (model.Actions[5].Tag, model.Info, 0);
        var options = Greedy(12, "mine");
        options.Budget = 0.9;
        options.Choose = choice =>
        {
            Given.Equal(calls++, choice.Step, "steps");
            Given.True(choice.Hidden.Length == info.HiddenSize && choice.Logits.Length == info.VocabSize, "sizes");
            Given.True(choice.RelativeCosts.Length == choice.Actions.Length && choice.Allowed.Length == choice.Actions.Length, "actions");
            Given.True(choice.Budget == 0.9 && choice.Entropy > 0 && choice.Margin <= choice.TopProbability, "facts");
            return Array.IndexOf(choice.Actions, tag);
        };
        var expected = await Given.All(session.GenerateAsync(Long.Prompt, Greedy(12, $"fixed:{tag}")));
        session.Rewind(0);
        var made = await Given.All(session.GenerateAsync(Long.Prompt, options));
        Given.Same(expected.Select(token => token.Token), made.Select(token => token.Token), "tokens");
        Given.Equal("mine", session.Result.Schedule, "its name");
        Given.Equal(11, calls, "calls");
        calls = 0;
        Given.True(session.Score(Long.Prompt, 1, options).Actions.All(action => action == tag), "a score asks it, too");
        options.Choose = _ => throw new FormatException("the host's own");
        await Given.Throws<FormatException>(() => Given.All(session.GenerateAsync(Long.Prompt, options)), "what it throws arrives");
        Given.Throws<FormatException>(() => session.Score(Long.Prompt, 1, options), "of a score, too");
        options.Choose = _ => 1000;
        Given.Throws<SolUsageException>(() => session.Score(Long.Prompt, 1, options), "an action that is none");
    }

    public static void CostsOfTheApps()
    {
        using var model = SolModel.Load(Given.Bundle);
        var lines = model.Actions.Select(action => action.Tag[5..]).Distinct().Select(key =>
            $$$"""
            "{{{key}}}": {"1.0": {"fixed": {{{(key == "s100-q4" ? 2 : 8)}}}, "per_token": 0, "per_page": 0, "error": 0}}
            """);
        model.SetCosts(
            $$"""
            {"format": "sol_rt.cost_table", "format_version": 1, "device": "", "created": "", "policy_ms": 0, "quick": false, "steady": true,
             "tuning": null, "bundle": "{{model.Info.Identity}}", "lines": { {{string.Join(',', lines)}} } }
            """);
        Given.Equal("measured", model.Info.CostModel, "the cost model");
        Given.Equal(0.25, model.Actions.Single(action => action.Tag == "k100-s100-q4").RelativeCost, "a cost");
        Given.Throws<SolBundleException>(() => model.SetCosts("{}"), "no table");
        model.SetCosts(null);
        Given.Equal("bytes", model.Info.CostModel, "the cost model");
    }

    public static async Task OneGenerationAtATime()
    {
        using var model = SolModel.Load(Given.Bundle);
        using var session = model.CreateSession();
        await foreach (var _ in session.GenerateAsync(Long.Prompt, Greedy(4)))
        {
            await Given.Throws<SolBusyException>(() => Given.All(session.GenerateAsync(Long.Prompt)), "a second generation in the session");
        }
        session.Rewind(0);
        await Long.Play(session);
    }

    public static async Task OptionsReachTheCore()
    {
        using var model = SolModel.Load(Given.Bundle);
        var plain = (await Run(Greedy(12, "dense"))).Select(token => token.Token).ToArray();
        var top = await Run(With(options => options.TopLogprobs = 3));
        Given.True(top.All(token => token.Top.Count == 3 && token.Top[0].Token == token.Token && token.Top[0].Logprob == token.Logprob), "the likeliest tokens");
        var biased = await Run(With(options => options.LogitBias = new Dictionary<int, float> { [plain[0]] = -100, [plain[1]] = -100 }));
        Given.True(biased.All(token => token.Token != plain[0] && token.Token != plain[1]), "a bias of the logits");
        var ended = await Run(With(options => options.EndTokens = [plain[3]]));
        Given.Same(plain.Take(Array.IndexOf(plain, plain[3]) + 1), ended.Select(token => token.Token), "an end token");
        Given.Equal(SolFinish.Stop, ended[^1].Finish, "why it ended");
        var whole = model.Decode(plain);
        var stop = whole.Substring(whole.Length / 2, 3);
        var stopped = await Run(With(options => options.StopStrings = ["never there", stop]));
        Given.Equal(whole[..whole.IndexOf(stop, StringComparison.Ordinal)], string.Concat(stopped.Select(token => token.Text)), "a stop string");

        async Task<List<SolToken>> Run(SolGenerateOptions options)
        {
            using var session = model.CreateSession();
            return await Given.All(session.GenerateAsync(Long.Prompt, options));
        }

        static SolGenerateOptions With(Action<SolGenerateOptions> change)
        {
            var options = Greedy(12, "dense");
            change(options);
            return options;
        }
    }

    public static async Task CacheIsReusedAndSaved()
    {
        using var model = SolModel.Load(Given.Bundle);
        using var session = model.CreateSession();
        var whole = (await Given.All(session.GenerateAsync(Long.Prompt, Greedy(16, "dense")))).Select(token => token.Token).ToArray();
        session.Rewind(Long.Prompt.Length + 6);
        Given.Same(Long.Prompt.Concat(whole.Take(6)), session.Tokens, "the rest of the cache");
        var file = Path.Combine(Given.Scratch, "session");
        session.Save(file);
        using var other = model.CreateSession();
        other.Restore(file);
        Given.Same(session.Tokens, other.Tokens, "a restored cache");
        foreach (var one in new[] { session, other })
        {
            var options = Greedy(9, "dense");
            options.ReuseCache = true;
            var rest = await Given.All(one.GenerateAsync(Long.Prompt.Concat(whole.Take(7)).ToArray(), options));
            Given.Same(whole.Skip(7), rest.Select(token => token.Token), "the text goes on as it did");
            Given.Equal(Long.Prompt.Length + 6, one.Result.CachedTokens, "tokens that were in the cache");
        }
        Given.Throws<SolUsageException>(() => session.Rewind(100_000), "more than the cache has");
        Given.Throws<SolUsageException>(() => session.Rewind(-1), "less than nothing");
    }

    public static async Task TracesAreWrittenAndReplayed()
    {
        using var model = SolModel.Load(Given.Bundle);
        var trace = Path.Combine(Given.Scratch, "trace.jsonl");
        var options = new SolGenerateOptions { MaxNewTokens = 20, Seed = 3, DoSample = true, Budget = 0.6, Trace = trace };
        using var session = model.CreateSession();
        var first = await Given.All(session.GenerateAsync(Long.Prompt, options));
        Given.True(File.ReadAllLines(trace).Length >= first.Count, "a line for each token");
        using var again = model.CreateSession();
        var second = await Given.All(again.GenerateAsync(Long.Prompt, new SolGenerateOptions { MaxNewTokens = 20, Seed = 3, DoSample = true, Replay = trace }));
        Given.Same(first.Select(token => token.Action), second.Select(token => token.Action), "replayed actions");
        Given.Equal(-1, again.Result.FirstDifference, "all tokens agree");
    }

    public static async Task CostsAreMeasured()
    {
        using var model = SolModel.Load(Given.Bundle);
        using var session = model.CreateSession();
        await Given.Throws<SolUsageException>(
            () => Given.All(session.GenerateAsync(Long.Prompt, new SolGenerateOptions { TokensPerSecond = 10 })), "a rate without measured costs");
        var file = Path.Combine(Given.Scratch, "costs.json");
        model.MeasureCosts(file);
        Given.Equal("measured", model.Info.CostModel, "the cost model");
        await Given.All(session.GenerateAsync(Long.Prompt, new SolGenerateOptions { TokensPerSecond = 10, MaxNewTokens = 4 }));
        Given.Equal("measured", session.Result.CostModel, "the generation's cost model");
        using var later = SolModel.Load(Given.Bundle, new SolModelOptions { CostTable = file });
        Given.Equal("measured", later.Info.CostModel, "with the file");
    }

    public static async Task APromptRunsThroughAnotherVariant()
    {
        using var model = SolModel.Load(Given.Bundle, new SolModelOptions { Prefill = "s100-q4" });
        using var session = model.CreateSession();
        var tokens = await Given.All(session.GenerateAsync(Short.Prompt, Greedy(3, "dense")));
        Given.Equal("k100-s100-q4", tokens[0].Action, "the prompt's action");
        Given.Equal(model.Info.Dense, tokens[1].Action, "a step's");
        Given.Throws<SolUsageException>(() => SolModel.Load(Given.Bundle, new SolModelOptions { Prefill = "s001-q4" }), "a variant that is not there");
    }

    public static void GovernorHoldsItsBounds()
    {
        var governor = new SolGovernor(0.3, 0.9);
        Given.True(governor.Budget is >= 0.3 and <= 0.9, $"the first budget: {governor.Budget}");
        double budget = 0;
        for (var step = 0; step < 200; ++step)
        {
            budget = governor.Step(new SolGovernorReading { Battery = 0.05, Charging = false, Thermal = 1.2 });
            Given.True(budget is >= 0.3 and <= 0.9, $"step {step}: {budget}");
        }
        var low = budget;
        for (var step = 0; step < 200; ++step)
        {
            budget = governor.Step(new SolGovernorReading { Battery = 1, Charging = true, Thermal = 0 });
        }
        Given.True(low < budget, $"hot and empty {low}, cool and charging {budget}");
        Given.Equal(budget, governor.Budget, "the state");
        Given.Throws<SolUsageException>(() => new SolGovernor(0.9, 0.3), "bounds that cross");
    }
}
