"""The data section of a training job: shards in, captioned and masked rows out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field, model_validator

from imprint.config.base import Section


class ReaderSpec(Section):
    """How shards are read. Sizes are refused before anything is read or decoded."""

    cpus: float = Field(0.25, gt=0, description="CPUs that one read task takes from the cluster")
    max_member_mb: float = Field(64, gt=0, description="largest file inside a shard, MiB; larger ones are quarantined")
    max_megapixels: float = Field(64, gt=0, description="largest picture, million pixels; larger ones are quarantined")
    max_bad_share: float = Field(0.01, ge=0, le=1, description="the run stops past this share of bad samples")
    storage_tries: int = Field(6, gt=0, description="tries in a row that a remote storage may fail")
    verify: bool = Field(False, description="compare each shard with the manifest's SHA-256 before reading it")


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


class SourceSpec(Section):
    """One of several sources that are mixed at a set ratio, each with an order and epochs of its own."""

    shards: tuple[str, ...] = Field(min_length=1, description="as data.shards")
    split: str | None = Field("train", description="as data.split")
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="share of the samples, against other sources'")


class DataSpec(Section):
    """Shards, their order and what is done to their samples."""

    shards: tuple[str, ...] = Field(
        (), description="folders with a manifest.json, or paths and URLs of .tar files; {000..009} expands"
    )
    sources: tuple[SourceSpec, ...] = Field((), description="in place of shards: several sources, mixed by weight")
    split: str | None = Field("train", description="which shards of a manifest; null: all of them")
    image_size: int = Field(64, gt=0, description="px; pictures are resized and centre-cropped to this square")
    shuffle_buffer: int = Field(4000, ge=0, description="samples shuffled together after shards; 0: in written order")
    prefetch_batches: int = Field(4, ge=0, description="micro-batches that a worker fetches ahead")
    reader: ReaderSpec = ReaderSpec()
    captions: CaptionerSpec = CaptionerSpec()
    masks: MaskerSpec = MaskerSpec()

    @model_validator(mode="after")
    def _shards_or_sources(self) -> DataSpec:
        if bool(self.shards) == bool(self.sources):
            raise ValueError("give either shards (folders, .tar paths or URLs) or sources (such lists with weights)")
        return self

    @property
    def places(self) -> tuple[str, ...]:
        """All folders, paths and URLs, of `shards` or of all sources."""
        return self.shards or tuple(place for source in self.sources for place in source.shards)

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights of the sources; one source where there are only `shards`."""
        return tuple(source.weight for source in self.sources) or (1.0,)

    def with_places(self, change: Callable[[str], str]) -> DataSpec:
        """The same with every folder, path and URL changed."""
        sources = tuple(
            source.model_copy(update={"shards": tuple(change(place) for place in source.shards)})
            for source in self.sources
        )
        return self.model_copy(update={"shards": tuple(change(place) for place in self.shards), "sources": sources})
