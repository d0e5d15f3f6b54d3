// A small host: loads a bundle, streams an answer, and stops at Ctrl-C. Arguments: ONNX Runtime's library, the bundle's folder, a question, a budget.
//   cc generate.c $(pkg-config --cflags --libs sol_rt) -o generate
//   ./generate /PATH/libonnxruntime.so.1.23.2 BUNDLES/smollm2-135m "Why is the sky blue?" 0.6
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sol_rt.h"

static sol_session* session;

// `sol_session_cancel` sets a flag, so a signal handler may call it.
static void on_interrupt(int signal_number) {
  (void)signal_number;
  sol_session_cancel(session);
}

static int32_t on_token(void* user, const sol_token* token) {
  (void)user;
  fwrite(token->text, 1, token->text_length, stdout);
  fflush(stdout);
  return 0;
}

// Prints an error, if there is one, and says which it was.
static sol_code report(sol_error* error) {
  const sol_code code = sol_error_code(error);
  if (code != SOL_OK) fprintf(stderr, "error: %s\n", sol_error_message(error));
  sol_error_release(error);
  return code;
}

// Tokens of a question: in the model's chat format if this core knows it. The caller frees them.
static int32_t* encode(const sol_model* model, int chat, const char* question, size_t* count) {
  const sol_message message = {"user", question};
  const size_t capacity = strlen(question) + 512;
  int32_t* tokens = malloc(capacity * sizeof *tokens);
  if (tokens == NULL) return NULL;
  sol_error* error = chat ? sol_model_encode_chat(model, &message, 1, tokens, capacity, count)
                          : sol_model_encode(model, question, strlen(question), SOL_ENCODE_ADD_SPECIAL, tokens, capacity, count);
  if (report(error) == SOL_OK && *count <= capacity) return tokens;
  free(tokens);
  return NULL;
}

// Reads a budget; returns whether the text is one.
static int read_budget(const char* text, double* budget) {
  char* end = NULL;
  *budget = strtod(text, &end);
  const int is_share = end != text && *end == '\0' && *budget >= 0 && *budget <= 1;
  if (!is_share) fprintf(stderr, "error: budget: got %s, expected a share of the dense cost from 0 to 1\n", text);
  return is_share;
}

int main(int argc, char** argv) {
  if (argc < 4) {
    fprintf(stderr, "usage: %s ONNXRUNTIME BUNDLE QUESTION [BUDGET]\n", argv[0]);
    return 2;
  }
  double budget = NAN;  // not asked for
  if (argc > 4 && !read_budget(argv[4], &budget)) return 2;
  sol_runtime_options runtime_options;
  sol_runtime_options_init(&runtime_options, sizeof runtime_options);
  runtime_options.ort_library = argv[1];
  sol_runtime* runtime = NULL;
  sol_model* model = NULL;
  sol_model_info info = {.size = sizeof info};
  int32_t* prompt = NULL;
  size_t count = 0;
  int status = 1;
  if (report(sol_runtime_create(&runtime_options, &runtime)) != SOL_OK) goto done;
  if (report(sol_model_load(runtime, argv[2], NULL, &model)) != SOL_OK) goto done;
  if (report(sol_model_get_info(model, &info)) != SOL_OK) goto done;
  if (report(sol_session_create(model, &session)) != SOL_OK) goto done;
  prompt = encode(model, info.has_chat, argv[3], &count);
  if (prompt == NULL) goto done;

  sol_generate_options options;
  sol_generate_options_init(&options, sizeof options);
  options.max_new_tokens = 200;
  options.budget = budget;
  sol_result result = {.size = sizeof result};
  signal(SIGINT, on_interrupt);
  const sol_code code = report(sol_session_generate(session, prompt, count, &options, on_token, NULL, &result));
  signal(SIGINT, SIG_DFL);
  printf("\n");
  if (code == SOL_OK) {
    fprintf(stderr, "%d tokens, %.1f tokens/s, budget %.2f requested, %.2f achieved (%s)\n", result.num_tokens, result.tokens_per_second,
            result.requested_budget, result.achieved_budget, result.schedule);
  }
  status = code == SOL_OK ? 0 : 1;

done:
  free(prompt);
  sol_session_release(session);
  sol_model_release(model);
  sol_runtime_release(runtime);
  return status;
}
