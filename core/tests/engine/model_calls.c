/* Calls of runtimes and models through the C interface, right and wrong ones:   model_calls LIBRARY FOLDER COST_TABLE TEXT_FOLDER COSTS_FOLDER
   The bundle in TEXT_FOLDER has a tokenizer that the core reads, the one in FOLDER has none such.
   Prints a line for each check that fails, and at last `N checks`. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sol_plan.h"

static int checks = 0;

static void Check(int holds, const char* what) {
  ++checks;
  if (!holds) printf("failed: %s\n", what);
}

/* Releases the error after comparing its code, and a part of its message. */
static void Expect(sol_error* error, sol_code code, const char* part, const char* what) {
  ++checks;
  if (sol_error_code(error) != code || strstr(sol_error_message(error), part) == NULL || strchr(sol_error_message(error), '\n') != NULL) {
    printf("failed: %s: %d %s\n", what, (int)sol_error_code(error), sol_error_message(error));
  }
  sol_error_release(error);
}

static int32_t Stop(void* user, const char* what, uint64_t done, uint64_t total) {
  (void)what, (void)done, (void)total;
  ++*(int*)user;
  return 1;
}

/* Without a tokenizer there is no text in which a stop string could be found: the host has to know. */
static void CheckSessionWithoutText(sol_model* model) {
  sol_session* session = NULL;
  Expect(sol_session_create(model, &session), SOL_OK, "", "a session");
  Check(sol_session_private_bytes(session) == 0, "no buffers before a graph has shown that the sizes are true");
  const int32_t prompt[] = {3, 4, 5};
  const char* const stop[] = {"a"};
  sol_generate_options options;
  sol_generate_options_init(&options, sizeof options);
  options.max_new_tokens = 2;
  options.stop_strings = stop;
  options.num_stop_strings = 1;
  Expect(sol_session_start(session, prompt, 3, &options), SOL_ERROR_TEXT, "stop_strings: got 1", "stop strings without a tokenizer");
  options.num_stop_strings = 0;
  Expect(sol_session_generate(session, prompt, 3, &options, NULL, NULL, NULL), SOL_OK, "", "an empty list of them");
  Check(sol_session_private_bytes(session) > 0, "buffers");
  const int64_t contexts[] = {8, 4};
  sol_profile profile = {.size = sizeof(profile), .repeats = 1, .contexts = contexts};
  Expect(sol_session_profile(session, &profile), SOL_ERROR_USAGE, "got 0 contexts", "no context to measure at");
  profile.num_contexts = 2;
  Expect(sol_session_profile(session, &profile), SOL_ERROR_USAGE, "expected rising contexts", "contexts that fall");
  profile.num_contexts = 1;
  Expect(sol_session_profile(session, &profile), SOL_OK, "", "costs at a context");
  Check(profile.num_measured == 1 && profile.ms[profile.num_actions - 1] > 0 && strstr(profile.table, "\"quick\": false") != NULL, "its table");
  sol_session_release(session);
}

static void CheckText(const sol_model* model) {
  const char* text = "Once upon a time";
  int32_t tokens[32], few[1] = {-7};
  char back[64];
  size_t count = 0, length = 0;
  Expect(sol_model_encode(model, text, strlen(text), 0, tokens, 32, &count), SOL_OK, "", "encode");
  Check(count > 1, "more than one token");
  Expect(sol_model_encode(model, text, strlen(text), 0, few, 1, &length), SOL_OK, "", "encode without room");
  Check(length == count && few[0] == -7, "the full count, and nothing written");
  Expect(sol_model_encode(model, text, strlen(text), 0, NULL, 0, &length), SOL_OK, "", "encode to count");
  Expect(sol_model_encode(model, NULL, 0, 0, NULL, 0, &length), SOL_OK, "", "encode nothing");
  Check(length == 0, "no tokens");
  Expect(sol_model_encode(model, NULL, 3, 0, NULL, 0, &length), SOL_ERROR_USAGE, "text", "encode NULL");
  Expect(sol_model_encode(model, text, 3, 0, tokens, 32, NULL), SOL_ERROR_USAGE, "count", "encode without a count");
  Expect(sol_model_encode(model, "\xff", 1, 0, tokens, 32, &count), SOL_ERROR_TEXT, "UTF-8", "encode bytes");
  Expect(sol_model_encode(model, text, 3, 64, tokens, 32, &count), SOL_ERROR_USAGE, "flags", "unknown flags");
  Expect(sol_model_encode(model, text, strlen(text), 0, tokens, 32, &count), SOL_OK, "", "encode again");
  Expect(sol_model_decode(model, tokens, count, 1, back, sizeof(back), &length), SOL_OK, "", "decode");
  Check(length == strlen(text) && memcmp(back, text, length) == 0, "the text comes back");
  Expect(sol_model_decode(model, NULL, 2, 1, back, sizeof(back), &length), SOL_ERROR_USAGE, "tokens", "decode NULL");
  sol_message message = {"user", "Once"};
  sol_error* error = sol_model_encode_chat(model, &message, 1, tokens, 32, &count);
  Check(sol_error_code(error) == SOL_OK || sol_error_code(error) == SOL_ERROR_TEXT, "a chat, or no segments");
  sol_error_release(error);
  message.content = NULL;
  error = sol_model_encode_chat(model, &message, 1, tokens, 32, &count);
  Check(sol_error_code(error) == SOL_ERROR_USAGE || sol_error_code(error) == SOL_ERROR_TEXT, "a message without content");
  sol_error_release(error);
}

static void CheckInfo(const sol_model* model) {
  sol_model_info info = {sizeof(info)};
  Expect(sol_model_get_info(model, &info), SOL_OK, "", "info");
  Check(strlen(info.identity) == 64 && info.vocab_size == 90 && info.has_policy == 1 && strcmp(info.dense, "k100-s100-q8") == 0, "what it says");
  Check(strcmp(info.cost_model, "bytes") == 0 && info.mapped_bytes > 0 && info.max_context == 100, "costs, bytes, context");
  /* A host that was compiled with a shorter struct, and one with a longer one. */
  union {
    sol_model_info info;
    char bytes[sizeof(sol_model_info) + 64];
  } other;
  memset(&other, 0x55, sizeof(other));
  other.info.size = 16;
  Expect(sol_model_get_info(model, &other.info), SOL_OK, "", "info of an older host");
  Check(other.info.size == 16 && other.bytes[16] == 0x55, "nothing beyond its struct");
  memset(&other, 0x55, sizeof(other));
  other.info.size = sizeof(other);
  Expect(sol_model_get_info(model, &other.info), SOL_OK, "", "info of a newer host");
  Check(other.info.size == sizeof(other) && other.info.vocab_size == 90 && other.bytes[sizeof(sol_model_info)] == 0x55, "what both know");
  other.info.size = 0;
  Expect(sol_model_get_info(model, &other.info), SOL_ERROR_USAGE, "size", "info without a size");
  Expect(sol_model_get_info(model, NULL), SOL_ERROR_USAGE, "NULL", "info to NULL");
  Expect(sol_model_get_info(NULL, &info), SOL_ERROR_USAGE, "NULL", "info of NULL");
  sol_action_info action = {sizeof(action)};
  Expect(sol_model_get_action(model, 0, &action), SOL_OK, "", "action");
  Check(strcmp(action.tag, "k100-s100-q8") == 0 && fabs(action.relative_cost - 1.0) < 1e-12, "dense is first");
  Expect(sol_model_get_action(model, info.num_actions, &action), SOL_ERROR_USAGE, "index", "action beyond the last");
  Expect(sol_model_get_action(model, -1, &action), SOL_ERROR_USAGE, "index", "action before the first");
}

static int32_t Count(void* user, const char* what, uint64_t done, uint64_t total) {
  *(int*)user += strcmp(what, "measuring what actions cost") == 0 && done <= total;
  return 0;
}

/* Costs of a model by a source of them, and the table that it was loaded with. */
static sol_model* Loaded(sol_runtime* runtime, const char* bundle, const char* folder, sol_cost_source costs, sol_cost_table* table, int* measured) {
  sol_model* model = NULL;
  sol_model_options how;
  sol_model_options_init(&how, sizeof how);
  how.costs_folder = folder;
  how.costs = costs;
  how.progress = Count;
  how.user = measured;
  *measured = 0;
  Expect(sol_model_load(runtime, bundle, &how, &model), SOL_OK, "", "a model with costs of a source");
  table->size = sizeof *table;
  Expect(sol_model_get_cost_table(model, table), SOL_OK, "", "its table");
  return model;
}

/* The first load measures and keeps a table, which the next one reads. */
static void CheckFirstLoad(sol_runtime* runtime, const char* bundle, const char* folder) {
  sol_cost_table table;
  int measured;
  sol_model* model = Loaded(runtime, bundle, folder, SOL_COSTS_BYTES, &table, &measured);
  Check(!measured && !*table.text && !*table.file && !*table.note, "costs in bytes by choice");
  sol_model_release(model);
  model = Loaded(runtime, bundle, folder, SOL_COSTS_PROFILED, &table, &measured);
  Check(!measured && !*table.text && !*table.file && !*table.note, "costs in bytes where nobody has profiled");
  sol_model_release(model);
  model = Loaded(runtime, bundle, folder, SOL_COSTS_MEASURED, &table, &measured);
  sol_model_info info = {sizeof(info)};
  Expect(sol_model_get_info(model, &info), SOL_OK, "", "info");
  Check(measured > 0 && strcmp(info.cost_model, "measured") == 0 && strcmp(info.cost_note, table.note) == 0, "a first load measures and says so");
  Check(strstr(table.note, "measured what each action costs on this machine") == table.note, "its note");
  Check(strstr(table.file, folder) == table.file && strstr(table.file, ".quick.json") != NULL, "it keeps a table");
  Check(strstr(table.text, info.identity) != NULL && strstr(table.text, sol_runtime_device(runtime)) != NULL, "of this bundle and device");
  char kept[4096];
  snprintf(kept, sizeof kept, "%s", table.file);
  sol_model_release(model);
  model = Loaded(runtime, bundle, folder, SOL_COSTS_MEASURED, &table, &measured);
  Check(!measured && strcmp(table.file, kept) == 0 && !*table.note, "the next load reads it");
  sol_model_release(model);
  FILE* file = fopen(kept, "w");
  Check(file != NULL && fputs("{", file) >= 0 && fclose(file) == 0, "a damaged table");
  model = Loaded(runtime, bundle, folder, SOL_COSTS_MEASURED, &table, &measured);
  Check(measured > 0 && *table.text && strcmp(table.file, kept) == 0, "is measured anew");
  sol_model_release(model);
  model = Loaded(runtime, bundle, kept, SOL_COSTS_MEASURED, &table, &measured);
  Check(measured > 0 && *table.text && !*table.file && strstr(table.note, "not for the next load: ") != NULL, "a folder that cannot be made");
  sol_model_release(model);
  sol_tuned tuned = {sizeof(tuned)};
  model = Loaded(runtime, bundle, folder, SOL_COSTS_BYTES, &table, &measured);
  Expect(sol_model_tune(model, 0.01, NULL, NULL, &tuned), SOL_OK, "", "settings of the operators");
  Check(tuned.gain >= 1 && tuned.dense_ms > 0, "what they gain");
  Expect(sol_model_tune(model, NAN, NULL, NULL, &tuned), SOL_ERROR_USAGE, "seconds", "no time for settings");
  sol_model_release(model);
}

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  sol_runtime* runtime = NULL;
  sol_model *model = NULL, *other = NULL;
  sol_runtime_options options;
  Check(sol_interface_version() == SOL_RT_INTERFACE_VERSION && strlen(sol_version()) >= 5, "versions");
  Check(sol_error_code(NULL) == SOL_OK && strcmp(sol_error_message(NULL), "") == 0, "no error");
  sol_error_release(NULL);
  sol_runtime_release(NULL);
  sol_model_release(NULL);
  sol_runtime_options_init(NULL, sizeof(sol_runtime_options));
  uint32_t kept = 7;  // a size that no struct has is not written to
  sol_runtime_options_init((sol_runtime_options*)&kept, 1u << 20);
  Check(kept == 7, "a size that no struct has");
  sol_model_options_init(NULL, sizeof(sol_model_options));
  Check(strcmp(sol_runtime_ort_version(NULL), "") == 0, "no version of NULL");

  sol_runtime_options_init(&options, sizeof options);
  options.ort_library = argv[1];
  Expect(sol_runtime_create(&options, NULL), SOL_ERROR_USAGE, "NULL", "no place for the runtime");
  options.threads = 5000;
  Expect(sol_runtime_create(&options, &runtime), SOL_ERROR_USAGE, "threads", "too many threads");
  Check(runtime == NULL, "no runtime");
  options.threads = 2;
  options.size = 1;
  Expect(sol_runtime_create(&options, &runtime), SOL_ERROR_USAGE, "size", "a size that is none");
  options.size = sizeof(options);
  Expect(sol_runtime_create(&options, &runtime), SOL_OK, "", "a runtime");
  Check(strncmp(sol_runtime_ort_version(runtime), "1.", 2) == 0, "its version");

  sol_model_options how;
  sol_model_options_init(&how, sizeof how);
  Expect(sol_model_load(NULL, argv[2], NULL, &other), SOL_OK, "", "a model without a runtime");
  sol_session* none = NULL;
  Expect(sol_session_create(other, &none), SOL_ERROR_USAGE, "without a runtime", "a session without a runtime");
  Expect(sol_model_measure_costs(other, NULL), SOL_ERROR_USAGE, "without a runtime", "costs without a runtime");
  sol_model_release(other);
  other = NULL;
  Expect(sol_model_load(runtime, NULL, NULL, &model), SOL_ERROR_USAGE, "NULL", "no folder");
  Expect(sol_model_load(runtime, argv[2], NULL, NULL), SOL_ERROR_USAGE, "NULL", "no place for the model");
  Expect(sol_model_load(runtime, "/nowhere", NULL, &model), SOL_ERROR_BUNDLE, "no such folder", "no such folder");
  how.cost_table = "/nowhere";
  Expect(sol_model_load(runtime, argv[2], &how, &model), SOL_ERROR_BUNDLE, "/nowhere", "no such cost table");
  how.cost_table = NULL;
  how.verify = (sol_verify)7;
  Expect(sol_model_load(runtime, argv[2], &how, &model), SOL_ERROR_USAGE, "verify", "another verify");
  how.verify = SOL_VERIFY_ALL;
  how.costs = (sol_cost_source)7;
  Expect(sol_model_load(runtime, argv[2], &how, &model), SOL_ERROR_USAGE, "costs: got 7", "another source of costs");
  how.costs = SOL_COSTS_DEFAULT;
  how.max_context = -1;
  Expect(sol_model_load(runtime, argv[2], &how, &model), SOL_ERROR_USAGE, "context size", "a negative context");
  int called = 0;
  how.max_context = 100;
  how.progress = Stop;
  how.user = &called;
  Expect(sol_model_load(runtime, argv[2], &how, &model), SOL_ERROR_HOST, "progress", "a host that stops");
  Check(called == 1 && model == NULL, "stopped at once");
  how.progress = NULL;
  Expect(sol_model_load(runtime, argv[2], &how, &model), SOL_OK, "", "a model");
  how.max_context = 1;
  Expect(sol_model_load(runtime, argv[2], &how, &other), SOL_OK, "", "a model with room for one token");
  Expect(sol_model_measure_costs(other, NULL), SOL_ERROR_USAGE, "max_context: got 1, expected at least 2", "costs without room for a step");
  sol_model_release(other);
  sol_runtime_release(runtime); /* before its model */

  CheckInfo(model);
  size_t count = 0;
  Expect(sol_model_encode(model, "a", 1, 0, NULL, 0, &count), SOL_ERROR_TEXT, "WordLevel", "a tokenizer that the core doesn't read");
  CheckSessionWithoutText(model);
  sol_runtime* second = NULL;
  Expect(sol_runtime_create(&options, &second), SOL_OK, "", "a runtime beside the first");
  Expect(sol_model_load(second, argv[4], NULL, &other), SOL_OK, "", "a model with text");
  CheckText(other);
  sol_model_release(other);
  sol_runtime_release(second);
  Expect(sol_model_measure_costs(NULL, NULL), SOL_ERROR_USAGE, "NULL", "costs of NULL");
  Expect(sol_model_measure_costs(model, "/nowhere/costs"), SOL_ERROR_WRITE, "/nowhere/costs", "costs into no folder");
  Expect(sol_model_measure_costs(model, argv[3]), SOL_OK, "", "costs");
  sol_model_info info = {sizeof(info)};
  Expect(sol_model_get_info(model, &info), SOL_OK, "", "info");
  Check(strcmp(info.cost_model, "measured") == 0, "measured costs are in use");
  runtime = NULL;
  Expect(sol_runtime_create(&options, &runtime), SOL_OK, "", "a second runtime");
  CheckFirstLoad(runtime, argv[2], argv[5]);
  sol_model_options_init(&how, sizeof how);
  how.cost_table = argv[3];
  Expect(sol_model_load(runtime, argv[2], &how, &other), SOL_OK, "", "a model with these costs");
  sol_model_release(model);
  sol_action_info action = {sizeof(action)};
  Expect(sol_model_get_action(other, 3, &action), SOL_OK, "", "an action by measured costs");
  Check(action.relative_cost > 0, "its cost");
  sol_model_release(other);
  sol_runtime_release(runtime);
  printf("%d checks\n", checks);
  return 0;
}
