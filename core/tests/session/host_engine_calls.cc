// Engines of the host's through the C interface. The host's engine here is another session of the core, driven by `sol_session_forward`: what comes of it has
// to be what a session of the core's makes by itself.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <tuple>
#include <vector>

#include "session/host.h"

namespace {

struct Machine {
  sol_session* inner;
  int runs = 0;
  int fail_at = 0;   // the run that fails; 0: none
  int nan_at = 0;    // the run that gives numbers that are not finite
  size_t most = 0;   // tokens that the cache can go back to, where `held` is set
  int asked = 0;
  size_t vocab, hidden;
};

// Does what a run says, with the tokens that the inner session holds.
void Do(Machine& machine, const sol_run& run, float* logits, float* hidden) {
  CHECK(run.past <= Held(machine.inner).size() && run.num_logits <= run.num_tokens && std::string(run.graph).find(".onnx") != std::string::npos);
  CHECK_OK(sol_session_rewind(machine.inner, run.past));
  sol_rows rows{};
  rows.size = sizeof rows;
  rows.num_logits = run.num_logits;
  rows.logits = logits;
  rows.logits_length = run.num_logits * machine.vocab;
  rows.hidden = hidden;
  rows.hidden_length = run.num_logits * machine.hidden;
  CHECK_OK(sol_session_forward(machine.inner, run.tokens, run.num_tokens, run.action, &rows, nullptr));
}

int32_t Forward(void* user, const sol_run* run, float* logits, float* hidden) {
  Machine& machine = *static_cast<Machine*>(user);
  ++machine.runs;
  if (machine.runs == machine.fail_at) return 1;
  Do(machine, *run, logits, hidden);
  if (machine.runs == machine.nan_at) hidden[3] = NAN;
  return 0;
}

size_t HeldLength(void* user, size_t length) {
  Machine& machine = *static_cast<Machine*>(user);
  ++machine.asked;
  return length <= machine.most ? length : 0;
}

struct Hosted {
  Hosted(const Host& host, bool driven, bool cuts = false, sol_model* model = nullptr) : inner(host) {
    machine.inner = inner;
    machine.vocab = static_cast<size_t>(host.info.vocab_size);
    machine.hidden = static_cast<size_t>(host.info.hidden_size);
    sol_host_engine engine{};
    engine.size = sizeof engine;
    engine.user = &machine;
    engine.forward = driven ? nullptr : Forward;
    engine.held = cuts ? HeldLength : nullptr;
    CHECK_OK(sol_session_create_on(model == nullptr ? host.model : model, &engine, &outer));
  }
  ~Hosted() { sol_session_release(outer); }

  Session inner;
  sol_session* outer = nullptr;
  Machine machine{};
};

// Tokens of a generation by its halves.
std::vector<int32_t> Halves(Hosted& hosted, const std::vector<int32_t>& prompt, const sol_generate_options& options, std::vector<std::string>* actions) {
  CHECK_OK(sol_session_start(hosted.outer, prompt.data(), prompt.size(), &options));
  sol_run run{};
  run.size = sizeof run;
  sol_token token{};
  token.size = sizeof token;
  std::vector<float> logits(hosted.machine.vocab), hidden(hosted.machine.hidden);
  std::vector<int32_t> tokens;
  do {
    CHECK_OK(sol_session_begin_step(hosted.outer, &run));
    if (actions != nullptr) actions->push_back(run.action);
    Do(hosted.machine, run, logits.data(), hidden.data());
    CHECK_OK(sol_session_end_step(hosted.outer, logits.data(), logits.size(), hidden.data(), hidden.size(), &token));
    std::fill(logits.begin(), logits.end(), NAN);  // the core has its own copy
    std::fill(hidden.begin(), hidden.end(), NAN);
    tokens.push_back(token.token);
  } while (token.finish == SOL_FINISH_NONE && g_failed == 0);
  return tokens;
}

void TestSameText(const Host& host) {
  Session session(host);
  const std::vector<int32_t> prompt = Prompt(60);
  for (const char* const schedule : {"hull", "sol", "entropy", "uniform"}) {
    sol_generate_options options = Options(50);
    options.schedule = schedule;
    options.budget = 0.6;
    options.do_sample = 1;
    options.seed = 5;
    sol_result expected{}, got{};
    expected.size = got.size = sizeof expected;
    const std::vector<int32_t> tokens = Run(session, prompt, options, &expected);
    Hosted called(host, false), driven(host, true);
    CHECK(Run(called.outer, prompt, options, &got) == tokens && called.machine.runs == 50);
    CHECK(got.achieved_budget == expected.achieved_budget && std::string(got.schedule) == schedule);
    std::vector<std::string> actions;
    CHECK(Halves(driven, prompt, options, &actions) == tokens);
    CHECK(actions.size() == 50 && actions[0] == host.info.dense && Held(driven.outer).size() == 109);
    CHECK_OK(sol_session_result(driven.outer, &got));
    CHECK(got.achieved_budget == expected.achieved_budget && got.num_tokens == 50 && got.finish == SOL_FINISH_LENGTH);
  }
}

// Two of the core's sessions and two of the host's in one round, of which one fails.
void TestRounds(const Host& host) {
  const std::vector<int32_t> prompt = Prompt(40);
  sol_generate_options options = Options(20);
  options.budget = 0.6;
  Session alone(host), first(host), second(host);
  Hosted called(host, false), failing(host, false), driven(host, true);
  failing.machine.fail_at = 3;
  const std::vector<int32_t> expected = Run(alone, prompt, options);
  sol_session* const sessions[] = {first, called.outer, failing.outer, driven.outer, second};
  sol_token tokens[5] = {};
  sol_token* pointers[5];
  sol_error* errors[5];
  for (int i = 0; i < 5; ++i) {
    CHECK_OK(sol_session_start(sessions[i], prompt.data(), prompt.size(), &options));
    tokens[i].size = sizeof tokens[i];
    pointers[i] = &tokens[i];
  }
  for (int round = 1; round <= 20; ++round) {
    CHECK_OK(sol_batch_next(sessions, 5, pointers, errors));
    CHECK(Code(errors[2], round == 3 ? "the host's engine could not run" : "") == (round < 3 ? SOL_OK : round == 3 ? SOL_ERROR_HOST : SOL_ERROR_USAGE));
    CHECK(Code(errors[3], "the host runs the steps") == SOL_ERROR_USAGE);
    for (const int i : {0, 1, 4}) CHECK(Code(errors[i]) == SOL_OK && tokens[i].token == expected[static_cast<size_t>(round - 1)]);
  }
  CHECK(called.machine.runs == 20);
}

// A copy of the files that the core reads where the host has the engine, loaded without a runtime.
struct Bare {
  explicit Bare(const Host& host) {
    const std::string folder = host.folder + "/bare";
    std::filesystem::create_directories(folder);
    for (const char* const name : {"sol_config.json", "tokenizer.json", "chat_segments.json", "generation_config.json"}) {
      if (!std::filesystem::exists(host.bundle + "/" + name)) continue;
      std::filesystem::copy_file(host.bundle + "/" + name, folder + "/" + name, std::filesystem::copy_options::overwrite_existing);
    }
    CHECK_OK(sol_model_load(nullptr, folder.c_str(), nullptr, &model));
  }
  ~Bare() { sol_model_release(model); }
  sol_model* model = nullptr;
};

void TestWithoutRuntime(const Host& host) {
  const Bare bare(host);
  sol_model_info info{};
  info.size = sizeof info;
  CHECK_OK(sol_model_get_info(bare.model, &info));
  CHECK(std::string(info.identity) == host.info.identity && info.native == 0 && info.mapped_bytes == 0 && info.has_policy == host.info.has_policy);
  const std::vector<int32_t> prompt = Prompt(60);
  for (const char* const schedule : {"hull", "entropy"}) {
    sol_generate_options options = Options(50);
    options.schedule = schedule;
    options.budget = 0.6;
    Session session(host);
    Hosted driven(host, true, false, bare.model);
    CHECK(Halves(driven, prompt, options, nullptr) == Run(session, prompt, options));
  }
}

// The policy's logits come from the host: what it favours runs, as far as the budget allows.
void TestPolicyOfTheHost(const Host& host) {
  if (!host.info.has_policy) return;
  const Bare bare(host);
  Hosted hosted(host, true, false, bare.model);
  const std::vector<int32_t> prompt = Prompt(20);
  sol_generate_options options = Options(30);
  options.schedule = "sol";
  options.budget = 0.8;
  CHECK_OK(sol_session_start(hosted.outer, prompt.data(), prompt.size(), &options));
  sol_policy_run policy{};
  policy.size = sizeof policy;
  sol_run run{};
  run.size = sizeof run;
  sol_token token{};
  token.size = sizeof token;
  std::vector<float> logits(hosted.machine.vocab), hidden(hosted.machine.hidden), answer;
  for (int64_t step = -1; token.finish == SOL_FINISH_NONE && g_failed == 0; ++step) {
    CHECK_OK(sol_session_begin_policy(hosted.outer, &policy));
    if (step < 0) {
      CHECK(policy.graph == nullptr);  // the prompt asks no policy
    } else {
      CHECK(std::string(policy.graph) == "policy.onnx" && policy.token == token.token && policy.first == (step == 0) && policy.num_scalars > 0);
      CHECK(policy.hidden_size == hidden.size() && std::equal(hidden.begin(), hidden.end(), policy.hidden));
      if (answer.empty()) {
        size_t size = 1;
        answer.assign(1, 0.0f);
        while (Code(sol_session_end_policy(hosted.outer, answer.data(), size)) == SOL_ERROR_USAGE && size < 1000) answer.assign(++size, 0.0f);
      } else {
        CHECK_OK(sol_session_end_policy(hosted.outer, answer.data(), answer.size()));
      }
      answer[0] = NAN;
      CHECK_FAILS(SOL_ERROR_NUMERIC, "policy.onnx: non-finite", sol_session_end_policy(hosted.outer, answer.data(), answer.size()));
      answer[0] = 0.0f;
    }
    CHECK_OK(sol_session_begin_step(hosted.outer, &run));
    Do(hosted.machine, run, logits.data(), hidden.data());
    CHECK_OK(sol_session_end_step(hosted.outer, logits.data(), logits.size(), hidden.data(), hidden.size(), &token));
  }
  CHECK(std::abs(token.achieved_budget - 0.8) < 0.1);
  CHECK_OK(sol_session_start(hosted.outer, prompt.data(), prompt.size(), &options));
  CHECK_OK(sol_session_begin_step(hosted.outer, &run));
  Do(hosted.machine, run, logits.data(), hidden.data());
  CHECK_OK(sol_session_end_step(hosted.outer, logits.data(), logits.size(), hidden.data(), hidden.size(), &token));
  CHECK_FAILS(SOL_ERROR_USAGE, "the host runs this model's policy", sol_session_begin_step(hosted.outer, &run));
}

void TestRendered(const Host& host) {
  if (!host.info.has_tokenizer) return;
  const std::string text = "a <|im_end|> b <|im_end|>";
  const auto encoded = [&](const std::vector<size_t>& user) {
    size_t count = 0;
    std::vector<int32_t> tokens(200);
    CHECK_OK(sol_model_encode_rendered(host.model, text.data(), text.size(), user.data(), user.size() / 2, tokens.data(), tokens.size(), &count));
    tokens.resize(count);
    return tokens;
  };
  std::vector<int32_t> whole(200);
  size_t count = 0;
  CHECK_OK(sol_model_encode(host.model, text.data(), text.size(), SOL_ENCODE_PARSE_SPECIAL, whole.data(), whole.size(), &count));
  whole.resize(count);
  CHECK(encoded({}) == whole && encoded({0, 1}) == whole);
  const std::vector<int32_t> first_is_text = encoded({2, 3});
  CHECK(first_is_text.size() > whole.size() && first_is_text.back() == whole.back());
  size_t bad[] = {3, 2};
  CHECK_FAILS(SOL_ERROR_USAGE, "stretches in order", sol_model_encode_rendered(host.model, text.data(), text.size(), bad, 1, whole.data(), 0, &count));
  bad[1] = 99;
  CHECK_FAILS(SOL_ERROR_USAGE, "stretches in order", sol_model_encode_rendered(host.model, text.data(), text.size(), bad, 1, whole.data(), 0, &count));
}

void TestReuse(const Host& host) {
  for (const bool cuts : {false, true}) {
    Hosted hosted(host, false, cuts);
    const std::vector<int32_t> prompt = Prompt(30);
    std::vector<uint64_t> reported;
    const auto report = [](void* user, uint64_t done, uint64_t) { static_cast<std::vector<uint64_t>*>(user)->push_back(done); };
    CHECK_OK(sol_session_set_progress(hosted.outer, report, &reported));
    Run(hosted.outer, prompt, Options(10));
    CHECK(reported == std::vector<uint64_t>{30});  // a prompt is one part
    CHECK_OK(sol_session_set_progress(hosted.outer, nullptr, nullptr));
    std::vector<int32_t> longer = Held(hosted.outer);
    longer.push_back(9);
    sol_generate_options options = Options(4);
    options.reuse_cache = 1;
    sol_result result{};
    result.size = sizeof result;
    Run(hosted.outer, longer, options, &result);
    CHECK(result.cached_tokens == (cuts ? 0 : 39) && (hosted.machine.asked > 0) == cuts);
    hosted.machine.most = 1000;
    Run(hosted.outer, longer, options, &result);
    CHECK(result.cached_tokens == 39);
  }
}

// Runs and scores go through the host's engine, too.
void TestRunsAndScores(const Host& host) {
  Session session(host);
  Hosted hosted(host, false);
  const std::vector<int32_t> tokens = Prompt(40);
  std::vector<double> expected(30), got(30);
  std::vector<float> rows_expected, rows_got;
  for (const auto& [on, logprobs, logits] : {std::make_tuple(session.handle, &expected, &rows_expected), std::make_tuple(hosted.outer, &got, &rows_got)}) {
    sol_scores scores{};
    scores.size = sizeof scores;
    scores.logprobs = logprobs->data();
    scores.logprobs_length = logprobs->size();
    sol_generate_options options = Options(1);
    options.budget = 0.6;
    CHECK_OK(sol_session_score(on, tokens.data(), tokens.size(), 10, &options, &scores));
    CHECK_OK(sol_session_rewind(on, 0));
    logits->resize(7 * static_cast<size_t>(host.info.vocab_size));
    sol_rows rows{};
    rows.size = sizeof rows;
    rows.num_logits = 7;
    rows.logits = logits->data();
    rows.logits_length = logits->size();
    CHECK_OK(sol_session_forward(on, tokens.data(), tokens.size(), "k100-s060-q6", &rows, nullptr));
  }
  CHECK(got == expected && rows_got == rows_expected);
}

void TestFailures(const Host& host) {
  const std::vector<int32_t> prompt = Prompt(8);
  const sol_generate_options options = Options(9);
  sol_token token{};
  token.size = sizeof token;
  {
    Hosted hosted(host, false);
    hosted.machine.fail_at = 4;
    CHECK_FAILS(SOL_ERROR_HOST, "the host's engine could not run 1 tokens under",
                sol_session_generate(hosted.outer, prompt.data(), 8, &options, nullptr, nullptr, nullptr));
    CHECK(Held(hosted.outer).size() == 10 && sol_session_busy(hosted.outer) == 0);
    hosted.machine.nan_at = 7;  // the third of the next generation
    CHECK_FAILS(SOL_ERROR_NUMERIC, "non-finite numbers at token 9", sol_session_generate(hosted.outer, prompt.data(), 8, &options, nullptr, nullptr, nullptr));
    CHECK(Held(hosted.outer).size() == 9);
    CHECK_FAILS(SOL_ERROR_USAGE, "the host's engine holds the cache", sol_session_save(hosted.outer, (host.folder + "/hosted.sol").c_str()));
    const std::vector<int32_t> full = Prompt(static_cast<size_t>(host.info.max_context));
    CHECK_OK(sol_session_rewind(hosted.outer, 0));
    CHECK_OK(sol_session_forward(hosted.outer, full.data(), full.size(), nullptr, nullptr, nullptr));
    CHECK_FAILS(SOL_ERROR_CONTEXT, "expected at most", sol_session_forward(hosted.outer, full.data(), 1, nullptr, nullptr, nullptr));
  }
  Hosted hosted(host, true);
  sol_run run{}, again{};
  run.size = again.size = sizeof run;
  std::vector<float> logits(hosted.machine.vocab, 1.0f), hidden(hosted.machine.hidden, 1.0f);
  const auto end = [&](size_t num_logits, size_t num_hidden) {
    return sol_session_end_step(hosted.outer, logits.data(), num_logits, hidden.data(), num_hidden, &token);
  };
  CHECK_FAILS(SOL_ERROR_USAGE, "sol_session_start first", sol_session_begin_step(hosted.outer, &run));
  CHECK_FAILS(SOL_ERROR_USAGE, "sol_session_start first", end(logits.size(), hidden.size()));
  CHECK_OK(sol_session_start(hosted.outer, prompt.data(), 8, &options));
  CHECK_FAILS(SOL_ERROR_USAGE, "begin_step first", end(logits.size(), hidden.size()));
  CHECK_FAILS(SOL_ERROR_USAGE, "the host runs the steps of this session", sol_session_next(hosted.outer, &token));
  CHECK_OK(sol_session_begin_step(hosted.outer, &run));
  CHECK_OK(sol_session_begin_step(hosted.outer, &again));
  CHECK(again.num_tokens == 8 && again.past == 0 && again.tokens[7] == prompt[7]);
  CHECK_FAILS(SOL_ERROR_USAGE, "begin_step and sol_session_end_step", sol_session_next(hosted.outer, &token));
  for (const size_t wrong : {size_t{0}, logits.size() - 1, logits.size() + 1, ~size_t{0}}) {
    CHECK_FAILS(SOL_ERROR_USAGE, "logits: got", end(wrong, hidden.size()));
    CHECK_FAILS(SOL_ERROR_USAGE, "hidden: got", end(logits.size(), wrong));
  }
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_session_end_step(hosted.outer, nullptr, logits.size(), hidden.data(), hidden.size(), &token));
  CHECK_OK(end(logits.size(), hidden.size()));
  CHECK(Held(hosted.outer).size() == 8);
  CHECK_OK(sol_session_begin_step(hosted.outer, &run));
  CHECK(run.num_tokens == 1 && run.past == 8 && run.tokens[0] == token.token);
  logits[5] = INFINITY;
  CHECK_FAILS(SOL_ERROR_NUMERIC, "non-finite", end(logits.size(), hidden.size()));
  CHECK(sol_session_busy(hosted.outer) == 0);
  CHECK_OK(sol_session_start(hosted.outer, prompt.data(), 8, &options));
  sol_session_cancel(hosted.outer);
  CHECK_FAILS(SOL_ERROR_CANCELLED, "", sol_session_begin_step(hosted.outer, &run));
  CHECK_FAILS(SOL_ERROR_USAGE, "without this callback", sol_session_forward(hosted.outer, prompt.data(), 8, nullptr, nullptr, nullptr));

  Session own(host);
  CHECK_OK(sol_session_start(own, prompt.data(), 8, &options));
  CHECK_FAILS(SOL_ERROR_USAGE, "the core's engine runs the steps", sol_session_begin_step(own, &run));
  sol_session* none = nullptr;
  sol_host_engine engine{};
  CHECK_FAILS(SOL_ERROR_USAGE, "size 0", sol_session_create_on(host.model, &engine, &none));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_session_create_on(host.model, nullptr, &none));
  engine.size = sizeof engine;
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_session_create_on(nullptr, &engine, &none));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_session_create_on(host.model, &engine, nullptr));
}

}  // namespace

int main(int argc, char** argv) {
  return RunTests(argc, argv, {
      {"same text", TestSameText},
      {"rounds", TestRounds},
      {"without a runtime", TestWithoutRuntime},
      {"a policy of the host's", TestPolicyOfTheHost},
      {"rendered prompts", TestRendered},
      {"reuse", TestReuse},
      {"runs and scores", TestRunsAndScores},
      {"failures", TestFailures},
  });
}
