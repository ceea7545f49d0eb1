// Chooses an instruction set, checks what a caller hands over, and calls the kernels with scratch memory.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

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

int64_t checked_product(std::initializer_list<int64_t> sizes) {
  int64_t product = 8;  // bytes of the larger dtype
  for (int64_t size : sizes) {
    // A zero size must not hide what the others are multiplied to: buffers may be sized by a part of them.
    require(!__builtin_mul_overflow(product, std::max<int64_t>(size, 1), &product), "sizes are too large");
  }
  return std::find(sizes.begin(), sizes.end(), 0) == sizes.end() ? product / 8 : 0;
}

// The product of up to six sizes, refused where its bytes do not fit an int64_t.
template <class... Sizes> int64_t elements(Sizes... sizes) {
  static_assert(sizeof...(sizes) <= 6, "the shortcut below");
  if ((sizes | ...) < 1 << 10) return (sizes * ...);  // a step of a stream spends a tenth of its time here otherwise
  return checked_product({sizes...});
}

void check_options(const Spec& spec) {
  for (const Activations& direction : spec.activations)
    for (const Activation& a : {direction.gate, direction.candidate, direction.output})
      require(static_cast<int>(a.function) >= 0 && static_cast<int>(a.function) < functions, "unknown activation");
  require(spec.proj_size >= 0, "negative proj_size");
  const bool lstm = spec.cell == Cell::lstm;
  require(lstm || !(spec.proj_size || spec.peepholes || spec.coupled_gates || spec.zoneout_c != 0),
          "proj_size, peepholes, coupled_gates and zoneout of c are for LSTM");
  require(spec.cell == Cell::gru || spec.reset_after, "reset_after is for GRU");
  require(!spec.layer_norm || (spec.cell != Cell::rnn && spec.reset_after && !spec.proj_size && !spec.peepholes &&
                               !spec.coupled_gates && spec.zoneout_h == 0 && spec.zoneout_c == 0),
          "layer_norm is for LSTM and GRU without other options of the cell");
  require(!spec.proj_size || !(spec.hidden_sizes || spec.zoneout_h != 0 || spec.zoneout_c != 0),
          "proj_size goes with neither hidden_sizes nor zoneout");
  require(spec.clip >= 0, "negative clip");
  require(spec.zoneout_h >= 0 && spec.zoneout_h <= 1 && spec.zoneout_c >= 0 && spec.zoneout_c <= 1,
          "zoneout is not in [0, 1]");
}

void check(const Spec& spec) {
  const int cell = static_cast<int>(spec.cell), dtype = static_cast<int>(spec.dtype);
  require(cell >= 0 && cell < cells, "unknown cell");
  require(dtype >= 0 && dtype < dtypes, "unknown dtype");
  require(spec.input_size >= 0 && spec.hidden_size >= 0, "negative input_size or hidden_size");
  require(spec.num_layers >= 1, "num_layers is not positive");
  require(spec.num_directions == 1 || spec.num_directions == 2, "num_directions is neither 1 nor 2");
  for (int64_t l = 0; spec.hidden_sizes && l < spec.num_layers; ++l)
    require(spec.hidden_sizes[l] > 0 && spec.hidden_sizes[l] <= spec.hidden_size,
            "a size is not positive, or larger than hidden_size", l);
  check_options(spec);
  const int64_t widest = std::max(spec.hidden_size, spec.proj_size);
  elements(spec.num_layers, spec.num_directions, int64_t{4}, spec.hidden_size, spec.input_size);
  elements(spec.num_layers, spec.num_directions, int64_t{4}, spec.hidden_size, spec.num_directions, widest);
}

// All that a layer and direction has to have; a bias may be missing.
void check(const Spec& spec, const Weights* all) {
  require(all, "weights are null");
  const char* const missing = "a weight is null";
  for (int64_t i = 0; i < spec.num_layers * spec.num_directions; ++i) {
    const int64_t layer = i / spec.num_directions, units = units_of(spec, layer), outputs = outputs_of(spec, layer);
    const Weights& p = all[i];
    require(p.weight_ih || !(units && inputs_of(spec, layer)), missing, i);
    require(p.weight_hh || !(units && outputs), missing, i);
    require(p.weight_hr || !(units && spec.proj_size), missing, i);
    require(p.weight_ch || !(units && spec.peepholes), missing, i);
    require((p.weight_ln_ih && p.weight_ln_hh) || !(units && spec.layer_norm), missing, i);
    require((p.weight_ln_c && p.bias_ln_c) || !(units && spec.layer_norm && has_c(spec.cell)), missing, i);
  }
}

// Sizes and lengths: what the sizes of a tape and of scratch memory depend on.
void check_shape(const Forward& pass) {
  const Spec& spec = pass.spec;
  check(spec);
  require(pass.steps >= 0 && pass.batch >= 0, "negative steps or batch");
  const int64_t widest = std::max(spec.hidden_size, spec.proj_size);
  const int64_t width = std::max({spec.input_size, 4 * spec.hidden_size, spec.num_directions * widest});
  elements(pass.steps, pass.batch, width);
  elements(spec.num_layers, spec.num_directions, pass.batch, widest);
  // The tape: at most 13 values a unit, of which there are whole vectors.
  elements(spec.num_layers, spec.num_directions, pass.steps, pass.batch, int64_t{13}, widest + 16);
  require(pass.segments >= 0, "negative segments");
  require(pass.segments == 0 || (spec.reset_after && !spec.layer_norm && !pass.recurrent_masks),
          "segments go with neither layer_norm, the reset gate before the product nor recurrent masks");
  const bool irregular = pass.lengths || pass.mask || pass.reset;
  require(!irregular || pass.batch <= INT32_MAX, "with lengths, mask or reset, batch must fit 32 bits");
  require(!(pass.lengths && pass.mask), "lengths and mask exclude each other");
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
  require(pass.x.data || !elements(pass.steps, pass.batch, spec.input_size), "x is null");
  const int64_t outputs = spec.proj_size ? spec.proj_size : spec.hidden_size;
  require(pass.y.data || !elements(pass.steps, pass.batch, outputs), "y is null");
  for (int64_t i = 0; pass.recurrent_masks && i < spec.num_layers * spec.num_directions; ++i)
    require(pass.recurrent_masks[i] || !elements(pass.batch, outputs), "a recurrent mask is null", i);
  require(!pass.cells.data || has_c(spec.cell), "only an LSTM has cells");
  require(pass.dropout >= 0 && pass.dropout <= 1, "dropout is not in [0, 1]");
  require(pass.threads != 0, "threads is 0");
}

void check(const Backward& call) {
  require(call.pass, "pass is null");
  check(*call.pass);
  require(call.pass->tape, "the forward call kept no tape");
  check(call.pass->spec, call.pass->weights);
  require(call.grad_clip >= 0, "negative grad_clip");
  require(call.threads != 0, "threads is 0");
}

Spare spare_scratch;

// Memory for one call, aligned to 64 bytes. A step of a stream needs little and takes it from the stack.
class Scratch {
 public:
  Scratch(size_t bytes, const KernelTable::Entry& kernels, const Spec& spec) : kernels_(kernels), spec_(spec) {
    if (bytes > sizeof near_) far_ = spare_scratch.take(bytes);
  }
  ~Scratch() {
    if (far_) spare_scratch.leave(std::move(far_), kernels_.packed_bytes(spec_));
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() { return far_ ? far_->data() : near_; }

 private:
  const KernelTable::Entry& kernels_;
  const Spec& spec_;
  alignas(64) unsigned char near_[16384];
  Spare::Block far_;
};

const KernelTable::Entry& entry(const KernelTable& table, const Spec& spec) {
  return table.entry[static_cast<int>(spec.cell)][static_cast<int>(spec.dtype)];
}

}  // namespace

bool halves_vectors() {
#if defined(__x86_64__)
  if (!supports_x86_64_v4() || !__builtin_cpu_is("amd")) return false;
  static std::atomic<unsigned> known{0};  // asking takes microseconds in a virtual machine
  unsigned family = known.load(std::memory_order_relaxed), a = 0, b = 0, c = 0, d = 0;
  if (family) return family == 0x19;
  __get_cpuid(1, &a, &b, &c, &d);
  family = (a >> 8 & 0xf) + (a >> 20 & 0xff);
  known.store(family, std::memory_order_relaxed);
  return family == 0x19;
#else
  return false;
#endif
}

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

const KernelTable* default_isa(const Spec& spec) {
  check(spec);
  const KernelTable* const wide = default_isa();
  const char* wanted = std::getenv("RNNFAST_ISA");
  if (!wide || (wanted && *wanted) || !halves_vectors()) return wide;
  const KernelTable* const narrow = find_isa("x86_64_v3");
  const auto lanes = [&](const KernelTable& table) {
    const int64_t width = table.vector_bytes / (spec.dtype == Dtype::float32 ? 4 : 8);
    int64_t sum = 0;
    for (int64_t l = 0; l < spec.num_layers; ++l) sum += (units_of(spec, l) + width - 1) / width * width;
    return sum;
  };
  // Measured: what fewer registers cost, which is more where there is only one gate.
  const int64_t percent = spec.cell == Cell::rnn ? 60 : 92;
  return lanes(*narrow) * 100 <= lanes(*wide) * percent ? narrow : wide;
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
  Scratch scratch(kernels.forward_scratch(pass), kernels, pass.spec);
  kernels.prepare_forward(pass, scratch.data());
  return kernels.forward(scratch.data());
}

bool backward(const KernelTable& table, const Backward& call) {
  check(call);
  const KernelTable::Entry& kernels = entry(table, call.pass->spec);
  Scratch scratch(kernels.backward_scratch(call), kernels, call.pass->spec);
  return kernels.backward(call, scratch.data());
}

}  // namespace rnnfast
