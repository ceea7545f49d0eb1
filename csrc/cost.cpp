#include "cost.h"

#include <algorithm>

#include "rnnfast.h"
#include "threads.h"

namespace rnnfast {
namespace {

// One direction of the largest layer.
struct Extent {
  int64_t batch, panels, weights;

  Extent(const Forward& pass, Kernel kernel)
      : batch(std::max<int64_t>(pass.batch, 1)),
        panels(std::max<int64_t>((pass.spec.hidden_size + kernel.lanes - 1) / kernel.lanes, 1)),
        weights(gates_of(pass.spec.cell) * pass.spec.hidden_size *
                (pass.spec.input_size + (pass.spec.proj_size ? pass.spec.proj_size : pass.spec.hidden_size))) {}
};

// A step of it by one thread, in ns. Measured are 58 to 60 multiply-adds of a float32 in a nanosecond with AVX2 and
// with AVX-512 in halves, 94 and 142 with AVX-512 in whole. Where few rows share the weights, reading these takes
// longer, and counts as more of them.
double time_alone(const Extent& e, const Forward& pass, Kernel kernel) {
  const double vectors = kernel.vector_bytes == 64 && halves_vectors() ? 3.7 : 7.4;  // in a ns
  const double products = pass.tape ? 3 : 1;
  return products * static_cast<double>(e.weights) * (static_cast<double>(e.batch) + 1.6) / (vectors * kernel.lanes);
}

}  // namespace

bool splits_rows(int64_t threads, int64_t batch, int64_t panels, int64_t weight_bytes) {
  constexpr int64_t enough_rows = 4, private_cache = 1 << 20;
  return batch >= threads * enough_rows && (weight_bytes <= private_cache || panels < 2 * threads);
}

double predicted_step(int threads, double meeting, const Forward& pass, Kernel kernel) {
  const Extent e(pass, kernel);
  const double alone = time_alone(e, pass, kernel);
  if (threads <= 1) return alone * pass.spec.num_directions;
  const int64_t team = std::max<int64_t>(threads / pass.spec.num_directions, 1);
  const bool by_rows = splits_rows(team, e.batch, e.panels, e.weights * kernel.vector_bytes / kernel.lanes);
  const int64_t parts = by_rows ? e.batch : e.panels;  // of which the largest share is
  const double share = static_cast<double>((parts + team - 1) / team) / static_cast<double>(parts);
  // Where units are split a step costs the barrier, and what the others wrote is read line by line from other cores.
  // Where rows are split, or directions, some lines go from core to core all the same, because hardware fetches beyond
  // the end of a thread's part. On the way back there are more, by gates: every step has the parts of all threads.
  const int forward = by_rows || team == 1 ? 2 : 6, back = pass.tape ? 4 * (gates_of(pass.spec.cell) + 1) : 0;
  return alone * share + meeting * (forward + back);
}

int fastest_threads(int threads, double meeting, const Forward& pass, Kernel kernel) {
  int fastest = 1;
  double least = predicted_step(1, 0, pass, kernel);
  for (int n = 2; n <= threads; ++n) {
    const double time = predicted_step(n, meeting * n / threads, pass, kernel);
    if (time < least) least = time, fastest = n;
  }
  return fastest;
}

// Sleeping workers take some 40 us to begin, and more after a pause, which single steps come after; where calls follow
// upon each other they take some 6. Each thread should have as much to do.
int useful_threads(int threads, const Forward& pass, Kernel kernel) {
  const double start = (pass.in_succession ? 6e3 : pass.steps > 1 ? 45e3 : 65e3) * (pass.tape ? 2 : 1);  // ns
  if (threads < 0) return -threads;
  if (threads <= 1) return 1;
  const double steps = static_cast<double>(pass.steps * pass.spec.num_layers);
  return static_cast<int>(
      std::clamp(predicted_step(1, 0, pass, kernel) * steps / start, 1.0, static_cast<double>(threads)));
}

int threads_now(int threads, int useful, const Forward& pass, Kernel kernel) {
  constexpr double shortest = 60, longest = 10e3;  // meetings, in ns; where the answer is the same, none is measured
  if (threads < 0 || useful <= 1) return useful;
  const int most = fastest_threads(useful, shortest, pass, kernel);
  if (most == fastest_threads(useful, longest, pass, kernel)) return most;
  return fastest_threads(useful, std::max(shortest, static_cast<double>(meeting_time(useful))), pass, kernel);
}

}  // namespace rnnfast
