// The C interface, sol_rt.h, as it is: blittable structs and functions, which need no marshalling at run time.
using System;
using System.Runtime.InteropServices;

namespace SolRt;

#pragma warning disable CS0649, CS0169  // the library fills these fields

internal unsafe struct NativeRuntimeOptions
{
    public uint Size;
    public IntPtr OrtApiBase;
    public byte* OrtLibrary;
    public int Threads, NativeOperators, Spin;
}

internal unsafe struct NativeModelOptions
{
    public uint Size;
    public int Verify, MaxContext;
    public byte* CostTable;
    public IntPtr Progress, User;
    public byte* Prefill, CostsFolder, Device;
    public int Costs;
}

internal unsafe struct NativeModelInfo
{
    public uint Size;
    public byte* Name, Generator, Identity;
    public int VocabSize, HiddenSize, NumLayers, MaxContext, NumActions, HasPolicy, HasLosses, HasTokenizer, HasChat, Native;
    public byte* DefaultSchedule, CostModel, Dense;
    public ulong MappedBytes;
    public byte* CostNote;
}

internal unsafe struct NativeActionInfo
{
    public uint Size;
    public byte* Tag;
    public double RelativeCost, Loss;
}

internal unsafe struct NativeMessage
{
    public byte* Role, Content;
}

internal struct NativeLogitBias
{
    public int Token;
    public float Bias;
}

internal unsafe struct NativeGenerateOptions
{
    public uint Size;
    public int MaxNewTokens, DoSample;
    public double Temperature;
    public int TopK;
    public double TopP, MinP, RepetitionPenalty, PresencePenalty, FrequencyPenalty;
    public long Seed;
    public int TopLogprobs;
    public NativeLogitBias* LogitBias;
    public UIntPtr NumLogitBias;
    public byte** StopStrings;
    public UIntPtr NumStopStrings;
    public int* EndTokens;
    public UIntPtr NumEndTokens;
    public double Budget, TokensPerSecond, MaxLoss, KvDensity, ChannelDensity, Bits;
    public byte* Schedule;
    public int ReuseCache;
    public byte* Trace, Replay;
    public IntPtr Choose, ChooseUser, Mask, MaskUser;
    public int Lossless, Lookup;
}

internal struct NativeDistribution
{
    public uint Size;
    public int Top;
    public float TopLogit, SecondLogit, Total, Moment;
    public double TopProbability, Margin, Entropy, LogSum;
}

internal unsafe struct NativeRows
{
    public uint Size;
    public UIntPtr NumLogits;
    public float* Logits;
    public UIntPtr LogitsLength;
    public float* Hidden;
    public UIntPtr HiddenLength;
}

internal unsafe struct NativeRun
{
    public uint Size;
    public int* Tokens;
    public UIntPtr NumTokens, Past;
    public byte* Action, Graph;
    public long* KvPages, Channels;
    public UIntPtr NumLogits;
}

internal unsafe struct NativeStep
{
    public uint Size;
    public byte* Action;
    public long Context;
    public double Cost, RelativeCost, AchievedBudget, RequestedBudget;
    public int Floored;
}

internal unsafe struct NativePolicyRun
{
    public uint Size;
    public byte* Graph;
    public float* Hidden;
    public UIntPtr HiddenSize;
    public float* Scalars;
    public UIntPtr NumScalars;
    public int Token, First;
    public long PreviousAction, Step;
}

internal struct NativeTuning
{
    public uint Size, CacheLevel, RowBytesAhead, Members, Copies;
}

internal struct NativeHostEngine
{
    public uint Size;
    public IntPtr User, Forward, Held;
}

internal unsafe struct NativeChoice
{
    public uint Size;
    public int Token;
    public long Step, Context;
    public UIntPtr NumActions;
    public byte** Actions;
    public double* RelativeCosts;
    public byte* Allowed;
    public double Target, Allowance, Budget, AchievedBudget;
    public float* Hidden;
    public UIntPtr HiddenSize;
    public float* Logits;
    public UIntPtr VocabSize;
    public NativeDistribution* Distribution;
}

internal unsafe struct NativeScores
{
    public uint Size;
    public double* Logprobs;
    public UIntPtr LogprobsLength;
    public float* Logits;
    public UIntPtr LogitsLength;
    public float* Hidden;
    public UIntPtr HiddenLength;
    public byte** Actions;
    public UIntPtr NumActions;
    public double* Costs;
    public byte* Schedule;
    public double AchievedBudget, RequestedBudget, ExpectedLoss;
    public int Floored;
}

internal unsafe struct NativeToken
{
    public uint Size;
    public int Token;
    public byte* Text;
    public UIntPtr TextLength;
    public byte* Action;
    public double Logprob, Cost, RelativeCost, AchievedBudget, RequestedBudget, Milliseconds;
    public int Finish;
    public int* TopTokens;
    public double* TopLogprobs;
    public UIntPtr NumTop;
}

internal unsafe struct NativeResult
{
    public uint Size;
    public int NumTokens, PromptTokens, CachedTokens;
    public byte* Schedule, CostModel;
    public double RequestedBudget, AchievedBudget, ExpectedLoss, PromptTokensPerSecond, TokensPerSecond, TimeToFirstTokenMs, FastestTokensPerSecond;
    public int Floored, FirstDifference, Finish;
    public long DraftedTokens, AcceptedTokens;
    public double AskedBudget;
    public int DensePrompt;
}

internal struct NativeGovernorSettings
{
    public uint Size;
    public double LowestBudget, HighestBudget, TokensPerSecond;
}

internal struct NativeGovernorReading
{
    public uint Size;
    public double Battery;
    public int Charging;
    public double Thermal, TokensPerSecond;
}

internal unsafe struct NativeGovernorState
{
    public uint Size;
    public double Budget;
    public fixed double Reserved[7];
}

/// <summary>The functions of sol_rt.h. Those that can fail return a <c>sol_error*</c>, which <see cref="Check"/> turns into an exception.</summary>
internal static unsafe class Native
{
    private const string Library = "sol_rt";
    private const CallingConvention C = CallingConvention.Cdecl;

#if NET8_0_OR_GREATER
    static Native() => Platform.Initialize();
#endif

#pragma warning disable IDE1006, SYSLIB1054  // the names are those of C; blittable signatures need no generated marshalling
    [DllImport("onnxruntime")] internal static extern IntPtr OrtGetApiBase();

    [DllImport(Library, CallingConvention = C)] internal static extern uint sol_interface_version();
    [DllImport(Library, CallingConvention = C)] internal static extern byte* sol_version();
    [DllImport(Library, CallingConvention = C)] private static extern int sol_error_code(IntPtr error);
    [DllImport(Library, CallingConvention = C)] private static extern byte* sol_error_message(IntPtr error);
    [DllImport(Library, CallingConvention = C)] private static extern void sol_error_release(IntPtr error);

    [DllImport(Library, CallingConvention = C)] internal static extern void sol_runtime_options_init(NativeRuntimeOptions* options, uint size);
    [DllImport(Library, CallingConvention = C)] internal static extern IntPtr sol_runtime_create(NativeRuntimeOptions* options, IntPtr* runtime);
    [DllImport(Library, CallingConvention = C)] internal static extern void sol_runtime_release(IntPtr runtime);
    [DllImport(Library, CallingConvention = C)] internal static extern byte* sol_runtime_ort_version(IntPtr runtime);

    [DllImport(Library, CallingConvention = C)] internal static extern void sol_model_options_init(NativeModelOptions* options, uint size);
    [DllImport(Library, CallingConvention = C)]
    internal static extern IntPtr sol_model_load(IntPtr runtime, byte* folder, NativeModelOptions* options, IntPtr* model);
    [DllImport(Library, CallingConvention = C)] internal static extern void sol_model_release(IntPtr model);
    [DllImport(Library, CallingConvention = C)] internal static extern IntPtr sol_model_get_info(IntPtr model, NativeModelInfo* info);
    [DllImport(Library, CallingConvention = C)] internal static extern IntPtr sol_model_get_action(IntPtr model, int index, NativeActionInfo* info);
    [DllImport(Library, CallingConvention = C)] internal static extern IntPtr sol_model_measure_costs(IntPtr model, byte* file);
    [DllImport(Library, CallingConvention = C)] internal static extern IntPtr sol_model_set_costs(IntPtr model, byte* table);
    [DllImport(Library, CallingConvention = C)]
    internal static extern IntPtr sol_model_encode(
        IntPtr model, byte* text, UIntPtr length, uint flags, int* tokens, UIntPtr capacity, UIntPtr* count);
    [DllImport(Library, CallingConvention = C)]
    internal static extern IntPtr sol_model_decode(
        IntPtr model, int* tokens, UIntPtr count, int skipSpecial, byte* text, UIntPtr capacity, UIntPtr* length);
    [DllImport(Library, CallingConvention = C)]
    internal static extern IntPtr sol_model_encode_chat(
        IntPtr model, NativeMessage* messages, UIntPtr numMessages, int* tokens, UIntPtr capacity, UIntPtr* count);

    [DllImport(Library, CallingConvention = C)] internal static extern IntPtr sol_session_create(IntPtr model, IntPtr* session);
    [DllImport(Library, CallingConvention = C)] internal static extern void sol_session_release(IntPtr session);
    [DllImport(Library, CallingConvention = C)]
    internal static extern IntPtr sol_session_tokens(IntPtr session, int* tokens, UIntPtr capacity, UIntPtr* count);
    [DllImport(Library, CallingConvention = C)] internal static extern IntPtr sol_session_rewind(IntPtr session, UIntPtr length);
    [DllImport(Library, CallingConvention = C)] internal static extern IntPtr sol_session_save(IntPtr session, byte* file);
    [DllImport(Library, CallingConvention = C)] internal static extern IntPtr sol_session_restore(IntPtr session, byte* file);
    [DllImport(Library, CallingConvention = C)] internal static extern ulong sol_session_private_bytes(IntPtr session);
    [DllImport(Library, CallingConvention = C)]
    internal static extern IntPtr sol_session_forward(
        IntPtr session, int* tokens, UIntPtr numTokens, byte* action, NativeRows* rows, NativeDistribution* seen);
    [DllImport(Library, CallingConvention = C)]
    internal static extern IntPtr sol_session_score(
        IntPtr session, int* tokens, UIntPtr numTokens, UIntPtr context, NativeGenerateOptions* options, NativeScores* scores);
    [DllImport(Library, CallingConvention = C)] internal static extern void sol_generate_options_init(NativeGenerateOptions* options, uint size);
    [DllImport(Library, CallingConvention = C)]
    internal static extern IntPtr sol_session_start(IntPtr session, int* prompt, UIntPtr numTokens, NativeGenerateOptions* options);
    [DllImport(Library, CallingConvention = C)] internal static extern IntPtr sol_session_next(IntPtr session, NativeToken* token);
    [DllImport(Library, CallingConvention = C)] internal static extern IntPtr sol_session_stop(IntPtr session);
    [DllImport(Library, CallingConvention = C)] internal static extern IntPtr sol_session_result(IntPtr session, NativeResult* result);
    [DllImport(Library, CallingConvention = C)] internal static extern void sol_session_cancel(IntPtr session);
    [DllImport(Library, CallingConvention = C)] internal static extern int sol_session_busy(IntPtr session);
    [DllImport(Library, CallingConvention = C)] internal static extern IntPtr sol_session_set_budget(IntPtr session, double budget);
    [DllImport(Library, CallingConvention = C)] internal static extern IntPtr sol_session_set_tokens_per_second(IntPtr session, double rate);

    [DllImport(Library, CallingConvention = C)] internal static extern void sol_governor_settings_init(NativeGovernorSettings* settings, uint size);
    [DllImport(Library, CallingConvention = C)] internal static extern void sol_governor_reading_init(NativeGovernorReading* reading, uint size);
    [DllImport(Library, CallingConvention = C)]
    internal static extern IntPtr sol_governor_begin(NativeGovernorSettings* settings, NativeGovernorState* state);
    [DllImport(Library, CallingConvention = C)]
    internal static extern IntPtr sol_governor_step(NativeGovernorSettings* settings, NativeGovernorReading* reading, NativeGovernorState* state);
#pragma warning restore IDE1006, SYSLIB1054

    /// <summary>Throws what the error stands for, and frees it. NULL is success.</summary>
    internal static void Check(IntPtr error)
    {
        if (error == IntPtr.Zero)
        {
            return;
        }
        var code = (SolCode)sol_error_code(error);
        var message = Text(sol_error_message(error));
        Release(error);
        throw SolException.Of(code, message);
    }

    internal delegate IntPtr Fill<T>(T* to, UIntPtr capacity, UIntPtr* count) where T : unmanaged;

    /// <summary>The core's result, asked for once more with enough room where it is longer than <paramref name="guess"/>.</summary>
    internal static T[] Filled<T>(int guess, Fill<T> fill) where T : unmanaged
    {
        var array = new T[guess];
        while (true)
        {
            UIntPtr count;
            fixed (T* to = array)
            {
                Check(fill(to, (UIntPtr)array.Length, &count));
            }
            var enough = count.ToUInt64() <= (ulong)array.Length;
            Array.Resize(ref array, checked((int)count.ToUInt64()));
            if (enough)
            {
                return array;
            }
        }
    }

    internal static void Release(IntPtr error) => sol_error_release(error);

    internal static string[] Texts(byte** texts, UIntPtr count)
    {
        var copies = new string[(int)count];
        for (var i = 0; i < copies.Length; ++i)
        {
            copies[i] = Text(texts[i]);
        }
        return copies;
    }

    internal static string Text(byte* text) => Marshal.PtrToStringUTF8((IntPtr)text) ?? "";
}
