// Long short-term memory (Hochreiter and Schmidhuber 1997) with the forget gate of Gers, Schmidhuber and Cummins
// (2000). Columns: i f g o, in PyTorch's order.
#pragma once

#include "cell.h"

namespace rnnfast {
namespace {

template <class T> struct Lstm {
  using V = vec<T>;
  static constexpr int gates = 4, columns = 4, saved = 5, saved_general = 5;  // i f g o, c; h is the output
  using x_columns = Columns<0, 1, 2, 3>;
  using h_columns = Columns<0, 1, 2, 3>;
  static constexpr bool has_c = true, backward_needs_h = false, backward_needs_h_prev = false;

  template <class Vs> static RNNFAST_INLINE State<Vs> forward(const Vs (&a)[4], State<Vs> prev, bool, Vs (&saved)[5]) {
    const Vs i = sigmoid(a[0]), f = sigmoid(a[1]), g = tanh(a[2]), o = sigmoid(a[3]);
    const Vs c = fma(f, prev.c, i * g);
    const Vs h = o * tanh(c);
    saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = o, saved[4] = c;
    return {h, c};
  }

  static RNNFAST_INLINE State<V> backward(const V (&saved)[5], V, State<V> prev, State<V> d, bool, V (&da)[4]) {
    const V i = saved[0], f = saved[1], g = saved[2], o = saved[3], tanh_c = tanh(saved[4]);
    const V d_c = fma(d.h * o, d_tanh(tanh_c), d.c);
    da[0] = d_c * g * d_sigmoid(i);
    da[1] = d_c * prev.c * d_sigmoid(f);
    da[2] = d_c * i * d_tanh(g);
    da[3] = d.h * tanh_c * d_sigmoid(o);
    return {splat(T(0)), d_c * f};
  }

  // Peepholes (Gers and Schmidhuber 2000): i and f see the c before, o the new one. Coupled gates (Greff et al. 2017):
  // f = 1 - i.
  static State<V> forward_general(const V (&a)[4], State<V> prev, const Unit<T>& unit, V (&saved)[5], V (&gates)[4]) {
    V a_i = a[0], a_f = a[1], a_o = a[3];
    if (unit.peepholes) {
      a_i = fma(unit.peephole(0), prev.c, a_i);
      a_f = fma(unit.peephole(1), prev.c, a_f);
    }
    const V i = unit.value(unit.gate, a_i), f = unit.coupled_gates ? 1 - i : unit.value(unit.gate, a_f);
    const V g = unit.value(unit.candidate, a[2]);
    const V c = fma(f, prev.c, i * g);
    if (unit.peepholes) a_o = fma(unit.peephole(2), c, a_o);
    const V o = unit.value(unit.gate, a_o);
    saved[0] = a_i, saved[1] = a_f, saved[2] = a[2], saved[3] = a_o, saved[4] = c;
    gates[0] = i, gates[1] = f, gates[2] = g, gates[3] = o;
    return {o * unit.value(unit.output, c), c};
  }
  // h again, from what was saved.
  static V output(V a_o, V c, const Unit<T>& unit) { return unit.value(unit.gate, a_o) * unit.value(unit.output, c); }

  // Zoneout may have replaced the c that was saved, so it is computed again. d_peepholes: of i, f, o.
  static State<V> backward_general(const V (&saved)[5], State<V> prev, State<V> d, const Unit<T>& unit, V (&da)[4],
                                   V* d_peepholes) {
    const V i = unit.value(unit.gate, saved[0]), f = unit.coupled_gates ? 1 - i : unit.value(unit.gate, saved[1]);
    const V g = unit.value(unit.candidate, saved[2]), o = unit.value(unit.gate, saved[3]);
    const V c = fma(f, prev.c, i * g);
    da[3] = d.h * unit.value(unit.output, c) * unit.slope(unit.gate, saved[3]);
    V d_c = fma(d.h * o, unit.slope(unit.output, c), d.c);
    if (unit.peepholes) d_c = fma(da[3], unit.peephole(2), d_c);
    const V d_f = d_c * prev.c;
    da[0] = (unit.coupled_gates ? d_c * g - d_f : d_c * g) * unit.slope(unit.gate, saved[0]);
    da[1] = unit.coupled_gates ? V{} : d_f * unit.slope(unit.gate, saved[1]);
    da[2] = d_c * i * unit.slope(unit.candidate, saved[2]);
    V d_c_prev = d_c * f;
    if (unit.peepholes) {
      d_c_prev = fma(da[0], unit.peephole(0), fma(da[1], unit.peephole(1), d_c_prev));
      d_peepholes[0] = da[0] * prev.c, d_peepholes[1] = da[1] * prev.c, d_peepholes[2] = da[3] * c;
    }
    return {splat(T(0)), d_c_prev};
  }
};

}  // namespace
}  // namespace rnnfast
