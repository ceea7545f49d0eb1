// The forward pass of a stack of layers: the time loop, with the cell's mathematics behind the product.
//
// A pre-activation is a sum over x, plus a sum over h, plus the bias. For a block of steps the sums over x are one
// product for all of them; a single step takes its own.
#pragma once

#include "layout.h"
#include "options.h"
#include "plan.h"

namespace rnnfast {
namespace {

// One layer and direction as the time loop sees it.
template <class C, class T> struct ForwardLayer {
  Sizes n;
  Packed<C, T> weights;
  bool reverse, relu;
  Rows<const T> x;
  Rows<T> y;
  const T *h0, *c0;  // [B, S] and [B, H], or null
  T *hn, *cn;
  T* h;        // [2][B][panel of S][lane], with gaps between parts: a step reads one half and writes the other
  T* operand;  // what enters U: h, or a copy of it times the recurrent mask
  T* c;        // [panel][row][lane], a region for each part
  T* x_part;   // [panel][row of the block][gate][lane], a region for each part
  T* saved;    // [panel][row][saved][lane], or null
  Moments<T> (*moments)[3];  // as the tape's, or null
  Options<T> options;
  int64_t layer, direction;
  bool shares_inputs;  // see ../cost.h
};

// Where a step finds and leaves what belongs to one of its rows.
template <class T> struct StepRow {
  const T* x;
  T* y;
  int64_t b;              // its sequence
  int64_t before, after;  // of its state before and after the step, in `h` and `operand` of the layer
};

template <class C, class T> class ForwardPass {
 public:
  ForwardPass(const Forward& pass, void* scratch)
      : pass_(pass),
        spec_(pass.spec),
        arena_(scratch, sizeof(ForwardPass)),
        schedule_(arena_, pass),
        general_(is_general(pass.spec)),
        tape_(pass, schedule_.total(), general_),
        interrupt_(pass.interrupted) {
    const int64_t batch = pass.batch;
    const Sizes most = largest_sizes<T>(spec_);
    threads_ = useful_threads(pass.threads, pass, kernel);
    // Layers side by side have a block each, so that it may be as large as one thread's.
    side_by_side_ = threads_ > 1 && can_divide_layers(pass) ? min(threads_, spec_.num_layers) : spec_.num_directions;
    block_ =
        forward_block(extent_of<C, T>(pass, most), most.inputs, side_by_side_ > spec_.num_directions ? 1 : threads_);
    has_x_part_ = block_ > 1 || splits() || normalizes();
    meetings_ = arena_.template take<Meeting>(meetings_for(threads_));
    gaps_ = (threads_ - 1) * row_gap * width;
    h_ = arena_.template take<T>(side_by_side_ * 2 * rows_size(most.output_panels));
    c_ = arena_.template take<T>(C::has_c ? side_by_side_ * rows_size(most.panels) : 0);
    step_rows_ = arena_.template take<StepRow<T>>(threads_ * apart(batch));
    if (has_x_part_) {
      x_part_size_ = block_ * batch * most.panels * C::gates * width;
      x_part_ = arena_.template take<T>(side_by_side_ * x_part_size_);
    }
    const bool products_in_memory = projects() || normalizes() || splits();
    row_pointers_ = arena_.template take<const T*>(threads_ * row_pointers());
    if (has_recurrent_masks()) operand_ = arena_.template take<T>(side_by_side_ * 2 * rows_size(most.output_panels));
    if (products_in_memory) take_products(most);
    if (spec_.num_layers > 1 || has_input_masks(pass_, 0)) take_sequences();
    if (!pass.packed) packed_ = arena_.template take<char>(static_cast<int64_t>(packed_bytes(spec_)));
    layers_ = arena_.template take<Layer>(spec_.num_layers * spec_.num_directions);
    if (scratch) make_layers();
  }

  RNNFAST_ONCE void take_products(const Sizes& most) {
    const int64_t rows = spec_.num_directions * pass_.batch, panels = max(most.panels, most.output_panels);
    sums_ = arena_.template take<T>(rows * panels * C::gates * width);
    if (projects()) unprojected_ = arena_.template take<T>(rows * most.units);
    if (normalizes() && C::has_c) output_gates_ = arena_.template take<T>(rows * most.panels * width);
    if (!splits()) return;
    reset_h_ = arena_.template take<T>(rows * most.units);
    columns_ = arena_.template take<T>(rows * most.panels * C::columns * width);
  }

  static size_t packed_bytes(const Spec& spec) {
    Arena arena(nullptr);
    for_each_packed(spec, arena, [](const Packed<C, T>&, int64_t) {});
    return arena.used();
  }

  static void pack(const Spec& spec, const Weights* weights, void* packed, int64_t part, int64_t parts) {
    Arena arena(packed);
    for_each_packed(spec, arena, [&](const Packed<C, T>& p, int64_t number) { p.fill(weights[number], part, parts); });
  }

  size_t scratch_bytes() const { return arena_.used(); }

  // To the beginning of the scratch memory, which has room for it. Copied there as bytes, so that no member may point
  // into the object itself: kernels do without the standard library's placement new.
  static void prepare(const Forward& pass, void* scratch) {
    static_assert(__is_trivially_copyable(ForwardPass), "and never destroyed");
    const ForwardPass prepared(pass, scratch);
    memcpy(scratch, &prepared, sizeof prepared);
  }

  // As often as wanted, see rnnfast.h. False: interrupted.
  bool run() {
    if (pass_.interrupted) interrupt_ = Interrupt(pass_.interrupted);
    renew_rows();
    schedule_.build();
    for (int64_t j = 0; j < meetings_for(threads_); ++j) meetings_[j] = Meeting();
    crew_ = crew_now(pass_.threads, threads_, pass_, kernel);
    for (int64_t j = 0; j < spec_.num_layers * spec_.num_directions; ++j)
      layers_[j].shares_inputs = shares_inputs(crew_, pass_, layers_[j].layer, kernel);
    parallel(
        crew_.threads, [](void* self, int id, int count) { static_cast<ForwardPass*>(self)->thread(id, count); }, this);
    return !interrupt_.happened();
  }

 private:
  static constexpr int64_t width = lanes<T>;
  static constexpr int64_t near_cache = 32 << 10;  // bytes
  static constexpr Kernel kernel{vector_bytes, lanes<T>};
  using V = vec<T>;
  using Layer = ForwardLayer<C, T>;

  template <class Use> static void for_each_packed(const Spec& spec, Arena& arena, const Use& use) {
    for (int64_t l = 0; l < spec.num_layers; ++l)
      for (int64_t d = 0; d < spec.num_directions; ++d)
        use(Packed<C, T>(arena, spec, sizes_of<T>(spec, l)), l * spec.num_directions + d);
  }

  // Outputs of layers below the top, and inputs times their masks.
  RNNFAST_ONCE void take_sequences() {
    int64_t output = 0, masked = 0;
    for (int64_t l = 0; l < spec_.num_layers; ++l) {
      if (l > 0) output = max(output, inputs_of(spec_, l));
      if (has_input_masks(pass_, l)) masked = max(masked, inputs_of(spec_, l));
    }
    const int64_t rows = pass_.steps * pass_.batch;
    if (output && !pass_.tape)
      for (T*& between : between_) between = arena_.template take<T>(rows * output);
    if (masked) masked_ = arena_.template take<T>(rows * masked);
  }

  // Options of some of the cells; the others need no code for them.
  bool projects() const { return C::has_c && spec_.proj_size > 0; }
  bool normalizes() const { return C::gates > 1 && spec_.layer_norm; }
  bool splits() const { return C::gates == 3 && resets_before(spec_); }

  bool has_recurrent_masks() const { return pass_.tape && pass_.recurrent_masks; }
  void thread(int id, int count) {
    Flush flush;
    const Team team = make_team(meetings_, id, count, spec_.num_directions);
    if (!pass_.packed) {
      pack(spec_, pass_.weights, packed_, id, count);
      meetings_->barrier.wait(count);
    }
    if (crew_.division == Division::layers && count > 1) return run_side_by_side(id, count);
    for (int64_t l = 0; l < spec_.num_layers; ++l) {
      if (has_input_masks(pass_, l)) {
        apply_input_masks(pass_, schedule_, l, input(l), masked(l), share(pass_.steps, id, count));
        meetings_->barrier.wait(count);
      }
      for (int64_t d = team.directions.first; d < team.directions.last; ++d) {
        const Layer& layer = layers_[l * spec_.num_directions + d];
        run_layer(layer, make_part(team, extent_of<C, T>(pass_, layer.n), crew_.division), id);
      }
      if (l + 1 < spec_.num_layers) meetings_->barrier.wait(count);
    }
    // Where calls follow upon each other a worker stays awake for the next, but not for as long as another thread's
    // recurrence may take.
    if (crew_.division == Division::inputs && pass_.in_succession) meetings_->barrier.wait(count);
  }

  // Each thread has every `count`-th layer, a block of steps behind the thread before.
  RNNFAST_ONCE void run_side_by_side(int id, int count) {
    const int64_t layers = spec_.num_layers, block = min(block_, steps_behind(pass_));
    const int64_t period = max(ceil_div(steps(), block), count);  // rounds from layer to layer of one thread
    for (int64_t round = 0; round < ceil_div(layers, count) * period + count - 1; ++round) {
      if (interrupt_.stops(*meetings_, id == 0, id == 0, round)) return;
      const int64_t own = round - id, number = own / period * count + id, begin = own % period * block;
      if (own >= 0 && number < layers && begin < steps()) {
        const Layer& layer = layers_[number];
        const Team self{meetings_, meetings_ + 3 + id, 0, 1, {0, 1}};
        const Part part = make_part(self, extent_of<C, T>(pass_, layer.n), Division::recurrence);
        const Range steps_now{begin, min(begin + block, steps())};
        if (begin == 0) begin_layer(layer, part);
        run_block(layer, part, steps_now, id);
        if (steps_now.last == steps()) end_layer(layer, part);
      }
      meetings_->barrier.wait(count);
    }
  }

  Rows<const T> input(int64_t l) const { return l == 0 ? rows_of<T>(pass_.x) : read_only(output(l - 1)); }
  Rows<T> masked(int64_t l) const { return contiguous(masked_, pass_.batch, inputs_of(spec_, l)); }
  RNNFAST_NOINLINE Rows<T> output(int64_t l) const {
    if (l + 1 == spec_.num_layers) return rows_of<T>(pass_.y);
    if (pass_.tape) return tape_.output(l);
    return contiguous(between_[l % 2], pass_.batch, inputs_of(spec_, l + 1));
  }

  RNNFAST_ONCE void make_layers() {
    void* packed = pass_.packed ? const_cast<void*>(pass_.packed) : packed_;
    Arena arena(packed);
    for_each_packed(spec_, arena, [&](const Packed<C, T>& weights, int64_t number) {
      layers_[number] = make_layer(number / spec_.num_directions, number % spec_.num_directions, weights);
    });
  }

  // The caller's rows.
  void renew_rows() {
    for (int64_t d = 0; d < spec_.num_directions; ++d) {
      Layer& last = layers_[(spec_.num_layers - 1) * spec_.num_directions + d];
      layers_[d].x = x_of(0);
      last.y = of_direction(rows_of<T>(pass_.y), d, last.n);
    }
  }
  Rows<const T> x_of(int64_t l) const { return has_input_masks(pass_, l) ? read_only(masked(l)) : input(l); }
  static Rows<T> of_direction(Rows<T> rows, int64_t d, const Sizes& n) {
    rows.data += d * n.outputs;
    return rows;
  }

  Layer make_layer(int64_t l, int64_t d, const Packed<C, T>& weights) const {
    Layer layer;
    layer.n = weights.n;
    layer.weights = weights;
    layer.reverse = d == 1;
    layer.relu = spec_.activations[d].gate.function == Function::relu;
    layer.x = x_of(l);
    layer.y = of_direction(output(l), d, layer.n);
    layer.h0 = state_of<T>(pass_.h0, pass_, l, d, outputs_of);
    layer.c0 = state_of<T>(pass_.c0, pass_, l, d, units_of);
    layer.hn = state_of<T>(pass_.hn, pass_, l, d, outputs_of);
    layer.cn = state_of<T>(pass_.cn, pass_, l, d, units_of);
    const int64_t place = spec_.num_directions > 1 ? d : l % side_by_side_;  // in the scratch memory
    const int64_t state = place * 2 * rows_size(layer.n.output_panels);
    layer.h = h_ + state;
    layer.operand = has_recurrent_masks() ? operand_ + state : layer.h;
    layer.c = C::has_c ? c_ + place * rows_size(layer.n.panels) : nullptr;
    layer.x_part = has_x_part_ ? x_part_ + place * x_part_size_ : nullptr;
    layer.saved = pass_.tape && !pass_.segments ? tape_.saved(l, d) : nullptr;
    layer.moments = layer.saved && normalizes() ? tape_.moments(l, d) : nullptr;
    layer.options = Options<T>(pass_, l, d, general_, saved_values<C>(spec_, general_));
    layer.layer = l, layer.direction = d, layer.shares_inputs = false;
    return layer;
  }

  // --- the time loop of one layer and direction ---

  void run_layer(const Layer& layer, const Part& part, int id) {
    begin_layer(layer, part);
    for (int64_t s = 0; s < steps(); s += block_) {
      const int64_t place = (layer.layer * spec_.num_directions + layer.direction) * pass_.steps + s;
      if (interrupt_.stops(*part.meeting, part.leader(), id == 0, place)) break;
      run_block(layer, part, {s, min(s + block_, steps())}, id);
    }
    end_layer(layer, part);
  }

  RNNFAST_NOINLINE void begin_layer(const Layer& layer, const Part& part) const {
    for (int64_t b = part.rows.first; b < part.rows.last; ++b) begin(layer, part, b, 0, Start::initial);
    part.wait();
  }

  RNNFAST_NOINLINE void run_block(const Layer& layer, const Part& part, Range block, int id) const {
    const T** row_pointers = row_pointers_ + id * this->row_pointers();
    StepRow<T>* step_rows = step_rows_ + id * apart(pass_.batch);
    if (has_x_part_) input_product(layer, part, block, row_pointers);
    if (!part.has_recurrence()) return;
    int64_t done = 0;  // rows of the block
    for (int64_t j = block.first; j < block.last; ++j) {
      if (keeps_boundaries() && j % segment_steps(pass_) == 0) keep_boundary(layer, part, j / segment_steps(pass_));
      done += step(layer, part, time_of(layer, j), done, step_rows, row_pointers);
      part.wait();
    }
  }

  RNNFAST_NOINLINE void end_layer(const Layer& layer, const Part& part) const {
    store_state(layer, part);
    if (pass_.carry && layer.layer + 1 == spec_.num_layers) carry_output(layer, part);
  }

  bool keeps_boundaries() const { return C::has_c && pass_.tape && pass_.segments; }

  RNNFAST_NOINLINE void keep_boundary(const Layer& layer, const Part& part, int64_t segment) const {
    T* kept = tape_.boundary(layer.layer, layer.direction, segment);
    for (int64_t p = part.panels.first; p < part.panels.last; ++p) {
      const T* c = c_at(layer, part, p, part.rows.first);
      memcpy(kept + (p * pass_.batch + part.rows.first) * width, c,
             static_cast<size_t>(part.rows.size() * width) * sizeof(T));
    }
  }

  int64_t steps() const { return pass_.batch ? pass_.steps : 0; }

  // For the rows of a block, or for those of a step and their inputs.
  int64_t row_pointers() const { return apart(max(2, block_) * pass_.batch); }

  int64_t time_of(const Layer& layer, int64_t s) const { return layer.reverse ? pass_.steps - 1 - s : s; }

  bool goes_back(int64_t t) const { return (t & 1) != pass_.back; }  // see for_groups

  // Of all rows and the gaps between parts.
  int64_t rows_size(int64_t panels) const { return pass_.batch * panels * width + gaps_; }

  // Where sequence b's state after `steps` steps is, in `layer.h` and in `layer.operand`.
  int64_t state_after(const Layer& layer, const Part& part, int64_t b, int64_t steps) const {
    const int64_t panels = layer.n.output_panels;
    return (steps & 1) * rows_size(panels) + (b * panels + part.gap) * width;
  }

  T* c_at(const Layer& layer, const Part& part, int64_t p, int64_t b) const {
    const int64_t first = part.rows.first;
    return layer.c + (first * layer.n.panels + p * part.rows.size() + b - first + part.gap) * width;
  }

  // This part's share of the state that sequence b starts from after `steps` steps.
  void begin(const Layer& layer, const Part& part, int64_t b, int64_t steps, Start start) const {
    const bool zero = start == Start::zero;
    for (int64_t p = part.outputs.first; p < part.outputs.last; ++p) {
      const int64_t unit = p * width, valid = min(width, layer.n.outputs - unit), at = b * layer.n.outputs + unit;
      store_h(layer, b, state_after(layer, part, b, steps) + unit, unit,
              layer.h0 && !zero ? load_part(layer.h0 + at, valid) : V{});
    }
    if (!C::has_c) return;
    for (int64_t p = part.panels.first; p < part.panels.last; ++p) {
      const int64_t unit = p * width, valid = min(width, layer.n.units - unit), at = b * layer.n.units + unit;
      store<T>(c_at(layer, part, p, b), layer.c0 && !zero ? load_part(layer.c0 + at, valid) : V{});
    }
  }

  RNNFAST_INLINE void store_h(const Layer& layer, int64_t b, int64_t at, int64_t unit, V h) const {
    store<T>(layer.h + at, h);
    if (layer.operand == layer.h) return;
    const T* mask = layer.options.recurrent_mask + b * layer.n.outputs;
    store<T>(layer.operand + at, h * load_part(mask + unit, min(width, layer.n.outputs - unit)));
  }

  void store_state(const Layer& layer, const Part& part) const {
    for (int64_t b = part.rows.first; b < part.rows.last; ++b) {
      const Start from = schedule_.final_start(b, layer.reverse);
      const int64_t steps = schedule_.count(b);
      if (from != Start::previous) begin(layer, part, b, steps, from);
      for (int64_t p = part.outputs.first; layer.hn && p < part.outputs.last; ++p) {
        const int64_t unit = p * width, valid = min(width, layer.n.outputs - unit);
        const V h = load(layer.h + state_after(layer, part, b, steps) + unit);
        store_part(layer.hn + b * layer.n.outputs + unit, h, valid);
      }
      for (int64_t p = part.panels.first; C::has_c && layer.cn && p < part.panels.last; ++p) {
        const int64_t unit = p * width, valid = min(width, layer.n.units - unit);
        store_part(layer.cn + b * layer.n.units + unit, load(c_at(layer, part, p, b)), valid);
      }
    }
  }

  // Steps that a row takes no part in repeat its output before, in the direction of the scan.
  RNNFAST_ONCE void carry_output(const Layer& layer, const Part& part) const {
    const int64_t first = part.outputs.first * width, size = min(layer.n.outputs, part.outputs.last * width) - first;
    for (int64_t b = part.rows.first; size > 0 && b < part.rows.last; ++b) {
      const T* before = nullptr;
      for (int64_t s = 0; s < pass_.steps; ++s) {
        const int64_t t = time_of(layer, s);
        T* y = layer.y.at(t, b) + first;
        if (schedule_.takes_part(t, b))
          before = y;
        else if (before)
          memcpy(y, before, static_cast<size_t>(size) * sizeof(T));
      }
    }
  }

  // --- the input product of a block of steps ---

  T* x_part_at(const Layer& layer, const Part& part, int64_t panel, int64_t row) const {
    T* region = layer.x_part + part.rows.first * block_ * layer.n.panels * C::gates * width;
    return region + (panel * part.rows.size() * block_ + row) * C::gates * width;
  }

  void input_product(const Layer& layer, const Part& part, Range block, const T** x_rows) const {
    int64_t count = 0;
    for (int64_t s = block.first; s < block.last; ++s) {
      const int64_t t = time_of(layer, s);
      const StepRows rows = schedule_.rows(t, part.rows.first, part.rows.last);
      for (int64_t r = 0; r < rows.count; ++r) x_rows[count++] = layer.x.at(t, rows.batch(r));
    }
    Range rows{0, count}, panels = part.panels;
    const bool shared = part.sharers > 1 && layer.shares_inputs;
    if (shared) {
      rows = share(count, part.rank, part.sharers), panels = {0, layer.n.panels};
      if (part.peers == 1) part.wait_for_sharers();  // one may still read the sums of the block before
    }
    const int64_t panel_stride = part.rows.size() * block_ * C::gates * width;
    layer.weights.multiply_x(x_rows + rows.first, rows.size(), panels, x_part_at(layer, part, 0, rows.first),
                             panel_stride, panels);
    if (shared)
      part.wait_for_sharers();
    else if (normalizes())
      part.wait();
  }

  // --- one step ---

  // What the parts of a step have in common.
  struct Step {
    const ForwardPass& pass;
    const Layer& layer;
    const Part& part;
    int64_t t;
    int64_t done;   // rows of the block that came before
    int64_t first;  // the number of its first row
    int64_t count;
    StepRow<T>* rows;
    const T** row_pointers;  // scratch
    int64_t x_part_stride;   // between panels
    bool y_later;            // the cells leave the output to copy_outputs

    T* x_part(int64_t panel, int64_t r) const { return pass.x_part_at(layer, part, panel, done + r); }
  };

  // Returns its number of rows; `done` rows of the block came before.
  int64_t step(const Layer& layer, const Part& part, int64_t t, int64_t done, StepRow<T>* step_rows,
               const T** row_pointers) const {
    const StepRows rows = schedule_.rows(t, part.rows.first, part.rows.last);
    const int64_t row_bytes = part.panels.size() * vector_bytes;
    const bool y_later = rows.count > 1 && !layer.options.any && rows.count * row_bytes > near_cache;
    const Step all{*this,        layer,
                   part,         t,
                   done,         rows.first,
                   rows.count,   step_rows,
                   row_pointers, part.rows.size() * block_ * C::gates * width,
                   y_later};
    find_rows(all, rows);
    if (schedule_.restarts(t, layer.reverse)) restart(all);
    if (normalizes()) {
      step_normalized(all);
    } else if (splits()) {
      step_reset_before(all);
    } else {
      if (rows.count == 1)
        run_tiles<C::gates>(RowTile{all}, 1, part.panels.first, part.panels.last, goes_back(t));
      else
        step_of_rows(all);
      if (projects()) project(all);
    }
    return rows.count;
  }

  void find_rows(const Step& step, const StepRows& rows) const {
    const Layer& layer = step.layer;
    const Part& part = step.part;
    for (int64_t r = 0; r < rows.count; ++r) {
      const int64_t b = rows.batch(r), steps = schedule_.done(rows.first + r, step.t, b, layer.reverse);
      step.rows[r] = {layer.x.at(step.t, b), layer.y.at(step.t, b), b, state_after(layer, part, b, steps),
                      state_after(layer, part, b, steps + 1)};
    }
  }

  // Rows behind a reset.
  RNNFAST_NOINLINE void restart(const Step& step) const {
    const Layer& layer = step.layer;
    for (int64_t r = 0; r < step.count; ++r) {
      const int64_t b = step.rows[r].b, number = step.first + r;
      if (!schedule_.is_cut(number, layer.reverse)) continue;
      begin(layer, step.part, b, schedule_.done(number, step.t, b, layer.reverse),
            schedule_.start(number, layer.reverse));
    }
    step.part.wait();
  }

  // The sums of some rows and panels, from the first of both on: [panel][row][gate][lane].
  struct Sums {
    Range panels, rows;
    const T *x_part, *h_part;
    int64_t x_stride, h_stride;  // between panels

    const T* x(int64_t p, int64_t r) const { return at(x_part, x_stride, p, r); }
    const T* h(int64_t p, int64_t r) const { return at(h_part, h_stride, p, r); }
    const T* at(const T* part, int64_t stride, int64_t p, int64_t r) const {
      return part + (p - panels.first) * stride + (r - rows.first) * C::gates * width;
    }
  };

  // A step of one row: the cells come right behind their products, and wait for their functions while the weights of
  // the next tile arrive.
  struct RowTile : Step {
    static constexpr int most_panels = 8, most_rows = 1, rows_of_many = 1;

    template <int R, int P> void tile(int64_t panel, int64_t) const {
      static_assert(R == 1, "a tile of one row");
      constexpr int64_t stride = C::gates * width;
      const ForwardPass& pass = this->pass;
      const Layer& layer = this->layer;
      alignas(64) T x_sums[P * stride], h_sums[P * stride];
      const T* const operand = layer.operand + this->rows->before;
      Sums sums{{panel, panel + P}, {0, 1}, x_sums, h_sums, stride, stride};
      const auto multiply_row = [&](const T* const* row, const T* packed, int64_t k_size, T* out) {
        Products<C::gates, T>{row, packed, k_size, out - panel * stride, stride}.template tile<1, P>(panel, 0);
      };
      if (pass.block_ == 1)
        multiply_row(&this->rows->x, layer.weights.w, layer.n.inputs, x_sums);
      else
        sums.x_part = this->x_part(panel, 0), sums.x_stride = this->x_part_stride;
      multiply_row(&operand, layer.weights.u, layer.n.outputs, h_sums);
      pass.template apply_cells<1>(*this, sums);
    }
  };

  // A step of several: products of as many rows and panels as fit in a near cache, and then their cells, which go in
  // lock step and wait for their functions together. The few cells of a single tile could not.
  void step_of_rows(const Step& step) const {
    constexpr int64_t most = (C::gates == 1 ? 8192 : 2048) / vector_bytes;  // cells, a power of two
    alignas(64) T x_sums[most * C::gates * width], h_sums[most * C::gates * width];
    const Layer& layer = step.layer;
    const T **h_rows = step.row_pointers, **x_rows = h_rows + pass_.batch;
    for (int64_t r = 0; r < step.count; ++r) {
      h_rows[r] = layer.operand + step.rows[r].before;
      if (block_ == 1) x_rows[r] = step.rows[r].x;
    }
    const int64_t together = Heights<Products<C::gates, T>, C::gates>(step.count).panels();
    int64_t some_panels = most, some_rows = 1;
    while (some_panels > together && some_rows < step.count) some_panels /= 2, some_rows *= 2;
    const bool back = goes_back(step.t);
    const Range all = step.part.panels;
    Range left = all;
    while (left.size() > 0) {
      const Range panels = back ? Range{max(left.first, left.last - some_panels), left.last}
                                : Range{left.first, min(left.first + some_panels, left.last)};
      (back ? left.last : left.first) = back ? panels.first : panels.last;
      for (int64_t row = 0; row < step.count; row += some_rows) {
        const Range rows{row, min(row + some_rows, step.count)};
        const int64_t stride = rows.size() * C::gates * width;
        Sums sums{panels, rows, x_sums, h_sums, stride, stride};
        const int64_t before = panels.first * stride;
        if (block_ == 1)
          layer.weights.multiply_x(x_rows + row, rows.size(), panels, x_sums - before, stride, all, back);
        else
          sums.x_part = step.x_part(panels.first, row), sums.x_stride = step.x_part_stride;
        layer.weights.multiply_h(h_rows + row, rows.size(), panels, h_sums - before, stride, all, back);
        apply_cells_of_rows(step, sums);
      }
    }
    if (step.y_later) copy_outputs(step);
  }

  // To write a panel's share of many rows to the output, one vector here, one there, takes about as long as the cells'
  // arithmetic. So where they are too many for a near cache, all panels' shares of a row are copied at once, from h. A
  // row alone is written in order anyway.
  RNNFAST_NOINLINE void copy_outputs(const Step& step) const {
    const int64_t first = step.part.panels.first * width, last = step.part.panels.last * width;
    const int64_t size = min(step.layer.n.outputs, last) - first;
    for (int64_t r = 0; r < step.count; ++r)
      memcpy(step.rows[r].y + first, step.layer.h + step.rows[r].after + first, static_cast<size_t>(size) * sizeof(T));
  }

  RNNFAST_NOINLINE void apply_cells_of_rows(const Step& step, const Sums& sums) const {
    constexpr int in_lock_step = kept_small<T> ? 1 : 4;  // with AVX2 2, 3 and 6 are slower by 1 to 4 %
    apply_cells<in_lock_step>(step, sums);
  }

  // N rows go in lock step.
  template <int N> RNNFAST_INLINE void apply_cells(const Step& step, const Sums& sums) const {
    const Layer& layer = step.layer;
    if (layer.options.any) return apply_cells_with_options(step, sums);
    for (int64_t p = sums.panels.first; p < sums.panels.last; ++p) {
      Cells cells(*this, step, sums, p);
      int64_t r = sums.rows.first;
      for (; N > 1 && r + N <= sums.rows.last; r += N) cells.template apply<N>(r);
      for (; r < sums.rows.last; ++r) cells.template apply<1>(r);
    }
  }

  // The cells of a panel, from row to row. What does not change is copied: for all that the compiler knows, a store of
  // values could change it.
  struct Cells {
    const StepRow<T>* const rows;
    const T* const bias;
    T *const h, *const c;  // h of the layer, c of the panel
    // Of the next row:
    const T *x_part, *h_part;
    T* saved_part;
    const int64_t unit, valid;
    const bool relu, y_later;

    RNNFAST_INLINE Cells(const ForwardPass& pass, const Step& step, const Sums& sums, int64_t p)
        : rows(step.rows),
          bias(step.layer.weights.bias + p * C::columns * width),
          h(step.layer.h),
          c(C::has_c ? pass.c_at(step.layer, step.part, p, 0) : nullptr),
          x_part(sums.x(p, sums.rows.first)),
          h_part(sums.h(p, sums.rows.first)),
          saved_part(step.layer.saved ? step.layer.saved + (p * pass.schedule_.total() + step.first + sums.rows.first) *
                                                               C::saved * width
                                      : nullptr),
          unit(p * width),
          valid(min(width, step.layer.n.units - unit)),
          relu(step.layer.relu),
          y_later(step.y_later) {}

    template <int N> RNNFAST_INLINE void apply(int64_t r) {
      using Vs = Vectors<T, N>;
      const StepRow<T>* const row = rows + r;
      Vs x_sums[C::gates], h_sums[C::gates], a[C::columns], saved[C::saved ? C::saved : 1];
      RNNFAST_UNROLL_FOR (int g = 0; g < C::gates; ++g) {
        x_sums[g] = Vs::each([&](int j) RNNFAST_INLINE_LAMBDA { return load(x_part + (j * C::gates + g) * width); });
        h_sums[g] = Vs::each([&](int j) RNNFAST_INLINE_LAMBDA { return load(h_part + (j * C::gates + g) * width); });
      }
      Packed<C, T>::join(x_sums, h_sums, bias, a);
      const State<Vs> prev{
          Vs::each([&](int j) RNNFAST_INLINE_LAMBDA { return load(h + row[j].before + unit); }),
          Vs::each([&](int j) RNNFAST_INLINE_LAMBDA { return C::has_c ? load(c + row[j].b * width) : V{}; })};
      const State<Vs> next = C::forward(a, prev, relu, saved);
      RNNFAST_UNROLL_FOR (int j = 0; j < N; ++j) {
        store<T>(h + row[j].after + unit, next.h.of[j]);
        if (!y_later) store_part(row[j].y + unit, next.h.of[j], valid);
        if (C::has_c) store<T>(c + row[j].b * width, next.c.of[j]);
      }
      x_part += N * C::gates * width, h_part += N * C::gates * width;
      // Sums over x of a block of steps come from L2 or beyond, and are waited for before anything else can begin.
      // (With narrower vectors, which take longer, it changes nothing.)
      if (vector_bytes == 64 && N > 1 && C::gates > 1)
        RNNFAST_UNROLL_FOR (int j = 0; j < N * C::gates; ++j) __builtin_prefetch(x_part + (N * C::gates + j) * width);
      if (!saved_part) return;
      RNNFAST_UNROLL_FOR (int j = 0; j < N; ++j)
        RNNFAST_UNROLL_FOR (int i = 0; i < C::saved; ++i)
          store<T>(saved_part + (j * C::saved + i) * width, saved[i].of[j]);
      saved_part += N * C::saved * width;
      // Stores wait for their lines one behind the other. The tape is too large to have them near, so those of the rows
      // after the next are asked for. (A row alone became slower by it.)
      if (N > 1)
        RNNFAST_UNROLL_FOR (int i = 0; i < N * C::saved; ++i)
          __builtin_prefetch(saved_part + (N * C::saved + i) * width, 1);
    }
  };

  RNNFAST_NOINLINE void apply_cells_with_options(const Step& step, const Sums& sums) const {
    for (int64_t p = sums.panels.first; p < sums.panels.last; ++p)
      for (int64_t r = sums.rows.first; r < sums.rows.last; ++r) {
        V h[C::gates], a[C::columns];
        for (int g = 0; g < C::gates; ++g) h[g] = load(sums.h(p, r) + g * width);
        step.layer.weights.join(sums.x(p, r), h, p, a);
        apply_cell_with_options(step, r, p, a);
      }
  }

  // The same with everything that is off by default.
  void apply_cell_with_options(const Step& step, int64_t r, int64_t p, const V (&a)[C::columns]) const {
    const Layer& layer = step.layer;
    const Options<T>& options = layer.options;
    const StepRow<T>& row = step.rows[r];
    const int64_t b = row.b, unit = p * width, valid = min(width, layer.n.units - unit);
    T* c = C::has_c ? c_at(layer, step.part, p, b) : nullptr;
    const bool projects = this->projects();
    const State<V> prev{projects ? V{} : load(layer.h + row.before + unit), C::has_c ? load(c) : V{}};
    V saved[C::saved_general] = {}, gates[C::gates];
    const State<V> next = run_cell<C>(options, layer.weights.peepholes, p, a, prev, layer.relu, saved, gates,
                                      {(step.t * pass_.batch + b) * layer.n.units + unit, valid});
    if (projects) {
      store_part(unprojected(layer, b) + unit, next.h, valid);
    } else {
      store_new_h(step, r, p, next.h);
    }
    if (C::has_c) store<T>(c, next.c);
    store_outputs(layer, step.t, b, unit, valid, gates, next.c);
    if (layer.saved) {
      T* out = layer.saved + (p * schedule_.total() + step.first + r) * options.saved * width;
      for (int j = 0; j < options.saved; ++j) store<T>(out + j * width, saved[j]);
    }
  }

  void store_outputs(const Layer& layer, int64_t t, int64_t b, int64_t unit, int64_t valid, const V (&gates)[C::gates],
                     V c) const {
    const Options<T>& options = layer.options;
    if (options.cells.data) store_part(options.cells.at(t, b) + unit, c, valid);
    for (int g = 0; options.gates.data && g < C::gates; ++g)
      store_part(options.gates.at(t, b) + g * layer.n.units + unit, gates[g], valid);
  }

  // --- steps of several products, whose sums go to memory in between ---

  // [panel][row][gate][lane]; every part has a region of its own, as large as the widest product needs it.
  T* sums_at(const Step& step, int64_t gates, int64_t p, int64_t r) const {
    const int64_t panels = max(step.layer.n.panels, step.layer.n.output_panels);
    const Range rows = step.part.rows;
    T* region = sums_ + (step.layer.direction * pass_.batch + rows.first) * panels * C::gates * width;
    return region + (p * rows.size() + r) * gates * width;
  }

  // The sums of every row of the step, from `row_of(row)` on.
  template <int Gates, class RowOf>
  void products(const Step& step, const T* weights, int64_t k_size, Range panels, const RowOf& row_of) const {
    for (int64_t r = 0; r < step.count; ++r) step.row_pointers[r] = row_of(step.rows[r]);
    const Products<Gates, T> product{step.row_pointers, weights, k_size, sums_at(step, Gates, 0, 0),
                                     step.part.rows.size() * Gates * width};
    run_tiles<Gates>(product, step.count, panels.first, panels.last);
  }

  void store_new_h(const Step& step, int64_t r, int64_t p, V h) const {
    const StepRow<T>& row = step.rows[r];
    const int64_t unit = p * width, valid = min(width, step.layer.n.outputs - unit);
    store_h(step.layer, row.b, row.after + unit, unit, h);
    store_part(row.y + unit, h, valid);
  }

  // These are not inlined for the size of the wheel; they are no slower by more than 1 %.

  // Projection: h = W_hr m, once every unit's m = o * tanh(c) is known.
  RNNFAST_NOINLINE void project(const Step& step) const {
    const Layer& layer = step.layer;
    step.part.wait();
    products<1>(step, layer.weights.hr, layer.n.units, step.part.outputs,
                [&](const StepRow<T>& row) { return unprojected(layer, row.b); });
    for (int64_t p = step.part.outputs.first; p < step.part.outputs.last; ++p)
      for (int64_t r = 0; r < step.count; ++r) store_new_h(step, r, p, load(sums_at(step, 1, p, r)));
  }

  T* unprojected(const Layer& layer, int64_t b) const {
    return unprojected_ + (layer.direction * pass_.batch + b) * layer.n.units;
  }

  // GRU with the reset gate before the product: first r, z and r * h, then n.
  RNNFAST_NOINLINE void step_reset_before(const Step& step) const {
    if constexpr (C::gates == 3) {
      const Layer& layer = step.layer;
      const Range panels = step.part.panels;
      products<2>(step, layer.weights.u, layer.n.outputs, panels,
                  [&](const StepRow<T>& row) { return layer.operand + row.before; });
      for (int64_t p = panels.first; p < panels.last; ++p)
        for (int64_t r = 0; r < step.count; ++r) apply_reset(step, r, p);
      step.part.wait();
      products<1>(step, layer.weights.u_n, layer.n.outputs, panels,
                  [&](const StepRow<T>& row) { return reset_h(layer, row.b); });
      for (int64_t p = panels.first; p < panels.last; ++p)
        for (int64_t r = 0; r < step.count; ++r) apply_candidate(step, r, p);
    }
  }

  T* reset_h(const Layer& layer, int64_t b) const {
    return reset_h_ + (layer.direction * pass_.batch + b) * layer.n.units;
  }
  T* columns_at(const Layer& layer, int64_t panel, int64_t b) const {
    return columns_ + ((layer.direction * layer.n.panels + panel) * pass_.batch + b) * C::columns * width;
  }

  // The columns but for n's sum over r * h, and r * h.
  void apply_reset(const Step& step, int64_t r, int64_t p) const {
    if constexpr (C::gates == 3) {
      const Layer& layer = step.layer;
      const StepRow<T>& row = step.rows[r];
      const int64_t unit = p * width, valid = min(width, layer.n.units - unit);
      const T* sums = sums_at(step, 2, p, r);
      const V h_part[3] = {load(sums), load(sums + width), V{}};
      V a[C::columns];
      layer.weights.join(step.x_part(p, r), h_part, p, a);
      T* columns = columns_at(layer, p, row.b);
      for (int g = 0; g < C::columns; ++g) store<T>(columns + g * width, a[g]);
      const V h = load_part(layer.operand + row.before + unit, valid);
      store_part(reset_h(layer, row.b) + unit, C::reset(a[0], h, layer.options.unit(nullptr)), valid);
    }
  }

  void apply_candidate(const Step& step, int64_t r, int64_t p) const {
    const T* columns = columns_at(step.layer, p, step.rows[r].b);
    V a[C::columns];
    for (int g = 0; g < C::columns; ++g) a[g] = load(columns + g * width);
    a[C::columns - 1] = load(sums_at(step, 1, p, r)) + a[C::columns - 1];
    apply_cell_with_options(step, r, p, a);
  }

  // Layer normalization: a row's sums have to be complete before any of its units can go on.

  // [panel][B][lane]
  T* output_gate_at(const Layer& layer, int64_t p, int64_t b) const {
    return output_gates_ + ((layer.direction * layer.n.panels + p) * pass_.batch + b) * width;
  }

  RNNFAST_NOINLINE void step_normalized(const Step& step) const {
    const Part& part = step.part;
    for (int64_t r = 0; r < step.count; ++r) step.row_pointers[r] = step.layer.operand + step.rows[r].before;
    step.layer.weights.multiply_h(step.row_pointers, step.count, part.panels, sums_at(step, C::gates, 0, 0),
                                  part.rows.size() * C::gates * width, part.panels);
    part.wait();
    for (int64_t r = 0; r < step.count; ++r) normalize_row(step, r);
    if (!C::has_c) return;
    part.wait();
    for (int64_t r = 0; r < step.count; ++r) normalize_c(step, r);
  }

  void normalize_row(const Step& step, int64_t r) const {
    const Layer& layer = step.layer;
    const int64_t number = step.first + r, gates = C::gates;
    const int64_t h_stride = step.part.rows.size() * gates * width;
    const Moments<T> of_x = moments_of<T>(step.x_part(0, r), step.x_part_stride, C::gates, layer.n.units);
    const Moments<T> of_h = moments_of<T>(sums_at(step, C::gates, 0, r), h_stride, C::gates, layer.n.units);
    if (layer.moments && step.part.leader()) layer.moments[number][0] = of_x, layer.moments[number][1] = of_h;
    for (int64_t p = step.part.panels.first; p < step.part.panels.last; ++p) {
      V x[C::gates], h[C::gates];
      for (int g = 0; g < C::gates; ++g) {
        x[g] = of_x.normalized(load(step.x_part(p, r) + g * width));
        h[g] = of_h.normalized(load(sums_at(step, C::gates, p, r) + g * width));
      }
      apply_normalized(step, r, p, x, h);
    }
  }

  void apply_normalized(const Step& step, int64_t r, int64_t p, const V (&x)[C::gates], const V (&h)[C::gates]) const {
    const Layer& layer = step.layer;
    const StepRow<T>& row = step.rows[r];
    const int64_t b = row.b, unit = p * width, valid = min(width, layer.n.units - unit);
    T* c = C::has_c ? c_at(layer, step.part, p, b) : nullptr;
    V a[C::columns], saved[C::saved_general], gates[C::gates];
    layer.weights.join_normalized(x, h, p, a);
    const State<V> prev{load(layer.h + row.before + unit), C::has_c ? load(c) : V{}};
    const State<V> next = C::forward_general(a, prev, layer.options.unit(nullptr), saved, gates);
    if (C::has_c) {
      store<T>(c, next.c);
      store<T>(output_gate_at(layer, p, b), gates[C::gates - 1]);
    } else {
      store_new_h(step, r, p, next.h);
    }
    store_outputs(layer, step.t, b, unit, valid, gates, next.c);
    if (!layer.saved) return;
    T* out = layer.saved + (p * schedule_.total() + step.first + r) * layer.options.saved * width;
    // c is the last of them, where the row after looks for it.
    for (int g = 0; g < C::gates; ++g) store<T>(out + g * width, x[g]), store<T>(out + (C::gates + g) * width, h[g]);
    for (int j = 0; j < C::saved_general; ++j) store<T>(out + (2 * C::gates + j) * width, saved[j]);
  }

  // h = o * tanh(scale * normalized c + shift)
  void normalize_c(const Step& step, int64_t r) const {
    const Layer& layer = step.layer;
    const int64_t b = step.rows[r].b, stride = step.part.rows.size() * width;
    const T* const row = c_at(layer, step.part, 0, b);
    const Moments<T> of_c = moments_of<T>(row, stride, 1, layer.n.units);
    if (layer.moments && step.part.leader()) layer.moments[step.first + r][2] = of_c;
    const Unit<T> unit_of_layer = layer.options.unit(nullptr);
    for (int64_t p = step.part.panels.first; p < step.part.panels.last; ++p) {
      const T* norm = layer.weights.ln_c + p * 2 * width;
      const V c = fma(load(norm), of_c.normalized(load(row + p * stride)), load(norm + width));
      store_new_h(step, r, p, load(output_gate_at(layer, p, b)) * unit_of_layer.value(unit_of_layer.output, c));
    }
  }

  const Forward& pass_;
  const Spec& spec_;
  Arena arena_;
  Schedule schedule_;
  bool general_;  // whether the cell's general form is needed
  Tape<C, T> tape_;
  int64_t block_, gaps_, x_part_size_ = 0;
  bool has_x_part_;
  int threads_;           // at most
  int64_t side_by_side_;  // directions, or layers at most
  Crew crew_{};
  Meeting* meetings_;
  Interrupt interrupt_;
  T *h_, *c_, *operand_ = nullptr, *x_part_ = nullptr, *between_[2] = {}, *masked_ = nullptr;
  T *sums_ = nullptr, *unprojected_ = nullptr, *reset_h_ = nullptr, *columns_ = nullptr, *output_gates_ = nullptr;
  StepRow<T>* step_rows_;   // for each thread
  const T** row_pointers_;  // for each thread
  char* packed_ = nullptr;
  Layer* layers_;  // [L*D]
};

}  // namespace
}  // namespace rnnfast
