// Plays golden traces (runtime_tests/golden) through the C interface alone: tokens, actions and texts have to be equal, costs within 1e-9.
// Arguments: ONNX Runtime's library, the bundle's folder, the file of cases; `--bodies` goes without native operators.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sol_rt.h"

enum { MOST_TOKENS = 4096, MOST_CHANGES = 64, LONGEST_LINE = 1 << 20 };
#define COST_TOLERANCE 1e-9

typedef struct {
  int step;
  double budget;
} change;

typedef struct {
  const char *name, *tokens, *actions, *costs, *text;  // as the line has them
  int32_t prompt[MOST_TOKENS];
  size_t num_prompt;
  sol_generate_options options;
  change changes[MOST_CHANGES];
  int num_changes;
  int native_only;
} golden_case;

static void must(sol_error* error, const char* what) {
  if (error == NULL) return;
  fprintf(stderr, "%s: %s\n", what, sol_error_message(error));
  exit(1);
}

static void malformed(const char* what) {
  fprintf(stderr, "cases: %s is not what this program knows\n", what);
  exit(2);
}

// The next field of a line that `separator` ends; NULL after the last. Cuts the line.
static char* next_field(char** line, char separator) {
  char* field = *line;
  if (field == NULL) return NULL;
  char* end = strchr(field, separator);
  if (end != NULL) *end = '\0';
  *line = end == NULL ? NULL : end + 1;
  return field;
}

static void read_changes(golden_case* found, char* text) {
  for (char* one; (one = next_field(&text, ',')) != NULL;) {
    if (found->num_changes == MOST_CHANGES || sscanf(one, "%d:%lf", &found->changes[found->num_changes].step, &found->changes[found->num_changes].budget) != 2) {
      malformed(one);
    }
    ++found->num_changes;
  }
}

static void read_option(golden_case* found, const char* key, char* value) {
  sol_generate_options* options = &found->options;
  const struct {
    const char* key;
    double* place;
  } numbers[] = {{"budget", &options->budget},
                 {"max_loss", &options->max_loss},
                 {"tokens_per_second", &options->tokens_per_second},
                 {"kv_density", &options->kv_density},
                 {"channel_density", &options->channel_density},
                 {"bits", &options->bits},
                 {"temperature", &options->temperature},
                 {"top_p", &options->top_p},
                 {"min_p", &options->min_p},
                 {"repetition_penalty", &options->repetition_penalty},
                 {"presence_penalty", &options->presence_penalty},
                 {"frequency_penalty", &options->frequency_penalty}};
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; ++i) {
    if (strcmp(key, numbers[i].key) == 0) {
      *numbers[i].place = strtod(value, NULL);
      return;
    }
  }
  if (strcmp(key, "schedule") == 0) {
    options->schedule = value;
  } else if (strcmp(key, "max_new_tokens") == 0) {
    options->max_new_tokens = atoi(value);
  } else if (strcmp(key, "do_sample") == 0) {
    options->do_sample = atoi(value);
  } else if (strcmp(key, "top_k") == 0) {
    options->top_k = atoi(value);
  } else if (strcmp(key, "seed") == 0) {
    options->seed = strtoll(value, NULL, 10);
  } else if (strcmp(key, "budget_at") == 0) {
    read_changes(found, value);
  } else if (strcmp(key, "native") == 0) {
    found->native_only = atoi(value);
  } else {
    malformed(key);
  }
}

static void read_case(golden_case* found, char* line) {
  memset(found, 0, sizeof *found);
  sol_generate_options_init(&found->options, sizeof found->options);
  char* fields[7];
  for (int i = 0; i < 7; ++i) {
    fields[i] = next_field(&line, '\t');
    if (fields[i] == NULL) malformed("a line of fewer than seven fields");
  }
  found->name = fields[0];
  found->tokens = fields[3];
  found->actions = fields[4];
  found->costs = fields[5];
  found->text = fields[6];
  for (char* token; (token = next_field(&fields[1], ' ')) != NULL;) {
    if (found->num_prompt == MOST_TOKENS) malformed("a prompt this long");
    found->prompt[found->num_prompt++] = atoi(token);
  }
  for (char* option; (option = next_field(&fields[2], ' ')) != NULL;) {
    if (*option == '\0') continue;
    char* value = strchr(option, '=');
    if (value == NULL) malformed(option);
    *value = '\0';
    read_option(found, option, value + 1);
  }
}

static size_t write_utf8(char* to, unsigned code) {
  if (code < 0x80) return to[0] = (char)code, 1;
  if (code < 0x800) return to[0] = (char)(0xc0 | code >> 6), to[1] = (char)(0x80 | (code & 0x3f)), 2;
  if (code < 0x10000) {
    return to[0] = (char)(0xe0 | code >> 12), to[1] = (char)(0x80 | (code >> 6 & 0x3f)), to[2] = (char)(0x80 | (code & 0x3f)), 3;
  }
  to[0] = (char)(0xf0 | code >> 18);
  to[1] = (char)(0x80 | (code >> 12 & 0x3f));
  to[2] = (char)(0x80 | (code >> 6 & 0x3f));
  to[3] = (char)(0x80 | (code & 0x3f));
  return 4;
}

// Writes what a JSON string stands for to `to`, which has room for it. Returns its length.
static size_t read_json_string(const char* json, char* to) {
  size_t length = 0;
  if (*json++ != '"') malformed("a text without quotation marks");
  while (*json != '"') {
    if (*json == '\0') malformed("a text without end");
    if (*json != '\\') {
      to[length++] = *json++;
      continue;
    }
    const char* escapes = "\"\"\\\\//b\bf\fn\nr\rt\t";
    unsigned code = 0, low = 0;
    if (json[1] == 'u') {
      if (sscanf(json + 2, "%4x", &code) != 1) malformed(json);
      json += 6;
      if (code >= 0xd800 && code < 0xdc00 && sscanf(json, "\\u%4x", &low) == 1) {
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        json += 6;
      }
      length += write_utf8(to + length, code);
      continue;
    }
    for (; *escapes != '\0' && *escapes != json[1]; escapes += 2) {
    }
    if (*escapes == '\0') malformed(json);
    to[length++] = escapes[1];
    json += 2;
  }
  to[length] = '\0';
  return length;
}

static int differs(const golden_case* given, const char* what, int place, const char* got, const char* expected) {
  fprintf(stderr, "%s: %s %d: got %s, expected %s\n", given->name, what, place, got, expected);
  return 1;
}

// Plays a case and compares every token as it comes. Returns 1 if something differs.
static int play(sol_session* session, golden_case* given) {
  static char got[LONGEST_LINE], expected[LONGEST_LINE], fields[3][LONGEST_LINE];
  char number[64];
  strcpy(fields[0], given->tokens);
  strcpy(fields[1], given->actions);
  strcpy(fields[2], given->costs);
  char *tokens = fields[0], *actions = fields[1], *costs = fields[2];
  size_t length = 0;
  must(sol_session_start(session, given->prompt, given->num_prompt, &given->options), given->name);
  sol_token token = {.size = sizeof token};
  for (int step = 0; token.finish == SOL_FINISH_NONE; ++step) {
    for (int i = 0; i < given->num_changes; ++i) {
      if (given->changes[i].step == step) must(sol_session_set_budget(session, given->changes[i].budget), given->name);
    }
    must(sol_session_next(session, &token), given->name);
    const char* wanted = next_field(&tokens, ' ');
    snprintf(number, sizeof number, "%d", token.token);
    if (wanted == NULL || strcmp(number, wanted) != 0) return differs(given, "token", step, number, wanted == NULL ? "the end" : wanted);
    if (step > 0) {
      wanted = next_field(&actions, ' ');
      if (wanted == NULL || strcmp(token.action, wanted) != 0) return differs(given, "action", step, token.action, wanted == NULL ? "none" : wanted);
      wanted = next_field(&costs, ' ');
      const double cost = wanted == NULL ? NAN : strtod(wanted, NULL);
      snprintf(number, sizeof number, "%.17g", token.relative_cost);
      if (!(fabs(token.relative_cost - cost) <= COST_TOLERANCE * cost)) return differs(given, "cost", step, number, wanted == NULL ? "none" : wanted);
    }
    if (length + token.text_length >= sizeof got) malformed("a text this long");
    memcpy(got + length, token.text, token.text_length);
    length += token.text_length;
  }
  got[length] = '\0';
  if (tokens != NULL) return differs(given, "token", -1, "the end", tokens);
  read_json_string(given->text, expected);
  return strcmp(got, expected) == 0 ? 0 : differs(given, "text", 0, got, expected);
}

int main(int argc, char** argv) {
  if (argc < 4) {
    fprintf(stderr, "usage: %s ONNXRUNTIME BUNDLE CASES [--bodies]\n", argv[0]);
    return 2;
  }
  FILE* file = fopen(argv[3], "rb");
  if (file == NULL) {
    perror(argv[3]);
    return 2;
  }
  sol_runtime_options options;
  sol_runtime_options_init(&options, sizeof options);
  options.ort_library = argv[1];
  options.native_operators = !(argc > 4 && strcmp(argv[4], "--bodies") == 0);
  sol_runtime* runtime;
  sol_model* model;
  sol_session* session;
  must(sol_runtime_create(&options, &runtime), argv[1]);
  must(sol_model_load(runtime, argv[2], NULL, &model), argv[2]);
  sol_model_info info = {.size = sizeof info};
  must(sol_model_get_info(model, &info), argv[2]);
  must(sol_session_create(model, &session), argv[2]);
  static char line[LONGEST_LINE];
  static golden_case given;
  int played = 0, wrong = 0, left_out = 0;
  while (fgets(line, sizeof line, file) != NULL) {
    line[strcspn(line, "\r\n")] = '\0';
    if (line[0] == '#' || line[0] == '\0') continue;
    read_case(&given, line);
    if (given.native_only && !info.native) {
      ++left_out;
      continue;
    }
    wrong += play(session, &given);
    ++played;
  }
  fclose(file);
  sol_session_release(session);
  sol_model_release(model);
  sol_runtime_release(runtime);
  printf("%d golden cases, %d differ, %d left out (they need native operators)\n", played, wrong, left_out);
  return wrong > 0 || played == 0 ? 1 : 0;
}
