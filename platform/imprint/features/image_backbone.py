"""Any timm or transformers image network as features of whole pictures, such as DINO: the scorers of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from imprint.errors import BackboneError

TIMM = "timm:"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class ImageBackbone:
    """A frozen image network. Pictures come in [-1, 1], of any size."""

    name: str
    model: nn.Module
    read: Callable[[nn.Module, Tensor], Tensor]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def load(cls, name: str | Path, *, device: str | torch.device = "cpu") -> ImageBackbone:
        """Load by one of these names; weights are safetensors, always.

        - `timm:ARCHITECTURE`, with timm's own weights (DINO's ViT-S/16: `timm:vit_small_patch16_224.dino`)
        - `timm:ARCHITECTURE:FILE.safetensors`, a file of its weights
        - a transformers folder or hub id with config.json and model.safetensors; its [CLS] token is read

        Raises:
            BackboneError: nothing loadable is there.
        """
        text = str(name)
        try:
            found = _timm(text) if text.startswith(TIMM) else _transformers(text)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            raise BackboneError(
                f"loading the image network {text}: {type(error).__name__}: {reason}; expected timm:ARCHITECTURE, "
                "timm:ARCHITECTURE:FILE.safetensors, or a transformers folder or hub id"
            ) from error
        found.model.to(device).eval().requires_grad_(False)
        return found

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def __call__(self, pixel_values: Float[Tensor, "n 3 h w"], batch_size: int = 64) -> Float[Tensor, "n width"]:
        """One vector of unit length for each picture, on the CPU."""
        found = []
        for images in pixel_values.split(batch_size):
            features = self.read(self.model, self.preprocess(images))
            found.append(F.normalize(features.float(), dim=-1).cpu())
        return torch.cat(found)

    def preprocess(self, pixel_values: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 s s"]:
        """The whole picture, not a crop of it, at the network's size and normalised as it expects."""
        images = pixel_values.to(self.device, torch.float32).clamp(-1, 1)
        if images.shape[-2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
        mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (images * 0.5 + 0.5 - mean) / std


def _timm(name: str) -> ImageBackbone:
    import timm

    architecture, _, file = name.removeprefix(TIMM).partition(":")
    # num_classes=0 gives the pooled features: of a ViT with global_pool="token" the [CLS] token after the last norm.
    model = timm.create_model(architecture, pretrained=not file, num_classes=0)
    if file:
        if Path(file).suffix != ".safetensors":
            raise BackboneError(f"{file} is not a .safetensors file; other formats can run code when they are read")
        state = load_file(Path(file).expanduser())
        own = model.state_dict().keys()
        model.load_state_dict({key: value for key, value in state.items() if key in own or not _is_head(key)})
    data = timm.data.resolve_model_data_config(model)
    return ImageBackbone(name, model, _forward, int(data["input_size"][-1]), data["mean"], data["std"])


def _is_head(key: str) -> bool:
    """A classifier, which files of weights often hold and features have no use for."""
    return key.startswith(("head.", "fc.", "classifier."))


def _forward(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


def _transformers(name: str) -> ImageBackbone:
    import transformers

    place = str(Path(name).expanduser()) if name.startswith("~") else name
    model = transformers.AutoModel.from_pretrained(place, use_safetensors=True)
    model = getattr(model, "vision_model", model)
    config: Any = model.config
    size, mean, std = config.image_size, IMAGENET_MEAN, IMAGENET_STD
    processor = Path(place) / "preprocessor_config.json"
    if processor.is_file():
        record = json.loads(processor.read_text())
        mean, std = record.get("image_mean", mean), record.get("image_std", std)
    return ImageBackbone(name, model, _cls_token, int(size if isinstance(size, int) else size[0]), mean, std)


def _cls_token(model: nn.Module, images: Tensor) -> Tensor:
    return model(pixel_values=images).last_hidden_state[:, 0]
