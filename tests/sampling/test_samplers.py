"""Samplers against diffusers' schedulers and against Gaussian data, whose exact denoiser is known."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler
from torch import Tensor

from imprint.backbone import NoiseSchedule
from imprint.errors import ConfigError
from imprint.sampling import ddim, ddpm_ancestral, euler_ancestral, spaced_timesteps
from imprint.sampling.denoiser import Denoised

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
ABAR = NoiseSchedule.from_scheduler(CONFIG).alphas_cumprod


def network(xt: Tensor, timesteps: Tensor) -> Tensor:
    """Some smooth function in place of a UNet's raw output."""
    return torch.tanh(xt * 1.3 + timesteps.view(-1, 1, 1, 1) / 700) * 0.8


def denoiser(prediction_type: str):  # type: ignore[no-untyped-def]
    schedule = NoiseSchedule(ABAR, prediction_type)  # type: ignore[arg-type]

    def call(xt: Tensor, timesteps: Tensor) -> Denoised:
        output = network(xt, timesteps)
        return Denoised(schedule.to_x0(output, xt, timesteps), schedule.to_eps(output, xt, timesteps))

    return call


def gaussian_denoiser(mean: float, deviation: float):  # type: ignore[no-untyped-def]
    """E[x_0 | x_t] for x_0 ~ N(mean, deviation^2), by Bayes: no code of ours is used."""

    def call(xt: Tensor, timesteps: Tensor) -> Denoised:
        abar = ABAR[timesteps].view(-1, 1, 1, 1)
        variance = abar * deviation**2 + 1 - abar
        x0 = mean + deviation**2 * abar.sqrt() / variance * (xt - abar.sqrt() * mean)
        return Denoised(x0, (xt - abar.sqrt() * x0) / (1 - abar).sqrt())

    return call


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_is_diffusers_ddim(prediction_type: str, spacing: str) -> None:
    scheduler = DDIMScheduler(
        **CONFIG, prediction_type=prediction_type, timestep_spacing=spacing, steps_offset=1, clip_sample=False,
        set_alpha_to_one=False,
    )  # fmt: skip
    scheduler.set_timesteps(20)
    noise = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = noise
    for t in scheduler.timesteps:
        expected = scheduler.step(network(expected, t.repeat(2)), t, expected).prev_sample
    timesteps = spaced_timesteps(1000, 20, spacing)
    assert timesteps.tolist() == scheduler.timesteps.tolist()
    got = ddim(denoiser(prediction_type), noise, timesteps, ABAR, final_alpha_cumprod=float(ABAR[0]))
    # diffusers keeps abar in float32
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_ddim_with_noise_is_diffusers_ddim() -> None:
    """With eta, fed the same noise; no step at the end, which has none."""
    scheduler = DDIMScheduler(**CONFIG, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(10)
    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    generator, expected = torch.Generator().manual_seed(7), noise
    for number, t in enumerate(scheduler.timesteps):
        fresh = torch.randn(noise.shape, generator=generator) if number < 9 else torch.zeros_like(noise)
        output = network(expected, t.repeat(2))
        expected = scheduler.step(output, t, expected, eta=0.7, variance_noise=fresh).prev_sample
    timesteps = spaced_timesteps(1000, 10)
    got = ddim(denoiser("epsilon"), noise, timesteps, ABAR, eta=0.7, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_euler_ancestral_is_diffusers_euler_ancestral() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = EulerAncestralDiscreteScheduler(**CONFIG, timestep_spacing="trailing")
        scheduler.set_timesteps(12)
    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    first = ABAR[int(scheduler.timesteps[0])]
    # diffusers works on x_t / sqrt(abar_t)
    expected, generator = noise / first.sqrt().float(), torch.Generator().manual_seed(3)
    for t in scheduler.timesteps:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scaled = scheduler.scale_model_input(expected, t)
            output = network(scaled, t.long().repeat(2))
            expected = scheduler.step(output, t, expected, generator=generator).prev_sample
    timesteps = spaced_timesteps(1000, 12)
    got = euler_ancestral(denoiser("epsilon"), noise, timesteps, ABAR, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_ddim_at_eta_one_is_ddpm() -> None:
    """Two formulas for one sampler: DDIM Eq. 16 with eta = 1, and the posterior of DDPM Eq. 7."""
    noise = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    timesteps = spaced_timesteps(1000, 25)
    first = ddim(denoiser("epsilon"), noise, timesteps, ABAR, eta=1.0, generator=torch.Generator().manual_seed(5))
    second = ddpm_ancestral(denoiser("epsilon"), noise, timesteps, ABAR, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


def test_ddim_transports_a_gaussian_onto_the_data() -> None:
    """With the exact denoiser of N(m, d^2) the probability-flow ODE is linear: noise z goes to m + d z."""
    mean, deviation = 0.7, 0.4
    noise = torch.randn(4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = ABAR[999]
    # x_T is not quite pure noise: of its own marginal N(sqrt(abar) m, abar d^2 + 1 - abar)
    marginal = (start * deviation**2 + 1 - start).sqrt()
    xt = start.sqrt() * mean + marginal * noise
    got = ddim(gaussian_denoiser(mean, deviation), xt, spaced_timesteps(1000, 1000), ABAR)
    torch.testing.assert_close(got, mean + deviation * noise, rtol=0, atol=1e-2)


@pytest.mark.parametrize("sampler", [ddpm_ancestral, euler_ancestral])
def test_ancestral_samplers_draw_from_the_data(sampler) -> None:  # type: ignore[no-untyped-def]
    """Mean and deviation of many draws against N(m, d^2)."""
    mean, deviation, count = 0.7, 0.4, 20_000
    noise = torch.randn(count, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draws = sampler(
        gaussian_denoiser(mean, deviation), noise, spaced_timesteps(1000, 250), ABAR,
        generator=torch.Generator().manual_seed(1),
    ).flatten()  # fmt: skip
    assert abs(float(draws.mean()) - mean) < 5 * deviation / math.sqrt(count) + 2e-3
    assert abs(float(draws.std()) - deviation) < 0.02


def test_zero_terminal_snr_starts_from_pure_noise() -> None:
    """v-prediction on a schedule whose last abar is 0: nothing divides by it."""
    config = CONFIG | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    schedule = NoiseSchedule.from_scheduler(config)
    assert float(schedule.alphas_cumprod[-1]) < 1e-6

    def call(xt: Tensor, timesteps: Tensor) -> Denoised:
        output = network(xt, timesteps)
        return Denoised(schedule.to_x0(output, xt, timesteps), schedule.to_eps(output, xt, timesteps))

    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for sampler in (ddim, ddpm_ancestral, euler_ancestral):
        generator = torch.Generator().manual_seed(0)
        out = sampler(call, noise, spaced_timesteps(1000, 10), schedule.alphas_cumprod, generator=generator)
        assert torch.isfinite(out).all()


def test_a_generator_for_each_picture_makes_it_independent_of_its_neighbours() -> None:
    def draw(seeds: list[int]) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(3, 4, 4, generator=g) for g in generators])
        return ddpm_ancestral(denoiser("epsilon"), noise, spaced_timesteps(1000, 8), ABAR, generator=generators)

    assert torch.equal(draw([4, 5, 6])[1:2], draw([5]))


def test_the_callback_sees_every_step() -> None:
    seen: list[int] = []
    ddim(
        denoiser("epsilon"), torch.zeros(1, 1, 2, 2), spaced_timesteps(1000, 5), ABAR,
        callback=lambda number, latents: seen.append(number),
    )  # fmt: skip
    assert seen == [0, 1, 2, 3, 4]


def test_timesteps_descend_and_start_at_the_noisiest() -> None:
    for steps in (1, 7, 30, 1000):
        timesteps = spaced_timesteps(1000, steps)
        assert timesteps[0] == 999 and len(timesteps) == steps
        assert np.all(np.diff(timesteps.numpy()) < 0)


@pytest.mark.parametrize("steps", [0, 1001])
def test_too_many_or_no_steps(steps: int) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 1000"):
        spaced_timesteps(1000, steps)
