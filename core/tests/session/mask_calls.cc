// Masks of the host's through the C interface: the tokens that are picked under them, ends of a text, answers that are errors, traces and halves of steps.
#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "session/host.h"

namespace {

// A mask that is the same at every position but one.
struct Masker {
  sol_session* session = nullptr;
  std::vector<int32_t> allowed;
  int32_t answer = SOL_MASK_FILLED;
  size_t at = SIZE_MAX;  // position with an answer and a mask of its own
  int32_t answer_there = SOL_MASK_FILLED;
  std::vector<int32_t> allowed_there;
  std::vector<std::vector<int32_t>> asked;
  bool seen_well = true;
};

int32_t Mask(void* user, const int32_t* tokens, size_t num_tokens, uint32_t* mask, size_t num_words) {
  Masker& masker = *static_cast<Masker*>(user);
  masker.asked.emplace_back(tokens, tokens + num_tokens);
  masker.seen_well = masker.seen_well && std::all_of(mask, mask + num_words, [](uint32_t word) { return word == 0; });
  if (masker.session != nullptr) {
    size_t held = 0;
    masker.seen_well = masker.seen_well && Code(sol_session_tokens(masker.session, nullptr, 0, &held)) == SOL_OK && held > 0;
    masker.seen_well = masker.seen_well && Code(sol_session_rewind(masker.session, 0)) == SOL_ERROR_BUSY;
  }
  const bool there = num_tokens == masker.at;
  for (const int32_t token : there ? masker.allowed_there : masker.allowed) mask[token / 32] |= 1u << (token % 32);
  return there ? masker.answer_there : masker.answer;
}

sol_generate_options Masked(int32_t tokens, Masker& masker) {
  sol_generate_options options = Options(tokens);
  options.mask = Mask;
  options.mask_user = &masker;
  masker.asked.clear();
  return options;
}

std::vector<int32_t> EveryFourth(const Host& host) {
  std::vector<int32_t> tokens;
  for (int32_t token = 1; token < host.info.vocab_size; token += 4) tokens.push_back(token);
  return tokens;
}

struct Made {
  std::vector<int32_t> tokens;
  std::vector<double> logprobs;
};

Made Generate(sol_session* session, const sol_generate_options& options) {
  Made made;
  const auto keep = [](void* user, const sol_token* token) {
    Made& kept = *static_cast<Made*>(user);
    kept.tokens.push_back(token->token);
    kept.logprobs.push_back(token->logprob);
    return int32_t{0};
  };
  const std::vector<int32_t> prompt = Prompt(9);
  CHECK_OK(sol_session_generate(session, prompt.data(), prompt.size(), &options, keep, &made, nullptr));
  return made;
}

// A bias of -100 on all other tokens picks the same ones: exp(-100) is nothing beside the rest.
void TestPicks(const Host& host) {
  Session session(host);
  Masker masker{session};
  masker.allowed = EveryFourth(host);
  std::vector<sol_logit_bias> biases;
  for (int32_t token = 0; token < host.info.vocab_size; ++token) {
    if (token % 4 != 1) biases.push_back({token, -100.0f});
  }
  for (int kind = 0; kind < 7; ++kind) {
    sol_generate_options options = Masked(30, masker);
    options.do_sample = kind > 1;
    options.seed = 7;
    options.temperature = kind == 3 ? 3.0 : 1.0;
    options.top_k = kind == 4 ? 5 : 0;
    options.top_p = kind == 5 ? 0.8 : 1.0;
    options.min_p = kind == 6 ? 0.1 : 0.0;
    options.repetition_penalty = kind == 1 ? 1.3 : 1.0;
    options.frequency_penalty = kind == 1 || kind == 2 ? 0.5 : 0.0;
    const Made masked = Generate(session, options);
    CHECK(masked.tokens.size() == 30 && masker.asked.size() == 31 && masker.seen_well);
    CHECK(std::all_of(masked.tokens.begin(), masked.tokens.end(), [](int32_t token) { return token % 4 == 1; }));
    for (size_t i = 0; i < masker.asked.size(); ++i) {
      CHECK(masker.asked[i] == std::vector<int32_t>(masked.tokens.begin(), masked.tokens.begin() + static_cast<std::ptrdiff_t>(i)));
    }
    options.mask = nullptr;
    CHECK(Generate(session, options).tokens != masked.tokens);
    options.logit_bias = biases.data();
    options.num_logit_bias = biases.size();
    const Made biased = Generate(session, options);
    CHECK(biased.tokens == masked.tokens && biased.logprobs == masked.logprobs);  // both of all tokens
  }
  masker.answer = SOL_MASK_NONE;
  sol_generate_options options = Masked(30, masker);
  const Made open = Generate(session, options);
  options.mask = nullptr;
  CHECK(masker.asked.size() == 31 && Generate(session, options).tokens == open.tokens);
}

// Fewer tokens than top_k, and a penalty that lowers the scores of those that are left out.
void TestFewTokens(const Host& host) {
  Session session(host);
  Masker masker;
  for (const std::vector<int32_t>& allowed : {std::vector<int32_t>{9}, {0, host.info.vocab_size - 1}}) {
    masker.allowed = allowed;
    for (int kind = 0; kind < 4; ++kind) {
      sol_generate_options options = Masked(12, masker);
      options.do_sample = kind > 0;
      options.temperature = kind == 2 ? 1e-40 : 1.0;
      options.top_k = kind == 3 ? 5 : 0;
      options.top_p = kind == 3 ? 0.99 : 1.0;
      options.repetition_penalty = 2.0;
      options.seed = 3;
      for (const int32_t token : Generate(session, options).tokens) CHECK(std::count(allowed.begin(), allowed.end(), token) == 1);
    }
  }
}

void TestEnds(const Host& host) {
  Session session(host);
  Masker masker;
  masker.allowed = EveryFourth(host);
  masker.at = 5;
  masker.answer_there = SOL_MASK_STOP;
  sol_result result{};
  result.size = sizeof result;
  for (const int32_t most : {50, 5}) {
    CHECK(Run(session, Prompt(6), Masked(most, masker), &result).size() == 5);
    CHECK(result.finish == SOL_FINISH_STOP && masker.asked.size() == 6);
  }
  CHECK(Run(session, Prompt(6), Masked(4, masker), &result).size() == 4 && result.finish == SOL_FINISH_LENGTH);

  // an end token is picked where the mask allows it, and nowhere else
  masker.answer_there = SOL_MASK_FILLED;
  masker.allowed_there = {2};
  std::vector<int32_t> ends;
  for (int32_t token = 0; token < host.info.vocab_size; ++token) {
    if (token % 4 != 1) ends.push_back(token);
  }
  sol_generate_options options = Masked(50, masker);
  options.end_tokens = ends.data();
  options.num_end_tokens = ends.size();
  const std::vector<int32_t> tokens = Run(session, Prompt(6), options, &result);
  CHECK(tokens.size() == 6 && tokens.back() == 2 && result.finish == SOL_FINISH_STOP && masker.asked.size() == 6);
}

void TestErrors(const Host& host) {
  Session session(host);
  const std::vector<int32_t> prompt = Prompt(6);
  for (const auto& [at, answer, code, words] :
       {std::make_tuple(size_t{0}, SOL_MASK_FILLED + 0, SOL_ERROR_USAGE, "got no allowed token at position 0 of the text, expected one or more"),
        std::make_tuple(size_t{3}, SOL_MASK_FILLED + 0, SOL_ERROR_USAGE, "got no allowed token at position 3"),
        std::make_tuple(size_t{0}, SOL_MASK_STOP + 0, SOL_ERROR_USAGE, "got a stop before the first token"),
        std::make_tuple(size_t{0}, -1, SOL_ERROR_HOST, "the host's mask asked to stop at position 0"),
        std::make_tuple(size_t{4}, -5, SOL_ERROR_HOST, "asked to stop at position 4"),
        std::make_tuple(size_t{2}, 3, SOL_ERROR_USAGE, "got 3 at position 2 of the text, expected 0 to 2")}) {
    Masker masker;
    masker.allowed = EveryFourth(host);
    masker.at = at;
    masker.answer_there = answer;
    const sol_generate_options options = Masked(20, masker);
    CHECK_FAILS(code, words, sol_session_generate(session, prompt.data(), prompt.size(), &options, nullptr, nullptr, nullptr));
    CHECK(masker.asked.size() == at + 1 && sol_session_busy(session) == 0);
    CHECK(Run(session, prompt, Options(3)).size() == 3);
  }
}

// A replay needs the mask again. The cache that a text has left is as good as any for the next one.
void TestTraces(const Host& host) {
  Session session(host);
  Masker masker;
  masker.allowed = EveryFourth(host);
  const std::string file = host.folder + "/masked.jsonl";
  sol_generate_options options = Masked(20, masker);
  options.budget = 0.7;
  options.do_sample = 1;
  options.seed = 4;
  options.trace = file.c_str();
  const std::vector<int32_t> tokens = Run(session, Prompt(6), options);
  sol_result result{};
  result.size = sizeof result;
  sol_generate_options again = Masked(1, masker);
  again.replay = file.c_str();
  CHECK(Run(session, Prompt(6), again, &result) == tokens && result.first_difference == -1);
  again.mask = nullptr;
  CHECK(Run(session, Prompt(6), again, &result) != tokens && result.first_difference >= 0);

  CHECK_OK(sol_session_rewind(session, 4));
  options.reuse_cache = 1;
  options.trace = nullptr;
  options.schedule = "dense";
  options.budget = 1.0;
  const std::vector<int32_t> reused = Run(session, Prompt(6), options, &result);
  CHECK(result.cached_tokens == 4);
  options.reuse_cache = 0;
  CHECK(Run(session, Prompt(6), options) == reused);
}

// The halves of a step ask the mask, too: the second one does.
void TestHalves(const Host& host) {
  Session session(host), inner(host);
  Masker masker;
  masker.allowed = EveryFourth(host);
  masker.at = 9;
  masker.answer_there = SOL_MASK_STOP;
  const std::vector<int32_t> prompt = Prompt(6);
  sol_generate_options options = Masked(30, masker);
  options.do_sample = 1;
  options.seed = 11;
  const std::vector<int32_t> expected = Run(session, prompt, options);
  CHECK(expected.size() == 9);

  sol_host_engine engine{};
  engine.size = sizeof engine;
  sol_session* outer = nullptr;
  CHECK_OK(sol_session_create_on(host.model, &engine, &outer));
  const size_t vocab = static_cast<size_t>(host.info.vocab_size), hidden = static_cast<size_t>(host.info.hidden_size);
  std::vector<float> logits(vocab), states(hidden);
  sol_rows rows{};
  rows.size = sizeof rows;
  rows.num_logits = 1;
  rows.logits = logits.data();
  rows.logits_length = vocab;
  rows.hidden = states.data();
  rows.hidden_length = hidden;
  options = Masked(30, masker);
  options.do_sample = 1;
  options.seed = 11;
  CHECK_OK(sol_session_start(outer, prompt.data(), prompt.size(), &options));
  std::vector<int32_t> tokens;
  sol_run run{};
  run.size = sizeof run;
  sol_token token{};
  token.size = sizeof token;
  while (token.finish == SOL_FINISH_NONE && g_failed == 0) {
    CHECK_OK(sol_session_begin_step(outer, &run));
    CHECK_OK(sol_session_rewind(inner, run.past));
    CHECK_OK(sol_session_forward(inner, run.tokens, run.num_tokens, run.action, &rows, nullptr));
    CHECK(masker.asked.size() == (tokens.empty() ? 0 : tokens.size() + 1));
    CHECK_OK(sol_session_end_step(outer, logits.data(), vocab, states.data(), hidden, &token));
    tokens.push_back(token.token);
  }
  CHECK(tokens == expected && token.finish == SOL_FINISH_STOP);
  sol_session_release(outer);
}

}  // namespace

int main(int argc, char** argv) {
  return RunTests(argc, argv, {
      {"picks", TestPicks},
      {"few tokens", TestFewTokens},
      {"ends", TestEnds},
      {"errors", TestErrors},
      {"traces", TestTraces},
      {"halves", TestHalves},
  });
}
