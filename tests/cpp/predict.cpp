// What the cost model predicts for machines of many cores, as the table of docs/performance.md.
#include <cstdint>
#include <cstdio>

#include "cost.h"
#include "rnnfast.h"

namespace {

using rnnfast::Cell;
using rnnfast::Division;

struct Case {
  const char* name;
  Cell cell;
  int64_t steps, batch, inputs, units, layers = 1;
};

constexpr Case cases[] = {{"GRU 100,1,64,64", Cell::gru, 100, 1, 64, 64},
                          {"LSTM 100,1,128,256", Cell::lstm, 100, 1, 128, 256},
                          {"LSTM 100,1,64,64, 4 layers", Cell::lstm, 100, 1, 64, 64, 4},
                          {"LSTM 50,1,512,512", Cell::lstm, 50, 1, 512, 512},
                          {"LSTM 50,16,256,256", Cell::lstm, 50, 16, 256, 256},
                          {"GRU 20,128,64,128", Cell::gru, 20, 128, 64, 128},
                          {"LSTM 50,64,512,512", Cell::lstm, 50, 64, 512, 512},
                          {"LSTM 25,64,1024,1024", Cell::lstm, 25, 64, 1024, 1024}};

constexpr int machines[] = {2, 8, 64};     // threads
constexpr double meeting = 30, far = 150;  // ns for each thread that meets, where cores share a cache and where not
constexpr rnnfast::Kernel kernel{32, 8};

rnnfast::Forward pass_of(const Case& c) {
  rnnfast::Forward pass;
  pass.spec.cell = c.cell;
  pass.spec.input_size = c.inputs;
  pass.spec.hidden_size = c.units;
  pass.spec.num_layers = c.layers;
  pass.steps = c.steps;
  pass.batch = c.batch;
  return pass;
}

void print(const Case& c, int most) {
  const rnnfast::Forward pass = pass_of(c);
  const rnnfast::Crew crew = rnnfast::fastest_crew(most, meeting, pass, kernel);
  const double gain =
      rnnfast::predicted_step({1, Division::recurrence, 0}, pass, kernel) / rnnfast::predicted_step(crew, pass, kernel);
  const int64_t panels = c.units / kernel.lanes, bytes = 4 * gates_of(c.cell) * c.units * c.units;
  const bool by_rows = rnnfast::splits_rows(crew.threads, c.batch, panels, bytes);
  const char* const split = crew.division == Division::inputs   ? "inputs"
                            : crew.division == Division::layers ? "layers"
                            : by_rows                           ? "rows"
                                                                : "units";
  if (crew.threads == 1)
    std::printf(" 1 |");
  else
    std::printf(" %d, %s: %.1f |", crew.threads, split, gain);
}

// Steps that are worth a second thread, but not on cores that are far from each other.
constexpr Case short_steps{"RNN 100,4,128,128", Cell::rnn, 100, 4, 128, 128};

}  // namespace

int main() {
  const rnnfast::Forward pass = pass_of(short_steps);
  if (rnnfast::fastest_crew(2, meeting, pass, kernel).threads != 2) return 1;
  if (rnnfast::fastest_crew(2, far, pass, kernel).threads != 1) return 1;
  for (const Case& c : cases) {
    std::printf("| %s |", c.name);
    for (int most : machines) print(c, most);
    std::printf("\n");
  }
}
