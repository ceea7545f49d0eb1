// Sums over all units of a row, for layer normalization (Ba, Kiros, Hinton 2016).
//
// Such a sum crosses lanes, so its order has to be said: every unit belongs to one of 16 virtual lanes (its number
// modulo 16), a lane adds up its terms in the order of the units, and the lanes are added up in a fixed tree. That is
// the same on every instruction set. Every thread of a team computes the sums of a row for itself.
#pragma once

#include "cell.h"

namespace rnnfast {
namespace {

// The sum of term(panel, column), a vector each.
template <class T, class Term> RNNFAST_INLINE T sum_of_row(int64_t panels, int columns, const Term& term) {
  constexpr int virtual_lanes = 16, vectors = virtual_lanes / lanes<T>;
  vec<T> sums[vectors] = {};
  for (int64_t p = 0; p < panels; ++p)
    for (int c = 0; c < columns; ++c) sums[p % vectors] += term(p, c);
  T lane[virtual_lanes];
  for (int j = 0; j < vectors; ++j) store<T>(lane + j * lanes<T>, sums[j]);
  for (int n = virtual_lanes / 2; n > 0; n /= 2)
    for (int j = 0; j < n; ++j) lane[j] += lane[j + n];
  return lane[0];
}

// The first n lanes, and zeros.
template <class T> RNNFAST_INLINE vec<T> first_lanes_of(vec<T> v, int64_t n) {
  for (int64_t j = n; j < lanes<T>; ++j) v[j] = T(0);
  return v;
}

// What normalizes a row: (value - mean) * inverse, where inverse = 1 / sqrt(variance + 1e-5).
template <class T> struct Moments {
  T mean, inverse;
  vec<T> normalized(vec<T> v) const { return (v - splat(mean)) * splat(inverse); }
};

// Of the values [column][lane] at values + panel * stride.
template <class T> Moments<T> moments_of(const T* values, int64_t stride, int columns, int64_t units) {
  const int64_t panels = (units + lanes<T> - 1) / lanes<T>;
  const auto load_valid = [=](int64_t p, int c) {
    const vec<T> v = load(values + p * stride + c * lanes<T>);
    return p + 1 < panels ? v : first_lanes_of<T>(v, units - p * lanes<T>);
  };
  const T count = static_cast<T>(units * columns);
  const T mean = sum_of_row<T>(panels, columns, load_valid) / count;
  const T squares = sum_of_row<T>(panels, columns, [=](int64_t p, int c) {
    const vec<T> d = load(values + p * stride + c * lanes<T>) - splat(mean);
    const vec<T> square = d * d;
    return p + 1 < panels ? square : first_lanes_of<T>(square, units - p * lanes<T>);
  });
  return {mean, T(1) / static_cast<T>(__builtin_sqrt(squares / count + T(1e-5)))};
}

// The gradient by a row of values, from that by their normalized values `d`: inverse * (d - mean(d) - v * mean(d v)),
// with v the normalized values. The two means are over the whole row.
template <class T> struct MomentsGradient {
  T mean_d, mean_dv;
  vec<T> by_value(vec<T> d, vec<T> v, T inverse) const {
    return splat(inverse) * (d - splat(mean_d) - v * splat(mean_dv));
  }
};

}  // namespace
}  // namespace rnnfast
