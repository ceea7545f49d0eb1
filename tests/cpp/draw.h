// Options drawn at random, for the fuzzer from its bytes and for guard.cpp from a generator.
#pragma once

#include "pass.h"

namespace rnnfast {

// `source.below(n)` is in [0, n); where it has nothing left it gives 0, which is the default of everything here.
template <class Source> class OptionsDraw {
 public:
  OptionsDraw(Source& source, Case& c) : source_(source), c_(c) {}

  void draw() {
    draw_cell();
    draw_rows();
    draw_masks();
    draw_call();
    drop_excluded(c_);
  }

 private:
  bool one_in(int64_t n) { return source_.below(256) % n == n - 1; }
  template <class Value, size_t n> Value one_of(const Value (&values)[n]) {
    return values[source_.below(static_cast<int64_t>(n))];
  }

  void draw_cell() {
    if (one_in(3))
      for (int64_t d = 0; d < c_.directions; ++d)
        for (Activation* a : {&c_.activations[d].gate, &c_.activations[d].candidate, &c_.activations[d].output})
          *a = draw_activation();
    if (one_in(4)) c_.clip = one_of({0.25, 0.0625, 0.5, 1.0, 2.0, 1e-3, 1e300});
    if (one_in(4))
      for (int64_t l = 0; l < c_.layers; ++l)
        c_.hidden_sizes.push_back(1 + source_.below(std::max<int64_t>(c_.hidden_size, 1)));
    if (one_in(4)) c_.layer_norm = true;
    if (c_.cell == Cell::gru) c_.reset_after = !one_in(3);
    if (!c_.lstm()) return;
    if (one_in(4)) c_.proj_size = 1 + source_.below(40);
    c_.peepholes = one_in(3), c_.coupled_gates = one_in(3);
  }

  Activation draw_activation() {
    const auto number = [&] { return one_of({0.5, 1.0, 0.2, 0.01, -0.25, 0.0, 3.0, -1.0}); };
    const auto function = static_cast<Function>(source_.below(functions));
    const double alpha = number(), beta = number();
    return {function, alpha, beta};
  }

  void draw_rows() {
    const auto share = [&] { return static_cast<int>(one_of({64, 16, 128, 200, 240, 256})); };
    if (one_in(3)) c_.masked = share();
    if (one_in(3)) c_.resets = share(), c_.reset_to_initial = one_in(2);
    if (one_in(4)) c_.carry = true;
  }

  void draw_masks() {
    const auto rate = [&] { return one_of({0.25, 0.0, 0.5, 1.0, 0.75, 1e-9}); };
    if (one_in(4)) c_.zoneout_h = rate(), c_.zoneout_c = rate(), c_.zoneout_masks = !one_in(4);
    if (one_in(4)) c_.input_masks = static_cast<unsigned>(source_.below(8));
    if (one_in(4)) c_.recurrent_masks = true;
  }

  void draw_call() {
    c_.cells_wanted = one_in(4), c_.gates_wanted = one_in(4);
    if (one_in(4)) c_.grad_clip = one_of({0.25, 0.01, 1.0, 1e300});
    if (one_in(4))
      for (int j = 0; j < 8; ++j) c_.unwanted = c_.unwanted << 8 | static_cast<uint64_t>(source_.below(256));
    if (one_in(6)) c_.inference = true;
    if (one_in(5)) c_.corners = true;
  }

  Source& source_;
  Case& c_;
};

template <class Source> void draw_options(Source& source, Case& c) { OptionsDraw<Source>(source, c).draw(); }

}  // namespace rnnfast
