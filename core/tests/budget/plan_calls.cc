// Checks sol_plan.h on the config of a bundle: wrong calls, costs, hulls and plans. Takes the path of a sol_config.json.
#include <sol_plan.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <utility>

#include "session/host.h"

namespace {

std::string g_config;

struct Costs {
  Costs() { CHECK_OK(sol_costs_create(g_config.c_str(), nullptr, &handle)); }
  ~Costs() { sol_costs_release(handle); }
  sol_costs* handle = nullptr;
};

std::vector<std::string> Tags(const sol_costs* costs, const char* schedule) {
  size_t length = 0;
  CHECK_OK(sol_costs_actions(costs, schedule, 0, nullptr, 0, &length));
  std::string text(length + 1, '?');
  CHECK_OK(sol_costs_actions(costs, schedule, 0, &text[0], length, &length));
  CHECK(text[0] == '?');  // no room for the NUL: nothing was written
  CHECK_OK(sol_costs_actions(costs, schedule, 0, &text[0], text.size(), &length));
  CHECK(text.size() == length + 1 && text.back() == '\0');
  std::vector<std::string> tags(1);
  for (const char c : text.substr(0, length)) {
    if (c == ' ') {
      tags.emplace_back();
    } else {
      tags.back() += c;
    }
  }
  return tags;
}

std::vector<const char*> Pointers(const std::vector<std::string>& tags) {
  std::vector<const char*> pointers;
  for (const std::string& tag : tags) pointers.push_back(tag.c_str());
  return pointers;
}

void TestWrongCalls() {
  sol_costs* none = nullptr;
  sol_hull* hull = nullptr;
  sol_plan* plan = nullptr;
  size_t count = 0;
  double number = 0;
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_costs_create(nullptr, nullptr, &none));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_costs_create(g_config.c_str(), nullptr, nullptr));
  for (const char* bad : {"", "{", "[]", "{\"format\": \"sol_rt.bundle\"}"}) {
    CHECK_FAILS(SOL_ERROR_BUNDLE, "sol_config.json", sol_costs_create(bad, nullptr, &none));
    CHECK_FAILS(SOL_ERROR_BUNDLE, "cost table: ", sol_costs_create(g_config.c_str(), bad, &none));
  }
  CHECK(none == nullptr);
  sol_costs_release(nullptr);
  sol_hull_release(nullptr);
  sol_plan_release(nullptr);
  CHECK(sol_costs_policy(nullptr) == 0);
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_costs_steps(nullptr, nullptr, 0, nullptr, 0, nullptr));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_plan_step(nullptr, nullptr, nullptr));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_hull_cost_at(nullptr, 0, 0, &number));
  const Costs costs;
  const char* tag = "k100-s100-q8";
  const char* bad = "k100";
  const int64_t context = 10, below = -1;
  CHECK_FAILS(SOL_ERROR_USAGE, "k100", sol_costs_steps(costs.handle, &bad, 1, &context, 1, &number));
  CHECK_FAILS(SOL_ERROR_USAGE, "context: got -1", sol_costs_steps(costs.handle, &tag, 1, &below, 1, &number));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_costs_steps(costs.handle, &tag, 1, nullptr, 1, &number));
  CHECK_FAILS(SOL_ERROR_USAGE, "dense action", sol_hull_create(costs.handle, nullptr, 0, &hull));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_costs_actions(costs.handle, nullptr, 0, nullptr, 0, &count));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_costs_schedule_note(costs.handle, nullptr, nullptr, 0, &count));
  CHECK_OK(sol_costs_schedule_note(costs.handle, "sol", nullptr, 0, &count));
  CHECK(count == 0);  // costs are bytes
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_plan_create(nullptr, nullptr, &plan));
  sol_generate_options dial = Options(0);
  dial.budget = 2;
  sol_plan_options options{};
  options.options = &dial;
  CHECK_FAILS(SOL_ERROR_USAGE, "size", sol_plan_create(costs.handle, &options, &plan));
  options.size = sizeof options;
  CHECK_FAILS(SOL_ERROR_USAGE, "--budget: got 2", sol_plan_create(costs.handle, &options, &plan));
  CHECK(hull == nullptr && plan == nullptr);
}

void TestCosts() {
  const Costs costs;
  const std::vector<std::string> tags = Tags(costs.handle, "uniform");
  const std::vector<const char*> pointers = Pointers(tags);
  const int64_t contexts[] = {0, 500};
  std::vector<double> steps(2 * tags.size());
  CHECK_OK(sol_costs_steps(costs.handle, pointers.data(), pointers.size(), contexts, 2, steps.data()));
  for (size_t index = 0; index < tags.size(); ++index) {
    double tokens = 0, pages = 0;
    CHECK(steps[index] > 0 && steps[tags.size() + index] > steps[index]);
    CHECK_OK(sol_costs_reads(costs.handle, pointers[index], 500, &tokens, &pages));
    CHECK(tags[index].compare(0, 4, "k100") == 0 ? tokens == 501 && pages == 0 : tokens < 501 && pages > 0);
  }
}

void TestLowerHull() {
  double xs[] = {3, 1, 2, 4}, ys[] = {0, 2, 2, 1};
  size_t count = 4;
  CHECK_OK(sol_lower_hull(xs, ys, &count, 0));
  CHECK(count == 3 && xs[0] == 1 && xs[1] == 3 && ys[1] == 0 && xs[2] == 4);
  CHECK_OK(sol_lower_hull(xs, ys, &count, 1));
  CHECK(count == 2);
  count = 0;
  CHECK_OK(sol_lower_hull(nullptr, nullptr, &count, 1));
  CHECK_FAILS(SOL_ERROR_USAGE, "NULL", sol_lower_hull(xs, ys, nullptr, 0));
}

void TestHull() {
  const Costs costs;
  const std::vector<std::string> tags = Tags(costs.handle, "hull");
  const std::vector<const char*> pointers = Pointers(tags);
  sol_hull* hull = nullptr;
  CHECK_OK(sol_hull_create(costs.handle, pointers.data(), pointers.size(), &hull));
  std::vector<size_t> places(tags.size());
  std::vector<double> relative(tags.size()), losses(tags.size());
  size_t count = 0;
  CHECK_OK(sol_hull_corners(hull, 500, places.data(), relative.data(), losses.data(), &count));
  CHECK(count >= 2 && relative[count - 1] == 1 && losses[count - 1] == 0);
  double cost = 0;
  for (size_t index = 0; index + 1 < count; ++index) {
    CHECK(relative[index] < relative[index + 1] && places[index] < tags.size());
    CHECK_OK(sol_hull_cost_at(hull, losses[index], 500, &cost));
    CHECK(std::fabs(cost - relative[index]) < 1e-9);
  }
  sol_hull_release(hull);
}

struct Asked {
  int calls = 0, fresh = 0, fail_at = -1;
  size_t actions = 0;
};

int32_t Decide(void* user, const sol_policy_inputs* inputs, float* logits) {
  Asked& asked = *static_cast<Asked*>(user);
  CHECK(inputs->hidden_size == 3 && inputs->hidden[2] == 7.0f && inputs->num_scalars > 0);
  asked.fresh += inputs->fresh;
  for (size_t index = 0; index < asked.actions; ++index) logits[index] = static_cast<float>((asked.calls * 7 + static_cast<int>(index) * 5) % 11);
  return asked.calls++ == asked.fail_at ? 1 : 0;
}

int32_t Last(void*, const sol_choice* choice) {
  for (auto index = static_cast<int32_t>(choice->num_actions) - 1; index >= 0; --index) {
    if (choice->allowed[index]) return index;
  }
  return -1;
}

// Every schedule holds its budget from the 64th step on, and outlives the costs that it was made of.
void TestPlans() {
  const float hidden[64] = {1, 2, 7}, logits[] = {0.5f, 3, -1, 2};
  for (const std::string schedule : {"sol", "hull", "uniform", "entropy", "random", "own"}) {
    Asked asked;
    sol_generate_options dial = Options(0);
    dial.budget = 0.8;
    dial.seed = 3;
    dial.schedule = schedule.c_str();
    if (schedule == "own") dial.choose = Last;
    const size_t width = schedule == "own" ? 64 : 3;  // a schedule of the host's reads the model's own
    sol_plan_options options{};
    options.size = sizeof options;
    options.options = &dial;
    options.decide = Decide;
    options.decide_user = &asked;
    sol_plan* plan = nullptr;
    {
      const Costs costs;
      asked.actions = Tags(costs.handle, "sol").size();
      CHECK_OK(sol_plan_create(costs.handle, &options, &plan));
    }
    sol_step step{};
    step.size = sizeof step;
    for (int64_t index = 0; index < 120; ++index) {
      const sol_plan_seen seen{sizeof seen, 1, index, 300 + index, hidden, width, logits, 4};
      if (index == 60) CHECK_OK(sol_plan_set_budget(plan, 0.9));
      CHECK_OK(sol_plan_step(plan, &seen, &step));
      CHECK(index < 63 || std::fabs(step.achieved_budget - step.requested_budget) <= 0.02);
    }
    CHECK(step.floored == 0 && step.context == 419);
    // at 0.9 the two actions differ in KV density alone, which asks no policy
    CHECK(asked.calls == (schedule == "sol" ? 60 : 0) && asked.fresh == (schedule == "sol" ? 1 : 0));
    CHECK_FAILS(SOL_ERROR_USAGE, "--budget", sol_plan_set_budget(plan, NAN));
    CHECK_FAILS(SOL_ERROR_USAGE, "sol-rt profile", sol_plan_set_tokens_per_second(plan, 5));
    const sol_plan_seen narrow{sizeof narrow, 1, 120, 420, hidden, 3, logits, 4};
    if (schedule == "own") CHECK_FAILS(SOL_ERROR_USAGE, "hidden_size: got 3", sol_plan_step(plan, &narrow, &step));
    const sol_plan_seen beyond{sizeof beyond, 4, 120, 420, hidden, width, logits, 4};
    CHECK_FAILS(SOL_ERROR_USAGE, "got token 4 of 4 logits", sol_plan_step(plan, &beyond, &step));
    const sol_plan_seen next{sizeof next, 1, 120, 420, hidden, width, nullptr, 0};
    asked.fail_at = asked.calls;
    if (schedule == "sol") CHECK_FAILS(SOL_ERROR_HOST, "policy asked to stop", sol_plan_step(plan, &next, &step));
    if (schedule == "entropy") CHECK_FAILS(SOL_ERROR_USAGE, "needs logits", sol_plan_step(plan, &next, &step));
    sol_plan_release(plan);
  }
}

}  // namespace

int main(int, char** argv) {
  std::ifstream file(argv[1]);
  g_config.assign(std::istreambuf_iterator<char>(file), {});
  const std::pair<const char*, void (*)()> tests[] = {
      {"wrong calls", TestWrongCalls}, {"costs", TestCosts}, {"lower hull", TestLowerHull}, {"hull", TestHull}, {"plans", TestPlans}};
  for (const auto& [name, test] : tests) {
    g_test = name;
    test();
  }
  return g_failed == 0 ? 0 : 1;
}
