"""LPIPS (arXiv:1801.03924) by torchmetrics, with weights from torchvision's server or from a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _LPIPS

from imprint.errors import BackboneError

Trunk = Literal["alex", "vgg", "squeeze"]
_ARCHITECTURES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
# slice2.3.weight, or in SqueezeNet slices.1.3.squeeze.weight, whose layers are modules.
_LAYER = re.compile(r"(?<=slice\d\.).+|(?<=slices\.\d\.).+")
SMALLEST = 64
"""Pixels along a side; smaller pictures are enlarged, since AlexNet's last layers would have nothing left of them."""


class Lpips:
    """The distance of pairs of pictures in [-1, 1]; 0 for the same, by human judgement the larger the less alike.

    torchmetrics brings the linear weights of LPIPS itself. Those of the trunk, trained on ImageNet, come from
    torchvision's server, or from `trunk_file`, a safetensors file of torchvision's `alexnet`, `vgg16` or
    `squeezenet1_1`, where that cannot be reached.
    """

    def __init__(self, trunk: Trunk = "alex", trunk_file: str | Path | None = None) -> None:
        """
        Raises:
            BackboneError: the weights cannot be had.
        """
        try:
            if trunk_file is None:
                net = _LPIPS(net=trunk)
            else:
                net = _LPIPS(net=trunk, pnet_rand=True)
                _load_trunk(net.net, trunk, Path(trunk_file).expanduser())
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            raise BackboneError(
                f"loading LPIPS with {_ARCHITECTURES[trunk]}: {type(error).__name__}: {reason}; give a safetensors "
                f"file of torchvision's {_ARCHITECTURES[trunk]} where its server cannot be reached"
            ) from error
        self._net = net.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(
        self, one: Float[Tensor, "n 3 h w"], two: Float[Tensor, "n 3 h w"], batch_size: int = 32
    ) -> Float[Tensor, "n"]:
        pairs = zip(one.split(batch_size), two.split(batch_size), strict=True)
        return torch.cat([self._net(_large(a), _large(b)).flatten() for a, b in pairs])


def _large(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h2 w2"]:
    side = min(images.shape[-2:])
    if side >= SMALLEST:
        return images
    return F.interpolate(images, scale_factor=SMALLEST / side, mode="bilinear", align_corners=False)


def _load_trunk(slices: nn.Module, trunk: Trunk, file: Path) -> None:
    """Put torchvision's weights into torchmetrics' slices, which keep each layer's number among `features`."""
    state = {k.removeprefix("features."): v for k, v in load_file(file).items() if k.startswith("features.")}
    own = {name: _LAYER.search(name)[0] for name in slices.state_dict()}  # type: ignore[index]
    missing = sorted(set(own.values()) - state.keys())
    if missing:
        raise BackboneError(f"{file} has no features.{missing[0]}; it is not a {_ARCHITECTURES[trunk]}")
    slices.load_state_dict({name: state[layer] for name, layer in own.items()})
