"""The schedule against diffusers' own arithmetic and against the definitions."""

import pytest
import torch
from diffusers import DDPMScheduler

from imprint.backbone import NoiseSchedule
from imprint.errors import BackboneError

CONFIG = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TIMESTEPS = torch.tensor([0, 1, 250, 999])


def draw() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (4, 3, 5, 5)
    return torch.randn(shape, generator=generator, dtype=torch.double), torch.randn(shape, generator=generator).double()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_agrees_with_ddpm_scheduler(prediction_type: str) -> None:
    schedule = NoiseSchedule.from_scheduler(CONFIG | {"prediction_type": prediction_type})
    ddpm = DDPMScheduler(**CONFIG, prediction_type=prediction_type)
    x0, noise = draw()
    noisy, velocity = schedule.add_noise(x0, noise, TIMESTEPS), schedule.velocity(x0, noise, TIMESTEPS)
    torch.testing.assert_close(noisy, ddpm.add_noise(x0, noise, TIMESTEPS), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(velocity, ddpm.get_velocity(x0, noise, TIMESTEPS), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_output_gives_back_x0_and_noise(prediction_type: str) -> None:
    schedule = NoiseSchedule.from_scheduler(CONFIG | {"prediction_type": prediction_type})
    x0, noise = draw()
    xt = schedule.add_noise(x0, noise, TIMESTEPS)
    target = schedule.target(x0, noise, TIMESTEPS)
    torch.testing.assert_close(schedule.to_x0(target, xt, TIMESTEPS), x0)
    torch.testing.assert_close(schedule.to_eps(target, xt, TIMESTEPS), noise)


def test_unknown_prediction_type_is_named() -> None:
    with pytest.raises(BackboneError, match="flow"):
        NoiseSchedule.from_scheduler(CONFIG | {"prediction_type": "flow"})
