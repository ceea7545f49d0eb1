"""How the gradient of a loss at the last step fades, or grows, on its way back through time.

    python examples/vanishing_gradients.py [--out vanishing_gradients.png] [--steps T]

Upper row: the norm of d loss / d h_t against t for the three cells, for several spectral radii of their recurrent
weights. In a plain RNN the gradient is multiplied by weight_hh and the slope of tanh at every step: it vanishes or
explodes. The gates of LSTM and GRU let it through. Lower row: a plain RNN learns to remember its first input; where the
gradient of its parameters explodes, clipping its norm keeps the direction and bounds the step.

Source: Pascanu, Mikolov, Bengio, On the difficulty of training recurrent neural networks, 2013, arXiv:1211.5063.
Needs matplotlib.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np

import rnnfast as rf

CELLS: dict[str, Any] = {"RNN": rf.RNN, "LSTM": rf.LSTM, "GRU": rf.GRU}
SCALES = (0.5, 1.0, 1.5, 3.0)
COLOURS = ("#3b6fb6", "#2a9d6f", "#d98c1f", "#b8323a")
SIZE, BATCH = 32, 16
MAX_NORM = 1.0
UPDATES, RATE = 300, 0.02
LOWEST = 1e-12  # where the drawing ends


def recurrent_weights(gates: int, scale: float, rng: np.random.Generator) -> Any:
    """[gates * H, H]: for each gate a random rotation times `scale`, which then is the spectral radius."""
    rotations = [np.linalg.qr(rng.standard_normal((SIZE, SIZE)))[0] for _ in range(gates)]
    return scale * np.concatenate(rotations)


def layer_with(cell: str, scale: float, inputs: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    layer = CELLS[cell](inputs, SIZE, dtype="float64", seed=rng)
    layer.weight_hh_l0 = recurrent_weights(len(layer.weight_hh_l0) // SIZE, scale, rng)
    layer.bias_ih_l0[:] = layer.bias_hh_l0[:] = 0
    if cell != "RNN":  # the second gate, f of LSTM and z of GRU, is mostly open: the state is kept
        layer.bias_hh_l0[SIZE : 2 * SIZE] = 2.0
    return layer


def norms_over_time(cell: str, scale: float, steps: int) -> Any:
    """Mean over the batch of ||d loss / d h_t||, [T], for a loss whose derivative by the last output has norm 1."""
    layer = layer_with(cell, scale, SIZE, seed=0)
    rng = np.random.default_rng(1)
    x = 0.1 * rng.standard_normal((steps, BATCH, SIZE))
    output, _, tape = layer.forward(x)
    grad_output = np.zeros_like(output)
    last = rng.standard_normal((BATCH, SIZE))
    grad_output[-1] = last / np.linalg.norm(last, axis=1, keepdims=True)
    grads = layer.backward(tape, grad_output, per_step=True)
    return np.linalg.norm(grads.per_step[0], axis=2).mean(axis=1)


def norm(gradients: dict[str, Any]) -> float:
    return float(np.sqrt(sum(np.sum(gradient**2) for gradient in gradients.values())))


def remember(clipped: bool, steps: int, updates: int) -> dict[str, list[float]]:
    """A plain RNN of spectral radius 1.5 learns to tell, at the end, the sign that came first; noise came since.

    Returns for each update the norm of the gradient before and after clipping, and the loss.
    """
    layer = layer_with("RNN", 1.5, 1, seed=2)
    rng = np.random.default_rng(3)
    readout = rng.standard_normal(SIZE) / np.sqrt(SIZE)
    optimizer = rf.optim.SGD({"readout": readout, **layer.parameters}, lr=RATE)
    history: dict[str, list[float]] = {"before": [], "after": [], "loss": []}
    for _ in range(updates):
        x = 0.1 * rng.standard_normal((steps, BATCH, 1))
        target = rng.choice([-1.0, 1.0], BATCH)
        x[0, :, 0] = target
        output, _, tape = layer.forward(x)
        error = output[-1] @ readout - target
        grad_output = np.zeros_like(output)
        grad_output[-1] = 2 * error[:, None] * readout / BATCH
        gradients = {"readout": 2 * error @ output[-1] / BATCH, **layer.backward(tape, grad_output).parameters}
        history["before"].append(norm(gradients))
        if clipped:
            rf.clip_grad_norm(gradients, MAX_NORM)
        history["after"].append(norm(gradients))
        history["loss"].append(float(np.mean(error**2)))
        optimizer.step(gradients)
    return history


def print_tables(norms: dict[str, list[Any]], runs: dict[str, dict[str, list[float]]]) -> None:
    steps = len(norms["RNN"][0])
    shown = [round(part * (steps - 1)) for part in (0, 0.25, 0.5, 0.75, 1)]
    print("norm of d loss / d h_t, loss at the last step")
    print(f"{'cell':5}{'radius':>7}" + "".join(f"{f't = {t}':>10}" for t in shown))
    for cell, curves in norms.items():
        for scale, curve in zip(SCALES, curves, strict=True):
            print(f"{cell:5}{scale:7.1f}" + "".join(f"{curve[t]:10.1e}" for t in shown))
    print("\nplain RNN, radius 1.5, learning: norm of the parameters' gradient, and loss")
    print(f"{'':12}{'median norm':>14}{'largest norm':>14}{'largest step':>14}{'last loss':>11}")
    for name, run in runs.items():
        largest = RATE * max(run["after"])
        last = np.mean(run["loss"][-20:])
        print(f"{name:12}{np.median(run['before']):14.3g}{max(run['before']):14.3g}{largest:14.3g}{last:11.3f}")


def draw(norms: dict[str, list[Any]], runs: dict[str, dict[str, list[float]]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style: dict[Any, Any] = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e4e7eb",
        "axes.edgecolor": "#8a94a3",
        "axes.titlesize": 12,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "font.size": 10.5,
    }
    with plt.rc_context(style):
        figure: Any = plt.figure(figsize=(12, 8.4), layout="constrained")
        upper, lower = figure.subfigures(2, 1, height_ratios=[1.15, 1])
        draw_norms(upper, norms)
        draw_learning(lower, runs)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def draw_norms(figure: Any, norms: dict[str, list[Any]]) -> None:
    figure.suptitle("How much a step of the past matters: norm of d loss / d h$_t$, with the loss at the last step")
    panels = figure.subplots(1, len(norms), sharey=True)
    for panel, (cell, curves) in zip(panels, norms.items(), strict=True):
        for scale, curve, colour in zip(SCALES, curves, COLOURS, strict=True):
            panel.semilogy(curve, color=colour, linewidth=2.2, label=f"{scale:g}")
        panel.axhline(1, color="#8a94a3", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        panel.set(title=cell, xlabel="time step t", xlim=(0, len(curves[0]) - 1))
        panel.set_ylim(bottom=LOWEST)
    panels[0].set_ylabel(r"$\|\,$d loss / d h$_t\|$")
    handles, labels = panels[0].get_legend_handles_labels()
    title = "spectral radius of weight_hh (of each gate's block)"
    figure.legend(handles, labels, loc="outside lower center", ncols=len(SCALES), frameon=False, title=title)


def draw_learning(figure: Any, runs: dict[str, dict[str, list[float]]]) -> None:
    figure.suptitle(
        f"Clipping: a plain RNN, spectral radius 1.5, learns to remember its first input (SGD, rate {RATE})"
    )
    left, middle, right = figure.subplots(1, 3)
    colours = {"clipped": COLOURS[0], "not clipped": COLOURS[3]}
    run = runs["clipped"]
    left.semilogy(run["before"], ".", color=COLOURS[2], markersize=5, label="before clipping")
    left.semilogy(run["after"], ".", color=COLOURS[0], markersize=5, label="after")
    left.axhline(MAX_NORM, color="#8a94a3", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    left.set(title="Gradient norm, clipped run", xlabel="update", ylabel="norm")
    for name, run in runs.items():
        middle.semilogy(run["before"], ".", color=colours[name], markersize=5, label=name)
        right.semilogy(smooth(run["loss"]), color=colours[name], linewidth=2.2, label=name)
    middle.set(title="Gradient norm before clipping", xlabel="update", ylabel="norm")
    right.axhline(1, color="#8a94a3", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    right.set(title="Loss (1: nothing learnt)", xlabel="update", ylabel="mean squared error")
    for panel in (left, middle, right):
        low, high = panel.get_ylim()
        panel.set_ylim(low, high * (high / low) ** 0.3)  # room for the legend
        panel.legend(loc="upper right", frameon=False, ncols=2, handletextpad=0.4, columnspacing=1.2)


def smooth(values: list[float], width: int = 10) -> Any:
    """Means over up to `width` values before."""
    sums = np.cumsum([0.0, *values])
    index = np.arange(1, len(values) + 1)
    first = np.maximum(index - width, 0)
    return (sums[index] - sums[first]) / (index - first)


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw how gradients vanish and explode over time.")
    parser.add_argument("--out", default="vanishing_gradients.png", metavar="FILE.png", help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=60, metavar="T", help="length of the sequences (%(default)s)")
    parser.add_argument("--updates", type=int, default=UPDATES, metavar="N", help="of the learning RNN (%(default)s)")
    options = parser.parse_args()
    if options.steps < 2 or options.updates < 1:
        parser.error("--steps has to be at least 2, --updates at least 1")
    norms = {cell: [norms_over_time(cell, scale, options.steps) for scale in SCALES] for cell in CELLS}
    runs = {name: remember(name == "clipped", options.steps, options.updates) for name in ("clipped", "not clipped")}
    print_tables(norms, runs)
    try:
        draw(norms, runs, options.out)
    except ImportError:
        print("no picture: matplotlib is missing (pip install 'rnnfast[plot]')", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:  # a folder that is not there, an unknown suffix
        print(f"no picture: {error}", file=sys.stderr)
        return 2
    print(f"\ndrawn: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
