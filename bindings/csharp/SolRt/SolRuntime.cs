using System;
using System.Runtime.InteropServices;

namespace SolRt;

/// <summary>Options of ONNX Runtime: where it is and how it runs.</summary>
public sealed class SolRuntimeOptions
{
    /// <summary>
    /// Path or name of ONNX Runtime's library. Null: the library named <c>onnxruntime</c> that .NET finds for the app, which is the one that the
    /// package Microsoft.ML.OnnxRuntime ships, and if there is none, the system's.
    /// </summary>
    public string? OnnxRuntimePath { get; set; }

    /// <summary>The <c>const OrtApiBase*</c> of an ONNX Runtime that the process has loaded already; takes the place of a path.</summary>
    public IntPtr OrtApiBase { get; set; }

    /// <summary>Threads of ONNX Runtime's process-wide pool; 0 for as many as help.</summary>
    public int Threads { get; set; }

    /// <summary>True: the core's own operators run. Without them ONNX Runtime runs the function bodies in the graphs, which is slower.</summary>
    public bool NativeOperators { get; set; } = true;

    /// <summary>True: waiting threads spin, as is ONNX Runtime's default. Sleeping threads save battery and cost speed.</summary>
    public bool Spin { get; set; } = true;
}

/// <summary>
/// ONNX Runtime as the host has it, shared by the models that are loaded with it. Any number of threads may use one at once. Models keep what they need
/// of it, so it may be disposed before them.
/// </summary>
public sealed class SolRuntime : IDisposable
{
    internal const uint InterfaceVersion = 1;

    internal NativeHandle Handle { get; }

    /// <summary>Opens ONNX Runtime.</summary>
    /// <exception cref="SolRuntimeException">ONNX Runtime or the core's library is missing or too old.</exception>
    public unsafe SolRuntime(SolRuntimeOptions? options = null)
    {
        options ??= new SolRuntimeOptions();
        using var memory = new NativeMemory();
        NativeRuntimeOptions native = default;
        IntPtr runtime;
        var searched = false;
        try
        {
            if (Native.sol_interface_version() < InterfaceVersion)
            {
                throw new SolRuntimeException(
                    $"sol_rt: got a library of interface version {Native.sol_interface_version()}, expected {InterfaceVersion} or newer; update the library");
            }
            Native.sol_runtime_options_init(&native, (uint)sizeof(NativeRuntimeOptions));
            native.OrtLibrary = memory.Text(options.OnnxRuntimePath, "OnnxRuntimePath");
            native.OrtApiBase = options.OrtApiBase != IntPtr.Zero || options.OnnxRuntimePath is not null ? options.OrtApiBase : HostApiBase();
            native.Threads = options.Threads;
            native.NativeOperators = options.NativeOperators ? 1 : 0;
            native.Spin = options.Spin ? 1 : 0;
            searched = native.OrtApiBase == IntPtr.Zero && native.OrtLibrary is null;
            Native.Check(Native.sol_runtime_create(&native, &runtime));
        }
        catch (SolRuntimeException error) when (searched)
        {
            throw new SolRuntimeException($"{error.Message}; a .NET app gets it with the package Microsoft.ML.OnnxRuntime");
        }
        catch (Exception error) when (error is DllNotFoundException or BadImageFormatException or EntryPointNotFoundException)
        {
            throw new SolRuntimeException($"sol_rt: {error.Message.Split('\n')[0].Trim()}; ship the package's runtimes folder with the app");
        }
        Handle = new NativeHandle(runtime, &Native.sol_runtime_release);
    }

    /// <summary>ONNX Runtime's version, as <c>1.23.0</c>.</summary>
    public unsafe string OnnxRuntimeVersion
    {
        get
        {
            using var use = Handle.Borrow(nameof(SolRuntime));
            return Native.Text(Native.sol_runtime_ort_version(use.Value));
        }
    }

    /// <summary>The core's release, as <c>0.1.0</c>.</summary>
    public static unsafe string Version => Native.Text(Native.sol_version());

    /// <inheritdoc/>
    public void Dispose() => Handle.Dispose();

    // The same name, found the same way, as in Microsoft.ML.OnnxRuntime. Zero leaves the search to the core.
    private static IntPtr HostApiBase()
    {
        try
        {
            return Native.OrtGetApiBase();
        }
        catch (Exception error) when (error is DllNotFoundException or BadImageFormatException or EntryPointNotFoundException)
        {
            return IntPtr.Zero;
        }
    }
}
