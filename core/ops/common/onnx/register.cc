// The library's one entry point: registers the operators of the domain `sol`.

#include "common/export.h"
#include "common/onnx/op.h"
#ifdef HWY_BASELINE_TARGETS  // the CPU's operators for x86
#include "cpu/simd/target.h"
#endif

namespace sol {

std::atomic<const OrtApi*> g_api{nullptr};

const OrtCustomOp* DecoderLayerOp();
const OrtCustomOp* DecoderLayerInt8Op();
const OrtCustomOp* NestedMatMulOp();
const OrtCustomOp* NestedGatherOp();
const OrtCustomOp* PrunedMatMulOp();
const OrtCustomOp* PrunedMLPOp();
const OrtCustomOp* SparseAttentionOp();
const OrtCustomOp* SparseAttentionInt8Op();

namespace {

OrtStatus* Register(OrtSessionOptions* options) {
  // One domain for the life of the process: every session refers to it. Two definitions of a name differ in the types they take.
  static OrtCustomOpDomain* const domain = [] {
    OrtCustomOpDomain* made = nullptr;
    Check(Api().CreateCustomOpDomain("sol", &made));
    for (const OrtCustomOp* op : {DecoderLayerOp(), DecoderLayerInt8Op(), NestedMatMulOp(), NestedGatherOp(), PrunedMatMulOp(), PrunedMLPOp(),
                                  SparseAttentionOp(), SparseAttentionInt8Op()}) {
      Check(Api().CustomOpDomain_Add(made, op));
    }
    return made;
  }();
  return Api().AddCustomOpDomain(options, domain);
}

}  // namespace
}  // namespace sol

extern "C" {

SOL_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (api == nullptr) {
    // Old enough for every release that has custom operator libraries at all.
    const OrtApi* old = base->GetApi(12);
    return old == nullptr ? nullptr
                          : old->CreateStatus(ORT_FAIL, "the native operators need ONNX Runtime 1.21 or newer; upgrade it or run "
                                                        "without native operators");
  }
#ifdef HWY_BASELINE_TARGETS
  if (!sol::RunsBaseline()) {
    return api->CreateStatus(ORT_FAIL, "the native operators need a processor with SSE4.2 (x86-64-v2); run without native operators");
  }
#endif
  sol::g_api.store(api, std::memory_order_relaxed);
  OrtStatus* status = nullptr;
  OrtStatus* failure = sol::Guard("native operators", [&] { status = sol::Register(options); });
  return failure != nullptr ? failure : status;
}
}
