// Prints digests of all results of fixed cases, for comparing instruction sets bit by bit, also across machines.
//   digest [threads]    (exactly so many; RNNFAST_ISA chooses the instruction set)
// The first line names the instruction set; then one line per case, with an FNV-1a digest per result array.
#include <cstdlib>

#include "compare.h"
#include "options.h"

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

template <class T> uint64_t fnv(const T* values, size_t size, uint64_t hash = 0xcbf29ce484222325u) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(values);
  for (size_t i = 0; i < size * sizeof(T); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3u;
  return hash;
}

template <class T> void print(const KernelTable& table, Case c, int threads) {
  std::printf("%s:", describe(c).c_str());  // without the threads, which change nothing
  c.threads = threads;
  const Inputs<T> in(c, Side::apart);
  const Outputs<T> out(c, Side::apart, 0);
  Pass<T> pass(c, in, out);
  run_kernels(table, c, pass, Side::apart, 0);
  out.each([](const char* name, const Guarded<T>& array) {
    std::printf(" %s=%016" PRIx64, name, fnv(array.data(), array.size()));
  });
  std::printf("\n");
}

// One digest of everything; few rows, and enough of them for every thread to have some of its own.
template <class T> void print_options(const KernelTable& table, const OptionCase& option, int threads) {
  for (int64_t batch : {3, 40}) {
    uint64_t hash = fnv<T>(nullptr, 0);
    run_options<T>(table, option, 11, batch, -threads,
                   [&](const std::vector<T>& array) { hash = fnv(array.data(), array.size(), hash); });
    std::printf("%d %s f%d B%" PRId64 ": %016" PRIx64 "\n", static_cast<int>(option.cell), option.name,
                static_cast<int>(8 * sizeof(T)), batch, hash);
  }
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
    for (Case c : cases_of(cell)) {
      print<float>(*table, c, threads);
      c.dtype = Dtype::float64;
      print<double>(*table, c, threads);
    }
  for (const OptionCase& option : option_cases()) {
    print_options<float>(*table, option, threads);
    print_options<double>(*table, option, threads);
  }
  return 0;
}
