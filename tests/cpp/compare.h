// Runs a case on the kernels and as plain loops, and compares every byte of every output.
#pragma once

#include <stdexcept>

#include "pass.h"
#include "plain.h"

namespace rnnfast {

// Two fills of what is going to be written. As numbers the first is NaN, so that a result in which an element went
// that was never written is NaN too; with the second it is huge.
constexpr unsigned char fills[] = {0xff, 0x77};

// The same bits; or NaN in both, whose payload is nobody's business but where the element must be left alone; or a zero
// and a denormal number that was only copied: whether a clamp flushes it depends on the instruction that a compiler
// takes for it.
template <class T> bool same(const T& got, const T& want, unsigned char fill) {
  if (!std::memcmp(&got, &want, sizeof(T))) return true;
  const auto is_tiny = [](T x) { return std::fabs(x) < std::numeric_limits<T>::min(); };
  if (is_tiny(got) && is_tiny(want) && (got == 0 || want == 0)) return std::signbit(got) == std::signbit(want);
  T untouched;
  std::memset(&untouched, fill, sizeof(T));
  return std::isnan(got) && std::isnan(want) && std::memcmp(&want, &untouched, sizeof(T)) != 0;
}

// The first difference, or "".
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
template <class T>
void run_kernels(const KernelTable& table, const Case& c, Pass<T>& pass, Side side, unsigned char fill) {
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
  kernels.forward(pass.forward, forward_scratch.data());
  if (!c.trains()) return;
  tape.protect();
  const auto backward_scratch = workspace(kernels.backward_scratch(pass.backward), side, fill);
  kernels.backward(pass.backward, backward_scratch.data());
}

// "", or what is different from the plain loops.
template <class T> std::string compare(const KernelTable& table, const Case& c, Side side, unsigned char fill) {
  const Inputs<T> in(c, side);
  const Outputs<T> got(c, side, fill), want(c, side, fill);
  Pass<T> pass(c, in, got), plain_pass(c, in, want);
  run_kernels(table, c, pass, side, fill);
  Plain<T> plain(table, plain_pass.forward);
  plain.forward(c.trains());
  if (c.trains()) plain.backward(plain_pass.backward);
  return difference(got, want, fill);
}

inline std::string compare(const KernelTable& table, const Case& c, Side side, unsigned char fill) {
  const std::string found =
      c.dtype == Dtype::float32 ? compare<float>(table, c, side, fill) : compare<double>(table, c, side, fill);
  return found.empty() ? found : std::string(table.isa) + ": " + describe(c) + ":\n  " + found;
}

inline std::vector<const KernelTable*> all_tables() {
  const char* names[16];
  std::vector<const KernelTable*> tables;
  for (int i = 0, n = available_isas(names, 16); i < n; ++i) tables.push_back(find_isa(names[i]));
  return tables;
}

}  // namespace rnnfast
