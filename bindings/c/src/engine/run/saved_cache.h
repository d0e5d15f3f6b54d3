// A session's file: the tokens of a cache and its used part.
#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <vector>

#include "engine/run/kv_cache.h"

namespace sol_rt {

class Model;

// Writes format and version, the bundle's identity, whether native operators filled the cache, its layout, the tokens, by layer the first that is held
// (int64, where that is not 0 everywhere: version 2), what every buffer holds, and the SHA-256 of all that. Numbers are little-endian.
void SaveCache(std::ostream& stream, const Model& model, const KvCache& cache, const std::vector<int32_t>& tokens);

// Reads it back and returns the tokens. `make_room` makes the cache large enough for so many tokens. Throws SOL_ERROR_BUNDLE for a damaged file or another
// bundle's, after zeroing what was read.
std::vector<int32_t> RestoreCache(std::istream& stream, const Model& model, KvCache& cache, const std::function<void(int64_t)>& make_room);

}  // namespace sol_rt
