// States of fixed size that short convolutions keep of earlier tokens, and copies of the states to go back to.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "bundle/config/config.h"

namespace sol_rt {

// The states of all layers that have one, float32 [layers, 1, hidden, conv_size - 1]. A state can't be cut off as the KV cache can, so going back restores
// the last copy at or below the length wanted, and the engine runs the tokens after it again. Graphs read one buffer and write another: a run that fails
// changes nothing. `Commit` takes over what a run wrote.
class States {
 public:
  static constexpr size_t kMostCopies = 32;  // at chosen lengths; of more, the one with the closest neighbours goes, the longer ago the closer they seem
  static constexpr size_t kLast = 16;        // runs whose states are kept, too: steps back by fewer tokens run nothing again

  struct Copy {
    int64_t length = -1;  // tokens that it is of; -1: none
    std::vector<float> states;
  };

  // Takes no memory before `Reserve`.
  States(const ModelDims& model, const KvLayout& layout);

  const std::vector<int32_t>& layers() const { return layers_; }  // that have a state
  std::vector<int64_t> Shape() const { return {1, hidden_, size_}; }  // of one layer's
  size_t LayerBytes() const { return static_cast<size_t>(hidden_ * size_) * sizeof(float); }
  // Memory that graphs read and write for the layer of this index in `layers`. Valid from `Reserve` on.
  float* Read(size_t layer) const { return const_cast<float*>(states_.data()) + layer * LayerBytes() / sizeof(float); }
  float* Written(size_t layer) const { return const_cast<float*>(written_.data()) + layer * LayerBytes() / sizeof(float); }
  uint64_t Bytes() const;  // taken now

  int64_t length() const { return length_; }  // tokens that the states are of; -1 if only their copies hold something
  // Throws std::bad_alloc.
  void Reserve();
  // Takes over what the last run wrote, the states after `length` tokens.
  void Commit(int64_t length);
  void Keep();  // a copy
  // Drops the copies of more than `length` tokens, which are about to be replaced by others.
  void Forget(int64_t length);
  // Goes back to the last copy of at most `length` tokens, or to the start of a text. Drops later copies.
  void Restore(int64_t length);

  // Copies, for a session's file: those at chosen lengths, in ascending order, and those of the last runs. One of them is of the states themselves, unless
  // these are the start of a text.
  const std::vector<Copy>& kept() const { return kept_; }
  const std::array<Copy, kLast>& last() const { return last_; }
  size_t Numbers() const;  // of one copy
  // True if copies could be those of a text of `length` tokens.
  static bool Possible(const std::vector<Copy>& kept, const std::vector<Copy>& last, int64_t length);
  void TakeOver(std::vector<Copy> kept, std::vector<Copy> last);  // the states are then to be restored

 private:
  void Replace(const std::vector<float>& states, int64_t length);

  int64_t hidden_, size_, length_ = 0;
  std::vector<int32_t> layers_;
  std::vector<float> states_, written_;
  std::vector<Copy> kept_;
  std::array<Copy, kLast> last_;  // the states after n tokens are at n modulo kLast
};

}  // namespace sol_rt
