// Any bytes become a case; every instruction set of this machine runs it behind guard pages and has to give the bits of
// the plain loops. Some bytes become a wrong call, which has to be refused, or one that is interrupted.
// Built with -DRNNFAST_FUZZ=ON (Clang) it is a libFuzzer program; else it runs the files that it is given, and makes a
// wrong call in every way that it knows.
#include <dirent.h>

#include <cstdlib>
#include <fstream>
#include <iterator>

#include "compare.h"
#include "draw.h"

namespace {

using namespace rnnfast;

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  // In [0, n); 0 when all is used up.
  int64_t below(int64_t n) {
    if (!size_) return 0;
    --size_;
    return *data_++ % n;
  }
  bool one_in(int64_t n) { return below(256) % n == n - 1; }

 private:
  const uint8_t* data_;
  size_t size_;
};

// Small sizes are the likely ones, and the sum of all work is bounded.
Case decode(Bytes& bytes) {
  Case c;
  c.cell = static_cast<Cell>(bytes.below(cells));
  c.dtype = static_cast<Dtype>(bytes.below(dtypes));
  if (c.cell == Cell::rnn && bytes.one_in(2)) make_relu(c);
  c.hidden_size = bytes.below(bytes.one_in(8) ? 140 : 36);
  c.input_size = bytes.below(bytes.one_in(8) ? 70 : 20);
  c.batch = bytes.below(bytes.one_in(8) ? 40 : 8);
  c.steps = bytes.below(bytes.one_in(8) ? 250 : 8);
  c.layers = 1 + bytes.below(3), c.directions = 1 + bytes.below(2);
  const int64_t row =
      c.count() * gates_of(c.cell) * c.hidden_size * (std::max(c.input_size, c.width()) + c.hidden_size + 1);
  c.steps = std::min(c.steps, 400000 / (row + 1) + 1);
  c.batch = std::min(c.batch, 400000 / (row * std::max<int64_t>(c.steps, 1) + 1) + 1);
  if (bytes.one_in(2))
    for (int64_t b = 0; b < c.batch; ++b) c.lengths.push_back(bytes.below(c.steps + 1));
  if (bytes.one_in(4)) c.dropout = static_cast<double>(bytes.below(5)) / 4;
  if (bytes.one_in(3)) c.segments = bytes.below(8);
  if (bytes.one_in(3)) c.without = static_cast<unsigned>(bytes.below(256) * 32 + bytes.below(32));
  c.layout = static_cast<Layout>(bytes.below(layouts));
  c.gap = bytes.below(4);
  c.packed = bytes.one_in(3), c.in_place = bytes.one_in(8);
  c.threads = bytes.one_in(16) ? 1 + static_cast<int>(bytes.below(4)) : 1;
  if (bytes.one_in(3)) c.specials = 1 << bytes.below(9);
  c.numbers = static_cast<uint64_t>(bytes.below(256) * 256 + bytes.below(256));
  draw_options(bytes, c);
  return c;
}

const std::vector<const KernelTable*> tables = all_tables();

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "%s\n", message.c_str());
  std::abort();
}

// Arrays that a wrong call names: of as many elements as any case has sequences or layers and directions. Global,
// since a Spoil is a plain function, and what it puts into a call has to be there until the call is made.
constexpr int64_t zeros[64] = {}, huge_sizes[64] = {INT64_MAX / 4};
int64_t too_long[64];
Weights incomplete[64];
const void* const no_masks[64] = {};
void* const never_read = Guarded<char>(0, Side::end, 0).data();

// The weights but for one array, of the first layer.
bool without(Forward& f, const void* Weights::* array) {
  std::copy_n(f.weights, f.spec.num_layers * f.spec.num_directions, incomplete);
  const bool had = f.spec.hidden_size && incomplete[0].*array;
  incomplete[0].*array = nullptr;
  f.weights = incomplete;
  return had;
}

// Each makes one thing wrong; false where the case has no such thing, or it is not wrong there.
using Spoil = bool (*)(Forward&, Backward&);
constexpr Spoil spoils[] = {
    // sizes
    [](Forward& f, Backward&) { return f.steps = -1, true; },
    [](Forward& f, Backward&) { return f.batch = -1, true; },
    [](Forward& f, Backward&) { return f.spec.input_size = -1, true; },
    [](Forward& f, Backward&) { return f.spec.hidden_size = -1, true; },
    [](Forward& f, Backward&) { return f.spec.hidden_size = INT64_MAX / 16, true; },
    [](Forward& f, Backward&) { return f.steps = INT64_MAX / 4, true; },
    [](Forward& f, Backward&) { return f.batch = INT64_MAX / 8, true; },
    [](Forward& f, Backward&) { return f.spec.num_directions = 3, true; },
    [](Forward& f, Backward&) { return f.spec.num_layers = 0, true; },
    [](Forward& f, Backward&) { return f.segments = -1, true; },
    [](Forward& f, Backward&) { return f.spec.proj_size = -1, true; },
    [](Forward& f, Backward&) { return f.spec.proj_size = INT64_MAX / 16, true; },
    [](Forward& f, Backward&) { return f.spec.hidden_sizes = zeros, true; },
    [](Forward& f, Backward&) { return f.spec.hidden_sizes = huge_sizes, true; },
    [](Forward& f, Backward&) {
      std::fill_n(too_long, 64, f.steps + 1);
      return f.mask = nullptr, f.lengths = too_long, f.batch > 0;
    },
    // names
    [](Forward& f, Backward&) { return f.spec.cell = static_cast<Cell>(7), true; },
    [](Forward& f, Backward&) { return f.spec.dtype = static_cast<Dtype>(2), true; },
    [](Forward& f, Backward&) { return f.spec.activations[0].gate.function = static_cast<Function>(functions), true; },
    [](Forward& f, Backward&) { return f.spec.activations[1].output.function = static_cast<Function>(-1), true; },
    // numbers
    [](Forward& f, Backward&) { return f.dropout = 1.5, true; },
    [](Forward& f, Backward&) { return f.dropout = std::nan(""), true; },
    [](Forward& f, Backward&) { return f.spec.clip = -1, true; },
    [](Forward& f, Backward&) { return f.spec.clip = std::nan(""), true; },
    [](Forward& f, Backward&) { return f.spec.zoneout_h = 1.5, true; },
    [](Forward& f, Backward&) { return f.spec.zoneout_c = std::nan(""), true; },
    [](Forward&, Backward& b) { return b.grad_clip = -1, true; },
    [](Forward&, Backward& b) { return b.grad_clip = std::nan(""), true; },
    [](Forward& f, Backward&) { return f.threads = 0, true; },
    [](Forward&, Backward& b) { return b.threads = 0, true; },
    // options that go with neither the cell nor each other
    [](Forward& f, Backward&) { return f.spec.proj_size = 3, f.spec.cell != Cell::lstm; },
    [](Forward& f, Backward&) { return f.spec.peepholes = true, f.spec.cell != Cell::lstm; },
    [](Forward& f, Backward&) { return f.spec.coupled_gates = true, f.spec.cell != Cell::lstm; },
    [](Forward& f, Backward&) { return f.spec.zoneout_c = 0.5, f.spec.cell != Cell::lstm; },
    [](Forward& f, Backward&) { return f.cells = f.y, f.spec.cell != Cell::lstm && f.cells.data; },
    [](Forward& f, Backward&) { return f.spec.reset_after = false, f.spec.cell != Cell::gru; },
    [](Forward& f, Backward&) { return f.spec.layer_norm = true, f.spec.cell == Cell::rnn; },
    [](Forward& f, Backward&) { return f.spec.layer_norm = true, f.spec.peepholes || f.spec.zoneout_h > 0; },
    [](Forward& f, Backward&) { return f.spec.zoneout_h = 0.5, f.spec.layer_norm || f.spec.proj_size; },
    [](Forward& f, Backward&) { return f.spec.proj_size = 3, f.spec.hidden_sizes || f.spec.layer_norm; },
    [](Forward& f, Backward&) { return f.segments = 1, f.spec.layer_norm || !f.spec.reset_after || f.recurrent_masks; },
    [](Forward& f, Backward&) { return f.lengths = zeros, f.mask = static_cast<const uint8_t*>(never_read), true; },
    // pointers
    [](Forward&, Backward& b) { return b.pass = nullptr, true; },
    [](Forward& f, Backward&) { return f.x.data = nullptr, f.steps && f.batch && f.spec.input_size; },
    [](Forward& f, Backward&) { return f.y.data = nullptr, f.steps && f.batch && f.spec.hidden_size; },
    [](Forward& f, Backward&) { return f.tape = reinterpret_cast<void*>(8), true; },
    [](Forward& f, Backward&) { return f.tape = nullptr, true; },
    [](Forward& f, Backward&) { return f.packed = reinterpret_cast<void*>(8), true; },
    [](Forward& f, Backward&) { return f.recurrent_masks = no_masks, f.batch && f.spec.hidden_size; },
    [](Forward& f, Backward&) { return f.weights = nullptr, true; },
    [](Forward& f, Backward&) { return without(f, &Weights::weight_ih) && f.spec.input_size; },
    [](Forward& f, Backward&) { return without(f, &Weights::weight_hh); },
    [](Forward& f, Backward&) { return without(f, &Weights::weight_hr); },
    [](Forward& f, Backward&) { return without(f, &Weights::weight_ch); },
    [](Forward& f, Backward&) { return without(f, &Weights::weight_ln_ih); },
    [](Forward& f, Backward&) { return without(f, &Weights::weight_ln_hh); },
    [](Forward& f, Backward&) { return without(f, &Weights::weight_ln_c); },
    [](Forward& f, Backward&) { return without(f, &Weights::bias_ln_c); },
};
constexpr int64_t ways = sizeof spoils / sizeof spoils[0];

template <class Call> bool is_refused(const Call& call) {
  try {
    call();
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

template <class Struct> bool equal_bytes(const Struct& a, const Struct& b) { return !std::memcmp(&a, &b, sizeof a); }

// Whether the case can be made wrong in that way; then every call that it makes wrong must be refused, and nothing
// touched: a backward call always, since it looks at the forward call too.
template <class T> bool check_refused(const KernelTable& table, const Case& c, int64_t way) {
  const Inputs<T> in(c, Side::end);
  const Outputs<T> out(c, Side::end, fills[0]), untouched(c, Side::end, fills[0]);
  Pass<T> pass(c, in, out);
  pass.forward.tape = never_read;
  Forward right;
  std::memcpy(static_cast<void*>(&right), &pass.forward, sizeof right);  // with its padding, to be compared
  if (c.in_place || !spoils[way](pass.forward, pass.backward)) return false;
  const Forward& wrong = pass.forward;
  const auto check = [&](const char* name, bool refused) {
    if (!refused) fail(std::string(name) + " not refused: wrong in way " + std::to_string(way) + ", " + describe(c));
  };
  check("backward", is_refused([&] { backward(table, pass.backward); }));
  if (!equal_bytes(wrong, right) && wrong.tape)  // without a tape it is a call without training
    check("forward", is_refused([&] { forward(table, wrong); }));
  if (!equal_bytes(wrong.spec, right.spec)) check("packed_bytes", is_refused([&] { packed_bytes(table, wrong.spec); }));
  if (!equal_bytes(wrong.spec, right.spec) || wrong.weights != right.weights)
    check("pack", is_refused([&] { pack(table, wrong.spec, wrong.weights, never_read); }));
  for (void* packed : {static_cast<void*>(nullptr), reinterpret_cast<void*>(8)})
    check("pack to nowhere", is_refused([&] { pack(table, right.spec, right.weights, packed); }));
  const std::string found = difference(out, untouched, fills[0]);
  if (!found.empty()) fail("refused, and " + found);
  return true;
}

bool check_refused(const Case& c, int64_t way) {
  bool refused = false;  // by all or by none: whether the case can be wrong is no matter of the kernels
  for (const KernelTable* table : tables)
    refused = c.dtype == Dtype::float32 ? check_refused<float>(*table, c, way) : check_refused<double>(*table, c, way);
  return refused;
}

// How often a call may still ask whether to go on. Global, since the question is a function without arguments.
int asks_left = 0;
bool give_up() { return --asks_left < 0; }

// Nothing is promised about results; memory is what guard pages watch.
template <class T> void check_interrupted(const KernelTable& table, const Case& c, int asks) {
  const Inputs<T> in(c, Side::end);
  const Outputs<T> out(c, Side::end, fills[0]);
  Pass<T> pass(c, in, out);
  pass.forward.interrupted = pass.backward.interrupted = give_up;
  asks_left = asks;
  run_kernels(table, c, pass, {Side::end, fills[0]});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  const Side side = static_cast<Side>(bytes.below(2));
  const unsigned char fill = fills[bytes.below(2)];
  const int64_t mode = bytes.below(16), detail = bytes.below(ways);
  const Case c = decode(bytes);
  if (mode == 14) return check_refused(c, detail), 0;
  for (const KernelTable* table : tables) {
    if (mode == 15) {
      c.dtype == Dtype::float32 ? check_interrupted<float>(*table, c, static_cast<int>(detail))
                                : check_interrupted<double>(*table, c, static_cast<int>(detail));
    } else if (const std::string found = compare(*table, c, {{side, fill}}); !found.empty()) {
      fail(found);
    }
  }
  return 0;
}

#if !defined(RNNFAST_FUZZ)
namespace {

void replay(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> data{std::istreambuf_iterator<char>(file), {}};
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(data.data()), data.size());
}

// Inputs that need no file: numbers from a generator.
std::array<uint8_t, 128> random_bytes(uint64_t seed) {
  Numbers numbers(seed, 0);
  std::array<uint8_t, 128> data;
  for (uint8_t& byte : data) byte = static_cast<uint8_t>((numbers.next<double>() + 0.5) * 256);
  return data;
}

void run_random(uint64_t count) {
  for (uint64_t seed = 1; seed <= count; ++seed) {
    const auto data = random_bytes(seed);
    LLVMFuzzerTestOneInput(data.data(), data.size());
  }
}

// Whether the first case that can be made wrong in that way is refused; there should be one among a thousand, since the
// rarest is one in dozens.
bool refuses(int64_t way) {
  for (uint64_t seed = 1; seed <= 1000; ++seed) {
    const auto data = random_bytes(seed);
    Bytes bytes(data.data(), data.size());
    if (check_refused(decode(bytes), way)) return true;
  }
  return false;
}

}  // namespace

// fuzz FOLDER [COUNT]: every way of making a wrong call, the files of a folder, then so many random inputs.
int main(int argc, char** argv) {
  DIR* folder = argc > 1 ? opendir(argv[1]) : nullptr;
  if (!folder) fail("usage: fuzz FOLDER [COUNT]");
  for (int64_t way = 0; way < ways; ++way)
    if (!refuses(way)) fail("no case can be wrong in way " + std::to_string(way));
  int count = 0;
  while (const dirent* entry = readdir(folder)) {
    if (entry->d_name[0] == '.') continue;
    replay(std::string(argv[1]) + "/" + entry->d_name);
    ++count;
  }
  closedir(folder);
  const uint64_t random = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
  run_random(random);
  std::printf("%d files, %" PRIu64 " random inputs, wrong calls refused in %" PRId64 " ways\n", count, random, ways);
}
#endif
