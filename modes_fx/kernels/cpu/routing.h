// Which pairs are computed, and in which order: the threshold gate, and the sort by expert.
#pragma once

#include "arena.h"
#include "call.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace modes_fx {

// Sorts the pairs of experts 0 ... E - 1 by expert, stably; all other ids are skipped.
//
// index: [T, K]; weight: [T, K], widened to float32.
template <class Index, class Weight>
Pairs sort_pairs(
    const Index* index, const Weight* weight, int64_t T, int64_t K, int64_t E, Arena& arena) {
  const auto take = [&](auto type, int64_t count) {
    return reinterpret_cast<decltype(type)*>(arena.take(count * sizeof(type)));
  };
  int64_t* next = take(int64_t(), E);
  std::fill(next, next + E, 0);
  for (int64_t i = 0; i < T * K; ++i) {
    if (uint64_t(index[i]) < uint64_t(E)) ++next[index[i]];
  }
  int32_t* expert = take(int32_t(), E);
  int64_t* begin = take(int64_t(), E + 1);
  int64_t hit = 0, count = 0;
  for (int64_t e = 0; e < E; ++e) {
    const int64_t first = count;
    count += next[e];
    next[e] = first;
    if (count > first) {
      expert[hit] = int32_t(e);
      begin[hit++] = first;
    }
  }
  begin[hit] = count;
  int32_t* token = take(int32_t(), count);
  float* kept = take(float(), count);
  uint8_t* place = take(uint8_t(), count);
  for (int64_t i = 0; i < T * K; ++i) {
    if (uint64_t(index[i]) >= uint64_t(E)) continue;
    const int64_t pair = next[index[i]]++;
    token[pair] = int32_t(i / K);
    kept[pair] = float(weight[i]);
  }
  uint8_t* seen = take(uint8_t(), T);
  std::fill(seen, seen + T, 0);
  for (int64_t p = 0; p < count; ++p) {
    place[p] = seen[token[p]] ? 0 : FIRST;
    seen[token[p]] = 1;
  }
  for (int64_t p = count; p-- > 0;) {
    if (seen[token[p]] == 1) place[p] |= LAST;
    seen[token[p]] = 2;
  }
  return {count, token, kept, place, hit, expert, begin};
}

// What the gate compares and does besides; see kernels/reference.py, the specification.
struct GateRule {
  bool renormalised;
  float kept_mass_exponent;
  int64_t min_k;
};

// Skips pairs of one token: writes the sentinel and weight 0.
//
// index, weight: [K] of one token; pi: [K] scratch.
template <class Index, class Weight>
void gate_token(
    const Index* index, const Weight* weight, int64_t K, float threshold, Index sentinel,
    const GateRule& rule, float* pi, Index* kept_index, Weight* kept_weight) {
  float total = 0;
  for (int64_t i = 0; i < K; ++i) total += pi[i] = float(weight[i]);
  if (rule.renormalised) {
    for (int64_t i = 0; i < K; ++i) pi[i] = total == 0 ? 0 : pi[i] / total;
  }
  const auto kept = [&](int64_t i) {
    if (!(pi[i] < threshold)) return true;
    if (rule.min_k == 0 || threshold == std::numeric_limits<float>::infinity()) return false;
    int64_t rank = 0;
    for (int64_t j = 0; j < K; ++j) rank += std::isnan(pi[j]) || pi[j] > pi[i] || (pi[j] == pi[i] && j < i);
    return rank < rule.min_k;
  };
  float all = 0, mass = 0;
  int64_t count = 0;
  for (int64_t i = 0; i < K; ++i) {
    const bool keep = kept(i);
    kept_index[i] = keep ? index[i] : sentinel;
    kept_weight[i] = keep ? weight[i] : Weight(0);
    all += pi[i];
    if (keep) mass += pi[i], ++count;
  }
  if (rule.kept_mass_exponent == 0 || count == K || !(mass / all > 0)) return;
  const float scale = std::pow(mass / all, -rule.kept_mass_exponent);
  for (int64_t i = 0; i < K; ++i) kept_weight[i] = Weight(float(kept_weight[i]) * scale);
}

}  // namespace modes_fx
