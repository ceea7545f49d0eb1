// The arithmetic of the plain loops: single numbers, rounded as an instruction set rounds its vectors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "rnnfast.h"

namespace rnnfast {

// Denormal numbers are zeros while it lives, as they are inside a pass.
class FlushToZero {
 public:
#if defined(__x86_64__)
  FlushToZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushToZero() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  FlushToZero() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(before_ | uint64_t{1} << 24));
  }
  ~FlushToZero() { asm volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  uint64_t before_;
#endif
};

template <class T> class PlainMath {
 public:
  explicit PlainMath(const KernelTable& table) : table_(table), fused_(std::strcmp(table.isa, "x86_64_v2") != 0) {}

  T fma(T a, T b, T c) const { return fused_ ? std::fma(a, b, c) : a * b + c; }
  T exp(T x) const { return elementary(KernelTable::exp, x); }
  T expm1(T x) const { return elementary(KernelTable::expm1, x); }
  T sigmoid(T x) const { return elementary(KernelTable::sigmoid, x); }
  T tanh(T x) const { return elementary(KernelTable::tanh, x); }
  T d_sigmoid(T y) const { return fma(-y, y, y); }
  T d_tanh(T y) const { return fma(-y, y, T(1)); }
  // NaN stays NaN.
  static T clamp(T x, T low, T high) {
    x = x < low ? low : x;
    return x > high ? high : x;
  }

  // An activation, which must not be `standard`, and its derivative: at a corner, that from below.
  T value(const Activation& f, T x) const {
    const T alpha = static_cast<T>(f.alpha), beta = static_cast<T>(f.beta);
    switch (f.function) {
      case Function::sigmoid:
        return sigmoid(x);
      case Function::relu:
        return x < 0 ? T(0) : x;
      case Function::affine:
        return fma(alpha, x, beta);
      case Function::leaky_relu:
        return x < 0 ? alpha * x : x;
      case Function::thresholded_relu:
        return x < alpha ? T(0) : x;
      case Function::scaled_tanh:
        return alpha * tanh(beta * x);
      case Function::hard_sigmoid:
        return clamp(fma(alpha, x, beta), T(0), T(1));
      case Function::elu:
        return x < 0 ? alpha * expm1(x) : x;
      case Function::softsign:
        return x / (1 + magnitude(x));
      case Function::softplus:
        return (x < 0 ? T(0) : x) + log1p(exp(-magnitude(x)));
      default:
        return tanh(x);
    }
  }
  T slope(const Activation& f, T x) const {
    const T alpha = static_cast<T>(f.alpha), beta = static_cast<T>(f.beta);
    switch (f.function) {
      case Function::sigmoid:
        return d_sigmoid(sigmoid(x));
      case Function::relu:
        return x > 0 ? T(1) : T(0);
      case Function::affine:
        return alpha;
      case Function::leaky_relu:
        return x <= 0 ? alpha : T(1);
      case Function::thresholded_relu:
        return x > alpha ? T(1) : T(0);
      case Function::scaled_tanh:
        return alpha * beta * d_tanh(tanh(beta * x));
      case Function::hard_sigmoid: {
        const T y = fma(alpha, x, beta);
        return y > 0 && y < 1 ? alpha : T(0);
      }
      case Function::elu:
        return x <= 0 ? alpha * exp(x) : T(1);
      case Function::softsign: {
        const T d = 1 + magnitude(x);
        return 1 / (d * d);
      }
      case Function::softplus:
        return sigmoid(x);
      default:
        return d_tanh(tanh(x));
    }
  }

  // The sum of term(unit, column) over a row of units. Every unit adds its terms to one of 16 sums, and these are added
  // up in a tree: see layer_norm.h.
  template <class Term> static T sum_of_row(int64_t units, int64_t columns, const Term& term) {
    T sums[16] = {};
    for (int64_t u = 0; u < units; ++u)
      for (int64_t g = 0; g < columns; ++g) sums[u % 16] += term(u, g);
    for (int half = 8; half > 0; half /= 2)
      for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
    return sums[0];
  }

 private:
  T elementary(int f, T x) const {
    T y;
    table_.apply[f][static_cast<int>(sizeof(T) == 4 ? Dtype::float32 : Dtype::float64)](&x, &y, 1);
    return y;
  }
  static T magnitude(T x) { return x < 0 ? -x : x; }
  // log(1 + u) for 0 <= u <= 1, which is 2 artanh(s) with s = u / (2 + u): the series that activations.h takes.
  T log1p(T u) const {
    const int terms = sizeof(T) == 4 ? 9 : 18;
    const T s = u / (u + 2), square = s * s;
    T series = T(1) / T(2 * terms + 1);
    for (int k = terms - 1; k >= 0; --k) series = fma(series, square, T(1) / T(2 * k + 1));
    return (s + s) * series;
  }

  const KernelTable& table_;
  const bool fused_;
};

// What normalizes some values: their mean, and 1 / sqrt(variance + 1e-5).
template <class T> struct PlainMoments {
  T mean = 0, inverse = 0;

  // Of value(unit, column).
  template <class Value> static PlainMoments of(int64_t units, int64_t columns, const Value& value) {
    const T count = static_cast<T>(units * columns), mean = PlainMath<T>::sum_of_row(units, columns, value) / count;
    const T squares = PlainMath<T>::sum_of_row(units, columns, [&](int64_t u, int64_t g) {
      const T d = value(u, g) - mean;
      return d * d;
    });
    return {mean, T(1) / std::sqrt(squares / count + T(1e-5))};
  }
  T normalized(T v) const { return (v - mean) * inverse; }

  // The gradients by the values, from those by the normalized values: (d - mean(d) - v * mean(d v)) * inverse. Gives
  // each to use(unit, column, gradient).
  template <class D, class V, class Use>
  void backward(int64_t units, int64_t columns, const D& d, const V& v, const Use& use) const {
    const T count = static_cast<T>(units * columns), mean_d = PlainMath<T>::sum_of_row(units, columns, d) / count;
    const auto product = [&](int64_t u, int64_t g) { return d(u, g) * v(u, g); };
    const T mean_dv = PlainMath<T>::sum_of_row(units, columns, product) / count;
    for (int64_t u = 0; u < units; ++u)
      for (int64_t g = 0; g < columns; ++g) use(u, g, inverse * (d(u, g) - mean_d - v(u, g) * mean_dv));
  }
};

}  // namespace rnnfast
