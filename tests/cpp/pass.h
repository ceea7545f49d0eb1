// One pass of one case: its arrays, each behind guard pages, and the structs that the C++ interface takes.
//
// To test a new option: a field of Case, its place in describe(), Inputs or Outputs and Pass, its meaning in plain.h,
// and a line in the lists of guard.cpp and in the decoder of fuzz.cpp.
#pragma once

#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "guarded.h"
#include "rnnfast.h"

namespace rnnfast {

// What may be left out of a call; each is a bit of Case::without.
enum Optional : unsigned {
  no_bias = 1,
  no_h0 = 2,
  no_c0 = 4,
  no_grad_y = 8,
  no_grad_hn = 16,
  no_grad_cn = 32,
  no_grad_x = 64,
  no_grad_h0 = 128,
  no_grad_c0 = 256,
  no_grad_weights = 512,
  no_per_step = 1024,
};
constexpr unsigned optionals = 11;

// How a [T, B, features] array lies in memory.
enum class Layout : int { steps_first, batch_first, backwards };
constexpr int layouts = 3;

struct Case {
  Cell cell = Cell::rnn;
  bool relu = false;  // of the RNN cell
  Dtype dtype = Dtype::float32;
  int64_t steps = 1, batch = 1, input_size = 1, hidden_size = 1, layers = 1, directions = 1;
  std::vector<int64_t> lengths;  // [B], or empty: all T
  double dropout = 0;
  int64_t segments = 0;
  unsigned without = 0;
  Layout layout = Layout::steps_first;
  int64_t gap = 0;        // elements between rows that belong to nobody
  bool in_place = false;  // hn is h0, cn is c0
  bool packed = false;    // weights packed before
  int threads = 1;        // exactly so many
  uint64_t numbers = 1;   // seed of the values
  int specials = 0;       // of 256 values, how many are NaN, infinite, denormal, huge or a negative zero

  bool lstm() const { return cell == Cell::lstm; }
  bool has(Optional part) const { return !(without & part); }
  int64_t width() const { return directions * hidden_size; }
  int64_t cells() const { return layers * directions; }
  int64_t rows() const { return gates_of(cell) * hidden_size; }
  int64_t inputs(int64_t number) const { return number < directions ? input_size : width(); }
  int64_t state_size() const { return cells() * batch * hidden_size; }
};

inline std::string describe(const Case& c) {
  const char* const names[] = {"rnn", "lstm", "gru"};
  char text[400];
  std::snprintf(text, sizeof text,
                "%s%s f%d T%" PRId64 " B%" PRId64 " I%" PRId64 " H%" PRId64 " L%" PRId64 " D%" PRId64
                " dropout %g segments %" PRId64 " without %x layout %d gap %" PRId64
                " in_place %d packed %d threads %d numbers %" PRIu64 " specials %d lengths",
                names[static_cast<int>(c.cell)], c.relu ? "-relu" : "", c.dtype == Dtype::float32 ? 32 : 64, c.steps,
                c.batch, c.input_size, c.hidden_size, c.layers, c.directions, c.dropout, c.segments, c.without,
                static_cast<int>(c.layout), c.gap, c.in_place, c.packed, c.threads, c.numbers, c.specials);
  std::string all = text;
  for (int64_t length : c.lengths) all += " " + std::to_string(length);
  return all;
}

// --- values ---

class Numbers {
 public:
  Numbers(uint64_t seed, int specials) : state_(seed), specials_(static_cast<uint64_t>(specials)) {}

  // Multiples of 1/256 in [-1/2, 1/2): exact in both dtypes, from integers alone.
  template <class T> T next() {
    const uint64_t bits = step();
    if (specials_ && (bits >> 40) % 256 < specials_) return special<T>();
    return static_cast<T>(static_cast<int>(bits >> 56) - 128) / 256;
  }
  template <class T> void fill(const Guarded<T>& array) {
    for (T& value : array) value = next<T>();
  }

 private:
  uint64_t step() { return state_ = state_ * 6364136223846793005u + 1442695040888963407u; }

  template <class T> T special() {
    using Limits = std::numeric_limits<T>;
    const T values[] = {Limits::quiet_NaN(),
                        Limits::infinity(),
                        -Limits::infinity(),
                        Limits::denorm_min(),
                        Limits::min() / 3,
                        T(1e20),
                        T(-1e20),
                        Limits::max(),
                        T(-0.0),
                        T(87.5),
                        T(-104.0),
                        T(709.5)};
    return values[(step() >> 56) % (sizeof values / sizeof values[0])];
  }

  uint64_t state_, specials_;
};

// --- arrays ---

// A [T, B, features] array with gaps between its rows.
template <class T> struct Sequence {
  Guarded<T> memory;
  View<T> view;

  Sequence() = default;
  Sequence(const Case& c, int64_t features, Side side, unsigned char fill) {
    const int64_t row = features + c.gap, rows = c.steps * c.batch;
    memory = Guarded<T>(rows ? (rows - 1) * row + features : 0, side, fill);
    const bool steps_first = c.layout != Layout::batch_first;
    view = {memory.data(), row * (steps_first ? c.batch : 1), row * (steps_first ? 1 : c.steps)};
    if (c.layout == Layout::backwards && rows) {
      view.data = memory.data() + (c.steps - 1) * view.stride_t;
      view.stride_t = -view.stride_t;
    }
  }
  operator Input() const { return {view.data, view.stride_t, view.stride_b}; }
  operator Output() const { return {view.data, view.stride_t, view.stride_b}; }
};

template <class T> struct Inputs {
  Guarded<int64_t> lengths;
  std::vector<Guarded<T>> parameters;  // w_ih, w_hh, b_ih, b_hh of each layer and direction
  Guarded<Weights> weights;
  Sequence<T> x, grad_y;
  Guarded<T> h0, c0, grad_hn, grad_cn;

  Inputs(const Case& c, Side side) {
    Numbers numbers(c.numbers, c.specials);
    const auto drawn = [&](int64_t size) {
      Guarded<T> array(size, side, 0);
      numbers.fill(array);
      array.protect();
      return array;
    };
    weights = Guarded<Weights>(c.cells(), side, 0);
    for (int64_t n = 0; n < c.cells(); ++n) {
      for (int64_t size : {c.rows() * c.inputs(n), c.rows() * c.hidden_size, c.rows(), c.rows()})
        parameters.push_back(drawn(size));
      const Guarded<T>* w = &parameters[static_cast<size_t>(n) * 4];
      const bool bias = c.has(no_bias);
      weights[static_cast<size_t>(n)] = {w[0].data(), w[1].data(), bias ? w[2].data() : nullptr,
                                         bias ? w[3].data() : nullptr};
    }
    weights.protect();
    for (auto [sequence, features] : {std::pair{&x, c.input_size}, {&grad_y, c.width()}}) {
      *sequence = Sequence<T>(c, features, side, 0);
      numbers.fill(sequence->memory);
      sequence->memory.protect();
    }
    for (Guarded<T>* state : {&h0, &c0, &grad_hn, &grad_cn}) *state = drawn(c.state_size());
    lengths = Guarded<int64_t>(static_cast<int64_t>(c.lengths.size()), side, 0);
    for (size_t b = 0; b < c.lengths.size(); ++b) lengths[b] = c.lengths[b];
    lengths.protect();
  }
};

template <class T> struct Outputs {
  Sequence<T> y, grad_x;
  Guarded<T> hn, cn, grad_h0, grad_c0;
  std::vector<Guarded<T>> gradients, per_step;
  Guarded<WeightGradients> grad_weights;
  Guarded<void*> per_step_pointers;

  Outputs(const Case& c, Side side, unsigned char fill)
      : y(c, c.width(), side, fill),
        grad_x(c, c.input_size, side, fill),
        grad_weights(c.cells(), side, 0),
        per_step_pointers(c.cells(), side, 0) {
    for (Guarded<T>* state : {&hn, &cn, &grad_h0, &grad_c0}) *state = Guarded<T>(c.state_size(), side, fill);
    for (int64_t n = 0; n < c.cells(); ++n) {
      for (int64_t size : {c.rows() * c.inputs(n), c.rows() * c.hidden_size, c.rows(), c.rows()})
        gradients.emplace_back(size, side, fill);
      const Guarded<T>* g = &gradients[static_cast<size_t>(n) * 4];
      const bool bias = c.has(no_bias);
      grad_weights[static_cast<size_t>(n)] = {g[0].data(), g[1].data(), bias ? g[2].data() : nullptr,
                                              bias ? g[3].data() : nullptr};
      per_step.emplace_back(c.steps * c.batch * c.hidden_size, side, fill);
      per_step_pointers[static_cast<size_t>(n)] = per_step.back().data();
    }
    grad_weights.protect();
    per_step_pointers.protect();
  }

  // visit(name, array) for each array.
  template <class Visit> void each(const Visit& visit) const {
    visit("y", y.memory), visit("hn", hn), visit("cn", cn), visit("grad_x", grad_x.memory);
    visit("grad_h0", grad_h0), visit("grad_c0", grad_c0);
    for (size_t n = 0; n < gradients.size(); ++n)
      visit((std::string("grad_w") + std::to_string(n / 4) + "." + std::to_string(n % 4)).c_str(), gradients[n]);
    for (size_t n = 0; n < per_step.size(); ++n) visit(("per_step" + std::to_string(n)).c_str(), per_step[n]);
  }
};

// The structs of a call that reads these inputs and writes these outputs; tape, packed and interrupted are left null.
template <class T> struct Pass {
  Forward forward;
  Backward backward;

  Pass(const Case& c, const Inputs<T>& in, const Outputs<T>& out) {
    Spec& spec = forward.spec;
    spec.cell = c.cell;
    if (c.relu)
      for (Activations& a : spec.activations) a.gate.function = Function::relu;
    spec.dtype = c.dtype;
    spec.input_size = c.input_size, spec.hidden_size = c.hidden_size;
    spec.num_layers = c.layers, spec.num_directions = c.directions;
    forward.steps = c.steps, forward.batch = c.batch;
    forward.lengths = c.lengths.empty() ? nullptr : in.lengths.data();
    forward.weights = in.weights.data();
    forward.x = in.x;
    forward.y = out.y;
    forward.hn = out.hn.data();
    if (c.has(no_h0)) forward.h0 = c.in_place ? forward.hn : in.h0.data();
    if (c.lstm()) {
      forward.cn = out.cn.data();
      if (c.has(no_c0)) forward.c0 = c.in_place ? forward.cn : in.c0.data();
    }
    forward.segments = c.segments;
    forward.dropout = c.dropout;
    forward.seed = 7;
    forward.threads = -c.threads;
    if (c.in_place) {
      for (const auto& [to, from] : {std::pair{&out.hn, &in.h0}, {&out.cn, &in.c0}})
        std::memcpy(to->data(), from->data(), from->size() * sizeof(T));
    }
    set_backward(c, in, out);
  }
  Pass(const Pass&) = delete;  // backward points to forward
  Pass& operator=(const Pass&) = delete;

 private:
  void set_backward(const Case& c, const Inputs<T>& in, const Outputs<T>& out) {
    backward.pass = &forward;
    if (c.has(no_grad_y)) backward.grad_y = in.grad_y;
    if (c.has(no_grad_hn)) backward.grad_hn = in.grad_hn.data();
    if (c.has(no_grad_x)) backward.grad_x = out.grad_x;
    if (c.has(no_grad_h0)) backward.grad_h0 = out.grad_h0.data();
    if (c.lstm() && c.has(no_grad_cn)) backward.grad_cn = in.grad_cn.data();
    if (c.lstm() && c.has(no_grad_c0)) backward.grad_c0 = out.grad_c0.data();
    if (c.has(no_grad_weights)) backward.grad_weights = out.grad_weights.data();
    if (c.has(no_per_step)) backward.per_step = out.per_step_pointers.data();
    backward.threads = -c.threads;
  }
};

}  // namespace rnnfast
