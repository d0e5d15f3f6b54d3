// Handles of the core that the garbage collector can't lose, and the memory that arguments lie in during a call.
using System;
using System.Collections.Generic;
using System.Runtime.InteropServices;

namespace SolRt;

/// <summary>One reference to a runtime, model or session. It is released when no call uses the handle any more, from whatever thread.</summary>
internal sealed unsafe class NativeHandle : SafeHandle
{
    private readonly delegate*<IntPtr, void> _release;

    internal NativeHandle(IntPtr value, delegate*<IntPtr, void> release) : base(IntPtr.Zero, ownsHandle: true)
    {
        _release = release;
        SetHandle(value);
    }

    public override bool IsInvalid => handle == IntPtr.Zero;

    protected override bool ReleaseHandle()
    {
        _release(handle);
        return true;
    }

    /// <summary>The pointer, which stays valid until the result is disposed, also if another thread disposes the handle meanwhile.</summary>
    internal Use Borrow(string owner) => new(this, owner);

    internal readonly ref struct Use
    {
        private readonly NativeHandle _handle;

        internal Use(NativeHandle handle, string owner)
        {
            var added = false;
            try
            {
                handle.DangerousAddRef(ref added);
            }
            catch (ObjectDisposedException)
            {
                throw new ObjectDisposedException(owner);
            }
            _handle = handle;
            Value = handle.DangerousGetHandle();
        }

        internal IntPtr Value { get; }

        public void Dispose() => _handle.DangerousRelease();
    }
}

/// <summary>Texts and arrays outside the garbage collector's heap, freed together.</summary>
internal sealed unsafe class NativeMemory : IDisposable
{
    private readonly List<IntPtr> _blocks = new();

    /// <summary>UTF-8 that ends in NUL. A lone surrogate becomes U+FFFD; null stays null.</summary>
    internal byte* Text(string? text, string what)
    {
        if (text is null)
        {
            return null;
        }
        var nul = text.IndexOf('\0');
        if (nul >= 0)
        {
            throw new SolUsageException($"{what}: got the character U+0000 at place {nul}, expected a text without it; remove it");
        }
        var block = Marshal.StringToCoTaskMemUTF8(text);
        _blocks.Add(block);
        return (byte*)block;
    }

    internal T* Array<T>(int count) where T : unmanaged
    {
        var block = Marshal.AllocCoTaskMem(Math.Max(1, count) * sizeof(T));
        _blocks.Add(block);
        return (T*)block;
    }

    internal int* Array(IReadOnlyList<int> values)
    {
        var array = Array<int>(values.Count);
        for (var i = 0; i < values.Count; ++i)
        {
            array[i] = values[i];
        }
        return array;
    }

    public void Dispose()
    {
        foreach (var block in _blocks)
        {
            Marshal.FreeCoTaskMem(block);
        }
        _blocks.Clear();
    }
}
