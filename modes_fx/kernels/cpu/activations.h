// The operations that a body may contain, on vectors of float32; named after their ATen overloads.
//
// maximum, minimum, clamp_min and clamp_max are ATen's own, which pass on NaN.
#pragma once

#include "simd.h"

#include <cmath>
#include <limits>

namespace modes_fx {

// A condition is a vector whose lanes have all bits set, or none.
inline Vec gt(Vec x, Vec limit) { return x > limit; }
inline Vec where(Vec condition, Vec x, Vec otherwise) {
  return Vec::blendv(otherwise, x, condition);
}

inline Vec abs(Vec x) { return x.abs(); }
inline Vec erf(Vec x) { return x.erf(); }
inline Vec exp(Vec x) { return x.exp(); }
inline Vec expm1(Vec x) { return x.expm1(); }
inline Vec log1p(Vec x) { return x.log1p(); }
inline Vec neg(Vec x) { return x.neg(); }
inline Vec pow(Vec x, Vec exponent) { return x.pow(exponent); }
inline Vec sqrt(Vec x) { return x.sqrt(); }
inline Vec square(Vec x) { return x * x; }
inline Vec rsqrt(Vec x) { return Vec(1.f) / x.sqrt(); }
inline Vec tanh(Vec x) { return x.tanh(); }
inline Vec sign(Vec x) {
  const Vec zero(0.f);
  return where(x > zero, Vec(1.f), where(x < zero, Vec(-1.f), x));
}

inline Vec relu(Vec x) { return clamp_min(x, Vec(0.f)); }
inline Vec sigmoid(Vec x) { return Vec(1.f) / (Vec(1.f) + x.neg().exp()); }
inline Vec silu(Vec x) { return x / (Vec(1.f) + x.neg().exp()); }
inline Vec gelu_none(Vec x) {
  return x * Vec(.5f) * (Vec(1.f) + (x * Vec(float(M_SQRT1_2))).erf());
}
inline Vec gelu_tanh(Vec x) {
  const Vec inner = Vec(float(M_2_SQRTPI * M_SQRT1_2)) * (x + Vec(.044715f) * x * x * x);
  return x * Vec(.5f) * (Vec(1.f) + inner.tanh());
}
inline Vec hardsigmoid(Vec x) {
  return clamp_max(relu(x + Vec(3.f)), Vec(6.f)) * Vec(1.f / 6);
}
inline Vec hardswish(Vec x) { return x * hardsigmoid(x); }
inline Vec hardtanh(Vec x, Vec low, Vec high) { return clamp_max(clamp_min(x, low), high); }
inline Vec threshold(Vec x, Vec limit, Vec value) { return where(x <= limit, value, x); }
inline Vec leaky_relu(Vec x, Vec slope) { return where(x > Vec(0.f), x, x * slope); }
inline Vec elu(Vec x, Vec alpha, Vec scale, Vec input_scale) {
  return where(x > Vec(0.f), x * scale, (x * input_scale).expm1() * alpha * scale);
}
inline Vec celu(Vec x, Vec alpha) { return elu(x, alpha, Vec(1.f), Vec(1.f) / alpha); }
inline Vec softplus(Vec x, Vec beta, Vec limit) {
  const Vec scaled = x * beta;
  return where(scaled > limit, x, scaled.exp().log1p() / beta);
}
inline Vec mish(Vec x) { return x * softplus(x, Vec(1.f), Vec(20.f)).tanh(); }

}  // namespace modes_fx
