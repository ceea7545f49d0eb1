// Both passes as plain loops over single numbers: a second implementation of rnnfast.h to compare the kernels with.
//
// It takes every sum in the order that docs/kernels.md fixes, so that results are equal bit for bit, whatever the
// values are (NaN, infinities, denormals, overflow). It knows nothing of vectors, tiles, blocks of forward steps,
// packing or threads. The elementary functions are the table's; guard.cpp compares these with the C library's.
#pragma once

#include <type_traits>

#include "plain_cell.h"
#include "plain_gradients.h"
#include "plain_rows.h"

namespace rnnfast {

template <class T> class Plain {
 public:
  Plain(const KernelTable& table, const Forward& pass)
      : math_(table), p_(pass), s_(pass.spec), cell_(s_.cell), G_(gates_of(s_.cell)), D_(s_.num_directions) {}

  // With `train` masks are applied and backward may follow.
  void forward(bool train) {
    const FlushToZero flush;
    train_ = train;
    layers_.clear();
    for (int64_t number = 0; number < s_.num_layers * D_; ++number) {
      layers_.emplace_back(math_, p_, number / D_, number % D_);
      forward_layer(layers_.back());
    }
  }

  void backward(const Backward& call) {
    const FlushToZero flush;
    Values d_y;  // [T, B, D*S] by the output of the layer; empty above the top
    for (int64_t l = s_.num_layers - 1; l >= 0; --l) {
      Values d_x[2];
      for (int64_t d = 0; d < D_; ++d) d_x[d] = backward_layer(call, layer(l, d), d_y);
      give_input_gradient(call, l, d_x);
      d_y = std::move(d_x[0]);
    }
  }

 private:
  using Values = std::vector<T>;
  using Columns = PlainColumns<T>;
  using State = typename PlainCell<T>::State;
  using Moments = PlainMoments<T>;
  using Shares = PlainShares<T>;

  // One layer and direction, with what it leaves for the layer above and for backward.
  struct Layer {
    int64_t l, d, number, I, H, S;
    bool top;
    const Weights* w;
    PlainCell<T> cell;
    PlainRows rows;
    Values h, c;                                  // [T, B, S], [T, B, H]
    std::vector<Columns> a;                       // [T, B, H]: the arguments of the activations
    std::vector<Columns> x_hat, h_hat;            // [T, B, H]: the normalized sums of the gates
    std::vector<std::array<Moments, 3>> moments;  // [T, B]: of the sums over x, over h, and of c

    Layer(const PlainMath<T>& math, const Forward& pass, int64_t layer, int64_t direction)
        : l(layer),
          d(direction),
          number(l * pass.spec.num_directions + d),
          I(inputs_of(pass.spec, l)),
          H(units_of(pass.spec, l)),
          S(outputs_of(pass.spec, l)),
          top(l + 1 == pass.spec.num_layers),
          w(pass.weights + number),
          cell(math, pass.spec, d),
          rows(pass, d),
          h(size(pass.steps * pass.batch * S)),
          c(size(pass.steps * pass.batch * H)),
          a(c.size()) {
      if (!pass.spec.layer_norm) return;
      x_hat = h_hat = a;
      moments.resize(size(pass.steps * pass.batch));
    }
  };

  const Layer& layer(int64_t l, int64_t d) const { return layers_[size(l * D_ + d)]; }

  // --- places ---

  static size_t size(int64_t n) { return static_cast<size_t>(n); }
  // Of a row in a [T, B, features] array.
  size_t at(int64_t t, int64_t b, int64_t features) const { return size((t * p_.batch + b) * features); }
  template <class V> static auto row(const View<V>& view, int64_t t, int64_t b) {
    using Element = std::conditional_t<std::is_const_v<V>, const T, T>;
    const int64_t at = view.starts ? (view.starts[t] + b) * view.stride_b : t * view.stride_t + b * view.stride_b;
    return static_cast<Element*>(view.data) + at;
  }
  // Row b of a layer's block in an array of states, or null; `size_of` is units_of or outputs_of.
  template <class V> auto state(V* array, const Layer& n, int64_t b, int64_t (*size_of)(const Spec&, int64_t)) const {
    using Element = std::conditional_t<std::is_const_v<V>, const T, T>;
    int64_t before = (n.d * p_.batch + b) * size_of(s_, n.l);
    for (int64_t l = 0; l < n.l; ++l) before += D_ * p_.batch * size_of(s_, l);
    return array ? static_cast<Element*>(array) + before : nullptr;
  }
  static const T* numbers(const void* w) { return static_cast<const T*>(w); }

  // Row b of the mask of what enters U, or null.
  const T* recurrent_mask(const Layer& n, int64_t b) const {
    return train_ && p_.recurrent_masks ? numbers(p_.recurrent_masks[n.number]) + b * n.S : nullptr;
  }
  // Whether zoneout keeps the value of a unit.
  bool keeps(const uint8_t* const* masks, const Layer& n, int64_t t, int64_t b, int64_t u) const {
    return train_ && n.cell.general && !s_.layer_norm && masks && masks[n.number][at(t, b, n.H) + size(u)];
  }
  std::array<T, 3> peepholes(const Layer& n, int64_t u) const {
    if (!s_.peepholes) return {};
    const T* p = numbers(n.w->weight_ch) + u;
    return {p[0], p[n.H], p[2 * n.H]};
  }
  // c on its way to h behind layer normalization.
  T shifted_c(const Layer& n, int64_t u, T normalized) const {
    return math_.fma(numbers(n.w->weight_ln_c)[u], normalized, numbers(n.w->bias_ln_c)[u]);
  }

  // The input of a layer at one row: x, or the output of the layer below, behind its masks.
  Values input(int64_t l, int64_t t, int64_t b) const {
    Values x(size(inputs_of(s_, l)));
    for (int64_t d = 0; l && d < D_; ++d) {
      const Layer& below = layer(l - 1, d);
      std::copy_n(below.h.data() + at(t, b, below.S), below.S, x.data() + d * below.S);
    }
    if (!l && !x.empty()) std::copy_n(row(p_.x, t, b), x.size(), x.begin());
    mask_input(l, t, b, x.data());
    return x;
  }

  // Dropout between layers, and the mask of all steps: of the input of layer l at one row, or of the gradient by it.
  void mask_input(int64_t l, int64_t t, int64_t b, T* values) const {
    if (!train_) return;
    const int64_t features = inputs_of(s_, l);
    const T* factors = p_.input_masks && p_.input_masks[l] ? numbers(p_.input_masks[l]) + b * features : nullptr;
    const uint64_t key = dropout_key(p_.seed, l - 1, t, b);
    const T scale = p_.dropout < 1 ? T(1 / (1 - p_.dropout)) : T(0);
    for (int64_t j = 0; j < features; ++j) {
      if (l && p_.dropout > 0) values[j] = dropout_keeps(key, j, p_.dropout) ? values[j] * scale : T(0);
      if (factors) values[j] *= factors[j];
    }
  }

  // The state that a row starts from, as whole rows.
  struct States {
    Values h, c;
  };
  States before(const Layer& n, const PlainRow& start, int64_t b) const {
    States s{Values(size(n.S)), Values(size(n.H))};
    if (start.start == PlainStart::previous) {
      std::copy_n(n.h.data() + at(start.before, b, n.S), n.S, s.h.begin());
      std::copy_n(n.c.data() + at(start.before, b, n.H), n.H, s.c.begin());
    } else if (start.start == PlainStart::initial) {
      if (const T* h0 = state(p_.h0, n, b, outputs_of)) std::copy_n(h0, n.S, s.h.begin());
      const T* c0 = has_c(cell_) ? state(p_.c0, n, b, units_of) : nullptr;
      if (c0) std::copy_n(c0, n.H, s.c.begin());
    }
    return s;
  }
  // What enters U: h, behind its mask.
  Values operand(const Layer& n, Values h, int64_t b) const {
    const T* mask = recurrent_mask(n, b);
    for (size_t j = 0; mask && j < h.size(); ++j) h[j] *= mask[j];
    return h;
  }
  // r * h, where r is applied before the product.
  Values reset(const Layer& n, const Columns* a, Values h) const {
    for (int64_t u = 0; u < n.H; ++u) h[size(u)] = n.cell.gate(a[u][0]) * h[size(u)];
    return h;
  }

  // --- forward ---

  void forward_layer(Layer& n) {
    for (int64_t b = 0; b < p_.batch; ++b) {
      const T* carried = nullptr;
      for (int64_t s = 0; s < p_.steps; ++s) {
        const int64_t t = n.rows.time(s);
        const PlainRow& start = n.rows.at(t, b);
        T* y = n.top && n.S ? row(p_.y, t, b) + n.d * n.S : nullptr;
        if (start.takes_part) {
          forward_row(n, t, b, before(n, start, b));
          if (y) carried = std::copy_n(n.h.data() + at(t, b, n.S), n.S, y) - n.S;
        } else if (p_.carry && carried) {
          std::copy_n(carried, n.S, y);
        }
      }
      const States last = before(n, n.rows.last(b), b);
      if (T* hn = state(p_.hn, n, b, outputs_of)) std::copy(last.h.begin(), last.h.end(), hn);
      if (T* cn = has_c(cell_) ? state(p_.cn, n, b, units_of) : nullptr) std::copy(last.c.begin(), last.c.end(), cn);
    }
  }

  void forward_row(Layer& n, int64_t t, int64_t b, const States& prev) {
    Columns* a = n.a.data() + at(t, b, n.H);
    T *h = n.h.data() + at(t, b, n.S), *c = n.c.data() + at(t, b, n.H);
    sums(n, t, b, input(n.l, t, b), operand(n, prev.h, b), a);
    Values m(size(n.H));  // h, before it is projected
    std::vector<Columns> gates(size(n.H));
    for (int64_t u = 0; u < n.H; ++u) {
      const size_t i = size(u);
      const State from{s_.proj_size ? T(0) : prev.h[i], prev.c[i]};
      const State next = n.cell.forward(a[u], from, peepholes(n, u), gates[i]);
      m[i] = zone_out(s_.zoneout_h, keeps(p_.zoneout_h_masks, n, t, b, u), from.h, next.h);
      c[u] = zone_out(s_.zoneout_c, keeps(p_.zoneout_c_masks, n, t, b, u), from.c, next.c);
    }
    if (s_.layer_norm && has_c(cell_)) {
      const Moments of_c = Moments::of(n.H, 1, [&](int64_t u, int64_t) { return c[u]; });
      n.moments[at(t, b, 1)][2] = of_c;
      for (int64_t u = 0; u < n.H; ++u)
        m[size(u)] = gates[size(u)][3] * n.cell.output(shifted_c(n, u, of_c.normalized(c[u])));
    }
    for (int64_t k = 0; k < n.S; ++k) h[k] = s_.proj_size ? chain(numbers(n.w->weight_hr) + k * n.H, m) : m[size(k)];
    if (n.top && p_.cells.data) std::copy_n(c, n.H, row(p_.cells, t, b) + n.d * n.H);
    for (int64_t g = 0; n.top && p_.gates.data && g < G_; ++g)
      for (int64_t u = 0; u < n.H; ++u) row(p_.gates, t, b)[(n.d * G_ + g) * n.H + u] = gates[size(u)][size(g)];
  }

  // With masks a unit keeps its value or not; at inference every unit keeps a share of it.
  T zone_out(double share, bool keeps, T before, T next) const {
    if (train_) return keeps ? before : next;
    const T kept = static_cast<T>(share);
    return kept > 0 ? math_.fma(kept, before, (1 - kept) * next) : next;
  }

  // The columns of a row's units: a chain over x and one over h, each from 0 in the order of k; then their sum plus the
  // bias.
  void sums(Layer& n, int64_t t, int64_t b, const Values& x, const Values& h, Columns* a) {
    std::vector<Columns> over_x(size(n.H)), over_h(over_x);
    const auto multiply = [&](int64_t g, const Values& h_of_gate) {
      for (int64_t u = 0; u < n.H; ++u) {
        over_x[size(u)][size(g)] = chain(numbers(n.w->weight_ih) + (g * n.H + u) * n.I, x);
        over_h[size(u)][size(g)] = chain(numbers(n.w->weight_hh) + (g * n.H + u) * n.S, h_of_gate);
      }
    };
    if (s_.layer_norm) {
      for (int64_t g = 0; g < G_; ++g) multiply(g, h);
      n.moments[at(t, b, 1)][0] = normalize(n, over_x, n.x_hat.data() + at(t, b, n.H));
      n.moments[at(t, b, 1)][1] = normalize(n, over_h, n.h_hat.data() + at(t, b, n.H));
    }
    for (int64_t g = 0; g < G_; ++g) {
      if (!s_.layer_norm) multiply(g, n.cell.reset_before && g == 2 ? reset(n, a, h) : h);
      for (int64_t u = 0; u < n.H; ++u) join(n, t, b, g, u, over_x[size(u)][size(g)], over_h[size(u)][size(g)], a[u]);
    }
  }

  void join(const Layer& n, int64_t t, int64_t b, int64_t g, int64_t u, T over_x, T over_h, Columns& a) const {
    const int64_t row = g * n.H + u;
    const size_t to = size(x_column(cell_, g)), h_to = size(h_column(cell_, g)), unit = at(t, b, n.H) + size(u);
    const T b_ih = n.w->bias_ih ? numbers(n.w->bias_ih)[row] : T(0);
    const T b_hh = n.w->bias_hh ? numbers(n.w->bias_hh)[row] : T(0);
    if (s_.layer_norm) {
      const T scale = numbers(n.w->weight_ln_ih)[row], x_hat = n.x_hat[unit][size(g)];
      over_h = numbers(n.w->weight_ln_hh)[row] * n.h_hat[unit][size(g)];
      a[to] =
          to == h_to ? math_.fma(scale, x_hat, over_h) + (T(0) + b_ih + b_hh) : math_.fma(scale, x_hat, T(0) + b_ih);
    } else {
      a[to] = to == h_to ? over_x + over_h + (T(0) + b_ih + b_hh) : over_x + (T(0) + b_ih);
    }
    if (to != h_to) a[h_to] = over_h + (T(0) + b_hh);
  }

  Moments normalize(const Layer& n, const std::vector<Columns>& sums, Columns* normalized) const {
    const Moments m = Moments::of(n.H, G_, [&](int64_t u, int64_t g) { return sums[size(u)][size(g)]; });
    for (int64_t u = 0; u < n.H; ++u)
      for (int64_t g = 0; g < G_; ++g) normalized[u][size(g)] = m.normalized(sums[size(u)][size(g)]);
    return m;
  }

  T chain(const T* w, const Values& x) const {
    T sum = 0;
    for (size_t k = 0; k < x.size(); ++k) sum = math_.fma(x[k], w[k], sum);
    return sum;
  }

  // --- backward ---

  Values backward_layer(const Backward& call, const Layer& n, const Values& d_y) const {
    Values d_x(at(p_.steps, 0, n.I));
    std::vector<States> d;        // of each sequence: by the state that the scan has come back to,
    std::vector<States> d_first;  // and what resets to the initial state give that
    for (int64_t b = 0; b < p_.batch; ++b) {
      const PlainRow& last = n.rows.last(b);
      const bool initial = last.start == PlainStart::initial;
      const States none{Values(size(n.S)), Values(size(n.H))}, final = final_gradient(call, n, b);
      d.push_back(last.start == PlainStart::previous || (initial && !last.takes_part) ? final : none);
      d_first.push_back(initial && last.takes_part ? final : none);
    }
    PlainGradients<T> sums(math_, s_, n.l);
    const int64_t batch = std::max<int64_t>(1, p_.batch), block = (192 + batch - 1) / batch;
    std::vector<Shares> rows;
    for (int64_t s = p_.batch ? p_.steps - 1 : -1; s >= 0; --s) {
      const int64_t t = n.rows.time(s);
      for (int64_t b = 0; b < p_.batch; ++b) {
        const PlainRow& start = n.rows.at(t, b);
        if (!start.takes_part) continue;
        rows.push_back(backward_row(call, n, t, b, d_y, d[size(b)]));
        T* to = d_x.data() + at(t, b, n.I);
        for (int64_t k = 0; k < n.I; ++k) to[k] = unit_sum(n, rows.back().d_x_sums, n.w->weight_ih, n.I, k, 0, G_);
        if (start.cut) cut(start, d[size(b)], d_first[size(b)]);
      }
      if (s % block) continue;
      sums.add(rows);
      rows.clear();
    }
    if (call.grad_weights) sums.store(call.grad_weights[n.number]);
    for (int64_t b = 0; b < p_.batch; ++b) give_state_gradient(call, n, b, d[size(b)], d_first[size(b)]);
    return d_x;
  }

  States final_gradient(const Backward& call, const Layer& n, int64_t b) const {
    States d{Values(size(n.S)), Values(size(n.H))};
    if (const T* from = state(call.grad_hn, n, b, outputs_of)) std::copy_n(from, n.S, d.h.begin());
    const T* from = has_c(cell_) ? state(call.grad_cn, n, b, units_of) : nullptr;
    if (from) std::copy_n(from, n.H, d.c.begin());
    return d;
  }

  // A row that a reset cut off gives its gradient to the initial state, or to nothing.
  static void cut(const PlainRow& start, States& d, States& d_first) {
    for (auto [from, to] : {std::pair{&d.h, &d_first.h}, {&d.c, &d_first.c}})
      for (size_t j = 0; j < from->size(); ++j) {
        if (start.start == PlainStart::initial) (*to)[j] += (*from)[j];
        (*from)[j] = 0;
      }
  }

  void give_state_gradient(const Backward& call, const Layer& n, int64_t b, const States& d,
                           const States& d_first) const {
    const bool both = p_.reset && p_.reset_to_initial;
    T* h0 = state(call.grad_h0, n, b, outputs_of);
    for (size_t j = 0; h0 && j < d.h.size(); ++j) h0[j] = both ? d.h[j] + d_first.h[j] : d.h[j];
    T* c0 = has_c(cell_) ? state(call.grad_c0, n, b, units_of) : nullptr;
    for (size_t j = 0; c0 && j < d.c.size(); ++j) c0[j] = both ? d.c[j] + d_first.c[j] : d.c[j];
  }

  // `d` is the gradient by the row's new state and becomes that by the state before.
  Shares backward_row(const Backward& call, const Layer& n, int64_t t, int64_t b, const Values& d_y, States& d) const {
    const States prev = before(n, n.rows.at(t, b), b);
    Shares r = operands(n, t, b, prev);
    for (int64_t k = 0; k < n.S; ++k) r.d_h[size(k)] = total_d_h(call, n, t, b, k, d_y, d.h[size(k)]);
    Values d_m = r.d_h;  // by h before it is projected
    if (s_.proj_size) {
      d_m = unproject(n, r.d_h);
      std::fill(d.h.begin(), d.h.end(), T(0));
    }
    std::vector<Columns> da(size(n.H));
    if (s_.layer_norm && has_c(cell_)) output_backward(n, t, b, d_m, r, d.c, da);
    for (int64_t u = 0; u < n.H; ++u) {
      const size_t i = size(u);
      const State from{s_.proj_size ? T(0) : prev.h[i], prev.c[i]};
      const State direct = cell_backward(n, t, b, u, from, {d_m[i], d.c[i]}, da[i], r);
      if (!s_.proj_size) d.h[i] = direct.h;
      d.c[i] = direct.c;
    }
    share_columns(n, da, r);
    const Values d_operand = n.cell.reset_before ? reset_backward(n, t, b, da, r) : Values();
    r.d_x_sums = r.b_ih, r.d_h_sums = r.b_hh;
    if (s_.layer_norm) {
      sums_backward(n, t, b, false, da, r.d_x_sums, r.ln_ih);
      sums_backward(n, t, b, true, da, r.d_h_sums, r.ln_hh);
    }
    const T* mask = recurrent_mask(n, b);
    for (int64_t k = 0; k < n.S; ++k) {
      T by_operand = unit_sum(n, r.d_h_sums, n.w->weight_hh, n.S, k, 0, n.cell.reset_before ? 2 : G_);
      if (n.cell.reset_before) by_operand += d_operand[size(k)];
      d.h[size(k)] += mask ? by_operand * mask[k] : by_operand;
    }
    return r;
  }

  // What went into the products.
  Shares operands(const Layer& n, int64_t t, int64_t b, const States& prev) const {
    Shares r(s_, n.l);
    const Columns* a = n.a.data() + at(t, b, n.H);
    const T* c = n.c.data() + at(t, b, n.H);
    r.x = input(n.l, t, b);
    r.h = operand(n, prev.h, b);
    if (n.cell.reset_before) r.reset_h = reset(n, a, r.h);
    for (int64_t u = 0; s_.proj_size && u < n.H; ++u) r.m[size(u)] = n.cell.gate(a[u][3]) * n.cell.output(c[u]);
    return r;
  }

  Values unproject(const Layer& n, const Values& d_h) const {
    Values d_m(size(n.H));
    for (int64_t u = 0; u < n.H; ++u)
      for (int64_t k = 0; k < n.S; ++k)
        d_m[size(u)] = math_.fma(d_h[size(k)], numbers(n.w->weight_hr)[k * n.H + u], d_m[size(u)]);
    return d_m;
  }

  // The gradient by an output's element, of which `d_h` comes from the step after.
  T total_d_h(const Backward& call, const Layer& n, int64_t t, int64_t b, int64_t k, const Values& d_y, T d_h) const {
    const size_t column = size(n.d * n.S + k);
    if (!n.top) d_h += d_y[at(t, b, D_ * n.S) + column];
    if (n.top && call.grad_y.data) {
      d_h += row(call.grad_y, t, b)[column];
      const int64_t step = n.d ? -1 : 1;  // the outputs that repeat this one
      for (int64_t s = t + step; p_.carry && s >= 0 && s < p_.steps && !n.rows.at(s, b).takes_part; s += step)
        d_h += row(call.grad_y, s, b)[column];
    }
    if (call.grad_clip > 0) d_h = math_.clamp(d_h, static_cast<T>(-call.grad_clip), static_cast<T>(call.grad_clip));
    if (call.per_step) static_cast<T*>(call.per_step[n.number])[at(t, b, n.S) + size(k)] = d_h;
    return d_h;
  }

  // LSTM with layer normalization, h = o * tanh(scale * v + shift) with v the normalized c: adds to d_c, and leaves the
  // gradient by o's argument in da.
  void output_backward(const Layer& n, int64_t t, int64_t b, const Values& d_h, Shares& r, Values& d_c,
                       std::vector<Columns>& da) const {
    const Columns* a = n.a.data() + at(t, b, n.H);
    const T *c = n.c.data() + at(t, b, n.H), *scale = numbers(n.w->weight_ln_c);
    const Moments& of_c = n.moments[at(t, b, 1)][2];
    Values d_v(size(n.H)), v(size(n.H));
    for (int64_t u = 0; u < n.H; ++u) {
      const size_t i = size(u);
      v[i] = of_c.normalized(c[u]);
      const T shifted = shifted_c(n, u, v[i]), d_shifted = d_h[i] * n.cell.gate(a[u][3]) * n.cell.d_output(shifted);
      d_v[i] = d_shifted * scale[u];
      r.ln_c[i] = d_shifted * v[i], r.ln_c_bias[i] = d_shifted;
      da[i][3] = d_h[i] * n.cell.output(shifted) * n.cell.d_gate(a[u][3]);
    }
    of_c.backward(
        n.H, 1, [&](int64_t u, int64_t) { return d_v[size(u)]; }, [&](int64_t u, int64_t) { return v[size(u)]; },
        [&](int64_t u, int64_t, T gradient) { d_c[size(u)] += gradient; });
  }

  // Zoneout around the cell's backward.
  State cell_backward(const Layer& n, int64_t t, int64_t b, int64_t u, State prev, State d, Columns& da,
                      Shares& r) const {
    const Columns& a = n.a[at(t, b, n.H) + size(u)];
    std::array<T, 3> d_p{};
    if (s_.layer_norm) {
      if (!has_c(cell_)) return n.cell.backward(a, prev, d, {}, da, d_p);
      const T d_a_o = da[3];  // o's share of h is not the cell's: the normalized c stands between them
      const State direct = n.cell.backward(a, prev, {T(0), d.c}, {}, da, d_p);
      da[3] = d_a_o;
      return direct;
    }
    State through = d, past;
    if (keeps(p_.zoneout_h_masks, n, t, b, u)) std::swap(through.h, past.h);
    if (keeps(p_.zoneout_c_masks, n, t, b, u)) std::swap(through.c, past.c);
    const State direct = n.cell.backward(a, prev, through, peepholes(n, u), da, d_p);
    for (int64_t g = 0; g < 3; ++g) r.ch[size(g * n.H + u)] = d_p[size(g)];
    return n.cell.general ? State{direct.h + past.h, direct.c + past.c} : direct;
  }

  // da by gates, for the biases.
  void share_columns(const Layer& n, const std::vector<Columns>& da, Shares& r) const {
    for (int64_t g = 0; g < G_; ++g)
      for (int64_t u = 0; u < n.H; ++u) {
        r.b_ih[size(g * n.H + u)] = da[size(u)][size(x_column(cell_, g))];
        r.b_hh[size(g * n.H + u)] = da[size(u)][size(h_column(cell_, g))];
      }
  }

  // From the gradients by the columns to those by W x or U h, before they were normalized; and the scales' shares.
  void sums_backward(const Layer& n, int64_t t, int64_t b, bool of_h, const std::vector<Columns>& da, Values& d_sums,
                     Values& share) const {
    const T* scale = numbers(of_h ? n.w->weight_ln_hh : n.w->weight_ln_ih);
    const Columns* normalized = (of_h ? n.h_hat : n.x_hat).data() + at(t, b, n.H);
    const auto d_scaled = [&](int64_t u, int64_t g) {
      return da[size(u)][size(of_h ? h_column(cell_, g) : x_column(cell_, g))];
    };
    const auto v = [&](int64_t u, int64_t g) { return normalized[u][size(g)]; };
    n.moments[at(t, b, 1)][of_h].backward(
        n.H, G_, [&](int64_t u, int64_t g) { return d_scaled(u, g) * scale[g * n.H + u]; }, v,
        [&](int64_t u, int64_t g, T gradient) {
          d_sums[size(g * n.H + u)] = gradient;
          share[size(g * n.H + u)] = d_scaled(u, g) * v(u, g);
        });
  }

  // GRU with r before the product: U of n gives the gradient by r * h, and so that by r. Returns that by h, but for the
  // part that goes through the other two gates.
  Values reset_backward(const Layer& n, int64_t t, int64_t b, std::vector<Columns>& da, Shares& r) const {
    const Columns* a = n.a.data() + at(t, b, n.H);
    Values d_operand(size(n.H));
    for (int64_t u = 0; u < n.H; ++u) {
      const size_t i = size(u);
      const T d_reset = unit_sum(n, r.b_hh, n.w->weight_hh, n.S, u, 2, 3);
      da[i][0] = d_reset * r.h[i] * n.cell.d_gate(a[u][0]);
      d_operand[i] = d_reset * n.cell.gate(a[u][0]);
    }
    share_columns(n, da, r);
    return d_operand;
  }

  // The sum over units u and gates g of d[g * H + u] * w[g * H + u][k].
  T unit_sum(const Layer& n, const Values& d, const void* w, int64_t k_size, int64_t k, int64_t first_gate,
             int64_t last_gate) const {
    T sum = 0;
    for (int64_t u = 0; u < n.H; ++u)
      for (int64_t g = first_gate; g < last_gate; ++g)
        sum = math_.fma(d[size(g * n.H + u)], numbers(w)[(g * n.H + u) * k_size + k], sum);
    return sum;
  }

  // Both directions' gradients by the input of layer l, in d_x[0], behind its masks; to the caller at the bottom.
  void give_input_gradient(const Backward& call, int64_t l, Values (&d_x)[2]) const {
    const int64_t features = inputs_of(s_, l);
    for (int64_t t = 0; t < p_.steps; ++t)
      for (int64_t b = 0; b < p_.batch; ++b) {
        if (!layer(l, 0).rows.at(t, b).takes_part) continue;
        T* sum = d_x[0].data() + at(t, b, features);
        for (int64_t k = 0; k < features && D_ == 2; ++k) sum[k] += d_x[1][at(t, b, features) + size(k)];
        mask_input(l, t, b, sum);
        if (!l && call.grad_x.data) std::copy_n(sum, features, row(call.grad_x, t, b));
      }
  }

  const PlainMath<T> math_;
  const Forward& p_;
  const Spec& s_;
  const Cell cell_;
  const int64_t G_, D_;
  bool train_ = false;
  std::vector<Layer> layers_;
};

}  // namespace rnnfast
