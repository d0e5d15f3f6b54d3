using System;
using System.Collections.Generic;
using System.Linq;
using System.Threading.Tasks;

namespace SolRt.Tests;

internal static class TextTests
{
    public static void ModelTellsWhatItIs()
    {
        using var model = SolModel.Load(Given.Bundle);
        var info = model.Info;
        Given.True(info.Name.Length > 0 && info.Generator.StartsWith("sol_rt ", StringComparison.Ordinal), info.ToString());
        Given.Equal(64, info.Identity.Length, "identity");
        Given.Equal("bytes", info.CostModel, "cost model");
        Given.True(info is { VocabSize: > 0, HiddenSize: > 0, NumLayers: > 0, MaxContext: > 0, MappedBytes: > 0 }, info.ToString());
        var actions = model.Actions;
        Given.True(actions.Count > 1 && actions.Any(action => action.Tag == info.Dense && action.RelativeCost == 1), string.Join(' ', actions));
        Given.Equal(SolRuntime.Version, "0.1.0", "the core's version");
        using var runtime = new SolRuntime();
        Given.True(Version.Parse(runtime.OnnxRuntimeVersion) >= new Version(1, 23), "ONNX Runtime's version");
        using var capped = SolModel.Load(Given.Bundle, new SolModelOptions { MaxContext = 24, Runtime = runtime });
        Given.Equal(24, capped.Info.MaxContext, "the cap of the context");
    }

    public static void TextsGoToTokensAndBack()
    {
        using var model = SolModel.Load(Given.Bundle);
        foreach (var one in Case.Read(native: false))
        {
            var whole = model.Decode(one.Prompt.Concat(one.Tokens).ToArray());
            Given.True(whole.EndsWith(one.Text, StringComparison.Ordinal), $"{one.Name}: {whole} ends with {one.Text}");
        }
        var texts = new List<string> { "", "a", "Once upon a time", "né 漢字 🙂 \0 end", new('x', 5000), string.Concat(Enumerable.Repeat("🙂 漢", 3000)) };
        foreach (var text in texts)
        {
            Given.Equal(text, model.Decode(model.Encode(text, addSpecial: false)), "there and back");
        }
        Given.Equal("a\ufffdb", model.Decode(model.Encode("a\ud800b", addSpecial: false)), "a lone surrogate");
    }

    public static async Task PromptsMayBeTextsAndConversations()
    {
        using var model = SolModel.Load(Given.Bundle);
        using var session = model.CreateSession();
        var options = new SolGenerateOptions { MaxNewTokens = 6, DoSample = false };
        var fromText = await Given.All(session.GenerateAsync("Once upon a time", options));
        session.Rewind(0);
        var fromTokens = await Given.All(session.GenerateAsync(model.Encode("Once upon a time"), options));
        Given.Same(fromTokens.Select(token => token.Token), fromText.Select(token => token.Token), "a text is its tokens");
        if (!model.Info.HasChat)
        {
            Given.Throws<SolTextException>(() => model.EncodeChat([new SolMessage("user", "Hi")]), "a bundle without chat segments");
            return;
        }
        var chat = model.EncodeChat([new SolMessage("system", "Be short."), new SolMessage("user", "Hi")]);
        Given.True(model.Decode(chat, skipSpecial: false).Contains("Be short.", StringComparison.Ordinal), "the conversation's tokens");
        session.Rewind(0);
        var answer = await Given.All(session.ChatAsync([new SolMessage("user", "Hi")], options));
        Given.True(answer.Count is > 0 and <= 6, "an answer");
    }
}
