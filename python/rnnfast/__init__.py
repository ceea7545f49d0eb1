"""Recurrent layers for CPUs: RNN, LSTM and GRU as fused C++ kernels, forward and backward, on NumPy arrays.

    import rnnfast as rf

    layer = rf.LSTM(input_size=10, hidden_size=20, seed=0)
    output, (h, c) = layer(x)                       # inference; x is [T, B, 10] float32
    output, state, tape = layer.forward(x)          # training
    grads = layer.backward(tape, grad_output)       # grads.input, grads.state, grads.parameters
    stream = layer.freeze().stream()                # step by step
    y_t = stream.step(x_t)

Names, weights, shapes, gate order and results are PyTorch's. NumPy is the only dependency.
"""

from . import _core, optim, reference
from ._io import load, save
from ._masks import Masks
from ._settings import available_isas, get_num_threads, isa, set_num_threads, show_config, threads, use_isa
from .activation import Activation
from .frozen import Frozen
from .gradients import Gradients, clip_grad_norm, clip_grad_value
from .layers import GRU, LSTM, RNN, Tape
from .reversed import Reversed
from .stream import Stream

__version__: str = _core.config()["version"]

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Activation",
    "Frozen",
    "Gradients",
    "Masks",
    "Reversed",
    "Stream",
    "Tape",
    "available_isas",
    "clip_grad_norm",
    "clip_grad_value",
    "get_num_threads",
    "isa",
    "load",
    "optim",
    "reference",
    "save",
    "set_num_threads",
    "show_config",
    "threads",
    "use_isa",
]
