// One pass of one case: its arrays, each behind guard pages, and the structs that the C++ interface takes.
//
// To test a new option: a field of Case, its place in describe(), Inputs or Outputs and Pass, its meaning in plain.h,
// and in draw.h, from where guard.cpp and fuzz.cpp have their options.
#pragma once

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <utility>
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
  no_hn = 2048,
  no_cn = 4096,
};
constexpr unsigned optionals = 13;

// How a [T, B, features] array lies in memory.
enum class Layout : int { steps_first, batch_first, backwards, by_starts };
constexpr int layouts = 4;

struct Case {
  Cell cell = Cell::rnn;
  Dtype dtype = Dtype::float32;
  int64_t steps = 1, batch = 1, input_size = 1, hidden_size = 1, layers = 1, directions = 1;
  std::vector<int64_t> lengths;  // [B], or empty: all T
  double dropout = 0;
  int64_t segments = 0;
  unsigned without = 0;
  Layout layout = Layout::steps_first;
  int64_t gap = 0;         // elements between rows that belong to nobody
  bool inference = false;  // no tape, and so no backward
  bool in_place = false;   // hn is h0, cn is c0; at inference
  bool packed = false;     // weights packed before
  int threads = 1;         // exactly so many
  uint64_t numbers = 1;    // seed of the values
  bool corners = false;    // few values, most of them 0: sums meet the corners of activations and of clip
  int specials = 0;        // of 256 values, how many are NaN, infinite, denormal, huge or a negative zero

  // Options of the spec, as in rnnfast.h.
  std::vector<int64_t> hidden_sizes;
  int64_t proj_size = 0;
  bool reset_after = true, peepholes = false, coupled_gates = false, layer_norm = false;
  double clip = 0, zoneout_h = 0, zoneout_c = 0;
  Activations activations[2];

  // Options of the call.
  int masked = 0, resets = 0;  // of 256 rows at a step, about how many are masked, or behind a reset; 0: null
  bool reset_to_initial = false, carry = false;
  unsigned input_masks = 0;                             // a bit for each layer that has one
  bool recurrent_masks = false, zoneout_masks = false;  // the latter where there is zoneout
  bool cells_wanted = false, gates_wanted = false;
  double grad_clip = 0;
  uint64_t unwanted = 0;  // bit n of it: the parameter's gradient that is number n of all layers

  bool lstm() const { return cell == Cell::lstm; }
  bool has(Optional part) const { return !(without & part); }
  bool trains() const { return !inference && !in_place; }
  bool zones_out() const { return zoneout_h > 0 || zoneout_c > 0; }
  // Without the array that it points to where layers have sizes of their own.
  Spec spec(const int64_t* sizes) const {
    Spec s;
    s.cell = cell, s.dtype = dtype, s.input_size = input_size, s.hidden_size = hidden_size;
    s.num_layers = layers, s.num_directions = directions;
    s.hidden_sizes = hidden_sizes.empty() ? nullptr : sizes;
    s.proj_size = proj_size, s.reset_after = reset_after, s.peepholes = peepholes, s.coupled_gates = coupled_gates;
    s.layer_norm = layer_norm, s.clip = clip, s.zoneout_h = zoneout_h, s.zoneout_c = zoneout_c;
    std::copy(activations, activations + 2, s.activations);
    return s;
  }
  Spec spec() const { return spec(hidden_sizes.data()); }

  int64_t count() const { return layers * directions; }
  int64_t width() const { return directions * outputs_of(spec(), layers - 1); }
  int64_t cells_width() const { return directions * units_of(spec(), layers - 1); }
  // Of an array of the states of all layers; `size_of` is units_of or outputs_of.
  int64_t state_size(int64_t (*size_of)(const Spec&, int64_t)) const {
    int64_t size = 0;
    for (int64_t l = 0; l < layers; ++l) size += directions * batch * size_of(spec(), l);
    return size;
  }
};

inline void make_relu(Case& c) {
  for (Activations& a : c.activations) a.gate.function = Function::relu;
}

// The arrays of one layer and direction, in the order of the struct; -1: there is none.
constexpr size_t parameters = 10;
inline std::array<int64_t, parameters> parameter_sizes(const Case& c, int64_t layer) {
  const Spec s = c.spec();
  const int64_t units = units_of(s, layer), outputs = outputs_of(s, layer), rows = gates_of(s.cell) * units;
  const int64_t norm = c.layer_norm ? rows : -1, norm_c = c.layer_norm && c.lstm() ? units : -1;
  const int64_t bias = c.has(no_bias) ? rows : -1;
  return {rows * inputs_of(s, layer),   rows * outputs, bias, bias,   c.proj_size ? outputs * units : -1,
          c.peepholes ? 3 * units : -1, norm,           norm, norm_c, norm_c};
}

// Leaves out what does not go with something else that the case has: dispatch.cpp would refuse it.
inline void drop_excluded(Case& c) {
  if (!c.lstm()) c.proj_size = 0, c.peepholes = c.coupled_gates = c.cells_wanted = false, c.zoneout_c = 0;
  if (c.cell != Cell::gru) c.reset_after = true;
  if (c.cell == Cell::rnn) c.layer_norm = false;
  if (c.layer_norm) {
    c.reset_after = true, c.proj_size = 0, c.peepholes = c.coupled_gates = false, c.zoneout_h = c.zoneout_c = 0;
  }
  if (c.proj_size) c.hidden_sizes.clear(), c.zoneout_h = c.zoneout_c = 0;
  if (!c.reset_after || c.layer_norm || c.recurrent_masks) c.segments = 0;
  if (!c.lengths.empty()) c.masked = 0;
  if (!c.hidden_size) c.hidden_sizes.clear();
}

inline std::string describe(const Case& c) {
  std::string all;
  const auto add = [&](const char* format, auto... values) {
    char text[200];
    std::snprintf(text, sizeof text, format, values...);
    all += text;
  };
  // What is not the default.
  const auto option = [&](const char* name, double value, double standard = 0) {
    if (value != standard) add(" %s %g", name, value);
  };
  const char* const names[] = {"rnn", "lstm", "gru"};
  add("%s f%d T%" PRId64 " B%" PRId64 " I%" PRId64 " H%" PRId64 " L%" PRId64 " D%" PRId64 " numbers %" PRIu64,
      names[static_cast<int>(c.cell)], c.dtype == Dtype::float32 ? 32 : 64, c.steps, c.batch, c.input_size,
      c.hidden_size, c.layers, c.directions, c.numbers);
  option("dropout", c.dropout), option("segments", static_cast<double>(c.segments));
  if (c.without) add(" without %x", c.without);
  option("layout", static_cast<int>(c.layout)), option("gap", static_cast<double>(c.gap));
  option("inference", c.inference), option("in_place", c.in_place), option("packed", c.packed);
  option("threads", c.threads, 1), option("corners", c.corners);
  option("specials", c.specials);
  option("proj_size", static_cast<double>(c.proj_size)), option("reset_after", c.reset_after, 1);
  option("peepholes", c.peepholes), option("coupled_gates", c.coupled_gates), option("layer_norm", c.layer_norm);
  option("clip", c.clip), option("zoneout_h", c.zoneout_h), option("zoneout_c", c.zoneout_c);
  option("masked", c.masked), option("resets", c.resets), option("reset_to_initial", c.reset_to_initial);
  option("carry", c.carry), option("input_masks", c.input_masks), option("recurrent_masks", c.recurrent_masks);
  option("zoneout_masks", c.zoneout_masks), option("cells", c.cells_wanted), option("gates", c.gates_wanted);
  option("grad_clip", c.grad_clip);
  if (c.unwanted) add(" unwanted %" PRIx64, c.unwanted);
  for (int d = 0; d < c.directions; ++d)
    for (const Activation& a : {c.activations[d].gate, c.activations[d].candidate, c.activations[d].output})
      if (a.function != Function::standard) add(" %d:%d(%g,%g)", d, static_cast<int>(a.function), a.alpha, a.beta);
  for (const auto& [name, list] : {std::pair{"sizes", &c.hidden_sizes}, {"lengths", &c.lengths}}) {
    if (!list->empty()) add(" %s", name);
    for (int64_t value : *list) add(" %" PRId64, value);
  }
  return all;
}

// --- values ---

class Numbers {
 public:
  Numbers(uint64_t seed, int specials, bool corners = false)
      : state_(seed), specials_(static_cast<uint64_t>(specials)), corners_(corners) {}

  // Multiples of 1/256 in [-1/2, 1/2): exact in both dtypes, from integers alone.
  template <class T> T next() {
    const uint64_t bits = step();
    if (specials_ && (bits >> 40) % 256 < specials_) return special<T>();
    if (corners_) return bits >> 56 & 7 ? T(0) : static_cast<T>(static_cast<int>(bits >> 62) - 1) / 4;
    return static_cast<T>(static_cast<int>(bits >> 56) - 128) / 256;
  }
  template <class T> void fill(const Guarded<T>& array) {
    for (T& value : array) value = next<T>();
  }
  // In [0, n).
  int64_t below(int64_t n) { return static_cast<int64_t>(step() >> 40) % n; }

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
  bool corners_;
};

// --- arrays ---

// A [T, B, features] array with gaps between its rows. By starts, two steps at a time have changed places.
template <class T> struct Sequence {
  Guarded<T> memory;
  Guarded<int64_t> starts;
  View<T> view;

  Sequence() = default;
  Sequence(const Case& c, int64_t features, Side side, unsigned char fill) {
    const int64_t row = features + c.gap, rows = c.steps * c.batch;
    memory = Guarded<T>(rows ? (rows - 1) * row + features : 0, side, fill);
    const bool steps_first = c.layout != Layout::batch_first;
    view = {memory.data(), row * (steps_first ? c.batch : 1), row * (steps_first ? 1 : c.steps), nullptr};
    if (c.layout == Layout::by_starts) {
      starts = Guarded<int64_t>(c.steps, side, 0);
      for (int64_t t = 0; t < c.steps; ++t)
        starts[static_cast<size_t>(t)] = std::min(t ^ 1, t % 2 ? t : c.steps - 1) * c.batch;
      starts.protect();
      view.starts = starts.data(), view.stride_t = 0;
    }
    if (c.layout == Layout::backwards && rows) {
      view.data = memory.data() + (c.steps - 1) * view.stride_t;
      view.stride_t = -view.stride_t;
    }
  }
  operator Input() const { return {view.data, view.stride_t, view.stride_b, view.starts}; }
  operator Output() const { return {view.data, view.stride_t, view.stride_b, view.starts}; }
};

template <class T> struct Inputs {
  Guarded<int64_t> lengths, hidden_sizes;
  Guarded<uint8_t> mask, reset;
  std::vector<Guarded<T>> arrays;  // parameters and masks
  std::vector<Guarded<uint8_t>> keeps;
  Guarded<Weights> weights;
  Guarded<const void*> input_masks, recurrent_masks;
  Guarded<const uint8_t*> zoneout_h_masks, zoneout_c_masks;
  Sequence<T> x, grad_y;
  Guarded<T> h0, c0, grad_hn, grad_cn;

  Inputs(const Case& c, Side side) : numbers_(c.numbers, c.specials, c.corners), side_(side) {
    const Spec spec = c.spec();
    weights = Guarded<Weights>(c.count(), side, 0);
    for (int64_t n = 0; n < c.count(); ++n) {
      const void* p[parameters] = {};
      const auto sizes = parameter_sizes(c, n / c.directions);
      for (size_t j = 0; j < parameters; ++j)
        if (sizes[j] >= 0) p[j] = drawn(sizes[j]);
      weights[static_cast<size_t>(n)] = {p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9]};
    }
    weights.protect();
    for (auto [sequence, features] : {std::pair{&x, c.input_size}, {&grad_y, c.width()}}) {
      *sequence = Sequence<T>(c, features, side, 0);
      numbers_.fill(sequence->memory);
      sequence->memory.protect();
    }
    for (auto [h, cell] : {std::pair{&h0, &c0}, {&grad_hn, &grad_cn}}) {
      drawn(c.state_size(outputs_of)), *h = std::move(arrays.back());
      drawn(c.state_size(units_of)), *cell = std::move(arrays.back());
    }
    copy(c.lengths, lengths), copy(c.hidden_sizes, hidden_sizes);
    mask = flags(c.steps * c.batch, 256 - c.masked), reset = flags(c.steps * c.batch, c.resets);
    draw_masks(c, spec);
  }

 private:
  const T* drawn(int64_t size) {
    arrays.emplace_back(size, side_, 0);
    numbers_.fill(arrays.back());
    arrays.back().protect();
    return arrays.back().data();
  }
  // About `share` of 256 of them are set.
  Guarded<uint8_t> flags(int64_t size, int64_t share) {
    Guarded<uint8_t> array(size, side_, 0);
    for (uint8_t& flag : array) flag = numbers_.below(256) < share;
    array.protect();
    return array;
  }
  void copy(const std::vector<int64_t>& from, Guarded<int64_t>& to) const {
    to = Guarded<int64_t>(static_cast<int64_t>(from.size()), side_, 0);
    std::copy(from.begin(), from.end(), to.data());
    to.protect();
  }
  void draw_masks(const Case& c, const Spec& spec) {
    input_masks = Guarded<const void*>(c.layers, side_, 0);
    recurrent_masks = Guarded<const void*>(c.count(), side_, 0);
    zoneout_h_masks = Guarded<const uint8_t*>(c.count(), side_, 0);
    zoneout_c_masks = Guarded<const uint8_t*>(c.count(), side_, 0);
    for (int64_t l = 0; l < c.layers; ++l)
      if (c.input_masks >> l & 1) input_masks[static_cast<size_t>(l)] = drawn(c.batch * inputs_of(spec, l));
    for (int64_t n = 0; n < c.count(); ++n) {
      const int64_t layer = n / c.directions, units = c.steps * c.batch * units_of(spec, layer);
      if (c.recurrent_masks) recurrent_masks[static_cast<size_t>(n)] = drawn(c.batch * outputs_of(spec, layer));
      for (auto [masks, share] : {std::pair{&zoneout_h_masks, c.zoneout_h}, {&zoneout_c_masks, c.zoneout_c}}) {
        keeps.push_back(flags(c.zoneout_masks ? units : 0, static_cast<int64_t>(share * 256)));
        (*masks)[static_cast<size_t>(n)] = keeps.back().data();
      }
    }
    input_masks.protect(), recurrent_masks.protect(), zoneout_h_masks.protect(), zoneout_c_masks.protect();
  }

  Numbers numbers_;
  Side side_;
};

template <class T> struct Outputs {
  Sequence<T> y, grad_x, cells, gates;
  Guarded<T> hn, cn, grad_h0, grad_c0;
  std::vector<Guarded<T>> gradients, per_step;  // the former `parameters` of each layer and direction
  Guarded<WeightGradients> grad_weights;
  Guarded<void*> per_step_pointers;

  Outputs(const Case& c, Side side, unsigned char fill)
      : y(c, c.width(), side, fill),
        grad_x(c, c.input_size, side, fill),
        cells(c, c.cells_width(), side, fill),
        gates(c, gates_of(c.cell) * c.cells_width(), side, fill),
        grad_weights(c.count(), side, 0),
        per_step_pointers(c.count(), side, 0) {
    for (auto [h, cell] : {std::pair{&hn, &cn}, {&grad_h0, &grad_c0}}) {
      *h = Guarded<T>(c.state_size(outputs_of), side, fill);
      *cell = Guarded<T>(c.state_size(units_of), side, fill);
    }
    for (int64_t n = 0; n < c.count(); ++n) {
      void* p[parameters] = {};
      const auto sizes = parameter_sizes(c, n / c.directions);
      for (size_t j = 0; j < parameters; ++j) {
        gradients.emplace_back(std::max<int64_t>(sizes[j], 0), side, fill);
        const bool wanted = !(c.unwanted >> (gradients.size() - 1) % 64 & 1);
        if (sizes[j] >= 0 && wanted) p[j] = gradients.back().data();
      }
      grad_weights[static_cast<size_t>(n)] = {p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9]};
      per_step.emplace_back(c.steps * c.batch * outputs_of(c.spec(), n / c.directions), side, fill);
      per_step_pointers[static_cast<size_t>(n)] = per_step.back().data();
    }
    grad_weights.protect();
    per_step_pointers.protect();
  }

  // visit(name, array) for each array.
  template <class Visit> void each(const Visit& visit) const {
    visit("y", y.memory), visit("hn", hn), visit("cn", cn), visit("cells", cells.memory);
    visit("gates", gates.memory), visit("grad_x", grad_x.memory);
    visit("grad_h0", grad_h0), visit("grad_c0", grad_c0);
    for (size_t n = 0; n < gradients.size(); ++n) {
      const std::string number = std::to_string(n / parameters) + "." + std::to_string(n % parameters);
      visit(("grad_w" + number).c_str(), gradients[n]);
    }
    for (size_t n = 0; n < per_step.size(); ++n) visit(("per_step" + std::to_string(n)).c_str(), per_step[n]);
  }
};

// The structs of a call that reads these inputs and writes these outputs; tape, packed and interrupted are left null.
template <class T> struct Pass {
  Forward forward;
  Backward backward;

  Pass(const Case& c, const Inputs<T>& in, const Outputs<T>& out) {
    forward.spec = c.spec(in.hidden_sizes.data());
    forward.steps = c.steps, forward.batch = c.batch;
    forward.lengths = c.lengths.empty() ? nullptr : in.lengths.data();
    if (c.masked) forward.mask = in.mask.data();
    if (c.resets) forward.reset = in.reset.data();
    forward.reset_to_initial = c.reset_to_initial, forward.carry = c.carry;
    forward.weights = in.weights.data();
    forward.x = in.x;
    forward.y = out.y;
    if (c.has(no_hn) || c.in_place) forward.hn = out.hn.data();
    if (c.has(no_h0)) forward.h0 = c.in_place ? forward.hn : in.h0.data();
    if (c.lstm()) {
      if (c.has(no_cn) || c.in_place) forward.cn = out.cn.data();
      if (c.has(no_c0)) forward.c0 = c.in_place ? forward.cn : in.c0.data();
    }
    if (c.cells_wanted) forward.cells = out.cells;
    if (c.gates_wanted) forward.gates = out.gates;
    if (c.input_masks) forward.input_masks = in.input_masks.data();
    if (c.recurrent_masks) forward.recurrent_masks = in.recurrent_masks.data();
    if (c.zoneout_masks && c.zoneout_h > 0) forward.zoneout_h_masks = in.zoneout_h_masks.data();
    if (c.zoneout_masks && c.zoneout_c > 0) forward.zoneout_c_masks = in.zoneout_c_masks.data();
    forward.segments = c.segments;
    forward.dropout = c.dropout;
    forward.seed = 7;
    forward.threads = c.threads == 1 ? 1 : -c.threads;
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
    backward.grad_clip = c.grad_clip;
    backward.threads = c.threads == 1 ? 1 : -c.threads;
  }
};

}  // namespace rnnfast
