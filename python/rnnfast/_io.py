"""Layers in files. Neither format can run code when it is read: pickles are never used."""

from __future__ import annotations

import inspect
import io
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from . import _check
from ._check import Array, Shape
from ._config import Config
from .activation import Activation
from .layers import GRU, LSTM, RNN, Layer

FORMAT = 1  # raised when a reader of this version could misunderstand a file
KEY = "rnnfast"  # the .npz member, or the entry of the safetensors metadata, that holds the configuration as JSON
CLASSES: dict[str, type[Layer[Any]]] = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}

MOST_TEXT = 1 << 20  # bytes of a configuration, or of another element
MOST_HEADER = 10_000  # bytes, as NumPy allows

PathLike = str | os.PathLike[str]


def save(path: PathLike, layer: Layer[Any]) -> None:
    """Writes a layer, its parameters under PyTorch's names and its configuration, to a .npz or .safetensors file.

    Raises ValueError for another suffix, TypeError if `layer` is not an RNN, LSTM or GRU, ImportError for
    .safetensors where that library is missing: pip install 'rnnfast[safetensors]'.
    """
    target = _check.weights_path(path)
    _check.savable(layer, Layer)
    config = layer._config
    description = {"format": FORMAT, "layer": config.class_name, "arguments": config.arguments()}
    text = json.dumps(description, default=asdict)  # of an Activation
    if target.suffix == ".npz":
        arrays: dict[str, Any] = {**layer.parameters, KEY: np.array(text)}
        np.savez(target, **arrays)
    else:
        safetensors_numpy().save_file(dict(layer.parameters), target, metadata={KEY: text})


def load(path: PathLike) -> Layer[Any]:
    """Makes the layer again that `save` wrote.

    Weights from elsewhere, without a configuration, go into a layer by `load_state_dict`.

    Raises ValueError for a file that `save` did not write or that is damaged, FileNotFoundError where there is none,
    ImportError as `save`.
    """
    source = _check.weights_path(path)
    if source.suffix == ".safetensors":
        return _made_from(source, *_read_safetensors(source))
    with NpzFile(source) as file:
        # Whether all fits is known before memory is used for it.
        config = _described(source, file.text, file.stand_ins)
        return _made_from(source, file.text, file.read(config.parameter_shapes()))


def _described(source: Path, text: str | None, arrays: Mapping[str, Array]) -> Config:
    """The configuration in a file, if the file's arrays are the parameters of such a layer: a few bytes may describe a
    layer that would fill the memory."""
    if text is None:
        raise ValueError(f"{source} holds no configuration: it was not written by rnnfast.save; use load_state_dict")
    if len(text) > MOST_TEXT:
        raise ValueError(f"{source} has a configuration of {len(text)} letters")
    try:
        name, arguments = _parsed(text)
        inspect.signature(CLASSES[name]).bind(**arguments)  # the class knows its own options
        config = Config.from_arguments(name.lower(), arguments)
        _check.state_dict(name, arrays, config.parameter_shapes(), config.numpy_dtype, True)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _unusable(source, error) from error
    return config


def _made_from(source: Path, text: str | None, arrays: Mapping[str, Array]) -> Layer[Any]:
    _described(source, text, arrays)
    try:
        name, arguments = _parsed(str(text))
        layer = CLASSES[name](**arguments)
        layer.load_state_dict(arrays)
    except (TypeError, ValueError) as error:
        raise _unusable(source, error) from error
    return layer


def _activation_or_mapping(values: dict[str, Any]) -> Any:
    return Activation(**values) if values.keys() == {"name", "alpha", "beta"} else values


def _unusable(source: Path, error: Exception) -> ValueError:
    return ValueError(f"{source} is not a layer that this version can load: {error}")


def _parsed(text: str) -> tuple[str, dict[str, Any]]:
    description = json.loads(text, object_hook=_activation_or_mapping)
    if not isinstance(description, Mapping) or description.get("format") != FORMAT:
        raise ValueError("unknown format")
    name, arguments = description["layer"], description["arguments"]
    if name not in CLASSES:
        raise ValueError(f"unknown layer {name!r}")
    return name, arguments


class NpzFile:
    """A .npz file that may be damaged or hostile: only the headers of its members are read when it is opened.

    A member has to be as long as the array that its header describes, and no longer than what is there can become. As
    little memory as the members that are asked for need is used, whatever the others claim.
    """

    INFLATION = 1032  # DEFLATE makes at most so many bytes from one

    def __init__(self, source: Path) -> None:
        self._source = source
        self._members: dict[str, zipfile.ZipInfo] = {}
        #: An array of each member's shape and dtype that takes no memory.
        self.stand_ins: dict[str, Array] = {}
        self._stream = open(source, "rb")  # noqa: SIM115 (closed by __exit__)
        try:
            with _damage_told(source):
                self._archive = self._opened()
                self._read_headers()
                self.text = self._read_text()
        except BaseException:
            self._stream.close()
            raise

    def read(self, shapes: Mapping[str, Shape]) -> dict[str, Array]:
        """The members of these names and shapes; for another shape, and for a name not asked for, its stand-in."""
        arrays = dict(self.stand_ins)
        with _damage_told(self._source):
            for name, shape in shapes.items():
                if name in arrays and arrays[name].shape == shape:
                    arrays[name] = self._read(name)
        return arrays

    def __enter__(self) -> NpzFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()
        self._stream.close()

    def _opened(self) -> zipfile.ZipFile:
        if self._stream.read(6) == b"\x93NUMPY":
            raise ValueError("it holds a single array")
        return zipfile.ZipFile(self._stream)

    def _read_headers(self) -> None:
        there = os.fstat(self._stream.fileno()).st_size
        infos = self._archive.infolist()
        if sum(info.compress_size for info in infos) > there:
            raise ValueError("its members claim more bytes than it has")
        for info in infos:
            name = info.filename.removesuffix(".npy")
            if name in self._members:
                raise ValueError(f"it has two members {name}")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{name} is compressed by another method than DEFLATE")
            if info.file_size > self.INFLATION * info.compress_size:
                raise ValueError(f"{name} claims {info.file_size} bytes, which {info.compress_size} cannot become")
            with self._archive.open(info) as member:
                shape, dtype = _npy_header(member)
                header = member.tell()
            if info.file_size != header + math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name} has {info.file_size} bytes, which is not what {dtype} {list(shape)} needs")
            if dtype.itemsize > MOST_TEXT:
                raise ValueError(f"{name} has elements of {dtype.itemsize} bytes")
            self._members[name], self.stand_ins[name] = info, np.broadcast_to(np.zeros((), dtype), shape)

    def _read_text(self) -> str | None:
        if KEY not in self._members:
            return None
        if self.stand_ins.pop(KEY).size != 1:
            raise ValueError("its configuration is not one text")
        return str(self._read(KEY))

    def _read(self, name: str) -> Array:
        with self._archive.open(self._members[name]) as member:
            array: Array = np.lib.format.read_array(member, allow_pickle=False)
            member.read()  # to the end, where the checksum is compared
        return array


def _npy_header(member: IO[bytes]) -> tuple[Shape, np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"a member has version {version} of NumPy's format")
    # NumPy would read as much as the file claims before it looks at how much that is.
    length = member.read(2 * version[0])
    claimed = int.from_bytes(length, "little")
    if claimed > MOST_HEADER:
        raise ValueError(f"a member's header claims {claimed} bytes")
    shape, _, dtype = readers[version](io.BytesIO(length + member.read(claimed)))
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded when allow_pickle=False")
    return shape, dtype


@contextmanager
def _damage_told(source: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # a damaged zip file raises anything: BadZipFile, zlib.error, EOFError, KeyError ...
        raise ValueError(f"{source} is not a readable .npz file: {error}") from error


def _read_safetensors(source: Path) -> tuple[str | None, dict[str, Array]]:
    library = safetensors_numpy()
    if not source.is_file():
        raise FileNotFoundError(f"no such file: {source}")
    try:
        with library.safe_open(source, framework="numpy") as file:
            metadata = file.metadata() or {}
            # Not larger than the file: the library compares its header's claims with that.
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator there)
    except Exception as error:  # the library raises SafetensorError, a direct subclass of Exception
        raise ValueError(f"{source} is not a readable .safetensors file: {error}") from error
    return metadata.get(KEY), arrays


def safetensors_numpy() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("a .safetensors file needs that library: pip install 'rnnfast[safetensors]'") from error
    return safetensors.numpy
