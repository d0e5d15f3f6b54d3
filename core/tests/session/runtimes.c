// Opens ONNX Runtimes that cannot be used, and one of a version to come. Arguments: a file of the former, the latter, a bundle. A line of the file is a path,
// how the error begins and how it ends, with tabs between them.
#include <stdio.h>
#include <string.h>

#include "sol_rt.h"

static sol_error* create(const char* library, sol_runtime** runtime) {
  sol_runtime_options options;
  sol_runtime_options_init(&options, sizeof options);
  options.ort_library = library;
  return sol_runtime_create(&options, runtime);
}

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  FILE* file = fopen(argv[1], "r");
  if (file == NULL) return 2;
  int tried = 0, failed = 0;
  for (char line[4096]; fgets(line, sizeof line, file) != NULL; ++tried) {
    const char* path = strtok(line, "\t");
    const char* begin = strtok(NULL, "\t");
    const char* end = strtok(NULL, "\n");
    if (end == NULL) return 2;
    sol_runtime* runtime = NULL;
    sol_error* error = create(path, &runtime);
    const char* message = sol_error_message(error);
    const size_t length = strlen(message), tail = strlen(end);
    if (sol_error_code(error) != SOL_ERROR_RUNTIME || runtime != NULL || strchr(message, '\n') != NULL || strncmp(message, begin, strlen(begin)) != 0 ||
        length < tail || strcmp(message + length - tail, end) != 0) {
      fprintf(stderr, "got code %d, %s\nexpected code %d, %s…%s\n", (int)sol_error_code(error), message, (int)SOL_ERROR_RUNTIME, begin, end);
      ++failed;
    }
    sol_error_release(error);
    sol_runtime_release(runtime);
  }
  fclose(file);
  sol_runtime* newer = NULL;
  sol_model* model = NULL;
  sol_error* error = create(argv[2], &newer);
  if (error == NULL && strcmp(sol_runtime_ort_version(newer), "1.99.0") == 0) error = sol_model_load(newer, argv[3], NULL, &model);
  if (model == NULL) {
    fprintf(stderr, "a newer version: %s\n", sol_error_message(error));
    ++failed;
  }
  sol_error_release(error);
  sol_model_release(model);
  sol_runtime_release(newer);
  printf("%d runtimes that cannot be used and a newer one, %d wrong\n", tried, failed);
  return tried > 0 && failed == 0 ? 0 : 1;
}
