"""The equations of every cell and their gradients, in NumPy and float64.

This package defines what the compiled kernels have to compute; it is checked by finite differences and against
PyTorch, and it never imports the kernels. It is written to be read beside ``docs/math.md``, which derives it, with the
same names:

* ``T`` steps, ``B`` batch, ``I`` input size, ``H`` hidden size, ``S`` size of h (H, unless an LSTM projects it), ``G``
  gates, ``L`` layers, ``D`` directions; a layer's input size is ``I`` for the first layer and ``D*S`` above it.
* ``d_x`` is the gradient of the loss by ``x``, and has the shape of ``x``.
* ``a`` are pre-activations: what goes into a sigmoid or tanh.

Each cell (``cells.py``) is a pair of functions, ``*_step`` and ``*_step_backward``, that know one time step of some
rows. ``scan`` and ``scan_backward`` (``scan.py``) know time and which rows take part. ``forward`` and ``backward``
(``stack.py``) know layers and directions. ``activations.py`` has the elementwise functions.

>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> parameters = {"weight_ih_l0": rng.normal(size=(4 * 3, 2)), "weight_hh_l0": rng.normal(size=(4 * 3, 3))}
>>> output, (h, c), tape = forward("lstm", parameters, rng.normal(size=(5, 1, 2)))
>>> output.shape, h.shape, bool((output[-1] == h[0]).all())
((5, 1, 3), (1, 1, 3), True)
>>> backward(tape, np.ones_like(output)).parameters["weight_hh_l0"].shape
(12, 3)
"""

from .cells import CELLS, Cell, Layer
from .stack import Gradients, Tape, backward, forward

__all__ = ["CELLS", "Cell", "Gradients", "Layer", "Tape", "backward", "forward"]
