// The backward pass: time is walked once for dh and dc; all else is a product over a block of steps.
//
// At each step, from the last to the first (s counts in the direction of the scan):
//   d_h    = (sum over units and gates of da(s+1) * U + direct part) + d_output(s)
//   da(s)  = the cell's backward
// Then for the block: d_W += da^T x, d_U += da^T h_prev, each the sum of one chain over the block's steps descending
// and batch ascending; d_b += da, in chains of 16 rows; and d_x = da W, a sum over units and gates in the order of
// `accumulate_units`.
#pragma once

#include "layout.h"
#include "options.h"
#include "plan.h"

namespace rnnfast {
namespace {

// One layer and direction as the time loop sees it.
template <class T> struct BackwardLayer {
  Sizes n;
  bool reverse, relu, top;
  Rows<const T> x, y;              // what the forward pass read and wrote
  const T *h0, *c0;                // [B, S] and [B, H], or null
  const T* saved;                  // [panel][row][saved][lane]: of all rows, or of those of the segment
  const Moments<T> (*moments)[3];  // as the tape's, with layer normalization
  Range numbers;                   // the rows that `saved` has
  const T* c_start;                // [panel][B][lane]: c before the segment; null: c0
  Rows<const T> d_y;               // data null: zeros
  const T *d_hn, *d_cn;            // [B, S] and [B, H], or null
  Rows<T> d_x;                     // data null: not wanted
  T *d_h0, *d_c0;                  // [B, S] and [B, H], or null
  const Weights* weights;
  const WeightGradients* gradients;  // null: not wanted
  T* per_step;                       // [T, B, S] or null
  Options<T> options;
  bool plain;  // nothing but the cell happens to a row
};

// Scratch of one direction, sized for the largest layer and used by layer after layer.
template <class C, class T> struct BackwardScratch {
  static constexpr int64_t width = lanes<T>;
  static constexpr int ln_columns = 2 * C::gates + (C::has_c ? 2 : 0);
  T *w = nullptr,
    *u = nullptr;          // transposed weights: [panel of inputs][unit][gate][lane]; u as in Packed where it is split
  T* hr = nullptr;         // [panel of H][unit of S][lane]
  T* peepholes = nullptr;  // [panel][3][lane]
  T *d_w = nullptr, *d_u = nullptr;    // [panel][k][gate][lane]; d_u split like u
  T* d_hr = nullptr;                   // [panel of S][k < H][lane]
  T* d_bias = nullptr;                 // [panel][column][lane]
  T* d_peephole = nullptr;             // [panel][3][lane]
  T* d_h = nullptr;                    // [B][panel of S][lane]
  T* d_c = nullptr;                    // [panel][B][lane]
  T *d_h0 = nullptr, *d_c0 = nullptr;  // the same: what resets to the initial state give it
  T* d_operand = nullptr;              // [B][panel of S][lane]: by what entered U
  T* d_reset = nullptr;                // [B][panel][lane]: by r * h
  T* d_unprojected = nullptr;          // [B][panel][lane]: by o * tanh(c)
  T* da = nullptr;                     // [panel][row of the block][column][lane]
  T* d_output = nullptr;               // [panel of S][row of the block][lane]: by h, before the projection
  T* d_peephole_row = nullptr;         // [panel][row of the block][3][lane]
  T *x = nullptr, *h_prev = nullptr;   // [tile of inputs][row of the block][height of the tile]
  T *reset_h = nullptr, *m = nullptr;  // the same for the operands r * h of U_n, and o * tanh(c) of W_hr
  T *ln_ih = nullptr, *ln_hh = nullptr, *ln_c = nullptr;  // as in Packed
  T *d_sum_x = nullptr, *d_sum_h = nullptr;               // as da: by W x and by U h
  T* d_normalized_c = nullptr;                            // [panel][B][lane]
  T* d_ln_row = nullptr;  // [panel][row of the block][ln_columns][lane]: rows' shares of
  T* d_ln = nullptr;      // [panel][ln_columns][lane], the gradients of ln_ih, ln_hh, ln_c
  T* line = nullptr;      // for each thread, a row of the operand that is being packed
  T* zeros = nullptr;     // [max(S, H)]
  struct Row {
    int64_t t, b, number;
    const T *h_before, *c_before;  // the state that it started from: [unit], and [panel][lane] with a stride
    int64_t c_stride;
  };
  Row* rows = nullptr;     // of the block, in the order of processing
  char* packed = nullptr;  // memory for `weights`
  Packed<C, T> weights;    // to compute a segment again
  T* saved = nullptr;      // of a segment
  const T **x_rows = nullptr, **h_rows = nullptr;
  static constexpr int64_t chunk = 48;  // rows at a time
  T* chunk_sums = nullptr;              // [2: over x, over h][panel][row of the chunk][gate][lane]

  BackwardScratch() = default;
  RNNFAST_ONCE BackwardScratch(Arena& arena, const Forward& pass, int64_t block_rows, bool rebuilds, int64_t threads) {
    const Spec& spec = pass.spec;
    const Sizes n = largest_sizes<T>(spec);
    const int64_t gates = C::gates, batch = pass.batch;
    w = arena.take<T>(panels_of<T>(n.inputs) * n.units * gates * width);
    u = arena.take<T>(n.output_panels * n.units * gates * width);
    d_w = arena.take<T>(n.panels * n.inputs * gates * width);
    d_u = arena.take<T>(n.panels * n.outputs * gates * width);
    d_bias = arena.take<T>(n.panels * C::columns * width);
    d_h = arena.take<T>(n.output_panels * batch * width);
    d_c = arena.take<T>(C::has_c ? n.panels * batch * width : 0);
    da = arena.take<T>(n.panels * block_rows * C::columns * width);
    x = take_operand<full_rows<C::gates>>(arena, n.inputs, block_rows);
    const bool splits = C::gates == 3 && resets_before(spec);
    h_prev = splits ? take_operand<full_rows<2>>(arena, n.outputs, block_rows)
                    : take_operand<full_rows<C::gates>>(arena, n.outputs, block_rows);
    zeros = arena.take<T>(max(n.outputs, n.units));
    rows = arena.take<Row>(block_rows);
    take_options(arena, pass, n, block_rows, threads);
    if (!rebuilds) return;
    packed = arena.take<char>(packed_bytes(spec));
    const int64_t segment_rows = segment_steps(pass) * batch;
    saved = arena.take<T>(n.panels * segment_rows * saved_values<C>(spec, is_general(spec)) * width);
    chunk_sums = arena.take<T>(2 * n.panels * chunk * C::gates * width);
    x_rows = arena.take<const T*>(segment_rows);
    h_rows = arena.take<const T*>(segment_rows);
  }

 private:
  template <int Height> static T* take_operand(Arena& arena, int64_t size, int64_t block_rows) {
    return arena.take<T>(ceil_div(size, Height) * Height * block_rows);
  }

  RNNFAST_ONCE void take_options(Arena& arena, const Forward& pass, const Sizes& n, int64_t block_rows,
                                 int64_t threads) {
    const Spec& spec = pass.spec;
    const int64_t batch = pass.batch, outputs = n.output_panels * width, units = n.panels * width;
    const bool splits = C::gates == 3 && resets_before(spec), restarts = pass.reset && pass.reset_to_initial;
    d_h0 = arena.take<T>(restarts ? batch * outputs : 0);
    d_c0 = arena.take<T>(restarts && C::has_c ? batch * units : 0);
    d_operand = arena.take<T>(splits || pass.recurrent_masks ? batch * outputs : 0);
    line = arena.take<T>(threads * max(outputs, units));
    if (splits) {
      d_reset = arena.take<T>(batch * units);
      reset_h = take_operand<full_rows<1>>(arena, n.units, block_rows);
    }
    if (C::has_c && spec.peepholes) {
      peepholes = arena.take<T>(3 * units);
      d_peephole = arena.take<T>(3 * units);
      d_peephole_row = arena.take<T>(block_rows * 3 * units);
    }
    if (C::gates > 1 && spec.layer_norm) {
      d_sum_x = arena.take<T>(block_rows * C::columns * units);
      d_sum_h = arena.take<T>(block_rows * C::columns * units);
      ln_ih = arena.take<T>(C::gates * units);
      ln_hh = arena.take<T>(C::gates * units);
      ln_c = arena.take<T>(2 * units);
      d_normalized_c = arena.take<T>(C::has_c ? batch * units : 0);
      d_ln_row = arena.take<T>(block_rows * ln_columns * units);
      d_ln = arena.take<T>(ln_columns * units);
    }
    if (C::has_c && spec.proj_size) {
      hr = arena.take<T>(units * n.outputs);
      d_hr = arena.take<T>(outputs * n.units);
      d_unprojected = arena.take<T>(batch * units);
      d_output = arena.take<T>(block_rows * outputs);
      m = take_operand<full_rows<1>>(arena, n.units, block_rows);
    }
  }

  static int64_t packed_bytes(const Spec& spec) {
    int64_t most = 0;
    for (int64_t l = 0; l < spec.num_layers; ++l) {
      Arena arena(nullptr);
      Packed<C, T>(arena, spec, sizes_of<T>(spec, l));
      most = max(most, static_cast<int64_t>(arena.used()));
    }
    return most;
  }
};

template <class C, class T> class BackwardPass {
 public:
  RNNFAST_ONCE BackwardPass(const Backward& call, void* scratch)
      : call_(call),
        pass_(*call.pass),
        spec_(pass_.spec),
        arena_(scratch),
        schedule_(arena_, pass_),
        general_(is_general(pass_.spec)),
        tape_(pass_, schedule_.total(), general_),
        lowest_(lowest()),
        interrupt_(call.interrupted) {
    const int64_t directions = spec_.num_directions, sequence_rows = pass_.steps * pass_.batch;
    const Sizes most = largest_sizes<T>(spec_);
    threads_ = useful_threads(call.threads, pass_, kernel);
    block_ = min(backward_block(pass_.batch), max(1, pass_.steps));
    block_rows_ = block_ * pass_.batch;
    meetings_ = arena_.template take<Meeting>(meetings_for(threads_));
    out_rows_ = arena_.template take<T*>(threads_ * apart(block_rows_));
    for (int64_t d = 0; d < directions; ++d) scratch_[d] = Scratch(arena_, pass_, block_rows_, rebuilds(), threads_);
    if (directions == 2 && (spec_.num_layers > 1 || call.grad_x.data))
      d_x_reverse_ = arena_.template take<T>(sequence_rows * most.inputs);
    int64_t between = 0, masked = 0;
    for (int64_t l = 0; l < spec_.num_layers; ++l) {
      if (l > 0) between = max(between, inputs_of(spec_, l));
      if (has_input_masks(pass_, l)) masked = max(masked, inputs_of(spec_, l));
    }
    for (int64_t l = 1; l < min(spec_.num_layers, 3); ++l)
      d_between_[l % 2] = arena_.template take<T>(sequence_rows * between);
    if (masked) masked_ = arena_.template take<T>(sequence_rows * masked);
  }

  size_t scratch_bytes() const { return arena_.used(); }

  // False: interrupted.
  bool run() {
    schedule_.build();
    for (int64_t j = 0; j < meetings_for(threads_); ++j) meetings_[j] = Meeting();
    const Crew crew = crew_now(call_.threads, threads_, pass_, kernel);
    parallel(
        crew.threads, [](void* self, int id, int count) { static_cast<BackwardPass*>(self)->thread(id, count); }, this);
    return !interrupt_.happened();
  }

 private:
  static constexpr int64_t width = lanes<T>, da_row = C::columns * width;
  static constexpr Kernel kernel{vector_bytes, lanes<T>};
  using V = vec<T>;
  using Layer = BackwardLayer<T>;
  using Scratch = BackwardScratch<C, T>;
  using Row = typename Scratch::Row;

  // --- layers, from the top ---

  void thread(int id, int count) {
    Flush flush;
    const Team team = make_team(meetings_, id, count, spec_.num_directions);
    for (int64_t l = spec_.num_layers - 1; l >= lowest_; --l) {
      const Range steps = share(pass_.steps, id, count);
      if (has_input_masks(pass_, l)) {
        apply_input_masks(pass_, schedule_, l, input(l), masked(l), steps);
        meetings_->barrier.wait(count);
      }
      for (int64_t d = team.directions.first; d < team.directions.last; ++d)
        run_layer(make_layer(l, d), l, d, team, id);
      meetings_->barrier.wait(count);
      if (!d_input(l).data) continue;
      if (spec_.num_directions == 2) add_reverse(l, steps);
      if (has_input_masks(pass_, l)) apply_input_masks(pass_, schedule_, l, read_only(d_input(l)), d_input(l), steps);
      meetings_->barrier.wait(count);
    }
  }

  Rows<const T> input(int64_t l) const { return l == 0 ? rows_of<T>(pass_.x) : read_only(tape_.output(l - 1)); }
  Rows<T> masked(int64_t l) const { return contiguous(masked_, pass_.batch, inputs_of(spec_, l)); }

  static bool wanted(const WeightGradients& g) {
    return g.weight_ih || g.weight_hh || g.bias_ih || g.bias_hh || g.weight_hr || g.weight_ch || g.weight_ln_ih ||
           g.weight_ln_hh || g.weight_ln_c || g.bias_ln_c;
  }

  // The lowest layer that a gradient is asked of: what lies below it is not walked.
  int64_t lowest() const {
    if (call_.grad_x.data || call_.grad_h0 || call_.grad_c0 || call_.per_step) return 0;
    const int64_t count = spec_.num_layers * spec_.num_directions;
    int64_t number = call_.grad_weights ? 0 : count;
    while (number < count && !wanted(call_.grad_weights[number])) ++number;
    return number / spec_.num_directions;
  }

  // The gradient by the input of layer l, which is the gradient by the output of the layer below.
  Rows<T> d_input(int64_t l) const {
    if (l == 0) return rows_of<T>(call_.grad_x);
    if (l == lowest_) return {};
    return contiguous(d_between_[l % 2], pass_.batch, inputs_of(spec_, l));
  }

  Rows<T> d_input(int64_t l, int64_t d) const {
    if (d == 0 || !d_input(l).data) return d_input(l);
    return contiguous(d_x_reverse_, pass_.batch, inputs_of(spec_, l));
  }

  RNNFAST_NOINLINE void add_reverse(int64_t l, Range steps) const {
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

  RNNFAST_ONCE Layer make_layer(int64_t l, int64_t d) const {
    const int64_t number = l * spec_.num_directions + d;
    Layer layer;
    layer.n = sizes_of<T>(spec_, l);
    layer.reverse = d == 1;
    layer.relu = spec_.activations[d].gate.function == Function::relu;
    layer.top = l + 1 == spec_.num_layers;
    layer.x = has_input_masks(pass_, l) ? read_only(masked(l)) : input(l);
    layer.y = read_only(layer.top ? rows_of<T>(pass_.y) : tape_.output(l));
    layer.y.data += d * layer.n.outputs;
    layer.h0 = state_of<T>(pass_.h0, pass_, l, d, outputs_of);
    layer.c0 = state_of<T>(pass_.c0, pass_, l, d, units_of);
    layer.saved = tape_.saved(l, d);
    layer.moments = normalizes() ? tape_.moments(l, d) : nullptr;
    layer.numbers = {0, schedule_.total()};
    layer.c_start = nullptr;
    layer.d_y = layer.top ? rows_of<T>(call_.grad_y) : read_only(d_input(l + 1));
    if (layer.d_y.data) layer.d_y.data += d * layer.n.outputs;
    layer.d_hn = state_of<T>(call_.grad_hn, pass_, l, d, outputs_of);
    layer.d_cn = state_of<T>(call_.grad_cn, pass_, l, d, units_of);
    layer.d_x = d_input(l, d);
    layer.d_h0 = state_of<T>(call_.grad_h0, pass_, l, d, outputs_of);
    layer.d_c0 = state_of<T>(call_.grad_c0, pass_, l, d, units_of);
    layer.weights = pass_.weights + number;
    layer.gradients = call_.grad_weights && wanted(call_.grad_weights[number]) ? call_.grad_weights + number : nullptr;
    layer.per_step = call_.per_step ? static_cast<T*>(call_.per_step[number]) : nullptr;
    layer.options = Options<T>(pass_, l, d, general_, saved_values<C>(spec_, general_));
    layer.plain = !layer.options.general && !projects() && !(pass_.carry && layer.top) && !(call_.grad_clip > 0);
    return layer;
  }

  // --- one layer and direction ---

  void run_layer(Layer layer, int64_t l, int64_t d, const Team& team, int id) {
    Scratch scratch = scratch_[d];
    scratch.line += id * max(layer.n.output_panels, layer.n.panels) * width;
    if (rebuilds()) {
      Arena packed(scratch.packed);
      scratch.weights = Packed<C, T>(packed, spec_, layer.n);
    }
    T** out_rows = out_rows_ + id * apart(block_rows_);
    const Part part = make_part(team, extent_of<C, T>(pass_, layer.n), Division::recurrence);
    prepare(layer, scratch, team, part);
    const int64_t steps = pass_.batch ? pass_.steps : 0;
    if (layer.gradients && steps == 0) weight_products(scratch, layer, team, 0, false);  // zeros: no block writes them
    team.wait();
    for (int64_t last = steps, first; last > 0; last = first) {
      const int64_t above = (spec_.num_layers - 1 - l) * spec_.num_directions + d;
      if (interrupt_.stops(*team.meeting, team.rank == 0, id == 0, (above + 1) * pass_.steps - last)) break;
      first = block_start(last);
      if (rebuilds() && (last == pass_.steps || last % segment_steps(pass_) == 0)) {
        rebuild(layer, tape_.boundary(l, d, (last - 1) / segment_steps(pass_)), scratch, team, last);
        team.wait();
      }
      const Range numbers = schedule_.numbers(steps_between(layer, first, last));
      const int64_t count = numbers.size();
      list_block(layer, scratch, numbers, share(last - first, team.rank, team.size), first);
      team.wait();
      for (int64_t s = last - 1; s >= first; --s) step(layer, scratch, part, numbers, s, out_rows);
      team.wait();
      if (layer.gradients && few_rows()) {
        if constexpr (!kept_small<T>) products_of_few(layer, scratch, team, count, const_cast<const T**>(out_rows));
      } else if (layer.gradients) {
        pack_operands(layer, scratch, team, count);
        team.wait();
        weight_products(scratch, layer, team, count, last < steps);
      }
      if (layer.d_x.data) input_products(layer, scratch, share(count, team.rank, team.size), out_rows);
      team.wait();
    }
    finish(layer, scratch, team, part);
    team.wait();
  }

  // The steps that are taken together with step `last - 1`. Segments, where there are any, are whole blocks.
  int64_t block_start(int64_t last) const { return (last - 1) / block_ * block_; }

  int64_t time_of(const Layer& layer, int64_t s) const { return layer.reverse ? pass_.steps - 1 - s : s; }
  Range steps_between(const Layer& layer, int64_t first, int64_t last) const {
    return layer.reverse ? Range{pass_.steps - last, pass_.steps - first} : Range{first, last};
  }

  // Where a step's rows begin among those of the block, which have these numbers.
  static int64_t place_in_block(const Layer& layer, Range numbers, const StepRows& rows) {
    return layer.reverse ? rows.first - numbers.first : numbers.last - rows.first - rows.count;
  }

  // A share of the block's steps, counted from its first one.
  RNNFAST_NOINLINE void list_block(const Layer& layer, const Scratch& scratch, Range numbers, Range steps,
                                   int64_t first) const {
    for (int64_t s = first + steps.first; s < first + steps.last; ++s) {
      const int64_t t = time_of(layer, s);
      const StepRows rows = schedule_.rows(t);
      Row* to = scratch.rows + place_in_block(layer, numbers, rows);
      for (int64_t r = 0; r < rows.count; ++r) to[r] = row_of(layer, scratch, t, rows.batch(r), rows.first + r);
    }
  }

  Row row_of(const Layer& layer, const Scratch& scratch, int64_t t, int64_t b, int64_t number) const {
    const Start start = schedule_.start(number, layer.reverse);
    const bool initial = start == Start::initial;
    Row row{t, b, number, initial && layer.h0 ? layer.h0 + b * layer.n.outputs : scratch.zeros, scratch.zeros, 0};
    if (start == Start::previous) {
      const int64_t before = schedule_.before(number, layer.reverse);
      row.h_before = layer.y.at(schedule_.time_before(number, t, layer.reverse), b);
      if (!C::has_c) return row;
      const bool on_tape = before >= layer.numbers.first && before < layer.numbers.last;
      row.c_before =
          on_tape ? saved_at(layer, 0, before) + (layer.options.saved - 1) * width : layer.c_start + b * width;
      row.c_stride = on_tape ? layer.numbers.size() * layer.options.saved * width : pass_.batch * width;
    } else if (initial && C::has_c && layer.c0) {
      row.c_before = layer.c0 + b * layer.n.units, row.c_stride = width;
    }
    return row;
  }

  // --- recomputation: the gates of a segment, from x and the known h, as one product ---

  // Options of some of the cells; the others need no code for them.
  bool projects() const { return C::has_c && spec_.proj_size > 0; }
  bool has_peepholes() const { return C::has_c && spec_.peepholes; }
  bool normalizes() const { return C::gates > 1 && spec_.layer_norm; }
  bool splits() const { return C::gates == 3 && resets_before(spec_); }

  bool rebuilds() const { return pass_.segments > 0 && saved_values<C>(spec_, general_) > 0; }

  void rebuild(Layer& layer, const T* c_start, const Scratch& scratch, const Team& team, int64_t last) const {
    const int64_t first = (last - 1) / segment_steps(pass_) * segment_steps(pass_);
    const Range steps = steps_between(layer, first, last);
    layer.numbers = schedule_.numbers(steps);
    layer.saved = scratch.saved;
    layer.c_start = c_start;
    if (team.rank == 0) list_rows(layer, scratch, steps);
    team.wait();
    const Range own = share(layer.n.panels, team.rank, team.size);
    for (int64_t row = 0; row < layer.numbers.size(); row += Scratch::chunk)
      rebuild_columns(layer, scratch, own, {row, min(row + Scratch::chunk, layer.numbers.size())});
    for (int64_t p = own.first; p < own.last; ++p)
      for (int64_t s = first; s < last; ++s) rebuild_step(layer, scratch, p, time_of(layer, s));
  }

  // Leaves the columns of some rows where the saved values will be.
  void rebuild_columns(const Layer& layer, const Scratch& s, Range panels, Range rows) const {
    const int64_t stride = Scratch::chunk * C::gates * width, half = layer.n.panels * stride;
    const Packed<C, T>& weights = s.weights;
    weights.multiply_x(s.x_rows + rows.first, rows.size(), panels, s.chunk_sums, stride, panels);
    weights.multiply_h(s.h_rows + rows.first, rows.size(), panels, s.chunk_sums + half, stride, panels);
    for (int64_t p = panels.first; p < panels.last; ++p)
      for (int64_t row = 0; row < rows.size(); ++row) {
        const T* x = s.chunk_sums + p * stride + row * C::gates * width;
        V h[C::gates], a[C::columns];
        RNNFAST_UNROLL_FOR (int g = 0; g < C::gates; ++g) h[g] = load(x + half + g * width);
        weights.join(x, h, p, a);
        T* out = s.saved + (p * layer.numbers.size() + rows.first + row) * layer.options.saved * width;
        RNNFAST_UNROLL_FOR (int g = 0; g < C::columns; ++g) store<T>(out + g * width, a[g]);
      }
  }

  RNNFAST_NOINLINE void list_rows(const Layer& layer, const Scratch& scratch, Range steps) const {
    for (int64_t t = steps.first; t < steps.last; ++t) {
      const StepRows rows = schedule_.rows(t);
      for (int64_t r = 0; r < rows.count; ++r) {
        const int64_t at = rows.first + r - layer.numbers.first, b = rows.batch(r);
        scratch.x_rows[at] = layer.x.at(t, b);
        scratch.h_rows[at] = row_of(layer, scratch, t, b, rows.first + r).h_before;
      }
    }
  }

  void rebuild_step(const Layer& layer, const Scratch& scratch, int64_t p, int64_t t) const {
    const StepRows rows = schedule_.rows(t);
    for (int64_t r = 0; r < rows.count; ++r) {
      const Row row = row_of(layer, scratch, t, rows.batch(r), rows.first + r);
      const int64_t unit = p * width, valid = min(width, layer.n.units - unit);
      T* out =
          scratch.saved + (p * layer.numbers.size() + row.number - layer.numbers.first) * layer.options.saved * width;
      V a[C::columns], saved[C::saved_general], gates[C::gates];
      RNNFAST_UNROLL_FOR (int g = 0; g < C::columns; ++g) a[g] = load(out + g * width);
      const State<V> prev{projects() ? V{} : load_part(row.h_before + unit, valid), c_before(row, p, valid)};
      run_cell<C>(layer.options, scratch.peepholes, p, a, prev, layer.relu, saved, gates,
                  {(t * pass_.batch + row.b) * layer.n.units + unit, valid});
      for (int j = 0; j < layer.options.saved; ++j) store<T>(out + j * width, saved[j]);
    }
  }

  // --- the beginning and the end of a layer ---

  static const T* typed(const void* data) { return static_cast<const T*>(data); }
  static T* typed(void* data) { return static_cast<T*>(data); }

  // Transposed weights, and the gradients of the last state.
  RNNFAST_ONCE void prepare(const Layer& layer, const Scratch& s, const Team& team, const Part& part) const {
    const Sizes& n = layer.n;
    const Range own = share(n.panels, team.rank, team.size), outputs = share(n.output_panels, team.rank, team.size);
    if (rebuilds()) s.weights.fill(*layer.weights, team.rank, team.size);
    const T* weight_hh = typed(layer.weights->weight_hh);
    if (splits()) {
      pack_by_input(weight_hh, 2, n.units, n.outputs, s.u, outputs.first, outputs.last);
      pack_by_input(weight_hh + 2 * n.units * n.outputs, 1, n.units, n.outputs, u_n(layer, s.u), outputs.first,
                    outputs.last);
    } else if (!reads_straight()) {
      pack_by_input(weight_hh, C::gates, n.units, n.outputs, s.u, outputs.first, outputs.last);
    }
    if (layer.d_x.data && !reads_straight()) {
      const Range inputs = share(panels_of<T>(n.inputs), team.rank, team.size);
      pack_by_input(typed(layer.weights->weight_ih), C::gates, n.units, n.inputs, s.w, inputs.first, inputs.last);
    }
    if (projects()) pack_by_input(typed(layer.weights->weight_hr), 1, n.outputs, n.units, s.hr, own.first, own.last);
    if (has_peepholes()) pack_by_unit(typed(layer.weights->weight_ch), 3, n.units, 1, s.peepholes, own.first, own.last);
    if (normalizes()) pack_norms(layer, s, own);
    if (team.rank == 0)
      memset(static_cast<void*>(s.zeros), 0, static_cast<size_t>(max(n.outputs, n.units)) * sizeof(T));
    for (int64_t b = part.rows.first; b < part.rows.last; ++b) prepare_state(layer, s, part, b);
  }

  void pack_norms(const Layer& layer, const Scratch& s, Range own) const {
    Packed<C, T> norms;
    norms.n = layer.n;
    norms.ln_ih = s.ln_ih, norms.ln_hh = s.ln_hh, norms.ln_c = C::has_c ? s.ln_c : nullptr;
    norms.fill_norms(*layer.weights, own);
  }

  // The gradient by the final state goes to the sequence's last row, or to where a reset behind it says.
  RNNFAST_ONCE void prepare_state(const Layer& layer, const Scratch& s, const Part& part, int64_t b) const {
    const Sizes& n = layer.n;
    const Start from = schedule_.final_start(b, layer.reverse);
    const bool to_row = from == Start::previous || (from == Start::initial && schedule_.count(b) == 0);
    const bool to_initial = from == Start::initial && !to_row;
    for (int64_t p = part.outputs.first; p < part.outputs.last; ++p) {
      const int64_t unit = p * width, valid = min(width, n.outputs - unit);
      const V d = layer.d_hn ? load_part(layer.d_hn + b * n.outputs + unit, valid) : V{};
      store<T>(d_h_at(layer, s.d_h, b) + unit, to_row ? d : V{});
      if (restarts_from_initial()) store<T>(d_h_at(layer, s.d_h0, b) + unit, to_initial ? d : V{});
    }
    for (int64_t p = part.panels.first; C::has_c && p < part.panels.last; ++p) {
      const int64_t unit = p * width, valid = min(width, n.units - unit), at = (p * pass_.batch + b) * width;
      const V d = layer.d_cn ? load_part(layer.d_cn + b * n.units + unit, valid) : V{};
      store<T>(s.d_c + at, to_row ? d : V{});
      if (restarts_from_initial()) store<T>(s.d_c0 + at, to_initial ? d : V{});
    }
  }

  bool restarts_from_initial() const { return pass_.reset && pass_.reset_to_initial; }

  // The part of U, or of its gradient, that belongs to GRU's n where it is split.
  static T* u_n(const Layer& layer, T* u) { return u + layer.n.panels * layer.n.outputs * 2 * width; }

  RNNFAST_ONCE void finish(const Layer& layer, const Scratch& s, const Team& team, const Part& part) const {
    const Sizes& n = layer.n;
    for (int64_t b = part.rows.first; b < part.rows.last; ++b) {
      for (int64_t p = part.outputs.first; layer.d_h0 && p < part.outputs.last; ++p) {
        const int64_t unit = p * width;
        V d = load(d_h_at(layer, s.d_h, b) + unit);
        if (restarts_from_initial()) d += load(d_h_at(layer, s.d_h0, b) + unit);
        store_part(layer.d_h0 + b * n.outputs + unit, d, min(width, n.outputs - unit));
      }
      for (int64_t p = part.panels.first; C::has_c && layer.d_c0 && p < part.panels.last; ++p) {
        const int64_t unit = p * width, at = (p * pass_.batch + b) * width;
        V d = load(s.d_c + at);
        if (restarts_from_initial()) d += load(s.d_c0 + at);
        store_part(layer.d_c0 + b * n.units + unit, d, min(width, n.units - unit));
      }
    }
    if (layer.gradients) unpack_gradients(layer, s, team);
  }

  RNNFAST_ONCE void unpack_gradients(const Layer& layer, const Scratch& s, const Team& team) const {
    const Sizes& n = layer.n;
    const Range own = share(n.panels, team.rank, team.size), outputs = share(n.output_panels, team.rank, team.size);
    const WeightGradients& g = *layer.gradients;
    const auto unpack = [](const T* sums, int gates, int64_t units, int64_t k, void* out, int64_t at, Range panels) {
      if (out) unpack_by_unit(sums, gates, units, k, typed(out) + at, panels.first, panels.last);
    };
    if (!few_rows()) {
      unpack(s.d_w, C::gates, n.units, n.inputs, g.weight_ih, 0, own);
      unpack(s.d_u, splits() ? 2 : C::gates, n.units, n.outputs, g.weight_hh, 0, own);
    }
    if (splits()) unpack(u_n(layer, s.d_u), 1, n.units, n.outputs, g.weight_hh, 2 * n.units * n.outputs, own);
    unpack_columns<typename C::x_columns, C::columns>(s.d_bias, n.units, g.bias_ih, own);
    unpack_columns<typename C::h_columns, C::columns>(s.d_bias, n.units, g.bias_hh, own);
    if (projects()) unpack(s.d_hr, 1, n.outputs, n.units, g.weight_hr, 0, outputs);
    if (has_peepholes()) unpack_columns<InOrder<3>, 3>(s.d_peephole, n.units, g.weight_ch, own);
    if (!normalizes()) return;
    constexpr int gates = C::gates, columns = Scratch::ln_columns;
    unpack_columns<InOrder<gates>, columns>(s.d_ln, n.units, g.weight_ln_ih, own);
    unpack_columns<InOrder<gates>, columns>(s.d_ln + gates * width, n.units, g.weight_ln_hh, own);
    if (!C::has_c) return;
    unpack_columns<InOrder<1>, columns>(s.d_ln + 2 * gates * width, n.units, g.weight_ln_c, own);
    unpack_columns<InOrder<1>, columns>(s.d_ln + (2 * gates + 1) * width, n.units, g.bias_ln_c, own);
  }

  template <class Map, int ColumnCount>
  static void unpack_columns(const T* sums, int64_t units, void* out, Range panels) {
    if (!out) return;
    for (int64_t p = panels.first; p < panels.last; ++p)
      for (int g = 0; g < Map::count; ++g)
        store_part(typed(out) + g * units + p * width, load(sums + (p * ColumnCount + Map::at(g)) * width),
                   min(width, units - p * width));
  }

  // --- one step: da of all rows, then their product with U, which is the step before's d_h ---

  void step(const Layer& layer, const Scratch& scratch, const Part& part, Range numbers, int64_t s,
            T** out_rows) const {
    const int64_t t = time_of(layer, s);
    const StepRows all = schedule_.rows(t), own = schedule_.rows(t, part.rows.first, part.rows.last);
    const int64_t base = place_in_block(layer, numbers, all) + own.first - all.first;
    const Range rows{base, base + own.count};  // this part's, in the block
    if (projects()) unproject(layer, scratch, part, rows, out_rows);
    if (normalizes()) {
      cells_normalized(layer, scratch, part, rows);
    } else if (layer.plain) {
      apply_cells(layer, scratch, part.panels, rows, all.count, numbers.size());
    } else {
      for (int64_t p = part.panels.first; p < part.panels.last; ++p)
        for (int64_t k = rows.first; k < rows.last; ++k) apply_cell_with_options(layer, scratch, p, k);
    }
    part.wait();
    if (s > 0 || layer.d_h0 || splits()) {  // where it is split, the product gives r its gradient too
      if (splits() || layer.options.recurrent_mask)
        operand_product(layer, scratch, part, rows, out_rows);
      else if (reads_straight())
        straight_product(layer, scratch, true, rows, part.outputs, out_rows);
      else
        hidden_product<typename C::h_columns>(layer, scratch, scratch.d_h, scratch.u, d_products(scratch, true), part,
                                              rows, out_rows, true);
    }
    if (schedule_.restarts(t, layer.reverse)) cut(layer, scratch, part, rows);
  }

  // The gradients by the products over x and over h: da, but for layer normalization.
  const T* d_products(const Scratch& s, bool of_h) const {
    return normalizes() ? (of_h ? s.d_sum_h : s.d_sum_x) : s.da;
  }

  // out[B][panel][lane] = the rows of da, of which the columns of Map are taken, times U; added to it where `add`.
  template <class Map>
  void hidden_product(const Layer& layer, const Scratch& s, T* out, const T* u, const T* da, const Part& part,
                      Range rows, T** out_rows, bool add) const {
    for (int64_t k = rows.first; k < rows.last; ++k) out_rows[k - rows.first] = d_h_at(layer, out, s.rows[k].b);
    const UnitSums<Map, T> sums{
        da + rows.first * da_row,      u,  block_rows_ * da_row, da_row, layer.n.units, out_rows,
        layer.n.output_panels * width, add};
    sums.run(rows.size(), part.outputs);
  }

  // The same by way of what entered U, where that is not h itself.
  void operand_product(const Layer& layer, const Scratch& s, const Part& part, Range rows, T** out_rows) const {
    bool add = false;
    if constexpr (C::gates == 3) {
      if (splits()) {
        hidden_product<Columns<0>>(layer, s, s.d_reset, u_n(layer, s.u), s.da + 3 * width, part, rows, out_rows, false);
        for (int64_t p = part.panels.first; p < part.panels.last; ++p)
          for (int64_t k = rows.first; k < rows.last; ++k) apply_reset(layer, s, p, k);
        part.wait();
        hidden_product<Columns<0, 1>>(layer, s, s.d_operand, s.u, s.da, part, rows, out_rows, true);
        add = true;
      }
    }
    if (!add)
      hidden_product<typename C::h_columns>(layer, s, s.d_operand, s.u, d_products(s, true), part, rows, out_rows,
                                            false);
    const T* mask = layer.options.recurrent_mask;
    for (int64_t p = part.outputs.first; p < part.outputs.last; ++p)
      for (int64_t k = rows.first; k < rows.last; ++k) {
        const int64_t b = s.rows[k].b, unit = p * width, valid = min(width, layer.n.outputs - unit);
        T* d_h = d_h_at(layer, s.d_h, b) + unit;
        const V d = load(d_h_at(layer, s.d_operand, b) + unit);
        store<T>(d_h, load(d_h) + (mask ? d * load_part(mask + b * layer.n.outputs + unit, valid) : d));
      }
  }

  // GRU with the reset gate before the product: da of r, and r's share of the gradient by the operand.
  void apply_reset(const Layer& layer, const Scratch& s, int64_t p, int64_t k) const {
    const Row& row = s.rows[k];
    const int64_t unit = p * width, valid = min(width, layer.n.units - unit);
    const T* mask = layer.options.recurrent_mask;
    V h = load_part(row.h_before + unit, valid), d_a_r, d_h;
    if (mask) h *= load_part(mask + row.b * layer.n.outputs + unit, valid);
    C::backward_reset(load(saved_at(layer, p, row.number)), h, load(d_h_at(layer, s.d_reset, row.b) + unit),
                      layer.options.unit(nullptr), &d_a_r, &d_h);
    store<T>(da_at(s, p, k), d_a_r);
    store<T>(d_h_at(layer, s.d_operand, row.b) + unit, d_h);
  }

  // Rows that a reset cut off give their gradient to the initial state, or to nothing.
  void cut(const Layer& layer, const Scratch& s, const Part& part, Range rows) const {
    for (int64_t k = rows.first; k < rows.last; ++k) {
      const int64_t b = s.rows[k].b, number = s.rows[k].number;
      if (!schedule_.is_cut(number, layer.reverse)) continue;
      const Start start = schedule_.start(number, layer.reverse);
      for (int64_t p = part.outputs.first; p < part.outputs.last; ++p)
        move(d_h_at(layer, s.d_h, b) + p * width, start, d_h_at(layer, s.d_h0, b) + p * width);
      for (int64_t p = part.panels.first; C::has_c && p < part.panels.last; ++p) {
        const int64_t at = (p * pass_.batch + b) * width;
        move(s.d_c + at, start, s.d_c0 + at);
      }
    }
  }
  static void move(T* from, Start start, T* to) {
    if (start == Start::initial) store<T>(to, load(to) + load(from));
    store<T>(from, V{});
  }

  // Projection: the gradient by h of every row, and its product with W_hr, the gradient by o * tanh(c).
  void unproject(const Layer& layer, const Scratch& s, const Part& part, Range rows, T** out_rows) const {
    for (int64_t p = part.outputs.first; p < part.outputs.last; ++p)
      for (int64_t k = rows.first; k < rows.last; ++k) {
        const int64_t unit = p * width, valid = min(width, layer.n.outputs - unit);
        T* d_h = d_h_at(layer, s.d_h, s.rows[k].b) + unit;
        store<T>(s.d_output + (p * block_rows_ + k) * width, total_d_h(layer, load(d_h), s.rows[k], unit, valid));
        store<T>(d_h, V{});
      }
    part.wait();
    for (int64_t k = rows.first; k < rows.last; ++k) out_rows[k - rows.first] = unprojected_at(layer, s, s.rows[k].b);
    const UnitSums<Columns<0>, T> sums{
        s.d_output + rows.first * width, s.hr, block_rows_ * width, width, layer.n.outputs, out_rows,
        layer.n.panels * width,          false};
    sums.run(rows.size(), part.panels);
  }

  // In d_h, d_h0, d_operand or d_reset.
  static T* d_h_at(const Layer& layer, T* d_h, int64_t b) { return d_h + b * layer.n.output_panels * width; }
  static T* unprojected_at(const Layer& layer, const Scratch& s, int64_t b) {
    return s.d_unprojected + b * layer.n.panels * width;
  }
  T* da_at(const Scratch& s, int64_t p, int64_t row) const { return s.da + (p * block_rows_ + row) * da_row; }

  static V c_before(const Row& row, int64_t p, int64_t valid) {
    return C::has_c ? load_part(row.c_before + p * row.c_stride, valid) : V{};
  }

  const T* saved_at(const Layer& layer, int64_t p, int64_t number) const {
    return layer.saved + (p * layer.numbers.size() + number - layer.numbers.first) * layer.options.saved * width;
  }

  // What apply_cell will read of a row. A panel's lines are far apart in the arrays, and nothing fetches them ahead. Of
  // arrays that do not begin with a line of memory, a panel's values may be in two, the first of which the panel
  // before, where there is one, has read.
  RNNFAST_INLINE void prefetch_cell(const Layer& layer, const Row& row, int64_t p) const {
    const int64_t end = (p + 1) * width - 1;
    if (layer.d_y.data) __builtin_prefetch(layer.d_y.at(row.t, row.b) + end);
    if (C::backward_needs_h) __builtin_prefetch(layer.y.at(row.t, row.b) + end);
    if (C::backward_needs_h_prev) __builtin_prefetch(row.h_before + end);
    if (C::has_c) __builtin_prefetch(row.c_before + p * row.c_stride);
    const T* saved = saved_at(layer, p, row.number);
    RNNFAST_UNROLL_FOR (int j = 0; j < C::saved; ++j) __builtin_prefetch(saved + j * width);
  }

  // Prefetched are the same rows of the next panel; behind the last, the first panel of the step after, whose rows have
  // the next places in the block.
  RNNFAST_HOT void apply_cells(const Layer& layer, const Scratch& scratch, Range panels, Range rows, int64_t step_rows,
                               int64_t block_rows) const {
    for (int64_t p = panels.first; p < panels.last; ++p) {
      const bool last = p + 1 == panels.last;
      const int64_t next = last ? panels.first : p + 1, ahead = last ? step_rows : 0;
      for (int64_t k = rows.first; k < rows.last; ++k) {
        if (!kept_small<T> && k + ahead < block_rows) prefetch_cell(layer, scratch.rows[k + ahead], next);
        apply_cell(layer, scratch, p, k);
      }
    }
  }

  RNNFAST_INLINE void apply_cell(const Layer& layer, const Scratch& scratch, int64_t p, int64_t k) const {
    const Row& row = scratch.rows[k];
    const int64_t b = row.b, unit = p * width, valid = min(width, layer.n.units - unit);
    const int64_t at = (p * pass_.batch + b) * width;
    T* d_h = d_h_at(layer, scratch.d_h, b) + unit;
    State<V> d{load(d_h), C::has_c ? load(scratch.d_c + at) : V{}};
    if (layer.d_y.data) d.h += load_part(layer.d_y.at(row.t, b) + unit, valid);
    if (layer.per_step) store_part(layer.per_step + (row.t * pass_.batch + b) * layer.n.units + unit, d.h, valid);

    V saved[C::saved ? C::saved : 1], da[C::columns];
    const T* from = saved_at(layer, p, row.number);
    RNNFAST_UNROLL_FOR (int j = 0; j < C::saved; ++j) saved[j] = load(from + j * width);
    const V h = C::backward_needs_h ? load_part(layer.y.at(row.t, b) + unit, valid) : V{};
    const State<V> prev{C::backward_needs_h_prev ? load_part(row.h_before + unit, valid) : V{},
                        c_before(row, p, valid)};
    const State<V> direct = C::backward(saved, h, prev, d, layer.relu, da);

    T* out = da_at(scratch, p, k);
    RNNFAST_UNROLL_FOR (int g = 0; g < C::columns; ++g) store<T>(out + g * width, da[g]);
    store<T>(d_h, direct.h);
    if (C::has_c) store<T>(scratch.d_c + at, direct.c);
  }

  // The total gradient by h, of which `d_h` comes from the step after.
  V total_d_h(const Layer& layer, V d_h, const Row& row, int64_t unit, int64_t valid) const {
    const int64_t t = row.t, b = row.b;
    if (layer.d_y.data) {
      d_h += load_part(layer.d_y.at(t, b) + unit, valid);
      // The outputs that repeat this one.
      const int64_t step = layer.reverse ? -1 : 1;
      if (pass_.carry && layer.top)
        for (int64_t s = t + step; s >= 0 && s < pass_.steps && !schedule_.takes_part(s, b); s += step)
          d_h += load_part(layer.d_y.at(s, b) + unit, valid);
    }
    if (call_.grad_clip > 0) d_h = clamp(d_h, static_cast<T>(-call_.grad_clip), static_cast<T>(call_.grad_clip));
    if (layer.per_step) store_part(layer.per_step + (t * pass_.batch + b) * layer.n.outputs + unit, d_h, valid);
    return d_h;
  }

  RNNFAST_NOINLINE void apply_cell_with_options(const Layer& layer, const Scratch& scratch, int64_t p,
                                                int64_t k) const {
    const Row& row = scratch.rows[k];
    const int64_t t = row.t, b = row.b, unit = p * width, valid = min(width, layer.n.units - unit);
    const int64_t at = (p * pass_.batch + b) * width;
    const bool projects = this->projects();
    T* d_h = projects ? nullptr : d_h_at(layer, scratch.d_h, b) + unit;
    const State<V> d{
        projects ? load(unprojected_at(layer, scratch, b) + unit) : total_d_h(layer, load(d_h), row, unit, valid),
        C::has_c ? load(scratch.d_c + at) : V{}};
    V saved[C::saved_general] = {}, da[C::columns], d_peepholes[3];
    for (int j = 0; j < layer.options.saved; ++j) saved[j] = load(saved_at(layer, p, row.number) + j * width);
    const V h = C::backward_needs_h ? load_part(layer.y.at(t, b) + unit, valid) : V{};
    const State<V> prev{projects ? V{} : load_part(row.h_before + unit, valid), c_before(row, p, valid)};
    const State<V> direct = run_cell_backward<C>(layer.options, scratch.peepholes, p, saved, h, prev, d, layer.relu, da,
                                                 d_peepholes, {(t * pass_.batch + b) * layer.n.units + unit, valid});
    T* out = da_at(scratch, p, k);
    for (int g = 0; g < C::columns; ++g) store<T>(out + g * width, da[g]);
    if (!projects) store<T>(d_h, direct.h);
    if (C::has_c) store<T>(scratch.d_c + at, direct.c);
    for (int g = 0; has_peepholes() && g < 3; ++g)
      store<T>(scratch.d_peephole_row + ((p * block_rows_ + k) * 3 + g) * width, d_peepholes[g]);
  }

  // --- layer normalization ---

  void cells_normalized(const Layer& layer, const Scratch& s, const Part& part, Range rows) const {
    if (C::has_c) {
      for (int64_t k = rows.first; k < rows.last; ++k) output_backward(layer, s, part, k);
      part.wait();
    }
    for (int64_t k = rows.first; k < rows.last; ++k) cell_backward(layer, s, part, k);
    part.wait();
    for (int64_t k = rows.first; k < rows.last; ++k) sums_backward(layer, s, part, k);
  }

  // The cell's own saved values; the normalized sums of the gates stand before them, over x and then over h.
  const T* values_at(const Layer& layer, int64_t p, int64_t number) const {
    return saved_at(layer, p, number) + 2 * C::gates * width;
  }
  V normalized_c(const Layer& layer, int64_t p, int64_t number) const {
    return layer.moments[number][2].normalized(load(values_at(layer, p, number) + (C::saved_general - 1) * width));
  }
  static V shifted_c(const Scratch& s, int64_t p, V normalized) {
    return fma(load(s.ln_c + p * 2 * width), normalized, load(s.ln_c + (p * 2 + 1) * width));
  }

  // LSTM: from h = o * tanh(scale * v + shift) to the gradient by v, the normalized c.
  void output_backward(const Layer& layer, const Scratch& s, const Part& part, int64_t k) const {
    const Row& row = s.rows[k];
    const int64_t b = row.b, number = row.number;
    const Unit<T> unit_of_layer = layer.options.unit(nullptr);
    for (int64_t p = part.panels.first; p < part.panels.last; ++p) {
      const int64_t unit = p * width, valid = min(width, layer.n.units - unit);
      T* d_h = d_h_at(layer, s.d_h, b) + unit;
      const V d = total_d_h(layer, load(d_h), row, unit, valid);
      store<T>(d_h, d);
      const V v = normalized_c(layer, p, number);
      const V o = unit_of_layer.value(unit_of_layer.gate, load(values_at(layer, p, number) + (C::gates - 1) * width));
      const V d_shifted = d * o * unit_of_layer.slope(unit_of_layer.output, shifted_c(s, p, v));
      store<T>(s.d_normalized_c + (p * pass_.batch + b) * width, d_shifted * load(s.ln_c + p * 2 * width));
      T* shares = ln_row_at(s, p, k) + 2 * C::gates * width;
      store<T>(shares, d_shifted * v);
      store<T>(shares + width, d_shifted);
    }
  }

  void cell_backward(const Layer& layer, const Scratch& s, const Part& part, int64_t k) const {
    const Row& row = s.rows[k];
    const int64_t b = row.b, number = row.number;
    const Unit<T> unit_of_layer = layer.options.unit(nullptr);
    MomentsGradient<T> of_c{};
    if (C::has_c) {
      const T* d = s.d_normalized_c + b * width;
      const int64_t stride = pass_.batch * width;
      of_c = means(
          layer.n.panels, 1, layer.n.units, [=](int64_t p, int) { return load(d + p * stride); },
          [&](int64_t p, int) { return normalized_c(layer, p, number); });
    }
    for (int64_t p = part.panels.first; p < part.panels.last; ++p) {
      const int64_t unit = p * width, valid = min(width, layer.n.units - unit), at = (p * pass_.batch + b) * width;
      V saved[C::saved_general], da[C::columns];
      for (int j = 0; j < C::saved_general; ++j) saved[j] = load(values_at(layer, p, number) + j * width);
      T* d_h = d_h_at(layer, s.d_h, b) + unit;
      State<V> d{}, prev{load_part(row.h_before + unit, valid), c_before(row, p, valid)};
      if (C::has_c)
        d.c = load(s.d_c + at) + of_c.by_value(load(s.d_normalized_c + at), normalized_c(layer, p, number),
                                               layer.moments[number][2].inverse);
      else
        d.h = total_d_h(layer, load(d_h), row, unit, valid);
      const State<V> direct = C::backward_general(saved, prev, d, unit_of_layer, da, nullptr);
      if (C::has_c)  // o, whose share of h has no part in the above
        da[C::columns - 1] =
            load(d_h) * unit_of_layer.value(unit_of_layer.output, shifted_c(s, p, normalized_c(layer, p, number))) *
            unit_of_layer.slope(unit_of_layer.gate, saved[C::gates - 1]);
      for (int g = 0; g < C::columns; ++g) store<T>(da_at(s, p, k) + g * width, da[g]);
      store<T>(d_h, direct.h);
      if (C::has_c) store<T>(s.d_c + at, direct.c);
    }
  }

  // From the gradients by the columns to those by W x and U h before they were normalized.
  void sums_backward(const Layer& layer, const Scratch& s, const Part& part, int64_t k) const {
    const int64_t number = s.rows[k].number;
    const auto column = [](int g, int of_h) { return of_h ? C::h_columns::at(g) : C::x_columns::at(g); };
    const auto d_scaled = [&](int64_t p, int g, int of_h) { return load(da_at(s, p, k) + column(g, of_h) * width); };
    for (int of_h = 0; of_h < 2; ++of_h) {
      const T* scale = of_h ? s.ln_hh : s.ln_ih;
      const auto d = [&](int64_t p, int g) { return d_scaled(p, g, of_h) * load(scale + (p * C::gates + g) * width); };
      const auto v = [&](int64_t p, int g) {
        return load(saved_at(layer, p, number) + ((of_h ? C::gates : 0) + g) * width);
      };
      const MomentsGradient<T> gradient = means(layer.n.panels, C::gates, layer.n.units, d, v);
      for (int64_t p = part.panels.first; p < part.panels.last; ++p)
        for (int g = 0; g < C::gates; ++g) {
          T* to = (of_h ? s.d_sum_h : s.d_sum_x) + (p * block_rows_ + k) * da_row + column(g, of_h) * width;
          store<T>(to, gradient.by_value(d(p, g), v(p, g), layer.moments[number][of_h].inverse));
          store<T>(ln_row_at(s, p, k) + ((of_h ? C::gates : 0) + g) * width, d_scaled(p, g, of_h) * v(p, g));
        }
    }
  }

  template <class D, class Value>
  static MomentsGradient<T> means(int64_t panels, int columns, int64_t units, const D& d, const Value& v) {
    const T count = static_cast<T>(units * columns);
    const auto valid = [=](int64_t p, V terms) {
      return p + 1 < panels ? terms : first_lanes_of<T>(terms, units - p * width);
    };
    return {sum_of_row<T>(panels, columns, [&](int64_t p, int g) { return valid(p, d(p, g)); }) / count,
            sum_of_row<T>(panels, columns, [&](int64_t p, int g) { return valid(p, d(p, g) * v(p, g)); }) / count};
  }

  T* ln_row_at(const Scratch& s, int64_t p, int64_t block_row) const {
    return s.d_ln_row + (p * block_rows_ + block_row) * Scratch::ln_columns * width;
  }

  // --- products over a block of steps ---

  void input_products(const Layer& layer, const Scratch& scratch, Range rows, T** out_rows) const {
    const Range panels{0, panels_of<T>(layer.n.inputs)};
    if (reads_straight()) return straight_product(layer, scratch, false, rows, panels, out_rows);
    for (int64_t k = rows.first; k < rows.last; ++k)
      out_rows[k - rows.first] = layer.d_x.at(scratch.rows[k].t, scratch.rows[k].b);
    const T* da = d_products(scratch, false) + rows.first * da_row;
    const UnitSums<typename C::x_columns, T> sums{
        da, scratch.w, block_rows_ * da_row, da_row, layer.n.units, out_rows, layer.n.inputs, false};
    sums.run(rows.size(), panels);
  }

  // x and h_prev of the block as tiles of `height` inputs, row after row: what the weight products broadcast. Some rows
  // at a time, while the next ones are fetched, unless they are computed in the one line that there is for that.
  RNNFAST_NOINLINE void pack_operands(const Layer& layer, const Scratch& scratch, const Team& team,
                                      int64_t count) const {
    constexpr int64_t most = 4;
    const T *x[2 * most], *h[2 * most];
    const T* const mask = layer.options.recurrent_mask;
    const int64_t together = mask || splits() || projects() ? 1 : most;
    const Range own = share(count, team.rank, team.size);
    for (int64_t k = own.first; k < own.last; k += together) {
      const int64_t some = min(together, own.last - k);
      for (int64_t r = 0; r < 2 * some; ++r) {
        const Row& row = scratch.rows[min(k + r, own.last - 1)];
        x[r] = layer.x.at(row.t, row.b), h[r] = row.h_before;
      }
      if (layer.gradients->weight_ih) pack_rows<full_rows<C::gates>>(x, some, layer.n.inputs, scratch.x, k);
      if (!layer.gradients->weight_hh && !projects()) continue;
      const Row& row = scratch.rows[k];
      if (mask) {
        for (int64_t j = 0; j < layer.n.outputs; ++j) scratch.line[j] = h[0][j] * mask[row.b * layer.n.outputs + j];
        h[0] = scratch.line;
      }
      if (splits()) {
        pack_rows<full_rows<2>>(h, 1, layer.n.outputs, scratch.h_prev, k);
        h[0] = reset_line(layer, scratch, row, h[0]);
        pack_rows<full_rows<1>>(h, 1, layer.n.units, scratch.reset_h, k);
      } else {
        pack_rows<full_rows<C::gates>>(h, some, layer.n.outputs, scratch.h_prev, k);
      }
      if (!projects()) continue;
      h[0] = unprojected_line(layer, scratch, row);
      pack_rows<full_rows<1>>(h, 1, layer.n.units, scratch.m, k);
    }
  }

  // r * h, in place of h where that is the scratch line.
  RNNFAST_ONCE const T* reset_line(const Layer& layer, const Scratch& scratch, const Row& row, const T* h) const {
    if constexpr (C::gates == 3) {
      const Unit<T> unit = layer.options.unit(nullptr);
      for (int64_t p = 0; p < layer.n.panels; ++p) {
        const V part = load_part(h + p * width, min(width, layer.n.units - p * width));
        store<T>(scratch.line + p * width, C::reset(load(saved_at(layer, p, row.number)), part, unit));
      }
    }
    return scratch.line;
  }

  // o * tanh(c)
  RNNFAST_ONCE const T* unprojected_line(const Layer& layer, const Scratch& scratch, const Row& row) const {
    if constexpr (C::has_c) {
      const Unit<T> unit = layer.options.unit(nullptr);
      for (int64_t p = 0; p < layer.n.panels; ++p) {
        const T* saved = saved_at(layer, p, row.number);
        const V o = load(saved + 3 * width), c = load(saved + 4 * width);
        store<T>(scratch.line + p * width, layer.options.general ? C::output(o, c, unit) : o * tanh(c));
      }
    }
    return scratch.line;
  }

  // As many rows behind them are fetched meanwhile.
  template <int Height>
  RNNFAST_NOINLINE void pack_rows(const T* const* rows, int64_t count, int64_t size, T* packed, int64_t k) const {
    T* to = packed + k * Height;
    int64_t j = 0;
    for (; j + Height <= size; j += Height, to += block_rows_ * Height)
      for (int64_t r = 0; r < count; ++r) {
        memcpy(to + r * Height, rows[r] + j, Height * sizeof(T));
        __builtin_prefetch(rows[count + r] + j);
      }
    for (int64_t r = 0; r < count; ++r)
      for (int64_t i = 0; j + i < size; ++i) to[r * Height + i] = rows[r][j + i];
  }

  // Whether the weight gradients are one block's, and of so few rows that packing would take longer than the products.
  bool few_rows() const {
    constexpr int64_t most = registers == 32 ? 192 : 12;  // a block has as many; with AVX2 16 are slower
    const int64_t rows = pass_.steps * pass_.batch;
    return !kept_small<T> && rows > 0 && rows <= most && !splits() && !projects() && !pass_.recurrent_masks;
  }

  // And of how few rows the products by d_h and d_x take the weights as they are.
  bool reads_straight() const {
    constexpr int64_t most = 4;
    return few_rows() && pass_.steps * pass_.batch <= most;
  }

  RNNFAST_NOINLINE void straight_product(const Layer& layer, const Scratch& s, bool of_h, Range rows, Range panels,
                                         T** out_rows) const {
    int columns[C::gates];
    for (int g = 0; g < C::gates; ++g) columns[g] = of_h ? C::h_columns::at(g) : C::x_columns::at(g);
    for (int64_t k = rows.first; k < rows.last; ++k)
      out_rows[k - rows.first] = of_h ? d_h_at(layer, s.d_h, s.rows[k].b) : layer.d_x.at(s.rows[k].t, s.rows[k].b);
    StraightUnitSums<T>{d_products(s, of_h) + rows.first * da_row,
                        typed(of_h ? layer.weights->weight_hh : layer.weights->weight_ih),
                        block_rows_ * da_row,
                        da_row,
                        columns,
                        C::gates,
                        layer.n.units,
                        of_h ? layer.n.outputs : layer.n.inputs,
                        out_rows,
                        of_h}
        .run(rows.size(), panels);
  }

  RNNFAST_NOINLINE void products_of_few(const Layer& layer, const Scratch& s, const Team& team, int64_t count,
                                        const T** operand) const {
    const Sizes& n = layer.n;
    const Range own = share(n.panels, team.rank, team.size);
    for (int of_h = 0; of_h < 2; ++of_h) {
      void* const gradient = of_h ? layer.gradients->weight_hh : layer.gradients->weight_ih;
      const int64_t inputs = of_h ? n.outputs : n.inputs;
      for (int64_t k = 0; gradient && k < count; ++k)
        operand[k] = of_h ? s.rows[k].h_before : layer.x.at(s.rows[k].t, s.rows[k].b);
      for (int g = 0; gradient && g < C::gates; ++g) {
        const int column = of_h ? C::h_columns::at(g) : C::x_columns::at(g);
        OuterSums<T>{operand, d_products(s, of_h) + column * width,  block_rows_ * da_row, da_row, count, n.units,
                     inputs,  typed(gradient) + g * n.units * inputs}
            .run(own.first, own.last);
      }
    }
    add_biases(s, own, count, false);
  }

  // add: to the sums of the blocks before.
  void weight_products(const Scratch& s, const Layer& layer, const Team& team, int64_t count, bool add) const {
    const Sizes& n = layer.n;
    const T *d_x = d_products(s, false), *d_h = d_products(s, true);
    if (layer.gradients->weight_ih)
      weight_product<typename C::x_columns, C::columns>(s.x, d_x, n.inputs, n.panels, s.d_w, team, count, add);
    if (!splits() && layer.gradients->weight_hh)
      weight_product<typename C::h_columns, C::columns>(s.h_prev, d_h, n.outputs, n.panels, s.d_u, team, count, add);
    if constexpr (C::gates == 3) {
      if (splits() && layer.gradients->weight_hh) {
        T* d_u_n = u_n(layer, s.d_u);
        weight_product<Columns<0, 1>, C::columns>(s.h_prev, s.da, n.outputs, n.panels, s.d_u, team, count, add);
        weight_product<Columns<0>, C::columns>(s.reset_h, s.da + 3 * width, n.units, n.panels, d_u_n, team, count, add);
      }
    }
    if constexpr (C::has_c) {
      if (projects())
        weight_product<Columns<0>, 1>(s.m, s.d_output, n.units, n.output_panels, s.d_hr, team, count, add);
    }
    add_biases(s, share(n.panels, team.rank, team.size), count, add);
  }

  // What each unit has a few of.
  void add_biases(const Scratch& s, Range own, int64_t count, bool add) const {
    add_columns<C::columns>(s.da, s.d_bias, own, count, add);
    if (has_peepholes()) add_columns<3>(s.d_peephole_row, s.d_peephole, own, count, add);
    if (normalizes()) add_columns<Scratch::ln_columns>(s.d_ln_row, s.d_ln, own, count, add);
  }

  // sums[panel][column][lane] = the sum of the block's rows of [panel][row][column][lane], or added to what is there.
  template <int ColumnCount> void add_columns(const T* rows, T* sums, Range panels, int64_t count, bool add) const {
    for (int64_t p = panels.first; p < panels.last; ++p)
      for (int g = 0; g < ColumnCount; ++g) {
        V sum{};
        for (int64_t k = 0; k < count; k += 16) {  // short chains: these sums have many terms and few operations
          V part{};
          for (int64_t j = k; j < min(count, k + 16); ++j)
            part += load(rows + ((p * block_rows_ + j) * ColumnCount + g) * width);
          sum += part;
        }
        T* total = sums + (p * ColumnCount + g) * width;
        store<T>(total, add ? load(total) + sum : sum);
      }
  }

  template <class Map, int DaColumns>
  void weight_product(const T* operand, const T* da, int64_t inputs, int64_t panel_count, T* sums, const Team& team,
                      int64_t count, bool add) const {
    // Panels are shared out where that is even enough, else inputs.
    constexpr int64_t height = full_rows<Map::count>;
    const int64_t tiles = ceil_div(inputs, height);
    const bool by_panel = ceil_div(panel_count, team.size) * tiles <= panel_count * ceil_div(tiles, team.size);
    const Range panels = by_panel ? share(panel_count, team.rank, team.size) : Range{0, panel_count};
    const Range own = by_panel ? Range{0, tiles} : share(tiles, team.rank, team.size);
    const WeightSums<Map, DaColumns, T> product{
        operand, da, height * block_rows_, block_rows_ * DaColumns * width, inputs, count, sums, add};
    product.run(panels.first, panels.last, own.first, own.last);
  }

  const Backward& call_;
  const Forward& pass_;
  const Spec& spec_;
  Arena arena_;
  Schedule schedule_;
  bool general_;  // whether the cell's general form is needed
  Tape<C, T> tape_;
  int64_t lowest_;
  int64_t block_, block_rows_;
  int threads_;  // at most
  Meeting* meetings_;
  Interrupt interrupt_;
  T** out_rows_;  // for each thread
  Scratch scratch_[2];
  T *d_x_reverse_ = nullptr, *d_between_[2] = {}, *masked_ = nullptr;
};

}  // namespace
}  // namespace rnnfast
