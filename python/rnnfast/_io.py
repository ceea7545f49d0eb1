"""Layers in files. Neither format can run code when it is read: pickles are never used."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from . import _check
from ._check import Array
from .activation import Activation
from .layers import GRU, LSTM, RNN, Layer

FORMAT = 1  # raised when a reader of this version could misunderstand a file
KEY = "rnnfast"  # the .npz member, or the entry of the safetensors metadata, that holds the configuration as JSON
CLASSES: dict[str, type[Layer[Any]]] = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}

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
    text, arrays = _read_npz(source) if source.suffix == ".npz" else _read_safetensors(source)
    if text is None:
        raise ValueError(f"{source} holds no configuration: it was not written by rnnfast.save; use load_state_dict")
    try:
        layer = _made_from(json.loads(text, object_hook=_activation_or_mapping))
        layer.load_state_dict(arrays)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not a layer that this version can load: {error}") from error
    return layer


def _activation_or_mapping(values: dict[str, Any]) -> Any:
    return Activation(**values) if values.keys() == {"name", "alpha", "beta"} else values


def _made_from(description: Any) -> Layer[Any]:
    if not isinstance(description, Mapping) or description.get("format") != FORMAT:
        raise ValueError("unknown format")
    name, arguments = description["layer"], description["arguments"]
    if name not in CLASSES:
        raise ValueError(f"unknown layer {name!r}")
    return CLASSES[name](**arguments)


def _read_npz(source: Path) -> tuple[str | None, dict[str, Array]]:
    try:
        with open(source, "rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            with file:
                arrays = {name: file[name] for name in file.files}
    except (FileNotFoundError, IsADirectoryError, PermissionError, MemoryError):
        raise
    except Exception as error:  # a damaged zip file raises anything: BadZipFile, zlib.error, EOFError, KeyError ...
        raise ValueError(f"{source} is not a readable .npz file: {error}") from error
    text = arrays.pop(KEY, None)
    return (None if text is None else str(text)), arrays


def _read_safetensors(source: Path) -> tuple[str | None, dict[str, Array]]:
    library = safetensors_numpy()
    if not source.is_file():
        raise FileNotFoundError(f"no such file: {source}")
    try:
        with library.safe_open(source, framework="numpy") as file:
            metadata = file.metadata() or {}
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
