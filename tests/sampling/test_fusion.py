"""Fusion sampling against the equations of ProFusion written out, arXiv:2305.13579."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from imprint.backbone import Backbone, TextConditioning
from imprint.config.methods import FusionSpec
from imprint.sampling.ddim import ddim, fresh_noise
from imprint.sampling.denoiser import Denoised
from imprint.sampling.fusion import fuse, fusion_sampling
from imprint.sampling.guidance import BranchedDenoiser, guide_all

ABAR = torch.linspace(0.999, 0.01, 1000, dtype=torch.float64)
PAIRS = [(900, 800), (500, 400), (60, 20), (999, 998)]


def draws(seed: int, count: int = 5) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_steps(
    xt: torch.Tensor, eps: torch.Tensor, t: int, before: int, sigma: float, z1: torch.Tensor, z2: torch.Tensor
) -> torch.Tensor:
    """x~_{t-1} by Eq. 8 and x~_t by Eq. 9, with the paper's A, L, B, b, mu and Sigma."""
    a, p = float(ABAR[t]), float(ABAR[before])
    x0 = (xt - math.sqrt(1 - a) * eps) / math.sqrt(a)
    before_t = (
        math.sqrt(p) * x0
        + math.sqrt(1 - p - sigma**2) * (xt - math.sqrt(a) * x0) / math.sqrt(1 - a)
        + sigma * z1
    )  # fmt: skip
    variance = (1 - a) * sigma**2 / (1 - p)
    mu = math.sqrt(a) * x0
    b = math.sqrt(p) * x0 - math.sqrt(a * (1 - p - sigma**2)) / math.sqrt(1 - a) * x0
    big_a = math.sqrt(1 - p - sigma**2) / math.sqrt(1 - a)
    big_l, big_b = 1 / sigma**2, 1 / (1 - a)
    mean = variance * (big_a * big_l * (before_t - b) + big_b * mu)
    return mean + math.sqrt(variance) * z2


@pytest.mark.parametrize(("t", "before"), PAIRS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_eq_11_is_the_two_step_sampling_that_it_summarises(t: int, before: int, share: float) -> None:
    """The same mean, and the same variance: that of one noise against the sum of those of two."""
    xt, eps, zero, one = draws(0), draws(1), torch.zeros(5), torch.ones(5)
    sigma = share * math.sqrt(1 - float(ABAR[before]))
    mean = two_steps(xt, eps, t, before, sigma, zero, zero)
    torch.testing.assert_close(fuse(xt, eps, ABAR[t], share, zero), mean)
    first = two_steps(xt, eps, t, before, sigma, one, zero) - mean
    second = two_steps(xt, eps, t, before, sigma, zero, one) - mean
    noise = fuse(xt, eps, ABAR[t], share, one) - mean
    torch.testing.assert_close(noise**2, first**2 + second**2)


@pytest.mark.parametrize(("t", "before"), PAIRS)
def test_eq_11_as_it_is_printed(t: int, before: int) -> None:
    xt, eps, z = draws(0), draws(1), draws(2)
    a, p = float(ABAR[t]), float(ABAR[before])
    sigma = 0.6 * math.sqrt(1 - p)
    expected = (
        xt
        - sigma**2 * math.sqrt(1 - a) / (1 - p) * eps
        + math.sqrt((1 - a) * (2 - 2 * p - sigma**2)) / (1 - p) * sigma * z
    )  # fmt: skip
    torch.testing.assert_close(fuse(xt, eps, ABAR[t], 0.6, z), expected)


def test_eq_11_at_the_largest_sigma_is_eq_7() -> None:
    """sigma_t = sqrt(1 - abar_{t-1}): fresh noise on the predicted x_0, Remark 2."""
    xt, eps, z = draws(0), draws(1), draws(2)
    a = ABAR[500]
    x0 = (xt - (1 - a).sqrt() * eps) / a.sqrt()
    torch.testing.assert_close(fuse(xt, eps, a, 1.0, z), a.sqrt() * x0 + (1 - a).sqrt() * z)


def test_eq_11_is_less_random_than_langevin_dynamics() -> None:
    """Remark 1: its variance is below 2 lambda, with lambda = sigma_t^2 (1 - abar_t) / (1 - abar_{t-1})."""
    for share in (0.1, 0.5, 1.0):
        noise = fuse(torch.zeros(1), torch.zeros(1), ABAR[500], share, torch.ones(1))
        step = share**2 * (1 - float(ABAR[500]))
        assert float(noise) ** 2 < 2 * step


def gaussian(mean: float, deviation: float) -> object:
    """The exact denoiser of x_0 ~ N(mean, deviation^2)."""

    def denoise(xt: torch.Tensor, timesteps: torch.Tensor) -> Denoised:
        a = ABAR[timesteps].view(-1, 1, 1, 1).to(xt.dtype)
        x0 = (mean * (1 - a) + deviation**2 * a.sqrt() * xt) / (deviation**2 * a + 1 - a)
        return Denoised(x0, (xt - a.sqrt() * x0) / (1 - a).sqrt())

    return denoise


def fail(*_: object) -> Denoised:
    raise AssertionError("this stage must not run")


START = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(3))
TIMESTEPS = torch.tensor([999, 700, 400, 100])


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in (5, 6)]


def test_no_fusion_steps_are_sampling_by_eq_6() -> None:
    """m = 0: the refinement stage alone, and so plain DDIM with its noise."""
    refined = gaussian(0.3, 0.5)
    spec = FusionSpec(steps=0)
    got = fusion_sampling(fail, refined, START, TIMESTEPS, ABAR, spec, eta=0.3, generator=generators())
    assert torch.equal(got, ddim(refined, START, TIMESTEPS, ABAR, eta=0.3, generator=generators()))


@pytest.mark.parametrize("m", [1, 2])
def test_algorithm_1_step_by_step(m: int) -> None:
    fused, refined, spec = gaussian(0.3, 0.5), gaussian(-0.2, 0.4), FusionSpec(steps=m, sigma=0.7)
    got = fusion_sampling(fused, refined, START, TIMESTEPS, ABAR, spec, generator=generators())
    x, own = START, generators()
    for number, t in enumerate(TIMESTEPS.tolist()):
        a = float(ABAR[t])
        p = float(ABAR[TIMESTEPS[number + 1]]) if number < 3 else 1 - 1e-9
        sigma = 0.7 * math.sqrt(1 - p)
        for _ in range(m):
            eps = fused(x, torch.tensor([t, t])).eps
            z = fresh_noise(x, own)
            spread = math.sqrt((1 - a) * (2 - 2 * p - sigma**2)) / (1 - p) * sigma
            x = x - sigma**2 * math.sqrt(1 - a) / (1 - p) * eps + spread * z
        said = refined(x, torch.tensor([t, t]))
        x = said.x0 if number == 3 else math.sqrt(p) * said.x0 + math.sqrt(1 - p) * said.eps
    torch.testing.assert_close(got, x.float(), rtol=1e-4, atol=1e-4)


def test_without_the_refinement_stage_steps_are_by_eq_8() -> None:
    fused, spec = gaussian(0.3, 0.5), FusionSpec(refinement=False, sigma=0.7)
    got = fusion_sampling(fused, fail, START, TIMESTEPS, ABAR, spec, generator=generators())
    x, own = START, generators()
    for number, t in enumerate(TIMESTEPS.tolist()):
        said, a = fused(x, torch.tensor([t, t])), float(ABAR[t])
        if number == 3:
            x = said.x0
            break
        p = float(ABAR[TIMESTEPS[number + 1]])
        sigma = 0.7 * math.sqrt(1 - p)
        towards = (x - math.sqrt(a) * said.x0) / math.sqrt(1 - a)
        x = math.sqrt(p) * said.x0 + math.sqrt(1 - p - sigma**2) * towards + sigma * fresh_noise(x, own)
    torch.testing.assert_close(got, x.float(), rtol=1e-4, atol=1e-4)


def test_eq_6_for_one_and_several_subjects() -> None:
    none, first, second, text = (draws(seed) for seed in range(4))
    w1, w2, wc = 0.5, 1.5, 3.0
    expected = none + (1 + w1) * (first - none) + (1 + wc) * (text - none)
    torch.testing.assert_close(guide_all(none, [first, text], [1 + w1, 1 + wc]), expected)
    torch.testing.assert_close(
        guide_all(none, [first, second, text], [1 + w1, 1 + w2, 1 + wc]), expected + (1 + w2) * (second - none)
    )
    torch.testing.assert_close(guide_all(none, [text], [1 + wc]), (1 + wc) * text - wc * none)  # Eq. 3


@torch.no_grad()
def test_eq_6_acts_on_the_noise_whatever_the_network_predicts(any_pipeline: Path) -> None:
    """All branches in one forward, against one call and one conversion to eps for each."""
    backbone = Backbone.load(any_pipeline)
    xt = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([300, 800])
    texts = [backbone.encode_text([text] * 2) for text in ("", "a cat", "a face on blue")]
    calls: list[int] = []
    handle = backbone.unet.register_forward_pre_hook(lambda *_: calls.append(1))

    def branches(xt: torch.Tensor, timesteps: torch.Tensor) -> list[TextConditioning]:
        return texts[1:]

    got = BranchedDenoiser(backbone, branches, texts[0][:1], (1.5, 4.0))(xt, timesteps)
    handle.remove()
    none, one, two = (backbone.schedule.to_eps(backbone.denoise(xt, timesteps, text), xt, timesteps) for text in texts)
    torch.testing.assert_close(got.eps, none + 1.5 * (one - none) + 4 * (two - none), rtol=1e-3, atol=1e-4)
    assert calls == [1]


def test_one_stage_at_least() -> None:
    with pytest.raises(ValueError, match="without the refinement stage"):
        FusionSpec(steps=0, refinement=False)
