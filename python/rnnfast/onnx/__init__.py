"""ONNX's operators RNN, GRU and LSTM, opsets 7 to 22, on rnnfast's layers. Needs onnx: pip install 'rnnfast[onnx]'.

    from rnnfast.onnx import Backend, from_node

    rep = Backend.prepare(model)                        # a model made of a single such node
    Y, Y_h = rep.run([X, ...])                          # the graph's outputs
    layer = from_node(node, model.graph.initializer)    # a layer to train, freeze or save

Source of the equations and of the defaults: the text of the operators, https://onnx.ai/onnx/operators. What is decided
here where that text is silent: docs/onnx.md.
"""

from __future__ import annotations

try:
    import onnx  # noqa: F401
except ImportError as error:
    raise ImportError("rnnfast.onnx needs that package: pip install 'rnnfast[onnx]'") from error

from .backend import Backend, BackendRep
from .node import from_node

__all__ = ["Backend", "BackendRep", "from_node"]
