"""Rules about the source, the objects and the package; and results that are equal on every instruction set."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

import break_promises
import mutate
import programs

SOURCE = Path(__file__).resolve().parents[1]
CSRC = SOURCE / "csrc"
AARCH64 = "aarch64-linux-gnu"

pytestmark = pytest.mark.skipif(not (CSRC / "kernels.cpp").exists(), reason="not run in a source tree")

# Programs that `pip install '.[test]'` puts beside this interpreter, which need not be on the PATH.
SEARCH_PATH = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])


def program(*names: str) -> str:
    """The first of these programs that there is; skips the test where there is none."""
    for name in names:
        if found := shutil.which(name, path=SEARCH_PATH):
            return found
    pytest.skip(f"needs {' or '.join(names)}")


def arm_emulator() -> tuple[str, ...]:
    return program("qemu-aarch64"), "-L", f"/usr/{AARCH64}"


def run(*command: str | Path, **environment: str) -> str:
    """Standard output of a command that has to succeed."""
    done = programs.run(command, env={**os.environ, "PATH": SEARCH_PATH, **environment}, timeout=600)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


# --- rules about the source ---


def sources(pattern: str) -> list[Path]:
    found = sorted(CSRC.glob(pattern))
    assert found, pattern
    return found


def without_comments(path: Path) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_kernel_files_include_only_each_other_and_freestanding_headers() -> None:
    inside = {path.name for path in sources("kernel/*")}
    outside = {"cstddef", "cstdint", "cstring", "immintrin.h", "arm_neon.h"} | {
        f"../{name}.h" for name in ("rnnfast", "threads", "cost")
    }
    for path in sources("kernel/*"):
        assert set(includes(path)) <= inside | outside, path.name
        if path.name != "simd.h":
            assert not {"immintrin.h", "arm_neon.h"} & set(includes(path)), path.name


def test_engine_and_cells_do_not_know_each_other() -> None:
    cells = {path.name for path in sources("kernel/cell_*.h")}
    # What a cell may see is its own contract and the mathematics; everything else in kernel/ belongs to the engine.
    for path in sources("kernel/*"):
        if path.name in cells:
            assert set(includes(path)) <= {"cell.h", "math.h", "simd.h"}, path.name
        else:
            assert not cells & set(includes(path)), path.name


def test_only_kernels_cpp_includes_kernel_files() -> None:
    for path in sources("*"):
        if path.is_file() and path.name != "kernels.cpp":
            assert not [name for name in includes(path) if "kernel/" in name], path.name


def test_sources_outside_kernel_include_only_the_interface() -> None:
    own = {"rnnfast.h", "threads.h", "memory.h", "cost.h"}
    for name in ("bindings.cpp", "dispatch.cpp", "threads.cpp", "cost.cpp"):
        quoted = re.findall(r'#\s*include\s*"([^"]+)"', (CSRC / name).read_text(encoding="utf-8"))
        assert set(quoted) <= own, name


def test_only_bindings_know_python() -> None:
    for path in sources("**/*"):
        if path.is_file() and path.name != "bindings.cpp":
            assert not re.search(r"pybind11|\bPy[A-Z]\w+\(|Python\.h", without_comments(path)), path.name


def test_only_threads_cpp_knows_openmp() -> None:
    for path in sources("**/*"):
        if path.is_file() and path.name != "threads.cpp":
            assert not re.search(r"#\s*pragma\s+omp|\bomp_\w+\(", without_comments(path)), path.name


def test_only_simd_h_has_intrinsics() -> None:
    intrinsic = re.compile(r"\b_mm\d*_\w+|\b__m(128|256|512)|\bv[a-z]\w*q_[fsu]\d+|\b(float|u?int)\d+x\d+_t\b")
    for path in sources("**/*"):
        if path.is_file() and path.name != "simd.h":
            found = intrinsic.search(without_comments(path))
            assert not found, f"{path.name}: {found and found.group()}"


def test_kernels_use_no_stl_no_exceptions_no_allocation() -> None:
    forbidden = re.compile(r"\bstd::|\bthrow\b|\btry\b|\bnew\b|\bdelete\b|\b(m|c|re)alloc\(")
    for path in [*sources("kernel/*"), CSRC / "threads.h", CSRC / "cost.h"]:
        text = re.sub(r"=\s*delete\b", "", without_comments(path))
        found = forbidden.search(text)
        assert not found, f"{path.name}: {found and found.group()}"


def test_no_flag_changes_arithmetic_or_ties_a_build_to_its_machine() -> None:
    text = re.sub(r"#[^\n]*", "", (SOURCE / "CMakeLists.txt").read_text(encoding="utf-8"))
    forbidden = r"-ffast-math|-Ofast|-march=native|-mtune=native|-mcpu=native|-funsafe-math|-ffp-contract=fast|-flto"
    assert not re.search(forbidden, text)
    assert "-ffp-contract=off" in text
    for path in sources("**/*"):
        if path.is_file():
            assert not re.search(r"#\s*pragma\s+(GCC|clang)\s+(optimize|target)", path.read_text(encoding="utf-8"))


def test_the_version_is_stated_once() -> None:
    import rnnfast as rf

    stated = re.search(r"project\(rnnfast VERSION ([0-9.]+)", (SOURCE / "CMakeLists.txt").read_text(encoding="utf-8"))
    assert stated and rf.__version__ == stated.group(1)
    assert 'dynamic = ["version"]' in (SOURCE / "pyproject.toml").read_text(encoding="utf-8")


def test_deliberate_mistakes_can_still_be_made() -> None:
    for mistake in mutate.MUTATIONS:
        assert mistake.before in (CSRC / "kernel" / mistake.file).read_text(encoding="utf-8"), mistake
    for entry in break_promises.BREAKS:
        text = (SOURCE / entry.file).read_text(encoding="utf-8")
        assert entry.before in text and entry.also[0] in text, entry


# --- builds ---


class Package(NamedTuple):
    sdist: Path
    wheel: Path
    build: Path


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """A source archive and the wheel built from it, by the hooks that pip calls; no network is needed.

    It is the one native build of these tests, so that the objects looked at are those of the wheel.
    """
    for module in ("scikit_build_core", "pybind11"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    program("cmake")
    program("ninja")
    program(os.environ.get("CXX", "c++"), "g++", "clang++")
    folder = tmp_path_factory.mktemp("package")
    hooks = "import os, sys; from scikit_build_core import build; os.chdir(sys.argv[2]); "
    run(sys.executable, "-c", hooks + "build.build_sdist(sys.argv[1])", folder, SOURCE)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # older Pythons have none
        archive.extractall(folder)
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    options = {"build-dir": str(folder / "build")}
    options |= {f"cmake.define.RNNFAST_{name}": "ON" for name in ("TESTS", "WERROR")}
    run(sys.executable, "-c", hooks + f"build.build_wheel(sys.argv[1], {options})", folder, unpacked)
    (wheel,) = folder.glob("*.whl")
    return Package(sdist, wheel, folder / "build")


@pytest.fixture(scope="session")
def native(package: Package) -> Path:
    return package.build


@pytest.fixture(scope="session")
def cross(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ library and its test program for aarch64, without Python."""
    compiler, cmake, ninja = program(f"{AARCH64}-g++"), program("cmake"), program("ninja")
    folder = tmp_path_factory.mktemp("cross")
    target = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={compiler}")
    options = ("-DRNNFAST_PYTHON=OFF", "-DRNNFAST_TESTS=ON", "-DRNNFAST_WERROR=ON", f"-DCMAKE_MAKE_PROGRAM={ninja}")
    run(cmake, "-S", SOURCE, "-B", folder, "-G", "Ninja", *target, *options)
    run(cmake, "--build", folder)
    return folder


# --- rules about objects, and the C++ test program on every instruction set ---


def digests(build: Path, *emulator: str, isa: str, threads: int = 1) -> list[str]:
    lines = run(*emulator, build / "digest", str(threads), RNNFAST_ISA=isa).splitlines()
    assert lines[0] == isa
    assert len(lines) > 10
    return lines[1:]


def check_symbols(build: Path, nm: str) -> None:
    objects = sorted(build.glob("CMakeFiles/kernels_*.dir/csrc/kernels.cpp.o"))
    assert objects
    for path in objects:
        isa = path.parts[-3].removeprefix("kernels_").removesuffix(".dir")
        symbols = [line.split()[-2:] for line in run(nm, "--extern-only", path).splitlines() if line.strip()]
        # Weak symbols (V, W, u) are the trap: the linker keeps one object's copy of an inline function for everybody.
        defined = [(kind, name) for kind, name in symbols if kind != "U"]
        assert defined == [("T", f"rnnfast_kernels_{isa}")], path
        needed = [name for kind, name in symbols if kind == "U"]
        assert not [name for name in needed if name.startswith(("_ZS", "_ZNS", "_Zn", "_Zd", "__cxa"))], path


def test_kernel_objects_export_one_symbol(native: Path) -> None:
    check_symbols(native, program("nm"))


def test_kernel_objects_export_one_symbol_on_aarch64(cross: Path) -> None:
    check_symbols(cross, program(f"{AARCH64}-nm"))


def fma_isas() -> list[str]:
    import rnnfast as rf

    return [isa for isa in rf.available_isas() if isa != "x86_64_v2"]


def test_digests_are_equal_on_every_fma_instruction_set(native: Path) -> None:
    first, *others = fma_isas() or pytest.skip("this CPU has no FMA")
    expected = digests(native, isa=first)
    for isa in others:
        assert digests(native, isa=isa) == expected, isa


def test_digests_are_equal_on_every_number_of_threads(native: Path) -> None:
    import rnnfast as rf

    for isa in rf.available_isas():
        expected = digests(native, isa=isa)
        for threads in (2, 3):
            assert digests(native, isa=isa, threads=threads) == expected, (isa, threads)


def test_kernels_touch_nothing_but_their_own_and_equal_plain_loops(native: Path) -> None:
    """Arrays behind guard pages, outputs with a pattern in them: see tests/cpp/guard.cpp."""
    import rnnfast as rf

    cases = [int(line.split()[1]) for line in run(native / "guard").splitlines()]
    assert len(cases) == len(rf.available_isas()) and min(cases) > 1000


def test_what_the_fuzzer_found_interesting_is_replayed(native: Path) -> None:
    """And some inputs more, and every way of making a wrong call: see tests/cpp/fuzz.cpp."""
    folder = SOURCE / "tests" / "cpp"
    files, inputs, ways = map(int, re.findall(r"\d+", run(native / "fuzz", folder / "corpus", "500")))
    assert files == len(list((folder / "corpus").iterdir())) > 150
    assert inputs == 500
    assert ways == (folder / "fuzz.cpp").read_text(encoding="utf-8").count("[](Forward&")


@pytest.mark.parametrize("backend", ["pool", "openmp"])
def test_many_callers_have_no_more_threads_at_work_than_one_team_beyond_them(native: Path, backend: str) -> None:
    import rnnfast as rf

    if backend == "openmp" and not rf.show_config(mode="dicts")["openmp"]:
        pytest.skip("this build has no OpenMP")
    assert "threads: 8 callers, " in run(native / "callers", RNNFAST_THREADING=backend)


def test_the_predictions_for_many_cores_are_the_cost_model_s(native: Path) -> None:
    predicted = run(native / "predict").splitlines()
    page = (SOURCE / "docs" / "performance.md").read_text(encoding="utf-8").splitlines()
    start = page.index("| cell T,B,I,H | 2 threads | 8 threads | 64 threads |") + 2
    assert predicted == page[start : start + len(predicted)]


def test_no_worker_sleeps_through_a_call(native: Path) -> None:
    assert run(native / "wakes", RNNFAST_THREADING="pool").startswith("20000 of 20000")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compares x86-64 with aarch64")
def test_digests_are_equal_on_neon(native: Path, cross: Path) -> None:
    isa = (fma_isas() or pytest.skip("this CPU has no FMA"))[0]
    assert digests(cross, *arm_emulator(), isa="neon") == digests(native, isa=isa)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere this is the native test")
def test_no_worker_sleeps_through_a_call_under_an_emulator(cross: Path) -> None:
    """QEMU lets a load overtake a store before it, even where both are sequentially consistent."""
    assert run(*arm_emulator(), cross / "wakes", RNNFAST_THREADING="pool").startswith("20000 of 20000")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere this is the native test")
def test_kernels_touch_nothing_but_their_own_on_neon(cross: Path) -> None:
    """All that guard.cpp does but for three quarters of the draws of options, which would take the emulator longest."""
    isa, cases = run(*arm_emulator(), cross / "guard", "neon", "100").split()[:2]
    assert isa == "neon:" and int(cases) > 1000


@pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates x86-64 CPUs")
@pytest.mark.parametrize(("cpu", "best"), [("Haswell", "x86_64_v3"), ("Nehalem", "x86_64_v2")])
def test_dispatch_takes_what_the_cpu_has(native: Path, cpu: str, best: str) -> None:
    emulated = run(program("qemu-x86_64"), "-cpu", cpu, native / "digest", RNNFAST_ISA="").splitlines()
    assert emulated[0] == best
    assert emulated[1:] == digests(native, isa=best)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates x86-64 CPUs")
def test_forcing_what_the_cpu_lacks_is_an_error(native: Path) -> None:
    emulator = (program("qemu-x86_64"), "-cpu", "Nehalem")
    done = programs.run([*emulator, native / "digest"], env={**os.environ, "RNNFAST_ISA": "x86_64_v3"})
    assert done.returncode == 1
    assert "RNNFAST_ISA" in done.stderr


# --- the package ---


def test_the_sdist_has_what_a_build_needs_and_no_litter(package: Package) -> None:
    with tarfile.open(package.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CMakeLists.txt", "LICENSE", "README.md", "csrc/kernels.cpp", "tests/test_build.py"} <= names
    assert not [name for name in names if re.search(r"\.(so|o|pyc|whl)$|^(build|dist|\.git)/", name)]


def test_the_wheel_is_small_and_holds_only_the_package(package: Package, tmp_path: Path) -> None:
    wheel = package.wheel
    assert wheel.stat().st_size < 1_000_000
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (module,) = [name for name in names if name.startswith("rnnfast/_core.") and name.endswith(".so")]
        archive.extract(module, tmp_path)
    assert {"rnnfast/__init__.py", "rnnfast/_core.pyi", "rnnfast/py.typed"} <= set(names)
    assert all(re.match(r"rnnfast(-[^/]+\.dist-info)?/", name) for name in names)
    assert not [name for name in names if name.endswith((".h", ".a", ".cmake", ".pyc"))]
    assert not run(program("nm"), tmp_path / module).strip(), "the module is not stripped"
