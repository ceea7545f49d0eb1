#include "cost.h"

#include <algorithm>

#include "rnnfast.h"
#include "threads.h"

namespace rnnfast {
namespace {

// Multiply-adds of a step of the largest layer, both directions.
double products(const Forward& pass, Kernel kernel) {
  const Spec& spec = pass.spec;
  const int64_t outputs = spec.proj_size ? spec.proj_size : spec.hidden_size;
  const int64_t weights = gates_of(spec.cell) * spec.hidden_size * (spec.input_size + outputs);
  return static_cast<double>(weights * spec.num_directions) * static_cast<double>(pass.batch) * (kernel.backward + 1);
}

// What such a step takes one thread, in ns. Measured are 58 to 60 multiply-adds of a float32 in a nanosecond with AVX2
// and with AVX-512 in halves, 94 and 142 with AVX-512 in whole. Where few rows share the weights of a step, reading
// these takes longer, and counts as more of them.
double step_time(const Forward& pass, Kernel kernel) {
  const double vectors = kernel.vector_bytes == 64 && halves_vectors() ? 3.7 : 7.4;  // in a ns
  const double reading = 1 + 1.6 / static_cast<double>(std::max<int64_t>(pass.batch, 1));
  return products(pass, kernel) * reading / (vectors * kernel.lanes);
}

int limited(double threads, int most) { return static_cast<int>(std::clamp(threads, 1.0, static_cast<double>(most))); }

// What a step of several threads costs, in meetings. Where units are split it is the barrier and what the others wrote,
// to be read line by line from other cores. Where rows are split, and in both directions, some lines go from core to
// core all the same, because hardware fetches beyond the end of a thread's part, and in backward more than some: its
// arrays are in order of time, where every step has all threads' parts.
int meetings_per_step(int threads, const Forward& pass, Kernel kernel) {
  const Spec& spec = pass.spec;
  const int64_t team = (threads + spec.num_directions - 1) / spec.num_directions;
  const int64_t panels = (spec.hidden_size + kernel.lanes - 1) / kernel.lanes;
  const int64_t bytes = gates_of(spec.cell) * panels * kernel.vector_bytes * (spec.input_size + spec.hidden_size);
  const bool apart = team == 1 || splits_rows(team, pass.batch, panels, bytes);
  return apart && !kernel.backward ? 2 : 4;
}

}  // namespace

// Sleeping workers take some 40 us to begin, and more after a pause, which single steps come after; where calls follow
// upon each other they take some 6. Each thread should have as much to do.
int useful_threads(int threads, const Forward& pass, Kernel kernel) {
  const double start = pass.in_succession ? 6e3 : pass.steps > 1 ? 45e3 : 65e3;  // ns
  if (threads < 0) return -threads;
  if (threads <= 1) return 1;
  const double steps = static_cast<double>(pass.steps * pass.spec.num_layers);
  return limited(step_time(pass, kernel) * steps / start, threads);
}

int threads_now(int threads, int useful, const Forward& pass, Kernel kernel) {
  constexpr double least = 60, longest = 2500;  // ns that a meeting takes
  if (threads < 0 || useful <= 1) return useful;
  const double time = step_time(pass, kernel) / meetings_per_step(useful, pass, kernel);
  if (time < 2 * least) return 1;
  if (time >= longest * useful) return useful;
  return limited(time / std::max(least, static_cast<double>(meeting_time(useful))), useful);
}

bool splits_rows(int64_t threads, int64_t batch, int64_t panels, int64_t weight_bytes) {
  constexpr int64_t enough_rows = 4, private_cache = 1 << 20;
  return batch >= threads * enough_rows && (weight_bytes <= private_cache || panels < 2 * threads);
}

}  // namespace rnnfast
