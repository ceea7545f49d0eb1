"""An existing model made faster, and back."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch
from torch.nn.utils import parametrize

from . import _cells, _layers, _support

Model = TypeVar("Model", bound=torch.nn.Module)

_OURS: dict[type, type] = {
    torch.nn.RNN: _layers.RNN,
    torch.nn.LSTM: _layers.LSTM,
    torch.nn.GRU: _layers.GRU,
    torch.nn.RNNCell: _cells.RNNCell,
    torch.nn.LSTMCell: _cells.LSTMCell,
    torch.nn.GRUCell: _cells.GRUCell,
}
_TORCHS = {ours: theirs for theirs, ours in _OURS.items()}


def _exchange(module: torch.nn.Module, classes: dict[type, type]) -> bool:
    """The class alone changes, so that the module stays the same object, with all that it has and all that refers to it."""
    kind = type(module)
    if kind in classes:
        module.__class__ = classes[kind]
        return True
    if parametrize.is_parametrized(module) and kind.__bases__[0] in classes:  # its class is its own
        module.__class__ = type(kind.__name__, (classes[kind.__bases__[0]],), dict(kind.__dict__))
        return True
    return False


def accelerate(model: Model) -> Model:
    """Lets rnnfast run every recurrent module of `model` that it can, in place, and returns `model`.

    Modules of exactly the classes torch.nn.RNN, LSTM, GRU, RNNCell, LSTMCell and GRUCell are turned into those of
    `rnnfast.torch`: the same objects with the same parameters, buffers, hooks, mode and names, so that optimizers,
    checkpoints and references to them stay good. `explain` lists what was left and why; `restore` undoes it.
    """
    for module in model.modules():
        if _support.reason_against(module) is None if _is_recurrent(module) else False:
            _exchange(module, _OURS)
    return model


def restore(model: Model) -> Model:
    """Turns the recurrent modules of `model` back into torch's own, in place, and returns `model`."""
    for module in model.modules():
        _exchange(module, _TORCHS)
    return model


def as_torchs(module: torch.nn.Module) -> torch.nn.Module:
    """A torch module beside this one that shares everything with it."""
    twin: torch.nn.Module = torch.nn.Module.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    _exchange(twin, _TORCHS)
    return twin


def _is_recurrent(module: torch.nn.Module) -> bool:
    return isinstance(module, (torch.nn.RNNBase, torch.nn.RNNCellBase))


class Explanation(NamedTuple):
    """Where one recurrent module runs."""

    name: str  # in the model; "" is the model itself
    module: str  # its class
    runs_in: str  # "rnnfast" or "torch"
    reason: str  # why torch; "" for rnnfast


class Explanations(list[Explanation]):
    """A list that prints as a table."""

    def __str__(self) -> str:
        if not self:
            return "no recurrent modules"
        rows = [(e.name or "(model)", e.module, e.runs_in, e.reason) for e in self]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3]]).rstrip()
            for row in rows
        )


def explain(model: torch.nn.Module) -> Explanations:
    """For every recurrent module of `model`: whether rnnfast or torch runs it, and why torch.

    What depends on the call is not in it: under autocast, torch.func's transforms, jit.trace and forward-mode
    differentiation, torch's own implementation runs.
    """
    return Explanations(
        Explanation(name, type(module).__name__, *_where(module))
        for name, module in model.named_modules()
        if _is_recurrent(module)
    )


def _where(module: Any) -> tuple[str, str]:
    kinds = [*_OURS, *_OURS.values()]
    kind = type(module)
    own = kind.__bases__[0] if parametrize.is_parametrized(module) else kind
    if own not in kinds and not isinstance(module, (_layers._Layer, _cells._Cell)):
        return "torch", f"a class of its own; derive it from rnnfast.torch.{_base_name(module)}"
    reason = _support.reason_against(module)
    if reason is not None:
        return "torch", reason
    if isinstance(module, (_layers._Layer, _cells._Cell)):
        return "rnnfast", ""
    return "torch", "not accelerated; call rnnfast.torch.accelerate"


def _base_name(module: torch.nn.Module) -> str:
    return next((theirs.__name__ for theirs in _OURS if isinstance(module, theirs)), "RNN")


def allow_compile() -> None:
    """Lets torch.compile trace recurrent modules, which its Dynamo refuses otherwise: sets
    `torch._dynamo.config.allow_rnn`, for the process. Importing rnnfast.torch does not do that."""
    import torch._dynamo

    torch._dynamo.config.allow_rnn = True
