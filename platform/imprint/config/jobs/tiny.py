"""Jobs that make the embedded default: `train_tiny_vae`, `train_tiny_clip`, `train_backbone`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from imprint.config.base import Section
from imprint.config.kube import Kube, KubeSpec
from imprint.config.training import (
    CheckpointSpec,
    EngineSpec,
    MinSnrGamma,
    OffsetNoise,
    TimestepLogits,
    TrackingSpec,
    TrainingSpec,
)


class ShardSource(Section):
    """Shards that are read into memory once; small data sets only."""

    shards: tuple[str, ...] = Field(min_length=1, description="folders with a manifest, or .tar files; braces expand")
    split: str | None = Field("train", description="the manifest's split to read; null: all")
    weight: float = Field(1.0, gt=0, description="share of the batch, against the other sources")
    limit: int | None = Field(None, gt=0, description="read at most so many samples")


class LocalTraining(Section):
    """What these jobs have in common: one process, all its threads, no Ray."""

    name: str = Field(min_length=1, description="name of the run; a run of the same name goes on where it stopped")
    seed: int = Field(0, ge=0)
    runs: str = Field("runs", description="folder of the runs")
    output: str = Field(description="folder that gets the finished weights, whole or not at all")
    threads: int = Field(2, gt=0, description="torch threads")
    sources: tuple[ShardSource, ...] = Field(min_length=1)
    training: TrainingSpec
    engine: EngineSpec = EngineSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    tracking: TrackingSpec = TrackingSpec()
    kube: Kube = KubeSpec()

    @model_validator(mode="after")
    def _one_process(self) -> Self:
        if self.engine.name != "torch":
            raise ValueError(f"engine.name={self.engine.name}: this job trains in one process; expected torch")
        return self


class AutoencoderModel(Section):
    """Shape of the autoencoder: levels with one halving between two of them, all of one width."""

    width: int = Field(32, gt=0)
    latent_channels: int = Field(8, gt=0)
    blocks: tuple[int, ...] = Field((1, 2, 3), min_length=2, description="residual blocks a level, full size first")


class AutoencoderLoss(Section):
    """Weights against the mean absolute error of pixels in [-1, 1]."""

    square_weight: float = Field(1.0, ge=0, description="squared error of pixels")
    edge_weight: float = Field(0.3, ge=0, description="absolute error of differences of neighbours: sharp outlines")
    latent_weight: float = Field(1e-3, ge=0, description="mean square of the latents")
    latent_noise: float = Field(0.05, ge=0, description="standard deviation of the noise on the latents")
    crop_size: int | None = Field(None, gt=0, description="side in pixels of the crop that a step trains on")
    whole_share: float = Field(0.1, ge=0, le=1, description="share of steps on whole pictures all the same")


class TrainTinyVae(LocalTraining):
    """Autoencoder: pictures to latents and back."""

    job: Literal["train_tiny_vae"]
    model: AutoencoderModel = AutoencoderModel()
    loss: AutoencoderLoss = AutoencoderLoss()


class TextModel(Section):
    """A CLIP text encoder."""

    width: int = Field(192, gt=0)
    layers: int = Field(4, gt=0)
    heads: int = Field(4, gt=0)
    max_length: int = Field(48, gt=2, description="tokens, begin and end included")


class TokenizerModel(Section):
    """Byte-pair encoding learnt from the captions."""

    vocabulary: int = Field(2048, gt=600, description="tokens at most; 512 of them are the bytes")


class ClipModel(Section):
    """Widths of the small CLIP."""

    embedding: int = Field(192, gt=0)
    image_size: int = Field(64, gt=0)
    patch_size: int = Field(8, gt=0)
    vision_width: int = Field(128, gt=0)
    vision_layers: int = Field(8, gt=0)
    text: TextModel = TextModel(width=128, layers=3)


class TrainTinyClip(LocalTraining):
    """Contrastive pretraining of image and text towers (CLIP, arXiv:2103.00020, Figure 3)."""

    job: Literal["train_tiny_clip"]
    tokenizer: TokenizerModel = TokenizerModel()
    model: ClipModel = ClipModel()


class UnetModel(Section):
    """Widths of the UNet; a level with `attention` has self- and cross-attention."""

    block_out_channels: tuple[int, ...] = (64, 128, 192)
    attention: tuple[bool, ...] = (True, True, False)
    layers_per_block: int = Field(2, gt=0)
    heads: int = Field(4, gt=0)
    norm_groups: int = Field(16, gt=0)


class TrainBackbone(LocalTraining):
    """Text-to-image on latents of a finished autoencoder: the UNet from nothing, the text encoder from CLIP's.

    Or all of it from a finished backbone, which is trained further.
    """

    job: Literal["train_backbone"]
    initialize_from: str | None = Field(
        None, description="backbone to train further (embedded name, diffusers folder), not vae, clip, unet"
    )
    vae: str | None = Field(None, description="folder of the autoencoder")
    clip: str | None = Field(None, description="folder of the small CLIP: tokenizer, and text tower to start from")
    unet: UnetModel = UnetModel()
    prediction_type: Literal["epsilon", "v_prediction"] = "v_prediction"
    subject_weight: float = Field(
        1.0, gt=0, description="weight of the loss on the subject, by the sample's mask, against 1 on the background"
    )
    caption_dropping: float = Field(0.1, ge=0, le=1, description="share of empty captions, for guidance")
    min_snr_gamma: MinSnrGamma = None
    offset_noise: OffsetNoise = 0.0
    timestep_logits: TimestepLogits = None

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        own = {"vae": self.vae, "clip": self.clip}
        if self.initialize_from is None:
            missing = [key for key, value in own.items() if value is None]
            if missing:
                raise ValueError(f"{' and '.join(missing)}: missing; give both, or initialize_from")
        else:
            given = [key for key in ("vae", "clip", "unet", "prediction_type") if key in self.model_fields_set]
            if given:
                raise ValueError(f"initialize_from brings its own {', '.join(given)}; leave these out")
        return self
