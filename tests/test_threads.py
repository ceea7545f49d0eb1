"""Threads and processes: both backends give the same bits, forks work, callers do not disturb each other.

What changes the whole process (a backend, a fork) happens in a process of its own.
"""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import programs
import rnnfast as rf

# A layer whose passes are worth two threads, and how to see that a result is right.
PRELUDE = """
import os, signal, sys, threading
import numpy as np
import rnnfast as rf
signal.alarm(60)  # a hang is a failure
rf.set_num_threads(2)
layer = rf.LSTM(64, 128, seed=0)
x = np.random.default_rng(0).standard_normal((40, 16, 64), dtype=np.float32)
def results():
    output, _, tape = layer.forward(x)
    grads = layer.backward(tape, output)
    return [output.tobytes(), grads.input.tobytes(), *(g.tobytes() for g in grads.parameters.values())]
"""


def run(code: str, backend: str, **environment: str) -> subprocess.CompletedProcess[str]:
    timeout = 120 + 2 * float(os.environ.get("RNNFAST_SOAK", "0"))
    variables = {**os.environ, "RNNFAST_THREADING": backend, **environment}
    done = programs.run_code(PRELUDE + code, env=variables, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done


not_under_tsan = pytest.mark.skipif(
    "tsan" in os.environ.get("LD_PRELOAD", ""), reason="ThreadSanitizer has a thread and an OpenMP runtime of its own"
)


def backends() -> list[str]:
    return ["pool", "openmp"] if rf.show_config(mode="dicts")["openmp"] else ["pool"]


# Steps of less than half the work that is worth waking a thread for; the number of threads tells whether one was woken.
SUCCESSION = """
import os, time
frozen = rf.GRU(256, 256, seed=0).freeze()
x = np.random.default_rng(0).standard_normal((64, 4, 256), dtype=np.float32)
with rf.threads(1):
    alone = frozen.stream(4)
    want = [alone.step(x[t % 64]).tobytes() for t in range(300)]
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
stream = frozen.stream(4)
for t in range(40):
    stream.step(x[t])
    time.sleep(0.0002)
assert threads() == before
stop = time.monotonic() + 30
while threads() == before and time.monotonic() < stop:  # something else may take the core away from any of them
    stream = frozen.stream(4)
    got = [stream.step(x[t % 64]).tobytes() for t in range(300)]
    assert got == want
assert threads() == before + 1
"""


def test_only_short_calls_that_follow_upon_each_other_take_a_second_thread() -> None:
    run(SUCCESSION, "pool")


@pytest.mark.parametrize("backend", backends())
def test_a_backend_runs_the_threads_asked_for_and_changes_no_bit(backend: str) -> None:
    run(
        """
two = results()
with rf.threads(1):
    assert results() == two
seen = os.listdir("/proc/self/task")
assert len(seen) >= 2, seen
""",
        backend,
        OPENBLAS_NUM_THREADS="1",
    )


@pytest.mark.parametrize("backend", backends())
def test_a_forked_child_of_a_process_that_used_threads_gets_the_same_results(backend: str) -> None:
    fork = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, about fork with threads: just what is tested
want = results()
for attempt in range(3):
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if results() == want and results() == want else 1)
    assert os.waitpid(child, 0)[1] == 0
assert results() == want
"""
    done = run(fork, backend)
    # Under OpenMP each child says once that it runs with one thread; the pool has no such limit.
    assert done.stderr.count("was forked") == (3 if backend == "openmp" else 0)


@pytest.mark.parametrize("backend", backends())
def test_a_fork_while_another_thread_is_inside_a_pass(backend: str) -> None:
    run(
        """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)
want = results()
stop = threading.Event()
def keep_busy():
    while not stop.is_set():
        results()
other = threading.Thread(target=keep_busy)
other.start()
for attempt in range(5):
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if results() == want else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
other.join()
""",
        backend,
    )


def test_an_unknown_backend_is_an_error_that_lists_what_there_is() -> None:
    code = "\ntry:\n    rf.show_config(mode='dicts')\nexcept ValueError as e:\n    print(e)\n"
    assert "RNNFAST_THREADING=nonsense" in run(code, "nonsense").stdout


def test_no_thread_is_made_at_import_or_by_small_work() -> None:
    code = """
before = len(os.listdir("/proc/self/task"))
small = rf.GRU(8, 8, seed=0)
small(np.zeros((3, 1, 8), np.float32))
assert len(os.listdir("/proc/self/task")) == before
"""
    run(code, "pool")


def test_python_threads_share_a_frozen_layer_and_get_the_bits_of_serial_calls() -> None:
    frozen = rf.GRU(48, 96, num_layers=2, bidirectional=True, seed=1).freeze()
    inputs = [np.random.default_rng(j).standard_normal((30, 9, 48), dtype=np.float32) for j in range(16)]
    with rf.threads(2):
        want = [frozen(x)[0] for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda x: frozen(x)[0], inputs * 4))
    assert all(np.array_equal(g, want[j % 16]) for j, g in enumerate(got))


def test_the_number_of_threads_is_read_at_call_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert rf.get_num_threads() == 3
    monkeypatch.setenv("RNNFAST_NUM_THREADS", "5")
    assert rf.get_num_threads() == 5
    monkeypatch.setenv("RNNFAST_NUM_THREADS", "many")  # not a number: ignored
    assert rf.get_num_threads() == 3
    rf.set_num_threads(7)
    try:
        assert rf.get_num_threads() == 7
        with rf.threads(2):
            assert rf.get_num_threads() == 2
        assert rf.get_num_threads() == 7
    finally:
        rf.set_num_threads(None)
    assert rf.get_num_threads() == 3


def test_threads_in_one_context_do_not_bind_another() -> None:
    outside = rf.get_num_threads()
    with rf.threads(outside + 1), ThreadPoolExecutor(1) as pool:
        assert rf.get_num_threads() == outside + 1
        assert pool.submit(rf.get_num_threads).result() == outside


def test_an_interrupt_ends_a_pass_of_two_threads_however_its_layers_are_divided() -> None:
    # The layers of the first are divided by rows, and the threads are far apart. In the second one thread has the
    # recurrence, and they share input products, of one of its layers or both. Then each has layers of its own.
    code = """
import time
def give_up(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, give_up)
deep = rf.LSTM(4, 200, 2, seed=0)
x = np.zeros((20000, 32, 4), np.float32)
lengths = np.full(32, 20000)
lengths[:16] = 10000
for attempt in range(3):
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    begun = time.time()
    try:
        deep(x, lengths=lengths)
        raise SystemExit("it was not interrupted")
    except KeyboardInterrupt:
        pass
    assert time.time() - begun < 20
from rnnfast import _settings
_settings.context_threads.set(-2)
for layers, batch in ((2, 3), (5, 1)):
    narrow = rf.LSTM(500, 5, layers, seed=0)
    x = np.zeros((6000, batch, 500), np.float32)
    for attempt in range(30):
        signal.setitimer(signal.ITIMER_REAL, 0.01 + 0.0017 * attempt)
        try:
            while True:
                narrow(x)
        except KeyboardInterrupt:
            pass
"""
    run(code, "pool")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("backend", backends())
def test_a_signal_ends_a_pass_before_its_time(backend: str, threads: int) -> None:
    code = f"""
import time
def give_up(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, give_up)
rf.set_num_threads({threads})
deep = rf.LSTM(4, 400, 2, proj_size=2, recompute=20, seed=0)  # much work, few numbers
x = np.zeros((30000, 32, 4), np.float32)
begun = time.time()
output, _, tape = deep.forward(x[:6000])
once = time.time() - begun
# Whole, these would take five times as long, and more than twice.
for call in (lambda: deep(x), lambda: deep.forward(x), lambda: deep.backward(tape, output)):
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    begun = time.time()
    try:
        call()
        raise SystemExit("it was not interrupted")
    except KeyboardInterrupt:
        pass
    assert time.time() - begun < 0.1 + 1.2 * once, (time.time() - begun, once)
"""
    run(code, backend)


@pytest.mark.parametrize("backend", backends())
@not_under_tsan  # Clang's OpenMP runtime does not live through that
@pytest.mark.parametrize("call", ["results()", "frozen(x_t[None])", "stream.step(x_t)", "stream.step(x_t, out)"])
def test_a_thread_inside_a_pass_does_not_keep_the_process_from_ending(backend: str, call: str) -> None:
    code = f"""
import time
begun = threading.Barrier(4)
frozen = rf.LSTM(512, 512, seed=0).freeze()
x_t, out = np.zeros((4, 512), np.float32), np.zeros((4, 512), np.float32)
def work():
    stream = frozen.stream(4)
    begun.wait()
    while True:
        {call}
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
begun.wait()
time.sleep(0.01)
"""
    run(code, backend)


@pytest.mark.parametrize("flushed", [False, True])
def test_a_signal_handler_finds_denormal_numbers_as_they_were(flushed: bool) -> None:
    """As the caller has them: he may flush them too, for which torch has a function."""
    if flushed:
        pytest.importorskip("torch")
    code = f"""
if {flushed}:
    import torch
    assert torch.set_flush_denormal(True)
seen = []
signal.signal(signal.SIGALRM, lambda *_: seen.append(float(np.float64(1e-310) * 1) == 0))
signal.setitimer(signal.ITIMER_REAL, 0.06, 0.06)
with rf.threads(1):
    rf.LSTM(4, 200, 2, seed=0)(np.zeros((4000, 4, 4), np.float32))
signal.setitimer(signal.ITIMER_REAL, 0)
assert seen and all(value == {flushed} for value in seen), seen
"""
    run(code, "pool")
