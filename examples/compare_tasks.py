"""Compares torch's recurrent modules and rnnfast's on whole tasks: epoch times, the recurrent part, held-out scores.

    python examples/compare_tasks.py [--quick] [--tasks vowels sentiment ...] [--cells gru ...] [--seeds 3]

Each training is a process of its own, and the frameworks take turns. Figures go to a folder, one file for each
training: an interrupted comparison goes on where it was. `--quick` trains one seed for two epochs: enough for times,
not for scores. The table is in Markdown; times are those
of an epoch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from statistics import geometric_mean, mean, median, stdev
from typing import Any

import torch
from tqdm import tqdm

EXAMPLES = Path(__file__).resolve().parent
TASKS = ["sentiment", "captions", "translation", "letters_to_sounds", "vowels", "characters"]
CELLS = ["rnn", "lstm", "gru"]
FRAMEWORKS = ["torch", "rnnfast"]


def training(task: str, cell: str, framework: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The report of one training, which runs unless it has been run before with the same options."""
    extra = [word for name in ("epochs", "limit", "threads") if (value := getattr(options, name)) is not None
             for word in (f"--{name}", str(value))]  # fmt: skip
    name = "-".join([task, cell, framework, str(seed), *(word.strip("-") for word in extra)])
    report = options.folder / f"{name}.json"
    if not report.exists():
        command = [sys.executable, str(EXAMPLES / f"{task}.py"), "--cell", cell, "--framework", framework]
        command += ["--seed", str(seed), "--out", str(report.with_suffix(".png")), "--report", str(report), *extra]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command[1:])} failed:\n{done.stderr}")
    return dict(json.loads(report.read_text(encoding="utf-8")))


def spread(values: list[float]) -> str:
    digits = 2 if mean(values) < 10 else 1
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def row(task: str, cell: str, found: dict[str, list[dict[str, Any]]]) -> tuple[str, float, float]:
    """A line of the table, and the ratios of the epoch and of its recurrent part."""
    epoch = {
        name: median(second for run in runs for second in run["seconds"][1:] or run["seconds"])
        for name, runs in found.items()
    }
    part = {name: median(run["recurrent"] for run in runs) for name, runs in found.items()}
    score = {name: spread([run["scores"][-1] for run in runs]) for name, runs in found.items()}
    first = found["torch"][0]
    baselines = ", ".join(f"{name} {spread([value])}" for name, value in first["baselines"].items())
    ratios = epoch["torch"] / epoch["rnnfast"], part["torch"] / part["rnnfast"]
    cells = [
        task.replace("_", " "), cell, f"{epoch['torch']:.2f}", f"{epoch['rnnfast']:.2f}", f"{ratios[0]:.2f}",
        f"{ratios[1]:.2f}", first["metric"], score["torch"], score["rnnfast"], baselines,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |", *ratios


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS, metavar="CELL", help=", ".join(CELLS))
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings of each kind (%(default)s)")
    parser.add_argument("--epochs", type=int, metavar="N", help="instead of each task's own number")
    parser.add_argument("--limit", type=int, metavar="N", help="examples, as for the tasks")
    parser.add_argument("--threads", type=int, metavar="N", help="as for the tasks")
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs")
    parser.add_argument("--folder", type=Path, default=Path("tasks"), help="of the reports and curves (%(default)s)")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.epochs = 1, options.epochs or 2
    options.folder.mkdir(parents=True, exist_ok=True)
    kinds = list(product(options.tasks, options.cells))
    print(f"torch {torch.__version__}, {options.threads or torch.get_num_threads()} threads, {options.seeds} seeds\n")
    print("| task | cell | torch, s | rnnfast, s | ratio | recurrent part | score | torch | rnnfast | baselines |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    ratios = []
    with tqdm(total=len(kinds) * options.seeds * len(FRAMEWORKS), unit="training", mininterval=1) as bar:
        for task, cell in kinds:
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in FRAMEWORKS}
            for seed, framework in product(range(options.seeds), FRAMEWORKS):
                bar.set_description(f"{task} {cell} {framework}")
                found[framework].append(training(task, cell, framework, seed, options))
                bar.update()
            line, *pair = row(task, cell, found)
            ratios.append(pair)
            bar.write(line, file=sys.stdout)
    epoch, part = zip(*ratios, strict=True)
    print(f"\ngeometric means: epoch {geometric_mean(epoch):.2f}, recurrent part {geometric_mean(part):.2f}; "
          f"lowest: epoch {min(epoch):.2f}, recurrent part {min(part):.2f}")  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
