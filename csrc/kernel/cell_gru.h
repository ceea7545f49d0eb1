// Gated recurrent unit (Cho et al. 2014), with the reset gate applied after the product, as cuDNN and PyTorch have it:
// n = tanh(xn + r * hn). Columns: r, z, xn = W_n x + b_in, hn = U_n h + b_hn; the last two stay apart until they meet
// r.
#pragma once

#include "cell.h"

namespace rnnfast {
namespace {

template <class T> struct Gru {
  using V = vec<T>;
  static constexpr int gates = 3, columns = 4, saved = 4;  // r z n, hn; h is the output
  using x_columns = Columns<0, 1, 2>;
  using h_columns = Columns<0, 1, 3>;
  static constexpr bool has_c = false, backward_needs_h = false, backward_needs_h_prev = true;

  static RNNFAST_INLINE State<T> forward(const V (&a)[4], State<T> prev, const Unit<T>&, V (&saved)[4]) {
    const V r = sigmoid(a[0]), z = sigmoid(a[1]), hn = a[3];
    const V n = tanh(fma(r, hn, a[2]));
    const V h = fma(1 - z, n, z * prev.h);
    saved[0] = r, saved[1] = z, saved[2] = n, saved[3] = hn;
    return {h, h};
  }

  static RNNFAST_INLINE State<T> backward(const V (&saved)[4], V, State<T> prev, State<T> d, const Unit<T>&,
                                          V (&da)[4]) {
    const V r = saved[0], z = saved[1], n = saved[2], hn = saved[3];
    const V d_n = d.h * (1 - z) * d_tanh(n);  // by the argument of n's tanh
    da[0] = d_n * hn * d_sigmoid(r);
    da[1] = d.h * (prev.h - n) * d_sigmoid(z);
    da[2] = d_n;
    da[3] = d_n * r;
    return {d.h * z, splat(T(0))};
  }
};

}  // namespace
}  // namespace rnnfast
