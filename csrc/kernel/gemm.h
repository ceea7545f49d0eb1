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

struct Range {
  int64_t first, last;
  int64_t size() const { return last - first; }
  bool has(int64_t number) const { return first <= number && number < last; }
};

template <class T> constexpr int64_t panels_of(int64_t units) { return ceil_div(units, lanes<T>); }

// --- tile sizes, from the number of registers ---

// Panels side by side in a full tile: one column alone would load a broadcast for every product.
template <int Gates> constexpr int full_panels = Gates > 2 ? 1 : (registers == 32 ? 4 : 2);
// Accumulators, the fewer of a row's broadcasts and a line of weights, and one of the others must fit.
constexpr bool fits(int64_t rows, int64_t columns) { return rows * columns + min(rows, columns) + 1 <= registers; }
template <int Gates> constexpr int full_rows_from(int rows) {
  return fits(rows + 1, full_panels<Gates> * Gates) ? full_rows_from<Gates>(rows + 1) : rows;
}
template <int Gates> constexpr int full_rows = full_rows_from<Gates>(1);
// With few registers a tile of four gates may take them in two halves, one after the other: then it may be higher. It
// does so for the rows that would be left over, since two rows alone have too few chains. Everywhere it would be
// slower: the weights arrive in whole lines, of which it uses a half at a time.
template <int Gates> constexpr bool in_halves = registers < 32 && Gates == 4;
template <int Gates>
constexpr int high_rows = full_rows<Gates> * (in_halves<Gates> ? 2 : 1) - (in_halves<Gates> ? 1 : 0);
// Two rows more are one tile as well, of half as many panels or in two halves: 4 and 4 would read the weights twice,
// and 4 and 3 take as long. Only where they are all, since a weight serves fewer products there.
template <int Gates>
constexpr int rows_alone = high_rows<Gates> + (registers == 32 && (Gates == 1 || Gates == 4) ? 2 : 0);
// With fewer rows more panels run together: below 8 independent chains of whole vectors the latency of fma is the
// limit.
template <int Gates> constexpr int64_t panels_for(int64_t rows) {
  int64_t panels = rows > 1 && vector_bytes == 64 ? 4 : 8;
  while (panels > 1 && !fits(rows, Gates * panels)) panels /= 2;
  return panels;
}

// A kind of tile is a class with `template <int Rows, int Panels> void tile(int64_t panel, int64_t row) const` and the
// numbers of panels and of rows that it runs together at most, of rows where there are more. This is the table of its
// instances; panels are 1, 2, 4 or 8.
template <class Kind, int Gates> struct Tiles {
  using Tile = void (Kind::*)(int64_t panel, int64_t row) const;
  static constexpr int max_rows = Kind::most_rows;
  Tile at[max_rows][4] = {};

  constexpr Tiles() { add_rows<max_rows>(); }
  template <int Rows> constexpr void add_rows() {
    add_panels<Rows, min(panels_for<Gates>(Rows), Kind::most_panels)>();
    if constexpr (Rows > 1) add_rows<Rows - 1>();
  }
  template <int Rows, int Panels> constexpr void add_panels() {
    at[Rows - 1][log2(Panels)] = &Kind::template tile<Rows, Panels>;
    if constexpr (Panels > 1) add_panels<Rows, Panels / 2>();
  }
  static constexpr int log2(int64_t n) { return n == 8 ? 3 : n == 4 ? 2 : n == 2 ? 1 : 0; }
};

template <class Kind, int Gates> constexpr Tiles<Kind, Gates> tiles_of{};

template <int Gates, class Kind>
RNNFAST_INLINE void run_tile(const Kind& kind, int64_t panel, int64_t panels, int64_t row, int64_t rows) {
  (kind.*tiles_of<Kind, Gates>.at[rows - 1][Tiles<Kind, Gates>::log2(panels)])(panel, row);
}

// So many rows are divided into tiles of almost equal height: 7 are 4 + 3, not 6 + 1. Or, where there are higher ones,
// into full tiles and a last one with what is left.
template <class Kind, int Gates> struct Heights {
  static constexpr bool higher = in_halves<Gates> && Kind::most_rows > full_rows<Gates>;
  int64_t rows, tiles;

  constexpr explicit Heights(int64_t rows)
      : rows(rows),
        tiles(higher                    ? max(1, rows / full_rows<Gates>)
              : rows <= Kind::most_rows ? 1
                                        : ceil_div(rows, Kind::rows_of_many)) {}
  constexpr int64_t end(int64_t tile) const {
    return tile + 1 == tiles ? rows : higher ? (tile + 1) * full_rows<Gates> : rows * (tile + 1) / tiles;
  }
  // Panels that run together.
  constexpr int64_t panels() const {
    return panels_for<Gates>(tiles <= 1 ? max(1, rows) : higher ? full_rows<Gates> : ceil_div(rows, tiles));
  }
};

// How many of the `left` panels run together, at most `most`.
constexpr int64_t panel_group(int64_t left, int64_t most) {
  while (most > left) most /= 2;
  return most;
}

// The last of the groups that panel_group makes of so many.
constexpr int64_t last_group(int64_t left, int64_t most) { return left % most ? (left % most) & -(left % most) : most; }

// All tiles of `rows` rows by so many panels.
template <int Gates, class Kind>
RNNFAST_INLINE void run_rows(const Kind& kind, int64_t rows, int64_t panel, int64_t panels) {
  const Heights<Kind, Gates> heights(rows);
  for (int64_t j = 0, row = 0; j < heights.tiles; ++j) {
    const int64_t next = heights.end(j);
    run_tile<Gates>(kind, panel, panels, row, next - row);
    row = next;
  }
}

// run(panel, panels) for panels [first, last), at most so many together. Every other step goes `back` from the last
// panel to the first, whose end then finds in cache what the step before used last.
template <class Run>
RNNFAST_INLINE void for_groups(int64_t first, int64_t last, int64_t most, bool back, const Run& run) {
  while (first < last) {
    const int64_t panels = back ? last_group(last - first, most) : panel_group(last - first, most);
    if (back) last -= panels;
    run(back ? last : first, panels);
    if (!back) first += panels;
  }
}

// All tiles of `rows` rows by panels [first, last).
// Panels are outermost, so that one panel's weights serve every row while they are in cache.
template <int Gates, class Kind>
void run_tiles(const Kind& kind, int64_t rows, int64_t first, int64_t last, bool back = false) {
  if (rows == 0) return;
  for_groups(first, last, Heights<Kind, Gates>(rows).panels(), back,
             [&](int64_t panel, int64_t panels) { run_rows<Gates>(kind, rows, panel, panels); });
}

// --- the register tile ---

// acc[r][c] += x(r) * w(c). The fewer of the two are in registers all together, the others one after another.
template <int Rows, int Columns, class T, class X, class W>
RNNFAST_INLINE void add_products(vec<T> (&acc)[Rows][Columns], const X& x, const W& w) {
  if constexpr (Rows < Columns) {
    vec<T> all[Rows];
    RNNFAST_UNROLL_FOR (int r = 0; r < Rows; ++r) all[r] = x(r);
    RNNFAST_UNROLL_FOR (int c = 0; c < Columns; ++c) {
      const vec<T> one = w(c);
      RNNFAST_UNROLL_FOR (int r = 0; r < Rows; ++r) acc[r][c] = fma(all[r], one, acc[r][c]);
    }
  } else {
    vec<T> all[Columns];
    RNNFAST_UNROLL_FOR (int c = 0; c < Columns; ++c) all[c] = w(c);
    RNNFAST_UNROLL_FOR (int r = 0; r < Rows; ++r) {
      const vec<T> one = x(r);
      RNNFAST_UNROLL_FOR (int c = 0; c < Columns; ++c) acc[r][c] = fma(one, all[c], acc[r][c]);
    }
  }
}

// What a tile fetches into L2 for those after it, a part of it for every k. Where several use the same weights,
// each fetches its part of the next ones; without that, weights that come from L3 or memory are waited for at every
// panel's first tile. Else it fetches the rows of x of the next tile, which follow upon its own where inputs are
// contiguous and the scan goes forward: of rows as long as a page, which come from memory, the hardware does not fetch
// the next page.
template <class T> struct Ahead {
  const T* at;
  int64_t step;  // 0: there is nothing to fetch
  RNNFAST_INLINE void operator()(int64_t k) const { __builtin_prefetch(at + k * step, 0, 2); }
  RNNFAST_INLINE void advance(int64_t k) { at += k * step; }
};
// Two parts for every k.
template <class T> struct TwoAhead {
  Ahead<T> one, other;
  RNNFAST_INLINE void operator()(int64_t k) const { one(k), other(k); }
};
struct Nothing {
  RNNFAST_INLINE void operator()(int64_t) const {}
  RNNFAST_INLINE void advance(int64_t) {}
};

// Which of the parts is a tile's: rows are divided almost equally, so this is the tile's number.
template <int Rows> constexpr int64_t tile_number(int64_t row) { return (row + Rows / 2) / Rows; }

// The tiles that do so: where there are several, each has at least half of the full height. In those of fewer rows the
// fetching itself costs 2 to 5 %.
template <class T, int Gates, int Rows>
constexpr bool fetches_ahead = !kept_small<T> && 2 * Rows >= full_rows<Gates> && Rows > 1;
// Whether weights are fetched: where they are used more than once, and W and U do not stay in L2 together.
// `weights`: of one of them, or the mean of both.
template <class T> constexpr bool reads_from_afar(int64_t uses, int64_t weights) {
  return uses > 1 && weights * static_cast<int64_t>(sizeof(T)) > 640 << 10;
}

// acc[r][p * gates + g] += sum over k of a[r][k * a_step] * b[p][k][column of g], in the order of k.
// b is [k][b_columns][lane]; Map is the column of each gate.
template <class Map, int AStep, int BColumns, int Rows, int Panels, class T, class Fetch = Nothing>
RNNFAST_INLINE void accumulate(vec<T> (&acc)[Rows][Panels * Map::count], const T* const (&a)[Rows],
                               const T* const (&b)[Panels], int64_t k_size, const Fetch& fetch = {}) {
  constexpr int gates = Map::count, width = lanes<T>;
  for (int64_t k = 0; k < k_size; ++k) {
    fetch(k);
    add_products<Rows, Panels * gates, T>(
        acc, [&](int r) { return splat(a[r][k * AStep]); },
        [&](int c) { return load(b[c / gates] + (k * BColumns + Map::at(c % gates)) * width); });
  }
}

// acc[r][p] += sum over units u and gates g of a[r](u, column of g) * b[p][u][g], u ascending and g within u.
// a[r] is a row of gradients, laid out [panel][...][column][lane] with `panel_stride` between panels; the chain runs
// over units, not over lanes, so its order is the same for every vector width.
template <class Map, int Rows, int Panels, class T, class Fetch>
RNNFAST_INLINE void accumulate_units(vec<T> (&acc)[Rows][Panels], const T* const (&a)[Rows], int64_t panel_stride,
                                     const T* const (&b)[Panels], int64_t units, Fetch fetch) {
  constexpr int gates = Map::count, width = lanes<T>;
  const T* w[Panels];
  RNNFAST_UNROLL_FOR (int p = 0; p < Panels; ++p) w[p] = b[p];
  int64_t at = 0;
  for (int64_t left = units; left > 0; left -= width, at += panel_stride) {
    // The next panel is on another page, where nothing is fetched ahead. Behind the last one this is harmless.
    if constexpr (!kept_small<T>)
      RNNFAST_UNROLL_FOR (int r = 0; r < Rows; ++r)
        for (int line = 0; line <= Map::at(gates - 1) * width; line += 64 / static_cast<int>(sizeof(T)))
          __builtin_prefetch(a[r] + at + panel_stride + line);
    const int64_t count = min(left, width);
    for (int64_t u = 0; u < count; ++u) {
      RNNFAST_UNROLL_FOR (int g = 0; g < gates; ++g) {
        fetch(g);
        add_products<Rows, Panels, T>(
            acc, [&](int r) { return splat(a[r][at + u + Map::at(g) * width]); },
            [&](int p) { return load(w[p] + g * width); });
        // With GCC 12 and AVX2 4 gates are faster by 6 %, 3 slower by 7 %; with AVX-512 4 are slower by 12 %.
        if constexpr (gates > 3 && registers < 32)
          RNNFAST_UNROLL_FOR (int r = 0; r < Rows; ++r)
            RNNFAST_UNROLL_FOR (int p = 0; p < Panels; ++p) stay_in_register(acc[r][p]);
      }
      RNNFAST_UNROLL_FOR (int p = 0; p < Panels; ++p) w[p] += gates * width;
      fetch.advance(gates);
    }
  }
}

// --- products that every cell shares ---

// sums[k] = sum over rows of operand[row][k] * da[row][column of g]: a block of rows' share of a weight gradient.
// The operand is [tile of `height` inputs][row][height], da is [panel][row][column][lane], sums [panel][k][gate][lane].
template <class Map, int DaColumns, class T> struct WeightSums {
  static constexpr int gates = Map::count, width = lanes<T>, height = full_rows<gates>,
                       most_panels = full_panels<gates>, most_rows = height, rows_of_many = height;
  const T *operand, *da;
  int64_t operand_stride, da_stride;  // between tiles, between panels
  int64_t inputs, rows;
  T* sums;
  bool add;  // to what is there, else in its place

  // The tile whose first input is `input`, a multiple of `height`.
  template <int Rows, int Panels> void tile(int64_t panel, int64_t input) const {
    vec<T> acc[Rows][Panels * gates];
    const T *a[Rows], *b[Panels];
    T* out[Panels];
    RNNFAST_UNROLL_FOR (int r = 0; r < Rows; ++r) a[r] = operand + input / height * operand_stride + r;
    RNNFAST_UNROLL_FOR (int p = 0; p < Panels; ++p) {
      b[p] = da + (panel + p) * da_stride;
      out[p] = sums + ((panel + p) * inputs + input) * gates * width;
    }
    // They are needed at the end, and come from far away.
    RNNFAST_UNROLL_FOR (int p = 0; p < Panels; ++p)
      for (int j = 0; add && j < Rows * gates; ++j) __builtin_prefetch(out[p] + j * width);
    RNNFAST_UNROLL_FOR (int r = 0; r < Rows; ++r)
      RNNFAST_UNROLL_FOR (int c = 0; c < Panels * gates; ++c) acc[r][c] = vec<T>{};
    accumulate<Map, height, DaColumns, Rows, Panels, T>(acc, a, b, rows);
    if (add)
      RNNFAST_UNROLL_FOR (int r = 0; r < Rows; ++r)
        RNNFAST_UNROLL_FOR (int p = 0; p < Panels; ++p)
          RNNFAST_UNROLL_FOR (int g = 0; g < gates; ++g)
            acc[r][p * gates + g] += load(out[p] + (r * gates + g) * width);
    RNNFAST_UNROLL_FOR (int r = 0; r < Rows; ++r)
      RNNFAST_UNROLL_FOR (int p = 0; p < Panels; ++p)
        RNNFAST_UNROLL_FOR (int g = 0; g < gates; ++g)
          store<T>(out[p] + (r * gates + g) * width, acc[r][p * gates + g]);
  }

  void run(int64_t first_panel, int64_t last_panel, int64_t first_tile, int64_t last_tile) const {
    for (int64_t panel = first_panel, panels; panel < last_panel; panel += panels) {
      panels = panel_group(last_panel - panel, most_panels);
      for (int64_t j = first_tile; j < last_tile; ++j)
        run_tile<gates>(*this, panel, panels, j * height, min(height, inputs - j * height));
    }
  }
};

// The same sums of few rows, straight to where the caller wants them: packing operands and unpacking sums would take
// longer than the products. out[unit][k] = sum over rows of da[row](unit) * operand[row][k], for one gate.
template <class T> struct OuterSums {
  static constexpr int width = lanes<T>, together = registers == 32 ? 4 : 3;  // vectors of k
  const T* const* operand;                                                    // of each row
  const T* da;                // [panel][row][column][lane], from the gate's column on
  int64_t da_stride, da_row;  // between panels, between rows
  int64_t rows, units, inputs;
  T* out;

  // Some units of a panel, and `valid` inputs from k on.
  template <int Vectors> RNNFAST_HOT void tile(const T* of_panel, int64_t unit, int64_t k, int64_t valid) const {
    constexpr int count = min(4, width);  // units
    vec<T> acc[count][Vectors];
    RNNFAST_UNROLL_FOR (int u = 0; u < count; ++u)
      RNNFAST_UNROLL_FOR (int v = 0; v < Vectors; ++v) acc[u][v] = vec<T>{};
    for (int64_t r = 0; r < rows; ++r) {
      const T *x = operand[r] + k, *d = of_panel + r * da_row + unit % width;
      add_products<count, Vectors, T>(
          acc, [&](int u) { return splat(d[u]); },
          [&](int v) { return Vectors > 1 ? load(x + v * width) : load_part(x, valid); });
    }
    RNNFAST_UNROLL_FOR (int u = 0; u < count; ++u)
      RNNFAST_UNROLL_FOR (int v = 0; v < Vectors; ++v)
        if (unit + u < units)
          store_part(out + (unit + u) * inputs + k + v * width, acc[u][v], min(width, valid - v * width));
  }

  RNNFAST_NOINLINE void run(int64_t first, int64_t last) const {
    for (int64_t p = first; p < last; ++p)
      for (int64_t k = 0, step; k < inputs; k += step) {
        const bool full = inputs - k >= together * width;
        step = (full ? together : 1) * width;
        const int64_t valid = min(step, inputs - k);
        for (int64_t unit = p * width; unit < min(units, (p + 1) * width); unit += min(4, width))
          if (full)
            tile<together>(da + p * da_stride, unit, k, valid);
          else
            tile<1>(da + p * da_stride, unit, k, valid);
      }
  }
};

// out[row] = sum over units u and gates g of da[row](u, column of g) * weights[panel][u][g]: da W or da U.
template <class Map, class T> struct UnitSums {
  static constexpr int gates = Map::count, width = lanes<T>, most_panels = 8, most_rows = full_rows<1>,
                       rows_of_many = most_rows;
  const T *da, *weights;
  int64_t da_stride, row_stride;  // between panels, between rows
  int64_t units;
  T* const* out;     // of each row
  int64_t out_size;  // a row's features
  bool add;          // out = sum + out

  // Where vectors are so wide that the weights of a full tile's panels may not fit in L2, the tiles of some rows use
  // one piece of them after the other. It is small enough to stay there beside the next one.
  static constexpr bool in_pieces = !kept_small<T> && full_panels<1> * vector_bytes > 64;
  template <int Rows, int Panels>
  static constexpr bool knows_pieces = in_pieces && fetches_ahead<T, 1, Rows> && Panels == panels_for<1>(Rows);
  struct Piece {
    Range units;
    T* sums;         // of the pieces before, [row][panel][lane]
    const T* ahead;  // the next piece's weights, or null
  };
  Piece piece{{0, units}, nullptr, nullptr};

  template <int Rows, int Panels> void tile(int64_t panel, int64_t row) const {
    const int64_t panel_size = units * gates * width;
    vec<T> acc[Rows][Panels];
    const T *a[Rows], *b[Panels];
    RNNFAST_UNROLL_FOR (int r = 0; r < Rows; ++r) {
      a[r] = da + (row + r) * row_stride;
      RNNFAST_UNROLL_FOR (int p = 0; p < Panels; ++p) acc[r][p] = vec<T>{};
    }
    RNNFAST_UNROLL_FOR (int p = 0; p < Panels; ++p) b[p] = weights + (panel + p) * panel_size;
    if constexpr (knows_pieces<Rows, Panels>) {
      const int64_t first = piece.units.first;
      if (first > 0)
        RNNFAST_UNROLL_FOR (int r = 0; r < Rows; ++r)
          RNNFAST_UNROLL_FOR (int p = 0; p < Panels; ++p)
            acc[r][p] = load(piece.sums + ((row + r) * Panels + p) * width);
      RNNFAST_UNROLL_FOR (int r = 0; r < Rows; ++r) a[r] += first / width * da_stride;
      RNNFAST_UNROLL_FOR (int p = 0; p < Panels; ++p) b[p] += first * gates * width;
      const Ahead<T> fetch =
          piece.ahead ? Ahead<T>{piece.ahead + tile_number<Rows>(row) % Panels * panel_size, width} : Ahead<T>{a[0], 0};
      accumulate_units<Map, Rows, Panels, T>(acc, a, da_stride, b, piece.units.size(), fetch);
      if (piece.units.last < units) {
        RNNFAST_UNROLL_FOR (int r = 0; r < Rows; ++r)
          RNNFAST_UNROLL_FOR (int p = 0; p < Panels; ++p)
            store<T>(piece.sums + ((row + r) * Panels + p) * width, acc[r][p]);
        return;
      }
    } else {
      accumulate_units<Map, Rows, Panels, T>(acc, a, da_stride, b, units, Nothing{});
    }
    vec<T> sums[Rows][Panels];  // in memory, so that the loops below need not be unrolled
    RNNFAST_UNROLL_FOR (int r = 0; r < Rows; ++r)
      RNNFAST_UNROLL_FOR (int p = 0; p < Panels; ++p) sums[r][p] = acc[r][p];
    for (int r = 0; r < Rows; ++r)
      for (int p = 0; p < Panels; ++p) {
        const int64_t at = (panel + p) * width, valid = min(width, out_size - at);
        T* to = out[row + r] + at;
        store_part(to, add ? sums[r][p] + load_part(to, valid) : sums[r][p], valid);
      }
  }

  RNNFAST_NOINLINE void run(int64_t rows, Range panels) const {
    if constexpr (in_pieces)
      if (reads_from_afar<T>(ceil_div(rows, most_rows), panels.size() * units * gates * width))
        return run_pieces(rows, panels);
    run_tiles<1>(*this, rows, panels.first, panels.last);
  }

 private:
  // Rows in equal sets, so that every tile has at least half of the full height and knows of pieces.
  RNNFAST_NOINLINE void run_pieces(int64_t rows, Range panels) const {
    constexpr int64_t most = 64, full = full_panels<1>;  // rows, panels
    constexpr int64_t most_units = (256 << 10) / (full * gates * vector_bytes) / width * width;
    static_assert(knows_pieces<(most_rows + 1) / 2, full> && knows_pieces<most_rows, full>);
    alignas(64) T sums[most * full * width];
    const int64_t sets = ceil_div(rows, most);
    UnitSums set = *this;
    for (int64_t j = 0; j < sets; ++j) {
      const int64_t row = rows * j / sets, count = rows * (j + 1) / sets - row;
      set.da = da + row * row_stride, set.out = out + row;
      for_groups(panels.first, panels.last, full, false, [&](int64_t panel, int64_t group) {
        for (int64_t unit = 0; unit < units; unit = set.piece.units.last) {
          const int64_t end = group == full ? min(unit + most_units, units) : units;
          const int64_t next = end < units ? panel : panels.has(panel + group) ? panel + group : panels.first;
          set.piece = {{unit, end}, sums, weights + (next * units + end % units) * gates * width};
          run_rows<1>(set, count, panel, group);
        }
      });
    }
  }
};

// The same sums of few rows from weights as the caller has them, [gate * units][inputs]: packing them would take longer
// than reading them once for every row.
template <class T> struct StraightUnitSums {
  static constexpr int width = lanes<T>, together = registers == 32 ? 16 : 8;  // vectors of inputs
  const T *da, *weights;
  int64_t da_stride, row_stride;  // as in UnitSums
  const int* columns;             // of each gate
  int64_t gates, units, inputs;
  T* const* out;
  bool add;

  template <int Vectors> RNNFAST_HOT void tile(int64_t row, int64_t input) const {
    const int64_t valid = min(Vectors * width, inputs - input);  // less than all only of one vector
    vec<T> acc[Vectors];
    RNNFAST_UNROLL_FOR (int v = 0; v < Vectors; ++v) acc[v] = vec<T>{};
    for (int64_t u = 0; u < units; ++u) {
      const T* a = da + row * row_stride + u / width * da_stride + u % width;
      const T* w = weights + u * inputs + input;
      for (int64_t g = 0; g < gates; ++g, w += units * inputs) {
        for (int line = 0; line < Vectors * width; line += 64 / static_cast<int>(sizeof(T)))
          __builtin_prefetch(w + 2 * inputs + line);  // too short a piece of a row for the hardware to fetch ahead
        const vec<T> one = splat(a[columns[g] * width]);
        RNNFAST_UNROLL_FOR (int v = 0; v < Vectors; ++v)
          acc[v] = fma(one, Vectors > 1 ? load(w + v * width) : load_part(w, valid), acc[v]);
      }
    }
    vec<T> sums[Vectors];  // in memory, so that the loop below need not be unrolled
    RNNFAST_UNROLL_FOR (int v = 0; v < Vectors; ++v) sums[v] = acc[v];
    T* to = out[row] + input;
    for (int v = 0; v < Vectors; ++v, to += width) {
      const int64_t count = min(width, valid);
      store_part(to, add ? sums[v] + load_part(to, count) : sums[v], count);
    }
  }

  RNNFAST_NOINLINE void run(int64_t rows, Range panels) const {
    for (int64_t p = panels.first, count; p < panels.last; p += count) {
      const int64_t whole = min(panels.last, inputs / width) - p;
      count = whole >= together ? together : whole >= 4 ? 4 : 1;
      for (int64_t row = 0; row < rows; ++row)
        count == together ? tile<together>(row, p * width)
        : count == 4      ? tile<4>(row, p * width)
                          : tile<1>(row, p * width);
    }
  }
};

// --- packing ---

// The square of `rows` x `columns` at `in`, at most one vector each way, turned over its diagonal. Lines of `out` are
// whole vectors with zeros behind the first `rows`, or cut there.
template <class T, bool Cut>
RNNFAST_HOT void transpose_square(const T* in, int64_t in_stride, int64_t rows, int64_t columns, T* out,
                                  int64_t out_stride) {
  vec<T> square[lanes<T>];
  RNNFAST_UNROLL_FOR (int r = 0; r < lanes<T>; ++r)
    square[r] = r < rows ? load_part(in + r * in_stride, columns) : splat(T(0));
  transpose<T>(square);
  RNNFAST_UNROLL_FOR (int c = 0; c < lanes<T>; ++c)
    if (c < columns) store_part(out + c * out_stride, square[c], Cut ? rows : lanes<T>);
}

// weight [gates * units, k] -> [panel][k][gate][lane], lanes beyond `units` 0; panels [first, last).
template <class T>
RNNFAST_NOINLINE void pack_by_unit(const T* weight, int gates, int64_t units, int64_t k_size, T* packed, int64_t first,
                                   int64_t last) {
  constexpr int width = lanes<T>, along = 256;  // so far along the rows of one gate before those of the next
  for (int64_t p = first; p < last; ++p)
    for (int64_t from = 0; from < k_size; from += along)
      for (int g = 0; g < gates; ++g)
        for (int64_t k = from; k < min(from + along, k_size); k += width)
          transpose_square<T, false>(weight + (g * units + p * width) * k_size + k, k_size,
                                     min(width, units - p * width), min(width, k_size - k),
                                     packed + ((p * k_size + k) * gates + g) * width, gates * width);
}

// The inverse, for gradients.
template <class T>
RNNFAST_NOINLINE void unpack_by_unit(const T* packed, int gates, int64_t units, int64_t k_size, T* weight,
                                     int64_t first, int64_t last) {
  constexpr int width = lanes<T>, along = 256;
  for (int64_t p = first; p < last; ++p)
    for (int64_t from = 0; from < k_size; from += along)
      for (int g = 0; g < gates; ++g)
        for (int64_t k = from; k < min(from + along, k_size); k += width)
          transpose_square<T, true>(packed + ((p * k_size + k) * gates + g) * width, gates * width,
                                    min(width, k_size - k), min(width, units - p * width),
                                    weight + (g * units + p * width) * k_size + k, k_size);
}

// The transpose for backward: weight [gates * units, k] -> [panel of k][unit][gate][lane]; panels [first, last).
template <class T>
RNNFAST_NOINLINE void pack_by_input(const T* weight, int gates, int64_t units, int64_t k_size, T* packed, int64_t first,
                                    int64_t last) {
  constexpr int width = lanes<T>;
  constexpr int64_t together = 8;  // panels, so that a row is read many lines at a time
  for (int64_t from = first; from < last; from += together)
    for (int64_t u = 0; u < units; ++u)
      for (int g = 0; g < gates; ++g) {
        const T* in = weight + (g * units + u) * k_size;
        for (int64_t p = from; p < min(from + together, last); ++p)
          store<T>(packed + ((p * units + u) * gates + g) * width,
                   load_part(in + p * width, min(width, k_size - p * width)));
      }
}

}  // namespace
}  // namespace rnnfast
