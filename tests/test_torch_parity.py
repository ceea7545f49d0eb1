"""Outputs and gradients equal PyTorch's, for every combination of options; and they are not less accurate."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from oracle import (
    Axes,
    Results,
    assert_close_gradient,
    assert_close_output,
    layer_results,
    layer_tolerances,
    named_results,
    reference_results,
)

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")

KINDS = {"rnn": ("RNN", "tanh"), "rnn relu": ("RNN", "relu"), "lstm": ("LSTM", None), "gru": ("GRU", None)}
OPTIONS = list(
    itertools.product(
        KINDS,
        [1, 2, 3],  # layers
        [False, True],  # bidirectional
        [False, True],  # bias
        ["time first", "batch first", "unbatched", "unbatched, batch first"],
        [False, True],  # state given
    )
)
I, H, T, B = 5, 11, 6, 4


def make_layers(
    kind: str, dtype: str, I: int, H: int, layers: int, bidirectional: bool, bias: bool = True, batch_first: bool = False
) -> tuple[Any, Any]:
    """Ours, and PyTorch's with the same weights."""
    name, nonlinearity = KINDS[kind]
    options = {"bias": bias, "bidirectional": bidirectional, "batch_first": batch_first}
    if nonlinearity:
        options["nonlinearity"] = nonlinearity
    ours = getattr(rf, name)(I, H, layers, dtype=dtype, seed=0, **options)
    theirs = getattr(torch.nn, name)(I, H, layers, dtype=getattr(torch, dtype), **options)
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in ours.state_dict().items()})
    return ours, theirs


def draw_arguments(layer: Any, T: int, B: int, form: str, seed: int = 0) -> list[Any]:
    """x, hx, grad_output, grad_state."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(layer.dtype)

    def sequence(features: int) -> np.ndarray:
        shapes = {"time first": (T, B, features), "batch first": (B, T, features)}
        return draw(*shapes.get(form, (T, features)))

    def states() -> Any:
        shape = (layer.num_layers * (2 if layer.bidirectional else 1), *([] if "unb" in form else [B]), layer.hidden_size)
        return (draw(*shape), draw(*shape)) if isinstance(layer, rf.LSTM) else draw(*shape)

    return [sequence(layer.input_size), states(), sequence(layer.hidden_size * (2 if layer.bidirectional else 1)), states()]


def parts(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def torch_results(theirs: Any, x: Any, hx: Any, grad_output: Any, grad_state: Any, lengths: Any = None) -> Results:
    """As ``layer_results`` gives ours, but no gradients by step, which PyTorch has not."""
    leaf = torch.tensor(x, requires_grad=True)
    if hx is None:
        hx = tuple(map(np.zeros_like, grad_state)) if isinstance(grad_state, tuple) else np.zeros_like(grad_state)
    states = tuple(torch.tensor(part, requires_grad=True) for part in parts(hx))
    inputs = leaf
    if lengths is not None:
        inputs = torch.nn.utils.rnn.pack_padded_sequence(
            leaf, torch.tensor(lengths), batch_first=theirs.batch_first, enforce_sorted=False
        )
    theirs.zero_grad()
    output, final = theirs(inputs, states if len(states) == 2 else states[0])
    if lengths is not None:
        output, _ = torch.nn.utils.rnn.pad_packed_sequence(
            output, batch_first=theirs.batch_first, total_length=x.shape[1 if theirs.batch_first else 0]
        )
    torch.autograd.backward(
        [output, *parts(final)], [torch.from_numpy(value) for value in (grad_output, *parts(grad_state))]
    )

    def arrays(values: tuple[Any, ...]) -> Any:
        return tuple(value.detach().numpy() for value in values) if len(values) == 2 else values[0].detach().numpy()

    grads = SimpleNamespace(
        input=leaf.grad.numpy(),
        state=arrays(tuple(part.grad for part in states)),
        parameters={name: value.grad.numpy().copy() for name, value in theirs.named_parameters()},
        per_step=[],
    )
    axes = Axes(unbatched=x.ndim == 2, batch_first=theirs.batch_first)
    return named_results(type(theirs).__name__.lower(), output.detach().numpy(), arrays(parts(final)), grads, axes)


def assert_same_results(layer: Any, x: Any, got: Results, want: Results) -> None:
    """Both sides may be off by a tolerance, so two are allowed."""
    axes = Axes(unbatched=x.ndim == 2, batch_first=layer.batch_first)
    allowed = layer_tolerances(layer, layer.dtype, axes.sequence(x).shape)
    assert got.outputs.keys() == want.outputs.keys()
    for name, value in want.outputs.items():
        assert_close_output(name, got.outputs[name], value, 2 * allowed.output, unbounded=name == "state c")
    assert {name for name in got.gradients if "per_step" not in name} == want.gradients.keys()
    for name, value in want.gradients.items():
        assert_close_gradient(name, got.gradients[name], value, 2 * allowed.gradient)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kind", "layers", "bidirectional", "bias", "form", "given"), OPTIONS)
def test_outputs_and_gradients_equal_torchs(
    dtype: str, kind: str, layers: int, bidirectional: bool, bias: bool, form: str, given: bool
) -> None:
    ours, theirs = make_layers(kind, dtype, I, H, layers, bidirectional, bias, form.endswith("batch first"))
    arguments = draw_arguments(ours, T, B, form)
    if not given:
        arguments[1] = None
    got, _ = layer_results(ours, *arguments)
    assert_same_results(ours, arguments[0], got, torch_results(theirs, *arguments))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_equal_torchs_packed_sequences(
    kind: str, dtype: str, layers: int, bidirectional: bool, batch_first: bool
) -> None:
    ours, theirs = make_layers(kind, dtype, I, H, layers, bidirectional, batch_first=batch_first)
    arguments = draw_arguments(ours, 11, 6, "batch first" if batch_first else "time first")
    lengths = [5, 11, 1, 7, 11, 2]  # not sorted; PyTorch refuses 0
    got, _ = layer_results(ours, *arguments, lengths)
    assert_same_results(ours, arguments[0], got, torch_results(theirs, *arguments, lengths))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_go_both_ways_unchanged(kind: str, dtype: str) -> None:
    ours, theirs = make_layers(kind, dtype, I, H, 2, True)
    for value in theirs.parameters():
        torch.nn.init.normal_(value)
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    for name, value in theirs.state_dict().items():
        np.testing.assert_array_equal(ours.parameters[name], value.numpy(), strict=True)
    back = type(theirs).__new__(type(theirs))
    options = {"nonlinearity": theirs.nonlinearity} if "rnn" in kind else {}
    back.__init__(I, H, 2, bidirectional=True, dtype=getattr(torch, dtype), **options)
    back.load_state_dict({name: torch.from_numpy(value) for name, value in ours.state_dict().items()})
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, back.state_dict()[name]), name


# --- accuracy ---

# Every cell at sizes from a few units to those of real layers.
SIZES = [
    {"I": 1, "H": 15, "T": 7, "B": 3, "layers": 2, "bidirectional": True},
    {"I": 16, "H": 16, "T": 2, "B": 17, "layers": 1, "bidirectional": False},
    {"I": 37, "H": 67, "T": 7, "B": 17, "layers": 3, "bidirectional": True},
    {"I": 67, "H": 37, "T": 30, "B": 1, "layers": 1, "bidirectional": True},
    {"I": 128, "H": 128, "T": 50, "B": 16, "layers": 1, "bidirectional": False},
    {"I": 40, "H": 96, "T": 200, "B": 2, "layers": 2, "bidirectional": False},
    {"I": 300, "H": 256, "T": 5, "B": 8, "layers": 1, "bidirectional": True},
]


def squared_errors(got: Results, want: Results) -> dict[str, tuple[float, float]]:
    """By name: sums of squared errors relative to the largest element of the exact array, and how many."""
    sums = {}
    for mine, exact in ((got.outputs, want.outputs), (got.gradients, want.gradients)):
        for name, value in mine.items():
            error = (value.astype(np.float64) - exact[name]) / max(np.abs(exact[name]).max(), 1e-300)
            sums[name] = float((error**2).mean()), 1.0
    return sums


@pytest.fixture(scope="module")
def root_mean_squares() -> dict[tuple[str, str], tuple[float, float]]:
    """By kind of cell and short name of the result: ours and PyTorch's error in float32, over all sizes."""
    totals: dict[tuple[str, str], np.ndarray] = {}
    for kind, sizes in itertools.product(KINDS, SIZES):
        ours, theirs = make_layers(
            kind, "float32", sizes["I"], sizes["H"], sizes["layers"], sizes["bidirectional"]
        )  # fmt: skip
        arguments = draw_arguments(ours, sizes["T"], sizes["B"], "time first")
        want = reference_results(ours, *arguments)
        pairs = (layer_results(ours, *arguments)[0], torch_results(theirs, *arguments))
        for side, got in enumerate(pairs):
            for name, (square, count) in squared_errors(got, want).items():
                if "per_step" not in name:
                    short = name.split("_l")[0].removeprefix("grads.").replace("parameters ", "")
                    total = totals.setdefault((kind, short), np.zeros((2, 2)))
                    total[side] += square, count
    return {key: tuple(np.sqrt(total[:, 0] / total[:, 1])) for key, total in totals.items()}


def test_the_error_is_not_above_torchs(root_mean_squares: Any) -> None:
    """Over the grid: the root of the mean of the squared errors, each array relative to its largest element. Printed
    with ``pytest -s`` for each cell and result."""
    print()
    for (kind, name), (ours, theirs) in root_mean_squares.items():
        print(f"  {kind:9} {name:12} ours {ours:.3e}  torch {theirs:.3e}  ratio {ours / theirs:.3f}")
    ours, theirs = (math.sqrt(sum(pair[side] ** 2 for pair in root_mean_squares.values())) for side in (0, 1))
    print(f"  all: ratio {ours / theirs:.3f}")
    assert ours <= theirs
