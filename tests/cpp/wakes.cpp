// Two threads do 20,000 short regions with pauses of up to as long as a worker spins before it sleeps, and longer, so
// that it is often called at the moment when it goes to sleep. A call that it does not hear would be waited for without
// end.
//   wakes    (RNNFAST_THREADING chooses the backend)
#include <unistd.h>

#include <cstdio>

#include "threads.h"

namespace {

constexpr int regions = 20000;

void count(void* context, int id, int) {
  if (id) ++*static_cast<int*>(context);
}

void stay_away(unsigned length) {
  for (volatile unsigned k = 0; k < length; k = k + 1) {
  }
}

}  // namespace

int main() {
  alarm(100);  // ends the program
  int answered = 0;
  unsigned drawn = 1;
  for (int k = 0; k < regions; ++k) {
    rnnfast::parallel(2, count, &answered);
    drawn = drawn * 1664525 + 1013904223;
    stay_away(drawn >> 18);
  }
  std::printf("%d of %d calls were answered\n", answered, regions);
  return answered != regions;
}
