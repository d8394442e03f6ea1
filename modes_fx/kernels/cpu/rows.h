// Products with a matrix as the model stores it, [N, K], without packing it: for few rows.
#pragma once

#include "panels.h"

namespace modes_fx {

// The rows of two matrices that are the columns of a tile.
template <class T>
struct TileRows {
  const T* low;
  const T* high;
  int64_t by_low, by_high;  // from one row to the next
};

// How many rows of a half ahead of those in use memory is asked for.
constexpr int AHEAD = 4;

// One step along k of all the products of rows and columns.
template <class T, int ROWS, int COLUMNS>
MODES_FX_INLINE inline void add_products(
    const T* const (&rows)[ROWS], const T* const (&columns)[COLUMNS], int64_t k,
    Vec (&sum)[ROWS][COLUMNS]) {
  using A = Along<T>;
  typename A::Raw value[COLUMNS];
#pragma GCC unroll 8
  for (int i = 0; i < COLUMNS; ++i) value[i] = A::values(columns[i] + k);
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
    const typename A::Raw row = A::values(rows[r] + k);
#pragma GCC unroll 8
    for (int i = 0; i < COLUMNS; ++i) A::add_product(sum[r][i], row, value[i]);
  }
}

// Columns n ... n + EACH - 1 of both halves: c[r][n] = a[r] . low[n], c[r][PANEL + n] = a[r] . high[n].
//
// Reading both halves at once gives the memory two streams, and each value of a two uses.
template <class T, int ROWS, int EACH>
inline void multiply_rows(const T* const* a, int64_t K, const TileRows<T>& b, int n, float* c) {
  using A = Along<T>;
  constexpr int COLUMNS = 2 * EACH;
  const T* columns[COLUMNS];
#pragma GCC unroll 8
  for (int i = 0; i < EACH; ++i) {
    columns[i] = b.low + (n + i) * b.by_low;
    columns[EACH + i] = b.high + (n + i) * b.by_high;
  }
  const T* rows[ROWS];
  for (int r = 0; r < ROWS; ++r) rows[r] = a[r];
  Vec sum[ROWS][COLUMNS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < COLUMNS; ++i) sum[r][i] = Vec(0.f);
  }
  int64_t k = 0;
  for (; k + A::STEP <= K; k += A::STEP) {
    // The processor follows two streams by itself, but not four.
    if (EACH > 1) {
#pragma GCC unroll 8
      for (int i = 0; i < COLUMNS; ++i) {
        __builtin_prefetch(columns[i] + AHEAD * (i < EACH ? b.by_low : b.by_high) + k, 0, 2);
      }
    }
    add_products<T>(rows, columns, k, sum);
  }
  if (k < K) {
    T last[ROWS + COLUMNS][A::STEP];
    const T *last_rows[ROWS], *last_columns[COLUMNS];
    const auto fill = [&](int at, const T* from) {
      for (int i = 0; i < A::STEP; ++i) last[at][i] = k + i < K ? from[k + i] : T(0.f);
      return last[at];
    };
    for (int r = 0; r < ROWS; ++r) last_rows[r] = fill(r, rows[r]);
    for (int i = 0; i < COLUMNS; ++i) last_columns[i] = fill(ROWS + i, columns[i]);
    add_products<T>(last_rows, last_columns, 0, sum);
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < EACH; ++i) {
      c[r * TILE + n + i] = sum_of(sum[r][i]);
      c[r * TILE + PANEL + n + i] = sum_of(sum[r][EACH + i]);
    }
  }
}

}  // namespace modes_fx
