package ai.solrt;

import java.io.File;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicReference;

/** Tests on the golden bundle; ../test.sh sets the variables SOL_TEST_..., which ../test-lib.sh describes. */
public final class SolTests {
  interface Body {
    void run() throws Exception;
  }

  private static final String BUNDLE = System.getenv("SOL_TEST_BUNDLE"), SCRATCH = System.getenv("SOL_TEST_SCRATCH");
  private static SolRuntime runtime;
  private static SolModel model;
  private static List<GoldenCase> cases;
  private static int[] prompt;
  private static int passed, failed;

  public static void main(String[] arguments) throws Exception {
    runtime = SolRuntime.open(System.getenv("SOL_TEST_ORT"));
    model = SolModel.load(runtime, BUNDLE);
    cases = GoldenCase.read(System.getenv("SOL_TEST_CASES"), model.info().nativeOperators);
    prompt = cases.get(0).prompt;
    for (GoldenCase golden : cases) test("golden: " + golden.name, () -> golden(model, golden));
    test("golden: function bodies", SolTests::goldenWithoutNativeOperators);
    test("a callback and a loop over next give the same", SolTests::streaming);
    test("what the model says of itself", SolTests::info);
    test("text to tokens and back", SolTests::text);
    test("cancel between tokens", SolTests::cancelBetweenTokens);
    test("cancel from another thread", SolTests::cancelFromAnotherThread);
    test("a budget that moves", SolTests::liveBudget);
    test("stop in a callback", SolTests::stopInCallback);
    test("a call in a callback that ends the generation", SolTests::endInCallback);
    test("close during a generation", SolTests::closeDuringGeneration);
    test("a second thread is told to wait", SolTests::busy);
    test("a stop that is refused", SolTests::refusedStop);
    test("a replay keeps the settings of its trace", SolTests::replay);
    test("a prompt through another variant", SolTests::promptThroughAnotherVariant);
    test("two models at once", SolTests::twoModels);
    test("a model and a runtime may be closed before a session", SolTests::closeInAnyOrder);
    test("a thousand loads", SolTests::thousandLoads);
    test("save, restore and rewind", SolTests::saveAndRestore);
    test("a full disk", SolTests::fullDisk);
    test("wrong folders", SolTests::wrongFolders);
    test("ONNX Runtimes that cannot be used", SolTests::wrongRuntimes);
    test("a newer ONNX Runtime", SolTests::newerRuntime);
    test("options that are out of range", SolTests::badOptions);
    test("objects that are closed", SolTests::closed);
    test("callbacks that throw", SolTests::callbacksThatThrow);
    test("forward gives the logits of a generation", SolTests::forward);
    test("a score has the numbers of the generation", SolTests::score);
    test("a schedule of the app's picks the actions", SolTests::ownSchedule);
    test("costs of the app's", SolTests::ownCosts);
    test("the governor's recorded curves", SolTests::governorCurves);
    test("the governor holds its bounds", SolTests::governor);
    model.close();
    runtime.close();
    System.out.println(passed + " passed, " + failed + " failed");
    if (failed > 0) System.exit(1);
  }

  private static void goldenWithoutNativeOperators() throws Exception {
    SolRuntime.Options options = new SolRuntime.Options();
    options.ortLibrary = System.getenv("SOL_TEST_ORT");
    options.nativeOperators = false;
    try (SolRuntime bodies = SolRuntime.open(options); SolModel own = SolModel.load(bodies, BUNDLE)) {
      check(!own.info().nativeOperators, "the function bodies run");
      for (GoldenCase golden : GoldenCase.read(System.getenv("SOL_TEST_CASES"), false)) golden(own, golden);
    }
  }

  private static void golden(SolModel model, GoldenCase golden) {
    try (SolSession session = model.newSession()) {
      List<Integer> tokens = new ArrayList<>();
      List<String> actions = new ArrayList<>();
      List<Double> costs = new ArrayList<>();
      StringBuilder text = new StringBuilder();
      session.generate(golden.prompt, golden.options, token -> {
        if (!tokens.isEmpty()) {
          actions.add(token.action);
          costs.add(token.relativeCost);
        }
        tokens.add(token.token);
        text.append(token.text);
        Double budget = golden.budgetAt.get(tokens.size());
        if (budget != null) session.setBudget(budget);
      });
      equal(Arrays.toString(golden.tokens), tokens.toString());
      equal(Arrays.toString(golden.actions), actions.toString());
      equal(golden.costs.length, costs.size());
      for (int i = 0; i < golden.costs.length; i++) {
        check(Math.abs(costs.get(i) - golden.costs[i]) <= 1e-9 * golden.costs[i], "cost of step " + i + ": " + costs.get(i) + ", expected " + golden.costs[i]);
      }
      equal(golden.text, text.toString());
    }
  }

  private static void streaming() {
    try (SolSession session = model.newSession()) {
      List<Integer> first = generate(session, 12), second = new ArrayList<>();
      session.start(prompt, options(12));
      check(session.isBusy(), "a generation is under way");
      SolToken token;
      do {
        token = session.next();
        second.add(token.token);
      } while (!token.isLast());
      equal(first, second);
      equal(SolToken.Finish.LENGTH, token.finish);
      fails(SolException.Usage.class, session::next);
      SolResult result = session.result();
      equal(12, result.tokens);
      equal("dense", result.schedule);
      session.generate(prompt, GenerateOptions.builder().maxNewTokens(2).topLogprobs(3).schedule("dense").build(), t -> {
        equal(3, t.topTokens.length);
        check(t.topTokens[0] == t.token && t.topLogprobs[0] >= t.topLogprobs[1] && Math.abs(t.topLogprobs[0] - t.logprob) < 1e-9, "the likeliest token");
      });
      session.generate(prompt, GenerateOptions.builder().maxNewTokens(4).schedule("dense").logitBias(7, 100).build(), t -> equal(7, t.token));
      List<Integer> ended = new ArrayList<>();
      session.generate(prompt, GenerateOptions.builder().maxNewTokens(9).schedule("dense").endTokens(first.get(2)).build(), t -> ended.add(t.token));
      equal(first.indexOf(first.get(2)) + 1, ended.size());
    }
  }

  private static void info() {
    SolModel.Info info = model.info();
    check(info.mappedBytes > 0 && info.layers > 0 && info.identity.length() == 64, "sizes of the bundle");
    List<String> tags = new ArrayList<>();
    for (int i = 0; i < info.actions; i++) tags.add(model.action(i).tag);
    check(tags.contains(info.dense), info.dense + " is among " + tags);
    fails(SolException.Usage.class, () -> model.action(info.actions));
    check(!SolRuntime.version().isEmpty() && runtime.ortVersion().startsWith("1."), "versions");
  }

  private static void text() {
    if (!model.info().hasTokenizer) {
      fails(SolException.Text.class, () -> model.encode("w1"));
      return;
    }
    int[] tokens = model.encode("w1 w2", false, false);
    equal("w1 w2", model.decode(tokens, true).trim());
    String words = String.join(" ", java.util.Collections.nCopies(3000, "w3"));
    equal(words, model.decode(model.encode(words, false, false), true).trim());
    model.encode("\ud83d\ude00 \ud83d \u0000 \u00e9");
    equal(0, model.encode("", false, false).length);
    fails(SolException.Usage.class, () -> model.encodeChat("user"));
    if (model.info().hasChat) check(model.encodeChat("user", "w1").length > 1, "a conversation");
    else fails(SolException.Text.class, () -> model.encodeChat("user", "w1"));
  }

  private static void cancelBetweenTokens() {
    try (SolSession session = model.newSession()) {
      List<Integer> alone = generate(session, 8), seen = new ArrayList<>();
      fails(SolException.Cancelled.class, () -> session.generate(prompt, options(8), token -> {
        seen.add(token.token);
        if (seen.size() == 3) session.cancel();
      }));
      equal(alone.subList(0, 3), seen);
      equal(alone, generate(session, 8));
      session.generate(prompt, options(8), token -> {
        if (token.isLast()) session.cancel(); // too late for this text
      });
      equal(alone, generate(session, 8));
    }
  }

  private static void cancelFromAnotherThread() throws Exception {
    try (SolSession session = model.newSession()) {
      for (int i = 0; i < 20; i++) {
        AtomicBoolean over = new AtomicBoolean();
        Thread canceller = new Thread(() -> {
          while (!over.get()) session.cancel();
        });
        canceller.start();
        fails(SolException.Cancelled.class, () -> {
          while (true) generate(session, 100);
        });
        over.set(true);
        canceller.join();
        try {
          session.stop();
        } catch (SolException.Cancelled late) {
          // the last call of `cancel` came after the generation's end
        }
      }
      equal(8, generate(session, 8).size());
    }
  }

  private static void liveBudget() {
    try (SolSession session = model.newSession()) {
      List<SolToken> tokens = new ArrayList<>();
      session.generate(prompt, GenerateOptions.builder().budget(1).schedule("uniform").maxNewTokens(24).endTokens().build(), token -> {
        tokens.add(token);
        if (tokens.size() == 8) session.setBudget(0.5);
      });
      for (SolToken token : tokens.subList(1, 8)) equal(1.0, token.relativeCost);
      double after = tokens.subList(8, tokens.size()).stream().mapToDouble(t -> t.relativeCost).average().orElse(1);
      check(after < 0.9, "the steps after the change cost " + after);
      check(session.result().requestedBudget < 1, "the requested budget follows");
      fails(SolException.Usage.class, () -> session.setBudget(0.5));
      session.start(prompt, GenerateOptions.builder().budget(1).schedule("uniform").build());
      fails(SolException.Usage.class, () -> session.setBudget(Double.NaN));
      fails(SolException.Usage.class, () -> session.setBudget(1.5));
      fails(SolException.Usage.class, () -> session.setTokensPerSecond(20));
    }
  }

  private static void stopInCallback() {
    try (SolSession session = model.newSession()) {
      List<Integer> seen = new ArrayList<>();
      SolResult result = session.generate(prompt, options(20), token -> {
        seen.add(token.token);
        if (seen.size() == 5) session.stop();
      });
      equal(5, seen.size());
      equal(5, result.tokens);
    }
  }

  private static void endInCallback() {
    String file = Paths.get(SCRATCH, "ends").toString();
    try (SolSession session = model.newSession()) {
      List<Integer> alone = generate(session, 8);
      session.save(file);
      Body[] calls = {
        () -> session.rewind(2), () -> session.save(file), () -> session.restore(file),
        () -> fails(SolException.Write.class, () -> session.save(SCRATCH + "/none/session")),
      };
      for (Body call : calls) {
        List<Integer> seen = new ArrayList<>();
        SolResult result = session.generate(prompt, options(8), token -> {
          seen.add(token.token);
          if (seen.size() == 3) quietly(call);
        });
        equal(alone.subList(0, 3), seen);
        equal(3, result.tokens);
        check(!session.isBusy(), "it is over");
      }
      SolResult result = session.generate(prompt, options(8), token -> fails(SolException.Usage.class, () -> session.rewind(1000000)));
      equal(8, result.tokens); // a call that is refused ends nothing
      equal(alone, generate(session, 8));
    }
  }

  private static void quietly(Body body) {
    try {
      body.run();
    } catch (Exception problem) {
      throw new AssertionError(problem);
    }
  }

  private static void closeDuringGeneration() throws Exception {
    SolSession inCallback = model.newSession();
    fails(SolException.class, () -> inCallback.generate(prompt, options(50), token -> inCallback.close()));
    for (int i = 0; i < 20; i++) {
      SolSession session = model.newSession();
      Thread closer = new Thread(session::close);
      SolException thrown = fails(SolException.class, () -> session.generate(prompt, options(100), token -> {
        if (closer.getState() == Thread.State.NEW) closer.start();
        Thread.yield();
        if (session.tokens().length > 90) join(closer);
      }));
      check(thrown instanceof SolException.Usage || thrown instanceof SolException.Cancelled, thrown.toString());
      closer.join();
      session.close();
      session.cancel();
    }
  }

  private static void busy() throws Exception {
    try (SolSession session = model.newSession()) {
      AtomicReference<SolException> thrown = new AtomicReference<>();
      session.generate(prompt, options(2), token -> {
        Thread other = new Thread(() -> thrown.set(fails(SolException.class, () -> generate(session, 2))));
        other.start();
        join(other);
      });
      check(thrown.get() instanceof SolException.Busy, "" + thrown.get());
    }
  }

  private static void refusedStop() throws Exception {
    try (SolSession session = model.newSession()) {
      List<Integer> seen = new ArrayList<>();
      SolResult result = session.generate(prompt, options(6), token -> {
        seen.add(token.token);
        Thread other = new Thread(() -> fails(SolException.Busy.class, session::stop));
        other.start();
        join(other);
      });
      equal(6, seen.size());
      equal(SolToken.Finish.LENGTH, result.finish);
      check(!session.isBusy(), "it is over");
    }
  }

  private static void replay() {
    try (SolSession session = model.newSession()) {
      int first = generate(session, 1).get(0);
      GenerateOptions.Builder biased = GenerateOptions.builder().maxNewTokens(12).schedule("dense").endTokens().logitBias(first, -100);
      String text = text(session, biased.build()), trace = Paths.get(SCRATCH, "trace").toString();
      String stop = text.substring(text.length() / 2, text.length() / 2 + 3);
      String recorded = text(session, biased.stopStrings(stop).trace(trace).build());
      equal(SolToken.Finish.STOP, session.result().finish);
      equal(recorded, text(session, GenerateOptions.builder().replay(trace).build()));
      equal(SolToken.Finish.STOP, session.result().finish);
      equal(-1, session.result().firstDifference);
      text(session, GenerateOptions.builder().replay(trace).stopStrings().build());
      equal(SolToken.Finish.LENGTH, session.result().finish);
    }
  }

  private static String text(SolSession session, GenerateOptions options) {
    StringBuilder text = new StringBuilder();
    session.generate(prompt, options, token -> text.append(token.text));
    return text.toString();
  }

  private static void promptThroughAnotherVariant() throws Exception {
    SolModel.Options options = new SolModel.Options();
    options.prefill = "s100-q4";
    Path trace = Paths.get(SCRATCH, "prefill-trace");
    List<SolToken> tokens = new ArrayList<>();
    try (SolModel cheap = SolModel.load(runtime, BUNDLE, options); SolSession session = cheap.newSession()) {
      GenerateOptions dense = GenerateOptions.builder().maxNewTokens(3).schedule("dense").endTokens().trace(trace.toString()).build();
      session.generate(prompt, dense, tokens::add);
    }
    equal("k100-s100-q4", tokens.get(0).action);
    equal(model.info().dense, tokens.get(1).action);
    String header = Files.readAllLines(trace).get(0);
    check(header.contains("\"prefill\":\"s100-q4\""), header);
    try (SolSession session = model.newSession()) {
      session.generate(prompt, GenerateOptions.builder().replay(trace.toString()).build(), token -> {});
      equal(-1, session.result().firstDifference);
    }
    options.prefill = "s001-q4";
    String message = fails(SolException.Usage.class, () -> SolModel.load(runtime, BUNDLE, options)).getMessage();
    check(message.startsWith("--prefill: got 's001-q4', expected one of the bundle's variants: s100-q8, "), message);
  }

  private static void twoModels() throws Exception {
    List<Integer> alone;
    try (SolSession session = model.newSession()) {
      alone = generate(session, 30);
    }
    List<Object> results = new ArrayList<>();
    List<Thread> threads = new ArrayList<>();
    for (int i = 0; i < 4; i++) {
      threads.add(new Thread(() -> {
        Object result;
        try (SolModel own = SolModel.load(runtime, BUNDLE); SolSession session = own.newSession()) {
          result = generate(session, 30);
        } catch (Throwable problem) {
          result = problem;
        }
        synchronized (results) {
          results.add(result);
        }
      }));
    }
    threads.forEach(Thread::start);
    for (Thread thread : threads) thread.join();
    for (Object result : results) equal(alone, result);
    equal(4, results.size());
  }

  private static void closeInAnyOrder() {
    SolRuntime other = SolRuntime.open(System.getenv("SOL_TEST_ORT"));
    SolModel own = SolModel.load(other, BUNDLE);
    other.close();
    SolSession session = own.newSession();
    own.close();
    own.close();
    equal(5, generate(session, 5).size());
    session.close();
  }

  private static void thousandLoads() {
    for (int i = 0; i < 1000; i++) {
      try (SolModel own = SolModel.load(runtime, BUNDLE); SolSession session = own.newSession()) {
        if (i % 250 == 0) equal(2, generate(session, 2).size());
      }
    }
    check(new File("/proc/self/fd").list() == null || new File("/proc/self/fd").list().length < 200, "files stay open");
  }

  private static void saveAndRestore() {
    String file = Paths.get(SCRATCH, "session").toString();
    try (SolSession session = model.newSession(); SolSession second = model.newSession()) {
      generate(session, 10);
      session.save(file);
      second.restore(file);
      check(Arrays.equals(session.tokens(), second.tokens()), "the tokens come back");
      session.rewind(prompt.length);
      check(Arrays.equals(prompt, session.tokens()), "the prompt is left");
      check(session.privateBytes() > 0, "memory of a session");
      fails(SolException.Usage.class, () -> session.rewind(1000000));
      fails(SolException.Usage.class, () -> session.rewind(-1));
      fails(SolException.class, () -> session.restore(Paths.get(BUNDLE, "weights.bin").toString()));
      fails(SolException.class, () -> session.restore(file + ".none"));
      equal(10, generate(second, 10).size());
    }
  }

  private static void fullDisk() throws Exception {
    Path file = Paths.get(System.getenv("SOL_TEST_FULL"), "session");
    try (SolSession session = model.newSession()) {
      generate(session, 5);
      fails(SolException.Write.class, () -> session.save(file.toString()));
      check(!Files.exists(file), "no half of a file is left");
      fails(SolException.Write.class, () -> session.save(SCRATCH + "/none/session"));
      equal(5, generate(session, 5).size());
    }
  }

  private static void wrongFolders() throws Exception {
    for (String folder : new String[] {SCRATCH + "/none", SCRATCH, "/dev/null", "", "\u00e9\ud83d\ude00"}) {
      fails(SolException.Bundle.class, () -> SolModel.load(runtime, folder));
    }
    File[] damaged = new File(System.getenv("SOL_TEST_DAMAGED")).listFiles();
    check(damaged.length >= 5, "damaged bundles");
    for (File folder : damaged) {
      SolException error = fails(SolException.Bundle.class, () -> SolModel.load(runtime, folder.getPath()));
      check(!error.getMessage().isEmpty() && error.getMessage().indexOf('\n') < 0, "one line: " + error.getMessage());
    }
    fails(SolException.Usage.class, () -> SolModel.load(runtime, BUNDLE + "\0"));
    fails(NullPointerException.class, () -> SolModel.load(runtime, null));
  }

  private static void wrongRuntimes() throws Exception {
    List<String> lines = Files.readAllLines(Paths.get(System.getenv("SOL_TEST_RUNTIMES")));
    check(lines.size() >= 7, "absent, wrong and old ones");
    for (String line : lines) {
      String[] fields = line.split("\t");
      String message = fails(SolException.Runtime.class, () -> SolRuntime.open(fields[0])).getMessage();
      check(message.startsWith(fields[1]) && message.endsWith(fields[2]) && message.indexOf('\n') < 0, message);
    }
  }

  private static void newerRuntime() {
    try (SolRuntime newer = SolRuntime.open(System.getenv("SOL_TEST_NEWER")); SolModel own = SolModel.load(newer, BUNDLE)) {
      equal("1.99.0", newer.ortVersion());
      golden(own, cases.get(0));
    }
  }

  private static void badOptions() {
    try (SolSession session = model.newSession()) {
      fails(SolException.Usage.class, () -> session.start(new int[0], options(1)));
      fails(SolException.Usage.class, () -> session.start(null, options(1)));
      fails(SolException.Usage.class, () -> session.start(new int[] {1 << 30}, options(1)));
      fails(SolException.Usage.class, () -> session.start(prompt, GenerateOptions.builder().budget(2).build()));
      fails(SolException.Usage.class, () -> session.start(prompt, GenerateOptions.builder().budget(0.5).maxLoss(0.1).build()));
      fails(SolException.Usage.class, () -> session.start(prompt, GenerateOptions.builder().schedule("none").build()));
      fails(NullPointerException.class, () -> GenerateOptions.builder().stopStrings((String) null));
      fails(SolException.class, () -> generateTokens(session, new int[100000]));
      equal(3, generate(session, 3).size());
    }
  }

  private static void closed() {
    SolSession session = model.newSession();
    session.close();
    fails(SolException.Usage.class, () -> generate(session, 1));
    fails(SolException.Usage.class, () -> session.setBudget(0.5));
    session.cancel();
    SolModel own = SolModel.load(runtime, BUNDLE);
    own.close();
    fails(SolException.Usage.class, own::newSession);
  }

  private static void callbacksThatThrow() {
    try (SolSession session = model.newSession()) {
      IllegalStateException thrown = fails(IllegalStateException.class, () -> session.generate(prompt, options(9), token -> {
        throw new IllegalStateException("mine");
      }));
      equal("mine", thrown.getMessage());
      equal(3, generate(session, 3).size());
    }
    SolModel.Options options = new SolModel.Options();
    options.verify = 2;
    options.progress = (what, done, total) -> {
      throw new IllegalStateException("progress");
    };
    equal("progress", fails(IllegalStateException.class, () -> SolModel.load(runtime, BUNDLE, options)).getMessage());
    List<Long> seen = new ArrayList<>();
    options.progress = (what, done, total) -> seen.add(done);
    SolModel.load(runtime, BUNDLE, options).close();
    check(!seen.isEmpty(), "progress is reported");
  }

  private static void forward() {
    try (SolSession session = model.newSession()) {
      List<Integer> expected = generate(session, 6);
      session.rewind(0);
      int[] run = prompt;
      for (int token : expected) {
        SolSession.Output made = session.forward(run, null);
        int best = 0;
        for (int i = 1; i < made.logits.length; i++) if (made.logits[i] > made.logits[best]) best = i;
        equal(token, best);
        equal(model.info().hiddenSize, made.hidden.length);
        run = new int[] {token};
      }
      fails(SolException.Usage.class, () -> session.forward(prompt, "k100"));
      fails(SolException.Usage.class, () -> session.forward(new int[0], null));
    }
  }

  private static void score() {
    try (SolSession session = model.newSession()) {
      GenerateOptions options = GenerateOptions.builder().maxNewTokens(20).endTokens().doSample(false).budget(0.6).schedule("hull").build();
      List<SolToken> made = new ArrayList<>();
      session.generate(prompt, options, made::add);
      int[] tokens = Arrays.copyOf(prompt, prompt.length + 20);
      for (int i = 0; i < 20; i++) tokens[prompt.length + i] = made.get(i).token;
      SolScores scores = session.score(tokens, prompt.length, options);
      equal(20, scores.logprobs.length);
      equal(19, scores.actions.length);
      for (int i = 0; i < 20; i++) {
        equal(made.get(i).logprob, scores.logprobs[i]);
        if (i > 0) equal(made.get(i).action, scores.actions[i - 1]);
        if (i > 0) equal(made.get(i).cost, scores.costs[i - 1]);
      }
      equal("hull", scores.schedule);
      equal(made.get(19).achievedBudget, scores.achievedBudget);
      for (int wrong : new int[] {-1, 0, tokens.length, tokens.length + 1}) fails(SolException.Usage.class, () -> session.score(tokens, wrong, options));
    }
  }

  private static void ownSchedule() {
    String tag = model.action(5).tag;
    int[] calls = {0};
    SolSchedule schedule = choice -> {
      equal((long) calls[0]++, choice.step);
      check(choice.hidden.length == model.info().hiddenSize && choice.relativeCosts.length == choice.actions.length, "sizes");
      check(choice.budget == 0.9 && choice.allowed.length == choice.actions.length && choice.entropy > 0 && choice.margin <= choice.topProbability, "facts");
      return Arrays.asList(choice.actions).indexOf(tag);
    };
    try (SolSession session = model.newSession()) {
      GenerateOptions.Builder builder = GenerateOptions.builder().maxNewTokens(12).endTokens().doSample(false);
      List<Integer> expected = new ArrayList<>(), made = new ArrayList<>();
      session.generate(prompt, builder.schedule("fixed:" + tag).build(), token -> expected.add(token.token));
      GenerateOptions own = builder.schedule("mine").budget(0.9).choose(schedule).build();
      equal("mine", session.generate(prompt, own, token -> made.add(token.token)).schedule);
      equal(expected, made);
      equal(11, calls[0]);
      calls[0] = 0;
      for (String action : session.score(prompt, 1, own).actions) equal(tag, action);
      GenerateOptions failing = builder.choose(choice -> { throw new IllegalStateException("mine"); }).build();
      fails(IllegalStateException.class, () -> session.generate(prompt, failing, token -> { }));
      fails(IllegalStateException.class, () -> session.score(prompt, 1, failing));
      fails(SolException.Usage.class, () -> session.score(prompt, 1, builder.choose(choice -> 1000).build()));
      made.clear();
      session.generate(prompt, builder.choose(null).schedule("fixed:" + tag).budget(Double.NaN).build(), token -> made.add(token.token));
      equal(expected, made);
    }
  }

  private static void ownCosts() {
    try (SolModel own = SolModel.load(runtime, BUNDLE)) {
      StringBuilder lines = new StringBuilder();
      for (String key : new String[] {"s100-q8", "s100-q6", "s100-qmix", "s100-q4", "s060-q8", "s060-q6", "s060-q4"}) {
        lines.append(lines.length() == 0 ? "" : ", ").append('"').append(key).append("\": {\"1.0\": {\"fixed\": ").append(key.equals("s100-q4") ? 2 : 8)
            .append(", \"per_token\": 0, \"per_page\": 0, \"error\": 0}}");
      }
      own.setCosts("{\"format\": \"sol_rt.cost_table\", \"format_version\": 1, \"device\": \"\", \"created\": \"\", \"policy_ms\": 0, \"quick\": false, "
          + "\"steady\": true, \"tuning\": null, \"bundle\": \"" + own.info().identity + "\", \"lines\": {" + lines + "}}");
      equal("measured", own.info().costModel);
      equal("k100-s100-q4", own.action(3).tag);
      equal(0.25, own.action(3).relativeCost);
      fails(SolException.Bundle.class, () -> own.setCosts("{}"));
      own.setCosts(null);
      equal("bytes", own.info().costModel);
    }
  }

  private static void governorCurves() throws Exception {
    SolGovernor governor = null;
    String curve = "";
    for (String line : Files.readAllLines(Paths.get(System.getenv("SOL_TEST_CASES")).resolveSibling("governor.tsv"))) {
      if (line.startsWith("#")) continue;
      String[] fields = line.split("\t");
      if (!fields[0].equals(curve)) {
        curve = fields[0];
        governor = new SolGovernor(number(fields[1]), number(fields[2]), number(fields[3]));
      }
      Boolean charging = fields[5].equals("-") ? null : (Boolean) fields[5].equals("1");
      double expected = number(fields[8]), budget = governor.step(number(fields[4]), charging, number(fields[6]), number(fields[7]));
      check(Math.abs(budget - expected) < 1e-9, curve + ": got " + budget + ", expected " + expected);
    }
    check(!curve.isEmpty(), "curves");
  }

  private static double number(String field) {
    return field.equals("-") ? Double.NaN : Double.parseDouble(field);
  }

  private static void governor() {
    SolGovernor governor = new SolGovernor(0.4, 0.9, Double.NaN);
    for (int i = 0; i < 200; i++) {
      double budget = governor.step(0.5, i % 2 == 0, i < 100 ? 1.5 : 0.1, Double.NaN);
      check(budget >= 0.4 && budget <= 0.9, "budget " + budget);
      if (i == 99) check(budget < 0.9, "heat lowers the budget");
    }
    equal(governor.budget(), governor.step(Double.NaN, null, Double.NaN, Double.NaN));
    fails(SolException.Usage.class, () -> new SolGovernor(0.9, 0.4, Double.NaN));
  }

  static GenerateOptions options(int tokens) {
    return GenerateOptions.builder().maxNewTokens(tokens).schedule("dense").endTokens().build();
  }

  private static List<Integer> generate(SolSession session, int count) {
    List<Integer> tokens = new ArrayList<>();
    session.generate(prompt, options(count), token -> tokens.add(token.token));
    return tokens;
  }

  private static void generateTokens(SolSession session, int[] tokens) {
    session.generate(tokens, options(1), token -> {});
  }

  private static void join(Thread thread) {
    try {
      thread.join();
    } catch (InterruptedException interrupted) {
      throw new AssertionError(interrupted);
    }
  }

  static void test(String name, Body body) {
    try {
      body.run();
      passed++;
    } catch (Throwable problem) {
      failed++;
      System.out.println("FAILED " + name);
      problem.printStackTrace(System.out);
    }
  }

  static void check(boolean holds, String what) {
    if (!holds) throw new AssertionError(what);
  }

  static void equal(Object expected, Object got) {
    if (!expected.equals(got)) throw new AssertionError("got " + got + ", expected " + expected);
  }

  static <T extends Throwable> T fails(Class<T> kind, Body body) {
    try {
      body.run();
    } catch (Throwable thrown) {
      if (kind.isInstance(thrown)) return kind.cast(thrown);
      throw new AssertionError("got " + thrown + ", expected " + kind.getSimpleName(), thrown);
    }
    throw new AssertionError("got nothing, expected " + kind.getSimpleName());
  }
}
