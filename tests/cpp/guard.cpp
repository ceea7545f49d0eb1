// Proves that the kernels read and write what belongs to them and nothing else, and that it is right to the last bit.
//   guard [isa [draws]]    (all that this machine has, or one; so many draws of options for each cell, or 400)
// All arrays, and the engine's own memory too, lie between pages that may not be touched, once at either end.
// Inputs cannot be written. Outputs hold a pattern before: every element that a pass has to write has the value of the
// plain loops afterwards, and every other one still the pattern. One line a set; the first failure stops the program.
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <initializer_list>

#include "compare.h"
#include "draw.h"

namespace {

using namespace rnnfast;

std::string running;  // for the signal handler

void report_fault(int) {
  const char message[] = "touched memory that it may not touch: ";
  [[maybe_unused]] ssize_t written = write(2, message, sizeof message - 1);
  written = write(2, running.data(), running.size());
  written = write(2, "\n", 1);
  _exit(1);
}

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "%s\n", message.c_str());
  std::exit(1);
}

class Checker {
 public:
  explicit Checker(const KernelTable& table) : table_(table) {}

  // Each case in both dtypes, at both ends of its memory. Chance says which end has which fill, so that it goes with
  // nothing else that takes turns.
  void check(Case c) {
    for (Dtype dtype : {Dtype::float32, Dtype::float64}) {
      c.dtype = dtype;
      running = std::string(table_.isa) + " " + describe(c);
      const int64_t fill = Numbers(++count_, 0).below(2);
      const std::string found = compare(table_, c, {{Side::begin, fills[fill]}, {Side::end, fills[1 - fill]}});
      if (!found.empty()) fail(found);
    }
  }
  uint64_t count() const { return count_; }

 private:
  const KernelTable& table_;
  uint64_t count_ = 0;
};

// Sizes on both sides of every vector width (2 to 16 lanes) and multiples of it.
constexpr int64_t ragged[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33};
constexpr Cell every_cell[] = {Cell::rnn, Cell::lstm, Cell::gru};

// All pairs of input and hidden sizes, with all else taking turns.
void ragged_sizes(Checker& checker) {
  uint64_t k = 0;
  for (Cell cell : every_cell)
    for (int64_t input_size : ragged)
      for (int64_t hidden_size : ragged) {
        Numbers turns(++k, 0);
        const auto turn = [&](int n) { return static_cast<int64_t>((turns.next<double>() + 0.5) * n); };
        Case c;
        c.cell = cell;
        if (cell == Cell::rnn && turn(2)) make_relu(c);
        c.input_size = input_size, c.hidden_size = hidden_size;
        c.steps = 1 + turn(5), c.batch = ragged[turn(9)];
        c.layers = 1 + turn(4) / 3, c.directions = 1 + turn(2);
        for (int64_t b = 0; b < c.batch && k % 2; ++b) c.lengths.push_back(turn(static_cast<int>(c.steps) + 1));
        c.dropout = k % 5 ? 0 : 0.5;
        c.segments = turn(3);
        c.without = turn(3) ? 0 : static_cast<unsigned>(turn(1 << optionals));
        c.layout = static_cast<Layout>(turn(layouts));
        c.gap = turn(4);
        c.packed = turn(2);
        c.in_place = !turn(8);
        c.threads = 1 + static_cast<int>(turn(12) / 9);
        c.numbers = k;
        checker.check(c);
      }
}

// Every number of rows that a tile can have, and every number of panels that run together.
void every_tile(Checker& checker) {
  for (Cell cell : every_cell) {
    for (int64_t input_size : {3, 17})
      for (int64_t batch = 1; batch <= 26; ++batch) {
        Case c;
        c.cell = cell, c.batch = batch, c.steps = 2, c.input_size = input_size, c.hidden_size = 5 + batch;
        c.layout = Layout::batch_first;
        checker.check(c);
      }
    for (int64_t panels : {2, 3, 4, 7, 8, 9, 15, 18}) {
      Case c;
      c.cell = cell, c.steps = 2, c.input_size = 2, c.hidden_size = panels * 16 - 1;
      c.batch = 1 + panels % 3, c.segments = panels % 2;
      checker.check(c);
      c.hidden_size = 2, c.input_size = panels * 16 - 1;
      checker.check(c);
    }
  }
}

// More steps and rows than one block, and than one segment, has.
void every_block(Checker& checker) {
  for (Cell cell : every_cell)
    for (auto [steps, batch] : {std::pair<int64_t, int64_t>{1, 400}, {3, 193}, {200, 1}, {400, 1}, {90, 5}})
      for (int64_t segments : {0, 3})
        for (bool ragged_lengths : {false, true}) {
          Case c;
          c.cell = cell, c.steps = steps, c.batch = batch, c.input_size = 3, c.hidden_size = 5;
          c.directions = 2, c.segments = segments, c.threads = 1 + static_cast<int>(segments / 3);
          for (int64_t b = 0; b < batch && ragged_lengths; ++b) c.lengths.push_back((b * 7 + steps) % (steps + 1));
          checker.check(c);
        }
}

// Steps whose outputs are larger than 32 KB, from where on they are copied later; of ragged ones some are.
void large_outputs(Checker& checker) {
  for (Cell cell : every_cell)
    for (int kind = 0; kind < 3; ++kind) {
      Case c;
      c.cell = cell, c.steps = 3, c.batch = 300, c.input_size = 2, c.hidden_size = 33;
      c.layers = 1 + kind % 2, c.directions = 2, c.threads = 1 + kind / 2, c.segments = kind, c.gap = kind % 2;
      for (int64_t b = 0; b < c.batch && kind == 1; ++b) c.lengths.push_back((b * 7 + 3) % 4);
      if (kind == 2) c.masked = 80, c.resets = 20, c.carry = true;
      checker.check(c);
    }
}

void nothing(Checker& checker) {
  for (Cell cell : every_cell)
    for (int zero = 1; zero < 16; ++zero)
      for (int64_t layers : {1, 2}) {
        Case c;
        c.cell = cell, c.layers = layers, c.directions = 2;
        c.steps = zero & 1 ? 0 : 3, c.batch = zero & 2 ? 0 : 2;
        c.input_size = zero & 4 ? 0 : 5, c.hidden_size = zero & 8 ? 0 : 4;
        checker.check(c);
      }
}

// NaN, infinities, denormal and huge numbers anywhere.
void any_values(Checker& checker) {
  for (Cell cell : every_cell)
    for (int k = 0; k < 40; ++k) {
      Case c;
      c.cell = cell;
      if (cell == Cell::rnn && k % 2) make_relu(c);
      c.steps = 4, c.batch = 3, c.input_size = 3, c.hidden_size = 18, c.layers = 1 + k % 2,
      c.directions = 1 + k / 2 % 2;
      c.specials = 1 << (k % 8), c.numbers = static_cast<uint64_t>(k) + 1, c.segments = k / 3 % 2;
      checker.check(c);
    }
}

// Any options together, in layers of all kinds; some have more rows than one block.
void options(Checker& checker, int draws) {
  uint64_t k = 0;
  for (Cell cell : every_cell)
    for (int n = 0; n < draws; ++n) {
      Numbers draw(++k, 0);
      Case c;
      c.cell = cell, c.numbers = k;
      const bool is_long = k % 16 == 0, is_wide = k % 16 == 8;
      c.steps = 1 + draw.below(is_long ? 220 : 6), c.batch = 1 + draw.below(is_long ? 2 : is_wide ? 30 : 5);
      c.input_size = ragged[draw.below(9)], c.hidden_size = ragged[draw.below(13)];
      c.layers = 1 + draw.below(3), c.directions = 1 + draw.below(2);
      for (int64_t b = 0; b < c.batch && k % 3 == 0; ++b) c.lengths.push_back(draw.below(c.steps + 1));
      c.dropout = k % 5 ? 0 : 0.5, c.segments = draw.below(3);
      c.without = k % 4 ? 0 : static_cast<unsigned>(draw.below(1 << optionals));
      c.layout = static_cast<Layout>(draw.below(layouts)), c.gap = draw.below(4);
      c.packed = draw.below(2), c.in_place = !draw.below(8);
      c.threads = 1 + static_cast<int>(draw.below(12) / 9);
      c.specials = k % 7 ? 0 : 8;
      draw_options(draw, c);
      checker.check(c);
    }
}

// The elementary functions, against the C library's in more precision.
template <class T> void elementary_functions(const KernelTable& table, Dtype dtype) {
  using Real = long double;
  const struct {
    int which;
    Real (*exact)(Real);
    const char* name;
  } functions[] = {
      {KernelTable::exp, [](Real x) { return std::exp(x); }, "exp"},
      {KernelTable::expm1, [](Real x) { return std::expm1(x); }, "expm1"},
      {KernelTable::sigmoid, [](Real x) { return 1 / (1 + std::exp(-x)); }, "sigmoid"},
      {KernelTable::tanh, [](Real x) { return std::tanh(x); }, "tanh"},
  };
  const T range = sizeof(T) == 4 ? T(70) : T(650);  // x86_64_v2 is less exact beyond
  Numbers numbers(1, 0);
  for (const auto& f : functions)
    for (int k = 0; k < 4000; ++k) {
      const T x = numbers.next<T>() * 2 * range * std::exp2(T(-(k % 40)));
      T y;
      table.apply[f.which][static_cast<int>(dtype)](&x, &y, 1);
      const Real exact = f.exact(x),
                 ulp = std::nextafter(std::fabs(y), std::numeric_limits<T>::infinity()) - std::fabs(y);
      if (std::fabs(y - exact) > 3 * ulp && exact != 0)
        fail(std::string(table.isa) + ": " + f.name + "(" + std::to_string(x) + ") is " + std::to_string(y));
    }
}

void run(const KernelTable& table, int draws) {
  Checker checker(table);
  ragged_sizes(checker);
  every_tile(checker);
  every_block(checker);
  large_outputs(checker);
  nothing(checker);
  any_values(checker);
  options(checker, draws);
  elementary_functions<float>(table, Dtype::float32);
  elementary_functions<double>(table, Dtype::float64);
  std::printf("%s: %" PRIu64 " cases at both ends of their memory\n", table.isa, checker.count());
}

}  // namespace

int main(int argc, char** argv) {
  signal(SIGSEGV, report_fault);
  signal(SIGBUS, report_fault);
  bool found = false;
  for (const KernelTable* table : all_tables()) {
    if (argc > 1 && std::string(argv[1]) != table->isa) continue;
    run(*table, argc > 2 ? std::atoi(argv[2]) : 400);
    found = true;
  }
  if (!found) fail("this CPU does not have that instruction set");
}
