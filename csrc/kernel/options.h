// What a layer may have that is off by default, and the cell that runs with it.
#pragma once

#include "layout.h"

namespace rnnfast {
namespace {

// Of one layer and direction.
template <class T> struct Options {
  const Spec* spec = nullptr;
  int direction = 0;
  int64_t saved = 0;               // values per unit and row on the tape
  bool any = false;                // whether the pointwise part has anything to do with this struct
  bool general = false;            // whether it takes the cell's general form
  T zoneout_h = 0, zoneout_c = 0;  // without masks: the share of the value before
  const uint8_t *keeps_h = nullptr, *keeps_c = nullptr;  // [T, B, H] or null: 1 where the value before is kept
  const T* recurrent_mask = nullptr;                     // [B, S] or null
  Rows<T> cells{}, gates{};                              // wanted if their data is not null

  Options() = default;
  RNNFAST_INLINE Options(const Forward& pass, int64_t l, int64_t d, bool general, int64_t saved)
      : spec(&pass.spec), direction(static_cast<int>(d)), saved(saved), general(general) {
    any = general || spec->proj_size || pass.recurrent_masks || pass.cells.data || pass.gates.data;
    if (!any) return;
    const int64_t number = l * spec->num_directions + d, units = units_of(*spec, l);
    if (!pass.tape) zoneout_h = static_cast<T>(spec->zoneout_h), zoneout_c = static_cast<T>(spec->zoneout_c);
    if (pass.tape && pass.zoneout_h_masks) keeps_h = pass.zoneout_h_masks[number];
    if (pass.tape && pass.zoneout_c_masks) keeps_c = pass.zoneout_c_masks[number];
    if (pass.tape && pass.recurrent_masks) recurrent_mask = static_cast<const T*>(pass.recurrent_masks[number]);
    if (l + 1 == spec->num_layers) {
      cells = rows_of<T>(pass.cells), gates = rows_of<T>(pass.gates);
      if (cells.data) cells.data += d * units;
      if (gates.data) gates.data += d * gates_of(spec->cell) * units;
    }
  }

  // `peepholes`: those of the unit's panel, or null.
  Unit<T> unit(const T* peepholes) const { return Unit<T>(*spec, direction, peepholes); }
};

// The place of some units of a row in a [T, B, H] array.
struct Place {
  int64_t at, valid;
};

// `before` where the unit keeps its value, else `next`.
template <class T> vec<T> keep(const uint8_t* keeps, Place place, vec<T> before, vec<T> next) {
  for (int64_t j = 0; j < place.valid; ++j)
    if (keeps[place.at + j]) next[j] = before[j];
  return next;
}

// Zoneout (Krueger et al. 2016): some units keep their value; at inference every unit keeps a share of it.
template <class T> vec<T> zone_out(const uint8_t* keeps, T share, Place place, vec<T> before, vec<T> next) {
  if (keeps) return keep<T>(keeps, place, before, next);
  return share > 0 ? fma(splat(share), before, (1 - share) * next) : next;
}

template <class C, class T>
RNNFAST_NOINLINE State<vec<T>> run_cell(const Options<T>& options, const T* peepholes, int64_t panel,
                                        const vec<T> (&a)[C::columns], State<vec<T>> prev, bool relu,
                                        vec<T> (&saved)[C::saved_general], vec<T> (&gates)[C::gates], Place place) {
  if (!options.general) {
    vec<T> values[C::saved ? C::saved : 1];
    const State<vec<T>> next = C::forward(a, prev, relu, values);
    for (int j = 0; j < C::saved; ++j) saved[j] = values[j];
    for (int g = 0; g < C::gates; ++g) gates[g] = C::saved ? values[g] : next.h;
    return next;
  }
  const Unit<T> unit = options.unit(peepholes ? peepholes + panel * 3 * lanes<T> : nullptr);
  State<vec<T>> next = C::forward_general(a, prev, unit, saved, gates);
  next.h = zone_out(options.keeps_h, options.zoneout_h, place, prev.h, next.h);
  if (!C::has_c) return next;
  next.c = zone_out(options.keeps_c, options.zoneout_c, place, prev.c, next.c);
  saved[C::saved - 1] = next.c;
  return next;
}

// As the cell's backward; d_peepholes has 3 elements.
template <class C, class T>
RNNFAST_NOINLINE State<vec<T>> run_cell_backward(const Options<T>& options, const T* peepholes, int64_t panel,
                                                 const vec<T> (&saved)[C::saved_general], vec<T> h, State<vec<T>> prev,
                                                 State<vec<T>> d, bool relu, vec<T> (&da)[C::columns],
                                                 vec<T>* d_peepholes, Place place) {
  if (!options.general) {
    vec<T> values[C::saved ? C::saved : 1];
    for (int j = 0; j < C::saved; ++j) values[j] = saved[j];
    return C::backward(values, h, prev, d, relu, da);
  }
  const vec<T> zero{};
  State<vec<T>> through{}, direct = d;  // through the cell, and past it to the state before
  through.h = options.keeps_h ? keep<T>(options.keeps_h, place, zero, d.h) : d.h;
  direct.h = options.keeps_h ? keep<T>(options.keeps_h, place, d.h, zero) : zero;
  through.c = options.keeps_c ? keep<T>(options.keeps_c, place, zero, d.c) : d.c;
  direct.c = options.keeps_c ? keep<T>(options.keeps_c, place, d.c, zero) : zero;
  const Unit<T> unit = options.unit(peepholes ? peepholes + panel * 3 * lanes<T> : nullptr);
  const State<vec<T>> d_prev = C::backward_general(saved, prev, through, unit, da, d_peepholes);
  return {d_prev.h + direct.h, d_prev.c + direct.c};
}

}  // namespace
}  // namespace rnnfast
