// Memory for packed weights, tapes and scratch.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstddef>
#include <memory>
#include <new>

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

}  // namespace rnnfast
