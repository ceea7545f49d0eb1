// The one seam through which the rest reaches threads.
//
// A pass runs as one region: parallel() calls a task on several threads at once, and inside the region the threads
// meet at a Barrier. Two backends can run a region, chosen by set_backend() or RNNFAST_THREADING:
//   pool    our own workers, made at first use; idle ones spin for microseconds and then sleep. The default.
//   openmp  the OpenMP runtime, where the build found one. The default of calls between operations of a library that
//           shares that runtime (BesideOpenMP).
//
// Kernel objects include this file, so whatever is defined here has internal linkage (see docs/kernels.md).
#pragma once

#include <cstdint>

namespace rnnfast {

// Runs on thread `id` of `count`; must not throw.
using Task = void (*)(void* context, int id, int count);

// Runs task(context, id, count) once for each id in [0, count), all at the same time; id 0 is the caller's thread.
// 1 <= count <= threads. It is 1 in a nested region, where another thread's region holds the pool, and in a forked
// child under OpenMP; so a task divides its work by `count`, never by the number that it asked for.
void parallel(int threads, Task task, void* context);

// Whether the calling thread is inside a region.
bool in_parallel();

// How many threads a pass uses if its caller does not say. In this order: set_num_threads(); RNNFAST_NUM_THREADS;
// `otherwise`, where a framework has its own number; OMP_NUM_THREADS (the first number of its list); the cores that
// this process may use (affinity and cgroup quota). The environment is read at each call. A variable that holds no
// positive integer is ignored.
int get_num_threads(int otherwise = 0);
void set_num_threads(int threads);  // for the process; 0 returns to the default

// "pool" or "openmp": set_backend(), else RNNFAST_THREADING, else "pool". Null where RNNFAST_THREADING names neither
// or one that this build lacks; regions then run on the pool.
const char* get_backend();
bool set_backend(const char* name);  // null returns to the default; false, and no change, where there is no such one
const char* available_backends();    // for messages: "openmp, pool" or "pool"

// Whether a library that is loaded, by its soname, calls the OpenMP runtime that this one calls.
bool shares_openmp(const char* library);

// While it lives, OpenMP is this thread's default backend, but in a forked child. For calls between operations of a
// library with the same runtime: its threads spin for milliseconds after each, and are then the ones that work here.
class BesideOpenMP {
 public:
  explicit BesideOpenMP(bool shares);
  ~BesideOpenMP();
  BesideOpenMP(const BesideOpenMP&) = delete;
  BesideOpenMP& operator=(const BesideOpenMP&) = delete;

 private:
  const bool before_;
};

// Calls of one thread that follow upon each other so closely, and have done so for so long, that the workers stay awake
// between them: then less work is worth a second one. For calls that may use several; begin_call() says whether this is
// one of those. Each is ended by the thread that began it.
bool begin_call();
void end_call();

// How long a Barrier takes each thread that meets there, in ns. Measured with `threads` of them now and then, because
// the cores of a virtual machine are next to each other at some times and far apart at others.
double meeting_time(int threads);

// Lets another thread have this core.
void yield_core();

// How often a thread that waits for another of its region looks before it yields its core.
int patience();

namespace {

// Tells the core that this is a spin loop.
inline void pause_core() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");  // `yield` is a no-op on most cores; isb waits about as long as x86's pause
#endif
}

// Threads of one region wait for each other. Construct it before the region, in memory that they share. It can be
// used any number of times; everything written before wait() by one thread is visible to all after it.
class alignas(64) Barrier {
 public:
  void wait(int count) {
    if (count <= 1) return;
    // Nobody can complete this generation before this thread arrives, so the value read here is the current one.
    const uint32_t generation = __atomic_load_n(&generation_, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&arrived_, 1, __ATOMIC_ACQ_REL) == count) {
      __atomic_store_n(&arrived_, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&generation_, generation + 1, __ATOMIC_RELEASE);
      return;
    }
    for (int left = patience(); __atomic_load_n(&generation_, __ATOMIC_ACQUIRE) == generation;) {
      if (left > 0) {
        pause_core();
        --left;
      } else {
        yield_core();  // the thread waited for may need this core
      }
    }
  }

 private:
  int arrived_ = 0;
  alignas(64) uint32_t generation_ = 0;  // a line of its own: waiting threads must not slow down those that arrive
};

}  // namespace
}  // namespace rnnfast
