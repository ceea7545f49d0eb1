// The gradients of the parameters: sums over rows, in the order that docs/kernels.md fixes.
#pragma once

#include <initializer_list>
#include <utility>
#include <vector>

#include "plain_math.h"

namespace rnnfast {

// What one row has to do with them: the operands of the products and the gradients by these, and its shares of the
// others. All start as zeros; where an option is off, they stay.
template <class T> struct PlainShares {
  using Values = std::vector<T>;
  Values x, h, reset_h, m;               // [I], [S], [H], [H]: what enters W, U, the U of GRU's n, and W_hr
  Values d_x_sums, d_h_sums, d_h;        // [G*H], [G*H], [S]: by W x, by U h, by h
  Values b_ih, b_hh, ch;                 // [G*H], [G*H], [3*H]
  Values ln_ih, ln_hh, ln_c, ln_c_bias;  // [G*H], [G*H], [H], [H]

  // reset_h and m are empty where there are no such products.
  PlainShares(const Spec& spec, int64_t layer) {
    const auto resize = [](int64_t n, std::initializer_list<Values*> all) {
      for (Values* v : all) v->resize(static_cast<size_t>(n));
    };
    const int64_t units = units_of(spec, layer), gates = gates_of(spec.cell);
    resize(inputs_of(spec, layer), {&x});
    resize(outputs_of(spec, layer), {&h, &d_h});
    resize(spec.reset_after ? 0 : units, {&reset_h});
    resize(spec.proj_size ? units : 0, {&m});
    resize(gates * units, {&d_x_sums, &d_h_sums, &b_ih, &b_hh, &ln_ih, &ln_hh});
    resize(3 * units, {&ch});
    resize(units, {&ln_c, &ln_c_bias});
  }
};

template <class T> class PlainGradients {
 public:
  using Shares = PlainShares<T>;
  using Values = std::vector<T>;

  PlainGradients(const PlainMath<T>& math, const Spec& spec, int64_t layer) : PlainGradients(math, {spec, layer}) {}

  // Adds a block of rows.
  void add(const std::vector<Shares>& rows) {
    // With the reset gate before the product, the rows of n in U have an operand of their own.
    const size_t rows_of_u = b_ih_.size(), split = like_.reset_h.empty() ? rows_of_u : rows_of_u / 3 * 2;
    add_products(rows, ih_, &Shares::x, &Shares::d_x_sums, 0, rows_of_u);
    add_products(rows, hh_, &Shares::h, &Shares::d_h_sums, 0, split);
    add_products(rows, hh_, &Shares::reset_h, &Shares::d_h_sums, split, rows_of_u);
    add_products(rows, hr_, &Shares::m, &Shares::d_h, 0, like_.d_h.size());
    add_shares(rows, b_ih_, &Shares::b_ih), add_shares(rows, b_hh_, &Shares::b_hh), add_shares(rows, ch_, &Shares::ch);
    add_shares(rows, ln_ih_, &Shares::ln_ih), add_shares(rows, ln_hh_, &Shares::ln_hh);
    add_shares(rows, ln_c_, &Shares::ln_c), add_shares(rows, ln_c_bias_, &Shares::ln_c_bias);
    first_ = false;
  }

  // Those that are wanted.
  void store(const WeightGradients& to) const {
    const std::pair<void*, const Values*> all[] = {
        {to.weight_ih, &ih_},     {to.weight_hh, &hh_},       {to.bias_ih, &b_ih_},       {to.bias_hh, &b_hh_},
        {to.weight_hr, &hr_},     {to.weight_ch, &ch_},       {to.weight_ln_ih, &ln_ih_}, {to.weight_ln_hh, &ln_hh_},
        {to.weight_ln_c, &ln_c_}, {to.bias_ln_c, &ln_c_bias_}};
    for (const auto& [array, values] : all)
      if (array) std::copy(values->begin(), values->end(), static_cast<T*>(array));
  }

 private:
  PlainGradients(const PlainMath<T>& math, const Shares& like)
      : math_(math),
        like_(like),
        ih_(like.b_ih.size() * like.x.size()),
        hh_(like.b_ih.size() * like.h.size()),
        hr_(like.d_h.size() * like.m.size()),
        b_ih_(like.b_ih.size()),
        b_hh_(b_ih_),
        ch_(like.ch.size()),
        ln_ih_(b_ih_),
        ln_hh_(b_ih_),
        ln_c_(like.ln_c.size()),
        ln_c_bias_(ln_c_) {}

  // total[unit][k] += one chain over the rows of operand[k] * gradient[unit].
  void add_products(const std::vector<Shares>& rows, Values& total, Values Shares::* operand, Values Shares::* gradient,
                    size_t first_unit, size_t last_unit) const {
    const size_t size = (like_.*operand).size();
    for (size_t unit = first_unit; unit < last_unit; ++unit)
      for (size_t k = 0; k < size; ++k) {
        T sum = 0;
        for (const Shares& r : rows) sum = math_.fma((r.*operand)[k], (r.*gradient)[unit], sum);
        add_to(total[unit * size + k], sum);
      }
  }
  // total += the sum of chains of 16 rows.
  void add_shares(const std::vector<Shares>& rows, Values& total, Values Shares::* share) const {
    for (size_t n = 0; n < total.size(); ++n) {
      T sum = 0;
      for (size_t j = 0; j < rows.size(); j += 16) {
        T part = 0;
        for (size_t i = j; i < std::min(rows.size(), j + 16); ++i) part += (rows[i].*share)[n];
        sum += part;
      }
      add_to(total[n], sum);
    }
  }
  // 0 + sum would lose the sign of a zero.
  void add_to(T& total, T sum) const { total = first_ ? sum : total + sum; }

  const PlainMath<T>& math_;
  const Shares like_;  // any row's: for the sizes
  Values ih_, hh_, hr_, b_ih_, b_hh_, ch_, ln_ih_, ln_hh_, ln_c_, ln_c_bias_;
  bool first_ = true;
};

}  // namespace rnnfast
