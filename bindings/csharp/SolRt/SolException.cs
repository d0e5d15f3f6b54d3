using System;

namespace SolRt;

/// <summary>Kind of an error, as the core names it.</summary>
public enum SolCode
{
    /// <summary>The call is wrong: a value out of range, or options that contradict each other.</summary>
    Usage = 1,
    /// <summary>The bundle is missing, truncated, foreign or inconsistent.</summary>
    Bundle = 2,
    /// <summary>ONNX Runtime is missing, too old, or failed.</summary>
    Runtime = 3,
    /// <summary>The prompt or text does not fit the context, or the KV cache does not fit the memory.</summary>
    Context = 4,
    /// <summary>The model gave numbers that are not finite.</summary>
    Numeric = 5,
    /// <summary>The session is in use by another thread or generation.</summary>
    Busy = 6,
    /// <summary>The call was cancelled. It arrives as <see cref="OperationCanceledException"/>.</summary>
    Cancelled = 7,
    /// <summary>A file cannot be written; what was there stays as it was.</summary>
    Write = 8,
    /// <summary>Out of memory.</summary>
    Memory = 9,
    /// <summary>The text is not valid, or the bundle has no tokenizer or chat template that the core can use.</summary>
    Text = 10,
    /// <summary>A callback of the host threw. Its own exception arrives instead.</summary>
    Host = 11,
    /// <summary>A fault of the core.</summary>
    Internal = 99,
}

/// <summary>An error of the core. The message is one line: what, where, what was expected and what to do.</summary>
public class SolException : Exception
{
    internal SolException(SolCode code, string message) : base(message) => Code = code;

    /// <summary>The kind of error; each kind but <see cref="SolCode.Internal"/> has a class of its own.</summary>
    public SolCode Code { get; }

    internal static Exception Of(SolCode code, string message) => code switch
    {
        SolCode.Usage => new SolUsageException(message),
        SolCode.Bundle => new SolBundleException(message),
        SolCode.Runtime => new SolRuntimeException(message),
        SolCode.Context => new SolContextException(message),
        SolCode.Numeric => new SolNumericException(message),
        SolCode.Busy => new SolBusyException(message),
        SolCode.Cancelled => new OperationCanceledException(message),
        SolCode.Write => new SolWriteException(message),
        SolCode.Memory => new SolMemoryException(message),
        SolCode.Text => new SolTextException(message),
        _ => new SolException(code, message),
    };
}

/// <summary>The call is wrong: a value out of range, or options that contradict each other.</summary>
public sealed class SolUsageException : SolException
{
    internal SolUsageException(string message) : base(SolCode.Usage, message) { }
}

/// <summary>The bundle is missing, truncated, foreign or inconsistent.</summary>
public sealed class SolBundleException : SolException
{
    internal SolBundleException(string message) : base(SolCode.Bundle, message) { }
}

/// <summary>ONNX Runtime or the core's library is missing or too old, or ONNX Runtime failed.</summary>
public sealed class SolRuntimeException : SolException
{
    internal SolRuntimeException(string message) : base(SolCode.Runtime, message) { }
}

/// <summary>The prompt or text does not fit the context, or the KV cache does not fit the memory.</summary>
public sealed class SolContextException : SolException
{
    internal SolContextException(string message) : base(SolCode.Context, message) { }
}

/// <summary>The model gave numbers that are not finite.</summary>
public sealed class SolNumericException : SolException
{
    internal SolNumericException(string message) : base(SolCode.Numeric, message) { }
}

/// <summary>The session is in use by another thread or generation.</summary>
public sealed class SolBusyException : SolException
{
    internal SolBusyException(string message) : base(SolCode.Busy, message) { }
}

/// <summary>A file cannot be written, because the disk is full or the system refuses; what was there stays as it was.</summary>
public sealed class SolWriteException : SolException
{
    internal SolWriteException(string message) : base(SolCode.Write, message) { }
}

/// <summary>Out of memory.</summary>
public sealed class SolMemoryException : SolException
{
    internal SolMemoryException(string message) : base(SolCode.Memory, message) { }
}

/// <summary>The text is not valid, or the bundle has no tokenizer or chat template that the core can use.</summary>
public sealed class SolTextException : SolException
{
    internal SolTextException(string message) : base(SolCode.Text, message) { }
}
