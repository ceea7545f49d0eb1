// rnnfast: recurrent layers for CPUs. The C++ interface.
//
// A pass over a stack of layers is described by one struct of sizes and pointers (`Forward`, `Backward`) and
// run by the functions at the end of this file. The caller owns all memory that is named here.
//
// Letters, here and everywhere:
//   T steps, B batch, I input size, H hidden size, S size of h (H, or proj_size), G gates, L layers, D directions
//   I_l = I for layer 0, D * S above it
// Weights have PyTorch's shapes and gate order (LSTM i f g o, GRU r z n); layer l, direction d is number l * D + d.
// Where layers have sizes of their own, a state's [L*D, B, H] is the blocks [D, B, H_l] of the layers one after
// another.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rnnfast {

enum class Cell : int { rnn, lstm, gru };
enum class Dtype : int { float32, float64 };

// The activations of ONNX's recurrent operators, with their alpha and beta.
enum class Function : int {
  standard,  // what the cell has in the paper that introduced it: sigmoid of gates, else tanh
  tanh,
  sigmoid,
  relu,
  affine,            // alpha x + beta
  leaky_relu,        // x, alpha x below 0
  thresholded_relu,  // x from alpha on, else 0
  scaled_tanh,       // alpha tanh(beta x)
  hard_sigmoid,      // alpha x + beta within [0, 1]
  elu,               // x, alpha (exp(x) - 1) below 0
  softsign,          // x / (1 + |x|)
  softplus,          // log(1 + exp(x))
};
constexpr int functions = 12;

struct Activation {
  Function function = Function::standard;
  double alpha = 0, beta = 0;
};

// Of the gates, of the candidate, and of c on its way to h. RNN has the first only, GRU the first two.
struct Activations {
  Activation gate, candidate, output;
};

constexpr int cells = 3;

// Blocks of H rows in a cell's weights, and whether its state is the pair (h, c).
static constexpr int gates_of(Cell cell) { return cell == Cell::rnn ? 1 : cell == Cell::lstm ? 4 : 3; }
static constexpr bool has_c(Cell cell) { return cell == Cell::lstm; }

constexpr int dtypes = 2;

struct Spec {
  Cell cell = Cell::rnn;
  Dtype dtype = Dtype::float32;
  int64_t input_size = 0;
  int64_t hidden_size = 0;
  int64_t num_layers = 1;
  int64_t num_directions = 1;
  const int64_t* hidden_sizes = nullptr;  // [L], where layers have sizes of their own; hidden_size is then the largest
  int64_t proj_size = 0;                  // > 0, LSTM: h = weight_hr (o * tanh(c)), of that size
  bool reset_after = true;                // GRU: the reset gate acts on U h (cuDNN, PyTorch); false: on h
  bool peepholes = false;                 // LSTM: i and f see the c before, o the new one
  bool coupled_gates = false;             // LSTM: f = 1 - i
  bool layer_norm = false;                // LSTM, and GRU with reset_after
  double clip = 0;                        // > 0: bounds the input of every activation to [-clip, clip]
  double zoneout_h = 0, zoneout_c = 0;    // probability that a unit keeps its value; without a tape, its share
  Activations activations[2];             // [D]
};

static inline int64_t units_of(const Spec& spec, int64_t layer) {
  return spec.hidden_sizes ? spec.hidden_sizes[layer] : spec.hidden_size;
}
// S
static inline int64_t outputs_of(const Spec& spec, int64_t layer) {
  return spec.proj_size ? spec.proj_size : units_of(spec, layer);
}
// I_l
static inline int64_t inputs_of(const Spec& spec, int64_t layer) {
  return layer ? spec.num_directions * outputs_of(spec, layer - 1) : spec.input_size;
}

// One layer and direction. A null bias is a bias of zeros.
template <class Void> struct Parameters {
  Void* weight_ih = nullptr;  // [G*H, I_l]
  Void* weight_hh = nullptr;  // [G*H, S]
  Void* bias_ih = nullptr;    // [G*H], or null with bias_hh
  Void* bias_hh = nullptr;    // [G*H]
  Void* weight_hr = nullptr;  // [S, H], with proj_size
  Void* weight_ch = nullptr;  // [3, H], with peepholes: of i, f, o
  // With layer_norm: the scales of W x and of U h, [G*H]; scale and shift of c on its way to h, [H], LSTM only.
  Void* weight_ln_ih = nullptr;
  Void* weight_ln_hh = nullptr;
  Void* weight_ln_c = nullptr;
  Void* bias_ln_c = nullptr;
};
using Weights = Parameters<const void>;
using WeightGradients = Parameters<void>;

// A [T, B, features] array. Strides are in elements; features are contiguous.
template <class Void> struct View {
  Void* data = nullptr;
  int64_t stride_t = 0;
  int64_t stride_b = 0;
  const int64_t* starts = nullptr;  // [T] or null: rows before the first one of each step, in place of stride_t
};
using Input = View<const void>;
using Output = View<void>;

struct Forward {
  Spec spec;
  int64_t steps = 0;                 // T
  int64_t batch = 0;                 // B
  const int64_t* lengths = nullptr;  // [B], 0 <= lengths[b] <= T; null: all T
  const uint8_t* mask = nullptr;     // [T, B], instead of lengths: whether the row takes part in the step
  const uint8_t* reset = nullptr;    // [T, B]: whether the state starts anew between step t - 1 and step t: from zeros,
  bool reset_to_initial = false;     // or from h0 and c0
  bool carry = false;  // rows of y that take no part in a step repeat the output before, in the direction of the scan
  const Weights* weights = nullptr;  // [L*D]; forward does not read them where `packed` is given
  const void* packed = nullptr;      // made by pack() with the same instruction set, or null: packed in the call
  Input x;                           // [T, B, I]
  Output y;                          // [T, B, D*S]; rows that take no part are left alone: zero them first
  const void* h0 = nullptr;          // [L*D, B, S]; null: zeros
  const void* c0 = nullptr;          // [L*D, B, H], LSTM only; null: zeros
  void* hn = nullptr;                // [L*D, B, S]; may be h0; null: not wanted
  void* cn = nullptr;                // [L*D, B, H], LSTM only; may be c0; null: not wanted
  void* tape = nullptr;              // tape_bytes() bytes, aligned to 64; null: inference, nothing is kept
  int64_t segments = 0;              // > 0: the tape keeps only the boundaries of so many segments of the steps, and
                                     // backward computes the rest again; 0: it keeps everything
  double dropout = 0.0;              // probability between layers; applied only with a tape
  uint64_t seed = 0;                 // of these masks
  const void* const* input_masks = nullptr;  // [L] arrays [B, I_l]: factors of x at every step; an array may be null
  const void* const* recurrent_masks = nullptr;  // [L*D] arrays [B, S]: factors of the h that enters U
  const uint8_t* const* zoneout_h_masks =
      nullptr;  // [L*D] arrays [T, B, H]: 1 where h keeps its value; null: no zoneout
  const uint8_t* const* zoneout_c_masks = nullptr;  // the same for c
  Output cells;       // [T, B, D*H]: c of the last layer, LSTM only; rows that take no part are left alone
  Output gates;       // [T, B, D*G*H]: its gates, behind their activations
  int threads = 1;    // at most; small work takes fewer. Negative: exactly so many (for tests)
  bool back = false;  // which way the first step goes over the units; no bit depends on it. Calls of one step each that
                      // alternate it begin with weights that the call before has left in cache
  bool in_succession = false;       // what begin_call() in threads.h says; no bit depends on it either
  bool (*interrupted)() = nullptr;  // asked now and then by the calling thread: whether to give up
};

// The gradients of a loss. `pass` is the forward call, unchanged: same weights, x, y, h0, c0, tape.
// Null inputs are zeros, null outputs are not computed, and neither is what only they need: a stack's walk ends at the
// lowest layer that somebody asks about. Every output is overwritten, but rows of grad_x and per_step
// that take no part are left alone: zero them first.
struct Backward {
  const Forward* pass = nullptr;
  Input grad_y;                                   // [T, B, D*S]
  const void* grad_hn = nullptr;                  // [L*D, B, S]
  const void* grad_cn = nullptr;                  // [L*D, B, H]
  Output grad_x;                                  // [T, B, I]
  void* grad_h0 = nullptr;                        // [L*D, B, S]
  void* grad_c0 = nullptr;                        // [L*D, B, H]
  const WeightGradients* grad_weights = nullptr;  // [L*D]
  void* const* per_step = nullptr;                // [L*D] arrays [T, B, S]: d loss / d h_t
  double grad_clip = 0;                           // > 0: bounds d loss / d h_t at every step
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
    // Afterwards forward() runs the call as often as wanted. Both the call and the scratch memory have to stay where
    // they are. In between may change x.data, y.data, `back`, and what arrays hold, but for lengths and mask.
    void (*prepare_forward)(const Forward&, void* scratch);
    bool (*forward)(void* scratch);
    size_t (*backward_scratch)(const Backward&);
    bool (*backward)(const Backward&, void* scratch);
  };
  const char* isa;
  int vector_bytes;
  Entry entry[cells][dtypes];
  // The elementary functions, for measuring their error: y[j] = f(x[j]).
  enum Elementary { exp, expm1, sigmoid, tanh, elementary_functions };
  void (*apply[elementary_functions][dtypes])(const void* x, void* y, int64_t n);
  // Work at the machine's limits, see kernel/roofline.h.
  double (*fma_rounds[dtypes])(int64_t n, double* sink);
  void (*read_rounds)(const void* data, int64_t bytes, int64_t n, double* sink);
};

// --- instruction sets (dispatch.cpp) ---

constexpr int numerics = 1;  // raised when the bits of any result change

// Whether AVX-512 instructions run as two halves, and so no faster than AVX2's: on AMD's family 19h (Zen 4).
bool halves_vectors();
// The table of a named instruction set, or null where it is unknown or this CPU lacks it.
const KernelTable* find_isa(const char* name);
// Names of the instruction sets of this build that this CPU has, best first; returns how many.
int available_isas(const char* names[], int capacity);
// The best one, or the one that RNNFAST_ISA names. Null where that name is unknown or unsupported.
const KernelTable* default_isa();
// The same for a layer: where vectors of half the width are as fast, they are taken if fewer of their lanes are empty.
const KernelTable* default_isa(const Spec&);

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
