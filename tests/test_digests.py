"""The bits of fixed cases, committed, so that a change of numerics is a decision.

If a change of the kernels is meant to change results, raise `numerics` in csrc/rnnfast.h and write the new digests:

    python tests/test_digests.py --write

The cases are made by integer arithmetic and hold multiples of 1/256, so every machine has the same. The digests are
those of the instruction sets that have a fused multiply-add, which all agree.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import rnnfast as rf

FILE = Path(__file__).with_name("digests.json")
FMA = [name for name in rf.available_isas() if name != "x86_64_v2"]

CASES: dict[str, dict[str, Any]] = {
    "small": {"T": 1, "B": 1, "I": 1, "H": 1},
    "ragged": {"T": 7, "B": 3, "I": 5, "H": 17, "layers": 2, "bidirectional": True, "lengths": [7, 0, 4]},
    "no bias": {"T": 5, "B": 17, "I": 33, "H": 31, "bias": False},
    "wide": {"T": 3, "B": 2, "I": 64, "H": 130, "layers": 2},
    "long": {"T": 210, "B": 1, "I": 3, "H": 16},
}
KINDS = {
    "rnn": (rf.RNN, {}),
    "rnn relu": (rf.RNN, {"nonlinearity": "relu"}),
    "lstm": (rf.LSTM, {}),
    "gru": (rf.GRU, {}),
}
CHANGED = (
    "results have other bits than before. If that is meant, it is a change of numerics: raise `numerics` in "
    "csrc/rnnfast.h, say so in the changelog, and run `python tests/test_digests.py --write`. If not, it is a bug."
)


class Numbers:
    """Multiples of 1/256 in [-1/2, 1/2) from a linear congruential generator."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.state = 1

    def draw(self, *shape: int) -> np.ndarray:
        values = []
        for _ in range(int(np.prod(shape))):
            self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
            values.append((self.state >> 56) - 128)
        return (np.array(values, np.int64) / 256).astype(self.dtype).reshape(shape)


def results(kind: str, dtype: str, case: dict[str, Any]) -> dict[str, np.ndarray]:
    cell, options = KINDS[kind]
    T, B, I, H, layers = case["T"], case["B"], case["I"], case["H"], case.get("layers", 1)
    bidirectional = case.get("bidirectional", False)
    layer = cell(
        I, H, layers, bidirectional=bidirectional, bias=case.get("bias", True), dtype=dtype, seed=0, **options
    )  # fmt: skip
    numbers = Numbers(dtype)
    for value in layer.parameters.values():
        value[...] = numbers.draw(*value.shape)
    directions = 2 if bidirectional else 1

    def states() -> Any:
        shape = (layers * directions, B, H)
        return (numbers.draw(*shape), numbers.draw(*shape)) if cell is rf.LSTM else numbers.draw(*shape)

    output, state, tape = layer.forward(numbers.draw(T, B, I), states(), lengths=case.get("lengths"))
    grads = layer.backward(tape, numbers.draw(T, B, directions * H), states(), per_step=True)
    named = {"output": output, "grads.input": grads.input, **grads.parameters}
    for name, value in (("state", state), ("grads.state", grads.state), ("per_step", tuple(grads.per_step or ()))):
        for number, part in enumerate(value if isinstance(value, tuple) else (value,)):
            named[f"{name} {number}"] = part
    return named


def digest_of(named: dict[str, np.ndarray]) -> str:
    """Of all results, each with its name. Bytes are little-endian."""
    digest = hashlib.sha256()
    for name, array in sorted(named.items()):
        digest.update(name.encode() + b"\0" + array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()[:16]


def digests(isa: str) -> dict[str, str]:
    found = {}
    with rf.use_isa(isa):
        for kind in KINDS:
            for dtype in ("float32", "float64"):
                for name, case in CASES.items():
                    found[f"{kind}, {dtype}, {name}"] = digest_of(results(kind, dtype, case))
    return found


def numerics() -> int:
    config = rf.show_config(mode="dicts")
    assert config is not None
    return int(config["numerics"])


def test_numerics_of_the_file_and_of_the_build_agree() -> None:
    assert json.loads(FILE.read_text())["numerics"] == numerics(), (
        "`numerics` was raised or the build is old; digests of another version say nothing. To write them anew: "
        "python tests/test_digests.py --write"
    )


def test_results_have_the_committed_bits() -> None:
    assert FMA, "no instruction set with a fused multiply-add"
    want = json.loads(FILE.read_text())["digests"]
    for isa in FMA:
        got = digests(isa)
        assert got.keys() == want.keys(), "the cases changed; run: python tests/test_digests.py --write"
        different = [name for name in want if got[name] != want[name]]
        assert not different, f"{isa}: {CHANGED} Different: {'; '.join(different)}"


def test_a_digest_depends_on_every_result_and_bit() -> None:
    first = results("lstm", "float32", CASES["ragged"])
    digest = digest_of(first)
    assert digest == digest_of(results("lstm", "float32", CASES["ragged"]))
    for name, array in first.items():
        bits = array.view(np.uint32)
        bits[(0,) * array.ndim] ^= 1
        assert digest_of(first) != digest, name
        bits[(0,) * array.ndim] ^= 1
    assert digest_of(first) == digest


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_digests.py --write")
    each = [digests(isa) for isa in FMA]
    if any(other != each[0] for other in each):
        sys.exit(f"{', '.join(FMA)} do not agree; nothing was written")
    FILE.write_text(json.dumps({"numerics": numerics(), "digests": each[0]}, indent=1) + "\n")
    print(f"{len(each[0])} digests for numerics {numerics()} written")
