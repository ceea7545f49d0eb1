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

// Part `k` of n things cut into `parts`.
inline Range share(int64_t n, int64_t k, int64_t parts) {
  if (parts == 1) return {0, n};  // divisions take longer than all else here
  return {n * k / parts, n * (k + 1) / parts};
}

// Hands out pieces of one block of memory, behind the bytes that are used already. With a null base it only measures.
class Arena {
 public:
  explicit Arena(void* base, size_t used = 0) : base_(static_cast<char*>(base)), used_(whole_lines(used)) {}
  template <class T> T* take(int64_t count) {
    char* piece = base_ ? base_ + used_ : nullptr;
    used_ += whole_lines(static_cast<size_t>(count) * sizeof(T));
    return reinterpret_cast<T*>(piece);
  }
  size_t used() const { return used_; }

 private:
  static size_t whole_lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

  char* base_;
  size_t used_;
};

// The rows of one step whose b is in a range.
struct StepRows {
  int64_t count, first;  // how many, and the number of the first
  int64_t b0;            // without lengths: its b
  const int32_t* b;      // with lengths: the b of each

  int64_t batch(int64_t r) const { return b ? b[r] : b0 + r; }
};

// Where a row's state comes from: the row before it in the scan, the initial state, or nowhere.
enum class Start : uint8_t { previous, initial, zero };

class Schedule {
 public:
  RNNFAST_INLINE Schedule(Arena& arena, const Forward& pass) : pass_(pass), steps_(pass.steps), batch_(pass.batch) {
    irregular_ = pass.lengths || pass.mask || pass.reset;
    if (!irregular_) return;
    for (int64_t b = 0; pass.lengths && b < batch_; ++b) total_ += pass.lengths[b];
    for (int64_t i = 0; pass.mask && i < steps_ * batch_; ++i) total_ += pass.mask[i] != 0;
    if (!pass.lengths && !pass.mask) total_ = steps_ * batch_;
    offset_ = arena.take<int64_t>(steps_ + 1);
    row_ = arena.take<Row>(total_);
    b_ = arena.take<int32_t>(total_);
    sequence_ = arena.take<Sequence>(batch_);
    for (uint8_t*& restarts : restarts_) restarts = arena.take<uint8_t>(pass.reset ? steps_ : 0);
  }

  // Fills the tables; before any thread reads them.
  void build() {
    if (irregular_) build_tables();
  }

  RNNFAST_ONCE void build_tables() {
    for (int64_t b = 0; b < batch_; ++b) sequence_[b] = {};
    for (int64_t t = 0; pass_.reset && t < steps_; ++t) restarts_[0][t] = restarts_[1][t] = 0;
    int64_t number = 0;
    for (int64_t t = 0; t < steps_; ++t) {
      offset_[t] = number;
      for (int64_t b = 0; b < batch_; ++b) {
        if (pass_.lengths && pass_.lengths[b] <= t) continue;  // a reset beyond the length is none
        if (pass_.reset && pass_.reset[t * batch_ + b]) sequence_[b].cut = true, sequence_[b].cut_late |= t > 0;
        if (takes_part(t, b)) add(number++, t, b);
      }
    }
    offset_[steps_] = number;
    for (int64_t b = 0; b < batch_; ++b) {
      Sequence& sequence = sequence_[b];
      if (sequence.count) cut_after(sequence.last, sequence.cut);
    }
  }

  bool takes_part(int64_t t, int64_t b) const {
    if (pass_.lengths) return t < pass_.lengths[b];
    return !pass_.mask || pass_.mask[t * batch_ + b];
  }

  // The rows of steps [first, last): their numbers follow each other.
  Range numbers(Range steps) const {
    if (!irregular_) return {steps.first * batch_, steps.last * batch_};
    return {offset_[steps.first], offset_[steps.last]};
  }

  int64_t total() const { return irregular_ ? total_ : steps_ * batch_; }

  StepRows rows(int64_t t, int64_t b_first, int64_t b_last) const {
    if (!irregular_) return {b_last - b_first, t * batch_ + b_first, b_first, nullptr};
    const int64_t from = lower_bound(t, b_first), to = lower_bound(t, b_last);
    return {to - from, from, 0, b_ + from};
  }
  StepRows rows(int64_t t) const { return rows(t, 0, batch_); }

  // The number of the row of the same sequence one step before, in the direction of the scan; -1: there is none.
  int64_t before(int64_t row, bool reverse) const {
    if (irregular_) return reverse ? row_[row].later : row_[row].earlier;
    const int64_t before = reverse ? row + batch_ : row - batch_;
    return before < 0 || before >= steps_ * batch_ ? -1 : before;
  }
  // Its step, for a row at t that has one before.
  int64_t time_before(int64_t row, int64_t t, bool reverse) const {
    return irregular_ ? row_[before(row, reverse)].t : reverse ? t + 1 : t - 1;
  }

  // Whether a reset stands between the row and what the scan did before.
  bool is_cut(int64_t row, bool reverse) const {
    return irregular_ && (reverse ? row_[row].cut_after : row_[row].cut_before);
  }
  Start start(int64_t row, bool reverse) const {
    if (is_cut(row, reverse)) return anew();
    return before(row, reverse) >= 0 ? Start::previous : Start::initial;
  }
  // Where the state after the scan comes from; `previous`: from the sequence's last row.
  Start final_start(int64_t b, bool reverse) const {
    if (!irregular_) return steps_ ? Start::previous : Start::initial;
    const Sequence& s = sequence_[b];
    const bool cut = !s.count ? (reverse ? s.cut_late : s.cut) : reverse ? s.cut_first : row_[s.last].cut_after;
    return cut ? anew() : s.count ? Start::previous : Start::initial;
  }
  // Whether any row of step t starts anew in the middle of its sequence.
  bool restarts(int64_t t, bool reverse) const { return pass_.reset && restarts_[reverse][t]; }

  // How many steps of sequence b the scan has done before it comes to this row, which is at t.
  int64_t done(int64_t row, int64_t t, int64_t b, bool reverse) const {
    if (!irregular_) return reverse ? steps_ - 1 - t : t;
    return reverse ? sequence_[b].count - 1 - row_[row].order : row_[row].order;
  }
  // How many it does in all.
  int64_t count(int64_t b) const { return irregular_ ? sequence_[b].count : steps_; }

 private:
  struct Row {
    int64_t t, order;        // its step; how many rows of its sequence are earlier
    int64_t earlier, later;  // of the same sequence; -1: none
    bool cut_before, cut_after;
  };
  struct Sequence {
    int64_t count = 0, last = -1;
    bool cut = false;        // a reset since its last row
    bool cut_late = false;   // the same, but for a reset before step 0: no state ever comes from there in reverse
    bool cut_first = false;  // `cut_late` when its first row came
  };

  void add(int64_t number, int64_t t, int64_t b) {
    Sequence& s = sequence_[b];
    b_[number] = static_cast<int32_t>(b);
    row_[number] = {t, s.count, s.last, -1, s.cut, false};
    if (s.cut) restarts_[0][t] = 1;
    if (s.count == 0) {
      s.cut_first = s.cut_late;
    } else {
      row_[s.last].later = number;
      cut_after(s.last, s.cut);
    }
    s.last = number;
    ++s.count;
    s.cut = s.cut_late = false;
  }
  void cut_after(int64_t row, bool cut) {
    row_[row].cut_after = cut;
    if (cut) restarts_[1][row_[row].t] = 1;
  }
  Start anew() const { return pass_.reset_to_initial ? Start::initial : Start::zero; }

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

  const Forward& pass_;
  int64_t steps_, batch_, total_ = 0;
  bool irregular_;
  int64_t* offset_ = nullptr;
  Row* row_ = nullptr;
  int32_t* b_ = nullptr;
  Sequence* sequence_ = nullptr;
  uint8_t* restarts_[2] = {};  // [T] each
};

}  // namespace
}  // namespace rnnfast
