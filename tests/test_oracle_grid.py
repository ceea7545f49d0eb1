"""Every output and every gradient, by name, against the reference in float64.

Instruction sets, dtypes and 1 and 2 threads are combined in full; with each of these combinations goes a set of cases
in which every two values of the other options, sizes included, meet at least once. ``pytest -s`` prints the largest
error of each result as a fraction of its tolerance.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rnnfast as rf
from oracle import (
    Axes,
    Results,
    compare_results,
    exact_threads,
    largest,
    layer_results,
    layer_tolerances,
    reference_results,
    unbounded,
)
from rnnfast import reference

KINDS = {
    "rnn": (rf.RNN, {"nonlinearity": "tanh"}),
    "rnn relu": (rf.RNN, {"nonlinearity": "relu"}),
    "lstm": (rf.LSTM, {}),
    "gru": (rf.GRU, {}),
}
VECTOR_BYTES = {"x86_64_v4": 64, "x86_64_v3": 32, "x86_64_v2": 16, "neon": 16}
SIZES = ["1", "lanes-1", "lanes", "lanes+1", "37", "67"]
OPTIONS: dict[str, list[Any]] = {
    "kind": list(KINDS),
    "I": SIZES,
    "H": SIZES,
    "T": [1, 2, 7],
    "B": [1, 3, 17],
    "layers": [1, 2, 3],
    "bidirectional": [False, True],
    "bias": [False, True],
    "form": ["time first", "batch first", "unbatched"],
    "state": [None, "given", "h alone"],
    "lengths": [False, True],
    "gradients": ["output", "state", "both", "output and c"],
    "dropout": [0.0, 0.4],
}


def possible(case: dict[str, Any]) -> bool:
    """Of a whole case or of a part of one: the combinations that layers refuse or that mean nothing."""
    unbatched = case.get("form") == "unbatched"
    lstm_only = case.get("state") == "h alone" or case.get("gradients") == "output and c"
    return not (
        (unbatched and case.get("B", 1) != 1)
        or (unbatched and case.get("lengths"))
        or (case.get("dropout") and case.get("layers") == 1)
        or (lstm_only and case.get("kind", "lstm") != "lstm")
    )


def pairwise(options: dict[str, list[Any]], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Cases that contain every possible pair of values, found greedily: of some random completions of a pair that is
    still missing, the one that adds most new pairs. Another generator gives other cases, and so other triples."""
    names = list(options)

    def pairs(case: dict[str, Any]) -> set[Any]:
        return {(a, case[a], b, case[b]) for a, b in itertools.combinations(names, 2)}

    missing = {
        (a, x, b, y)
        for a, b in itertools.combinations(names, 2)
        for x in options[a]
        for y in options[b]
        if possible({a: x, b: y})
    }
    cases = []
    while missing:
        a, x, b, y = min(missing, key=repr)
        best: dict[str, Any] = {}
        gain = 0
        for _ in range(30):
            case = {a: x, b: y}
            for name in rng.permutation([name for name in names if name not in case]):
                values = [value for value in options[name] if possible({**case, name: value})]
                case[name] = values[rng.integers(len(values))]
            added = len(pairs(case) & missing)
            if added > gain:
                best, gain = case, added
        cases.append({name: best[name] for name in names})
        missing -= pairs(best)
    return cases


LARGE = [  # sums and recurrences of the length that real layers have
    {"kind": kind, "I": 128, "H": 128, "T": 50, "B": 64, "layers": 1} for kind in ("rnn", "lstm", "gru")
] + [{"kind": kind, "I": 40, "H": 96, "T": 200, "B": 2, "layers": 2, "bidirectional": True} for kind in KINDS]
PLAIN = {
    "bidirectional": False, "bias": True, "form": "time first", "state": "given", "lengths": False,
    "gradients": "both", "dropout": 0.0,
}  # fmt: skip


def size(value: Any, isa: str, dtype: str) -> int:
    lanes = VECTOR_BYTES[isa] // np.dtype(dtype).itemsize
    return {"lanes-1": lanes - 1, "lanes": lanes, "lanes+1": lanes + 1}.get(value) or int(value)


def draw(case: dict[str, Any], isa: str, dtype: str, attempt: int) -> tuple[Any, list[Any]]:
    """The layer of a case, and the arguments of ``layer_results``."""
    rng = np.random.default_rng([attempt, zlib.crc32(repr(sorted(case.items())).encode())])
    I, H = size(case["I"], isa, dtype), size(case["H"], isa, dtype)
    T, B, directions = case["T"], case["B"], 2 if case["bidirectional"] else 1
    cell, options = KINDS[case["kind"]]
    layer = cell(
        I, H, case["layers"], bias=case["bias"], batch_first=case["form"] == "batch first", dropout=case["dropout"],
        bidirectional=case["bidirectional"], dtype=dtype, seed=rng, **options,
    )  # fmt: skip
    for name, value in layer.parameters.items():
        if name.startswith("weight_ih"):  # pre-activations near 1 whatever the input size; relu has no other bound
            value *= np.sqrt(H / max(value.shape[1], 1))

    def uniform(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, shape).astype(dtype)

    def sequence(features: int) -> np.ndarray:
        shapes = {"time first": (T, B, features), "batch first": (B, T, features), "unbatched": (T, features)}
        return uniform(*shapes[case["form"]])

    def states(second: bool = True) -> Any:
        shape = (case["layers"] * directions, *([] if case["form"] == "unbatched" else [B]), H)
        h, c = uniform(*shape), uniform(*shape)
        return (h, c if second else None) if cell is rf.LSTM else h

    hx = None if case["state"] is None else states(case["state"] == "given")
    lengths = rng.integers(0, T + 1, B) if case["lengths"] else None
    grad_output = None if case["gradients"] == "state" else sequence(directions * H)
    grad_state = None if case["gradients"] == "output" else states()
    if case["gradients"] == "output and c":
        grad_state = (None, grad_state[1])
    return layer, [sequence(I), hx, grad_output, grad_state, lengths]


def nudged(value: Any, eps: float, rng: np.random.Generator) -> Any:
    """Off by up to 2.5 eps, relatively, the error of an elementary function."""
    if isinstance(value, tuple):
        return tuple(nudged(part, eps, rng) for part in value)
    return value * (1.0 + 2.5 * eps * rng.uniform(-1.0, 1.0, value.shape))


def rounded_otherwise(cell: reference.Cell, eps: float, rng: np.random.Generator) -> reference.Cell:
    """The cell with every intermediate result nudged."""

    def step(layer: Any, x: Any, h_in: Any, prev: Any) -> Any:
        return nudged(cell.step(layer, nudged(x, eps, rng), h_in, prev), eps, rng)

    def step_backward(layer: Any, saved: Any, d_state: Any) -> Any:
        *by_inputs, d_parameters = cell.step_backward(layer, saved, d_state)
        return *nudged(tuple(by_inputs), eps, rng), {k: nudged(value, eps, rng) for k, value in d_parameters.items()}

    return replace(cell, step=step, step_backward=step_backward)


def sensitivity(layer: Any, arguments: list[Any], masks: Any, want: Results, **call: Any) -> float:
    """How much of a tolerance rounding alone decides, which the reference finds out alone: the largest fraction.

    The tolerance of a gradient is relative to its largest element. Where that is a sum that cancels no implementation
    can keep it, and with one or two elements in all, as where H is 1, this happens; normalising a row of almost equal
    numbers magnifies their rounding.
    """
    eps, rng = float(np.finfo(layer.dtype).eps), np.random.default_rng(0)
    normalised = reference.cells.normalised
    with pytest.MonkeyPatch.context() as patch:
        for name, cell in list(reference.CELLS.items()):
            patch.setitem(reference.CELLS, name, rounded_otherwise(cell, eps, rng))
        patch.setattr(reference.cells, "normalised", lambda v: normalised(nudged(v, eps, rng)))
        other = reference_results(layer, *arguments, masks=masks, **call)
    axes = Axes(unbatched=arguments[0].ndim == 2, batch_first=layer.batch_first)
    allowed = layer_tolerances(layer, layer.dtype, axes.sequence(arguments[0]).shape)
    fractions = [0.0]
    for name, value in want.outputs.items():
        tolerance = allowed.output * (1 + largest(value) if unbounded(layer, name) else 1)
        fractions.append(largest(other.outputs[name] - value) / tolerance)
    for name, value in want.gradients.items():
        if difference := largest(other.gradients[name] - value):
            fractions.append(difference / (allowed.gradient * largest(value)) if largest(value) else np.inf)
    return max(fractions)


def run(case: dict[str, Any], isa: str, dtype: str, threads: int) -> tuple[Any, list[Any], Results, Results]:
    """The layer and the arguments of a case, its results and the reference's, of the first data that are well posed."""
    case = {**PLAIN, **case}
    for attempt in range(2000):
        layer, arguments = draw(case, isa, dtype, attempt)
        with rf.use_isa(isa), exact_threads(threads):
            got, masks = layer_results(layer, *arguments)
        want = reference_results(layer, *arguments, masks=masks)
        if sensitivity(layer, arguments, masks, want) <= 0.6:
            return layer, arguments, got, want
    raise AssertionError("no data were well posed")


def check(case: dict[str, Any], isa: str, dtype: str, threads: int) -> dict[str, float]:
    layer, arguments, got, want = run(case, isa, dtype, threads)
    return compare_results(layer, arguments[0], got, want)


@pytest.fixture(scope="module")
def seen() -> Iterator[Any]:
    """Collects errors, prints the largest of each result and dtype when the module is done."""
    largest: dict[tuple[str, str], tuple[float, str]] = {}

    def add(fractions: dict[str, float], dtype: str, where: str) -> None:
        for name, fraction in fractions.items():
            short = name.split("_l")[0] if "parameters" in name else name.split("[")[0]
            largest[dtype, short] = max(largest.get((dtype, short), (-1.0, "")), (fraction, where))

    yield add
    print("\nlargest error as a fraction of the tolerance")
    for (dtype, name), (fraction, where) in sorted(largest.items()):
        print(f"  {dtype} {name:28} {fraction:.3f}  {where}")


def grid() -> list[Any]:
    parameters = []
    for number, (isa, dtype, threads) in enumerate(
        itertools.product(rf.available_isas(), ["float32", "float64"], [1, 2])
    ):
        for case in pairwise(OPTIONS, np.random.default_rng(number)):
            values = [f"{name}={value}" for name, value in case.items() if name != "kind"]
            name = f"{isa} {dtype} {threads} {case['kind']} {' '.join(values)}"
            parameters.append(pytest.param(case, isa, dtype, threads, id=name))
    return parameters


@pytest.mark.parametrize(("case", "isa", "dtype", "threads"), grid())
def test_equals_the_reference(case: dict[str, Any], isa: str, dtype: str, threads: int, seen: Any) -> None:
    seen(check(case, isa, dtype, threads), dtype, f"{isa} {threads} {case}")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", LARGE, ids=lambda case: f"{case['kind']} T={case['T']}")
def test_large_shapes_equal_the_reference(case: dict[str, Any], dtype: str, threads: int, seen: Any) -> None:
    seen(check(case, rf.isa(), dtype, threads), dtype, f"{rf.isa()} {threads} {case}")


@settings(max_examples=150)
@given(data=st.data())
def test_any_shape_and_options_equal_the_reference(data: st.DataObject) -> None:
    """Sizes from 0 and combinations of more than two options that the grid does not have. H is not 1 to 3: with so few
    units too many data have to be thrown away."""
    units = st.integers(4, 40) | st.just(0)
    ranges = {"I": st.integers(0, 40), "H": units, "T": st.integers(0, 9), "B": st.integers(0, 21)}
    case: dict[str, Any] = {name: data.draw(sizes, name) for name, sizes in ranges.items()}
    for name in OPTIONS:
        if name not in case:
            values = [value for value in OPTIONS[name] if possible({**case, name: value})]
            case[name] = data.draw(st.sampled_from(values), name)
    check(
        case,
        data.draw(st.sampled_from(rf.available_isas()), "isa"),
        data.draw(st.sampled_from(["float32", "float64"]), "dtype"),
        data.draw(st.integers(1, 4), "threads"),
    )


def test_the_grid_has_every_pair_of_options() -> None:
    cases = pairwise(OPTIONS, np.random.default_rng(0))
    for a, b in itertools.combinations(OPTIONS, 2):
        met = {(case[a], case[b]) for case in cases}
        assert met == {(x, y) for x in OPTIONS[a] for y in OPTIONS[b] if possible({a: x, b: y})}, (a, b)
    assert all(possible(case) for case in cases)
