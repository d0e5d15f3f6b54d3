using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Threading;
using System.Threading.Tasks;

namespace SolRt.Tests;

internal static class ErrorTests
{
    private static Case One => Case.Read(native: false).First();

    public static void WrongFolders()
    {
        Given.Throws<SolBundleException>(() => SolModel.Load(Path.Combine(Given.Scratch, "nothing here")), "a folder that is not there");
        Given.Throws<SolBundleException>(() => SolModel.Load(Given.Scratch), "a folder that is no bundle");
        Given.Throws<SolBundleException>(() => SolModel.Load(Given.Cases), "a file");
        Given.Throws<SolUsageException>(() => SolModel.Load("nul\0"), "a path with U+0000");
        Given.Throws<ArgumentNullException>(() => SolModel.Load(null!), "no path");
    }

    public static void DamagedBundles()
    {
        foreach (var folder in Directory.GetDirectories(Given.Damaged))
        {
            var error = Given.Throws<SolException>(() => SolModel.Load(folder, new SolModelOptions { Verify = SolVerify.All }), folder);
            Given.Equal(SolCode.Bundle, error.Code, $"{folder}: {error.Message}");
        }
    }

    // Files that the tests of the Python runtime keep; a bundle gets one of them in place of its own.
    public static void CorpusOfDamagedFiles()
    {
        var files = new Dictionary<string, string>
        {
            ["config"] = "sol_config.json", ["tokenizer"] = "tokenizer.json", ["generation_config"] = "generation_config.json",
            ["graph"] = "model.q4.onnx", ["policy_graph"] = "policy.onnx",
        };
        var refused = 0;
        foreach (var (kind, name) in files)
        {
            foreach (var bad in Directory.GetFiles(Path.Combine(Given.Variable("SOL_TEST_CORPUS"), kind)))
            {
                var folder = Path.Combine(Given.Scratch, "corpus");
                Directory.CreateDirectory(folder);
                foreach (var file in Directory.GetFiles(Given.Bundle))
                {
                    File.Copy(file, Path.Combine(folder, Path.GetFileName(file)), overwrite: true);
                }
                File.Copy(bad, Path.Combine(folder, name), overwrite: true);
                foreach (var verify in new[] { SolVerify.None, SolVerify.Small })
                {
                    try
                    {
                        using var model = SolModel.Load(folder, new SolModelOptions { Verify = verify });
                        using var session = model.CreateSession();
                        Given.Equal(SolVerify.None, verify, $"{bad}: loads although its hash differs");
                    }
                    catch (SolException error)
                    {
                        Given.True(error.Code is SolCode.Bundle or SolCode.Runtime or SolCode.Text or SolCode.Memory, $"{bad}: {error.Code} {error.Message}");
                        Given.True(!error.Message.Contains('\n'), $"{bad}: {error.Message}");
                        ++refused;
                    }
                }
            }
        }
        Given.True(refused > 20, $"{refused} were refused");
    }

    public static async Task WrongOptions()
    {
        using var model = SolModel.Load(Given.Bundle);
        using var session = model.CreateSession();
        var wrong = new Dictionary<string, SolGenerateOptions>
        {
            ["a budget above 1"] = new() { Budget = 1.5 },
            ["two dials"] = new() { Budget = 0.5, MaxLoss = 0.01 },
            ["an unknown schedule"] = new() { Schedule = "slowest" },
            ["an unknown action"] = new() { Schedule = "fixed:k999" },
            ["a negative temperature"] = new() { DoSample = true, Temperature = -1 },
            ["a probability above 1"] = new() { DoSample = true, TopP = 2 },
            ["a bias for no token"] = new() { LogitBias = new Dictionary<int, float> { [1 << 30] = 1 } },
            ["an end token that is none"] = new() { EndTokens = [-5] },
            ["U+0000 in a schedule"] = new() { Schedule = "so\0l" },
        };
        foreach (var (what, options) in wrong)
        {
            await Given.Throws<SolUsageException>(() => Given.All(session.GenerateAsync(One.Prompt, options)), what);
        }
        await Given.Throws<SolUsageException>(() => Given.All(session.GenerateAsync(Array.Empty<int>())), "an empty prompt");
        await Given.Throws<SolUsageException>(() => Given.All(session.GenerateAsync([model.Info.VocabSize])), "a token beyond the vocabulary");
        await Given.Throws<SolUsageException>(() => Given.All(session.GenerateAsync([-1])), "a negative token");
        await Given.Throws<SolContextException>(
            () => Given.All(session.GenerateAsync(Enumerable.Repeat(One.Prompt[0], model.Info.MaxContext + 1).ToArray())), "a prompt beyond the context");
        await One.Play(session);
    }

    public static async Task CallbacksThatThrow()
    {
        var own = new FormatException("the host's own");
        var options = new SolModelOptions { Verify = SolVerify.All, OnProgress = (_, _, _) => throw own };
        Given.True(ReferenceEquals(own, Given.Throws<FormatException>(() => SolModel.Load(Given.Bundle, options), "a callback that throws")), "the same exception");
        var seen = new List<string>();
        var telling = new SolModelOptions { Verify = SolVerify.All, OnProgress = (what, done, total) => seen.Add($"{what} {done}/{total}") };
        using (SolModel.Load(Given.Bundle, telling))
        {
            Given.True(seen.Count > 0 && seen.All(line => line.Length > 3), "progress is told");
        }
        using var cancel = new CancellationTokenSource();
        var cancelling = new SolModelOptions { Verify = SolVerify.All, OnProgress = (_, _, _) => cancel.Cancel() };
        await Given.Throws<OperationCanceledException>(() => SolModel.LoadAsync(Given.Bundle, cancelling, cancel.Token), "loading is cancelled");
        Given.Throws<OperationCanceledException>(() => SolModel.Load(Given.Bundle, null, cancel.Token), "was cancelled before");
    }

    public static void WrongRuntimes()
    {
        var options = new SolRuntimeOptions();
        var lines = File.ReadAllLines(Given.Variable("SOL_TEST_RUNTIMES"));
        Given.True(lines.Length >= 7, "absent, wrong and old ones");
        foreach (var fields in lines.Select(line => line.Split('\t')))
        {
            options.OnnxRuntimePath = fields[0];
            var message = Given.Throws<SolRuntimeException>(() => new SolRuntime(options), fields[0]).Message;
            Given.True(message.StartsWith(fields[1], StringComparison.Ordinal) && message.EndsWith(fields[2], StringComparison.Ordinal), message);
        }
        options.OnnxRuntimePath = Given.Variable("SOL_TEST_NEWER");
        using (var newer = new SolRuntime(options))
        {
            Given.Equal("1.99.0", newer.OnnxRuntimeVersion, "the version of a newer ONNX Runtime");
            using var loaded = SolModel.Load(Given.Bundle, new SolModelOptions { Runtime = newer });
            Given.True(loaded.Info.NumLayers > 0, "a newer ONNX Runtime");
        }
        options.OnnxRuntimePath = Given.Variable("SOL_TEST_ORT");
        using var runtime = new SolRuntime(options);
        using var model = SolModel.Load(Given.Bundle, new SolModelOptions { Runtime = runtime });
        Given.True(model.Info.NumLayers > 0, "a runtime opened by its path");
    }

    public static async Task FilesThatCannotBeWrittenOrRead()
    {
        using var model = SolModel.Load(Given.Bundle);
        using var session = model.CreateSession();
        await One.Play(session);
        Given.Throws<SolWriteException>(() => session.Save(Path.Combine(Given.Scratch, "no folder", "session")), "a folder that is not there");
        Given.Throws<SolBundleException>(() => session.Restore(Given.Cases), "a file that is no session");
        Given.Throws<SolBundleException>(() => session.Restore(Path.Combine(Given.Scratch, "no session")), "a file that is not there");
        session.Rewind(0);
        await One.Play(session);
        var options = One.Options();
        options.Trace = Path.Combine(Given.Scratch, "no folder", "trace");
        session.Rewind(0);
        await Given.Throws<SolWriteException>(() => Given.All(session.GenerateAsync(One.Prompt, options)), "a trace in a folder that is not there");
    }
}

/// <summary>Tests of processes that lack something.</summary>
internal static class PreparedTests
{
    public static async Task FullDisk()
    {
        var folder = Given.Variable("SOL_TEST_FULL");
        using var model = SolModel.Load(Given.Bundle);
        using var session = model.CreateSession();
        await Given.All(session.GenerateAsync(Case.Read(native: false).First().Prompt, new SolGenerateOptions { MaxNewTokens = 4 }));
        var tokens = session.Tokens;
        var file = Path.Combine(folder, "session");
        File.Copy(Given.Cases, Path.Combine(Given.Scratch, "before"), overwrite: true);
        Given.Throws<SolWriteException>(
            () =>
            {
                for (var i = 0; i < 4; ++i)
                {
                    session.Save(file);
                }
            },
            "a full disk");
        Given.True(!File.Exists(file) || new FileInfo(file).Length > 0, "no half a file");
        Given.Same(tokens, session.Tokens, "the session is as it was");
    }

    public static void NoOnnxRuntime() => Given.Throws<SolRuntimeException>(() => SolModel.Load(Given.Bundle), "no ONNX Runtime");

    public static void NoCore() => Given.Throws<SolRuntimeException>(() => SolModel.Load(Given.Bundle), "no core");
}
