// rnnfast: recurrent layers for CPUs. The C++ interface.
//
// A pass over a stack of layers is described by one struct of sizes and pointers (`Forward`, `Backward`) and
// run by the functions at the end of this file. The caller owns all memory that is named here.
//
// Letters, here and everywhere:
//   T steps, B batch, I input size, H hidden size, G gates, L layers, D directions
//   I_l = I for layer 0, D * H above it
// Weights have PyTorch's shapes and gate order (LSTM i f g o, GRU r z n); layer l, direction d is number l * D + d.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rnnfast {

enum class Cell : int { rnn, lstm, gru };
enum class Dtype : int { float32, float64 };
enum class Activation : int { tanh, relu };  // of the RNN cell

constexpr int cells = 3;

// Blocks of H rows in a cell's weights, and whether its state is the pair (h, c).
static constexpr int gates_of(Cell cell) { return cell == Cell::rnn ? 1 : cell == Cell::lstm ? 4 : 3; }
static constexpr bool has_c(Cell cell) { return cell == Cell::lstm; }

constexpr int dtypes = 2;

struct Spec {
  Cell cell = Cell::rnn;
  Activation activation = Activation::tanh;
  Dtype dtype = Dtype::float32;
  int64_t input_size = 0;
  int64_t hidden_size = 0;
  int64_t num_layers = 1;
  int64_t num_directions = 1;
};

// One layer and direction. A null bias is a bias of zeros.
struct Weights {
  const void* weight_ih = nullptr;  // [G*H, I_l]
  const void* weight_hh = nullptr;  // [G*H, H]
  const void* bias_ih = nullptr;    // [G*H]
  const void* bias_hh = nullptr;    // [G*H]
};

struct WeightGradients {
  void* weight_ih = nullptr;  // [G*H, I_l]
  void* weight_hh = nullptr;  // [G*H, H]
  void* bias_ih = nullptr;    // [G*H]
  void* bias_hh = nullptr;    // [G*H]
};

// A [T, B, features] array. Strides are in elements; features are contiguous.
template <class Void> struct View {
  Void* data = nullptr;
  int64_t stride_t = 0;
  int64_t stride_b = 0;
};
using Input = View<const void>;
using Output = View<void>;

struct Forward {
  Spec spec;
  int64_t steps = 0;                 // T
  int64_t batch = 0;                 // B
  const int64_t* lengths = nullptr;  // [B], 0 <= lengths[b] <= T; null: all T
  const Weights* weights = nullptr;  // [L*D]; forward does not read them where `packed` is given
  const void* packed = nullptr;      // made by pack() with the same instruction set, or null: packed in the call
  Input x;                           // [T, B, I]
  Output y;                          // [T, B, D*H]; rows beyond a length are left alone: zero them first
  const void* h0 = nullptr;          // [L*D, B, H]; null: zeros
  const void* c0 = nullptr;          // [L*D, B, H], LSTM only; null: zeros
  void* hn = nullptr;                // [L*D, B, H]; may be h0
  void* cn = nullptr;                // [L*D, B, H], LSTM only; may be c0
  void* tape = nullptr;              // tape_bytes() bytes, aligned to 64; null: inference, nothing is kept
  int64_t segments = 0;              // > 0: the tape keeps only the boundaries of so many segments of the steps, and
                                     // backward computes the rest again; 0: it keeps everything
  double dropout = 0.0;              // probability between layers; applied only with a tape
  uint64_t seed = 0;                 // of the dropout masks
  int threads = 1;                   // at most; small work takes fewer. Negative: exactly so many (for tests)
  bool (*interrupted)() = nullptr;   // asked now and then by the calling thread: whether to give up
};

// The gradients of a loss. `pass` is the forward call, unchanged: same weights, x, y, h0, c0, tape.
// Null inputs are zeros, null outputs are not computed, and neither is what only they need: a stack's walk ends at the
// lowest layer that somebody asks about. Every output is overwritten, but rows of grad_x and per_step
// beyond a length are left alone: zero them first.
struct Backward {
  const Forward* pass = nullptr;
  Input grad_y;                                   // [T, B, D*H]
  const void* grad_hn = nullptr;                  // [L*D, B, H]
  const void* grad_cn = nullptr;                  // [L*D, B, H]
  Output grad_x;                                  // [T, B, I]
  void* grad_h0 = nullptr;                        // [L*D, B, H]
  void* grad_c0 = nullptr;                        // [L*D, B, H]
  const WeightGradients* grad_weights = nullptr;  // [L*D]
  void* const* per_step = nullptr;                // [L*D] arrays [T, B, H]: d loss / d h_t
  int threads = 1;                                // as in Forward
  bool (*interrupted)() = nullptr;                // as in Forward
};

// What one instruction set offers. Each is filled by the one exported symbol of a kernel object.
struct KernelTable {
  struct Entry {
    size_t (*packed_bytes)(const Spec&);
    void (*pack)(const Spec&, const Weights*, void* packed);
    size_t (*tape_bytes)(const Forward&);
    size_t (*forward_scratch)(const Forward&);
    bool (*forward)(const Forward&, void* scratch);
    size_t (*backward_scratch)(const Backward&);
    bool (*backward)(const Backward&, void* scratch);
  };
  const char* isa;
  int vector_bytes;
  Entry entry[cells][dtypes];
  // The elementary functions, for measuring their error: y[j] = f(x[j]).
  enum Function { exp, expm1, sigmoid, tanh, functions };
  void (*apply[functions][dtypes])(const void* x, void* y, int64_t n);
  // Work at the machine's limits, see kernel/roofline.h.
  double (*fma_rounds[dtypes])(int64_t n, double* sink);
  void (*read_rounds)(const void* data, int64_t bytes, int64_t n, double* sink);
};

// --- instruction sets (dispatch.cpp) ---

constexpr int numerics = 1;  // raised when the bits of any result change

// The table of a named instruction set, or null where it is unknown or this CPU lacks it.
const KernelTable* find_isa(const char* name);
// Names of the instruction sets of this build that this CPU has, best first; returns how many.
int available_isas(const char* names[], int capacity);
// The best one, or the one that RNNFAST_ISA names. Null where that name is unknown or unsupported.
const KernelTable* default_isa();

// --- passes (dispatch.cpp) ---
// Preconditions are those in the structs; sizes are not negative and T*B*max(I, 4*H, D*H)*8 fits an int64_t.
// Scratch memory is allocated inside; std::bad_alloc where it cannot be. False: given up because `interrupted` said so,
// and what was written so far means nothing.

size_t packed_bytes(const KernelTable&, const Spec&);
void pack(const KernelTable&, const Spec&, const Weights*, void* packed);
size_t tape_bytes(const KernelTable&, const Forward&);
bool forward(const KernelTable&, const Forward&);
bool backward(const KernelTable&, const Backward&);

// --- limits of this machine (roofline.cpp) ---

// Floating-point operations per second that `threads` threads reach with fused multiply-adds in registers.
double measure_peak(const KernelTable&, Dtype, int threads, double seconds);
// Bytes per second that they read together, each from a buffer of its own of this size.
double measure_read(const KernelTable&, int64_t bytes, int threads, double seconds);

// --- dropout between layers ---
// Masks are a function of the place in the sequence, so they are never stored: backward computes them again.
// The functions have internal linkage because every instruction set compiles its own copy.

// The finalizer of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
static inline uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

static inline uint64_t dropout_key(uint64_t seed, int64_t layer, int64_t t, int64_t b) {
  return mix(mix(mix(seed + static_cast<uint64_t>(layer)) + static_cast<uint64_t>(t)) + static_cast<uint64_t>(b));
}

// Whether dropout with probability p keeps element `unit` of the row with this key; what is kept grows by 1 / (1 - p).
static inline bool dropout_keeps(uint64_t key, int64_t unit, double p) {
  const uint64_t bits = mix(key + static_cast<uint64_t>(unit) * 0x9e3779b97f4a7c15u) >> 11;
  return static_cast<double>(static_cast<int64_t>(bits)) * 0x1p-53 >= p;
}

}  // namespace rnnfast
