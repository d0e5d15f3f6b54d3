using System;
using System.Collections.Generic;
using System.Globalization;
using System.IO;
using System.Linq;
using System.Threading;
using System.Threading.Tasks;

namespace SolRt.Tests;

internal static class LifetimeTests
{
    private static Case One => Case.Read(native: false).First();

    public static async Task DisposeDuringGeneration()
    {
        using var model = SolModel.Load(Given.Bundle);
        var random = new Random(7);
        var ended = 0;
        for (var round = 0; round < 100; ++round)
        {
            var session = model.CreateSession();
            var wait = random.Next(0, 60_000);
            var other = Task.Run(() =>
            {
                Thread.SpinWait(wait);
                session.Dispose();
                session.Dispose();
            });
            try
            {
                await foreach (var token in session.GenerateAsync(One.Prompt, new SolGenerateOptions { MaxNewTokens = 200, EndTokens = [] }))
                {
                    if (round % 3 == 0)
                    {
                        Given.True(session.Result.NumTokens > 0, token.Text);
                        if (token.Finish == SolFinish.None)
                        {
                            session.SetBudget(0.5);
                        }
                    }
                }
            }
            catch (ObjectDisposedException)
            {
                ++ended;
            }
            await other;
        }
        Given.True(ended > 20, $"{ended} of 100 sessions were disposed while they ran");
    }

    public static async Task HandlesMayGoInAnyOrder()
    {
        var runtime = new SolRuntime();
        var model = SolModel.Load(Given.Bundle, new SolModelOptions { Runtime = runtime });
        runtime.Dispose();
        var session = model.CreateSession();
        model.Dispose();
        await One.Play(session);
        session.Dispose();
        Given.Throws<ObjectDisposedException>(() => _ = runtime.OnnxRuntimeVersion, "a disposed runtime");
        Given.Throws<ObjectDisposedException>(() => model.CreateSession(), "a disposed model");
        Given.Throws<ObjectDisposedException>(() => _ = session.Tokens, "a disposed session");
        Given.Throws<ObjectDisposedException>(() => session.SetBudget(0.5), "the dial of a disposed session");
        session.Cancel();
        await Given.Throws<ObjectDisposedException>(() => Given.All(session.GenerateAsync(One.Prompt)), "a generation in a disposed session");
    }

    public static async Task ThousandLoadsAndUnloads()
    {
        var resident = new List<long>();
        for (var round = 1; round <= 1000; ++round)
        {
            using (var model = SolModel.Load(Given.Bundle, new SolModelOptions { Verify = SolVerify.None }))
            using (var session = model.CreateSession())
            {
                await Given.All(session.GenerateAsync(One.Prompt, new SolGenerateOptions { MaxNewTokens = 2 }));
            }
            if (round % 200 == 0)
            {
                GC.Collect();
                GC.WaitForPendingFinalizers();
                resident.Add(Private());
            }
        }
        var grown = resident[^1] - resident[0];
        Console.WriteLine($"resident kB after every 200 loads: {string.Join(' ', resident)}");
        Given.True(grown < 8_000, "the memory is flat");
    }

    public static void LostHandlesAreCollected()
    {
        var resident = new List<long>();
        for (var round = 1; round <= 500; ++round)
        {
            Lose();
            if (round % 50 == 0)
            {
                GC.Collect();
                GC.WaitForPendingFinalizers();
                resident.Add(Private());
            }
        }
        Console.WriteLine($"resident kB after every 50 lost models: {string.Join(' ', resident)}");
        Given.True(resident[^1] - resident[1] < 8_000, "lost models are collected");

        static void Lose() => SolModel.Load(Given.Bundle, new SolModelOptions { Verify = SolVerify.None }).CreateSession();
    }

    private static long Private() => long.Parse(
        File.ReadLines("/proc/self/status").First(line => line.StartsWith("RssAnon", StringComparison.Ordinal)).Split(':')[1].Replace("kB", ""),
        NumberStyles.AllowLeadingWhite | NumberStyles.AllowTrailingWhite, CultureInfo.InvariantCulture);
}
