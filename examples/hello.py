"""The smallest character model: letters h, e, l, o. It learns that "hell" is followed by "o".

    python examples/hello.py [--cell rnn|lstm|gru] [--steps N]

The seven steps of learning are printed with their numbers, for the first and the last time through: input, state, next
state, output, error, gradient, update. To guess after the first l an l and after the second an o, the same input, the
network needs its state.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np

import rnnfast as rf

LETTERS = "helo"
INPUT, TARGET = "hell", "ello"
HIDDEN = 5
CELLS: dict[str, Any] = {"rnn": rf.RNN, "lstm": rf.LSTM, "gru": rf.GRU}
WATCHED = len(INPUT) - 1  # the time step whose numbers are printed: the last


def one_hot(text: str) -> Any:
    """[T, letters]"""
    return np.eye(len(LETTERS), dtype=np.float32)[[LETTERS.index(letter) for letter in text]]


def show(title: str, array: Any, note: str = "") -> None:
    numbers = " ".join(f"{value:+.4f}" for value in np.ravel(array))
    print(f"  {title:<44}{numbers}{note}")


def learn(layer: Any, W: Any, b: Any, optimizer: Any, printed: bool) -> float:
    """One time through the seven steps. h_t = layer(x_t, h_(t-1)), p_t = softmax(W h_t + b)."""
    t = WATCHED
    x, target = one_hot(INPUT), one_hot(TARGET)
    h, _, tape = layer.forward(x)
    z = h @ W.T + b
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    loss = float(-np.log(p[target == 1]).mean())

    d_z = (p - target) / len(INPUT)  # of softmax and cross-entropy together
    d_h = d_z @ W
    d_layer = layer.backward(tape, d_h, per_step=True)
    gradients = {"W": d_z.T @ h, "b": d_z.sum(axis=0), **d_layer.parameters}
    before = {"W": W.copy(), **layer.state_dict()}
    optimizer.step(gradients)

    if printed:
        show(f'1 input       x[{t}], the letter "{INPUT[t]}"', x[t])
        show(f"2 state       h[{t - 1}], after {INPUT[:t]!r}", h[t - 1])
        show(f"3 next state  h[{t}], after {INPUT!r}", h[t])
        show(f"4 output      p[{t}] of {', '.join(LETTERS)}", p[t], f"   guess: {LETTERS[p[t].argmax()]}")
        show(f'5 error       -log p[{t}] of "{TARGET[t]}"', -np.log(p[t, LETTERS.index(TARGET[t])]))
        show(f"6 gradient    d loss / d h[{t}]", d_layer.per_step[0][t])
        show(f"              d loss / d h[{t - 1}], also by h[{t}]", d_layer.per_step[0][t - 1])
        show("              d loss / d row 0 of weight_hh", d_layer.parameters["weight_hh_l0"][0])
        show("7 update      row 0 of weight_hh, before", before["weight_hh_l0"][0])
        show("              row 0 of weight_hh, after", layer.weight_hh_l0[0])
    return loss


def run(cell: str, steps: int, seed: int = 0) -> str:
    """Trains, prints, and returns the guesses after h, e, l, l."""
    rng = np.random.default_rng(seed)
    layer = CELLS[cell](len(LETTERS), HIDDEN, seed=rng)
    bound = 1 / math.sqrt(HIDDEN)
    W = rng.uniform(-bound, bound, (len(LETTERS), HIDDEN)).astype(np.float32)
    b = np.zeros(len(LETTERS), np.float32)
    optimizer = rf.optim.Adam({"W": W, "b": b, **layer.parameters}, lr=0.03)

    print(f"\n=== {layer}, {steps} steps")
    for step in range(steps):
        printed = step in (0, steps - 1)
        if printed:
            print(f"step {step + 1}")
        loss = learn(layer, W, b, optimizer, printed)
        if printed:
            print(f"  mean error over the four letters: {loss:.4f}")

    stream = layer.freeze().stream()
    guesses = ""
    for x_t in one_hot(INPUT):  # letter by letter, as in use
        guesses += LETTERS[int((W @ stream.step(x_t) + b).argmax())]
    print("prediction: " + ", ".join(f"{INPUT[: t + 1]!r} -> {guess!r}" for t, guess in enumerate(guesses)))
    return guesses


def main() -> int:
    parser = argparse.ArgumentParser(description="Learn that 'hell' is followed by 'o', with every number in sight.")
    parser.add_argument("--cell", choices=CELLS, help="one kind of layer (all three)")
    parser.add_argument("--steps", type=int, default=150, metavar="N", help="times through (%(default)s)")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"--steps has to be at least 1, and is {options.steps}")
    for cell in [options.cell] if options.cell else CELLS:
        guesses = run(cell, options.steps)
        print(f"{cell} predicts {guesses}" + ("" if guesses == TARGET else f", not yet {TARGET}: give it more --steps"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
