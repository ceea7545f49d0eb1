// The Python module rnnfast._core: NumPy arrays become the structs of rnnfast.h, the GIL is released, a pass is run.
// Wrong arguments have been explained to the user in Python (_check.py); what is checked again here is what memory
// safety rests on. Only Stream.step, which has no time for Python, words its errors for the user.
#include <cxxabi.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cost.h"
#include "memory.h"
#include "rnnfast.h"
#include "threads.h"

#ifndef RNNFAST_VERSION
#define RNNFAST_VERSION "0+unknown"
#endif

namespace py = pybind11;
namespace rf = rnnfast;

namespace {

using py::detail::npy_api;

// --- names ---

template <class Enum> Enum named(const std::string& name, std::initializer_list<const char*> names) {
  int i = 0;
  for (const char* candidate : names) {
    if (name == candidate) return static_cast<Enum>(i);
    ++i;
  }
  throw py::value_error("unknown name: " + name);
}

// A triple (name, alpha, beta).
rf::Activation make_activation(py::handle object) {
  const auto triple = object.cast<std::tuple<std::string, double, double>>();
  const auto function = named<rf::Function>(
      std::get<0>(triple), {"standard", "tanh", "sigmoid", "relu", "affine", "leaky_relu", "thresholded_relu",
                            "scaled_tanh", "hard_sigmoid", "elu", "softsign", "softplus"});
  return {function, std::get<1>(triple), std::get<2>(triple)};
}

// A spec that owns what it points to.
struct Spec : rf::Spec {
  std::vector<int64_t> sizes;

  [[gnu::cold]] Spec(const std::string& cell_name, const std::string& dtype_name, int64_t inputs, int64_t hidden,
                     int64_t layers, int64_t directions, const py::kwargs& options) {
    cell = named<rf::Cell>(cell_name, {"rnn", "lstm", "gru"});
    dtype = named<rf::Dtype>(dtype_name, {"float32", "float64"});
    input_size = inputs, hidden_size = hidden, num_layers = layers, num_directions = directions;
    for (auto option : options) set(option.first.cast<std::string>(), option.second);
    if (input_size < 0 || hidden_size < 0 || num_layers < 1 || num_directions < 1 || num_directions > 2)
      throw py::value_error("sizes are out of range");
    if (!sizes.empty() && static_cast<int64_t>(sizes.size()) != num_layers)
      throw py::value_error("hidden_sizes has the wrong length");
  }
  Spec(const Spec& other) : rf::Spec(other), sizes(other.sizes) {
    if (hidden_sizes) hidden_sizes = sizes.data();
  }
  Spec& operator=(const Spec&) = delete;

 private:
  void set(const std::string& name, py::handle value) {
    if (name == "proj_size")
      proj_size = value.cast<int64_t>();
    else if (name == "reset_after")
      reset_after = value.cast<bool>();
    else if (name == "peepholes")
      peepholes = value.cast<bool>();
    else if (name == "coupled_gates")
      coupled_gates = value.cast<bool>();
    else if (name == "layer_norm")
      layer_norm = value.cast<bool>();
    else if (name == "clip")
      clip = value.cast<double>();
    else if (name == "zoneout_h")
      zoneout_h = value.cast<double>();
    else if (name == "zoneout_c")
      zoneout_c = value.cast<double>();
    else if (name == "activations")
      set_activations(value);
    else if (name == "hidden_sizes")
      set_sizes(value);
    else
      throw py::type_error("unknown option: " + name);
  }
  void set_activations(py::handle value) {
    if (value.is_none()) return;
    const auto given = value.cast<py::sequence>();
    if (static_cast<int64_t>(given.size()) != num_directions) throw py::value_error("activations has the wrong length");
    for (size_t d = 0; d < given.size(); ++d) {
      const auto roles = given[d].cast<py::sequence>();
      rf::Activation* const to[] = {&activations[d].gate, &activations[d].candidate, &activations[d].output};
      if (roles.size() > 3) throw py::value_error("a direction has at most three activations");
      for (size_t j = 0; j < roles.size(); ++j) *to[j] = make_activation(roles[j]);
    }
  }
  void set_sizes(py::handle value) {
    if (value.is_none()) return;
    sizes = value.cast<std::vector<int64_t>>();
    hidden_sizes = sizes.data();
  }
};

bool same(const rf::Activation& a, const rf::Activation& b) {
  return a.function == b.function && a.alpha == b.alpha && a.beta == b.beta;
}

bool same(const Spec& a, const Spec& b) {
  for (int d = 0; d < 2; ++d)
    if (!same(a.activations[d].gate, b.activations[d].gate) ||
        !same(a.activations[d].candidate, b.activations[d].candidate) ||
        !same(a.activations[d].output, b.activations[d].output))
      return false;
  return a.cell == b.cell && a.dtype == b.dtype && a.input_size == b.input_size && a.hidden_size == b.hidden_size &&
         a.num_layers == b.num_layers && a.num_directions == b.num_directions && a.sizes == b.sizes &&
         a.proj_size == b.proj_size && a.reset_after == b.reset_after && a.peepholes == b.peepholes &&
         a.coupled_gates == b.coupled_gates && a.layer_norm == b.layer_norm && a.clip == b.clip &&
         a.zoneout_h == b.zoneout_h && a.zoneout_c == b.zoneout_c;
}

py::list available_isas() {
  const char* names[16];
  py::list found;
  for (int i = 0, n = rf::available_isas(names, 16); i < n; ++i) found.append(names[i]);
  return found;
}

// The best table, of a layer where there is one, or the one RNNFAST_ISA names, for "".
const rf::KernelTable& table_named(const std::string& isa, const rf::Spec* spec = nullptr) {
  const rf::KernelTable* table = !isa.empty() ? rf::find_isa(isa.c_str())
                                 : spec       ? rf::default_isa(*spec)
                                              : rf::default_isa();
  if (table) return *table;
  const char* variable = std::getenv("RNNFAST_ISA");
  const std::string asked =
      isa.empty() ? std::string("RNNFAST_ISA=") + (variable ? variable : "") : "isa '" + isa + "'";
  throw py::value_error(asked + " is unknown or not supported by this CPU; available: " +
                        py::str(", ").attr("join")(available_isas()).cast<std::string>());
}

// --- threads ---

void set_backend(const std::string& name) {
  if (rf::set_backend(name.c_str())) return;
  throw py::value_error("no thread backend '" + name + "'; this build has: " + rf::available_backends());
}

std::string get_backend() {
  if (const char* name = rf::get_backend()) return name;
  const char* variable = std::getenv("RNNFAST_THREADING");
  throw py::value_error(std::string("RNNFAST_THREADING=") + (variable ? variable : "") +
                        " names no thread backend; this build has: " + rf::available_backends());
}

// Below this work, about 20 us, the GIL is kept: giving it away means waiting, up to 5 ms, behind a thread that is busy
// in Python.
constexpr int64_t worth_releasing = 1 << 20;

// Below this work of a call, some 5 us, it is not worth asking how the calls follow upon each other.
constexpr int64_t worth_asking = 1 << 18;

// A call that is run while this lives.
class Running {
 public:
  Running(rf::Forward& call, int64_t work) : asks_(work >= worth_asking && call.threads > 1) {
    call.in_succession = asks_ && rf::begin_call();
  }
  ~Running() {
    if (asks_) rf::end_call();
  }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

 private:
  bool asks_;
};

// For passes over tensors.
bool torch_shares_openmp() {
  static std::atomic<int> known{-1};
  if (known.load(std::memory_order_relaxed) < 0) known = rf::shares_openmp("libtorch_cpu.so");
  return known.load(std::memory_order_relaxed) > 0;
}

int threads_or_default(int threads) { return threads != 0 ? threads : rf::get_num_threads(); }

// --- arrays ---

struct Shape {
  int ndim;
  int64_t size[3];

  Shape(int64_t a) : ndim(1), size{a, 0, 0} {}
  Shape(int64_t a, int64_t b) : ndim(2), size{a, b, 0} {}
  Shape(int64_t a, int64_t b, int64_t c) : ndim(3), size{a, b, c} {}
};

py::dtype numpy_dtype(rf::Dtype type) {
  return type == rf::Dtype::float32 ? py::dtype::of<float>() : py::dtype::of<double>();
}

bool is_exact_array(py::handle object) { return Py_TYPE(object.ptr()) == npy_api::get().PyArray_Type_; }

bool has_dtype(const py::array& a, const py::dtype& type) {
  PyObject* descr = py::detail::array_proxy(a.ptr())->descr;
  return descr == type.ptr() || npy_api::get().PyArray_EquivTypes_(descr, type.ptr());
}

bool has_flags(const py::array& a, int flags) { return (a.flags() & flags) == flags; }

bool has_shape(const py::array& a, const Shape& shape) {
  if (a.ndim() != shape.ndim) return false;
  for (int axis = 0; axis < shape.ndim; ++axis)
    if (a.shape(axis) != shape.size[axis]) return false;
  return true;
}

// Whether axes from `first` on are dense; strides of the others are any number of elements.
bool has_layout(const py::array& a, int first) {
  if (a.size() == 0) return true;
  py::ssize_t dense = a.itemsize();
  for (int axis = static_cast<int>(a.ndim()) - 1; axis >= 0; --axis) {
    if (a.shape(axis) > 1 && (axis >= first ? a.strides(axis) != dense : a.strides(axis) % a.itemsize() != 0))
      return false;
    dense *= a.shape(axis);
  }
  return true;
}

std::string described(const py::array& a) {
  return py::str(a.dtype()).cast<std::string>() + " " + py::str(a.attr("shape")).cast<std::string>();
}

py::array checked(py::handle object, const char* name, const py::dtype& type, const Shape& shape, int first = 0) {
  if (!py::isinstance<py::array>(object)) throw py::type_error(std::string(name) + " must be a NumPy array");
  auto a = py::reinterpret_borrow<py::array>(object);
  if (!has_dtype(a, type) || !has_shape(a, shape) || !has_flags(a, npy_api::NPY_ARRAY_ALIGNED_) ||
      !has_layout(a, first))
    throw py::value_error(std::string(name) + " has the wrong dtype, shape or memory layout: " + described(a));
  return a;
}

// Memory of it is not set.
py::array new_array(const py::dtype& type, const Shape& shape) {
  const auto& numpy = npy_api::get();
  const Py_intptr_t size[] = {shape.size[0], shape.size[1], shape.size[2]};
  PyObject* array = numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, py::dtype(type).release().ptr(), shape.ndim, size,
                                                nullptr, nullptr, 0, nullptr);
  if (!array) throw py::error_already_set();
  return py::reinterpret_steal<py::array>(array);
}

void require_writable(const py::array& a, const char* name) {
  if (!a.writeable()) throw py::value_error(std::string(name) + " is read-only");
}

const void* input(py::handle object, const char* name, const py::dtype& type, const Shape& shape) {
  return object.is_none() ? nullptr : checked(object, name, type, shape).data();
}

void* output(py::handle object, const char* name, const py::dtype& type, const Shape& shape) {
  if (object.is_none()) return nullptr;
  auto a = checked(object, name, type, shape);
  require_writable(a, name);
  return a.mutable_data();
}

// [T, B, features] with free strides on T and B; Void is void for an output.
template <class Void>
rf::View<Void> view(py::handle object, const char* name, const py::dtype& type, const Shape& shape) {
  if (object.is_none()) return {};
  auto a = checked(object, name, type, shape, 2);
  if (!std::is_const<Void>::value) require_writable(a, name);
  return {const_cast<void*>(a.data()), a.strides(0) / a.itemsize(), a.strides(1) / a.itemsize()};
}

// --- Ctrl-C ---

// Runs it without the GIL. Not pybind11's guard: at the end of the interpreter a thread that wants the GIL back is
// ended, by an exception, which cannot leave a destructor.
template <class Run> void without_gil(const Run& run) {
  PyThreadState* state = PyEval_SaveThread();
  try {
    run();
  } catch (...) {
    PyEval_RestoreThread(state);
    throw;
  }
  PyEval_RestoreThread(state);
}

bool interpreter_ends() {
#if PY_VERSION_HEX >= 0x030d0000
  return Py_IsFinalizing();
#else
  return _Py_IsFinalizing();
#endif
}

thread_local std::chrono::steady_clock::time_point last_asked;

// Whether a signal handler of Python's raised an exception. Taking the GIL may mean waiting for it, so seldom.
bool ask_python() {
  const auto now = std::chrono::steady_clock::now();
  if (now - last_asked < std::chrono::milliseconds(50)) return false;
  last_asked = now;
  if (interpreter_ends()) return false;  // nor can that exception leave a kernel
  py::gil_scoped_acquire locked;
  return PyErr_CheckSignals() != 0;
}

template <class Run> void run_interruptibly(const Run& run) {
  last_asked = std::chrono::steady_clock::now();
  bool finished = false;
  without_gil([&] { finished = run(); });
  if (!finished) throw py::error_already_set();
}

// --- weights ---

// Cuts the flat list of all layers' and directions' arrays into structs. Each has weight_ih, weight_hh, bias_ih and
// bias_hh where there are biases, and what the options ask for, in the order of the struct. next(name, shape) takes
// them from the list, one after another.
template <class Struct, class Next> std::vector<Struct> cut(const Spec& spec, size_t given, const Next& next) {
  const bool norm_c = spec.layer_norm && rf::has_c(spec.cell);
  const int64_t cells = spec.num_layers * spec.num_directions, count = static_cast<int64_t>(given);
  const int64_t options = (spec.proj_size > 0) + spec.peepholes + 2 * spec.layer_norm + 2 * norm_c;
  const int64_t each = count / cells, plain = each - options;
  if ((plain != 2 && plain != 4) || each * cells != count)
    throw py::value_error("the number of weight arrays does not fit the layers, directions and options");
  std::vector<Struct> result(static_cast<size_t>(cells));
  for (int64_t n = 0; n < cells; ++n) {
    const int64_t layer = n / spec.num_directions, units = rf::units_of(spec, layer);
    const int64_t rows = rf::gates_of(spec.cell) * units, outputs = rf::outputs_of(spec, layer);
    Struct& w = result[static_cast<size_t>(n)];
    w.weight_ih = next("weight_ih", {rows, rf::inputs_of(spec, layer)});
    w.weight_hh = next("weight_hh", {rows, outputs});
    if (plain == 4) w.bias_ih = next("bias_ih", {rows});
    if (plain == 4) w.bias_hh = next("bias_hh", {rows});
    if (spec.proj_size) w.weight_hr = next("weight_hr", {outputs, units});
    if (spec.peepholes) w.weight_ch = next("weight_ch", {3, units});
    if (spec.layer_norm) w.weight_ln_ih = next("weight_ln_ih", {rows});
    if (spec.layer_norm) w.weight_ln_hh = next("weight_ln_hh", {rows});
    if (norm_c) w.weight_ln_c = next("weight_ln_c", {units});
    if (norm_c) w.bias_ln_c = next("bias_ln_c", {units});
  }
  return result;
}

template <class Struct, class Pointer>
std::vector<Struct> per_cell(const Spec& spec, const py::sequence& arrays, Pointer pointer) {
  const py::dtype type = numpy_dtype(spec.dtype);
  size_t used = 0;
  return cut<Struct>(spec, arrays.size(), [&](const char* name, const Shape& shape) {
    return pointer(py::object(arrays[used++]), name, type, shape);
  });
}

// --- memory that the caller has checked ---

// Tensors of a framework, of which NumPy cannot make arrays as fast as a step runs. 0 for null.
using Address = uintptr_t;
using Rows = std::tuple<Address, int64_t, int64_t>;  // with the strides of T and B, in elements
using States = std::pair<Address, Address>;          // h and c

template <class Pointer> Pointer at(Address address) { return reinterpret_cast<Pointer>(address); }

template <class Struct> std::vector<Struct> per_cell(const Spec& spec, const std::vector<Address>& addresses) {
  size_t used = 0;
  return cut<Struct>(spec, addresses.size(), [&](const char*, const Shape&) { return at<void*>(addresses[used++]); });
}

// The rows of torch's PackedSequence: those of a step lie together, longest sequence first.
class PackedRows {
 public:
  // packed: the address of batch_sizes, [steps], how many sequences reach each step, and the sum of these; or 0:
  // nothing is packed.
  PackedRows(std::pair<Address, int64_t> packed, int64_t steps, int64_t batch) {
    const auto* batch_sizes = at<const int64_t*>(packed.first);
    if (!batch_sizes) return;
    lengths_.resize(static_cast<size_t>(batch));
    int64_t rows = 0, before = batch;
    for (int64_t t = 0; t < steps; ++t) {
      const int64_t now = batch_sizes[t];
      if (now > before || now < 0) throw py::value_error("batch_sizes must not grow, nor be more than the batch");
      for (int64_t b = now; b < before; ++b) lengths_[static_cast<size_t>(b)] = t;
      starts_.push_back(rows);
      rows += now, before = now;
    }
    for (int64_t b = 0; b < before; ++b) lengths_[static_cast<size_t>(b)] = steps;
    if (rows != packed.second) throw py::value_error("batch_sizes do not fit the rows");
  }
  const int64_t* lengths() const { return lengths_.empty() ? nullptr : lengths_.data(); }

  template <class Void> rf::View<Void> view(const Rows& rows) const {
    const int64_t* starts = starts_.empty() ? nullptr : starts_.data();
    return {at<Void*>(std::get<0>(rows)), std::get<1>(rows), std::get<2>(rows), starts};
  }

 private:
  std::vector<int64_t> lengths_, starts_;
};

struct Packed {
  Spec spec;
  const rf::KernelTable& table;
  rf::Memory bytes;

  Packed(const Spec& spec_, const py::sequence& arrays, const std::string& isa)
      : spec(spec_), table(table_named(isa, &spec)) {
    const auto weights = per_cell<rf::Weights>(spec, arrays, input);
    if (!spec.hidden_size) return;  // here and below: nothing to compute, so no kernel is asked
    bytes.allocate(rf::packed_bytes(table, spec));
    without_gil([&] { rf::pack(table, spec, weights.data(), bytes.data()); });
  }

  // One forward pass on raw addresses. See rf::Forward for the shapes.
  void run(int64_t steps, int64_t batch, std::pair<Address, int64_t> packed, const Rows& x, const Rows& y, States start,
           States last, int threads) const {
    const PackedRows rows(packed, steps, batch);
    rf::Forward call = new_call(steps, batch, threads);
    call.lengths = rows.lengths();
    call.x = rows.view<const void>(x);
    call.y = rows.view<void>(y);
    call.h0 = at<const void*>(start.first);
    call.c0 = at<const void*>(start.second);
    call.hn = at<void*>(last.first);
    call.cn = at<void*>(last.second);
    const rf::BesideOpenMP beside(torch_shares_openmp());
    run_call(call);
  }

  // (output, state) of an ordinary call: whole arrays of the right kind, nothing empty. None for any other:
  // Python takes those, and words their errors.
  py::object forward(py::handle x, py::handle hx, bool batch_first, int threads) const {
    const py::dtype type = numpy_dtype(spec.dtype);
    const int64_t layers = spec.num_layers * spec.num_directions;
    const int64_t units = rf::units_of(spec, 0), outputs = rf::outputs_of(spec, 0);
    const bool has_c = rf::has_c(spec.cell);
    if (spec.hidden_sizes || !is_plain(x, type, 3)) return py::none();
    const auto in = py::reinterpret_borrow<py::array>(x);
    const int64_t steps = in.shape(batch_first), batch = in.shape(!batch_first);
    const int64_t widest = std::max({spec.input_size, layers * units, spec.num_directions * outputs});
    if (in.size() == 0 || !units || in.shape(2) != spec.input_size || !has_layout(in, 2) ||
        steps > std::numeric_limits<int32_t>::max() / batch / widest)
      return py::none();
    const Shape h_shape(layers, batch, outputs), c_shape(layers, batch, units);
    rf::Forward call = new_call(steps, batch, threads);
    if (!hx.is_none()) {
      py::handle h = hx, c;
      if (has_c) {
        if (!PyTuple_CheckExact(hx.ptr()) || PyTuple_GET_SIZE(hx.ptr()) != 2) return py::none();
        h = PyTuple_GET_ITEM(hx.ptr(), 0), c = PyTuple_GET_ITEM(hx.ptr(), 1);
      }
      call.h0 = plain_data(h, type, h_shape);
      call.c0 = has_c ? plain_data(c, type, c_shape) : nullptr;
      if (!call.h0 || (has_c && !call.c0)) return py::none();
    }
    get_backend();  // as in Pass
    const py::ssize_t item = in.itemsize();
    const int64_t width = spec.num_directions * outputs;
    py::array y = new_array(type, {in.shape(0), in.shape(1), width}), hn = new_array(type, h_shape);
    call.x = {in.data(), in.strides(batch_first) / item, in.strides(!batch_first) / item};
    call.y = {y.mutable_data(), batch_first ? width : batch * width, batch_first ? steps * width : width};
    call.hn = hn.mutable_data();
    if (!has_c) {
      run_call(call);
      return py::make_tuple(y, hn);
    }
    py::array cn = new_array(type, c_shape);
    call.cn = cn.mutable_data();
    run_call(call);
    return py::make_tuple(y, py::make_tuple(hn, cn));
  }

 private:
  static bool is_plain(py::handle object, const py::dtype& type, int ndim) {
    if (!is_exact_array(object)) return false;
    const auto a = py::reinterpret_borrow<py::array>(object);
    return a.ndim() == ndim && has_dtype(a, type) && has_flags(a, npy_api::NPY_ARRAY_ALIGNED_);
  }
  static const void* plain_data(py::handle object, const py::dtype& type, const Shape& shape) {
    if (!is_plain(object, type, shape.ndim)) return nullptr;
    const auto a = py::reinterpret_borrow<py::array>(object);
    return has_shape(a, shape) && has_flags(a, npy_api::NPY_ARRAY_C_CONTIGUOUS_) ? a.data() : nullptr;
  }

  rf::Forward new_call(int64_t steps, int64_t batch, int threads) const {
    rf::Forward call;
    call.spec = spec;
    call.steps = steps;
    call.batch = batch;
    call.packed = bytes.data();
    call.threads = threads_or_default(threads);
    return call;
  }

  void run_call(rf::Forward& call) const {
    const int64_t work = rf::step_work(spec, call.batch) * call.steps;
    const Running running(call, work);
    if (work < worth_releasing) {
      rf::forward(table, call);
    } else {
      call.interrupted = ask_python;
      run_interruptibly([&] { return rf::forward(table, call); });
    }
  }
};

// --- a pass over sequences ---

rf::Spare spare_tape;
alignas(64) char no_bytes[64];  // a tape of none is one all the same

class Pass {
 public:
  Pass(const Spec& spec, const py::object& weights, const py::array& x, const py::array& y, const py::object& h0,
       const py::object& c0, const py::array& hn, const py::object& cn, const py::object& lengths, double dropout,
       uint64_t seed, bool train, const std::string& isa, int threads, int64_t segments, const py::kwargs& options)
      : spec_(spec),
        arrays_(py::make_tuple(weights, x, y, h0, c0, hn, cn, lengths, options)),
        type_(numpy_dtype(spec.dtype)) {
    get_backend();  // throws where RNNFAST_THREADING is wrong, as table_named() does for RNNFAST_ISA
    if (x.ndim() != 3) throw py::value_error("x has the wrong rank");
    call_.spec = spec_;
    call_.steps = x.shape(0);
    call_.batch = x.shape(1);
    call_.x = view<const void>(x, "x", type_, {steps(), batch(), spec_.input_size});
    call_.y = view<void>(y, "y", type_, {steps(), batch(), output_width()});
    call_.h0 = input(h0, "h0", type_, h_shape());
    call_.hn = output(hn, "hn", type_, h_shape());
    if (rf::has_c(spec_.cell)) {
      call_.c0 = input(c0, "c0", type_, c_shape());
      call_.cn = output(cn, "cn", type_, c_shape());
    }
    call_.dropout = dropout;
    call_.seed = seed;
    call_.threads = threads_or_default(threads);
    call_.interrupted = ask_python;
    call_.segments = segments;
    set_weights(weights, isa);
    set_lengths(lengths);
    for (auto option : options)
      set_option(option.first.cast<std::string>(), py::reinterpret_borrow<py::object>(option.second));
    if (!train) return;
    require_masks();
    tape_nbytes_ = spec_.hidden_size ? rf::tape_bytes(*table_, call_) : 0;
    if (tape_nbytes_) tape_ = spare_tape.take(tape_nbytes_, tape_nbytes_ + tape_nbytes_ / 4);
    weight_bytes_ = rf::packed_bytes(*table_, spec_);
    call_.tape = tape_ ? tape_->data() : no_bytes;
  }
  ~Pass() { spare_tape.leave(std::move(tape_), weight_bytes_); }
  Pass(const Pass&) = delete;
  Pass& operator=(const Pass&) = delete;

  void forward() {
    if (!spec_.hidden_size) return;
    run_interruptibly([&] { return rf::forward(*table_, call_); });
  }

  void backward(const py::object& grad_y, const py::object& grad_hn, const py::object& grad_cn,
                const py::object& grad_x, const py::object& grad_h0, const py::object& grad_c0,
                const py::object& grad_weights, const py::object& per_step, int threads, double grad_clip) const {
    if (!call_.tape) throw py::value_error("this pass kept no tape");
    std::vector<rf::WeightGradients> weights;
    if (!grad_weights.is_none())
      weights = per_cell<rf::WeightGradients>(spec_, grad_weights.cast<py::sequence>(), output);
    auto steps_out = per_step_pointers(per_step);
    rf::Backward back;
    back.pass = &call_;
    back.grad_y = view<const void>(grad_y, "grad_y", type_, {steps(), batch(), output_width()});
    back.grad_hn = input(grad_hn, "grad_hn", type_, h_shape());
    back.grad_cn = input(grad_cn, "grad_cn", type_, c_shape());
    back.grad_x = view<void>(grad_x, "grad_x", type_, {steps(), batch(), spec_.input_size});
    back.grad_h0 = output(grad_h0, "grad_h0", type_, h_shape());
    back.grad_c0 = output(grad_c0, "grad_c0", type_, c_shape());
    back.grad_weights = weights.empty() ? nullptr : weights.data();
    back.per_step = steps_out.empty() ? nullptr : steps_out.data();
    back.grad_clip = grad_clip;
    back.threads = threads_or_default(threads);
    if (!spec_.hidden_size) return;
    back.interrupted = ask_python;
    run_interruptibly([&] { return rf::backward(*table_, back); });
  }

  size_t tape_nbytes() const { return tape_nbytes_; }

 private:
  int64_t steps() const { return call_.steps; }
  int64_t batch() const { return call_.batch; }
  int64_t top() const { return spec_.num_layers - 1; }
  int64_t output_width() const { return spec_.num_directions * rf::outputs_of(spec_, top()); }
  int64_t cells() const { return spec_.num_layers * spec_.num_directions; }

  // [L*D, B, size], or the elements of all layers where they differ.
  Shape state_shape(int64_t size, int64_t (*size_of)(const rf::Spec&, int64_t)) const {
    if (!spec_.hidden_sizes) return {cells(), batch(), size};
    int64_t elements = 0;
    for (int64_t l = 0; l < spec_.num_layers; ++l) elements += spec_.num_directions * batch() * size_of(spec_, l);
    return {elements};
  }
  Shape h_shape() const { return state_shape(rf::outputs_of(spec_, 0), rf::outputs_of); }
  Shape c_shape() const { return state_shape(spec_.hidden_size, rf::units_of); }

  void set_weights(const py::object& weights, const std::string& isa) {
    if (py::isinstance<Packed>(weights)) {
      const auto& packed = weights.cast<const Packed&>();
      if (!same(packed.spec, spec_)) throw py::value_error("the weights were packed for another layer");
      table_ = &packed.table;
      call_.packed = packed.bytes.data();
    } else {
      table_ = &table_named(isa, &spec_);
      weights_ = per_cell<rf::Weights>(spec_, weights.cast<py::sequence>(), input);
      call_.weights = weights_.data();
    }
  }

  void set_lengths(const py::object& lengths) {
    if (lengths.is_none()) return;
    call_.lengths = static_cast<const int64_t*>(input(lengths, "lengths", py::dtype::of<int64_t>(), {batch()}));
    for (int64_t b = 0; b < batch(); ++b)
      if (call_.lengths[b] < 0 || call_.lengths[b] > steps()) throw py::value_error("lengths must be within 0..T");
  }

  void set_option(const std::string& name, const py::object& value) {
    const py::dtype flags = py::dtype::of<uint8_t>();
    const int64_t units = rf::units_of(spec_, top());
    if (name == "mask") {
      call_.mask = static_cast<const uint8_t*>(input(value, "mask", flags, {steps(), batch()}));
    } else if (name == "reset") {
      call_.reset = static_cast<const uint8_t*>(input(value, "reset", flags, {steps(), batch()}));
    } else if (name == "reset_to_initial") {
      call_.reset_to_initial = value.cast<bool>();
    } else if (name == "carry") {
      call_.carry = value.cast<bool>();
    } else if (name == "cells") {
      call_.cells = view<void>(value, "cells", type_, {steps(), batch(), spec_.num_directions * units});
    } else if (name == "gates") {
      const int64_t width = spec_.num_directions * rf::gates_of(spec_.cell) * units;
      call_.gates = view<void>(value, "gates", type_, {steps(), batch(), width});
    } else if (!value.is_none()) {
      set_masks(name, value.cast<py::sequence>());
    }
  }

  // Lists of arrays: of each layer, or of each layer and direction.
  void set_masks(const std::string& name, const py::sequence& arrays) {
    const py::dtype flags = py::dtype::of<uint8_t>();
    const int64_t directions = name == "input_masks" ? 1 : spec_.num_directions;
    if (static_cast<int64_t>(arrays.size()) != spec_.num_layers * directions)
      throw py::value_error(name + " has the wrong length");
    pointers_.emplace_back();
    for (int64_t n = 0; n < spec_.num_layers * directions; ++n) {
      const int64_t layer = n / directions;
      const py::object array = arrays[static_cast<size_t>(n)];
      pointers_.back().push_back(
          name == "input_masks" ? input(array, "input_masks", type_, {batch(), rf::inputs_of(spec_, layer)})
          : name == "recurrent_masks"
              ? input(array, "recurrent_masks", type_, {batch(), rf::outputs_of(spec_, layer)})
              : input(array, "zoneout_masks", flags, {steps(), batch(), rf::units_of(spec_, layer)}));
      if (!pointers_.back().back() && array.is_none() && name != "input_masks")
        throw py::value_error(name + " has no array");
    }
    const void* const* all = pointers_.back().data();
    if (name == "input_masks")
      call_.input_masks = all;
    else if (name == "recurrent_masks")
      call_.recurrent_masks = all;
    else if (name == "zoneout_masks_h")
      call_.zoneout_h_masks = reinterpret_cast<const uint8_t* const*>(all);
    else if (name == "zoneout_masks_c")
      call_.zoneout_c_masks = reinterpret_cast<const uint8_t* const*>(all);
    else
      throw py::type_error("unknown option: " + name);
  }

  void require_masks() const {
    if ((spec_.zoneout_h > 0 && !call_.zoneout_h_masks) || (spec_.zoneout_c > 0 && !call_.zoneout_c_masks))
      throw py::value_error("training with zoneout needs its masks");
  }

  std::vector<void*> per_step_pointers(const py::object& per_step) const {
    std::vector<void*> pointers;
    if (per_step.is_none()) return pointers;
    int64_t n = 0;
    for (py::handle a : per_step.cast<py::sequence>()) {
      const int64_t layer = std::min(n++ / spec_.num_directions, top());
      pointers.push_back(output(a, "per_step", type_, {steps(), batch(), rf::outputs_of(spec_, layer)}));
    }
    if (n != cells()) throw py::value_error("per_step has the wrong length");
    return pointers;
  }

  const Spec spec_;
  rf::Forward call_;
  const rf::KernelTable* table_ = nullptr;
  std::vector<rf::Weights> weights_;
  std::deque<std::vector<const void*>> pointers_;
  rf::Spare::Block tape_;
  size_t weight_bytes_ = 0;
  size_t tape_nbytes_ = 0;
  py::tuple arrays_;  // keeps alive what call_ points into
  py::dtype type_;
};

// The same on raw addresses, for torch: only what its layers have.
class TensorPass {
 public:
  TensorPass(const Spec& spec, int64_t steps, int64_t batch, std::pair<Address, int64_t> packed, const Rows& x,
             const Rows& y, States start, States last, const std::vector<Address>& weights, double dropout,
             uint64_t seed, std::pair<Address, size_t> tape, const std::string& isa, int threads)
      : spec_(spec),
        rows_(packed, steps, batch),
        weights_(per_cell<rf::Weights>(spec_, weights)),
        table_(table_named(isa)) {
    get_backend();  // as in Pass
    call_.spec = spec_;
    call_.steps = steps;
    call_.batch = batch;
    call_.lengths = rows_.lengths();
    call_.x = rows_.view<const void>(x);
    call_.y = rows_.view<void>(y);
    call_.h0 = at<const void*>(start.first);
    call_.c0 = at<const void*>(start.second);
    call_.hn = at<void*>(last.first);
    call_.cn = at<void*>(last.second);
    call_.weights = weights_.data();
    call_.dropout = dropout;
    call_.seed = seed;
    call_.threads = threads_or_default(threads);
    call_.interrupted = ask_python;
    call_.tape = tape.first ? at<void*>(tape.first) : no_bytes;
    if (tape.second < (spec_.hidden_size ? rf::tape_bytes(table_, call_) : 0))
      throw py::value_error("the tape is too small");
  }

  void forward() {
    const rf::BesideOpenMP beside(torch_shares_openmp());
    if (spec_.hidden_size) run_interruptibly([&] { return rf::forward(table_, call_); });
  }

  void backward(const Rows& grad_y, States grad_last, const Rows& grad_x, States grad_start,
                const std::vector<Address>& grad_weights) const {
    const auto gradients = per_cell<rf::WeightGradients>(spec_, grad_weights);
    rf::Backward back;
    back.pass = &call_;
    back.grad_y = rows_.view<const void>(grad_y);
    back.grad_hn = at<const void*>(grad_last.first);
    back.grad_cn = at<const void*>(grad_last.second);
    back.grad_x = rows_.view<void>(grad_x);
    back.grad_h0 = at<void*>(grad_start.first);
    back.grad_c0 = at<void*>(grad_start.second);
    back.grad_weights = gradients.data();
    back.threads = call_.threads;
    back.interrupted = ask_python;
    const rf::BesideOpenMP beside(torch_shares_openmp());
    if (spec_.hidden_size) run_interruptibly([&] { return rf::backward(table_, back); });
  }

 private:
  const Spec spec_;
  const PackedRows rows_;
  const std::vector<rf::Weights> weights_;
  const rf::KernelTable& table_;
  rf::Forward call_;
};

size_t tape_nbytes(const Spec& spec, int64_t steps, int64_t batch, const std::string& isa) {
  rf::Forward call;
  call.spec = spec;
  call.steps = steps;
  call.batch = batch;
  return spec.hidden_size ? rf::tape_bytes(table_named(isa), call) : 0;
}

// Bytes at an address that a tape may have, on huge pages where it is large.
py::array new_tape(size_t bytes) {
  auto memory = std::make_unique<rf::Memory>(bytes);
  auto* data = static_cast<uint8_t*>(memory->data());
  const py::capsule owner(memory.get(), [](void* p) { delete static_cast<rf::Memory*>(p); });
  memory.release();
  return py::array_t<uint8_t>(static_cast<py::ssize_t>(bytes), data, owner);
}

// --- one step at a time ---

// Everything that does not change from step to step is set up once: a step checks two arrays, sets two pointers and
// runs the kernel.
class Stream {
 public:
  // `as_array` makes an array of what is none; `threads` is a context variable, 0 for the process's number.
  Stream(const Spec& spec, const py::object& packed, const py::array& h, const py::object& c, py::object as_array,
         py::object threads)
      : spec_(spec),
        objects_(py::make_tuple(packed, h, c)),
        type_(numpy_dtype(spec.dtype)),
        as_array_(std::move(as_array)),
        context_threads_(std::move(threads)) {
    const auto& weights = packed.cast<const Packed&>();
    if (!same(weights.spec, spec)) throw py::value_error("the weights were packed for another layer");
    if (spec.num_directions != 1) throw py::value_error("a bidirectional layer has no stream");
    call_.spec = spec_;
    get_backend();  // as in Pass
    call_.steps = 1;
    call_.packed = weights.bytes.data();
    set_state(h, c);
    entry_ = &weights.table.entry[static_cast<int>(spec.cell)][static_cast<int>(spec.dtype)];
    const size_t item = static_cast<size_t>(type_.itemsize());
    outputs_ = rf::outputs_of(spec_, spec_.num_layers - 1);
    x_copy_.allocate(static_cast<size_t>(batch() * spec.input_size) * item);
    call_.x.stride_b = spec.input_size;
    call_.y.stride_b = outputs_;
    work_ = rf::step_work(spec_, batch());
    set_threads(1);
  }

  py::object step(py::handle x, py::handle out) {
    py::object converted;
    if (!is_exact_array(x)) converted = as_array_("x_t", x);
    const Occupied occupied(busy_);
    set_threads(work_ < worth_sharing ? 1 : wanted_threads());
    const int ndim = set_input(converted ? converted : x);
    py::object y = out.is_none() ? new_output(ndim) : checked_output(out, ndim);
    avoid_overlap();
    run();
    return y;
  }

 private:
  // Two threads inside one stream would tear its state; this turns that mistake into an exception.
  struct Occupied {
    std::atomic_flag& flag;
    explicit Occupied(std::atomic_flag& f) : flag(f) {
      if (flag.test_and_set(std::memory_order_acquire))
        throw std::runtime_error(
            "this stream is inside step() in another thread; give each thread a stream of its own");
    }
    ~Occupied() { flag.clear(std::memory_order_release); }
  };

  // Below this work of a step, about 1 us, no second thread can help, and asking the environment how many there may be
  // would cost a sixth of it.
  static constexpr int64_t worth_sharing = 1 << 15;

  int wanted_threads() const {
    PyObject* value = nullptr;
    if (PyContextVar_Get(context_threads_.ptr(), nullptr, &value)) throw py::error_already_set();
    return threads_or_default(py::reinterpret_steal<py::object>(value).cast<int>());
  }

  // [L, B, S] and [L, B, H]; where layers have sizes of their own, all elements in one axis.
  void set_state(const py::array& h, const py::object& c) {
    int64_t h_row = 0, c_row = 0;  // elements of one sequence's state
    for (int64_t l = 0; l < spec_.num_layers; ++l) h_row += rf::outputs_of(spec_, l), c_row += rf::units_of(spec_, l);
    if (spec_.hidden_sizes) {
      if (h.ndim() != 1) throw py::value_error("h has the wrong rank");
      call_.batch = h.size() / std::max<int64_t>(h_row, 1);
    } else {
      if (h.ndim() != 3) throw py::value_error("h has the wrong rank");
      call_.batch = h.shape(1);
    }
    const int64_t layers = spec_.num_layers;
    const Shape h_shape = spec_.hidden_sizes ? Shape(batch() * h_row) : Shape(layers, batch(), h_row / layers);
    const Shape c_shape = spec_.hidden_sizes ? Shape(batch() * c_row) : Shape(layers, batch(), c_row / layers);
    call_.h0 = call_.hn = output(h, "h", type_, h_shape);
    if (rf::has_c(spec_.cell)) call_.c0 = call_.cn = output(c, "c", type_, c_shape);
  }

  int64_t batch() const { return call_.batch; }
  size_t input_bytes() const { return x_copy_.size(); }

  void set_threads(int threads) {
    if (threads == call_.threads && scratch_.data()) return;
    call_.threads = threads;
    call_.in_succession = true;  // when more threads may be used, and no less memory
    prepared_ = false;
    scratch_.allocate(call_.spec.hidden_size ? entry_->forward_scratch(call_) : 0);
  }

  std::string expected(int64_t width) const {
    const std::string w = std::to_string(width);
    return "(" + std::to_string(batch()) + ", " + w + ")" + (batch() == 1 ? " or (" + w + ",)" : "");
  }

  py::array array_named(const char* name, py::handle object, int64_t width) const {
    if (!py::isinstance<py::array>(object))
      throw py::type_error(std::string(name) + " must be a NumPy array, got " + Py_TYPE(object.ptr())->tp_name);
    auto a = py::reinterpret_borrow<py::array>(object);
    if (!has_dtype(a, type_))
      throw py::type_error(std::string(name) + " must be " + py::str(type_).cast<std::string>() + ", got " +
                           py::str(a.dtype()).cast<std::string>() + "; convert it with astype(\"" +
                           py::str(type_).cast<std::string>() + "\")");
    if (!has_shape(a, {batch(), width}) && !(batch() == 1 && has_shape(a, {width})))
      throw py::value_error(std::string(name) + " must have shape " + expected(width) + ", got " +
                            py::str(a.attr("shape")).cast<std::string>());
    return a;
  }

  // Returns x's rank, which the output shares.
  int set_input(py::handle object) {
    const py::array x = array_named("x_t", object, call_.spec.input_size);
    if (has_flags(x, npy_api::NPY_ARRAY_ALIGNED_ | npy_api::NPY_ARRAY_C_CONTIGUOUS_)) {
      call_.x.data = x.data();
    } else {
      copy_strided(x);
      call_.x.data = x_copy_.data();
    }
    return static_cast<int>(x.ndim());
  }

  void copy_strided(const py::array& x) {
    const py::ssize_t item = x.itemsize(), axis = x.ndim() - 1;
    char* to = static_cast<char*>(x_copy_.data());
    for (int64_t b = 0; b < batch(); ++b) {
      const char* row = static_cast<const char*>(x.data()) + (axis ? b * x.strides(0) : 0);
      for (int64_t i = 0; i < call_.spec.input_size; ++i, to += item)
        std::memcpy(to, row + i * x.strides(axis), static_cast<size_t>(item));
    }
  }

  py::object new_output(int ndim) {
    py::array y = new_array(type_, ndim == 1 ? Shape(outputs_) : Shape(batch(), outputs_));
    call_.y.data = y.mutable_data();
    return std::move(y);
  }

  py::object checked_output(py::handle object, int ndim) {
    py::array out = array_named("out", object, outputs_);
    if (out.ndim() != ndim)
      throw py::value_error("out must have as many axes as x_t (" + std::to_string(ndim) + "), got shape " +
                            py::str(out.attr("shape")).cast<std::string>());
    if (!has_flags(out, npy_api::NPY_ARRAY_ALIGNED_ | npy_api::NPY_ARRAY_C_CONTIGUOUS_))
      throw py::value_error("out must be C-contiguous and aligned: the step writes into it directly");
    require_writable(out, "out");
    call_.y.data = out.mutable_data();
    return out;
  }

  // `out` may be x_t or a part of it: the kernel reads x while it writes y.
  void avoid_overlap() {
    const char *x = static_cast<const char*>(call_.x.data), *y = static_cast<const char*>(call_.y.data);
    const size_t y_bytes = static_cast<size_t>(batch() * outputs_ * type_.itemsize());
    if (x >= y + y_bytes || y >= x + input_bytes()) return;
    std::memcpy(x_copy_.data(), x, input_bytes());
    call_.x.data = x_copy_.data();
  }

  void run() {
    if (!call_.spec.hidden_size) return;
    const bool before = call_.in_succession;
    const Running running(call_, work_);
    if (call_.in_succession != before) prepared_ = false;  // the number of threads follows from it
    if (!prepared_) entry_->prepare_forward(call_, scratch_.data());
    prepared_ = true;
    call_.back = !call_.back;  // see Forward::back
    if (work_ < worth_releasing) {
      entry_->forward(scratch_.data());
    } else {
      without_gil([&] { entry_->forward(scratch_.data()); });
    }
  }

  const Spec spec_;
  rf::Forward call_;
  int64_t outputs_ = 0;  // S of the last layer
  const rf::KernelTable::Entry* entry_ = nullptr;
  rf::Memory scratch_, x_copy_;
  bool prepared_ = false;
  int64_t work_ = 0;
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
  py::tuple objects_;  // keeps alive the weights and the state
  py::dtype type_;
  py::object as_array_, context_threads_;
};

// The method Stream.step as Python's C API has it: through pybind11 and a function in Python a call took 250 ns more,
// as long as a whole step of a small layer.
PyObject* step(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  try {
    PyObject* given[2] = {nullptr, Py_None};  // x_t, out
    if (count > 2) throw py::type_error("step() takes x_t and out, got " + std::to_string(count) + " arguments");
    std::copy_n(args, count, given);
    for (Py_ssize_t i = 0; keywords && i < PyTuple_GET_SIZE(keywords); ++i) {
      PyObject* const name = PyTuple_GET_ITEM(keywords, i);
      const bool is_out = PyUnicode_CompareWithASCIIString(name, "out") == 0;
      if (!is_out && PyUnicode_CompareWithASCIIString(name, "x_t") != 0)
        return PyErr_Format(PyExc_TypeError, "step() got an unexpected keyword argument '%U'", name);
      if (count > is_out) return PyErr_Format(PyExc_TypeError, "step() got multiple values for argument '%U'", name);
      given[is_out] = args[count + i];
    }
    if (!given[0]) throw py::type_error("step() missing its argument 'x_t'");
    // The method's descriptor has made sure of the type of `self`: the Stream is there, and alone unless somebody has
    // derived from two compiled classes.
    auto* const object = reinterpret_cast<py::detail::instance*>(self);
    void* const stream = object->simple_layout ? object->get_value_and_holder().value_ptr() : nullptr;
    if (!stream) throw py::type_error("this stream was not initialized; stream() of a frozen layer makes one");
    return static_cast<Stream*>(stream)->step(given[0], given[1]).release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
#if defined(__GLIBCXX__)
  } catch (abi::__forced_unwind&) {  // see without_gil
    throw;
#endif
  } catch (...) {
    py::detail::try_translate_exceptions();
  }
  return nullptr;
}

PyMethodDef step_method = {"step", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(step)),
                           METH_FASTCALL | METH_KEYWORDS,
                           R"(step($self, x_t, out=None)
--

Takes one step of every sequence and returns the last layer's h.

x_t: [B, I], or [I] with batch_size 1, of the layer's dtype. A strided or misaligned array is copied.
out: [B, H], or [H] where x_t is [I]: receives the result, and then nothing is allocated. C-contiguous and
    writable; it may be x_t itself.

Raises ValueError for wrong shapes and a read-only or strided `out`, TypeError for wrong dtypes and types,
RuntimeError if another thread is inside `step` of the same stream.)"};

// --- for tests and measurements ---

void apply(const std::string& isa, const std::string& function, const py::array& x, const py::array& y) {
  const bool single = has_dtype(x, py::dtype::of<float>());
  const py::dtype type = single ? py::dtype::of<float>() : py::dtype::of<double>();
  const int which = named<int>(function, {"exp", "expm1", "sigmoid", "tanh"});
  const void* from = input(x, "x", type, {x.size()});
  void* to = output(y, "y", type, {x.size()});
  table_named(isa).apply[which][single ? 0 : 1](from, to, x.size());
}

double measure_peak(const std::string& isa, const std::string& dtype, int threads, double seconds) {
  const rf::KernelTable& table = table_named(isa);
  const auto type = named<rf::Dtype>(dtype, {"float32", "float64"});
  py::gil_scoped_release release;
  return rf::measure_peak(table, type, threads, seconds);
}

double measure_read(const std::string& isa, int64_t bytes, int threads, double seconds) {
  const rf::KernelTable& table = table_named(isa);
  py::gil_scoped_release release;
  return rf::measure_read(table, bytes, threads, seconds);
}

py::array dropout_mask(uint64_t seed, double p, int64_t layer, int64_t steps, int64_t batch, int64_t width) {
  py::array_t<bool> mask({steps, batch, width});
  bool* keep = mask.mutable_data();
  for (int64_t t = 0; t < steps; ++t)
    for (int64_t b = 0; b < batch; ++b) {
      const uint64_t key = rf::dropout_key(seed, layer, t, b);
      for (int64_t unit = 0; unit < width; ++unit) *keep++ = rf::dropout_keeps(key, unit, p);
    }
  return mask;
}

py::dict config() {
  py::dict result;
  result["version"] = RNNFAST_VERSION;
#ifdef __clang__
  result["compiler"] = "clang " __clang_version__;
#else
  result["compiler"] = "gcc " __VERSION__;
#endif
  result["numerics"] = rf::numerics;
  result["openmp"] = std::strstr(rf::available_backends(), "openmp") != nullptr;
  return result;
}

}  // namespace

[[gnu::cold]] static void pybind11_init__core(py::module_&);  // small rather than fast
PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  using namespace py::literals;

  py::class_<Spec>(m, "Spec").def(
      py::init<const std::string&, const std::string&, int64_t, int64_t, int64_t, int64_t, const py::kwargs&>(),
      "cell"_a, "dtype"_a, "input_size"_a, "hidden_size"_a, "num_layers"_a, "num_directions"_a);

  py::class_<Packed>(m, "Packed")
      .def(py::init<const Spec&, const py::sequence&, const std::string&>(), "spec"_a, "weights"_a, "isa"_a)
      .def_property_readonly("isa", [](const Packed& p) { return p.table.isa; })
      .def_property_readonly("nbytes", [](const Packed& p) { return p.bytes.size(); })
      .def("forward", &Packed::forward, "x"_a, "hx"_a, "batch_first"_a, "threads"_a)
      .def("run", &Packed::run, "steps"_a, "batch"_a, "packed"_a, "x"_a, "y"_a, "start"_a, "last"_a, "threads"_a);

  py::class_<Pass>(m, "Pass")
      .def(py::init<const Spec&, const py::object&, const py::array&, const py::array&, const py::object&,
                    const py::object&, const py::array&, const py::object&, const py::object&, double, uint64_t, bool,
                    const std::string&, int, int64_t, const py::kwargs&>(),
           "spec"_a, "weights"_a, "x"_a, "y"_a, "h0"_a, "c0"_a, "hn"_a, "cn"_a, "lengths"_a, "dropout"_a, "seed"_a,
           "train"_a, "isa"_a, "threads"_a, "segments"_a = 0)
      .def("forward", &Pass::forward)
      .def("backward", &Pass::backward, "grad_y"_a, "grad_hn"_a, "grad_cn"_a, "grad_x"_a, "grad_h0"_a, "grad_c0"_a,
           "grad_weights"_a, "per_step"_a, "threads"_a, "grad_clip"_a = 0.0)
      .def_property_readonly("tape_nbytes", &Pass::tape_nbytes);

  py::class_<TensorPass>(m, "TensorPass")
      .def(py::init<const Spec&, int64_t, int64_t, std::pair<Address, int64_t>, const Rows&, const Rows&, States,
                    States, const std::vector<Address>&, double, uint64_t, std::pair<Address, size_t>,
                    const std::string&, int>(),
           "spec"_a, "steps"_a, "batch"_a, "packed"_a, "x"_a, "y"_a, "start"_a, "last"_a, "weights"_a, "dropout"_a,
           "seed"_a, "tape"_a, "isa"_a, "threads"_a)
      .def("forward", &TensorPass::forward)
      .def("backward", &TensorPass::backward, "grad_y"_a, "grad_last"_a, "grad_x"_a, "grad_start"_a, "grad_weights"_a);

  py::class_<Stream> stream(m, "Stream");
  stream.def(py::init<const Spec&, const py::object&, const py::array&, const py::object&, const py::object&,
                      const py::object&>(),
             "spec"_a, "packed"_a, "h"_a, "c"_a, "as_array"_a, "threads"_a);
  stream.attr("step") =
      py::reinterpret_steal<py::object>(PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(stream.ptr()), &step_method));

  m.def("tape_nbytes", &tape_nbytes, "spec"_a, "steps"_a, "batch"_a, "isa"_a);
  m.def("new_tape", &new_tape, "nbytes"_a);
  m.def("available_isas", &available_isas);
  m.def("default_isa", [] { return table_named("").isa; });
  m.def("apply", &apply, "isa"_a, "function"_a, "x"_a, "y"_a);
  m.def("measure_peak", &measure_peak, "isa"_a, "dtype"_a, "threads"_a, "seconds"_a);
  m.def("measure_read", &measure_read, "isa"_a, "bytes"_a, "threads"_a, "seconds"_a);
  m.def("dropout_mask", &dropout_mask, "seed"_a, "p"_a, "layer"_a, "steps"_a, "batch"_a, "width"_a);
  m.def("set_num_threads", &rf::set_num_threads, "n"_a);
  m.def("get_num_threads", &rf::get_num_threads, "otherwise"_a = 0);
  m.def("set_backend", &set_backend, "name"_a);
  m.def("get_backend", &get_backend);
  m.def("shares_openmp", [](const std::string& library) { return rf::shares_openmp(library.c_str()); }, "library"_a);
  m.def("config", &config);
}
