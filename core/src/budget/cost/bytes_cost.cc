// The bytes model: bytes of weights, KV cache and states that a step reads. It is right wherever memory bandwidth is the limit.
#include <map>
#include <string>

#include "base/error.h"
#include "budget/cost_model.h"

namespace sol_rt {
namespace {

class BytesCost final : public CostModel {
 public:
  explicit BytesCost(const Config& config) : CostModel(config) {
    const ModelDims& model = config.model;
    const int64_t heads = config.kv.Attending(model) * model.num_kv_heads;
    per_token_ = static_cast<double>(heads * config.kv.TokenBytes(model.head_dim));
    per_page_ = static_cast<double>(heads * config.kv.page_size * (model.head_dim / 2 + 4));  // codes and range of a token
    const int64_t states = 2 * config.kv.StateBytes(model);  // read and written
    for (const auto& [key, variant] : config.variants) fixed_[key] = static_cast<double>(variant.weight_bytes + states);
    if (config.policy) policy_ = static_cast<double>(config.files.at(config.policy->file).bytes);
  }
  const char* Name() const override { return "bytes"; }
  bool InMilliseconds() const override { return false; }
  double Policy() const override { return policy_; }
  CostLine Line(const Action& action) const override {
    const auto found = fixed_.find(action.Variant());
    if (found == fixed_.end()) UsageFault("cost of " + action.Tag() + ": its variant is not in the bundle");
    return {found->second, per_token_, per_page_};
  }

 private:
  std::map<std::string, double> fixed_;
  double per_token_, per_page_, policy_ = 0.0;
};

}  // namespace

std::shared_ptr<const CostModel> MakeBytesCost(const Config& config) { return std::make_shared<BytesCost>(config); }

}  // namespace sol_rt
