"""The benchmark: its grids, a run without other libraries, comparing results, and the reports."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import programs
from rnnfast._bench import cases, cli, goals, limits, runner, shapes, summary, text
from rnnfast._bench.cases import Case

TINY = [Case("lstm", "forward", 4, 2, 8, 16), Case("gru", "step", 1, 1, 8, 16, group="hidden")]
PLAN = runner.Plan(rounds=2, seconds=0.002, gap=0.0, quick=True)
PEAK, READ = 1e11, 1e10


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    """A run of rnnfast alone, as it comes back from a file."""
    limits.QUICK_SIZES[:] = [1 << 15, 1 << 20, 1 << 23]  # larger buffers take seconds
    document = runner.new_document("python -m rnnfast bench", PLAN, "default")
    runner.run_cases(PLAN, TINY, document, lambda grid: grid)
    return cast("dict[str, Any]", json.loads(json.dumps(document)))


def times(*rounds: float) -> dict[str, Any]:
    return runner.aggregate([[seconds] * 4 for seconds in rounds])


def entry(
    case: Case, threads: int = 1, moments: Sequence[dict[str, Any]] = (), **found: dict[str, Any]
) -> dict[str, Any]:
    shared = {"failed": {}, "errors": {}, "bitwise": True, "others": 0.0, "moments": list(moments)}
    return {"case": case.to_json(), "threads": threads, "times": found, **shared}


def invented(*entries: dict[str, Any]) -> dict[str, Any]:
    document = runner.new_document("python -m rnnfast bench", PLAN, "default")
    read = {str(size): READ for size in limits.SIZES}
    document["limits"] = {str(n): [{"peak": n * PEAK, "read": read}] for n in (1, 2)}
    document["results"] = list(entries)
    return document


# --- grids ---


@pytest.mark.parametrize("name", shapes.GRIDS)
def test_grids_hold_valid_cases_of_every_name(name: str) -> None:
    grid = shapes.GRIDS[name]()
    assert len(shapes.unique(grid)) > 20
    for case in grid:
        assert case.cell in cases.CELLS
        assert case.mode in cases.MODES
        assert cases.regime(case) in cases.REGIMES
        assert min(case.steps, case.batch, case.input_size, case.hidden_size, case.num_layers) >= 1
        assert case.steps == 1 or not case.streams
        assert Case.from_json(json.loads(json.dumps(case.to_json()))) == case


def test_a_case_of_two_tables_is_measured_once() -> None:
    grid = shapes.unique([Case("rnn", "step", 1, 1, 8, 8), Case("rnn", "step", 1, 1, 8, 8, group="hidden")])
    assert [case.group for case in grid] == ["table+hidden"]


def test_random_shapes_are_bounded_and_always_the_same() -> None:
    grid = shapes.drawn(60)
    assert grid == shapes.drawn(60)
    assert grid != shapes.drawn(60, seed=2)
    assert {(case.cell, case.mode) for case in grid} == {(c, m) for c in cases.CELLS for m in ("forward", "train")}
    assert all(case.operations <= shapes.RANDOM_OPERATIONS for case in grid)


@pytest.mark.parametrize("key", ["lstm forward 203,119,803,96", "gru step 1,1,24,24 x2", "rnn train 5,4,3,2 x3 bi"])
def test_a_case_can_be_named(key: str) -> None:
    assert shapes.named(key).key == key


@pytest.mark.parametrize(
    "text",
    ["", "lstm", "lstm forward", "lstm forward 1,2,3", "mlp forward 1,2,3,4", "gru call 1,2,3,4", "gru step 2,1,3,4"]
    + [
        "rnn forward 1,2,3,0",
        "rnn forward 1,2,3,x",
        "rnn step 1,1,3,4 bi",
        "rnn forward 1,2,3,4 x1",
        "rnn train 1,2,3,4 by",
    ],
)
def test_what_names_no_case_is_refused_with_an_example(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--shape", text])
    assert "is not like 'lstm forward 100,1,64,64'" in capsys.readouterr().err


def test_a_quick_run_has_cases_of_every_regime_of_the_grid() -> None:
    grid = shapes.unique(shapes.default())
    few = shapes.thinned(grid, 21, 1e9)
    assert len(few) == len(set(few)) <= 21
    assert {cases.regime(case) for case in few} == {cases.regime(case) for case in grid if case.operations <= 1e9}


def test_shared_arrays_fit_the_layer_and_depend_on_the_case_alone() -> None:
    case = Case("gru", "train", 3, 2, 5, 7, 2, True)
    shared, again = cases.arrays(case), cases.arrays(Case(**{**case.to_json(), "group": "x", "label": "y"}))
    assert shared["weight_ih_l1_reverse"].shape == (21, 14)
    assert shared["grad_output"].shape == (3, 2, 14)
    assert all(np.array_equal(shared[name], again[name]) for name in shared)


# --- a run ---


def test_run_of_rnnfast_alone(recorded: dict[str, Any]) -> None:
    rows = summary.rows_of(recorded)
    assert [row.case for row in rows] == TINY
    assert all(0 < row.times["rnnfast"]["min"] <= row.ours for row in rows)
    assert all(row.bitwise and row.best is None and row.fraction > 0 for row in rows)
    assert len(rows[0].times["rnnfast"]["rounds"]) == len(rows[0].bounds) >= 2
    assert recorded["absent"] == {}
    printed = text.report(recorded)
    assert "4,2,8,16" in printed and "GFLOP/s" in printed


def test_command_writes_json_and_reports_from_it(tmp_path: Path, recorded: dict[str, Any]) -> None:
    source, copy = tmp_path / "run.json", tmp_path / "made" / "copy.json"
    source.write_text(json.dumps(recorded))
    command = [sys.executable, "-m", "rnnfast", "bench", "--report", str(source), "--json", str(copy)]
    done = programs.run(command)
    assert done.returncode == 0, done.stderr
    assert "1,1,8,16" in done.stdout
    assert json.loads(copy.read_text())["results"] == recorded["results"]


class Answering:
    """In place of a process: it writes the results that it is made with."""

    def __init__(self, name: str, output: Sequence[float]) -> None:
        self.name, self.threads, self.output = name, 1, output

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert do == "prepare"
        np.savez(arguments["results"], output=np.array(self.output))
        return {}


def test_who_disagrees_is_reported_and_not_timed(tmp_path: Path) -> None:
    crew = [Answering("rnnfast", [1, 2]), Answering("good", [1, 2.000001]), Answering("bad", [1, 2.1])]
    crew += [Answering("nan", [1, np.nan]), Answering("short", [1])]
    run = runner.Run(PLAN, TINY[0], tmp_path)
    agreeing = run.prepare(cast("list[runner.Process]", crew))
    assert [process.name for process in agreeing] == ["rnnfast", "good"]
    assert {name for name, _ in run.failed} == {"bad", "nan", "short"}
    assert all("disagrees: output" in why for why in run.failed.values())


class TakingTurns:
    """In place of a process: the seconds that its calls take, turn by turn; the last ones for good."""

    def __init__(self, name: str, *turns: float) -> None:
        self.name, self.threads, self.turns = name, 1, list(turns)

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        if do == "limits":
            return {"peak": PEAK, "read": {}}
        assert do == "time"
        return {"samples": [self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]] * 3}

    def busy_seconds(self) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("turns", "rounds"),
    [
        ((9, 1), 3),  # the first turn warms up
        ((9, 1, 2, 1), 3),  # most rounds are close to the best
        ((9, 2, 2, 1), 5),  # of five the median is one of the last three
        ((9, 1, 2, 2), 9),  # once fast and never again: three times as many, and no more
    ],
)
def test_more_rounds_while_a_contestant_is_unsteady(tmp_path: Path, turns: tuple[float, ...], rounds: int) -> None:
    run = runner.Run(runner.Plan(rounds=3, gap=0.0), TINY[0], tmp_path)
    crew = [TakingTurns("rnnfast", 1), TakingTurns("other", *turns)]
    run.take_turns(cast("list[runner.Process]", crew))
    assert {name: len(samples) for (name, _), samples in run.samples.items()} == {"rnnfast": rounds, "other": rounds}


def test_a_library_that_is_not_there_is_absent(tmp_path: Path) -> None:
    document = runner.new_document("", PLAN, "")
    python = tmp_path / "python"
    python.write_text("""#!/bin/sh\necho '{"missing": "no such module"}'\n""")
    python.chmod(0o755)
    plan = runner.Plan(peers=("paddle",), pythons={"paddle": str(python)}, rounds=1, seconds=0.0, gap=0.0, quick=True)
    runner.run_cases(plan, [Case("rnn", "train", 2, 1, 4, 4)], document, lambda grid: grid)
    assert document["absent"] == {"paddle": "not installed: no such module"}
    assert "rnnfast" in document["results"][0]["times"]


# --- what follows from the numbers ---


def test_ratios_are_taken_round_by_round_and_losses_are_found() -> None:
    fast, slow = Case("rnn", "forward", 10, 1, 64, 64), Case("rnn", "forward", 20, 1, 64, 64)
    document = invented(
        # The machine is twice as slow in the second round: the ratio is 3 all the same.
        entry(fast, rnnfast=times(1e-4, 2e-4), torch=times(3e-4, 6e-4), openvino=times(4e-4, 8e-4)),
        entry(slow, rnnfast=times(1e-4), torch=times(0.75e-4)),
    )
    rows = summary.rows_of(document)
    assert rows[0].ratios == pytest.approx({"torch": 3, "openvino": 4})
    assert (rows[0].best, rows[0].best_ratio) == ("torch", pytest.approx(3))
    assert [row.case for row in summary.losses(rows)] == [slow]
    (mean,) = summary.means(rows)
    assert mean.best == pytest.approx(1.5)
    assert mean.worst is rows[1]
    never = next(v for v in goals.verdicts(rows) if v.goal.startswith("every case"))
    assert (never.met, never.value) == (False, pytest.approx(0.75))


def test_the_limit_is_that_of_what_binds() -> None:
    limit = summary.limits_of(invented())[1]
    step, batch = Case("lstm", "step", 1, 1, 512, 512), Case("lstm", "forward", 10, 64, 512, 512)
    assert limit.bound(step).seconds == pytest.approx(step.weight_bytes / READ)
    assert limit.bound(step).name == "reading"
    assert limit.bound(batch).seconds == pytest.approx(batch.operations / PEAK)
    assert limit.bound(batch).name == "FMA"
    train = Case("lstm", "train", 10, 64, 512, 512)
    assert limit.bound(train).seconds == pytest.approx(3 * limit.bound(batch).seconds)


def test_a_fraction_is_of_the_limit_of_the_moment() -> None:
    case = Case("lstm", "forward", 10, 64, 512, 512)
    best = case.operations / PEAK
    slow, fast = {"peak": 0.5 * PEAK, "read": {}}, {"peak": PEAK, "read": {}}
    turns = times(2.5 * best, 4 * best, 2 * best)
    (row,) = summary.rows_of(invented(entry(case, rnnfast=turns, moments=[slow, slow, fast])))
    assert row.fraction == pytest.approx(0.5)  # of 0.8, 0.5 and 0.5
    assert row.at_best_rate == pytest.approx(2 * best)  # of 1.25, 2 and 2
    assert row.rate_then == pytest.approx(0.5)
    document = invented(entry(case, rnnfast=turns, torch=times(best), moments=[slow, slow, fast]))
    assert "machine at 50% of its rate" in text.report(document)
    assert "1 of 1 measurements with less than 75%" in text.report(document)
    (older,) = summary.rows_of(invented(entry(case, rnnfast=turns)))
    assert (older.fraction, older.at_best_rate) == pytest.approx((0.5, 2.5 * best))


def test_reading_is_measured_beside_a_turn_where_a_buffer_is_filled_in_little_time() -> None:
    step = Case("gru", "step", 1, 1, 256, 256)
    (share,) = limits.moment_sizes(step, 2)
    assert share == step.weight_bytes // 2
    moment = {"peak": PEAK, "read": {str(share): 2 * READ}}
    (row,) = summary.rows_of(invented(entry(step, 2, rnnfast=times(step.weight_bytes / READ), moments=[moment])))
    assert row.fraction == pytest.approx(0.5)
    large = Case("lstm", "step", 1, 1, 2048, 2048)
    assert limits.moment_sizes(large, 1) == []
    turns, moments = times(*(n * large.weight_bytes / READ for n in (2, 3, 4))), [{"peak": PEAK, "read": {}}] * 3
    (row,) = summary.rows_of(invented(entry(large, rnnfast=turns, moments=moments)))
    assert row.fraction == pytest.approx(0.5)  # of the least time of all


def test_gain_of_threads_is_compared_with_the_limits_gain() -> None:
    case = Case("lstm", "forward", 10, 64, 512, 512)
    rows = summary.rows_of(invented(entry(case, 1, rnnfast=times(2e-2)), entry(case, 2, rnnfast=times(1.25e-2))))
    (found,) = summary.scaling(rows)
    assert (found.speedup, found.limit, found.share) == pytest.approx((1.6, 2.0, 0.8))
    # Where two cores are one for a time, the limit says so.
    moments = [[{"peak": PEAK, "read": {}}], [{"peak": 1.6 * PEAK, "read": {}}]]
    entries = [entry(case, n + 1, moments[n], rnnfast=times(2e-2 / (1 + n))) for n in (0, 1)]
    (found,) = summary.scaling(summary.rows_of(invented(*entries)))
    assert (found.speedup, found.limit) == pytest.approx((2.0, 1.6))


def test_cost_of_doubling() -> None:
    curve = [Case("gru", "forward", t, 8, 64, 128, group="steps") for t in (8, 16, 32)]
    seconds = (1e-4, 2e-4, 6e-4)
    rows = summary.rows_of(invented(*(entry(c, rnnfast=times(s)) for c, s in zip(curve, seconds, strict=True))))
    (found,) = summary.growth(rows)
    assert (found.worst, found.at) == (pytest.approx(3), curve[2].shape)


def test_arithmetic_of_a_small_step_is_what_it_takes_beyond_a_call() -> None:
    call, small = Case("lstm", "step", 1, 1, 1, 1, group="overhead"), Case("lstm", "step", 1, 1, 16, 16)
    for beyond, share in ((2e-7, small.operations / PEAK / 2e-7), (-1e-8, 1.0)):
        rows = summary.rows_of(invented(entry(call, rnnfast=times(1e-7)), entry(small, rnnfast=times(1e-7 + beyond))))
        (found,) = goals.of_arithmetic(rows)
        assert (found.value, found.wanted) == (pytest.approx(share), 0.33)


def test_cases_below_a_goal_are_listed_even_if_their_mean_reaches_it() -> None:
    good, bad = (Case("lstm", "forward", 50, 64, h, h) for h in (256, 512))
    found = [entry(c, rnnfast=times(1.0), openvino=times(seconds)) for c, seconds in ((good, 1.5), (bad, 1.01))]
    document = invented(*found)
    verdicts = {v.goal: v for v in goals.verdicts(summary.rows_of(document))}
    large = verdicts["forward, large batch, lstm: best peer"]
    assert large.met
    assert [(row.case, value) for row, value in large.below] == [(bad, pytest.approx(1.01))]
    assert any("1.01" in line and bad.key in line for line in text.report(document).splitlines())


def test_goal_beside_other_pools_is_of_the_default_and_the_worst() -> None:
    shared = {"partner": "numpy", "threads": 2, "title": "x"}
    entries = [{**shared, "backend": b, "cost": c} for b, c in (("default", 1.1), ("default", 1.6), ("pool", 9.0))]
    (found,) = goals.of_mixed([*entries, {**shared, "backend": "default", "failed": "why"}])
    assert (found.met, found.value, found.count) == (False, pytest.approx(1.25 / 1.6), 2)


def test_loops_beside_another_pool() -> None:
    document = runner.new_document("", PLAN, "mixed")
    runner.run_mixed(PLAN, [cases.Mixed("numpy", 16, TINY[0])], document, lambda items: items)
    assert [(e["backend"], e["used"]) for e in document["mixed"]] == [
        ("default", "pool"),
        ("openmp", "openmp"),
        ("pool", "pool"),
    ]
    assert all(e["cost"] > 0 and e["pair"] > 0 for e in document["mixed"])
    assert "pipelines in one process" in text.report(document)


# --- reports ---


def test_page_and_plots_of_recorded_runs(tmp_path: Path, recorded: dict[str, Any]) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    from rnnfast._bench import page

    curve = [Case("lstm", "step", 1, 1, h, h, group="hidden") for h in (16, 32, 64)]
    found = [entry(case, rnnfast=times(1e-6 * case.hidden_size), torch=times(5e-5)) for case in curve]
    lost = Case("gru", "train", 20, 3, 33, 65, group="random")
    found += [entry(lost, rnnfast=times(2e-3), torch=times(1e-3))]
    document = summary.merged([{**invented(*found), "machine": recorded["machine"]}, recorded])
    mixed = {**shapes.mixed()[0].to_json(), "title": "numpy + LSTM", "threads": 2, "backend": "default", "used": "pool"}
    document["mixed"] = [{**mixed, "product": 1e-3, "ours": 1e-3, "pair": 3e-3, "cost": 1.5}]
    html = page.render(document)
    assert html.count("<svg") == len(list(page.write_png(document, tmp_path))) >= 5
    assert "http-equiv" not in html and "<script" not in html and 'src="' not in html
    assert "20,3,33,65" in html and 'class="bad">0.50' in html
    assert (tmp_path / "heat-map-1.png").stat().st_size > 1000


def test_runs_of_two_machines_are_not_merged(recorded: dict[str, Any]) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")

    other = {**recorded, "machine": {**recorded["machine"], "cpu": "another"}}
    with pytest.raises(ValueError, match="different machines"):
        summary.merged([recorded, other])


def test_arguments_that_name_nothing_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--grid", "x"], ["--cell", "x"], ["--peers", "x"], ["--threads", "0"], ["--python", "torch"]):
        with pytest.raises(SystemExit):
            cli.main(arguments)
        assert arguments[0] in capsys.readouterr().err
