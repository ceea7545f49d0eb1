// Any bytes become a case; every instruction set of this machine runs it behind guard pages and has to give the bits of
// the plain loops. Some bytes become a wrong call, which has to be refused, or one that is interrupted.
// Built with -DRNNFAST_FUZZ=ON (Clang) it is a libFuzzer program; else it runs the files that it is given.
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
  if (bytes.one_in(3)) c.without = static_cast<unsigned>(bytes.below(256) * 8 + bytes.below(8));
  c.layout = static_cast<Layout>(bytes.below(layouts));
  c.gap = bytes.below(4);
  c.packed = bytes.one_in(3), c.in_place = bytes.one_in(8);
  c.threads = bytes.one_in(16) ? 1 + static_cast<int>(bytes.below(4)) : 1;
  if (bytes.one_in(3)) c.specials = 1 << bytes.below(9);
  c.numbers = static_cast<uint64_t>(bytes.below(256) * 256 + bytes.below(256));
  draw_options(bytes, c);
  return c;
}

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "%s\n", message.c_str());
  std::abort();
}

// Makes one thing wrong; false where the case has no such thing.
bool spoil(int64_t how, Forward& pass, Backward& call) {
  switch (how) {
    case 0:
      pass.steps = -1;
      break;
    case 1:
      pass.batch = -1;
      break;
    case 2:
      pass.spec.hidden_size = -1;
      break;
    case 3:
      pass.spec.hidden_size = INT64_MAX / 16;
      break;
    case 4:
      pass.steps = INT64_MAX / 4;
      break;
    case 5:
      pass.spec.num_directions = 3;
      break;
    case 6:
      pass.spec.num_layers = 0;
      break;
    case 7:
      pass.dropout = 1.5;
      break;
    case 8:
      pass.dropout = std::nan("");
      break;
    case 9:
      pass.threads = 0;
      break;
    case 10:
      pass.segments = -1;
      break;
    case 11:
      pass.spec.cell = static_cast<Cell>(7);
      break;
    case 12:
      pass.spec.dtype = static_cast<Dtype>(2);
      break;
    case 13:
      pass.hn = nullptr;
      return pass.batch && pass.spec.hidden_size;
    case 14:
      pass.x.data = nullptr;
      return pass.steps && pass.batch && pass.spec.input_size;
    case 15:
      pass.weights = nullptr;
      break;
    case 16:
      pass.tape = reinterpret_cast<void*>(8);
      break;
    case 17:
      call.threads = 0;
      break;
    default:
      pass.batch = INT64_MAX / 8;
  }
  return true;
}

template <class T> void check_refused(const KernelTable& table, const Case& c, int64_t how) {
  const Inputs<T> in(c, Side::end);
  const Outputs<T> out(c, Side::end, fills[0]);
  Pass<T> pass(c, in, out);
  alignas(64) static char never_read[64];
  pass.forward.tape = never_read;
  if (!spoil(how, pass.forward, pass.backward)) return;
  try {
    backward(table, pass.backward);  // which looks at the forward call too
  } catch (const std::invalid_argument&) {
    return;
  }
  fail("not refused: wrong in way " + std::to_string(how) + ", " + describe(c));
}

int asks_left = 0;
bool give_up() { return --asks_left < 0; }

// Nothing is promised about results; memory is what guard pages watch.
template <class T> void check_interrupted(const KernelTable& table, const Case& c, int asks) {
  const Inputs<T> in(c, Side::end);
  const Outputs<T> out(c, Side::end, fills[0]);
  Pass<T> pass(c, in, out);
  pass.forward.interrupted = pass.backward.interrupted = give_up;
  asks_left = asks;
  run_kernels(table, c, pass, Side::end, fills[0]);
}

const std::vector<const KernelTable*> tables = all_tables();

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  const Side side = static_cast<Side>(bytes.below(2));
  const unsigned char fill = fills[bytes.below(2)];
  const int64_t mode = bytes.below(16), detail = bytes.below(19);
  const Case c = decode(bytes);
  for (const KernelTable* table : tables) {
    const bool single = c.dtype == Dtype::float32;
    if (mode == 14) {
      single ? check_refused<float>(*table, c, detail) : check_refused<double>(*table, c, detail);
    } else if (mode == 15) {
      single ? check_interrupted<float>(*table, c, static_cast<int>(detail))
             : check_interrupted<double>(*table, c, static_cast<int>(detail));
    } else if (const std::string found = compare(*table, c, side, fill); !found.empty()) {
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
void run_random(uint64_t count) {
  for (uint64_t seed = 1; seed <= count; ++seed) {
    Numbers numbers(seed, 0);
    uint8_t data[128];
    for (uint8_t& byte : data) byte = static_cast<uint8_t>((numbers.next<double>() + 0.5) * 256);
    LLVMFuzzerTestOneInput(data, sizeof data);
  }
}

}  // namespace

// fuzz FOLDER [COUNT]: the files of a folder, then so many random inputs.
int main(int argc, char** argv) {
  DIR* folder = argc > 1 ? opendir(argv[1]) : nullptr;
  if (!folder) fail("usage: fuzz FOLDER [COUNT]");
  int count = 0;
  while (const dirent* entry = readdir(folder)) {
    if (entry->d_name[0] == '.') continue;
    replay(std::string(argv[1]) + "/" + entry->d_name);
    ++count;
  }
  closedir(folder);
  const uint64_t random = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
  run_random(random);
  std::printf("%d files, %" PRIu64 " random inputs\n", count, random);
}
#endif
