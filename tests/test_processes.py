"""Processes and other libraries' threads: whatever starts a process, it finishes, with the same bits; no thread beyond
those that were asked for; any number of Python threads.

Everything runs in processes of its own: what is tested changes the whole process.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path

import pytest

import programs
from test_threads import backends, not_under_tsan, run

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
each_backend = pytest.mark.parametrize("backend", backends())


# A program as a file, because the children of spawn and forkserver import it.
STARTED = """
import multiprocessing, sys, warnings
import numpy as np
import rnnfast as rf

def work(seed):
    rf.set_num_threads(2)
    x = np.random.default_rng(seed).standard_normal((40, 16, 64), dtype=np.float32)
    layer = rf.LSTM(64, 128, seed=0)
    output, _, tape = layer.forward(x)
    return output.tobytes(), layer.backward(tape, output).input.tobytes()

if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    want = [work(seed) for seed in range(4)]
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        assert pool.map(work, range(4)) == want
    assert [work(seed) for seed in range(4)] == want
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@each_backend
def test_every_way_to_start_processes_after_use(tmp_path: Path, method: str, backend: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(STARTED, encoding="utf-8")
    done = programs.run([sys.executable, program, method], env={**os.environ, "RNNFAST_THREADING": backend})
    assert done.returncode == 0, done.stderr


@needs_torch
@each_backend
def test_a_data_loader_with_workers_after_use(backend: str) -> None:
    code = """
import torch, warnings
warnings.simplefilter("ignore", DeprecationWarning)
want = results()
frozen = layer.freeze()
class Set(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, i):
        return frozen(x[:, i : i + 2])[0]
inside = [b for b in torch.utils.data.DataLoader(Set(), batch_size=1, num_workers=2)]
for i, batch in enumerate(inside):
    assert np.array_equal(batch[0].numpy(), frozen(x[:, i : i + 2])[0])
assert results() == want
"""
    run(code, backend)


@needs_torch
@pytest.mark.parametrize("first", ["torch", "rnnfast"])
@each_backend
@not_under_tsan
def test_torch_and_rnnfast_in_one_process(backend: str, first: str) -> None:
    """In either order of import: both work, they share one OpenMP runtime, and nobody's idle threads keep spinning."""
    code = f"""
import os, sys, time
modules = ["torch", "rnnfast"]
for name in modules if {first!r} == "torch" else modules[::-1]:
    __import__(name)
import numpy as np, torch, rnnfast as rf
torch.set_num_threads(2)
rf.set_num_threads(2)
layer = rf.LSTM(64, 128, seed=0)
x = np.random.default_rng(0).standard_normal((40, 16, 64), dtype=np.float32)
other = torch.nn.LSTM(64, 128)
other.load_state_dict({{k: torch.from_numpy(v) for k, v in layer.state_dict().items()}})
want = layer(x)[0]
for _ in range(5):
    with torch.no_grad():
        got = other(torch.from_numpy(x))[0].numpy()
    assert np.abs(layer(x)[0] - got).max() < 1e-5
    assert np.array_equal(layer(x)[0], want)
runtimes = {{line.split()[-1] for line in open("/proc/self/maps") if "gomp" in line or "libomp" in line}}
assert len(runtimes) == 1, runtimes
before = time.process_time()
time.sleep(0.5)
spent = time.process_time() - before
assert spent < 0.1, spent  # of both threads; each that spins would take 0.5
"""
    done = programs.run_code(code, env={**os.environ, "RNNFAST_THREADING": backend})
    assert done.returncode == 0, done.stderr


@needs_torch
@pytest.mark.parametrize("chosen", ["", "pool"])
@not_under_tsan
def test_modules_run_on_the_threads_of_torchs_operations(chosen: str) -> None:
    """By default, where both share an OpenMP runtime; a pool of our own would fight them for the cores. Arrays keep the
    pool, and so does a forked child, where OpenMP's threads are lost."""
    code = """
import torch
from rnnfast import _core
import rnnfast.torch as rt
torch.set_num_threads(2)
if not _core.shares_openmp("libtorch_cpu.so"):
    print("apart")
    sys.exit()
threads = lambda: len(os.listdir("/proc/self/task"))
tensor = torch.from_numpy(x)
twin = rt.LSTM(64, 128)
twin.load_state_dict({name: torch.from_numpy(weight) for name, weight in layer.state_dict().items()})
def through_torch():
    output, _ = twin(tensor)
    output.sum().backward()
    with torch.inference_mode():
        return twin(tensor)[0].numpy()
torch.ones(1000, 1000) @ torch.ones(1000, 1000)
before = threads()
first = through_torch()
assert threads() == before + (os.environ["RNNFAST_THREADING"] == "pool"), (threads(), before)
assert first.tobytes() == layer(x)[0].tobytes()
assert threads() == before + 1
if child := os.fork():
    assert os.waitpid(child, 0)[1] == 0
else:
    with torch.inference_mode():  # torch's own operations would hang here
        ok = twin(tensor)[0].numpy().tobytes() == first.tobytes()
    os._exit(not (ok and threads() == 2))
print("together")
"""
    done = run(code, chosen, OPENBLAS_NUM_THREADS="1")
    if done.stdout.strip() == "apart":
        pytest.skip("this build has an OpenMP runtime of its own")
    assert done.stdout.strip() == "together" and "forked" not in done.stderr


@needs_torch
@each_backend
def test_every_thread_that_torch_may_use_finds_denormal_numbers_as_they_were(backend: str) -> None:
    """Where both use OpenMP's threads, a pass of ours flushes denormals on a thread that torch's next operation has."""
    code = """
import torch
torch.set_num_threads(2)
tiny = torch.full((1 << 20,), 1e-40)  # enough for torch to divide it
for _ in range(20):
    results()
    assert (tiny * 1 > 0).all()
"""
    run(code, backend)


@not_under_tsan
def test_no_more_threads_than_were_asked_for_inside_a_thread_pool() -> None:
    """One caller has the workers; the others, who find them taken, run alone: 8 + 2 - 1 threads, not 8 * 2."""
    code = """
from concurrent.futures import ThreadPoolExecutor
def count():
    return len(os.listdir("/proc/self/task"))
start = count()
most = []
with ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda _: (results(), most.append(count())), range(64)))
assert max(most) <= start + 8 + 1, (start, most)
"""
    run(code, "pool", OPENBLAS_NUM_THREADS="1")


@needs_torch
@each_backend
@not_under_tsan
def test_layers_inside_torchs_own_thread_pool(backend: str) -> None:
    """Torch's threads between operations are callers like any others; those of OpenMP have a team each, as for torch's
    own operations."""
    code = """
import torch, warnings
import rnnfast.torch as rt
warnings.simplefilter("ignore")
torch.set_num_threads(2)
torch.set_num_interop_threads(8)
ours = rt.LSTM(64, 128)
x, zero = torch.from_numpy(x), torch.zeros(1, 16, 128)
script = torch.jit.CompilationUnit('''
def one(x: Tensor, zero: Tensor, weights: List[Tensor]):
    return torch.ops.rnnfast.recurrent(x, zero, zero, weights, None, None, "LSTM", 1, False, False, 0.0)[0]
def all_at_once(x: Tensor, zero: Tensor, weights: List[Tensor]):
    return [torch.jit.wait(future) for future in [torch.jit.fork(one, x, zero, weights) for _ in range(64)]]
''')
weights = [weight.detach() for weight in ours.parameters()]
def count():
    return len(os.listdir("/proc/self/task"))
with torch.no_grad():
    want = ours(x)[0]
    start = count()
    assert all(torch.equal(got, want) for got in script.all_at_once(x, zero, weights))
most = 8 if rf.show_config(mode="dicts")["threading"] == "pool" else 16
assert start + 4 <= count() <= start + most + 3, (start, count())  # and a few that come and go
os._exit(0)  # torch alone now and then ends with "terminate called" after this
"""
    run(code, backend, OPENBLAS_NUM_THREADS="1")


@each_backend
def test_the_number_of_threads_can_be_changed_while_others_run(backend: str) -> None:
    code = """
import time
want = results()
stop = threading.Event()
def change():
    n = 0
    while not stop.is_set():
        n += 1
        rf.set_num_threads(n % 4 + 1)
        time.sleep(0.0005)
others = [threading.Thread(target=change) for _ in range(2)]
for other in others:
    other.start()
try:
    for _ in range(30):
        assert results() == want
finally:
    stop.set()
for other in others:
    other.join()
"""
    run(code, backend)


# RNNFAST_SOAK is how many seconds; a minute and more shows what a second does not.
# A step of 16 rows is enough work to let go of the GIL.
SOAK = """
import time
seconds = float(os.environ.get("RNNFAST_SOAK", "2"))
frozen = rf.GRU(48, 96, num_layers=2, seed=1).freeze()
inputs = [np.random.default_rng(j).standard_normal((12, 16, 48), dtype=np.float32) for j in range(8)]
def streamed(j):
    stream = frozen.stream(16)
    return np.stack([stream.step(x_t) for x_t in inputs[j]])
want = [frozen(x)[0] for x in inputs]
assert all(np.array_equal(streamed(j), want[j]) for j in range(8))
end, counts, failed = time.monotonic() + seconds, [0] * 8, []
def work(j):
    while time.monotonic() < end:
        if not np.array_equal(frozen(inputs[j])[0], want[j]) or not np.array_equal(streamed(j), want[j]):
            failed.append(j)
            return
        counts[j] += 1
threads = [threading.Thread(target=work, args=(j,)) for j in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failed and min(counts) > 0, (failed, counts)
print(sum(counts))
"""


@each_backend
def test_eight_threads_with_one_frozen_layer_and_streams_of_their_own(backend: str) -> None:
    seconds = float(os.environ.get("RNNFAST_SOAK", "2"))
    assert int(run(SOAK.replace("import time", f"import time\nsignal.alarm({int(seconds) + 60})"), backend).stdout) >= 8


def test_a_program_that_hangs_is_a_failure_that_tells_where() -> None:
    """Also where its children hold the pipes: a test must not wait for them."""
    code = """
import subprocess, time
print(subprocess.Popen(["sleep", "100"]).pid, flush=True)
time.sleep(100)
"""
    with pytest.raises(AssertionError, match="(?s)no end within 5 s.*line 4 in <module>") as raised:
        programs.run_code(code, timeout=5)
    (child,) = (line for line in str(raised.value).splitlines() if line.isdigit())
    end = time.monotonic() + 60  # on a busy machine a killed process may still be on its way out
    while is_alive(child) and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_alive(child)


def is_alive(process: str) -> bool:
    try:
        return "Z (zombie)" not in Path("/proc", process, "status").read_text()
    except OSError:
        return False
