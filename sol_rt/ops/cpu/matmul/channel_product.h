// One token times a channel-major matrix, by a team.
//
// A matrix is cut along its channels: a task reads rows whole, one after the other, at the speed of a plain read; the beginnings or
// ends of rows alone cost up to a third of it. Every part of the channels has sums of its own. The number of parts depends on the
// matrix alone, as it decides the order of additions.
#pragma once

#include <algorithm>

#include "cpu/matmul/fetch.h"
#include "cpu/matmul/matmul_kernels.h"
#include "cpu/matmul/token_input.h"
#include "cpu/threads/team.h"

namespace sol {

class ChannelProduct {
 public:
  // At most `most_parts` parts, and `most_outputs` outputs a task: what the core's own cache holds of sums.
  ChannelProduct(const Nested& w, const float* bias, size_t most_parts, size_t most_outputs)
      : w_(w), bias_(bias), parts_(std::min(most_parts, w.K / kBlock)), most_outputs_(most_outputs) {}

  size_t Parts() const { return parts_; }
  // Size of the sums, [parts, N].
  size_t Sums() const { return parts_ * w_.N; }

  // A multiple of the parts: where there are more members than parts, they share the outputs of one.
  size_t Tasks(size_t members) const {
    const size_t wanted = std::min((members + parts_ - 1) / parts_, (w_.N + kStep - 1) / kStep);
    return parts_ * std::max((w_.N + most_outputs_ - 1) / most_outputs_, wanted);
  }

  // Asks for the first bytes that a task reads, where every channel counts.
  void Fetch(size_t task, size_t tasks, size_t bytes) const {
    FetchChannelMajor(w_, BlocksOf(task, tasks), OutputsOf(task, tasks), bytes);
  }

  void Row(const TokenInput& x, size_t task, size_t tasks, float* sums) const {
    const size_t part = task / (tasks / parts_);
    const auto [begin, end] = OutputsOf(task, tasks);
    float* to = sums + part * w_.N;
    if (part == 0 && bias_ != nullptr) {
      std::copy(bias_ + begin, bias_ + end, to + begin);
    } else {
      std::fill(to + begin, to + end, 0.0f);
    }
    BestKernels().row_channel_major(w_, x.Codes(), x.Active(), BlocksOf(task, tasks), begin, end, to);
  }

  // The outputs begin … end - 1, into the first part's sums.
  void AddParts(size_t begin, size_t end, float* sums) const {
    for (size_t p = 1; p < parts_; ++p) {
      const float* part = sums + p * w_.N;
      for (size_t n = begin; n < end; ++n) sums[n] += part[n];
    }
  }

 private:
  static constexpr size_t kStep = 128;  // outputs of whole vectors

  Range BlocksOf(size_t task, size_t tasks) const { return ShareOf(w_.K / kBlock, 1, task / (tasks / parts_), parts_); }
  Range OutputsOf(size_t task, size_t tasks) const {
    const size_t ranges = tasks / parts_;
    return ShareOf(w_.N, kStep, task % ranges, ranges);
  }

  Nested w_;
  const float* bias_;
  size_t parts_, most_outputs_;
};

}  // namespace sol
