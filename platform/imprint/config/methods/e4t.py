"""E4T (arXiv:2302.12228): its encoder, its pretraining and its tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from imprint.config.base import Section
from imprint.config.methods.pretraining import EncoderSpec, PretrainSpec
from imprint.config.methods.tuning import FewStepSpec


class E4TEncoderSpec(EncoderSpec):
    """The encoder of E4T, arXiv:2302.12228, section 3.1."""

    hidden_width: int | None = Field(
        None, ge=1, description="Width of the averaged features; by default that of the widest word embedding"
    )
    refinement: bool = Field(True, description="Iterative refinement: a new embedding from x_t at each step")
    scale: float = Field(0.1, gt=0, description="s of Eq. 1")
    negative_slope: float = Field(0.01, ge=0, description="Slope of the LeakyReLU below zero")
    normalize_features: bool = Field(
        True,
        description="Bring each feature vector to zero mean and unit variance before its linear layer: norms differ "
        "by more than tenfold between CLIP layers and UNet blocks. The paper does not say; off is its plain reading.",
    )


class WeightOffsetsSpec(Section):
    """The weight offsets of E4T, section 3.2."""

    enabled: bool = Field(True, description="Off: only the encoder is trained, the paper's ablation (5)")
    vector_width: int = Field(64, ge=1, description="Length of the learned vector v_0")
    lr_scale: float = Field(1.0, gt=0, description="Learning rate of the offsets, as a share of the encoder's")


class E4TSpec(PretrainSpec):
    """Pretraining of E4T: the objective and what it trains."""

    method: Literal["e4t"] = "e4t"
    domain_word: str = Field("person", min_length=1, description="Coarse word of the domain, e_domain of Eq. 1")
    encoder: E4TEncoderSpec = E4TEncoderSpec()
    offsets: WeightOffsetsSpec = WeightOffsetsSpec()
    regularization: float = Field(0.01, ge=0, description="lambda_r of Eq. 5; 0 is the paper's ablation (3)")


class LearningRates(Section):
    """Learning rates of tuning, one for each group of parameters; 0 leaves the group as it is."""

    encoder: float = Field(1e-4, ge=0)
    offsets: float = Field(1e-4, ge=0)
    unet: float = Field(1e-4, ge=0)


class E4TTuneSpec(FewStepSpec):
    """Tuning of E4T on one concept, section 3.4."""

    method: Literal["e4t"] = "e4t"
    steps: int = Field(15, ge=0, description="The paper's: 15 for faces, 5 for cats and art; 0 is the encoder alone")
    batch_size: int = Field(16, ge=1, description="Different crops and noise levels in a step; the paper's 16")
    learning_rates: LearningRates = LearningRates()
    regularization: float = Field(0.1, ge=0, description="lambda_r of Eq. 5; the paper's 0.1 for faces, else 1e-4")
    unet: Literal["all", "attention", "none"] = Field("all", description="Which of the UNet's parameters are tuned")
    mask_loss: bool = Field(True, description="Weight the diffusion loss by the mask, where one is given")
