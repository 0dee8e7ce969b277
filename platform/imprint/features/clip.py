"""Image and text features of an open_clip model: the [CLS] token of every second layer, and joint embeddings."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from imprint.backbone.loading import embedded_path
from imprint.errors import BackboneError

EMBEDDED = ("imprint-tiny-clip",)
CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"
HUB_PREFIX = "hf-hub:"


@dataclass(frozen=True, eq=False)
class ClipFeatures:
    """A frozen open_clip model with a visual transformer. Pictures come in [-1, 1], of any size."""

    name: str
    model: nn.Module
    tokenizer: Any
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> ClipFeatures:
        """Load by one of these names; weights are safetensors, always.

        - an embedded name: `imprint-tiny-clip`
        - a folder with open_clip_config.json and open_clip_model.safetensors
        - `hf-hub:OWNER/NAME`, a hub repository that holds these two files
        - `ARCHITECTURE:FILE.safetensors`, an architecture that open_clip knows and a file of its weights

        Raises:
            BackboneError: nothing loadable is there, or its image tower is no open_clip visual transformer.
        """
        text = str(name)
        architecture, _, file = text.partition(":")
        if text in EMBEDDED:
            folder = embedded_path(text)
            model, config = _from_folder(folder)
            tokenizer_name = f"local-dir:{folder}"
        elif text.startswith(HUB_PREFIX):
            folder = _from_hub(text)
            model, config = _from_folder(folder)
            tokenizer_name = f"local-dir:{folder}"
        elif architecture in open_clip.list_models():
            model, config = _from_file(architecture, file), {}
            tokenizer_name = architecture
        else:
            folder = Path(text).expanduser()
            model, config = _from_folder(folder)
            tokenizer_name = f"local-dir:{folder}"
        if not isinstance(model.visual, open_clip.transformer.VisionTransformer):
            raise BackboneError(
                f"loading CLIP from {text}: its image tower is a {type(model.visual).__name__}; expected an open_clip "
                "VisionTransformer, whose layers have a [CLS] token"
            )
        model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        return cls(
            name=text,
            model=model,
            tokenizer=open_clip.get_tokenizer(tokenizer_name),
            mean=tuple(config.get("mean") or open_clip.OPENAI_DATASET_MEAN),
            std=tuple(config.get("std") or open_clip.OPENAI_DATASET_STD),
        )

    @property
    def width(self) -> int:
        """Width of the image tower's layers."""
        return int(self.model.visual.transformer.width)

    @property
    def joint_width(self) -> int:
        """Width of the joint embeddings of pictures and texts."""
        return int(self.model.visual.output_dim)

    @property
    def layer_indices(self) -> list[int]:
        """Every second layer, counted from 0: 1, 3, 5, ... (16 of the 32 of ViT-H/14)."""
        return list(range(1, len(self.model.visual.transformer.resblocks), 2))

    @property
    def image_size(self) -> int:
        """Pixels along a side of what the image tower reads."""
        return int(self.model.visual.image_size[0])

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.visual.conv1.weight.dtype

    def preprocess(self, pixel_values: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        """Pictures in [-1, 1], cropped to a centre square, resized and normalised as the model expects."""
        images = pixel_values.to(self.device, torch.float32)
        height, width = images.shape[-2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        images = images[..., top : top + side, left : left + side]
        if side != self.image_size:
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        images = images.clamp(-1, 1) * 0.5 + 0.5
        mean = torch.tensor(self.mean, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, 3, 1, 1)
        return ((images - mean) / std).to(self.dtype)

    @torch.no_grad()
    def layers(self, pixel_values: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b width"]]:
        """The [CLS] token after every second *layer* of the image tower, float32.

        Not every second token of one layer, as a public version of E4T has it. Source: E4T section 3.1.
        """
        found = self.model.visual.forward_intermediates(
            self.preprocess(pixel_values),
            indices=self.layer_indices,
            stop_early=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        return [prefix[:, 0].float() for prefix in found["image_intermediates_prefix"]]

    @torch.no_grad()
    def tokens(self, pixel_values: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n width"]:
        """All tokens of the image tower's last layer, [CLS] first and then each patch, after its last norm; float32."""
        found = self.model.visual.forward_intermediates(
            self.preprocess(pixel_values),
            indices=1,
            normalize_intermediates=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        (prefix,), (patches,) = found["image_intermediates_prefix"], found["image_intermediates"]
        return torch.cat([prefix, patches], dim=1).float()

    @torch.no_grad()
    def patches(self, pixel_values: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b width rows columns"]:
        """The patch tokens after the last layer of the image tower, where they stand in the picture; float32.

        Source: domain-agnostic tuning encoder, arXiv:2307.06925, section 4.1.
        """
        found = self.model.visual.forward_intermediates(
            self.preprocess(pixel_values), indices=1, intermediates_only=True, output_fmt="NCHW"
        )
        return found["image_intermediates"][-1].float()

    @torch.no_grad()
    def encode_image(self, pixel_values: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Joint embeddings of pictures, of unit length, float32."""
        return F.normalize(self.model.encode_image(self.preprocess(pixel_values)).float(), dim=-1)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "b d"]:
        """Joint embeddings of texts, of unit length, float32."""
        tokens = self.tokenizer(list(texts)).to(self.device)
        return F.normalize(self.model.encode_text(tokens).float(), dim=-1)

    def fingerprint(self) -> str:
        """sha256 over names, shapes and fp16 values of the image tower's weights."""
        digest = hashlib.sha256()
        for key, tensor in sorted(self.model.visual.state_dict().items()):
            digest.update(f"{key}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
        return digest.hexdigest()


def _from_folder(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model in a folder, and its preprocess_cfg."""
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise BackboneError(
                f"loading CLIP from {folder}: {name} is missing; expected a folder with {CONFIG_NAME} and "
                f"{WEIGHTS_NAME}, one of {', '.join(EMBEDDED)}, hf-hub:OWNER/NAME or ARCHITECTURE:FILE.safetensors"
            )
    try:
        config = json.loads((folder / CONFIG_NAME).read_text())
        model = _build(config["model_cfg"], folder / WEIGHTS_NAME)
    except Exception as error:
        raise BackboneError(f"loading CLIP from {folder}: {type(error).__name__}: {_first_line(error)}") from error
    return model, config.get("preprocess_cfg", {})


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name.removeprefix(HUB_PREFIX), allow_patterns=["*.json", WEIGHTS_NAME, "*.txt"]))
    except Exception as error:
        raise BackboneError(f"fetching CLIP {name}: {type(error).__name__}: {_first_line(error)}") from error


def _from_file(architecture: str, file: str) -> nn.Module:
    path = Path(file).expanduser()
    if path.suffix != ".safetensors" or not path.is_file():
        raise BackboneError(
            f"loading CLIP {architecture}: {file or 'no weights'!r} is not a .safetensors file; expected "
            f"{architecture}:/path/to/weights.safetensors, or hf-hub:OWNER/NAME"
        )
    try:
        return _build(open_clip.get_model_config(architecture), path)
    except Exception as error:
        raise BackboneError(f"loading CLIP from {path}: {type(error).__name__}: {_first_line(error)}") from error


def _build(config: dict[str, Any], weights: Path) -> nn.Module:
    """The model of an open_clip `model_cfg`, with its weights.

    Not through `open_clip.create_model`, which logs warnings about the random weights that it starts from.
    """
    config = copy.deepcopy(config)
    text = config["text_cfg"]
    custom = config.pop("custom_text", False) or "hf_model_name" in text
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
    model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    model.load_state_dict(load_file(weights))
    return model


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
