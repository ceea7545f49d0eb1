// Both passes as plain loops over single numbers: a second implementation of rnnfast.h to compare the kernels with.
//
// It takes every sum in the order that docs/kernels.md fixes, so that results are equal bit for bit, whatever the
// values are (NaN, infinities, denormals, overflow). It knows nothing of vectors, tiles, blocks of forward steps,
// packing or threads. The elementary functions are the table's; guard.cpp compares these with the C library's.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "rnnfast.h"

namespace rnnfast {

// Denormal numbers are zeros while it lives, as they are inside a pass.
class FlushToZero {
 public:
#if defined(__x86_64__)
  FlushToZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushToZero() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  FlushToZero() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(before_ | uint64_t{1} << 24));
  }
  ~FlushToZero() { asm volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  uint64_t before_;
#endif
};

template <class T> class Plain {
 public:
  Plain(const KernelTable& table, const Forward& pass)
      : table_(table),
        fused_(std::strcmp(table.isa, "x86_64_v2") != 0),
        p_(pass),
        s_(pass.spec),
        H_(s_.hidden_size),
        G_(gates_of(s_.cell)),
        W_(s_.num_directions * H_) {}

  // With `train` dropout is applied and backward may follow.
  void forward(bool train) {
    const FlushToZero flush;
    train_ = train;
    layers_.assign(static_cast<size_t>(s_.num_layers * s_.num_directions), {});
    for (int64_t l = 0; l < s_.num_layers; ++l)
      for (int64_t d = 0; d < s_.num_directions; ++d) forward_layer(l, d);
  }

  void backward(const Backward& call) {
    const FlushToZero flush;
    std::vector<T> d_y;  // [T, B, D*H] by the output of the layer; empty above the top
    for (int64_t l = s_.num_layers - 1; l >= 0; --l) {
      std::vector<T> d_x[2];
      for (int64_t d = 0; d < s_.num_directions; ++d) d_x[d] = backward_layer(call, l, d, d_y);
      give_input_gradient(call, l, d_x);
      d_y = std::move(d_x[0]);
    }
  }

 private:
  // What a layer and direction leaves for the layer above and for backward.
  struct Record {
    std::vector<T> h, c, gates;  // [T, B, H], [T, B, H], [T, B, columns, H]
  };
  static constexpr int columns = 4;
  struct State {
    T h, c;
  };

  // --- arithmetic ---

  T fma(T a, T b, T c) const { return fused_ ? std::fma(a, b, c) : a * b + c; }
  T elementary(int f, T x) const {
    T y;
    table_.apply[f][static_cast<int>(s_.dtype)](&x, &y, 1);
    return y;
  }
  T sigmoid(T x) const { return elementary(KernelTable::sigmoid, x); }
  T tanh(T x) const { return elementary(KernelTable::tanh, x); }
  T d_sigmoid(T y) const { return fma(-y, y, y); }
  T d_tanh(T y) const { return fma(-y, y, T(1)); }

  // --- places ---

  int64_t inputs(int64_t l) const { return l ? W_ : s_.input_size; }
  int64_t length(int64_t b) const { return p_.lengths ? p_.lengths[b] : p_.steps; }
  // The step that the scan does as its number s over all T steps, and whether b takes part.
  int64_t time_of(int64_t d, int64_t s) const { return d ? p_.steps - 1 - s : s; }
  bool active(int64_t t, int64_t b) const { return t < length(b); }
  size_t at(int64_t t, int64_t b, int64_t size) const { return static_cast<size_t>((t * p_.batch + b) * size); }
  const Record& record(int64_t l, int64_t d) const { return layers_[static_cast<size_t>(l * s_.num_directions + d)]; }
  template <class V> static auto row(const View<V>& view, int64_t t, int64_t b) {
    using Element = std::conditional_t<std::is_const_v<V>, const T, T>;
    return static_cast<Element*>(view.data) + t * view.stride_t + b * view.stride_b;
  }
  template <class V> auto state(V* array, int64_t l, int64_t d, int64_t b) const {
    using Element = std::conditional_t<std::is_const_v<V>, const T, T>;
    return array ? static_cast<Element*>(array) + ((l * s_.num_directions + d) * p_.batch + b) * H_ : nullptr;
  }
  static const T* weights(const void* w) { return static_cast<const T*>(w); }

  // Which column the sums of gate g over x and over h go to: GRU's candidate keeps the two apart.
  int64_t x_column(int64_t g) const { return g; }
  int64_t h_column(int64_t g) const { return s_.cell == Cell::gru && g == 2 ? 3 : g; }

  // The input of a layer at one row: x, or the output of the layer below, behind dropout.
  std::vector<T> input(int64_t l, int64_t t, int64_t b) const {
    std::vector<T> x(static_cast<size_t>(inputs(l)));
    if (!l) {
      if (!x.empty()) std::copy_n(row(p_.x, t, b), x.size(), x.begin());
      return x;
    }
    for (int64_t d = 0; d < s_.num_directions; ++d)
      std::copy_n(record(l - 1, d).h.begin() + static_cast<int64_t>(at(t, b, H_)), H_, x.begin() + d * H_);
    drop(l - 1, t, b, x.data());
    return x;
  }

  // Dropout on the output of layer l at one row, or on the gradient by it.
  void drop(int64_t l, int64_t t, int64_t b, T* values) const {
    if (!train_ || !(p_.dropout > 0)) return;
    const uint64_t key = dropout_key(p_.seed, l, t, b);
    const T scale = p_.dropout < 1 ? T(1 / (1 - p_.dropout)) : T(0);
    for (int64_t j = 0; j < W_; ++j) values[j] = dropout_keeps(key, j, p_.dropout) ? values[j] * scale : T(0);
  }

  // --- forward ---

  void forward_layer(int64_t l, int64_t d) {
    Record& r = layers_[static_cast<size_t>(l * s_.num_directions + d)];
    const size_t size = at(p_.steps, 0, H_);
    r.h.resize(size), r.c.resize(size), r.gates.resize(size * columns);
    for (int64_t b = 0; b < p_.batch; ++b) {
      std::vector<T> h(static_cast<size_t>(H_)), c(h);
      if (const T* h0 = state(p_.h0, l, d, b)) std::copy_n(h0, H_, h.begin());
      if (const T* c0 = state(p_.c0, l, d, b)) std::copy_n(c0, H_, c.begin());
      for (int64_t s = 0; s < p_.steps; ++s) {
        const int64_t t = time_of(d, s);
        if (!active(t, b)) continue;
        const std::vector<T> x = input(l, t, b), before = h;
        for (int64_t u = 0; u < H_; ++u) {
          T a[columns];
          sums(l, d, x, before, u, a);
          const size_t i = static_cast<size_t>(u);
          const State next = cell(a, {before[i], c[i]});
          h[i] = r.h[at(t, b, H_) + i] = next.h;
          c[i] = r.c[at(t, b, H_) + i] = next.c;
          for (size_t g = 0; g < columns; ++g) r.gates[(at(t, b, H_) + i) * columns + g] = a[g];
        }
        if (l + 1 == s_.num_layers) std::copy(h.begin(), h.end(), row(p_.y, t, b) + d * H_);
      }
      if (T* hn = state(p_.hn, l, d, b)) std::copy(h.begin(), h.end(), hn);
      if (T* cn = has_c(s_.cell) ? state(p_.cn, l, d, b) : nullptr) std::copy(c.begin(), c.end(), cn);
    }
  }

  // A chain over x and one over h, each from 0 in the order of k; then their sum plus the bias.
  void sums(int64_t l, int64_t d, const std::vector<T>& x, const std::vector<T>& h, int64_t u, T (&a)[columns]) const {
    const Weights& w = weight(l, d);
    for (int64_t g = 0; g < G_; ++g) {
      const int64_t n = g * H_ + u;
      const T over_x = chain(weights(w.weight_ih) + n * inputs(l), x), over_h = chain(weights(w.weight_hh) + n * H_, h);
      const T b_ih = w.bias_ih ? weights(w.bias_ih)[n] : T(0), b_hh = w.bias_hh ? weights(w.bias_hh)[n] : T(0);
      if (x_column(g) == h_column(g)) {
        a[x_column(g)] = over_x + over_h + (T(0) + b_ih + b_hh);
      } else {
        a[x_column(g)] = over_x + (T(0) + b_ih);
        a[h_column(g)] = over_h + (T(0) + b_hh);
      }
    }
  }

  T chain(const T* w, const std::vector<T>& x) const {
    T sum = 0;
    for (size_t k = 0; k < x.size(); ++k) sum = fma(x[k], w[k], sum);
    return sum;
  }

  // Turns the columns into the values of the gates, which backward needs.
  State cell(T (&a)[columns], State prev) const {
    if (s_.cell == Cell::rnn) {
      a[0] = s_.activations[0].gate.function == Function::relu ? (a[0] < 0 ? T(0) : a[0]) : tanh(a[0]);
      return {a[0], T(0)};
    }
    if (s_.cell == Cell::lstm) {
      for (int g : {0, 1, 3}) a[g] = sigmoid(a[g]);
      a[2] = tanh(a[2]);
      const T c = fma(a[1], prev.c, a[0] * a[2]);
      return {a[3] * tanh(c), c};
    }
    a[0] = sigmoid(a[0]), a[1] = sigmoid(a[1]);
    a[2] = tanh(fma(a[0], a[3], a[2]));
    return {fma(1 - a[1], a[2], a[1] * prev.h), T(0)};
  }

  // --- backward ---

  // The gradients of the columns, from the gradient by the new state; returns that by the state before, but for the
  // part that goes through the columns.
  State cell_backward(const T* a, State next, State prev, State d, T* da) const {
    if (s_.cell == Cell::rnn) {
      da[0] = s_.activations[0].gate.function == Function::relu ? (next.h > 0 ? d.h : T(0)) : d.h * d_tanh(next.h);
      return {T(0), T(0)};
    }
    if (s_.cell == Cell::lstm) {
      const T tanh_c = tanh(next.c), d_c = fma(d.h * a[3], d_tanh(tanh_c), d.c);
      da[0] = d_c * a[2] * d_sigmoid(a[0]);
      da[1] = d_c * prev.c * d_sigmoid(a[1]);
      da[2] = d_c * a[0] * d_tanh(a[2]);
      da[3] = d.h * tanh_c * d_sigmoid(a[3]);
      return {T(0), d_c * a[1]};
    }
    const T d_n = d.h * (1 - a[1]) * d_tanh(a[2]);
    da[0] = d_n * a[3] * d_sigmoid(a[0]);
    da[1] = d.h * (prev.h - a[2]) * d_sigmoid(a[1]);
    da[2] = d_n, da[3] = d_n * a[0];
    return {d.h * a[1], T(0)};
  }

  // One row of a block with the gradients of its columns, [column][H].
  struct Row {
    int64_t t, b;
    std::vector<T> h_prev, da;
  };

  std::vector<T> backward_layer(const Backward& call, int64_t l, int64_t d, const std::vector<T>& d_y) const {
    std::vector<T> d_h(at(0, p_.batch, H_)), d_c(d_h), d_x(at(p_.steps, 0, inputs(l)));
    for (int64_t b = 0; b < p_.batch; ++b) {
      if (const T* from = state(call.grad_hn, l, d, b)) std::copy_n(from, H_, d_h.begin() + b * H_);
      if (const T* from = state(call.grad_cn, l, d, b)) std::copy_n(from, H_, d_c.begin() + b * H_);
    }
    WeightSums sums(*this, l);
    const int64_t batch = std::max<int64_t>(1, p_.batch), block = (192 + batch - 1) / batch;
    std::vector<Row> rows;
    for (int64_t s = p_.batch ? p_.steps - 1 : -1; s >= 0; --s) {
      const int64_t t = time_of(d, s);
      for (int64_t b = 0; b < p_.batch; ++b) {
        if (!active(t, b)) continue;
        rows.push_back(backward_row(call, l, d, t, b, d_y, d_h.data() + b * H_, d_c.data() + b * H_));
        unit_sums(rows.back(), weight(l, d).weight_ih, inputs(l), false, d_x.data() + at(t, b, inputs(l)));
      }
      if (s % block) continue;
      sums.add(l, rows);
      rows.clear();
    }
    if (call.grad_weights) sums.store(call.grad_weights[l * s_.num_directions + d]);
    for (int64_t b = 0; b < p_.batch; ++b) {
      if (T* to = state(call.grad_h0, l, d, b)) std::copy_n(d_h.begin() + b * H_, H_, to);
      if (T* to = has_c(s_.cell) ? state(call.grad_c0, l, d, b) : nullptr) std::copy_n(d_c.begin() + b * H_, H_, to);
    }
    return d_x;
  }

  const Weights& weight(int64_t l, int64_t d) const { return p_.weights[l * s_.num_directions + d]; }

  // The state of unit u that row (t, b) started from.
  State before(int64_t l, int64_t d, int64_t t, int64_t b, int64_t u) const {
    const int64_t previous = d ? t + 1 : t - 1;
    if (previous >= 0 && previous < length(b)) {
      const size_t i = at(previous, b, H_) + static_cast<size_t>(u);
      return {record(l, d).h[i], record(l, d).c[i]};
    }
    const T *h0 = state(p_.h0, l, d, b), *c0 = state(p_.c0, l, d, b);
    return {h0 ? h0[u] : T(0), c0 ? c0[u] : T(0)};
  }

  // d_h and d_c are the gradients by the row's new state and become those by the state before.
  Row backward_row(const Backward& call, int64_t l, int64_t d, int64_t t, int64_t b, const std::vector<T>& d_y, T* d_h,
                   T* d_c) const {
    Row r{t, b, std::vector<T>(static_cast<size_t>(H_)), std::vector<T>(static_cast<size_t>(columns * H_))};
    const bool top = l + 1 == s_.num_layers;
    for (int64_t u = 0; u < H_; ++u) {
      const size_t i = static_cast<size_t>(u), place = at(t, b, H_) + i;
      if (!top) d_h[u] += d_y[at(t, b, W_) + static_cast<size_t>(d * H_ + u)];
      if (top && call.grad_y.data) d_h[u] += row(call.grad_y, t, b)[d * H_ + u];
      if (call.per_step) static_cast<T*>(call.per_step[l * s_.num_directions + d])[place] = d_h[u];
      const State prev = before(l, d, t, b, u);
      r.h_prev[i] = prev.h;
      T da[columns] = {};
      const State direct = cell_backward(&record(l, d).gates[place * columns],
                                         {record(l, d).h[place], record(l, d).c[place]}, prev, {d_h[u], d_c[u]}, da);
      for (int64_t g = 0; g < columns; ++g) r.da[static_cast<size_t>(g * H_ + u)] = da[g];
      d_h[u] = direct.h, d_c[u] = direct.c;
    }
    unit_sums(r, weight(l, d).weight_hh, H_, true, d_h);
    return r;
  }

  // out[k] = sum over units u and gates g of da(u, column of g) * w[g * H + u][k], plus out[k] where the sum is over h.
  void unit_sums(const Row& r, const void* w, int64_t k_size, bool over_h, T* out) const {
    for (int64_t k = 0; k < k_size; ++k) {
      T sum = 0;
      for (int64_t u = 0; u < H_; ++u)
        for (int64_t g = 0; g < G_; ++g)
          sum = fma(r.da[static_cast<size_t>((over_h ? h_column(g) : x_column(g)) * H_ + u)],
                    weights(w)[(g * H_ + u) * k_size + k], sum);
      out[k] = over_h ? sum + out[k] : sum;
    }
  }

  // Gradients of weights: a chain for each block of rows, and the sum of these. Of biases: chains of 16 rows, too.
  struct WeightSums {
    const Plain& p;
    std::vector<T> ih, hh, bias;  // [G*H, I], [G*H, H], [column][H]
    bool first = true;            // 0 + sum would lose the sign of a zero

    WeightSums(const Plain& plain, int64_t l)
        : p(plain),
          ih(static_cast<size_t>(p.G_ * p.H_ * p.inputs(l))),
          hh(static_cast<size_t>(p.G_ * p.H_ * p.H_)),
          bias(static_cast<size_t>(columns * p.H_)) {}

    void add(int64_t l, const std::vector<Row>& rows) {
      std::vector<std::vector<T>> x;
      for (const Row& r : rows) x.push_back(p.input(l, r.t, r.b));
      const auto add_chains = [&](std::vector<T>& total, int64_t k_size, bool over_h) {
        for (size_t n = 0; n < total.size(); ++n) {
          const int64_t k = static_cast<int64_t>(n) % k_size, unit = static_cast<int64_t>(n) / k_size, g = unit / p.H_;
          const int64_t column = over_h ? p.h_column(g) : p.x_column(g);
          T sum = 0;
          for (size_t j = 0; j < rows.size(); ++j)
            sum = p.fma((over_h ? rows[j].h_prev : x[j])[static_cast<size_t>(k)],
                        rows[j].da[static_cast<size_t>(column * p.H_ + unit % p.H_)], sum);
          total[n] = first ? sum : total[n] + sum;
        }
      };
      add_chains(ih, p.inputs(l), false);
      add_chains(hh, p.H_, true);
      for (size_t n = 0; n < bias.size(); ++n) {
        T sum = 0;
        for (size_t j = 0; j < rows.size(); j += 16) {
          T part = 0;
          for (size_t i = j; i < std::min(rows.size(), j + 16); ++i) part += rows[i].da[n];
          sum += part;
        }
        bias[n] = first ? sum : bias[n] + sum;
      }
      first = false;
    }

    void store(const WeightGradients& to) const {
      std::copy(ih.begin(), ih.end(), static_cast<T*>(to.weight_ih));
      std::copy(hh.begin(), hh.end(), static_cast<T*>(to.weight_hh));
      for (int64_t g = 0; to.bias_ih && g < p.G_; ++g) {
        std::copy_n(bias.begin() + p.x_column(g) * p.H_, p.H_, static_cast<T*>(to.bias_ih) + g * p.H_);
        std::copy_n(bias.begin() + p.h_column(g) * p.H_, p.H_, static_cast<T*>(to.bias_hh) + g * p.H_);
      }
    }
  };

  // Both directions' gradients by the input of layer l, in d_x[0]; to the caller at the bottom, behind dropout above
  // it.
  void give_input_gradient(const Backward& call, int64_t l, std::vector<T> (&d_x)[2]) const {
    for (int64_t t = 0; t < p_.steps; ++t)
      for (int64_t b = 0; b < p_.batch; ++b) {
        if (!active(t, b)) continue;
        T* sum = d_x[0].data() + at(t, b, inputs(l));
        for (int64_t k = 0; k < inputs(l) && s_.num_directions == 2; ++k)
          sum[k] += d_x[1][at(t, b, inputs(l)) + static_cast<size_t>(k)];
        if (l)
          drop(l - 1, t, b, sum);
        else if (call.grad_x.data)
          std::copy_n(sum, inputs(l), row(call.grad_x, t, b));
      }
  }

  const KernelTable& table_;
  const bool fused_;
  const Forward& p_;
  const Spec& s_;
  const int64_t H_, G_, W_;  // W: features of an output
  bool train_ = false;
  std::vector<Record> layers_;
};

}  // namespace rnnfast
