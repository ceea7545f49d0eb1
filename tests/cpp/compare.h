// Runs a case on the kernels and as plain loops, and compares every byte of every output.
#pragma once

#include <cfenv>
#include <initializer_list>
#include <stdexcept>

#include "pass.h"
#include "plain.h"

namespace rnnfast {

// Two fills of what is going to be written. As numbers the first is NaN, so that a result in which an element went
// that was never written is NaN too; with the second it is huge.
constexpr unsigned char fills[] = {0xff, 0x77};

// Where the arrays of a case lie in their memory, and what is in those that are going to be written.
struct Place {
  Side side;
  unsigned char fill;
};

template <class T> bool is_filled(const T& value, unsigned char fill) {
  T filled;
  std::memset(&filled, fill, sizeof(T));
  return !std::memcmp(&value, &filled, sizeof(T));
}

// `want` holds the first fill, a NaN that no arithmetic makes, where the element must be left alone. Else the same
// bits; or NaN in both, whose payload is nobody's business; or a zero and a denormal number that was only copied:
// whether a clamp flushes it depends on the instruction that a compiler takes for it.
template <class T> bool same(const T& got, const T& want, unsigned char fill) {
  if (is_filled(want, fills[0])) return is_filled(got, fill);
  if (!std::memcmp(&got, &want, sizeof(T))) return true;
  const auto is_tiny = [](T x) { return std::fabs(x) < std::numeric_limits<T>::min(); };
  if (is_tiny(got) && is_tiny(want) && (got == 0 || want == 0)) return std::signbit(got) == std::signbit(want);
  return std::isnan(got) && std::isnan(want) && !is_filled(got, fill);
}

// The first difference, or "". `want` was filled with fills[0], and `got` with `fill`.
template <class T> std::string difference(const Outputs<T>& got, const Outputs<T>& want, unsigned char fill) {
  std::vector<const Guarded<T>*> wanted;
  want.each([&](const char*, const Guarded<T>& array) { wanted.push_back(&array); });
  std::string found;
  size_t n = 0;
  got.each([&](const char* name, const Guarded<T>& array) {
    const Guarded<T>& other = *wanted[n++];
    for (size_t i = 0; found.empty() && i < array.size(); ++i) {
      if (same(array[i], other[i], fill)) continue;
      char text[200];
      std::snprintf(text, sizeof text, "%s[%zu] is %.17g, expected %.17g", name, i, static_cast<double>(array[i]),
                    static_cast<double>(other[i]));
      found = text;
    }
  });
  return found;
}

// Memory that the engine asks for: it has to fill it before it reads, and ends at a guard page.
inline Guarded<unsigned char> workspace(size_t bytes, Side side, unsigned char fill) {
  return Guarded<unsigned char>(static_cast<int64_t>((bytes + 63) / 64 * 64), side, fill);
}

template <class T> const KernelTable::Entry& entry_of(const KernelTable& table, const Case& c) {
  return table.entry[static_cast<int>(c.cell)][static_cast<int>(c.dtype)];
}

// Runs the kernels of one instruction set with scratch memory of the exact size.
template <class T> void run_kernels(const KernelTable& table, const Case& c, Pass<T>& pass, Place place) {
  const auto [side, fill] = place;
  const KernelTable::Entry& kernels = entry_of<T>(table, c);
  Guarded<unsigned char> packed, tape;
  if (c.packed) {
    packed = workspace(packed_bytes(table, pass.forward.spec), side, fill);
    pack(table, pass.forward.spec, pass.forward.weights, packed.data());
    packed.protect();
    pass.forward.packed = packed.data();
  }
  if (c.trains()) {
    tape = workspace(tape_bytes(table, pass.forward), side, fill);
    pass.forward.tape = tape.data();
  }
  if (!c.hidden_size) {  // for an empty layer the entries are not called, as in the bindings: only the API is
    forward(table, pass.forward);
    if (c.trains()) backward(table, pass.backward);
    return;
  }
  const auto forward_scratch = workspace(kernels.forward_scratch(pass.forward), side, fill);
  kernels.prepare_forward(pass.forward, forward_scratch.data());
  kernels.forward(forward_scratch.data());
  if (!c.in_place) {  // a prepared pass may be run again
    pass.forward.back = !pass.forward.back;
    kernels.forward(forward_scratch.data());
  }
  if (!c.trains()) return;
  tape.protect();
  const auto backward_scratch = workspace(kernels.backward_scratch(pass.backward), side, fill);
  kernels.backward(pass.backward, backward_scratch.data());
}

// Whether a call leaves the floating-point environment as it was: modes, and which exceptions there were. On x86-64
// every other case finds denormal numbers flushed already, which is for the caller to take back.
template <class Run> bool keeps_environment(const Case& c, const Run& run) {
#if defined(__x86_64__)
  const unsigned before = __builtin_ia32_stmxcsr();
  if (c.numbers % 2) __builtin_ia32_ldmxcsr(before | 0x8040);
#else
  (void)c;
#endif
  std::fenv_t mine, found;
  std::fegetenv(&mine);
  run();
  std::fegetenv(&found);
#if defined(__x86_64__)
  __builtin_ia32_ldmxcsr(before);
  // Not the x87's pointers to its last instruction, which a change of threads may clear.
  return mine.__control_word == found.__control_word && mine.__status_word == found.__status_word &&
         mine.__mxcsr == found.__mxcsr;
#else
  return !std::memcmp(&mine, &found, sizeof mine);
#endif
}

// What the plain loops make of a case.
template <class T> Outputs<T> expected(const KernelTable& table, const Case& c) {
  const Inputs<T> in(c, Side::end);
  Outputs<T> want(c, Side::end, fills[0]);
  Pass<T> pass(c, in, want);
  Plain<T> plain(table, pass.forward);
  plain.forward(c.trains());
  if (c.trains()) plain.backward(pass.backward);
  return want;
}

// "", or what is different from the plain loops, which run once for all places.
using Places = std::initializer_list<Place>;
template <class T> std::string compare_numbers(const KernelTable& table, const Case& c, Places places) {
  const Outputs<T> want = expected<T>(table, c);
  std::string found;
  for (const Place& place : places) {
    const Inputs<T> in(c, place.side);
    const Outputs<T> got(c, place.side, place.fill);
    Pass<T> pass(c, in, got);
    if (!keeps_environment(c, [&] { run_kernels(table, c, pass, place); }))
      found = "the floating-point environment is another one";
    if (found.empty()) found = difference(got, want, place.fill);
  }
  return found;
}

inline std::string compare(const KernelTable& table, const Case& c, Places places) {
  const std::string found =
      c.dtype == Dtype::float32 ? compare_numbers<float>(table, c, places) : compare_numbers<double>(table, c, places);
  return found.empty() ? found : std::string(table.isa) + ": " + describe(c) + ":\n  " + found;
}

inline std::vector<const KernelTable*> all_tables() {
  const char* names[16];
  std::vector<const KernelTable*> tables;
  for (int i = 0, n = available_isas(names, 16); i < n; ++i) tables.push_back(find_isa(names[i]));
  return tables;
}

}  // namespace rnnfast
