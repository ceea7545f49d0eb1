"""What is measured: a layer or stack, the size of its input, and the kind of call."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CELLS = ("rnn", "lstm", "gru")
GATES = {"rnn": 1, "lstm": 4, "gru": 3}
CLASS_NAMES = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}
MODES = {
    "forward": "one call over a sequence, for inference",
    "train": "forward and backward, with the gradients of the input and of every parameter",
    "step": "one step of a stream that keeps its state",
    "cold": "one step every 10 ms with 64 MiB read in between",
}
CHECKED_STEPS = 6  # of a stream, when results are compared


@dataclass(frozen=True)
class Case:
    cell: str
    mode: str
    steps: int
    batch: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    group: str = "table"  # which table or curve it belongs to
    label: str = ""  # what it stands for, if it is somebody's real layer

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def streams(self) -> bool:
        return self.mode in ("step", "cold")

    @property
    def key(self) -> str:
        """Names the measurement: cases of two grids with the same key are the same."""
        layers = f" x{self.num_layers}" if self.num_layers > 1 else ""
        return f"{self.cell} {self.mode} {self.shape}{layers}{' bi' if self.bidirectional else ''}"

    @property
    def shape(self) -> str:
        return f"{self.steps},{self.batch},{self.input_size},{self.hidden_size}"

    @property
    def title(self) -> str:
        extras = [f"{self.num_layers} layers"] if self.num_layers > 1 else []
        extras += ["bidirectional"] if self.bidirectional else []
        extras += [self.label] if self.label else []
        return f"{self.shape}{' (' + ', '.join(extras) + ')' if extras else ''}"

    def widths(self) -> Iterator[int]:
        """The input size of every layer and direction."""
        for layer in range(self.num_layers):
            for _ in range(self.directions):
                yield self.directions * self.hidden_size if layer else self.input_size

    @property
    def operations(self) -> float:
        """Floating-point operations of the matrix products; backward has twice as many as forward."""
        products = sum(GATES[self.cell] * self.hidden_size * (width + self.hidden_size) for width in self.widths())
        return 2.0 * self.steps * self.batch * products * (3 if self.mode == "train" else 1)

    @property
    def weight_bytes(self) -> int:
        rows = GATES[self.cell] * self.hidden_size
        return 4 * sum(rows * (width + self.hidden_size) for width in self.widths())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(fields: dict[str, Any]) -> Case:
        return Case(**fields)


def regime(case: Case) -> str:
    """The row of the table of goals that a case belongs to; means are never taken over more than one."""
    if case.streams:
        kind = "step" if case.mode == "step" else "step on cold caches"
        return kind if case.batch == 1 else f"{kind}, batch"
    large = case.hidden_size >= 256
    if case.mode == "train":
        if case.batch == 1:
            return "training, batch 1"
        return "training, large" if case.batch >= 32 and large else "training, small"
    if case.batch == 1:
        return "sequence, batch 1"
    return "forward, large batch" if case.batch >= 16 and large else "forward, small"


REGIMES = (
    "step",
    "step, batch",
    "step on cold caches",
    "sequence, batch 1",
    "forward, small",
    "forward, large batch",
    "training, batch 1",
    "training, small",
    "training, large",
)


def weights(case: Case, generator: np.random.Generator) -> dict[str, Array]:
    """Parameters under PyTorch's names and with its initialisation."""
    rows, bound = GATES[case.cell] * case.hidden_size, 1.0 / case.hidden_size**0.5
    arrays: dict[str, Array] = {}
    for number, width in enumerate(case.widths()):
        layer, direction = divmod(number, case.directions)
        suffix = f"_l{layer}{'_reverse' if direction else ''}"
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (rows, width),
            "weight_hh": (rows, case.hidden_size),
            "bias_ih": (rows,),
            "bias_hh": (rows,),
        }
        for name, shape in shapes.items():
            arrays[name + suffix] = (generator.random(shape, np.float32) * 2 - 1) * np.float32(bound)
    return arrays


def arrays(case: Case) -> dict[str, Array]:
    """Everything that contestants share: the parameters, `x`, and for training `grad_output`."""
    generator = np.random.default_rng(zlib.crc32(replace(case, group="", label="").key.encode()))
    shared = weights(case, generator)
    steps = CHECKED_STEPS if case.streams else case.steps
    shared["x"] = generator.standard_normal((steps, case.batch, case.input_size), np.float32)
    if case.mode == "train":
        width = case.directions * case.hidden_size
        shared["grad_output"] = generator.standard_normal((steps, case.batch, width), np.float32)
    return shared


def parameters(shared: dict[str, Array]) -> dict[str, Array]:
    return {name: array for name, array in shared.items() if name.startswith(("weight", "bias"))}


@dataclass(frozen=True)
class Mixed:
    """A loop in one process that alternates a matrix product of another library with a call of rnnfast."""

    partner: str  # "numpy", "torch"
    size: int  # of the square matrices
    case: Case

    @property
    def title(self) -> str:
        kind = "" if self.case.mode == "forward" else f" {self.case.mode}"
        return f"{self.partner} {self.size}x{self.size} + {CLASS_NAMES[self.case.cell]}{kind} {self.case.shape}"

    def to_json(self) -> dict[str, Any]:
        return {"partner": self.partner, "size": self.size, "case": self.case.to_json()}
