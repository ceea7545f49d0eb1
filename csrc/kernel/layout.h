// Where things are: packed weights, the tape, rows of arrays.
#pragma once

#include "cell.h"
#include "schedule.h"

namespace rnnfast {
namespace {

// A [T, B, features] array of known type.
template <class T> struct Rows {
  T* data;
  int64_t stride_t, stride_b;

  T* at(int64_t t, int64_t b) const { return data + t * stride_t + b * stride_b; }
};

template <class T> Rows<const T> rows_of(const Input& v) {
  return {static_cast<const T*>(v.data), v.stride_t, v.stride_b};
}
template <class T> Rows<T> rows_of(const Output& v) { return {static_cast<T*>(v.data), v.stride_t, v.stride_b}; }
template <class T> Rows<T> contiguous(T* data, int64_t batch, int64_t features) {
  return {data, batch * features, features};
}
template <class T> Rows<const T> read_only(const Rows<T>& r) { return {r.data, r.stride_t, r.stride_b}; }

// A state array [L*D, B, H], or null.
template <class T> T* state_of(void* state, const Forward& pass, int64_t number) {
  return state ? static_cast<T*>(state) + number * pass.batch * pass.spec.hidden_size : nullptr;
}
template <class T> const T* state_of(const void* state, const Forward& pass, int64_t number) {
  return state_of<T>(const_cast<void*>(state), pass, number);
}

inline int64_t inputs_of(const Spec& spec, int64_t layer) {
  return layer == 0 ? spec.input_size : spec.num_directions * spec.hidden_size;
}
inline int64_t widest_input(const Spec& spec) {
  return spec.num_layers == 1 ? spec.input_size : max(spec.input_size, inputs_of(spec, 1));
}

// The packed weights of one layer and direction.
template <class C, class T> struct Packed {
  static constexpr int64_t width = lanes<T>;
  int64_t inputs = 0, units = 0;
  T* w = nullptr;     // [panel][k < I][gate][lane]
  T* u = nullptr;     // [panel][k < H][gate][lane]
  T* bias = nullptr;  // [panel][column][lane]

  Packed() = default;
  Packed(Arena& arena, int64_t inputs, int64_t units) : inputs(inputs), units(units) {
    const int64_t panels = panels_of<T>(units);
    w = arena.take<T>(panels * inputs * C::gates * width);
    u = arena.take<T>(panels * units * C::gates * width);
    bias = arena.take<T>(panels * C::columns * width);
  }

  void fill(const Weights& from, int64_t first, int64_t last) const {
    pack_by_unit(static_cast<const T*>(from.weight_ih), C::gates, units, inputs, w, first, last);
    pack_by_unit(static_cast<const T*>(from.weight_hh), C::gates, units, units, u, first, last);
    for (int64_t p = first; p < last; ++p) fill_bias(from, p);
  }

  // --- the sums of `R` rows and `P` panels, in registers ---
  // x and h have a chain of additions each, which starts from 0; the bias comes last. One chain for both, starting
  // with the bias, was measured to have a fifth more error.

  template <int R, int P> using Sums = vec<T>[R][P * C::gates];

  template <int R, int P>
  RNNFAST_INLINE void multiply_input(Sums<R, P>& acc, const T* const (&x)[R], int64_t panel) const {
    multiply<R, P>(acc, x, w, inputs, panel);
  }
  template <int R, int P>
  RNNFAST_INLINE void multiply_hidden(Sums<R, P>& acc, const T* const (&h)[R], int64_t panel) const {
    multiply<R, P>(acc, h, u, units, panel);
  }

  // To [row][gate][lane] at out[p].
  template <int R, int P> static RNNFAST_INLINE void store_sums(const Sums<R, P>& acc, T* const (&out)[P]) {
    RNNFAST_UNROLL_FOR (int p = 0; p < P; ++p)
      RNNFAST_UNROLL_FOR (int r = 0; r < R; ++r)
        RNNFAST_UNROLL_FOR (int g = 0; g < C::gates; ++g)
          store<T>(out[p] + (r * C::gates + g) * width, acc[r][p * C::gates + g]);
  }

  // The columns of one row and panel, from its sums [gate][lane] over x and over h.
  RNNFAST_INLINE void join(const T* x, const vec<T>* h, int64_t panel, vec<T> (&a)[C::columns]) const {
    const T* first = bias + panel * C::columns * width;
    RNNFAST_UNROLL_FOR (int g = 0; g < C::gates; ++g) {
      const int to = C::x_columns::at(g), h_to = C::h_columns::at(g);
      if (to == h_to) {
        a[to] = load(x + g * width) + h[g] + load(first + to * width);
      } else {  // GRU's n, whose two parts meet in the cell
        a[to] = load(x + g * width) + load(first + to * width);
        a[h_to] = h[g] + load(first + h_to * width);
      }
    }
  }

 private:
  template <int R, int P>
  RNNFAST_INLINE void multiply(Sums<R, P>& acc, const T* const (&a)[R], const T* packed, int64_t k_size,
                               int64_t panel) const {
    const T* b[P];
    RNNFAST_UNROLL_FOR (int p = 0; p < P; ++p) b[p] = packed + (panel + p) * k_size * C::gates * width;
    RNNFAST_UNROLL_FOR (int r = 0; r < R; ++r)
      RNNFAST_UNROLL_FOR (int j = 0; j < P * C::gates; ++j) acc[r][j] = vec<T>{};
    accumulate<typename C::x_columns, 1, C::gates, R, P, T>(acc, a, b, k_size);
  }

  void fill_bias(const Weights& from, int64_t p) const {
    const T* b_ih = static_cast<const T*>(from.bias_ih);
    const T* b_hh = static_cast<const T*>(from.bias_hh);
    T* out = bias + p * C::columns * width;
    for (int64_t j = 0; j < C::columns * width; ++j) out[j] = T(0);
    for (int g = 0; g < C::gates; ++g)
      for (int64_t lane = 0; lane < min(width, units - p * width); ++lane) {
        const int64_t at = g * units + p * width + lane;
        if (b_ih) out[C::x_columns::at(g) * width + lane] += b_ih[at];
        if (b_hh) out[C::h_columns::at(g) * width + lane] += b_hh[at];
      }
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
  explicit Tape(const Forward& pass, int64_t rows) : spec_(pass.spec), batch_(pass.batch), arena_(pass.tape), used_(0) {
    const Spec& s = pass.spec;
    const int64_t cells = s.num_layers * s.num_directions, panels = panels_of<T>(s.hidden_size);
    saved_size_ = pass.segments ? 0 : panels * rows * C::saved * lanes<T>;
    saved_ = arena_.template take<T>(cells * saved_size_);
    boundary_size_ = C::has_c ? panels * pass.batch * lanes<T> : 0;
    boundaries_ = pass.segments ? ceil_div(pass.steps, segment_steps(pass)) : 0;
    boundary_ = arena_.template take<T>(cells * boundaries_ * boundary_size_);
    output_size_ = pass.steps * pass.batch * s.num_directions * s.hidden_size;
    outputs_ = arena_.template take<T>((s.num_layers - 1) * output_size_);
    used_ = arena_.used();
  }

  size_t bytes() const { return used_; }
  // [panel][row][saved][lane]
  T* saved(int64_t layer, int64_t direction) const {
    return saved_ + (layer * spec_.num_directions + direction) * saved_size_;
  }
  // [panel][B][lane]: c before the first step of a segment
  T* boundary(int64_t layer, int64_t direction, int64_t segment) const {
    return boundary_ + ((layer * spec_.num_directions + direction) * boundaries_ + segment) * boundary_size_;
  }
  // [T, B, D*H], below the top layer
  Rows<T> output(int64_t layer) const {
    return contiguous(outputs_ + layer * output_size_, batch_, spec_.num_directions * spec_.hidden_size);
  }

 private:
  Spec spec_;
  int64_t batch_;
  Arena arena_;
  size_t used_;
  int64_t saved_size_, boundary_size_, boundaries_, output_size_;
  T *saved_, *boundary_, *outputs_;
};

// out = x * mask / (1 - p) over the rows of a schedule, a share of them; x may be out.
template <class T>
void apply_dropout(const Forward& pass, const Schedule& schedule, int64_t layer, Rows<const T> x, Rows<T> out,
                   Range steps) {
  const int64_t features = pass.spec.num_directions * pass.spec.hidden_size;
  const T scale = pass.dropout < 1 ? T(1 / (1 - pass.dropout)) : T(0);
  for (int64_t t = steps.first; t < steps.last; ++t) {
    const StepRows rows = schedule.rows(t);
    for (int64_t r = 0; r < rows.count; ++r) {
      const int64_t b = rows.batch(r);
      const uint64_t key = dropout_key(pass.seed, layer, t, b);
      const T* in = x.at(t, b);
      T* to = out.at(t, b);
      for (int64_t j = 0; j < features; ++j) to[j] = dropout_keeps(key, j, pass.dropout) ? in[j] * scale : T(0);
    }
  }
}

}  // namespace
}  // namespace rnnfast
