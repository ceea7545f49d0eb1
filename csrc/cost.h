// The cost model: how many threads a pass is worth. What they do is in kernel/plan.h.
//
// Kernel objects include this file, so it defines nothing (see docs/kernels.md).
#pragma once

#include <cstdint>

namespace rnnfast {

struct Forward;
struct Spec;

// What computes a pass.
struct Kernel {
  int vector_bytes, lanes;
};

// How many threads a pass is worth, of `threads`, where cores are near each other; a negative number is not up for
// discussion. A forward pass that keeps a tape and its backward pass are looked at together: the tape is near those who
// wrote it.
int useful_threads(int threads, const Forward& pass, Kernel kernel);

// How many of these at the moment, which depends on how long it takes them to meet.
int threads_now(int threads, int useful, const Forward& pass, Kernel kernel);

// What a step of one layer takes so many threads, in ns, on average; with a tape, there and back. `meeting`: ns that a
// barrier takes for each thread that meets there.
double predicted_step(int threads, double meeting, const Forward& pass, Kernel kernel);

// For how many threads, of `threads`, that is least.
int fastest_threads(int threads, double meeting, const Forward& pass, Kernel kernel);

// Rows are split where each thread gets at least four, below which a step takes hardly less time, and the recurrent
// weights stay in its cache: then no thread ever waits for another. Otherwise units are split, and each thread keeps
// its slice of these weights.
bool splits_rows(int64_t threads, int64_t batch, int64_t panels, int64_t recurrent_bytes);

// Multiply-adds of a step of all layers, one direction.
int64_t step_work(const Spec& spec, int64_t batch);

}  // namespace rnnfast
