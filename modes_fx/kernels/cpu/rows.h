// Products with a matrix as the model stores it, [N, K], without packing it: for few rows.
#pragma once

#include "panels.h"

namespace modes_fx {

// The rows of two matrices that are the columns of a tile.
template <class W>
struct TileRows {
  const W* low;
  const W* high;
  int64_t by_low, by_high;  // from one row to the next
};

// How many rows of a half ahead of those in use memory is asked for.
constexpr int AHEAD = 4;

// Converts a row; memory is asked for the one that lies `ahead` values further on.
template <class T, class W>
inline void widen(const W* from, int64_t K, T* to, int64_t ahead) {
  int64_t k = 0;
  for (; k + 2 * LANES <= K; k += 2 * LANES) {
    __builtin_prefetch(from + ahead + k, 0, 2);
    store(to + k, load(from + k), load(from + k + LANES));
  }
  for (; k < K; ++k) to[k] = T(float(from[k]));
}

// One step along k of all the products of rows and columns.
template <class T, class W, int ROWS, int COLUMNS>
MODES_FX_INLINE inline void add_products(
    const T* const (&rows)[ROWS], const W* const (&columns)[COLUMNS], int64_t k,
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
template <int ROWS, int EACH, class T, class W>
inline void multiply_rows(const T* const* a, int64_t K, const TileRows<W>& b, int n, float* c) {
  using A = Along<T>;
  constexpr int COLUMNS = 2 * EACH;
  const W* columns[COLUMNS];
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
    add_products(rows, columns, k, sum);
  }
  if (k < K) {
    T rows_end[ROWS][A::STEP];
    W columns_end[COLUMNS][A::STEP];
    const T* last_rows[ROWS];
    const W* last_columns[COLUMNS];
    const auto fill = [&](auto* to, const auto* from) {
      for (int i = 0; i < A::STEP; ++i) {
        to[i] = k + i < K ? from[k + i] : std::remove_reference_t<decltype(*to)>(0.f);
      }
      return to;
    };
    for (int r = 0; r < ROWS; ++r) last_rows[r] = fill(rows_end[r], rows[r]);
    for (int i = 0; i < COLUMNS; ++i) last_columns[i] = fill(columns_end[i], columns[i]);
    add_products(last_rows, last_columns, 0, sum);
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
