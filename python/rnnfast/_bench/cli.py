"""`python -m rnnfast bench`: arguments, progress, and where reports go."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import runner, shapes, text
from .cases import CELLS, Case
from .contestants import CONTESTANTS, OPTIONAL

QUICK_CASES = 21
QUICK_OPERATIONS = 1e9
QUICK_SECONDS = 70.0  # then no further case is begun; starting the libraries takes up to 15 s more

DESCRIPTION = """\
Compares rnnfast with PyTorch, ONNX Runtime, OpenVINO and (training) PaddlePaddle, as far as they are installed, and
with the limits of this machine. Each library runs in a process of its own; results are compared before anything is
timed. Leave the machine alone meanwhile."""


def thread_numbers(value: str) -> tuple[int, ...]:
    numbers = tuple(sorted({int(part) for part in value.split(",")}))
    if numbers[0] < 1:
        raise ValueError
    return numbers


def shape(value: str) -> Case:
    try:
        return shapes.named(value)
    except ValueError:
        message = (
            f"{value!r} is not like 'lstm forward 100,1,64,64': cell, kind of call, T,B,I,H, and x2 for 2 layers, bi"
        )
        raise argparse.ArgumentTypeError(message) from None


thread_numbers.__name__ = "list of thread numbers"  # what argparse calls it in its message


def names(value: str) -> list[str]:
    return [part for part in value.replace(" ", ",").split(",") if part]


def one_of(kind: str, known: Iterable[str]) -> Any:
    known = list(known)

    def parse(value: str) -> list[str]:
        for name in names(value):
            if name not in known:
                raise argparse.ArgumentTypeError(f"unknown {kind} {name!r}; there are {', '.join(known)}")
        return names(value)

    return parse


def assignment(value: str) -> tuple[str, str]:
    name, _, path = value.partition("=")
    if name not in CONTESTANTS or not path:
        raise argparse.ArgumentTypeError(f"{value!r} is not NAME=PATH with a name of {', '.join(CONTESTANTS)}")
    return name, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    peers = [name for name in CONTESTANTS if name != "rnnfast"]
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="a few small cases of the grid, in less than two minutes")
    parser.add_argument(
        "--grid",
        type=one_of("grid", [*shapes.GRIDS, "mixed"]),
        help=f"one or more, with commas, of {', '.join([*shapes.GRIDS, 'mixed'])}; default: default",
    )
    parser.add_argument("--random", type=int, metavar="N", help="N random shapes, in place of a grid or besides --grid")
    parser.add_argument(
        "--shape",
        type=shape,
        action="append",
        default=[],
        metavar="'CELL MODE T,B,I,H'",
        help="one case, in place of a grid or besides --grid; may be repeated",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the random shapes; default: 1")
    parser.add_argument("--threads", type=thread_numbers, default=(1,), metavar="N[,N]", help="default: 1")
    parser.add_argument(
        "--cell", type=one_of("cell", CELLS), default=list(CELLS), metavar="CELL[,CELL]", help="default: all"
    )
    parser.add_argument(
        "--mode",
        type=one_of("mode", ("forward", "train", "step", "cold")),
        metavar="MODE[,MODE]",
        help="only these kinds of calls",
    )
    parser.add_argument(
        "--peers",
        type=one_of("peer", peers),
        metavar="PEER[,PEER]",
        default=[name for name in peers if name not in OPTIONAL],
        help=f"of {', '.join(peers)}; default: all that are installed, but {', '.join(OPTIONAL)}; '' for none",
    )
    parser.add_argument(
        "--python",
        type=assignment,
        action="append",
        default=[],
        metavar="PEER=PATH",
        help="the Python that has this peer; it needs NumPy, but not rnnfast",
    )
    parser.add_argument("--rounds", type=int, help="turns of each contestant; default: 7, with --quick 3")
    parser.add_argument("--seconds", type=float, help="of a turn; default: 0.06, with --quick 0.02")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with tables and plots")
    parser.add_argument("--png", type=Path, metavar="DIRECTORY", help="write the plots")
    parser.add_argument(
        "--report",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="measure nothing: report on files that --json wrote, as one run",
    )


def chosen_cases(options: argparse.Namespace, plan: runner.Plan) -> list[Case]:
    grids = options.grid if options.grid is not None else [] if options.random or options.shape else ["default"]
    grid = [case for name in grids if name != "mixed" for case in shapes.GRIDS[name]()]
    grid += shapes.drawn(options.random, options.seed) if options.random else []
    grid += options.shape
    grid = [case for case in shapes.unique(grid) if case.cell in options.cell]
    if options.mode:
        grid = [case for case in grid if case.mode in options.mode]
    if plan.quick:
        grid = shapes.thinned(grid, max(1, QUICK_CASES // len(plan.threads)), QUICK_OPERATIONS)
    return grid


def plan_of(options: argparse.Namespace) -> runner.Plan:
    rounds, seconds = (3, 0.02) if options.quick else (7, 0.06)
    return runner.Plan(
        threads=options.threads,
        peers=tuple(options.peers),
        pythons=dict(options.python),
        rounds=rounds if options.rounds is None else options.rounds,
        seconds=seconds if options.seconds is None else options.seconds,
        gap=0.01 if options.quick else 0.02,
        most_seconds=3.0 if options.quick else 30.0,
        cold_calls=20 if options.quick else 100,
        quick=options.quick,
        deadline=QUICK_SECONDS if options.quick else None,
    )


def progress(items: Sequence[Any]) -> Iterable[Any]:
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    bar = tqdm(items, unit="case", dynamic_ncols=True, disable=None)

    def named() -> Iterable[Any]:
        for item in bar:
            bar.set_postfix_str(item.key if isinstance(item, Case) else item[1].title)
            yield item

    return named()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    plan = plan_of(options)
    grid = chosen_cases(options, plan)
    command = "python -m rnnfast bench " + shlex.join(shown_arguments(sys.argv))
    document = runner.new_document(command.strip(), plan, ",".join(options.grid or ["default"]))
    if grid:
        runner.run_cases(plan, grid, document, progress)
    if options.grid and "mixed" in options.grid:
        # Pools can only disturb each other where each has more than one thread.
        several = plan if max(plan.threads) > 1 else plan_with(options, (2,))
        pairs = shapes.mixed()[:: 3 if options.quick else 1]
        pairs = [pair for pair in pairs if pair.case.cell in options.cell]
        runner.run_mixed(several, pairs, document, progress)
    return document


def plan_with(options: argparse.Namespace, threads: tuple[int, ...]) -> runner.Plan:
    return plan_of(argparse.Namespace(**{**vars(options), "threads": threads}))


def shown_arguments(arguments: Sequence[str]) -> list[str]:
    """Without what is before the subcommand's own arguments, and without paths, which mean nothing elsewhere."""
    given = list(arguments[1:])
    own = given[given.index("bench") + 1 :] if "bench" in given else given
    return [
        f"{arg.split('=')[0]}=.../python" if "=" in arg and "/" in arg else Path(arg).name if "/" in arg else arg
        for arg in own
    ]


def run(options: argparse.Namespace) -> int:
    """Returns the exit status: 1 where rnnfast's results disagree with somebody's, or it could not run."""
    if options.html or options.png:
        require_plotting()
    try:
        if options.report:
            from .summary import merged

            document = merged([json.loads(path.read_text()) for path in options.report])
        else:
            document = measure(options)
    except (runner.Failure, OSError, ValueError) as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    print(text.report(document))
    write(document, options)
    disagreements = [
        why for entry in document["results"] for why in entry["failed"].values() if why.startswith("disagrees")
    ]
    return 1 if disagreements else 0


def write(document: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.html:
        from .page import render

        options.html.parent.mkdir(parents=True, exist_ok=True)
        options.html.write_text(render(document))
    if options.png:
        from .page import write_png

        write_png(document, options.png)


def require_plotting() -> None:
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise SystemExit(
            f"--html and --png need matplotlib and jinja2: pip install 'rnnfast[bench]' ({error})"
        ) from None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rnnfast bench")
    add_arguments(parser)
    return run(parser.parse_args(arguments))
