#include "common/session_rows.h"

#include "cpu/few_tokens.h"
#include "cpu/session_rows.h"

namespace sol {

static_assert(kMostSessionRows <= kFewTokens, "a session's token has the bits that it has alone");

namespace {

thread_local const SolSessionRows* session_rows = nullptr;

}  // namespace

const SolSessionRows* SessionRowsOfRun() { return session_rows; }

}  // namespace sol

extern "C" void SolOpsShareRuns(const SolSessionRows* rows) { sol::session_rows = rows; }
