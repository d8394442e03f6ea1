// Vectors of float32, and how two dtypes of weights are multiplied with them.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <cstring>

#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
#include <immintrin.h>
#endif

// The sums of a product stay in registers only where its step is inlined.
#define MODES_FX_INLINE __attribute__((always_inline))

namespace modes_fx {

using Vec = at::vec::Vectorized<float>;
using BFloat16 = c10::BFloat16;

constexpr int LANES = Vec::size();

// How many accumulators a product keeps: rows of activations times vectors of columns.
constexpr int MAX_ROWS = 6;
#if defined(CPU_CAPABILITY_AVX2)
constexpr int MAX_VECTORS = 2;  // of 16 registers
#else
constexpr int MAX_VECTORS = 4;  // of 32
#endif

inline Vec load(const float* from) { return Vec::loadu(from); }

inline Vec load(const BFloat16* from) {
  Vec result;
  at::vec::load_fp32_from_bf16(from, result);
  return result;
}

// Stores two vectors, which are neighbours in memory.
inline void store(float* to, Vec low, Vec high) {
  low.store(to);
  high.store(to + LANES);
}

inline void store(BFloat16* to, Vec low, Vec high) {
#if defined(__AVX512BF16__)
  _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
#else
  at::vec::convert_float_bfloat16(low, high).store(to);
#endif
}

// Integers as floats; the scale of quantised weights belongs to the body.
inline Vec load(const int8_t* from) {
#if defined(CPU_CAPABILITY_AVX512)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return Vec(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
#elif defined(CPU_CAPABILITY_AVX2)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return Vec(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)));
#else
  alignas(64) float values[LANES];
  for (int i = 0; i < LANES; ++i) values[i] = from[i];
  return Vec::loadu(values);
#endif
}

// Products over panels, whose columns lie side by side: GROUP values of k of each column at a time.
template <class T>
struct Panel;

template <>
struct Panel<float> {
  using Raw = Vec;
  static constexpr int GROUP = 1;
  static Raw columns(const float* from) { return Vec::loadu(from); }
  static Raw broadcast(const float* from) { return Vec(*from); }
  static void add_product(Vec& sum, Raw a, Raw b) { sum = at::vec::fmadd(a, b, sum); }
};

#if defined(__AVX512BF16__)
template <>
struct Panel<BFloat16> {
  using Raw = __m512bh;
  static constexpr int GROUP = 2;
  static Raw columns(const BFloat16* from) { return (__m512bh)_mm512_loadu_si512(from); }
  static Raw broadcast(const BFloat16* from) {
    int32_t pair;
    std::memcpy(&pair, from, sizeof(pair));
    return (__m512bh)_mm512_set1_epi32(pair);
  }
  static void add_product(Vec& sum, Raw a, Raw b) { sum = Vec(_mm512_dpbf16_ps(sum, a, b)); }
};
#else
template <>
struct Panel<BFloat16> {
  struct Raw {
    Vec even, odd;
  };
  static constexpr int GROUP = 2;
  static Raw columns(const BFloat16* from) {
    alignas(64) uint32_t bits[LANES];
    alignas(64) uint32_t even[LANES], odd[LANES];
    std::memcpy(bits, from, sizeof(bits));
    for (int i = 0; i < LANES; ++i) {
      even[i] = bits[i] << 16;
      odd[i] = bits[i] & 0xffff0000u;
    }
    return {Vec::loadu(even), Vec::loadu(odd)};
  }
  static Raw broadcast(const BFloat16* from) { return {Vec(float(from[0])), Vec(float(from[1]))}; }
  static void add_product(Vec& sum, Raw a, Raw b) {
    sum = at::vec::fmadd(a.even, b.even, sum);
    sum = at::vec::fmadd(a.odd, b.odd, sum);
  }
};
#endif

// Products of rows that lie along k, STEP values at a time; one of both may be int8.
template <class T>
struct Along {
  using Raw = Vec;
  static constexpr int STEP = LANES;
  static Raw values(const T* from) { return load(from); }
  static Raw values(const int8_t* from) { return load(from); }
  static void add_product(Vec& sum, Raw a, Raw b) { sum = at::vec::fmadd(a, b, sum); }
};

#if defined(__AVX512BF16__)
template <>
struct Along<BFloat16> {
  using Raw = __m512bh;
  static constexpr int STEP = 32;
  static Raw values(const BFloat16* from) { return (__m512bh)_mm512_loadu_si512(from); }
  static Raw values(const int8_t* from) {  // exact: bfloat16 holds integers up to 256
    return _mm512_cvtne2ps_pbh(load(from + LANES), load(from));
  }
  static void add_product(Vec& sum, Raw a, Raw b) { sum = Vec(_mm512_dpbf16_ps(sum, a, b)); }
};
#endif

inline float sum_of(Vec v) {
#if defined(CPU_CAPABILITY_AVX512)
  return _mm512_reduce_add_ps(v);
#else
  return at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return a + b; }, v);
#endif
}

// Calls f with the number of rows, 1 to MAX_ROWS, as a constant.
template <class F>
inline void with_rows(int rows, F&& f) {
  switch (rows) {
    case 1: return f(std::integral_constant<int, 1>());
    case 2: return f(std::integral_constant<int, 2>());
    case 3: return f(std::integral_constant<int, 3>());
    case 4: return f(std::integral_constant<int, 4>());
    case 5: return f(std::integral_constant<int, 5>());
    default: return f(std::integral_constant<int, 6>());
  }
}

}  // namespace modes_fx
