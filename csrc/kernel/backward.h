// The backward pass: time is walked once for dh and dc; all else is a product over a block of steps.
//
// At each step, from the last to the first (s counts in the direction of the scan):
//   d_h    = (sum over units and gates of da(s+1) * U + direct part) + d_output(s)
//   da(s)  = the cell's backward
// Then for the block: d_W += da^T x, d_U += da^T h_prev, d_b += da, each the sum of one chain over the block's steps
// descending and batch ascending, and d_x = da W, a sum over units and gates in the order of `accumulate_units`.
#pragma once

#include "layout.h"
#include "plan.h"

namespace rnnfast {
namespace {

// One layer and direction as the time loop sees it.
template <class T> struct BackwardLayer {
  int64_t inputs, units;
  bool reverse;
  Rows<const T> x, y;    // what the forward pass read and wrote
  const T *h0, *c0;      // [B, H] or null
  const T* saved;        // [panel][row][saved][lane]: of all rows, or of those of the segment
  Range numbers;         // the rows that `saved` has
  const T* c_start;      // [panel][B][lane]: c before the segment; null: c0
  Rows<const T> d_y;     // data null: zeros
  const T *d_hn, *d_cn;  // [B, H] or null
  Rows<T> d_x;           // data null: not wanted
  T *d_h0, *d_c0;        // [B, H] or null
  const Weights* weights;
  const WeightGradients* gradients;  // null: not wanted
  T* per_step;                       // [T, B, H] or null
};

// Scratch of one direction, used by layer after layer.
template <class C, class T> struct BackwardScratch {
  static constexpr int64_t width = lanes<T>;
  static constexpr int height = full_rows<C::gates>;  // inputs side by side in a tile of the weight gradients
  T *w, *u;                                           // transposed weights: [panel of inputs][unit][gate][lane]
  T *d_w, *d_u;                                       // [panel][k][gate][lane]
  T* d_bias;                                          // [panel][column][lane]
  T* d_h;                                             // [B][panel][lane]
  T* d_c;                                             // [panel][B][lane]
  T* da;                                              // [panel][row of the block][column][lane]
  T *x, *h_prev;                                      // [tile of inputs][row of the block][height]
  T* zeros;                                           // [H]
  struct Row {
    int64_t t, b, number;
  };
  Row* rows;             // of the block, in the order of processing
  Packed<C, T> weights;  // to compute a segment again
  T* saved;              // of a segment
  const T **x_rows, **h_rows;

  BackwardScratch() = default;
  BackwardScratch(Arena& arena, int64_t inputs, int64_t units, int64_t batch, int64_t block_rows, bool rebuilds,
                  int64_t segment_rows) {
    const int64_t panels = panels_of<T>(units), gates = C::gates;
    w = arena.take<T>(panels_of<T>(inputs) * units * gates * width);
    u = arena.take<T>(panels * units * gates * width);
    d_w = arena.take<T>(panels * inputs * gates * width);
    d_u = arena.take<T>(panels * units * gates * width);
    d_bias = arena.take<T>(panels * C::columns * width);
    d_h = arena.take<T>(panels * batch * width);
    d_c = arena.take<T>(C::has_c ? panels * batch * width : 0);
    da = arena.take<T>(panels * block_rows * C::columns * width);
    x = arena.take<T>(ceil_div(inputs, height) * height * block_rows);
    h_prev = arena.take<T>(ceil_div(units, height) * height * block_rows);
    zeros = arena.take<T>(units);
    rows = arena.take<Row>(block_rows);
    if (!rebuilds) return;
    weights = Packed<C, T>(arena, inputs, units);
    saved = arena.take<T>(panels * segment_rows * C::saved * width);
    x_rows = arena.take<const T*>(segment_rows);
    h_rows = arena.take<const T*>(segment_rows);
  }
};

template <class C, class T> class BackwardPass {
 public:
  BackwardPass(const Backward& call, void* scratch)
      : call_(call),
        pass_(*call.pass),
        spec_(pass_.spec),
        arena_(scratch),
        schedule_(arena_, pass_),
        tape_(pass_, schedule_.total()),
        lowest_(lowest()),
        interrupt_(call.interrupted) {
    const int64_t units = spec_.hidden_size, directions = spec_.num_directions, widest = widest_input(spec_);
    panels_ = panels_of<T>(units);
    const int64_t products = 2 * C::gates * units * (spec_.input_size + units) * pass_.batch * directions;
    threads_ = useful_threads(call.threads, products, pass_.steps * spec_.num_layers);
    extent_ = {pass_.steps, pass_.batch, panels_, panels_ * C::gates * width * static_cast<int64_t>(sizeof(T))};
    block_ = min(backward_block(pass_.batch), max(1, pass_.steps));
    block_rows_ = block_ * pass_.batch;
    meetings_ = arena_.template take<Meeting>(meetings_for(threads_));
    out_rows_ = arena_.template take<T*>(threads_ * block_rows_);
    const int64_t segment_rows = segment_steps(pass_) * pass_.batch;
    for (int64_t d = 0; d < directions; ++d)
      scratch_[d] = Scratch(arena_, widest, units, pass_.batch, block_rows_, rebuilds(), segment_rows);
    if (directions == 2 && (spec_.num_layers > 1 || call.grad_x.data))
      d_x_reverse_ = arena_.template take<T>(pass_.steps * pass_.batch * widest);
    const int64_t output = pass_.steps * pass_.batch * directions * units;
    for (int64_t l = 1; l < min(spec_.num_layers, 3); ++l) d_between_[l % 2] = arena_.template take<T>(output);
    if (drops()) dropped_ = arena_.template take<T>(output);
  }

  size_t scratch_bytes() const { return arena_.used(); }

  // False: interrupted.
  bool run() {
    schedule_.build();
    for (int64_t j = 0; j < meetings_for(threads_); ++j) meetings_[j] = Meeting();
    parallel(
        threads_, [](void* self, int id, int count) { static_cast<BackwardPass*>(self)->thread(id, count); }, this);
    return !interrupt_.happened();
  }

 private:
  static constexpr int64_t width = lanes<T>;
  static constexpr int height = full_rows<C::gates>;
  using V = vec<T>;
  using Layer = BackwardLayer<T>;
  using Scratch = BackwardScratch<C, T>;

  bool drops() const { return pass_.dropout > 0 && spec_.num_layers > 1; }

  // --- layers, from the top ---

  void thread(int id, int count) {
    Flush flush;
    const Team team = make_team(meetings_, id, count, spec_.num_directions);
    for (int64_t l = spec_.num_layers - 1; l >= lowest_; --l) {
      const Range steps = share(pass_.steps, id, count);
      if (drops() && l > 0) {
        apply_dropout(pass_, schedule_, l - 1, read_only(tape_.output(l - 1)), dropped(), steps);
        meetings_->barrier.wait(count);
      }
      for (int64_t d = team.directions.first; d < team.directions.last; ++d)
        run_layer(make_layer(l, d), l, d, team, id);
      meetings_->barrier.wait(count);
      if (!d_input(l).data) continue;
      if (spec_.num_directions == 2) add_reverse(l, steps);
      if (drops() && l > 0) apply_dropout(pass_, schedule_, l - 1, read_only(d_input(l)), d_input(l), steps);
      meetings_->barrier.wait(count);
    }
  }

  static bool wanted(const WeightGradients& g) { return g.weight_ih || g.weight_hh || g.bias_ih || g.bias_hh; }

  // The lowest layer that a gradient is asked of: what lies below it is not walked.
  int64_t lowest() const {
    if (call_.grad_x.data || call_.grad_h0 || call_.grad_c0 || call_.per_step) return 0;
    const int64_t count = spec_.num_layers * spec_.num_directions;
    int64_t number = call_.grad_weights ? 0 : count;
    while (number < count && !wanted(call_.grad_weights[number])) ++number;
    return number / spec_.num_directions;
  }

  int64_t output_features() const { return spec_.num_directions * spec_.hidden_size; }
  Rows<T> dropped() const { return contiguous(dropped_, pass_.batch, output_features()); }

  // The gradient by the input of layer l, which is the gradient by the output of the layer below.
  Rows<T> d_input(int64_t l) const {
    if (l == 0) return rows_of<T>(call_.grad_x);
    if (l == lowest_) return {};
    return contiguous(d_between_[l % 2], pass_.batch, output_features());
  }

  Rows<T> d_input(int64_t l, int64_t d) const {
    if (d == 0 || !d_input(l).data) return d_input(l);
    return contiguous(d_x_reverse_, pass_.batch, inputs_of(spec_, l));
  }

  void add_reverse(int64_t l, Range steps) const {
    const Rows<T> sum = d_input(l), reverse = d_input(l, 1);
    for (int64_t t = steps.first; t < steps.last; ++t) {
      const StepRows rows = schedule_.rows(t);
      for (int64_t r = 0; r < rows.count; ++r) {
        T* to = sum.at(t, rows.batch(r));
        const T* from = reverse.at(t, rows.batch(r));
        for (int64_t j = 0; j < inputs_of(spec_, l); ++j) to[j] += from[j];
      }
    }
  }

  Layer make_layer(int64_t l, int64_t d) const {
    const int64_t number = l * spec_.num_directions + d, units = spec_.hidden_size;
    const bool top = l + 1 == spec_.num_layers;
    Layer layer;
    layer.inputs = inputs_of(spec_, l);
    layer.units = units;
    layer.reverse = d == 1;
    layer.x = l == 0 ? rows_of<T>(pass_.x) : read_only(drops() ? dropped() : tape_.output(l - 1));
    layer.y = read_only(top ? rows_of<T>(pass_.y) : tape_.output(l));
    layer.y.data += d * units;
    layer.h0 = state_of<T>(pass_.h0, pass_, number);
    layer.c0 = state_of<T>(pass_.c0, pass_, number);
    layer.saved = tape_.saved(l, d);
    layer.numbers = {0, schedule_.total()};
    layer.c_start = nullptr;
    layer.d_y = top ? rows_of<T>(call_.grad_y) : read_only(d_input(l + 1));
    if (layer.d_y.data) layer.d_y.data += d * units;
    layer.d_hn = state_of<T>(call_.grad_hn, pass_, number);
    layer.d_cn = state_of<T>(call_.grad_cn, pass_, number);
    layer.d_x = d_input(l, d);
    layer.d_h0 = state_of<T>(call_.grad_h0, pass_, number);
    layer.d_c0 = state_of<T>(call_.grad_c0, pass_, number);
    layer.weights = pass_.weights + number;
    layer.gradients = call_.grad_weights && wanted(call_.grad_weights[number]) ? call_.grad_weights + number : nullptr;
    layer.per_step = call_.per_step ? static_cast<T*>(call_.per_step[number]) : nullptr;
    return layer;
  }

  // --- one layer and direction ---

  void run_layer(Layer layer, int64_t l, int64_t d, const Team& team, int id) {
    Scratch scratch = scratch_[d];
    scratch.weights.inputs = layer.inputs;  // its memory is for the widest
    T** out_rows = out_rows_ + id * block_rows_;
    const int64_t weight_bytes = extent_.row_bytes * layer.units;
    const Part part = make_part(team, extent_, weight_bytes, full_rows<1>);
    prepare(layer, scratch, team, part);
    team.wait();
    for (int64_t last = pass_.batch ? pass_.steps : 0, first; last > 0; last = first) {
      const int64_t above = (spec_.num_layers - 1 - l) * spec_.num_directions + d;
      if (interrupt_.stops(*team.meeting, team.rank == 0, id == 0, (above + 1) * pass_.steps - last)) break;
      first = block_start(last);
      if (rebuilds() && (last == pass_.steps || last % segment_steps(pass_) == 0)) {
        rebuild(layer, tape_.boundary(l, d, (last - 1) / segment_steps(pass_)), scratch, team, last);
        team.wait();
      }
      int64_t done = 0;  // rows of the block
      for (int64_t s = last - 1; s >= first; --s) done += step(layer, scratch, team, part, s, done, out_rows);
      team.wait();
      if (layer.gradients) {
        pack_operands(layer, scratch, team, done);
        team.wait();
        weight_products(layer, scratch, team, done);
      }
      if (layer.d_x.data) input_products(layer, scratch, share(done, team.rank, team.size), out_rows);
      team.wait();
    }
    finish(layer, scratch, team, part);
    team.wait();
  }

  // The steps that are taken together with step `last - 1`. Segments, where there are any, are whole blocks.
  int64_t block_start(int64_t last) const { return (last - 1) / block_ * block_; }

  // --- recomputation: the gates of a segment, from x and the known h, as one product ---

  bool rebuilds() const { return C::saved > 0 && pass_.segments > 0; }

  void rebuild(Layer& layer, const T* c_start, const Scratch& scratch, const Team& team, int64_t last) const {
    const int64_t first = (last - 1) / segment_steps(pass_) * segment_steps(pass_);
    const Range steps = layer.reverse ? Range{pass_.steps - last, pass_.steps - first} : Range{first, last};
    layer.numbers = schedule_.numbers(steps);
    layer.saved = scratch.saved;
    layer.c_start = c_start;
    if (team.rank == 0) list_rows(layer, scratch, steps);
    team.wait();
    const Range own = share(panels_, team.rank, team.size);
    run_tiles<C::gates>(GateTiles{layer, scratch}, layer.numbers.size(), own.first, own.last);
    for (int64_t p = own.first; p < own.last; ++p)
      for (int64_t s = first; s < last; ++s) rebuild_step(layer, scratch, p, layer.reverse ? pass_.steps - 1 - s : s);
  }

  void list_rows(const Layer& layer, const Scratch& scratch, Range steps) const {
    for (int64_t t = steps.first; t < steps.last; ++t) {
      const StepRows rows = schedule_.rows(t);
      for (int64_t r = 0; r < rows.count; ++r) {
        const int64_t at = rows.first + r - layer.numbers.first, b = rows.batch(r);
        scratch.x_rows[at] = layer.x.at(t, b);
        scratch.h_rows[at] = h_before(layer, scratch, t, b, rows.first + r);
      }
    }
  }

  // Leaves the columns where the saved values will be.
  struct GateTiles {
    const Layer& layer;
    const Scratch& scratch;

    template <int R, int P> void tile(int64_t panel, int64_t row) const {
      V acc[R][P * C::gates], h_part[R][P * C::gates];
      const T *x[R], *h[R];
      RNNFAST_UNROLL_FOR (int r = 0; r < R; ++r) x[r] = scratch.x_rows[row + r], h[r] = scratch.h_rows[row + r];
      alignas(64) T sums[P][R * C::gates * width];
      T* x_part[P];
      RNNFAST_UNROLL_FOR (int p = 0; p < P; ++p) x_part[p] = sums[p];
      scratch.weights.template multiply_input<R, P>(acc, x, panel);
      scratch.weights.template store_sums<R, P>(acc, x_part);
      scratch.weights.template multiply_hidden<R, P>(acc, h, panel);
      RNNFAST_UNROLL_FOR (int r = 0; r < R; ++r)
        RNNFAST_UNROLL_FOR (int j = 0; j < P * C::gates; ++j) h_part[r][j] = acc[r][j];
      for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) {
          V a[C::columns];
          scratch.weights.join(sums[p] + r * C::gates * width, h_part[r] + p * C::gates, panel + p, a);
          T* out = scratch.saved + ((panel + p) * layer.numbers.size() + row + r) * C::saved * width;
          for (int g = 0; g < C::columns; ++g) store<T>(out + g * width, a[g]);
        }
    }
  };

  void rebuild_step(const Layer& layer, const Scratch& scratch, int64_t p, int64_t t) const {
    const StepRows rows = schedule_.rows(t);
    for (int64_t r = 0; r < rows.count; ++r) {
      const int64_t b = rows.batch(r), number = rows.first + r, valid = min(width, layer.units - p * width);
      T* out = scratch.saved + (p * layer.numbers.size() + number - layer.numbers.first) * C::saved * width;
      V a[C::columns], saved[C::saved ? C::saved : 1];
      RNNFAST_UNROLL_FOR (int g = 0; g < C::columns; ++g) a[g] = load(out + g * width);
      State<T> prev{};
      prev.h = load_part(h_before(layer, scratch, t, b, number) + p * width, valid);
      if (C::has_c) prev.c = c_before(layer, p, b, number, valid);
      C::forward(a, prev, Unit<T>{spec_.activation}, saved);
      RNNFAST_UNROLL_FOR (int j = 0; j < C::saved; ++j) store<T>(out + j * width, saved[j]);
    }
  }

  // --- the beginning and the end of a layer ---

  // Transposed weights, cleared sums, and the gradients of the last state.
  void prepare(const Layer& layer, const Scratch& s, const Team& team, const Part& part) const {
    const int64_t units = layer.units;
    const Range own = share(panels_, team.rank, team.size);
    if (rebuilds()) s.weights.fill(*layer.weights, own.first, own.last);
    pack_by_input(static_cast<const T*>(layer.weights->weight_hh), C::gates, units, units, s.u, own.first, own.last);
    if (layer.d_x.data) {
      const Range inputs = share(panels_of<T>(layer.inputs), team.rank, team.size);
      pack_by_input(static_cast<const T*>(layer.weights->weight_ih), C::gates, units, layer.inputs, s.w, inputs.first,
                    inputs.last);
    }
    clear(s.d_w, own, layer.inputs * C::gates * width);
    clear(s.d_u, own, units * C::gates * width);
    clear(s.d_bias, own, C::columns * width);
    if (team.rank == 0) clear(s.zeros, {0, 1}, units);
    for (int64_t p = part.panels.first; p < part.panels.last; ++p)
      for (int64_t b = part.rows.first; b < part.rows.last; ++b) {
        const int64_t unit = p * width, valid = min(width, units - unit), at = b * units + unit;
        const int64_t to = (p * pass_.batch + b) * width;
        store<T>(d_h_at(s, b) + unit, layer.d_hn ? load_n(layer.d_hn + at, valid) : V{});
        if (C::has_c) store<T>(s.d_c + to, layer.d_cn ? load_n(layer.d_cn + at, valid) : V{});
      }
  }

  static void clear(T* data, Range pieces, int64_t size) {
    memset(static_cast<void*>(data + pieces.first * size), 0, static_cast<size_t>(pieces.size() * size) * sizeof(T));
  }

  void finish(const Layer& layer, const Scratch& s, const Team& team, const Part& part) const {
    const int64_t units = layer.units;
    for (int64_t p = part.panels.first; p < part.panels.last; ++p)
      for (int64_t b = part.rows.first; b < part.rows.last; ++b) {
        const int64_t unit = p * width, valid = min(width, units - unit), at = b * units + unit;
        const int64_t from = (p * pass_.batch + b) * width;
        if (layer.d_h0) store_n(layer.d_h0 + at, load(d_h_at(s, b) + unit), valid);
        if (C::has_c && layer.d_c0) store_n(layer.d_c0 + at, load(s.d_c + from), valid);
      }
    if (!layer.gradients) return;
    const Range own = share(panels_, team.rank, team.size);
    const WeightGradients& g = *layer.gradients;
    T *d_w = static_cast<T*>(g.weight_ih), *d_u = static_cast<T*>(g.weight_hh);
    if (d_w) unpack_by_unit(s.d_w, C::gates, units, layer.inputs, d_w, own.first, own.last);
    if (d_u) unpack_by_unit(s.d_u, C::gates, units, units, d_u, own.first, own.last);
    if (g.bias_ih) unpack_bias<typename C::x_columns>(s.d_bias, units, static_cast<T*>(g.bias_ih), own);
    if (g.bias_hh) unpack_bias<typename C::h_columns>(s.d_bias, units, static_cast<T*>(g.bias_hh), own);
  }

  template <class Map> static void unpack_bias(const T* sums, int64_t units, T* out, Range panels) {
    for (int64_t p = panels.first; p < panels.last; ++p)
      for (int g = 0; g < C::gates; ++g)
        store_n(out + g * units + p * width, load(sums + (p * C::columns + Map::at(g)) * width),
                min(width, units - p * width));
  }

  // --- one step: da of all rows, then their product with U, which is the step before's d_h ---

  int64_t step(const Layer& layer, const Scratch& scratch, const Team& team, const Part& part, int64_t s, int64_t done,
               T** out_rows) const {
    const int64_t t = layer.reverse ? pass_.steps - 1 - s : s;
    const StepRows all = schedule_.rows(t), rows = schedule_.rows(t, part.rows.first, part.rows.last);
    const int64_t base = done + rows.first - all.first;  // this part's first row in the block
    if (team.rank == 0)
      for (int64_t r = 0; r < all.count; ++r) scratch.rows[done + r] = {t, all.batch(r), all.first + r};
    for (int64_t p = part.panels.first; p < part.panels.last; ++p)
      for (int64_t r = 0; r < rows.count; ++r) apply_cell(layer, scratch, rows, t, r, p, base + r);
    part.wait();
    if (s > 0 || layer.d_h0) {
      for (int64_t r = 0; r < rows.count; ++r) out_rows[r] = d_h_at(scratch, rows.batch(r));
      const UnitSums<typename C::h_columns, C::columns, T> sums{
          da_at(scratch, 0, base), scratch.u, da_stride(), layer.units, out_rows, panels_ * width, true};
      run_tiles<1>(sums, rows.count, part.panels.first, part.panels.last);
    }
    return all.count;
  }

  int64_t da_stride() const { return block_rows_ * C::columns * width; }
  T* d_h_at(const Scratch& s, int64_t b) const { return s.d_h + b * panels_ * width; }
  T* da_at(const Scratch& s, int64_t p, int64_t row) const {
    return s.da + (p * block_rows_ + row) * C::columns * width;
  }

  // The hidden state that a row started from.
  const T* h_before(const Layer& layer, const Scratch& s, int64_t t, int64_t b, int64_t number) const {
    if (schedule_.before(number, layer.reverse) >= 0) return layer.y.at(layer.reverse ? t + 1 : t - 1, b);
    return layer.h0 ? layer.h0 + b * layer.units : s.zeros;
  }

  V c_before(const Layer& layer, int64_t p, int64_t b, int64_t number, int64_t valid) const {
    const int64_t before = schedule_.before(number, layer.reverse);
    if (before >= layer.numbers.first && before < layer.numbers.last)
      return load(saved_at(layer, p, before) + (C::saved - 1) * width);
    if (layer.c_start) return load(layer.c_start + (p * pass_.batch + b) * width);
    return layer.c0 ? load_part(layer.c0 + b * layer.units + p * width, valid) : V{};
  }

  const T* saved_at(const Layer& layer, int64_t p, int64_t number) const {
    return layer.saved + (p * layer.numbers.size() + number - layer.numbers.first) * C::saved * width;
  }

  void apply_cell(const Layer& layer, const Scratch& scratch, const StepRows& rows, int64_t t, int64_t r, int64_t p,
                  int64_t block_row) const {
    const int64_t b = rows.batch(r), number = rows.first + r, unit = p * width;
    const int64_t valid = min(width, layer.units - unit), at = (p * pass_.batch + b) * width;
    State<T> d{load(d_h_at(scratch, b) + unit), C::has_c ? load(scratch.d_c + at) : V{}};
    if (layer.d_y.data) d.h += load_part(layer.d_y.at(t, b) + unit, valid);
    if (layer.per_step) store_part(layer.per_step + (t * pass_.batch + b) * layer.units + unit, d.h, valid);

    V saved[C::saved ? C::saved : 1], da[C::columns];
    RNNFAST_UNROLL_FOR (int j = 0; j < C::saved; ++j) saved[j] = load(saved_at(layer, p, number) + j * width);
    const V h = C::backward_needs_h ? load_part(layer.y.at(t, b) + unit, valid) : V{};
    State<T> prev{};
    if (C::backward_needs_h_prev) prev.h = load_part(h_before(layer, scratch, t, b, number) + unit, valid);
    if (C::has_c) prev.c = c_before(layer, p, b, number, valid);
    const State<T> direct = C::backward(saved, h, prev, d, Unit<T>{spec_.activation}, da);

    T* out = da_at(scratch, p, block_row);
    RNNFAST_UNROLL_FOR (int g = 0; g < C::columns; ++g) store<T>(out + g * width, da[g]);
    store<T>(d_h_at(scratch, b) + unit, direct.h);
    if (C::has_c) store<T>(scratch.d_c + at, direct.c);
  }

  // --- products over a block of steps ---

  void input_products(const Layer& layer, const Scratch& scratch, Range rows, T** out_rows) const {
    for (int64_t k = rows.first; k < rows.last; ++k)
      out_rows[k - rows.first] = layer.d_x.at(scratch.rows[k].t, scratch.rows[k].b);
    const UnitSums<typename C::x_columns, C::columns, T> sums{
        da_at(scratch, 0, rows.first), scratch.w, da_stride(), layer.units, out_rows, layer.inputs, false};
    run_tiles<1>(sums, rows.size(), 0, panels_of<T>(layer.inputs));
  }

  // x and h_prev of the block as tiles of `height` inputs, row after row: what the weight products broadcast.
  void pack_operands(const Layer& layer, const Scratch& scratch, const Team& team, int64_t count) const {
    const Range own = share(count, team.rank, team.size);
    for (int64_t k = own.first; k < own.last; ++k) {
      const typename Scratch::Row& row = scratch.rows[k];
      if (layer.gradients->weight_ih) pack_row(layer.x.at(row.t, row.b), layer.inputs, scratch.x, k);
      if (!layer.gradients->weight_hh) continue;
      pack_row(h_before(layer, scratch, row.t, row.b, row.number), layer.units, scratch.h_prev, k);
    }
  }

  void pack_row(const T* row, int64_t size, T* packed, int64_t k) const {
    for (int64_t j = 0; j < size; j += height) {
      T* to = packed + (j * block_rows_ + k * height);
      for (int64_t i = 0; i < min(height, size - j); ++i) to[i] = row[j + i];
    }
  }

  void weight_products(const Layer& layer, const Scratch& scratch, const Team& team, int64_t count) const {
    if (layer.gradients->weight_ih)
      weight_product<typename C::x_columns>(scratch, scratch.x, layer.inputs, scratch.d_w, team, count);
    if (layer.gradients->weight_hh)
      weight_product<typename C::h_columns>(scratch, scratch.h_prev, layer.units, scratch.d_u, team, count);
    const Range own = share(panels_, team.rank, team.size);
    for (int64_t p = own.first; p < own.last; ++p)
      for (int g = 0; g < C::columns; ++g) {
        V sum{};
        for (int64_t k = 0; k < count; k += 16) {  // short chains: these sums have many terms and few operations
          V part{};
          for (int64_t j = k; j < min(count, k + 16); ++j) part += load(da_at(scratch, p, j) + g * width);
          sum += part;
        }
        T* total = scratch.d_bias + (p * C::columns + g) * width;
        store<T>(total, load(total) + sum);
      }
  }

  template <class Map>
  void weight_product(const Scratch& scratch, const T* operand, int64_t inputs, T* sums, const Team& team,
                      int64_t count) const {
    // Panels are shared out where that is even enough, else inputs.
    const int64_t tiles = ceil_div(inputs, height);
    const bool by_panel = ceil_div(panels_, team.size) * tiles <= panels_ * ceil_div(tiles, team.size);
    const Range panels = by_panel ? share(panels_, team.rank, team.size) : Range{0, panels_};
    const Range own = by_panel ? Range{0, tiles} : share(tiles, team.rank, team.size);
    const WeightSums<Map, C::columns, T> product{
        operand, da_at(scratch, 0, 0), height * block_rows_, da_stride(), inputs, count, sums};
    product.run(panels.first, panels.last, own.first, own.last);
  }

  const Backward& call_;
  const Forward& pass_;
  const Spec& spec_;
  Arena arena_;
  Schedule schedule_;
  Tape<C, T> tape_;
  int64_t lowest_;
  Extent extent_;
  int64_t panels_, block_, block_rows_;
  int threads_;
  Meeting* meetings_;
  Interrupt interrupt_;
  T** out_rows_;  // for each thread
  Scratch scratch_[2];
  T *d_x_reverse_ = nullptr, *d_between_[2] = {}, *dropped_ = nullptr;
};

}  // namespace
}  // namespace rnnfast
