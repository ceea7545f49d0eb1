// What the three cells have in common.
//
// A cell is its pointwise mathematics and a few numbers:
//   gates      blocks of H rows in weight_ih and weight_hh
//   columns    sums that the pointwise function takes for a unit; the engine computes them as products
//   x_columns  the column that gate g's share of weight_ih x goes to;  h_columns the same for weight_hh h
//   saved      values kept for backward, per unit and step; where there is a c, it is the last of them
//   has_c      whether the state is (h, c); backward_needs_h, backward_needs_h_prev: whether backward reads these
// `forward` gives the new state from the columns `a` and the state before, of one vector or of several. `backward`
// takes the total gradient `d` by the new state, fills the gradients `da` of the columns and returns the gradient by
// the state before, but for the part that goes through the columns: the engine adds that.
//
// `forward_general` and `backward_general` are the same with everything that a `Unit` may have. They keep the arguments
// of the activations (`saved_general` values) in place of their values, because that is what the derivatives are
// functions of.
#pragma once

#include "../rnnfast.h"
#include "activations.h"

namespace rnnfast {
namespace {

template <class V> struct State {
  V h, c;
};

// What a unit has besides its columns.
template <class T> struct Unit {
  Curve<T> gate, candidate, output;
  T clip;              // infinity: none
  bool coupled_gates;  // LSTM
  bool reset_after;    // GRU
  const T* peepholes;  // LSTM: [3][lane], or null

  RNNFAST_NOINLINE Unit(const Spec& spec, int direction, const T* peephole_weights)
      : gate(spec.activations[direction].gate, spec.cell == Cell::rnn ? Function::tanh : Function::sigmoid),
        candidate(spec.activations[direction].candidate, Function::tanh),
        output(spec.activations[direction].output, Function::tanh),
        clip(spec.clip > 0 ? static_cast<T>(spec.clip) : static_cast<T>(__builtin_inf())),
        coupled_gates(spec.coupled_gates),
        reset_after(spec.reset_after),
        peepholes(peephole_weights) {}

  vec<T> value(const Curve<T>& curve, vec<T> x) const { return curve.value(clamp(x, -clip, clip)); }
  // Clipping is flat beyond the bound.
  vec<T> slope(const Curve<T>& curve, vec<T> x) const {
    const vec<T> inside = clamp(x, -clip, clip), d = curve.slope(inside);
    return x == inside ? d : (x != x ? x : vec<T>{});
  }
  vec<T> peephole(int gate_number) const { return load(peepholes + gate_number * lanes<T>); }
};

template <int... Index> struct Columns {
  static constexpr int count = sizeof...(Index);
  static constexpr RNNFAST_INLINE int at(int g) {
    constexpr int index[] = {Index...};
    return index[g];
  }
};

}  // namespace
}  // namespace rnnfast
