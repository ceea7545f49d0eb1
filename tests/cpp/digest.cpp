// Prints digests of all results of fixed cases, for comparing instruction sets bit by bit, also across machines.
//   digest [threads]    (exactly so many; RNNFAST_ISA chooses the instruction set)
// The first line names the instruction set; then one line per case, with an FNV-1a digest per result array.
#include <cstdlib>

#include "compare.h"

namespace {

using namespace rnnfast;

Case make(Cell cell, int64_t steps, int64_t batch, int64_t input_size, int64_t hidden_size) {
  Case c;
  c.cell = cell, c.steps = steps, c.batch = batch, c.input_size = input_size, c.hidden_size = hidden_size;
  return c;
}

// Sizes on both sides of every vector width and register tile, with one of each option at least.
std::vector<Case> cases_of(Cell cell) {
  Case small = make(cell, 1, 1, 1, 1), ragged = make(cell, 7, 3, 5, 17), plain = make(cell, 5, 17, 33, 31),
       wide = make(cell, 3, 2, 64, 65);
  ragged.layers = ragged.directions = 2;
  if (cell == Cell::rnn) make_relu(ragged);
  ragged.dropout = cell == Cell::lstm ? 0.5 : 0;
  for (int64_t b = 0; b < ragged.batch; ++b) ragged.lengths.push_back((b * 3 + 1) % (ragged.steps + 1));
  plain.without = no_bias;
  wide.layers = 2;
  wide.dropout = cell == Cell::gru ? 0.25 : 0;
  return {small, ragged, plain, wide};
}

// Two layers with options.
Case with_options(Cell cell, void (*set)(Case&)) {
  Case c = make(cell, 11, 3, 5, 19);
  c.layers = 2, c.grad_clip = 0.4, c.gates_wanted = true;
  c.masked = 50, c.resets = 25, c.reset_to_initial = c.carry = c.recurrent_masks = c.zoneout_masks = true;
  set(c);
  return c;
}

std::vector<Case> option_cases() {
  const auto activations = [](Case& c) {
    const Activation hard{Function::hard_sigmoid, 0.2, 0.5}, elu{Function::elu, 0.7, 0}, soft{Function::softsign, 0, 0};
    c.activations[0] = {hard, elu, soft}, c.activations[1] = {{}, soft, elu};
  };
  std::vector<Case> cases = {
      with_options(Cell::rnn, [](Case& c) { c.activations[0].gate = {Function::elu, 0.7, 0}, c.clip = 0.7; }),
      with_options(Cell::rnn, [](Case& c) { c.zoneout_h = 0.3; }),
      with_options(Cell::lstm, [](Case& c) { c.peepholes = true, c.clip = 0.9, c.cells_wanted = true; }),
      with_options(Cell::lstm, [](Case& c) { c.peepholes = c.coupled_gates = true; }),
      with_options(Cell::lstm, [](Case& c) { c.proj_size = 9; }),
      with_options(Cell::lstm, [](Case& c) { c.layer_norm = true; }),
      with_options(Cell::gru, [](Case& c) { c.reset_after = false; }),
      with_options(Cell::gru, [](Case& c) { c.layer_norm = true; }),
      with_options(Cell::gru, [](Case& c) { c.zoneout_h = 0.4; }),
  };
  for (size_t n : {3, 8}) activations(cases[n]);
  return cases;
}

template <class T> uint64_t fnv(const T* values, size_t size, uint64_t hash = 0xcbf29ce484222325u) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(values);
  for (size_t i = 0; i < size * sizeof(T); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3u;
  return hash;
}

template <class T> void print(const KernelTable& table, Case c, int threads) {
  c.dtype = sizeof(T) == 4 ? Dtype::float32 : Dtype::float64;
  std::printf("%s:", describe(c).c_str());  // without the threads, which change nothing
  c.threads = threads;
  const Inputs<T> in(c, Side::apart);
  const Outputs<T> out(c, Side::apart, 0);
  Pass<T> pass(c, in, out);
  run_kernels(table, c, pass, {Side::apart, 0});
  out.each([](const char* name, const Guarded<T>& array) {
    if (array.size()) std::printf(" %s=%016" PRIx64, name, fnv(array.data(), array.size()));
  });
  std::printf("\n");
}

void print(const KernelTable& table, const Case& c, int threads) {
  print<float>(table, c, threads);
  print<double>(table, c, threads);
}

}  // namespace

int main(int argc, char** argv) {
  const KernelTable* table = default_isa();
  if (!table) {
    std::fprintf(stderr, "RNNFAST_ISA names no instruction set that this build and this CPU have\n");
    return 1;
  }
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  std::printf("%s\n", table->isa);
  for (Cell cell : {Cell::rnn, Cell::lstm, Cell::gru})
    for (const Case& c : cases_of(cell)) print(*table, c, threads);
  // Threads share the rows of one direction, where there are enough of them; of two directions they have one each.
  for (Case c : option_cases()) {
    c.directions = 2;
    print(*table, c, threads);
    c.directions = 1, c.batch = 40;
    print(*table, c, threads);
  }
  return 0;
}
