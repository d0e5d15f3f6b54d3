// As much of the package Microsoft.Extensions.AI.Abstractions 10.x as SolChatClient and its test use: the same names and signatures, so that both
// compile on a machine that can't fetch the package. Nothing else references this.
#nullable enable
using System;
using System.Collections.Generic;
using System.Linq;
using System.Threading;
using System.Threading.Tasks;

namespace Microsoft.Extensions.AI;

public interface IChatClient : IDisposable
{
    Task<ChatResponse> GetResponseAsync(
        IEnumerable<ChatMessage> messages, ChatOptions? options = null, CancellationToken cancellationToken = default);

    IAsyncEnumerable<ChatResponseUpdate> GetStreamingResponseAsync(
        IEnumerable<ChatMessage> messages, ChatOptions? options = null, CancellationToken cancellationToken = default);

    object? GetService(Type serviceType, object? serviceKey = null);
}

public class ChatClientMetadata
{
    public ChatClientMetadata(string? providerName = null, Uri? providerUri = null, string? defaultModelId = null) =>
        (ProviderName, ProviderUri, DefaultModelId) = (providerName, providerUri, defaultModelId);

    public string? ProviderName { get; }
    public Uri? ProviderUri { get; }
    public string? DefaultModelId { get; }
}

public class AdditionalPropertiesDictionary<TValue> : Dictionary<string, TValue>
{
    public AdditionalPropertiesDictionary() : base(StringComparer.OrdinalIgnoreCase) { }
}

public sealed class AdditionalPropertiesDictionary : AdditionalPropertiesDictionary<object?>
{
}

public class ChatOptions
{
    public string? Instructions { get; set; }
    public float? Temperature { get; set; }
    public int? MaxOutputTokens { get; set; }
    public float? TopP { get; set; }
    public int? TopK { get; set; }
    public float? FrequencyPenalty { get; set; }
    public float? PresencePenalty { get; set; }
    public long? Seed { get; set; }
    public IList<string>? StopSequences { get; set; }
    public IList<AITool>? Tools { get; set; }
    public ChatResponseFormat? ResponseFormat { get; set; }
    public AdditionalPropertiesDictionary? AdditionalProperties { get; set; }
}

public abstract class AITool
{
}

public class ChatResponseFormat
{
    public static ChatResponseFormatText Text { get; } = new();
    public static ChatResponseFormatJson Json { get; } = new();
}

public sealed class ChatResponseFormatText : ChatResponseFormat
{
}

public sealed class ChatResponseFormatJson : ChatResponseFormat
{
}

public readonly struct ChatRole
{
    public ChatRole(string value) => Value = value;

    public static ChatRole System { get; } = new("system");
    public static ChatRole Assistant { get; } = new("assistant");
    public static ChatRole User { get; } = new("user");
    public string Value { get; }
}

public readonly struct ChatFinishReason
{
    public ChatFinishReason(string value) => Value = value;

    public static ChatFinishReason Stop { get; } = new("stop");
    public static ChatFinishReason Length { get; } = new("length");
    public string Value { get; }
}

public class AIContent
{
}

public sealed class TextContent : AIContent
{
    public TextContent(string? text) => Text = text ?? "";

    public string Text { get; set; }
}

public class DataContent : AIContent
{
    public DataContent(ReadOnlyMemory<byte> data, string mediaType) => (Data, MediaType) = (data, mediaType);

    public ReadOnlyMemory<byte> Data { get; }
    public string MediaType { get; }
}

public class UsageContent : AIContent
{
    public UsageContent(UsageDetails details) => Details = details;

    public UsageDetails Details { get; set; }
}

public class UsageDetails
{
    public long? InputTokenCount { get; set; }
    public long? OutputTokenCount { get; set; }
    public long? TotalTokenCount { get; set; }
    public long? CachedInputTokenCount { get; set; }
}

public class ChatMessage
{
    public ChatMessage(ChatRole role, string? content) => (Role, Contents) = (role, content is null ? [] : [new TextContent(content)]);

    public ChatMessage(ChatRole role, IList<AIContent>? contents) => (Role, Contents) = (role, contents ?? []);

    public ChatRole Role { get; set; }
    public IList<AIContent> Contents { get; set; }
    public string? MessageId { get; set; }
    public string Text => string.Concat(Contents.OfType<TextContent>().Select(content => content.Text));
}

public class ChatResponse
{
    public ChatResponse(ChatMessage message) => Messages = [message];

    public IList<ChatMessage> Messages { get; set; }
    public string Text => string.Concat(Messages.Select(message => message.Text));
    public string? ResponseId { get; set; }
    public string? ModelId { get; set; }
    public DateTimeOffset? CreatedAt { get; set; }
    public ChatFinishReason? FinishReason { get; set; }
    public UsageDetails? Usage { get; set; }
    public object? RawRepresentation { get; set; }
    public AdditionalPropertiesDictionary? AdditionalProperties { get; set; }
}

public class ChatResponseUpdate
{
    public ChatResponseUpdate(ChatRole? role, string? content) => (Role, Contents) = (role, content is null ? [] : [new TextContent(content)]);

    public ChatRole? Role { get; set; }
    public IList<AIContent> Contents { get; set; }
    public string Text => string.Concat(Contents.OfType<TextContent>().Select(content => content.Text));
    public string? ResponseId { get; set; }
    public string? MessageId { get; set; }
    public string? ModelId { get; set; }
    public DateTimeOffset? CreatedAt { get; set; }
    public ChatFinishReason? FinishReason { get; set; }
    public object? RawRepresentation { get; set; }
    public AdditionalPropertiesDictionary? AdditionalProperties { get; set; }
}
