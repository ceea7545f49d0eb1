// Prints digests of all results of fixed cases, for comparing instruction sets bit by bit, also across machines.
//   digest [threads]    (exactly so many; RNNFAST_ISA chooses the instruction set)
// The first line names the instruction set; then one line per case, with an FNV-1a digest per result array.
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "rnnfast.h"

namespace {

using namespace rnnfast;

struct Case {
  Cell cell;
  Function activation;  // of the gates
  int64_t steps, batch, input_size, hidden_size, layers, directions;
  bool bias, ragged;  // ragged: rows of different lengths
  double dropout;
};

// Sizes on both sides of every vector width and register tile, with one of each option at least.
constexpr Case case_list[] = {
    {Cell::rnn, Function::tanh, 1, 1, 1, 1, 1, 1, true, false, 0.0},
    {Cell::rnn, Function::relu, 7, 3, 5, 17, 2, 2, true, true, 0.0},
    {Cell::rnn, Function::tanh, 5, 17, 33, 31, 1, 1, false, false, 0.0},
    {Cell::lstm, Function::standard, 1, 1, 1, 1, 1, 1, true, false, 0.0},
    {Cell::lstm, Function::standard, 7, 3, 5, 17, 2, 2, true, true, 0.5},
    {Cell::lstm, Function::standard, 5, 17, 33, 31, 1, 1, false, false, 0.0},
    {Cell::lstm, Function::standard, 3, 2, 64, 65, 2, 1, true, false, 0.0},
    {Cell::gru, Function::standard, 1, 1, 1, 1, 1, 1, true, false, 0.0},
    {Cell::gru, Function::standard, 7, 3, 5, 17, 2, 2, true, true, 0.0},
    {Cell::gru, Function::standard, 5, 17, 33, 31, 1, 1, false, false, 0.0},
    {Cell::gru, Function::standard, 3, 2, 64, 65, 2, 1, true, false, 0.25},
};

struct FreeAligned {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{64}); }
};
using Aligned = std::unique_ptr<void, FreeAligned>;

Aligned allocate_aligned(size_t bytes) { return Aligned(::operator new(bytes ? bytes : 1, std::align_val_t{64})); }

template <class T> using Array = std::vector<T>;

// Multiples of 1/256 in [-1/2, 1/2): exact in both dtypes, from integers alone.
template <class T> class Numbers {
 public:
  Array<T> draw(int64_t size) {
    Array<T> values(static_cast<size_t>(size));
    for (T& value : values) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      value = static_cast<T>(static_cast<int>(state_ >> 56) - 128) / 256;
    }
    return values;
  }

 private:
  uint64_t state_ = 1;
};

template <class T> uint64_t fnv(const Array<T>& values) {
  uint64_t hash = 0xcbf29ce484222325u;
  const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
  for (size_t i = 0; i < values.size() * sizeof(T); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3u;
  return hash;
}

// The arrays of one case, and the calls that use them.
template <class T> class Run {
 public:
  Run(const Case& which, int threads) : c_(which), threads_(threads) {
    draw_inputs();
    make_outputs();
  }

  void forward(const KernelTable& table) {
    pass_.tape = nullptr;
    tape_ = allocate_aligned(tape_bytes(table, pass_));
    pass_.tape = tape_.get();
    rnnfast::forward(table, pass_);
  }

  void backward(const KernelTable& table) {
    Backward call;
    call.pass = &pass_;
    call.grad_y = {grad_y_.data(), c_.batch * width(), width()};
    call.grad_hn = grad_hn_.data();
    call.grad_cn = lstm() ? grad_cn_.data() : nullptr;
    call.grad_x = {grad_x_.data(), c_.batch * c_.input_size, c_.input_size};
    call.grad_h0 = grad_h0_.data();
    call.grad_c0 = lstm() ? grad_c0_.data() : nullptr;
    call.grad_weights = grad_weights_.data();
    call.per_step = per_step_pointers_.data();
    call.threads = -threads_;  // exactly so many, however small the case
    rnnfast::backward(table, call);
  }

  void print() const {
    print("y", y_);
    print("hn", hn_);
    if (lstm()) print("cn", cn_);
    print("grad_x", grad_x_);
    print("grad_h0", grad_h0_);
    if (lstm()) print("grad_c0", grad_c0_);
    for (const Array<T>& gradient : parameter_gradients_) print("grad_w", gradient);
    for (const Array<T>& gradient : per_step_) print("per_step", gradient);
  }

 private:
  bool lstm() const { return c_.cell == Cell::lstm; }
  int64_t width() const { return c_.directions * c_.hidden_size; }
  int64_t units() const { return c_.layers * c_.directions; }
  int64_t rows() const { return (lstm() ? 4 : c_.cell == Cell::gru ? 3 : 1) * c_.hidden_size; }
  int64_t inputs(int64_t unit) const { return unit < c_.directions ? c_.input_size : width(); }
  int64_t state_size() const { return units() * c_.batch * c_.hidden_size; }

  static void print(const char* name, const Array<T>& values) { std::printf(" %s=%016" PRIx64, name, fnv(values)); }

  void draw_inputs() {
    Numbers<T> numbers;
    for (int64_t unit = 0; unit < units(); ++unit) {
      for (int64_t size : {rows() * inputs(unit), rows() * c_.hidden_size, rows(), rows()}) {
        parameters_.push_back(numbers.draw(size));
        parameter_gradients_.emplace_back(size);
      }
    }
    x_ = numbers.draw(c_.steps * c_.batch * c_.input_size);
    h0_ = numbers.draw(state_size());
    c0_ = numbers.draw(state_size());
    grad_y_ = numbers.draw(c_.steps * c_.batch * width());
    grad_hn_ = numbers.draw(state_size());
    grad_cn_ = numbers.draw(state_size());
    for (int64_t b = 0; b < c_.batch; ++b) lengths_.push_back((b * 3 + 1) % (c_.steps + 1));
    for (int64_t unit = 0; unit < units(); ++unit) {
      Array<T>* w = &parameters_[static_cast<size_t>(unit) * 4];
      Array<T>* g = &parameter_gradients_[static_cast<size_t>(unit) * 4];
      weights_.push_back({w[0].data(), w[1].data(), c_.bias ? w[2].data() : nullptr, c_.bias ? w[3].data() : nullptr});
      grad_weights_.push_back(
          {g[0].data(), g[1].data(), c_.bias ? g[2].data() : nullptr, c_.bias ? g[3].data() : nullptr});
    }
  }

  void make_outputs() {
    const size_t state = static_cast<size_t>(state_size());
    y_.resize(grad_y_.size());
    grad_x_.resize(x_.size());
    for (Array<T>* array : {&hn_, &cn_, &grad_h0_, &grad_c0_}) array->resize(state);
    for (int64_t unit = 0; unit < units(); ++unit) per_step_.emplace_back(c_.steps * c_.batch * c_.hidden_size);
    for (Array<T>& array : per_step_) per_step_pointers_.push_back(array.data());
    pass_.spec.cell = c_.cell;
    for (Activations& a : pass_.spec.activations) a.gate.function = c_.activation;
    pass_.spec.dtype = sizeof(T) == 4 ? Dtype::float32 : Dtype::float64;
    pass_.spec.input_size = c_.input_size;
    pass_.spec.hidden_size = c_.hidden_size;
    pass_.spec.num_layers = c_.layers;
    pass_.spec.num_directions = c_.directions;
    pass_.steps = c_.steps;
    pass_.batch = c_.batch;
    pass_.lengths = c_.ragged ? lengths_.data() : nullptr;
    pass_.weights = weights_.data();
    pass_.x = {x_.data(), c_.batch * c_.input_size, c_.input_size};
    pass_.y = {y_.data(), c_.batch * width(), width()};
    pass_.h0 = h0_.data();
    pass_.c0 = lstm() ? c0_.data() : nullptr;
    pass_.hn = hn_.data();
    pass_.cn = lstm() ? cn_.data() : nullptr;
    pass_.dropout = c_.dropout;
    pass_.seed = 7;
    pass_.threads = -threads_;
  }

  Case c_;
  int threads_;
  Array<T> x_, y_, h0_, c0_, hn_, cn_, grad_y_, grad_hn_, grad_cn_, grad_x_, grad_h0_, grad_c0_;
  Array<int64_t> lengths_;
  std::vector<Array<T>> parameters_, parameter_gradients_, per_step_;
  std::vector<Weights> weights_;
  std::vector<WeightGradients> grad_weights_;
  std::vector<void*> per_step_pointers_;
  Forward pass_;
  Aligned tape_;
};

template <class T> void run(const KernelTable& table, const Case& c, int threads) {
  const char* const names[] = {"rnn", "lstm", "gru"};
  std::printf("%s%s f%d T%" PRId64 " B%" PRId64 " I%" PRId64 " H%" PRId64 " L%" PRId64 " D%" PRId64 ":",
              names[static_cast<int>(c.cell)], c.activation == Function::relu ? "-relu" : "",
              static_cast<int>(8 * sizeof(T)), c.steps, c.batch, c.input_size, c.hidden_size, c.layers, c.directions);
  Run<T> both_passes(c, threads);
  both_passes.forward(table);
  both_passes.backward(table);
  both_passes.print();
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  const KernelTable* table = default_isa();
  if (!table) {
    std::fprintf(stderr, "RNNFAST_ISA names no instruction set that this build and this CPU have\n");
    return 1;
  }
  std::printf("%s\n", table->isa);
  for (const Case& c : case_list) {
    run<float>(*table, c, threads);
    run<double>(*table, c, threads);
  }
  return 0;
}
