"""Checks of what users hand in. Every message that a user can meet is made here (those of `Stream.step`, which has no
time for it, in C++): it names the argument, says what was expected and what came, with both shapes where shapes
disagree."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Shape = tuple[int, ...]

MOST_LAYERS = 10_000
MOST_THREADS = 1024
MOST_NAMED = 20  # of the names or errors that one message lists
MOST_BYTES = 2**62  # products of sizes beyond this could overflow the engine's 64-bit arithmetic


class SupportsArray(Protocol):
    """A NumPy array, or what gives one: a CPU tensor of PyTorch, for instance."""

    def __array__(self) -> Any: ...


# --- arguments of constructors and settings ---


def size(name: str, value: object, least: int) -> int:
    number = _integer(name, value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def _integer(name: str, value: object) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {_described(value)}") from None


def hidden_size(value: object, num_layers: int) -> int | tuple[int, ...]:
    """A number for all layers, or a tuple of one for each."""
    if not isinstance(value, (tuple, list)):
        return size("hidden_size", value, 0)
    if len(value) != num_layers:
        raise ValueError(f"hidden_size must be one number or num_layers = {num_layers} numbers, got {len(value)}")
    return tuple(size(f"hidden_size[{layer}]", number, 1) for layer, number in enumerate(value))


def num_layers(value: object) -> int:
    number = size("num_layers", value, 1)
    if number > MOST_LAYERS:
        raise ValueError(f"num_layers must be at most {MOST_LAYERS}, got {number}")
    return number


def layer_size(weight_elements: int) -> None:
    if weight_elements * 8 >= MOST_BYTES:
        raise ValueError(
            f"input_size, hidden_size and num_layers are too large: the weights would have {weight_elements} elements"
        )


def flag(name: str, value: object) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {_described(value)}")


def probability(name: str, value: object) -> float:
    number = real(name, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name} must be a number in [0, 1], got {number!r}")
    return number


def real(name: str, value: object) -> float:
    if not isinstance(value, (bool, np.bool_, str, bytes)):
        try:
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            pass
    raise TypeError(f"{name} must be a number, got {_described(value)}")


def at_least(name: str, value: object, least: float) -> float:
    number = real(name, value)
    if not number >= least or math.isinf(number):
        raise ValueError(f"{name} must be a finite number of at least {least:g}, got {number!r}")
    return number


def finite(name: str, value: object) -> float:
    number = real(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, got {number!r}")
    return number


def positive(name: str, value: object) -> float:
    number = real(name, value)
    if not number > 0 or math.isinf(number):
        raise ValueError(f"{name} must be None or a positive number, got {number!r}")
    return number


def bound(name: str, value: object) -> float:
    """Infinity is a bound too: it only measures."""
    number = real(name, value)
    if not number >= 0:
        raise ValueError(f"{name} must be a number of at least 0, got {number!r}")
    return number


def choice(name: str, value: object, allowed: Sequence[str]) -> str:
    if isinstance(value, str) and value in allowed:
        return value
    raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def float_dtype(value: Any) -> str:
    try:
        dtype = np.dtype(value) if value is not None else None  # np.dtype(None) is float64
    except (TypeError, ValueError):
        dtype = None
    if dtype is not None and dtype in (np.float32, np.float64):
        return str(dtype.name)
    raise ValueError(f"dtype must be 'float32' or 'float64', got {value!r}")


def generator(seed: Any) -> np.random.Generator:
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        expected = "None, a non-negative integer or a numpy.random.Generator"
        raise type(error)(f"seed must be {expected}, got {_described(seed)}") from None


def num_threads(value: object) -> int:
    number = size("n", value, 1)
    if number > MOST_THREADS:
        raise ValueError(f"n must be at most {MOST_THREADS} threads, got {number}")
    return number


def isa(name: object, available: Sequence[str]) -> str:
    if isinstance(name, str) and name in available:
        return name
    raise ValueError(
        f"instruction set {name!r} is unknown or not supported by this CPU; available: {', '.join(available)}"
    )


def activation_parameter(function: str, letter: str, value: object, takes: Mapping[str, Any], required: object) -> Any:
    """alpha or beta of an activation: as given, or its default, or None where the function has none."""
    if letter not in takes:
        if value is not None:
            raise ValueError(f"the activation {function!r} has no {letter}, got {value!r}")
        return None
    if value is not None:
        number = real(letter, value)
        if not math.isfinite(number):
            raise ValueError(f"{letter} of the activation {function!r} must be finite, got {number!r}")
        return number
    if takes[letter] is required:
        raise ValueError(
            f"the activation {function!r} needs alpha and beta, since two forms of it are in use: "
            f"alpha=0.2, beta=0.5 (ONNX's default, Keras 2) and alpha=1/6, beta=0.5 (PyTorch, Keras 3)"
        )
    return takes[letter]


def direction_pair(name: str, value: Sequence[Any], bidirectional: bool) -> Sequence[Any]:
    if not bidirectional:
        raise ValueError(f"{name} must be one activation, got {len(value)}: a pair is for bidirectional layers")
    if len(value) != 2:
        raise ValueError(f"{name} must be one activation, or two for the two directions, got {len(value)}")
    return value


def zoneout_pair(value: Sequence[Any], lstm: bool) -> Sequence[Any]:
    if not lstm:
        raise TypeError(f"zoneout must be a number, that of h, got {len(value)}: only an LSTM has c")
    if len(value) != 2:
        raise ValueError(f"zoneout must be a number, or two for h and c, got {len(value)}")
    return value


def excluded(first: str, second: str, both: bool, reason: str = "they are two names of one thing") -> None:
    if both:
        raise ValueError(f"{first} and {second} exclude each other: {reason}")


def needs(name: str, what: str, there: bool) -> None:
    if not there:
        raise ValueError(f"{name} needs {what}")


def less_than(name: str, value: int, other_name: str, other: Any) -> None:
    if value >= other:
        raise ValueError(f"{name} must be less than {other_name} = {other}, got {value}")


def not_an_activation(name: str, value: object) -> str:
    return f"{name} must be the name of an activation or an Activation, got {_described(value)}"


# --- arrays ---


def _described(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    return f"a {type(value).__name__}"


def as_array(name: str, value: Any) -> Array:
    """The array itself, or the memory of what is like one; nothing is converted."""
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be ignored; pass its .data or .filled()")
    if hasattr(value, "detach") and hasattr(value, "numpy"):
        try:  # a tensor of PyTorch; detached, because one that requires a gradient refuses to become an array
            return np.asarray(value.detach().numpy())
        except (TypeError, RuntimeError) as error:
            raise TypeError(f"{name} is a tensor that cannot be a NumPy array: {error}") from None
    if hasattr(value, "__array__") or hasattr(value, "__array_interface__"):
        return np.asarray(value)
    raise TypeError(f"{name} must be a NumPy array, got {_described(value)}; numpy.asarray makes one")


def require_dtype(name: str, array: Array, dtype: np.dtype[Any]) -> None:
    if array.dtype == dtype:
        return
    hint = f'convert it with astype("{dtype}")'
    if array.dtype in (np.float32, np.float64):
        hint += f' or make the layer with dtype="{array.dtype.name}"'
    raise TypeError(f"{name} must be {dtype}, like the layer, got {array.dtype}; {hint}")


def require_shape(name: str, array: Array, shape: Shape, meaning: str) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape} ({meaning}), got {array.shape}")


def sequence(name: str, value: Any, features: int, dtype: np.dtype[Any], batch_first: bool) -> Array:
    """x of a layer: [T, B, I], [B, T, I] or [T, I]."""
    if hasattr(value, "batch_sizes") and hasattr(value, "sorted_indices"):
        raise TypeError(f"{name} must be padded, got a {type(value).__name__}; pass lengths= instead of packing")
    x = as_array(name, value)
    batched = f"(B, T, {features})" if batch_first else f"(T, B, {features})"
    if x.ndim not in (2, 3) or x.shape[-1] != features:
        raise ValueError(f"{name} must have shape {batched}, or (T, {features}) without a batch, got {x.shape}")
    require_dtype(name, x, dtype)
    return x


def call_size(name: str, steps: int, batch: int, width: int) -> None:
    if steps * batch * width * 8 >= MOST_BYTES:
        raise ValueError(
            f"{name} is too large: {steps} steps, batch {batch}, {width} values each exceed the address space"
        )


def rows_dense(array: Array) -> Array:
    """The array, or a copy where the last axis is not contiguous or elements are not aligned."""
    dense = array.shape[-1] <= 1 or array.strides[-1] == array.itemsize
    return array if dense and array.flags.aligned else np.array(array, order="C")


def all_dense(array: Array) -> Array:
    return array if array.flags.c_contiguous and array.flags.aligned else np.array(array, order="C")


def states(name: str, value: Any, count: int, class_name: str, per_layer: bool = False) -> tuple[Any, ...]:
    """A state cut into its arrays, or per-layer tuples of arrays: one, or (h, c) for an LSTM."""
    parts = "h" if count == 1 else "(h, c)"
    if count == 1:
        if per_layer or not isinstance(value, (tuple, list)):
            return (value,)
        raise TypeError(f"{name} of {class_name} must be one array {parts}, got a {type(value).__name__}")
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name} of {class_name} must be a tuple {parts} of two arrays, got {_described(value)}")
    if len(value) != count:
        raise ValueError(f"{name} of {class_name} must be a tuple {parts} of two arrays, got {len(value)} elements")
    return tuple(value)


def given(name: str, value: Any) -> Any:
    if value is None:
        raise TypeError(f"{name} must be an array, or for an LSTM two, got None")
    return value


def layer_states(name: str, value: Any, layers: int) -> Sequence[Any]:
    if not isinstance(value, (tuple, list)) or len(value) != layers:
        got = f"{len(value)} elements" if isinstance(value, (tuple, list)) else _described(value)
        raise ValueError(f"{name} must be a tuple of {layers} arrays, one for each layer, got {got}")
    return value


def state_array(name: str, value: Any, shape: Shape, dtype: np.dtype[Any]) -> Array:
    array = as_array(name, value)
    meaning = "layers * directions, batch, hidden" if len(shape) == 3 else "layers * directions, hidden"
    require_shape(name, array, shape, meaning)
    require_dtype(name, array, dtype)
    return array


def lengths(value: Any, steps: int, batch: int, batched: bool) -> NDArray[np.int64]:
    """A private int64 copy; the engine relies on its values."""
    if not batched:
        raise ValueError("lengths needs a batched x; cut an unbatched sequence with x[:length]")
    array = np.asarray(value) if isinstance(value, (list, tuple, int)) else as_array("lengths", value)
    require_shape("lengths", array, (batch,), "one for each row of the batch")
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"lengths must be integers, got {array.dtype}")
    if array.size and (int(array.min()) < 0 or int(array.max()) > steps):
        row = int(np.argmax((array < 0) | (array > steps)))
        raise ValueError(f"lengths must be between 0 and the number of steps {steps}, got {array[row]} in row {row}")
    return array.astype(np.int64)


def bool_array(name: str, value: Any, shape: Shape, meaning: str) -> Array:
    array = np.asarray(value) if isinstance(value, (list, tuple)) else as_array(name, value)
    require_shape(name, array, shape, meaning)
    if array.size and array.dtype != np.bool_:
        raise TypeError(f"{name} must be bool, got {array.dtype}")
    return array


def mask_is_used(name: str, value: Any, rate: float) -> None:
    if value is not None and not rate:
        option = name.removeprefix("masks.").removesuffix("_h").removesuffix("_c")
        raise ValueError(
            f"{name} is given, but the layer's {option if option == 'zoneout' else option + '_dropout'} is 0"
        )


def mask_list(name: str, value: Any, count: int) -> Sequence[Any]:
    if not isinstance(value, (tuple, list)) or len(value) != count:
        got = f"{len(value)}" if isinstance(value, (tuple, list)) else _described(value)
        raise ValueError(f"{name} must be a list of {count} arrays, got {got}")
    return value


def factors(name: str, value: Any, shape: Shape, dtype: np.dtype[Any]) -> Array:
    array = as_array(name, value)
    require_shape(name, array, shape, "factors for each row of the batch")
    require_dtype(name, array, dtype)
    return array


def masks(value: Any, expected: type) -> Any:
    if value is not None and not isinstance(value, expected):
        raise TypeError(f"masks must be a Masks, as tape.masks() returns it, got {_described(value)}")
    return expected() if value is None else value


def mask_seed(value: Any) -> int:
    number = size("masks.seed", value, 0)
    if number >= 2**64:
        raise ValueError(f"masks.seed must be less than 2**64, got {number}")
    return number


def gradient(name: str, value: Any, shape: Shape, dtype: np.dtype[Any]) -> Array:
    array = as_array(name, value)
    require_shape(name, array, shape, "the shape of output")
    require_dtype(name, array, dtype)
    return array


def stream_rows(rows: Any, batch: int) -> Any:
    """Something that indexes the batch axis: an integer, integers, or a bool mask [batch]."""
    try:
        array = np.asarray(rows)
    except ValueError:  # arrays of several shapes: a state, perhaps
        raise TypeError(f"rows must be integers or a mask of bools, got {_described(rows)}") from None
    if array.dtype == np.bool_ and array.ndim == 1:
        require_shape("rows", array, (batch,), "one for each stream")
    elif array.size and array.dtype.kind not in "iu":
        raise TypeError(f"rows must be integers or a mask of bools, got {_described(rows)}")
    elif array.ndim > 1:
        raise ValueError(f"rows must have at most one axis, got shape {array.shape}")
    elif array.size and not (-batch <= int(array.min()) and int(array.max()) < batch):
        raise IndexError(f"rows must be within the batch of {batch} streams, got {rows!r}")
    return array if array.size else slice(0, 0)


# --- parameters ---


def parameter_value(name: str, value: Any, shape: Shape, dtype: np.dtype[Any]) -> Array:
    """What may be copied into a parameter. Other floating-point types are converted by the copy, as PyTorch does."""
    array = np.asarray(value) if isinstance(value, (list, tuple, float)) else as_array(name, value)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    numbers = isinstance(value, (list, tuple)) and array.dtype.kind in "iu"  # written without a point
    if array.dtype.kind != "f" and not numbers:
        raise TypeError(f"{name} must be {dtype}, or another floating-point type, got {array.dtype}")
    return array


def unknown_parameter(class_name: str, name: object, known: Iterable[str]) -> str:
    return f"{class_name} has no parameter {name!r}; it has {', '.join(known)}"


def state_dict(
    class_name: str, mapping: Any, shapes: Mapping[str, Shape], dtype: np.dtype[Any], strict: bool
) -> tuple[dict[str, Array], list[str], list[str]]:
    """Values to load, missing keys, unexpected keys. All errors go into one message, in PyTorch's words."""
    if not isinstance(mapping, Mapping):
        raise TypeError(f"state_dict must be a mapping from names to arrays, got {_described(mapping)}")
    missing = [name for name in shapes if name not in mapping]
    unexpected = [str(name) for name in mapping if name not in shapes]
    values: dict[str, Array] = {}
    errors = []
    if strict and missing:
        errors.append(f"Missing key(s) in state_dict: {_first(_quoted(missing), ', ')}.")
    if strict and unexpected:
        errors.append(f"Unexpected key(s) in state_dict: {_first(_quoted(unexpected), ', ')}.")
    for name, shape in shapes.items():
        if name not in mapping:
            continue
        try:
            array = as_array(name, mapping[name])
            if array.shape != shape:
                errors.append(
                    f"size mismatch for {name}: copying a param with shape {array.shape} from checkpoint, "
                    f"the shape in current model is {shape}."
                )
            else:
                values[name] = parameter_value(name, array, shape, dtype)
        except (TypeError, ValueError) as error:
            errors.append(f"{error}.")
    if errors:
        raise ValueError(f"Error(s) in loading state_dict for {class_name}:\n\t" + _first(errors, "\n\t"))
    return values, missing, unexpected


def _quoted(names: Sequence[str]) -> list[str]:
    return [f'"{name}"' for name in names]


def _first(texts: Sequence[str], separator: str) -> str:
    """As many as anybody reads."""
    shown, more = texts[:MOST_NAMED], len(texts) - MOST_NAMED
    return separator.join([*shown, f"and {more} more"] if more > 0 else shown)


# --- training ---


def same_layer(tape_of: object, layer: object) -> None:
    if tape_of is not layer:
        raise ValueError(f"tape comes from another layer's forward ({tape_of!r}), not from this one's ({layer!r})")


def tape(value: object, expected: type) -> None:
    if not isinstance(value, expected):
        raise TypeError(f"tape must be what forward returned last, a {expected.__name__}, got {_described(value)}")


def named_arrays(name: str, value: Any) -> dict[str, Array]:
    """Parameters, or gradients, by name: a mapping, or what has `.parameters`; None stands for no gradient."""
    if not isinstance(value, Mapping):
        value = getattr(value, "parameters", value)
    if not isinstance(value, Mapping):
        hint = "; give its .layer" if hasattr(value, "layer") else ""
        expected = "a mapping from names to arrays, or have .parameters"
        raise TypeError(f"{name} must be {expected}, got {_described(value)}{hint}")
    for key, array in value.items():
        if array is not None and not isinstance(array, np.ndarray):
            raise TypeError(f"{name}[{key!r}] must be a NumPy array, got {_described(array)}")
    return {str(key): array for key, array in value.items() if array is not None}


def changeable(name: str, arrays: Mapping[str, Array]) -> None:
    """What is updated in place has to be writable and of a floating-point type."""
    for key, array in arrays.items():
        if array.dtype.kind != "f":
            raise TypeError(f"{name}[{key!r}] must be of a floating-point type, got {array.dtype}")
        if not array.flags.writeable:
            raise ValueError(f"{name}[{key!r}] is read-only and cannot be changed in place")


def gradients_for(params: Mapping[str, Array], grads: Any) -> dict[str, Array]:
    given = getattr(grads, "parameters", grads)
    arrays = named_arrays("grads", given)
    missing = [name for name in params if name not in given]
    if missing:
        raise ValueError(f"grads has no gradient of {', '.join(missing)}; None stands for one to be left out")
    for name, parameter in params.items():
        if name in arrays and arrays[name].shape != parameter.shape:
            raise ValueError(f"grads[{name!r}] must have shape {parameter.shape}, got {arrays[name].shape}")
    return {name: arrays[name] for name in params if name in arrays}


def betas(value: Any) -> tuple[float, float]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"betas must be two numbers, got {value!r}")
    first, second = (real("betas", beta) for beta in value)
    if not (0 <= first < 1 and 0 <= second < 1):
        raise ValueError(f"betas must be two numbers in [0, 1), got {value!r}")
    return first, second


def optimizer_state(
    value: Any, options: Sequence[str], buffers: Sequence[str], shapes: Mapping[str, Shape]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    if not isinstance(value, Mapping) or set(value) != {"options", "state"}:
        raise TypeError(f"state_dict must be what state_dict() returned, got {_described(value)}")
    if set(value["options"]) != set(options):
        raise ValueError(f"state_dict has options {sorted(value['options'])}, expected {sorted(options)}")
    if set(value["state"]) != set(shapes):
        raise ValueError(f"state_dict has parameters {sorted(value['state'])}, expected {sorted(shapes)}")
    for name, entry in value["state"].items():
        size(f"state_dict step of {name}", entry.get("step"), 0)
        present = [key for key in buffers if key in entry]
        if set(entry) != {"step", *present} or (present and len(present) != len(buffers)):
            raise ValueError(f"state_dict has entries {sorted(entry)} for {name}, expected {sorted(buffers)}")
        for key in present:
            if np.shape(entry[key]) != shapes[name]:
                raise ValueError(
                    f"state_dict: {key} of {name} must have shape {shapes[name]}, got {np.shape(entry[key])}"
                )
    return dict(value["options"]), dict(value["state"])


def norm_type(value: object) -> float:
    number = real("norm_type", value)
    if not number > 0:
        raise ValueError(f"norm_type must be a positive number or inf, got {number!r}")
    return number


def can_stream(class_name: str, bidirectional: bool) -> None:
    if bidirectional:
        raise ValueError(f"a bidirectional {class_name} has no stream: its second direction starts at the last step")


# --- files ---


def reversible(value: object, expected: tuple[type, ...]) -> None:
    if not isinstance(value, expected):
        raise TypeError(f"layer must be an RNN, LSTM or GRU or a Frozen of one, got {_described(value)}")
    layer: Any = value
    if layer.num_layers != 1 or layer.bidirectional:
        got = f"num_layers={layer.num_layers}, bidirectional={layer.bidirectional}"
        raise ValueError(f"layer must have one layer and one direction to be read backwards, got {got}")


def weights_path(path: Any) -> Path:
    try:
        checked = Path(path)
    except TypeError:
        raise TypeError(f"path must be a string or a path, got {_described(path)}") from None
    if checked.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"path must end in .npz or .safetensors, got {str(checked)!r}")
    return checked


def savable(layer: object, expected: type) -> None:
    if not isinstance(layer, expected):
        hint = "; give its .layer" if hasattr(layer, "layer") else ""
        raise TypeError(f"layer must be an RNN, LSTM or GRU, got {_described(layer)}{hint}")
