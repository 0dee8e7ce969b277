"""Shells: a backbone whose networks share their weights with another's, but for those that are replaced.

Tuning trains in a shell and sampling draws with one, so that the caller's backbone is never touched, not even by an
exception, and no weight that stays as it is takes memory twice. Parameters are named as in diffusers' folders:
`unet.<parameter>`, `text_encoder.<parameter>`, `text_encoder_2.<parameter>`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from imprint.backbone import Backbone
from imprint.errors import ConceptError


def trainable_parts(backbone: Backbone) -> dict[str, nn.Module]:
    """The UNet and the text encoders by diffusers' names; the autoencoder is never tuned."""
    encoders = {f"text_encoder{'' if n == 0 else f'_{n + 1}'}": e for n, e in enumerate(backbone.text_encoders)}
    return {"unet": backbone.unet, **encoders}


def named_weights(backbone: Backbone) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter of the UNet and the text encoders, as `<part>.<parameter>`."""
    for part, module in trainable_parts(backbone).items():
        for name, parameter in module.named_parameters():
            yield f"{part}.{name}", parameter


def shell(backbone: Backbone, replaced: Mapping[str, Tensor] | None = None) -> Backbone:
    """A backbone of its own modules that shares every tensor with `backbone` but those in `replaced`, by name.

    A replaced parameter takes gradients where the tensor that replaces it does.

    Raises:
        ConceptError: a name or a shape is not the backbone's.
    """
    replaced = dict(replaced or {})
    parts = {}
    for part, module in trainable_parts(backbone).items():
        memo: dict[int, Tensor] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        for name, parameter in module.named_parameters():
            value = replaced.pop(f"{part}.{name}", None)
            if value is None:
                continue
            if value.shape != parameter.shape:
                raise ConceptError(
                    f"reading a concept: {part}.{name} has the shape {tuple(value.shape)}, and the backbone's is "
                    f"{tuple(parameter.shape)}; it does not fit"
                )
            memo[id(parameter)] = nn.Parameter(value.detach(), requires_grad=value.requires_grad)
        # deepcopy gives back what the memo holds instead of copying it.
        parts[part] = copy.deepcopy(module, memo)
    if replaced:
        raise ConceptError(f"reading a concept: the backbone has no {next(iter(replaced))}; it does not fit")
    encoders = tuple(module for part, module in parts.items() if part != "unet")
    return dataclasses.replace(backbone, unet=parts["unet"], text_encoders=encoders)


def trainable_shell(backbone: Backbone, *, unet: bool | Collection[str], text_encoders: bool) -> Backbone:
    """A shell in fp32 whose UNet, or text encoders, are copies that take gradients.

    `unet` may name some of the UNet's parameters, for those alone.
    What does not train is shared where it is in fp32 already. Word embeddings of the text encoders stay as they are:
    of a few pictures' words, only those in the prompts would move.
    """
    replaced = {}
    for name, parameter in named_weights(backbone):
        if not name.startswith("unet."):
            trains = text_encoders and "embedding" not in name
        else:
            trains = unet if isinstance(unet, bool) else name.removeprefix("unet.") in unet
        if trains:
            replaced[name] = parameter.detach().float().clone().requires_grad_()
        elif parameter.dtype != torch.float32:
            replaced[name] = parameter.detach().float()
    return shell(backbone, replaced)
