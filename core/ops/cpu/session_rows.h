// The sessions that share the run in progress, of this thread.
#pragma once

#include "common/session_rows.h"

namespace sol {

const SolSessionRows* SessionRowsOfRun();  // null where it is one session's

}  // namespace sol
