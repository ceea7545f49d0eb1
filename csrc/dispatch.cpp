// Chooses an instruction set, checks what a caller hands over, and calls the kernels with scratch memory.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <new>
#include <stdexcept>
#include <string>

#include "memory.h"
#include "rnnfast.h"

// The build defines RNNFAST_ISAS as its instruction sets, best first: ISA(x86_64_v4) ISA(x86_64_v3) ...
#define ISA(name) extern "C" const rnnfast::KernelTable* rnnfast_kernels_##name();
RNNFAST_ISAS
#undef ISA

namespace rnnfast {
namespace {

// --- instruction sets ---

// What the running CPU and its operating system offer. One feature stands for each part of a psABI level: the others
// (lzcnt, movbe, f16c) have come with it in every CPU made, if a virtual machine does not hide them; the level's own
// name ("x86-64-v3") is not known to GCC 11 and Clang 14.
#if defined(__x86_64__)
bool supports_x86_64_v2() { return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt"); }
bool supports_x86_64_v3() {
  return supports_x86_64_v2() && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}
bool supports_x86_64_v4() {
  return supports_x86_64_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#elif defined(__aarch64__)
bool supports_neon() { return true; }  // part of the architecture
#endif

struct Isa {
  const char* name;
  bool (*supported)();
  const KernelTable* (*table)();
};

constexpr Isa isas[] = {
#define ISA(name) {#name, supports_##name, rnnfast_kernels_##name},
    RNNFAST_ISAS
#undef ISA
};

// --- checks: only what memory safety needs, once per call ---

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

void require(bool condition, const char* message, int64_t index) {
  if (!condition) throw std::invalid_argument(message + (" [" + std::to_string(index) + "]"));
}

// The product of sizes, refused where its bytes do not fit an int64_t.
int64_t elements(std::initializer_list<int64_t> sizes) {
  int64_t product = 8;  // bytes of the larger dtype
  for (int64_t size : sizes) {
    // A zero size must not hide what the others are multiplied to: buffers may be sized by a part of them.
    require(!__builtin_mul_overflow(product, std::max<int64_t>(size, 1), &product), "sizes are too large");
  }
  return std::find(sizes.begin(), sizes.end(), 0) == sizes.end() ? product / 8 : 0;
}

void check(const Spec& spec) {
  const int cell = static_cast<int>(spec.cell), dtype = static_cast<int>(spec.dtype);
  require(cell >= 0 && cell < cells, "unknown cell");
  require(dtype >= 0 && dtype < dtypes, "unknown dtype");
  require(spec.activation == Activation::tanh || spec.activation == Activation::relu, "unknown activation");
  require(spec.input_size >= 0 && spec.hidden_size >= 0, "negative input_size or hidden_size");
  require(spec.num_layers >= 1, "num_layers is not positive");
  require(spec.num_directions == 1 || spec.num_directions == 2, "num_directions is neither 1 nor 2");
  elements({spec.num_layers, spec.num_directions, 4, spec.hidden_size, spec.input_size});
  elements({spec.num_layers, spec.num_directions, 4, spec.hidden_size, spec.num_directions, spec.hidden_size});
}

void check(const Spec& spec, const Weights* weights) {
  require(weights, "weights are null");
  for (int64_t i = 0; i < spec.num_layers * spec.num_directions; ++i) {
    const int64_t inputs = i < spec.num_directions ? spec.input_size : spec.num_directions * spec.hidden_size;
    const int64_t rows = gates_of(spec.cell) * spec.hidden_size;
    require(weights[i].weight_ih || !(rows && inputs), "weight_ih is null", i);
    require(weights[i].weight_hh || !rows, "weight_hh is null", i);
  }
}

// Sizes and lengths: what the sizes of a tape and of scratch memory depend on.
void check_shape(const Forward& pass) {
  const Spec& spec = pass.spec;
  check(spec);
  require(pass.steps >= 0 && pass.batch >= 0, "negative steps or batch");
  const int64_t width = std::max({spec.input_size, 4 * spec.hidden_size, spec.num_directions * spec.hidden_size});
  elements({pass.steps, pass.batch, width});
  elements({spec.num_layers, spec.num_directions, pass.batch, spec.hidden_size});
  // The tape: at most 5 values a unit, of which there are whole vectors.
  elements({spec.num_layers, spec.num_directions, pass.steps, pass.batch, 5, spec.hidden_size + 16});
  require(pass.segments >= 0, "negative segments");
  require(!pass.lengths || pass.batch <= INT32_MAX, "with lengths, batch must fit 32 bits");
  for (int64_t b = 0; pass.lengths && b < pass.batch; ++b) {
    require(pass.lengths[b] >= 0 && pass.lengths[b] <= pass.steps, "a length is not in [0, steps]", b);
  }
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 64 == 0; }

void check(const Forward& pass) {
  check_shape(pass);
  const Spec& spec = pass.spec;
  if (!pass.packed) check(spec, pass.weights);
  require(aligned(pass.packed) && aligned(pass.tape), "packed or tape is not aligned to 64 bytes");
  require(pass.x.data || !elements({pass.steps, pass.batch, spec.input_size}), "x is null");
  require(pass.y.data || !elements({pass.steps, pass.batch, spec.hidden_size}), "y is null");
  const bool has_state = elements({pass.batch, spec.hidden_size}) > 0;
  require(pass.hn || !has_state, "hn is null");
  require(pass.cn || !has_state || !has_c(spec.cell), "cn is null");
  require(pass.dropout >= 0 && pass.dropout <= 1, "dropout is not in [0, 1]");
  require(pass.threads != 0, "threads is 0");
}

void check(const Backward& call) {
  require(call.pass, "pass is null");
  check(*call.pass);
  require(call.pass->tape, "the forward call kept no tape");
  check(call.pass->spec, call.pass->weights);
  require(call.threads != 0, "threads is 0");
}

// Memory for one call, aligned to 64 bytes. A step of a stream needs little and takes it from the stack.
class Scratch {
 public:
  explicit Scratch(size_t bytes) {
    if (bytes > sizeof near_) far_.allocate(bytes);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() { return far_.data() ? far_.data() : near_; }

 private:
  alignas(64) unsigned char near_[16384];
  Memory far_;
};

const KernelTable::Entry& entry(const KernelTable& table, const Spec& spec) {
  return table.entry[static_cast<int>(spec.cell)][static_cast<int>(spec.dtype)];
}

}  // namespace

const KernelTable* find_isa(const char* name) {
  for (const Isa& isa : isas) {
    if (name && !std::strcmp(isa.name, name)) return isa.supported() ? isa.table() : nullptr;
  }
  return nullptr;
}

int available_isas(const char* names[], int capacity) {
  int count = 0;
  for (const Isa& isa : isas) {
    if (!isa.supported()) continue;
    if (count < capacity) names[count] = isa.name;
    ++count;
  }
  return count;
}

const KernelTable* default_isa() {
  const char* wanted = std::getenv("RNNFAST_ISA");
  if (wanted && *wanted) return find_isa(wanted);
  for (const Isa& isa : isas) {
    if (isa.supported()) return isa.table();
  }
  return nullptr;
}

size_t packed_bytes(const KernelTable& table, const Spec& spec) {
  check(spec);
  return entry(table, spec).packed_bytes(spec);
}

void pack(const KernelTable& table, const Spec& spec, const Weights* weights, void* packed) {
  check(spec);
  check(spec, weights);
  require(packed && aligned(packed), "packed is null or not aligned to 64 bytes");
  entry(table, spec).pack(spec, weights, packed);
}

size_t tape_bytes(const KernelTable& table, const Forward& pass) {
  check_shape(pass);
  return entry(table, pass.spec).tape_bytes(pass);
}

bool forward(const KernelTable& table, const Forward& pass) {
  check(pass);
  const KernelTable::Entry& kernels = entry(table, pass.spec);
  Scratch scratch(kernels.forward_scratch(pass));
  return kernels.forward(pass, scratch.data());
}

bool backward(const KernelTable& table, const Backward& call) {
  check(call);
  const KernelTable::Entry& kernels = entry(table, call.pass->spec);
  Scratch scratch(kernels.backward_scratch(call));
  return kernels.backward(call, scratch.data());
}

}  // namespace rnnfast
