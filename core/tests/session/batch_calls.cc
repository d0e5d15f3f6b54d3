// Rounds through the C interface: each session of a round, whoever joins and leaves, makes what it makes alone.
#include <algorithm>
#include <atomic>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "session/host.h"

namespace {

// Every fourth token, from one that depends on the text so far.
int32_t EveryFourth(void*, const int32_t* tokens, size_t num_tokens, uint32_t* mask, size_t num_words) {
  const uint32_t first = num_tokens == 0 ? 0 : static_cast<uint32_t>(tokens[num_tokens - 1]) % 4;
  for (size_t i = 0; i < num_words; ++i) mask[i] = 0x11111111u << first;
  mask[0] |= 1u << 5;
  return SOL_MASK_FILLED;
}

int32_t Fails(void*, const int32_t*, size_t num_tokens, uint32_t* mask, size_t num_words) {
  for (size_t i = 0; i < num_words; ++i) mask[i] = ~0u;
  return num_tokens < 2 ? SOL_MASK_FILLED : -1;  // at the second token
}

// A generation to run.
struct Job {
  std::vector<int32_t> prompt;
  sol_generate_options options;
};

Job Draw(std::mt19937& random, bool reuse) {
  const auto below = [&](uint32_t count) { return random() % count; };
  Job job;
  job.prompt = Prompt(1 + below(60));
  job.prompt.back() = static_cast<int32_t>(3 + below(80));
  job.options = Options(static_cast<int32_t>(2 + below(24)));
  job.options.reuse_cache = reuse ? 1 : 0;
  static const double budgets[] = {0.35, 0.5, 0.7, 0.9, 1.0};
  if (below(3) == 0) {
    job.options.schedule = "dense";
    job.options.lossless = static_cast<int32_t>(below(2));
  } else {
    job.options.budget = budgets[below(5)];
  }
  if (below(2) == 0) {
    job.options.do_sample = 1;
    job.options.seed = below(1000);
    job.options.top_k = 20;
  }
  if (below(3) == 0) job.options.mask = EveryFourth;
  return job;
}

// A session of rounds, and its twin, which makes the same alone.
struct Pair {
  explicit Pair(const Host& host) : session(host), twin(host) {}
  Session session, twin;
  bool runs = false, drafts = false;
};

struct Round {
  explicit Round(const std::vector<sol_session*>& given) : sessions(given), tokens(given.size()), pointers(given.size()), errors(given.size()) {
    for (size_t i = 0; i < tokens.size(); ++i) {
      tokens[i].size = sizeof(sol_token);
      pointers[i] = &tokens[i];
    }
    call = Code(sol_batch_next(sessions.data(), sessions.size(), pointers.data(), errors.data()));
  }
  std::vector<sol_session*> sessions;
  std::vector<sol_token> tokens;
  std::vector<sol_token*> pointers;
  std::vector<sol_error*> errors;
  sol_code call;
};

// `drafts`: one of them may have made the token with others, which shares out their cost otherwise.
bool Same(const sol_token& a, const sol_token& b, bool drafts = false) {
  return a.token == b.token && std::string(a.text) == b.text && std::string(a.action) == b.action && a.logprob == b.logprob &&
         a.requested_budget == b.requested_budget && a.finish == b.finish && (drafts || (a.cost == b.cost && a.achieved_budget == b.achieved_budget));
}

// Runs rounds of up to six sessions until so many of them have joined, left, been cancelled or gone back.
void RunRandomly(const Host& host, uint32_t seed, int events) {
  std::mt19937 random(seed);
  const auto below = [&](uint32_t count) { return random() % count; };
  std::vector<std::unique_ptr<Pair>> pairs;
  for (int i = 0; i < 6; ++i) pairs.push_back(std::make_unique<Pair>(host));
  while (events > 0) {
    std::vector<Pair*> running;
    for (const auto& pair : pairs) {
      if (!pair->runs && below(3) == 0) {
        const size_t held = Held(pair->session).size();
        CHECK(Held(pair->session) == Held(pair->twin));
        if (below(4) == 0 && held > 0) {
          const size_t kept = below(static_cast<uint32_t>(held));
          CHECK_OK(sol_session_rewind(pair->session, kept));
          CHECK_OK(sol_session_rewind(pair->twin, kept));
          --events;
        }
        const Job job = Draw(random, below(2) == 0);
        CHECK_OK(sol_session_start(pair->session, job.prompt.data(), job.prompt.size(), &job.options));
        CHECK_OK(sol_session_start(pair->twin, job.prompt.data(), job.prompt.size(), &job.options));
        for (uint32_t parts = below(3); parts > 0; --parts) {  // as much of the prompt as it has before the first round
          const size_t most = below(20);
          size_t left = 0, twin_left = 0;
          CHECK_OK(sol_session_read_prompt(pair->session, most, &left));
          CHECK_OK(sol_session_read_prompt(pair->twin, most, &twin_left));
          CHECK(left == twin_left);
        }
        pair->runs = true;
        pair->drafts = job.options.lossless != 0;
        --events;
      } else if (pair->runs && below(25) == 0) {
        CHECK_OK(sol_session_stop(pair->session));
        CHECK_OK(sol_session_stop(pair->twin));
        pair->runs = false;
        --events;
      } else if (pair->runs && below(25) == 0) {
        sol_session_cancel(pair->session);
        sol_session_cancel(pair->twin);
        --events;
      } else if (pair->runs && below(25) == 0) {
        const double budget = below(2);  // one action alone: between two, a moved budget takes that of its round
        const sol_code code = Code(sol_session_set_budget(pair->session, budget));
        CHECK(Code(sol_session_set_budget(pair->twin, budget)) == code);
      }
      if (pair->runs) running.push_back(pair.get());
    }
    std::vector<sol_session*> sessions;
    for (Pair* const pair : running) sessions.push_back(pair->session);
    Round round(sessions);
    CHECK(round.call == SOL_OK);
    for (size_t i = 0; i < running.size(); ++i) {
      sol_token alone{};
      alone.size = sizeof alone;
      const sol_code expected = Code(sol_session_next(running[i]->twin, &alone)), got = Code(round.errors[i]);
      CHECK(got == expected);
      CHECK(got != SOL_OK || Same(round.tokens[i], alone, running[i]->drafts));
      CHECK(got == SOL_OK || got == SOL_ERROR_CANCELLED);
      if (got != SOL_OK || alone.finish != SOL_FINISH_NONE) running[i]->runs = false;
    }
  }
}

void TestRandomly(const Host& host) { RunRandomly(host, 1, 1000); }

void TestThreads(const Host& host) {
  std::vector<std::thread> threads;
  for (uint32_t seed = 2; seed < 4; ++seed) threads.emplace_back([&host, seed] { RunRandomly(host, seed, 60); });
  for (std::thread& thread : threads) thread.join();
}

void TestErrorsOfOne(const Host& host) {
  Session good(host), alone(host), idle(host), over(host), failing(host), twice(host);
  const std::vector<int32_t> prompt = Prompt(9);
  const sol_generate_options options = Options(6);
  sol_generate_options short_one = Options(1), masked = Options(6);
  masked.mask = Fails;
  for (sol_session* const session : {good.handle, alone.handle, twice.handle}) CHECK_OK(sol_session_start(session, prompt.data(), prompt.size(), &options));
  CHECK_OK(sol_session_start(over, prompt.data(), prompt.size(), &short_one));
  CHECK_OK(sol_session_start(failing, prompt.data(), prompt.size(), &masked));
  const std::vector<sol_session*> sessions{good, idle, over, failing, twice, twice, nullptr};
  for (int step = 0; step < 6; ++step) {
    Round round(sessions);
    sol_token token{};
    token.size = sizeof token;
    CHECK_OK(sol_session_next(alone, &token));
    CHECK(round.call == SOL_OK && Same(round.tokens[0], token) && Same(round.tokens[4], token));
    CHECK(Code(round.errors[0]) == SOL_OK);
    CHECK(Code(round.errors[1], "no generation is running") == SOL_ERROR_USAGE);
    CHECK(Code(round.errors[2], step == 0 ? "" : "is over") == (step == 0 ? SOL_OK : SOL_ERROR_USAGE));
    CHECK(Code(round.errors[3], step == 1 ? "mask" : "") == (step == 0 ? SOL_OK : step == 1 ? SOL_ERROR_HOST : SOL_ERROR_USAGE));
    CHECK(Code(round.errors[4]) == SOL_OK);
    CHECK(Code(round.errors[5]) == SOL_ERROR_BUSY);
    CHECK(Code(round.errors[6], "NULL") == SOL_ERROR_USAGE);
  }
  CHECK(Held(good) == Held(alone));

  sol_session* const one = idle;
  sol_error* error = nullptr;
  sol_token unsized{};
  sol_token* token = &unsized;
  CHECK_OK(sol_batch_next(&one, 0, nullptr, nullptr));
  CHECK_FAILS(SOL_ERROR_USAGE, "sessions", sol_batch_next(nullptr, 1, &token, &error));
  CHECK_FAILS(SOL_ERROR_USAGE, "tokens", sol_batch_next(&one, 1, nullptr, &error));
  CHECK_FAILS(SOL_ERROR_USAGE, "errors", sol_batch_next(&one, 1, &token, nullptr));
  CHECK_OK(sol_session_start(idle, prompt.data(), prompt.size(), &options));
  CHECK_OK(sol_batch_next(&one, 1, &token, &error));
  CHECK(Code(error, "size") == SOL_ERROR_USAGE);
}

// Sessions that share a read draft nothing; one whose rounds are its own does.
void TestDrafts(const Host& host) {
  Session first(host), second(host);
  const std::vector<int32_t> prompt = Prompt(120);
  sol_generate_options options = Options(100);
  options.lossless = 1;
  const auto drafted = [](sol_session* session) {
    sol_result result{};
    result.size = sizeof result;
    CHECK_OK(sol_session_result(session, &result));
    return result.drafted_tokens;
  };
  const auto rounds = [&](const std::vector<sol_session*>& sessions) {
    for (sol_session* const session : sessions) CHECK_OK(sol_session_start(session, prompt.data(), prompt.size(), &options));
    for (int step = 0; step < 100; ++step) {
      Round round(sessions);
      for (sol_error* const error : round.errors) CHECK_OK(error);
    }
  };
  int64_t alone = 0;
  for (int text = 0; text < 8; ++text) {
    rounds({first});
    alone += drafted(first);
    rounds({first, second});
    CHECK(drafted(first) == 0 && drafted(second) == 0);
  }
  CHECK((alone > 0) == (host.info.native != 0));
}

}  // namespace

int main(int argc, char** argv) {
  return RunTests(argc, argv, {{"randomly", TestRandomly}, {"threads", TestThreads}, {"errors of one", TestErrorsOfOne}, {"drafts", TestDrafts}});
}
