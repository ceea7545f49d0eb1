"""A stack of layers as operators of torch, with autograd.

`rnnfast::recurrent` is what a compiled or watched model calls; under autograd it becomes one node, which runs
`rnnfast::recurrent_taped` and, on the way back, `rnnfast::recurrent_backward`. Each has a fake implementation, so that
torch.compile and torch.export see shapes where there are no values. Where nobody watches, the node is made and the
engine called without the dispatcher. The autograd part is written by hand, because that of
torch.library.register_autograd costs several times as much a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _engine, _second_order, _support
from ._engine import Options, Wanted

_OPTIONS = "str mode, int num_layers, bool bidirectional, bool batch_first, float dropout"
_INPUTS = "Tensor x, Tensor? h0, Tensor? c0, Tensor[] weights, Tensor? batch_sizes, Tensor? seed"

_library = torch.library.Library("rnnfast", "DEF")
_library.define(f"recurrent({_INPUTS}, {_OPTIONS}) -> (Tensor output, Tensor h_n, Tensor c_n)")
_library.define(
    f"recurrent_taped({_INPUTS}, {_OPTIONS}, str isa) -> (Tensor output, Tensor h_n, Tensor c_n, Tensor tape)"
)
_library.define(
    "recurrent_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, "
    f"{_INPUTS}, Tensor output, Tensor tape, {_OPTIONS}, str isa, bool[] wanted) -> Tensor[]"
)

recurrent = torch.ops.rnnfast.recurrent.default
_taped = torch.ops.rnnfast.recurrent_taped.default
_backward = torch.ops.rnnfast.recurrent_backward.default


def _or_empty(c_n: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if c_n is None else c_n


# --- on the CPU ---


def _recurrent_cpu(
    x: Tensor, h0: Any, c0: Any, weights: list[Tensor], batch_sizes: Any, seed: Any, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    chosen = Options(*options)
    if chosen.dropout > 0:  # the engine drops where it keeps a tape
        y, h_n, c_n, _ = _engine.run_taped(x, h0, c0, weights, batch_sizes, seed, chosen, _engine.current_isa())
    else:
        y, h_n, c_n = _engine.run(x, h0, c0, weights, batch_sizes, chosen)
    return y, h_n, _or_empty(c_n, x)


def _taped_cpu(
    x: Tensor, h0: Any, c0: Any, weights: list[Tensor], batch_sizes: Any, seed: Any, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *options, isa = rest
    y, h_n, c_n, tape = _engine.run_taped(x, h0, c0, weights, batch_sizes, seed, Options(*options), isa)
    return y, h_n, _or_empty(c_n, x), tape


def _backward_cpu(
    grad_y: Any,
    grad_h_n: Any,
    grad_c_n: Any,
    x: Tensor,
    h0: Any,
    c0: Any,
    weights: list[Tensor],
    batch_sizes: Any,
    seed: Any,
    y: Tensor,
    tape: Tensor,
    *rest: Any,
) -> list[Tensor]:
    *options, isa, wanted = rest
    inputs = (x, h0, c0, weights, batch_sizes, seed)
    asked = Wanted(wanted[0], wanted[1], wanted[2], wanted[3:])
    return _engine.run_backward(grad_y, grad_h_n, grad_c_n, *inputs, y, tape, Options(*options), isa, asked)


_library.impl("recurrent", _recurrent_cpu, "CPU")
_library.impl("recurrent_taped", _taped_cpu, "CPU")
_library.impl("recurrent_backward", _backward_cpu, "CPU")


# --- shapes ---


def _shapes(
    x: Tensor, h0: Tensor | None, weights: Sequence[Tensor], batch_sizes: Tensor | None, options: Options
) -> tuple[Any, Any, Any, Any, Any]:
    """Steps, batch, and the shapes of output, h and c."""
    _, units, width = _engine.sizes_of(options.mode, weights)
    if batch_sizes is not None:
        assert h0 is not None, "with batch_sizes, h0 tells the batch"
        steps, batch = batch_sizes.shape[0], h0.shape[1]
    else:
        steps, batch = (x.shape[1], x.shape[0]) if options.batch_first else (x.shape[0], x.shape[1])
    output = (*x.shape[:-1], 2 * width if options.bidirectional else width)
    return steps, batch, output, (options.cells, batch, width), (options.cells, batch, units)


@torch.library.register_fake("rnnfast::recurrent", lib=_library)
def _recurrent_fake(
    x: Tensor, h0: Any, c0: Any, weights: list[Tensor], batch_sizes: Any, seed: Any, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    chosen = Options(*options)
    _, _, output, h, c = _shapes(x, h0, weights, batch_sizes, chosen)
    return x.new_empty(output), x.new_empty(h), x.new_empty(c if chosen.mode == "LSTM" else 0)


@torch.library.register_fake("rnnfast::recurrent_taped", lib=_library)
def _taped_fake(
    x: Tensor, h0: Any, c0: Any, weights: list[Tensor], batch_sizes: Any, seed: Any, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *options, isa = rest
    chosen = Options(*options)
    steps, batch, *_ = _shapes(x, h0, weights, batch_sizes, chosen)
    size = _engine.tape_size(steps, batch, _engine.spec_of(chosen, x.dtype, weights), isa)
    return *_recurrent_fake(x, h0, c0, weights, batch_sizes, seed, *options), x.new_empty(size, dtype=torch.uint8)


@torch.library.register_fake("rnnfast::recurrent_backward", lib=_library)
def _backward_fake(*arguments: Any) -> list[Tensor]:
    _, _, _, x, h0, c0, weights, batch_sizes, *_ = arguments
    mode, num_layers, bidirectional, batch_first, dropout, _, wanted = arguments[-7:]
    options = Options(mode, num_layers, bidirectional, batch_first, dropout)
    _, _, _, h, c = _shapes(x, h0, weights, batch_sizes, options)
    shapes = [x.shape, h, c, *(weight.shape for weight in weights)]
    return [x.new_empty(shape) for shape, want in zip(shapes, wanted, strict=True) if want]


# --- autograd ---


class _Recurrent(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, options: Options, x: Tensor, h0: Any, c0: Any, batch_sizes: Any, seed: Any, *weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.options, ctx.isa = options, _engine.current_isa()
        run = _taped_cpu if _support.direct([x, h0, c0, *weights]) else _taped
        with torch._C._AutoDispatchBelowAutograd():
            y, h_n, c_n, tape = run(x, h0, c0, list(weights), batch_sizes, seed, *options, ctx.isa)
        ctx.set_materialize_grads(False)
        if options.mode != "LSTM":
            ctx.mark_non_differentiable(c_n)
        ctx.save_for_backward(x, h0, c0, batch_sizes, seed, y, tape, *weights)
        return y, h_n, c_n

    @staticmethod
    def backward(ctx: Any, grad_y: Any, grad_h_n: Any, grad_c_n: Any) -> tuple[Any, ...]:
        x, h0, c0, batch_sizes, seed, y, tape, *weights = ctx.saved_tensors
        needs = ctx.needs_input_grad
        wanted = [needs[1], needs[2], needs[3], *needs[6:]]
        if grad_y is None and grad_h_n is None and grad_c_n is None:
            return (None,) * len(needs)
        inputs = (x, h0, c0, weights, batch_sizes, seed)
        if torch.is_grad_enabled():  # create_graph: these gradients shall have gradients
            found = _second_order.gradients(grad_y, grad_h_n, grad_c_n, *inputs, ctx.options, wanted)
        else:
            tensors = [grad_y, grad_h_n, grad_c_n, x, h0, c0, y, tape, *weights]
            run = _backward_cpu if _support.direct(tensors) else _backward
            found = run(grad_y, grad_h_n, grad_c_n, *inputs, y, tape, *ctx.options, ctx.isa, wanted)
        rest = iter(found)
        grad_x, grad_h0, grad_c0, *grad_weights = [next(rest) if want else None for want in wanted]
        return None, grad_x, grad_h0, grad_c0, None, None, *grad_weights


def with_gradients(
    x: Tensor, h0: Any, c0: Any, weights: list[Tensor], batch_sizes: Any, seed: Any, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """As the operator. Where nobody watches and all tensors are plain, calling this saves the way through torch's
    dispatcher."""
    return _Recurrent.apply(options, x, h0, c0, batch_sizes, seed, *weights)


def _recurrent_autograd(
    x: Tensor, h0: Any, c0: Any, weights: list[Tensor], batch_sizes: Any, seed: Any, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, h0, c0, *weights)):
        return with_gradients(x, h0, c0, weights, batch_sizes, seed, Options(*options))
    with torch._C._AutoDispatchBelowAutograd():
        return recurrent(x, h0, c0, weights, batch_sizes, seed, *options)


_library.impl("recurrent", _recurrent_autograd, "Autograd")
