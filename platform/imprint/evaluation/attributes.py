"""Read a picture's attributes and its subject's mask, with a small network trained on real pictures.

It scores what a prompt asked for (background, glasses, expression), so it must not be a part of what it scores: it is
trained on real pictures of the train split alone, by jobs/train_face_attributes.yaml, and its accuracy on held-out real
pictures lies beside its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from imprint.config.jobs.evaluate import AttributeModel
from imprint.errors import BackboneError
from imprint.folders import read_folder, write_folder

EMBEDDED = ("face-attributes",)
FORMAT_VERSION = 1
SIZE = 64
"""Pixels along a side of what the network sees; other pictures are resized."""

Heads = Mapping[str, Sequence[str]]
"""The classes of each attribute, by the attribute's name."""


class _Residual(nn.Module):
    """x + two convolutions. The sum itself is never normalised, so that absolute colours get through."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(2, width) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        inner = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            inner = conv(F.silu(norm(inner)))
        return x + inner


class AttributeNet(nn.Module):
    """Pixel-unshuffle, three levels of convolutions, a linear layer for all heads; and up again for the mask."""

    def __init__(self, model: AttributeModel, heads: Heads) -> None:
        super().__init__()
        first, second, third = model.widths
        self.sizes = [len(classes) for classes in heads.values()]
        self.names = list(heads)
        self.stem = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, first, 3, padding=1))
        self.down = nn.Conv2d(first, second, 3, stride=2, padding=1)
        self.middle = _Residual(second)
        self.deep_down = nn.Conv2d(second, third, 3, stride=2, padding=1)
        self.deep = _Residual(third)
        self.last_down = nn.Conv2d(third, third, 3, stride=2, padding=1)
        self.flat = nn.Conv2d(third, model.flat, 1)
        self.classify = nn.Linear(model.flat * (SIZE // 16) ** 2, sum(self.sizes))
        width = model.mask_width
        self.up_deep = nn.Conv2d(third, width, 1)
        self.up_middle = nn.Conv2d(second, width, 1)
        self.up_first = nn.Conv2d(first, width, 1)
        self.up = nn.Conv2d(width, width, 3, padding=1)
        self.mask = nn.Sequential(nn.SiLU(), nn.Conv2d(width, 4, 3, padding=1), nn.PixelShuffle(2))

    def forward(
        self, pixel_values: Float[Tensor, "b 3 64 64"]
    ) -> tuple[dict[str, Float[Tensor, "b classes"]], Float[Tensor, "b 1 64 64"]]:
        """The logits of every head, and those of the mask, from pictures in [-1, 1]."""
        high = F.silu(self.stem(pixel_values))
        middle = self.middle(self.down(high))
        deep = self.deep(F.silu(self.deep_down(F.silu(middle))))
        flat = F.silu(self.flat(F.silu(self.last_down(F.silu(deep)))))
        logits = dict(zip(self.names, self.classify(flat.flatten(1)).split(self.sizes, dim=1), strict=True))
        up = F.silu(_double(self.up_deep(deep)) + self.up_middle(middle))
        up = self.up(_double(up) + self.up_first(high))
        return logits, self.mask(up)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


@dataclass(frozen=True, eq=False)
class AttributeReader:
    """A trained network, its classes, and its accuracy on held-out real pictures, by attribute."""

    net: AttributeNet
    heads: Heads
    accuracy: Mapping[str, float]

    @classmethod
    def load(cls, name: str | Path) -> AttributeReader:
        """Load an embedded name ("face-attributes") or the folder that the training job wrote.

        Raises:
            BackboneError: nothing loadable is there.
        """
        text = str(name)
        folder = Path(str(resources.files("imprint"))) / "weights" / text if text in EMBEDDED else Path(text)
        tensors, record = read_folder(folder, "attributes", BackboneError, format_version=FORMAT_VERSION)
        heads = {head: tuple(classes) for head, classes in record["heads"].items()}
        net = AttributeNet(AttributeModel.model_validate(record["model"]), heads)
        net.load_state_dict({key: value.float() for key, value in tensors.items()})
        return cls(net.eval().requires_grad_(False), heads, record["heldout_accuracy"])

    @torch.no_grad()
    def read(self, images: Float[Tensor, "n 3 h w"]) -> dict[str, list[str]]:
        """The likeliest class of every attribute, for pictures in [-1, 1]."""
        logits, _ = self.net(fit(images))
        return {head: [self.heads[head][i] for i in values.argmax(1).tolist()] for head, values in logits.items()}

    @torch.no_grad()
    def read_sure(self, images: Float[Tensor, "n 3 h w"], above: float) -> dict[str, list[str | None]]:
        """As `read`, with None where the likeliest class has no more than `above` of the softmax."""
        logits, _ = self.net(fit(images))
        found: dict[str, list[str | None]] = {}
        for head, values in logits.items():
            share, best = values.softmax(1).max(1)
            pairs = zip(best.tolist(), share.tolist(), strict=True)
            found[head] = [self.heads[head][i] if s > above else None for i, s in pairs]
        return found

    @torch.no_grad()
    def masks(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 h w"]:
        """How surely each pixel, at the pictures' own size, belongs to the subject, 0 to 1."""
        _, mask = self.net(fit(images))
        return F.interpolate(mask, images.shape[-2:], mode="bilinear", align_corners=False).sigmoid()


def fit(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 64 64"]:
    """Pictures at the size that the network sees."""
    if images.shape[-2:] == (SIZE, SIZE):
        return images
    return F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)


def save_reader(
    path: Path, net: AttributeNet, model: AttributeModel, heads: Heads, measured: Mapping[str, Any]
) -> Path:
    """Write a reader as fp16 safetensors and JSON; `measured` has `heldout_accuracy` and what else is known of it.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    record = {"model": model.model_dump(mode="json"), "heads": {k: list(v) for k, v in heads.items()}, **measured}
    state = {key: value.half() for key, value in net.state_dict().items()}
    return write_folder(path, "attributes", state, record, format_version=FORMAT_VERSION)


def classes_of(labels: Sequence[Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    """The classes of every attribute that occurs, sorted."""
    found: dict[str, set[str]] = {}
    for label in labels:
        for attribute, value in label.items():
            found.setdefault(attribute, set()).add(value)
    return {attribute: tuple(sorted(values)) for attribute, values in found.items()}


def label_indices(labels: Sequence[Mapping[str, str]], heads: Heads) -> Int[Tensor, "n heads"]:
    """The number of each class; -1 where an attribute is not given or its class unknown."""
    numbers = {head: {value: number for number, value in enumerate(classes)} for head, classes in heads.items()}
    rows = [[numbers[head].get(label.get(head, ""), -1) for head in heads] for label in labels]
    return torch.tensor(rows, dtype=torch.long).view(len(labels), len(heads))


def accuracy(read: Mapping[str, Sequence[str]], truth: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """The share of pictures read right, for each attribute, over those whose truth is given."""
    shares = {}
    for head, values in read.items():
        pairs = [(value, label[head]) for value, label in zip(values, truth, strict=True) if head in label]
        if pairs:
            shares[head] = sum(value == true for value, true in pairs) / len(pairs)
    return shares
