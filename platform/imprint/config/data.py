"""The data section of a training job: shards in, captioned and masked rows out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from imprint.config.base import Section


class ReaderSpec(Section):
    """How shards are read. Sizes are refused before anything is read or decoded."""

    cpus: float = Field(0.25, gt=0, description="CPUs that one read task takes from the cluster")
    max_member_mb: float = Field(64, gt=0, description="largest file inside a shard, MiB; larger ones are quarantined")
    max_megapixels: float = Field(64, gt=0, description="largest picture, million pixels; larger ones are quarantined")
    max_bad_share: float = Field(0.01, ge=0, le=1, description="the run stops past this share of bad samples")


class CaptionerSpec(Section):
    """Where captions come from.

    `keep` takes the sample's own caption; `clip` writes zero-shot phrases with the CLIP at hand (for every sample,
    or with `missing_only` for those without a caption); `transformers` runs an image-to-text model.
    """

    kind: Literal["keep", "clip", "transformers"] = "keep"
    model: str = Field("imprint-tiny-clip", description="name or folder of the model, for clip and transformers")
    missing_only: bool = True
    max_new_tokens: int = Field(40, gt=0, description="longest caption of a transformers model")
    actors: int = Field(1, gt=0)
    cpus: float = Field(0.1, ge=0, description="CPUs that one actor takes from the cluster")
    gpus: float = Field(0, ge=0)


class MaskerSpec(Section):
    """Where masks of the subject come from.

    `sample` takes the sample's own mask part or alpha, and the embedded masker where it has none; `embedded` is
    classical (distance from the border's colours); `onnx` runs a saliency model (ISNet or U2Net inputs).
    """

    kind: Literal["sample", "embedded", "onnx"] = "sample"
    model: str | None = Field(None, description="path of the .onnx file, for onnx")
    actors: int = Field(1, gt=0)
    cpus: float = Field(0.1, ge=0, description="CPUs that one actor takes from the cluster")
    gpus: float = Field(0, ge=0)

    @model_validator(mode="after")
    def _onnx_needs_a_model(self) -> MaskerSpec:
        if self.kind == "onnx" and not self.model:
            raise ValueError("masks.kind=onnx needs masks.model: the path of an .onnx file")
        return self


class DataSpec(Section):
    """Shards, their order and what is done to their samples."""

    shards: tuple[str, ...] = Field(
        min_length=1, description="folders with a manifest.json, or paths and URLs of .tar files; {000..009} expands"
    )
    split: str | None = Field("train", description="which shards of a manifest; null: all of them")
    image_size: int = Field(64, gt=0, description="px; pictures are resized and centre-cropped to this square")
    shuffle_buffer: int = Field(4000, ge=0, description="samples shuffled together after shards; 0: in written order")
    prefetch_batches: int = Field(4, ge=0, description="micro-batches that a worker fetches ahead")
    reader: ReaderSpec = ReaderSpec()
    captions: CaptionerSpec = CaptionerSpec()
    masks: MaskerSpec = MaskerSpec()
