"""The elementary functions: their error in ulp, and what they do at the edges. `bench/accuracy.py` goes through all
float32 inputs; here are samples of every part of the range."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from rnnfast import _core

FUNCTIONS = ["exp", "expm1", "sigmoid", "tanh"]
BOUNDS = {"exp": 1.5, "expm1": 2.0, "sigmoid": 2.5, "tanh": 2.6}  # in ulp of the exact result
LIMITS = {"float32": (-87.3, 88.3), "float64": (-708.3, 709.4)}  # beyond them e^x is clamped (csrc/kernel/math.h)
FMA = [name for name in rf.available_isas() if name != "x86_64_v2"]

each_function = pytest.mark.parametrize("function", FUNCTIONS)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def apply(isa: str, function: str, x: np.ndarray) -> np.ndarray:
    y = np.empty_like(x)
    _core.apply(isa, function, x, y)
    return y


def wider(dtype: str) -> Any:
    """A type with more bits, for exact results."""
    if dtype == "float64" and np.finfo(np.longdouble).nmant <= 52:
        pytest.skip("long double has no more bits than a double here")
    return np.float64 if dtype == "float32" else np.longdouble


def exact(function: str, x: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return 1 / (1 + np.exp(-x)) if function == "sigmoid" else getattr(np, function)(x)


def samples(dtype: str) -> np.ndarray:
    """Finite numbers of every magnitude, dense near 0, near the borders of saturation and where functions curve."""
    rng = np.random.default_rng(zlib.crc32(dtype.encode()))
    kind = np.finfo(dtype)
    unsigned, bits = (np.uint32, 32) if dtype == "float32" else (np.uint64, 64)
    low, high = LIMITS[dtype]
    patterns = rng.integers(0, 2**bits, 200_000, dtype=unsigned).view(dtype)
    curved = np.concatenate([rng.uniform(-bound, bound, 100_000) for bound in (0.01, 1.0, 10.0, 45.0, high)])
    borders = np.array([low, high, -high, -low, 9.01, 9.1, 19.06, 19.1, np.log(2) / 2, 16.64, 36.74, 88.72, 709.78])
    steps = np.concatenate([np.arange(-200, 201) * kind.eps, np.arange(-50, 51) / 1e4])
    near = np.outer(borders, 1 + steps).ravel()
    powers = np.ldexp(rng.uniform(1, 2, 50_000), rng.integers(-60, 10, 50_000))
    chosen = np.concatenate([curved, near, powers]).astype(dtype)
    return np.concatenate([patterns[np.isfinite(patterns)], chosen, -chosen])


def domain(isa: str, function: str, x: np.ndarray) -> np.ndarray:
    """Where the exact result is a normal number that the function does not clamp."""
    low, high = LIMITS[x.dtype.name]
    if isa not in FMA:  # e^x = 2^n + 2^n * tail: the product is rounded by itself, to 0 where it is no normal number
        low += (np.finfo(x.dtype).nmant + 2) * np.log(2)
    if function == "tanh":
        return np.abs(x) >= np.finfo(x.dtype).smallest_normal
    inside = x >= low if function == "sigmoid" else x <= high
    if function == "exp":
        inside &= x >= low
    return inside & (np.abs(x) >= np.finfo(x.dtype).smallest_normal) if function == "expm1" else inside


def error_in_ulp(function: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    want = exact(function, x.astype(wider(x.dtype.name)))
    kind = np.finfo(x.dtype)
    ulp = np.ldexp(np.ones_like(want), np.maximum(np.frexp(want)[1] - 1, kind.minexp)) * want.dtype.type(kind.eps)
    return np.abs(y.astype(want.dtype) - want) / ulp


@each_function
@each_dtype
def test_the_error_is_within_its_bound(isa: str, dtype: str, function: str) -> None:
    x = samples(dtype)
    x = x[domain(isa, function, x)]
    assert len(x) > 500_000
    error = error_in_ulp(function, x, apply(isa, function, x))
    worst = int(np.argmax(error))
    print(f"{isa} {dtype} {function}: {error[worst]:.3f} ulp at {float(x[worst]).hex()}")
    assert error[worst] <= BOUNDS[function], f"{float(error[worst]):.3f} ulp at {float(x[worst]).hex()}"


@each_function
@each_dtype
def test_instruction_sets_with_fma_agree_bit_for_bit(dtype: str, function: str) -> None:
    if len(FMA) < 2:
        pytest.skip(f"this machine has one instruction set with FMA: {FMA}")
    x = np.concatenate([samples(dtype), np.array([0.0, -0.0, np.inf, -np.inf], dtype)])
    first = apply(FMA[0], function, x)
    for isa in FMA[1:]:
        assert apply(isa, function, x).tobytes() == first.tobytes(), isa


@each_function
@each_dtype
def test_a_result_does_not_depend_on_its_neighbours(isa: str, dtype: str, function: str) -> None:
    """Each value alone, in the vector's first lane, against the same in a crowd with NaN in it."""
    x = samples(dtype)[::2003]
    crowd = np.full((len(x), 7), np.nan, dtype)
    crowd[:, 3] = x
    together = apply(isa, function, crowd.ravel()).reshape(crowd.shape)
    for number, value in enumerate(x):
        assert apply(isa, function, x[number : number + 1])[0].tobytes() == together[number, 3].tobytes(), value
    assert np.isnan(np.delete(together, 3, axis=1)).all()


@each_dtype
def test_special_values(isa: str, dtype: str) -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan], dtype)
    got = {function: apply(isa, function, x) for function in FUNCTIONS}
    np.testing.assert_array_equal(got["tanh"], np.array([0, -0.0, 1, -1, np.nan, np.nan], dtype))
    assert list(np.signbit(got["tanh"][:4])) == [False, True, False, True]
    np.testing.assert_array_equal(got["sigmoid"][[0, 1, 2, 4, 5]], np.array([0.5, 0.5, 1, np.nan, np.nan], dtype))
    np.testing.assert_array_equal(got["exp"][[0, 1, 4, 5]], np.array([1, 1, np.nan, np.nan], dtype))
    np.testing.assert_array_equal(got["expm1"][[0, 1, 3, 4, 5]], np.array([0, 0, -1, np.nan, np.nan], dtype))
    # e^x is clamped: where the exact result is 0 or too large, the nearest end of what it can give.
    tiny, huge = float(np.finfo(dtype).smallest_normal), float(np.finfo(dtype).max)
    assert 0 <= got["sigmoid"][3] <= 2 * tiny and 0 < got["exp"][3] <= 2 * tiny
    assert huge / 2 < got["exp"][2] <= huge and huge / 2 < got["expm1"][2] <= huge


@each_dtype
def test_tanh_is_odd_bit_for_bit(isa: str, dtype: str) -> None:
    x = samples(dtype)
    assert apply(isa, "tanh", -x).tobytes() == (-apply(isa, "tanh", x)).tobytes()


@each_dtype
def test_saturation_is_monotone_and_never_leaves_the_range(isa: str, dtype: str) -> None:
    """Through the last values before the ends, and over magnitudes up to infinity, nothing turns back or overshoots."""
    high = LIMITS[dtype][1]
    far = np.geomspace(high, float(np.finfo(dtype).max) / 2, 2000)
    for function, start, end in (("tanh", 8.0, 1.0), ("sigmoid", 14.0, 1.0)):
        start = start if dtype == "float32" else 2.2 * start
        x = np.concatenate([np.linspace(start, high, 100_000), far, [np.inf]]).astype(dtype)
        y = apply(isa, function, x)
        # A step of the last places before the end may waver by an ulp; what is promised is no more than that.
        assert (np.diff(y) >= -np.finfo(dtype).eps).all() and y.max() == end == y[-1]
        assert (y[x > (10 if dtype == "float32" else 20) * (2 if function == "sigmoid" else 1)] == end).all()
    x = np.concatenate([-far[::-1], np.linspace(-high, 0, 100_000)]).astype(dtype)
    y = apply(isa, "sigmoid", x)
    assert (y >= 0).all() and (y <= 0.5).all()
    assert (np.diff(y) >= -2 * np.finfo(dtype).eps * y[1:]).all()
