// Memory for the intermediate values of calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace modes_fx {

// Memory of one thread's calls, which grows to the largest call and is reused.
class Arena {
 public:
  // Memory of `bytes`, aligned to a cache line; what was taken before stays where it is.
  char* take(size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    if (used_ + bytes <= size_) return base() + std::exchange(used_, used_ + bytes);
    overflow_.emplace_back(new char[bytes + 64]);
    overflow_bytes_ += bytes;
    return aligned(overflow_.back().get());
  }

  // Ends a call: the next one finds all the memory that this one needed in one piece.
  void reset() {
    if (!overflow_.empty()) {
      const size_t wanted = used_ + overflow_bytes_;
      overflow_.clear();
      overflow_bytes_ = 0;
      memory_.reset();
      size_ = 0;
      if (wanted <= KEPT) {
        memory_.reset(new char[wanted + 64]);
        size_ = wanted;
      }
    }
    used_ = 0;
  }

 private:
  static constexpr size_t KEPT = size_t(256) << 20;

  static char* aligned(char* at) {
    return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(at) + 63) / 64 * 64);
  }
  char* base() const { return aligned(memory_.get()); }

  std::unique_ptr<char[]> memory_;
  size_t size_ = 0, used_ = 0, overflow_bytes_ = 0;
  std::vector<std::unique_ptr<char[]>> overflow_;
};

}  // namespace modes_fx
