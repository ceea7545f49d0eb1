"""The grids, as data. A shape is T, B, I, H: steps, batch, input size, hidden size."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from .cases import CELLS, MODES, Case, Mixed, regime

Shape = tuple[int, int, int, int]

STEP: list[Shape] = [(1, 1, 64, 32), (1, 1, 128, 128), (1, 1, 256, 512), (1, 1, 1024, 1024)]
FORWARD: list[Shape] = [
    (100, 1, 64, 64),
    (100, 1, 128, 256),
    (50, 1, 512, 512),
    (50, 16, 256, 256),
    (50, 64, 512, 512),
    (25, 64, 1024, 1024),
]
TRAIN: list[Shape] = [
    (100, 1, 32, 64),
    (50, 32, 64, 128),
    (50, 64, 256, 256),
    (35, 20, 650, 650),
    (25, 64, 1024, 1024),
]
HIDDEN = [16, 32, 64, 128, 256, 512, 1024]
POWERS = [1 << k for k in range(11)]
RANDOM_OPERATIONS = 2e10  # a drawn case has at most so many


def cases(
    cells: Iterable[str], mode: str, shapes: Sequence[Shape], group: str = "table", label: str = ""
) -> list[Case]:
    return [Case(cell, mode, *shape, group=group, label=label) for cell in cells for shape in shapes]


def default() -> list[Case]:
    """Small and large calls of every kind, and the curves over H, T and B."""
    grid = cases(CELLS, "step", STEP) + cases(CELLS, "forward", FORWARD) + cases(CELLS, "train", TRAIN)
    grid += cases(CELLS, "step", [(1, 1, h, h) for h in HIDDEN], "hidden")
    grid += cases(CELLS, "forward", [(50, 1, h, h) for h in HIDDEN[2:]], "hidden")
    grid += cases(CELLS, "forward", [(t, 8, 64, 128) for t in POWERS[3:]], "steps")
    grid += cases(CELLS, "forward", [(20, b, 64, 128) for b in POWERS[:9]], "batch")
    return grid


def deepbench() -> list[Case]:
    """The recurrent layers of Baidu's DeepBench, inference and training."""
    few = (1, 2, 4)
    many = (16, 32, 64, 128)
    inference: dict[str, list[tuple[int, int]]] = {  # (T, H), input = hidden
        "lstm": [(25, 512), (25, 1024), (25, 2048), (50, 1536), (150, 256)],
        "gru": [(1, 512), (187, 1024), (187, 1536), (187, 2048), (187, 2560), (187, 2816)],
        "rnn": [(672, 32), (96, 64)],
    }
    training: dict[str, list[tuple[int, int]]] = {
        "rnn": [(50, 1760), (50, 2048), (50, 2560)],
        "lstm": [(25, 512), (25, 1024), (25, 2048), (150, 256)],
    }
    grid = []
    for mode, sizes, batches in (("forward", inference, few), ("train", training, many)):
        for cell, pairs in sizes.items():
            grid += cases([cell], mode, [(t, b, h, h) for t, h in pairs for b in batches], "deepbench")
    return grid


def products() -> list[Case]:
    """Layers of programs that people use."""

    def layer(cell: str, mode: str, shape: Shape, label: str, layers: int = 1, bidirectional: bool = False) -> Case:
        return Case(cell, mode, *shape, layers, bidirectional, "products", label)

    grid = [layer("gru", "step", (1, 1, i, h), "noise suppression") for i, h in ((24, 24), (90, 48), (114, 96))]
    grid += [
        layer("lstm", "step", (1, 1, 128, 128), "voice activity"),
        layer("lstm", "step", (1, 1, 1024, 1024), "transducer prediction", 2),
        layer("gru", "forward", (300, 1, 400, 400), "speech enhancement"),
        layer("lstm", "forward", (160, 27, 40, 256), "speaker encoder", 3),
        layer("lstm", "forward", (636, 2, 60, 128), "speech segmentation", 4, True),
    ]
    for mode in ("forward", "train"):
        grid += [layer("lstm", mode, (35, 20, h, h), "language model", 2) for h in (650, 1500)]
        grid += [layer("gru", mode, (10, b, 256, 256), "encoder-decoder") for b in (1, 4, 16, 64)]
        grid.append(layer("lstm", mode, (30, 128, 12, 64), "time series"))
    return grid


def streaming() -> list[Case]:
    """One step from Python, alone, in batches of streams, and on cold caches. H = 1 shows what a call costs."""
    grid = cases(CELLS, "step", [(1, 1, 1, 1)], "overhead") + cases(CELLS, "step", STEP)
    grid += cases(CELLS, "step", [(1, 1, h, h) for h in HIDDEN], "hidden")
    grid += cases(CELLS, "step", [(1, b, h, h) for h in (128, 256) for b in (4, 16, 64)], "streams")
    grid += cases(CELLS, "cold", [(1, 1, h, h) for h in (32, 128, 512)], "cold")
    return grid


def training() -> list[Case]:
    grid = cases(CELLS, "train", TRAIN)
    grid += cases(CELLS, "train", [(100, 1, h, h) for h in (16, 32, 128, 256, 512)], "hidden")
    grid += cases(CELLS, "train", [(50, 32, h, h) for h in HIDDEN[:-1]], "hidden")
    grid += cases(CELLS, "train", [(t, 8, 64, 128) for t in POWERS[3:]], "steps")
    grid += cases(CELLS, "train", [(20, b, 64, 128) for b in POWERS[:9]], "batch")
    grid += cases(CELLS, "train", [(25, b, 512, 512) for b in (32, 64, 128)], "large")
    return grid


def mixed() -> list[Mixed]:
    """Calls of about 0.1, 1 and 10 ms on two threads, each beside a product that takes about as long."""
    pairs = [
        (216, Case("lstm", "forward", 20, 16, 64, 64)),
        (216, Case("gru", "train", 10, 16, 32, 64)),
        (464, Case("lstm", "forward", 100, 1, 128, 256)),
        (464, Case("gru", "forward", 30, 16, 128, 256)),
        (464, Case("lstm", "train", 20, 16, 64, 128)),
        (1000, Case("lstm", "forward", 50, 32, 256, 256)),
        (1000, Case("lstm", "train", 20, 32, 128, 256)),
        (1000, Case("lstm", "forward", 64, 64, 256, 256)),
        (1000, Case("lstm", "train", 40, 32, 256, 256)),
    ]
    return [Mixed(partner, size, case) for partner in ("numpy", "torch") for size, case in pairs]


def drawn(count: int, seed: int = 1) -> list[Case]:
    """Log-uniform shapes, all cells, inference and training, bounded in work. The same for the same count and seed."""
    generator = np.random.default_rng(seed)
    bounds = ((1, 500), (1, 256), (8, 1536), (8, 1536))
    grid: list[Case] = []
    while len(grid) < count:
        t, b, i, h = (round(float(np.exp(generator.uniform(np.log(low), np.log(high))))) for low, high in bounds)
        cell, mode = CELLS[len(grid) % 3], ("forward", "train")[len(grid) // 3 % 2]
        case = Case(cell, mode, t, b, i, h, group="random")
        if case.operations <= RANDOM_OPERATIONS:
            grid.append(case)
    return grid


GRIDS: dict[str, Callable[[], list[Case]]] = {
    "default": default,
    "deepbench": deepbench,
    "products": products,
    "streaming": streaming,
    "training": training,
}


def named(text: str) -> Case:
    """The case of a key: "lstm forward 203,119,803,96", with " x2" for two layers and " bi" for both directions."""
    cell, mode, shape, *extras = text.split()
    steps, batch, inputs, hidden = (int(part) for part in shape.split(","))
    layers = [int(extra[1:]) for extra in extras if extra.startswith("x")] or [1]
    case = Case(cell, mode, steps, batch, inputs, hidden, layers[0], "bi" in extras, group="chosen")
    possible = min(steps, batch, inputs, hidden, layers[0]) >= 1
    possible &= not case.streams or (case.steps == 1 and not case.bidirectional)
    if case.key != text or cell not in CELLS or mode not in MODES or not possible:
        raise ValueError(text)
    return case


def unique(grid: Iterable[Case]) -> list[Case]:
    """Without repetitions; a case that belongs to a curve as well as to a table names both."""
    found: dict[str, Case] = {}
    for case in grid:
        before = found.get(case.key)
        if before is None:
            found[case.key] = case
        elif case.group not in before.group.split("+"):
            found[case.key] = replace(before, group=f"{before.group}+{case.group}")
    return list(found.values())


def thinned(grid: Sequence[Case], count: int, operations: float) -> list[Case]:
    """At most `count` of the cases of at most so many operations: of every regime in turn, evenly spread over it."""
    regimes: dict[str, list[Case]] = {}
    for case in grid:
        if case.operations <= operations:
            regimes.setdefault(regime(case), []).append(case)
    each = -(-count // max(1, len(regimes)))
    spread = [
        [group[(2 * i + 1) * len(group) // (2 * each)] for i in range(each)] if len(group) > each else group
        for group in regimes.values()
    ]
    in_turn = (case for turn in itertools.zip_longest(*spread) for case in turn if case is not None)
    return list(itertools.islice(in_turn, count))
