"""Would a test notice if a promise of docs/reliability.md were broken?

    python tests/break_promises.py [words of promises]

Breaks one promise after another in a copy of the project, builds the copy, and runs the tests that its row names, which
have to fail and pass before. Takes about an hour; not part of the tests. What only kernels can break is in mutate.py.
Breaks in code for x86-64 are left out on other machines.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import programs

SOURCE = Path(__file__).resolve().parents[1]


class Break(NamedTuple):
    promise: str
    file: str
    before: str  # text that occurs in it; at its first occurrence comes
    after: str
    tests: str  # for pytest
    also: tuple[str, str] = ("", "")  # a second such change, where two places keep a promise
    machine: str = ""  # the only one that compiles what is changed


PROCESSES, SPECIAL = "tests/test_processes.py -k ", "tests/test_special_values.py -k "
BREAKS = [
    Break("wrong calls of the C++ interface are refused", "csrc/dispatch.cpp",
          'require(pass.threads != 0, "threads is 0");', "", "tests/test_build.py -k replayed"),
    Break("an interrupted pass touches nothing beyond its memory", "csrc/kernel/forward.h",
          "if (interrupt_.stops(*part.meeting, part.leader(), id == 0, place)) break;",
          "if (interrupt_.stops(*part.meeting, part.leader(), id == 0, place)) {\n"
          "        *layer.y.at(pass_.steps, pass_.batch) = T(0);\n        break;\n      }",
          "tests/test_build.py -k replayed"),
    Break("wrong arguments give a TypeError or ValueError", "python/rnnfast/_check.py",
          'raise TypeError(f"{name} must be True or False, got {_described(value)}")', "assert False",
          "tests/test_arguments.py"),
    Break("what is right is not refused", "python/rnnfast/_check.py",
          "int(array.max()) > steps", "int(array.max()) >= steps", "tests/test_arguments.py"),
    Break("other arguments give the reference's result", "python/rnnfast/_check.py",
          "return array.astype(np.int64)", "return np.minimum(array.astype(np.int64), 3)", "tests/test_arguments.py"),
    Break("Python threads may share a frozen layer", "csrc/dispatch.cpp",
          "  Spare::Block far_;", "  static inline Spare::Block far_;",
          PROCESSES + "eight"),
    Break("Python threads may have streams of their own", "csrc/bindings.cpp",
          "  rf::Memory scratch_, x_copy_;", "  static inline rf::Memory scratch_;\n  rf::Memory x_copy_;",
          PROCESSES + "eight"),
    Break("the number of threads may be changed while passes run", "csrc/threads.cpp",
          "task(context, 0, count);", "task(context, 0, rnnfast::get_num_threads(count));", PROCESSES + "changed"),
    Break("a worker that goes to sleep hears a call", "csrc/threads.cpp",
          "asleep_.exchange(true);", "asleep_.store(true);", "tests/test_build.py -k sleeps"),
    Break("no more threads than were asked for", "csrc/threads.cpp",
          "if (!lock) return false;", "if (!lock) return (new Pool)->run(threads, task, context);",
          PROCESSES + "no_more"),
    Break("nor in torch's own pool", "csrc/threads.cpp",
          "if (!lock) return false;", "if (!lock) return (new Pool)->run(threads, task, context);",
          PROCESSES + "torchs_own"),
    Break("nor with OpenMP", "csrc/threads.cpp",
          "std::unique_lock<std::mutex> lock(openmp_busy, std::try_to_lock);",
          "std::mutex mine;\n  std::unique_lock<std::mutex> lock(mine, std::try_to_lock);",
          "tests/test_build.py -k many_callers"),
    Break("spawn and forkserver finish", "python/rnnfast/__init__.py", "from . import _core",
          "import multiprocessing\nassert multiprocessing.current_process().name == 'MainProcess'\nfrom . import _core",
          PROCESSES + "'every_way and (spawn or forkserver)'"),
    Break("workers of a DataLoader finish", "csrc/threads.cpp",
          "current_pool.store(nullptr);", "", PROCESSES + "data_loader"),
    Break("idle threads do not spin", "csrc/threads.cpp",
          "worker_spins = 200;", "worker_spins = 2000000000;", PROCESSES + "'torch_and and pool'"),
    Break("a signal ends a pass", "csrc/bindings.cpp",
          "return PyErr_CheckSignals() != 0;", "return false;", "tests/test_threads.py -k a_signal_ends"),
    Break("a fork finishes: the pool", "csrc/threads.cpp",
          "current_pool.store(nullptr);", "", "tests/test_threads.py -k 'fork and pool'"),
    Break("a signal's handler finds the caller's floating-point state", "csrc/kernel/plan.h",
          "const WithFloatState outside(outside_);", "", "tests/test_threads.py -k handler"),
    Break("a fork while another thread is inside a pass finishes", "csrc/threads.cpp",
          "current_pool.store(nullptr);", "", "tests/test_threads.py -k 'fork_while and pool'"),
    Break("the process ends though a thread is inside a pass", "csrc/bindings.cpp",
          "without_gil([&] { finished = run(); });", "{ py::gil_scoped_release unlocked; finished = run(); }",
          "tests/test_threads.py -k a_thread_inside"),
    Break("a fork finishes: OpenMP", "csrc/threads.cpp",
          "forked.store(true);", "", "tests/test_threads.py -k 'fork and openmp'"),
    Break("torch and rnnfast have one OpenMP runtime", "python/rnnfast/__init__.py", "from . import _core",
          "import ctypes, os, pathlib, shutil, tempfile\n"
          "path = f'/usr/lib/{os.uname().machine}-linux-gnu/libgomp.so.1'\n"
          "for line in pathlib.Path('/proc/self/maps').read_text().splitlines():\n"
          "    path = line.split()[-1] if 'libgomp' in line else path\n"
          "ctypes.CDLL(shutil.copy(path, os.path.join(tempfile.mkdtemp(), 'libgomp-another.so')))\n"
          "from . import _core", PROCESSES + "torch_and"),
    Break("no memory is lost", "csrc/memory.h",
          "void operator()(void* p) const { ::operator delete(p, std::align_val_t{alignment}); }",
          "void operator()(void* p) const { (void)p; }", "tests/test_memory.py -k grows"),
    Break("running out of memory is a MemoryError", "csrc/memory.h",
          "void allocate(size_t bytes) {", "void allocate(size_t bytes) noexcept {", "tests/test_memory.py -k running"),
    Break("a failure for want of memory leaves the weights as they were", "csrc/bindings.cpp",
          "run_interruptibly([&] { return rf::forward(*table_, call_); });",
          "try {\n      run_interruptibly([&] { return rf::forward(*table_, call_); });\n"
          "    } catch (const std::bad_alloc&) {\n"
          "      if (call_.weights) *static_cast<float*>(const_cast<void*>(call_.weights[0].weight_hh)) += 1;\n"
          "      throw;\n    }",
          "tests/test_memory.py -k running"),
    Break("a failure for want of memory leaves the tape as it was", "csrc/bindings.cpp",
          "run_interruptibly([&] { return rf::backward(*table_, back); });",
          "try {\n      run_interruptibly([&] { return rf::backward(*table_, back); });\n"
          "    } catch (const std::bad_alloc&) {\n      std::memset(tape_.data(), 0, tape_.size());\n"
          "      throw;\n    }",
          "tests/test_memory.py -k running"),
    Break("a tape has the size of the formula", "csrc/bindings.cpp",
          "    tape_nbytes_ = spec_.hidden_size ? rf::tape_bytes(*table_, call_) : 0;",
          "    tape_nbytes_ = 2 * rf::tape_bytes(*table_, call_);",
          "tests/test_memory.py -k tape"),
    Break("a call leaves no more than promised", "csrc/memory.h",
          "std::max(size_t{64} << 20, 4 * weight_bytes);", "SIZE_MAX - weight_bytes;",
          "tests/test_memory.py -k leaves"),
    Break("only calls in succession take a second thread early", "csrc/threads.cpp",
          "constexpr int64_t longest_pause = 20000;", "constexpr int64_t longest_pause = INT64_MAX;",
          "tests/test_threads.py -k follow"),
    Break("peak memory follows the formulas", "csrc/dispatch.cpp",
          "Scratch scratch(kernels.backward_scratch(call), kernels, call.pass->spec);",
          "Scratch scratch(2 * kernels.backward_scratch(call), kernels, call.pass->spec);\n"
          "  std::memset(scratch.data(), 0, 2 * kernels.backward_scratch(call));", "tests/test_memory.py -k peak"),
    Break("a hostile file uses no memory: arrays", "python/rnnfast/_io.py",
          "_described(source, file.text, file.stand_ins)",
          "_described(source, file.text, {name: file._read(name) for name in file.stand_ins})", "tests/test_files.py"),
    Break("a hostile file uses no memory: headers", "python/rnnfast/_io.py",
          "if claimed > MOST_HEADER:", "if False:", "tests/test_files.py"),
    Break("a file's members are what they claim", "python/rnnfast/_io.py",
          "if info.file_size != header + math.prod(shape) * dtype.itemsize:", "if False:", "tests/test_files.py"),
    Break("a damaged file is a ValueError", "python/rnnfast/_io.py",
          'raise ValueError(f"{source} is not a readable .npz file: {error}") from error', "raise",
          "tests/test_files.py -k 'truncation or byte'"),
    Break("no pickles", "python/rnnfast/_io.py",
          "np.lib.format.read_array(member, allow_pickle=False)", "np.lib.format.read_array(member, allow_pickle=True)",
          "tests/test_errors.py -k pickles", ("if dtype.hasobject:", "if False:")),
    Break("the floating-point state is what it was, on the caller's thread", "csrc/kernel/simd.h",
          "~WithFloatState() { before_.set(); }", "~WithFloatState() {}", SPECIAL + "leaves",
          machine="x86_64"),
    Break("nor on a thread of OpenMP's", "csrc/threads.cpp",
          "task(context, omp_get_thread_num(), omp_get_num_threads());",
          "task(context, omp_get_thread_num(), omp_get_num_threads());\n"
          "    if (omp_get_thread_num()) __builtin_ia32_ldmxcsr(0x9fc0);", PROCESSES + "every_thread_that_torch",
          machine="x86_64"),
    Break("huge numbers saturate", "csrc/kernel/math.h",
          "at_least(x | T(-0.0), Constants<T>::exp_low)", "x | T(-0.0)", SPECIAL + "saturat"),
    Break("ten thousand rows", "csrc/kernel/schedule.h",
          "batch_(pass.batch) {", "batch_(min(pass.batch, int64_t{8192})) {", SPECIAL + "ten_thousand"),
    Break("denormal numbers count as zeros", "csrc/kernel/simd.h",
          "return {both | 0x8040};", "return {both};", SPECIAL + "denormal",
          machine="x86_64"),
    Break("NaN comes out as NaN", "csrc/kernel/simd.h",
          "_mm256_min_ps(splat(bound), x)", "_mm256_min_ps(x, splat(bound))", SPECIAL + "nan",
          also=("vf at_most(vf x, float bound) { return x > splat(bound) ? splat(bound) : x; }",
                "vf at_most(vf x, float bound) { return x < splat(bound) ? x : splat(bound); }")),
    Break("NaN stays in its row", "csrc/kernel/gemm.h",
          "return splat(a[r][k * AStep]);", "return splat(a[r][k * AStep] + T(0) * a[Rows - 1 - r][k * AStep]);",
          SPECIAL + "a_row"),
    Break("empty sizes", "csrc/bindings.cpp",
          "if (!spec_.hidden_size) return;\n    run_interruptibly([&] { return rf::forward",
          "if (!spec_.hidden_size || !call_.steps) return;\n    run_interruptibly([&] { return rf::forward",
          SPECIAL + "empty"),
    Break("segments give the same bits over long sequences", "csrc/kernel/forward.h",
          "j % segment_steps(pass_) == 0", "j % segment_steps(pass_) == 1", SPECIAL + "hundred_thousand"),
]  # fmt: skip


def build(project: Path, site: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--upgrade"]
    command += [f"-Cbuild-dir={project / 'build/promises'}", "--target", str(site), str(project)]
    subprocess.run(command, check=True)


def failed(project: Path, site: Path, tests: str) -> str:
    """The first test that fails, or an empty text. That there are none of these names is an error."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *tests.split()]
    done = programs.run(command, cwd=project, env={**os.environ, "PYTHONPATH": str(site)}, timeout=1200)
    found = next((line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAILED")), "")
    if done.returncode != (1 if found else 0):
        sys.exit(f"{tests} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return found


def main() -> None:
    words = sys.argv[1:] or [""]
    chosen = [entry for entry in BREAKS if any(word in entry.promise for word in words)]
    for entry in [entry for entry in chosen if entry.machine not in ("", platform.machine())]:
        print(f"left out, needs {entry.machine}: {entry.promise}")
        chosen.remove(entry)
    kept = []
    with tempfile.TemporaryDirectory() as name:
        project, site = Path(name) / "project", Path(name) / "site"
        shutil.copytree(SOURCE, project, ignore=shutil.ignore_patterns("build", ".git"))
        build(project, site)
        for tests in {entry.tests: None for entry in chosen}:
            if failed(project, site, tests):
                sys.exit(f"these fail already: {tests}")
        for entry in chosen:
            path = project / entry.file
            text = path.read_text(encoding="utf-8")
            if missing := [before for before in (entry.before, entry.also[0]) if before not in text]:
                sys.exit(f"{entry.file} no longer has: {missing}")
            broken = text.replace(entry.before, entry.after, 1).replace(*entry.also, 1)
            path.write_text(broken, encoding="utf-8")
            build(project, site)
            found = failed(project, site, entry.tests)
            path.write_text(text, encoding="utf-8")
            kept += [] if found else [entry.promise]
            print(f"{'noticed' if found else 'NOT NOTICED':12} {entry.promise}: {found or entry.tests}", flush=True)
    print(f"{len(chosen) - len(kept)} of {len(chosen)} noticed")


if __name__ == "__main__":
    main()
