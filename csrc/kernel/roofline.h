// Work that does nothing but reach a limit of the machine: what the benchmarks compare the kernels with.
#pragma once

#include "simd.h"

namespace rnnfast {
namespace {

// `n` rounds of independent fused multiply-adds in registers; returns how many floating-point operations they were.
// `sink` takes the result, so that the compiler cannot drop the work.
template <class T> double fma_rounds(int64_t n, double* sink) {
  constexpr int chains = registers - 4;
  vec<T> sum[chains];
  const vec<T> a = splat(T(0.999)), b = splat(T(1e-3));
  RNNFAST_UNROLL_FOR (int j = 0; j < chains; ++j) sum[j] = splat(T(j));
  for (int64_t k = 0; k < n; ++k)
    RNNFAST_UNROLL_FOR (int j = 0; j < chains; ++j) sum[j] = fma(sum[j], a, b);
  vec<T> total = sum[0];
  RNNFAST_UNROLL_FOR (int j = 1; j < chains; ++j) total += sum[j];
  *sink = static_cast<double>(total[0]);
  return 2.0 * chains * lanes<T> * static_cast<double>(n);
}

// Reads `bytes` (a multiple of 8 vectors) `n` times.
inline void read_rounds(const void* data, int64_t bytes, int64_t n, double* sink) {
  const float* p = static_cast<const float*>(data);
  constexpr int width = lanes<float>;
  vf sum[8];
  RNNFAST_UNROLL_FOR (int j = 0; j < 8; ++j) sum[j] = splat(0.0f);
  for (int64_t k = 0; k < n; ++k)
    for (int64_t at = 0; at < bytes / 4; at += 8 * width)
      RNNFAST_UNROLL_FOR (int j = 0; j < 8; ++j) sum[j] += load(p + at + j * width);
  RNNFAST_UNROLL_FOR (int j = 1; j < 8; ++j) sum[0] += sum[j];
  *sink = static_cast<double>(sum[0][0]);
}

}  // namespace
}  // namespace rnnfast
