"""LoRA: peft's adapters, their factors, and what merging them means."""

from __future__ import annotations

import pytest
import torch

from imprint.backbone import Backbone
from imprint.config.methods import LoraSpec
from imprint.errors import ConceptError
from imprint.methods.low_rank import (
    LowRank,
    adapter_parameters,
    as_tensors,
    low_rank_shell,
    merged_weights,
    pack_factors,
    read_factors,
    summed,
)
from imprint.methods.shells import named_weights, shell


def adapted(backbone: Backbone, seed: int = 0, moved: bool = True, **spec: object) -> Backbone:
    """A shell with adapters whose B is not zero."""
    own = low_rank_shell(backbone, LoraSpec(**spec), text_encoders=True, seed=seed)  # type: ignore[arg-type]
    if moved:
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for parameter in adapter_parameters(own):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return own


def output(backbone: Backbone) -> torch.Tensor:
    xt = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return backbone.denoise(xt, torch.tensor([400]), backbone.encode_text(["a photo of a cat"]))


def test_lora_at_step_0_is_the_base_bit_for_bit(backbone: Backbone) -> None:
    assert torch.equal(output(adapted(backbone, moved=False)), output(backbone))


def test_every_attention_projection_is_adapted(backbone: Backbone) -> None:
    factors = read_factors(pack_factors(adapted(backbone), torch.float32))
    unet = {f"unet.{p.name.removesuffix('.weight')}" for p in backbone.attention_projections()}
    assert {name for name in factors if name.startswith("unet.")} == unet
    parts = {name.partition(".")[0] for name in factors}
    assert len(parts) == 1 + len(backbone.text_encoders)


def test_lora_merge_is_the_forward_of_the_adapters(backbone: Backbone) -> None:
    """W' = W + (alpha / r) B A, merged, against peft's two products."""
    own = adapted(backbone, rank=2, alpha=3.0)
    factors = read_factors(pack_factors(own, torch.float32))
    merged = shell(backbone, merged_weights(backbone, factors))
    assert not torch.allclose(output(own), output(backbone), atol=1e-3)
    torch.testing.assert_close(output(merged), output(own), rtol=1e-4, atol=1e-5)


def test_lora_merge_of_one_projection_in_float64(sd15: Backbone) -> None:
    own = adapted(sd15, rank=3, alpha=1.5)
    tensors = pack_factors(own, torch.float32)
    name = sd15.attention_projections()[0].name
    layer = own.unet.get_submodule(name.removesuffix(".weight"))
    a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
    expected = dict(sd15.unet.named_parameters())[name].double() + 1.5 / 3 * b @ a
    got = merged_weights(sd15, read_factors(tensors))[f"unet.{name}"]
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


def test_merging_sums_the_changes() -> None:
    draw = torch.Generator().manual_seed(0)

    def pair(rank: int) -> LowRank:
        return LowRank(torch.randn(rank, 5, generator=draw), torch.randn(4, rank, generator=draw))

    first, second = {"unet.x": pair(2), "unet.y": pair(2)}, {"unet.x": pair(3)}
    total = summed([first, second], [0.5, 2.0])
    expected = 0.5 * first["unet.x"].product() + 2 * second["unet.x"].product()
    torch.testing.assert_close(total["unet.x"].product(), expected)
    torch.testing.assert_close(total["unet.y"].product(), 0.5 * first["unet.y"].product())


def test_factors_and_tensors_are_the_same_thing(sd15: Backbone) -> None:
    tensors = pack_factors(adapted(sd15), torch.float32)
    again = as_tensors(read_factors(tensors))
    assert set(again) == set(tensors) and all(torch.equal(value, tensors[name]) for name, value in again.items())


def test_the_same_seed_gives_the_same_adapters_whatever_torch_drew_before(sd15: Backbone) -> None:
    torch.manual_seed(0)
    first = pack_factors(adapted(sd15, seed=1, moved=False), torch.float32)
    torch.manual_seed(9)
    second = pack_factors(adapted(sd15, seed=1, moved=False), torch.float32)
    other = pack_factors(adapted(sd15, seed=2, moved=False), torch.float32)
    downs = [name for name in first if name.endswith(".down")]
    assert all(torch.equal(first[name], second[name]) for name in downs)
    assert not any(torch.equal(first[name], other[name]) for name in downs)


def test_adapters_are_not_in_the_backbone(sd15: Backbone) -> None:
    before = [name for name, _ in named_weights(sd15)]
    adapted(sd15)
    assert [name for name, _ in named_weights(sd15)] == before


def test_factors_that_are_not_whole_or_do_not_fit(sd15: Backbone) -> None:
    with pytest.raises(ConceptError, match=r"has no \.up of its rank"):
        read_factors({"lora.unet.x.down": torch.zeros(2, 3)})
    with pytest.raises(ConceptError, match="does not fit the backbone"):
        merged_weights(sd15, {"unet.conv_in": LowRank(torch.zeros(2, 3), torch.zeros(4, 2))})
