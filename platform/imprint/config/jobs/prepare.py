"""Jobs that make the default data sets: `prepare_faces` and `prepare_objects`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from imprint.config.base import Section
from imprint.config.kube import Kube, KubeSpec


class BackgroundMix(Section):
    """How often each kind of background is drawn; only the proportions count."""

    plain: float = Field(default=0.60, ge=0, description="one of eleven named colours")
    gradient: float = Field(default=0.10, ge=0, description="from one colour to another")
    texture: float = Field(default=0.15, ge=0, description="stripes, dots or checks of two colours")
    photo: float = Field(default=0.15, ge=0, description="a crop of a photograph in scikit-image's package")

    @model_validator(mode="after")
    def _some_kind(self) -> Self:
        if self.plain + self.gradient + self.texture + self.photo <= 0:
            raise ValueError("every kind of background has weight 0; give at least one a positive weight")
        return self


class Prepare(Section):
    """What the jobs that make data sets have in common."""

    name: str = Field(min_length=1, description="name of the run, for logs")
    seed: int = Field(default=0, ge=0, description="everything drawn is a pure function of it")
    out_dir: str = Field(min_length=1, description="folder that gets one data set a size, as faces-64 and faces-128")
    sizes: tuple[int, ...] = Field(default=(64, 128), min_length=1, description="picture sizes in px")
    samples_per_shard: int = Field(default=1000, ge=1, description="pictures in one tar")
    workers: int = Field(default=0, ge=0, description="processes; 0 means one a core")
    backgrounds: BackgroundMix = BackgroundMix()
    kube: Kube = KubeSpec()

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        largest = max(self.sizes)
        if min(self.sizes) < 8 or len(set(self.sizes)) != len(self.sizes):
            raise ValueError(f"sizes must be different and at least 8 px, got {list(self.sizes)}")
        if any(largest % size for size in self.sizes):
            raise ValueError(f"every size must divide the largest ({largest}), got {list(self.sizes)}")
        return self


class PrepareFaces(Prepare):
    """Renders avatars: identities x variants, for training and held out."""

    job: Literal["prepare_faces"]
    train_identities: int = Field(default=6000, ge=0, le=50_000)
    train_variants: int = Field(default=4, ge=1, description="pictures of each training identity")
    heldout_identities: int = Field(default=500, ge=0, le=5_000)
    heldout_variants: int = Field(default=6, ge=1, description="pictures of each held-out identity")
    hat_share: float = Field(
        default=0.04, ge=0, le=1, description="how often a variant wears a hat; the first two never do"
    )


EmojiStyle = Literal["noto", "twemoji", "fluent 3d", "fluent flat", "emojione", "fxemoji"]


class PrepareObjects(Prepare):
    """Renders emoji: concepts x vendors x backgrounds, for training and held out. Needs npm and the network."""

    job: Literal["prepare_objects"]
    cache_dir: str = Field(default="~/.cache/imprint/emoji", min_length=1, description="where npm packages are kept")
    styles: tuple[EmojiStyle, ...] = Field(
        default=("noto", "twemoji", "fluent 3d", "fluent flat", "emojione", "fxemoji"),
        min_length=1,
        description="whose drawings to use",
    )
    train_backgrounds: int = Field(default=3, ge=1, description="pictures of each training concept and style")
    heldout_backgrounds: int = Field(default=3, ge=1, description="pictures of each held-out concept and style")
