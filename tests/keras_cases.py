"""Writes keras_cases.npz: layers of Keras 3 with their configurations, weights, inputs and outputs, for test_keras.py.

KERAS_BACKEND=torch python tests/keras_cases.py    # needs keras and torch; the tests need neither
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_suffix(".npz")
LAYERS: list[tuple[str, dict[str, Any]]] = [
    ("SimpleRNN", {}),
    ("SimpleRNN", {"activation": "leaky_relu", "use_bias": False}),
    ("SimpleRNN", {"activation": "elu", "bidirectional": True}),
    ("SimpleRNN", {"activation": None, "go_backwards": True}),
    ("LSTM", {"mask": True}),
    ("LSTM", {"use_bias": False, "bidirectional": True}),
    ("LSTM", {"activation": "softsign", "recurrent_activation": "hard_sigmoid", "go_backwards": True, "mask": True}),
    ("LSTM", {"activation": "relu", "recurrent_activation": "hard_sigmoid", "unit_forget_bias": False}),
    ("GRU", {"bidirectional": True}),
    ("GRU", {"use_bias": False, "reset_after": True}),
    ("GRU", {"reset_after": False, "bidirectional": True, "recurrent_activation": "hard_sigmoid"}),
    ("GRU", {"reset_after": False, "go_backwards": True, "activation": "softplus"}),
    ("GRU", {"use_bias": False, "reset_after": False, "recurrent_activation": "softsign"}),
]


def main() -> None:
    import keras

    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    configs = []
    for number, (name, options) in enumerate(LAYERS):
        own = {key: value for key, value in options.items() if key not in ("bidirectional", "mask")}
        layer = getattr(keras.layers, name)(5, return_sequences=True, **own)
        if options.get("bidirectional"):
            layer = keras.layers.Bidirectional(layer)
        x = rng.normal(size=(3, 6, 4)).astype(np.float32)
        mask = rng.random((3, 6)) < 0.7 if options.get("mask") else None
        layer(x)
        layer.set_weights([rng.uniform(-0.6, 0.6, array.shape) for array in layer.get_weights()])
        y = layer(x, mask=mask)
        arrays |= {f"{number}/x": x, f"{number}/y": y.detach().numpy()}
        arrays |= {f"{number}/w{k}": array for k, array in enumerate(layer.get_weights())}
        if mask is not None:
            arrays[f"{number}/mask"] = mask
        configs.append(keras.saving.serialize_keras_object(layer))
    np.savez_compressed(FILE, configs=np.array(json.dumps({"keras": keras.__version__, "layers": configs})), **arrays)


if __name__ == "__main__":
    main()
