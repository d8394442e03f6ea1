// The rows of one expert times a projection, in the way that suits its layout and how many there are.
#pragma once

#include "brgemm.h"
#include "call.h"
#include "columns.h"
#include "panels.h"
#include "rows.h"
#include "stream.h"

#include <algorithm>

namespace modes_fx {

// A projection of one expert, cut into tiles. Half h of tile t are the PANEL columns from
// first[h] + t * by_tile on. W is how its values are stored: T or int8.
template <class T, class W>
struct Projection {
  Matrix<W> half[2];
  int64_t first[2];
  int64_t by_tile;
  bool packed;  // then half[h].data points to panels

  bool along_k() const { return half[0].by_k == 1 && half[1].by_k == 1; }
  int64_t column(int h, int64_t t) const { return first[h] + t * by_tile; }
  // Where the memory of a half of a tile begins, which is one piece unless k strides over it.
  const W* start(int h, int64_t t) const {
    if (packed) return half[h].data + column(h, t) / PANEL * panel_size<T>(half[h].K);
    return half[h].data + column(h, t) * half[h].by_n;
  }
};

// Up to how many rows a matrix is read row by row; for more it pays to pack it first.
constexpr int64_t MOST_UNPACKED = 48;

// Up to how many rows of one group memory is what a product waits for. It is then left alone.
constexpr int64_t BOUND_BY_MEMORY = 4;

// How many rows share the blocks that multiply_columns packs.
constexpr int64_t ROWS_BLOCK = 192;

// Multiplies rows with tiles on one thread.
template <class T, class W>
class Multiplier {
  static constexpr bool INTEGERS = !std::is_same_v<T, W>;  // then nothing is packed, and all lie along k

 public:
  // Bytes of scratch that one needs for products over K.
  static int64_t scratch_bytes(int64_t K) {
    const int64_t along = 2 * panel_size<T>(K) * sizeof(T);
    const int64_t across = columns_scratch<T>() * sizeof(T) + ROWS_BLOCK * WIDE * TILE * sizeof(float);
    const int64_t stream = BOUND_BY_MEMORY * STREAMED * TILE * sizeof(float);
    return round_up(std::max({along, across, stream}), 64);
  }

  // Whether rows have to lie at even distances, which products of many rows then make use of.
  static constexpr bool EVEN_ROWS = USE_BRGEMM<T>;

  // row_stride: from one row to the next, where they lie at even distances.
  Multiplier(char* scratch, int64_t row_stride) : scratch_(scratch), row_stride_(row_stride) {}

  ~Multiplier() {
    if constexpr (USE_BRGEMM<T>) release_brgemm();
  }

  // How many tiles are best multiplied together, with about so many rows, where so many tiles are
  // the share of one thread.
  static int64_t tiles_at_once(const Projection<T, W>& projection, int64_t rows, int64_t share) {
    if (projection.packed || projection.along_k()) return 1;
    return rows > BOUND_BY_MEMORY ? WIDE : std::clamp<int64_t>(share, WIDE, STREAMED);
  }

  // Computes tiles t0 ... t1 - 1 for rows a[0] ... a[count - 1], and gives every group of rows to
  // use(tile, first row, rows, c, stride of c). next, next_t: what this thread multiplies afterwards.
  template <class Use>
  void multiply(
      const T* const* a, int64_t count, const Projection<T, W>& by, int64_t t0, int64_t t1,
      const Projection<T, W>* next, int64_t next_t, Use&& use) {
    if constexpr (!INTEGERS) {
      if (!by.packed && !by.along_k()) {
        if (count <= BOUND_BY_MEMORY) return stream(a, count, by, t0, t1, use);
        for (; t0 < t1; t0 += WIDE) across(a, count, by, t0, std::min(t0 + WIDE, t1), use);
        return;
      }
    }
    for (int64_t t = t0; t < t1; ++t) {
      if (!by.packed && count <= MOST_UNPACKED) {
        few_rows(a, count, by, t, use);
      } else {
        panels(a, count, by, t, t + 1 < t1 ? &by : next, t + 1 < t1 ? t + 1 : next_t, use);
      }
    }
  }

 private:
  // Group g of rows that are split evenly into groups of at most MAX_ROWS.
  struct Group {
    int64_t first;
    int rows;
    Group(int64_t count, int64_t groups, int64_t g)
        : first(count * g / groups), rows(int(count * (g + 1) / groups - first)) {}
  };

  static int64_t num_groups(int64_t count) { return (count + MAX_ROWS - 1) / MAX_ROWS; }

  template <class Use>
  void panels(
      const T* const* a, int64_t count, const Projection<T, W>& by, int64_t t,
      const Projection<T, W>* next, int64_t next_t, Use&& use) {
    const int64_t K = by.half[0].K, bytes = panel_size<T>(K) * sizeof(W);
    const T* panel[2];
    for (int h = 0; h < 2; ++h) panel[h] = panel_of(by, h, t);
    if constexpr (USE_BRGEMM<T>) {
      if (count > BOUND_BY_MEMORY && K % Panel<T>::GROUP == 0) {
        return many_rows(a[0], count, K, panel, t, use);
      }
    }
    Ahead ahead;
    if (next) {
      ahead.low = reinterpret_cast<const char*>(next->start(0, next_t));
      ahead.high = reinterpret_cast<const char*>(next->start(1, next_t));
    }
    const int64_t groups = num_groups(count);
    for (int64_t g = 0; g < groups; ++g) {
      const Group group(count, groups, g);
      alignas(64) float c[MAX_ROWS * TILE];
      with_rows(group.rows, [&](auto rows) {
        constexpr int ROWS = decltype(rows)::value;
        const T* const* from = a + group.first;
        if (next && groups == 1 && count > BOUND_BY_MEMORY) {
          multiply_panels<T, ROWS, INTEGERS ? 1 : 2>(from, K, panel[0], panel[1], c, TILE, ahead);
        } else if (next && groups > 1 && g < (INTEGERS ? 1 : 2)) {
          const Ahead part{ahead.low + g * bytes / 2, ahead.high + g * bytes / 2};
          multiply_panels<T, ROWS, 1>(from, K, panel[0], panel[1], c, TILE, part);
        } else {
          multiply_panels<T, ROWS, 0>(from, K, panel[0], panel[1], c, TILE);
        }
      });
      use(t, group.first, group.rows, c, TILE);
    }
  }

  template <class Use>
  void many_rows(
      const T* a, int64_t count, int64_t K, const T* const (&panel)[2], int64_t t, Use&& use) {
    alignas(64) float c[BRGEMM_ROWS * TILE];
    for (int64_t first = 0; first < count; first += BRGEMM_ROWS) {
      const int rows = int(std::min(BRGEMM_ROWS, count - first));
      for (int h = 0; h < 2; ++h) {
        multiply_brgemm(
            a + first * row_stride_, row_stride_, rows, K, panel[h], c + h * PANEL, TILE);
      }
      use(t, first, rows, c, TILE);
    }
  }

  const T* panel_of(const Projection<T, W>& by, int h, int64_t t) {
    if constexpr (!INTEGERS) {
      if (by.packed) return by.start(h, t);
    }
    const int64_t K = by.half[h].K;
    T* panel = reinterpret_cast<T*>(scratch_) + h * panel_size<T>(K);
    if (by.column(h, t) < by.half[h].N) pack_panel(by.half[h], by.column(h, t), 0, K, panel);
    return panel;
  }

  template <class Use>
  void few_rows(
      const T* const* a, int64_t count, const Projection<T, W>& by, int64_t t, Use&& use) {
    constexpr int EACH = MAX_VECTORS / 2;
    const int64_t K = by.half[0].K, groups = num_groups(count);
    alignas(64) float c[MOST_UNPACKED * TILE];
    int columns[2];
    for (int h = 0; h < 2; ++h) {
      columns[h] = int(std::clamp<int64_t>(by.half[h].N - by.column(h, t), 0, PANEL));
    }
    TileRows<W> b{by.start(0, t), columns[1] ? by.start(1, t) : by.start(0, t), K, K};
    const auto multiply_by = [&](const auto& tile, int n, float* to, auto each) {
      for (int64_t g = 0; g < groups; ++g) {
        const Group group(count, groups, g);
        with_rows(group.rows, [&](auto rows) {
          multiply_rows<decltype(rows)::value, decltype(each)::value>(
              a + group.first, K, tile, n, to + group.first * TILE);
        });
      }
    };
    const auto multiply = [&](int n, auto each) {
      if (INTEGERS && groups > 1) {
        multiply_by(widened(b, n, decltype(each)::value, K), 0, c + n, each);
      } else {
        multiply_by(b, n, c, each);
      }
    };
    const int both = std::min(columns[0], columns[1]);
    int n = 0;
    for (; count > BOUND_BY_MEMORY && n + EACH <= both; n += EACH) {
      multiply(n, std::integral_constant<int, EACH>());
    }
    for (; n < std::max(columns[0], columns[1]); ++n) {
      // A column beyond the matrix is computed from its first, and read by nobody.
      if (n >= columns[0]) b.by_low = 0;
      if (n >= columns[1]) b.by_high = 0;
      multiply(n, std::integral_constant<int, 1>());
    }
    for (int64_t g = 0; g < groups; ++g) {
      const Group group(count, groups, g);
      use(t, group.first, group.rows, c + group.first * TILE, TILE);
    }
  }

  // `count` rows of each half from row n on, converted once for all groups of rows of a.
  TileRows<T> widened(const TileRows<W>& b, int n, int count, int64_t K) {
    T* to = reinterpret_cast<T*>(scratch_);
    for (int i = 0; i < count; ++i) {
      widen(b.low + (n + i) * b.by_low, K, to + i * K, AHEAD * b.by_low);
      widen(b.high + (n + i) * b.by_high, K, to + (count + i) * K, AHEAD * b.by_high);
    }
    return {to, to + count * K, K, K};
  }

  template <class Use>
  void stream(
      const T* const* a, int64_t count, const Projection<T, W>& by, int64_t t0, int64_t t1, Use&& use) {
    float* c = reinterpret_cast<float*>(scratch_);
    const int64_t first[2] = {by.column(0, t0), by.column(1, t0)};
    with_rows(int(count), [&](auto rows) {
      stream_columns<T, decltype(rows)::value>(
          a, by.half[0].K, by.half, first, by.by_tile, int(t1 - t0), c, STREAMED * TILE);
    });
    for (int64_t t = t0; t < t1; ++t) use(t, 0, int(count), c + (t - t0) * TILE, STREAMED * TILE);
  }

  template <class Use>
  void across(
      const T* const* a, int64_t count, const Projection<T, W>& by, int64_t t0, int64_t t1, Use&& use) {
    T* packed = reinterpret_cast<T*>(scratch_);
    float* c = reinterpret_cast<float*>(packed + columns_scratch<T>());
    const int64_t first[2] = {by.column(0, t0), by.column(1, t0)};
    const int64_t blocks = (count + ROWS_BLOCK - 1) / ROWS_BLOCK;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t begin = count * block / blocks, rows = count * (block + 1) / blocks - begin;
      multiply_columns(
          a + begin, rows, by.half[0].K, by.half, first, by.by_tile, int(t1 - t0), c, packed);
      for (int64_t t = t0; t < t1; ++t) {
        use(t, begin, int(rows), c + (t - t0) * TILE, WIDE * TILE);
      }
    }
  }

  char* scratch_;
  int64_t row_stride_;
};

}  // namespace modes_fx
