using System.Collections.Generic;

namespace SolRt;

/// <summary>Reason of a generation's end.</summary>
public enum SolFinish
{
    /// <summary>The generation goes on.</summary>
    None = 0,
    /// <summary>An end token or a stop string.</summary>
    Stop = 1,
    /// <summary>The number of tokens that was asked for, or the context is full.</summary>
    Length = 2,
}

/// <summary>A token and its log-probability.</summary>
/// <param name="Token">Its id.</param>
/// <param name="Logprob">Nats, under the raw distribution.</param>
public readonly record struct SolTokenLogprob(int Token, double Logprob);

/// <summary>One generated token.</summary>
public sealed record SolToken
{
    /// <summary>Its id.</summary>
    public int Token { get; init; }

    /// <summary>Text that is now certain; empty while a character or a stop string is incomplete.</summary>
    public string Text { get; init; } = "";

    /// <summary>Tag of the action that computed it; for the first token that of the prompt's run.</summary>
    public string Action { get; init; } = "";

    /// <summary>Nats, under the raw distribution.</summary>
    public double Logprob { get; init; }

    /// <summary>Cost of its decode step, in the cost model's unit; 0 for the first token.</summary>
    public double Cost { get; init; }

    /// <summary>The same in dense steps.</summary>
    public double RelativeCost { get; init; }

    /// <summary>Cost of the steps so far over their dense cost.</summary>
    public double AchievedBudget { get; init; }

    /// <summary>Budget asked for, for the steps so far, as a share of their dense cost.</summary>
    public double RequestedBudget { get; init; }

    /// <summary>Time since the token before; for the first token, since the start.</summary>
    public double Milliseconds { get; init; }

    /// <summary>State of the generation: it goes on, or the reason of its end.</summary>
    public SolFinish Finish { get; init; }

    /// <summary>The likeliest tokens, as many as <see cref="SolGenerateOptions.TopLogprobs"/> asked for.</summary>
    public IReadOnlyList<SolTokenLogprob> Top { get; init; } = System.Array.Empty<SolTokenLogprob>();

    internal static unsafe SolToken Of(in NativeToken native)
    {
        var top = native.NumTop == System.UIntPtr.Zero ? System.Array.Empty<SolTokenLogprob>() : new SolTokenLogprob[(int)native.NumTop];
        for (var i = 0; i < top.Length; ++i)
        {
            top[i] = new SolTokenLogprob(native.TopTokens[i], native.TopLogprobs[i]);
        }
        return new SolToken
        {
            Token = native.Token,
            Text = native.TextLength == System.UIntPtr.Zero ? "" : System.Text.Encoding.UTF8.GetString(native.Text, (int)native.TextLength),
            Action = Native.Text(native.Action),
            Logprob = native.Logprob,
            Cost = native.Cost,
            RelativeCost = native.RelativeCost,
            AchievedBudget = native.AchievedBudget,
            RequestedBudget = native.RequestedBudget,
            Milliseconds = native.Milliseconds,
            Finish = (SolFinish)native.Finish,
            Top = top,
        };
    }
}

/// <summary>Results of a run of tokens, of the last one.</summary>
/// <param name="Logits">A number for each token of the vocabulary.</param>
/// <param name="Hidden">Output of the final norm.</param>
public sealed record SolOutput(float[] Logits, float[] Hidden);

/// <summary>Log-probabilities of given tokens, and the decode steps that processed them.</summary>
/// <param name="Logprobs">Of each token that was scored, in nats.</param>
/// <param name="Actions">Tag of each decode step: one less than there are tokens, for the last one is only scored.</param>
/// <param name="Costs">Cost of each step, in the cost model's unit.</param>
/// <param name="Schedule">The schedule that ran.</param>
/// <param name="AchievedBudget">What the steps cost, as a share of the dense cost.</param>
/// <param name="RequestedBudget">What was asked for, as a share of the dense cost.</param>
/// <param name="ExpectedLoss">Mean measured loss of the actions taken, nats per token; NaN if it was not measured.</param>
/// <param name="Floored">Whether the budget lay below the cheapest action.</param>
public sealed record SolScores(
    IReadOnlyList<double> Logprobs, IReadOnlyList<string> Actions, IReadOnlyList<double> Costs, string Schedule, double AchievedBudget,
    double RequestedBudget, double ExpectedLoss, bool Floored)
{
    internal static unsafe SolScores Of(double[] logprobs, in NativeScores native) => new(
        logprobs, Native.Texts(native.Actions, native.NumActions), new System.ReadOnlySpan<double>(native.Costs, (int)native.NumActions).ToArray(),
        Native.Text(native.Schedule), native.AchievedBudget, native.RequestedBudget, native.ExpectedLoss, native.Floored != 0);
}

/// <summary>Result of a generation so far.</summary>
/// <param name="NumTokens">Tokens generated so far, the end token included.</param>
/// <param name="PromptTokens">Tokens of the prompt.</param>
/// <param name="CachedTokens">Tokens of the prompt that were in the cache.</param>
/// <param name="Schedule">The schedule that ran.</param>
/// <param name="CostModel"><c>bytes</c> or <c>measured</c>.</param>
/// <param name="RequestedBudget">What was asked for, as a share of the dense cost.</param>
/// <param name="AchievedBudget">What the steps cost, as a share of the dense cost.</param>
/// <param name="ExpectedLoss">Mean measured loss of the actions taken, nats per token; NaN if it was not measured.</param>
/// <param name="PromptTokensPerSecond">Rate at which the prompt ran.</param>
/// <param name="TokensPerSecond">Rate of the decode steps.</param>
/// <param name="TimeToFirstTokenMs">Milliseconds from the start to the first token.</param>
/// <param name="FastestTokensPerSecond">Rate of the cheapest action at the last context; NaN if costs are bytes.</param>
/// <param name="Floored">Whether the budget lay below the cheapest action.</param>
/// <param name="FirstDifference">In a replay, index of the first token that differs from the trace's; -1 where all agree.</param>
/// <param name="Finish">Whether it ended, and why.</param>
/// <param name="DraftedTokens">Tokens that were guessed and run.</param>
/// <param name="AcceptedTokens">Of these, tokens of the text.</param>
public sealed record SolResult(
    int NumTokens, int PromptTokens, int CachedTokens, string Schedule, string CostModel, double RequestedBudget, double AchievedBudget,
    double ExpectedLoss, double PromptTokensPerSecond, double TokensPerSecond, double TimeToFirstTokenMs, double FastestTokensPerSecond, bool Floored,
    int FirstDifference, SolFinish Finish, long DraftedTokens, long AcceptedTokens)
{
    internal static unsafe SolResult Of(in NativeResult native) => new(
        native.NumTokens, native.PromptTokens, native.CachedTokens, Native.Text(native.Schedule), Native.Text(native.CostModel),
        native.RequestedBudget, native.AchievedBudget, native.ExpectedLoss, native.PromptTokensPerSecond, native.TokensPerSecond,
        native.TimeToFirstTokenMs, native.FastestTokensPerSecond, native.Floored != 0, native.FirstDifference, (SolFinish)native.Finish,
        native.DraftedTokens, native.AcceptedTokens);
}
