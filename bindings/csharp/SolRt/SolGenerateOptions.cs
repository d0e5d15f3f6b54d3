using System.Collections.Generic;

namespace SolRt;

/// <summary>
/// Options of a generation. Null stands for the model's own default. At most one dial may be set: <see cref="Budget"/>, <see cref="TokensPerSecond"/>,
/// <see cref="MaxLoss"/>, or targets on the axes. With none the fastest mix of actions runs that loses at most 0.5%.
/// </summary>
public sealed class SolGenerateOptions
{
    /// <summary>Tokens to generate at most.</summary>
    public int? MaxNewTokens { get; set; }

    /// <summary>True draws from the distribution; false takes the likeliest token.</summary>
    public bool? DoSample { get; set; }

    /// <summary>Divides the logits.</summary>
    public double? Temperature { get; set; }

    /// <summary>Draws from so many likeliest tokens only; 0 for all.</summary>
    public int? TopK { get; set; }

    /// <summary>Draws from the likeliest tokens that together have this probability.</summary>
    public double? TopP { get; set; }

    /// <summary>Drops tokens less likely than this share of the likeliest one's probability.</summary>
    public double? MinP { get; set; }

    /// <summary>Divides the positive logits of tokens that were there before, and multiplies the negative ones.</summary>
    public double? RepetitionPenalty { get; set; }

    /// <summary>Subtracted from the logits of tokens that were generated before.</summary>
    public double? PresencePenalty { get; set; }

    /// <summary>Subtracted for each time that a token was generated before.</summary>
    public double? FrequencyPenalty { get; set; }

    /// <summary>Seed of sampling and of the schedule <c>random</c>. The same seed gives the same tokens on every host; null draws a fresh one.</summary>
    public long? Seed { get; set; }

    /// <summary>Number of likeliest tokens that each <see cref="SolToken"/> lists.</summary>
    public int? TopLogprobs { get; set; }

    /// <summary>Added to the logits of tokens, -100 to 100.</summary>
    public IReadOnlyDictionary<int, float>? LogitBias { get; set; }

    /// <summary>Texts that end the generation; they are not part of it.</summary>
    public IReadOnlyList<string>? StopStrings { get; set; }

    /// <summary>Tokens that end the generation, in place of the model's own.</summary>
    public IReadOnlyList<int>? EndTokens { get; set; }

    /// <summary>Dial: share of the dense cost, 0 to 1.</summary>
    public double? Budget { get; set; }

    /// <summary>Dial: the rate to hold. Needs measured costs: <see cref="SolModel.MeasureCosts"/>.</summary>
    public double? TokensPerSecond { get; set; }

    /// <summary>Dial: the share by which perplexity may rise, as 0.01.</summary>
    public double? MaxLoss { get; set; }

    /// <summary>Target on an axis: share of the old KV cache that is read.</summary>
    public double? KvDensity { get; set; }

    /// <summary>Target on an axis: share of the channels that are read.</summary>
    public double? ChannelDensity { get; set; }

    /// <summary>Target on an axis: bits of a weight.</summary>
    public double? Bits { get; set; }

    /// <summary><c>sol</c>, <c>hull</c>, <c>uniform</c>, <c>entropy</c>, <c>random</c>, <c>fixed:TAG</c> or <c>dense</c>.</summary>
    public string? Schedule { get; set; }

    /// <summary>A schedule of the app's; <see cref="Schedule"/> is then the name under which it is reported.</summary>
    public SolSchedule? Choose { get; set; }

    /// <summary>True keeps the tokens of the prompt that the cache begins with, in place of running the whole prompt.</summary>
    public bool? ReuseCache { get; set; }

    /// <summary>True gives the text of budget 1, sooner where it repeats itself or the prompt: tokens are guessed, and several checked at once.</summary>
    public bool Lossless { get; set; }

    /// <summary>True guesses and checks tokens so under whatever the dial asks for.</summary>
    public bool Lookup { get; set; }

    /// <summary>File to write every step to, as <c>sol-rt trace</c> reads it.</summary>
    public string? Trace { get; set; }

    /// <summary>A trace whose actions run again, in place of a dial.</summary>
    public string? Replay { get; set; }

    internal unsafe void Fill(NativeGenerateOptions* native, NativeMemory memory)
    {
        Native.sol_generate_options_init(native, (uint)sizeof(NativeGenerateOptions));
        native->MaxNewTokens = MaxNewTokens ?? native->MaxNewTokens;
        native->DoSample = DoSample is bool sample ? (sample ? 1 : 0) : native->DoSample;
        native->Temperature = Temperature ?? native->Temperature;
        native->TopK = TopK ?? native->TopK;
        native->TopP = TopP ?? native->TopP;
        native->MinP = MinP ?? native->MinP;
        native->RepetitionPenalty = RepetitionPenalty ?? native->RepetitionPenalty;
        native->PresencePenalty = PresencePenalty ?? native->PresencePenalty;
        native->FrequencyPenalty = FrequencyPenalty ?? native->FrequencyPenalty;
        native->Seed = Seed ?? native->Seed;
        native->TopLogprobs = TopLogprobs ?? native->TopLogprobs;
        native->Budget = Budget ?? native->Budget;
        native->TokensPerSecond = TokensPerSecond ?? native->TokensPerSecond;
        native->MaxLoss = MaxLoss ?? native->MaxLoss;
        native->KvDensity = KvDensity ?? native->KvDensity;
        native->ChannelDensity = ChannelDensity ?? native->ChannelDensity;
        native->Bits = Bits ?? native->Bits;
        native->Schedule = memory.Text(Schedule, "Schedule");
        native->ReuseCache = ReuseCache is bool reuse ? (reuse ? 1 : 0) : native->ReuseCache;
        native->Lossless = Lossless ? 1 : 0;
        native->Lookup = Lookup ? 1 : 0;
        native->Trace = memory.Text(Trace, "Trace");
        native->Replay = memory.Text(Replay, "Replay");
        native->Choose = Choose is null ? System.IntPtr.Zero : Asked.Callback;
        if (EndTokens is not null)
        {
            native->EndTokens = memory.Array(EndTokens);
            native->NumEndTokens = (System.UIntPtr)EndTokens.Count;
        }
        if (LogitBias is not null)
        {
            native->LogitBias = memory.Array<NativeLogitBias>(LogitBias.Count);
            native->NumLogitBias = (System.UIntPtr)LogitBias.Count;
            var bias = native->LogitBias;
            foreach (var pair in LogitBias)
            {
                *bias++ = new NativeLogitBias { Token = pair.Key, Bias = pair.Value };
            }
        }
        if (StopStrings is not null)
        {
            native->StopStrings = (byte**)memory.Array<System.IntPtr>(StopStrings.Count);
            native->NumStopStrings = (System.UIntPtr)StopStrings.Count;
            for (var i = 0; i < StopStrings.Count; ++i)
            {
                native->StopStrings[i] = memory.Text(StopStrings[i], $"StopStrings[{i}]");
            }
        }
    }
}
