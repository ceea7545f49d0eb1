"""What runs here and what torch runs itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._engine import DTYPES, GATES

PROJECTIONS = False  # whether the engine has proj_size

_PLAIN = (Tensor, torch.nn.Parameter)


def reason_against(module: torch.nn.Module) -> str | None:
    """Why torch runs this module itself, as far as the module alone tells; None where rnnfast can run it."""
    if getattr(module, "proj_size", 0) and not PROJECTIONS:
        return "proj_size is not supported yet"
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
    names = module._flat_weights_names if isinstance(module, torch.nn.RNNBase) else _CELL_NAMES[: 4 if module.bias else 2]
    weights = [parameters[name] if name in parameters else getattr(module, name, None) for name in names]
    return weights if all(isinstance(weight, Tensor) for weight in weights) else None  # type: ignore[return-value]


_CELL_NAMES = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]


def weights_fit(weights: Sequence[Tensor], dtype: torch.dtype, module: Any, mode: str) -> bool:
    """Whether these are the tensors that the module was made for. What does not fit is torch's to explain."""
    directions = 2 if getattr(module, "bidirectional", False) else 1
    rows, units = GATES[mode] * module.hidden_size, module.hidden_size
    each = 4 if module.bias else 2
    for number, weight in enumerate(weights):
        kind, cell = number % each, number // each
        inputs = module.input_size if cell < directions else directions * units
        shape = (rows, inputs) if kind == 0 else (rows, units) if kind == 1 else (rows,)
        if weight.shape != shape or weight.dtype != dtype or not weight.is_cpu or weight.layout != torch.strided:
            return False
    return True


def transformed() -> bool:
    """Whether something is under way that only torch's own operations know: autocast, torch.func, jit.trace, dual numbers."""
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


def plain(*tensors: Tensor | None) -> bool:
    """Dense CPU tensors and no subclasses, which may mean anything."""
    return all(t is None or (type(t) in _PLAIN and t.is_cpu and t.layout == torch.strided) for t in tensors)
