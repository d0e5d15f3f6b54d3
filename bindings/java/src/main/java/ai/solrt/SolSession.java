package ai.solrt;

import java.util.Objects;
import java.util.function.Consumer;
import java.util.function.LongConsumer;
import java.util.function.LongFunction;

/**
 * One conversation with its KV cache. One thread at a time uses it, another gets {@link SolException.Busy}; any thread may call {@link #cancel},
 * {@link #setBudget}, {@link #setTokensPerSecond}, {@link #isBusy} and {@link #close} at any time.
 */
public final class SolSession extends SolHandle {
  /** Results of a run of tokens, of the last one: logits of the vocabulary, and the output of the final norm. */
  public static final class Output {
    public final float[] logits, hidden;

    Output(int vocabSize, int hiddenSize) {
      logits = new float[vocabSize];
      hidden = new float[hiddenSize];
    }
  }

  private final int vocabSize, hiddenSize;
  private Thread owner;
  private int generation;
  private SolSchedule schedule;

  SolSession(long pointer, int vocabSize, int hiddenSize) {
    super(pointer, SolNative::sessionRelease);
    this.vocabSize = vocabSize;
    this.hiddenSize = hiddenSize;
  }

  /**
   * Generates, and calls {@code onToken} with every token in this thread. What {@code onToken} throws ends the generation and comes out of here;
   * {@link #stop}, {@link #rewind}, {@link #save} and {@link #restore} end it without an error.
   */
  public SolResult generate(int[] prompt, GenerateOptions options, Consumer<SolToken> onToken) {
    return own(s -> {
      start(prompt, options);
      try {
        do {
          onToken.accept(next());
        } while (SolNative.sessionBusy(s));
      } catch (Throwable thrown) {
        try {
          SolNative.sessionStop(s);
        } catch (SolException second) {
          thrown.addSuppressed(second);
        }
        throw thrown;
      }
      SolNative.sessionStop(s); // forgets a cancel that came too late for the last step
      byte[][] strings = new byte[2][];
      return new SolResult(SolNative.sessionResult(s, strings), strings);
    });
  }

  /** Checks everything and begins; the prompt runs at the first {@link #next}. A generation that was running ends. */
  public void start(int[] prompt, GenerateOptions options) {
    begin(prompt, options);
  }

  /** As {@link #start}; returns the number of the generation, by which a flow sees that another one took its place. */
  int begin(int[] prompt, GenerateOptions options) {
    return own(s -> {
      SolNative.sessionStart(s, prompt, options.parts());
      schedule = options.schedule();
      return ++generation;
    });
  }

  /** The next token. After the last one another call throws {@link SolException.Usage}. */
  public SolToken next() {
    return own(this::next);
  }

  /**
   * {@link #next} of the generation {@code number}; null if it is over, as after a {@link #rewind}. The number is compared in the call, so that no other
   * generation can begin in between.
   */
  SolToken nextOf(int number) {
    return own(s -> {
      if (generation != number) throw new SolException.Usage("another generation began on this session: use a session for each flow");
      return SolNative.sessionBusy(s) ? next(s) : null;
    });
  }

  private SolToken next(long s) {
    byte[][] strings = new byte[2][];
    return new SolToken(SolNative.sessionNext(s, strings, schedule), strings);
  }

  /** Ends a running generation. The cache keeps what was run. */
  public void stop() {
    run(SolNative::sessionStop);
  }

  /** {@link #stop} of the generation {@code number}, if it is still the last one. */
  void stopOf(int number) {
    run(s -> {
      if (generation == number) SolNative.sessionStop(s);
    });
  }

  /** Result of the running or last generation so far. */
  public SolResult result() {
    byte[][] strings = new byte[2][];
    return own(s -> new SolResult(SolNative.sessionResult(s, strings), strings));
  }

  /**
   * Appends tokens to the cache, under the action of a tag, or null for the dense one. One token is a decode step; several run as a prompt does. Ends a
   * running generation.
   */
  public Output forward(int[] tokens, String action) {
    Output made = new Output(vocabSize, hiddenSize);
    run(s -> SolNative.sessionForward(s, tokens, SolNative.utf8(action), made.logits, made.hidden));
    return made;
  }

  /**
   * Runs the first {@code context} tokens as a prompt on an empty cache, then scores each later token and processes it as a decode step. Of the options the
   * dial, the schedule and the seed count; without a dial it is a budget of 1. Ends a running generation.
   */
  public SolScores score(int[] tokens, int context, GenerateOptions options) {
    int count = Math.max(tokens.length - context, 1);
    double[] logprobs = new double[count], costs = new double[count - 1];
    byte[][] strings = new byte[count][];
    return own(s -> new SolScores(SolNative.sessionScore(s, tokens, context, options.parts(), options.schedule(), logprobs, costs, strings),
                                  strings, logprobs, costs));
  }

  /** Tokens in the KV cache. */
  public int[] tokens() {
    return own(SolNative::sessionTokens);
  }

  /** Keeps the first {@code length} tokens of the cache. Ends a running generation. */
  public void rewind(long length) {
    run(s -> SolNative.sessionRewind(s, length));
  }

  /** Writes tokens and cache to a file, as a whole or not at all. Ends a running generation. */
  public void save(String file) {
    Objects.requireNonNull(file, "file");
    run(s -> SolNative.sessionSave(s, SolNative.utf8(file)));
  }

  /** Reads what {@link #save} wrote, with the same bundle. Ends a running generation. */
  public void restore(String file) {
    Objects.requireNonNull(file, "file");
    run(s -> SolNative.sessionRestore(s, SolNative.utf8(file)));
  }

  /** Bytes of memory that only this session uses: KV cache and buffers. */
  public long privateBytes() {
    return own((LongFunction<Long>) SolNative::sessionPrivateBytes);
  }

  /** The call that is running, or the next one, ends with {@link SolException.Cancelled} within one decode step. Does nothing on a closed session. */
  public void cancel() {
    ifOpen(SolNative::sessionCancel);
  }

  /** Holds from the next decode step on; 0 to 1. Throws {@link SolException.Usage} where no generation is running. */
  public void setBudget(double budget) {
    call(s -> { SolNative.sessionSetBudget(s, budget); return null; });
  }

  /** As {@link #setBudget}, with a rate that needs measured costs. */
  public void setTokensPerSecond(double rate) {
    call(s -> { SolNative.sessionSetTokensPerSecond(s, rate); return null; });
  }

  /** True if a call runs in another thread or a generation is under way. */
  public boolean isBusy() {
    return call(SolNative::sessionBusy);
  }

  @Override void interrupt(long pointer) {
    SolNative.sessionCancel(pointer);
  }

  private void run(LongConsumer body) {
    own(s -> { body.accept(s); return null; });
  }

  /** Runs {@code body} as the one thread that uses the session; a callback in the same thread may use it, too. */
  private <T> T own(LongFunction<T> body) {
    Thread self = Thread.currentThread(), before;
    synchronized (this) {
      if (owner != null && owner != self) throw new SolException.Busy("the session is in use by the thread " + owner.getName() + ": wait, or open another");
      before = owner;
      owner = self;
    }
    try {
      return call(body);
    } finally {
      synchronized (this) {
        owner = before;
      }
    }
  }
}
