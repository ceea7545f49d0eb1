"""The options of the reference, against central differences, alone and in every legal pair, and what each means."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from rnnfast import reference
from test_reference import unwrap, wrap

T, B, I = 4, 3, 2
HARD = rf.Activation("hard_sigmoid", alpha=0.3, beta=0.5)
MASK = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 1, 0]], bool)  # left-padded, with a hole, right-padded
RESET = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 1]], bool)
#: What a test asks for, by name: arguments of `reference.forward`, or a marker for `make`.
OPTIONS: dict[str, dict[str, Any]] = {
    "activations": {"activation": rf.Activation("scaled_tanh", alpha=0.9, beta=0.7), "recurrent_activation": HARD},
    "output activation": {"output_activation": "softsign"},
    "clip": {"clip": 0.6},
    "peepholes": {"peepholes": True},
    "coupled gates": {"coupled_gates": True},
    "reset before": {"reset_after": False},
    "projection": {"projection": True},
    "layer norm": {"layer_norm": True},
    "zoneout share": {"zoneout": (0.3, 0.2)},
    "zoneout masks": {"zoneout_masks": True},
    "recurrent dropout": {"recurrent_masks": True},
    "input dropout": {"input_masks": True},
    "widths": {"widths": True},
    "mask": {"mask": MASK},
    "carry": {"mask": MASK, "masked_output": "carry"},
    "reset": {"reset": RESET},
    "reset to initial": {"reset": RESET, "reset_to": "initial"},
    "lengths": {"lengths": [2, 4, 0]},
    "two layers, two directions": {"num_layers": 2, "bidirectional": True},
}
ONLY = {
    "lstm": {"peepholes", "coupled gates", "projection", "output activation"},
    "gru": {"reset before"},
}


def possible(cell: str, names: tuple[str, ...]) -> bool:
    arguments = [key for name in names for key in OPTIONS[name]]
    given = set(names)
    return (
        not any(given & only for other, only in ONLY.items() if other != cell)
        and len(set(arguments)) == len(arguments)
        and not {"lengths", "mask"} <= set(arguments)
        and not (cell == "rnn" and "layer norm" in given)
        and not {"projection", "widths"} <= given
        and not ("projection" in given and {"zoneout share", "zoneout masks"} & given)
        and not {"zoneout share", "zoneout masks"} <= given
        and not {"layer norm", "reset before"} <= given
    )


@dataclass
class Problem:
    cell: str
    options: dict[str, Any]
    parameters: dict[str, np.ndarray]
    x: np.ndarray
    state: Any
    grad_output: np.ndarray
    grad_state: Any

    def forward(self) -> Any:
        return reference.forward(self.cell, self.parameters, self.x, self.state, **self.options)

    def loss(self) -> float:
        output, state, _ = self.forward()
        parts = [(output, self.grad_output), *zip(leaves(state), leaves(self.grad_state), strict=True)]
        return float(sum((value * weight).sum() for value, weight in parts))


def leaves(state: Any) -> list[np.ndarray]:
    return [leaf for part in state for leaf in leaves(part)] if isinstance(state, tuple) else [state]


def make(cell: str, *options: dict[str, Any], seed: int = 0) -> Problem:
    rng = np.random.default_rng(seed)
    given = {key: value for option in options for key, value in option.items()}
    markers = ("peepholes", "projection", "layer_norm", "zoneout_masks", "recurrent_masks", "input_masks", "widths")
    marked = {name for name in markers if given.pop(name, False)}
    layers = given.get("num_layers", 2 if "widths" in marked else 1)
    given["num_layers"] = layers
    directions = 2 if given.get("bidirectional") else 1
    hidden = [3 + layer if "widths" in marked else 3 for layer in range(layers)]
    width = [2] * layers if "projection" in marked else hidden
    gates = reference.CELLS[cell].gates
    columns = [I, *(directions * size for size in width[:-1])]
    parameters = {}
    for layer, end in itertools.product(range(layers), ("", "_reverse")[:directions]):
        H, S = hidden[layer], width[layer]
        shapes = {
            "weight_ih": (gates * H, columns[layer]), "weight_hh": (gates * H, S), "bias_ih": (gates * H,),
            "bias_hh": (gates * H,),
        }  # fmt: skip
        if "projection" in marked:
            shapes["weight_hr"] = (S, H)
        if "peepholes" in marked:
            shapes["weight_ch"] = (3, H)
        if "layer_norm" in marked:
            shapes |= {"weight_ln_ih": (gates * H,), "weight_ln_hh": (gates * H,)}
            shapes |= {"weight_ln_c": (H,), "bias_ln_c": (H,)} if cell == "lstm" else {}
        parameters |= {f"{kind}_l{layer}{end}": rng.normal(scale=0.7, size=shape) for kind, shape in shapes.items()}
    runs = [layer for layer in range(layers) for _ in range(directions)]
    if "recurrent_masks" in marked:
        given["recurrent_masks"] = [rng.choice([0.0, 2.0], (B, width[layer])) for layer in runs]
    if "input_masks" in marked:
        given["input_masks"] = [rng.choice([0.0, 2.0], (B, size)) for size in columns]
    if "zoneout_masks" in marked:
        for name in ("zoneout_masks_h", "zoneout_masks_c")[: len(reference.CELLS[cell].states)]:
            given[name] = [rng.random((T, B, hidden[layer])) < 0.4 for layer in runs]

    def states(scale: float) -> Any:
        parts = []
        for sizes in (width, hidden)[: len(reference.CELLS[cell].states)]:
            blocks = tuple(rng.normal(scale=scale, size=(directions, B, size)) for size in sizes)
            parts.append(blocks if "widths" in marked else np.concatenate(blocks))
        return unwrap(tuple(parts))

    return Problem(
        cell, given, parameters, rng.normal(size=(T, B, I)), states(0.5),
        rng.normal(size=(T, B, directions * width[-1])), states(1.0),
    )  # fmt: skip


STEP = 1e-4  # of a difference of fourth order: its error is STEP**4 from the fifth derivative, eps / STEP from rounding


def difference(loss: Any, array: np.ndarray, direction: np.ndarray, step: float) -> float:
    """The derivative of ``loss()`` along a direction of ``array``, which is changed in place and restored."""
    kept, values = array.copy(), []
    for factor in (1, -1, 2, -2):
        array[...] = kept + factor * step * direction
        values.append(loss())
    array[...] = kept
    return (8 * (values[0] - values[1]) - (values[2] - values[3])) / (12 * step)


def check_gradients(cell: str, *options: dict[str, Any]) -> None:
    """Along a random direction of every array: a gradient that is wrong anywhere is wrong there. Data are drawn anew
    where a kink is so near that differences of two step sizes disagree."""
    for seed in range(20):
        problem, smooth = make(cell, *options, seed=seed), True
        rng = np.random.default_rng(seed)
        grads = reference.backward(problem.forward()[2], problem.grad_output, problem.grad_state)
        assert list(grads.parameters) == list(problem.parameters)
        pairs = {"input": (grads.input, problem.x)}
        pairs |= {
            f"state {k}": pair for k, pair in enumerate(zip(leaves(grads.state), leaves(problem.state), strict=True))
        }
        pairs |= {name: (grads.parameters[name], value) for name, value in problem.parameters.items()}
        for name, (got, array) in pairs.items():
            direction = rng.normal(size=array.shape)
            want, coarse = (difference(problem.loss, array, direction, step) for step in (STEP / 2, STEP))
            allowed = 1e-7 * (1.0 + np.linalg.norm(got) * np.linalg.norm(direction))
            smooth = smooth and abs(want - coarse) <= allowed
            if not smooth:
                break
            assert abs(float((got * direction).sum()) - want) <= allowed, (name, seed)
        if smooth:
            return
    raise AssertionError("no data were smooth")


CHOICES = [
    (cell, names)
    for cell in ("rnn", "lstm", "gru")
    for count in (1, 2)
    for names in itertools.combinations(OPTIONS, count)
    if possible(cell, names)
]


@pytest.mark.parametrize(
    ("cell", "names"), CHOICES, ids=lambda value: value if isinstance(value, str) else ", ".join(value)
)
def test_gradients_of_options_and_their_pairs_are_central_differences(cell: str, names: tuple[str, ...]) -> None:
    check_gradients(cell, *(OPTIONS[name] for name in names))


ACTIVATIONS = [
    rf.Activation("tanh"), rf.Activation("sigmoid"), rf.Activation("relu"),
    rf.Activation("affine", alpha=0.7, beta=0.2),
    rf.Activation("leaky_relu", alpha=-0.3), rf.Activation("thresholded_relu", alpha=0.4),
    rf.Activation("scaled_tanh", alpha=0.8, beta=1.5), HARD, rf.Activation("elu", alpha=0.6),
    rf.Activation("softsign"), rf.Activation("softplus"),
]  # fmt: skip


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.name)
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_gradients_of_every_activation_are_central_differences(cell: str, activation: Any, clip: float | None) -> None:
    options: dict[str, Any] = {"activation": activation, "clip": clip}
    if cell != "rnn":
        options["recurrent_activation"] = activation
    check_gradients(cell, options)


def test_activations_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    functional = torch.nn.functional
    theirs = {
        "leaky_relu": (rf.Activation("leaky_relu", alpha=0.2), lambda a: functional.leaky_relu(a, 0.2)),
        "elu": (rf.Activation("elu", alpha=0.7), lambda a: functional.elu(a, 0.7)),
        "softsign": (rf.Activation("softsign"), functional.softsign),
        "softplus": (rf.Activation("softplus"), functional.softplus),
        "hard_sigmoid": (rf.Activation("hard_sigmoid", alpha=1 / 6, beta=0.5), functional.hardsigmoid),
        "sigmoid": (rf.Activation("sigmoid"), torch.sigmoid),
        "relu": (rf.Activation("relu"), torch.relu),
        "tanh": (rf.Activation("tanh"), torch.tanh),
    }
    a = torch.linspace(-5, 5, 101, dtype=torch.float64, requires_grad=True)
    for name, (ours, function) in theirs.items():
        value = function(a)
        (slope,) = torch.autograd.grad(value.sum(), a)
        # An identity layer: h is the activation of x.
        x, one, zero = a.detach().numpy()[None, :, None], np.ones((1, 1)), np.zeros((1, 1))
        output, _, tape = reference.forward("rnn", {"weight_ih_l0": one, "weight_hh_l0": zero}, x, activation=ours)
        grads = reference.backward(tape, np.ones_like(output))
        np.testing.assert_allclose(output[0, :, 0], value.detach(), rtol=1e-13, atol=1e-15, err_msg=name)
        inside = np.abs(np.abs(x[0, :, 0]) - 3) > 1e-9  # torch's hard sigmoid has other derivatives at its kinks
        np.testing.assert_allclose(
            grads.input[0, inside, 0], slope[inside], rtol=1e-7, err_msg=name
        )  # torch's 1/6 is a float


def test_a_threshold_lets_through_what_equals_it() -> None:
    """As the text of ONNX's recurrent operators has it; a clip may make a value equal it."""
    x, one, zero = np.full((1, 1, 1), 5.0), np.ones((1, 1)), np.zeros((1, 1))
    activation = rf.Activation("thresholded_relu", alpha=1.0)
    weights = {"weight_ih_l0": one, "weight_hh_l0": zero}
    output, _, _ = reference.forward("rnn", weights, x, activation=activation, clip=1.0)
    assert output[0, 0, 0] == 1.0


@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_projection_is_torchs(proj_size: int, bidirectional: bool) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    options = [{"projection": True}] if proj_size else []
    problem = make("lstm", *options, {"num_layers": 2, "bidirectional": bidirectional})
    layer = torch.nn.LSTM(I, 3, 2, bidirectional=bidirectional, proj_size=proj_size, dtype=torch.float64)
    layer.load_state_dict({name: torch.from_numpy(value) for name, value in problem.parameters.items()})
    x = torch.tensor(problem.x, requires_grad=True)
    output, final = layer(x, tuple(map(torch.from_numpy, problem.state)))
    torch.autograd.backward((output, *final), tuple(map(torch.from_numpy, (problem.grad_output, *problem.grad_state))))
    ours, state, tape = problem.forward()
    grads = reference.backward(tape, problem.grad_output, problem.grad_state)
    np.testing.assert_allclose(ours, output.detach(), rtol=1e-12, atol=1e-14)
    for part, theirs in zip(wrap(state), final, strict=True):
        np.testing.assert_allclose(part, theirs.detach(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(grads.input, x.grad, rtol=0, atol=1e-12)
    for name, parameter in layer.named_parameters():
        np.testing.assert_allclose(grads.parameters[name], parameter.grad, rtol=0, atol=1e-12, err_msg=name)


# --- what the options mean, by comparison with calls that do not use them ---


@pytest.mark.parametrize("reset_to", ["zero", "initial"])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_reset_call_equals_the_split_runs(cell: str, reset_to: str) -> None:
    """In both directions: the forward one ends with the last piece, the reverse one with the first."""
    boundaries = [0, 1, 3, 4]
    reset = np.zeros((T, B), bool)
    reset[[1, 3]] = True
    problem = make(cell, {"bidirectional": True, "reset": reset, "reset_to": reset_to})
    output, state, _ = problem.forward()
    pieces, finals = [], []
    for number, (start, stop) in enumerate(itertools.pairwise(boundaries)):
        initial = [part.copy() for part in leaves(problem.state)]
        for part in initial:  # [D, B, H]: only where a direction starts does a call's own initial state enter
            if reset_to == "zero" and number > 0:
                part[0] = 0
            if reset_to == "zero" and stop < T:
                part[1] = 0
        piece, final, _ = reference.forward(
            cell, problem.parameters, problem.x[start:stop], unwrap(tuple(initial)), bidirectional=True
        )
        pieces.append(piece)
        finals.append(leaves(final))
    np.testing.assert_array_equal(output, np.concatenate(pieces))
    for number, part in enumerate(leaves(state)):
        np.testing.assert_array_equal(part[0], finals[-1][number][0])
        np.testing.assert_array_equal(part[1], finals[0][number][1])


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_masked_call_equals_the_rows_without_their_masked_steps(cell: str) -> None:
    problem = make(cell, {"num_layers": 2, "bidirectional": True, "mask": MASK})
    output, state, _ = problem.forward()
    carried, _, _ = reference.forward(
        cell, problem.parameters, problem.x, problem.state, **problem.options | {"masked_output": "carry"}
    )
    for b in range(B):
        kept = np.flatnonzero(MASK[:, b])
        alone, alone_state, _ = reference.forward(
            cell, problem.parameters, problem.x[kept, b : b + 1],
            unwrap(tuple(part[:, b : b + 1] for part in leaves(problem.state))), num_layers=2, bidirectional=True,
        )  # fmt: skip
        np.testing.assert_allclose(output[kept, b], alone[:, 0], rtol=1e-12)
        assert not output[~MASK[:, b], b].any()
        for part, own in zip(leaves(state), leaves(alone_state), strict=True):
            np.testing.assert_allclose(part[:, b], own[:, 0], rtol=1e-12)
        forth, back = np.split(carried[:, b], 2, axis=1)
        for t in range(T):
            before, after = kept[kept <= t], kept[kept >= t]
            want_forth = forth[before[-1]] if before.size else np.zeros_like(forth[t])
            want_back = back[after[0]] if after.size else np.zeros_like(back[t])
            np.testing.assert_array_equal(forth[t], want_forth)
            np.testing.assert_array_equal(back[t], want_back)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_grad_clip_bounds_every_step_and_changes_nothing_where_it_is_wide(cell: str) -> None:
    problem = make(cell, {"num_layers": 2, "bidirectional": True, "mask": MASK, "masked_output": "carry"})
    _, _, tape = problem.forward()
    free = reference.backward(tape, problem.grad_output, problem.grad_state)
    wide = reference.backward(tape, problem.grad_output, problem.grad_state, grad_clip=1e3)
    np.testing.assert_array_equal(free.input, wide.input)
    narrow = reference.backward(tape, problem.grad_output, problem.grad_state, grad_clip=0.1)
    largest = max(np.abs(step).max() for step in narrow.per_step)
    assert largest == 0.1 < max(np.abs(step).max() for step in free.per_step)


def test_cells_and_gates_are_those_that_made_the_state() -> None:
    problem = make("lstm", {"mask": MASK})
    output, (_, c), tape = problem.forward()
    i, f, g, o = np.split(tape.gates, 4, axis=2)
    before = problem.state[1][0]
    for t in range(T):
        after = np.where(MASK[t][:, None], f[t] * before + i[t] * g[t], before)
        np.testing.assert_allclose(tape.cells[t][MASK[t]], after[MASK[t]], rtol=1e-12)
        np.testing.assert_allclose(output[t], o[t] * np.tanh(tape.cells[t]), rtol=1e-12)
        before = after
    np.testing.assert_allclose(c[0], before, rtol=1e-12)
    assert not tape.cells[~MASK].any() and not tape.gates[~MASK].any()
