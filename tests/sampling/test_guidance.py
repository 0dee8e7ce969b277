from __future__ import annotations

from pathlib import Path

import pytest
import torch

from imprint.backbone import Backbone
from imprint.config.methods import SampleSpec
from imprint.sampling import BackboneDenoiser, GuidedDenoiser, draw_prompts
from imprint.sampling.denoiser import constant


@pytest.fixture
def backbone(any_pipeline: Path) -> Backbone:
    return Backbone.load(any_pipeline)


def latents() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([800, 300])


def test_guidance_on_the_raw_output_is_guidance_on_eps(backbone: Backbone) -> None:
    """Eq. 6 of arXiv:2207.12598 in eps, from two separate unguided calls."""
    xt, timesteps = latents()
    conditional, unconditional = backbone.encode_text(["a red cat", "a blue face"]), backbone.encode_text([""])
    with_text = BackboneDenoiser(backbone, constant(conditional))(xt, timesteps)
    without = BackboneDenoiser(backbone, constant(unconditional.repeat(2)))(xt, timesteps)
    guided = GuidedDenoiser(backbone, constant(conditional), unconditional, 4.0)(xt, timesteps)
    torch.testing.assert_close(guided.eps, without.eps + 4.0 * (with_text.eps - without.eps), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(guided.x0, without.x0 + 4.0 * (with_text.x0 - without.x0), rtol=1e-4, atol=1e-4)


def test_both_branches_run_in_one_forward(backbone: Backbone) -> None:
    calls: list[int] = []
    handle = backbone.unet.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    xt, timesteps = latents()
    conditioning = backbone.encode_text(["a cat", "a face"])
    GuidedDenoiser(backbone, constant(conditioning), backbone.encode_text([""]), 4.0)(xt, timesteps)
    handle.remove()
    assert calls == [4]


def test_x0_and_eps_agree_with_xt(backbone: Backbone) -> None:
    """x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps, whatever the network predicts."""
    xt, timesteps = latents()
    x0, eps = BackboneDenoiser(backbone, constant(backbone.encode_text(["a", "b"])))(xt, timesteps)
    torch.testing.assert_close(backbone.schedule.add_noise(x0, eps, timesteps), xt, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "euler_ancestral"])
def test_prompts_become_pictures_that_depend_on_their_own_seed(tiny_sd15: Path, sampler: str) -> None:
    backbone = Backbone.load(tiny_sd15)
    spec = SampleSpec(steps=3, sampler=sampler, batch_size=2)  # type: ignore[arg-type]
    three = draw_prompts(backbone, ["a cat", "a face", "a cat"], spec, seeds=[1, 2, 3])
    assert three.shape == (3, 3, 16, 16) and float(three.abs().max()) <= 1
    again = draw_prompts(backbone, ["a face"], spec, seeds=[2])
    torch.testing.assert_close(three[1:2], again, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(three[0], three[2])


def test_progress_counts_all_batches(tiny_sd15: Path) -> None:
    seen: list[tuple[int, int]] = []
    spec = SampleSpec(steps=2, batch_size=2)
    draw_prompts(Backbone.load(tiny_sd15), ["a"] * 3, spec, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
