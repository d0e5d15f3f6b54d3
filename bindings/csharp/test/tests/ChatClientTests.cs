using System;
using System.Collections.Generic;
using System.Linq;
using System.Threading;
using System.Threading.Tasks;
using Microsoft.Extensions.AI;
using SolRt.Extensions.AI;

namespace SolRt.Tests;

internal static class ChatClientTests
{
    private static SolChatClient Client()
    {
        var model = SolModel.Load(Given.Bundle);
        var client = new SolChatClient(model, ownsModel: true);
        if (!model.Info.HasChat)
        {
            client.Render = messages => string.Concat(messages.Select(message => $"{message.Role.Value}: {message.Text}\n"));
        }
        return client;
    }

    private static ChatMessage[] Ask(string text) => [new(ChatRole.User, text)];

    private static ChatOptions Options(params (string, object?)[] extra)
    {
        var options = new ChatOptions { Temperature = 0, MaxOutputTokens = 24, AdditionalProperties = [] };
        foreach (var (key, value) in extra)
        {
            options.AdditionalProperties[key] = value;
        }
        return options;
    }

    public static async Task AnswersWholeAndInPieces()
    {
        using var client = Client();
        var whole = await client.GetResponseAsync(Ask("Once upon a time"), Options());
        var pieces = new List<ChatResponseUpdate>();
        await foreach (var update in client.GetStreamingResponseAsync(Ask("Once upon a time"), Options()))
        {
            pieces.Add(update);
        }
        Given.Equal(whole.Text, string.Concat(pieces.Select(update => update.Text)), "the text");
        Given.True(pieces.Count > 1 && pieces.All(update => update.ResponseId == pieces[0].ResponseId && update.RawRepresentation is SolToken), "pieces");
        Given.Equal(whole.FinishReason!.Value.Value, pieces[^1].FinishReason!.Value.Value, "why it ended");
        var usage = whole.Usage!;
        Given.Equal(pieces.Count, (int)usage.OutputTokenCount!, "tokens of the answer");
        Given.Equal(usage.InputTokenCount + usage.OutputTokenCount, usage.TotalTokenCount, "all tokens");
        var again = pieces[^1].Contents.OfType<UsageContent>().Single().Details;
        Given.True(usage.CachedInputTokenCount == 0 && again.CachedInputTokenCount > 0, "the second request finds the prompt in the cache");
        Given.True(whole.AdditionalProperties!["achieved_budget"] is double, "the achieved budget");
    }

    public static async Task ToolsAndFormatsAreRefused()
    {
        using var client = Client();
        foreach (var options in new ChatOptions[] { new() { Tools = [new Tool()] }, new() { ResponseFormat = ChatResponseFormat.Json } })
        {
            var refused = false;
            try
            {
                await client.GetResponseAsync(Ask("Once"), options);
            }
            catch (NotSupportedException)
            {
                refused = true;
            }
            Given.True(refused, "what the client cannot do is refused");
        }
        var plain = new ChatOptions { Tools = [], ResponseFormat = ChatResponseFormat.Text, MaxOutputTokens = 2 };
        Given.True((await client.GetResponseAsync(Ask("Once"), plain)).Usage is not null, "no tools and text are no demand");
    }

    private sealed class Tool : AITool
    {
    }

    public static async Task BudgetIsAnOption()
    {
        using var client = Client();
        var costs = new List<double>();
        foreach (var budget in new object[] { 1.0, 0.6f, "0.3" })
        {
            var answer = await client.GetResponseAsync(Ask("Once"), Options(("budget", budget), ("schedule", "uniform"), ("repetition_penalty", 1)));
            costs.Add((double)answer.AdditionalProperties!["achieved_budget"]!);
        }
        Given.True(costs[0] == 1 && costs[1] < 1 && costs[2] < costs[1], string.Join(' ', costs));
        await Given.Throws<ArgumentException>(() => client.GetResponseAsync(Ask("Once"), Options(("budget", "much"))), "a budget that is no number");
        await Given.Throws<SolUsageException>(() => client.GetResponseAsync(Ask("Once"), Options(("budget", 7))), "a budget above 1");
    }

    public static async Task LiveBudgetMovesRunningRequests()
    {
        using var client = Client();
        client.Budget = 1;
        var actions = new List<string>();
        var options = Options();
        options.MaxOutputTokens = 60;
        await foreach (var update in client.GetStreamingResponseAsync(Ask("Once upon a time there was"), options))
        {
            actions.Add(((SolToken)update.RawRepresentation!).Action);
            client.Budget = actions.Count >= 8 ? 0 : 1;
        }
        var dense = ((SolModel)client.GetService(typeof(SolModel))!).Info.Dense;
        Given.True(actions.Take(8).All(action => action == dense), string.Join(' ', actions));
        Given.True(actions.Count < 12 || actions.Skip(8).Any(action => action != dense), string.Join(' ', actions));
    }

    public static async Task ManyThreadsAtOnce()
    {
        using var client = Client();
        var questions = Enumerable.Range(0, 12).Select(number => $"Question {number} about {(char)('a' + number)}").ToArray();
        var alone = new List<string>();
        foreach (var question in questions)
        {
            alone.Add((await client.GetResponseAsync(Ask(question), Options(("schedule", "dense")))).Text);
        }
        var together = await Task.WhenAll(questions.Select(question => Task.Run(() => client.GetResponseAsync(Ask(question), Options(("schedule", "dense"))))));
        Given.Same(alone, together.Select(answer => answer.Text), "answers");
    }

    public static async Task EndsWhenAsked()
    {
        var client = Client();
        using var cancel = new CancellationTokenSource();
        await Given.Throws<OperationCanceledException>(async () =>
        {
            await foreach (var _ in client.GetStreamingResponseAsync(Ask("Once"), Options(), cancel.Token))
            {
                cancel.Cancel();
            }
        }, "cancelled");
        await client.GetResponseAsync(Ask("Once"), Options());
        await Given.Throws<NotSupportedException>(
            () => client.GetResponseAsync([new ChatMessage(ChatRole.User, [new DataContent(new byte[] { 1 }, "image/png")])]), "a picture");
        Given.True(client.GetService(typeof(ChatClientMetadata)) is ChatClientMetadata { ProviderName: "sol_rt" }, "metadata");
        Given.True(client.GetService(typeof(IChatClient)) == client && client.GetService(typeof(string)) is null, "services");
        await Given.Throws<ObjectDisposedException>(async () =>
        {
            await foreach (var _ in client.GetStreamingResponseAsync(Ask("Once"), Options()))
            {
                await Task.Run(client.Dispose);
            }
        }, "disposed while it answers");
        await Given.Throws<ObjectDisposedException>(() => client.GetResponseAsync(Ask("Once")), "a disposed client");
    }
}
