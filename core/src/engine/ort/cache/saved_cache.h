// A session's file: the tokens of a cache, its used part, and the states of layers that have one.
#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <vector>

#include "engine/ort/cache/kv_cache.h"
#include "engine/ort/cache/states.h"

namespace sol_rt {

class OrtModel;

// Writes format and version, the bundle's identity, whether native operators filled the cache, its layout, the tokens, by layer the first that is held
// (int64), what every buffer holds, and the SHA-256 of all that. Numbers are little-endian. Where layers have states, the copies of the states come after the
// buffers, those at chosen lengths and those of the last runs: their number (int64), and of each its length (int64) and its numbers (float32).
// Last come the tokens' readers (int32), in version 2; without them, all being dense, the file is of version 1.
// `states` is null where no layer has one.
void SaveCache(std::ostream& stream, const OrtModel& model, const KvCache& cache, const States* states, const std::vector<int32_t>& tokens,
               const std::vector<int32_t>& readers);

// Tokens of a cache, and their readers; none where all are dense.
struct SavedTokens {
  std::vector<int32_t> tokens, readers;
};

// Reads it back and returns the tokens. `make_room` makes the cache large enough for so many tokens. Throws SOL_ERROR_BUNDLE for a damaged file or another
// bundle's, after zeroing what was read.
SavedTokens RestoreCache(std::istream& stream, const OrtModel& model, KvCache& cache, States* states, const std::function<void(int64_t)>& make_room);

}  // namespace sol_rt
