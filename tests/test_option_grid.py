"""Every option of the layers and calls, alone and in every legal pair, against the reference in float64.

Instruction set, dtype and threads are options like the others here: every two values of any two options meet at least
once in each set of cases.
"""

from __future__ import annotations

import itertools
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import rnnfast as rf
from oracle import Results, compare_results, exact_threads, layer_results, reference_results
from test_oracle_grid import sensitivity

CELLS = {"rnn": rf.RNN, "lstm": rf.LSTM, "gru": rf.GRU}
FUNCTIONS: dict[str, Any] = {
    "relu": "relu",
    "affine": rf.Activation("affine", alpha=0.8, beta=0.1),
    "leaky_relu": rf.Activation("leaky_relu", alpha=-0.2),
    "thresholded_relu": rf.Activation("thresholded_relu", alpha=0.1),
    "scaled_tanh": rf.Activation("scaled_tanh", alpha=0.7, beta=1.3),
    "hard_sigmoid": rf.Activation("hard_sigmoid", alpha=0.2, beta=0.5),
    "elu": rf.Activation("elu", alpha=0.7),
    "softsign": "softsign",
    "softplus": "softplus",
    "sigmoid": "sigmoid",
    "of each direction": ("elu", "tanh"),
}
RECURRENT = {"hard": rf.Activation("hard_sigmoid", alpha=1 / 6, beta=0.5), "softsign": "softsign"}
OPTIONS: dict[str, list[Any]] = {
    "cell": list(CELLS),
    "isa": rf.available_isas(),
    "dtype": ["float32", "float64"],
    "threads": [1, 2, 3],
    "sizes": [(5, 4), (17, 19), (8, 33)],
    "layers": [1, 2],
    "bidirectional": [False, True],
    "bias": [True, False],
    "form": ["time first", "batch first", "unbatched"],
    "rows": [None, "lengths", "mask", "carry"],
    "reset": [None, "zero", "initial"],
    "state": [True, False],
    "dropout": [0.0, 0.4],
    "activation": [None, *FUNCTIONS],
    "recurrent_activation": [None, *RECURRENT],
    "output_activation": [None, "softsign"],
    "clip": [None, 0.5],
    "peepholes": [False, True],
    "coupled_gates": [False, True],
    "reset_after": [True, False],
    "proj_size": [0, 3],
    "layer_norm": [False, True],
    "zoneout": [0.0, 0.3, (0.2, 0.4), (0.0, 0.5)],
    "recurrent_dropout": [0.0, 0.3],
    "input_dropout": [0.0, 0.3],
    "grad_clip": [None, 0.1],
    "recompute": [None, 2],
    "widths": [False, True],
    "returns": [False, True],
}
LSTM_ONLY = ("peepholes", "coupled_gates", "proj_size", "output_activation")
EXCLUDED = [
    ("proj_size", "widths"), ("proj_size", "zoneout"), ("proj_size", "layer_norm"), ("layer_norm", "peepholes"),
    ("layer_norm", "coupled_gates"), ("layer_norm", "zoneout"), ("layer_norm", "recompute"),
    ("recompute", "recurrent_dropout"),
]  # fmt: skip


def possible(case: dict[str, Any]) -> bool:
    """Of a whole case or of a part of one: the combinations that layers refuse or that mean nothing."""
    cell = case.get("cell")
    before = case.get("reset_after") is False
    return not (
        (cell in ("rnn", "gru") and (any(case.get(name) for name in LSTM_ONLY)))
        or (cell in ("rnn", "gru") and isinstance(case.get("zoneout"), tuple))
        or (cell == "rnn" and (case.get("layer_norm") or case.get("recurrent_activation")))
        or (before and cell in ("rnn", "lstm"))
        or (before and (any(case.get(name) for name in (*LSTM_ONLY, "recompute", "layer_norm"))))
        or (before and isinstance(case.get("zoneout"), tuple))
        or any(case.get(a) and case.get(b) for a, b in EXCLUDED)
        or (case.get("activation") == "of each direction" and case.get("bidirectional") is False)
        or (case.get("dropout") and case.get("layers") == 1)
        or (case.get("form") == "unbatched" and case.get("rows") == "lengths")
    )


def completions(case: dict[str, Any], rng: np.random.Generator) -> dict[str, Any] | None:
    """A whole case that contains this part; None where chance has run into a dead end."""
    case = dict(case)
    for name in rng.permutation([name for name in OPTIONS if name not in case]):
        values = [value for value in OPTIONS[name] if possible({**case, name: value})]
        if not values:
            return None
        case[name] = values[rng.integers(len(values))]
    return case


def pairs(case: dict[str, Any]) -> set[Any]:
    return {(a, repr(case[a]), b, repr(case[b])) for a, b in itertools.combinations(OPTIONS, 2)}


def pairwise(rng: np.random.Generator, **common: Any) -> list[dict[str, Any]]:
    """Cases that contain every possible pair of values: greedily, of a few random completions of a missing pair. All
    have what is common."""
    missing = {
        (a, repr(x), b, repr(y)): {**common, a: x, b: y}
        for a, b in itertools.combinations([name for name in OPTIONS if name not in common], 2)
        for x in OPTIONS[a]
        for y in OPTIONS[b]
        if any(possible({"cell": cell, **common, a: x, b: y}) for cell in ([x] if a == "cell" else CELLS))
    }
    cases = []
    while missing:
        part = missing[min(missing)]
        candidates = [case for _ in range(12) if (case := completions(part, rng)) is not None]
        best = max(candidates, key=lambda case: len(pairs(case) & missing.keys()))
        cases.append(best)
        for pair in pairs(best) & missing.keys():
            del missing[pair]
    return cases


def make_layer(case: dict[str, Any], rng: np.random.Generator) -> Any:
    I, H = case["sizes"]
    options: dict[str, Any] = {
        name: case[name]
        for name in ("bias", "bidirectional", "dropout", "clip", "zoneout", "recurrent_dropout", "input_dropout",
                     "grad_clip", "recompute", "dtype", "peepholes", "coupled_gates", "reset_after", "proj_size",
                     "layer_norm", "output_activation")
        if case[name] != OPTIONS[name][0] or name in ("bias", "dtype")
    }  # fmt: skip
    if case["activation"]:
        options["activation"] = FUNCTIONS[case["activation"]]
    if case["recurrent_activation"]:
        options["recurrent_activation"] = RECURRENT[case["recurrent_activation"]]
    hidden: Any = tuple(H + 3 * layer for layer in range(case["layers"])) if case["widths"] else H
    batch_first = case["form"] == "batch first"
    layer = CELLS[case["cell"]](I, hidden, case["layers"], batch_first=batch_first, seed=rng, **options)
    for name, value in layer.parameters.items():
        if name.startswith("weight_ih"):  # pre-activations near 1 whatever the input size
            value *= np.sqrt(H / max(value.shape[1], 1))
        elif "_ln_" in name or name.startswith("weight_ch"):
            value[...] = rng.uniform(0.3, 1.0, value.shape)
    return layer


def draw(case: dict[str, Any], attempt: int) -> tuple[Any, list[Any], dict[str, Any]]:
    """The layer of a case, and the positional and keyword arguments of ``layer_results``."""
    rng = np.random.default_rng([attempt, zlib.crc32(repr(sorted(case.items(), key=str)).encode())])
    layer = make_layer(case, rng)
    T, B, directions = 6, 1 if case["form"] == "unbatched" else 5, 2 if case["bidirectional"] else 1

    def laid_out(array: np.ndarray) -> np.ndarray:
        if case["form"] == "unbatched":
            return array[:, 0]
        return array.swapaxes(0, 1) if case["form"] == "batch first" else array

    def uniform(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, shape).astype(case["dtype"])

    def state() -> Any:
        batch = () if case["form"] == "unbatched" else (B,)
        sizes = layer.hidden_size if case["widths"] else (layer.hidden_size,)
        count = directions if case["widths"] else directions * case["layers"]
        h = tuple(uniform(count, *batch, layer.proj_size or size) for size in sizes)
        c = tuple(uniform(count, *batch, size) for size in sizes)
        h, c = (part if case["widths"] else part[0] for part in (h, c))
        return (h, c) if case["cell"] == "lstm" else h

    width = layer.proj_size or (layer.hidden_size[-1] if case["widths"] else layer.hidden_size)
    call: dict[str, Any] = {}
    if case["rows"] in ("mask", "carry"):
        call["mask"] = laid_out(rng.random((T, B)) < 0.7)
    if case["rows"] == "carry":
        call["masked_output"] = "carry"
    if case["reset"]:
        call["reset"], call["reset_to"] = laid_out(rng.random((T, B)) < 0.3), case["reset"]
    if case["returns"] and case["cell"] != "rnn":
        call["return_gates"] = True
    if case["returns"] and case["cell"] == "lstm":
        call["return_cell"] = True
    lengths = rng.integers(0, T + 1, B) if case["rows"] == "lengths" else None
    x, grad_output = (
        np.ascontiguousarray(laid_out(uniform(T, B, size))) for size in (layer.input_size, directions * width)
    )
    return layer, [x, state() if case["state"] else None, grad_output, state(), lengths], call


def check(case: dict[str, Any]) -> bool:
    """Within the tolerances, or a few times that where rounding alone moves the reference as far; data on a kink, where
    it moves by far more, are drawn anew. Returns whether there were others."""
    for attempt in range(200):
        layer, arguments, call = draw(case, attempt)
        with rf.use_isa(case["isa"]), exact_threads(case["threads"]):
            got, masks = layer_results(layer, *arguments, **call)
        want: Results = reference_results(layer, *arguments, masks=masks, **call)
        moved = sensitivity(layer, arguments, masks, want, **call)
        if moved <= 20:
            compare_results(layer, arguments[0], got, want, slack=max(1.0, moved / 0.2))
            return True
    return False


def shown(case: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in case.items() if value not in (OPTIONS[name][0], None))


CASES = [case for number in range(5) for case in pairwise(np.random.default_rng(number))]
CASES += pairwise(np.random.default_rng(5), rows="lengths", bidirectional=True, layers=2)


@pytest.mark.parametrize("case", CASES, ids=shown)
def test_options_equal_the_reference(case: dict[str, Any]) -> None:
    assert check(case), "no data were well posed"


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_any_options_equal_the_reference(seed: int) -> None:
    """Combinations of more than two options that the pairs do not have."""
    case = completions({}, np.random.default_rng(seed))
    assume(case is not None and check(case))
