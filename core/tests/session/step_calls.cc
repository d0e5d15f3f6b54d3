// Single runs, scores, schedules and costs of the host's, through the C interface. Generations of the same library are what they are compared with.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "session/host.h"

namespace {

constexpr size_t kHuge = std::numeric_limits<size_t>::max();

// A generated token with what `sol_token` says of it.
struct Made {
  int32_t token;
  std::string action;
  double logprob, cost, achieved;
};

std::vector<Made> Generate(sol_session* session, const std::vector<int32_t>& prompt, const sol_generate_options& options) {
  std::vector<Made> made;
  const auto keep = [](void* user, const sol_token* token) {
    static_cast<std::vector<Made>*>(user)->push_back({token->token, token->action, token->logprob, token->cost, token->achieved_budget});
    return int32_t{0};
  };
  CHECK_OK(sol_session_generate(session, prompt.data(), prompt.size(), &options, keep, &made, nullptr));
  return made;
}

sol_generate_options Greedy(int32_t tokens) {
  sol_generate_options options = Options(tokens);
  options.do_sample = 0;
  options.repetition_penalty = 1.0;
  return options;
}

sol_distribution Seen() {
  sol_distribution seen{};
  seen.size = sizeof seen;
  return seen;
}

sol_rows Rows(size_t count, std::vector<float>& logits, std::vector<float>& hidden, const Host& host) {
  logits.assign(count * static_cast<size_t>(host.info.vocab_size), NAN);
  hidden.assign(count * static_cast<size_t>(host.info.hidden_size), NAN);
  sol_rows rows{};
  rows.size = sizeof rows;
  rows.num_logits = count;
  rows.logits = logits.data();
  rows.logits_length = logits.size();
  rows.hidden = hidden.data();
  rows.hidden_length = hidden.size();
  return rows;
}

bool AnyNan(const std::vector<float>& values) {
  return std::any_of(values.begin(), values.end(), [](float value) { return std::isnan(value); });
}

// The loop of a host over `sol_session_forward` makes the tokens that a generation makes, under an action that is not in the bundle's list, too.
void TestForward(const Host& host) {
  Session session(host);
  const std::vector<int32_t> prompt = Prompt(30);
  std::vector<float> logits, hidden;
  const sol_rows one = Rows(1, logits, hidden, host);
  for (const char* const tag : {"k100-s100-q4", "k050-s060-q6", "k007-s100-qmix"}) {
    sol_generate_options options = Greedy(12);
    const std::string schedule = std::string("fixed:") + tag;
    options.schedule = schedule.c_str();
    const std::vector<Made> expected = Generate(session, prompt, options);
    CHECK_OK(sol_session_rewind(session, 0));
    sol_distribution seen = Seen();
    CHECK_OK(sol_session_forward(session, prompt.data(), prompt.size(), nullptr, &one, &seen));
    for (const Made& token : expected) {
      const float logit = logits[static_cast<size_t>(seen.top)];
      CHECK(seen.top == token.token && seen.top_logit == logit && logit - seen.log_sum == token.logprob);
      CHECK(seen.top_probability == 1.0 / seen.total && seen.entropy >= 0 && seen.margin >= 0 && seen.second_logit <= seen.top_logit);
      const int32_t next = seen.top;
      CHECK_OK(sol_session_forward(session, &next, 1, tag, &one, &seen));
    }
    CHECK(Held(session).size() == prompt.size() + expected.size());
  }
  CHECK(!AnyNan(logits) && !AnyNan(hidden));
}

void TestRows(const Host& host) {
  Session session(host);
  const std::vector<int32_t> tokens = Prompt(600);  // more than one chunk
  std::vector<float> all_logits, all_hidden, logits, hidden;
  const auto vocab = static_cast<size_t>(host.info.vocab_size);
  sol_rows rows = Rows(tokens.size(), all_logits, all_hidden, host);
  sol_distribution seen = Seen();
  CHECK_OK(sol_session_forward(session, tokens.data(), tokens.size(), nullptr, &rows, &seen));
  CHECK(!AnyNan(all_logits) && !AnyNan(all_hidden));
  const auto last = all_logits.end() - static_cast<std::ptrdiff_t>(vocab);
  CHECK(std::max_element(last, all_logits.end()) - last == seen.top);
  for (const size_t count : {size_t{2}, size_t{90}, size_t{100}}) {  // the last chunk has 88 tokens
    CHECK_OK(sol_session_rewind(session, 0));
    rows = Rows(count, logits, hidden, host);
    CHECK_OK(sol_session_forward(session, tokens.data(), tokens.size(), "k100-s100-q8", &rows, nullptr));
    const float* const expected = all_logits.data() + (tokens.size() - count) * vocab;
    float furthest = 0.0f;
    for (size_t i = 0; i < logits.size(); ++i) furthest = std::max(furthest, std::abs(logits[i] - expected[i]));
    CHECK(furthest < 1e-3f);  // a product of fewer rows sums in another order
  }
  // each buffer alone
  CHECK_OK(sol_session_rewind(session, 0));
  std::vector<float> alone;
  rows = Rows(90, alone, hidden, host);
  rows.hidden = nullptr;
  CHECK_OK(sol_session_forward(session, tokens.data(), tokens.size(), nullptr, &rows, nullptr));
  CHECK(!AnyNan(alone) && AnyNan(hidden));
  CHECK_OK(sol_session_rewind(session, 0));
  rows = Rows(90, logits, hidden, host);
  rows.logits = nullptr;
  CHECK_OK(sol_session_forward(session, tokens.data(), tokens.size(), nullptr, &rows, nullptr));
  CHECK(AnyNan(logits) && !AnyNan(hidden));
}

// Reports of a progress callback: tokens done and in all, and the tokens in the cache at that time.
struct Progress {
  sol_session* session;
  std::vector<std::tuple<uint64_t, uint64_t, size_t>> told;
  uint64_t cancel_at = 0;
};

void OnProgress(void* user, uint64_t done, uint64_t total) {
  Progress& progress = *static_cast<Progress*>(user);
  size_t held = 0;
  CHECK_OK(sol_session_tokens(progress.session, nullptr, 0, &held));
  progress.told.emplace_back(done, total, held);
  CHECK_FAILS(SOL_ERROR_BUSY, "", sol_session_set_progress(progress.session, nullptr, nullptr));
  if (done == progress.cancel_at) sol_session_cancel(progress.session);
}

void TestProgress(const Host& host) {
  Session session(host);
  const std::vector<int32_t> tokens = Prompt(600);
  Progress progress{session, {}};
  const uint64_t part = host.info.native ? 512 : 128;  // tokens
  std::vector<std::tuple<uint64_t, uint64_t, size_t>> parts;
  for (uint64_t done = part; done < 600; done += part) parts.emplace_back(done, 600, done);
  parts.emplace_back(600, 600, 600);
  CHECK_OK(sol_session_set_progress(session, OnProgress, &progress));
  CHECK_OK(sol_session_forward(session, tokens.data(), tokens.size(), nullptr, nullptr, nullptr));
  CHECK(progress.told == parts);
  CHECK_OK(sol_session_forward(session, tokens.data(), 5, nullptr, nullptr, nullptr));
  CHECK(progress.told.size() == parts.size() + 1 && progress.told.back() == std::make_tuple(uint64_t{5}, uint64_t{5}, size_t{605}));

  // a generation reports its prompt, and no decode step
  progress.told.clear();
  const std::vector<int32_t> expected = Run(session, tokens, Greedy(4));
  CHECK(expected.size() == 4 && progress.told == parts);
  progress = {session, {}, part};
  const sol_generate_options options = Greedy(4);
  CHECK_FAILS(SOL_ERROR_CANCELLED, "", sol_session_generate(session, tokens.data(), tokens.size(), &options, nullptr, nullptr, nullptr));
  CHECK(progress.told.size() == 1 && Held(session).size() == part);

  CHECK_OK(sol_session_set_progress(session, nullptr, nullptr));
  CHECK(Run(session, tokens, Greedy(4)) == expected && progress.told.size() == 1);
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_session_set_progress(nullptr, OnProgress, &progress));
}

void TestBadRuns(const Host& host) {
  Session session(host);
  const std::vector<int32_t> tokens = Prompt(8);
  std::vector<float> logits, hidden;
  sol_rows rows = Rows(2, logits, hidden, host);
  const auto run = [&](size_t count, const char* action) { return sol_session_forward(session, tokens.data(), count, action, &rows, nullptr); };
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_session_forward(nullptr, tokens.data(), 1, nullptr, nullptr, nullptr));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_session_forward(session, nullptr, 1, nullptr, nullptr, nullptr));
  CHECK_FAILS(SOL_ERROR_USAGE, "got none", sol_session_forward(session, nullptr, 0, nullptr, nullptr, nullptr));
  CHECK_FAILS(SOL_ERROR_CONTEXT, "the model's context", run(kHuge, nullptr));
  CHECK_FAILS(SOL_ERROR_USAGE, "num_logits: got 2 for 1 tokens", run(1, nullptr));
  CHECK_FAILS(SOL_ERROR_USAGE, "expected kKKK-sSSS-qB", run(8, "k100"));
  CHECK_FAILS(SOL_ERROR_USAGE, "not in this bundle", run(8, "k100-s070-q4"));
  for (const size_t wrong : {size_t{0}, kHuge, kHuge / 2 + 2}) {
    rows.num_logits = wrong;
    CHECK_FAILS(SOL_ERROR_USAGE, "num_logits", run(8, nullptr));
  }
  rows.num_logits = 2;
  for (size_t* const length : {&rows.logits_length, &rows.hidden_length}) {
    const size_t right = *length;
    for (const size_t wrong : {size_t{0}, right - 1, right + 1, kHuge}) {
      *length = wrong;
      CHECK_FAILS(SOL_ERROR_USAGE, "_length: got", run(8, nullptr));
    }
    *length = right;
  }
  rows.size = 1;
  CHECK_FAILS(SOL_ERROR_USAGE, "size 1", run(8, nullptr));
  rows.size = sizeof rows;
  sol_distribution seen{};
  CHECK_FAILS(SOL_ERROR_USAGE, "size 0", sol_session_forward(session, tokens.data(), 8, nullptr, &rows, &seen));
  for (const int32_t wrong : {-1, host.info.vocab_size}) {
    const int32_t bad[] = {3, wrong};
    CHECK_FAILS(SOL_ERROR_USAGE, "expected a whole number from 0", sol_session_forward(session, bad, 2, nullptr, nullptr, nullptr));
  }
  CHECK(Held(session).empty());
  const std::vector<int32_t> full = Prompt(static_cast<size_t>(host.info.max_context));
  CHECK_OK(sol_session_forward(session, full.data(), full.size(), nullptr, nullptr, nullptr));
  CHECK_FAILS(SOL_ERROR_CONTEXT, "context: got", run(8, nullptr));
  CHECK(Held(session).size() == full.size());

  // a run ends a generation, and a request to cancel ends a run
  const sol_generate_options options = Options(5);
  sol_token token{};
  token.size = sizeof token;
  CHECK_OK(sol_session_start(session, tokens.data(), tokens.size(), &options));
  CHECK_OK(sol_session_next(session, &token));
  CHECK_OK(run(8, nullptr));
  CHECK_FAILS(SOL_ERROR_USAGE, "over", sol_session_next(session, &token));
  CHECK(Held(session).size() == 16);
  sol_session_cancel(session);
  CHECK_FAILS(SOL_ERROR_CANCELLED, "", run(8, nullptr));
  CHECK_OK(run(8, nullptr));
}

void TestActiveChannels(const Host& host) {
  Session session(host), other(host);
  const std::vector<int32_t> tokens = Prompt(20);
  std::vector<float> logits, hidden;
  const sol_rows rows = Rows(1, logits, hidden, host);
  const auto run = [&](sol_session* on) {
    CHECK_OK(sol_session_rewind(on, 0));
    CHECK_OK(sol_session_forward(on, tokens.data(), tokens.size(), "k100-s060-q4", &rows, nullptr));
    return logits;
  };
  const std::vector<float> before = run(session);
  const auto layers = static_cast<size_t>(host.info.num_layers);
  const std::vector<int32_t> few(layers, 20), all(layers, host.info.hidden_size);
  CHECK_OK(sol_session_set_active_channels(session, "s060-q4", few.data(), few.data(), nullptr, few.data(), layers));
  CHECK(run(session) != before);
  CHECK(run(other) == before);  // another session has its own
  CHECK_OK(sol_session_set_active_channels(session, "s060-q4", nullptr, nullptr, nullptr, nullptr, layers));
  CHECK(run(session) == before);
  CHECK_OK(sol_session_set_active_channels(session, "s060-q4", all.data(), nullptr, all.data(), nullptr, layers));
  CHECK(run(session) != before);
  const std::vector<int32_t> none(layers, 0), more(layers, host.info.hidden_size + 1);
  for (const auto* const wrong : {&none, &more}) {
    CHECK_FAILS(SOL_ERROR_USAGE, "active_qkv: got", sol_session_set_active_channels(session, "s060-q4", nullptr, nullptr, wrong->data(), nullptr, layers));
  }
  CHECK_FAILS(SOL_ERROR_USAGE, "num_layers", sol_session_set_active_channels(session, "s060-q4", few.data(), nullptr, nullptr, nullptr, layers + 1));
  CHECK_FAILS(SOL_ERROR_USAGE, "num_layers", sol_session_set_active_channels(session, "s060-q4", few.data(), nullptr, nullptr, nullptr, kHuge));
  CHECK_FAILS(SOL_ERROR_USAGE, "not in this bundle", sol_session_set_active_channels(session, "s1-q4", few.data(), nullptr, nullptr, nullptr, layers));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_session_set_active_channels(session, nullptr, few.data(), nullptr, nullptr, nullptr, layers));
}

// A score of what a generation made has its log-probabilities and its actions, to the last bit.
void TestScore(const Host& host) {
  Session session(host);
  const std::vector<int32_t> prompt = Prompt(25);
  const auto vocab = static_cast<size_t>(host.info.vocab_size), hidden_size = static_cast<size_t>(host.info.hidden_size);
  for (const char* const schedule : {"hull", "uniform", "entropy", "sol", "fixed:k050-s060-q4"}) {
    sol_generate_options options = Greedy(40);
    options.schedule = schedule;
    if (std::string(schedule).rfind("fixed", 0) != 0) options.budget = 0.7;
    const std::vector<Made> made = Generate(session, prompt, options);
    std::vector<int32_t> tokens = prompt;
    for (const Made& one : made) tokens.push_back(one.token);
    std::vector<double> logprobs(made.size(), NAN);
    std::vector<float> logits(made.size() * vocab, NAN), hidden(made.size() * hidden_size, NAN);
    sol_scores scores{};
    scores.size = sizeof scores;
    scores.logprobs = logprobs.data();
    scores.logprobs_length = logprobs.size();
    scores.logits = logits.data();
    scores.logits_length = logits.size();
    scores.hidden = hidden.data();
    scores.hidden_length = hidden.size();
    CHECK_OK(sol_session_score(session, tokens.data(), tokens.size(), prompt.size(), &options, &scores));
    CHECK(scores.num_actions == made.size() - 1 && std::string(scores.schedule) == schedule && !AnyNan(logits) && !AnyNan(hidden));
    for (size_t i = 0; i < made.size(); ++i) {
      CHECK(logprobs[i] == made[i].logprob);
      if (i > 0) CHECK(scores.actions[i - 1] == made[i].action && scores.costs[i - 1] == made[i].cost);
    }
    CHECK(scores.achieved_budget > 0 && scores.achieved_budget <= 1 && scores.floored == 0);
    CHECK(std::isnan(scores.expected_loss) == (std::string(schedule) == "fixed:k050-s060-q4"));  // an action that nobody measured
  }
}

void TestBadScores(const Host& host) {
  Session session(host);
  const std::vector<int32_t> tokens = Prompt(10);
  std::vector<double> logprobs(6);
  sol_scores scores{};
  scores.size = sizeof scores;
  scores.logprobs = logprobs.data();
  scores.logprobs_length = 6;
  const auto score = [&](size_t count, size_t context, const sol_generate_options* options = nullptr) {
    return sol_session_score(session, tokens.data(), count, context, options, &scores);
  };
  CHECK_OK(score(10, 4));
  CHECK(scores.achieved_budget == 1.0 && scores.num_actions == 5 && std::string(scores.actions[4]) == host.info.dense);
  for (const size_t context : {size_t{0}, size_t{10}, size_t{11}, kHuge}) CHECK_FAILS(SOL_ERROR_USAGE, "expected 1 to fewer than all", score(10, context));
  CHECK_FAILS(SOL_ERROR_CONTEXT, "the model's context", score(kHuge, 4));
  CHECK_FAILS(SOL_ERROR_USAGE, "logprobs_length: got 6", score(10, 5));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_session_score(session, nullptr, 10, 4, nullptr, &scores));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_session_score(session, tokens.data(), 10, 4, nullptr, nullptr));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_session_score(nullptr, tokens.data(), 10, 4, nullptr, &scores));
  sol_generate_options options = Options(1);
  options.budget = 2;
  CHECK_FAILS(SOL_ERROR_USAGE, "--budget: got 2", score(10, 4, &options));
  std::vector<int32_t> beyond = tokens;
  beyond.back() = host.info.vocab_size;
  CHECK_FAILS(SOL_ERROR_USAGE, "expected a whole number", sol_session_score(session, beyond.data(), 10, 4, nullptr, &scores));
  sol_session_cancel(session);
  CHECK_FAILS(SOL_ERROR_CANCELLED, "", score(10, 4));
  scores.logprobs = nullptr;
  CHECK_OK(score(10, 9));  // one token, without a step
  CHECK(scores.num_actions == 0);
}

// The host's loop over steps of a plan makes what a generation makes, also from a prompt that was run before.
void TestPlan(const Host& host) {
  Session session(host);
  const std::vector<int32_t> prompt = Prompt(25);
  std::vector<float> logits, hidden;
  const sol_rows rows = Rows(1, logits, hidden, host);
  sol_distribution seen = Seen();
  sol_step step{};
  step.size = sizeof step;
  bool prefilled = false;
  std::vector<float> prompt_logits, prompt_hidden;
  int32_t first = 0;
  for (const char* const schedule : {"hull", "sol", "entropy"}) {
    Session other(host);
    sol_generate_options options = Greedy(30);
    options.schedule = schedule;
    options.budget = 0.6;
    const std::vector<Made> made = Generate(other, prompt, options);
    CHECK_OK(sol_session_plan(session, &options));
    if (prefilled) {
      CHECK_FAILS(SOL_ERROR_USAGE, "no results of the token before", sol_session_step(session, first, nullptr, nullptr, &step));
      CHECK_OK(sol_session_resume(session, prompt.size(), prompt_logits.data(), prompt_logits.size(), prompt_hidden.data(), prompt_hidden.size()));
    } else {
      CHECK_OK(sol_session_forward(session, prompt.data(), prompt.size(), nullptr, &rows, &seen));
      prompt_logits = logits;
      prompt_hidden = hidden;
      first = seen.top;
      prefilled = true;
    }
    int32_t token = first;
    for (size_t i = 1; i < made.size(); ++i) {
      CHECK(token == made[i - 1].token);
      CHECK_OK(sol_session_step(session, token, &rows, &seen, &step));
      CHECK(step.action == made[i].action && step.cost == made[i].cost && step.achieved_budget == made[i].achieved);
      CHECK(step.context == static_cast<int64_t>(prompt.size() + i - 1) && step.requested_budget == 0.6);
      CHECK(logits[static_cast<size_t>(seen.top)] == seen.top_logit && !AnyNan(hidden));
      token = seen.top;
    }
    sol_result result{};
    result.size = sizeof result;
    CHECK_OK(sol_session_result(other, &result));
    CHECK(step.floored == result.floored);
  }

  Session fresh(host);
  CHECK_FAILS(SOL_ERROR_USAGE, "sol_session_plan first", sol_session_step(fresh, 1, nullptr, nullptr, &step));
  CHECK_FAILS(SOL_ERROR_USAGE, "sol_session_plan first", sol_session_resume(fresh, 1, logits.data(), 1, hidden.data(), 1));
  sol_generate_options wrong = Options(1);
  wrong.budget = 2;
  CHECK_FAILS(SOL_ERROR_USAGE, "--budget: got 2", sol_session_plan(fresh, &wrong));
  CHECK_OK(sol_session_plan(fresh, nullptr));
  sol_generate_options dense = Options(1);
  dense.budget = 1.0;
  CHECK_OK(sol_session_plan(fresh, &dense));
  CHECK_FAILS(SOL_ERROR_USAGE, "no results of the token before", sol_session_step(fresh, 1, nullptr, nullptr, &step));
  const auto resume = [&](size_t length, size_t num_logits, size_t num_hidden) {
    return sol_session_resume(fresh, length, logits.data(), num_logits, hidden.data(), num_hidden);
  };
  CHECK_FAILS(SOL_ERROR_USAGE, "got 1, expected 1 to 0", resume(1, logits.size(), hidden.size()));
  CHECK_OK(sol_session_forward(fresh, prompt.data(), prompt.size(), nullptr, &rows, nullptr));
  for (const size_t length : {size_t{0}, prompt.size() + 1, kHuge}) {
    CHECK_FAILS(SOL_ERROR_USAGE, "expected 1 to 25", resume(length, logits.size(), hidden.size()));
  }
  CHECK_FAILS(SOL_ERROR_USAGE, "num_logits: got", resume(5, kHuge, hidden.size()));
  CHECK_FAILS(SOL_ERROR_USAGE, "num_hidden: got", resume(5, logits.size(), 0));
  CHECK_OK(sol_session_step(fresh, 1, nullptr, nullptr, &step));
  CHECK(step.relative_cost == 1.0 && std::string(step.action) == host.info.dense);
  CHECK_FAILS(SOL_ERROR_USAGE, "expected a whole number", sol_session_step(fresh, host.info.vocab_size, nullptr, nullptr, &step));
  step.size = 0;
  CHECK_FAILS(SOL_ERROR_USAGE, "size 0", sol_session_step(fresh, 1, nullptr, nullptr, &step));
  step.size = sizeof step;
  CHECK_OK(sol_session_resume(fresh, 25, logits.data(), logits.size(), hidden.data(), hidden.size()));
  CHECK_OK(sol_session_rewind(fresh, 25));  // someone else's call
  CHECK_FAILS(SOL_ERROR_USAGE, "no results of the token before", sol_session_step(fresh, 1, nullptr, nullptr, &step));
  logits[0] = NAN;
  CHECK_FAILS(SOL_ERROR_USAGE, "not finite", resume(25, logits.size(), hidden.size()));
}

// A schedule of the host's.
struct Chooser {
  sol_session* session;
  int calls = 0;
  int32_t answer = -2;  // -2: the cheapest of those allowed
  size_t held = 0;
  bool seen_well = true;
};

int32_t Choose(void* user, const sol_choice* choice) {
  Chooser& chooser = *static_cast<Chooser*>(user);
  chooser.seen_well = chooser.seen_well && choice->step == chooser.calls && choice->num_actions > 1 && choice->distribution->top >= 0 &&
                      choice->logits[choice->distribution->top] == choice->distribution->top_logit && std::isfinite(choice->hidden[choice->hidden_size - 1]);
  ++chooser.calls;
  CHECK_OK(sol_session_tokens(chooser.session, nullptr, 0, &chooser.held));
  CHECK(static_cast<int64_t>(chooser.held) == choice->context);
  if (chooser.answer != -2) return chooser.answer;
  int32_t best = -1;
  for (size_t i = 0; i < choice->num_actions; ++i) {
    if (choice->allowed[i] && (best < 0 || choice->relative_costs[i] < choice->relative_costs[best])) best = static_cast<int32_t>(i);
  }
  return best;
}

void TestOwnSchedule(const Host& host) {
  Session session(host);
  const std::vector<int32_t> prompt = Prompt(12);
  Chooser chooser{session};
  sol_generate_options options = Greedy(100);
  options.budget = 0.7;
  options.schedule = "cheapest first";
  options.choose = Choose;
  options.choose_user = &chooser;
  sol_result result{};
  result.size = sizeof result;
  CHECK(Run(session, prompt, options, &result).size() == 100);
  CHECK(chooser.calls == 99 && chooser.seen_well && std::string(result.schedule) == "cheapest first");
  CHECK(std::abs(result.achieved_budget - 0.7) <= 0.02 && result.requested_budget == 0.7);

  // one that always takes the same action is the schedule `fixed`
  sol_action_info info{};
  info.size = sizeof info;
  CHECK_OK(sol_model_get_action(host.model, 5, &info));
  const std::string fixed = std::string("fixed:") + info.tag;
  sol_generate_options same = Greedy(20);
  same.schedule = fixed.c_str();
  const std::vector<int32_t> expected = Run(session, prompt, same);
  options = Greedy(20);
  options.choose = Choose;
  options.choose_user = &(chooser = Chooser{session, 0, 5});
  CHECK(Run(session, prompt, options, &result) == expected && std::string(result.schedule) == "own");

  // scores ask it, too
  std::vector<double> logprobs(8);
  sol_scores scores{};
  scores.size = sizeof scores;
  scores.logprobs = logprobs.data();
  scores.logprobs_length = logprobs.size();
  chooser = Chooser{session, 0, 5};
  CHECK_OK(sol_session_score(session, prompt.data(), 12, 4, &options, &scores));
  CHECK(chooser.calls == 7 && std::string(scores.actions[6]) == info.tag);

  for (const auto& [answer, code, words] : {std::make_tuple(-1, SOL_ERROR_HOST, "the host's schedule asked to stop at step 0"),
                                            std::make_tuple(14, SOL_ERROR_USAGE, "got action 14 at step 0, expected 0 to 13")}) {
    chooser = Chooser{session, 0, answer};
    CHECK_FAILS(code, words, sol_session_generate(session, prompt.data(), prompt.size(), &options, nullptr, nullptr, nullptr));
    CHECK(chooser.calls == 1 && sol_session_busy(session) == 0);
  }
  options.max_loss = 0.01;
  CHECK_FAILS(SOL_ERROR_USAGE, "keeps no loss", sol_session_start(session, prompt.data(), prompt.size(), &options));
}

void TestCosts(const Host& host) {
  std::string table = R"({"format": "sol_rt.cost_table", "format_version": 1, "bundle": ")" + std::string(host.info.identity) +
                      R"(", "device": "of the host's", "created": "", "policy_ms": 0.5, "quick": false, "steady": true, "tuning": null, "lines": {)";
  double fixed = 8.0;
  for (const char* const key : {"s100-q8", "s100-q6", "s100-qmix", "s100-q4", "s060-q8", "s060-q6", "s060-q4"}) {
    table += std::string(fixed < 8.0 ? ", " : "") + "\"" + key + R"(": {"1.0": {"fixed": )" + std::to_string(fixed) +
             R"(, "per_token": 0, "per_page": 0, "error": 0}})";
    fixed /= 2;
  }
  table += "}}";
  sol_model_info info = host.info;
  sol_action_info action{};
  action.size = sizeof action;
  CHECK_OK(sol_model_set_costs(host.model, table.c_str()));
  CHECK_OK(sol_model_get_info(host.model, &info));
  CHECK(std::string(info.cost_model) == "measured");
  CHECK_OK(sol_model_get_action(host.model, 3, &action));
  CHECK(std::string(action.tag) == "k100-s100-q4" && action.relative_cost == 0.125);
  std::string other = table;
  other.replace(other.find(host.info.identity), 1, "x");
  for (const std::string& bad : {std::string(), std::string("{}"), table.substr(0, table.size() - 1), other}) {
    CHECK_FAILS(SOL_ERROR_BUNDLE, "cost table: ", sol_model_set_costs(host.model, bad.c_str()));
  }
  CHECK_OK(sol_model_get_action(host.model, 3, &action));
  CHECK(action.relative_cost == 0.125);
  CHECK_OK(sol_model_set_costs(host.model, nullptr));
  CHECK_OK(sol_model_get_info(host.model, &info));
  CHECK(std::string(info.cost_model) == "bytes");
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_model_set_costs(nullptr, table.c_str()));
}

// Settings are read again as they were set. Without operators nothing is.
void TestTuning(const Host& host) {
  sol_tuning before{}, now{};
  before.size = now.size = sizeof before;
  CHECK_OK(sol_tuning_get(&before));
  for (const uint32_t copies : {1u, 2u, 0u}) {
    const sol_tuning wanted{sizeof wanted, 1, 49152, 1, copies};
    CHECK_OK(sol_tuning_set(&wanted));
    CHECK_OK(sol_tuning_get(&now));
    if (host.info.native) CHECK(now.cache_level == 1 && now.row_bytes_ahead == 49152 && now.members == 1 && now.copies == (copies == 1 ? 1u : 0u));
  }
  constexpr uint32_t kSize = sizeof(sol_tuning);
  for (const sol_tuning& bad : {sol_tuning{kSize, 0, 0, 0, 0}, sol_tuning{kSize, 3, 0, 0, 0}, sol_tuning{kSize, 2, 1u << 21, 0, 0},
                                sol_tuning{kSize, 2, 0, 4096, 0}, sol_tuning{kSize, 2, 0, 0, 3}}) {
    CHECK_FAILS(SOL_ERROR_USAGE, "sol_tuning: got level", sol_tuning_set(&bad));
  }
  CHECK_OK(sol_tuning_set(&before));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_tuning_set(nullptr));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_tuning_get(nullptr));
}

}  // namespace

int main(int argc, char** argv) {
  return RunTests(argc, argv, {
      {"forward", TestForward},
      {"rows", TestRows},
      {"progress", TestProgress},
      {"bad runs", TestBadRuns},
      {"active channels", TestActiveChannels},
      {"score", TestScore},
      {"bad scores", TestBadScores},
      {"plan", TestPlan},
      {"own schedule", TestOwnSchedule},
      {"costs", TestCosts},
      {"tuning", TestTuning},
  });
}
