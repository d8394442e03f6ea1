// The experts of one call: two products per expert, with the generated body between and after them.
//
// Up: every task is some tiles of one expert's intermediate columns, for all its rows.
// Down: every task is some output columns, for all experts in ascending order. A token's experts are
// therefore added up in one order, whatever the number of threads.
#pragma once

#include "body.h"
#include "product.h"

#include <atomic>
#include <utility>

namespace modes_fx {

// T: of the tokens; W: of the weights, T or int8.
template <class T, class W>
class Experts {
 public:
  Experts(const Call& call, const BodyCode& body)
      : call_(call),
        body_(body),
        pairs_(call.pairs),
        width_(sizes(body.down).second),
        h_stride_(round_up(width_, TILE)),
        sum_stride_(round_up(call.hidden, TILE)) {}

  // Why the parameters do not fit together; nullptr where they do.
  const char* check() const {
    for (const Half& half : {body_.low, body_.high}) {
      const auto [N, K] = sizes(half);
      const int64_t end = half.start + (body_.streams == Streams::interleaved ? 2 : 1) * width_;
      if (K != call_.hidden || end > N) return "an up projection fits neither x nor the down one";
      if (call_.params[half.param].packed && half.start % PANEL) {
        return "a stream does not begin at a panel of packed weights";
      }
    }
    if (sizes(body_.down).first != call_.hidden) return "the down projection does not give H columns";
    return nullptr;
  }

  void run() {
    const int threads = call_.runtime.threads;
    h_ = scratch<T>(pairs_.count * h_stride_);
    sums_ = scratch<float>(call_.tokens * sum_stride_);
    rows_ = scratch<const T*>(pairs_.count);
    multiplier_bytes_ = Multiplier<T, W>::scratch_bytes(std::max(call_.hidden, width_));
    multipliers_ = scratch<char>(threads * multiplier_bytes_);
    if (own_inputs()) {
      inputs_ = scratch<T>(pairs_.count * sum_stride_);
      in_parallel([&](int) { compute_inputs(); });
    }
    for (int64_t p = 0; p < pairs_.count; ++p) rows_[p] = up_row(p);
    in_parallel([&](int thread) { up(thread); });
    for (int64_t p = 0; p < pairs_.count; ++p) rows_[p] = h_ + p * h_stride_;
    in_parallel([&](int thread) { down(thread); });
  }

 private:
  // Bodies read few vectors; more are refused when a kernel is generated.
  using Vectors = float[MAX_BODY_VECTORS][TILE];

  template <class V>
  V* scratch(int64_t count) {
    return reinterpret_cast<V*>(call_.runtime.scratch(count * sizeof(V)));
  }

  template <class Work>
  void in_parallel(Work&& work) {
    next_task_ = 0;
    call_.runtime.parallel(
        call_.runtime.threads,
        [](void* context, int thread) { (*static_cast<Work*>(context))(thread); }, &work);
  }

  Multiplier<T, W> multiplier(int thread, int64_t row_stride) {
    return Multiplier<T, W>(multipliers_ + thread * multiplier_bytes_, row_stride);
  }

  int64_t average_rows() const { return pairs_.count / pairs_.experts_hit; }

  // Whether each pair has a row of its own for the up product, rather than its token's.
  bool own_inputs() const { return body_.prologue || Multiplier<T, W>::EVEN_ROWS; }

  // N and K of a projection.
  std::pair<int64_t, int64_t> sizes(const Half& half) const {
    const Param& param = call_.params[half.param];
    if (half.transposed) return {param.rows, param.columns};
    return {param.columns, param.rows};
  }

  Matrix<W> matrix(const Half& half, int64_t hit) const {
    const Param& param = call_.params[half.param];
    const W* data = static_cast<const W*>(param.data) + pairs_.expert[hit] * param.expert_stride;
    return half.transposed ? Matrix<W>{data, param.rows, param.columns, param.columns, 1}
                           : Matrix<W>{data, param.columns, param.rows, 1, param.columns};
  }

  Projection<T, W> up_projection(int64_t hit) const {
    const bool packed = call_.params[body_.low.param].packed;
    const Matrix<W> low = matrix(body_.low, hit), high = matrix(body_.high, hit);
    if (body_.streams == Streams::apart) {
      return {{low, high}, {body_.low.start, body_.high.start}, PANEL, packed};
    }
    return {{low, high}, {0, PANEL}, TILE, packed};
  }

  Projection<T, W> down_projection(int64_t hit) const {
    const Matrix<W> matrix_of = matrix(body_.down, hit);
    return {{matrix_of, matrix_of}, {0, PANEL}, TILE, call_.params[body_.down.param].packed};
  }

  const T* up_row(int64_t pair) const {
    if (own_inputs()) return inputs_ + pair * sum_stride_;
    return static_cast<const T*>(call_.x) + pairs_.token[pair] * call_.hidden;
  }

  // The body before the products.
  void compute_inputs() {
    for (int64_t p; (p = next_task_++) < pairs_.count;) {
      const T* x = static_cast<const T*>(call_.x) + pairs_.token[p] * call_.hidden;
      T* input = inputs_ + p * sum_stride_;
      if (body_.prologue) {
        body_.prologue(x, call_.hidden, pairs_.weight[p], input);
      } else {
        std::copy(x, x + call_.hidden, input);
      }
    }
  }

  void up(int thread) {
    Multiplier<T, W> multiplier_of = multiplier(thread, sum_stride_);
    const int64_t columns = body_.streams == Streams::one ? TILE : PANEL;
    const int64_t tiles = (width_ + columns - 1) / columns;
    const int64_t at_once = Multiplier<T, W>::tiles_at_once(
        up_projection(0), average_rows(), tiles * pairs_.experts_hit / call_.runtime.threads);
    const int64_t per_expert = (tiles + at_once - 1) / at_once;
    const int64_t tasks = pairs_.experts_hit * per_expert;
    for (int64_t task; (task = next_task_++) < tasks;) {
      const int64_t hit = task / per_expert, t0 = task % per_expert * at_once;
      const int64_t begin = pairs_.begin[hit], count = pairs_.begin[hit + 1] - begin;
      const int64_t following = task + call_.runtime.threads;
      const bool more = following < tasks;
      const Projection<T, W> by = up_projection(hit);
      const Projection<T, W> next = up_projection(more ? following / per_expert : hit);
      multiplier_of.multiply(
          rows_ + begin, count, by, t0, std::min(t0 + at_once, tiles), more ? &next : nullptr,
          following % per_expert * at_once,
          [&](int64_t t, int64_t first, int rows, float* c, int64_t stride) {
            const int64_t column = t * columns, pair = begin + first;
            Vectors vectors;
            read_vectors(
                body_.middle_vectors, body_.num_middle_vectors, hit, column, columns, width_, vectors);
            const TileOfRows tile{c, stride, rows, pairs_.weight + pair, vectors};
            body_.middle(tile, h_ + pair * h_stride_ + column, h_stride_);
          });
    }
  }

  void down(int thread) {
    Multiplier<T, W> multiplier_of = multiplier(thread, h_stride_);
    const int threads = call_.runtime.threads;
    const int64_t tiles = (call_.hidden + TILE - 1) / TILE;
    const int64_t at_once =
        Multiplier<T, W>::tiles_at_once(down_projection(0), average_rows(), tiles / threads);
    // Few large pieces read h seldom; some more of them keep the threads equally busy.
    const int64_t pieces = threads == 1 ? 1 : 4 * threads;
    const int64_t piece = round_up((tiles + pieces - 1) / pieces, at_once);
    for (int64_t task; (task = next_task_++) * piece < tiles;) {
      const int64_t begin = task * piece, end = std::min(begin + piece, tiles);
      for (int64_t hit = 0; hit < pairs_.experts_hit; ++hit) {
        const int64_t first = pairs_.begin[hit];
        const bool more = hit + 1 < pairs_.experts_hit;
        const Projection<T, W> next = down_projection(more ? hit + 1 : hit);
        for (int64_t t = begin; t < end; t += at_once) {
          const bool last = t + at_once >= end;
          const Projection<T, W> by = down_projection(hit);
          multiplier_of.multiply(
              rows_ + first, pairs_.begin[hit + 1] - first, by, t, std::min(t + at_once, end),
              !last ? &by : more ? &next : nullptr, last ? begin : t + at_once,
              [&](int64_t tile, int64_t row, int rows, float* c, int64_t stride) {
                combine(hit, first + row, rows, tile * TILE, c, stride);
              });
        }
      }
    }
  }

  // The body after the products, for rows of a down tile, and the sum over a token's experts.
  void combine(int64_t hit, int64_t pair, int rows, int64_t column, float* c, int64_t stride) {
    const int64_t H = call_.hidden;
    Vectors vectors;
    read_vectors(body_.tail_vectors, body_.num_tail_vectors, hit, column, TILE, H, vectors);
    body_.tail({c, stride, rows, pairs_.weight + pair, vectors});
    for (int r = 0; r < rows; ++r) {
      const int64_t token = pairs_.token[pair + r];
      const uint8_t place = pairs_.place[pair + r];
      const float* y = c + r * stride;
      float* sum = sums_ + token * sum_stride_ + column;
      T* out = static_cast<T*>(call_.out) + token * H + column;
      const auto at = [&](int j) { return place & FIRST ? load(y + j) : load(y + j) + load(sum + j); };
      for (int j = 0; j < TILE; j += 2 * LANES) {
        const Vec low = at(j), high = at(j + LANES);
        if (!(place & LAST)) {
          store(sum + j, low, high);
        } else if (column + j + 2 * LANES <= H) {
          store(out + j, low, high);
        } else {
          T last[2 * LANES];
          store(last, low, high);
          for (int64_t i = 0; column + j + i < H && i < 2 * LANES; ++i) out[j + i] = last[i];
        }
      }
    }
  }

  // Columns of vector parameters, from column `first` of the part that reads them; 0 beyond `limit`.
  void read_vectors(
      const VectorView* views, int count, int64_t hit, int64_t first, int64_t columns,
      int64_t limit, Vectors& to) const {
    for (int i = 0; i < count; ++i) {
      const VectorView& view = views[i];
      const Param& param = call_.params[view.param];
      const T* from = static_cast<const T*>(param.data) + pairs_.expert[hit] * param.expert_stride;
      for (int64_t j = 0; j < columns; ++j) {
        const int64_t column = param.columns == 1 ? 0 : view.start + view.step * (first + j);
        to[i][j] = first + j < limit ? float(from[column]) : 0.f;
      }
    }
  }

  const Call& call_;
  const BodyCode& body_;
  const Pairs& pairs_;
  const int64_t width_;       // I
  const int64_t h_stride_;    // of a row of h
  const int64_t sum_stride_;  // of a row of sums and of inputs
  T* h_ = nullptr;            // [P, I] what the down product reads
  T* inputs_ = nullptr;       // [P, H] what the up product reads, where it reads no rows of x itself
  float* sums_ = nullptr;     // [T, H] of tokens with several pairs
  const T** rows_ = nullptr;  // [P] what the product in progress reads
  char* multipliers_ = nullptr;
  int64_t multiplier_bytes_ = 0;
  std::atomic<int64_t> next_task_{0};
};

}  // namespace modes_fx
