#include "cost.h"

#include <algorithm>
#include <cmath>

#include "rnnfast.h"
#include "threads.h"

namespace rnnfast {
namespace {

// Ns of a meeting for each thread: what is counted on at least, and more than was ever measured.
constexpr double near = 25, far = 5000;

// Multiply-adds of a vector in a nanosecond. Measured are 58 to 60 of a float32 with AVX2 and with AVX-512 in halves,
// 94 and 142 with AVX-512 in whole, for which this says 118.
double rate(Kernel kernel) { return kernel.vector_bytes == 64 && halves_vectors() ? 3.7 : 7.4; }

int64_t panels_of(int64_t units, Kernel kernel) {
  return std::max<int64_t>((units + kernel.lanes - 1) / kernel.lanes, 1);
}

// Ns that a thread waits for a line that another wrote, where they follow upon each other. Between near cores the
// hardware fetches them in time.
double line_wait(const Crew& crew) { return 0.4 * std::max(crew.meeting - near, 0.0); }

// Each weight that is read, where few rows share it, counts as so many multiply-adds.
constexpr double reading = 1.6;

// The first of two directions has a thread more where their number is odd.
int64_t team_of(const Crew& crew, const Spec& spec) {
  return (crew.threads + spec.num_directions - 1) / spec.num_directions;
}

// The sums over x of one row of a layer and direction, by a team that does not split the batch: ns of the slowest
// thread, where they split the panels and where they split the rows of a block.
struct InputProduct {
  double by_panels, by_rows;

  InputProduct(const Crew& crew, int64_t team, const Forward& pass, int64_t layer, Kernel kernel) {
    const int64_t gates = gates_of(pass.spec.cell), units = units_of(pass.spec, layer);
    const int64_t panels = panels_of(units, kernel);
    // A last panel with few units has its gates packed into fewer vectors.
    const int64_t last = gates > 1 ? gates * (units - (panels - 1) * kernel.lanes) : kernel.lanes;
    const int64_t all = gates * (panels - 1) + (last + kernel.lanes - 1) / kernel.lanes;
    const int64_t largest =
        crew.division == Division::inputs ? all : std::min(all, gates * ((panels + team - 1) / team));
    const double vector = static_cast<double>(inputs_of(pass.spec, layer)) / rate(kernel);
    // Those of a block, of which there are more only where their number does not matter.
    const int64_t steps = crew.division == Division::layers ? steps_behind(pass) : pass.steps;
    const auto rows = static_cast<double>(std::min<int64_t>(std::max<int64_t>(steps * pass.batch, 1), 64));
    by_panels = vector * static_cast<double>(largest) * (1 + reading / rows);
    // Sums by rows are read by other threads than wrote them, line by line.
    const auto lines = static_cast<double>(gates * panels * kernel.vector_bytes / 64);
    const double own = 1 / static_cast<double>(team);
    by_rows = vector * static_cast<double>(all) * (own + reading / rows) + lines * (1 - own) * line_wait(crew);
  }
  bool shared() const { return by_rows < 0.9 * by_panels; }
};

// A step of one layer and direction, on average over the layers.
class Work {
 public:
  Work(const Forward& pass, Kernel kernel)
      : pass_(pass),
        spec_(pass.spec),
        kernel_(kernel),
        batch_(pass.batch),
        panels_(panels_of(spec_.hidden_size, kernel)),
        steps_(static_cast<double>(std::max<int64_t>(pass.steps, 1) * spec_.num_layers)),
        in_blocks_(pass.steps > 1),
        training_(pass.tape) {
    const int64_t outputs = spec_.proj_size ? spec_.proj_size : spec_.hidden_size;
    const int64_t recurrent = gates_of(spec_.cell) * panels_ * kernel.lanes * outputs;
    recurrent_bytes_ = recurrent * (kernel.vector_bytes / kernel.lanes);
    int64_t by_x = 0;
    for (int64_t l = 0; l < layers(); ++l) by_x += gates_of(spec_.cell) * units_of(spec_, l) * inputs_of(spec_, l);
    const double by_h = static_cast<double>((step_work(spec_, 1) - by_x) / layers() * batch_);
    recurrence_ = products() * (by_h + reading * static_cast<double>(recurrent)) / (rate(kernel) * kernel.lanes);
    // Sleeping workers take some 40 us to begin, and more after a pause, which single steps come after; where calls
    // follow upon each other they take about one.
    start_ = (pass.in_succession ? 2e3 : in_blocks_ ? 45e3 : 65e3) * (training_ ? 2 : 1);
  }

  // Ns of a crew.
  double time(const Crew& crew) const {
    if (crew.division == Division::layers) return time_by_layers(crew);
    const bool alone = crew.division == Division::inputs;
    const int64_t team = std::max<int64_t>(crew.threads / spec_.num_directions, 1);
    const bool by_batch = !alone && team > 1 && splits_rows(team, batch_, panels_, recurrent_bytes_);
    const int64_t parts = by_batch ? batch_ : panels_;  // of which the largest share is
    const double share = alone ? 1 : static_cast<double>((parts + team - 1) / team) / static_cast<double>(parts);
    double inputs = 0;
    for (int64_t l = 0; l < layers(); ++l) {
      const InputProduct row(crew, by_batch ? 1 : team, pass_, l, kernel_);
      inputs += products() * row.by_panels * (by_batch ? share : 1);
      if (in_blocks_ && row.shared()) inputs -= row.by_panels - row.by_rows;
    }
    inputs *= static_cast<double>(batch_) / static_cast<double>(layers());
    const double work = inputs + recurrence_ * share;
    if (crew.threads == 1) return work * static_cast<double>(spec_.num_directions);
    // Where units are split a step costs the barrier, and what the others wrote is read line by line from other cores.
    // Where rows are split, or directions, some lines go from core to core all the same, because hardware fetches
    // beyond the end of a thread's part. On the way back there are more, by gates: every step has the parts of all.
    // And the pass has to get to the others, and its end back.
    const int of_step = alone ? 0 : by_batch || team == 1 ? 2 : 6;
    const double meetings = of_step + (training_ ? 4 * (gates_of(spec_.cell) + 1) : 0) + 12 / steps_;
    return work + crew.meeting * meetings * static_cast<double>(std::max<int64_t>(team, 2));
  }

  // The slowest layer sets the pace, and the last thread begins when the others have each done a block. What is below a
  // layer comes from another core, line by line.
  double time_by_layers(const Crew& crew) const {
    double inputs = 0;
    for (int64_t l = 0; l < layers(); ++l)
      inputs = std::max(inputs, InputProduct(crew, 1, pass_, l, kernel_).by_panels);
    const auto rows = static_cast<double>(batch_), lines = static_cast<double>(panels_ * kernel_.vector_bytes) / 64;
    const double step = recurrence_ + rows * (inputs + lines * line_wait(crew));
    const auto block = static_cast<double>(steps_behind(pass_)), steps = static_cast<double>(pass_.steps);
    const auto turns = static_cast<double>((layers() + crew.threads - 1) / crew.threads);
    const double rounds = turns * std::max<double>(std::ceil(steps / block), crew.threads) + crew.threads - 1;
    return (rounds * block * step + (rounds + 12) * crew.meeting * crew.threads) / steps_;
  }

  // The fastest crew of at most so many threads. Each should have as much to do as it takes to start, and there twice
  // as much. Those that wait for the end of another's recurrence, or for another's layers, should save a fifth.
  Crew fastest(int threads, double meeting) const {
    Crew best{1, Division::recurrence, meeting};
    const double one = time(best), recurrence = recurrence_ * static_cast<double>(spec_.num_directions);
    const double worth = one * steps_ / start_, worth_alone = (one - recurrence) * steps_ / start_;
    double least = one;
    for (int n = 2; n <= std::min<double>(threads, worth); ++n)
      for (Division division : {Division::recurrence, Division::inputs, Division::layers}) {
        const Crew crew{n, division, meeting};
        if (division == Division::inputs && (n > worth_alone || !can_divide_inputs(crew))) continue;
        if (division == Division::layers && (n > layers() || !can_divide_layers(pass_))) continue;
        const double ns = time(crew);
        if (ns < (division == Division::recurrence ? least : std::min(least, 0.8 * one))) best = crew, least = ns;
      }
    return best;
  }

  // Whether threads without a part of the recurrence have something to do.
  bool can_divide_inputs(Crew crew) const {
    crew.division = Division::inputs;
    return !training_ && shares_any(crew);
  }
  bool shares_any(const Crew& crew) const {
    const int64_t team = team_of(crew, spec_);
    if (!in_blocks_ || splits_rows(team, batch_, panels_, recurrent_bytes_)) return false;
    for (int64_t l = 0; l < layers(); ++l)
      if (shares_inputs(crew, pass_, l, kernel_)) return true;
    return false;
  }
  bool has_panels_for(const Crew& crew) const { return panels_ >= team_of(crew, spec_); }

 private:
  int64_t layers() const { return spec_.num_layers; }
  int products() const { return training_ ? 3 : 1; }  // with the same weights: two on the way back

  const Forward& pass_;
  const Spec& spec_;
  const Kernel kernel_;
  const int64_t batch_, panels_;
  int64_t recurrent_bytes_;
  double steps_;  // of all layers
  bool in_blocks_, training_;
  double recurrence_;  // ns of one thread
  double start_;       // ns of another one, once for the pass
};

}  // namespace

int useful_threads(int threads, const Forward& pass, Kernel kernel) {
  if (threads < 0) return -threads;
  if (threads <= 1 || !pass.batch || !pass.steps) return 1;
  return Work(pass, kernel).fastest(threads, near).threads;
}

Crew crew_now(int threads, int useful, const Forward& pass, Kernel kernel) {
  Crew crew{useful, Division::recurrence, near};
  if (useful <= 1) return crew;
  const Work work(pass, kernel);
  if (threads < 0) {  // tests reach every division by the sizes that they choose
    if (useful <= pass.spec.num_layers && can_divide_layers(pass) && pass.batch < useful)
      crew.division = Division::layers;
    else if (!work.has_panels_for(crew) && work.can_divide_inputs(crew))
      crew.division = Division::inputs;
    return crew;
  }
  // Where nothing depends on what a measurement finds there is none.
  const Crew farthest = work.fastest(useful, far);
  const bool same = farthest.threads == useful && farthest.division == Division::recurrence;
  const bool side_by_side = can_divide_layers(pass) && work.fastest(useful, near).division == Division::layers;
  if (same && !side_by_side && !work.shares_any(crew)) return crew;
  return work.fastest(useful, std::max(near, meeting_time(useful)));
}

double predicted_step(const Crew& crew, const Forward& pass, Kernel kernel) { return Work(pass, kernel).time(crew); }

Crew fastest_crew(int threads, double meeting, const Forward& pass, Kernel kernel) {
  return Work(pass, kernel).fastest(threads, meeting);
}

bool shares_inputs(const Crew& crew, const Forward& pass, int64_t layer, Kernel kernel) {
  return InputProduct(crew, team_of(crew, pass.spec), pass, layer, kernel).shared();
}

bool can_divide_layers(const Forward& pass) {
  const Spec& spec = pass.spec;
  const bool one_product = !spec.proj_size && !spec.layer_norm && (spec.cell != Cell::gru || spec.reset_after);
  return spec.num_layers > 1 && !spec.hidden_sizes && spec.num_directions == 1 && pass.steps > 1 && pass.batch &&
         one_product && !pass.tape;
}

int64_t steps_behind(const Forward& pass) {
  constexpr int64_t most_rows = 64, enough_steps = 4, blocks = 16;
  const int64_t most = std::max<int64_t>(most_rows / pass.batch, 1);
  return std::min(most, std::max(enough_steps, (pass.steps + blocks - 1) / blocks));
}

bool splits_rows(int64_t threads, int64_t batch, int64_t panels, int64_t recurrent_bytes) {
  constexpr int64_t enough_rows = 4, private_cache = 768 << 10;  // of most L2 of 1 MB and more
  return batch >= threads * enough_rows && (recurrent_bytes <= private_cache || panels < 2 * threads);
}

int64_t step_work(const Spec& spec, int64_t batch) {
  int64_t work = 0;
  for (int64_t l = 0; l < spec.num_layers; ++l)
    work += gates_of(spec.cell) * units_of(spec, l) * (inputs_of(spec, l) + outputs_of(spec, l)) * batch;
  return work;
}

}  // namespace rnnfast
