// Runs the tests whose names are given, or all that need no prepared process: SolRt.Tests [NAME...] [-NAME_TO_LEAVE_OUT...].
using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Linq;
using System.Threading.Tasks;

namespace SolRt.Tests;

internal static class Program
{
    // Tests of `Prepared` need a process with a full disk, or without a library; test.sh starts it.
    private static readonly Type[] s_groups =
        [typeof(LayoutTests), typeof(GoldenTests), typeof(TextTests), typeof(GenerationTests), typeof(LifetimeTests), typeof(ErrorTests), typeof(ChatClientTests)];

    private static async Task<int> Main(string[] arguments)
    {
        var names = arguments.Where(name => name[0] != '-').ToArray();
        var tests = (names.Length == 0 ? s_groups : [.. s_groups, typeof(PreparedTests)])
            .SelectMany(group => group.GetMethods())
            .Where(method => method.IsStatic && method.IsPublic)
            .Where(method => (names.Length == 0 || names.Contains(method.Name)) && !arguments.Contains("-" + method.Name))
            .ToList();
        var failed = new List<string>();
        foreach (var test in tests)
        {
            var watch = Stopwatch.StartNew();
            string verdict;
            try
            {
                if (test.Invoke(null, null) is Task running)
                {
                    await running.WaitAsync(TimeSpan.FromMinutes(10));
                }
                verdict = "ok";
            }
            catch (Exception error)
            {
                failed.Add(test.Name);
                verdict = $"FAILED: {(error is System.Reflection.TargetInvocationException ? error.InnerException : error)}";
            }
            Console.WriteLine($"{test.DeclaringType!.Name}.{test.Name} ({watch.ElapsedMilliseconds} ms): {verdict}");
        }
        Console.WriteLine($"{tests.Count - failed.Count} passed, {failed.Count} failed");
        return failed.Count == 0 && tests.Count > 0 ? 0 : 1;
    }
}

/// <summary>Inputs that test.sh gives to the tests, and claims of the tests.</summary>
internal static class Given
{
    internal static string Bundle => Variable("SOL_TEST_BUNDLE");
    internal static string Cases => Variable("SOL_TEST_CASES");
    internal static string Scratch => Variable("SOL_TEST_SCRATCH");
    internal static string Damaged => Variable("SOL_TEST_DAMAGED");

    internal static string Variable(string name) => Environment.GetEnvironmentVariable(name) ?? throw new InvalidOperationException($"{name} is not set");

    internal static void Equal<T>(T expected, T got, string what)
    {
        if (!EqualityComparer<T>.Default.Equals(expected, got))
        {
            throw new InvalidOperationException($"{what}: expected {expected}, got {got}");
        }
    }

    internal static void Same<T>(IEnumerable<T> expected, IEnumerable<T> got, string what) =>
        Equal(string.Join(' ', expected), string.Join(' ', got), what);

    internal static void True(bool claim, string what) => Equal(true, claim, what);

    internal static T Throws<T>(Action action, string what) where T : Exception
    {
        try
        {
            action();
        }
        catch (T error)
        {
            OneLine(error);
            return error;
        }
        throw new InvalidOperationException($"{what}: expected {typeof(T).Name}, and nothing was thrown");
    }

    internal static async Task<T> Throws<T>(Func<Task> action, string what) where T : Exception
    {
        try
        {
            await action();
        }
        catch (T error)
        {
            OneLine(error);
            return error;
        }
        throw new InvalidOperationException($"{what}: expected {typeof(T).Name}, and nothing was thrown");
    }

    private static void OneLine(Exception error)
    {
        if (error is SolException)
        {
            True(error.Message.Length > 10 && !error.Message.Contains('\n'), $"a message of one line, not: {error.Message}");
        }
    }

    internal static async Task<List<SolToken>> All(IAsyncEnumerable<SolToken> tokens)
    {
        var all = new List<SolToken>();
        await foreach (var token in tokens)
        {
            all.Add(token);
        }
        return all;
    }
}
