using System;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;
using System.Runtime.CompilerServices;
using System.Text;
using System.Threading;
using System.Threading.Tasks;
using Microsoft.Extensions.AI;

namespace SolRt.Extensions.AI;

/// <summary>
/// A chat client over a loaded model. Any number of threads may use one at once: each request gets a session of its own, and the session of the request
/// before is used again, so that a conversation that goes on runs only its new tokens.
/// </summary>
/// <remarks>
/// <para>
/// Of <see cref="ChatOptions"/> it takes <c>Instructions</c>, <c>Temperature</c> (0 takes the likeliest token), <c>TopK</c>, <c>TopP</c>,
/// <c>FrequencyPenalty</c>, <c>PresencePenalty</c>, <c>Seed</c>, <c>MaxOutputTokens</c> and <c>StopSequences</c>; of <c>AdditionalProperties</c> the
/// numbers <c>budget</c>, <c>tokens_per_second</c>, <c>max_loss</c>, <c>min_p</c> and <c>repetition_penalty</c>, and the text <c>schedule</c>. Requests with
/// tools or a response format other than text throw <see cref="NotSupportedException"/>.
/// </para>
/// <para>
/// The last update carries the usage, the reason of the end, and <c>requested_budget</c>, <c>achieved_budget</c>, <c>tokens_per_second</c> and
/// <c>schedule</c> in its <c>AdditionalProperties</c>; each update before has its <see cref="SolToken"/> as <c>RawRepresentation</c>.
/// </para>
/// </remarks>
public sealed class SolChatClient : IChatClient
{
    private readonly SolModel _model;
    private readonly bool _ownsModel;
    private readonly int _mostIdle;
    private readonly ChatClientMetadata _metadata;
    private readonly object _gate = new();  // guards the fields below
    private readonly List<SolSession> _idle = new();
    private readonly List<SolSession> _rented = new();  // of running requests
    private double? _budget;
    private bool _disposed;

    /// <summary>Makes a client.</summary>
    /// <param name="model">A loaded model; it must stay loaded as long as the client is used.</param>
    /// <param name="ownsModel">Whether disposing the client disposes the model.</param>
    /// <param name="mostIdleSessions">How many sessions wait for another request with their caches kept.</param>
    public SolChatClient(SolModel model, bool ownsModel = false, int mostIdleSessions = 1)
    {
        _model = model ?? throw new ArgumentNullException(nameof(model));
        _ownsModel = ownsModel;
        _mostIdle = mostIdleSessions;
        _metadata = new ChatClientMetadata("sol_rt", null, model.Info.Name);
    }

    /// <summary>
    /// The live dial, 0 to 1: holds for requests without a dial or a schedule of their own, the running ones included, from their next decode step on. Of
    /// another number these throw <see cref="SolUsageException"/>.
    /// </summary>
    public double? Budget
    {
        get { lock (_gate) { return _budget; } }
        set { lock (_gate) { _budget = value; } }
    }

    /// <summary>
    /// Renders a conversation, with the beginning of the assistant's answer, for models whose template the core cannot render. Special tokens in the
    /// result count as such. Null: the core renders.
    /// </summary>
    public Func<IReadOnlyList<ChatMessage>, string>? Render { get; set; }

    /// <inheritdoc/>
    public async Task<ChatResponse> GetResponseAsync(
        IEnumerable<ChatMessage> messages, ChatOptions? options = null, CancellationToken cancellationToken = default)
    {
        var text = new StringBuilder();
        ChatResponseUpdate? last = null;
        await foreach (var update in GetStreamingResponseAsync(messages, options, cancellationToken).ConfigureAwait(false))
        {
            text.Append(update.Text);
            last = update;
        }
        return new ChatResponse(new ChatMessage(ChatRole.Assistant, text.ToString()) { MessageId = last!.MessageId })
        {
            ResponseId = last.ResponseId,
            ModelId = last.ModelId,
            CreatedAt = last.CreatedAt,
            FinishReason = last.FinishReason,
            Usage = last.Contents.OfType<UsageContent>().First().Details,
            AdditionalProperties = last.AdditionalProperties,
            RawRepresentation = last.RawRepresentation,
        };
    }

    /// <inheritdoc/>
    public async IAsyncEnumerable<ChatResponseUpdate> GetStreamingResponseAsync(
        IEnumerable<ChatMessage> messages, ChatOptions? options = null, [EnumeratorCancellation] CancellationToken cancellationToken = default)
    {
        var prompt = Tokens(messages ?? throw new ArgumentNullException(nameof(messages)), options);
        var generate = Translate(options);
        var follows = (generate.Budget ?? generate.TokensPerSecond ?? generate.MaxLoss) is null && generate.Schedule is null;
        generate.Budget ??= follows ? Budget : null;
        var held = generate.Budget;
        var session = Rent(prompt);
        try
        {
            var id = Guid.NewGuid().ToString("N");
            var created = DateTimeOffset.UtcNow;
            await foreach (var token in session.GenerateAsync(prompt, generate, cancellationToken).ConfigureAwait(false))
            {
                var update = new ChatResponseUpdate(ChatRole.Assistant, token.Text)
                {
                    ResponseId = id, MessageId = id, ModelId = _metadata.DefaultModelId, CreatedAt = created, RawRepresentation = token,
                };
                if (token.Finish != SolFinish.None)
                {
                    Conclude(update, session.Result);
                }
                yield return update;
                if (follows && token.Finish == SolFinish.None && Budget is double budget && budget != held)
                {
                    session.SetBudget(budget);
                    held = budget;
                }
            }
        }
        finally
        {
            Return(session);
        }
    }

    /// <inheritdoc/>
    public object? GetService(Type serviceType, object? serviceKey = null)
    {
        _ = serviceType ?? throw new ArgumentNullException(nameof(serviceType));
        return serviceKey is not null ? null
            : serviceType == typeof(ChatClientMetadata) ? _metadata
            : serviceType.IsInstanceOfType(_model) ? _model
            : serviceType.IsInstanceOfType(this) ? this
            : null;
    }

    /// <summary>Ends running requests, whose callers get <see cref="ObjectDisposedException"/>.</summary>
    public void Dispose()
    {
        SolSession[] sessions;
        lock (_gate)
        {
            if (_disposed)
            {
                return;
            }
            _disposed = true;
            sessions = _idle.Concat(_rented).ToArray();
            _idle.Clear();
        }
        foreach (var session in sessions)
        {
            session.Dispose();
        }
        if (_ownsModel)
        {
            _model.Dispose();
        }
    }

    private static SolGenerateOptions Translate(ChatOptions? options)
    {
        if (options?.Tools is { Count: > 0 } tools)
        {
            throw new NotSupportedException($"Tools: got {tools.Count}, expected none; this client calls no tools");
        }
        if (options?.ResponseFormat is not (null or ChatResponseFormatText))
        {
            throw new NotSupportedException(
                $"ResponseFormat: got {options.ResponseFormat.GetType().Name}, expected text; this client holds answers to no format");
        }
        var extra = options?.AdditionalProperties;
        return new SolGenerateOptions
        {
            Temperature = options?.Temperature is > 0 ? options.Temperature : null,
            DoSample = options?.Temperature is float temperature ? temperature > 0 : null,
            TopK = options?.TopK,
            TopP = options?.TopP,
            FrequencyPenalty = options?.FrequencyPenalty,
            PresencePenalty = options?.PresencePenalty,
            Seed = options?.Seed,
            MaxNewTokens = options?.MaxOutputTokens,
            StopStrings = options?.StopSequences?.ToArray(),
            Budget = Number(extra, "budget"),
            TokensPerSecond = Number(extra, "tokens_per_second"),
            MaxLoss = Number(extra, "max_loss"),
            MinP = Number(extra, "min_p"),
            RepetitionPenalty = Number(extra, "repetition_penalty"),
            Schedule = extra is not null && extra.TryGetValue("schedule", out var schedule) ? schedule?.ToString() : null,
            ReuseCache = true,
        };
    }

    // Properties that come from a settings file are texts or JSON, whose text is the number.
    private static double? Number(AdditionalPropertiesDictionary? extra, string name)
    {
        if (extra is null || !extra.TryGetValue(name, out var value) || value is null)
        {
            return null;
        }
        return double.TryParse(Convert.ToString(value, CultureInfo.InvariantCulture), NumberStyles.Float, CultureInfo.InvariantCulture, out var number)
            ? number
            : throw new ArgumentException($"AdditionalProperties[\"{name}\"]: got {value}, expected a number");
    }

    private static void Conclude(ChatResponseUpdate update, SolResult result)
    {
        update.FinishReason = result.Finish == SolFinish.Length ? ChatFinishReason.Length : ChatFinishReason.Stop;
        update.Contents.Add(new UsageContent(new UsageDetails
        {
            InputTokenCount = result.PromptTokens,
            CachedInputTokenCount = result.CachedTokens,
            OutputTokenCount = result.NumTokens,
            TotalTokenCount = result.PromptTokens + result.NumTokens,
        }));
        update.AdditionalProperties = new AdditionalPropertiesDictionary
        {
            ["requested_budget"] = result.RequestedBudget,
            ["achieved_budget"] = result.AchievedBudget,
            ["tokens_per_second"] = result.TokensPerSecond,
            ["schedule"] = result.Schedule,
        };
    }

    private int[] Tokens(IEnumerable<ChatMessage> messages, ChatOptions? options)
    {
        var list = messages.ToList();
        if (!string.IsNullOrEmpty(options?.Instructions))
        {
            list.Insert(0, new ChatMessage(ChatRole.System, options!.Instructions));
        }
        if (list.SelectMany(message => message.Contents).FirstOrDefault(content => content is not TextContent) is AIContent other)
        {
            throw new NotSupportedException($"messages: got a {other.GetType().Name}, expected texts; this model reads nothing else");
        }
        return Render is null
            ? _model.EncodeChat(list.Select(message => new SolMessage(message.Role.Value, message.Text)))
            : _model.Encode(Render(list), addSpecial: false, parseSpecial: true);
    }

    // Of the idle sessions the one whose cache begins most like the prompt; a new one if none is idle.
    private SolSession Rent(int[] prompt)
    {
        lock (_gate)
        {
            ThrowIfDisposed();
            var session = _idle.OrderByDescending(idle => idle.Tokens.Zip(prompt, (a, b) => a == b).TakeWhile(same => same).Count()).FirstOrDefault();
            if (session is null)
            {
                session = _model.CreateSession();
            }
            _idle.Remove(session);
            _rented.Add(session);
            return session;
        }
    }

    private void Return(SolSession session)
    {
        SolSession? surplus = session;
        lock (_gate)
        {
            _rented.Remove(session);
            if (!_disposed && _mostIdle > 0)
            {
                _idle.Add(session);
                surplus = _idle.Count > _mostIdle ? _idle[0] : null;
                _idle.Remove(surplus!);
            }
        }
        surplus?.Dispose();
    }

    private void ThrowIfDisposed()
    {
        if (_disposed)
        {
            throw new ObjectDisposedException(nameof(SolChatClient));
        }
    }
}
