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

// The packed weights of one layer and direction. The bias of a column is what its chain of additions starts with.
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

  // --- the chains of `R` rows and `P` panels, in registers: start, add_input, split, add_hidden, join ---

  template <int R, int P> using Chains = vec<T>[R][P * C::gates];

  template <int R, int P> RNNFAST_INLINE void start(Chains<R, P>& acc, int64_t panel) const {
    RNNFAST_UNROLL_FOR (int p = 0; p < P; ++p)
      RNNFAST_UNROLL_FOR (int g = 0; g < C::gates; ++g) {
        const vec<T> first = load(bias + ((panel + p) * C::columns + C::x_columns::at(g)) * width);
        RNNFAST_UNROLL_FOR (int r = 0; r < R; ++r) acc[r][p * C::gates + g] = first;
      }
  }

  template <int R, int P>
  RNNFAST_INLINE void add_input(Chains<R, P>& acc, const T* const (&x)[R], int64_t panel) const {
    add<R, P>(acc, x, w, inputs, panel);
  }
  template <int R, int P>
  RNNFAST_INLINE void add_hidden(Chains<R, P>& acc, const T* const (&h)[R], int64_t panel) const {
    add<R, P>(acc, h, u, units, panel);
  }

  // Columns that only x or only h adds to (GRU's n): the x part is complete, and h's chain starts with its own bias.
  template <int R, int P>
  RNNFAST_INLINE void split(Chains<R, P>& acc, vec<T> (&a)[R][P][C::columns], int64_t panel) const {
    RNNFAST_UNROLL_FOR (int p = 0; p < P; ++p)
      RNNFAST_UNROLL_FOR (int g = 0; g < C::gates; ++g) {
        if (C::x_columns::at(g) == C::h_columns::at(g)) continue;
        const vec<T> first = load(bias + ((panel + p) * C::columns + C::h_columns::at(g)) * width);
        RNNFAST_UNROLL_FOR (int r = 0; r < R; ++r) {
          a[r][p][C::x_columns::at(g)] = acc[r][p * C::gates + g];
          acc[r][p * C::gates + g] = first;
        }
      }
  }

  template <int R, int P> RNNFAST_INLINE void join(const Chains<R, P>& acc, vec<T> (&a)[R][P][C::columns]) const {
    RNNFAST_UNROLL_FOR (int r = 0; r < R; ++r)
      RNNFAST_UNROLL_FOR (int p = 0; p < P; ++p)
        RNNFAST_UNROLL_FOR (int g = 0; g < C::gates; ++g) a[r][p][C::h_columns::at(g)] = acc[r][p * C::gates + g];
  }

 private:
  template <int R, int P>
  RNNFAST_INLINE void add(Chains<R, P>& acc, const T* const (&a)[R], const T* packed, int64_t k_size,
                          int64_t panel) const {
    const T* b[P];
    RNNFAST_UNROLL_FOR (int p = 0; p < P; ++p) b[p] = packed + (panel + p) * k_size * C::gates * width;
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

// The steps between two boundaries that the tape keeps, counted in the direction of the scan.
inline int64_t segment_steps(const Forward& pass) {
  return pass.segments > 0 ? max(1, ceil_div(pass.steps, pass.segments)) : max(1, pass.steps);
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
