// Who does what: how the work of a pass is divided over threads, whose number comes from ../cost.h, and how many steps
// are taken together. None of these choices changes a bit of any result.
#pragma once

#include "../cost.h"
#include "../threads.h"
#include "layout.h"
#include "schedule.h"

namespace rnnfast {
namespace {

// Where some threads meet, and the block at whose beginning they all give up.
struct Meeting {
  Barrier barrier;
  int64_t stop_at = INT64_MAX;
};

// Ends a pass early without leaving anybody waiting at a barrier. The calling thread asks; the leader of each group of
// threads that meet announces the end one block ahead, so all of them leave at the same block.
class Interrupt {
 public:
  // On the caller's thread, whose floating-point state is still its own.
  explicit Interrupt(bool (*ask)()) : ask_(ask), outside_(FloatState::now()) {}

  // At the beginning of the block at place k: places grow through the pass and are the same for all threads of a
  // meeting, whatever each of them did before.
  bool stops(Meeting& meeting, bool leader, bool caller, int64_t k) {
    if (!ask_) return false;
    if (__atomic_load_n(&meeting.stop_at, __ATOMIC_RELAXED) <= k) return true;
    if (caller && asks()) __atomic_store_n(&happened_, true, __ATOMIC_RELAXED);
    if (leader && happened()) __atomic_store_n(&meeting.stop_at, k + 1, __ATOMIC_RELAXED);
    return false;
  }
  // What is asked may run the user's code, which must find the floating-point state of the caller.
  bool asks() const {
    const WithFloatState outside(outside_);
    return ask_();
  }
  bool happened() const { return __atomic_load_n(&happened_, __ATOMIC_RELAXED); }

 private:
  bool (*ask_)();
  FloatState outside_;
  bool happened_ = false;
};

// Threads that work on one direction of a layer together, and the directions that are theirs, one after the other.
struct Team {
  Meeting* meeting;
  Meeting* parts;  // one for each thread of the team
  int rank, size;
  Range directions;

  void wait() const { meeting->barrier.wait(size); }
};

// What one thread of a team owns in the recurrence: some rows of the batch and some panels of units. Those with the
// same rows may share the input product of a block, and are peers if each has some of the panels: then they need each
// other's h at every step.
struct Part {
  Range rows, panels, outputs;  // outputs: panels of h; as panels, but for a projection
  Meeting* meeting;
  int rank, sharers;  // its number among those that may share an input product, and how many they are
  int peers;          // that meet at every step
  int64_t gap;        // vectors that keep its rows of a state away from those of the parts before

  bool leader() const { return rank == 0; }
  bool has_recurrence() const { return leader() || peers > 1; }
  void wait() const { meeting->barrier.wait(peers); }
  void wait_for_sharers() const { meeting->barrier.wait(sharers); }
};

// The sizes of one layer that the plan depends on.
struct Extent {
  int64_t steps, batch, panels, output_panels;
  int64_t row_bytes;        // the gates of one row, all units; as much as weights for one k
  int64_t recurrent_bytes;  // of weights
};

template <class C, class T> Extent extent_of(const Forward& pass, const Sizes& n) {
  const int64_t row_bytes = n.panels * C::gates * vector_bytes;
  return {pass.steps, pass.batch, n.panels, n.output_panels, row_bytes, row_bytes * n.outputs};
}

// Where rows follow upon each other, the hardware of the core that reads or writes one part's fetches the first lines
// of the next's, which that part's core then has to take back, in every step.
constexpr int64_t row_gap = 2048 / vector_bytes;

// One for all, one for each team, one for each thread's part.
constexpr int64_t meetings_for(int64_t threads) { return 3 + threads; }

// Both directions run side by side where there are two threads.
inline Team make_team(Meeting* meetings, int id, int count, int64_t directions) {
  Meeting* parts = meetings + 3;
  if (directions == 1 || count == 1) return {meetings + 1, parts, id, count, {0, directions}};
  const int first = (count + 1) / 2;  // threads of direction 0
  return id < first ? Team{meetings + 1, parts, id, first, {0, 1}}
                    : Team{meetings + 2, parts + first, id - first, count - first, {1, 2}};
}

// See Crew and splits_rows() in ../cost.h.
inline Part make_part(const Team& team, const Extent& e, Division division) {
  Part part{{0, e.batch}, {0, e.panels}, {0, e.output_panels}, team.parts, team.rank, team.size, 1, 0};
  if (division == Division::inputs) {
    if (team.rank > 0) part.panels = part.outputs = {0, 0};
  } else if (team.size > 1 && splits_rows(team.size, e.batch, e.panels, e.recurrent_bytes)) {
    part.rows = share(e.batch, team.rank, team.size);
    part.meeting += team.rank, part.gap = team.rank * row_gap;
    part.rank = 0, part.sharers = 1;
  } else {
    part.panels = share(e.panels, team.rank, team.size), part.outputs = share(e.output_panels, team.rank, team.size);
    part.peers = team.size;
  }
  return part;
}

// So many elements of at least 8 bytes for each thread that no two threads write to one line of a cache.
constexpr int64_t apart(int64_t count) { return ceil_div(count, 8) * 8; }

// Steps whose input product is taken together: enough rows to fill tiles, few enough that the result stays in cache. Of
// wide inputs some more, so that they share reading W, which comes from afar.
inline int64_t forward_block(const Extent& e, int64_t inputs, int threads) {
  const int64_t budget = int64_t{256} << 10;
  const int64_t rows = max(max(64, min(inputs / 4, 256)), budget * threads / max(1, e.row_bytes));
  return max(1, min(e.steps, rows / max(1, e.batch)));
}

}  // namespace
}  // namespace rnnfast
