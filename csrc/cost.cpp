#include "cost.h"

#include <algorithm>

#include "rnnfast.h"
#include "threads.h"

namespace rnnfast {
namespace {

// A step of one layer and direction, on average over the layers.
struct Work {
  int64_t directions, batch, panels, recurrent_bytes;
  double steps;  // of all layers
  bool training;
  int gates;
  double alone;  // ns of one thread

  Work(const Forward& pass, Kernel kernel)
      : directions(pass.spec.num_directions),
        batch(pass.batch),
        panels(std::max<int64_t>((pass.spec.hidden_size + kernel.lanes - 1) / kernel.lanes, 1)),
        steps(static_cast<double>(std::max<int64_t>(pass.steps, 1) * pass.spec.num_layers)),
        training(pass.tape),
        gates(gates_of(pass.spec.cell)) {
    const int64_t weights = step_work(pass.spec, 1) / pass.spec.num_layers;
    const int64_t outputs = pass.spec.proj_size ? pass.spec.proj_size : pass.spec.hidden_size;
    const int64_t recurrent = gates * panels * kernel.lanes * outputs;
    recurrent_bytes = recurrent * (kernel.vector_bytes / kernel.lanes);
    // Measured are 58 to 60 multiply-adds of a float32 in a nanosecond with AVX2 and with AVX-512 in halves, 94 and 142
    // with AVX-512 in whole, for which this says 118. Where few rows share weights, reading these takes longer, and
    // counts as more of them; those by x are shared by many steps, if there are many.
    const double vectors = kernel.vector_bytes == 64 && halves_vectors() ? 3.7 : 7.4;  // in a ns
    const int products = training ? 3 : 1;                                             // two on the way back
    const double read = static_cast<double>(pass.steps > 1 ? recurrent : weights);
    const double sums = static_cast<double>(weights) * static_cast<double>(batch);
    alone = products * (sums + 1.6 * read) / (vectors * kernel.lanes);
  }

  double time(int threads, double meeting) const {
    if (threads <= 1) return alone * static_cast<double>(directions);
    const int64_t team = std::max<int64_t>(threads / directions, 1);
    const bool by_rows = splits_rows(team, batch, panels, recurrent_bytes);
    const int64_t parts = by_rows ? batch : panels;  // of which the largest share is
    const double share = static_cast<double>((parts + team - 1) / team) / static_cast<double>(parts);
    // Where units are split a step costs the barrier, and what the others wrote is read line by line from other cores.
    // Where rows are split, or directions, some lines go from core to core all the same, because hardware fetches
    // beyond the end of a thread's part. On the way back there are more, by gates: every step has the parts of all.
    // And the pass has to get to the others, and its end back.
    const double meetings = (by_rows || team == 1 ? 2 : 6) + (training ? 4 * (gates + 1) : 0) + 12 / steps;
    return alone * share + meeting * meetings * static_cast<double>(std::max<int64_t>(team, 2));
  }

  int fastest(int threads, double meeting) const {
    int best = 1;
    for (int n = 2; n <= threads; ++n)
      if (time(n, meeting) < time(best, meeting)) best = n;
    return best;
  }
};

// Ns of a meeting for each thread: what is counted on at least, and more than was ever measured.
constexpr double near = 25, far = 5000;

}  // namespace

int useful_threads(int threads, const Forward& pass, Kernel kernel) {
  if (threads < 0) return -threads;
  if (threads <= 1 || !pass.batch || !pass.steps) return 1;
  const Work work(pass, kernel);
  // Sleeping workers take some 40 us to begin, and more after a pause, which single steps come after; where calls
  // follow upon each other they take about one. Each thread should have as much to do, and there twice as much.
  const double start = (pass.in_succession ? 2e3 : pass.steps > 1 ? 45e3 : 65e3) * (work.training ? 2 : 1);
  const double worth = work.time(1, 0) * work.steps / start;
  return work.fastest(static_cast<int>(std::min(worth, static_cast<double>(threads))), near);
}

int threads_now(int threads, int useful, const Forward& pass, Kernel kernel) {
  if (threads < 0 || useful <= 1) return useful;
  const Work work(pass, kernel);
  if (work.fastest(useful, far) == useful) return useful;  // nothing depends on what a measurement finds
  return work.fastest(useful, std::max(near, meeting_time(useful)));
}

double predicted_step(int threads, double meeting, const Forward& pass, Kernel kernel) {
  return Work(pass, kernel).time(threads, meeting);
}

int fastest_threads(int threads, double meeting, const Forward& pass, Kernel kernel) {
  return Work(pass, kernel).fastest(threads, meeting);
}

bool splits_rows(int64_t threads, int64_t batch, int64_t panels, int64_t recurrent_bytes) {
  constexpr int64_t enough_rows = 4, private_cache = 768 << 10;  // of most L2 of 1 MB and more
  return batch >= threads * enough_rows && (recurrent_bytes <= private_cache || panels < 2 * threads);
}

int64_t step_work(const Spec& spec, int64_t batch) {
  int64_t work = 0;
  for (int64_t l = 0; l < spec.num_layers; ++l)
    work += gates_of(spec.cell) * units_of(spec, l) * (inputs_of(spec, l) + outputs_of(spec, l)) * batch;
  return work;
}

}  // namespace rnnfast
