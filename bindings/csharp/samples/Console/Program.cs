// Chats with a bundle in a terminal: sol-console FOLDER [BUDGET]. Ctrl+C ends an answer, an empty line the program; while text streams, + and - move
// the budget. Each token is shaded by its cost.
using SolRt;

if (args.Length is < 1 or > 2)
{
    Console.Error.WriteLine("usage: sol-console FOLDER [BUDGET]");
    return 2;
}
try
{
    using var model = SolModel.Load(args[0]);
    using var session = model.CreateSession();
    double? budget = args.Length == 2 ? double.Parse(args[1], System.Globalization.CultureInfo.InvariantCulture) : null;
    var messages = new List<SolMessage>();
    while (true)
    {
        Console.Write("> ");
        if (Console.ReadLine() is not { Length: > 0 } question)
        {
            return 0;
        }
        messages.Add(new SolMessage("user", question));
        (var answer, budget) = await Answer(session, messages, budget);
        messages.Add(new SolMessage("assistant", answer));
    }
}
catch (SolException error)
{
    Console.Error.WriteLine($"error: {error.Message}");
    return error.Code == SolCode.Usage ? 2 : 1;
}

// The answer, and the budget that the keys left.
static async Task<(string Answer, double? Budget)> Answer(SolSession session, List<SolMessage> messages, double? budget)
{
    using var cancel = new CancellationTokenSource();
    ConsoleCancelEventHandler stop = (_, press) =>
    {
        press.Cancel = true;
        cancel.Cancel();
    };
    Console.CancelKeyPress += stop;
    var text = new System.Text.StringBuilder();
    var options = new SolGenerateOptions { MaxNewTokens = 400, ReuseCache = true, Budget = budget };
    try
    {
        // A bundle whose template the core cannot render goes on with the last message as plain text.
        var tokens = session.Model.Info.HasChat
            ? session.ChatAsync(messages, options, cancel.Token)
            : session.GenerateAsync(messages[^1].Content, options, cancel.Token);
        await foreach (var token in tokens)
        {
            text.Append(token.Text);
            Console.Write(Console.IsOutputRedirected ? token.Text : Shaded(token));
            while (!Console.IsInputRedirected && token.Finish == SolFinish.None && Console.KeyAvailable)
            {
                var step = Console.ReadKey(intercept: true).KeyChar switch { '+' => 0.05, '-' => -0.05, _ => 0 };
                budget = Math.Clamp((budget ?? 1) + step, 0, 1);
                session.SetBudget(budget.Value);
            }
        }
    }
    catch (OperationCanceledException)
    {
    }
    finally
    {
        Console.CancelKeyPress -= stop;
    }
    var result = session.Result;
    Console.WriteLine();
    Console.Error.WriteLine(
        $"{result.NumTokens} tokens, {result.TokensPerSecond:0.0} tokens/s, budget {result.AchievedBudget:0.00} of {result.RequestedBudget:0.00}");
    return (text.ToString(), budget);
}

// From grey where a token was cheap to white where it was dense.
static string Shaded(SolToken token) => $"\u001b[38;5;{240 + (int)Math.Clamp(15 * token.RelativeCost, 0, 15)}m{token.Text}\u001b[0m";
