// Names of the scalars that a policy may ask for (docs/reference/bundle-details.md, section 5).
#pragma once

namespace sol_rt {

constexpr const char* kPolicyScalars[] = {"step_fraction", "budget",      "spend_deviation", "entropy",       "top_probability",
                                          "surprise",      "log_context", "margin",          "previous_cost", "recent_spend"};

}  // namespace sol_rt
