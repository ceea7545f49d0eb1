// Memory for packed weights, tapes and scratch.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#if defined(__SANITIZE_ADDRESS__)  // GCC
#define RNNFAST_SANITIZES_ADDRESSES
#elif defined(__has_feature)  // Clang
#if __has_feature(address_sanitizer)
#define RNNFAST_SANITIZES_ADDRESSES
#endif
#endif

namespace rnnfast {

// A block aligned to a cache line. Large blocks are aligned to, and asked for in, huge pages: with small ones a pass of
// a layer of 1024 units spent a tenth of its time in page faults, and panels are read across many pages.
class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes) { allocate(bytes); }

  // Throws std::bad_alloc; what was held before is given back first.
  void allocate(size_t bytes) {
    data_.reset();
    const size_t alignment = bytes >= 2 * huge ? huge : line;
    data_ = {::operator new(bytes ? bytes : 1, std::align_val_t{alignment}), Free{alignment}};
    size_ = bytes;
#if defined(__linux__)
    if (alignment == huge) madvise(data_.get(), bytes / huge * huge, MADV_HUGEPAGE);  // where it fails, nothing is lost
#endif
  }
  void* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  static constexpr size_t line = 64, huge = size_t{2} << 20;
  struct Free {
    size_t alignment;
    void operator()(void* p) const { ::operator delete(p, std::align_val_t{alignment}); }
  };
  std::unique_ptr<void, Free> data_{nullptr, Free{line}};
  size_t size_ = 0;
};

// The block of a call that has ended, for the next call: fresh memory comes from the system page by page, each cleared,
// which takes 3 to 8 % of a training call, and more where layers are large. No lock, which a fork could leave taken:
// who comes second gets a new block.
class Spare {
 public:
  using Block = std::unique_ptr<Memory>;

  // Of at least `bytes` and, where it is the one kept here, at most `most`. Throws std::bad_alloc.
  Block take(size_t bytes, size_t most = SIZE_MAX) {
    Block block(kept_.exchange(nullptr));
    if (!block || block->size() < bytes || block->size() > most) {
      block.reset();
      block = std::make_unique<Memory>(bytes);
    }
    return block;
  }
  // Of a call whose layers have so many bytes of weights.
  void leave(Block block, size_t weight_bytes) {
    const size_t most_kept = std::max(size_t{64} << 20, 4 * weight_bytes);
    if (reuses && block && block->size() <= most_kept) block.reset(kept_.exchange(block.release()));
  }

 private:
#if defined(RNNFAST_SANITIZES_ADDRESSES)
  static constexpr bool reuses = false;  // so that what is used after its end is seen
#else
  static constexpr bool reuses = true;
#endif
  std::atomic<Memory*> kept_{nullptr};  // given back when the process ends
};

}  // namespace rnnfast
