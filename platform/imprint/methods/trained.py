"""What of a backbone trains: copies of its weights, or low-rank adapters, in a shell; and what is kept of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import LoraSpec
from imprint.methods.low_rank import adapter_parameters, low_rank_shell, pack_factors
from imprint.methods.shells import named_weights, trainable_shell
from imprint.methods.weight_deltas import STORAGE, pack_deltas


@dataclass(frozen=True, eq=False)
class Trained:
    """A shell to train in: `groups` are (parameters, learning rate)."""

    backbone: Backbone
    groups: Sequence[tuple[list[Tensor], float]]
    low_rank: bool

    def pack(self, original: Backbone, storage: str) -> dict[str, Tensor]:
        """What training changed, as tensors of a concept."""
        if self.low_rank:
            return pack_factors(self.backbone, STORAGE[storage])
        trains = {id(parameter) for parameters, rate in self.groups if rate > 0 for parameter in parameters}
        tuned = {name: value for name, value in named_weights(self.backbone) if id(value) in trains}
        return pack_deltas(original, tuned, storage)


def train_weights(backbone: Backbone, *, unet: float, text_encoders: float) -> Trained:
    """All weights of the UNet and of the text encoders, each at its learning rate; 0 leaves them as they are."""
    own = trainable_shell(backbone, unet=unet > 0, text_encoders=text_encoders > 0)
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in named_weights(own):
        if parameter.requires_grad:
            groups[name.startswith("unet.")].append(parameter)
    return Trained(own, [(groups[True], unet), (groups[False], text_encoders)], low_rank=False)


def train_unet(backbone: Backbone, names: Collection[str], rate: float) -> Trained:
    """Those of the UNet's parameters that are named; none leaves it as it is."""
    own = trainable_shell(backbone, unet=names, text_encoders=False)
    parameters: list[Tensor] = [parameter for _, parameter in named_weights(own) if parameter.requires_grad]
    return Trained(own, [(parameters, rate)], low_rank=False)


def train_low_rank(backbone: Backbone, spec: LoraSpec, *, text_encoders: bool, seed: int) -> Trained:
    """Adapters at every attention projection of the UNet, and of the text encoders where asked."""
    adapted = low_rank_shell(backbone, spec, text_encoders=text_encoders, seed=seed)
    return Trained(adapted, [(adapter_parameters(adapted), spec.learning_rate)], low_rank=True)
