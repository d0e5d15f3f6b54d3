// Differences between the targets: where .NET finds the libraries on iOS, and names that netstandard2.1 lacks.
#if NET8_0_OR_GREATER
using System;
using System.Reflection;
using System.Runtime.InteropServices;

[assembly: System.Runtime.CompilerServices.DisableRuntimeMarshalling]

namespace SolRt;

internal static class Platform
{
    // On iOS both libraries are linked into the app, or lie in a framework of their own.
    internal static void Initialize()
    {
        if (OperatingSystem.IsIOS())
        {
            NativeLibrary.SetDllImportResolver(typeof(Platform).Assembly, Resolve);
        }
    }

    private static IntPtr Resolve(string name, Assembly assembly, DllImportSearchPath? path)
    {
        var program = NativeLibrary.GetMainProgramHandle();
        if (NativeLibrary.TryGetExport(program, name == "sol_rt" ? "sol_version" : "OrtGetApiBase", out _))
        {
            return program;
        }
        return NativeLibrary.TryLoad($"@rpath/{name}.framework/{name}", out var framework) ? framework : IntPtr.Zero;
    }
}
#else
namespace System.Runtime.CompilerServices
{
    /// <summary>Type that the compiler asks for in setters of records.</summary>
    internal static class IsExternalInit
    {
    }
}
#endif
