// Products of many rows by ATen's brgemm: oneDNN's kernels, which use the matrix unit (AMX).
//
// A panel is what brgemm takes as a packed matrix of 32 columns.
#pragma once

#include "body.h"

#include <type_traits>

#if MODES_FX_BRGEMM
#include <ATen/native/CPUBlas.h>
#endif

namespace modes_fx {

template <class T>
constexpr bool USE_BRGEMM = MODES_FX_BRGEMM && std::is_same_v<T, BFloat16>;

// Two tiles of 16 rows by two of 16 columns are what the matrix unit can add up at a time. oneDNN
// compiles a kernel for every number of rows, so there are no more of them than this.
constexpr int64_t BRGEMM_ROWS = 32;

#if MODES_FX_BRGEMM
// c[rows][PANEL] = a[rows][K] * panel; K is even.
inline void multiply_brgemm(
    const BFloat16* a, int64_t a_stride, int rows, int64_t K, const BFloat16* panel, float* c,
    int64_t c_stride) {
  at::native::cpublas::brgemm(rows, PANEL, K, a_stride, PANEL, c_stride, false, a, panel, c);
}

// Gives the matrix unit back, which others configure in other ways.
inline void release_brgemm() { at::native::cpublas::brgemm_release(); }
#else
inline void release_brgemm() {}
#endif

}  // namespace modes_fx
