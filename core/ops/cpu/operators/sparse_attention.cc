// SparseAttention as an operator of its own: attention over the cache, without the layer's matrices.

#include <algorithm>
#include <string>

#include "common/onnx/op.h"
#include "cpu/attention/attention.h"
#include "cpu/threads/team.h"
#include "cpu/threads/team_members.h"

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
    const size_t most = TeamMembers();
    DecodePlan shared{};
    DecodePlan* plans = nullptr;
    Place(memory, [&](Arena& arena) {
      shared = attention_.PlanStep(call, arena);
      plans = arena.Each(most, [&] { return attention_.PlanMember(call, shared, arena); });
    });
    attention_.StartStep(call, shared);
    const size_t members = std::min(most, attention_.StepMembers(call, shared));
    RunTeam(context, members, [&](Member& member) {
      const DecodePlan& plan = plans[member.Index()];
      bool has_queries = false;
      attention_.Prefetch(member, members, call, plan);
      if (plan.sparse) {
        Phase weigh = member.Enter(attention_.ScoreTasks(call, plan));
        if (weigh.HasTask()) {
          attention_.PrepareQueries(call, plan);
          has_queries = true;
        }
        for (; weigh.HasTask(); weigh.Next()) attention_.Weigh(call, plan, weigh.Task());
        weigh.End();
        weigh.Wait();

        Phase score = member.Enter(attention_.ScoreTasks(call, plan));
        for (; score.HasTask(); score.Next()) attention_.Score(call, plan, score.Task());
        score.End();
        score.Wait();
      }
      Phase attend = member.Enter(attention_.ChunkTasks(call, plan));
      if (attend.HasTask() && !has_queries) attention_.PrepareQueries(call, plan);
      for (; attend.HasTask(); attend.Next()) attention_.Attend(call, plan, attend.Task());
      attend.End();
      member.Leave();
    });
  }

  Attention attention_;
};

}  // namespace

const OrtCustomOp* SparseAttentionOp() { return Define<SparseAttention<kFloat16>>(); }
const OrtCustomOp* SparseAttentionInt8Op() { return Define<SparseAttention<kInt8>>(); }

}  // namespace sol
