// Long short-term memory (Hochreiter and Schmidhuber 1997) with the forget gate of Gers, Schmidhuber and Cummins
// (2000). Columns: i f g o, in PyTorch's order.
#pragma once

#include "cell.h"

namespace rnnfast {
namespace {

template <class T> struct Lstm {
  using V = vec<T>;
  static constexpr int gates = 4, columns = 4, saved = 5;  // i f g o, c; h is the output
  using x_columns = Columns<0, 1, 2, 3>;
  using h_columns = Columns<0, 1, 2, 3>;
  static constexpr bool has_c = true, backward_needs_h = false, backward_needs_h_prev = false;

  static RNNFAST_INLINE State<T> forward(const V (&a)[4], State<T> prev, const Unit<T>&, V (&saved)[5]) {
    const V i = sigmoid(a[0]), f = sigmoid(a[1]), g = tanh(a[2]), o = sigmoid(a[3]);
    const V c = fma(f, prev.c, i * g);
    const V h = o * tanh(c);
    saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = o, saved[4] = c;
    return {h, c};
  }

  static RNNFAST_INLINE State<T> backward(const V (&saved)[5], V, State<T> prev, State<T> d, const Unit<T>&,
                                          V (&da)[4]) {
    const V i = saved[0], f = saved[1], g = saved[2], o = saved[3], tanh_c = tanh(saved[4]);
    const V d_c = fma(d.h * o, d_tanh(tanh_c), d.c);
    da[0] = d_c * g * d_sigmoid(i);
    da[1] = d_c * prev.c * d_sigmoid(f);
    da[2] = d_c * i * d_tanh(g);
    da[3] = d.h * tanh_c * d_sigmoid(o);
    return {splat(T(0)), d_c * f};
  }
};

}  // namespace
}  // namespace rnnfast
