// Products with a matrix as the model stores it, [K, N]: many columns at a time, in blocks of k.
//
// A row of k holds the values of neighbouring columns, so that memory is read in pieces as long as
// the tiles that are computed together are wide. Each block is packed into panels that stay in cache.
#pragma once

#include "panels.h"

namespace modes_fx {

constexpr int WIDE = 8;             // tiles that are computed together
constexpr int64_t K_BLOCK = 128;    // values of k that are packed at a time

// Elements of scratch that multiply_columns packs into.
template <class T>
constexpr int64_t columns_scratch() {
  return 2 * WIDE * panel_size<T>(K_BLOCK);
}

// c[rows][WIDE * TILE] = a[rows][K] * tiles of two halves, which begin at the columns first[0] and
// first[1]; half h of tile t is PANEL columns from first[h] + t * by_tile on.
template <class T, class W>
void multiply_columns(
    const T* const* a, int64_t rows, int64_t K, const Matrix<W> (&half)[2],
    const int64_t (&first)[2], int64_t by_tile, int tiles, float* c, T* scratch) {
  constexpr int64_t C_STRIDE = WIDE * TILE;
  const int64_t panel = panel_size<T>(K_BLOCK);
  const int64_t groups = (rows + MAX_ROWS - 1) / MAX_ROWS;
  const bool few = groups < 3;
  for (int64_t k0 = 0; k0 < K; k0 += K_BLOCK) {
    const int64_t k1 = std::min(k0 + K_BLOCK, K);
    for (int t = 0; t < tiles; ++t) {
      for (int i = 0; i < 2; ++i) {
        const int64_t column = first[i] + t * by_tile;
        T* panel_of = scratch + (2 * t + i) * panel;
        if (column < half[i].N) pack_panel(half[i], column, k0, k1, panel_of, few ? K_BLOCK : 0);
      }
    }
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t from = rows * g / groups, count = rows * (g + 1) / groups - from;
      // Many rows leave the memory time to bring the next block meanwhile.
      for (int64_t k = k1 + K_BLOCK * g / groups; !few && k < k1 + K_BLOCK * (g + 1) / groups; ++k) {
        for (int i = 0; i < 2; ++i) {
          const W* next = half[i].data + first[i] * half[i].by_n + k * half[i].by_k;
          for (int64_t n = 0; n < by_tile * tiles; n += 64 / sizeof(W)) {
            __builtin_prefetch(next + n, 0, 2);
          }
        }
      }
      const T* block[MAX_ROWS];
      for (int64_t r = 0; r < count; ++r) block[r] = a[from + r] + k0;
      with_rows(count, [&](auto constant) {
        constexpr int ROWS = decltype(constant)::value;
        for (int t = 0; t < tiles; ++t) {
          const T* low = scratch + 2 * t * panel;
          float* to = c + from * C_STRIDE + t * TILE;
          if (k0 == 0) {
            multiply_panels<T, ROWS, 0>(block, k1 - k0, low, low + panel, to, C_STRIDE);
          } else {
            multiply_panels<T, ROWS, 0, true>(block, k1 - k0, low, low + panel, to, C_STRIDE);
          }
        }
      });
    }
  }
}

}  // namespace modes_fx
