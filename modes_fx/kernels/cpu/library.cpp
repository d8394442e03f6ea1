// The ops gate and experts on CPUs, for programs with and without Python.
//
// A kernel is generated for every body and registers itself when it is loaded. Where a process has
// none for a body, the op modes_fx::experts_unfused is called instead, which Python defines.
#include "call.h"
#include "routing.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <unordered_map>

namespace modes_fx {
namespace {

using at::Tensor;

constexpr const char* GATE =
    "gate(Tensor index, Tensor weight, Tensor modality, Tensor? tokens, Tensor theta, "
    "SymInt num_experts, str share, float kept_mass_exponent, SymInt min_k) -> (Tensor, Tensor)";
constexpr const char* EXPERTS =
    "experts(Tensor x, Tensor index, Tensor weight, Tensor[] params, str body, "
    "SymInt num_experts) -> Tensor";

constexpr const char* SORT_PAIRS =
    "sort_pairs(Tensor index, Tensor weight, SymInt num_experts) -> "
    "(Tensor, Tensor, Tensor, Tensor)";

struct Entry {
  Kernel kernel = nullptr;
  std::string kinds;
};

struct Kernels {
  std::shared_mutex mutex;
  std::unordered_map<std::string, Entry> by_body;  // dtype, then the body; none is ever removed

  static Kernels& all() {
    static Kernels kernels;
    return kernels;
  }

  const Entry* find(const std::string& key) {
    std::shared_lock lock(mutex);
    const auto found = by_body.find(key);
    return found == by_body.end() ? nullptr : &found->second;
  }
};

const char* name_of(at::ScalarType dtype) {
  return dtype == at::kFloat ? "float32" : dtype == at::kBFloat16 ? "bfloat16" : "";
}

Arena& arena() {
  static thread_local Arena own;
  return own;
}

struct EndOfCall {
  ~EndOfCall() { arena().reset(); }
};

void in_parallel(int count, void (*work)(void*, int), void* context) {
  if (count == 1) return work(context, 0);
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(context, int(i));
  });
}

// Calls f with the elements of a tensor of one of the dtypes that combine weights have.
template <class F>
auto with_floats(const Tensor& tensor, F&& f) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return f(tensor.const_data_ptr<float>());
    case at::kBFloat16: return f(tensor.const_data_ptr<at::BFloat16>());
    case at::kHalf: return f(tensor.const_data_ptr<at::Half>());
    case at::kDouble: return f(tensor.const_data_ptr<double>());
    default: TORCH_CHECK_TYPE(false, "combine weights are ", tensor.scalar_type(), ", not floats");
  }
}

template <class F>
auto with_ids(const Tensor& tensor, F&& f) {
  switch (tensor.scalar_type()) {
    case at::kLong: return f(tensor.const_data_ptr<int64_t>());
    case at::kInt: return f(tensor.const_data_ptr<int32_t>());
    default:
      TORCH_CHECK_TYPE(false, "expert ids are ", tensor.scalar_type(), ", not int64 or int32");
  }
}

bool is_matrix(char kind) { return kind == MATRIX || kind == ROW_MATRIX; }

// Describes a parameter to a kernel; nothing where the kernel cannot read it.
std::optional<Param> describe(const Tensor& param, at::ScalarType dtype, char kind, int64_t E) {
  if (!param.is_contiguous() || !param.device().is_cpu()) return {};
  const bool integers = kind == ROW_MATRIX && param.dim() == 3 && param.scalar_type() == at::kChar;
  if (param.scalar_type() != dtype && !integers) return {};
  const auto sizes = param.sizes();
  const void* data = param.const_data_ptr();
  const int64_t dim = param.dim();
  if (kind == SHARED_VECTOR && dim <= 1) return Param{data, 0, 1, param.numel(), false};
  if (kind == SHARED_VECTOR || dim < 2) return {};
  TORCH_CHECK_VALUE(
      sizes[0] >= E, "modes_fx::experts: a parameter ", sizes, " is not for ", E, " experts");
  if (kind == EXPERT_VECTOR && dim == 2) return Param{data, param.stride(0), 1, sizes[1], false};
  if (is_matrix(kind) && dim == 3) return Param{data, param.stride(0), sizes[1], sizes[2], false};
  if (is_matrix(kind) && dim == 5) {
    return Param{data, param.stride(0), sizes[1] * sizes[3], sizes[2] * sizes[4], true};
  }
  return {};
}

std::vector<Param> describe_all(
    at::TensorList params, at::ScalarType dtype, const Entry& entry, int64_t num_experts) {
  std::vector<Param> described;
  described.reserve(params.size());
  for (size_t i = 0; i < params.size() && i < entry.kinds.size(); ++i) {
    const auto one = describe(params[i], dtype, entry.kinds[i], num_experts);
    if (!one) break;
    described.push_back(*one);
  }
  return described;
}

// Whether the matrices are int8; nothing where some are and some are not.
std::optional<bool> all_integers(at::TensorList params, const std::string& kinds) {
  int64_t matrices = 0, integers = 0;
  for (size_t i = 0; i < params.size() && i < kinds.size(); ++i) {
    if (!is_matrix(kinds[i])) continue;
    ++matrices;
    integers += params[i].scalar_type() == at::kChar;
  }
  if (integers && integers < matrices) return {};
  return integers > 0;
}

Tensor unfused(
    const Tensor& x, const Tensor& index, const Tensor& weight, at::TensorList params,
    std::string_view body, int64_t num_experts) {
  static const auto op = [] {
    const auto found = c10::Dispatcher::singleton().findSchema({"modes_fx::experts_unfused", ""});
    TORCH_CHECK(
        found.has_value(),
        "modes_fx::experts has no kernel for a body in this process: load the kernels that were "
        "built for it beside the library of its ops");
    return found->typed<Tensor(
        const Tensor&, const Tensor&, const Tensor&, at::TensorList, std::string_view, int64_t)>();
  }();
  return op.call(x, index, weight, params, body, num_experts);
}

Tensor experts(
    const Tensor& x, const Tensor& index, const Tensor& weight, at::TensorList params,
    std::string_view body, int64_t num_experts) {
  TORCH_CHECK_VALUE(
      x.dim() == 2 && index.dim() == 2 && index.size(0) == x.size(0) &&
          weight.sizes() == index.sizes(),
      "experts takes x [T, H], index [T, K] and weight [T, K], got ", x.sizes(), ", ",
      index.sizes(), " and ", weight.sizes());
  const auto dtype = x.scalar_type();
  const Entry* entry = Kernels::all().find(std::string(name_of(dtype)).append(body));
  if (!entry) return unfused(x, index, weight, params, body, num_experts);
  const std::vector<Param> described = describe_all(params, dtype, *entry, num_experts);
  const std::optional<bool> integers = all_integers(params, entry->kinds);
  if (described.size() != params.size() || !integers) {
    return unfused(x, index, weight, params, body, num_experts);
  }
  const Tensor rows = x.contiguous(), ids = index.contiguous(), weights = weight.contiguous();
  const int64_t T = x.size(0), H = x.size(1), K = index.size(1);
  Tensor out = at::empty(x.sizes(), x.options());
  const EndOfCall end;
  Call call;
  call.pairs = with_ids(ids, [&](const auto* id) {
    return with_floats(weights, [&](const auto* w) {
      return sort_pairs(id, w, T, K, num_experts, arena());
    });
  });
  const size_t row = H * out.element_size();
  char* to = static_cast<char*>(out.mutable_data_ptr());
  if (call.pairs.count < T * K) {
    std::vector<bool> computed(T);
    for (int64_t p = 0; p < call.pairs.count; ++p) computed[call.pairs.token[p]] = true;
    for (int64_t t = 0; t < T; ++t) {
      if (!computed[t]) std::fill(to + t * row, to + (t + 1) * row, 0);
    }
  }
  if (call.pairs.count == 0) return out;
  call.x = rows.const_data_ptr();
  call.out = to;
  call.tokens = T;
  call.hidden = H;
  call.params = described.data();
  call.integers = *integers;
  call.runtime = {at::get_num_threads(), in_parallel, [](size_t bytes) { return arena().take(bytes); }};
  const char* misfit = entry->kernel(call);
  TORCH_CHECK_VALUE(!misfit, "modes_fx::experts: ", misfit, " (", num_experts, " experts, x ", x.sizes(), ")");
  return out;
}

template <class T>
Tensor copied(const T* from, int64_t count, const at::TensorOptions& options) {
  Tensor to = at::empty({count}, options.dtype(c10::CppTypeToScalarType<T>::value));
  std::copy(from, from + count, to.mutable_data_ptr<T>());
  return to;
}

// The first step of a call of experts, for tests and measurements.
std::tuple<Tensor, Tensor, Tensor, Tensor> sorted_pairs(
    const Tensor& index, const Tensor& weight, int64_t num_experts) {
  const Tensor ids = index.contiguous(), weights = weight.contiguous();
  const EndOfCall end;
  const Pairs pairs = with_ids(ids, [&](const auto* id) {
    return with_floats(weights, [&](const auto* w) {
      return sort_pairs(id, w, ids.size(0), ids.size(1), num_experts, arena());
    });
  });
  return {
      copied(pairs.token, pairs.count, ids.options()),
      copied(pairs.weight, pairs.count, ids.options()),
      copied(pairs.expert, pairs.experts_hit, ids.options()),
      copied(pairs.begin, pairs.experts_hit + 1, ids.options())};
}

std::tuple<Tensor, Tensor> gate(
    const Tensor& index, const Tensor& weight, const Tensor& modality,
    const std::optional<Tensor>& tokens, const Tensor& theta, int64_t num_experts,
    std::string_view share, double kept_mass_exponent, int64_t min_k) {
  const int64_t T = index.size(0), K = index.size(1);
  TORCH_CHECK_VALUE(
      share == "renormalised" || share == "weight",
      "share must be 'renormalised' or 'weight', got '", share, "'");
  if (tokens) {
    const int64_t in_call = *tokens->const_data_ptr<int64_t>();
    TORCH_CHECK_VALUE(
        in_call == 0 || in_call == T, T, " tokens reach the experts, but the call has ", in_call,
        ": their modality is not known. Compile the model while it computes this layer for all "
        "tokens, or detach it");
  } else {
    TORCH_CHECK_VALUE(
        modality.size(0) == T, T, " tokens reach the experts, with ", modality.size(0),
        " modality codes");
  }
  TORCH_CHECK_VALUE(
      modality.size(0) >= T, T, " tokens reach the gate, with ", modality.size(0),
      " modality codes");
  const Tensor ids = index.contiguous(), weights = weight.contiguous(), codes = modality.to(at::kChar).contiguous();
  const Tensor thetas = theta.contiguous();
  Tensor kept_index = at::empty(ids.sizes(), ids.options());
  Tensor kept_weight = at::empty(weights.sizes(), weights.options());
  const GateRule rule{share == "renormalised", float(kept_mass_exponent), min_k};
  const int8_t* code = codes.const_data_ptr<int8_t>();
  const float* threshold = thetas.const_data_ptr<float>();
  const int64_t num_codes = thetas.size(0);
  std::vector<float> pi(K);
  with_ids(ids, [&](const auto* id) {
    using Index = std::remove_const_t<std::remove_pointer_t<decltype(id)>>;
    with_floats(weights, [&](const auto* w) {
      using Weight = std::remove_const_t<std::remove_pointer_t<decltype(w)>>;
      Index* to_id = kept_index.mutable_data_ptr<Index>();
      Weight* to_weight = kept_weight.mutable_data_ptr<Weight>();
      for (int64_t t = 0; t < T; ++t) {
        TORCH_CHECK_INDEX(
            code[t] >= 0 && code[t] < num_codes, "token ", t, " has the modality code ",
            int(code[t]), ", but there are thresholds for ", num_codes);
        gate_token(
            id + t * K, w + t * K, K, threshold[code[t]], Index(num_experts), rule, pi.data(),
            to_id + t * K, to_weight + t * K);
      }
    });
  });
  return {kept_index, kept_weight};
}

// A process with Python has the schemas already.
TORCH_LIBRARY_FRAGMENT(modes_fx, library) {
  for (const auto& [name, schema] : {std::pair{"gate", GATE}, {"experts", EXPERTS}, {"sort_pairs", SORT_PAIRS}}) {
    const std::string qualified = std::string("modes_fx::") + name;
    if (!c10::Dispatcher::singleton().findSchema({qualified, ""})) library.def(schema);
  }
}

TORCH_LIBRARY_IMPL(modes_fx, CPU, library) {
  library.impl("gate", &gate);
  library.impl("experts", &experts);
  library.impl("sort_pairs", &sorted_pairs);
}

}  // namespace
}  // namespace modes_fx

extern "C" void modes_fx_register_kernel(
    const char* dtype, const char* body, const char* kinds, modes_fx::Kernel kernel) {
  auto& kernels = modes_fx::Kernels::all();
  std::unique_lock lock(kernels.mutex);
  kernels.by_body.try_emplace(std::string(dtype).append(body), modes_fx::Entry{kernel, kinds});
}
