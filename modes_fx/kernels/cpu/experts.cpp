// The experts for one instruction set, whatever their body.
#include "experts.h"

#define MODES_FX_NAME_(dtype, isa) modes_fx_experts_##dtype##_##isa
#define MODES_FX_NAME(dtype, isa) MODES_FX_NAME_(dtype, isa)

namespace modes_fx {

template <class T, class W>
const char* run_on(const Call& call, const BodyCode& body) {
  Experts<T, W> experts(call, body);
  const char* misfit = experts.check();
  if (!misfit) experts.run();
  return misfit;
}

template <class T>
const char* run(const Call& call, const BodyCode& body) {
  return call.integers ? run_on<T, int8_t>(call, body) : run_on<T, T>(call, body);
}

}  // namespace modes_fx

extern "C" const char* MODES_FX_NAME(float32, MODES_FX_ISA)(
    const modes_fx::Call& call, const modes_fx::BodyCode& body) {
  return modes_fx::run<float>(call, body);
}

extern "C" const char* MODES_FX_NAME(bfloat16, MODES_FX_ISA)(
    const modes_fx::Call& call, const modes_fx::BodyCode& body) {
  return modes_fx::run<modes_fx::BFloat16>(call, body);
}
