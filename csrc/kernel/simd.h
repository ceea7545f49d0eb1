// Vectors of float and double whose width follows the target, and the few operations on them that C++ has no
// operator for. The only file with intrinsics.
//
// vec<T> is a GCC/Clang vector type: + - * / & < ?: work on it lane by lane, so formulas stay readable, and one text
// serves every instruction set. A new one needs a block with `splat`, `fma`, `load_n`, `store_n` and `Flush`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define RNNFAST_INLINE inline __attribute__((always_inline))
#define RNNFAST_INLINE_LAMBDA __attribute__((always_inline))
// For what is large and not in an inner loop, so that there is one copy of it; for what runs once a call, so that it is
// small; and for inner loops: GCC takes all for cold that cannot but lead to, or be called by, what is.
#define RNNFAST_NOINLINE __attribute__((noinline))
#define RNNFAST_ONCE __attribute__((noinline, cold))
#define RNNFAST_HOT __attribute__((noinline, hot))
// Loops of constant length over arrays of vectors: the arrays live in registers only if no index is left variable.
#if defined(__clang__)
#define RNNFAST_UNROLL_FOR(...) _Pragma("clang loop unroll(full)") for (__VA_ARGS__)
#else
#define RNNFAST_UNROLL_FOR(...) _Pragma("GCC unroll 64") for (__VA_ARGS__)
#endif

namespace rnnfast {
namespace {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64, registers = 32;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32, registers = 16;
#elif defined(__aarch64__)
constexpr int vector_bytes = 16, registers = 32;
#else
constexpr int vector_bytes = 16, registers = 15;  // the 16th holds a product before it is added
#endif

template <class T> struct vector_of;
template <> struct vector_of<float> {
  typedef float type __attribute__((vector_size(vector_bytes)));
  typedef int32_t bits __attribute__((vector_size(vector_bytes)));
};
template <> struct vector_of<double> {
  typedef double type __attribute__((vector_size(vector_bytes)));
  typedef int64_t bits __attribute__((vector_size(vector_bytes)));
};
template <class T> using vec = typename vector_of<T>::type;
template <class T> using bits = typename vector_of<T>::bits;
template <class T> constexpr int lanes = vector_bytes / static_cast<int>(sizeof(T));
// Kernels that are rather small than fast to the last percent: the whole of them has to fit in a wheel of a megabyte.
template <class T> constexpr bool kept_small = registers < 16 || sizeof(T) > 4;

template <class T> RNNFAST_INLINE vec<T> load(const T* p) {
  vec<T> v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class T> RNNFAST_INLINE void store(T* p, vec<T> v) { memcpy(p, &v, sizeof v); }

using vf = vec<float>;
using vd = vec<double>;

// splat: x in every lane.  fma: a * b + c, rounded once (twice on x86_64_v2, which has no such instruction).
// at_least, at_most: x, or the bound where x is beyond it; NaN stays.
// load_n, store_n: the first n lanes only, 0 <= n <= lanes; load_n gives 0 in the others. Memory beyond is not touched.
#if defined(__AVX512F__)

RNNFAST_INLINE vf splat(float x) { return _mm512_set1_ps(x); }
RNNFAST_INLINE vd splat(double x) { return _mm512_set1_pd(x); }
RNNFAST_INLINE vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
RNNFAST_INLINE vd fma(vd a, vd b, vd c) { return _mm512_fmadd_pd(a, b, c); }
RNNFAST_INLINE vf load_n(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}
RNNFAST_INLINE vd load_n(const double* p, int64_t n) {
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p);
}
RNNFAST_INLINE void store_n(float* p, vf v, int64_t n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
}
RNNFAST_INLINE void store_n(double* p, vd v, int64_t n) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), v);
}

#elif defined(__AVX2__)

RNNFAST_INLINE vf splat(float x) { return _mm256_set1_ps(x); }
RNNFAST_INLINE vd splat(double x) { return _mm256_set1_pd(x); }
RNNFAST_INLINE vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
RNNFAST_INLINE vd fma(vd a, vd b, vd c) { return _mm256_fmadd_pd(a, b, c); }
RNNFAST_INLINE __m256i first_lanes(float, int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
RNNFAST_INLINE __m256i first_lanes(double, int64_t n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
RNNFAST_INLINE vf load_n(const float* p, int64_t n) { return _mm256_maskload_ps(p, first_lanes(0.0f, n)); }
RNNFAST_INLINE vd load_n(const double* p, int64_t n) { return _mm256_maskload_pd(p, first_lanes(0.0, n)); }
RNNFAST_INLINE void store_n(float* p, vf v, int64_t n) { _mm256_maskstore_ps(p, first_lanes(0.0f, n), v); }
RNNFAST_INLINE void store_n(double* p, vd v, int64_t n) { _mm256_maskstore_pd(p, first_lanes(0.0, n), v); }

#else

#if defined(__aarch64__)
RNNFAST_INLINE vf splat(float x) { return vdupq_n_f32(x); }
RNNFAST_INLINE vd splat(double x) { return vdupq_n_f64(x); }
RNNFAST_INLINE vf fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
RNNFAST_INLINE vd fma(vd a, vd b, vd c) { return vfmaq_f64(c, a, b); }
#else
RNNFAST_INLINE vf splat(float x) { return _mm_set1_ps(x); }
RNNFAST_INLINE vd splat(double x) { return _mm_set1_pd(x); }
RNNFAST_INLINE vf fma(vf a, vf b, vf c) { return a * b + c; }
RNNFAST_INLINE vd fma(vd a, vd b, vd c) { return a * b + c; }
#endif
template <class T> RNNFAST_INLINE vec<T> load_n(const T* p, int64_t n) {
  vec<T> v = splat(T(0));
  for (int64_t j = 0; j < n; ++j) v[j] = p[j];
  return v;
}
template <class T> RNNFAST_INLINE void store_n(T* p, vec<T> v, int64_t n) {
  for (int64_t j = 0; j < n; ++j) p[j] = v[j];
}

#endif

// One instruction each, where the compiler makes two or three of what is below. Of two numbers, one NaN, they give the
// second.
#if defined(__AVX512F__)
// With a mask of all lanes, since GCC 12 warns of the other form that it reads what was not initialized.
RNNFAST_INLINE vf at_least(vf x, float bound) { return _mm512_maskz_max_ps(0xffff, splat(bound), x); }
RNNFAST_INLINE vd at_least(vd x, double bound) { return _mm512_maskz_max_pd(0xff, splat(bound), x); }
RNNFAST_INLINE vf at_most(vf x, float bound) { return _mm512_maskz_min_ps(0xffff, splat(bound), x); }
RNNFAST_INLINE vd at_most(vd x, double bound) { return _mm512_maskz_min_pd(0xff, splat(bound), x); }
#elif defined(__AVX2__)
RNNFAST_INLINE vf at_least(vf x, float bound) { return _mm256_max_ps(splat(bound), x); }
RNNFAST_INLINE vd at_least(vd x, double bound) { return _mm256_max_pd(splat(bound), x); }
RNNFAST_INLINE vf at_most(vf x, float bound) { return _mm256_min_ps(splat(bound), x); }
RNNFAST_INLINE vd at_most(vd x, double bound) { return _mm256_min_pd(splat(bound), x); }
#else
RNNFAST_INLINE vf at_least(vf x, float bound) { return x < splat(bound) ? splat(bound) : x; }
RNNFAST_INLINE vd at_least(vd x, double bound) { return x < splat(bound) ? splat(bound) : x; }
RNNFAST_INLINE vf at_most(vf x, float bound) { return x > splat(bound) ? splat(bound) : x; }
RNNFAST_INLINE vd at_most(vd x, double bound) { return x > splat(bound) ? splat(bound) : x; }
#endif

// The same where most often all lanes are valid: a plain load or store is cheaper than a masked one.
template <class T> RNNFAST_INLINE vec<T> load_part(const T* p, int64_t n) {
  return n == lanes<T> ? load(p) : load_n(p, n);
}
template <class T> RNNFAST_INLINE void store_part(T* p, vec<T> v, int64_t n) {
  if (n == lanes<T>)
    store<T>(p, v);
  else
    store_n(p, v, n);
}

// No instruction. Between the parts of an unrolled loop it keeps GCC from moving sums from register to register, and to
// memory.
template <class V> RNNFAST_INLINE void stay_in_register(V& v) {
#if defined(__aarch64__)
  asm("" : "+w"(v));
#else
  asm("" : "+v"(v));
#endif
}

// --- several vectors side by side ---

// N vectors that go through a formula in lock step: the functions of a cell are long chains of dependent operations, of
// which a core can run several at once. A number stands for itself in every lane; & | ^ are of the bits.
template <class T, int N> struct Vectors {
  vec<T> of[N];

  Vectors() = default;
  RNNFAST_INLINE Vectors(vec<T> v) {
    RNNFAST_UNROLL_FOR (int j = 0; j < N; ++j) of[j] = v;
  }
  RNNFAST_INLINE Vectors(T x) : Vectors(splat(x)) {}

  // get(j) is vector j.
  template <class Get> static RNNFAST_INLINE Vectors each(const Get& get) {
    Vectors v;
    RNNFAST_UNROLL_FOR (int j = 0; j < N; ++j) v.of[j] = get(j);
    return v;
  }
  RNNFAST_INLINE bits<T> bits_of(int j) const { return (bits<T>)of[j]; }

  friend RNNFAST_INLINE Vectors operator+(Vectors a, Vectors b) {
    return each([&](int j) RNNFAST_INLINE_LAMBDA { return a.of[j] + b.of[j]; });
  }
  friend RNNFAST_INLINE Vectors operator-(Vectors a, Vectors b) {
    return each([&](int j) RNNFAST_INLINE_LAMBDA { return a.of[j] - b.of[j]; });
  }
  friend RNNFAST_INLINE Vectors operator*(Vectors a, Vectors b) {
    return each([&](int j) RNNFAST_INLINE_LAMBDA { return a.of[j] * b.of[j]; });
  }
  friend RNNFAST_INLINE Vectors operator/(Vectors a, Vectors b) {
    return each([&](int j) RNNFAST_INLINE_LAMBDA { return a.of[j] / b.of[j]; });
  }
  friend RNNFAST_INLINE Vectors operator&(Vectors a, Vectors b) {
    return each([&](int j) RNNFAST_INLINE_LAMBDA { return (vec<T>)(a.bits_of(j) & b.bits_of(j)); });
  }
  friend RNNFAST_INLINE Vectors operator|(Vectors a, Vectors b) {
    return each([&](int j) RNNFAST_INLINE_LAMBDA { return (vec<T>)(a.bits_of(j) | b.bits_of(j)); });
  }
  friend RNNFAST_INLINE Vectors operator^(Vectors a, Vectors b) {
    return each([&](int j) RNNFAST_INLINE_LAMBDA { return (vec<T>)(a.bits_of(j) ^ b.bits_of(j)); });
  }
  friend RNNFAST_INLINE Vectors fma(Vectors a, Vectors b, Vectors c) {
    return each([&](int j) RNNFAST_INLINE_LAMBDA { return rnnfast::fma(a.of[j], b.of[j], c.of[j]); });
  }
  friend RNNFAST_INLINE Vectors at_least(Vectors x, T bound) {
    return each([&](int j) RNNFAST_INLINE_LAMBDA { return rnnfast::at_least(x.of[j], bound); });
  }
  friend RNNFAST_INLINE Vectors at_most(Vectors x, T bound) {
    return each([&](int j) RNNFAST_INLINE_LAMBDA { return rnnfast::at_most(x.of[j], bound); });
  }
  friend RNNFAST_INLINE Vectors operator<<(Vectors x, int places) {
    return each([&](int j) RNNFAST_INLINE_LAMBDA { return (vec<T>)(x.bits_of(j) << places); });
  }
  // a where x has its sign bit, else b.
  friend RNNFAST_INLINE Vectors by_sign(Vectors x, Vectors a, Vectors b) {
    return each([&](int j) RNNFAST_INLINE_LAMBDA { return x.bits_of(j) < 0 ? a.of[j] : b.of[j]; });
  }
};

// --- transposing a square of vectors ---

template <int... I> struct Indices {};
template <int N, int... I> struct CountTo : CountTo<N - 1, N - 1, I...> {};
template <int... I> struct CountTo<0, I...> {
  using type = Indices<I...>;
};

// a0 b0 a1 b1 ... from lane `From` of both.
template <int From, class V, int... I> RNNFAST_INLINE V zip(V a, V b, Indices<I...>) {
  return __builtin_shufflevector(a, b, (From + I / 2 + I % 2 * static_cast<int>(sizeof...(I)))...);
}

// Rows become columns: log2(lanes) rounds in which row j is zipped with row j + lanes / 2.
template <class T> RNNFAST_INLINE void transpose(vec<T> (&row)[lanes<T>]) {
  constexpr int width = lanes<T>;
  using All = typename CountTo<width>::type;
  RNNFAST_UNROLL_FOR (int round = 1; round < width; round *= 2) {
    vec<T> next[width];
    RNNFAST_UNROLL_FOR (int j = 0; j < width / 2; ++j) {
      next[2 * j] = zip<0>(row[j], row[j + width / 2], All{});
      next[2 * j + 1] = zip<width / 2>(row[j], row[j + width / 2], All{});
    }
    RNNFAST_UNROLL_FOR (int j = 0; j < width; ++j) row[j] = next[j];
  }
}

// The floating-point state of a thread: its modes, and which exceptions there were.
#if defined(__x86_64__)
struct FloatState {
  unsigned both;

  static FloatState now() { return {_mm_getcsr()}; }
  void set() const { _mm_setcsr(both); }
  FloatState flushing() const { return {both | 0x8040}; }  // FTZ, DAZ
};
#elif defined(__aarch64__)
struct FloatState {
  uint64_t modes, exceptions;

  static FloatState now() {
    FloatState state;
    asm volatile("mrs %0, fpcr" : "=r"(state.modes));
    asm volatile("mrs %0, fpsr" : "=r"(state.exceptions));
    return state;
  }
  void set() const {
    asm volatile("msr fpcr, %0" : : "r"(modes));
    asm volatile("msr fpsr, %0" : : "r"(exceptions));
  }
  FloatState flushing() const { return {modes | uint64_t{1} << 24, exceptions}; }  // FZ
};
#endif

// While it lives, this thread has another state.
class WithFloatState {
 public:
  explicit WithFloatState(const FloatState& state) : before_(FloatState::now()) { state.set(); }
  ~WithFloatState() { before_.set(); }
  WithFloatState(const WithFloatState&) = delete;
  WithFloatState& operator=(const WithFloatState&) = delete;

 private:
  FloatState before_;
};

// Reads and writes denormal numbers as zeros: they cost up to 100 cycles an operation.
struct Flush : WithFloatState {
  Flush() : WithFloatState(FloatState::now().flushing()) {}
};

}  // namespace
}  // namespace rnnfast
