#include "threads.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <exception>
#include <mutex>
#include <new>
#include <string>
#include <thread>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace rnnfast {
namespace {

constexpr int max_threads = 1024;

// --- what is known about this thread and this process ---

// There as soon as a thread is: else its first use takes memory, and ends the process where there is none.
__attribute__((tls_model("initial-exec"))) thread_local bool inside_region = false;
__attribute__((tls_model("initial-exec"))) thread_local bool beside_openmp = false;

class RegionMark {
 public:
  RegionMark() { inside_region = true; }
  ~RegionMark() { inside_region = false; }
  RegionMark(const RegionMark&) = delete;
  RegionMark& operator=(const RegionMark&) = delete;
};

class Pool;
std::atomic<Pool*> current_pool{nullptr};
std::atomic<bool> forked{false};

// Threads do not survive a fork. The child forgets the pool (its workers are gone and its lock may be held by one of
// them; it is leaked) and makes another when it needs one. Only async-signal-safe work is allowed here.
void after_fork_in_child() {
  current_pool.store(nullptr);
  forked.store(true);
}

[[maybe_unused]] const int fork_handler = pthread_atfork(nullptr, nullptr, after_fork_in_child);

// --- calls that follow upon each other ---

std::atomic<int64_t> last_end{0};  // in ns
std::atomic<int> following{0};     // calls in a row
std::atomic<int> running{0};       // calls
constexpr int enough = 16;
constexpr int64_t longest_pause = 20000;

int64_t now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * int64_t{1000000000} + time.tv_nsec;
}

bool in_succession() { return following.load(std::memory_order_relaxed) >= enough; }
bool paused() { return now() - last_end.load(std::memory_order_relaxed) > longest_pause; }

// --- the pool ---

// A counter that one thread raises and another waits for: it spins for a while and then sleeps.
class Event {
 public:
  uint32_t value() const { return value_.load(std::memory_order_acquire); }

  void raise() {
    value_.fetch_add(1);
    // Either this load sees the sleeper, or the sleeper's check in wait() sees the new value: all four are seq_cst.
    if (asleep_.load()) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_one();
    }
  }

  // Whether it was raised meanwhile.
  bool spin(uint32_t seen, int spins) const {
    for (int i = 0; i < spins; ++i) {
      if (value() != seen) return true;
      pause_core();
    }
    return false;
  }

  void wait(uint32_t seen, int spins) {
    if (spin(seen, spins)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    asleep_.exchange(true);  // a store would do, but QEMU (7.2, aarch64 on x86-64) lets the load below overtake it
    wake_.wait(lock, [&] { return value_.load() != seen; });
    asleep_.store(false);
  }

 private:
  std::atomic<uint32_t> value_{0};
  std::atomic<bool> asleep_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
};

#if defined(__linux__)
int current_core() { return sched_getcpu(); }
int current_thread() { return static_cast<int>(syscall(SYS_gettid)); }

// Lets a thread run wherever this one may, but on `core`.
void keep_off(int thread, int core) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < 2) return;
  CPU_CLR(static_cast<size_t>(core), &allowed);
  sched_setaffinity(thread, sizeof allowed, &allowed);  // where it fails, nothing is lost
}
#else
int current_core() { return -1; }
int current_thread() { return 0; }
void keep_off(int, int) {}
#endif

// Blocks every signal while it lives, for threads made meanwhile: Python's handlers belong to Python's threads.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

// Workers are made when a region first needs them, and detached; the pool is never destroyed, so that nothing has to
// be joined, and nothing can hang or be used after its end, while the process exits.
class Pool {
 public:
  // Null where there is no memory for it.
  static Pool* get() {
    Pool* pool = current_pool.load();
    if (pool) return pool;
    Pool* made = new (std::nothrow) Pool;
    if (current_pool.compare_exchange_strong(pool, made)) return made;
    delete made;
    return pool;
  }

  // False, with nothing done, where another thread's region is running.
  bool run(int threads, Task task, void* context) {
    std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
    if (!lock) return false;
    while (workers_ < threads - 1 && add_worker()) {
    }
    const int count = threads - 1 < workers_ ? threads : workers_ + 1;
    const uint32_t seen = done_.value();
    task_ = task;
    context_ = context;
    count_ = count;
    unfinished_.store(count - 1, std::memory_order_relaxed);
    const int core = current_core();
    for (int i = 0; i < count - 1; ++i) {
      keep_worker_off(i, core);
      start_[i]->raise();
    }
    {
      RegionMark mark;
      task(context, 0, count);
    }
    if (count > 1) done_.wait(seen, caller_spins);
    return true;
  }

 private:
  // An idle worker spins only this long, because the next to need its core is often another library's thread: beside
  // NumPy's OpenBLAS, workers that spin for milliseconds, as libgomp's do, make a matmul 26 to 40 times slower.
  static constexpr int worker_spins = 200;
  // The caller is in the middle of its work and its threads finish at about the same time.
  static constexpr int caller_spins = 2000;

  // A worker never wakes on its caller's core. Left to itself, a scheduler that does not look beyond the core of the
  // caller (virtual machines whose cores look like separate sockets) put both there after every pause of 10 ms, where
  // two threads take as long as one while other cores idle. The worker leaving by itself, once awake, was tried: by
  // then the scheduler is moving the caller too, and they meet again.
  void keep_worker_off(int i, int core) {
    const int thread = thread_[i].load(std::memory_order_relaxed);
    if (core < 0 || kept_off_[i] == core || !thread) return;
    keep_off(thread, core);
    kept_off_[i] = core;
  }

  bool add_worker() {
    Event* start = new (std::nothrow) Event;
    if (!start) return false;
    start_[workers_] = start;
    kept_off_[workers_] = -1;
    try {
      SignalsBlocked guard;
      std::thread(&Pool::work, this, workers_ + 1, start).detach();
    } catch (const std::exception&) {  // no more threads or memory to be had: the region is smaller
      delete start;
      return false;
    }
    ++workers_;
    return true;
  }

  void work(int id, Event* start) {
    inside_region = true;  // a worker runs nothing but regions
    thread_[id - 1].store(current_thread(), std::memory_order_relaxed);
    for (uint32_t seen = 0;; ++seen) {
      // Its call has yet to end, hence twice the pause; and calls that do without it must not keep it awake.
      const int64_t until = now() + 2 * longest_pause;
      while (in_succession() && now() < until && !start->spin(seen, worker_spins)) {
      }
      start->wait(seen, worker_spins);
      task_(context_, id, count_);
      if (unfinished_.fetch_sub(1) == 1) done_.raise();
    }
  }

  std::mutex busy_;
  int workers_ = 0;
  Event* start_[max_threads - 1] = {};
  std::atomic<int> thread_[max_threads - 1] = {};  // 0: not running yet
  int kept_off_[max_threads - 1] = {};
  Task task_ = nullptr;
  void* context_ = nullptr;
  int count_ = 0;
  alignas(64) std::atomic<int> unfinished_{0};
  Event done_;
};

// --- OpenMP ---

#if defined(_OPENMP)
// An OpenMP runtime whose threads were lost in a fork waits for them forever. Whether another library had used it
// before the fork cannot be known, so that no forked child uses it.
bool lost_in_fork() {
  if (!forked.load(std::memory_order_relaxed)) return false;
  static std::atomic<bool> warned{false};
  if (!warned.exchange(true)) {
    std::fputs(
        "rnnfast: this process was forked, where OpenMP's threads cannot be used: running with 1 thread. "
        "RNNFAST_THREADING=pool has no such limit.\n",
        stderr);
  }
  return true;
}

// As with the pool, one region at a time has threads of its own: a runtime makes a team for each thread that calls it,
// and teams at work together would want more cores than anybody asked for. No child of a fork comes to this lock.
std::mutex openmp_busy;

bool run_openmp(int threads, Task task, void* context) {
  if (omp_in_parallel() || lost_in_fork()) return false;
  std::unique_lock<std::mutex> lock(openmp_busy, std::try_to_lock);
  if (!lock) return false;
#pragma omp parallel num_threads(threads)
  {
    RegionMark mark;
    task(context, omp_get_thread_num(), omp_get_num_threads());
  }
  return true;
}
#else
bool run_openmp(int, Task, void*) { return false; }
#endif

// --- which backend ---

enum class Backend : int { unset, pool, openmp, unknown };
std::atomic<Backend> chosen_backend{Backend::unset};

Backend backend_named(const char* name) {
  if (!name || !*name) return Backend::unset;
  if (!std::strcmp(name, "pool")) return Backend::pool;
#if defined(_OPENMP)
  if (!std::strcmp(name, "openmp")) return Backend::openmp;
#endif
  return Backend::unknown;
}

// The pool is the default because it does no harm beside NumPy, whose OpenBLAS has threads of its own: a matmul
// alternating with an OpenMP region on 2 cores took 8,000 us a pair where each alone takes 310, as the idle workers
// of each spin on the core that the other needs.
Backend backend() {
  const Backend chosen = chosen_backend.load(std::memory_order_relaxed);
  if (chosen != Backend::unset) return chosen;
  const Backend wanted = backend_named(std::getenv("RNNFAST_THREADING"));
  if (wanted != Backend::unset) return wanted;
  return beside_openmp && !forked.load(std::memory_order_relaxed) ? Backend::openmp : Backend::pool;
}

// --- how many threads ---

std::atomic<int> chosen_threads{0};

// The positive integer at the start of `text`, followed by its end or, in a list, by a comma; else 0.
int parse_count(const char* text, bool list) {
  if (!text) return 0;
  char* end = nullptr;
  errno = 0;
  const long value = std::strtol(text, &end, 10);
  if (end == text || errno || value <= 0) return 0;
  while (*end == ' ' || *end == '\t') ++end;
  if (*end && !(list && *end == ',')) return 0;
  return value < max_threads ? static_cast<int>(value) : max_threads;
}

#if defined(__linux__)
// Up to 8 KB of a file, or "" where it cannot be read.
std::string read_small(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "r");
  if (!file) return {};
  char text[8192];
  const size_t size = std::fread(text, 1, sizeof text, file);
  std::fclose(file);
  return std::string(text, size);
}

// Cores' worth of time that one cgroup directory allows, rounded up; INT_MAX for no limit.
int quota_of(const std::string& directory, bool v2) {
  double quota = 0, period = 0;
  if (v2) {
    if (std::sscanf(read_small(directory + "/cpu.max").c_str(), "%lf %lf", &quota, &period) != 2) return INT_MAX;
  } else {
    quota = std::atof(read_small(directory + "/cpu.cfs_quota_us").c_str());
    period = std::atof(read_small(directory + "/cpu.cfs_period_us").c_str());
  }
  if (!(quota > 0 && period > 0) || quota >= period * max_threads) return INT_MAX;
  const int whole = static_cast<int>(quota / period);
  return whole * period < quota ? whole + 1 : whole;
}

// The least quota of a cgroup and those that it is in. A container's path may start outside of what it sees; the
// walk to the root then still meets the container's own directory.
int quota_along(const std::string& root, std::string path, bool v2) {
  int least = quota_of(root, v2);
  while (path.size() > 1) {
    const int quota = quota_of(root + path, v2);
    if (quota < least) least = quota;
    path.resize(path.find_last_of('/'));
  }
  return least;
}

int cgroup_quota() {
  int least = INT_MAX;
  const std::string groups = read_small("/proc/self/cgroup");  // lines "number:controllers:path"
  for (size_t begin = 0; begin < groups.size();) {
    size_t end = groups.find('\n', begin);
    if (end == std::string::npos) end = groups.size();
    const std::string line = groups.substr(begin, end - begin);
    begin = end + 1;
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
    int quota = INT_MAX;
    if (controllers.empty()) {
      quota = quota_along("/sys/fs/cgroup", path, true);
    } else if (("," + controllers + ",").find(",cpu,") != std::string::npos) {
      quota = quota_along("/sys/fs/cgroup/cpu", path, false);  // distributions link cpu to cpu,cpuacct
    }
    if (quota < least) least = quota;
  }
  return least;
}

int allowed_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(std::thread::hardware_concurrency());  // more cores than a cpu_set_t can name
}
#else
int cgroup_quota() { return INT_MAX; }
int allowed_cores() { return static_cast<int>(std::thread::hardware_concurrency()); }
#endif

int usable_cores() {
  static std::atomic<int> known{0};  // no function-local lock, which a fork could leave taken
  int cores = known.load(std::memory_order_relaxed);
  if (cores) return cores;
  cores = allowed_cores();
  const int quota = cgroup_quota();
  if (quota < cores) cores = quota;
  if (cores < 1) cores = 1;
  if (cores > max_threads) cores = max_threads;
  known.store(cores, std::memory_order_relaxed);
  return cores;
}

// Whether more threads than there are cores were asked for, the last time that somebody asked for several.
std::atomic<bool> crowded{false};

// --- how long a meeting takes ---

struct Trial {
  Barrier barrier;
  std::atomic<int> last{4};  // round
  int threads = 1;
  int64_t shortest = 0;  // of the rounds, in ns for one meeting
};

void try_meeting(void* context, int id, int count) {
  constexpr int together = 8;       // in a round
  constexpr int64_t most = 100000;  // ns of all rounds
  Trial& trial = *static_cast<Trial*>(context);
  trial.barrier.wait(count);  // now all are awake
  const int64_t begin = now();
  int64_t shortest = INT64_MAX;
  for (int round = 0; round <= trial.last.load(std::memory_order_relaxed); ++round) {
    const int64_t before = now();
    if (id == 0 && before - begin > most) trial.last.store(round, std::memory_order_relaxed);  // seen when they meet
    for (int i = 0; i < together; ++i) trial.barrier.wait(count);
    shortest = std::min(shortest, (now() - before) / together);
  }
  if (id == 0) trial.threads = count, trial.shortest = shortest;
}

std::atomic<int64_t> next_trial{0};  // when
std::atomic<double> meeting{30};     // ns for each thread

}  // namespace

void parallel(int threads, Task task, void* context) {
  if (threads > 1 && !inside_region) {
    if (threads > max_threads) threads = max_threads;
    crowded.store(threads > usable_cores(), std::memory_order_relaxed);
    if (backend() == Backend::openmp) {
      if (run_openmp(threads, task, context)) return;
    } else if (Pool* pool = Pool::get()) {
      if (pool->run(threads, task, context)) return;
    }
  }
  task(context, 0, 1);
}

bool in_parallel() { return inside_region; }

double meeting_time(int threads) {
  constexpr int64_t period = 200000000;  // ns
  constexpr double disturbed = 10000;  // ns: a thread had to wait for its core, which says nothing about the way there
  int64_t due = next_trial.load(std::memory_order_relaxed);
  if (now() > due && !in_parallel() && next_trial.compare_exchange_strong(due, now() + period)) {
    Trial trial;
    parallel(threads, try_meeting, &trial);
    const double each = static_cast<double>(trial.shortest) / trial.threads;
    if (trial.threads > 1 && each < disturbed) meeting.store(each, std::memory_order_relaxed);
  }
  return meeting.load(std::memory_order_relaxed);
}

bool begin_call() {
  const bool alone = running.fetch_add(1, std::memory_order_relaxed) == 0;
  const int before = following.load(std::memory_order_relaxed);
  following.store(alone && !paused() ? before + (before < enough) : 0, std::memory_order_relaxed);
  return in_succession();
}

void end_call() {
  last_end.store(now(), std::memory_order_relaxed);
  running.fetch_sub(1, std::memory_order_relaxed);
}

int get_num_threads(int otherwise) {
  int threads = chosen_threads.load(std::memory_order_relaxed);
  if (!threads) threads = parse_count(std::getenv("RNNFAST_NUM_THREADS"), false);
  if (!threads) threads = otherwise;
  if (!threads) threads = parse_count(std::getenv("OMP_NUM_THREADS"), true);
  return threads ? threads : usable_cores();
}

void set_num_threads(int threads) {
  chosen_threads.store(threads < 0 ? 0 : threads < max_threads ? threads : max_threads, std::memory_order_relaxed);
}

const char* get_backend() {
  switch (backend()) {
    case Backend::pool:
      return "pool";
    case Backend::openmp:
      return "openmp";
    default:
      return nullptr;
  }
}

bool set_backend(const char* name) {
  const Backend wanted = backend_named(name);
  if (wanted == Backend::unknown) return false;
  chosen_backend.store(wanted, std::memory_order_relaxed);
  return true;
}

const char* available_backends() {
#if defined(_OPENMP)
  return "openmp, pool";
#else
  return "pool";
#endif
}

bool shares_openmp([[maybe_unused]] const char* library) {
#if defined(_OPENMP)
  void* const loaded = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
  if (!loaded) return false;
  const bool shares = dlsym(loaded, "omp_get_num_threads") == reinterpret_cast<void*>(&omp_get_num_threads);
  dlclose(loaded);
  return shares;
#else
  return false;
#endif
}

BesideOpenMP::BesideOpenMP(bool shares) : before_(beside_openmp) { beside_openmp = shares; }
BesideOpenMP::~BesideOpenMP() { beside_openmp = before_; }

void yield_core() { sched_yield(); }

// Where each thread has a core, one that yields gains nothing, and may lose it: Linux seems to take what is left of its
// turn from a thread that yields, so that where another library's idle thread spins on the same core, every yield costs
// milliseconds. Some 30 to 150 us are longer than the difference between two threads' parts of a step.
int patience() { return crowded.load(std::memory_order_relaxed) ? 50 : 4000; }

}  // namespace rnnfast
