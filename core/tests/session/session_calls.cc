// Sessions and generations through the C interface: limits, callbacks, cancellation, two threads, traces, files and bad calls.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "session/host.h"

#ifndef _WIN32
#include <sys/resource.h>
#include <unistd.h>
#endif

namespace {

std::string Content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void TestLimits(const Host& host) {
  Session session(host);
  sol_result result{};
  result.size = sizeof result;
  CHECK(Run(session, Prompt(5), Options(7), &result).size() == 7);
  CHECK(result.num_tokens == 7 && result.prompt_tokens == 5 && result.cached_tokens == 0 && result.finish == SOL_FINISH_LENGTH);
  CHECK(result.first_difference == -1 && result.tokens_per_second > 0 && result.time_to_first_token_ms > 0);
  CHECK(Held(session).size() == 11);  // the last token is not processed
  CHECK(sol_session_busy(session) == 0);
  CHECK(sol_session_private_bytes(session) > 0);

  sol_generate_options options = Options(3);
  options.reuse_cache = 1;
  std::vector<int32_t> prompt = Held(session);
  prompt.push_back(9);
  Run(session, prompt, options, &result);
  CHECK(result.cached_tokens == 11);
  CHECK_OK(sol_session_rewind(session, 4));
  CHECK(Held(session).size() == 4);
  CHECK_FAILS(SOL_ERROR_USAGE, "expected 0 to 4", sol_session_rewind(session, 5));

  // the context ends a text, and a prompt that is too long is refused before anything runs
  const std::vector<int32_t> full = Prompt(static_cast<size_t>(host.info.max_context));
  CHECK(Run(session, full, Options(9), &result).size() == 1);
  const std::vector<int32_t> longer = Prompt(full.size() + 1);
  CHECK_FAILS(SOL_ERROR_CONTEXT, "the model's context; shorten it", sol_session_start(session, longer.data(), longer.size(), nullptr));
}

void TestTokens(const Host& host) {
  Session session(host);
  const std::vector<int32_t> prompt = Prompt(6);
  sol_generate_options options = Options(5);
  options.top_logprobs = 4;
  options.schedule = "fixed:k100-s100-q4";
  CHECK_OK(sol_session_start(session, prompt.data(), prompt.size(), &options));
  CHECK(sol_session_busy(session) == 1);
  sol_token token{};
  token.size = sizeof token;
  for (int step = 0; step < 5; ++step) {
    CHECK_OK(sol_session_next(session, &token));
    CHECK(std::string(token.action) == (step == 0 ? host.info.dense : "k100-s100-q4"));
    CHECK((token.relative_cost > 0) == (step > 0) && token.num_top == 4 && token.top_tokens[0] == token.token);
    CHECK(token.top_logprobs[0] == token.logprob && token.top_logprobs[3] <= token.top_logprobs[2] && std::strlen(token.text) == token.text_length);
    CHECK(token.finish == (step == 4 ? SOL_FINISH_LENGTH : SOL_FINISH_NONE));
  }
  CHECK_FAILS(SOL_ERROR_USAGE, "over", sol_session_next(session, &token));

  // an older host, whose structs end earlier, gets what it knows
  struct {
    uint32_t size;
    int32_t token;
    uint64_t beyond[2];
  } old = {8, -1, {7, 7}};
  CHECK_OK(sol_session_start(session, prompt.data(), prompt.size(), &options));
  CHECK_OK(sol_session_next(session, reinterpret_cast<sol_token*>(&old)));
  CHECK(old.size == 8 && old.token >= 0 && old.beyond[0] == 7 && old.beyond[1] == 7);
  // so do its options, and a newer host's are longer than what this library knows
  old = {0, 0, {7, 7}};
  sol_generate_options_init(reinterpret_cast<sol_generate_options*>(&old), 8);
  CHECK(old.size == 8 && old.token == -1 && old.beyond[0] == 7 && old.beyond[1] == 7);
  CHECK_OK(sol_session_start(session, prompt.data(), prompt.size(), reinterpret_cast<sol_generate_options*>(&old)));
  struct {
    sol_generate_options known;
    uint64_t beyond;
  } newer;
  newer.beyond = 7;
  sol_generate_options_init(&newer.known, sizeof newer);
  CHECK(newer.known.size == sizeof newer && newer.known.max_new_tokens == -1 && newer.beyond == 0);
  CHECK_OK(sol_session_start(session, prompt.data(), prompt.size(), &newer.known));
}

void TestCallbacks(const Host& host) {
  Session session(host);
  struct Seen {
    sol_session* session;
    int count;
    bool good;
  } seen = {session, 0, true};
  const auto stop_at_three = [](void* user, const sol_token*) {
    Seen& state = *static_cast<Seen*>(user);
    size_t count = 0;
    sol_result result{};
    result.size = sizeof result;
    state.good &= Code(sol_session_tokens(state.session, nullptr, 0, &count)) == SOL_OK && count > 0;
    state.good &= Code(sol_session_result(state.session, &result)) == SOL_OK && result.num_tokens == state.count + 1;
    state.good &= Code(sol_session_rewind(state.session, 0)) == SOL_ERROR_BUSY;
    return int32_t{++state.count == 3};
  };
  const std::vector<int32_t> prompt = Prompt(4);
  const sol_generate_options options = Options(50);
  sol_result result{};
  result.size = sizeof result;
  CHECK_OK(sol_session_generate(session, prompt.data(), prompt.size(), &options, stop_at_three, &seen, &result));
  CHECK(seen.count == 3 && seen.good && result.num_tokens == 3 && result.finish == SOL_FINISH_NONE);
  CHECK(sol_session_busy(session) == 0);
  CHECK_OK(sol_session_generate(session, prompt.data(), prompt.size(), &options, nullptr, nullptr, nullptr));
}

void TestCancellation(const Host& host) {
  Session session(host);
  const std::vector<int32_t> prompt = Prompt(8), whole = Run(session, prompt, Options(40));
  const size_t after = Held(session).size();

  // from a callback: the text so far is what an undisturbed run has
  struct Seen {
    sol_session* session;
    std::vector<int32_t> tokens;
  } seen = {session, {}};
  const auto cancel = [](void* user, const sol_token* token) {
    Seen& state = *static_cast<Seen*>(user);
    state.tokens.push_back(token->token);
    if (state.tokens.size() == 5) sol_session_cancel(state.session);
    return int32_t{0};
  };
  const sol_generate_options options = Options(40);
  CHECK_FAILS(SOL_ERROR_CANCELLED, "cancelled", sol_session_generate(session, prompt.data(), prompt.size(), &options, cancel, &seen, nullptr));
  CHECK(seen.tokens == std::vector<int32_t>(whole.begin(), whole.begin() + 5));
  CHECK(sol_session_busy(session) == 0 && Held(session).size() < after);
  CHECK(Run(session, prompt, options) == whole);

  // from another thread, at any moment, many times
  const std::vector<int32_t> long_prompt = Prompt(static_cast<size_t>(host.info.max_context) - 50);
  int cancelled = 0;
  for (int round = 0; round < 30; ++round) {
    std::atomic<bool> begun{false};
    std::thread other([&] {
      while (!begun) std::this_thread::yield();
      std::this_thread::sleep_for(std::chrono::microseconds(round * 300));
      sol_session_cancel(session);
    });
    begun = true;
    const sol_code code = Code(sol_session_generate(session, long_prompt.data(), long_prompt.size(), &options, nullptr, nullptr, nullptr));
    other.join();
    CHECK(code == SOL_OK || code == SOL_ERROR_CANCELLED);
    cancelled += code == SOL_ERROR_CANCELLED;
    CHECK_OK(sol_session_stop(session));  // forgets a request that came too late
  }
  CHECK(cancelled > 0);
  CHECK(Run(session, prompt, options) == whole);

  // before a call: the next one
  sol_session_cancel(session);
  CHECK_FAILS(SOL_ERROR_CANCELLED, "", sol_session_start(session, prompt.data(), prompt.size(), &options));
  CHECK_OK(sol_session_start(session, prompt.data(), prompt.size(), &options));
  sol_token token{};
  token.size = sizeof token;
  CHECK_OK(sol_session_next(session, &token));
  sol_session_cancel(session);
  CHECK_FAILS(SOL_ERROR_CANCELLED, "", sol_session_next(session, &token));
  CHECK_FAILS(SOL_ERROR_USAGE, "over", sol_session_next(session, &token));

  // a start that was cancelled ends the text before it, as every start does
  CHECK_OK(sol_session_start(session, prompt.data(), prompt.size(), &options));
  sol_session_cancel(session);
  CHECK_FAILS(SOL_ERROR_CANCELLED, "before it began", sol_session_start(session, prompt.data(), prompt.size(), &options));
  CHECK(sol_session_busy(session) == 0);
  CHECK_FAILS(SOL_ERROR_USAGE, "over", sol_session_next(session, &token));
}

void TestTwoThreads(const Host& host) {
  // one session: the second thread is refused, and the text is not mixed
  Session session(host);
  const std::vector<int32_t> prompt = Prompt(8), other_prompt = Prompt(3), whole = Run(session, prompt, Options(60));
  std::atomic<bool> done{false};
  std::atomic<int> refused{0};
  std::thread intruder([&] {
    sol_token token{};
    token.size = sizeof token;
    while (!done) {
      size_t count = 0;
      refused += Code(sol_session_tokens(session, nullptr, 0, &count)) == SOL_ERROR_BUSY;
      refused += Code(sol_session_rewind(session, 0)) == SOL_ERROR_BUSY;
      sol_session_busy(session);
    }
  });
  struct Slow {
    std::atomic<int>* refused;
    std::vector<int32_t> tokens;
  } slow = {&refused, {}};
  const auto wait_for_refusals = [](void* user, const sol_token* token) {
    Slow& state = *static_cast<Slow*>(user);
    state.tokens.push_back(token->token);
    for (const int before = *state.refused; *state.refused < before + 2;) std::this_thread::yield();
    return int32_t{0};
  };
  const sol_generate_options options = Options(60);
  sol_error* error;
  do {  // the intruder may hold the session at the very moment
    slow.tokens.clear();
    error = sol_session_generate(session, prompt.data(), prompt.size(), &options, wait_for_refusals, &slow, nullptr);
  } while (Code(error) == SOL_ERROR_BUSY);
  done = true;
  intruder.join();
  CHECK(slow.tokens == whole);

  // two sessions of one model at once
  std::vector<int32_t> found[2];
  std::thread threads[2];
  for (int i = 0; i < 2; ++i) {
    threads[i] = std::thread([&, i] {
      Session own(host);
      for (int round = 0; round < 3; ++round) found[i] = Run(own, i == 0 ? prompt : other_prompt, Options(60));
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(found[0] == whole);
  CHECK(found[1] == Run(session, other_prompt, Options(60)));
}

void TestLiveBudget(const Host& host) {
  Session session(host);
  const std::vector<int32_t> prompt = Prompt(6);
  CHECK_FAILS(SOL_ERROR_USAGE, "no generation is running", sol_session_set_budget(session, 0.5));
  sol_generate_options options = Options(200);
  options.budget = 1.0;
  options.schedule = "hull";
  CHECK_OK(sol_session_start(session, prompt.data(), prompt.size(), &options));
  CHECK_FAILS(SOL_ERROR_USAGE, "got 1.5, expected a share", sol_session_set_budget(session, 1.5));
  CHECK_FAILS(SOL_ERROR_USAGE, "expected a share", sol_session_set_budget(session, std::nan("")));
  CHECK_FAILS(SOL_ERROR_USAGE, "no times measured", sol_session_set_tokens_per_second(session, 20));
  sol_token token{};
  token.size = sizeof token;
  for (int step = 0; step < 20; ++step) CHECK_OK(sol_session_next(session, &token));
  CHECK(token.achieved_budget == 1.0 && token.requested_budget == 1.0);
  std::thread([&] { CHECK_OK(sol_session_set_budget(session, 0.5)); }).join();
  for (int step = 20; step < 180; ++step) CHECK_OK(sol_session_next(session, &token));
  CHECK(token.achieved_budget < 0.62 && std::fabs(token.requested_budget - (19 + 160 * 0.5) / 179) < 0.02);
  CHECK(std::fabs(token.achieved_budget - token.requested_budget) <= 0.02);

  // from another thread while steps run
  CHECK_OK(sol_session_start(session, prompt.data(), prompt.size(), &options));
  std::atomic<bool> done{false};
  std::thread dial([&] {
    for (int i = 0; !done; ++i) sol_error_release(sol_session_set_budget(session, 0.3 + 0.1 * (i % 7)));
  });
  for (int step = 0; step < 150; ++step) CHECK_OK(sol_session_next(session, &token));
  done = true;
  dial.join();

  options.budget = std::nan("");
  options.schedule = "dense";
  CHECK_OK(sol_session_start(session, prompt.data(), prompt.size(), &options));
  CHECK_FAILS(SOL_ERROR_USAGE, "schedule dense fixes the action", sol_session_set_budget(session, 0.5));
  options.schedule = nullptr;
  options.kv_density = 0.5;
  CHECK_OK(sol_session_start(session, prompt.data(), prompt.size(), &options));
  CHECK_FAILS(SOL_ERROR_USAGE, "targets on the axes", sol_session_set_budget(session, 0.5));
}

void TestTraces(const Host& host) {
  Session session(host);
  const std::vector<int32_t> prompt = Prompt(6);
  const std::string trace = host.folder + "/trace.jsonl", again = host.folder + "/again.jsonl";
  sol_generate_options options = Options(30);
  options.do_sample = 1;
  options.seed = 5;
  options.budget = 0.6;
  options.schedule = "hull";
  options.trace = trace.c_str();
  const std::vector<int32_t> tokens = Run(session, prompt, options);
  const std::string written = Content(trace);
  CHECK(std::count(written.begin(), written.end(), '\n') == 31);

  sol_generate_options replay;
  sol_generate_options_init(&replay, sizeof replay);
  replay.replay = trace.c_str();
  replay.trace = again.c_str();
  sol_result result{};
  result.size = sizeof result;
  CHECK(Run(session, {}, replay, &result) == tokens);
  CHECK(result.first_difference == -1 && result.num_tokens == 30 && std::fabs(result.requested_budget - 0.6) < 1e-12);
  CHECK(std::string(result.schedule) == "hull");
  CHECK_FAILS(SOL_ERROR_USAGE, "the prompt is not the trace's", sol_session_start(session, prompt.data(), prompt.size() - 1, &replay));
  replay.do_sample = 0;  // other tokens then, and the first is named
  const std::vector<int32_t> other = Run(session, {}, replay, &result);
  CHECK(result.first_difference >= 0 && other[static_cast<size_t>(result.first_difference)] != tokens[static_cast<size_t>(result.first_difference)]);
  CHECK_OK(sol_session_start(session, nullptr, 0, &replay));
  CHECK_FAILS(SOL_ERROR_USAGE, "a replay repeats", sol_session_set_budget(session, 0.5));

  // an early end leaves a whole trace of what was done
  CHECK_OK(sol_session_start(session, prompt.data(), prompt.size(), &options));
  sol_token token{};
  token.size = sizeof token;
  for (int step = 0; step < 4; ++step) CHECK_OK(sol_session_next(session, &token));
  CHECK_OK(sol_session_stop(session));
  const std::string part = Content(trace);
  CHECK(std::count(part.begin(), part.end(), '\n') == 5);

  const std::string nowhere = host.folder + "/nowhere/trace.jsonl";
  options.trace = nowhere.c_str();
  CHECK_FAILS(SOL_ERROR_WRITE, "choose another file", sol_session_start(session, prompt.data(), prompt.size(), &options));
  replay.replay = nowhere.c_str();
  CHECK_FAILS(SOL_ERROR_USAGE, "give a file that", sol_session_start(session, nullptr, 0, &replay));
#ifdef __linux__
  options.trace = "/dev/full";
  CHECK_FAILS(SOL_ERROR_WRITE, "No space left on device", sol_session_start(session, prompt.data(), prompt.size(), &options));
#endif
}

void TestFiles(const Host& host) {
  const std::string file = host.folder + "/session.sol";
  const std::vector<int32_t> prompt = Prompt(70);
  Session session(host);
  Run(session, prompt, Options(10));
  std::vector<int32_t> longer = Held(session);
  longer.push_back(11);
  CHECK_OK(sol_session_save(session, file.c_str()));
  sol_generate_options reuse = Options(30);
  reuse.reuse_cache = 1;
  sol_result result{};
  result.size = sizeof result;
  const std::vector<int32_t> expected = Run(session, longer, reuse, &result);
  CHECK(result.cached_tokens == 79);
  {
    Session other(host);
    CHECK_OK(sol_session_restore(other, file.c_str()));
    CHECK(Held(other) == std::vector<int32_t>(longer.begin(), longer.end() - 1));
    CHECK(Run(other, longer, reuse, &result) == expected);
    CHECK(result.cached_tokens == 79);
  }

  const std::string foreign = host.folder + "/s\xC3\xA9ssion-\xE8\xAA\x9E.sol";  // paths are UTF-8 on every system
  CHECK_OK(sol_session_save(session, foreign.c_str()));
  CHECK_OK(sol_session_save(session, foreign.c_str()));  // in place of the one that is there
  CHECK_OK(sol_session_restore(session, foreign.c_str()));

  const std::string content = Content(file), damaged = host.folder + "/damaged.sol";
  CHECK_FAILS(SOL_ERROR_BUNDLE, "no such file", sol_session_restore(session, (host.folder + "/none.sol").c_str()));
  for (const size_t length : {size_t{0}, size_t{5}, content.size() / 2, content.size() - 1}) {
    std::ofstream(damaged, std::ios::binary) << content.substr(0, length);
    CHECK_FAILS(SOL_ERROR_BUNDLE, "damaged.sol", sol_session_restore(session, damaged.c_str()));
    CHECK(Held(session).empty());
  }
  CHECK_FAILS(SOL_ERROR_BUNDLE, "a folder", sol_session_restore(session, host.folder.c_str()));
  CHECK(Run(session, prompt, Options(10)).size() == 10);  // and is usable

#ifdef __linux__
  // no room: the file that was there stays, and nothing else does
  const rlimit small{4096, RLIM_INFINITY};
  rlimit before;
  getrlimit(RLIMIT_FSIZE, &before);
  setrlimit(RLIMIT_FSIZE, &small);
  CHECK_FAILS(SOL_ERROR_WRITE, "cannot be written", sol_session_save(session, file.c_str()));
  setrlimit(RLIMIT_FSIZE, &before);
  CHECK(Content(file) == content);
  CHECK(std::system(("test -z \"$(find '" + host.folder + "' -name '*.sol-tmp')\"").c_str()) == 0);
#endif
  CHECK_FAILS(SOL_ERROR_WRITE, "cannot be written", sol_session_save(session, (host.folder + "/nowhere/x.sol").c_str()));
}

// Nothing is written over a file of the session's own bundle, by whatever name.
void TestFilesOfTheBundle(const Host& host) {
  namespace fs = std::filesystem;
  const std::string bundle = host.folder + "/bundle", link = host.folder + "/link";
  fs::copy(host.bundle, bundle, fs::copy_options::recursive);
  Host own = host;
  CHECK_OK(sol_model_load(host.runtime, bundle.c_str(), nullptr, &own.model));
  {
    Session session(own);
    const std::vector<int32_t> prompt = Prompt(6);
    for (const std::string name : {"sol_config.json", "tokenizer.json", "weights.bin"}) {
      const std::string path = bundle + "/" + name, before = Content(path);
      std::vector<std::string> ways = {path, bundle + "/../bundle/" + name, link};
      fs::create_hard_link(path, link);
#ifndef _WIN32
      ways.push_back(link + "2");
      fs::create_symlink(path, ways.back());
#endif
      for (const std::string& way : ways) {
        sol_generate_options options = Options(2);
        options.trace = way.c_str();
        const std::string words = ": got " + name + " of the bundle " + bundle + ", which a ", end = " would overwrite; choose another file";
        CHECK_FAILS(SOL_ERROR_USAGE, (words + "trace" + end).c_str(), sol_session_start(session, prompt.data(), prompt.size(), &options));
        CHECK_FAILS(SOL_ERROR_USAGE, (words + "session file" + end).c_str(), sol_session_save(session, way.c_str()));
        CHECK_FAILS(SOL_ERROR_USAGE, (words + "cost table" + end).c_str(), sol_model_measure_costs(own.model, way.c_str()));
        CHECK(Content(path) == before);
        if (g_failed > 0) break;  // the bundle is damaged
      }
      for (size_t i = 2; i < ways.size(); ++i) fs::remove(ways[i]);
    }
    CHECK_OK(sol_session_save(session, (bundle + "/session.sol").c_str()));  // beside them there is room
  }
  sol_model_release(own.model);
}

void TestBadCalls(const Host& host) {
  Session session(host);
  const std::vector<int32_t> prompt = Prompt(4);
  sol_generate_options options = Options(3);
  sol_token token{};
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_session_start(nullptr, prompt.data(), 4, &options));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_session_start(session, nullptr, 4, &options));
  CHECK_FAILS(SOL_ERROR_USAGE, "an empty one", sol_session_start(session, nullptr, 0, &options));
  CHECK_FAILS(SOL_ERROR_USAGE, "size 0", sol_session_next(session, &token));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_session_next(session, nullptr));
  sol_session* none = nullptr;
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_session_create(nullptr, &none));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_session_create(host.model, nullptr));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_session_save(nullptr, "x"));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_session_restore(nullptr, "x"));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_session_stop(nullptr));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_session_result(nullptr, nullptr));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_session_set_budget(nullptr, 0.5));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_session_tokens(nullptr, nullptr, 0, nullptr));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_session_dense_tokens(session, nullptr));
  sol_session_cancel(nullptr);
  sol_session_release(nullptr);
  sol_generate_options_init(nullptr, sizeof(sol_generate_options));
  CHECK(sol_session_busy(nullptr) == 0 && sol_session_private_bytes(nullptr) == 0);

  Session other(host);
  token.size = sizeof token;
  CHECK_FAILS(SOL_ERROR_USAGE, "sol_session_start first", sol_session_next(other, &token));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_session_save(other, nullptr));
#ifdef _WIN32  // no file has such a name
  CHECK_FAILS(SOL_ERROR_USAGE, "not UTF-8", sol_session_restore(other, (host.folder + "/a\xe9/b").c_str()));
#else
  CHECK_FAILS(SOL_ERROR_BUNDLE, "/a\xef\xbf\xbd/b", sol_session_restore(other, (host.folder + "/a\xe9/b").c_str()));  // not UTF-8
#endif
  const struct {
    const char* words;
    std::function<void(sol_generate_options&)> change;
  } cases[] = {
      {"max_new_tokens: got 0, expected a whole number from 1", [](auto& o) { o.max_new_tokens = 0; }},
      {"temperature: got -1.0, expected a number from 0", [](auto& o) { o.temperature = -1; }},
      {"top_p: got 1.5, expected a number from 0 to 1", [](auto& o) { o.top_p = 1.5; }},
      {"repetition_penalty: got 0.0, expected a number over 0", [](auto& o) { o.repetition_penalty = 0; }},
      {"sol_generate_options: do_sample: got 77, expected 0 or 1, or a negative number for the model's own", [](auto& o) { o.do_sample = 77; }},
      {"sol_generate_options: stop_strings: got NULL, expected a pointer", [](auto& o) { o.stop_strings = nullptr, o.num_stop_strings = 1; }},
      {"sol_generate_options: logit_bias: got NULL, expected a pointer", [](auto& o) { o.logit_bias = nullptr, o.num_logit_bias = 1; }},
      {"sol_generate_options: end_tokens: got NULL, expected a pointer", [](auto& o) { o.end_tokens = nullptr, o.num_end_tokens = 1; }},
      {"top_logprobs: got 21, expected a whole number from 0 to 20", [](auto& o) { o.top_logprobs = 21; }},
      {"--budget: got 1.5", [](auto& o) { o.budget = 1.5; }},
      {"contradict", [](auto& o) { o.budget = 0.5, o.max_loss = 0.01; }},
      {"--schedule: got 'none', expected one of", [](auto& o) { o.schedule = "none"; }},
      {"size 2", [](auto& o) { o.size = 2; }},
  };
  for (const auto& bad : cases) {
    sol_generate_options changed = options;
    bad.change(changed);
    CHECK_FAILS(SOL_ERROR_USAGE, bad.words, sol_session_start(other, prompt.data(), prompt.size(), &changed));
  }
  const sol_logit_bias bias{host.info.vocab_size, 1.0f};
  options.logit_bias = &bias;
  options.num_logit_bias = 1;
  CHECK_FAILS(SOL_ERROR_USAGE, "logit bias: got token", sol_session_start(other, prompt.data(), prompt.size(), &options));
  const int32_t beyond = host.info.vocab_size;
  CHECK_FAILS(SOL_ERROR_USAGE, "prompt: got token", sol_session_start(other, &beyond, 1, nullptr));
  CHECK(Run(other, prompt, Options(3)).size() == 3);

  // handles may be released in any order, and a session in the middle of a text
  sol_session* last = nullptr;
  CHECK_OK(sol_session_create(host.model, &last));
  CHECK_OK(sol_session_start(last, prompt.data(), prompt.size(), nullptr));
  CHECK_OK(sol_session_next(last, &token));
  sol_session_release(last);
}

// A prompt that runs in parts gives the text that it gives as a whole.
void TestPromptInParts(const Host& host) {
  Session session(host), whole(host);
  const std::vector<int32_t> prompt = Prompt(90);
  const sol_generate_options options = Options(12);
  sol_token token{};
  token.size = sizeof token;
  size_t left = 0;
  CHECK_FAILS(SOL_ERROR_USAGE, "no generation is running", sol_session_read_prompt(session, 1, &left));
  const std::vector<int32_t> expected = Run(whole, prompt, options);
  for (const size_t most : {size_t{1}, size_t{7}, size_t{64}, prompt.size() - 1, prompt.size(), SIZE_MAX}) {
    CHECK_OK(sol_session_start(session, prompt.data(), prompt.size(), &options));
    CHECK_FAILS(SOL_ERROR_USAGE, "left", sol_session_read_prompt(session, most, nullptr));
    CHECK_OK(sol_session_read_prompt(session, 0, &left));
    CHECK(left == prompt.size());
    while (left > 1) {
      const size_t count = std::min(most, left - 1), before = left;
      CHECK_OK(sol_session_read_prompt(session, most, &left));
      CHECK(left == before - count && Held(session).size() == prompt.size() - left);
    }
    CHECK_OK(sol_session_read_prompt(session, most, &left));
    CHECK(left == 1);
    std::vector<int32_t> made;
    do {
      CHECK_OK(sol_session_next(session, &token));
      made.push_back(token.token);
    } while (token.finish == SOL_FINISH_NONE && made.size() < expected.size());
    CHECK(made == expected && Held(session) == Held(whole));
    CHECK_FAILS(SOL_ERROR_USAGE, "is over", sol_session_read_prompt(session, most, &left));
  }
  CHECK_OK(sol_session_start(session, prompt.data(), prompt.size(), &options));
  CHECK_OK(sol_session_next(session, &token));
  CHECK_FAILS(SOL_ERROR_USAGE, "the prompt has run", sol_session_read_prompt(session, 1, &left));
  CHECK_OK(sol_session_start(session, prompt.data(), prompt.size(), &options));
  CHECK_OK(sol_session_read_prompt(session, 40, &left));
  sol_session_cancel(session);
  CHECK_FAILS(SOL_ERROR_CANCELLED, "", sol_session_read_prompt(session, 40, &left));
  CHECK(Held(session).size() == 40);
}

// Whatever is guessed, the host sees the tokens of the text alone, and no progress but the prompt's.
void TestDrafts(const Host& host) {
  Session session(host), dense(host);
  int64_t drafted = 0, reports = 0;
  bool ahead = false;
  CHECK_OK(sol_session_set_progress(session, [](void* user, uint64_t, uint64_t) { ++*static_cast<int64_t*>(user); }, &reports));
  for (size_t length = 60; length < 80; ++length) {
    sol_generate_options options = Options(100);
    options.repetition_penalty = 1.02;
    const std::vector<int32_t> prompt = Prompt(length);
    options.schedule = "dense";
    CHECK_OK(sol_session_start(dense, prompt.data(), prompt.size(), &options));
    options.lossless = 1;
    CHECK_OK(sol_session_start(session, prompt.data(), prompt.size(), &options));
    for (size_t made = 0; made < 20 + length % 7; ++made) {
      sol_token token{}, expected{};
      token.size = expected.size = sizeof token;
      CHECK_OK(sol_session_next(session, &token));
      CHECK_OK(sol_session_next(dense, &expected));
      CHECK(token.token == expected.token && token.logprob == expected.logprob);
      CHECK(Held(session) == Held(dense));
      ahead = ahead || (made > 0 && token.cost == 0);
    }
    sol_result result{};
    result.size = sizeof result;
    CHECK_OK(sol_session_result(session, &result));
    CHECK(result.accepted_tokens <= result.drafted_tokens);
    drafted += result.drafted_tokens;
    const size_t held = Held(dense).size();
    CHECK_FAILS(SOL_ERROR_USAGE, "tokens in the cache", sol_session_rewind(session, held + 1));
    sol_session_cancel(session);
    sol_session_cancel(dense);
    sol_token token{};
    token.size = sizeof token;
    CHECK_FAILS(SOL_ERROR_CANCELLED, "", sol_session_next(session, &token));
    CHECK_FAILS(SOL_ERROR_CANCELLED, "", sol_session_next(dense, &token));
    CHECK(Held(session) == Held(dense));
  }
  CHECK((drafted > 0 && ahead) == (host.info.native != 0));  // function bodies step one by one

  // cancelled at any moment: what a draft ran has left the cache
  sol_generate_options options = Options(60);
  options.schedule = "dense";
  const std::vector<int32_t> prompt = Prompt(60), whole = Run(dense, prompt, options);
  options.lossless = 1;
  const auto keep = [](void* user, const sol_token* token) {
    static_cast<std::vector<int32_t>*>(user)->push_back(token->token);
    return int32_t{0};
  };
  int cancelled = 0;
  for (int round = 0; round < 40; ++round) {
    Session other(host);
    std::vector<int32_t> text = prompt;
    std::thread canceller([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(round * 250));
      sol_session_cancel(other);
    });
    cancelled += Code(sol_session_generate(other, prompt.data(), prompt.size(), &options, keep, &text, nullptr)) == SOL_ERROR_CANCELLED;
    canceller.join();
    const std::vector<int32_t> held = Held(other);
    CHECK(held.size() <= text.size() && std::equal(held.begin(), held.end(), text.begin()));
    CHECK_OK(sol_session_stop(other));
    CHECK(Run(other, prompt, options) == whole);
  }
  CHECK(cancelled > 0);
  CHECK(reports == 20);
}

}  // namespace

int main(int argc, char** argv) {
  return RunTests(argc, argv, {
      {"limits", TestLimits},
      {"tokens", TestTokens},
      {"callbacks", TestCallbacks},
      {"cancellation", TestCancellation},
      {"two threads", TestTwoThreads},
      {"live budget", TestLiveBudget},
      {"prompt in parts", TestPromptInParts},
      {"drafts", TestDrafts},
      {"traces", TestTraces},
      {"files", TestFiles},
      {"files of the bundle", TestFilesOfTheBundle},
      {"bad calls", TestBadCalls},
  });
}
