// Arrays between two pages that may not be touched: reading or writing beyond the end that lies at such a page stops
// the program. The other end is within a page of one, so tests use each side in turn.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

namespace rnnfast {

// `apart`: far from both. QEMU reads whole vectors where some lanes are masked out, which a processor does not.
enum class Side : int { begin, end, apart };

// Elements of T, filled with a byte. An empty array is an address that may not be touched.
template <class T> class Guarded {
 public:
  Guarded() = default;
  Guarded(int64_t size, Side side, unsigned char fill) : size_(static_cast<size_t>(size)) {
    if (!size_) {
      data_ = nowhere();
      return;
    }
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), bytes = size_ * sizeof(T);
    inside_ = (bytes + page - 1) / page * page + (side == Side::apart ? 2 * page : 0);
    mapped_ = inside_ + 2 * page;
    base_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) throw std::bad_alloc();
    if (mprotect(base_ + page, inside_, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    char* first = base_ + page + (side == Side::end ? inside_ - bytes : side == Side::apart ? page : 0);
    data_ = reinterpret_cast<T*>(first);
    std::memset(first, fill, bytes);
  }
  Guarded(Guarded&& other) noexcept { swap(other); }
  Guarded& operator=(Guarded&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Guarded() {
    if (base_) munmap(base_, mapped_);
  }

  // From here on a write stops the program too.
  void protect() {
    if (inside_) mprotect(base_ + sysconf(_SC_PAGESIZE), inside_, PROT_READ);
  }

  T* data() const { return data_; }
  size_t size() const { return size_; }
  T& operator[](size_t i) const { return data_[i]; }
  T* begin() const { return data_; }
  T* end() const { return data_ + size_; }

 private:
  // One for all, since most of a case's arrays may be empty and each mapping takes microseconds.
  static T* nowhere() {
    static void* const page = mmap(nullptr, 1, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return static_cast<T*>(page);
  }
  void swap(Guarded& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(base_, other.base_);
    std::swap(inside_, other.inside_);
    std::swap(mapped_, other.mapped_);
  }

  T* data_ = nullptr;
  size_t size_ = 0, inside_ = 0, mapped_ = 0;
  char* base_ = nullptr;
};

}  // namespace rnnfast
