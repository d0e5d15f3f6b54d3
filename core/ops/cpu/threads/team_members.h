// Number of members of the next team of this process.
#pragma once

#include <cstddef>

#include "common/onnx/node.h"
#include "cpu/threads/team_size.h"

namespace sol {

inline size_t TeamMembers() { return TeamSize::Shared().Of(ThreadCount::Estimate()); }

}  // namespace sol
