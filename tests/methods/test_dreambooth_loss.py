"""Eq. 2 of DreamBooth, against the equation written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imprint.backbone import NoiseSchedule
from imprint.methods.dreambooth import dreambooth_loss
from imprint.methods.subject_batch import NoisyBatch

CONFIG = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ABAR = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
T, T_PRIOR = [40, 300, 700, 990], [500, 60, 900, 250]
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def draw(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((4, 4, 6, 6))


def batch(x: np.ndarray, eps: np.ndarray, timesteps: list[int], schedule: NoiseSchedule) -> NoisyBatch:
    x0, noise, t = torch.from_numpy(x), torch.from_numpy(eps), torch.tensor(timesteps)
    return NoisyBatch(schedule.add_noise(x0, noise, t), t, schedule.target(x0, noise, t), [""] * len(timesteps))


def term(x: np.ndarray, eps: np.ndarray, timesteps: list[int], output: np.ndarray, kind: str, gamma: float) -> float:
    """E[ w_t ||x_theta(alpha_t x + sigma_t eps) - x||^2 ] with w_t = min(SNR_t, gamma), as a mean over elements."""
    total = 0.0
    for row, t in enumerate(timesteps):
        alpha, sigma = ABAR[t] ** 0.5, (1 - ABAR[t]) ** 0.5
        noisy = alpha * x[row] + sigma * eps[row]
        x_theta = {
            "epsilon": (noisy - sigma * output[row]) / alpha,
            "v_prediction": alpha * noisy - sigma * output[row],
            "sample": output[row],
        }[kind]
        total += min((alpha / sigma) ** 2, gamma) * np.mean((x_theta - x[row]) ** 2)
    return total / len(timesteps)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_dreambooth_eq_2_weights_the_prior_by_its_own_timesteps_under_snr_weighting(kind: str) -> None:
    schedule = NoiseSchedule.from_scheduler(CONFIG | {"prediction_type": kind})
    x, eps, x_pr, eps_pr, output, output_pr = (draw(seed) for seed in range(6))
    got = dreambooth_loss(
        torch.from_numpy(np.concatenate([output, output_pr])),
        batch(x, eps, T, schedule),
        batch(x_pr, eps_pr, T_PRIOR, schedule),
        schedule,
        prior_weight=0.7,
        min_snr_gamma=5.0,
    )
    subject = term(x, eps, T, output, kind, 5.0)
    prior = term(x_pr, eps_pr, T_PRIOR, output_pr, kind, 5.0)
    assert float(got) == pytest.approx(subject + 0.7 * prior, rel=1e-4)
    # the known mistake: the prior's errors by the weights of the subject's timesteps
    unweighted = [term(x_pr[i : i + 1], eps_pr[i : i + 1], [t], output_pr[i : i + 1], kind, 1e30)
                  for i, t in enumerate(T_PRIOR)]  # fmt: skip
    snr, snr_pr = (np.array([ABAR[t] / (1 - ABAR[t]) for t in each]) for each in (T, T_PRIOR))
    wrong = np.mean(np.array(unweighted) / snr_pr * np.minimum(snr, 5.0))
    assert abs(wrong - prior) > 0.01 * prior


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_dreambooth_eq_2_without_snr_weighting_is_the_plain_error_of_both_terms(kind: str) -> None:
    schedule = NoiseSchedule.from_scheduler(CONFIG | {"prediction_type": kind})
    x, eps, x_pr, eps_pr, output, output_pr = (draw(seed) for seed in range(6))
    subject, prior = batch(x, eps, T, schedule), batch(x_pr, eps_pr, T_PRIOR, schedule)
    outputs = torch.from_numpy(np.concatenate([output, output_pr]))
    got = dreambooth_loss(outputs, subject, prior, schedule, prior_weight=1.0)
    expected = np.mean((output - subject.target.numpy()) ** 2) + np.mean((output_pr - prior.target.numpy()) ** 2)
    assert float(got) == pytest.approx(expected, rel=1e-5)


def test_dreambooth_eq_1_is_eq_2_without_a_prior() -> None:
    schedule = NoiseSchedule.from_scheduler(CONFIG | {"prediction_type": "epsilon"})
    x, eps, output = (draw(seed) for seed in range(3))
    subject = batch(x, eps, T, schedule)
    got = dreambooth_loss(torch.from_numpy(output), subject, None, schedule, prior_weight=1.0, min_snr_gamma=5.0)
    assert float(got) == pytest.approx(term(x, eps, T, output, "epsilon", 5.0), rel=1e-4)
