"""Options of layers and calls: what they promise apart from values, which test_option_grid.py compares."""

from __future__ import annotations

import copy
import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from oracle import compare_results, exact_threads, layer_results, reference_results
from test_bitwise import FMA, assert_same_bits, assert_same_results, of_a_sequence

T, B, I, H = 9, 7, 5, 19
HARD = rf.Activation("hard_sigmoid", alpha=0.2, beta=0.5)
#: Layers that have, between them, every option, by name.
LAYERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "rnn elu": (rf.RNN, {"activation": "elu", "clip": 0.7, "grad_clip": 0.5}),
    "rnn regularised": (rf.RNN, {"zoneout": 0.3, "recurrent_dropout": 0.2, "input_dropout": 0.2}),
    "lstm peepholes": (rf.LSTM, {"peepholes": True, "coupled_gates": True, "activation": HARD, "clip": 0.9}),
    "lstm projected": (rf.LSTM, {"proj_size": 6, "recurrent_dropout": 0.3, "output_activation": "softsign"}),
    "lstm zoneout": (rf.LSTM, {"zoneout": (0.3, 0.1), "forget_bias": 1.0, "recompute": 3}),
    "lstm normalised": (rf.LSTM, {"layer_norm": True, "recurrent_dropout": 0.2, "grad_clip": 0.2}),
    "gru reset before": (rf.GRU, {"reset_after": False, "recurrent_activation": HARD, "input_dropout": 0.3}),
    "gru normalised": (rf.GRU, {"layer_norm": True, "activation": "softplus"}),
    "gru zoneout": (rf.GRU, {"zoneout": 0.4, "grad_clip": 0.3, "clip": 1.5}),
}
each_layer = pytest.mark.parametrize("kind", LAYERS)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def make(kind: str, layers: int = 2, bidirectional: bool = True, dtype: str = "float32", **options: Any) -> Any:
    cell, own = LAYERS[kind]
    return cell(I, H, layers, bidirectional=bidirectional, dtype=dtype, seed=0, **{**own, **options})


def draw(layer: Any, seed: int = 1, steps: int = T, batch: int = B) -> tuple[Any, ...]:
    """x, hx, grad_output, grad_state."""
    rng = np.random.default_rng(seed)
    output, state = layer(np.zeros((steps, batch, I), layer.dtype))

    def like(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(like(part) for part in value)
        return rng.standard_normal(value.shape).astype(layer.dtype)

    return rng.standard_normal((steps, batch, I)).astype(layer.dtype), like(state), like(output), like(state)


def mapped(value: Any, function: Any) -> Any:
    return tuple(mapped(part, function) for part in value) if isinstance(value, tuple) else function(value)


def named(layer: Any, arguments: tuple[Any, ...], **call: Any) -> dict[str, Any]:
    outputs, gradients = layer_results(layer, *arguments, **call)[0]
    return {**outputs, **gradients}


def rows_of_masks(masks: rf.Masks, row: int, steps: Any = slice(None)) -> rf.Masks:
    """Those of one row of the batch, at some steps."""

    def per_row(arrays: Any) -> Any:
        return None if arrays is None else [array[row : row + 1] for array in arrays]

    def per_step(arrays: Any) -> Any:
        return None if arrays is None else [array[steps, row : row + 1] for array in arrays]

    return rf.Masks(
        0, per_row(masks.input), per_row(masks.recurrent), per_step(masks.zoneout_h), per_step(masks.zoneout_c)
    )


# --- the bitwise contract ---


@each_dtype
@each_layer
def test_instruction_sets_and_threads_agree(kind: str, dtype: str) -> None:
    layer = make(kind, dtype=dtype)
    arguments = draw(layer)
    rng = np.random.default_rng(0)
    call = {"mask": rng.random((T, B)) < 0.7, "masked_output": "carry", "reset": rng.random((T, B)) < 0.2}
    _, _, tape = layer.forward(arguments[0])
    first = None
    for isa, threads in itertools.product(FMA, (1, 2, 3)):
        with rf.use_isa(isa), exact_threads(threads):
            results = named(layer, arguments, **call, masks=tape.masks())
        first = first or results
        assert_same_results(results, first, f"{isa} threads={threads}")


# Several blocks of steps in both passes, and several segments; enough rows for every thread to have some of its own.
@pytest.mark.parametrize(("steps", "batch"), [(230, 1), (31, 40)])
@each_layer
def test_long_sequences_and_large_batches(kind: str, steps: int, batch: int) -> None:
    layer = make(kind, layers=1, bidirectional=False, dtype="float64", recompute=None)
    arguments = draw(layer, steps=steps, batch=batch)
    rng = np.random.default_rng(0)
    call = {"mask": rng.random((steps, batch)) < 0.8, "reset": rng.random((steps, batch)) < 0.1, "reset_to": "initial"}
    masks = layer.forward(arguments[0])[-1].masks()
    layers = [layer]
    if kind not in ("lstm projected", "rnn regularised", "lstm normalised", "gru normalised", "gru reset before"):
        layers.append(make(kind, layers=1, bidirectional=False, dtype="float64", recompute=3))
    first = None
    for one, threads in itertools.product(layers, (1, 2, 3)):
        with exact_threads(threads):
            got, drawn = layer_results(one, *arguments, **call)
            want = reference_results(one, *arguments, masks=drawn, **call)
            # Layer normalisation hands errors of c on from step to step.
            compare_results(one, arguments[0], got, want, slack=4.0 if "normalised" in kind else 1.0)
            results = named(one, arguments, **call, masks=masks)
        first = first or results
        assert_same_results(results, first, f"recompute={one.recompute} threads={threads}")


@each_layer
def test_a_masked_batch_equals_its_rows_one_by_one(isa: str, kind: str) -> None:
    layer = make(kind)
    arguments = draw(layer)
    mask = np.random.default_rng(0).random((T, B)) < 0.6
    mask[:, 0], mask[:, 1] = True, False
    tape = layer.forward(arguments[0])[-1]
    whole = named(layer, arguments, mask=mask, masks=tape.masks())
    for row in range(B):
        steps = np.flatnonzero(mask[:, row])
        x, hx, grad_output, grad_state = arguments
        alone = (
            x[steps, row : row + 1],
            mapped(hx, lambda part, row=row: part[:, row : row + 1]),
            grad_output[steps, row : row + 1],
            mapped(grad_state, lambda part, row=row: part[:, row : row + 1]),
        )
        got = named(layer, alone, masks=rows_of_masks(tape.masks(), row, steps))
        want = of_a_sequence(whole, slice(row, row + 1), steps)
        assert_same_results(of_a_sequence(got, slice(None)), want, f"row {row}")


@pytest.mark.parametrize("reset_to", ["zero", "initial"])
@each_layer
def test_a_reset_equals_split_runs(isa: str, kind: str, reset_to: str) -> None:
    """Output, final state and the gradient by the input, of a layer that reads forwards."""
    layer = make(kind, bidirectional=False, input_dropout=0.0, recurrent_dropout=0.0, zoneout=0.0)
    x, hx, grad_output, grad_state = draw(layer)
    cuts = [0, 4, 6, T]
    reset = np.zeros((T, B), bool)
    reset[cuts[1:-1]] = True
    output, state, tape = layer.forward(x, hx, reset=reset, reset_to=reset_to)
    grads = layer.backward(tape, grad_output, grad_state, per_step=True)
    for start, stop in itertools.pairwise(cuts):
        initial = hx if start == 0 or reset_to == "initial" else None
        piece, final, piece_tape = layer.forward(x[start:stop], initial)
        last = stop == T
        piece_grads = layer.backward(piece_tape, grad_output[start:stop], grad_state if last else None, per_step=True)
        assert_same_bits("output", output[start:stop], piece)
        assert_same_bits("grads.input", grads.input[start:stop], piece_grads.input)
        for whole, part in zip(grads.per_step, piece_grads.per_step, strict=True):
            assert_same_bits("per_step", whole[start:stop], part)
        if last:
            assert_same_bits("state", state, final)
        if start == 0 and reset_to == "zero":
            assert_same_bits("grads.state", grads.state, piece_grads.state)


@each_layer
def test_chunks_and_frozen_steps_equal_the_whole(isa: str, kind: str) -> None:
    layer = make(kind, bidirectional=False)
    x, hx, _, _ = draw(layer)
    output, state = layer(x, hx)
    frozen = layer.freeze()
    assert_same_bits("frozen", frozen(x, hx), (output, state))
    first, between = layer(x[:4], hx)
    second, after = layer(x[4:], between)
    assert_same_bits("chunks", (np.concatenate([first, second]), after), (output, state))
    stream = frozen.stream(B)
    stream.state = hx
    assert_same_bits("steps", np.stack([stream.step(x_t) for x_t in x]), output)
    assert_same_bits("the stream's state", stream.state, state)


@each_layer
def test_a_full_mask_and_no_reset_change_nothing(isa: str, kind: str) -> None:
    layer = make(kind)
    arguments = draw(layer)
    masks = layer.forward(arguments[0])[-1].masks()
    plain = named(layer, arguments, masks=masks)
    for call in ({"mask": np.ones((T, B), bool)}, {"reset": np.zeros((T, B), bool)}, {"lengths": [T] * B}):
        assert_same_results(named(layer, arguments, masks=masks, **call), plain, str(list(call)))


def test_nan_in_a_masked_step_reaches_nothing(isa: str) -> None:
    mask = np.random.default_rng(0).random((T, B)) < 0.6
    for kind in LAYERS:
        layer = make(kind)
        x, hx, grad_output, grad_state = draw(layer)
        masks = layer.forward(x)[-1].masks()
        clean = named(layer, (x, hx, grad_output, grad_state), mask=mask, masks=masks)
        x[~mask], grad_output[~mask] = np.nan, np.nan
        assert_same_results(named(layer, (x, hx, grad_output, grad_state), mask=mask, masks=masks), clean, kind)


# --- masks of the regularisers ---


@each_layer
def test_masks_of_a_tape_make_the_same_pass_again(kind: str) -> None:
    layer = make(kind, dropout=0.3)
    arguments = draw(layer)
    output, _, tape = layer.forward(arguments[0])
    again, _, other = layer.forward(arguments[0], masks=tape.masks())
    assert_same_bits("output", again, output)
    from_seed, _, _ = layer.forward(arguments[0], masks=rf.Masks(seed=tape.masks().seed))
    assert_same_bits("output", from_seed, output)
    assert other.masks().seed == tape.masks().seed
    fresh = layer.forward(arguments[0])[0]
    assert fresh.tobytes() != output.tobytes()
    plain = layer(arguments[0])[0]
    assert plain.tobytes() != output.tobytes()


def test_the_same_seed_draws_the_same_masks_in_the_same_order() -> None:
    first, second = (make("rnn regularised") for _ in range(2))
    x = draw(first)[0]
    for _ in range(3):
        assert_same_bits("output", first.forward(x)[0], second.forward(x)[0])


@pytest.mark.parametrize("form", ["time first", "batch first", "unbatched"])
def test_masks_have_their_rates_and_shapes(form: str) -> None:
    layer = rf.LSTM(
        400, 300, 2, batch_first=form == "batch first", bidirectional=True, zoneout=(0.2, 0.6), recurrent_dropout=0.3,
        input_dropout=0.4, seed=0,
    )  # fmt: skip
    shape = {"time first": (3, 8), "batch first": (8, 3), "unbatched": (3,)}[form]
    batch = () if form == "unbatched" else (8,)
    _, _, tape = layer.forward(np.zeros((*shape, 400), np.float32))
    masks = tape.masks()
    assert [mask.shape for mask in masks.input] == [(*batch, 400), (*batch, 600)]
    assert [mask.shape for mask in masks.recurrent] == [(*batch, 300)] * 4
    for kept, rate in ((masks.zoneout_h, 0.2), (masks.zoneout_c, 0.6)):
        assert [mask.shape for mask in kept] == [(*shape, 300)] * 4
        assert {mask.dtype for mask in kept} == {np.dtype(bool)}
        assert abs(np.mean([mask.mean() for mask in kept]) - rate) < 0.03
    for factors, rate in ((masks.input, 0.4), (masks.recurrent, 0.3)):
        values = np.concatenate([mask.ravel() for mask in factors])
        assert set(np.unique(values)) == {np.float32(0), np.float32(1 / (1 - rate))}
        assert abs((values == 0).mean() - rate) < 0.06
    assert tape.nbytes > sum(mask.nbytes for mask in (*masks.zoneout_h, *masks.input))


def test_extreme_rates() -> None:
    x = draw(make("gru zoneout"))[0]
    for layer in (rf.LSTM(I, H, zoneout=1.0, seed=0), rf.GRU(I, H, zoneout=1.0, seed=0)):
        assert not layer.forward(x)[0].any() and not layer(x)[0].any()  # the initial state stays
    dead = rf.GRU(I, H, recurrent_dropout=1.0, input_dropout=1.0, seed=0)
    still = dead.forward(x)[0]
    assert np.isfinite(still).all() and (still == still[:, :1]).all()  # no input, no recurrence: all rows alike


# --- initial parameters ---


def test_forget_bias_is_added_to_the_rows_of_the_forget_gate() -> None:
    for bidirectional in (False, True):
        plain, biased = (rf.LSTM(3, 4, 2, bidirectional=bidirectional, forget_bias=b, seed=0) for b in (0.0, 1.5))
        for name, value in plain.parameters.items():
            want = value.copy()
            if name.startswith("bias_ih"):
                want[4:8] += np.float32(1.5)
            np.testing.assert_allclose(biased.parameters[name], want, rtol=1e-6)


def test_layer_norm_starts_as_a_plain_normalisation() -> None:
    layer = rf.LSTM(3, 4, 2, layer_norm=True, seed=0)
    for name, value in layer.parameters.items():
        if "_ln_" in name:
            assert (value == (1.0 if name.startswith("weight") else 0.0)).all(), name
        else:
            assert (np.abs(value) <= 0.5).all() and value.std() > 0.1, name
    shapes = {name: value.shape for name, value in layer.parameters.items() if name.endswith("_l1")}
    assert shapes == {
        "weight_ih_l1": (16, 4), "weight_hh_l1": (16, 4), "bias_ih_l1": (16,), "bias_hh_l1": (16,),
        "weight_ln_ih_l1": (16,), "weight_ln_hh_l1": (16,), "weight_ln_c_l1": (4,), "bias_ln_c_l1": (4,),
    }  # fmt: skip


def test_options_draw_the_same_weights() -> None:
    plain = rf.LSTM(I, H, seed=0).parameters
    for options in ({"peepholes": True}, {"clip": 1.0}, {"layer_norm": True}, {"zoneout": 0.5}):
        other = rf.LSTM(I, H, seed=0, **options).parameters
        for name, value in plain.items():
            assert_same_bits(name, other[name], value)


# --- copies and files ---


@each_layer
def test_copies_and_files_keep_every_option(kind: str, tmp_path: Path) -> None:
    layer = make(kind, dropout=0.2)
    x, hx, _, _ = draw(layer)
    want = layer(x, hx)
    path = tmp_path / "layer.npz"
    rf.save(path, layer)
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), rf.load(path)):
        assert type(other) is type(layer) and repr(other) == repr(layer)
        assert other._config == layer._config
        assert_same_bits("results", other(x, hx), want)
    frozen = pickle.loads(pickle.dumps(layer.freeze()))
    assert_same_bits("results", frozen(x, hx), want)
    fresh = make(kind, dropout=0.2)
    fresh.load_state_dict(layer.state_dict())
    assert_same_bits("results", fresh(x, hx), want)


def test_files_keep_widths_and_activations_of_each_direction(tmp_path: Path) -> None:
    layer = rf.GRU(3, (4, 6), 2, bidirectional=True, activation=(rf.Activation("elu", alpha=0.5), "tanh"), seed=0)
    rf.save(tmp_path / "layer.npz", layer)
    other = rf.load(tmp_path / "layer.npz")
    assert repr(other) == repr(layer)
    assert other.hidden_size == (4, 6)
    assert other.activation == (rf.Activation("elu", alpha=0.5), rf.Activation("tanh"))


def test_reprs_show_what_differs_from_the_defaults() -> None:
    layer = rf.LSTM(3, 8, proj_size=2, activation="softsign", recurrent_activation=HARD, clip=3)
    assert repr(layer) == (
        "LSTM(3, 8, proj_size=2, activation='softsign', "
        "recurrent_activation=Activation('hard_sigmoid', alpha=0.2, beta=0.5), clip=3.0)"
    )
    assert repr(rf.LSTM(3, 8, zoneout=(0.1, 0.2))) == "LSTM(3, 8, zoneout=(0.1, 0.2))"
    assert repr(rf.GRU(3, (4, 5), 2, reset_after=False)) == "GRU(3, (4, 5), num_layers=2, reset_after=False)"
    assert repr(rf.RNN(3, 4, activation="elu")) == "RNN(3, 4, activation=Activation('elu', alpha=1.0))"
    assert repr(rf.RNN(3, 4, activation="relu")) == "RNN(3, 4, nonlinearity='relu')"


# --- widths per layer ---


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", [rf.RNN, rf.LSTM, rf.GRU])
def test_layers_of_different_widths_equal_a_chain_of_layers(isa: str, cell: Any, bidirectional: bool) -> None:
    sizes, directions = (7, 12, 5), 2 if bidirectional else 1
    layer = cell(I, sizes, 3, bidirectional=bidirectional, seed=0)
    x, hx, _, _ = draw(layer)
    output, state = layer(x, hx)
    for number, size in enumerate(sizes):
        single = cell(x.shape[2], size, bidirectional=bidirectional)
        for name in single.parameters:
            single.parameters[name] = layer.parameters[name.replace("_l0", f"_l{number}")]
        own = tuple(part[number] for part in hx) if cell is rf.LSTM else hx[number]
        x, final = single(x, own)
        for got, want in zip(state if cell is rf.LSTM else [state], final if cell is rf.LSTM else [final], strict=True):
            assert got[number].shape == (directions, B, size)
            assert_same_bits(f"state of layer {number}", np.ascontiguousarray(got[number]), want)
    assert_same_bits("output", output, x)


def test_streams_and_unbatched_calls_have_states_of_each_layer() -> None:
    layer = rf.LSTM(I, (7, 12), 2, seed=0)
    x = draw(layer)[0]
    output, state = layer(x[:, 0])
    assert [part.shape for part in state[0]] == [(1, 7), (1, 12)]
    stream = layer.freeze().stream(2)
    steps = [stream.step(x_t[:2]) for x_t in x]
    assert_same_bits("output", np.stack(steps)[:, 0], output)
    h, c = stream.state
    assert [part.shape for part in (*h, *c)] == [(1, 2, 7), (1, 2, 12)] * 2
    stream.reset(0)
    h, _ = stream.state
    assert all(not part[:, 0].any() and part[:, 1].any() for part in h)
    stream.state = state_of_two = tuple(tuple(np.ones_like(part) for part in parts) for parts in stream.state)
    assert_same_bits("state", stream.state, state_of_two)


# --- outputs ---


@pytest.mark.parametrize("form", ["time first", "batch first", "unbatched"])
def test_extra_outputs_follow_the_state_and_the_tape_comes_last(form: str) -> None:
    layer = rf.LSTM(I, H, 2, bidirectional=True, batch_first=form == "batch first", seed=0)
    x = {"time first": np.ones((T, B, I)), "batch first": np.ones((B, T, I)), "unbatched": np.ones((T, I))}[form]
    x = x.astype(np.float32)
    output, (_, c), cells, gates = layer(x, return_cell=True, return_gates=True)
    assert cells.shape == (*x.shape[:-1], 2 * H) and gates.shape == (*x.shape[:-1], 8 * H)
    *_, tape = layer.forward(x, return_cell=True)
    assert isinstance(tape, rf.Tape)
    assert_same_bits("cells", layer.forward(x, return_cell=True)[2], cells)
    assert_same_bits("gates", layer.freeze()(x, return_gates=True)[2], gates)
    last = cells[:, -1, :H] if form == "batch first" else cells[-1, ..., :H]
    assert_same_bits("the last c", np.ascontiguousarray(last), np.ascontiguousarray(c[2]))
    forget = gates[..., H : 2 * H]
    assert ((forget > 0) & (forget < 1)).all()


# --- what is refused ---

sample = np.zeros((T, B, I), np.float32)
some = np.zeros((T, B), bool)
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "two names": (lambda: rf.RNN(3, 4, nonlinearity="relu", activation="elu"), ValueError, "exclude each other"),
    "unknown activation": (lambda: rf.RNN(3, 4, activation="gelu"), ValueError, "must be one of 'tanh', 'sigmoid'"),
    "no activation": (lambda: rf.GRU(3, 4, activation=3), TypeError, "activation must be the name of an activation"),
    "bare hard sigmoid": (lambda: rf.GRU(3, 4, recurrent_activation="hard_sigmoid"), ValueError, "needs alpha and"),
    "alpha of tanh": (lambda: rf.Activation("tanh", alpha=1.0), ValueError, "'tanh' has no alpha"),
    "alpha of inf": (lambda: rf.Activation("elu", alpha=np.inf), ValueError, "alpha of the activation 'elu' must be f"),
    "pair for one direction": (
        lambda: rf.GRU(3, 4, activation=("tanh", "elu")), ValueError, "a pair is for bidirectional layers",
    ),
    "three activations": (
        lambda: rf.GRU(3, 4, bidirectional=True, activation=("tanh",) * 3), ValueError, "two directions, got 3",
    ),
    "clip 0": (lambda: rf.GRU(3, 4, clip=0), ValueError, "clip must be None or a positive number, got 0.0"),
    "grad_clip": (lambda: rf.GRU(3, 4, grad_clip=-1), ValueError, "grad_clip must be None or a positive number"),
    "zoneout of GRU": (lambda: rf.GRU(3, 4, zoneout=(0.1, 0.2)), TypeError, "zoneout must be a number, that of h"),
    "zoneout of 3": (lambda: rf.LSTM(3, 4, zoneout=(0.1,) * 3), ValueError, "two for h and c, got 3"),
    "zoneout 2": (lambda: rf.LSTM(3, 4, zoneout=(0.1, 2)), ValueError, "zoneout[1] must be a number in [0, 1]"),
    "recurrent_dropout": (lambda: rf.RNN(3, 4, recurrent_dropout=1.5), ValueError, "recurrent_dropout must be"),
    "proj_size": (lambda: rf.LSTM(3, 4, proj_size=4), ValueError, "proj_size must be less than hidden_size = 4, got 4"),
    "sizes": (lambda: rf.RNN(3, (4, 5), 3), ValueError, "one number or num_layers = 3 numbers, got 2"),
    "size 0": (lambda: rf.RNN(3, (4, 0), 2), ValueError, "hidden_size[1] must be at least 1, got 0"),
    "forget_bias": (lambda: rf.LSTM(3, 4, bias=False, forget_bias=1.0), ValueError, "forget_bias needs bias=True"),
    "forget_bias, coupled": (
        lambda: rf.LSTM(3, 4, coupled_gates=True, forget_bias=1.0), ValueError, "forget_bias and coupled_gates exclude",
    ),
    "lengths and mask": (
        lambda: rf.GRU(I, H)(sample, lengths=[1] * B, mask=some), ValueError, "lengths and mask exclude each other",
    ),
    "mask shape": (lambda: rf.GRU(I, H)(sample, mask=some.T), ValueError, "mask must have shape (9, 7)"),
    "mask dtype": (lambda: rf.GRU(I, H)(sample, mask=some + 1.0), TypeError, "mask must be bool, got float64"),
    "reset dtype": (lambda: rf.GRU(I, H)(sample, reset=some + 1), TypeError, "reset must be bool, got int64"),
    "masked_output": (lambda: rf.GRU(I, H)(sample, masked_output="last"), ValueError, "masked_output must be one of"),
    "carry without mask": (
        lambda: rf.GRU(I, H)(sample, masked_output="carry"), ValueError, "masked_output='carry' needs a mask",
    ),
    "reset_to": (lambda: rf.GRU(I, H)(sample, reset=some, reset_to=0), ValueError, "reset_to must be one of 'zero'"),
    "reset_to without reset": (
        lambda: rf.GRU(I, H)(sample, reset_to="initial"), ValueError, "reset_to='initial' needs reset",
    ),
    "cells of GRU": (lambda: rf.GRU(I, H)(sample, return_cell=True), ValueError, "return_cell needs an LSTM"),
    "gates of RNN": (lambda: rf.RNN(I, H)(sample, return_gates=True), ValueError, "return_gates needs an LSTM or GRU"),
    "return_cell": (lambda: rf.LSTM(I, H)(sample, return_cell=1), TypeError, "return_cell must be True or False"),
    "masks": (lambda: rf.LSTM(I, H).forward(sample, masks=[some]), TypeError, "masks must be a Masks"),
    "masks unused": (
        lambda: rf.LSTM(I, H).forward(sample, masks=rf.Masks(input=[some])), ValueError,
        "masks.input is given, but the layer's input_dropout is 0",
    ),
    "masks count": (
        lambda: rf.LSTM(I, H, zoneout=0.1).forward(sample, masks=rf.Masks(zoneout_h=[])), ValueError,
        "masks.zoneout_h must be a list of 1 arrays, got 0",
    ),
    "masks shape": (
        lambda: rf.GRU(I, H, recurrent_dropout=0.1).forward(sample, masks=rf.Masks(recurrent=[np.ones((B, I), "f4")])),
        ValueError, f"masks.recurrent[0] must have shape ({B}, {H})",
    ),
    "masks seed": (lambda: rf.GRU(I, H).forward(sample, masks=rf.Masks(-1)), ValueError, "seed must be at least 0"),
    "state of widths": (
        lambda: rf.GRU(I, (3, 4), 2)(sample, (np.zeros((1, B, 3), "f4"),)), ValueError,
        "hx must be a tuple of 2 arrays, one for each layer, got 1 elements",
    ),
    "state of widths as one": (
        lambda: rf.GRU(I, (3, 4), 2)(sample, np.zeros((2, B, 3), "f4")), ValueError,
        "hx must be a tuple of 2 arrays, one for each layer, got an array of shape",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_options_are_refused_with_a_message(case: str) -> None:
    call, error, message = REFUSED[case]
    with pytest.raises(error) as raised:
        call()
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        (rf.LSTM, {"proj_size": 2, "hidden_size": (4, 4), "num_layers": 2}),
        (rf.LSTM, {"proj_size": 2, "zoneout": 0.1}),
        (rf.LSTM, {"proj_size": 2, "layer_norm": True}),
        (rf.LSTM, {"layer_norm": True, "peepholes": True}),
        (rf.LSTM, {"layer_norm": True, "coupled_gates": True}),
        (rf.LSTM, {"layer_norm": True, "zoneout": (0.0, 0.1)}),
        (rf.LSTM, {"layer_norm": True, "recompute": 2}),
        (rf.LSTM, {"recurrent_dropout": 0.1, "recompute": 2}),
        (rf.GRU, {"layer_norm": True, "reset_after": False}),
        (rf.GRU, {"layer_norm": True, "zoneout": 0.1}),
        (rf.GRU, {"reset_after": False, "recompute": 2}),
        (rf.RNN, {"recurrent_dropout": 0.1, "recompute": 2}),
    ],
)
def test_pairs_that_mean_nothing_are_refused_with_a_reason(cell: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"exclude each other: \w+"):
        cell(3, **{"hidden_size": 4, **options})


@pytest.mark.parametrize("option", ["peepholes", "coupled_gates", "proj_size", "forget_bias", "output_activation"])
@pytest.mark.parametrize("cell", [rf.RNN, rf.GRU])
def test_an_option_that_a_cell_does_not_have_is_refused(cell: Any, option: str) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
        cell(3, 4, **{option: 1})


@pytest.mark.parametrize("option", ["layer_norm", "recurrent_activation", "reset_after"])
def test_an_rnn_has_neither_gates_nor_normalisation(option: str) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
        rf.RNN(3, 4, **{option: True})
