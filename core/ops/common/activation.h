// The activation functions of an MLP, the same on every provider. cpu/elementwise/activate-inl.h has their formulas.
#pragma once

namespace sol {

enum class Activation : int { kSilu, kGelu, kGeluTanh, kRelu, kRelu2 };

}  // namespace sol
