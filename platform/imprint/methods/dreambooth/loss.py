"""DreamBooth's loss, Eq. 2 of arXiv:2208.12242.

E[ w_t ||x_theta(x_t, c) - x||^2 + lambda w_t' ||x_theta(x_pr,t', c_pr) - x_pr||^2 ]. Legend: x the subject's picture
with the prompt c, x_pr the model's own picture of the class with the prompt c_pr, each with noise of its own strength,
at t and t'; w the weight of a timestep; lambda the weight of the prior.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from imprint.backbone import NoiseSchedule
from imprint.methods.subject_batch import NoisyBatch


def dreambooth_loss(
    output: Float[Tensor, "b c h w"],
    subject: NoisyBatch,
    prior: NoisyBatch | None,
    schedule: NoiseSchedule,
    *,
    prior_weight: float,
    min_snr_gamma: float | None = None,
) -> Float[Tensor, ""]:
    """Eq. 2 of raw outputs, the subject's first and the prior's after them; without a prior, Eq. 1.

    Each term is a mean over its own pictures. With `min_snr_gamma`, w_t = min(SNR_t, gamma) on the error of x in both
    terms, and the prior's is that of its own timesteps t'.
    """
    count = len(subject.xt)
    loss = subject.loss(output[:count], schedule, min_snr_gamma)
    if prior is None:
        return loss
    return loss + prior_weight * prior.loss(output[count:], schedule, min_snr_gamma)
