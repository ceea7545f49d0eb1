// Gated recurrent unit (Cho et al. 2014), with the reset gate applied after the product, as cuDNN and PyTorch have it:
// n = tanh(xn + r * hn). Columns: r, z, xn = W_n x + b_in, hn = U_n h + b_hn; the last two stay apart until they meet
// r. Where the gate comes before the product, as in the paper, hn = U_n (r * h) + b_hn and n = tanh(xn + hn).
#pragma once

#include "cell.h"

namespace rnnfast {
namespace {

template <class T> struct Gru {
  using V = vec<T>;
  static constexpr int gates = 3, columns = 4, saved = 4, saved_general = 4;  // r z n, hn; h is the output
  using x_columns = Columns<0, 1, 2>;
  using h_columns = Columns<0, 1, 3>;
  static constexpr bool has_c = false, backward_needs_h = false, backward_needs_h_prev = true;

  template <class Vs> static RNNFAST_INLINE State<Vs> forward(const Vs (&a)[4], State<Vs> prev, bool, Vs (&saved)[4]) {
    const Vs r = sigmoid(a[0]), z = sigmoid(a[1]), hn = a[3];
    const Vs n = tanh(fma(r, hn, a[2]));
    const Vs h = fma(1 - z, n, z * prev.h);
    saved[0] = r, saved[1] = z, saved[2] = n, saved[3] = hn;
    return {h, h};
  }

  static RNNFAST_INLINE State<V> backward(const V (&saved)[4], V, State<V> prev, State<V> d, bool, V (&da)[4]) {
    const V r = saved[0], z = saved[1], n = saved[2], hn = saved[3];
    const V d_n = d.h * (1 - z) * d_tanh(n);  // by the argument of n's tanh
    da[0] = d_n * hn * d_sigmoid(r);
    da[1] = d.h * (prev.h - n) * d_sigmoid(z);
    da[2] = d_n;
    da[3] = d_n * r;
    return {d.h * z, splat(T(0))};
  }

  static State<V> forward_general(const V (&a)[4], State<V> prev, const Unit<T>& unit, V (&saved)[4], V (&gates)[3]) {
    const V r = unit.value(unit.gate, a[0]), z = unit.value(unit.gate, a[1]), hn = a[3];
    const V a_n = unit.reset_after ? fma(r, hn, a[2]) : a[2] + hn, n = unit.value(unit.candidate, a_n);
    saved[0] = a[0], saved[1] = a[1], saved[2] = a_n, saved[3] = hn;
    gates[0] = r, gates[1] = z, gates[2] = n;
    const V h = fma(1 - z, n, z * prev.h);
    return {h, h};
  }

  // Before the product, da[0] has to wait for the gradient by r * h: `backward_reset` gives it.
  static State<V> backward_general(const V (&saved)[4], State<V> prev, State<V> d, const Unit<T>& unit, V (&da)[4],
                                   V*) {
    const V r = unit.value(unit.gate, saved[0]), z = unit.value(unit.gate, saved[1]);
    const V n = unit.value(unit.candidate, saved[2]);
    const V d_n = d.h * (1 - z) * unit.slope(unit.candidate, saved[2]);
    da[0] = d_n * saved[3] * unit.slope(unit.gate, saved[0]);
    da[1] = d.h * (prev.h - n) * unit.slope(unit.gate, saved[1]);
    da[2] = d_n;
    da[3] = unit.reset_after ? d_n * r : d_n;
    return {d.h * z, splat(T(0))};
  }

  // --- reset before the product ---

  static V reset(V a_r, V h, const Unit<T>& unit) { return unit.value(unit.gate, a_r) * h; }
  // From d, the gradient by r * h: that by a_r, and by h.
  static void backward_reset(V a_r, V h, V d, const Unit<T>& unit, V* d_a_r, V* d_h) {
    *d_a_r = d * h * unit.slope(unit.gate, a_r);
    *d_h = d * unit.value(unit.gate, a_r);
  }
};

}  // namespace
}  // namespace rnnfast
