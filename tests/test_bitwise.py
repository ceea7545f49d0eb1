"""The same input sequence gives the same bits, whatever it is computed with: the contract of docs/kernels.md.

Everything here is equality of bytes. Sizes are such that tiles of every height and panels in every grouping occur, and
that a pass has one block of steps or several.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import programs
import rnnfast as rf
from oracle import Axes, exact_threads, layer_results
from test_threads import not_under_tsan

KINDS: dict[str, Callable[..., Any]] = {
    "rnn": rf.RNN,
    "rnn relu": lambda *args, **options: rf.RNN(*args, nonlinearity="relu", **options),
    "lstm": rf.LSTM,
    "gru": rf.GRU,
}
DTYPES = ["float32", "float64"]
FMA = [name for name in rf.available_isas() if name != "x86_64_v2"]  # the one without a fused multiply-add
OF_A_SEQUENCE = ("output", "state", "grads.input", "grads.state", "grads.per_step")  # not sums over the batch

each_kind = pytest.mark.parametrize("kind", KINDS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


class Problem:
    """A layer and one set of arguments, [T, B, ...]."""

    def __init__(
        self,
        kind: str,
        dtype: str,
        T: int,
        B: int,
        I: int,
        H: int,
        layers: int = 1,
        bidirectional: bool = False,
        ragged: bool = False,
        batch_first: bool = False,
        dropout: float = 0.0,
    ) -> None:
        rng = np.random.default_rng([T, B, I, H])

        def draw(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype(dtype)

        options = {"bidirectional": bidirectional, "batch_first": batch_first, "dropout": dropout, "dtype": dtype}
        self.layer = KINDS[kind](I, H, layers, seed=0, **options)
        directions = 2 if bidirectional else 1
        shape = (layers * directions, B, H)
        pair = isinstance(self.layer, rf.LSTM)
        self.x, self.grad_output = draw(T, B, I), draw(T, B, directions * H)
        self.hx = (draw(*shape), draw(*shape)) if pair else draw(*shape)
        self.grad_state = (draw(*shape), draw(*shape)) if pair else draw(*shape)
        self.lengths = rng.integers(0, T + 1, B) if ragged else None

    def results(self, **changes: Any) -> dict[str, np.ndarray]:
        """All results by name, [T, B, ...]; by keyword what is to replace an argument."""
        arguments = {name: changes.get(name, getattr(self, name)) for name in ARGUMENTS}
        outputs, gradients = layer_results(self.layer, *arguments.values())[0]
        return {**outputs, **gradients}

    def rows(self, rows: Any, steps: Any = slice(None)) -> dict[str, Any]:
        """The arguments of some rows of the batch, cut to some steps."""
        return {
            "x": self.x[steps, rows],
            "hx": rows_of_state(self.hx, rows),
            "grad_output": self.grad_output[steps, rows],
            "grad_state": rows_of_state(self.grad_state, rows),
            "lengths": None if self.lengths is None else self.lengths[rows],
        }


ARGUMENTS = ("x", "hx", "grad_output", "grad_state", "lengths")


def rows_of_state(state: Any, rows: Any) -> Any:
    return tuple(part[:, rows] for part in state) if isinstance(state, tuple) else state[:, rows]


def assert_same_bits(name: str, got: Any, want: Any) -> None:
    if isinstance(want, tuple):
        for number, (a, b) in enumerate(zip(got, want, strict=True)):
            assert_same_bits(f"{name}[{number}]", a, b)
        return
    assert (got.shape, got.dtype) == (want.shape, want.dtype), name
    if got.tobytes() != want.tobytes():
        where = np.argwhere(got.view(f"u{got.itemsize}") != want.view(f"u{want.itemsize}"))
        at = tuple(where[0])
        raise AssertionError(f"{name}: {len(where)} of {got.size} differ, first {at}: {got[at]!r}, want {want[at]!r}")


def assert_same_results(got: dict[str, Any], want: dict[str, Any], where: str) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert_same_bits(f"{where}: {name}", got[name], value)


def of_a_sequence(results: dict[str, Any], rows: Any, steps: Any = slice(None)) -> dict[str, Any]:
    """Those results that belong to single rows of the batch, of some rows and steps."""
    cut = {}
    for name, value in results.items():
        if name.startswith(OF_A_SEQUENCE):
            cut[name] = np.ascontiguousarray(value[:, rows] if " " in name else value[steps, rows])
    return cut


def assert_same_for(settings: Iterable[tuple[str, int]], problem: Problem, where: str) -> None:
    first = None
    for isa, threads in settings:
        with rf.use_isa(isa), exact_threads(threads):
            results = problem.results()
        if first is None:
            first = results
        assert_same_results(results, first, f"{where} {isa} threads={threads}")


# --- how it is computed: instruction sets and threads ---


@each_kind
def test_the_instruction_set_that_is_chosen_for_a_layer_changes_nothing(kind: str) -> None:
    best = rf.show_config(mode="dicts")["isa"]
    cpu = Path("/proc/cpuinfo").read_text()
    if best == "x86_64_v4" and "AuthenticAMD" in cpu and re.search(r"cpu family\s*: 25\n", cpu):  # Zen 4
        assert [KINDS[kind](7, H).freeze().isa for H in (8, 64)] == ["x86_64_v3", best]
    for H in (1, 8, 9, 24, 40, 64):
        problem = Problem(kind, "float32", 5, 3, 7, H)
        results = problem.results()
        with rf.use_isa(best):
            assert problem.layer.freeze().isa == best
            assert_same_results(problem.results(), results, f"H={H}")


@pytest.mark.parametrize("H", [5, 16, 33, 130])
@each_dtype
@each_kind
def test_instruction_sets_with_fma_agree(kind: str, dtype: str, H: int) -> None:
    if len(FMA) < 2:
        pytest.skip(f"this machine has one instruction set with FMA: {FMA}")
    for B in range(1, 21):
        problem = Problem(kind, dtype, T=3, B=B, I=B + 2, H=H, bidirectional=B % 5 == 0, ragged=B % 3 == 0)
        assert_same_for([(isa, 1) for isa in FMA], problem, f"B={B}")


@pytest.mark.parametrize("H", [5, 33, 130])
@each_dtype
@each_kind
def test_numbers_of_threads_agree(kind: str, dtype: str, H: int) -> None:
    """Small batches are split by units, large ones by rows; 3 and 5 threads make uneven shares, and idle threads."""
    for B in (1, 2, 7, 13, 20, 40):
        problem = Problem(kind, dtype, T=3, B=B, I=11, H=H, bidirectional=B in (2, 20), ragged=B == 13)
        for isa in rf.available_isas():
            assert_same_for([(isa, threads) for threads in (1, 2, 3, 5)], problem, f"B={B}")


LONG = [  # several blocks of steps forward and backward, deep stacks, both directions
    {"T": 230, "B": 1, "I": 9, "H": 130},
    {"T": 50, "B": 17, "I": 37, "H": 67, "layers": 2, "bidirectional": True, "ragged": True, "dropout": 0.3},
    {"T": 12, "B": 70, "I": 5, "H": 130, "layers": 3},  # so many rows that a block is one step
    # Outputs that are copied from h with one thread and not with three, and in some of the steps.
    {"T": 6, "B": 150, "I": 5, "H": 67, "layers": 2, "bidirectional": True, "ragged": True},
]


def test_one_row_is_as_wide_as_many_rows_together() -> None:
    """Outputs of so many units as would be copied behind a step of several rows."""
    layer = rf.RNN(1, 4100, dtype="float64", seed=0)
    x = np.ones((2, 2, 1))
    with exact_threads(1):  # several would have fewer units each
        both, _ = layer(x)
        one, state = layer(x[:, :1])
    assert_same_bits("output", one, both[:, :1])
    assert_same_bits("state", state[0], one[-1])


@pytest.mark.parametrize("sizes", LONG, ids=lambda sizes: f"T={sizes['T']}")
@each_dtype
@each_kind
def test_long_and_deep_passes_agree_on_instruction_sets_and_threads(kind: str, dtype: str, sizes: Any) -> None:
    """Dropout draws the same masks because each layer is made with the same seed."""
    first = None
    for isa in FMA:
        for threads in (1, 2, 3):
            problem = Problem(kind, dtype, **sizes)
            with rf.use_isa(isa), exact_threads(threads):
                results = problem.results()
            if first is None:
                first = results
            assert_same_results(results, first, f"{isa} threads={threads}")


NARROW: dict[str, tuple[Any, dict[str, Any]]] = {
    "rnn": (rf.RNN, {}),
    "lstm": (rf.LSTM, {}),
    "lstm projected": (rf.LSTM, {"proj_size": 3}),
    "lstm normalized": (rf.LSTM, {"layer_norm": True}),
    "gru": (rf.GRU, {}),
    "gru, reset before": (rf.GRU, {"reset_after": False}),
}


@pytest.mark.parametrize("H", [5, 20, 40])
@pytest.mark.parametrize("kind", NARROW)
def test_threads_that_share_the_input_products_of_few_units_change_nothing(kind: str, H: int) -> None:
    """One thread has the recurrence where there are fewer panels than threads, and no tape; else each has some of it.
    The first lengths are of several blocks, but of the smallest layers."""
    make, options = NARROW[kind]
    rng = np.random.default_rng(0)
    for B, bidirectional in ((3, False), (7, True)):
        layer = make(200, H, 2, bidirectional=bidirectional, seed=0, **options)
        x = rng.standard_normal((9000 // B, B, 200)).astype("float32")
        lengths = rng.integers(8000 // B, len(x) + 1, B)
        resets = rng.random((40, B)) < 0.1
        first = None
        for isa in FMA:
            for threads in (1, 2, 3, 4):
                with rf.use_isa(isa), exact_threads(threads):
                    results = {
                        "whole": layer(x, lengths=lengths),
                        "with resets": layer(x[:40], reset=resets),
                        "with a tape": layer.forward(x[:40])[:2],
                    }
                first = first or results
                for name, (output, state) in results.items():
                    where = f"{name}, {isa} threads={threads} B={B}"
                    assert_same_bits(f"output {where}", output, first[name][0])
                    assert_same_bits(f"state {where}", state, first[name][1])


@pytest.mark.parametrize(("layers", "H"), [(2, 40), (3, 5), (5, 20)])
@each_dtype
@each_kind
def test_layers_side_by_side_change_nothing(kind: str, dtype: str, layers: int, H: int) -> None:
    """With fewer rows than threads and no tape each thread has layers of its own, some steps behind those below."""
    for T, B in ((2, 1), (9, 1), (100, 1), (70, 2)):
        problem = Problem(kind, dtype, T, B, 7, H, layers)
        rng = np.random.default_rng(0)
        lengths, resets, mask = rng.integers(0, T + 1, B), rng.random((T, B)) < 0.1, rng.random((T, B)) < 0.7
        first = None
        for isa in FMA:
            for threads in (1, 2, 3, 5):
                with rf.use_isa(isa), exact_threads(threads):
                    results = {
                        "whole": problem.layer(problem.x, problem.hx),
                        "with lengths": problem.layer(problem.x, problem.hx, lengths=lengths),
                        "with resets": problem.layer(problem.x, problem.hx, reset=resets),
                        "with a mask": problem.layer(problem.x, problem.hx, mask=mask),
                    }
                first = first or results
                for name, (output, state) in results.items():
                    where = f"{name}, {isa} threads={threads} T={T} B={B}"
                    assert_same_bits(f"output {where}", output, first[name][0])
                    assert_same_bits(f"state {where}", state, first[name][1])


# --- in which company: the batch, padding ---


@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (2, True)])
@each_dtype
@each_kind
def test_a_row_does_not_depend_on_its_batch(isa: str, kind: str, dtype: str, layers: int, bidirectional: bool) -> None:
    problem = Problem(kind, dtype, 9, 20, 11, 33, layers, bidirectional)
    whole = problem.results()
    order = np.random.default_rng(1).permutation(20)
    companies: list[Any] = [[b] for b in range(20)] + [order, order[:2], order[3:8], order[4:], [5] * 7]
    for rows in companies:
        got = of_a_sequence(problem.results(**problem.rows(rows)), slice(None))
        assert_same_results(got, of_a_sequence(whole, rows), f"rows {rows}")


@each_kind
def test_a_row_of_a_wide_layer_does_not_depend_on_its_batch(isa: str, kind: str) -> None:
    """Weights that many rows take in pieces in backward, two tiles or the halves of one in forward, and one row as they
    are; 65 and 66 are one and two more than a set of rows."""
    H = {"lstm": 300, "gru": 360}.get(kind, 1100)
    problem = Problem(kind, "float32", 3, 66, 280, H)
    with exact_threads(1):
        whole = problem.results()
        for rows in (slice(4), slice(5), slice(10, 17), slice(12), slice(1, 66), slice(65, 66)):
            got = of_a_sequence(problem.results(**problem.rows(rows)), slice(None))
            assert_same_results(got, of_a_sequence(whole, rows), f"rows {rows}")


@pytest.mark.parametrize(
    ("cell", "inputs", "units"),
    [("LSTM", 740, 740), ("GRU", 850, 850), ("RNN", 1470, 1470), ("LSTM", 0, 300), ("GRU", 0, 360), ("RNN", 0, 1100)],
)
@pytest.mark.parametrize("isa", FMA)
def test_rows_do_not_depend_on_how_many_use_weights_from_afar(isa: str, cell: str, inputs: int, units: int) -> None:
    """Up to 20 rows take weights of more than 16 MB in pieces; without inputs there are none of W."""
    layer = getattr(rf, cell)(inputs, units, seed=0)
    x = np.random.default_rng(0).standard_normal((2, 20, inputs), dtype="float32")
    with rf.use_isa(isa), exact_threads(1):
        alone = np.concatenate([layer(x[:, row : row + 1])[0] for row in range(20)], axis=1)
        for rows in (4, 5, 7, 8, 9, 10, 12, 13, 16, 19, 20):
            assert_same_bits(f"{rows} rows", layer(x[:, :rows])[0], alone[:, :rows])


@pytest.mark.parametrize("isa", FMA)
def test_seven_rows_do_not_depend_on_how_many_weights_there_are(isa: str) -> None:
    """The same units in a layer of 800, whose 7 rows take weights in pieces, and in one of 40."""
    large, small = rf.LSTM(900, 800, seed=0), rf.LSTM(900, 40, seed=0)
    x = np.random.default_rng(0).standard_normal((1, 7, 900), dtype="float32")
    for name in small.parameters:
        rows = large.parameters[name].reshape(4, 800, -1)[:, :40]
        small.parameters[name][...] = (rows[..., :40] if name.startswith("weight_hh") else rows).reshape(
            small.parameters[name].shape
        )
    with rf.use_isa(isa), exact_threads(1):
        assert_same_bits("output", large(x)[0][..., :40], small(x)[0])


@each_dtype
@each_kind
def test_padding_equals_exact_lengths(isa: str, kind: str, dtype: str) -> None:
    """What lies beyond a length, NaN here, is never read; the rows alone and cut have the same bits."""
    problem = Problem(kind, dtype, 11, 13, 7, 33, layers=2, bidirectional=True, ragged=True)
    problem.lengths[:3] = 0, 11, 1
    beyond = np.arange(11)[:, None] >= problem.lengths
    for array in (problem.x, problem.grad_output):
        array[beyond] = np.nan
    for threads in (1, 2):
        with exact_threads(threads):
            whole = problem.results()
        for b, length in enumerate(problem.lengths):
            alone = {**problem.rows([b], slice(length)), "lengths": None}
            want = of_a_sequence(whole, [b], slice(length))
            assert_same_results(of_a_sequence(problem.results(**alone), slice(None)), want, f"length {length}")
            for name in ("output", "grads.input", *(name for name in whole if "per_step" in name)):
                assert not whole[name][length:, b].any(), name


@each_dtype
@each_kind
def test_full_lengths_equal_none(isa: str, kind: str, dtype: str) -> None:
    problem = Problem(kind, dtype, 30, 7, 5, 17, layers=2, bidirectional=True)
    assert_same_results(problem.results(lengths=np.full(7, 30)), problem.results(), "lengths")


# --- in how many calls: chunks, steps ---


def cut(T: int, sizes: Iterable[int]) -> list[slice]:
    ends = np.cumsum([0, *sizes])
    assert ends[-1] == T
    return [slice(int(a), int(b)) for a, b in zip(ends[:-1], ends[1:], strict=True)]


CHUNKED = [
    ({"T": 23, "B": 5, "I": 6, "H": 33, "layers": 2}, [1, 7, 0, 2, 13]),
    ({"T": 23, "B": 5, "I": 6, "H": 33, "layers": 2, "ragged": True}, [1, 7, 0, 2, 13]),
    ({"T": 230, "B": 1, "I": 6, "H": 130}, [100, 130]),
    ({"T": 40, "B": 20, "I": 6, "H": 16, "layers": 3}, [3, 37]),
]


@pytest.mark.parametrize(("sizes", "chunks"), CHUNKED, ids=lambda value: str(value))
@each_dtype
@each_kind
def test_chunks_equal_the_whole_forward_and_backward(isa: str, kind: str, dtype: str, sizes: Any, chunks: Any) -> None:
    """The state is carried forward from chunk to chunk, its gradient backward. A row that is over keeps its state."""
    problem = Problem(kind, dtype, **sizes)
    whole = problem.layer.forward(problem.x, problem.hx, lengths=problem.lengths)
    whole_grads = problem.layer.backward(whole[2], problem.grad_output, problem.grad_state)
    carried, tapes, outputs = problem.hx, [], []
    for part in cut(sizes["T"], chunks):
        left = None
        if problem.lengths is not None:
            left = np.clip(problem.lengths - part.start, 0, part.stop - part.start)
        output, carried, tape = problem.layer.forward(problem.x[part], carried, lengths=left)
        outputs.append(output)
        tapes.append((tape, part))
    assert_same_bits("output", np.concatenate(outputs), whole[0])
    assert_same_bits("state", carried, whole[1])

    carried, inputs = problem.grad_state, []
    for tape, part in reversed(tapes):
        grads = problem.layer.backward(tape, problem.grad_output[part], carried)
        carried = grads.state
        inputs.insert(0, grads.input)
    assert_same_bits("grads.input", np.concatenate(inputs), whole_grads.input)
    assert_same_bits("grads.state", carried, whole_grads.state)


@pytest.mark.parametrize("B", [1, 3, 20])
@each_dtype
@each_kind
def test_steps_of_a_stream_equal_the_whole(isa: str, kind: str, dtype: str, B: int) -> None:
    problem = Problem(kind, dtype, 17, B, 6, 33, layers=2)
    output, state = problem.layer(problem.x, problem.hx)
    stream = problem.layer.freeze().stream(B)
    stream.state = problem.hx
    assert_same_bits("output", np.stack([stream.step(x) for x in problem.x]), output)
    assert_same_bits("state", stream.state, state)


# --- through which door: training, inference, frozen, layouts ---


@pytest.mark.parametrize("threads", [1, 3])
@each_dtype
@each_kind
def test_frozen_and_inference_equal_training(isa: str, kind: str, dtype: str, threads: int) -> None:
    problem = Problem(kind, dtype, 9, 13, 6, 33, layers=3, bidirectional=True, ragged=True)
    arguments = {"x": problem.x, "hx": problem.hx, "lengths": problem.lengths}
    with exact_threads(threads):
        trained = problem.layer.forward(**arguments)[:2]
        for name, run in (("frozen", problem.layer.freeze()), ("inference", problem.layer)):
            output, state = run(**arguments)
            assert_same_bits(f"{name} output", output, trained[0])
            assert_same_bits(f"{name} state", state, trained[1])


def lies_otherwise(array: np.ndarray) -> dict[str, np.ndarray]:
    """The same array in other memory layouts; the last one between NaNs that must not be read."""
    wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
    wide[..., ::2] = array
    padded = np.full([n + 2 for n in array.shape], np.nan, array.dtype)
    padded[1:-1, 1:-1, 1:-1] = array
    buffer = np.zeros(array.nbytes + 1, np.uint8)
    misaligned = np.frombuffer(buffer.data, array.dtype, array.size, offset=1).reshape(array.shape)
    misaligned[...] = array
    return {
        "column major": np.asfortranarray(array),
        "transposed": np.ascontiguousarray(array.swapaxes(0, 1)).swapaxes(0, 1),
        "backwards": np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1],
        "every second": wide[..., ::2],
        "misaligned": misaligned,
        "inside another": padded[1:-1, 1:-1, 1:-1],
    }


@each_dtype
@each_kind
def test_memory_layouts_agree(kind: str, dtype: str) -> None:
    problem = Problem(kind, dtype, 6, 5, 7, 19, layers=2, bidirectional=True)
    want = problem.results()
    layouts = {
        name: lies_otherwise(value if isinstance(value, np.ndarray) else value[0])
        for name, value in (("x", problem.x), ("grad_output", problem.grad_output), ("hx", problem.hx))
    }
    for layout in layouts["x"]:
        changes = {name: arrays[layout] for name, arrays in layouts.items()}
        assert changes["x"].tobytes() == problem.x.tobytes() and not (
            changes["x"].flags.c_contiguous and changes["x"].flags.aligned
        )
        if isinstance(problem.hx, tuple):
            changes["hx"] = (changes["hx"], problem.hx[1])
        assert_same_results(problem.results(**changes), want, layout)


@each_dtype
@each_kind
def test_batch_first_and_unbatched_agree_with_time_first(kind: str, dtype: str) -> None:
    for B in (1, 5):
        options = {"T": 6, "B": B, "I": 7, "H": 19, "layers": 2, "bidirectional": True}
        problem, first = Problem(kind, dtype, **options), Problem(kind, dtype, **options, batch_first=True)
        want = problem.results()
        # Results come back as [T, B, ...] in C order, so that their bytes can be compared.
        changes = {name: np.ascontiguousarray(getattr(problem, name).swapaxes(0, 1)) for name in ("x", "grad_output")}
        got = first.results(**changes)
        assert_same_results({name: np.ascontiguousarray(value) for name, value in got.items()}, want, "batch first")
    axes = Axes(unbatched=True, batch_first=False)
    single = {"x": problem.x[:, 0], "grad_output": problem.grad_output[:, 0]}
    single |= {name: rows_of_state(getattr(problem, name), 0) for name in ("hx", "grad_state")}
    batch_of_one = problem.results(**problem.rows([0]))
    assert axes.sequence(single["x"]).shape == (6, 1, 7)
    assert_same_results(problem.results(**single), batch_of_one, "unbatched")


@each_dtype
@each_kind
def test_a_tape_gives_the_same_every_time(isa: str, kind: str, dtype: str) -> None:
    """Other calls in between, on the same layer and threads, leave it alone."""
    problem = Problem(kind, dtype, 30, 9, 6, 33, layers=3, bidirectional=True, ragged=True, dropout=0.4)
    layer = problem.layer
    *_, tape = layer.forward(problem.x, problem.hx, lengths=problem.lengths)
    arguments = (tape, problem.grad_output, problem.grad_state)
    first = layer.backward(*arguments, per_step=True)
    layer.backward(tape, problem.grad_output * 2)
    layer.forward(problem.x[::-1])
    for threads in (1, 2):
        with exact_threads(threads):
            again = layer.backward(*arguments, per_step=True)
        assert_same_bits("input", again.input, first.input)
        assert_same_bits("state", again.state, first.state)
        assert_same_bits("per_step", tuple(again.per_step), tuple(first.per_step))
        for name, value in first.parameters.items():
            assert_same_bits(name, again.parameters[name], value)


COUNT_THREADS = """
import os
import numpy as np
import rnnfast as rf
from oracle import exact_threads
before = len(os.listdir("/proc/self/task"))
layer = rf.LSTM(2, 3)
with exact_threads(5):
    layer(np.zeros((2, 1, 2), np.float32))
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="this system does not list the threads of a process")
@not_under_tsan
def test_exact_threads_are_that_many_however_small_the_work() -> None:
    """Without which the tests above would compare one thread with itself."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment["RNNFAST_THREADING"] = "pool"
    run = programs.run_code(COUNT_THREADS, env=environment)
    assert run.stdout.strip() == "4", run.stderr


def test_the_comparison_sees_one_bit() -> None:
    """Also where `==` sees nothing: the sign of a zero."""
    a = np.zeros((2, 3), np.float32)
    b = a.copy()
    b[1, 2] = -0.0
    assert_same_bits("a", a, a.copy())
    with pytest.raises(AssertionError, match=r"a: 1 of 6 differ, first \(.*1.*2.*\)"):
        assert_same_bits("a", b, a)
