"""The domain-agnostic tuning encoder (arXiv:2307.06925): its encoder, its pretraining and its tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from imprint.config.base import Section
from imprint.config.methods.pretraining import EncoderSpec, PretrainSpec
from imprint.config.methods.tuning import FewStepSpec


class DomainAgnosticEncoderSpec(EncoderSpec):
    """The shared trunk and the token head, section 4.1."""

    hidden_width: int | None = Field(
        None, ge=1, description="Channels of the trunk; by default the width of the widest word embedding"
    )
    refinement: bool = Field(True, description="Read the UNet encoder's features of x_t beside CLIP's, as E4T does")
    blocks: int = Field(2, ge=1, description="Convolutions of stride 2 in the trunk")
    negative_slope: float = Field(0.01, ge=0, description="Slope of the LeakyReLU below zero")


class HyperNetworkSpec(Section):
    """The hypernetwork over attention projections, section 4.1 and Eq. 2."""

    enabled: bool = Field(True, description="Off: the token head alone, the paper's ablation")
    rank: int = Field(4, ge=1, description="r of A and B")
    alpha: float | None = Field(None, gt=0, description="The change is alpha / rank times A B; by default the rank")
    roles: tuple[Literal["q", "k", "v", "out"], ...] = Field(
        ("q", "k", "v"), min_length=1, description="Which projections; q, k and v make the paper's 96 matrices on SD1"
    )
    width: int = Field(64, ge=1, description="Features that each projection's A and B are predicted from")
    lr_scale: float = Field(0.1, gt=0, description="Learning rate, as a share of the encoder's: 1e-5 against 1e-4")
    regularization: float = Field(1e-3, ge=0, description="Weight of the L2 norm of the weight offsets")


class ContrastiveSpec(Section):
    """The nearest-neighbour contrastive loss, Eq. 3."""

    enabled: bool = Field(True, description="Off: the paper's ablation")
    weight: float = Field(0.1, ge=0)
    neighbours: int = Field(10, ge=1, description="Nearest tokens that are positives, |N(v*)|")
    temperature: float = Field(0.07, gt=0, description="tau")
    normalize: bool = Field(
        False, description="Cosines in place of the dot products of Eq. 3; neighbours are by cosine either way"
    )


class DualPathSpec(Section):
    """The dual path through every attention block, Eq. 5."""

    enabled: bool = Field(True, description="Off: the predicted word and offsets alone, the paper's ablation")
    alpha_blend: float = Field(0.25, ge=0, le=1, description="Share of the personalized path")


class DomainAgnosticSpec(PretrainSpec):
    """Pretraining of the domain-agnostic encoder: the objective and what it trains."""

    method: Literal["domain_agnostic"] = "domain_agnostic"
    encoder: DomainAgnosticEncoderSpec = DomainAgnosticEncoderSpec()
    hypernetwork: HyperNetworkSpec = HyperNetworkSpec()
    contrastive: ContrastiveSpec = ContrastiveSpec()
    regularization: float = Field(0.01, ge=0, description="Weight of Eq. 4, the squared norm of v*")
    noun_pull: float = Field(
        0.0,
        ge=0,
        description="Weight of the squared distance of v* from the embedding of the sample's own class_noun: ours, for "
        "pretraining that is too short to find the right neighbours by itself",
    )
    dual_path: DualPathSpec = DualPathSpec()
    predict_at: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Noise at which one forward pass predicts a concept, as a share of the schedule; 1 is what a "
        "sampler starts from. The paper does not say.",
    )


class DomainAgnosticTuneSpec(FewStepSpec):
    """Tuning of the prediction on one concept, section 4.4: a short LoRA run."""

    method: Literal["domain_agnostic"] = "domain_agnostic"
    steps: int = Field(12, ge=0, le=12, description="The paper's 12 or fewer; 0 is the encoder alone, its ablation")
    batch_size: int = Field(8, ge=1, description="Different crops and noise levels in a step")
    learning_rate: float = Field(2e-3, gt=0, description="The paper's")
    word_pull: float = Field(0.1, ge=0, description="Weight of the squared distance of the word from its prediction")
    factor_pull: float = Field(0.01, ge=0, description="Weight of the squared distance of A and B from theirs")
    dual_path: DualPathSpec | None = Field(None, description="By default as in pretraining; off gives a plain LoRA")
