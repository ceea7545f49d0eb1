// Compiled once for each instruction set, with that set's flags; everything but one table is local to the object.
// RNNFAST_ISA_NAME is the set's name, as in x86_64_v3.
#include "kernel/backward.h"
#include "kernel/cell_gru.h"
#include "kernel/cell_lstm.h"
#include "kernel/cell_rnn.h"
#include "kernel/forward.h"
#include "kernel/roofline.h"
#include "rnnfast.h"

namespace rnnfast {
namespace {

template <class C, class T> constexpr KernelTable::Entry entry() {
  static_assert(C::columns <= C::saved_general && (C::saved == 0 || C::columns <= C::saved),
                "recomputation puts the columns where the saved values go");
  return {
      &ForwardPass<C, T>::packed_bytes,
      [](const Spec& spec, const Weights* weights, void* packed) {
        Flush flush;  // as where weights are packed inside a pass: sums of biases must have the same bits
        ForwardPass<C, T>::pack(spec, weights, packed, 0, 1);
      },
      [](const Forward& pass) {
        Forward sizes = pass;
        sizes.tape = nullptr;
        Arena none(nullptr);
        return Tape<C, T>(sizes, Schedule(none, sizes).total(), is_general(sizes.spec)).bytes();
      },
      [](const Forward& pass) { return ForwardPass<C, T>(pass, nullptr).scratch_bytes(); },
      [](const Forward& pass, void* scratch) { ForwardPass<C, T>::prepare(pass, scratch); },
      [](void* scratch) { return static_cast<ForwardPass<C, T>*>(scratch)->run(); },
      [](const Backward& call) { return BackwardPass<C, T>(call, nullptr).scratch_bytes(); },
      [](const Backward& call, void* scratch) { return BackwardPass<C, T>(call, scratch).run(); },
  };
}

template <class T, vec<T> (*f)(vec<T>)> void apply(const void* x, void* y, int64_t n) {
  Flush flush;
  for (int64_t j = 0; j < n; j += lanes<T>) {
    const int64_t valid = min(lanes<T>, n - j);
    store_part(static_cast<T*>(y) + j, f(load_part(static_cast<const T*>(x) + j, valid)), valid);
  }
}

#define RNNFAST_STRING(name) #name
#define RNNFAST_NAME(name) RNNFAST_STRING(name)

template <class C> constexpr bool matches(Cell cell) { return C::gates == gates_of(cell) && C::has_c == has_c(cell); }
static_assert(matches<Rnn<float>>(Cell::rnn) && matches<Lstm<float>>(Cell::lstm) && matches<Gru<float>>(Cell::gru));

const KernelTable table = {
    RNNFAST_NAME(RNNFAST_ISA_NAME),
    vector_bytes,
    {{entry<Rnn<float>, float>(), entry<Rnn<double>, double>()},
     {entry<Lstm<float>, float>(), entry<Lstm<double>, double>()},
     {entry<Gru<float>, float>(), entry<Gru<double>, double>()}},
    {{apply<float, exp>, apply<double, exp>},
     {apply<float, expm1>, apply<double, expm1>},
     {apply<float, sigmoid>, apply<double, sigmoid>},
     {apply<float, tanh>, apply<double, tanh>}},
    {fma_rounds<float>, fma_rounds<double>},
    read_rounds,
};

}  // namespace
}  // namespace rnnfast

#define RNNFAST_CONCAT(a, b) a##b
#define RNNFAST_SYMBOL(name) RNNFAST_CONCAT(rnnfast_kernels_, name)

extern "C" const rnnfast::KernelTable* RNNFAST_SYMBOL(RNNFAST_ISA_NAME)() { return &rnnfast::table; }
