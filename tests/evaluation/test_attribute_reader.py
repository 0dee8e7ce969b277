"""The attribute reader: learns what can be told apart, saves and loads, and says how right it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from imprint.config.jobs.evaluate import AttributeModel
from imprint.config.training import EngineSpec, OptimizerSpec, TrainingSpec
from imprint.errors import BackboneError
from imprint.evaluation.attribute_objective import AttributeObjective, blur
from imprint.evaluation.attributes import (
    AttributeNet,
    AttributeReader,
    accuracy,
    classes_of,
    label_indices,
    save_reader,
)
from imprint.evaluation.face_labels import NOT_PLAIN, visible_labels
from imprint.objective import Batch
from imprint.training.engines.torch import TorchEngine
from imprint.training.loop import train

MODEL = AttributeModel(widths=(8, 8, 8), flat=4, mask_width=8)
COLORS = {"red": (0.9, -0.8, -0.8), "green": (-0.8, 0.8, -0.8), "blue": (-0.8, -0.8, 0.9)}
SIDES = ("left", "right")


def drawn(count: int, seed: int) -> tuple[Tensor, Tensor, list[dict[str, str]]]:
    """A gray square, left or right, on a coloured ground; its mask; and what is to be read."""
    generator = np.random.default_rng(seed)
    images, masks = torch.empty(count, 3, 64, 64), torch.zeros(count, 1, 64, 64)
    labels = []
    for i in range(count):
        color, side = generator.choice(list(COLORS)), generator.choice(SIDES)
        images[i] = torch.tensor(COLORS[color]).view(3, 1, 1)
        place = slice(4, 28) if side == "left" else slice(36, 60)
        images[i, :, 20:44, place] = 0.0
        masks[i, :, 20:44, place] = 1.0
        labels.append({"background": str(color), "side": str(side)})
    noise = torch.from_numpy(generator.normal(0, 0.05, images.shape)).float()
    return images + noise, masks, labels


@pytest.fixture(scope="module")
def trained() -> tuple[AttributeNet, dict[str, tuple[str, ...]]]:
    torch.manual_seed(0)
    images, masks, labels = drawn(64, 0)
    heads = classes_of(labels)
    net = AttributeNet(MODEL, heads)
    objective = AttributeObjective(net, mask_weight=2.0, blur_share=0.5)
    batch: Batch = {
        "pixel_values": images, "masks": masks, "labels": label_indices(labels, heads), "captions": [""] * 64,
        "keys": [""] * 64,
    }  # type: ignore[typeddict-unknown-key]  # fmt: skip
    spec = TrainingSpec(steps=60, batch_size=64, optimizer=OptimizerSpec(learning_rate=1e-2), log_every=60)
    train(iter([batch] * 60), TorchEngine(objective, EngineSpec(), spec.optimizer), spec)
    return net.eval(), heads


def test_it_learns_what_can_be_told_apart(trained: tuple[AttributeNet, dict[str, tuple[str, ...]]]) -> None:
    reader = AttributeReader(*trained, {})
    images, masks, labels = drawn(50, 1)
    shares = accuracy(reader.read(images), labels)
    assert shares["background"] == 1.0 and shares["side"] == 1.0
    found, true = reader.masks(images) > 0.5, masks > 0.5
    assert float((found & true).sum() / (found | true).sum()) > 0.9


def test_masks_come_at_the_size_of_the_pictures(trained: tuple[AttributeNet, dict[str, tuple[str, ...]]]) -> None:
    reader = AttributeReader(*trained, {})
    images, masks, _ = drawn(6, 2)
    large = torch.nn.functional.interpolate(images, (96, 96), mode="bilinear")
    found = reader.masks(large)
    assert found.shape == (6, 1, 96, 96) and float(found.min()) >= 0 and float(found.max()) <= 1
    inside = torch.nn.functional.interpolate(masks, (96, 96), mode="nearest") > 0.5
    assert float(((found > 0.5) == inside).float().mean()) > 0.95


def test_saved_and_loaded(trained: tuple[AttributeNet, dict[str, tuple[str, ...]]], tmp_path: Path) -> None:
    net, heads = trained
    save_reader(tmp_path / "reader", net, MODEL, heads, {"heldout_accuracy": {"side": 0.5}})
    loaded = AttributeReader.load(tmp_path / "reader")
    images, _, _ = drawn(20, 3)
    assert loaded.read(images) == AttributeReader(net, heads, {}).read(images)
    assert loaded.accuracy == {"side": 0.5}
    weights = tmp_path / "reader" / "attributes.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(BackboneError, match="cut or changed"):
        AttributeReader.load(tmp_path / "reader")
    with pytest.raises(BackboneError, match=r"no attributes\.json"):
        AttributeReader.load(tmp_path)


def test_heads_do_not_mix() -> None:
    """Each head's logits are its own slice of one linear layer."""
    heads = {"a": ("x", "y"), "b": ("x", "y", "z")}
    net = AttributeNet(MODEL, heads)
    with torch.no_grad():
        net.classify.weight.zero_()
        net.classify.bias.copy_(torch.tensor([1.0, 2.0, 5.0, 4.0, 3.0]))
    logits, mask = net(torch.zeros(2, 3, 64, 64))
    assert logits["a"][0].tolist() == [1.0, 2.0] and logits["b"][1].tolist() == [5.0, 4.0, 3.0]
    assert mask.shape == (2, 1, 64, 64)
    assert AttributeReader(net, heads, {}).read(torch.zeros(1, 3, 64, 64)) == {"a": ["y"], "b": ["x"]}


def test_labels_as_numbers_and_back() -> None:
    labels = [{"a": "x", "b": "u"}, {"a": "y"}, {"b": "v"}]
    heads = classes_of(labels)
    assert heads == {"a": ("x", "y"), "b": ("u", "v")}
    assert label_indices(labels, heads).tolist() == [[0, 0], [1, -1], [-1, 1]]
    assert label_indices([{"a": "never seen"}], heads).tolist() == [[-1, -1]]


def test_accuracy_counts_known_truths_only() -> None:
    read = {"a": ["x", "y", "x"], "b": ["u", "u", "u"]}
    assert accuracy(read, [{"a": "x"}, {"a": "x"}, {"b": "u"}]) == {"a": 0.5, "b": 1.0}


def test_unknown_labels_give_no_gradient() -> None:
    torch.manual_seed(0)
    net = AttributeNet(MODEL, {"a": ("x", "y")})
    objective = AttributeObjective(net, mask_weight=0.0, blur_share=0.0)
    batch = {
        "pixel_values": torch.zeros(2, 3, 64, 64), "masks": torch.zeros(2, 1, 64, 64),
        "labels": torch.tensor([[-1], [-1]]), "captions": ["", ""], "keys": ["", ""],
    }  # fmt: skip
    loss = objective(batch, torch.Generator()).loss
    loss.backward()
    assert float(loss.detach()) == 0.0 and float(net.classify.weight.grad.abs().sum()) == 0.0


def test_blur_is_a_mean_over_neighbours_and_repeats() -> None:
    images = torch.rand(8, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(blur(images, 0.0, torch.Generator().manual_seed(1)), images)
    soft = blur(images, 1.0, torch.Generator().manual_seed(1))
    assert torch.equal(soft, blur(images, 1.0, torch.Generator().manual_seed(1)))
    part = torch.rand(8, 2, generator=torch.Generator().manual_seed(1))[:, 1].view(-1, 1, 1)
    mean = torch.stack([images[:, :, 4 + i, 4 + j] for i in (-1, 0, 1) for j in (-1, 0, 1)]).mean(0)
    expected = (1 - part[..., 0]) * images[:, :, 4, 4] + part[..., 0] * mean
    torch.testing.assert_close(soft[:, :, 4, 4], expected)


def test_what_of_a_face_can_be_seen() -> None:
    attributes = {"hair": "bob", "hair_color": "red", "hat": "none", "background": "blue", "background_kind": "plain"}
    wanted = ("hair", "hair_color", "background", "glasses")
    assert visible_labels(attributes, wanted) == {"hair": "bob", "hair_color": "red", "background": "blue"}
    hidden = visible_labels({**attributes, "hat": "turban", "background_kind": "photo"}, wanted)
    assert hidden == {"background": NOT_PLAIN}
