// Which rows take part in which step, and where their state comes from.
#pragma once

#include <vector>

#include "rnnfast.h"

namespace rnnfast {

enum class PlainStart { previous, initial, zero };

// One sequence b at one step t, as the scan of one direction comes to it.
struct PlainRow {
  bool takes_part = false;
  PlainStart start = PlainStart::initial;
  bool cut = false;     // whether a reset stands before it
  int64_t before = -1;  // where `start` is `previous`: the step that its state is from
};

// The rows of a pass in one direction.
class PlainRows {
 public:
  PlainRows(const Forward& pass, int64_t direction) : pass_(pass), reverse_(direction == 1) {
    rows_.resize(static_cast<size_t>(pass.steps * pass.batch));
    last_.resize(static_cast<size_t>(pass.batch));
    for (int64_t b = 0; b < pass.batch; ++b) {
      PlainRow next;
      for (int64_t s = 0; s < pass.steps; ++s) {
        const int64_t t = time(s);
        if (is_reset(reverse_ ? t + 1 : t, b))
          next.start = pass.reset_to_initial ? PlainStart::initial : PlainStart::zero, next.cut = true;
        if (!takes_part(t, b)) continue;
        next.takes_part = true;
        rows_[static_cast<size_t>(t * pass.batch + b)] = next;
        next = {false, PlainStart::previous, false, t};
        last_[static_cast<size_t>(b)].takes_part = true;
      }
      next.takes_part = last_[static_cast<size_t>(b)].takes_part;
      last_[static_cast<size_t>(b)] = next;
    }
  }

  // The step that the scan does as its number s.
  int64_t time(int64_t s) const { return reverse_ ? pass_.steps - 1 - s : s; }
  const PlainRow& at(int64_t t, int64_t b) const { return rows_[static_cast<size_t>(t * pass_.batch + b)]; }
  // Where the state after the scan comes from; `takes_part`: whether the sequence did at any step.
  const PlainRow& last(int64_t b) const { return last_[static_cast<size_t>(b)]; }

 private:
  bool takes_part(int64_t t, int64_t b) const {
    if (pass_.lengths) return t < pass_.lengths[b];
    return !pass_.mask || pass_.mask[t * pass_.batch + b];
  }
  // Between steps t - 1 and t. Beyond the end of a sequence there is nothing to reset.
  bool is_reset(int64_t t, int64_t b) const {
    return pass_.reset && t < (pass_.lengths ? pass_.lengths[b] : pass_.steps) && pass_.reset[t * pass_.batch + b];
  }

  const Forward& pass_;
  const bool reverse_;
  std::vector<PlainRow> rows_, last_;
};

}  // namespace rnnfast
