// Where things are: packed weights, the tape, rows of arrays.
#pragma once

#include "cell.h"
#include "layer_norm.h"
#include "schedule.h"

namespace rnnfast {
namespace {

// A [T, B, features] array of known type.
template <class T> struct Rows {
  T* data;
  int64_t stride_t, stride_b;
  const int64_t* starts;  // as View's

  T* at(int64_t t, int64_t b) const {
    return data + (starts ? (starts[t] + b) * stride_b : t * stride_t + b * stride_b);
  }
};

template <class T> Rows<const T> rows_of(const Input& v) {
  return {static_cast<const T*>(v.data), v.stride_t, v.stride_b, v.starts};
}
template <class T> Rows<T> rows_of(const Output& v) {
  return {static_cast<T*>(v.data), v.stride_t, v.stride_b, v.starts};
}
template <class T> Rows<T> contiguous(T* data, int64_t batch, int64_t features) {
  return {data, batch * features, features, nullptr};
}
template <class T> Rows<const T> read_only(const Rows<T>& r) { return {r.data, r.stride_t, r.stride_b, r.starts}; }

// The sizes of one layer and direction.
struct Sizes {
  int64_t inputs, units, outputs;  // I_l, H, S
  int64_t panels, output_panels;   // vectors of H and of S
};
template <class T> RNNFAST_INLINE Sizes sizes_of(const Spec& spec, int64_t layer) {
  const int64_t units = units_of(spec, layer), outputs = outputs_of(spec, layer);
  return {inputs_of(spec, layer), units, outputs, panels_of<T>(units), panels_of<T>(outputs)};
}

// Each size's largest over the layers: scratch memory serves layer after layer.
template <class T> RNNFAST_NOINLINE Sizes largest_sizes(const Spec& spec) {
  Sizes most = sizes_of<T>(spec, 0);
  const int64_t different = spec.hidden_sizes ? spec.num_layers : min(spec.num_layers, 2);
  for (int64_t l = 1; l < different; ++l) {
    const Sizes n = sizes_of<T>(spec, l);
    most = {max(most.inputs, n.inputs), max(most.units, n.units), max(most.outputs, n.outputs),
            max(most.panels, n.panels), max(most.output_panels, n.output_panels)};
  }
  return most;
}

// The [B, size] part of an array of states that belongs to a layer and direction, or null. `size_of` is units_of or
// outputs_of.
using SizeOf = int64_t (*)(const Spec&, int64_t);
template <class T>
RNNFAST_INLINE T* state_of(void* states, const Forward& pass, int64_t layer, int64_t direction, SizeOf size_of) {
  if (!states) return nullptr;
  int64_t rows_before = direction * size_of(pass.spec, layer);
  for (int64_t l = 0; l < layer; ++l) rows_before += pass.spec.num_directions * size_of(pass.spec, l);
  return static_cast<T*>(states) + rows_before * pass.batch;
}
template <class T>
const T* state_of(const void* states, const Forward& pass, int64_t layer, int64_t direction, SizeOf size_of) {
  return state_of<T>(const_cast<void*>(states), pass, layer, direction, size_of);
}

inline bool resets_before(const Spec& spec) { return spec.cell == Cell::gru && !spec.reset_after; }

// Whether the cell's general form is needed.
inline bool is_standard(const Activation& a, Function standard) {
  return a.function == Function::standard || a.function == standard;
}
inline bool is_general(const Spec& spec) {
  bool standard = true;
  for (int d = 0; d < spec.num_directions; ++d) {
    const Activations& a = spec.activations[d];
    if (spec.cell == Cell::rnn)
      standard &= is_standard(a.gate, Function::tanh) || a.gate.function == Function::relu;
    else
      standard &= is_standard(a.gate, Function::sigmoid) && is_standard(a.candidate, Function::tanh) &&
                  (spec.cell != Cell::lstm || is_standard(a.output, Function::tanh));
  }
  return !standard || spec.clip > 0 || spec.peepholes || spec.coupled_gates || resets_before(spec) ||
         spec.zoneout_h > 0 || spec.zoneout_c > 0 || spec.layer_norm;
}
// On the tape, per unit and row. Layer normalization adds the normalized sums of every gate over x and over h.
template <class C> int64_t saved_values(const Spec& spec, bool general) {
  return (general ? C::saved_general : C::saved) + (spec.layer_norm ? 2 * C::gates : 0);
}

// Every gate's column, in order.
template <int Gates> struct InOrderOf;
template <> struct InOrderOf<1> {
  using type = Columns<0>;
};
template <> struct InOrderOf<2> {
  using type = Columns<0, 1>;
};
template <> struct InOrderOf<3> {
  using type = Columns<0, 1, 2>;
};
template <> struct InOrderOf<4> {
  using type = Columns<0, 1, 2, 3>;
};
template <int Gates> using InOrder = typename InOrderOf<Gates>::type;

template <int First> using Half = Columns<First, First + 1>;  // of four gates

// sums = rows times packed weights, to [panel][row][gate][lane]. Each sum starts from 0.
template <int Gates, class T> struct Products {
  static constexpr int most_panels = 8, rows_of_many = high_rows<Gates>,
                       most_rows = kept_small<T> ? rows_of_many : rows_alone<Gates>;
  const T* const* rows;
  const T* packed;  // [panel][k][gate][lane]
  int64_t k_size;
  T* sums;
  int64_t panel_stride;    // of the sums
  Range walk{};            // the panels whose weights are fetched ahead: all of the step, or none
  bool back = false;       // they are gone over from the last to the first
  bool from_afar = false;  // the rows, which are fetched ahead too
  Range piece{0, k_size};  // of k: all, or as in run_pieces

  template <int R, int P> RNNFAST_INLINE void tile(int64_t panel, int64_t row) const {
    if constexpr (fits(R, P * Gates)) {
      gates_of_tile<InOrder<Gates>, R, P>(panel, row);
    } else {
      gates_of_tile<Half<0>, R, P>(panel, row);
      gates_of_tile<Half<2>, R, P>(panel, row);
    }
  }

  template <class Map, int R, int P> RNNFAST_INLINE void gates_of_tile(int64_t panel, int64_t row) const {
    constexpr int count = Map::count, width = lanes<T>;
    const Range part = knows_pieces<R, P> ? piece : Range{0, k_size};
    vec<T> acc[R][P * count];
    const T *a[R], *b[P];
    T* out[P];
    RNNFAST_UNROLL_FOR (int r = 0; r < R; ++r) a[r] = rows[row + r] + part.first;
    RNNFAST_UNROLL_FOR (int p = 0; p < P; ++p) {
      b[p] = packed + ((panel + p) * k_size + part.first) * Gates * width;
      out[p] = sums + (panel + p) * panel_stride + row * Gates * width;
    }
    RNNFAST_UNROLL_FOR (int r = 0; r < R; ++r)
      RNNFAST_UNROLL_FOR (int j = 0; j < P * count; ++j) acc[r][j] = vec<T>{};
    if (part.first > 0)
      RNNFAST_UNROLL_FOR (int p = 0; p < P; ++p)
        RNNFAST_UNROLL_FOR (int r = 0; r < R; ++r)
          RNNFAST_UNROLL_FOR (int g = 0; g < count; ++g)
            acc[r][p * count + g] = load(out[p] + (r * Gates + Map::at(g)) * width);
    if constexpr (knows_pieces<R, P>) {
      accumulate<Map, 1, Gates, R, P, T>(acc, a, b, part.size(), two_ahead<R, P>(panel, row, Map::at(0) > 0));
    } else if constexpr (fetches_ahead<T, Gates, R> && Map::at(0) == 0) {  // once, where gates come in halves
      accumulate<Map, 1, Gates, R, P, T>(acc, a, b, k_size, ahead<R, P>(panel, row));
    } else {
      accumulate<Map, 1, Gates, R, P, T>(acc, a, b, k_size);
    }
    RNNFAST_UNROLL_FOR (int p = 0; p < P; ++p)
      RNNFAST_UNROLL_FOR (int r = 0; r < R; ++r)
        RNNFAST_UNROLL_FOR (int g = 0; g < count; ++g)
          store<T>(out[p] + (r * Gates + Map::at(g)) * width, acc[r][p * count + g]);
  }

  // The weights of the next panels, or the next tile's rows. Not those of h: they are near, and behind the last may be
  // another thread's.
  template <int R, int P> RNNFAST_INLINE Ahead<T> ahead(int64_t panel, int64_t row) const {
    const int64_t next = back ? panel - P : panel + P;
    if (!walk.has(next)) return from_afar ? Ahead<T>{rows[row + R - 1] + k_size, R} : nothing(row);
    return {packed + next * k_size * Gates * lanes<T> + tile_number<R>(row) % lines<P> * k_size * line, line};
  }

  // The same, or half of the next piece: of this panel, or the next one's first. Behind the last panel it is this
  // one's, with which the next step begins.
  template <int R, int P> RNNFAST_INLINE TwoAhead<T> two_ahead(int64_t panel, int64_t row, bool second_half) const {
    if (piece.size() == k_size) return {second_half ? nothing(row) : ahead<R, P>(panel, row), nothing(row)};
    constexpr int64_t each = ceil_div(lines<P>, 2);
    const int64_t next = back ? panel - P : panel + P, half = (tile_number<R>(row) + second_half) % 2;
    const int64_t k = piece.last < k_size ? panel * k_size + piece.last : (walk.has(next) ? next : panel) * k_size;
    // Panels lie apart; of one panel a piece is contiguous.
    const int64_t apart = P > 1 ? k_size * lanes<T> : line, step = P > 1 ? lanes<T> : each * line;
    const T* at = packed + k * Gates * lanes<T> + half * each * (P > 1 ? apart : piece.size() * line);
    return {{at, step}, each > 1 ? Ahead<T>{at + apart, step} : nothing(row)};
  }

  // How often each weight is used.
  static constexpr int64_t uses(int64_t count) {
    const int64_t tiles = Heights<Products, Gates>(count).tiles;
    return tiles == 1 && !fits(count, Gates) ? 2 : tiles;
  }

  // `weights`: the mean of W and U, of the panels in `walk`.
  void run(int64_t count, Range panels, int64_t weights) {
    const int64_t times = uses(count), bytes = weights * static_cast<int64_t>(sizeof(T));
    const bool fetches = reads_from_afar<T>(times, weights);
    if constexpr (has_pieces) {
      const bool few = times == 2 || (vector_bytes == 64 && count <= 20 && bytes > 8 << 20);
      if (fetches && few && k_size > most_of_piece) return run_pieces(count, panels);
    }
    if (!fetches) walk = {};
    run_tiles<Gates>(*this, count, panels.first, panels.last, back);
  }

 private:
  static constexpr int64_t line = 64 / sizeof(T);
  template <int P> static constexpr int64_t lines = ceil_div(P * Gates * vector_bytes, 64);  // for each k
  Ahead<T> nothing(int64_t row) const { return {rows[row], 0}; }

  // Where weights from afar are used only twice, or come from memory for few rows, their way takes as long as the
  // products. So the tiles, or the halves of one, use a piece of them that stays in L1, and meanwhile each fetches a
  // half of the next piece. With narrower vectors products take longer, and only LSTMs gain.
  static constexpr bool has_pieces = !kept_small<T> && (vector_bytes == 64 ? Gates != 2 : Gates == 4);
  static constexpr int64_t most_of_piece = (20 << 10) / (full_panels<Gates> * Gates * vector_bytes);
  // One of several tiles, or of halves, has at least half of the rows that are one tile.
  template <int R, int P>
  static constexpr bool knows_pieces = has_pieces && full_panels<Gates> == P && 2 * R >= most_rows;

  RNNFAST_NOINLINE void run_pieces(int64_t count, Range panels) {
    constexpr int64_t full = full_panels<Gates>;
    static_assert(knows_pieces<(most_rows + 1) / 2, full> && knows_pieces<most_rows, full>);
    for_groups(panels.first, panels.last, full, back, [&](int64_t panel, int64_t group) {
      const int64_t pieces = group == full ? ceil_div(k_size, most_of_piece) : 1;
      for (int64_t j = 0; j < pieces; ++j) {
        piece = {k_size * j / pieces, k_size * (j + 1) / pieces};
        run_rows<Gates>(*this, count, panel, group);
      }
    });
  }
};

// Products of one panel alone, whose few vectors leave registers for more rows.
template <int Vectors, class T> struct TailProducts : Products<Vectors, T> {
  static constexpr int most_panels = 1,
                       most_rows = fits(8, Vectors)   ? 8
                                   : fits(6, Vectors) ? 6
                                                      : 4,
                       rows_of_many = most_rows;
};

// The last panel of packed weights once more, its gates without gaps: where it has few units, they are fewer vectors.
// Products of several rows take it.
template <int Gates, class T> struct Tail {
  static constexpr int64_t width = lanes<T>;
  using V = vec<T>;
  int64_t units, vectors, k_size;
  T* packed;  // [k][vector][lane]; null where there is nothing to gain

  Tail() = default;
  RNNFAST_ONCE Tail(Arena& arena, int64_t all_units, int64_t k_size)
      : units(all_units - (panels_of<T>(all_units) - 1) * width),
        vectors(ceil_div(Gates * units, width)),
        k_size(k_size),
        packed(nullptr) {
    constexpr int64_t least = 16;  // with fewer k the sums take longer to spread than the products
    // One vector more, over which the last stores of `fill` run.
    if (!kept_small<T> && vectors < Gates && k_size >= least) packed = arena.take<T>((k_size * vectors + 1) * width);
  }

  // From the panel as it is packed: [k][gate][lane].
  RNNFAST_ONCE void fill(const T* panel) const {
    for (int64_t k = 0; k < k_size; ++k) {
      T* out = packed + k * vectors * width;
      store<T>(out + (vectors - 1) * width, V{});  // for what is behind the last gate
      for (int64_t g = 0; g < Gates; ++g) store<T>(out + g * units, load(panel + (k * Gates + g) * width));
    }
  }

  // [row][gate][lane], as from the panel.
  void multiply(const T* const* rows, int64_t count, T* sums) const {
    if constexpr (!kept_small<T> && Gates > 1)
      if (vectors == 1) multiply_by<1>(rows, count, sums);
    if constexpr (!kept_small<T> && Gates > 2)
      if (vectors == 2) multiply_by<2>(rows, count, sums);
    if constexpr (!kept_small<T> && Gates > 3)
      if (vectors == 3) multiply_by<3>(rows, count, sums);
  }

 private:
  template <int Vectors> RNNFAST_NOINLINE void multiply_by(const T* const* rows, int64_t count, T* sums) const {
    constexpr int64_t some = 24;  // rows
    alignas(64) T dense[some * Vectors * width];
    for (int64_t first = 0; first < count; first += some) {
      const int64_t last = min(first + some, count);
      const TailProducts<Vectors, T> products{{rows + first, packed, k_size, dense, 0}};
      run_rows<Vectors>(products, last - first, 0, 1);
      for (int64_t r = first; r < last; ++r)
        for (int64_t g = 0; g < Gates; ++g)
          store<T>(sums + (r * Gates + g) * width, load_n(dense + (r - first) * Vectors * width + g * units, units));
    }
  }
};

// The packed weights of one layer and direction.
template <class C, class T> struct Packed {
  static constexpr int64_t width = lanes<T>;
  Sizes n{};
  bool split = false;  // U in two parts: the reset gate of GRU stands between them
  T* w = nullptr;      // [panel][k < I][gate][lane]
  T* u = nullptr;      // [panel][k < S][gate][lane]; split: of the first two gates, and then u_n
  T* u_n = nullptr;    // [panel][k < S][lane]
  Tail<C::gates, T> w_tail{}, u_tail{};
  T* bias = nullptr;       // [panel][column][lane]
  T* hr = nullptr;         // [panel of S][k < H][lane], with a projection
  T* peepholes = nullptr;  // [panel][3][lane]
  // With layer normalization: the scales of W x and of U h, [panel][gate][lane]; scale and shift of c,
  // [panel][2][lane].
  T *ln_ih = nullptr, *ln_hh = nullptr, *ln_c = nullptr;

  Packed() = default;
  Packed(Arena& arena, const Spec& spec, const Sizes& n) : n(n), split(C::gates == 3 && resets_before(spec)) {
    w = arena.take<T>(n.panels * n.inputs * C::gates * width);
    u = arena.take<T>(n.panels * n.outputs * C::gates * width);
    if (split) u_n = u + n.panels * n.outputs * 2 * width;
    if (C::gates > 1) w_tail = Tail<C::gates, T>(arena, n.units, n.inputs);  // one gate has no gaps
    if (C::gates > 1 && !split) u_tail = Tail<C::gates, T>(arena, n.units, n.outputs);
    bias = arena.take<T>(n.panels * C::columns * width);
    if (C::has_c && spec.proj_size) hr = arena.take<T>(n.output_panels * n.units * width);
    if (C::has_c && spec.peepholes) peepholes = arena.take<T>(n.panels * 3 * width);
    if (C::gates == 1 || !spec.layer_norm) return;
    ln_ih = arena.take<T>(n.panels * C::gates * width);
    ln_hh = arena.take<T>(n.panels * C::gates * width);
    if (C::has_c) ln_c = arena.take<T>(n.panels * 2 * width);
  }

  // A share of the work; everything is packed when all shares are.
  RNNFAST_ONCE void fill(const Weights& from, int64_t share_number, int64_t shares) const {
    const Range own = share(n.panels, share_number, shares);
    const T* weight_hh = static_cast<const T*>(from.weight_hh);
    pack_by_unit(static_cast<const T*>(from.weight_ih), C::gates, n.units, n.inputs, w, own.first, own.last);
    pack_by_unit(weight_hh, split ? 2 : C::gates, n.units, n.outputs, u, own.first, own.last);
    if (split) pack_by_unit(weight_hh + 2 * n.units * n.outputs, 1, n.units, n.outputs, u_n, own.first, own.last);
    if (own.last == n.panels && own.size() > 0) {
      const int64_t last = (n.panels - 1) * C::gates * width;
      if (w_tail.packed) w_tail.fill(w + last * n.inputs);
      if (u_tail.packed) u_tail.fill(u + last * n.outputs);
    }
    for (int64_t p = own.first; p < own.last; ++p) fill_bias(from, p);
    if (peepholes) pack_by_unit(static_cast<const T*>(from.weight_ch), 3, n.units, 1, peepholes, own.first, own.last);
    if (ln_ih) fill_norms(from, own);
    if (!hr) return;
    const Range outputs = share(n.output_panels, share_number, shares);
    pack_by_unit(static_cast<const T*>(from.weight_hr), 1, n.outputs, n.units, hr, outputs.first, outputs.last);
  }

  RNNFAST_ONCE void fill_norms(const Weights& from, Range own) const {
    pack_by_unit(static_cast<const T*>(from.weight_ln_ih), C::gates, n.units, 1, ln_ih, own.first, own.last);
    pack_by_unit(static_cast<const T*>(from.weight_ln_hh), C::gates, n.units, 1, ln_hh, own.first, own.last);
    if (!ln_c) return;
    for (int64_t p = own.first; p < own.last; ++p) {
      const int64_t unit = p * width, valid = min(width, n.units - unit);
      store<T>(ln_c + p * 2 * width, load_part(static_cast<const T*>(from.weight_ln_c) + unit, valid));
      store<T>(ln_c + (p * 2 + 1) * width, load_part(static_cast<const T*>(from.bias_ln_c) + unit, valid));
    }
  }

  // Sums over x or over h, [panel][row][gate][lane], of some panels. `sums` is where those of panel 0 are or would be.
  // They are some of those in `walk`, which other calls go over too.
  void multiply_x(const T* const* rows, int64_t count, Range panels, T* sums, int64_t panel_stride, Range walk,
                  bool back = false) const {
    multiply({rows, w, n.inputs, sums, panel_stride, walk, back, true}, w_tail, count, panels);
  }
  void multiply_h(const T* const* rows, int64_t count, Range panels, T* sums, int64_t panel_stride, Range walk,
                  bool back = false) const {
    multiply({rows, u, n.outputs, sums, panel_stride, walk, back}, u_tail, count, panels);
  }

  // The columns of one row and panel from the normalized sums of its gates.
  void join_normalized(const vec<T> (&x)[C::gates], const vec<T> (&h)[C::gates], int64_t panel,
                       vec<T> (&a)[C::columns]) const {
    const T* first = bias + panel * C::columns * width;
    for (int g = 0; g < C::gates; ++g) {
      const int to = C::x_columns::at(g), h_to = C::h_columns::at(g);
      const vec<T> from_h = load(ln_hh + (panel * C::gates + g) * width) * h[g];
      const vec<T> scale = load(ln_ih + (panel * C::gates + g) * width), b = load(first + to * width);
      a[to] = to == h_to ? fma(scale, x[g], from_h) + b : fma(scale, x[g], b);
      if (to != h_to) a[h_to] = from_h + load(first + h_to * width);
    }
  }

  // The columns of one row and panel, from its sums [gate][lane] over x and over h, which have a chain of additions
  // each; the bias comes last. One chain for both, starting with the bias, was measured to have a fifth more error.
  RNNFAST_INLINE void join(const T* x, const vec<T> (&h)[C::gates], int64_t panel, vec<T> (&a)[C::columns]) const {
    vec<T> x_sums[C::gates];
    RNNFAST_UNROLL_FOR (int g = 0; g < C::gates; ++g) x_sums[g] = load(x + g * width);
    join(x_sums, h, bias + panel * C::columns * width, a);
  }
  template <class V>
  static RNNFAST_INLINE void join(const V (&x)[C::gates], const V (&h)[C::gates], const T* bias, V (&a)[C::columns]) {
    RNNFAST_UNROLL_FOR (int g = 0; g < C::gates; ++g) {
      const int to = C::x_columns::at(g), h_to = C::h_columns::at(g);
      if (to == h_to) {
        a[to] = x[g] + h[g] + V(load(bias + to * width));
      } else {  // GRU's n, whose two parts meet in the cell
        a[to] = x[g] + V(load(bias + to * width));
        a[h_to] = h[g] + V(load(bias + h_to * width));
      }
    }
  }

 private:
  RNNFAST_NOINLINE void multiply(Products<C::gates, T> products, const Tail<C::gates, T>& tail, int64_t count,
                                 Range panels) const {
    const bool has_tail = tail.packed && count > 1 && panels.last == n.panels && panels.size() > 0;
    const int64_t weights = products.walk.size() * (n.inputs + n.outputs) / 2 * C::gates * width;
    products.run(count, {panels.first, panels.last - has_tail}, weights);
    if (has_tail) tail.multiply(products.rows, count, products.sums + (n.panels - 1) * products.panel_stride);
  }

  RNNFAST_ONCE void fill_bias(const Weights& from, int64_t p) const {
    const T* b_ih = static_cast<const T*>(from.bias_ih);
    const T* b_hh = static_cast<const T*>(from.bias_hh);
    const int64_t valid = min(width, n.units - p * width);
    vec<T> sums[C::columns] = {};
    for (int g = 0; g < C::gates; ++g) {
      const int64_t at = g * n.units + p * width;
      if (b_ih) sums[C::x_columns::at(g)] += load_part(b_ih + at, valid);
      if (b_hh) sums[C::h_columns::at(g)] += load_part(b_hh + at, valid);
    }
    for (int j = 0; j < C::columns; ++j) store<T>(bias + (p * C::columns + j) * width, sums[j]);
  }
};

// Backward takes this many steps together: enough rows for the weight gradients' products. Their sums are cut here, so
// that blocks must not depend on anything but the batch.
inline int64_t backward_block(int64_t batch) { return ceil_div(192, max(1, batch)); }

// The steps between two boundaries that the tape keeps, counted in the direction of the scan: whole blocks.
inline int64_t segment_steps(const Forward& pass) {
  const int64_t block = backward_block(pass.batch);
  const int64_t steps = pass.segments > 0 ? ceil_div(pass.steps, pass.segments) : pass.steps;
  return max(1, ceil_div(steps, block)) * block;
}

// What a forward pass leaves for backward: the gates of each layer and direction, and the outputs of the layers below
// the top. x, y and the weights are the caller's and are not copied. With segments it keeps, instead of the gates, the
// c that each segment starts from; the h is in the output.
template <class C, class T> class Tape {
 public:
  Tape(const Forward& pass, int64_t rows, bool general)
      : pass_(pass), rows_(rows), values_(saved_values<C>(pass.spec, general)) {
    boundaries_ = pass.segments ? ceil_div(pass.steps, segment_steps(pass)) : 0;
  }

  size_t bytes() const {
    Arena arena(nullptr);
    for (int64_t l = 0; l < pass_.spec.num_layers; ++l) layer(l, arena);
    return arena.used();
  }
  // [panel][row][saved][lane]
  T* saved(int64_t l, int64_t direction) const { return layer(l).saved[direction]; }
  // [panel][B][lane]: c before the first step of a segment
  T* boundary(int64_t l, int64_t direction, int64_t segment) const {
    return layer(l).boundary[direction] + segment * boundary_size(l);
  }
  // [row]: of W x, of U h and of c, with layer normalization
  Moments<T> (*moments(int64_t l, int64_t direction) const)[3] { return layer(l).moments[direction]; }
  // [T, B, D*S], below the top layer
  Rows<T> output(int64_t l) const { return contiguous(layer(l).output, pass_.batch, inputs_of(pass_.spec, l + 1)); }

 private:
  struct Parts {
    T *saved[2], *boundary[2], *output;
    Moments<T> (*moments[2])[3];
  };

  Parts layer(int64_t l) const {
    Arena arena(pass_.tape);
    for (int64_t below = 0; below < l; ++below) layer(below, arena);
    return layer(l, arena);
  }
  Parts layer(int64_t l, Arena& arena) const {
    const Spec& spec = pass_.spec;
    const int64_t saved_size = pass_.segments ? 0 : panels_of<T>(units_of(spec, l)) * rows_ * values_ * lanes<T>;
    Parts parts{};
    for (int64_t d = 0; d < spec.num_directions; ++d) {
      parts.saved[d] = arena.take<T>(saved_size);
      parts.boundary[d] = arena.take<T>(boundaries_ * boundary_size(l));
      if (spec.layer_norm) parts.moments[d] = arena.take<Moments<T>[3]>(rows_);
    }
    const bool top = l + 1 == spec.num_layers;
    parts.output = arena.take<T>(top ? 0 : pass_.steps * pass_.batch * inputs_of(spec, l + 1));
    return parts;
  }
  int64_t boundary_size(int64_t l) const {
    return C::has_c ? panels_of<T>(units_of(pass_.spec, l)) * pass_.batch * lanes<T> : 0;
  }

  const Forward& pass_;
  int64_t rows_, values_, boundaries_;
};

// out = x times the masks of a layer's input, over the rows of some steps; x may be out. Where dropout is between
// layers, its mask is a function of the row; the mask of the whole sequence, if there is one, is the caller's.
template <class T>
RNNFAST_NOINLINE void apply_input_masks(const Forward& pass, const Schedule& schedule, int64_t layer, Rows<const T> x,
                                        Rows<T> out, Range steps) {
  const int64_t features = inputs_of(pass.spec, layer);
  const T* mask = pass.input_masks ? static_cast<const T*>(pass.input_masks[layer]) : nullptr;
  const double p = layer > 0 ? pass.dropout : 0;
  const T scale = p < 1 ? T(1 / (1 - p)) : T(0);
  for (int64_t t = steps.first; t < steps.last; ++t) {
    const StepRows rows = schedule.rows(t);
    for (int64_t r = 0; r < rows.count; ++r) {
      const int64_t b = rows.batch(r);
      const uint64_t key = dropout_key(pass.seed, layer - 1, t, b);
      const T *in = x.at(t, b), *factors = mask ? mask + b * features : nullptr;
      T* to = out.at(t, b);
      for (int64_t j = 0; j < features; ++j) {
        const T kept = p == 0 ? in[j] : dropout_keeps(key, j, p) ? in[j] * scale : T(0);
        to[j] = factors ? kept * factors[j] : kept;
      }
    }
  }
}
inline bool has_input_masks(const Forward& pass, int64_t layer) {
  return pass.tape && ((layer > 0 && pass.dropout > 0) || (pass.input_masks && pass.input_masks[layer]));
}

}  // namespace
}  // namespace rnnfast
