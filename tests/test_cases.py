"""Real pretrained models, through the public API: their weights are loaded, their inputs give their outputs.

The folder that the environment variable RNNFAST_CASES names holds one `.npz` per model. `meta` describes each stage of
a model: the cell, in which order and layout its gates are stored, and the names of the arrays with weights, input,
outputs and states. The expected outputs are those of the original framework in float32.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from oracle import assert_close_output, reference_results, tolerances

FOLDER = os.environ.get("RNNFAST_CASES")
MODELS = ["g2p_en", "silero_vad"]
# Not run, and not skipped tests that look as if they were: their options do not exist yet.
LATER = {
    "reactionrnn": "GRU with reset before the product, hard sigmoid",
    "chars2vec_50": "LSTM with hard sigmoid",
}
ORDER = {"lstm": "ifgo", "gru": "rzn"}  # PyTorch's, and ours

needs_cases = pytest.mark.skipif(not FOLDER, reason="RNNFAST_CASES names no folder with real models")


def load(model: str) -> tuple[Any, list[dict[str, Any]]]:
    with np.load(Path(FOLDER or "") / f"{model}.npz") as file:
        data = dict(file)
    return data, json.loads(str(data["meta"]))["stages"]


def state_dict(data: Any, stage: dict[str, Any]) -> dict[str, np.ndarray]:
    """The weights of a stage under PyTorch's names, in its shapes and gate order."""
    parameters = {}
    for number, layer in enumerate(stage["layers"]):
        order = [layer["gates"].index(gate) for gate in ORDER[layer["cell"]]]

        def in_order(array: np.ndarray, layer: Any = layer, order: Any = order) -> np.ndarray:
            if layer["layout"] == "I,GH" and array.ndim == 2:
                array = array.T
            return np.concatenate([np.split(array, len(order))[gate] for gate in order])

        for direction in layer["dirs"]:
            end = f"_l{number}" + ("_reverse" if direction["reverse"] else "")

            def read(name: str, direction: Any = direction) -> np.ndarray:
                array = data[direction[name]]
                return array[direction["index"]] if "index" in direction else array

            biases = np.split(read("bWR"), 2) if "bWR" in direction else (read("bW"), read("bR"))
            parameters["weight_ih" + end], parameters["weight_hh" + end] = in_order(read("W")), in_order(read("R"))
            parameters["bias_ih" + end], parameters["bias_hh" + end] = map(in_order, biases)
    return parameters


def make_layer(parameters: dict[str, np.ndarray], stage: dict[str, Any], dtype: str = "float32") -> Any:
    cell = {"lstm": rf.LSTM, "gru": rf.GRU}[stage["layers"][0]["cell"]]
    input_size, hidden_size = parameters["weight_ih_l0"].shape[1], parameters["weight_hh_l0"].shape[1]
    options = {"batch_first": True, "bidirectional": len(stage["layers"][0]["dirs"]) == 2, "dtype": dtype}
    layer = cell(input_size, hidden_size, len(stage["layers"]), **options)
    layer.load_state_dict(parameters)
    return layer


def states(data: Any, stage: dict[str, Any], letters: str) -> Any:
    arrays = tuple(data[stage[letter]] for letter in letters.split() if letter in stage)
    return arrays if len(arrays) == 2 else arrays[0] if arrays else None


@needs_cases
@pytest.mark.parametrize("model", MODELS)
def test_models_give_their_own_outputs(isa: str, model: str) -> None:
    data, stages = load(model)
    assert len(stages) == {"g2p_en": 16, "silero_vad": 3}[model]
    for stage in stages:
        layer = make_layer(state_dict(data, stage), stage)
        x, hx = data[stage["x"]], states(data, stage, "h0 c0")
        allowed = tolerances("float32", layer.input_size, layer.hidden_size, 1, 1, 1).output
        frozen = layer.freeze()
        for run in (layer, frozen):
            output, state = run(x, hx)
            assert_close_output(f"{stage['note']}: y", output, data[stage["y"]], allowed)
            for letter, part in zip(("hn", "cn"), state if isinstance(state, tuple) else (state,), strict=False):
                name = f"{stage['note']}: {letter}"
                assert_close_output(name, part, data[stage[letter]], allowed, unbounded=letter == "cn")
        stream = frozen.stream()
        if hx is not None:
            stream.state = hx
        steps = np.stack([stream.step(np.ascontiguousarray(x[:, t])) for t in range(x.shape[1])], axis=1)
        np.testing.assert_array_equal(steps, output)


@needs_cases
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_models_equal_the_reference(model: str, dtype: str) -> None:
    """One tolerance, for the weights and inputs of real life, with c of any size."""
    data, stages = load(model)
    for stage in stages:
        layer = make_layer(state_dict(data, stage), stage, dtype)
        x, hx = data[stage["x"]].astype(dtype), states(data, stage, "h0 c0")
        if hx is not None:
            hx = tuple(part.astype(dtype) for part in hx) if isinstance(hx, tuple) else hx.astype(dtype)
        want = reference_results(layer, x, hx, None, None).outputs
        output, state = layer(x, hx)
        allowed = tolerances(dtype, layer.input_size, layer.hidden_size, 1, 1, 1).output
        assert_close_output("output", output.swapaxes(0, 1), want["output"], allowed)
        for letter, part in zip("hc", state if isinstance(state, tuple) else (state,), strict=False):
            assert_close_output(f"state {letter}", part, want[f"state {letter}"], allowed, unbounded=letter == "c")


@needs_cases
def test_words_become_the_phonemes_that_the_model_published() -> None:
    """g2p_en from letters to phonemes, its decoder fed with its own choices: encoder, state handed over, decoder."""
    data, stages = load("g2p_en")
    graphemes, phonemes = list(data["e2e/graphemes"]), list(data["e2e/phoneme_set"])
    encoder = make_layer(state_dict(data, stages[0]), stages[0])
    decoder = make_layer(state_dict(data, stages[1]), stages[1]).freeze()
    for word in data["e2e/words"]:
        letters = [graphemes.index(letter) for letter in [*word, "</s>"]]
        _, state = encoder(data["w/enc_emb"][letters][None])
        stream = decoder.stream()
        stream.state = state
        said, last = [], phonemes.index("<s>")
        while len(said) < 20:
            h = stream.step(data["w/dec_emb"][last])
            last = int(np.argmax(h.reshape(-1) @ data["w/fc_w"].T + data["w/fc_b"]))
            if phonemes[last] == "</s>":
                break
            said.append(phonemes[last])
        assert said == list(data[f"e2e/{word}/phonemes"]), word


@needs_cases
def test_every_model_of_the_folder_is_run_or_named_here() -> None:
    found = {path.stem for path in Path(FOLDER or "").glob("*.npz")}
    assert found == {*MODELS, *LATER}
