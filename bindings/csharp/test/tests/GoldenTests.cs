using System;
using System.Collections.Generic;
using System.Globalization;
using System.IO;
using System.Linq;
using System.Text.Json;
using System.Threading.Tasks;

namespace SolRt.Tests;

/// <summary>A golden trace: a generation and what it must come to on every host.</summary>
internal sealed record Case(
    string Name, int[] Prompt, IReadOnlyDictionary<string, string> Keys, int[] Tokens, string[] Actions, double[] Costs, string Text)
{
    internal static IEnumerable<Case> Read(bool native) =>
        File.ReadLines(Given.Cases).Where(line => line.Length > 0 && line[0] != '#').Select(Of).Where(one => native || !one.Keys.ContainsKey("native"));

    private static Case Of(string line)
    {
        var fields = line.Split('\t');
        return new Case(
            fields[0], Words(fields[1]).Select(int.Parse).ToArray(), Words(fields[2]).Select(option => option.Split('=', 2)).ToDictionary(o => o[0], o => o[1]),
            Words(fields[3]).Select(int.Parse).ToArray(), Words(fields[4]), Words(fields[5]).Select(Number).ToArray(),
            JsonSerializer.Deserialize<string>(fields[6])!);
    }

    private static string[] Words(string field) => field.Split(' ', StringSplitOptions.RemoveEmptyEntries);

    private static double Number(string text) => double.Parse(text, CultureInfo.InvariantCulture);

    internal SolGenerateOptions Options()
    {
        var options = new SolGenerateOptions();
        foreach (var (key, value) in Keys)
        {
            switch (key)
            {
                case "budget": options.Budget = Number(value); break;
                case "schedule": options.Schedule = value; break;
                case "max_loss": options.MaxLoss = Number(value); break;
                case "tokens_per_second": options.TokensPerSecond = Number(value); break;
                case "kv_density": options.KvDensity = Number(value); break;
                case "channel_density": options.ChannelDensity = Number(value); break;
                case "bits": options.Bits = Number(value); break;
                case "max_new_tokens": options.MaxNewTokens = int.Parse(value); break;
                case "do_sample": options.DoSample = value == "1"; break;
                case "temperature": options.Temperature = Number(value); break;
                case "top_k": options.TopK = int.Parse(value); break;
                case "top_p": options.TopP = Number(value); break;
                case "min_p": options.MinP = Number(value); break;
                case "repetition_penalty": options.RepetitionPenalty = Number(value); break;
                case "presence_penalty": options.PresencePenalty = Number(value); break;
                case "frequency_penalty": options.FrequencyPenalty = Number(value); break;
                case "seed": options.Seed = long.Parse(value); break;
                case "budget_at" or "native": break;
                default: throw new InvalidOperationException($"{Name}: unknown key {key}");
            }
        }
        return options;
    }

    /// <summary>Plays the case in a session that is open, and compares.</summary>
    internal async Task Play(SolSession session)
    {
        var changes = Keys.TryGetValue("budget_at", out var at)
            ? at.Split(',').Select(change => change.Split(':')).ToDictionary(c => int.Parse(c[0]), c => Number(c[1]))
            : [];
        var got = new List<SolToken>();
        await foreach (var token in session.GenerateAsync(Prompt, Options()))
        {
            got.Add(token);
            if (changes.TryGetValue(got.Count, out var budget))
            {
                session.SetBudget(budget);
            }
        }
        Given.Same(Tokens, got.Select(token => token.Token), $"{Name}: tokens");
        Given.Same(Actions, got.Skip(1).Select(token => token.Action), $"{Name}: actions");
        Given.Equal(Costs.Length, got.Count - 1, $"{Name}: costs");
        for (var i = 0; i < Costs.Length; ++i)
        {
            var cost = got[i + 1].RelativeCost;
            Given.True(Math.Abs(cost - Costs[i]) <= 1e-9 * Math.Abs(Costs[i]), $"{Name}: cost of step {i + 1}: expected {Costs[i]:R}, got {cost:R}");
        }
        Given.Equal(Text, string.Concat(got.Select(token => token.Text)), $"{Name}: text");
        Given.True(got[^1].Finish != SolFinish.None && got.SkipLast(1).All(token => token.Finish == SolFinish.None), $"{Name}: only the last token ends");
    }
}

internal static class GoldenTests
{
    public static async Task EveryTraceIsReplayed()
    {
        using var model = SolModel.Load(Given.Bundle);
        var cases = Case.Read(model.Info.Native).ToList();
        Given.True(cases.Count >= 10, "there are cases");
        foreach (var one in cases)
        {
            using var session = model.CreateSession();
            await one.Play(session);
        }
    }

    public static async Task FunctionBodiesGiveTheSame()
    {
        using var runtime = new SolRuntime(new SolRuntimeOptions { NativeOperators = false });
        using var model = SolModel.Load(Given.Bundle, new SolModelOptions { Runtime = runtime });
        Given.Equal(false, model.Info.Native, "native operators are off");
        foreach (var one in Case.Read(native: false))
        {
            using var session = model.CreateSession();
            await one.Play(session);
        }
    }

    public static async Task OneSessionPlaysTracesOneAfterAnother()
    {
        using var model = SolModel.Load(Given.Bundle);
        using var session = model.CreateSession();
        foreach (var one in Case.Read(model.Info.Native))
        {
            session.Rewind(0);
            await one.Play(session);
        }
    }

    public static async Task TwoModelsAtOnce()
    {
        using var first = SolModel.Load(Given.Bundle);
        using var second = await SolModel.LoadAsync(Given.Bundle, new SolModelOptions { Verify = SolVerify.All });
        await Task.WhenAll(new[] { first, second, first }.Select(model => Task.Run(async () =>
        {
            foreach (var one in Case.Read(model.Info.Native))
            {
                using var session = model.CreateSession();
                await one.Play(session);
            }
        })));
    }
}
