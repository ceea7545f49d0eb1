// Passes of layers with options, for their digests: the same bits on every instruction set and number of threads.
#pragma once

#include <functional>
#include <memory>

#include "memory.h"
#include "pass.h"

namespace rnnfast {

// What a pass has besides the sizes below: set in the spec and in the call.
struct OptionCase {
  const char* name;
  Cell cell;
  std::function<void(Spec&)> set;
  double grad_clip = 0;
};

inline std::vector<OptionCase> option_cases() {
  const Activation hard{Function::hard_sigmoid, 0.2, 0.5}, elu{Function::elu, 0.7, 0}, soft{Function::softsign, 0, 0};
  const auto activations = [=](Spec& s) { s.activations[0] = {hard, elu, soft}, s.activations[1] = {{}, soft, elu}; };
  return {
      {"elu", Cell::rnn, [=](Spec& s) { s.activations[0].gate = elu, s.clip = 0.7; }, 0.5},
      {"zoneout", Cell::rnn, [](Spec& s) { s.zoneout_h = 0.3; }},
      {"peepholes", Cell::lstm, [](Spec& s) { s.peepholes = true, s.clip = 0.9; }},
      {"coupled", Cell::lstm, [=](Spec& s) { s.peepholes = s.coupled_gates = true, activations(s); }, 0.4},
      {"projected", Cell::lstm, [](Spec& s) { s.proj_size = 9; }},
      {"normalized", Cell::lstm, [](Spec& s) { s.layer_norm = true; }},
      {"reset before", Cell::gru, [](Spec& s) { s.reset_after = false; }},
      {"normalized", Cell::gru, [](Spec& s) { s.layer_norm = true; }, 0.3},
      {"zoneout", Cell::gru, [=](Spec& s) { s.zoneout_h = 0.4, activations(s); }},
  };
}

// Arrays of numbers, which live as long as this does.
template <class T> class Pool {
 public:
  T* take(int64_t size) {
    arrays_.emplace_back(new std::vector<T>(static_cast<size_t>(size)));
    return arrays_.back()->data();
  }
  T* drawn(int64_t size) {
    T* array = take(size);
    for (int64_t j = 0; j < size; ++j) array[j] = numbers_.template next<T>();
    return array;
  }
  template <class Use> void each(const Use& use) const {
    for (const auto& array : arrays_) use(*array);
  }

 private:
  Numbers numbers_{7, 0};
  std::vector<std::unique_ptr<std::vector<T>>> arrays_;
};

// Every parameter's array of one layer and direction, made by `make(size)`.
template <class Void, class Make> Parameters<Void> parameters_of(const Spec& s, int64_t layer, const Make& make) {
  const int64_t units = units_of(s, layer), outputs = outputs_of(s, layer), rows = gates_of(s.cell) * units;
  Parameters<Void> p;
  p.weight_ih = make(rows * inputs_of(s, layer)), p.weight_hh = make(rows * outputs);
  p.bias_ih = make(rows), p.bias_hh = make(rows);
  if (s.proj_size) p.weight_hr = make(outputs * units);
  if (s.peepholes) p.weight_ch = make(3 * units);
  if (s.layer_norm) p.weight_ln_ih = make(rows), p.weight_ln_hh = make(rows);
  if (s.layer_norm && has_c(s.cell)) p.weight_ln_c = make(units), p.bias_ln_c = make(units);
  return p;
}

// Forward and backward; gives every array that they wrote to `use`.
template <class T, class Use>
void run_options(const KernelTable& table, const OptionCase& option, int64_t steps, int64_t batch, int threads,
                 const Use& use) {
  Spec spec;
  spec.cell = option.cell, spec.dtype = sizeof(T) == 4 ? Dtype::float32 : Dtype::float64;
  spec.input_size = 5, spec.hidden_size = 19, spec.num_layers = 2;
  spec.num_directions = batch < 8 ? 2 : 1;  // threads share the rows of one direction, but have one each of two
  option.set(spec);
  const int64_t directions = spec.num_directions, cells = 2 * directions, outputs = outputs_of(spec, 0),
                states = batch * outputs, cs = batch * spec.hidden_size;
  Pool<T> in, out;
  std::vector<Weights> weights;
  std::vector<WeightGradients> gradients;
  std::vector<void*> per_step;
  for (int64_t n = 0; n < cells; ++n) {
    weights.push_back(parameters_of<const void>(spec, n / directions, [&](int64_t size) { return in.drawn(size); }));
    gradients.push_back(parameters_of<void>(spec, n / directions, [&](int64_t size) { return out.take(size); }));
    per_step.push_back(out.take(steps * states));
  }
  std::vector<uint8_t> mask, reset, keeps;
  for (int64_t j = 0; j < steps * batch; ++j) mask.push_back(j % 5 != 3), reset.push_back(j % 11 == 7);
  for (int64_t j = 0; j < steps * cs; ++j) keeps.push_back(j % 3 == 1);
  const std::vector<const uint8_t*> keep(static_cast<size_t>(cells), keeps.data());
  const std::vector<const void*> factors(static_cast<size_t>(cells), in.drawn(states));
  const auto view = [=](T* data, int64_t features) { return View<void>{data, batch * features, features}; };
  const auto input = [=](const T* data, int64_t features) { return Input{data, batch * features, features}; };

  Forward f;
  f.spec = spec, f.steps = steps, f.batch = batch, f.mask = mask.data(), f.reset = reset.data();
  f.reset_to_initial = f.carry = true;
  f.weights = weights.data(), f.x = input(in.drawn(steps * batch * spec.input_size), spec.input_size);
  f.y = view(out.take(steps * directions * states), directions * outputs);
  f.h0 = in.drawn(cells * states), f.hn = out.take(cells * states);
  if (has_c(spec.cell)) f.c0 = in.drawn(cells * cs), f.cn = out.take(cells * cs);
  if (spec.zoneout_h > 0) f.zoneout_h_masks = keep.data();
  f.recurrent_masks = factors.data();
  f.gates = view(out.take(steps * directions * gates_of(spec.cell) * cs),
                 directions * gates_of(spec.cell) * spec.hidden_size);
  f.threads = threads;
  const Memory tape(tape_bytes(table, f));
  f.tape = tape.data();
  forward(table, f);

  Backward b;
  b.pass = &f, b.grad_y = input(in.drawn(steps * directions * states), directions * outputs),
  b.grad_hn = in.drawn(cells * states);
  b.grad_x = view(out.take(steps * batch * spec.input_size), spec.input_size), b.grad_h0 = out.take(cells * states);
  if (has_c(spec.cell)) b.grad_cn = in.drawn(cells * cs), b.grad_c0 = out.take(cells * cs);
  b.grad_weights = gradients.data(), b.per_step = per_step.data(), b.grad_clip = option.grad_clip;
  b.threads = threads;
  backward(table, b);
  out.each(use);
}

}  // namespace rnnfast
