// A product as an operator of its own: input 0, of any rank, times a matrix.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/inputs/nested_inputs.h"
#include "cuda/matmul/matmul.h"
#include "cuda/onnx/run.h"
#include "cuda/onnx/weights_input.h"

namespace sol::cuda {

// Output 0 of the operator `op`, of the channels of each row that `active` counts.
inline void MultiplyInput(Context& context, const char* op, const Weights& w, ActiveChannels active) {
  const Tensor x = context.Input(0);
  ExpectChannels(op, x, static_cast<size_t>(w.K));
  auto shape = x.dims;
  shape[x.rank - 1] = w.N;
  float* y = context.Output<float>(0, shape.data(), x.rank);
  const int64_t rows = x.Elements() / w.K;
  if (rows == 0) return;
  Source source;
  source.x = x.As<float>();
  Codes codes;
  const Run run(context, op);
  run.WithScratch([&](Scratch& scratch) { codes = PlaceCodes(w, std::min(rows, kRowsAtOnce), scratch); },
                  [&] { QuantizeAndMultiply(run.Queue(), w, source, active, rows, codes, nullptr, nullptr, y); });
}

}  // namespace sol::cuda
