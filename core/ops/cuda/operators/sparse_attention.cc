// SparseAttention: rotary embedding, in-place append to the cache, key codes, selection of tokens, attention.

#include <string>

#include "common/onnx/op.h"
#include "cuda/attention/attention_op.h"
#include "cuda/onnx/run.h"

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
    const cuda::Run run(context, kName);
    cuda::AttentionCall call = attention_.Begin(run, context.Input(7), context.Input(8), qkv.dims[1]);
    call.qkv = qkv.As<float>();
    call.y = context.Output<float>(0, {1, qkv.dims[1], attention_.OutputSize()});
    cuda::AttentionScratch memory;
    run.WithScratch([&](cuda::Scratch& scratch) { memory = cuda::PlaceAttention(call, scratch); },
                    [&] { cuda::Attend(run.Queue(), call, memory); });
  }

 private:
  cuda::AttentionOp attention_;
};

}  // namespace

const OrtCustomOp* SparseAttentionOp() { return Define<SparseAttention<kFloat16>>(); }
const OrtCustomOp* SparseAttentionInt8Op() { return Define<SparseAttention<kInt8>>(); }

}  // namespace sol
