import ai.solrt.GenerateOptions;
import ai.solrt.SolModel;
import ai.solrt.SolResult;
import ai.solrt.SolRuntime;
import ai.solrt.SolSession;

/** An answer from a bundle:   java -Dai.solrt.library=.../libsol_rt_jni.so -cp ... Generate ONNXRUNTIME_LIBRARY BUNDLE "a question" [BUDGET] */
public final class Generate {
  public static void main(String[] arguments) {
    if (arguments.length < 3) {
      System.err.println("usage: Generate ONNXRUNTIME_LIBRARY BUNDLE QUESTION [BUDGET]");
      System.exit(2);
    }
    GenerateOptions.Builder options = GenerateOptions.builder().maxNewTokens(100);
    if (arguments.length > 3) options.budget(Double.parseDouble(arguments[3]));
    try (SolRuntime runtime = SolRuntime.open(arguments[0]);
         SolModel model = SolModel.load(runtime, arguments[1]);
         SolSession session = model.newSession()) {
      // A bundle whose template the core cannot render goes on with the question as plain text.
      int[] prompt = model.info().hasChat ? model.encodeChat("user", arguments[2]) : model.encode(arguments[2]);
      SolResult result = session.generate(prompt, options.build(), token -> {
        System.out.print(token.text);
        System.out.flush();
      });
      System.err.printf("%n%d tokens, %.1f a second, budget %.2f%n", result.tokens, result.tokensPerSecond, result.achievedBudget);
    }
  }
}
