using System;
using System.Runtime.CompilerServices;
using System.Runtime.ExceptionServices;
using System.Runtime.InteropServices;

namespace SolRt;

/// <summary>
/// A schedule of the app's: picks the action of each decode step, an index of <see cref="SolChoice.Actions"/>, allowed or not. Called on the thread that
/// computes the step; it may use what only reads of the session. What it throws ends the generation and arrives at the caller.
/// </summary>
/// <param name="choice">Facts about the step, valid during the call.</param>
public delegate int SolSchedule(SolChoice choice);

/// <summary>Facts that a schedule gets before a decode step.</summary>
public readonly unsafe ref struct SolChoice
{
    private readonly NativeChoice* _native;

    internal SolChoice(NativeChoice* native) => _native = native;

    /// <summary>The token that the step is to process.</summary>
    public int Token => _native->Token;

    /// <summary>Decode steps before this one.</summary>
    public long Step => _native->Step;

    /// <summary>Tokens in the cache.</summary>
    public long Context => _native->Context;

    /// <summary>Tags of the actions, in an array of its own.</summary>
    public string[] Actions => Native.Texts(_native->Actions, _native->NumActions);

    /// <summary>Cost of each action at this context, in dense steps.</summary>
    public ReadOnlySpan<double> RelativeCosts => new(_native->RelativeCosts, (int)_native->NumActions);

    /// <summary>Marks actions that keep what was asked for; if none does, those that miss it least.</summary>
    public ReadOnlySpan<bool> Allowed => new(_native->Allowed, (int)_native->NumActions);

    /// <summary>Cost to aim for, in dense steps: makes up for earlier steps.</summary>
    public double Target => _native->Target;

    /// <summary>Cost that a step may have on average, in dense steps.</summary>
    public double Allowance => _native->Allowance;

    /// <summary>The budget that is held; NaN under a rate and targets on the axes.</summary>
    public double Budget => _native->Budget;

    /// <summary>Cost of the steps so far over their dense cost.</summary>
    public double AchievedBudget => _native->AchievedBudget;

    /// <summary>Output of the final norm in the step before.</summary>
    public ReadOnlySpan<float> Hidden => new(_native->Hidden, (int)_native->HiddenSize);

    /// <summary>Logits from which <see cref="Token"/> was picked.</summary>
    public ReadOnlySpan<float> Logits => new(_native->Logits, (int)_native->VocabSize);

    /// <summary>Probability of the likeliest token.</summary>
    public double TopProbability => _native->Distribution->TopProbability;

    /// <summary>That probability minus the one of the second likeliest token.</summary>
    public double Margin => _native->Distribution->Margin;

    /// <summary>Nats.</summary>
    public double Entropy => _native->Distribution->Entropy;
}

/// <summary>The schedule of the call that this thread makes, and what the schedule threw.</summary>
internal static unsafe class Asked
{
    [ThreadStatic] private static SolSchedule? s_schedule;
    [ThreadStatic] private static ExceptionDispatchInfo? s_thrown;

    internal static SolSchedule? Schedule { set => s_schedule = value; }

    /// <summary>The core's error, in whose place an exception of the schedule is thrown.</summary>
    internal static IntPtr OrThrown(IntPtr error)
    {
        var thrown = s_thrown;
        (s_schedule, s_thrown) = (null, null);
        if (thrown is not null)
        {
            Native.Release(error);
            thrown.Throw();
        }
        return error;
    }

    private static int Call(IntPtr user, NativeChoice* choice)
    {
        var schedule = s_schedule;  // which may call another session, with a schedule of its own
        try
        {
            return schedule!(new SolChoice(choice));
        }
#pragma warning disable CA1031  // every exception is the host's
        catch (Exception thrown)
#pragma warning restore CA1031
        {
            s_thrown = ExceptionDispatchInfo.Capture(thrown);
            return -1;
        }
        finally
        {
            s_schedule = schedule;
        }
    }

#if NET8_0_OR_GREATER
    internal static IntPtr Callback => (IntPtr)(delegate* unmanaged[Cdecl]<IntPtr, NativeChoice*, int>)&NativeCall;

    [UnmanagedCallersOnly(CallConvs = new[] { typeof(CallConvCdecl) })]
    private static int NativeCall(IntPtr user, NativeChoice* choice) => Call(user, choice);
#else
    [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
    private delegate int NativeCall(IntPtr user, NativeChoice* choice);

    private static readonly NativeCall s_call = Call;

    internal static IntPtr Callback { get; } = Marshal.GetFunctionPointerForDelegate(s_call);
#endif
}
