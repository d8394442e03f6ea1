// Panels: 32 output columns of one expert's matrix, ordered so that a product reads them in sequence.
//
// A panel is [K / GROUP, 32, GROUP]. Prepacked weights lie in memory like this; others are packed
// into a panel while they are used by enough rows to make up for it.
#pragma once

#include "body.h"

#include <type_traits>

namespace modes_fx {

constexpr int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

template <class T>
constexpr int64_t panel_size(int64_t K) {
  return round_up(K, Panel<T>::GROUP) * PANEL;
}

// What a product asks the memory for while it computes: PER_STEP cache lines from each of two places.
struct Ahead {
  const char* low = nullptr;
  const char* high = nullptr;
};

// c[rows][TILE] = a[rows][K] * two panels; added to what c holds where ADD. c_stride: of a row of c.
template <class T, int ROWS, int PER_STEP, bool ADD = false>
inline void multiply_panels(
    const T* const* a, int64_t K, const T* low, const T* high, float* c, int64_t c_stride,
    Ahead ahead = {}) {
  using P = Panel<T>;
  constexpr int GROUP = P::GROUP;
  for (int v0 = 0; v0 < TILE / LANES; v0 += MAX_VECTORS) {
    const T* columns[MAX_VECTORS];
    for (int v = 0; v < MAX_VECTORS; ++v) {
      const int first = (v0 + v) * LANES;
      columns[v] = first < PANEL ? low + first * GROUP : high + (first - PANEL) * GROUP;
    }
    Vec sum[ROWS][MAX_VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < MAX_VECTORS; ++v) {
        sum[r][v] = ADD ? load(c + r * c_stride + (v0 + v) * LANES) : Vec(0.f);
      }
    }
    const auto step = [&](int64_t group, const T* const* from, int64_t at) MODES_FX_INLINE {
      typename P::Raw b[MAX_VECTORS];
#pragma GCC unroll 8
      for (int v = 0; v < MAX_VECTORS; ++v) b[v] = P::columns(columns[v] + group * PANEL * GROUP);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) {
        const typename P::Raw value = P::broadcast(from[r] + at);
#pragma GCC unroll 8
        for (int v = 0; v < MAX_VECTORS; ++v) P::add_product(sum[r][v], value, b[v]);
      }
    };
    for (int64_t group = 0; group < K / GROUP; ++group) {
      for (int line = 0; line < PER_STEP; ++line) {
        __builtin_prefetch(ahead.low + (group * PER_STEP + line) * 64, 0, 2);
        __builtin_prefetch(ahead.high + (group * PER_STEP + line) * 64, 0, 2);
      }
      step(group, a, group * GROUP);
    }
    if (GROUP > 1 && K % GROUP) {
      // The value after a row's last one is another row's, and may be NaN.
      T last[ROWS][GROUP];
      const T* from[ROWS];
      for (int r = 0; r < ROWS; ++r) {
        last[r][0] = a[r][K - 1];
        for (int g = 1; g < GROUP; ++g) last[r][g] = T(0.f);
        from[r] = last[r];
      }
      step(K / GROUP, from, 0);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < MAX_VECTORS; ++v) sum[r][v].store(c + r * c_stride + (v0 + v) * LANES);
    }
  }
}

// A matrix of one expert as the model stores it: element (n, k) is at data[n * by_n + k * by_k].
template <class T>
struct Matrix {
  const T* data;
  int64_t N, K, by_n, by_k;
};

// One step of a panel from GROUP rows of k whose columns lie side by side.
inline void interleave(const float* row, const float*, float* to) {
  for (int n = 0; n < PANEL; ++n) to[n] = row[n];
}

inline void interleave(const BFloat16* even, const BFloat16* odd, BFloat16* to) {
  // As numbers, because this form is vectorised by every compiler.
  const auto* low = reinterpret_cast<const uint16_t*>(even);
  const auto* high = reinterpret_cast<const uint16_t*>(odd);
  auto* pair = reinterpret_cast<uint32_t*>(to);
  for (int n = 0; n < PANEL; ++n) pair[n] = low[n] | uint32_t(high[n]) << 16;
}

// 16 columns of 16 groups, which lie along k, become 16 groups of 16 columns.
template <class T>
inline void transpose_groups(const T* from, int64_t by_n, T* to) {
  at::vec::transpose_mxn<float, 16, 16>(
      reinterpret_cast<const float*>(from), by_n / Panel<T>::GROUP, reinterpret_cast<float*>(to),
      PANEL);
}

template <class T>
inline void transpose_groups(const int8_t* from, int64_t by_n, T* to) {
  constexpr int64_t K = 16 * Panel<T>::GROUP;
  alignas(64) T values[16 * K];
  for (int n = 0; n < 16; ++n) {
    const int8_t* row = from + n * by_n;
    if constexpr (std::is_same_v<T, float>) {
      for (int64_t k = 0; k < K; k += LANES) load(row + k).store(values + n * K + k);
    } else {
      for (int64_t k = 0; k < K; k += 2 * LANES) {
        store(values + n * K + k, load(row + k), load(row + k + LANES));
      }
    }
  }
  transpose_groups(values, K, to);
}

// Packs columns n0 ... n0 + 31 of a matrix, for k = k0 ... k1 - 1; columns from N on are 0.
// k0 is a multiple of GROUP; a group that k1 cuts is filled with 0. While columns that lie side by
// side are packed, memory is asked for those `ahead` values of k further on.
template <class T, class W>
inline void pack_panel(
    const Matrix<W>& matrix, int64_t n0, int64_t k0, int64_t k1, T* panel, int64_t ahead = 0) {
  constexpr int GROUP = Panel<T>::GROUP;
  static_assert(GROUP * sizeof(T) == sizeof(float), "columns are moved as 32-bit units");
  const int64_t N = std::min<int64_t>(PANEL, matrix.N - n0);
  const W* from = matrix.data + n0 * matrix.by_n;
  int64_t k = k0;
  if (matrix.by_k == 1 && N == PANEL && matrix.by_n % GROUP == 0) {
    for (; k + 16 * GROUP <= k1; k += 16 * GROUP) {
      for (int n = 0; n < PANEL; n += 16) {
        transpose_groups(
            from + n * matrix.by_n + k, matrix.by_n, panel + ((k - k0) * PANEL + n * GROUP));
      }
    }
  }
  if constexpr (std::is_same_v<T, W>) {
    if (matrix.by_n == 1 && N == PANEL) {
      for (; k + GROUP <= k1; k += GROUP) {
        const T* row = from + k * matrix.by_k;
        if (ahead) {
          for (int g = 0; g < GROUP; ++g) __builtin_prefetch(row + (ahead + g) * matrix.by_k, 0, 2);
        }
        interleave(row, row + (GROUP - 1) * matrix.by_k, panel + (k - k0) * PANEL);
      }
    }
  }
  for (; k < k1; k += GROUP) {
    for (int n = 0; n < PANEL; ++n) {
      for (int g = 0; g < GROUP; ++g) {
        const bool inside = n < N && k + g < k1;
        panel[(k - k0) * PANEL + n * GROUP + g] =
            inside ? T(from[n * matrix.by_n + (k + g) * matrix.by_k]) : T(0.f);
      }
    }
  }
}

}  // namespace modes_fx
