// ONNX's activations with alpha and beta, and what they need besides the elementary functions.
//
// The default cells do not come here: they name their functions. A derivative is a function of the argument, since that
// of clipping and of several of these is no function of the value.
#pragma once

#include "math.h"

namespace rnnfast {
namespace {

// log(1 + u) for 0 <= u <= 1: 2 artanh(s) with s = u / (2 + u), whose series converges like 9^-k.
template <class T> RNNFAST_INLINE vec<T> log1p_of(vec<T> u) {
  constexpr int terms = sizeof(T) == 4 ? 9 : 18;
  const vec<T> s = u / (u + splat(T(2))), square = s * s;
  vec<T> series = splat(T(1) / T(2 * terms + 1));
  for (int k = terms - 1; k > 0; --k) series = fma(series, square, splat(T(1) / T(2 * k + 1)));
  return (s + s) * fma(series, square, splat(T(1)));
}

// max(x, 0) + log(1 + exp(-|x|))
template <class T> RNNFAST_INLINE vec<T> softplus(vec<T> x) {
  const vec<T> zero{}, magnitude = x < zero ? -x : x;
  return (x < zero ? zero : x) + log1p_of<T>(exp(-magnitude));
}

template <class T> struct Curve {
  Function function;
  vec<T> alpha, beta;

  Curve(const Activation& a, Function standard)
      : function(a.function == Function::standard ? standard : a.function),
        alpha(splat(static_cast<T>(a.alpha))),
        beta(splat(static_cast<T>(a.beta))) {}

  vec<T> value(vec<T> x) const;
  vec<T> slope(vec<T> x) const;  // the derivative at x; at a corner, that from below
};

template <class T> RNNFAST_NOINLINE vec<T> Curve<T>::value(vec<T> x) const {
  const vec<T> zero{}, one = splat(T(1));
  switch (function) {
    case Function::sigmoid:
      return sigmoid(x);
    case Function::relu:
      return x < zero ? zero : x;
    case Function::affine:
      return fma(alpha, x, beta);
    case Function::leaky_relu:
      return x < zero ? alpha * x : x;
    case Function::thresholded_relu:
      return x < alpha ? zero : x;
    case Function::scaled_tanh:
      return alpha * tanh(beta * x);
    case Function::hard_sigmoid:
      return clamp(fma(alpha, x, beta), T(0), T(1));
    case Function::elu:
      return x < zero ? alpha * expm1(x) : x;
    case Function::softsign:
      return x / (one + (x < zero ? -x : x));
    case Function::softplus:
      return softplus<T>(x);
    default:
      return tanh(x);
  }
}

template <class T> RNNFAST_NOINLINE vec<T> Curve<T>::slope(vec<T> x) const {
  const vec<T> zero{}, one = splat(T(1));
  switch (function) {
    case Function::sigmoid:
      return d_sigmoid(sigmoid(x));
    case Function::relu:
      return x > zero ? one : zero;
    case Function::affine:
      return alpha;
    case Function::leaky_relu:
      return x <= zero ? alpha : one;
    case Function::thresholded_relu:
      return x > alpha ? one : zero;
    case Function::scaled_tanh:
      return alpha * beta * d_tanh(tanh(beta * x));
    case Function::hard_sigmoid: {
      const vec<T> y = fma(alpha, x, beta);
      return ((y > zero) & (y < one)) ? alpha : zero;
    }
    case Function::elu:
      return x <= zero ? alpha * exp(x) : one;
    case Function::softsign: {
      const vec<T> d = one + (x < zero ? -x : x);
      return one / (d * d);
    }
    case Function::softplus:
      return sigmoid(x);
    default:
      return d_tanh(tanh(x));
  }
}

}  // namespace
}  // namespace rnnfast
