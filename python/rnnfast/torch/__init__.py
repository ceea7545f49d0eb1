"""PyTorch's recurrent modules, run by rnnfast's kernels on the CPU, forward and backward.

    import rnnfast.torch as rt
    model = rt.accelerate(model)      # every torch.nn.RNN, LSTM, GRU and cell in it, in place
    layer = rt.LSTM(64, 128)          # or by hand: a subclass of torch.nn.LSTM

Parameters, state_dict, results and errors are torch's. Needs torch; `import rnnfast` alone does not import it.
"""

from ._cells import GRUCell, LSTMCell, RNNCell
from ._layers import GRU, LSTM, RNN
from ._replace import Explanation, Explanations, accelerate, allow_compile, explain, restore

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Explanation",
    "Explanations",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "accelerate",
    "allow_compile",
    "explain",
    "restore",
]
for _name in __all__:  # in messages and pickles by their public address
    globals()[_name].__module__ = __name__
del _name
