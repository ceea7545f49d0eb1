// What the three cells have in common.
//
// A cell is its pointwise mathematics and a few numbers:
//   gates      blocks of H rows in weight_ih and weight_hh
//   columns    sums that the pointwise function takes for a unit; the engine computes them as products
//   x_columns  the column that gate g's share of weight_ih x goes to;  h_columns the same for weight_hh h
//   saved      values kept for backward, per unit and step; where there is a c, it is the last of them
//   has_c      whether the state is (h, c); backward_needs_h, backward_needs_h_prev: whether backward reads these
// `forward` gives the new state from the columns `a` and the state before. `backward` takes the total gradient `d` by
// the new state, fills the gradients `da` of the columns and returns the gradient by the state before, but for the part
// that goes through the columns: the engine adds that.
#pragma once

#include "../rnnfast.h"
#include "math.h"

namespace rnnfast {
namespace {

template <class T> struct State {
  vec<T> h, c;
};

// What a unit has besides its columns.
template <class T> struct Unit {
  Activation activation;
};

template <int... Index> struct Columns {
  static constexpr int count = sizeof...(Index);
  static constexpr int at(int g) {
    constexpr int index[] = {Index...};
    return index[g];
  }
};

}  // namespace
}  // namespace rnnfast
