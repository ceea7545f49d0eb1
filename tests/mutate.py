"""How many wrong kernels do the C++ tests notice?

    python tests/mutate.py [numbers of mutations]

Makes one deliberate mistake after another in a copy of csrc/kernel, builds the guard and the fuzz program for one
instruction set of x86-64, and says for each mistake whether they fail. Takes half an hour or more; not part of the
tests.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).resolve().parents[1]
TIMEOUT = 300  # seconds, where a program without a mistake takes some 20 to 160
ISA, FLAGS = "x86_64_v3", ["-march=x86-64-v3", "-mprefer-vector-width=256"]
KERNEL_FLAGS = ["-ffp-contract=off", "-fno-math-errno", "-fno-exceptions", "-fno-rtti"]
COMMON = [os.environ.get("CXX", "g++"), "-std=c++17", "-O1", "-pthread"]


class Mutation(NamedTuple):
    file: str
    before: str  # text that occurs in it; at its first occurrence comes
    after: str
    harmless: str = ""  # why no result changes, where that is known


MUTATIONS = [Mutation(*row) for row in (
    ("cell_lstm.h", "fma(f, prev.c, i * g)", "fma(f, prev.c, i * o)"),
    ("cell_lstm.h", "d_c * prev.c * d_sigmoid(f)", "d_c * prev.c * d_sigmoid(i)"),
    ("cell_lstm.h", "{splat(T(0)), d_c * f}", "{splat(T(0)), d_c}"),
    ("cell_gru.h", "d.h * (prev.h - n) * d_sigmoid(z)", "d.h * (n - prev.h) * d_sigmoid(z)"),
    ("cell_gru.h", "fma(r, hn, a[2])", "fma(z, hn, a[2])"),
    ("cell_rnn.h", "h > splat(T(0)) ? d.h", "h >= splat(T(0)) ? d.h"),
    ("math.h", "0x1.62e4p-1f", "0x1.62e2p-1f"),
    ("simd.h", "_mm256_max_ps(splat(bound), x)", "_mm256_max_ps(x, splat(bound))"),
    ("math.h", "at_most(x ^ sign, Constants<T>::tanh_high)", "at_most(x ^ sign, T(4))"),
    ("gemm.h", "k < k_size; ++k) {\n    fetch", "k < k_size - 1; ++k) {\n    fetch"),
    ("gemm.h", "most > left", "most > left + 1"),
    ("gemm.h", "return tile + 1 == tiles ? rows :", "return tile + 1 == tiles ? max(1, rows - 1) :"),
    ("gemm.h", "valid = min(width, out_size - at)", "valid = width"),
    ("gemm.h", "add ? sums[r][p] + load_part(to, valid)", "add ? sums[r][p] + load(to)",
     "to add is asked for only where rows are the engine's own, padded to whole vectors: every lane is valid"),
    ("gemm.h", "min(width, units - p * width), min(width, k_size - k)", "width, min(width, k_size - k)"),
    ("gemm.h", "if (unit + u < units)", "if (true)"),
    ("gemm.h", "const bool full = inputs - k >= together * width;", "const bool full = inputs - k > 0;"),
    ("gemm.h", "min(panels.last, inputs / width) - p", "min(panels.last, panels_of<T>(inputs)) - p"),
    ("gemm.h", "u / width * da_stride + u % width", "u % width"),
    ("gemm.h", "a[columns[g] * width]", "a[g * width]"),
    ("gemm.h", "add ? sums[v] + load_part", "false ? sums[v] + load_part"),
    ("backward.h", "d_products(s, of_h) + rows.first * da_row", "d_products(s, of_h)"),
    ("backward.h", "rows > 0 && rows <= most", "rows <= most"),
    ("gemm.h", "transpose_square<T, true>", "transpose_square<T, false>"),
    ("gemm.h", "vec<T>{};\n    accumulate<Map, height", "vec<T>{} + T(1e-7);\n    accumulate<Map, height"),
    ("schedule.h", "sequence_[b].count - 1 - row_[row].order", "steps_ - 1 - row_[row].order"),
    ("schedule.h", "row_[s.last].later = number", "row_[number].later = number"),
    ("schedule.h", "reverse ? row_[row].later : row_[row].earlier", "row_[row].earlier"),
    ("schedule.h", "if (b_[middle] < b)", "if (b_[middle] <= b)"),
    ("layout.h", "sums[C::h_columns::at(g)] += load_part(b_hh", "sums[C::x_columns::at(g)] += load_part(b_hh"),
    ("layout.h", "ceil_div(192, max(1, batch))", "ceil_div(191, max(1, batch))"),
    ("layout.h", "T(1 / (1 - p))", "T(1)"),
    ("layout.h", "out + g * units, load(panel", "out + g * width, load(panel"),
    ("layout.h", "dense + (r - first) * Vectors", "dense + r * Vectors"),
    ("layout.h", "own.last == n.panels && own.size() > 0", "own.first == 0 && own.size() > 0"),
    ("forward.h", "steps = schedule_.count(b);", "steps = this->steps();"),
    ("forward.h", "j % segment_steps(pass_) == 0", "j % segment_steps(pass_) == 1"),
    ("forward.h", "layer.h0 && !zero ? load_part(layer.h0 + at, valid)", "layer.h0 && !zero ? load(layer.h0 + at)"),
    ("forward.h", "h + row[j].before + unit", "h + row[0].before + unit"),
    ("forward.h", "saved_part + (j * C::saved + i) * width", "saved_part + i * width"),
    ("gemm.h", "left -= width, at += panel_stride", "left -= width"),
    ("forward.h", "store_part(row[j].y + unit, next.h.of[j], valid)", "store<T>(row[j].y + unit, next.h.of[j])"),
    ("forward.h", "size = min(step.layer.n.outputs, last) - first", "size = last - first"),
    ("forward.h", "step.rows[r].after + first", "step.rows[r].before + first"),
    ("backward.h", "if (s > 0 || layer.d_h0 || splits())", "if (s > 0 || splits())"),
    ("backward.h", "if (layer.d_y.data) d.h += ", "if (layer.d_y.data) d.h = "),
    ("backward.h", "for (int64_t j = k; j < min(count, k + 16); ++j)", "for (int64_t j = k; j < k + 16; ++j)"),
    ("backward.h", "count, last < steps)", "count, false)"),
    # options
    ("activations.h", "fma(alpha, x, beta), T(0), T(1)", "fma(alpha, x, beta), T(0), T(2)"),
    ("activations.h", "sizeof(T) == 4 ? 9 : 18", "sizeof(T) == 4 ? 8 : 18"),
    ("activations.h", "x <= zero ? alpha * exp(x)", "x < zero ? alpha * exp(x)"),
    ("cell.h", "x == inside ? d : (x != x ? x : vec<T>{})", "x == inside ? d : vec<T>{}"),
    ("cell_lstm.h", "fma(unit.peephole(2), c, a_o)", "fma(unit.peephole(2), prev.c, a_o)"),
    ("cell_lstm.h", "unit.coupled_gates ? d_c * g - d_f : d_c * g", "d_c * g"),
    ("cell_gru.h", "da[3] = unit.reset_after ? d_n * r : d_n;", "da[3] = d_n * r;"),
    ("options.h", "saved[C::saved - 1] = next.c;", ""),
    ("options.h", "fma(splat(share), before, (1 - share) * next)", "fma(splat(share), next, (1 - share) * before)"),
    ("options.h", "if (l + 1 == spec->num_layers)", "if (l == 0)"),
    ("layer_norm.h", "sums[p % vectors] +=", "sums[0] +="),
    ("layer_norm.h", "p + 1 < panels ? square :", "true ? square :"),
    ("schedule.h", "reverse ? s.cut_late : s.cut", "s.cut"),
    ("schedule.h", "if (cut) restarts_[1]", "if (false) restarts_[1]"),
    ("layout.h", "* size_of(pass.spec, l);", "* size_of(pass.spec, layer);"),
    ("forward.h", "const V h = load_part(layer.operand + row.before", "const V h = load_part(layer.h + row.before"),
    ("backward.h", "if (s > 0 || layer.d_h0 || splits())", "if (s > 0 || layer.d_h0)"),
    ("backward.h", "to_initial ? d : V{}", "V{}"),
    ("backward.h", "s < pass_.steps && !schedule_", "s < pass_.steps - 1 && !schedule_"),
    ("backward.h", "(2 * gates + 1) * width, n.units, g.bias_ln_c", "2 * gates * width, n.units, g.bias_ln_c"),
)]  # fmt: skip


def build_common(folder: Path) -> list[Path]:
    objects = []
    programs = [SOURCE / "tests/cpp" / f"{name}.cpp" for name in ("guard", "fuzz")]
    for path in (*(SOURCE / "csrc").glob("*.cpp"), *programs):
        if path.name in ("bindings.cpp", "kernels.cpp"):
            continue
        target = folder / f"{path.stem}.o"
        defines = [f"-DRNNFAST_ISAS=ISA({ISA})", "-ffp-contract=off"]
        subprocess.run([*COMMON, *defines, f"-I{SOURCE / 'csrc'}", "-c", path, "-o", target], check=True)
        objects.append(target)
    return objects


def verdict(folder: Path, objects: list[Path]) -> list[str]:
    """Builds the kernels in `folder` and runs both programs; which of them failed, or did not come to an end."""
    kernels = folder / "kernels.o"
    flags = [*KERNEL_FLAGS, *FLAGS, f"-DRNNFAST_ISA_NAME={ISA}"]
    subprocess.run([*COMMON, *flags, "-c", folder / "csrc/kernels.cpp", "-o", kernels], check=True)
    failed = []
    (folder / "empty").mkdir(exist_ok=True)
    for name, arguments in (("guard", [ISA]), ("fuzz", [folder / "empty", "1500"])):
        other = "fuzz.o" if name == "guard" else "guard.o"
        program = folder / name
        parts = [o for o in objects if o.name != other]
        subprocess.run([*COMMON, *parts, kernels, "-o", program], check=True)
        try:
            if subprocess.run([program, *arguments], capture_output=True, timeout=TIMEOUT).returncode:
                failed.append(name)
        except subprocess.TimeoutExpired:
            failed.append(f"time-out of {name}")
    return failed


def has_isa() -> bool:
    if platform.machine() != "x86_64":
        return False
    flags = re.search(r"^flags\s*:(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return flags is not None and {"avx2", "fma", "bmi2"} <= set(flags.group(1).split())


def main() -> None:
    if not has_isa():
        sys.exit(f"needs Linux on a CPU with {ISA}: the mistakes are built for this one instruction set")
    chosen = [int(number) for number in sys.argv[1:]] or range(len(MUTATIONS))
    verdicts: Counter[str] = Counter()
    programs: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        objects = build_common(folder)
        shutil.copytree(SOURCE / "csrc", folder / "csrc")
        if failed := verdict(folder, objects):
            sys.exit(f"without a mistake there is one already: {failed}")
        for number in chosen:
            file, before, after, harmless = MUTATIONS[number]
            path = folder / "csrc/kernel" / file
            text = path.read_text(encoding="utf-8")
            if before not in text:
                sys.exit(f"{file} no longer has: {before}")
            path.write_text(text.replace(before, after, 1), encoding="utf-8")
            failed = verdict(folder, objects)
            path.write_text(text, encoding="utf-8")
            programs.update(failed)
            verdicts["caught" if failed else "harmless" if harmless else "missed"] += 1
            found = ", ".join(failed) or (f"CHANGES NO RESULT: {harmless}" if harmless else "NOT CAUGHT")
            print(f"{number:3} {file:12} {found:16} {before!r} -> {after!r}", flush=True)
    by = ", ".join(f"{count} by {name}" for name, count in sorted(programs.items()))
    print(f"{verdicts['caught']} of {len(chosen) - verdicts['harmless']} caught ({by})", end="; ")
    print(f"{verdicts['harmless']} of those that change no result")


if __name__ == "__main__":
    main()
