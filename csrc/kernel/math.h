// The elementary functions of recurrent cells, lane by lane: a lane's result never depends on its neighbours, and the
// same operations run in the same order on every instruction set that has a fused multiply-add.
//
// Largest errors by bench/accuracy.py, in units of the last place of the exact result where that is a normal number:
// all 2^32 float32 inputs; 10^8 random float64 inputs. The bits are the same on x86_64_v3 and x86_64_v4.
//
//             float32                          float64
//   exp       1.06 at -0x1.78e2fcp+2           1.00 at -0x1.55056577605b6p+5
//   expm1     1.65 at  0x1.64ef5cp-2           1.80 at  0x1.92865dea5c98p-2
//   sigmoid   2.40 at -0x1.0a111ap+2           2.43 at -0x1.62e0ffab0eb6p+2
//   tanh      2.42 at  0x1.fd0794p-8           2.54 at -0x1.bf8f22cf6faf7p-3
//
// On x86_64_v2, which rounds twice, exp loses accuracy below 2^-102 (float32) and 2^-969 (float64), where no cell
// needs it.
//
// NaN comes out as NaN (`at_least` and `at_most` keep it), and true division is used throughout.
#pragma once

#include "simd.h"

namespace rnnfast {
namespace {

template <class T> struct Constants;
template <> struct Constants<float> {
  // Adding `magic` rounds to an integer n and leaves n + 127 in the low mantissa bits, ready to become an exponent.
  static constexpr float magic = 0x1.8p23f + 127;
  static constexpr int mantissa = 23;
  static constexpr float ln2_high = 0x1.62e4p-1f,
                         ln2_low = 0x1.7f7d1cp-20f;           // the high part has 8 zero bits at its end
  static constexpr float exp_low = -87.3f, exp_high = 88.3f;  // 2^n stays normal and finite
  static constexpr float tanh_high = 9.1f;                    // tanh rounds to 1 from 9.011 on
  // 1/2!, 1/3!, ... 1/7!: the next term of the series is below 2^-27 for |r| <= ln(2) / 2.
  static constexpr float series[] = {1.0f / 2, 1.0f / 6, 1.0f / 24, 1.0f / 120, 1.0f / 720, 1.0f / 5040};
};
template <> struct Constants<double> {
  static constexpr double magic = 0x1.8p52 + 1023;
  static constexpr int mantissa = 52;
  static constexpr double ln2_high = 0x1.62e42fefap-1, ln2_low = 0x1.cf79abc9e3b3ap-40;
  static constexpr double exp_low = -708.3, exp_high = 709.4;
  static constexpr double tanh_high = 19.1;  // tanh rounds to 1 from 19.06 on
  // ... 1/13!: the next term is below 2^-57.
  static constexpr double series[] = {1.0 / 2,       1.0 / 6,        1.0 / 24,        1.0 / 120,
                                      1.0 / 720,     1.0 / 5040,     1.0 / 40320,     1.0 / 362880,
                                      1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
};

// e^x = power * (1 + tail), with power = 2^n and tail = e^r - 1, where x = n ln(2) + r and |r| <= ln(2) / 2.
template <class V> struct Exponential {
  V power, tail;
};

template <class T, int N> RNNFAST_INLINE Exponential<Vectors<T, N>> exponential(Vectors<T, N> x) {
  using K = Constants<T>;
  using V = Vectors<T, N>;
  const V shifted = fma(x, T(1.44269504088896340736), K::magic);
  const V n = shifted - K::magic;
  const V r = fma(n, -K::ln2_low, fma(n, -K::ln2_high, x));
  constexpr int terms = sizeof(K::series) / sizeof(T);
  V series = K::series[terms - 1];
  RNNFAST_UNROLL_FOR (int j = terms - 2; j >= 0; --j) series = fma(series, r, K::series[j]);
  return {shifted << K::mantissa, fma(r * r, series, r)};
}

template <class V, class T> RNNFAST_INLINE V clamp(V x, T low, T high) { return at_most(at_least(x, low), high); }

template <class T, int N> RNNFAST_INLINE Vectors<T, N> exp(Vectors<T, N> x) {
  const auto e = exponential(clamp(x, Constants<T>::exp_low, Constants<T>::exp_high));
  return fma(e.power, e.tail, e.power);
}

// e^x - 1, exact near 0 too.
template <class T, int N> RNNFAST_INLINE Vectors<T, N> expm1(Vectors<T, N> x) {
  const auto e = exponential(clamp(x, Constants<T>::exp_low, Constants<T>::exp_high));
  return fma(e.power, e.tail, e.power - 1);
}

// sigmoid(x) = 1 / (1 + e) for x >= 0, e / (1 + e) for x < 0, with e = exp(-|x|).
template <class T, int N> RNNFAST_INLINE Vectors<T, N> sigmoid(Vectors<T, N> x) {
  const auto p = exponential(at_least(x | T(-0.0), Constants<T>::exp_low));
  const Vectors<T, N> e = fma(p.power, p.tail, p.power);
  return by_sign(x, e, 1) / (1 + e);  // for -0, e is 1
}

// tanh(x) = e / (e + 2) with e = exp(2x) - 1, computed for |x|; the sign bit of x is put back at the end.
// Tried: exp(-2|x|) - 1 instead, everywhere (2.5 ulp) or near 0 (2.2 ulp, 15 % slower).
template <class T, int N> RNNFAST_INLINE Vectors<T, N> tanh(Vectors<T, N> x) {
  const Vectors<T, N> sign = x & T(-0.0), a = at_most(x ^ sign, Constants<T>::tanh_high);
  const auto p = exponential(a + a);
  const Vectors<T, N> e = fma(p.power, p.tail, p.power - 1);
  return e / (e + 2) | sign;
}

// The same of one vector.
RNNFAST_INLINE vf exp(vf x) { return exp(Vectors<float, 1>(x)).of[0]; }
RNNFAST_INLINE vd exp(vd x) { return exp(Vectors<double, 1>(x)).of[0]; }
RNNFAST_INLINE vf expm1(vf x) { return expm1(Vectors<float, 1>(x)).of[0]; }
RNNFAST_INLINE vd expm1(vd x) { return expm1(Vectors<double, 1>(x)).of[0]; }
RNNFAST_INLINE vf sigmoid(vf x) { return sigmoid(Vectors<float, 1>(x)).of[0]; }
RNNFAST_INLINE vd sigmoid(vd x) { return sigmoid(Vectors<double, 1>(x)).of[0]; }
RNNFAST_INLINE vf tanh(vf x) { return tanh(Vectors<float, 1>(x)).of[0]; }
RNNFAST_INLINE vd tanh(vd x) { return tanh(Vectors<double, 1>(x)).of[0]; }

// Derivatives, as functions of the function's value y.
template <class V> RNNFAST_INLINE V d_sigmoid(V y) { return fma(-y, y, y); }     // y (1 - y)
template <class V> RNNFAST_INLINE V d_tanh(V y) { return fma(-y, y, 1 - V{}); }  // 1 - y^2

}  // namespace
}  // namespace rnnfast
