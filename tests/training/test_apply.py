"""What is applied to a UNet changes no loss and no gradient, also where a method replaces its weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imprint.backbone import Backbone, TextConditioning
from imprint.backbone.published import build_published
from imprint.config.training import EngineSpec
from imprint.training.apply import apply_engine_options


def backbone() -> Backbone:
    torch.manual_seed(0)
    made = build_published("sd21-base", reduced=True)
    made.unet.requires_grad_(True)
    return made


def gradients(made: Backbone, *, replaced: bool, autocast: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    conditioning = TextConditioning(torch.randn(2, 5, 16, generator=generator))
    names = [projection.name for projection in made.attention_projections()]
    parameters = dict(made.unet.named_parameters())
    scale = torch.full((), 1.5, requires_grad=True)
    weights = {name: parameters[name] * scale for name in names} if replaced else None
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = made.denoise(latents, torch.tensor([10, 900]), conditioning, weights).float().square().mean()
    loss.backward()
    found = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    return loss.detach(), found | ({"scale": scale.grad} if replaced else {})


@pytest.mark.parametrize("replaced", [False, True])
def test_activation_checkpointing_changes_nothing(replaced: bool) -> None:
    plain, applied = backbone(), backbone()
    apply_engine_options(applied, EngineSpec(activation_checkpointing=True))
    loss, expected = gradients(plain, replaced=replaced)
    again, found = gradients(applied, replaced=replaced)
    assert torch.equal(loss, again) and found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_activation_checkpointing_keeps_less() -> None:
    def kept(made: Backbone) -> int:
        sizes: dict[int, int] = {}

        def keep(value: Tensor) -> Tensor:
            sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            conditioning = TextConditioning(torch.zeros(2, 5, 16))
            made.denoise(torch.zeros(2, 4, 8, 8), torch.tensor([10, 900]), conditioning)
        weights = {p.untyped_storage().data_ptr() for p in made.unet.parameters()}
        return sum(size for pointer, size in sizes.items() if pointer not in weights)

    applied = backbone()
    apply_engine_options(applied, EngineSpec(activation_checkpointing=True))
    assert kept(applied) < 0.5 * kept(backbone())


def test_channels_last_changes_nothing_but_rounding() -> None:
    plain, applied = backbone(), backbone()
    apply_engine_options(applied, EngineSpec(channels_last=True))
    assert applied.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    loss, expected = gradients(plain, replaced=False)
    again, found = gradients(applied, replaced=False)
    torch.testing.assert_close(again, loss)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(900)  # the compiler takes minutes on a busy machine
@pytest.mark.parametrize("what", ["blocks", "whole"])
@pytest.mark.filterwarnings("ignore")
def test_compile_changes_nothing_but_rounding(what: str) -> None:
    plain, applied = backbone(), backbone()
    apply_engine_options(applied, EngineSpec(compile=what))
    loss, expected = gradients(plain, replaced=False)
    again, found = gradients(applied, replaced=False)
    torch.testing.assert_close(again, loss)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)
