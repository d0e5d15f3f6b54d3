using System;
using System.Collections.Generic;
using System.Runtime.CompilerServices;
using System.Threading;
using System.Threading.Tasks;

namespace SolRt;

/// <summary>
/// One KV cache, one conversation, one generation at a time. <see cref="SetBudget"/>, <see cref="SetTokensPerSecond"/>, <see cref="Cancel"/> and
/// <see cref="Dispose"/> may be used from any thread at any time; everything else by one thread at a time, and a second one gets
/// <see cref="SolBusyException"/>. Sessions of one model run at the same time.
/// </summary>
public sealed class SolSession : IDisposable
{
    private readonly NativeHandle _handle;
    private readonly int _vocabSize, _hiddenSize;
    private readonly object _gate = new();  // guards the fields below
    private bool _active;      // an enumeration of GenerateAsync is under way
    private bool _calling;     // a call for the next token is under way
    private bool _cancelled;   // the generation is to end
    private bool _cancelSent;  // the core got the request, and no call has ended for it yet
    private bool _disposed;
    private SolSchedule? _choose;  // of the running generation; of whoever runs it

    internal SolSession(SolModel model, NativeHandle handle, int vocabSize, int hiddenSize)
    {
        Model = model;
        _handle = handle;
        (_vocabSize, _hiddenSize) = (vocabSize, hiddenSize);
    }

    /// <summary>The model that the session was opened on.</summary>
    public SolModel Model { get; }

    /// <summary>Moves a running generation from its next decode step on, in place of what it held.</summary>
    /// <param name="budget">Share of the dense cost, 0 to 1.</param>
    /// <exception cref="SolUsageException">Not from 0 to 1; no generation is running; or it has targets on the axes, one action only, or a replay.</exception>
    public void SetBudget(double budget)
    {
        using var session = Borrow();
        Native.Check(Native.sol_session_set_budget(session.Value, budget));
    }

    /// <summary>As <see cref="SetBudget"/>, with a rate that needs measured costs.</summary>
    /// <param name="rate">Tokens per second.</param>
    public void SetTokensPerSecond(double rate)
    {
        using var session = Borrow();
        Native.Check(Native.sol_session_set_tokens_per_second(session.Value, rate));
    }

    /// <summary>Generates from a text: <see cref="GenerateAsync(IReadOnlyList{int}, SolGenerateOptions?, CancellationToken)"/>.</summary>
    public IAsyncEnumerable<SolToken> GenerateAsync(
        string prompt, SolGenerateOptions? options = null, CancellationToken cancellationToken = default) =>
        GenerateAsync(Model.Encode(prompt), options, cancellationToken);

    /// <summary>Generates the assistant's answer: <see cref="GenerateAsync(IReadOnlyList{int}, SolGenerateOptions?, CancellationToken)"/>.</summary>
    public IAsyncEnumerable<SolToken> ChatAsync(
        IEnumerable<SolMessage> messages, SolGenerateOptions? options = null, CancellationToken cancellationToken = default) =>
        GenerateAsync(Model.EncodeChat(messages), options, cancellationToken);

    /// <summary>
    /// Generates tokens, each when it is asked for, on a thread of the pool. Leaving the loop ends the generation, and <see cref="Rewind"/>,
    /// <see cref="Save"/> and <see cref="Restore"/> in it end generation and loop; the cache keeps what was run.
    /// </summary>
    /// <param name="prompt">Token ids.</param>
    /// <param name="options">Null for the defaults.</param>
    /// <param name="cancellationToken">Ends a running step within that step, or within one chunk of the prompt.</param>
    /// <exception cref="SolUsageException">The options are wrong or contradict each other.</exception>
    /// <exception cref="SolContextException">The prompt does not fit the context.</exception>
    /// <exception cref="SolBusyException">Another generation or call is under way in this session.</exception>
    /// <exception cref="OperationCanceledException">The generation was cancelled.</exception>
    /// <exception cref="ObjectDisposedException">The session was disposed, before or meanwhile.</exception>
    public async IAsyncEnumerable<SolToken> GenerateAsync(
        IReadOnlyList<int> prompt, SolGenerateOptions? options = null, [EnumeratorCancellation] CancellationToken cancellationToken = default)
    {
        _ = prompt ?? throw new ArgumentNullException(nameof(prompt));
        cancellationToken.ThrowIfCancellationRequested();
        Begin(prompt, options ?? new SolGenerateOptions());
        var failed = true;
        var registration = cancellationToken.Register(static session => ((SolSession)session!).Cancel(), this);
        try
        {
            SolToken? token;
            do
            {
                token = await Task.Run(() => Next(cancellationToken), CancellationToken.None).ConfigureAwait(false);
                failed = false;
                if (token is null)
                {
                    break;
                }
                yield return token;
                failed = token.Finish == SolFinish.None;
            }
            while (token.Finish == SolFinish.None);
        }
        finally
        {
            await registration.DisposeAsync().ConfigureAwait(false);
            End(failed);
        }
    }

    /// <summary>Ends the running generation, whose enumeration throws <see cref="OperationCanceledException"/>; does nothing without one.</summary>
    public void Cancel()
    {
        lock (_gate)
        {
            _cancelled = _active;
            if (!_disposed)
            {
                SendCancel();
            }
        }
    }

    /// <summary>Result of the running or last generation so far.</summary>
    public unsafe SolResult Result
    {
        get
        {
            using var session = Borrow();
            NativeResult result = default;
            result.Size = (uint)sizeof(NativeResult);
            Native.Check(Native.sol_session_result(session.Value, &result));
            return SolResult.Of(result);
        }
    }

    /// <summary>The tokens in the KV cache.</summary>
    public unsafe int[] Tokens
    {
        get
        {
            using var session = Borrow();
            var handle = session.Value;
            return Native.Filled<int>(1024, (to, capacity, count) => Native.sol_session_tokens(handle, to, capacity, count));
        }
    }

    /// <summary>Bytes of memory that only this session uses: KV cache and buffers.</summary>
    public ulong PrivateBytes
    {
        get
        {
            using var session = Borrow();
            return Native.sol_session_private_bytes(session.Value);
        }
    }

    /// <summary>Appends tokens to the cache. One token is a decode step; several run as a prompt does. Ends a running generation.</summary>
    /// <param name="tokens">Token ids.</param>
    /// <param name="action">Tag of the action; null for the dense one.</param>
    public unsafe SolOutput Forward(IReadOnlyList<int> tokens, string? action = null)
    {
        _ = tokens ?? throw new ArgumentNullException(nameof(tokens));
        using var session = Borrow();
        using var memory = new NativeMemory();
        var made = new SolOutput(new float[_vocabSize], new float[_hiddenSize]);
        fixed (float* logits = made.Logits, hidden = made.Hidden)
        {
            var rows = new NativeRows
            {
                Size = (uint)sizeof(NativeRows), NumLogits = (UIntPtr)1, Logits = logits, LogitsLength = (UIntPtr)_vocabSize, Hidden = hidden,
                HiddenLength = (UIntPtr)_hiddenSize,
            };
            Native.Check(Native.sol_session_forward(
                session.Value, memory.Array(tokens), (UIntPtr)tokens.Count, memory.Text(action, nameof(action)), &rows, null));
        }
        return made;
    }

    /// <summary>
    /// Runs the first tokens as a prompt on an empty cache, then scores each later token and processes it as a decode step. Ends a running generation.
    /// </summary>
    /// <param name="tokens">Token ids.</param>
    /// <param name="context">How many of them are the prompt.</param>
    /// <param name="options">The dial, the schedule and the seed count; without a dial it is a budget of 1.</param>
    public unsafe SolScores Score(IReadOnlyList<int> tokens, int context, SolGenerateOptions? options = null)
    {
        _ = tokens ?? throw new ArgumentNullException(nameof(tokens));
        options ??= new SolGenerateOptions();
        using var session = Borrow();
        using var memory = new NativeMemory();
        NativeGenerateOptions native;
        options.Fill(&native, memory);
        var logprobs = new double[Math.Max(tokens.Count - context, 0)];
        NativeScores scores = default;
        scores.Size = (uint)sizeof(NativeScores);
        fixed (double* room = logprobs)
        {
            scores.Logprobs = room;
            scores.LogprobsLength = (UIntPtr)logprobs.Length;
            Asked.Schedule = options.Choose;
            Native.Check(Asked.OrThrown(Native.sol_session_score(
                session.Value, memory.Array(tokens), (UIntPtr)tokens.Count, Length(context), &native, &scores)));
        }
        return SolScores.Of(logprobs, scores);
    }

    /// <summary>Keeps the first tokens of the cache. Ends a running generation.</summary>
    /// <param name="length">How many to keep.</param>
    public void Rewind(int length)
    {
        using var session = Borrow();
        Native.Check(Native.sol_session_rewind(session.Value, Length(length)));
    }

    /// <summary>Writes tokens and cache to a file, as a whole or not at all. Ends a running generation.</summary>
    /// <exception cref="SolWriteException">The file cannot be written.</exception>
    public unsafe void Save(string file)
    {
        using var session = Borrow();
        using var memory = new NativeMemory();
        Native.Check(Native.sol_session_save(session.Value, memory.Text(file, nameof(file))));
    }

    /// <summary>Reads what <see cref="Save"/> wrote, for the same bundle on any machine. Ends a running generation.</summary>
    /// <exception cref="SolBundleException">The file is missing, or it is damaged or another bundle's; the cache is then empty.</exception>
    public unsafe void Restore(string file)
    {
        using var session = Borrow();
        using var memory = new NativeMemory();
        Native.Check(Native.sol_session_restore(session.Value, memory.Text(file, nameof(file))));
    }

    /// <summary>Ends a running generation, whose enumeration throws <see cref="ObjectDisposedException"/>, and frees the cache when no call uses it.</summary>
    public void Dispose()
    {
        lock (_gate)
        {
            if (_disposed)
            {
                return;
            }
            _disposed = true;
            SendCancel();
        }
        _handle.Dispose();
    }

    // A negative length becomes one that is too long, which the core refuses.
    private static UIntPtr Length(int length) => length >= 0 ? (UIntPtr)(uint)length : UIntPtr.Zero - 1;

    private NativeHandle.Use Borrow() => _handle.Borrow(nameof(SolSession));

    // Under the gate. Sends the request only while a call runs: a request without one would end the call after it, whichever that is.
    private void SendCancel()
    {
        if (_calling && !_cancelSent)
        {
            using var session = Borrow();
            Native.sol_session_cancel(session.Value);
            _cancelSent = true;
        }
    }

    private unsafe void Begin(IReadOnlyList<int> prompt, SolGenerateOptions options)
    {
        using var session = Borrow();
        using var memory = new NativeMemory();
        lock (_gate)
        {
            if (_active)
            {
                throw new SolBusyException("session: a generation is under way; end its enumeration first, or open another session");
            }
            _active = true;
            _cancelled = false;
        }
        var begun = false;
        try
        {
            NativeGenerateOptions native;
            options.Fill(&native, memory);
            Native.Check(Native.sol_session_start(session.Value, memory.Array(prompt), (UIntPtr)prompt.Count, &native));
            begun = true;
            _choose = options.Choose;
        }
        finally
        {
            lock (_gate)
            {
                _active = begun;
            }
        }
    }

    // Null where the generation is over, because the loop called Rewind, Save or Restore.
    private unsafe SolToken? Next(CancellationToken cancellationToken)
    {
        using var session = Borrow();
        NativeToken token = default;
        token.Size = (uint)sizeof(NativeToken);
        lock (_gate)
        {
            if (_disposed)
            {
                throw new ObjectDisposedException(nameof(SolSession));
            }
            if (_cancelled)
            {
                throw new OperationCanceledException(cancellationToken);
            }
            _calling = true;
        }
        try
        {
            if (Native.sol_session_busy(session.Value) == 0)
            {
                return null;
            }
            Asked.Schedule = _choose;
            Native.Check(Asked.OrThrown(Native.sol_session_next(session.Value, &token)));
            return SolToken.Of(token);
        }
        catch (OperationCanceledException) when (Ended())
        {
            throw new ObjectDisposedException(nameof(SolSession));
        }
        catch (OperationCanceledException cancelled)
        {
            throw new OperationCanceledException(cancelled.Message, cancellationToken);
        }
        finally
        {
            lock (_gate)
            {
                _calling = false;
            }
        }

        bool Ended()
        {
            lock (_gate)
            {
                _cancelSent = false;
                return _disposed;
            }
        }
    }

    // Also takes up a cancellation that came when the last call was about to return, so that it does not end another call.
    private void End(bool failed)
    {
        bool disposed, pending;
        lock (_gate)
        {
            (disposed, pending) = (_disposed, _cancelSent);
            _active = _cancelSent = false;
        }
        if (disposed)
        {
            return;
        }
        try
        {
            using var session = Borrow();
            Native.Check(Native.sol_session_stop(session.Value));
        }
        catch (OperationCanceledException) when (pending)
        {
        }
        catch (Exception error) when (failed && error is SolException or ObjectDisposedException)
        {
            // What ended the generation is on its way to the caller.
        }
    }
}
