// The two ways to multiply: one row by dot products, many rows by matrix instructions.
#pragma once

#include "cuda/matmul/matmul.h"

namespace sol::cuda {

// Split of a product along K, and the number of counters that find the last block of its splits.
struct SplitK {
  int splits, counters;
};

constexpr int kRowOutputs = 256;       // of a block, of one row of a channel-major matrix
constexpr int kMostBlocksAWarp = 8;    // blocks of channels; bounds what of the row lies in shared memory

SplitK SplitRow(const Weights& w);
void MultiplyRow(Stream stream, const Weights& w, const Codes& codes, const float* bias, const float* residual, float* y);

SplitK SplitRows(const Weights& w, int64_t rows);
void MultiplyRows(Stream stream, const Weights& w, const Codes& codes, int64_t rows, const float* bias, const float* residual, float* y);

inline SplitK SplitOf(const Weights& w, int64_t rows) { return rows == 1 ? SplitRow(w) : SplitRows(w, rows); }

}  // namespace sol::cuda
