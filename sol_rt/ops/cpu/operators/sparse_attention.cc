// SparseAttention as an operator of its own: attention over the cache, without the layer's matrices.

#include <algorithm>
#include <string>

#include "common/onnx/op.h"
#include "cpu/attention/attention.h"

namespace sol {
namespace {

// Element: of keys and values, kFloat16 or kInt8.
template <Type Element>
class SparseAttention {
 public:
  static constexpr const char* kName = "SparseAttention";
  static constexpr auto kInputs = kSparseAttentionInputs<Element>;
  static constexpr auto kOutputs = kAttentionOutputs<Element>;

  explicit SparseAttention(const Attributes& attributes) : attention_(attributes, kName, Element == kInt8, 9) {}

  void Compute(Context& context) const {
    const Tensor qkv = context.Input(0);
    Expect(kName, "qkv", qkv, kFloat, {1, -1, attention_.QkvSize()});
    if (qkv.dims[1] < 1) throw Error(std::string(kName) + ": input qkv: got no token, expected at least 1");
    AttentionCall call = attention_.Begin(context, context.Input(7), context.Input(8), qkv.dims[1]);
    call.qkv = qkv.As<float>();
    call.y = context.Output<float>(0, {1, call.tokens, attention_.OutputSize()});
    if (call.tokens == 1) {
      One(context, call);
    } else {
      attention_.Rows(context, call);
    }
  }

 private:
  void One(const Context& context, const AttentionCall& call) const {
    thread_local Buffer memory;
    const size_t most = ThreadCount::Estimate();
    DecodePlan plan{};
    DecodePlan* own = nullptr;
    Place(memory, [&](Arena& arena) {
      plan = attention_.PlanStep(call, arena);
      own = arena.Each(most, [&] { return attention_.PlanOwn(call, plan, arena); });
    });
    attention_.StartStep(call, plan);
    const size_t members = std::min(most, attention_.StepMembers(call, plan));
    RunTeam(context, members, [&](Member& member) {
      attention_.FetchStep(member, members, call, plan);
      attention_.Step(member, call, own[member.Index()], [] {}, [] {});
    });
  }

  Attention attention_;
};

}  // namespace

const OrtCustomOp* SparseAttentionOp() { return Define<SparseAttention<kFloat16>>(); }
const OrtCustomOp* SparseAttentionInt8Op() { return Define<SparseAttention<kInt8>>(); }

}  // namespace sol
