using System;
using System.Collections.Generic;
using System.Runtime.CompilerServices;
using System.Runtime.ExceptionServices;
using System.Runtime.InteropServices;
using System.Text;
using System.Threading;
using System.Threading.Tasks;

namespace SolRt;

/// <summary>Hashes that are compared when a bundle is loaded.</summary>
public enum SolVerify
{
    /// <summary>None.</summary>
    None = 0,
    /// <summary>The hashes of every file but the weights.</summary>
    Small = 1,
    /// <summary>All: about a second for each gigabyte of weights.</summary>
    All = 2,
}

/// <summary>Costs that a budget is a share of.</summary>
public enum SolCosts
{
    /// <summary>As the environment's <c>SOL_RT_COSTS</c> says; measured where it says nothing.</summary>
    Default = 0,
    /// <summary>Bytes that a step reads.</summary>
    Bytes = 1,
    /// <summary>Milliseconds where <c>sol-rt profile</c> measured the bundle on this device, else bytes.</summary>
    Profiled = 2,
    /// <summary>Milliseconds. The first load of a bundle measures them, in 2 to 6 s, and keeps them.</summary>
    Measured = 3,
}

/// <summary>Options of loading a bundle.</summary>
public sealed class SolModelOptions
{
    /// <summary>The runtime to load into. Null: one of the model's own, with default options.</summary>
    public SolRuntime? Runtime { get; set; }

    /// <summary>Hashes that are compared.</summary>
    public SolVerify Verify { get; set; } = SolVerify.Small;

    /// <summary>A cap in tokens below the model's own context; 0 for none.</summary>
    public int MaxContext { get; set; }

    /// <summary>A file that <c>sol-rt profile</c> or <see cref="SolModel.MeasureCosts"/> wrote on this device. Null: as <see cref="Costs"/> says.</summary>
    public string? CostTable { get; set; }

    /// <summary>Costs that a budget is a share of.</summary>
    public SolCosts Costs { get; set; }

    /// <summary>Folder in which measured costs are kept; null for one of the user's. An Android app names one of its own.</summary>
    public string? CostsFolder { get; set; }

    /// <summary>Key of the variant that runs prompts, as <c>s100-q4</c>; null: the dial chooses.</summary>
    public string? Prefill { get; set; }

    /// <summary>
    /// Called on the loading thread with what is being done, how much of it is done, and how much there is; with <see cref="SolVerify.All"/> every few
    /// megabytes. What it throws ends the loading and arrives at the caller.
    /// </summary>
    public Action<string, ulong, ulong>? OnProgress { get; set; }
}

/// <summary>Contents of a bundle.</summary>
/// <param name="Name">The model's name.</param>
/// <param name="Generator">The exporter, as <c>sol_rt 0.1.0</c>.</param>
/// <param name="Identity">SHA-256 of sol_config.json in hexadecimal digits, which identifies the whole bundle.</param>
/// <param name="VocabSize">Number of token ids.</param>
/// <param name="HiddenSize">Width of the hidden state.</param>
/// <param name="NumLayers">Number of layers.</param>
/// <param name="MaxContext">Tokens that a session holds at most.</param>
/// <param name="HasPolicy">Whether the bundle has a policy.</param>
/// <param name="HasLosses">Whether the losses of actions were measured: <c>hull</c> and <c>MaxLoss</c> need them.</param>
/// <param name="HasTokenizer">Whether the core reads the bundle's tokenizer.</param>
/// <param name="HasChat">Whether the core can render a conversation.</param>
/// <param name="Native">Whether the core's own operators run.</param>
/// <param name="DefaultSchedule">Of runs that ask for nothing: <c>sol</c>, <c>hull</c> or <c>uniform</c>.</param>
/// <param name="CostModel"><c>bytes</c> or <c>measured</c>.</param>
/// <param name="Dense">Tag of the dense action.</param>
/// <param name="MappedBytes">Size of the weights file: shared memory, which the system may drop.</param>
public sealed record SolModelInfo(
    string Name, string Generator, string Identity, int VocabSize, int HiddenSize, int NumLayers, int MaxContext, bool HasPolicy, bool HasLosses,
    bool HasTokenizer, bool HasChat, bool Native, string DefaultSchedule, string CostModel, string Dense, ulong MappedBytes);

/// <summary>One action of a model.</summary>
/// <param name="Tag">As <c>k030-s050-q4</c>.</param>
/// <param name="RelativeCost">Cost at a context of 512 tokens, in dense steps.</param>
/// <param name="Loss">Nats per token over dense; NaN if it was not measured.</param>
public sealed record SolActionInfo(string Tag, double RelativeCost, double Loss);

/// <summary>One message of a conversation. Special tokens in its content stay text.</summary>
/// <param name="Role"><c>system</c>, <c>user</c> or <c>assistant</c>.</param>
/// <param name="Content">Its text.</param>
public sealed record SolMessage(string Role, string Content);

/// <summary>
/// A loaded bundle. Any number of threads may use one at once. Its weights are mapped once and shared by its sessions, which keep what they need of it,
/// so it may be disposed before them; they then take token ids alone.
/// </summary>
public sealed class SolModel : IDisposable
{
    private readonly NativeHandle _handle;

    private SolModel(NativeHandle handle) => _handle = handle;

    /// <summary>Loads a bundle, with the checks of <see cref="SolModelOptions.Verify"/>.</summary>
    /// <param name="folder">The bundle: the folder that <c>sol-rt export</c> wrote.</param>
    /// <param name="options">Null for the defaults.</param>
    /// <param name="cancellationToken">Ends the loading where it would report progress, at the latest when it is done.</param>
    /// <exception cref="SolBundleException">The bundle is missing, damaged, or of another version.</exception>
    /// <exception cref="SolRuntimeException">ONNX Runtime or the core's library is missing or too old.</exception>
    /// <exception cref="OperationCanceledException">The loading was cancelled.</exception>
    public static unsafe SolModel Load(string folder, SolModelOptions? options = null, CancellationToken cancellationToken = default)
    {
        _ = folder ?? throw new ArgumentNullException(nameof(folder));
        options ??= new SolModelOptions();
        using var own = options.Runtime is null ? new SolRuntime() : null;
        using var runtime = (options.Runtime ?? own)!.Handle.Borrow(nameof(SolRuntime));
        using var memory = new NativeMemory();
        var progress = new Progress(options.OnProgress, cancellationToken);
        var user = GCHandle.Alloc(progress);
        try
        {
            NativeModelOptions native = default;
            Native.sol_model_options_init(&native, (uint)sizeof(NativeModelOptions));
            native.Verify = (int)options.Verify;
            native.MaxContext = options.MaxContext;
            native.CostTable = memory.Text(options.CostTable, "CostTable");
            native.Prefill = memory.Text(options.Prefill, "Prefill");
            native.Costs = (int)options.Costs;
            native.CostsFolder = memory.Text(options.CostsFolder, "CostsFolder");
            native.Progress = Progress.Callback;
            native.User = GCHandle.ToIntPtr(user);
            IntPtr model;
            var error = Native.sol_model_load(runtime.Value, memory.Text(folder, "folder"), &native, &model);
            if (error != IntPtr.Zero && progress.Thrown is not null)
            {
                Native.Release(error);
                progress.Thrown.Throw();
            }
            Native.Check(error);
            var loaded = new NativeHandle(model, &Native.sol_model_release);
            if (cancellationToken.IsCancellationRequested)
            {
                loaded.Dispose();
                throw new OperationCanceledException(cancellationToken);
            }
            return new SolModel(loaded);
        }
        finally
        {
            user.Free();
        }
    }

    /// <summary>Loads a bundle on a thread of the pool: <see cref="Load"/>.</summary>
    public static Task<SolModel> LoadAsync(string folder, SolModelOptions? options = null, CancellationToken cancellationToken = default) =>
        Task.Run(() => Load(folder, options, cancellationToken), cancellationToken);

    /// <summary>Contents of the bundle.</summary>
    public unsafe SolModelInfo Info
    {
        get
        {
            using var model = Borrow();
            var info = ReadInfo(model.Value);
            return new SolModelInfo(
                Native.Text(info.Name), Native.Text(info.Generator), Native.Text(info.Identity), info.VocabSize, info.HiddenSize, info.NumLayers,
                info.MaxContext, info.HasPolicy != 0, info.HasLosses != 0, info.HasTokenizer != 0, info.HasChat != 0, info.Native != 0,
                Native.Text(info.DefaultSchedule), Native.Text(info.CostModel), Native.Text(info.Dense), info.MappedBytes);
        }
    }

    /// <summary>The model's actions.</summary>
    public unsafe IReadOnlyList<SolActionInfo> Actions
    {
        get
        {
            using var model = Borrow();
            var actions = new SolActionInfo[ReadInfo(model.Value).NumActions];
            for (var i = 0; i < actions.Length; ++i)
            {
                NativeActionInfo action = default;
                action.Size = (uint)sizeof(NativeActionInfo);
                Native.Check(Native.sol_model_get_action(model.Value, i, &action));
                actions[i] = new SolActionInfo(Native.Text(action.Tag), action.RelativeCost, action.Loss);
            }
            return actions;
        }
    }

    /// <summary>Opens a session: one KV cache, one conversation.</summary>
    public unsafe SolSession CreateSession()
    {
        using var model = Borrow();
        IntPtr session;
        Native.Check(Native.sol_session_create(model.Value, &session));
        var info = ReadInfo(model.Value);
        return new SolSession(this, new NativeHandle(session, &Native.sol_session_release), info.VocabSize, info.HiddenSize);
    }

    /// <summary>Tries settings of the operators, which then hold for the process, and times every action, for about four seconds.
    /// Uses the result as costs from the next generation on.</summary>
    /// <param name="file">Where to write the result; null writes nothing.</param>
    /// <exception cref="SolWriteException">The file cannot be written.</exception>
    public unsafe void MeasureCosts(string? file = null)
    {
        using var model = Borrow();
        using var memory = new NativeMemory();
        Native.Check(Native.sol_model_measure_costs(model.Value, memory.Text(file, "file")));
    }

    /// <summary>Takes costs from the text of a cost table, which may be the app's own, from the next generation on.</summary>
    /// <param name="table">The text; null goes back to bytes.</param>
    /// <exception cref="SolBundleException">The text is no table of this bundle.</exception>
    public unsafe void SetCosts(string? table)
    {
        using var model = Borrow();
        using var memory = new NativeMemory();
        Native.Check(Native.sol_model_set_costs(model.Value, memory.Text(table, "table")));
    }

    /// <summary>Token ids of a text.</summary>
    /// <param name="text">The text. A lone surrogate in it counts as U+FFFD.</param>
    /// <param name="addSpecial">Whether to add what the model wants around a text, such as a token for its beginning.</param>
    /// <param name="parseSpecial">Whether special tokens written in the text become those tokens.</param>
    /// <exception cref="SolTextException">The bundle has no tokenizer that the core reads.</exception>
    public unsafe int[] Encode(string text, bool addSpecial = true, bool parseSpecial = false)
    {
        var bytes = Encoding.UTF8.GetBytes(text ?? throw new ArgumentNullException(nameof(text)));
        var flags = (addSpecial ? 1u : 0u) | (parseSpecial ? 2u : 0u);
        using var model = Borrow();
        var handle = model.Value;
        fixed (byte* pinned = bytes.Length == 0 ? new byte[1] : bytes)
        {
            var from = pinned;
            return Native.Filled<int>((bytes.Length / 2) + 16, (to, capacity, count) =>
                Native.sol_model_encode(handle, from, (UIntPtr)bytes.Length, flags, to, capacity, count));
        }
    }

    /// <summary>Token ids of a conversation, with the beginning of the assistant's answer.</summary>
    /// <exception cref="SolTextException">The core cannot render this bundle's conversations: render the template and call <see cref="Encode"/>.</exception>
    public unsafe int[] EncodeChat(IEnumerable<SolMessage> messages)
    {
        var list = new List<SolMessage>(messages ?? throw new ArgumentNullException(nameof(messages)));
        using var model = Borrow();
        using var memory = new NativeMemory();
        var native = memory.Array<NativeMessage>(list.Count);
        for (var i = 0; i < list.Count; ++i)
        {
            native[i].Role = memory.Text(list[i].Role, $"messages[{i}].Role");
            native[i].Content = memory.Text(list[i].Content, $"messages[{i}].Content");
        }
        var handle = model.Value;
        return Native.Filled<int>(512, (to, capacity, count) =>
            Native.sol_model_encode_chat(handle, native, (UIntPtr)list.Count, to, capacity, count));
    }

    /// <summary>The text of tokens.</summary>
    /// <param name="tokens">Token ids.</param>
    /// <param name="skipSpecial">Whether to leave out special tokens.</param>
    public unsafe string Decode(ReadOnlySpan<int> tokens, bool skipSpecial = true)
    {
        using var model = Borrow();
        var handle = model.Value;
        var number = (UIntPtr)tokens.Length;
        fixed (int* pinned = tokens)
        {
            var from = pinned;
            return Encoding.UTF8.GetString(Native.Filled<byte>((tokens.Length * 8) + 64, (to, capacity, length) =>
                Native.sol_model_decode(handle, from, number, skipSpecial ? 1 : 0, to, capacity, length)));
        }
    }

    /// <inheritdoc/>
    public void Dispose() => _handle.Dispose();

    private NativeHandle.Use Borrow() => _handle.Borrow(nameof(SolModel));

    private static unsafe NativeModelInfo ReadInfo(IntPtr model)
    {
        NativeModelInfo info = default;
        info.Size = (uint)sizeof(NativeModelInfo);
        Native.Check(Native.sol_model_get_info(model, &info));
        return info;
    }

    private sealed unsafe class Progress
    {
        private readonly Action<string, ulong, ulong>? _host;
        private readonly CancellationToken _cancellation;

        internal Progress(Action<string, ulong, ulong>? host, CancellationToken cancellation)
        {
            _host = host;
            _cancellation = cancellation;
        }

        internal ExceptionDispatchInfo? Thrown { get; private set; }

        // No exception may pass the core's frames: it is kept, and thrown when the core has returned.
        private static int Call(IntPtr user, byte* what, ulong done, ulong total)
        {
            var progress = (Progress)GCHandle.FromIntPtr(user).Target!;
            try
            {
                progress._cancellation.ThrowIfCancellationRequested();
                progress._host?.Invoke(Native.Text(what), done, total);
                return 0;
            }
#pragma warning disable CA1031  // every exception is the host's
            catch (Exception thrown)
#pragma warning restore CA1031
            {
                progress.Thrown = ExceptionDispatchInfo.Capture(thrown);
                return 1;
            }
        }

#if NET8_0_OR_GREATER
        internal static IntPtr Callback => (IntPtr)(delegate* unmanaged[Cdecl]<IntPtr, byte*, ulong, ulong, int>)&NativeCall;

        [UnmanagedCallersOnly(CallConvs = new[] { typeof(CallConvCdecl) })]
        private static int NativeCall(IntPtr user, byte* what, ulong done, ulong total) => Call(user, what, done, total);
#else
        [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
        private delegate int NativeCall(IntPtr user, byte* what, ulong done, ulong total);

        private static readonly NativeCall s_call = Call;

        internal static IntPtr Callback { get; } = Marshal.GetFunctionPointerForDelegate(s_call);
#endif
    }
}
