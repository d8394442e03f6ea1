// One call of the experts op, as the library hands it to the kernel that was generated for its body.
#pragma once

#include <cstddef>
#include <cstdint>

namespace modes_fx {

// Threads and memory, which belong to the library.
struct Runtime {
  int threads;
  // Runs work(context, 0) ... work(context, count - 1), each on a thread of its own.
  void (*parallel)(int count, void (*work)(void*, int), void* context);
  // Memory that lives until the call ends, aligned to a cache line, with arbitrary content.
  char* (*scratch)(size_t bytes);
};

// The kept (token, expert) pairs, sorted by expert and, within one, by token.
struct Pairs {
  int64_t count;
  const int32_t* token;    // [P]
  const float* weight;     // [P] combine weights
  const uint8_t* place;    // [P] FIRST and LAST of its token's pairs
  int64_t experts_hit;
  const int32_t* expert;   // [experts_hit] ids of the experts with pairs, ascending
  const int64_t* begin;    // [experts_hit + 1] where each one's pairs begin
};

constexpr uint8_t FIRST = 1;
constexpr uint8_t LAST = 2;

// A parameter of the body: a contiguous tensor of the model's dtype, or int8 where it is a matrix.
struct Param {
  const void* data;
  int64_t expert_stride;  // elements; 0 where all experts share it
  int64_t rows;           // of a matrix as it lies in memory: N, or K where not transposed
  int64_t columns;
  bool packed;            // [E, N / 32, K / GROUP, 32, GROUP], and rows and columns are N and K
};

struct Call {
  const void* x;       // [T, H]
  void* out;           // [T, H]; rows of tokens without pairs are already 0
  int64_t tokens;
  int64_t hidden;
  const Param* params;
  bool integers;       // whether the matrices are int8; then none is packed
  Pairs pairs;
  Runtime runtime;
};

// Returns why the parameters do not fit the body; nullptr once the call is computed.
using Kernel = const char* (*)(const Call&);

// What a body takes a parameter for.
constexpr char MATRIX = 'M';         // [E, K, N], or packed
constexpr char ROW_MATRIX = 'R';     // [E, N, K], or packed
constexpr char EXPERT_VECTOR = 'V';  // [E, .]
constexpr char SHARED_VECTOR = 'S';  // [.]

}  // namespace modes_fx

// Exported by the library; every generated kernel calls it when it is loaded.
//
// kinds: one of the letters above for each parameter.
extern "C" void modes_fx_register_kernel(
    const char* dtype, const char* body, const char* kinds, modes_fx::Kernel kernel);
