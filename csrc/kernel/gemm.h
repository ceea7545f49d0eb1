// Matrix products: packed weights and the register tile.
//
// A panel is one vector of hidden units (or of inputs) with all their columns. Packed, a weight matrix is
// [panel][k][gate][lane]: the order in which the tile reads it. A tile is `rows x (panels * gates)` vectors of
// accumulators; each lane of each is ONE chain of fused multiply-adds in the order of k. That order, and nothing else,
// fixes the bits of a result: tile sizes, panels run together and threads may change freely.
#pragma once

#include "simd.h"

namespace rnnfast {
namespace {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

template <class T> constexpr int64_t panels_of(int64_t units) { return ceil_div(units, lanes<T>); }

// --- tile sizes, from the number of registers ---

// Panels side by side in a full tile: one column alone would load a broadcast for every product.
template <int Gates> constexpr int full_panels = Gates > 2 ? 1 : (registers == 32 ? 4 : 2);
// Accumulators, one row of weights and one broadcast must fit.
template <int Gates>
constexpr int full_rows = (registers - full_panels<Gates> * Gates - 1) / (full_panels<Gates> * Gates);
// With fewer rows more panels run together: below 8 independent chains the latency of fma is the limit. With one row
// the weights need no registers of their own, they are operands in memory.
template <int Gates> constexpr int panels_for(int rows) {
  int panels = 8;
  while (panels > 1 && (rows + (rows > 1)) * Gates * panels + 2 > registers) panels /= 2;
  return panels;
}

template <int N> struct Size {
  static constexpr int value = N;
};

// f(Size<n>) with n known to the compiler, 1 <= n <= Max.
template <int Max, class F> RNNFAST_INLINE void with_size(int64_t n, const F& f) {
  if (n == Max) return f(Size<Max>{});
  if constexpr (Max > 1) with_size<Max - 1>(n, f);
}

// Panels [first, last) in groups of 8, 4, 2 or 1, at most Max: f(first panel, Size<panels>).
template <int Max, class F> RNNFAST_INLINE void for_panel_groups(int64_t first, int64_t last, const F& f) {
  for (; first + Max <= last; first += Max) f(first, Size<Max>{});
  if constexpr (Max > 1) for_panel_groups<Max / 2>(first, last, f);
}

// All tiles of `rows` rows by panels [first, last): f(first panel, Size<panels>, first row, Size<rows>). Tiles are of
// almost equal height: 7 rows are 4 + 3, not 6 + 1. Panels are outermost, so that one panel's weights serve every row
// while they are in cache.
template <int Gates, class F> RNNFAST_INLINE void for_tiles(int64_t rows, int64_t first, int64_t last, const F& f) {
  if (rows == 0) return;
  const int64_t tiles = ceil_div(rows, full_rows<Gates>);
  with_size<full_rows<Gates>>(ceil_div(rows, tiles), [&](auto tallest) {
    constexpr int height = decltype(tallest)::value;
    for_panel_groups<panels_for<Gates>(height)>(first, last, [&](int64_t panel, auto panels) {
      for (int64_t j = 0, row = 0; j < tiles; ++j) {
        const int64_t next = rows * (j + 1) / tiles;
        if (next - row == height)
          f(panel, panels, row, tallest);
        else if constexpr (height > 1)
          f(panel, panels, row, Size<height - 1>{});
        row = next;
      }
    });
  });
}

// --- the register tile ---

// acc[r][p * gates + g] += sum over k of a[r][k * a_step] * b[p][k][column of g], in the order of k.
// b is [k][b_columns][lane]; Map is the column of each gate.
template <class Map, int AStep, int BColumns, int Rows, int Panels, class T>
RNNFAST_INLINE void accumulate(vec<T> (&acc)[Rows][Panels * Map::count], const T* const (&a)[Rows],
                               const T* const (&b)[Panels], int64_t k_size) {
  constexpr int gates = Map::count, width = lanes<T>;
  for (int64_t k = 0; k < k_size; ++k) {
    vec<T> w[Panels * gates];
    RNNFAST_UNROLL for (int p = 0; p < Panels; ++p)
      RNNFAST_UNROLL for (int g = 0; g < gates; ++g)
        w[p * gates + g] = load(b[p] + (k * BColumns + Map::at(g)) * width);
    RNNFAST_UNROLL for (int r = 0; r < Rows; ++r) {
      const vec<T> x = splat(a[r][k * AStep]);
      RNNFAST_UNROLL for (int c = 0; c < Panels * gates; ++c) acc[r][c] = fma(x, w[c], acc[r][c]);
    }
  }
}

// acc[r][p] += sum over units u and gates g of a[r](u, column of g) * b[p][u][g], u ascending and g within u.
// a[r] is a row of gradients, laid out [panel][...][column][lane] with `panel_stride` between panels; the chain runs
// over units, not over lanes, so its order is the same for every vector width.
template <class Map, int Rows, int Panels, class T>
RNNFAST_INLINE void accumulate_units(vec<T> (&acc)[Rows][Panels], const T* const (&a)[Rows], int64_t panel_stride,
                                     const T* const (&b)[Panels], int64_t units) {
  constexpr int gates = Map::count;
  constexpr uint64_t width = lanes<T>;
  uint64_t offset = 0;
  for (uint64_t u = 0; u < static_cast<uint64_t>(units); ++u) {
    const uint64_t at = u / width * static_cast<uint64_t>(panel_stride) + u % width;
    RNNFAST_UNROLL for (int g = 0; g < gates; ++g) {
      vec<T> w[Panels];
      RNNFAST_UNROLL for (int p = 0; p < Panels; ++p) w[p] = load(b[p] + offset);
      offset += width;
      RNNFAST_UNROLL for (int r = 0; r < Rows; ++r) {
        const vec<T> x = splat(a[r][at + static_cast<uint64_t>(Map::at(g)) * width]);
        RNNFAST_UNROLL for (int p = 0; p < Panels; ++p) acc[r][p] = fma(x, w[p], acc[r][p]);
      }
    }
  }
}

template <int Rows, int Columns, class V> RNNFAST_INLINE void set_zero(V (&acc)[Rows][Columns]) {
  RNNFAST_UNROLL for (int r = 0; r < Rows; ++r) RNNFAST_UNROLL for (int c = 0; c < Columns; ++c) acc[r][c] = V{};
}

// --- packing ---

// weight [gates * units, k] -> [panel][k][gate][lane], lanes beyond `units` 0; panels [first, last).
template <class T>
void pack_by_unit(const T* weight, int gates, int64_t units, int64_t k_size, T* packed, int64_t first, int64_t last) {
  constexpr int width = lanes<T>;
  for (int64_t p = first; p < last; ++p) {
    const int64_t valid = min(width, units - p * width);
    T* out = packed + p * k_size * gates * width;
    for (int g = 0; g < gates; ++g) {
      const T* in = weight + (g * units + p * width) * k_size;
      for (int64_t k = 0; k < k_size; ++k) {
        T* to = out + (k * gates + g) * width;
        for (int64_t lane = 0; lane < valid; ++lane) to[lane] = in[lane * k_size + k];
        for (int64_t lane = valid; lane < width; ++lane) to[lane] = T(0);
      }
    }
  }
}

// The inverse, for gradients.
template <class T>
void unpack_by_unit(const T* packed, int gates, int64_t units, int64_t k_size, T* weight, int64_t first, int64_t last) {
  constexpr int width = lanes<T>;
  for (int64_t p = first; p < last; ++p) {
    const int64_t valid = min(width, units - p * width);
    const T* in = packed + p * k_size * gates * width;
    for (int g = 0; g < gates; ++g) {
      T* out = weight + (g * units + p * width) * k_size;
      for (int64_t k = 0; k < k_size; ++k)
        for (int64_t lane = 0; lane < valid; ++lane) out[lane * k_size + k] = in[(k * gates + g) * width + lane];
    }
  }
}

// The transpose for backward: weight [gates * units, k] -> [panel of k][unit][gate][lane]; panels [first, last).
template <class T>
void pack_by_input(const T* weight, int gates, int64_t units, int64_t k_size, T* packed, int64_t first, int64_t last) {
  constexpr int width = lanes<T>;
  for (int64_t p = first; p < last; ++p) {
    const int64_t valid = min(width, k_size - p * width);
    T* out = packed + p * units * gates * width;
    for (int64_t u = 0; u < units; ++u)
      for (int g = 0; g < gates; ++g, out += width)
        store<T>(out, load_n(weight + (g * units + u) * k_size + p * width, valid));
  }
}

}  // namespace
}  // namespace rnnfast
