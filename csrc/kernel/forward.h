// The forward pass of a stack of layers: the time loop, with the cell's mathematics behind the product.
//
// A pre-activation is a sum over x, plus a sum over h, plus the bias. For a block of steps the sums over x are one
// product for all of them; a single step takes its own.
#pragma once

#include "layout.h"
#include "plan.h"

namespace rnnfast {
namespace {

// One layer and direction as the time loop sees it.
template <class C, class T> struct ForwardLayer {
  Packed<C, T> weights;
  bool reverse;
  Rows<const T> x;
  Rows<T> y;
  const T *h0, *c0;  // [B, H] or null
  T *hn, *cn;
  T* h;       // [2][B][H]: a sequence's step reads one half and writes the other
  T* c;       // [panel][B][lane]
  T* x_part;  // [panel][row of the block][gate][lane], a region for each part
  T* saved;   // [panel][row][saved][lane], or null
  int64_t layer, direction;
};

template <class C, class T> class ForwardPass {
 public:
  ForwardPass(const Forward& pass, void* scratch)
      : pass_(pass),
        spec_(pass.spec),
        arena_(scratch),
        schedule_(arena_, pass),
        tape_(pass, schedule_.total()),
        interrupt_(pass.interrupted) {
    const int64_t units = spec_.hidden_size, directions = spec_.num_directions;
    panels_ = panels_of<T>(units);
    const int64_t products = C::gates * units * (spec_.input_size + units) * pass.batch * directions;
    threads_ = useful_threads(pass.threads, products, pass.steps * spec_.num_layers);
    extent_ = {pass.steps, pass.batch, panels_, panels_ * C::gates * width * static_cast<int64_t>(sizeof(T))};
    block_ = forward_block(extent_, threads_);
    meetings_ = arena_.template take<Meeting>(meetings_for(threads_));
    h_ = arena_.template take<T>(directions * 2 * pass.batch * units);
    c_ = arena_.template take<T>(C::has_c ? directions * panels_ * pass.batch * width : 0);
    if (block_ > 1) {
      x_part_ = arena_.template take<T>(directions * x_part_size());
      x_rows_ = arena_.template take<const T*>(threads_ * block_ * pass.batch);
    }
    const bool below = spec_.num_layers > 1;
    if (below && !pass.tape)
      for (T*& output : between_) output = arena_.template take<T>(output_size());
    if (below && drops()) dropped_ = arena_.template take<T>(output_size());
    if (!pass.packed) packed_ = arena_.template take<char>(static_cast<int64_t>(packed_bytes(spec_)));
  }

  static size_t packed_bytes(const Spec& spec) {
    Arena arena(nullptr);
    for (int64_t l = 0; l < spec.num_layers; ++l)
      for (int64_t d = 0; d < spec.num_directions; ++d) Packed<C, T>(arena, inputs_of(spec, l), spec.hidden_size);
    return arena.used();
  }

  static void pack(const Spec& spec, const Weights* weights, void* packed, int64_t part, int64_t parts) {
    Arena arena(packed);
    const Range mine = share(panels_of<T>(spec.hidden_size), part, parts);
    for (int64_t l = 0; l < spec.num_layers; ++l)
      for (int64_t d = 0; d < spec.num_directions; ++d)
        Packed<C, T>(arena, inputs_of(spec, l), spec.hidden_size)
            .fill(weights[l * spec.num_directions + d], mine.first, mine.last);
  }

  size_t scratch_bytes() const { return arena_.used(); }

  // False: interrupted.
  bool run() {
    schedule_.build();
    for (int64_t j = 0; j < meetings_for(threads_); ++j) meetings_[j] = Meeting();
    parallel(threads_, [](void* self, int id, int count) { static_cast<ForwardPass*>(self)->thread(id, count); }, this);
    return !interrupt_.happened();
  }

 private:
  static constexpr int64_t width = lanes<T>;
  using V = vec<T>;
  using Layer = ForwardLayer<C, T>;

  bool drops() const { return pass_.tape && pass_.dropout > 0; }
  int64_t output_size() const { return pass_.steps * pass_.batch * spec_.num_directions * spec_.hidden_size; }
  int64_t x_part_size() const { return block_ * pass_.batch * panels_ * C::gates * width; }

  void thread(int id, int count) {
    Flush flush;
    const Team team = make_team(meetings_, id, count, spec_.num_directions);
    if (!pass_.packed) {
      pack(spec_, pass_.weights, packed_, id, count);
      meetings_->barrier.wait(count);
    }
    Arena packed(pass_.packed ? const_cast<void*>(pass_.packed) : packed_);
    for (int64_t l = 0; l < spec_.num_layers; ++l) {
      for (int64_t d = 0; d < spec_.num_directions; ++d) {
        const Packed<C, T> weights(packed, inputs_of(spec_, l), spec_.hidden_size);
        if (d < team.directions.first || d >= team.directions.last) continue;
        const Layer layer = make_layer(l, d, weights);
        const int64_t weight_bytes = extent_.row_bytes * (spec_.hidden_size + weights.inputs);
        run_layer(layer, make_part(team, extent_, weight_bytes, full_rows<C::gates>), id);
      }
      if (l + 1 == spec_.num_layers) break;
      meetings_->barrier.wait(count);
      if (drops()) {
        apply_dropout(pass_, schedule_, l, read_only(output(l)), dropped(), share(pass_.steps, id, count));
        meetings_->barrier.wait(count);
      }
    }
  }

  Rows<T> dropped() const { return contiguous(dropped_, pass_.batch, spec_.num_directions * spec_.hidden_size); }

  Rows<T> output(int64_t l) const {
    if (l + 1 == spec_.num_layers) return rows_of<T>(pass_.y);
    if (pass_.tape) return tape_.output(l);
    return contiguous(between_[l % 2], pass_.batch, spec_.num_directions * spec_.hidden_size);
  }

  Layer make_layer(int64_t l, int64_t d, const Packed<C, T>& weights) const {
    const int64_t number = l * spec_.num_directions + d, units = spec_.hidden_size;
    Layer layer;
    layer.weights = weights;
    layer.reverse = d == 1;
    layer.x = l == 0 ? rows_of<T>(pass_.x) : drops() ? read_only(dropped()) : read_only(output(l - 1));
    layer.y = output(l);
    layer.y.data += d * units;
    layer.h0 = state_of<T>(pass_.h0, pass_, number);
    layer.c0 = state_of<T>(pass_.c0, pass_, number);
    layer.hn = state_of<T>(pass_.hn, pass_, number);
    layer.cn = state_of<T>(pass_.cn, pass_, number);
    layer.h = h_ + d * 2 * pass_.batch * units;
    layer.c = C::has_c ? c_ + d * panels_ * pass_.batch * width : nullptr;
    layer.x_part = block_ > 1 ? x_part_ + d * x_part_size() : nullptr;
    layer.saved = pass_.tape && !pass_.segments ? tape_.saved(l, d) : nullptr;
    layer.layer = l, layer.direction = d;
    return layer;
  }

  // --- the time loop of one layer and direction ---

  void run_layer(const Layer& layer, const Part& part, int id) {
    load_state(layer, part);
    part.wait();
    const T** x_rows = block_ > 1 ? x_rows_ + id * block_ * pass_.batch : nullptr;
    for (int64_t s = 0; s < steps(); s += block_) {
      const int64_t place = (layer.layer * spec_.num_directions + layer.direction) * pass_.steps + s;
      if (interrupt_.stops(*part.meeting, part.leader, id == 0, place)) break;
      const Range block{s, min(s + block_, steps())};
      if (block_ > 1) input_product(layer, part, block, x_rows);
      int64_t done = 0;  // rows of the block
      for (int64_t j = block.first; j < block.last; ++j) {
        if (keeps_boundaries() && j % segment_steps(pass_) == 0) keep_boundary(layer, part, j / segment_steps(pass_));
        done += step(layer, part, time_of(layer, j), done);
        part.wait();
      }
    }
    store_state(layer, part);
  }

  bool keeps_boundaries() const { return C::has_c && pass_.tape && pass_.segments; }

  void keep_boundary(const Layer& layer, const Part& part, int64_t segment) const {
    T* kept = tape_.boundary(layer.layer, layer.direction, segment);
    for (int64_t p = part.panels.first; p < part.panels.last; ++p) {
      const int64_t first = (p * pass_.batch + part.rows.first) * width;
      memcpy(kept + first, layer.c + first, static_cast<size_t>(part.rows.size() * width) * sizeof(T));
    }
  }

  int64_t steps() const { return pass_.batch ? pass_.steps : 0; }

  int64_t time_of(const Layer& layer, int64_t s) const { return layer.reverse ? pass_.steps - 1 - s : s; }

  // The half of h that holds sequence b's state after `steps` steps.
  T* h_after(const Layer& layer, int64_t b, int64_t steps) const {
    return layer.h + ((steps & 1) * pass_.batch + b) * spec_.hidden_size;
  }

  void load_state(const Layer& layer, const Part& part) const {
    for (int64_t b = part.rows.first; b < part.rows.last; ++b)
      for (int64_t p = part.panels.first; p < part.panels.last; ++p) {
        const int64_t unit = p * width, valid = min(width, spec_.hidden_size - unit), at = b * spec_.hidden_size + unit;
        store_n(h_after(layer, b, 0) + unit, layer.h0 ? load_n(layer.h0 + at, valid) : V{}, valid);
        if (C::has_c) store<T>(layer.c + (p * pass_.batch + b) * width, layer.c0 ? load_n(layer.c0 + at, valid) : V{});
      }
  }

  void store_state(const Layer& layer, const Part& part) const {
    for (int64_t b = part.rows.first; b < part.rows.last; ++b)
      for (int64_t p = part.panels.first; p < part.panels.last; ++p) {
        const int64_t unit = p * width, valid = min(width, spec_.hidden_size - unit), at = b * spec_.hidden_size + unit;
        const T* h = h_after(layer, b, schedule_.length(b)) + unit;
        if (layer.hn) store_n(layer.hn + at, load_n(h, valid), valid);
        if (C::has_c && layer.cn) store_n(layer.cn + at, load(layer.c + (p * pass_.batch + b) * width), valid);
      }
  }

  // --- the input product of a block of steps ---

  T* x_part_at(const Layer& layer, const Part& part, int64_t panel, int64_t row) const {
    T* region = layer.x_part + part.rows.first * block_ * panels_ * C::gates * width;
    return region + (panel * part.rows.size() * block_ + row) * C::gates * width;
  }

  void input_product(const Layer& layer, const Part& part, Range block, const T** x_rows) const {
    int64_t count = 0;
    for (int64_t s = block.first; s < block.last; ++s) {
      const int64_t t = time_of(layer, s);
      const StepRows rows = schedule_.rows(t, part.rows.first, part.rows.last);
      for (int64_t r = 0; r < rows.count; ++r) x_rows[count++] = layer.x.at(t, rows.batch(r));
    }
    run_tiles<C::gates>(InputTiles{*this, layer, part, x_rows}, count, part.panels.first, part.panels.last);
  }

  struct InputTiles {
    const ForwardPass& pass;
    const Layer& layer;
    const Part& part;
    const T* const* x_rows;

    template <int R, int P> void tile(int64_t panel, int64_t row) const {
      V acc[R][P * C::gates];
      const T* x[R];
      RNNFAST_UNROLL_FOR (int r = 0; r < R; ++r) x[r] = x_rows[row + r];
      T* out[P];
      RNNFAST_UNROLL_FOR (int p = 0; p < P; ++p) out[p] = pass.x_part_at(layer, part, panel + p, row);
      layer.weights.template multiply_input<R, P>(acc, x, panel);
      layer.weights.template store_sums<R, P>(acc, out);
    }
  };

  // --- one step ---

  // Returns its number of rows; `done` rows of the block came before.
  int64_t step(const Layer& layer, const Part& part, int64_t t, int64_t done) const {
    const StepRows rows = schedule_.rows(t, part.rows.first, part.rows.last);
    run_tiles<C::gates>(StepTiles{*this, layer, part, rows, t, done}, rows.count, part.panels.first, part.panels.last);
    return rows.count;
  }

  struct StepTiles {
    const ForwardPass& pass;
    const Layer& layer;
    const Part& part;
    const StepRows& rows;
    int64_t t, done;

    template <int R, int P> void tile(int64_t panel, int64_t row) const {
      V acc[R][P * C::gates];
      const T *x[R], *h[R];
      T* h_next[R];
      RNNFAST_UNROLL_FOR (int r = 0; r < R; ++r) {
        const int64_t b = rows.batch(row + r), before = pass.schedule_.done(t, b, layer.reverse);
        x[r] = layer.x.at(t, b);
        h[r] = pass.h_after(layer, b, before);
        h_next[r] = pass.h_after(layer, b, before + 1);
      }
      alignas(64) T fused[P][R * C::gates * width];
      T* x_part[P];  // [row][gate][lane]
      RNNFAST_UNROLL_FOR (int p = 0; p < P; ++p)
        x_part[p] = pass.block_ > 1 ? pass.x_part_at(layer, part, panel + p, done + row) : fused[p];
      if (pass.block_ == 1) {
        layer.weights.template multiply_input<R, P>(acc, x, panel);
        layer.weights.template store_sums<R, P>(acc, x_part);
      }
      layer.weights.template multiply_hidden<R, P>(acc, h, panel);
      V h_part[R][P * C::gates];  // in memory, so that the loops below need not be unrolled
      RNNFAST_UNROLL_FOR (int r = 0; r < R; ++r)
        RNNFAST_UNROLL_FOR (int j = 0; j < P * C::gates; ++j) h_part[r][j] = acc[r][j];
      for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) {
          V a[C::columns];
          layer.weights.join(x_part[p] + r * C::gates * width, h_part[r] + p * C::gates, panel + p, a);
          pass.apply_cell(layer, rows, t, row + r, panel + p, a, h[r], h_next[r]);
        }
    }
  };

  RNNFAST_INLINE void apply_cell(const Layer& layer, const StepRows& rows, int64_t t, int64_t r, int64_t p,
                                 const V (&a)[C::columns], const T* h, T* h_next) const {
    const int64_t b = rows.batch(r), unit = p * width, valid = min(width, spec_.hidden_size - unit);
    T* c = C::has_c ? layer.c + (p * pass_.batch + b) * width : nullptr;
    const State<T> prev{load_part(h + unit, valid), C::has_c ? load(c) : V{}};
    V saved[C::saved ? C::saved : 1];
    const State<T> next = C::forward(a, prev, Unit<T>{spec_.activation}, saved);
    store_part(h_next + unit, next.h, valid);
    store_part(layer.y.at(t, b) + unit, next.h, valid);
    if (C::has_c) store<T>(c, next.c);
    if (layer.saved) {
      T* out = layer.saved + (p * schedule_.total() + rows.first + r) * C::saved * width;
      RNNFAST_UNROLL_FOR (int j = 0; j < C::saved; ++j) store<T>(out + j * width, saved[j]);
    }
  }

  const Forward& pass_;
  const Spec& spec_;
  Arena arena_;
  Schedule schedule_;
  Tape<C, T> tape_;
  Extent extent_;
  int64_t panels_, block_;
  int threads_;
  Meeting* meetings_;
  Interrupt interrupt_;
  T *h_, *c_, *x_part_ = nullptr, *between_[2] = {}, *dropped_ = nullptr;
  const T** x_rows_ = nullptr;
  char* packed_ = nullptr;
};

}  // namespace
}  // namespace rnnfast
