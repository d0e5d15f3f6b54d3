package ai.solrt;

import java.util.function.LongConsumer;
import java.util.function.LongFunction;

/** A native object. It is freed by {@link #close}, but never while a call uses it: then the last of these calls frees it. Thread-safe. */
abstract class SolHandle implements AutoCloseable {
  private final long pointer;
  private final LongConsumer release;
  private int calls;
  private boolean closed;

  SolHandle(long pointer, LongConsumer release) {
    this.pointer = pointer;
    this.release = release;
  }

  final <T> T call(LongFunction<T> body) {
    synchronized (this) {
      if (closed) throw new SolException.Usage(getClass().getSimpleName() + " is closed: make another one");
      calls++;
    }
    try {
      return body.apply(pointer);
    } finally {
      boolean last;
      synchronized (this) {
        last = --calls == 0 && closed;
      }
      if (last) release.accept(pointer);
    }
  }

  /** Ends the use of this object; returns at once, from any thread. Closing twice does nothing. */
  @Override public void close() {
    boolean idle;
    synchronized (this) {
      if (closed) return;
      closed = true;
      idle = calls == 0;
      if (!idle) interrupt(pointer);
    }
    if (idle) release.accept(pointer);
  }

  /** Calls {@code body} with the pointer, under the lock: for calls that return at once. Does nothing on a closed object that no call uses. */
  final synchronized void ifOpen(LongConsumer body) {
    if (!closed || calls > 0) body.accept(pointer);
  }

  /** Makes the running calls end soon. Called under the lock, so that the pointer is valid. */
  void interrupt(long pointer) {}
}
