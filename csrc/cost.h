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

// What the threads of a crew divide.
enum class Division : uint8_t {
  recurrence,  // its units or rows, and directions
  inputs,      // the input products alone: one thread of a direction has its recurrence
  layers       // each has every so many layers, which are some steps behind the ones below
};

// How many threads compute a pass, and how.
struct Crew {
  int threads;
  Division division;
  double meeting;  // ns that a barrier takes for each thread that meets there
};

// How many threads a pass is worth, of `threads`, where cores are near each other; a negative number is not up for
// discussion. A forward pass that keeps a tape and its backward pass are looked at together: the tape is near those who
// wrote it.
int useful_threads(int threads, const Forward& pass, Kernel kernel);

// The crew of these at the moment, which depends on how long it takes them to meet.
Crew crew_now(int threads, int useful, const Forward& pass, Kernel kernel);

// What a step of one layer takes a crew, in ns, on average; with a tape, there and back.
double predicted_step(const Crew& crew, const Forward& pass, Kernel kernel);

// The crew of at most `threads` that takes least.
Crew fastest_crew(int threads, double meeting, const Forward& pass, Kernel kernel);

// Rows are split where each thread gets at least four, below which a step takes hardly less time, and the recurrent
// weights stay in its cache: then no thread ever waits for another. Otherwise units are split, and each thread keeps
// its slice of these weights.
bool splits_rows(int64_t threads, int64_t batch, int64_t panels, int64_t recurrent_bytes);

// Whether the layers of a pass may run side by side.
bool can_divide_layers(const Forward& pass);

// How many steps a layer is then behind the one below.
int64_t steps_behind(const Forward& pass);

// Whether threads that do not split the batch split the rows of a block for a layer's input product, each with all
// panels. Then they read each other's sums, but where inputs are wide that takes less time than panels that cannot be
// split, or not equally.
bool shares_inputs(const Crew& crew, const Forward& pass, int64_t layer, Kernel kernel);

// Multiply-adds of a step of all layers, one direction.
int64_t step_work(const Spec& spec, int64_t batch);

}  // namespace rnnfast
