"""The noise schedule of a backbone and the three things a network may predict.

Legend: x_0 clean latents, x_t noisy latents, abar_t = alphas_cumprod[t], eps the noise;
x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (DDPM Eq. 4, arXiv:2006.11239) and
v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0 (progressive distillation, arXiv:2202.00512, Appendix D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from imprint.errors import BackboneError

PredictionType = Literal["epsilon", "v_prediction", "sample"]
PREDICTION_TYPES: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class NoiseSchedule:
    """A variance-preserving schedule: `alphas_cumprod` [T] in (0, 1], and what the network predicts."""

    alphas_cumprod: Float[Tensor, "steps"]
    prediction_type: PredictionType

    @classmethod
    def from_scheduler(cls, config: dict) -> NoiseSchedule:
        """Read it off a diffusers scheduler's config.

        Raises:
            BackboneError: the prediction type or the beta schedule is none that diffusers' DDPM knows.
        """
        from diffusers import DDPMScheduler

        prediction = config.get("prediction_type", "epsilon")
        if prediction not in PREDICTION_TYPES:
            raise BackboneError(f"the scheduler predicts {prediction!r}; expected one of {', '.join(PREDICTION_TYPES)}")
        keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "rescale_betas_zero_snr")
        ddpm = DDPMScheduler(**{key: config[key] for key in keys if config.get(key) is not None})
        return cls(ddpm.alphas_cumprod.double(), prediction)

    @property
    def num_timesteps(self) -> int:
        """T, the number of training timesteps."""
        return len(self.alphas_cumprod)

    def coefficients(
        self, timesteps: Int[Tensor, "b"], like: Float[Tensor, "b ..."]
    ) -> tuple[Float[Tensor, "b ..."], Float[Tensor, "b ..."]]:
        """sqrt(abar_t) and sqrt(1 - abar_t), shaped to broadcast over `like`."""
        abar = self.alphas_cumprod.to(like.device)[timesteps.to(like.device)]
        shape = (-1,) + (1,) * (like.ndim - 1)
        return abar.sqrt().to(like.dtype).view(shape), (1 - abar).sqrt().to(like.dtype).view(shape)

    def add_noise(
        self, x0: Float[Tensor, "b ..."], noise: Float[Tensor, "b ..."], timesteps: Int[Tensor, "b"]
    ) -> Float[Tensor, "b ..."]:
        """x_t of DDPM Eq. 4."""
        signal, sigma = self.coefficients(timesteps, x0)
        return signal * x0 + sigma * noise

    def velocity(
        self, x0: Float[Tensor, "b ..."], noise: Float[Tensor, "b ..."], timesteps: Int[Tensor, "b"]
    ) -> Float[Tensor, "b ..."]:
        """v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0."""
        signal, sigma = self.coefficients(timesteps, x0)
        return signal * noise - sigma * x0

    def target(
        self, x0: Float[Tensor, "b ..."], noise: Float[Tensor, "b ..."], timesteps: Int[Tensor, "b"]
    ) -> Float[Tensor, "b ..."]:
        """What the network should put out at x_t, by `prediction_type`."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "v_prediction":
            return self.velocity(x0, noise, timesteps)
        return x0

    def to_x0(
        self, output: Float[Tensor, "b ..."], xt: Float[Tensor, "b ..."], timesteps: Int[Tensor, "b"]
    ) -> Float[Tensor, "b ..."]:
        """The x_0 that a network output at x_t stands for."""
        signal, sigma = self.coefficients(timesteps, xt)
        if self.prediction_type == "epsilon":
            return (xt - sigma * output) / signal
        if self.prediction_type == "v_prediction":
            return signal * xt - sigma * output
        return output

    def to_eps(
        self, output: Float[Tensor, "b ..."], xt: Float[Tensor, "b ..."], timesteps: Int[Tensor, "b"]
    ) -> Float[Tensor, "b ..."]:
        """The noise that a network output at x_t stands for."""
        signal, sigma = self.coefficients(timesteps, xt)
        if self.prediction_type == "epsilon":
            return output
        if self.prediction_type == "v_prediction":
            return signal * output + sigma * xt
        return (xt - signal * output) / sigma
