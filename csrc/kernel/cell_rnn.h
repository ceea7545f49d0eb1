// The plain recurrent cell of Elman (Finding structure in time, 1990): h = act(W x + b_ih + U h + b_hh).
#pragma once

#include "cell.h"

namespace rnnfast {
namespace {

template <class T> struct Rnn {
  using V = vec<T>;
  static constexpr int gates = 1, columns = 1, saved = 0, saved_general = 1;
  using x_columns = Columns<0>;
  using h_columns = Columns<0>;
  static constexpr bool has_c = false, backward_needs_h = true, backward_needs_h_prev = false;

  template <class Vs> static RNNFAST_INLINE State<Vs> forward(const Vs (&a)[1], State<Vs>, bool relu, Vs (&)[1]) {
    const Vs h = relu ? at_least(a[0], T(0)) : tanh(a[0]);
    return {h, h};
  }

  static RNNFAST_INLINE State<V> backward(const V (&)[1], V h, State<V>, State<V> d, bool relu, V (&da)[1]) {
    da[0] = relu ? (h > splat(T(0)) ? d.h : splat(T(0))) : d.h * d_tanh(h);
    return {splat(T(0)), splat(T(0))};
  }

  static State<V> forward_general(const V (&a)[1], State<V>, const Unit<T>& unit, V (&saved)[1], V (&gates)[1]) {
    const V h = unit.value(unit.gate, a[0]);
    saved[0] = a[0], gates[0] = h;
    return {h, h};
  }

  static State<V> backward_general(const V (&saved)[1], State<V>, State<V> d, const Unit<T>& unit, V (&da)[1], V*) {
    da[0] = d.h * unit.slope(unit.gate, saved[0]);
    return {splat(T(0)), splat(T(0))};
  }
};

}  // namespace
}  // namespace rnnfast
