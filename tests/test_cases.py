"""Real pretrained models, through the public API: their weights are loaded, their inputs give their outputs.

The folder that the environment variable RNNFAST_CASES names holds one `.npz` per model. `meta` describes each stage of
a model: the cell, in which order and layout its gates are stored, and the names of the arrays with weights, input,
outputs and states. The expected outputs are those of the original framework in float32.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
import rnnfast.keras
from oracle import assert_close, assert_close_output, reference_results, tolerances

FOLDER = os.environ.get("RNNFAST_CASES")
MODELS = {"g2p_en": 16, "silero_vad": 3, "reactionrnn": 1, "chars2vec_50": 3}  # stages of each
KERAS = {"lstm": "LSTM", "gru": "GRU"}
ORDER = {"lstm": "ifgo", "gru": "rzn"}  # PyTorch's, and ours

needs_cases = pytest.mark.skipif(not FOLDER, reason="RNNFAST_CASES names no folder with real models")


def load(model: str) -> tuple[Any, list[dict[str, Any]]]:
    with np.load(Path(FOLDER or "") / f"{model}.npz") as file:
        data = dict(file)
    return data, json.loads(str(data["meta"]))["stages"]


def load_meta(model: str) -> dict[str, Any]:
    with np.load(Path(FOLDER or "") / f"{model}.npz") as file:
        return dict(json.loads(str(file["meta"])))


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


def make_layer(data: Any, stage: dict[str, Any], dtype: str = "float32") -> Any:
    if stage["layers"][0]["layout"] == "I,GH":
        return keras_layer(data, stage, dtype)
    parameters = state_dict(data, stage)
    cell = {"lstm": rf.LSTM, "gru": rf.GRU}[stage["layers"][0]["cell"]]
    input_size, hidden_size = parameters["weight_ih_l0"].shape[1], parameters["weight_hh_l0"].shape[1]
    options = {"batch_first": True, "bidirectional": len(stage["layers"][0]["dirs"]) == 2, "dtype": dtype}
    layer = cell(input_size, hidden_size, len(stage["layers"]), **options)
    layer.load_state_dict(parameters)
    return layer


def keras_layer(data: Any, stage: dict[str, Any], dtype: str) -> Any:
    """Both models are older than Keras 2.3 and have its hard sigmoid."""
    layers = stage["layers"]
    assert all((layer["act"], layer["rec_act"]) == ("tanh", "hard_sigmoid_0.2") for layer in layers)
    options = {"reset_after": layers[0]["reset"] == "after"} if layers[0]["cell"] == "gru" else {}
    weights = [data[layer["dirs"][0][name]] for layer in layers for name in ("W", "R", "bW")]
    return rnnfast.keras.from_weights(
        KERAS[layers[0]["cell"]],
        weights,
        recurrent_activation="hard_sigmoid",
        num_layers=len(layers),
        keras_version=2,
        dtype=dtype,
        **options,
    )


def states(data: Any, stage: dict[str, Any], letters: str) -> Any:
    arrays = tuple(data[stage[letter]] for letter in letters.split() if letter in stage)
    return arrays if len(arrays) == 2 else arrays[0] if arrays else None


@needs_cases
@pytest.mark.parametrize("model", MODELS)
def test_models_give_their_own_outputs(isa: str, model: str) -> None:
    data, stages = load(model)
    assert len(stages) == MODELS[model]
    for stage in stages:
        layer = make_layer(data, stage)
        x, hx = data[stage["x"]], states(data, stage, "h0 c0")
        allowed = tolerances("float32", layer.input_size, layer.hidden_size, 1, 1, 1).output
        frozen = layer.freeze()
        for run in (layer, frozen):
            output, state = run(x, hx)
            assert_close_output(f"{stage['note']}: y", output, data[stage["y"]], allowed)
            for letter, part in zip(("hn", "cn"), state if isinstance(state, tuple) else (state,), strict=False):
                name = f"{stage['note']}: {letter}"
                assert_close_output(name, part, data[stage[letter]], allowed, unbounded=letter == "cn")
        stream = frozen.stream(x.shape[0])
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
        layer = make_layer(data, stage, dtype)
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
    encoder = make_layer(data, stages[0])
    decoder = make_layer(data, stages[1]).freeze()
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
def test_sentences_get_the_reactions_that_the_model_published() -> None:
    """reactionrnn from characters to shares of five reactions: embedding, GRU, a layer of relu, shares of its sum."""
    data, stages = load("reactionrnn")
    layer = make_layer(data, stages[0])
    _, h = layer(data["w/embedding/embedding/embeddings"][data["e2e/ids"]])
    kernel = data["w/output/output/kernel"].astype(np.float64)
    scores = np.maximum(h[0] @ kernel + data["w/output/output/bias"], 0.0)
    total = scores.sum(axis=1, keepdims=True)
    allowed = (
        tolerances("float32", layer.input_size, layer.hidden_size, 1, 1, 1).output * np.abs(kernel).sum(axis=0).max()
    )
    assert_close("reactions", scores / total, data["e2e/reactions"], 2 * allowed / total.min())
    names = load_meta("reactionrnn")["reactions"]
    for text, shares in zip(data["e2e/texts"], scores / total, strict=True):
        published = load_meta("reactionrnn")["published"][str(text)]
        rounded = {name: round(float(share), 4) for name, share in zip(names, shares, strict=True)}
        assert {name: share for name, share in rounded.items() if share > 0} == published


@needs_cases
def test_words_have_the_distances_that_the_model_gave_them() -> None:
    """chars2vec from words to vectors: one-hot letters behind steps of zeros, two LSTM layers, the last h."""
    data, stages = load("chars2vec_50")
    words, letters = [str(word) for word in data["e2e/words"]], [str(letter) for letter in data["e2e/chars"]]
    x = np.zeros((len(words), max(map(len, words)), len(letters)), np.float32)
    for row, word in zip(x, words, strict=True):
        row[range(-len(word), 0), [letters.index(letter) for letter in word]] = 1.0
    lower, upper = (make_layer(data, stage) for stage in stages[:2])
    _, (h, _) = upper(lower(x)[0])
    allowed = 2 * tolerances("float32", lower.input_size, lower.hidden_size, 1, 1, 1).output  # two layers
    assert_close("vectors", h[0], data["e2e/vectors"], allowed)

    def distances(vectors: np.ndarray) -> np.ndarray:
        apart = vectors.astype(np.float64)[:, None] - vectors.astype(np.float64)
        return np.sqrt((apart**2).sum(axis=2))

    want = distances(data["e2e/vectors"])
    assert_close("distances", distances(h[0]), want, 2 * np.sqrt(h.shape[2]) * allowed)
    np.fill_diagonal(want, np.inf)
    assert words[want[words.index("recurent")].argmin()] == "recurrent"


@needs_cases
def test_recordings_get_the_speech_probabilities_that_the_model_gave_them() -> None:
    """silero_vad from the LSTM to probabilities. What follows the LSTM, sigmoid(w relu(y) + b), is not in the case: it
    is recovered from the original framework's own y and probabilities, and applied to ours."""
    data, stages = load("silero_vad")

    def features(y: np.ndarray) -> np.ndarray:
        return np.concatenate([np.maximum(y[0], 0.0), np.ones((y.shape[1], 1))], axis=1, dtype=np.float64)

    numbers = range(len(stages))
    given = np.concatenate([features(data[f"s{k}/y"]) for k in numbers])
    p = np.concatenate([data[f"e2e/{k}/speech_probs"] for k in numbers]).astype(np.float64)
    certainty = p * (1.0 - p)  # how well a probability in float32 determines its logit
    head = np.linalg.lstsq(given * certainty[:, None], np.log(p / (1.0 - p)) * certainty, rcond=1e-9)[0]
    layer = make_layer(data, stages[0])
    ours = np.concatenate([features(layer(data[f"s{k}/x"], states(data, stages[k], "h0 c0"))[0]) for k in numbers])
    eps = float(np.finfo(np.float32).eps)
    allowed = tolerances("float32", layer.input_size, layer.hidden_size, 1, 1, 1).output * 0.25 * np.abs(head).sum()
    assert_close("speech probabilities", 1.0 / (1.0 + np.exp(-ours @ head)), p, allowed + 2 * eps)
    assert ((p > 0.5) == (ours @ head > 0)).all()


@needs_cases
def test_a_layer_from_inside_a_model_file_gives_its_speech_probabilities() -> None:
    """silero_vad from its file, frames to probabilities: the LSTM's node runs here, the rest in onnx's evaluator."""
    onnx = pytest.importorskip("onnx")
    found = importlib.util.find_spec("silero_vad")
    if found is None or found.origin is None:
        pytest.skip("needs the model's file: pip install --no-deps silero-vad==6.2.3")
    from onnx.reference import ReferenceEvaluator
    from onnx.utils import Extractor

    from rnnfast.onnx import from_node

    model = onnx.load(Path(found.origin).parent / "data" / "silero_vad_16k_sequence.onnx")
    (node,) = (node for node in model.graph.node if node.op_type == "LSTM")
    extract = Extractor(onnx.shape_inference.infer_shapes(model)).extract_model
    before = ReferenceEvaluator(extract(["input"], [node.input[0]]))
    after = ReferenceEvaluator(extract([node.output[0]], ["speech_probs"]))
    layer = from_node(node, model.graph.initializer)
    data, _ = load("silero_vad")
    (head,) = (onnx.numpy_helper.to_array(w) for w in model.graph.initializer if w.name == "output.weight")
    # Of y, through the head and a sigmoid, whose slope is at most 1/4.
    allowed = tolerances("float32", layer.input_size, layer.hidden_size, 1, 1, 1).output * 0.25 * np.abs(head).sum()
    for number in range(3):
        x = before.run(None, {"input": data[f"e2e/{number}/frames"]})[0]
        output, _ = layer(x)
        probabilities = after.run(None, {node.output[0]: output[:, None]})[0]
        assert_close("speech probabilities", probabilities.ravel(), data[f"e2e/{number}/speech_probs"], allowed)


@needs_cases
def test_every_model_of_the_folder_is_run() -> None:
    found = {path.stem for path in Path(FOLDER or "").glob("*.npz")}
    assert found == set(MODELS)
