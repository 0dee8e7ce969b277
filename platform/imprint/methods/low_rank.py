"""Low-rank changes of attention projections: peft's adapters in a shell, and their factors outside of it.

Source: LoRA, arXiv:2106.09685. W' = W + B A with `down` = A [rank, in] and `up` = B [out, rank]; the scale alpha / rank
is part of `up`, so factors are complete as they are. Tensors by name: `lora.<part>.<module>.down` and `.up`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imprint.backbone import Backbone
from imprint.config.methods import LoraSpec
from imprint.errors import ConceptError
from imprint.methods.shells import named_weights, shell, trainable_parts

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

PREFIX = "lora."
_ADAPTER = "default"
_TEXT_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class LowRank(NamedTuple):
    """The factors of one projection."""

    down: Float[Tensor, "rank into"]
    up: Float[Tensor, "out rank"]

    def product(self) -> Float[Tensor, "out into"]:
        """The change of the weight, in fp32."""
        return self.up.float() @ self.down.float()


def low_rank_shell(backbone: Backbone, spec: LoraSpec, *, text_encoders: bool, seed: int) -> Backbone:
    """A shell with fresh adapters at every attention projection: A at random, B zero, so nothing changes yet."""
    from peft import LoraConfig, inject_adapter_in_model  # takes a second, and only tuning needs it

    adapted = shell(backbone)
    targets = {"unet": [p.name.removesuffix(".weight") for p in backbone.attention_projections()]}
    parts = trainable_parts(adapted)
    if text_encoders:
        targets |= {part: list(_TEXT_PROJECTIONS) for part in parts if part != "unet"}
    for part, names in targets.items():
        config = LoraConfig(r=spec.rank, lora_alpha=spec.alpha or spec.rank, target_modules=names)
        inject_adapter_in_model(config, parts[part], _ADAPTER)
    generator = torch.Generator().manual_seed(seed)
    for _, layer in _layers(adapted):
        # peft draws from torch's global state; the same seed must give the same concept.
        down = layer.lora_A[_ADAPTER].weight
        with torch.no_grad():
            down.copy_(fresh_down(*down.shape, generator))
    return adapted


def fresh_down(rank: int, into: int, generator: torch.Generator) -> Float[Tensor, "rank into"]:
    """A as LoRA starts it: uniform, as a linear layer's own."""
    return (2 * torch.rand(rank, into, generator=generator) - 1) / math.sqrt(into)


def adapter_parameters(adapted: Backbone) -> list[nn.Parameter]:
    """The factors that train, in the order of the modules."""
    return [factors[_ADAPTER].weight for _, layer in _layers(adapted) for factors in (layer.lora_A, layer.lora_B)]


@torch.no_grad()
def pack_factors(adapted: Backbone, dtype: torch.dtype) -> dict[str, Tensor]:
    """The factors of a shell's adapters as tensors of a concept."""
    tensors = {}
    for name, layer in _layers(adapted):
        up = layer.lora_B[_ADAPTER].weight * layer.scaling[_ADAPTER]
        tensors[f"{PREFIX}{name}.down"] = layer.lora_A[_ADAPTER].weight.detach().to(dtype).clone()
        tensors[f"{PREFIX}{name}.up"] = up.detach().to(dtype).clone()
    return tensors


def read_factors(tensors: Mapping[str, Tensor]) -> dict[str, LowRank]:
    """The factors among a concept's tensors, by `<part>.<module>`.

    Raises:
        ConceptError: a factor is without its other half, or their ranks differ.
    """
    factors = {}
    for name, down in tensors.items():
        if not (name.startswith(PREFIX) and name.endswith(".down")):
            continue
        up = tensors.get(name.removesuffix("down") + "up")
        if up is None or up.shape[1] != down.shape[0]:
            raise ConceptError(f"reading a concept: {name} has no .up of its rank, {down.shape[0]}; it is not whole")
        factors[name.removeprefix(PREFIX).removesuffix(".down")] = LowRank(down, up)
    return factors


def as_tensors(factors: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """The other way round: factors as tensors of a concept."""
    return {f"{PREFIX}{name}.{half}": getattr(pair, half) for name, pair in factors.items() for half in pair._fields}


@torch.no_grad()
def merged_weights(backbone: Backbone, factors: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """W + B A of every adapted projection, by its full name; formed in fp32.

    Raises:
        ConceptError: a factor does not fit the backbone.
    """
    own = dict(named_weights(backbone))
    weights = {}
    for module, pair in factors.items():
        parameter = own.get(f"{module}.weight")
        if parameter is None or parameter.shape != (pair.up.shape[0], pair.down.shape[1]):
            raise ConceptError(f"reading a concept: the low-rank change of {module} does not fit the backbone")
        change = pair.product().to(parameter.device)
        weights[f"{module}.weight"] = (parameter.float() + change).to(parameter.dtype)
    return weights


@torch.no_grad()
def summed(each: Sequence[Mapping[str, LowRank]], weights: Sequence[float]) -> dict[str, LowRank]:
    """Factors whose product is the weighted sum of the products: stacked along the rank, each `up` times its weight."""
    total: dict[str, LowRank] = {}
    for factors, weight in zip(each, weights, strict=True):
        for module, pair in factors.items():
            down, up = pair.down.float(), weight * pair.up.float()
            if module in total:
                down, up = torch.cat([total[module].down, down]), torch.cat([total[module].up, up], dim=1)
            total[module] = LowRank(down, up)
    return total


def _layers(adapted: Backbone) -> list[tuple[str, LoraLayer]]:
    from peft.tuners.lora import LoraLayer

    return [
        (f"{part}.{name}", module)
        for part, network in trainable_parts(adapted).items()
        for name, module in network.named_modules()
        if isinstance(module, LoraLayer)
    ]
