// Options of generations and scores, from the structs of hosts.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "api/session.h"
#include "base/text/json.h"
#include "budget/planner.h"
#include "generate/token_mask.h"
#include "sol_rt.h"

namespace sol_rt {

sol_generate_options DefaultOptions();

// The host's changes to the model's own settings. They are checked where a file's are.
std::vector<std::pair<std::string, nlohmann::json>> SettingsOf(const sol_generate_options& options);

// The dial, with a schedule of the host's that runs as a callback of the session; `session` is null in a plan without a model.
Dial DialOf(const Config& config, sol_session* session, const sol_generate_options& options);

// The mask of the host's that runs as a callback of the session; null if there is none.
AskMask MaskOf(sol_session& session, const sol_generate_options& options);

// A distribution as hosts see it.
sol_distribution DistributionOf(const Distribution& distribution);

}  // namespace sol_rt
