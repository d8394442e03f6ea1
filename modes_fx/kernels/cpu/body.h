// What is generated for a body: the elementwise code before, between and after the two products.
#pragma once

#include "call.h"
#include "simd.h"

#include <algorithm>

namespace modes_fx {

constexpr int PANEL = 32;        // columns of a panel
constexpr int TILE = 2 * PANEL;  // columns of a tile: two panels, which may lie apart

// How the 64 columns of an up tile are read by the body.
enum class Streams {
  one,          // 64 columns of one product
  apart,        // 32 columns each of two products, or of two places in one
  interleaved,  // 64 columns of one product, whose even and odd ones are two streams
};

// Where a half of the tiles begins in a parameter.
struct Half {
  int param;
  bool transposed;  // [E, N, K], else [E, K, N]
  int64_t start;
};

// A vector that the body reads beside products: columns start, start + step, ... of a parameter.
struct VectorView {
  int param;
  int64_t start, step;
};

constexpr int MAX_BODY_VECTORS = 8;  // that one part of a body reads

// Rows of one tile, and what else the body reads for them.
struct TileOfRows {
  float* c;  // [rows][stride]
  int64_t stride;
  int rows;
  const float* weight;             // [rows] combine weights
  const float (*vectors)[TILE];    // columns of the vector parameters
};

// A body, for tokens and weights of one dtype.
struct BodyCode {
  Streams streams;
  Half low, high, down;
  int num_middle_vectors, num_tail_vectors;
  const VectorView* middle_vectors;
  const VectorView* tail_vectors;
  // Computes the n columns that the up projections multiply; nullptr where they are x itself.
  void (*prologue)(const void* x, int64_t n, float weight, void* to);
  // Computes what the down projection multiplies; 64 columns, or 32 of two streams.
  void (*middle)(const TileOfRows& tile, void* h, int64_t h_stride);
  // Computes an expert's output in place.
  void (*tail)(const TileOfRows& tile);
};

template <class T, class Body>
void run_prologue(const void* x, int64_t n, float weight, void* to) {
  for (int64_t j = 0; j < n; j += 2 * LANES) {
    T last[2 * LANES] = {};
    const T* from = static_cast<const T*>(x) + j;
    if (j + 2 * LANES > n) {
      std::copy(from, static_cast<const T*>(x) + n, last);
      from = last;
    }
    store(
        static_cast<T*>(to) + j, Body::prologue(load(from), Vec(weight)),
        Body::prologue(load(from + LANES), Vec(weight)));
  }
}

template <class T, class Body>
void run_middle(const TileOfRows& tile, void* h, int64_t h_stride) {
  constexpr int COLUMNS = Body::STREAMS == Streams::one ? TILE : PANEL;
  const auto at = [&](const float* c, int j, Vec weight) {
    Vec streams[2], vectors[Body::NUM_MIDDLE_VECTORS + 1];
    if (Body::STREAMS == Streams::interleaved) {
      const auto split = at::vec::deinterleave2(load(c + 2 * j), load(c + 2 * j + LANES));
      streams[Body::EVEN] = split.first;
      streams[1 - Body::EVEN] = split.second;
    } else {
      streams[0] = load(c + j);
      if (Body::STREAMS == Streams::apart) streams[1] = load(c + PANEL + j);
    }
    for (int i = 0; i < Body::NUM_MIDDLE_VECTORS; ++i) vectors[i] = load(tile.vectors[i] + j);
    return Body::middle(streams, vectors, weight);
  };
  for (int r = 0; r < tile.rows; ++r) {
    const float* c = tile.c + r * tile.stride;
    const Vec weight(tile.weight[r]);
    T* to = static_cast<T*>(h) + r * h_stride;
    for (int j = 0; j < COLUMNS; j += 2 * LANES) {
      store(to + j, at(c, j, weight), at(c, j + LANES, weight));
    }
  }
}

template <class T, class Body>
void run_tail(const TileOfRows& tile) {
  for (int r = 0; r < tile.rows; ++r) {
    const Vec weight(tile.weight[r]);
    for (int j = 0; j < TILE; j += LANES) {
      float* c = tile.c + r * tile.stride + j;
      Vec vectors[Body::NUM_TAIL_VECTORS + 1];
      for (int i = 0; i < Body::NUM_TAIL_VECTORS; ++i) vectors[i] = load(tile.vectors[i] + j);
      Body::tail(load(c), vectors, weight).store(c);
    }
  }
}

template <class T, class Body>
constexpr BodyCode code_of() {
  return {
      Body::STREAMS, Body::LOW, Body::HIGH, Body::DOWN,
      Body::NUM_MIDDLE_VECTORS, Body::NUM_TAIL_VECTORS, Body::MIDDLE_VECTORS, Body::TAIL_VECTORS,
      Body::HAS_PROLOGUE ? run_prologue<T, Body> : nullptr, run_middle<T, Body>, run_tail<T, Body>};
}

}  // namespace modes_fx
