// One unit of a cell at one step, forward and backward: the equations of docs/math.md and docs/options.
#pragma once

#include <array>
#include <limits>

#include "plain_math.h"

namespace rnnfast {

// What the equations take for a unit: the sums, and then the arguments of the activations. LSTM: i f g o. GRU: r z, and
// the candidate's sums over x and over h, which meet at r; then its argument and the latter.
template <class T> using PlainColumns = std::array<T, 4>;

// Which column the sums of gate g over x and over h go to.
inline int64_t x_column(Cell, int64_t g) { return g; }
inline int64_t h_column(Cell cell, int64_t g) { return cell == Cell::gru && g == 2 ? 3 : g; }

// Whether the kernels take the cell's general form. It differs from the other in what becomes of zeros and infinities:
// gradients past the cell are added even where there are none, and relu's slope is a factor.
inline bool is_general(const Spec& s) {
  const auto is = [](const Activation& a, Function standard) {
    return a.function == Function::standard || a.function == standard;
  };
  for (int64_t d = 0; d < s.num_directions; ++d) {
    const Activations& a = s.activations[d];
    if (s.cell == Cell::rnn && !is(a.gate, Function::tanh) && a.gate.function != Function::relu) return true;
    if (s.cell != Cell::rnn && !(is(a.gate, Function::sigmoid) && is(a.candidate, Function::tanh))) return true;
    if (s.cell == Cell::lstm && !is(a.output, Function::tanh)) return true;
  }
  return s.clip > 0 || s.peepholes || s.coupled_gates || (s.cell == Cell::gru && !s.reset_after) || s.zoneout_h > 0 ||
         s.zoneout_c > 0 || s.layer_norm;
}

template <class T> class PlainCell {
 public:
  using Columns = PlainColumns<T>;
  struct State {
    T h = 0, c = 0;
  };

  PlainCell(const PlainMath<T>& math, const Spec& spec, int64_t direction)
      : general(is_general(spec)),
        reset_before(spec.cell == Cell::gru && !spec.reset_after),
        math_(math),
        spec_(spec),
        gate_(or_else(spec.activations[direction].gate, spec.cell == Cell::rnn ? Function::tanh : Function::sigmoid)),
        candidate_(or_else(spec.activations[direction].candidate, Function::tanh)),
        output_(or_else(spec.activations[direction].output, Function::tanh)),
        clip_(spec.clip > 0 ? static_cast<T>(spec.clip) : std::numeric_limits<T>::infinity()) {}

  // Of a gate (in an RNN, of its h), and of c on its way to h.
  T gate(T x) const { return value(gate_, x); }
  T d_gate(T x) const { return slope(gate_, x); }
  T output(T x) const { return value(output_, x); }
  T d_output(T x) const { return slope(output_, x); }

  // Turns the sums `a` into the arguments of the activations, and gives the gates' values. `p`: peepholes of i f o.
  State forward(Columns& a, State prev, const std::array<T, 3>& p, Columns& gates) const {
    switch (spec_.cell) {
      case Cell::rnn:
        gates[0] = gate(a[0]);
        return {gates[0], T(0)};
      case Cell::lstm: {
        if (spec_.peepholes) a[0] = math_.fma(p[0], prev.c, a[0]), a[1] = math_.fma(p[1], prev.c, a[1]);
        const T i = gate(a[0]), f = spec_.coupled_gates ? 1 - i : gate(a[1]), g = value(candidate_, a[2]);
        const T c = math_.fma(f, prev.c, i * g);
        if (spec_.peepholes) a[3] = math_.fma(p[2], c, a[3]);
        gates = {i, f, g, gate(a[3])};
        return {gates[3] * output(c), c};
      }
      default: {
        const T r = gate(a[0]), z = gate(a[1]);
        a[2] = reset_before ? a[2] + a[3] : math_.fma(r, a[3], a[2]);
        const T n = value(candidate_, a[2]);
        gates = {r, z, n, T(0)};
        return {math_.fma(1 - z, n, z * prev.h), T(0)};
      }
    }
  }

  // From the arguments `a` and the gradient `d` by the new state: the gradients `da` of the columns, `d_p` of the
  // peepholes, and that by the state before, but for the part that goes through the columns. Where r is applied before
  // the product, da[0] waits for it.
  State backward(const Columns& a, State prev, State d, const std::array<T, 3>& p, Columns& da,
                 std::array<T, 3>& d_p) const {
    switch (spec_.cell) {
      case Cell::rnn:
        da[0] = gate_.function == Function::relu && !general ? (a[0] > 0 ? d.h : T(0)) : d.h * d_gate(a[0]);
        return {};
      case Cell::lstm: {
        const T i = gate(a[0]), f = spec_.coupled_gates ? 1 - i : gate(a[1]), g = value(candidate_, a[2]);
        const T o = gate(a[3]), c = math_.fma(f, prev.c, i * g);
        da[3] = d.h * output(c) * d_gate(a[3]);
        T d_c = math_.fma(d.h * o, d_output(c), d.c);
        if (spec_.peepholes) d_c = math_.fma(da[3], p[2], d_c);
        const T d_f = d_c * prev.c;
        da[0] = (spec_.coupled_gates ? d_c * g - d_f : d_c * g) * d_gate(a[0]);
        da[1] = spec_.coupled_gates ? T(0) : d_f * d_gate(a[1]);
        da[2] = d_c * i * slope(candidate_, a[2]);
        T d_c_prev = d_c * f;
        if (spec_.peepholes) {
          d_c_prev = math_.fma(da[0], p[0], math_.fma(da[1], p[1], d_c_prev));
          d_p = {da[0] * prev.c, da[1] * prev.c, da[3] * c};
        }
        return {T(0), d_c_prev};
      }
      default: {
        const T r = gate(a[0]), z = gate(a[1]), n = value(candidate_, a[2]);
        const T d_n = d.h * (1 - z) * slope(candidate_, a[2]);
        da[0] = d_n * a[3] * d_gate(a[0]);
        da[1] = d.h * (prev.h - n) * d_gate(a[1]);
        da[2] = d_n;
        da[3] = reset_before ? d_n : d_n * r;
        return {d.h * z, T(0)};
      }
    }
  }

  const bool general, reset_before;

 private:
  static Activation or_else(Activation a, Function standard) {
    if (a.function == Function::standard) a.function = standard;
    return a;
  }
  // Clipping is flat beyond the bound; NaN stays NaN.
  T value(const Activation& f, T x) const { return math_.value(f, math_.clamp(x, -clip_, clip_)); }
  T slope(const Activation& f, T x) const {
    const T inside = math_.clamp(x, -clip_, clip_);
    return x == inside ? math_.slope(f, x) : x != x ? x : T(0);
  }

  const PlainMath<T>& math_;
  const Spec& spec_;
  const Activation gate_, candidate_, output_;
  const T clip_;
};

}  // namespace rnnfast
