// Products of few rows with a matrix as the model stores it, [K, N]: rows of k are read in long pieces.
//
// Memory is all that such a product waits for, so nothing is packed: some rows of k at a time are
// multiplied, column by column, and added to sums that stay in cache.
#pragma once

#include "panels.h"

namespace modes_fx {

constexpr int AT_A_TIME = 8;       // rows of k, each of which is a stream for the processor to follow
constexpr int64_t STREAMED = 64;   // up to how many tiles are computed together

// c[ROWS][PANEL] += a[ROWS][COUNT] * b[COUNT][PANEL], of which row k begins at b + k * by_k.
template <class T, int ROWS, int COUNT>
MODES_FX_INLINE inline void add_rows_of_k(
    const float (&a)[ROWS][AT_A_TIME], const T* b, int64_t by_k, float* c, int64_t c_stride) {
  for (int k = 0; COUNT > 1 && k < COUNT; ++k) __builtin_prefetch(b + (COUNT + k) * by_k, 0, 2);
#pragma GCC unroll 8
  for (int n = 0; n < PANEL; n += LANES) {
    Vec sum[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) sum[r] = load(c + r * c_stride + n);
#pragma GCC unroll 8
    for (int k = 0; k < COUNT; ++k) {
      const Vec value = load(b + k * by_k + n);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) sum[r] = at::vec::fmadd(Vec(a[r][k]), value, sum[r]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) sum[r].store(c + r * c_stride + n);
  }
}

// c[ROWS][c_stride] = a[ROWS][K] * tiles of two halves, which begin at the columns first[0] and
// first[1]; half h of tile t is PANEL columns from first[h] + t * by_tile on.
template <class T, int ROWS>
void stream_columns(
    const T* const* a, int64_t K, const Matrix<T> (&half)[2], const int64_t (&first)[2],
    int64_t by_tile, int tiles, float* c, int64_t c_stride) {
  for (int r = 0; r < ROWS; ++r) std::fill_n(c + r * c_stride, tiles * TILE, 0.f);
  const auto add = [&](int64_t k0, auto count) MODES_FX_INLINE {
    constexpr int COUNT = decltype(count)::value;
    float rows[ROWS][AT_A_TIME];
    for (int r = 0; r < ROWS; ++r) {
      for (int k = 0; k < COUNT; ++k) rows[r][k] = float(a[r][k0 + k]);
    }
    for (int t = 0; t < tiles; ++t) {
      for (int h = 0; h < 2; ++h) {
        const int64_t column = first[h] + t * by_tile, columns = half[h].N - column;
        const T* b = half[h].data + column + k0 * half[h].by_k;
        float* to = c + t * TILE + h * PANEL;
        if (columns >= PANEL) {
          add_rows_of_k<T, ROWS, COUNT>(rows, b, half[h].by_k, to, c_stride);
        } else if (columns > 0) {
          // What follows the last columns is another row's, or nobody's.
          T last[COUNT][PANEL] = {};
          for (int k = 0; k < COUNT; ++k) std::copy_n(b + k * half[h].by_k, columns, last[k]);
          add_rows_of_k<T, ROWS, COUNT>(rows, last[0], PANEL, to, c_stride);
        }
      }
    }
  };
  int64_t k = 0;
  for (; k + AT_A_TIME <= K; k += AT_A_TIME) add(k, std::integral_constant<int, AT_A_TIME>());
  for (; k < K; ++k) add(k, std::integral_constant<int, 1>());
}

}  // namespace modes_fx
