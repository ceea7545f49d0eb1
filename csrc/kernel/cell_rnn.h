// The plain recurrent cell of Elman (Finding structure in time, 1990): h = act(W x + b_ih + U h + b_hh).
#pragma once

#include "cell.h"

namespace rnnfast {
namespace {

template <class T> struct Rnn {
  using V = vec<T>;
  static constexpr int gates = 1, columns = 1, saved = 0;
  using x_columns = Columns<0>;
  using h_columns = Columns<0>;
  static constexpr bool has_c = false, backward_needs_h = true, backward_needs_h_prev = false;

  static RNNFAST_INLINE State<T> forward(const V (&a)[1], State<T>, const Unit<T>& unit, V (&)[1]) {
    const V h = unit.activation == Activation::tanh ? tanh(a[0]) : (a[0] < splat(T(0)) ? splat(T(0)) : a[0]);
    return {h, h};
  }

  static RNNFAST_INLINE State<T> backward(const V (&)[1], V h, State<T>, State<T> d, const Unit<T>& unit, V (&da)[1]) {
    da[0] = unit.activation == Activation::tanh ? d.h * d_tanh(h) : (h > splat(T(0)) ? d.h : splat(T(0)));
    return {splat(T(0)), splat(T(0))};
  }
};

}  // namespace
}  // namespace rnnfast
