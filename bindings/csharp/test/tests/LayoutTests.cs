using System;
using System.IO;
using System.Linq;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace SolRt.Tests;

/// <summary>The structs of Native.cs against those that the C compiler lays out.</summary>
internal static class LayoutTests
{
    public static void StructsLieAsInC()
    {
        var assembly = typeof(SolModel).Assembly;
        var size = typeof(Unsafe).GetMethod(nameof(Unsafe.SizeOf))!;
        var seen = 0;
        foreach (var line in File.ReadLines(Given.Variable("SOL_TEST_LAYOUT")))
        {
            var parts = line.Split(' ');
            var type = assembly.GetType("SolRt.Native" + Pascal(parts[0]["sol_".Length..])) ?? throw new InvalidOperationException($"no struct for {parts[0]}");
            var got = parts[1] == "-" ? (int)size.MakeGenericMethod(type).Invoke(null, null)! : (int)Marshal.OffsetOf(type, Pascal(parts[1]));
            Given.Equal(int.Parse(parts[2]), got, line);
            ++seen;
        }
        Given.True(seen > 100, "all structs of the header are there");
    }

    private static string Pascal(string name) => string.Concat(name.Split('_').Select(word => char.ToUpperInvariant(word[0]) + word[1..]));
}
