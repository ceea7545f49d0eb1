// Which rows take part in which step.
//
// A row is one sequence at one step: (t, b). The rows of a pass are numbered by t, and within a step by b; the tape is
// addressed by these numbers. Without lengths every step has all B rows and the numbers are t * B + b; with lengths
// only the rows that exist have one, so that cost and memory follow the sum of the lengths.
#pragma once

#include "../rnnfast.h"
#include "gemm.h"

namespace rnnfast {
namespace {

struct Range {
  int64_t first, last;
  int64_t size() const { return last - first; }
};

// Part `k` of n things cut into `parts`.
inline Range share(int64_t n, int64_t k, int64_t parts) { return {n * k / parts, n * (k + 1) / parts}; }

// Hands out pieces of one block of memory. With a null base it only measures.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <class T> T* take(int64_t count) {
    char* piece = base_ ? base_ + used_ : nullptr;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(piece);
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

// The rows of one step whose b is in a range.
struct StepRows {
  int64_t count, first;  // how many, and the number of the first
  int64_t b0;            // without lengths: its b
  const int32_t* b;      // with lengths: the b of each

  int64_t batch(int64_t r) const { return b ? b[r] : b0 + r; }
};

class Schedule {
 public:
  Schedule(Arena& arena, const Forward& pass) : steps_(pass.steps), batch_(pass.batch), lengths_(pass.lengths) {
    if (!lengths_) return;
    for (int64_t b = 0; b < batch_; ++b) total_ += lengths_[b];
    offset_ = arena.take<int64_t>(steps_ + 1);
    b_ = arena.take<int32_t>(total_);
    earlier_ = arena.take<int64_t>(total_);
    later_ = arena.take<int64_t>(total_);
    latest_ = arena.take<int64_t>(batch_);
    live_ = arena.take<int32_t>(batch_);
  }

  // Fills the tables; before any thread reads them.
  void build() {
    if (!lengths_) return;
    int64_t row = 0, live = batch_;
    for (int64_t b = 0; b < batch_; ++b) live_[b] = static_cast<int32_t>(b), latest_[b] = -1;
    for (int64_t t = 0; t < steps_; ++t) {
      offset_[t] = row;
      const int64_t candidates = live;
      live = 0;
      for (int64_t j = 0; j < candidates; ++j) {
        const int32_t b = live_[j];
        if (lengths_[b] <= t) continue;
        live_[live++] = b;
        b_[row] = b;
        earlier_[row] = latest_[b];
        later_[row] = -1;
        if (latest_[b] >= 0) later_[latest_[b]] = row;
        latest_[b] = row++;
      }
    }
    offset_[steps_] = row;
  }

  // The rows of steps [first, last): their numbers follow each other.
  Range numbers(Range steps) const {
    if (!lengths_) return {steps.first * batch_, steps.last * batch_};
    return {offset_[steps.first], offset_[steps.last]};
  }

  int64_t total() const { return lengths_ ? total_ : steps_ * batch_; }

  StepRows rows(int64_t t, int64_t b_first, int64_t b_last) const {
    if (!lengths_) return {b_last - b_first, t * batch_ + b_first, b_first, nullptr};
    const int64_t from = lower_bound(t, b_first), to = lower_bound(t, b_last);
    return {to - from, from, 0, b_ + from};
  }
  StepRows rows(int64_t t) const { return rows(t, 0, batch_); }

  // The number of the row of the same sequence one step before, in the direction of the scan; -1: there is none.
  int64_t before(int64_t row, bool reverse) const {
    if (lengths_) return reverse ? later_[row] : earlier_[row];
    const int64_t before = reverse ? row + batch_ : row - batch_;
    return before < 0 || before >= steps_ * batch_ ? -1 : before;
  }

  // How many steps of sequence b the scan has done before it comes to t (t = steps: in all, for a forward scan).
  int64_t done(int64_t t, int64_t b, bool reverse) const { return reverse ? length(b) - 1 - t : t; }
  int64_t length(int64_t b) const { return lengths_ ? lengths_[b] : steps_; }

 private:
  int64_t lower_bound(int64_t t, int64_t b) const {
    int64_t low = offset_[t], high = offset_[t + 1];
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (b_[middle] < b)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }

  int64_t steps_, batch_, total_ = 0;
  const int64_t* lengths_;
  int64_t *offset_ = nullptr, *earlier_ = nullptr, *later_ = nullptr, *latest_ = nullptr;
  int32_t *b_ = nullptr, *live_ = nullptr;
};

}  // namespace
}  // namespace rnnfast
