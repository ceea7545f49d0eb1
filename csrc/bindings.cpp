// The Python module rnnfast._core: NumPy arrays become the structs of rnnfast.h, the GIL is released, a pass is run.
// Wrong arguments have been explained to the user in Python (_check.py); what is checked again here is what memory
// safety rests on. Only Stream.step, which has no time for Python, words its errors for the user.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

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

rf::Spec make_spec(const std::string& cell, const std::string& activation, const std::string& dtype, int64_t input_size,
                   int64_t hidden_size, int64_t num_layers, int64_t num_directions) {
  if (input_size < 0 || hidden_size < 0 || num_layers < 1 || num_directions < 1 || num_directions > 2)
    throw py::value_error("sizes are out of range");
  return {named<rf::Cell>(cell, {"rnn", "lstm", "gru"}),
          named<rf::Activation>(activation, {"tanh", "relu"}),
          named<rf::Dtype>(dtype, {"float32", "float64"}),
          input_size,
          hidden_size,
          num_layers,
          num_directions};
}

bool same(const rf::Spec& a, const rf::Spec& b) {
  return a.cell == b.cell && a.activation == b.activation && a.dtype == b.dtype && a.input_size == b.input_size &&
         a.hidden_size == b.hidden_size && a.num_layers == b.num_layers && a.num_directions == b.num_directions;
}

py::list available_isas() {
  const char* names[16];
  py::list found;
  for (int i = 0, n = rf::available_isas(names, 16); i < n; ++i) found.append(names[i]);
  return found;
}

// The best table, or the one RNNFAST_ISA names, for "".
const rf::KernelTable& table_named(const std::string& isa) {
  const rf::KernelTable* table = isa.empty() ? rf::default_isa() : rf::find_isa(isa.c_str());
  if (table) return *table;
  const char* variable = std::getenv("RNNFAST_ISA");
  const std::string asked =
      isa.empty() ? std::string("RNNFAST_ISA=") + (variable ? variable : "") : "isa '" + isa + "'";
  throw py::value_error(asked + " is unknown or not supported by this CPU; available: " +
                        py::str(", ").attr("join")(available_isas()).cast<std::string>());
}

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

// In multiplications, about.
int64_t step_work(const rf::Spec& spec, int64_t batch) {
  return spec.num_layers * rf::gates_of(spec.cell) * spec.hidden_size * (spec.input_size + spec.hidden_size) * batch;
}

// Below this work, about 20 us, the GIL is kept: giving it away means waiting, up to 5 ms, behind a thread that is busy
// in Python.
constexpr int64_t worth_releasing = 1 << 20;

int threads_or_default(int threads) { return threads != 0 ? threads : rf::get_num_threads(); }

// --- Ctrl-C ---

thread_local std::chrono::steady_clock::time_point last_asked;

// Whether a signal handler of Python's raised an exception. Taking the GIL may mean waiting for it, so seldom.
bool ask_python() {
  const auto now = std::chrono::steady_clock::now();
  if (now - last_asked < std::chrono::milliseconds(50)) return false;
  last_asked = now;
  py::gil_scoped_acquire locked;
  return PyErr_CheckSignals() != 0;
}

template <class Run> void run_interruptibly(const Run& run) {
  last_asked = std::chrono::steady_clock::now();
  bool finished;
  {
    py::gil_scoped_release unlocked;
    finished = run();
  }
  if (!finished) throw py::error_already_set();
}

// --- weights ---

// Cuts the flat list w_ih, w_hh[, b_ih, b_hh], w_ih, ... of all layers and directions into structs.
template <class Struct, class Pointer>
std::vector<Struct> per_cell(const rf::Spec& spec, const py::sequence& arrays, Pointer pointer) {
  const int64_t cells = spec.num_layers * spec.num_directions, rows = rf::gates_of(spec.cell) * spec.hidden_size;
  const int64_t given = static_cast<int64_t>(arrays.size()), each = given / cells;
  if ((each != 2 && each != 4) || each * cells != given)
    throw py::value_error("2 or 4 weight arrays are needed per layer and direction");
  const py::dtype type = numpy_dtype(spec.dtype);
  std::vector<Struct> result(static_cast<size_t>(cells));
  for (int64_t n = 0; n < cells; ++n) {
    auto array = [&](int64_t i) { return py::object(arrays[static_cast<size_t>(n * each + i)]); };
    const int64_t width = n < spec.num_directions ? spec.input_size : spec.num_directions * spec.hidden_size;
    Struct& w = result[static_cast<size_t>(n)];
    w.weight_ih = pointer(array(0), "weight_ih", type, {rows, width});
    w.weight_hh = pointer(array(1), "weight_hh", type, {rows, spec.hidden_size});
    if (each == 2) continue;
    w.bias_ih = pointer(array(2), "bias_ih", type, {rows});
    w.bias_hh = pointer(array(3), "bias_hh", type, {rows});
  }
  return result;
}

// Memory that the caller has checked: tensors of a framework, of which NumPy cannot make arrays as fast as a step runs.
template <class Pointer> Pointer at(uintptr_t address) { return reinterpret_cast<Pointer>(address); }

struct Packed {
  rf::Spec spec;
  const rf::KernelTable& table;
  rf::Memory bytes;

  Packed(const rf::Spec& spec_, const py::sequence& arrays, const std::string& isa)
      : spec(spec_), table(table_named(isa)) {
    const auto weights = per_cell<rf::Weights>(spec, arrays, input);
    if (!spec.hidden_size) return;  // here and below: nothing to compute, so no kernel is asked
    bytes.allocate(rf::packed_bytes(table, spec));
    py::gil_scoped_release unlocked;
    rf::pack(table, spec, weights.data(), bytes.data());
  }

  // One forward pass on raw addresses; strides in elements, 0 for null. See rf::Forward for the shapes.
  void run(int64_t steps, int64_t batch, uintptr_t x, std::pair<int64_t, int64_t> x_strides, uintptr_t y,
           std::pair<int64_t, int64_t> y_strides, uintptr_t h0, uintptr_t c0, uintptr_t hn, uintptr_t cn,
           uintptr_t lengths, int threads) const {
    rf::Forward call;
    call.spec = spec;
    call.steps = steps;
    call.batch = batch;
    call.packed = bytes.data();
    call.x = {at<const void*>(x), x_strides.first, x_strides.second};
    call.y = {at<void*>(y), y_strides.first, y_strides.second};
    call.h0 = at<const void*>(h0);
    call.c0 = at<const void*>(c0);
    call.hn = at<void*>(hn);
    call.cn = at<void*>(cn);
    call.lengths = at<const int64_t*>(lengths);
    call.threads = threads_or_default(threads);
    if (step_work(spec, batch) * steps < worth_releasing) {
      rf::forward(table, call);
    } else {
      call.interrupted = ask_python;
      run_interruptibly([&] { return rf::forward(table, call); });
    }
  }
};

// --- a pass over sequences ---

class Pass {
 public:
  Pass(const rf::Spec& spec, const py::object& weights, const py::array& x, const py::array& y, const py::object& h0,
       const py::object& c0, const py::array& hn, const py::object& cn, const py::object& lengths, double dropout,
       uint64_t seed, bool train, const std::string& isa, int threads, int64_t segments, const py::object& tape)
      : arrays_(py::make_tuple(weights, x, y, h0, c0, hn, cn, lengths, tape)), type_(numpy_dtype(spec.dtype)) {
    if (x.ndim() != 3) throw py::value_error("x has the wrong rank");
    call_.spec = spec;
    call_.steps = x.shape(0);
    call_.batch = x.shape(1);
    call_.x = view<const void>(x, "x", type_, {steps(), batch(), spec.input_size});
    call_.y = view<void>(y, "y", type_, {steps(), batch(), width()});
    call_.h0 = input(h0, "h0", type_, state());
    call_.hn = output(hn, "hn", type_, state());
    if (rf::has_c(spec.cell)) {
      call_.c0 = input(c0, "c0", type_, state());
      call_.cn = output(cn, "cn", type_, state());
    }
    call_.dropout = dropout;
    call_.seed = seed;
    call_.threads = threads_or_default(threads);
    call_.interrupted = ask_python;
    call_.segments = segments;
    set_weights(weights, isa);
    set_lengths(lengths);
    if (train) set_tape(tape);
  }

  void forward() {
    if (!width()) return;
    run_interruptibly([&] { return rf::forward(*table_, call_); });
  }

  void backward(const py::object& grad_y, const py::object& grad_hn, const py::object& grad_cn,
                const py::object& grad_x, const py::object& grad_h0, const py::object& grad_c0,
                const py::sequence& grad_weights, const py::object& per_step, int threads) const {
    if (!call_.tape) throw py::value_error("this pass kept no tape");
    const auto weights = per_cell<rf::WeightGradients>(call_.spec, grad_weights, output);
    const auto steps_out = per_step_pointers(per_step);
    rf::Backward back;
    back.pass = &call_;
    back.grad_y = view<const void>(grad_y, "grad_y", type_, {steps(), batch(), width()});
    back.grad_hn = input(grad_hn, "grad_hn", type_, state());
    back.grad_cn = input(grad_cn, "grad_cn", type_, state());
    back.grad_x = view<void>(grad_x, "grad_x", type_, {steps(), batch(), call_.spec.input_size});
    back.grad_h0 = output(grad_h0, "grad_h0", type_, state());
    back.grad_c0 = output(grad_c0, "grad_c0", type_, state());
    back.grad_weights = weights.data();
    back.per_step = steps_out.empty() ? nullptr : steps_out.data();
    back.threads = threads_or_default(threads);
    if (!width()) return;
    back.interrupted = ask_python;
    run_interruptibly([&] { return rf::backward(*table_, back); });
  }

  size_t tape_nbytes() const { return tape_.size(); }

 private:
  int64_t steps() const { return call_.steps; }
  int64_t batch() const { return call_.batch; }
  int64_t width() const { return call_.spec.num_directions * call_.spec.hidden_size; }
  int64_t cells() const { return call_.spec.num_layers * call_.spec.num_directions; }
  Shape state() const { return {cells(), batch(), call_.spec.hidden_size}; }

  void set_weights(const py::object& weights, const std::string& isa) {
    if (py::isinstance<Packed>(weights)) {
      const auto& packed = weights.cast<const Packed&>();
      if (!same(packed.spec, call_.spec)) throw py::value_error("the weights were packed for another layer");
      table_ = &packed.table;
      call_.packed = packed.bytes.data();
    } else {
      table_ = &table_named(isa);
      weights_ = per_cell<rf::Weights>(call_.spec, weights.cast<py::sequence>(), input);
      call_.weights = weights_.data();
    }
  }

  void set_tape(const py::object& given) {
    const size_t bytes = width() ? rf::tape_bytes(*table_, call_) : 0;
    if (given.is_none() || !bytes) {  // an empty array may lie anywhere
      tape_.allocate(bytes);
      call_.tape = tape_.data();
    } else {
      const auto size = static_cast<int64_t>(py::len(given));
      call_.tape = output(given, "tape", py::dtype::of<uint8_t>(), {size});
      if (static_cast<size_t>(size) < bytes) throw py::value_error("the tape is too small");
    }
  }

  void set_lengths(const py::object& lengths) {
    if (lengths.is_none()) return;
    call_.lengths = static_cast<const int64_t*>(input(lengths, "lengths", py::dtype::of<int64_t>(), {batch()}));
    for (int64_t b = 0; b < batch(); ++b)
      if (call_.lengths[b] < 0 || call_.lengths[b] > steps()) throw py::value_error("lengths must be within 0..T");
  }

  std::vector<void*> per_step_pointers(const py::object& per_step) const {
    std::vector<void*> pointers;
    if (per_step.is_none()) return pointers;
    for (py::handle a : per_step.cast<py::sequence>())
      pointers.push_back(output(a, "per_step", type_, {steps(), batch(), call_.spec.hidden_size}));
    if (static_cast<int64_t>(pointers.size()) != cells()) throw py::value_error("per_step has the wrong length");
    return pointers;
  }

  rf::Forward call_;
  const rf::KernelTable* table_ = nullptr;
  std::vector<rf::Weights> weights_;
  rf::Memory tape_;
  py::tuple arrays_;  // keeps alive what call_ points into
  py::dtype type_;
};

size_t tape_nbytes(const rf::Spec& spec, int64_t steps, int64_t batch, const std::string& isa) {
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
  Stream(const rf::Spec& spec, const py::object& packed, const py::array& h, const py::object& c)
      : objects_(py::make_tuple(packed, h, c)), type_(numpy_dtype(spec.dtype)) {
    const auto& weights = packed.cast<const Packed&>();
    if (!same(weights.spec, spec)) throw py::value_error("the weights were packed for another layer");
    if (spec.num_directions != 1) throw py::value_error("a bidirectional layer has no stream");
    if (h.ndim() != 3) throw py::value_error("h has the wrong rank");
    call_.spec = spec;
    call_.steps = 1;
    call_.batch = h.shape(1);
    call_.packed = weights.bytes.data();
    const Shape state(spec.num_layers, batch(), spec.hidden_size);
    call_.h0 = call_.hn = output(h, "h", type_, state);
    if (rf::has_c(spec.cell)) {
      call_.cn = output(c, "c", type_, state);
      call_.c0 = call_.cn;
    }
    entry_ = &weights.table.entry[static_cast<int>(spec.cell)][static_cast<int>(spec.dtype)];
    const size_t item = static_cast<size_t>(type_.itemsize());
    x_copy_.allocate(static_cast<size_t>(batch() * spec.input_size) * item);
    call_.x.stride_b = spec.input_size;
    call_.y.stride_b = spec.hidden_size;
    work_ = step_work(spec, batch());
    set_threads(1);
  }

  py::object step(py::handle x, py::handle out, int threads) {
    const Running running(busy_);
    set_threads(work_ < worth_sharing ? 1 : threads_or_default(threads));
    const int ndim = set_input(x);
    py::object y = out.is_none() ? new_output(ndim) : checked_output(out, ndim);
    avoid_overlap();
    run();
    return y;
  }

 private:
  // Two threads inside one stream would tear its state; this turns that mistake into an exception.
  struct Running {
    std::atomic_flag& flag;
    explicit Running(std::atomic_flag& f) : flag(f) {
      if (flag.test_and_set(std::memory_order_acquire))
        throw std::runtime_error(
            "this stream is inside step() in another thread; give each thread a stream of its own");
    }
    ~Running() { flag.clear(std::memory_order_release); }
  };

  // Below this work of a step, about 1 us, no second thread can help, and asking the environment how many there may be
  // would cost a sixth of it.
  static constexpr int64_t worth_sharing = 1 << 15;

  int64_t batch() const { return call_.batch; }
  size_t input_bytes() const { return x_copy_.size(); }

  void set_threads(int threads) {
    if (threads == call_.threads && scratch_.data()) return;
    call_.threads = threads;
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
    const Py_intptr_t shape[] = {batch(), call_.spec.hidden_size};
    const auto& numpy = npy_api::get();
    PyObject* array = numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, py::dtype(type_).release().ptr(), ndim,
                                                  shape + (2 - ndim), nullptr, nullptr, 0, nullptr);
    if (!array) throw py::error_already_set();
    call_.y.data = py::detail::array_proxy(array)->data;
    return py::reinterpret_steal<py::object>(array);
  }

  py::object checked_output(py::handle object, int ndim) {
    py::array out = array_named("out", object, call_.spec.hidden_size);
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
    const size_t y_bytes = static_cast<size_t>(batch() * call_.spec.hidden_size * type_.itemsize());
    if (x >= y + y_bytes || y >= x + input_bytes()) return;
    std::memcpy(x_copy_.data(), x, input_bytes());
    call_.x.data = x_copy_.data();
  }

  void run() {
    if (!call_.spec.hidden_size) return;
    if (work_ < worth_releasing) {
      entry_->forward(call_, scratch_.data());
    } else {
      py::gil_scoped_release unlocked;
      entry_->forward(call_, scratch_.data());
    }
  }

  rf::Forward call_;
  const rf::KernelTable::Entry* entry_ = nullptr;
  rf::Memory scratch_, x_copy_;
  int64_t work_ = 0;
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
  py::tuple objects_;  // keeps alive the weights and the state
  py::dtype type_;
};

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

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  using namespace py::literals;

  py::class_<rf::Spec>(m, "Spec").def(py::init(&make_spec), "cell"_a, "activation"_a, "dtype"_a, "input_size"_a,
                                      "hidden_size"_a, "num_layers"_a, "num_directions"_a);

  py::class_<Packed>(m, "Packed")
      .def(py::init<const rf::Spec&, const py::sequence&, const std::string&>(), "spec"_a, "weights"_a, "isa"_a)
      .def_property_readonly("isa", [](const Packed& p) { return p.table.isa; })
      .def_property_readonly("nbytes", [](const Packed& p) { return p.bytes.size(); })
      .def("run", &Packed::run, "steps"_a, "batch"_a, "x"_a, "x_strides"_a, "y"_a, "y_strides"_a, "h0"_a, "c0"_a, "hn"_a,
           "cn"_a, "lengths"_a, "threads"_a);

  py::class_<Pass>(m, "Pass")
      .def(py::init<const rf::Spec&, const py::object&, const py::array&, const py::array&, const py::object&,
                    const py::object&, const py::array&, const py::object&, const py::object&, double, uint64_t, bool,
                    const std::string&, int, int64_t, const py::object&>(),
           "spec"_a, "weights"_a, "x"_a, "y"_a, "h0"_a, "c0"_a, "hn"_a, "cn"_a, "lengths"_a, "dropout"_a, "seed"_a,
           "train"_a, "isa"_a, "threads"_a, "segments"_a = 0, "tape"_a = py::none())
      .def("forward", &Pass::forward)
      .def("backward", &Pass::backward, "grad_y"_a, "grad_hn"_a, "grad_cn"_a, "grad_x"_a, "grad_h0"_a, "grad_c0"_a,
           "grad_weights"_a, "per_step"_a, "threads"_a)
      .def_property_readonly("tape_nbytes", &Pass::tape_nbytes);

  py::class_<Stream>(m, "Stream")
      .def(py::init<const rf::Spec&, const py::object&, const py::array&, const py::object&>(), "spec"_a, "packed"_a,
           "h"_a, "c"_a)
      .def("step", &Stream::step, "x"_a, "out"_a, "threads"_a);

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
  m.def("config", &config);
}
