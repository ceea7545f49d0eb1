"""Bad input gets a message that names the argument, what was expected and what came; and nothing else happens.
Errors of streams and optimisers are tested beside them."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import programs
import rnnfast as rf
from rnnfast import _core

I, H, T, B = 5, 7, 4, 3
Case = tuple[Callable[[], Any], type[Exception], str]

lstm, gru, rnn = rf.LSTM(I, H, seed=0), rf.GRU(I, H, seed=0), rf.RNN(I, H, seed=0)
stack = rf.GRU(I, H, 2, bidirectional=True, seed=0)
first = rf.GRU(I, H, batch_first=True, seed=0)
x = np.random.default_rng(0).standard_normal((T, B, I)).astype(np.float32)
h = np.zeros((1, B, H), np.float32)


def array(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def check(case: Case) -> None:
    call, error, message = case
    with pytest.raises(error, match=re.escape(message)) as caught:
        call()
    assert type(caught.value) is error


CONSTRUCTION: dict[str, Case] = {
    "input_size negative": (lambda: rf.GRU(-1, 3), ValueError, "input_size must be at least 0, got -1"),
    "input_size float": (lambda: rf.GRU(1.0, 3), TypeError, "input_size must be an integer, got 1.0"),
    "hidden_size negative": (lambda: rf.GRU(3, -3), ValueError, "hidden_size must be at least 0, got -3"),
    "hidden_size text": (lambda: rf.GRU(3, "4"), TypeError, "hidden_size must be an integer, got '4'"),
    "hidden_size tuple": (
        lambda: rf.GRU(3, (4, 4)),
        ValueError,
        "hidden_size must be one number or num_layers = 1 numbers, got 2",
    ),
    "hidden_size bool": (lambda: rf.GRU(3, True), TypeError, "hidden_size must be an integer, got True"),
    "num_layers zero": (lambda: rf.GRU(3, 4, 0), ValueError, "num_layers must be at least 1, got 0"),
    "num_layers none": (lambda: rf.GRU(3, 4, None), TypeError, "num_layers must be an integer, got None"),
    "num_layers absurd": (lambda: rf.GRU(3, 4, 10**9), ValueError, "num_layers must be at most 10000, got 1000000000"),
    "sizes absurd": (
        lambda: rf.LSTM(2**31, 2**31),
        ValueError,
        "input_size, hidden_size and num_layers are too large: the weights would have",
    ),
    "a size that NumPy refuses": (lambda: rf.LSTM(2**62, 0), ValueError, "are too large: the weights would have"),
    "sizes beyond 64 bits": (lambda: rf.LSTM(10**30, 10**30), ValueError, "are too large"),
    "bias a number": (lambda: rf.LSTM(3, 4, 2, 0.5), TypeError, "bias must be True or False, got 0.5"),
    "batch_first text": (lambda: rf.LSTM(3, 4, batch_first="yes"), TypeError, "batch_first must be True or False"),
    "bidirectional none": (lambda: rf.LSTM(3, 4, bidirectional=None), TypeError, "bidirectional must be True or False"),
    "dropout above one": (
        lambda: rf.LSTM(3, 4, 2, dropout=1.5),
        ValueError,
        "dropout must be a number in [0, 1], got 1.5",
    ),
    "dropout negative": (
        lambda: rf.LSTM(3, 4, 2, dropout=-0.1),
        ValueError,
        "dropout must be a number in [0, 1], got -0.1",
    ),
    "dropout NaN": (lambda: rf.LSTM(3, 4, 2, dropout=float("nan")), ValueError, "dropout must be a number in [0, 1]"),
    "dropout bool": (lambda: rf.LSTM(3, 4, 2, dropout=True), TypeError, "dropout must be a number, got True"),
    "dropout text": (lambda: rf.LSTM(3, 4, 2, dropout="0.5"), TypeError, "dropout must be a number, got '0.5'"),
    "nonlinearity": (
        lambda: rf.RNN(3, 4, nonlinearity="sigmoid"),
        ValueError,
        "nonlinearity must be one of 'tanh', 'relu', got 'sigmoid'",
    ),
    "nonlinearity type": (
        lambda: rf.RNN(3, 4, 1, True),
        ValueError,
        "nonlinearity must be one of 'tanh', 'relu', got True",
    ),
    "dtype half": (
        lambda: rf.GRU(3, 4, dtype="float16"),
        ValueError,
        "dtype must be 'float32' or 'float64', got 'float16'",
    ),
    "dtype none": (lambda: rf.GRU(3, 4, dtype=None), ValueError, "dtype must be 'float32' or 'float64', got None"),
    "dtype unknown": (lambda: rf.GRU(3, 4, dtype="f33"), ValueError, "dtype must be 'float32' or 'float64', got 'f33'"),
    "dtype swapped": (lambda: rf.GRU(3, 4, dtype=">f4"), ValueError, "dtype must be 'float32' or 'float64', got '>f4'"),
    "seed text": (
        lambda: rf.GRU(3, 4, seed="one"),
        TypeError,
        "seed must be None, a non-negative integer or a numpy.random.Generator, got 'one'",
    ),
    "seed negative": (lambda: rf.GRU(3, 4, seed=-1), ValueError, "seed must be None, a non-negative integer"),
    "unknown option": (lambda: rf.GRU(3, 4, colour="red"), TypeError, "unexpected keyword argument 'colour'"),
    "nonlinearity of GRU": (lambda: rf.GRU(3, 4, nonlinearity="relu"), TypeError, "unexpected keyword argument"),
    "too many arguments": (
        lambda: rf.GRU(3, 4, 1, True, False, 0.0, False, "float32"),
        TypeError,
        "positional arguments",
    ),
    "too few arguments": (lambda: rf.GRU(3), TypeError, "missing 1 required positional argument: 'hidden_size'"),
}

CALLS: dict[str, Case] = {
    "x of one axis": (
        lambda: gru(array(I)),
        ValueError,
        "x must have shape (T, B, 5), or (T, 5) without a batch, got (5,)",
    ),
    "x of four axes": (lambda: gru(array(1, T, B, I)), ValueError, "x must have shape (T, B, 5), or"),
    "x without axes": (lambda: gru(np.float32(1)), ValueError, "x must have shape (T, B, 5), or"),
    "x with other features": (
        lambda: gru(array(T, B, 4)),
        ValueError,
        "x must have shape (T, B, 5), or (T, 5) without a batch, got (4, 3, 4)",
    ),
    "x batch first": (lambda: first(array(B, T, 4)), ValueError, "x must have shape (B, T, 5), or (T, 5)"),
    "x float64": (
        lambda: gru(x.astype(np.float64)),
        TypeError,
        'x must be float32, like the layer, got float64; convert it with astype("float32") or make the layer with '
        'dtype="float64"',
    ),
    "x float16": (lambda: gru(x.astype(np.float16)), TypeError, 'got float16; convert it with astype("float32")'),
    "x integer": (lambda: gru(x.astype(int)), TypeError, "x must be float32, like the layer, got int64"),
    "x complex": (lambda: gru(x.astype(complex)), TypeError, "x must be float32, like the layer, got complex128"),
    "x of objects": (lambda: gru(x.astype(object)), TypeError, "x must be float32, like the layer, got object"),
    "x of text": (lambda: gru(x.astype(str)), TypeError, "x must be float32, like the layer, got <U"),
    "x of records": (lambda: gru(array(T, I, dtype=[("a", "f4")])), TypeError, "x must be float32, like the layer"),
    "x byte-swapped": (lambda: gru(x.astype(">f4")), TypeError, "x must be float32, like the layer, got >f4; convert"),
    "x masked": (lambda: gru(np.ma.array(x)), TypeError, "x is a masked array, whose mask would be ignored"),
    "x a list": (lambda: gru(x.tolist()), TypeError, "x must be a NumPy array, got a list; numpy.asarray makes one"),
    "x None": (lambda: gru(None), TypeError, "x must be a NumPy array, got None"),
    "x text": (lambda: gru("x"), TypeError, "x must be a NumPy array, got 'x'"),
    "x too large": (
        lambda: rf.LSTM(1, 1024)(np.broadcast_to(np.float32(0), (2**31, 2**20, 1))),
        ValueError,
        "x is too large: 2147483648 steps, batch 1048576, 4096 values each",
    ),
    "x missing": (lambda: gru(), TypeError, "missing 1 required positional argument: 'x'"),
    "unknown option": (lambda: gru(x, colour="red"), TypeError, "unexpected keyword argument 'colour'"),
    "lengths positional": (lambda: gru(x, h, [1, 2, 3]), TypeError, "positional arguments"),
    "hx with other batch": (
        lambda: gru(x, array(1, 2, H)),
        ValueError,
        "hx must have shape (1, 3, 7) (layers * directions, batch, hidden), got (1, 2, 7)",
    ),
    "hx of fewer layers": (lambda: stack(x, h), ValueError, "hx must have shape (4, 3, 7) (layers * directions, batch"),
    "hx batched for unbatched x": (
        lambda: gru(x[:, 0], h),
        ValueError,
        "hx must have shape (1, 7) (layers * directions, hidden), got (1, 3, 7)",
    ),
    "hx float64": (lambda: gru(x, h.astype("f8")), TypeError, "hx must be float32, like the layer, got float64"),
    "hx a tuple for GRU": (lambda: gru(x, (h, h)), TypeError, "hx of GRU must be one array h, got a tuple"),
    "hx a list for RNN": (lambda: rnn(x, [h]), TypeError, "hx of RNN must be one array h, got a list"),
    "hx a number": (lambda: gru(x, 0), TypeError, "hx must be a NumPy array, got 0"),
    "hx an array for LSTM": (
        lambda: lstm(x, h),
        TypeError,
        "hx of LSTM must be a tuple (h, c) of two arrays, got an array of shape (1, 3, 7) and dtype float32",
    ),
    "hx of three arrays": (
        lambda: lstm(x, (h, h, h)),
        ValueError,
        "hx of LSTM must be a tuple (h, c) of two arrays, got 3 elements",
    ),
    "hx with a wrong c": (lambda: lstm(x, (h, h[:, :1])), ValueError, "hx[1] must have shape (1, 3, 7) (layers"),
    "hx with a wrong h": (lambda: lstm(x, (h.astype("f8"), h)), TypeError, "hx[0] must be float32, like the layer"),
    "lengths too few": (
        lambda: gru(x, lengths=[1, 2]),
        ValueError,
        "lengths must have shape (3,) (one for each row of the batch), got (2,)",
    ),
    "lengths a number": (
        lambda: gru(x, lengths=3),
        ValueError,
        "lengths must have shape (3,) (one for each row of the",
    ),
    "lengths negative": (
        lambda: gru(x, lengths=[1, -2, 3]),
        ValueError,
        "lengths must be between 0 and the number of steps 4, got -2 in row 1",
    ),
    "lengths above T": (lambda: gru(x, lengths=[1, 2, 5]), ValueError, "the number of steps 4, got 5 in row 2"),
    "lengths far above T": (
        lambda: gru(x, lengths=np.array([2**64 - 1, 0, 0], np.uint64)),
        ValueError,
        "the number of steps 4, got 18446744073709551615 in row 0",
    ),
    "lengths beyond 64 bits": (
        lambda: gru(x, lengths=[2**70, 1, 1]),
        TypeError,
        "lengths must be integers, got object",
    ),
    "lengths of floats": (lambda: gru(x, lengths=[1.0, 2.0, 3.0]), TypeError, "lengths must be integers, got float64"),
    "lengths of bools": (lambda: gru(x, lengths=[True] * 3), TypeError, "lengths must be integers, got bool"),
    "lengths unbatched": (lambda: gru(x[:, 0], lengths=[3]), ValueError, "lengths needs a batched x; cut"),
}


@pytest.mark.parametrize("case", CONSTRUCTION)
def test_construction(case: str) -> None:
    check(CONSTRUCTION[case])


@pytest.mark.parametrize("case", CALLS)
def test_calls(case: str) -> None:
    check(CALLS[case])


@pytest.mark.parametrize(
    "case", ["x with other features", "hx a tuple for GRU", "lengths negative", "hx an array for LSTM"]
)
def test_forward_and_frozen_words_are_those_of_the_call(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, error, message = CALLS[case]
    monkeypatch.setitem(globals(), "gru", gru.forward)
    monkeypatch.setitem(globals(), "lstm", lstm.forward)
    check((call, error, message))
    monkeypatch.undo()
    monkeypatch.setitem(globals(), "gru", gru.freeze())
    monkeypatch.setitem(globals(), "lstm", lstm.freeze())
    check((call, error, message))


def test_memory_that_there_is_not_is_a_memory_error() -> None:
    """More than the 128 TiB that a process can address."""
    with pytest.raises(MemoryError):
        rf.GRU(1, 1)(np.broadcast_to(np.float32(0), (2**46, 1, 1)))
    with pytest.raises(MemoryError):
        rf.GRU(2**46, 1)


# --- backward ---

y, state, tape = gru.forward(x)
y_lstm, state_lstm, tape_lstm = lstm.forward(x)

BACKWARD: dict[str, Case] = {
    "tape of another layer": (
        lambda: rf.GRU(I, H).backward(tape, y),
        ValueError,
        "tape comes from another layer's forward (GRU(5, 7)), not from this one's (GRU(5, 7))",
    ),
    "tape of a copy": (lambda: copy.deepcopy(gru).backward(tape, y), ValueError, "tape comes from another layer"),
    "no tape": (lambda: gru.backward(None, y), TypeError, "tape must be what forward returned last, a Tape, got None"),
    "output for tape": (
        lambda: gru.backward(y, y),
        TypeError,
        "tape must be what forward returned last, a Tape, got an",
    ),
    "grad_output shape": (
        lambda: gru.backward(tape, y[:, :2]),
        ValueError,
        "grad_output must have shape (4, 3, 7) (the shape of output), got (4, 2, 7)",
    ),
    "grad_output float64": (lambda: gru.backward(tape, y.astype("f8")), TypeError, "grad_output must be float32, like"),
    "grad_output number": (lambda: gru.backward(tape, 1.0), TypeError, "grad_output must be a NumPy array, got 1.0"),
    "grad_state shape": (
        lambda: gru.backward(tape, y, state[0]),
        ValueError,
        "grad_state must have shape (1, 3, 7) (layers * directions, batch, hidden), got (3, 7)",
    ),
    "grad_state tuple": (lambda: gru.backward(tape, y, (state,)), TypeError, "grad_state of GRU must be one array h"),
    "grad_state array": (
        lambda: lstm.backward(tape_lstm, y_lstm, state),
        TypeError,
        "grad_state of LSTM must be a tuple (h, c) of two arrays, got an array",
    ),
    "grad_state c": (
        lambda: lstm.backward(tape_lstm, None, (None, state.astype("f8"))),
        TypeError,
        "grad_state[1] must be float32, like the layer, got float64",
    ),
    "per_step": (lambda: gru.backward(tape, y, per_step="yes"), TypeError, "per_step must be True or False, got 'yes'"),
}


@pytest.mark.parametrize("case", BACKWARD)
def test_backward(case: str) -> None:
    check(BACKWARD[case])


# --- parameters ---


def assign(name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(gru, name, value)


PARAMETERS: dict[str, Case] = {
    "shape": (assign("bias_ih_l0", array(3)), ValueError, "bias_ih_l0 must have shape (21,), got (3,)"),
    "no broadcast": (assign("weight_ih_l0", array(5)), ValueError, "weight_ih_l0 must have shape (21, 5), got (5,)"),
    "number": (assign("bias_ih_l0", 0.0), ValueError, "bias_ih_l0 must have shape (21,), got ()"),
    "complex": (
        assign("bias_ih_l0", array(21, dtype=complex)),
        TypeError,
        "bias_ih_l0 must be float32, or another floating",
    ),
    "object": (assign("bias_ih_l0", array(21, dtype=object)), TypeError, "bias_ih_l0 must be float32, or another"),
    "none": (assign("bias_ih_l0", None), TypeError, "bias_ih_l0 must be a NumPy array, got None"),
    "misspelt": (
        assign("weight_ih_10", array(21, 5)),
        AttributeError,
        "GRU has no parameter 'weight_ih_10'; it has weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0",
    ),
    "unknown": (lambda: gru.weight_ih_l1, AttributeError, "'GRU' object has no attribute 'weight_ih_l1'"),
    "unknown key": (lambda: gru.parameters.update(w=1), KeyError, "GRU has no parameter 'w'; it has weight_ih_l0"),
    "delete": (lambda: gru.parameters.pop("bias_ih_l0"), TypeError, "the parameters of GRU cannot be removed or added"),
    "clear": (lambda: gru.parameters.clear(), TypeError, "cannot be removed or added"),
    "fixed size": (assign("hidden_size", 3), AttributeError, "hidden_size"),
    "frozen": (
        lambda: setattr(gru.freeze(), "weight_ih_l0", array(21, 5)),
        AttributeError,
        "a frozen layer cannot be changed (weight_ih_l0); change the layer and freeze it again",
    ),
    "frozen weights": (
        lambda: gru.freeze().state_dict()["bias_ih_l0"].fill(0),
        ValueError,
        "read-only",
    ),
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_parameters(case: str) -> None:
    before = gru.state_dict()
    check(PARAMETERS[case])
    for name, value in gru.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_parameters_whose_shape_was_changed_in_place_are_refused() -> None:
    """NumPy lets anybody do this to an array; it must not make a kernel read beyond its end."""
    layer = rf.GRU(I, H)
    with pytest.warns() if np.lib.NumpyVersion(np.__version__) >= "2.5.0" else nothing():
        layer.weight_hh_l0.shape = (7, 21)
    with pytest.raises(ValueError, match=r"weight_hh has the wrong dtype, shape or memory layout: float32 \(7, 21\)"):
        layer(x)


class nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *args: object) -> None: ...


def test_load_state_dict_collects_all_errors_and_loads_nothing() -> None:
    layer = rf.GRU(I, H, seed=1)
    before = layer.state_dict()
    wrong = {**rf.GRU(I, H, seed=2).state_dict(), "extra": array(1), "more": array(1), "weight_hh_l0": array(21, 8)}
    wrong["bias_hh_l0"] = array(21, dtype=object)
    del wrong["bias_ih_l0"]
    with pytest.raises(ValueError) as caught:
        layer.load_state_dict(wrong)
    assert str(caught.value) == (
        "Error(s) in loading state_dict for GRU:\n"
        '\tMissing key(s) in state_dict: "bias_ih_l0".\n'
        '\tUnexpected key(s) in state_dict: "extra", "more".\n'
        "\tsize mismatch for weight_hh_l0: copying a param with shape (21, 8) from checkpoint, the shape in current "
        "model is (21, 7).\n"
        "\tbias_hh_l0 must be float32, or another floating-point type, got object."
    )
    with pytest.raises(ValueError, match="size mismatch for weight_hh_l0"):
        layer.load_state_dict(wrong, strict=False)
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("mapping", [None, [("weight_ih_l0", 1)], "weights"])
def test_load_state_dict_takes_mappings_only(mapping: Any) -> None:
    with pytest.raises(TypeError, match="state_dict must be a mapping from names to arrays, got"):
        gru.load_state_dict(mapping)


def test_tensors_that_cannot_be_arrays_are_named() -> None:
    torch = pytest.importorskip("torch", reason="passes tensors of torch")
    with pytest.raises(TypeError, match="x is a tensor that cannot be a NumPy array: .*BFloat16"):
        gru(torch.zeros(T, B, I, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match="x is a tensor that cannot be a NumPy array"):
        gru(torch.zeros(T, B, I, device="meta"))
    with pytest.raises(TypeError, match="x must be float32, like the layer, got float64"):
        gru(torch.zeros(T, B, I, dtype=torch.float64))
    packed = torch.nn.utils.rnn.pack_sequence([torch.zeros(T, I)])
    with pytest.raises(TypeError, match="x must be padded, got a PackedSequence; pass lengths= instead of packing"):
        gru(packed)
    with pytest.raises(ValueError, match="bias_hh_l0 is a tensor that cannot be a NumPy array"):
        gru.load_state_dict({"bias_hh_l0": torch.zeros(21, dtype=torch.bfloat16)}, strict=False)


# --- settings ---

SETTINGS: dict[str, Case] = {
    "use_isa": (
        lambda: rf.use_isa("mmx"),
        ValueError,
        f"instruction set 'mmx' is unknown or not supported by this CPU; available: {', '.join(rf.available_isas())}",
    ),
    "use_isa None": (lambda: rf.use_isa(None), ValueError, "instruction set None is unknown"),
    "use_isa empty": (lambda: rf.use_isa(""), ValueError, "instruction set '' is unknown"),
    "threads": (lambda: rf.threads(0), ValueError, "n must be at least 1, got 0"),
    "threads type": (lambda: rf.threads(1.5), TypeError, "n must be an integer, got 1.5"),
    "set_num_threads": (lambda: rf.set_num_threads(-1), ValueError, "n must be at least 1, got -1"),
    "set_num_threads many": (lambda: rf.set_num_threads(10**10), ValueError, "n must be at most 1024 threads, got 100"),
    "show_config": (lambda: rf.show_config("json"), ValueError, "mode must be one of 'stdout', 'dicts', got 'json'"),
    "backend": (lambda: _core.set_backend("tbb"), ValueError, "no thread backend 'tbb'; this build has: "),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings(case: str) -> None:
    before = rf.get_num_threads()
    check(SETTINGS[case])
    assert rf.get_num_threads() == before


def in_process(code: str, **environment: str) -> str:
    """What the last line of an error says."""
    result = programs.run_code(code, env={**os.environ, **environment})
    return (result.stderr.strip().splitlines() or [""])[-1]


def test_an_unknown_isa_in_the_environment_is_refused_at_the_first_call() -> None:
    available = ", ".join(rf.available_isas())
    expected = f"ValueError: RNNFAST_ISA=avx9 is unknown or not supported by this CPU; available: {available}"
    assert in_process("import rnnfast") == in_process("import rnnfast", RNNFAST_ISA="avx9") == ""
    for code in ("rf.isa()", "rf.GRU(1, 1).freeze()", "rf.GRU(1, 1)(np.zeros((1, 1), 'f4'))", "rf.show_config()"):
        assert in_process(f"import numpy as np, rnnfast as rf; {code}", RNNFAST_ISA="avx9") == expected


def test_an_isa_in_the_environment_is_used() -> None:
    last = rf.available_isas()[-1]
    assert in_process("import sys, rnnfast as rf; sys.exit(rf.isa())", RNNFAST_ISA=last) == last


def test_an_unknown_backend_in_the_environment_is_refused_at_the_first_call() -> None:
    assert in_process("import rnnfast", RNNFAST_THREADING="tbb") == ""
    for code in ("rf.show_config()", "rf.GRU(1, 1)(np.zeros((1, 1), 'f4'))", "rf.GRU(1, 1).freeze().stream()"):
        message = in_process(f"import numpy as np, rnnfast as rf; {code}", RNNFAST_THREADING="tbb")
        assert message.startswith("ValueError: RNNFAST_THREADING=tbb names no thread backend; this build has: "), code


# --- files ---


def test_paths_and_layers_that_cannot_be_saved(tmp_path: Path) -> None:
    for path in ("layer.pt", "layer", "layer.NPZ"):
        check(
            (lambda path=path: rf.save(path, gru), ValueError, f"path must end in .npz or .safetensors, got '{path}'")
        )
        check((lambda path=path: rf.load(path), ValueError, f"path must end in .npz or .safetensors, got '{path}'"))
    check((lambda: rf.save(3, gru), TypeError, "path must be a string or a path, got 3"))
    check(
        (
            lambda: rf.save(tmp_path / "a.npz", gru.freeze()),
            TypeError,
            "layer must be an RNN, LSTM or GRU, got a Frozen",
        )
    )
    check((lambda: rf.save(tmp_path / "a.npz", {}), TypeError, "layer must be an RNN, LSTM or GRU, got a dict"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_files_that_are_not_there(tmp_path: Path, suffix: str) -> None:
    if suffix == ".safetensors":
        pytest.importorskip("safetensors", reason="reads its format")
    with pytest.raises(FileNotFoundError, match="none"):
        rf.load(tmp_path / f"none{suffix}")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_damaged_files(tmp_path: Path, suffix: str) -> None:
    if suffix == ".safetensors":
        pytest.importorskip("safetensors", reason="reads its format")
    path = tmp_path / f"layer{suffix}"
    rf.save(path, gru)
    good = path.read_bytes()
    for data in (b"", b"nonsense" * 100, good[: len(good) // 2], good[:-1], pickle.dumps([1, 2])):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            rf.load(path)


def test_flipped_bytes_are_noticed(tmp_path: Path) -> None:
    """Each member of a zip file has a checksum."""
    path = tmp_path / "layer.npz"
    rf.save(path, gru)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is not a readable .npz file"):
        rf.load(path)


def test_pickles_in_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "layer.npz"
    np.savez(path, rnnfast=np.array("{}"), weight_ih_l0=np.array([object()], dtype=object))
    with pytest.raises(ValueError, match="is not a readable .npz file: .*allow_pickle=False"):
        rf.load(path)


def rewritten(path: Path, change: Callable[[Any], Any], drop: str = "") -> None:
    """A file of `save` with another configuration."""
    with np.load(path) as file:
        arrays = dict(file)
    text = arrays.pop("rnnfast").item()
    arrays.pop(drop, None)
    np.savez(path, rnnfast=np.array(change(text)), **arrays)


def edited(**changes: Any) -> Callable[[str], str]:
    def change(text: str) -> str:
        description = json.loads(text)
        description.update({k: v for k, v in changes.items() if k in description})
        description["arguments"].update({k: v for k, v in changes.items() if k not in description})
        return json.dumps(description)

    return change


FILES: dict[str, tuple[Callable[[str], str], str]] = {
    "no JSON": (lambda text: text[:-1], "Expecting"),
    "other JSON": (lambda text: "[]", "unknown format"),
    "newer format": (edited(format=2), "unknown format"),
    "unknown layer": (edited(layer="Conv"), "unknown layer 'Conv'"),
    "layer a list": (edited(layer=[]), "unhashable"),
    "unknown option": (edited(peepholes=True), "unexpected keyword argument 'peepholes'"),
    "other size": (edited(hidden_size=8), "size mismatch for weight_hh_l0"),
    "absurd size": (edited(hidden_size=2**40), "are too large"),
    "negative size": (edited(hidden_size=-1), "hidden_size must be at least 0"),
    "more layers": (edited(num_layers=2), 'Missing key(s) in state_dict: "weight_ih_l1"'),
    "no bias": (edited(bias=False), 'Unexpected key(s) in state_dict: "bias_ih_l0"'),
    "deep JSON": (lambda text: "[" * 100_000, ""),
}


@pytest.mark.parametrize("case", FILES)
def test_files_of_another_content(tmp_path: Path, case: str) -> None:
    change, message = FILES[case]
    path = tmp_path / "layer.npz"
    rf.save(path, gru)
    rewritten(path, change)
    with pytest.raises(ValueError, match="(?s)is not a layer that this version can load: .*" + re.escape(message)):
        rf.load(path)


def test_files_without_configuration_or_arrays(tmp_path: Path) -> None:
    path = tmp_path / "layer.npz"
    np.savez(path, **gru.parameters)
    check(
        (
            lambda: rf.load(path),
            ValueError,
            "holds no configuration: it was not written by rnnfast.save; use load_state",
        )
    )
    rf.save(path, gru)
    rewritten(path, lambda text: text, drop="weight_hh_l0")
    check((lambda: rf.load(path), ValueError, 'Missing key(s) in state_dict: "weight_hh_l0".'))
    with open(path, "wb") as file:
        np.save(file, h)
    check((lambda: rf.load(path), ValueError, "is not a readable .npz file: it holds a single array"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rnnfast.npy", "no array")
    check((lambda: rf.load(path), ValueError, "is not a readable .npz file: the magic string is not correct"))


def test_missing_safetensors_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    message = "a .safetensors file needs that library: pip install 'rnnfast[safetensors]'"
    check((lambda: rf.save(tmp_path / "a.safetensors", gru), ImportError, message))
    check((lambda: rf.load(tmp_path / "a.safetensors"), ImportError, message))


# --- the compiled module, past Python's checks: no arguments may crash the process ---


def compiled_pass(**changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "spec": gru._spec,
        "weights": list(gru.parameters.values()),
        "x": x,
        "y": array(T, B, H),
        "h0": None,
        "c0": None,
        "hn": array(1, B, H),
        "cn": None,
        "lengths": None,
        "dropout": 0.0,
        "seed": 0,
        "train": True,
        "isa": "",
        "threads": 0,
    }
    return _core.Pass(**{**arguments, **changes})


READ_ONLY = array(1, B, H)
READ_ONLY.flags.writeable = False

COMPILED: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"x": x[0]}, "x has the wrong rank"),
    "x shape": ({"x": x[..., :4]}, "x has the wrong dtype, shape or memory layout: float32 (4, 3, 4)"),
    "x stride": ({"x": np.repeat(x, 2, -1)[..., ::2]}, "x has the wrong dtype, shape or memory layout"),
    "y shape": ({"y": array(T, B, H + 1)}, "y has the wrong dtype, shape or memory layout"),
    "hn": ({"hn": READ_ONLY}, "hn is read-only"),
    "h0": ({"h0": array(1, B, H, dtype="f8")}, "h0 has the wrong dtype, shape or memory layout: float64 (1, 3, 7)"),
    "weights": ({"weights": list(gru.parameters.values())[:3]}, "the number of weight arrays does not fit"),
    "packed": ({"weights": rf.GRU(I, H + 1).freeze()._packed}, "the weights were packed for another layer"),
    "lengths": ({"lengths": np.array([1, 2, 5])}, "lengths must be within 0..T"),
    "isa": ({"isa": "mmx"}, "isa 'mmx' is unknown or not supported by this CPU; available: "),
}


@pytest.mark.parametrize("case", COMPILED)
def test_compiled_module_checks_what_memory_safety_rests_on(case: str) -> None:
    changes, message = COMPILED[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        compiled_pass(**changes)


def test_compiled_backward_needs_a_tape() -> None:
    nothing_given = (None,) * 6
    with pytest.raises(ValueError, match="this pass kept no tape"):
        compiled_pass(train=False).backward(*nothing_given, list(gru.parameters.values()), None, 0)
