// Checks of calls of the C interface, and what a host of a tiny bundle holds.
#pragma once

#include <sol_rt.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

inline int g_failed = 0;
inline const char* g_test = "";

inline void Check(bool good, const char* what, int line) {
  if (good) return;
  std::fprintf(stderr, "%s, line %d: %s\n", g_test, line, what);
  ++g_failed;
}
#define CHECK(condition) Check((condition), #condition, __LINE__)

// The code of an error, which is released. `words` have to be in its message.
inline sol_code Code(sol_error* error, const char* words = "") {
  const sol_code code = sol_error_code(error);
  const std::string message = sol_error_message(error);
  if (message.find(words) == std::string::npos || message.find('\n') != std::string::npos) {
    std::fprintf(stderr, "%s: got the message: %s\n", g_test, message.c_str());
    ++g_failed;
  }
  sol_error_release(error);
  return code;
}
#define CHECK_OK(call) Check(Code(call) == SOL_OK, #call, __LINE__)
#define CHECK_FAILS(expected, words, call) Check(Code((call), (words)) == (expected), #call, __LINE__)

struct Host {
  sol_runtime* runtime = nullptr;
  sol_model* model = nullptr;
  sol_model_info info{};
  std::string bundle, folder;
};

inline sol_generate_options Options(int32_t tokens) {
  sol_generate_options options;
  sol_generate_options_init(&options, sizeof options);
  options.max_new_tokens = tokens;
  static const int32_t none = 0;
  options.end_tokens = &none;  // no token ends the text
  options.num_end_tokens = 0;
  return options;
}

inline std::vector<int32_t> Prompt(size_t length) {
  std::vector<int32_t> tokens(length);
  for (size_t i = 0; i < length; ++i) tokens[i] = static_cast<int32_t>(3 + i % 50);
  return tokens;
}

struct Session {
  explicit Session(const Host& host) { CHECK_OK(sol_session_create(host.model, &handle)); }
  ~Session() { sol_session_release(handle); }
  operator sol_session*() const { return handle; }
  sol_session* handle = nullptr;
};

inline std::vector<int32_t> Held(const sol_session* session) {
  size_t count = 0;
  CHECK_OK(sol_session_tokens(session, nullptr, 0, &count));
  std::vector<int32_t> tokens(count);
  CHECK_OK(sol_session_tokens(session, tokens.data(), count, &count));
  return tokens;
}

// Tokens of a whole generation.
inline std::vector<int32_t> Run(sol_session* session, const std::vector<int32_t>& prompt, const sol_generate_options& options, sol_result* result = nullptr) {
  std::vector<int32_t> tokens;
  const auto keep = [](void* user, const sol_token* token) {
    static_cast<std::vector<int32_t>*>(user)->push_back(token->token);
    return int32_t{0};
  };
  CHECK_OK(sol_session_generate(session, prompt.data(), prompt.size(), &options, keep, &tokens, result));
  return tokens;
}

struct Test {
  const char* name;
  void (*run)(const Host&);
};

// Runs tests. Arguments: ONNX Runtime's library, a tiny bundle with losses, a folder to write to; `--bodies` goes without native operators.
inline int RunTests(int argc, char** argv, const std::vector<Test>& tests) {
  if (argc < 4) return 2;
  Host host;
  host.bundle = argv[2];
  host.folder = argv[3];
  sol_runtime_options options;
  sol_runtime_options_init(&options, sizeof options);
  options.ort_library = argv[1];
  options.threads = 2;
  options.native_operators = !(argc > 4 && std::strcmp(argv[4], "--bodies") == 0);
  CHECK_OK(sol_runtime_create(&options, &host.runtime));
  CHECK_OK(sol_model_load(host.runtime, argv[2], nullptr, &host.model));
  if (g_failed > 0) return 1;
  host.info.size = sizeof host.info;
  CHECK_OK(sol_model_get_info(host.model, &host.info));
  for (const auto& test : tests) {
    g_test = test.name;
    test.run(host);
  }
  sol_model_release(host.model);
  sol_runtime_release(host.runtime);
  std::printf("%d checks failed\n", g_failed);
  return g_failed > 0 ? 1 : 0;
}
