// The limits of this machine, measured with the threads and the instruction set that the kernels use.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "rnnfast.h"
#include "threads.h"

namespace rnnfast {
namespace {

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// What each thread runs again and again until the time is up; returns the amount of work done.
using Work = double (*)(const void* context, int id);

struct Measurement {
  Work work;
  const void* context;
  double seconds;
  Barrier barrier;
  double rate[256] = {};
  int count = 0;
};

void measure_on(void* context, int id, int count) {
  Measurement& m = *static_cast<Measurement*>(context);
  m.work(m.context, id);  // warms caches and clocks
  m.barrier.wait(count);
  double amount = 0;
  const double start = seconds_now();
  double now = start;
  while (now - start < m.seconds) {
    amount += m.work(m.context, id);
    now = seconds_now();
  }
  m.rate[id] = amount / (now - start);
  if (id == 0) m.count = count;
}

double measure(Work work, const void* context, int threads, double seconds) {
  Measurement m{work, context, seconds, {}};
  parallel(threads < 256 ? threads : 256, measure_on, &m);
  double total = 0;
  for (int id = 0; id < m.count; ++id) total += m.rate[id];
  return total;
}

struct Peak {
  const KernelTable& table;
  Dtype dtype;
};

struct Read {
  const KernelTable& table;
  int64_t bytes;
  std::vector<std::vector<double>> buffers;
};

}  // namespace

double measure_peak(const KernelTable& table, Dtype dtype, int threads, double seconds) {
  const Peak peak{table, dtype};
  const Work work = [](const void* context, int) {
    const Peak& p = *static_cast<const Peak*>(context);
    double sink;
    return p.table.fma_rounds[static_cast<int>(p.dtype)](20000, &sink);
  };
  return measure(work, &peak, threads, seconds);
}

double measure_read(const KernelTable& table, int64_t bytes, int threads, double seconds) {
  Read read{table, (std::max<int64_t>(bytes, 1) + 511) / 512 * 512, {}};
  threads = std::max(threads, 1);
  for (int id = 0; id < threads; ++id)
    read.buffers.emplace_back(static_cast<size_t>(read.bytes) / sizeof(double) + 8, 1.0);
  const Work work = [](const void* context, int id) {
    const Read& r = *static_cast<const Read*>(context);
    const int64_t rounds = 1 + (int64_t{1} << 20) / r.bytes;
    const uintptr_t start = reinterpret_cast<uintptr_t>(r.buffers[static_cast<size_t>(id)].data());
    double sink;
    r.table.read_rounds(reinterpret_cast<const void*>((start + 63) / 64 * 64), r.bytes, rounds, &sink);
    return static_cast<double>(rounds * r.bytes);
  };
  return measure(work, &read, threads, seconds);
}

}  // namespace rnnfast
