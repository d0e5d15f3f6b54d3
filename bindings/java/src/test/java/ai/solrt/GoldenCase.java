package ai.solrt;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.TreeMap;

/** One line of cases.tsv: what to generate, and what must come out. The file's first lines describe its fields. */
final class GoldenCase {
  final String name, text;
  final int[] prompt, tokens;
  final String[] actions;
  final double[] costs;
  final GenerateOptions options;
  /** Decode step to the budget that the host sets before it. */
  final TreeMap<Integer, Double> budgetAt = new TreeMap<>();
  /** True if only hosts with native operators play it. */
  private boolean nativeOnly;

  private GoldenCase(String line) {
    String[] fields = line.split("\t", -1);
    name = fields[0];
    prompt = ints(fields[1]);
    options = options(fields[2]);
    tokens = ints(fields[3]);
    actions = words(fields[4]);
    costs = Arrays.stream(words(fields[5])).mapToDouble(Double::parseDouble).toArray();
    text = unquote(fields[6]);
  }

  /** The cases that a host plays with native operators, or without. */
  static List<GoldenCase> read(String file, boolean nativeOperators) throws IOException {
    List<GoldenCase> cases = new ArrayList<>();
    for (String line : Files.readAllLines(Paths.get(file), StandardCharsets.UTF_8)) {
      if (!line.isEmpty() && !line.startsWith("#")) cases.add(new GoldenCase(line));
    }
    if (!nativeOperators) cases.removeIf(golden -> golden.nativeOnly);
    return cases;
  }

  private GenerateOptions options(String field) {
    GenerateOptions.Builder builder = GenerateOptions.builder();
    for (String word : words(field)) {
      String key = word.substring(0, word.indexOf('=')), value = word.substring(key.length() + 1);
      switch (key) {
        case "budget": builder.budget(Double.parseDouble(value)); break;
        case "schedule": builder.schedule(value); break;
        case "max_loss": builder.maxLoss(Double.parseDouble(value)); break;
        case "tokens_per_second": builder.tokensPerSecond(Double.parseDouble(value)); break;
        case "kv_density": builder.kvDensity(Double.parseDouble(value)); break;
        case "channel_density": builder.channelDensity(Double.parseDouble(value)); break;
        case "bits": builder.bits(Double.parseDouble(value)); break;
        case "max_new_tokens": builder.maxNewTokens(Integer.parseInt(value)); break;
        case "do_sample": builder.doSample(value.equalsIgnoreCase("true") || value.equals("1")); break;
        case "temperature": builder.temperature(Double.parseDouble(value)); break;
        case "top_k": builder.topK(Integer.parseInt(value)); break;
        case "top_p": builder.topP(Double.parseDouble(value)); break;
        case "min_p": builder.minP(Double.parseDouble(value)); break;
        case "repetition_penalty": builder.repetitionPenalty(Double.parseDouble(value)); break;
        case "presence_penalty": builder.presencePenalty(Double.parseDouble(value)); break;
        case "frequency_penalty": builder.frequencyPenalty(Double.parseDouble(value)); break;
        case "seed": builder.seed(Long.parseLong(value)); break;
        case "native": nativeOnly = value.equals("1"); break;
        case "budget_at":
          for (String pair : value.split(",")) {
            String[] parts = pair.split(":");
            budgetAt.put(Integer.parseInt(parts[0]), Double.parseDouble(parts[1]));
          }
          break;
        default: throw new IllegalArgumentException(name + ": unknown option " + word);
      }
    }
    return builder.build();
  }

  private static String[] words(String field) {
    return field.trim().isEmpty() ? new String[0] : field.trim().split(" +");
  }

  private static int[] ints(String field) {
    return Arrays.stream(words(field)).mapToInt(Integer::parseInt).toArray();
  }

  /** The text of a JSON string. */
  private static String unquote(String json) {
    StringBuilder text = new StringBuilder();
    for (int i = 1; i < json.length() - 1; i++) {
      char c = json.charAt(i);
      if (c == '\\') {
        c = json.charAt(++i);
        int plain = "nrtbf".indexOf(c);
        if (plain >= 0) c = "\n\r\t\b\f".charAt(plain);
        if (c == 'u') {
          c = (char) Integer.parseInt(json.substring(i + 1, i + 5), 16);
          i += 4;
        }
      }
      text.append(c);
    }
    return text.toString();
  }
}
