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

template <class T> Rows<const T> rows_of(const Input& v) { return {static_cast<const T*>(v.data), v.stride_t, v.stride_b}; }
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
  T* w;     // [panel][k < I][gate][lane]
  T* u;     // [panel][k < H][gate][lane]
  T* bias;  // [panel][column][lane]

  Packed(Arena& arena, int64_t inputs, int64_t units) {
    const int64_t panels = panels_of<T>(units);
    w = arena.take<T>(panels * inputs * C::gates * width);
    u = arena.take<T>(panels * units * C::gates * width);
    bias = arena.take<T>(panels * C::columns * width);
  }

  void fill(const Weights& from, int64_t inputs, int64_t units, int64_t first, int64_t last) const {
    pack_by_unit(static_cast<const T*>(from.weight_ih), C::gates, units, inputs, w, first, last);
    pack_by_unit(static_cast<const T*>(from.weight_hh), C::gates, units, units, u, first, last);
    for (int64_t p = first; p < last; ++p) fill_bias(from, units, p);
  }

 private:
  void fill_bias(const Weights& from, int64_t units, int64_t p) const {
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

// What a forward pass leaves for backward: the gates of each layer and direction, and the outputs of the layers below
// the top. x, y and the weights are the caller's and are not copied.
template <class C, class T> class Tape {
 public:
  explicit Tape(const Forward& pass, int64_t rows)
      : spec_(pass.spec), batch_(pass.batch), arena_(pass.tape), used_(0) {
    const Spec& s = pass.spec;
    saved_size_ = panels_of<T>(s.hidden_size) * rows * C::saved * lanes<T>;
    saved_ = arena_.template take<T>(s.num_layers * s.num_directions * saved_size_);
    output_size_ = pass.steps * pass.batch * s.num_directions * s.hidden_size;
    outputs_ = arena_.template take<T>((s.num_layers - 1) * output_size_);
    used_ = arena_.used();
  }

  size_t bytes() const { return used_; }
  // [panel][row][saved][lane]
  T* saved(int64_t layer, int64_t direction) const {
    return saved_ + (layer * spec_.num_directions + direction) * saved_size_;
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
  int64_t saved_size_, output_size_;
  T *saved_, *outputs_;
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
