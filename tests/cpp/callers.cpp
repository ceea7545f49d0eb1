// Many threads call regions at once, from threads of their own and from inside another pool: how many are at work?
//   callers    (RNNFAST_THREADING chooses the backend)
// Prints the most that were, for each kind of caller; more than one team beyond the callers stops the program.
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "threads.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace {

constexpr int callers = 8, asked = 3, regions = 300;

struct Work {
  int now = 0, most = 0, largest_team = 0;
};

void raise(int& most, int value) {
  int seen = __atomic_load_n(&most, __ATOMIC_RELAXED);
  while (seen < value && !__atomic_compare_exchange_n(&most, &seen, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

// Takes some microseconds and gives up its core in between, so that regions overlap wherever they may.
void task(void* context, int, int count) {
  Work& work = *static_cast<Work*>(context);
  raise(work.most, __atomic_add_fetch(&work.now, 1, __ATOMIC_SEQ_CST));
  raise(work.largest_team, count);
  for (int k = 0; k < 20; ++k) rnnfast::yield_core();
  __atomic_sub_fetch(&work.now, 1, __ATOMIC_SEQ_CST);
}

// Now and then also in the measurement of a meeting, which is a region of its own.
void call(Work& work) {
  for (int k = 0; k < regions; ++k) {
    rnnfast::parallel(asked, task, &work);
    if (!(rnnfast::meeting_time(asked) > 0)) std::exit(2);
  }
}

void report(const char* from, const Work& work) {
  std::printf("%s: %d callers, %d at work at once, teams of up to %d\n", from, callers, work.most, work.largest_team);
  if (work.most > callers + asked - 1) std::exit(1);
}

}  // namespace

int main() {
  Work work;
  std::vector<std::thread> threads;
  for (int k = 0; k < callers; ++k) threads.emplace_back(call, std::ref(work));
  for (std::thread& thread : threads) thread.join();
  report("threads", work);
  if (work.largest_team != asked) return 1;  // one of them has a team

#if defined(_OPENMP)
  Work nested;
#pragma omp parallel num_threads(callers)
  call(nested);
  report("an OpenMP region", nested);
#endif
}
