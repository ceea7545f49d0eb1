"""What runs here and what torch runs itself."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._engine import DTYPES, GATES

_PLAIN = (Tensor, torch.nn.Parameter)
_CELL_NAMES = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]


def reason_against(module: torch.nn.Module) -> str | None:
    """Why torch runs this module itself, as far as the module alone tells; None where rnnfast can run it."""
    weights = weights_of(module)
    if weights is None:
        return "a weight is missing"
    for weight in weights:
        if weight.device.type != "cpu":
            return f"on device {weight.device.type}; rnnfast is for the CPU"
        if weight.dtype not in DTYPES:
            return f"dtype {str(weight.dtype).removeprefix('torch.')}; rnnfast has float32 and float64"
    return None


def weights_of(module: Any) -> list[Tensor] | None:
    """In the engine's order; None where one is missing or is no tensor."""
    parameters = module._parameters
    names = (
        module._flat_weights_names if isinstance(module, torch.nn.RNNBase) else _CELL_NAMES[: 4 if module.bias else 2]
    )
    weights = [parameters[name] if name in parameters else getattr(module, name, None) for name in names]
    for weight in weights:
        if not isinstance(weight, Tensor):
            return None
    return weights


def _shapes(
    mode: str, inputs: int, units: int, projected: int, layers: int, directions: int, bias: bool
) -> list[torch.Size]:
    rows, width, shapes = GATES[mode] * units, projected or units, []
    for layer in range(layers):
        for _ in range(directions):
            shapes += [torch.Size((rows, directions * width if layer else inputs)), torch.Size((rows, width))]
            shapes += [torch.Size((rows,))] * 2 if bias else []
            shapes += [torch.Size((projected, units))] if projected else []
    return shapes


_known_shapes = functools.cache(_shapes)


def weights_fit(weights: Sequence[Tensor], dtype: torch.dtype, module: Any, mode: str) -> bool:
    """Whether these are the tensors that the module was made for. What does not fit is torch's to explain."""
    layers, directions = 1, 1
    if isinstance(module, torch.nn.RNNBase):
        layers, directions = module.num_layers, 2 if module.bidirectional else 1
    shapes = _shapes if torch.compiler.is_compiling() else _known_shapes  # Dynamo warns of caches
    projected = getattr(module, "proj_size", 0)
    expected = shapes(mode, module.input_size, module.hidden_size, projected, layers, directions, module.bias)
    if [weight.shape for weight in weights] != expected:
        return False
    for weight in weights:  # here and below: loops, where any() would cost a microsecond more
        if weight.dtype != dtype or not weight.is_cpu or weight.layout != torch.strided:
            return False
    return True


def need_gradients(tensors: Sequence[Tensor | None], weights: Sequence[Tensor]) -> bool:
    if not torch.is_grad_enabled():
        return False
    for tensor in tensors:
        if tensor is not None and tensor.requires_grad:
            return True
    for weight in weights:
        if weight.requires_grad:
            return True
    return False


def transformed() -> bool:
    """Whether something is on that only torch's own operations know: autocast, torch.func, jit.trace, dual numbers."""
    return (
        torch.is_autocast_enabled("cpu")
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


def watched() -> bool:
    """Whether somebody wants to see operators: a profiler, or a mode that intercepts them."""
    return bool(
        torch.autograd._profiler_enabled()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
    )


def plain(tensors: Sequence[Tensor | None]) -> bool:
    """Dense CPU tensors and no subclasses, which may mean anything."""
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in _PLAIN or not tensor.is_cpu or tensor.layout != torch.strided:
            return False
    return True


def direct(tensors: Sequence[Tensor | None]) -> bool:
    """Whether the engine may take these without the dispatcher: nobody watches, and they are what they seem."""
    return not watched() and plain(tensors)


def sound(tensors: Sequence[Tensor | None]) -> bool:
    """Whether rnnfast may run on x and the states in this moment."""
    if torch.compiler.is_compiling():
        return not torch.is_autocast_enabled("cpu") and all(t is None or t.is_cpu for t in tensors)
    return plain(tensors) and not transformed()


def states_of(hx: Any, is_lstm: bool) -> list[Tensor | None] | None:
    """h0 and c0, None for zeros; None where hx is no such thing."""
    if hx is None:
        return [None, None]
    if not is_lstm:
        return [hx, None] if isinstance(hx, Tensor) else None
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        return None
    return list(hx) if isinstance(hx[0], Tensor) and isinstance(hx[1], Tensor) else None


def states_fit(states: Sequence[Tensor | None], shapes: Sequence[tuple[Any, ...]], dtype: torch.dtype) -> bool:
    """Of h and c."""
    for state, shape in zip(states, shapes, strict=False):
        if state is not None and (state.shape != shape or state.dtype != dtype):
            return False
    return True
