"""The reference itself: against central differences, and against PyTorch in float64.

Everything else in the project is compared with the reference, so it is checked here by two means that share nothing
with it: the definition of a derivative, and another implementation.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest

from oracle import assert_close_gradient, assert_close_output, compare_layer, tolerances
from rnnfast import reference

# Sizes that differ, so that no axis can be taken for another.
T, B, I, H = 4, 3, 5, 2
RAGGED = [2, 4, 0]  # not sorted, one row full, one empty

KINDS = [("rnn", "tanh"), ("rnn", "relu"), ("lstm", "tanh"), ("gru", "tanh")]
STACKS = list(itertools.product([1, 2], [False, True]))  # layers, bidirectional


@dataclass
class Problem:
    """A layer, its input, and a loss: the sum of every output and state times a fixed random weight."""

    cell: str
    options: dict
    parameters: dict[str, np.ndarray]
    x: np.ndarray
    state: tuple[np.ndarray, ...]
    grad_output: np.ndarray
    grad_state: tuple[np.ndarray, ...]

    def forward(self):
        return reference.forward(self.cell, self.parameters, self.x, unwrap(self.state), **self.options)

    def loss(self) -> float:
        output, state, _ = self.forward()
        weighted = [output * self.grad_output]
        weighted += [s * w for s, w in zip(wrap(state), self.grad_state, strict=True)]
        return float(sum(part.sum() for part in weighted))

    def gradients(self) -> reference.Gradients:
        return reference.backward(self.forward()[2], self.grad_output, unwrap(self.grad_state))


def wrap(state) -> tuple:
    return state if isinstance(state, tuple) else (state,)


def unwrap(state):
    return state if len(state) > 1 else state[0]


def make_problem(
    kind, layers=1, bidirectional=False, bias=True, lengths=None, sizes=(T, B, I, H), dropout=False, seed=0
) -> Problem:
    cell, nonlinearity = kind
    steps, batch, input_size, hidden_size = sizes
    rng = np.random.default_rng(seed)
    directions = 2 if bidirectional else 1
    rows = reference.CELLS[cell].gates * hidden_size
    parameters = {}
    for layer, direction in itertools.product(range(layers), range(directions)):
        end = f"_l{layer}" + ("_reverse" if direction else "")
        width = input_size if layer == 0 else directions * hidden_size
        parameters["weight_ih" + end] = rng.normal(scale=0.7, size=(rows, width))
        parameters["weight_hh" + end] = rng.normal(scale=0.7, size=(rows, hidden_size))
        if bias:
            parameters["bias_ih" + end] = rng.normal(scale=0.5, size=rows)
            parameters["bias_hh" + end] = rng.normal(scale=0.5, size=rows)
    states = len(reference.CELLS[cell].states)
    state_shape = (layers * directions, batch, hidden_size)
    output_shape = (steps, batch, directions * hidden_size)
    masks = [rng.choice([0.0, 2.0], size=output_shape) for _ in range(layers - 1)] if dropout else None
    return Problem(
        cell,
        {
            "nonlinearity": nonlinearity,
            "num_layers": layers,
            "bidirectional": bidirectional,
            "lengths": lengths,
            "dropout_masks": masks,
        },
        parameters,
        rng.normal(size=(steps, batch, input_size)),
        tuple(rng.normal(scale=0.5, size=state_shape) for _ in range(states)),
        rng.normal(size=output_shape),
        tuple(rng.normal(size=state_shape) for _ in range(states)),
    )


STEP = 1e-5  # error of a central difference: STEP**2 from the third derivative, eps * |loss| / STEP from rounding


def central_differences(loss, array: np.ndarray) -> np.ndarray:
    """The gradient of ``loss()`` by every element of ``array``, which is changed in place and restored."""
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + STEP
        above = loss()
        array[index] = kept - STEP
        below = loss()
        array[index] = kept
        gradient[index] = (above - below) / (2 * STEP)
    return gradient


def assert_gradient(name: str, got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-8, err_msg=name)


def check_gradients(problem: Problem) -> None:
    grads = problem.gradients()
    assert_gradient("input", grads.input, central_differences(problem.loss, problem.x))
    for number, got in enumerate(wrap(grads.state)):
        assert_gradient(f"state {number}", got, central_differences(problem.loss, problem.state[number]))
    assert list(grads.parameters) == list(problem.parameters)
    for name, got in grads.parameters.items():
        assert_gradient(name, got, central_differences(problem.loss, problem.parameters[name]))


@pytest.mark.parametrize("lengths", [None, RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("layers", "bidirectional"), STACKS)
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_gradients_are_central_differences(kind, layers, bidirectional, bias, lengths):
    check_gradients(make_problem(kind, layers, bidirectional, bias, lengths))


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_gradients_with_dropout_masks(kind):
    check_gradients(make_problem(kind, 2, True, lengths=RAGGED, dropout=True))


@pytest.mark.parametrize("lengths", [None, RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize(("layers", "bidirectional"), STACKS)
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_per_step_is_the_gradient_by_each_h(monkeypatch, kind, layers, bidirectional, lengths):
    """Every h_t is moved where it is made, so the change reaches the output, the layer above and the next step."""
    problem = make_problem(kind, layers, bidirectional, lengths=lengths)
    per_step = problem.gradients().per_step
    directions = 2 if bidirectional else 1
    valid = np.arange(T)[:, None] < np.array([T] * B if lengths is None else lengths)
    moved = np.zeros((layers * directions, T, B, H))
    cell = reference.CELLS[problem.cell]
    calls = itertools.count()

    def step(layer, x, h_in, prev):
        (h, *rest), gates, saved = cell.step(layer, x, h_in, prev)
        run, t = divmod(next(calls) % (layers * directions * T), T)  # one call per run and step, run by run
        if run % directions == 1:
            t = T - 1 - t
        return (h + moved[run, t, valid[t]], *rest), gates, saved

    monkeypatch.setitem(reference.CELLS, problem.cell, replace(cell, step=step))
    want = central_differences(problem.loss, moved)
    assert len(per_step) == layers * directions
    for run, got in enumerate(per_step):
        assert_gradient(f"per_step[{run}]", got, want[run])


def torch_layer(torch, problem: Problem, bias: bool):
    options = {} if problem.cell != "rnn" else {"nonlinearity": problem.options["nonlinearity"]}
    layer = getattr(torch.nn, problem.cell.upper())(
        problem.x.shape[2],
        problem.state[0].shape[2],
        problem.options["num_layers"],
        bias=bias,
        bidirectional=problem.options["bidirectional"],
        dtype=torch.float64,
        **options,
    )
    layer.load_state_dict({name: torch.from_numpy(value) for name, value in problem.parameters.items()})
    return layer


@pytest.mark.parametrize("lengths", [None, [5, 11, 1, 7, 11]], ids=["full", "packed"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("layers", "bidirectional"), STACKS)
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_torch_agrees(kind, layers, bidirectional, bias, lengths):
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    problem = make_problem(kind, layers, bidirectional, bias, lengths, sizes=(11, 5, 3, 7))
    layer = torch_layer(torch, problem, bias)
    x = torch.tensor(problem.x, requires_grad=True)
    state = tuple(torch.tensor(s, requires_grad=True) for s in problem.state)

    inputs = x
    if lengths is not None:
        inputs = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    output, final = layer(inputs, unwrap(state))
    if lengths is not None:
        output, _ = torch.nn.utils.rnn.pad_packed_sequence(output)
    torch.autograd.backward(
        (output, *wrap(final)), tuple(torch.from_numpy(g) for g in (problem.grad_output, *problem.grad_state))
    )

    got_output, got_final, _ = problem.forward()
    got = problem.gradients()
    np.testing.assert_allclose(got_output, output.detach().numpy(), rtol=1e-12, atol=1e-13)
    for ours, theirs in zip(wrap(got_final), wrap(final), strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-12, atol=1e-13)

    def same(name, ours, theirs):
        theirs = theirs.grad.numpy()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-13 * np.abs(theirs).max(), err_msg=name)

    same("input", got.input, x)
    for ours, theirs in zip(wrap(got.state), state, strict=True):
        same("state", ours, theirs)
    for name, theirs in layer.named_parameters():
        same(name, got.parameters[name], theirs)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_a_row_does_not_depend_on_its_padding_or_its_neighbours(kind):
    problem = make_problem(kind, 2, True, lengths=RAGGED)
    output, state, _ = problem.forward()
    grads = problem.gradients()
    for b, length in enumerate(RAGGED):
        alone = Problem(
            problem.cell,
            {**problem.options, "lengths": None},
            problem.parameters,
            problem.x[:length, b : b + 1],
            tuple(s[:, b : b + 1] for s in problem.state),
            problem.grad_output[:length, b : b + 1],
            tuple(g[:, b : b + 1] for g in problem.grad_state),
        )
        alone_output, alone_state, _ = alone.forward()
        alone_grads = alone.gradients()
        np.testing.assert_allclose(output[:length, b], alone_output[:, 0], rtol=1e-13)
        np.testing.assert_allclose(grads.input[:length, b], alone_grads.input[:, 0], rtol=1e-12, atol=1e-15)
        for whole, part in zip(
            wrap(state) + wrap(grads.state), wrap(alone_state) + wrap(alone_grads.state), strict=True
        ):
            np.testing.assert_allclose(whole[:, b], part[:, 0], rtol=1e-12, atol=1e-15)
        assert not output[length:, b].any()
        assert not grads.input[length:, b].any()
        assert not any(step[length:, b].any() for step in grads.per_step)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_nan_beyond_a_length_reaches_nothing(kind):
    problem = make_problem(kind, 2, True, lengths=RAGGED)
    clean_output, clean = problem.forward()[0], problem.gradients()
    for b, length in enumerate(RAGGED):
        problem.x[length:, b] = np.nan
        problem.grad_output[length:, b] = np.nan
    np.testing.assert_array_equal(problem.forward()[0], clean_output)
    dirty = problem.gradients()
    np.testing.assert_array_equal(dirty.input, clean.input)
    for name, value in clean.parameters.items():
        np.testing.assert_array_equal(dirty.parameters[name], value)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_a_row_of_length_0_passes_its_state_through(kind):
    problem = make_problem(kind, 2, True, lengths=RAGGED)
    _, state, _ = problem.forward()
    grads = problem.gradients()
    for initial, final in zip(problem.state, wrap(state), strict=True):
        np.testing.assert_array_equal(final[:, 2], initial[:, 2])
    for by_final, by_initial in zip(problem.grad_state, wrap(grads.state), strict=True):
        np.testing.assert_array_equal(by_initial[:, 2], by_final[:, 2])


@pytest.mark.parametrize("sizes", [(0, B, I, H), (T, 0, I, H), (0, 0, I, H), (T, B, 0, H), (T, B, I, 0)])
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_empty_sizes(kind, sizes):
    problem = make_problem(kind, 2, True, sizes=sizes, lengths=[0] * sizes[1])
    for lengths in (None, [0] * sizes[1]):
        problem.options["lengths"] = lengths
        output, state, _ = problem.forward()
        grads = problem.gradients()
        assert output.shape == problem.grad_output.shape
        assert grads.input.shape == problem.x.shape
        assert {name: g.shape for name, g in grads.parameters.items()} == {
            name: p.shape for name, p in problem.parameters.items()
        }
        assert [step.shape for step in grads.per_step] == [(sizes[0], sizes[1], sizes[3])] * 4
        if sizes[0] == 0:
            for initial, final in zip(problem.state, wrap(state), strict=True):
                np.testing.assert_array_equal(final, initial)
            assert not any(g.any() for g in grads.parameters.values())


def test_everything_is_float64_and_a_tape_serves_twice():
    problem = make_problem(("lstm", "tanh"), 2)
    problem.parameters = {name: p.astype(np.float32) for name, p in problem.parameters.items()}
    problem.x = problem.x.astype(np.float32)
    output, (h, c), tape = problem.forward()
    first = reference.backward(tape, problem.grad_output.astype(np.float32))
    again = reference.backward(tape, problem.grad_output.astype(np.float32), (None, None))
    assert {a.dtype for a in (output, h, c, first.input, *first.parameters.values())} == {np.dtype(np.float64)}
    np.testing.assert_array_equal(first.input, again.input)
    assert not reference.backward(tape).input.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "elman"}, "cell: expected one of rnn, lstm, gru, got 'elman'"),
        ({"nonlinearity": "elu"}, "nonlinearity"),
        ({"num_layers": 2}, "missing .*weight_hh_l1"),
        ({"num_layers": 0}, "num_layers"),
        ({"parameters": {"bias_l0": np.zeros(8)}}, "unknown .*bias_l0"),
        ({"parameters": {"bias_hh_l0": np.zeros(7)}}, r"bias_hh_l0: expected shape \[8\], got \[7\]"),
        ({"parameters": {"weight_hh_l0": np.zeros(7)}}, "weight_hh_l0"),
        ({"x": np.zeros((4, 3))}, "x: expected shape"),
        ({"x": np.zeros((4, 3, 7))}, r"weight_ih_l0: expected shape \[8, 7\]"),
        ({"state": np.zeros((1, 3, 2))}, r"state: expected a tuple \(h, c\)"),
        ({"state": (np.zeros((1, 3, 2)), np.zeros((1, 1, 2)))}, "state c: expected shape"),
        ({"lengths": [1, 2]}, "lengths"),
        ({"lengths": [1.0, 2.0, 3.0]}, "lengths: expected integers"),
        ({"lengths": [1, 2, 5]}, "lengths: expected values from 0 to T = 4, got 1 to 5"),
        ({"dropout_masks": [np.ones((4, 3, 2))]}, "dropout_masks: expected num_layers - 1 = 0 arrays, got 1"),
    ],
)
def test_errors_name_the_argument(change, message):
    problem = make_problem(("lstm", "tanh"))
    arguments = {"cell": "lstm", "parameters": {}, "x": problem.x, **change}
    arguments["parameters"] = problem.parameters | arguments["parameters"]
    with pytest.raises(ValueError, match=message):
        reference.forward(**arguments)


def test_backward_refuses_a_wrong_shape():
    problem = make_problem(("gru", "tanh"))
    with pytest.raises(ValueError, match="grad_output: expected shape"):
        reference.backward(problem.forward()[2], problem.grad_output[1:])


# ---- the comparison that the tests of the layers use ----


class LSTM:
    """The reference in the form of a public layer; ``spoil`` may change what it returns."""

    num_layers, bidirectional = 2, True

    def __init__(self, parameters, dtype, batch_first=False, spoil=lambda output, state, grads: None):
        self.parameters = parameters
        self.dtype, self.batch_first, self.spoil = dtype, batch_first, spoil

    def forward(self, x, hx=None, *, lengths=None):
        x = x[:, None] if x.ndim == 2 else x.swapaxes(0, 1) if self.batch_first else x
        output, state, tape = reference.forward(
            "lstm", self.parameters, x, hx, num_layers=2, bidirectional=True, lengths=lengths
        )
        cast = tuple(s.astype(self.dtype) for s in state)
        output = output.astype(self.dtype)
        self.result = output, cast
        return output.swapaxes(0, 1) if self.batch_first else output, cast, tape

    def backward(self, tape, grad_output=None, grad_state=None, per_step=False):
        if self.batch_first:
            grad_output = grad_output.swapaxes(0, 1)
        grads = reference.backward(tape, grad_output, grad_state)
        self.spoil(*self.result, grads)
        by_input = grads.input.swapaxes(0, 1) if self.batch_first else grads.input
        return reference.Gradients(
            by_input.astype(self.dtype),
            tuple(s.astype(self.dtype) for s in grads.state),
            {name: g.astype(self.dtype) for name, g in grads.parameters.items()},
            [g.astype(self.dtype) for g in grads.per_step],
        )


def off_by(factor):
    """Spoilers by the name that the failure has to give: each moves one element by a few tolerances."""

    def move(array, at):
        array[at] += factor * 4 * np.finfo(np.float32).eps * 4 * (1 + np.abs(array).max())

    return {
        "output": lambda output, state, grads: move(output, (2, 1, 0)),
        "state h": lambda output, state, grads: move(state[0], (1, 1, 0)),
        "state c": lambda output, state, grads: move(state[1], (1, 1, 0)),
        "grads.input": lambda output, state, grads: move(grads.input, (2, 1, 0)),
        "grads.state h": lambda output, state, grads: move(grads.state[0], (2, 1, 0)),
        "grads.state c": lambda output, state, grads: move(grads.state[1], (2, 1, 0)),
        "grads.parameters bias_hh_l1_reverse": lambda output, state, grads: move(
            grads.parameters["bias_hh_l1_reverse"], 3
        ),
        "grads.per_step[3]": lambda output, state, grads: move(grads.per_step[3], (0, 1, 0)),
    }


@pytest.mark.parametrize("batch_first", [False, True])
def test_compare_layer_accepts_a_rounded_reference(batch_first):
    problem = make_problem(("lstm", "tanh"), 2, True)
    single = {name: p.astype(np.float32) for name, p in problem.parameters.items()}
    x, grad_output = (a.astype(np.float32) for a in (problem.x, problem.grad_output))
    if batch_first:
        x, grad_output = x.swapaxes(0, 1), grad_output.swapaxes(0, 1)
    layer = LSTM(single, np.float32, batch_first)
    compare_layer(layer, x, problem.state, grad_output, problem.grad_state, lengths=RAGGED)
    compare_layer(layer, x, None, grad_output, None)


@pytest.mark.parametrize("name", off_by(0))
def test_compare_layer_names_what_differs(name):
    problem = make_problem(("lstm", "tanh"), 2, True)
    single = {key: p.astype(np.float32) for key, p in problem.parameters.items()}
    layer = LSTM(single, np.float32, spoil=off_by(10)[name])
    with pytest.raises(AssertionError) as failure:
        compare_layer(layer, problem.x.astype(np.float32), None, problem.grad_output, problem.grad_state, RAGGED)
    assert str(failure.value).startswith(f"{name}: max error ")


def test_tolerances_follow_dtype_and_sizes():
    assert tolerances(np.float32, 3, 6, 4, 10, 2) == (4 * 2.0**-23 * 3, 4 * 2.0**-23 * np.sqrt(24))
    assert tolerances("float64", 3, 6, 1, 10, 10).gradient == 4 * 2.0**-52 * 10


def test_failures_give_error_tolerance_and_index():
    want = np.array([[1.0, 2.0], [3.0, -8.0]])
    got = want + np.array([[0.0, 0.0], [0.5, 0.0]])
    assert_close_gradient("d_x", got, want, 0.1)  # 0.5 of 8
    with pytest.raises(AssertionError, match=r"d_x: max error 5\.000e-01 at \[1, 0\] .* tolerance 8\.000e-02"):
        assert_close_gradient("d_x", got, want, 0.01)
    assert_close_output("c", got, want, 0.06, unbounded=True)  # 0.06 * (1 + 8)
    with pytest.raises(AssertionError, match=r"output: max error 5\.000e-01 at \[1, 0\] .* tolerance 6\.000e-02"):
        assert_close_output("output", got, want, 0.06)
    with pytest.raises(AssertionError, match=r"h: max error inf at \[0\]"):
        assert_close_output("h", [np.nan, 1.0], [0.0, 1.0], 1.0)
    with pytest.raises(AssertionError, match=r"h: shape \[1, 2\], expected \[2\]"):
        assert_close_output("h", [[0.0, 1.0]], [0.0, 1.0], 1.0)
    assert_close_output("h", [np.nan, np.inf], [np.nan, np.inf], 0.0)
