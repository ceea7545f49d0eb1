"""Files from strangers: an error that says what is wrong, before memory is used, and never code that runs."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import programs
import rnnfast as rf

SUFFIXES = [".npz", ".safetensors"]


def description(**changes: Any) -> str:
    arguments = {"input_size": 3, "hidden_size": 4, **changes}
    return json.dumps({"format": 1, "layer": "GRU", "arguments": arguments})


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=True)
    return stream.getvalue()


def npy_claiming(shape: tuple[int, ...], body: bytes = b"") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue() + body


def parameters(**changes: bytes) -> dict[str, bytes]:
    layer = rf.GRU(3, 4, seed=0)
    members = {name: npy(array) for name, array in layer.parameters.items()}
    return {"rnnfast": npy(np.array(description())), **members, **changes}


def write(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name + ".npy", content)
    return path


def lie_about_size(path: Path, name: str, size: int) -> None:
    """Sets the uncompressed size in the archive's directory."""
    data = bytearray(path.read_bytes())
    directory = data.rindex(b"PK\x01\x02", 0, data.rindex(name.encode() + b".npy"))
    data[directory + 24 : directory + 28] = struct.pack("<I", size)
    path.write_bytes(data)


def huge_config(path: Path) -> None:
    write(path, parameters(rnnfast=npy(np.array(description(hidden_size=300_000)))))


def many_layers(path: Path) -> None:
    write(path, parameters(rnnfast=npy(np.array(description(hidden_size=3000, num_layers=10_000)))))


def claimed_shape(path: Path) -> None:
    write(path, parameters(weight_hh_l0=npy_claiming((12, 1 << 38))))


def claimed_length(path: Path) -> None:
    write(path, parameters())
    lie_about_size(path, "weight_hh_l0", 0xF0000000)


def claimed_header(path: Path) -> None:
    magic, size = np.lib.format.magic(2, 0), 1 << 30
    write(path, parameters(weight_hh_l0=magic + struct.pack("<I", size) + b" " * (128 << 20)), zipfile.ZIP_DEFLATED)


def bomb(path: Path) -> None:
    write(path, parameters(weight_hh_l0=npy_claiming((1 << 25,), bytes(128 << 20))), zipfile.ZIP_DEFLATED)


def bomb_of_text(path: Path) -> None:
    write(path, parameters(rnnfast=npy(np.array("x" * (32 << 20)))), zipfile.ZIP_DEFLATED)


def bomb_of_texts(path: Path) -> None:
    write(path, parameters(rnnfast=npy(np.zeros(100 << 20, "S1"))), zipfile.ZIP_DEFLATED)


def bomb_behind_an_array(path: Path) -> None:
    good = parameters()
    write(path, {**good, "bias_hh_l0": good["bias_hh_l0"] + bytes(128 << 20)}, zipfile.ZIP_DEFLATED)


def bomb_that_nobody_asked_for(path: Path) -> None:
    write(path, parameters(extra=npy_claiming((32 << 20,), bytes(128 << 20))), zipfile.ZIP_DEFLATED)


def bomb_by_another_method(path: Path) -> None:
    write(path, parameters(weight_hh_l0=npy_claiming((1 << 25,), bytes(128 << 20))), zipfile.ZIP_BZIP2)


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a configuration of 2 TB": (huge_config, "size mismatch for weight_ih_l0"),
    "a configuration of 10,000 layers": (many_layers, "Missing key"),
    "a header that claims terabytes": (claimed_shape, "is not what float32"),
    "a directory that claims gigabytes": (claimed_length, "cannot become"),
    "a header of a gigabyte": (claimed_header, "header claims 1073741824 bytes"),
    "zeros in place of a parameter": (bomb, "size mismatch for weight_hh_l0"),
    "zeros as configuration": (bomb_of_text, "has elements of"),
    "zeros behind an array": (bomb_behind_an_array, "is not what float32"),
    "zeros under a name of no parameter": (bomb_that_nobody_asked_for, 'Unexpected key(s) in state_dict: "extra"'),
    "many texts as configuration": (bomb_of_texts, "its configuration is not one text"),
    "another compression": (bomb_by_another_method, "another method than DEFLATE"),
}

# Loads the file with 100 MB more than the process has by then.
LOAD = """
import resource, sys
import numpy as np
import rnnfast as rf
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (100 << 20),) * 2)
try:
    rf.load(sys.argv[1])
except ValueError as error:
    print(error)
"""


@pytest.mark.usefixtures("plain_memory")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_before_memory_is_used(tmp_path: Path, name: str) -> None:
    make, message = HOSTILE[name]
    path = tmp_path / "layer.npz"
    make(path)
    done = programs.run_code(LOAD, path)
    assert done.returncode == 0, done.stderr
    assert message in done.stdout
    assert len(done.stdout) < 4_000  # for people


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "layer.npz", parameters())
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("weight_hh_l0.npy", npy(np.zeros((12, 4), np.float32)))
    with pytest.raises(ValueError, match="two members weight_hh_l0"):
        rf.load(path)


def test_a_compressed_file_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "layer.npz", parameters(), zipfile.ZIP_DEFLATED)
    for name, array in rf.load(path).parameters.items():
        np.testing.assert_array_equal(array, rf.GRU(3, 4, seed=0).parameters[name])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_truncation_is_an_error(tmp_path: Path, suffix: str) -> None:
    if suffix == ".safetensors":
        pytest.importorskip("safetensors", reason="reads its format")
    path = tmp_path / f"layer{suffix}"
    rf.save(path, rf.GRU(3, 4, seed=0))
    whole = path.read_bytes()
    for size in range(0, len(whole), 23):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is not a readable"):
            rf.load(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_any_changed_byte_is_an_error_or_does_no_harm(tmp_path: Path, suffix: str) -> None:
    if suffix == ".safetensors":
        pytest.importorskip("safetensors", reason="reads its format")
    path = tmp_path / f"layer{suffix}"
    rf.save(path, rf.GRU(3, 4, seed=0))
    whole = path.read_bytes()
    for place in range(0, len(whole), 29):
        for change in (0x01, 0xFF):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :])
            with suppress(ValueError):
                rf.load(path)


def test_a_safetensors_file_cannot_describe_what_it_has_not(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy", reason="writes its format")
    path = tmp_path / "layer.safetensors"
    library.save_file(dict(rf.GRU(3, 4).parameters), path, metadata={"rnnfast": description(hidden_size=300_000)})
    with pytest.raises(ValueError, match="size mismatch for weight_ih_l0"):
        rf.load(path)
    library.save_file(dict(rf.GRU(3, 4).parameters), path, metadata={"rnnfast": description(more="x" * (2 << 20))})
    with pytest.raises(ValueError, match="has a configuration of"):
        rf.load(path)
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    with pytest.raises(ValueError, match="is not a readable"):
        rf.load(path)
