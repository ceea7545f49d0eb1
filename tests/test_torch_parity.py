"""Outputs and gradients equal PyTorch's, for every combination of options; and they are not less accurate."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
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
    largest,
    layer_results,
    layer_tolerances,
    named_results,
)
from test_oracle_grid import KINDS, LARGE, PLAIN, pairwise, run
from test_oracle_grid import OPTIONS as OPTIONS_OF_GRID

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")

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


@pytest.fixture(autouse=True, scope="module")
def one_thread_of_torch() -> Iterator[None]:
    """For such small work its threads only spin: six times the time on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def torch_layer(ours: Any) -> Any:
    """PyTorch's layer with the options and the weights of ours."""
    options = {"nonlinearity": ours.nonlinearity} if isinstance(ours, rf.RNN) else {}
    theirs = getattr(torch.nn, type(ours).__name__)(
        ours.input_size, ours.hidden_size, ours.num_layers, bias=ours.bias, batch_first=ours.batch_first,
        bidirectional=ours.bidirectional, dtype=getattr(torch, ours.dtype.name), **options,
    )  # fmt: skip
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in ours.state_dict().items()})
    return theirs


def make_layers(kind: str, dtype: str, layers: int, bidirectional: bool, **options: bool) -> tuple[Any, Any]:
    """Ours, and PyTorch's with the same weights."""
    cell, more = KINDS[kind]
    ours = cell(I, H, layers, bidirectional=bidirectional, dtype=dtype, seed=0, **options, **more)
    return ours, torch_layer(ours)


def draw_arguments(layer: Any, T: int, B: int, form: str, seed: int = 0) -> list[Any]:
    """x, hx, grad_output, grad_state."""
    rng = np.random.default_rng(seed)
    directions = 2 if layer.bidirectional else 1

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(layer.dtype)

    def sequence(features: int) -> np.ndarray:
        shapes = {"time first": (T, B, features), "batch first": (B, T, features)}
        return draw(*shapes.get(form, (T, features)))

    def states() -> Any:
        shape = (layer.num_layers * directions, *([] if "unbatched" in form else [B]), layer.hidden_size)
        return (draw(*shape), draw(*shape)) if isinstance(layer, rf.LSTM) else draw(*shape)

    return [sequence(layer.input_size), states(), sequence(layer.hidden_size * directions), states()]


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
    ours, theirs = make_layers(kind, dtype, layers, bidirectional, bias=bias, batch_first=form.endswith("batch first"))
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
    ours, theirs = make_layers(kind, dtype, layers, bidirectional, batch_first=batch_first)
    arguments = draw_arguments(ours, 11, 6, "batch first" if batch_first else "time first")
    lengths = [5, 11, 1, 7, 11, 2]  # not sorted; PyTorch refuses 0
    got, _ = layer_results(ours, *arguments, lengths)
    assert_same_results(ours, arguments[0], got, torch_results(theirs, *arguments, lengths))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_go_both_ways_unchanged(kind: str, dtype: str) -> None:
    ours, theirs = make_layers(kind, dtype, 2, True)
    for value in theirs.parameters():
        torch.nn.init.normal_(value)
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    for name, value in theirs.state_dict().items():
        np.testing.assert_array_equal(ours.parameters[name], value.numpy(), strict=True)
    back = torch_layer(ours)
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, back.state_dict()[name]), name


# --- accuracy ---


def with_torchs_options(case: dict[str, Any]) -> dict[str, Any]:
    """A case of the oracle's grid without what PyTorch has not: given masks, lengths of 0, a state of h alone."""
    case = {**PLAIN, **case, "dropout": 0.0, "lengths": False, "gradients": "both"}
    return {**case, "state": "given" if case["state"] else None}


def relative_errors(got: dict[str, Any], want: dict[str, Any]) -> dict[str, float]:
    """By name: the mean squared error, relative to the largest element."""
    errors = {}
    for name, exact in want.items():
        if name in got and exact.size:
            error = (got[name].astype(np.float64) - exact) / (largest(exact) or 1.0)
            errors[name] = float((error**2).mean())
    return errors


def test_the_error_in_float32_is_not_above_torchs() -> None:
    """Over the oracle's grid, all outputs and gradients: the root of the mean of the squared errors, with each array
    relative to its largest element. ``pytest -s`` prints it for each cell and result."""
    if rf.isa() == "x86_64_v2":
        pytest.skip("each product is rounded before it is added, where torch takes fused multiply-adds")
    sums: dict[tuple[str, str], list[Any]] = {}
    cases = [with_torchs_options(case) for case in [*pairwise(OPTIONS_OF_GRID, np.random.default_rng(0)), *LARGE]]
    for case in cases:
        ours, arguments, got, want = run(case, rf.isa(), "float32", 1)
        theirs = torch_layer(ours)
        mine = relative_errors({**got.outputs, **got.gradients}, {**want.outputs, **want.gradients})
        other = torch_results(theirs, *arguments)
        torchs = relative_errors({**other.outputs, **other.gradients}, {**want.outputs, **want.gradients})
        for name, error in torchs.items():
            short = name.split("_l")[0].removeprefix("grads.").replace("parameters ", "")
            sums.setdefault((case["kind"], short), []).append((mine[name], error))
    print()
    for (kind, name), pairs in sorted(sums.items()):
        mean_of_ours, mean_of_theirs = np.sqrt(np.mean(pairs, axis=0))
        ratio = mean_of_ours / mean_of_theirs
        print(f"  {kind:9} {name:12} ours {mean_of_ours:.3e}  torch {mean_of_theirs:.3e}  ratio {ratio:.3f}")
    mean_of_ours, mean_of_theirs = np.sqrt(np.mean([pair for pairs in sums.values() for pair in pairs], axis=0))
    print(f"  all: ours {mean_of_ours:.3e}  torch {mean_of_theirs:.3e}  ratio {mean_of_ours / mean_of_theirs:.3f}")
    assert mean_of_ours <= mean_of_theirs
