"""What of a backbone trains: copies of its weights, or low-rank adapters, in a shell; and what is kept of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from imprint.backbone import Backbone
from imprint.config.methods import LoraSpec
from imprint.errors import CheckpointError
from imprint.methods.low_rank import adapter_parameters, low_rank_shell, pack_factors
from imprint.methods.shells import named_weights, trainable_parts, trainable_shell
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

    def register(self, owner: nn.Module) -> None:
        """Make what trains, and nothing else, submodules of `owner`; its parameters are then named as `named_weights`.

        The outermost modules all of whose weights train are registered themselves, so that an engine that gathers
        weights as a module is called (ZeRO-3) sees each call. What lies around them is stood in for by empty modules.
        """
        for part, module in trainable_parts(self.backbone).items():
            _graft(owner, part, module, whole=True)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer of a trainer: the greatest learning rate is the trainer's, others their share."""
        greatest = max(rate for _, rate in self.groups)
        return [
            {"params": parameters, "lr_scale": rate / greatest}
            for parameters, rate in self.groups
            if parameters and rate > 0
        ]

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put in what a trainer made of the parameters that `register` named.

        Raises:
            CheckpointError: names or shapes are others.
        """
        own = {name: parameter for name, parameter in named_weights(self.backbone) if parameter.requires_grad}
        for name in own.keys() | state.keys():
            if name not in own or name not in state or own[name].shape != state[name].shape:
                raise CheckpointError(
                    f"loading trained weights: {name} does not fit; the job's model differs from the one that was saved"
                )
            own[name].copy_(state[name])


def _graft(owner: nn.Module, name: str, module: nn.Module, *, whole: bool) -> None:
    trains = [parameter.requires_grad for parameter in module.parameters()]
    if not any(trains):
        return
    if all(trains):
        owner.add_module(name, module)
        if not whole:
            module.register_forward_pre_hook(_in_own_precision, with_kwargs=True)
        return
    around = nn.Module()
    owner.add_module(name, around)
    for own_name, parameter in module.named_parameters(recurse=False):
        if parameter.requires_grad:
            around.register_parameter(own_name, parameter)
    for child_name, child in module.named_children():
        _graft(around, child_name, child, whole=False)


def _in_own_precision(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """What frozen neighbours give, in the precision that an engine keeps this part of a network in.

    DeepSpeed's bf16 weights stand beside frozen ones in fp32, and on CPUs layer norms take no mixture.
    """
    dtype = next(module.parameters()).dtype

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return tuple(cast(value) for value in args), {name: cast(value) for name, value in kwargs.items()}


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
