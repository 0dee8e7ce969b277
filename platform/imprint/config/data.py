"""The data section of a training job: shards in, captioned and masked rows out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self

from pydantic import Field, model_validator

from imprint.config.base import Section


class ReaderSpec(Section):
    """How shards are read. Sizes are refused before anything is read or decoded."""

    cpus: float = Field(0.25, gt=0, description="CPUs that one read task takes from the cluster")
    tasks: int | None = Field(
        None, gt=0, description="read tasks at once at the most; null: two for each worker of a training job"
    )
    max_member_mb: float = Field(64, gt=0, description="largest file inside a shard, MiB; larger ones are quarantined")
    max_megapixels: float = Field(64, gt=0, description="largest picture, million pixels; larger ones are quarantined")
    max_bad_share: float = Field(0.01, ge=0, le=1, description="the run stops past this share of bad samples")
    storage_tries: int = Field(6, gt=0, description="tries in a row that a remote storage may fail")
    verify: bool = Field(False, description="compare each shard with the manifest's SHA-256 before reading it")


class StagePool(Section):
    """The actors of one preprocessing stage and what each takes of the cluster; with a share of a GPU it runs there."""

    actors: int = Field(1, gt=0, description="actors of the stage; with max_actors, as many at the least")
    max_actors: int | None = Field(None, gt=0, description="the pool grows up to this under load; null: fixed size")
    cpus: float = Field(0.1, ge=0, description="CPUs that one actor takes from the cluster")
    gpus: float = Field(0, ge=0, description="share of a GPU that one actor takes; 0: it runs on the CPU")

    @model_validator(mode="after")
    def _pool_is_bounded(self) -> Self:
        if self.max_actors is not None and self.max_actors < self.actors:
            raise ValueError(f"max_actors={self.max_actors} is less than actors={self.actors}")
        return self

    @property
    def device(self) -> str:
        """Where the stage's model runs."""
        return "cuda" if self.gpus else "cpu"

    @property
    def is_one_actor(self) -> bool:
        """Whether nothing was said of its actors."""
        return self.actors == 1 and self.max_actors is None and not self.gpus


class CaptionerSpec(StagePool):
    """Where captions come from: a coarse caption f_c and fine attribute phrases f_a, joined by a template.

    `kind` writes the coarse caption: `keep` is the sample's own, `clip` the class noun by the CLIP at hand,
    `transformers` an image-to-text model. `fine` adds phrases: `clip` zero-shot, `attributes` by an attribute reader;
    null takes `clip` with kind=clip and `none` elsewhere. `existing` says what becomes of a sample's own caption.
    Source: Taming Encoder, arXiv:2304.02642, section 3.3.
    """

    kind: Literal["keep", "clip", "transformers"] = "keep"
    model: str = Field("imprint-tiny-clip", description="name or folder of the coarse caption's model")
    existing: Literal["keep", "replace", "append"] = Field(
        "keep", description="a sample's own caption stays, is replaced, or what is written is appended to it"
    )
    fine: Literal["none", "clip", "attributes"] | None = None
    fine_model: str | None = Field(None, description="of the fine phrases; null: `model` or what is embedded")
    templates: tuple[str, ...] = Field(
        ("{coarse}, {fine}",), min_length=1, description="of written captions; the sample's key chooses one"
    )
    subject: str = Field("person", description="the noun that zero-shot phrases are tried with: 'a person smiling'")
    nouns: tuple[str, ...] = Field((), description="zero-shot class nouns, for samples that name none; empty: embedded")
    phrases: dict[str, tuple[str, ...]] = Field(
        {}, description="zero-shot groups, of each of which one phrase at most is said; empty: the embedded ones"
    )
    identity: tuple[str, ...] = Field(
        ("hair", "hair_color", "facial_hair", "facial_hair_color", "skin", "nose"),
        description="groups and attributes that say who it is: they are in the caption and never in the context",
    )
    confidence: float = Field(0.5, ge=0, lt=1, description="a phrase is said above this share of its group's softmax")
    prompt: str = Field("", description="text before a transformers model's caption, or Florence-2's task")
    max_new_tokens: int = Field(40, gt=0, description="longest caption of a transformers model")
    beams: int = Field(1, gt=0, description="beams of a transformers model's search; 1 is greedy")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of a transformers model's weights")
    batch_size: int = Field(16, gt=0, description="pictures that go through a model at once")

    @model_validator(mode="after")
    def _says_what_to_write(self) -> Self:
        if self.kind == "keep" and self.fine_kind == "none" and self.existing != "keep":
            raise ValueError(
                f"captions.existing={self.existing} with kind=keep and no fine phrases: nothing would be written; set "
                "kind or fine"
            )
        if self.kind == "keep" and self.fine_kind != "none" and self.existing != "append":
            raise ValueError(
                "captions.kind=keep takes the sample's own caption as the coarse one; with fine phrases set "
                "existing=append"
            )
        for template in self.templates:
            try:
                without = template.format(coarse="", fine="")
            except (KeyError, IndexError, ValueError):
                without = template
            if without == template:
                raise ValueError(f"captions.templates: {template!r}; expected {{coarse}} and {{fine}} in it, no others")
        return self

    @property
    def fine_kind(self) -> Literal["none", "clip", "attributes"]:
        """Who writes the fine phrases."""
        return self.fine or ("clip" if self.kind == "clip" else "none")

    @property
    def is_light(self) -> bool:
        """Whether samples keep their captions: no model, and no actor to wait for."""
        return self.kind == "keep" and self.fine_kind == "none"


MaskModel = Literal["embedded", "attributes", "onnx", "transformers"]


class MaskerSpec(StagePool):
    """Where masks of the subject come from.

    `sample` takes the sample's own mask part or alpha, and the `fallback` where it has none; `embedded` is classical
    (distance from the border's colours); `attributes` is the mask of an attribute reader; `onnx` runs a saliency
    model; `transformers` a semantic or instance segmentation model.
    """

    kind: Literal["sample", "embedded", "attributes", "onnx", "transformers"] = "sample"
    fallback: MaskModel = Field("embedded", description="with kind=sample: what masks samples without a mask")
    model: str | None = Field(None, description="the .onnx file, the folder of a transformers model, or of a reader")
    convention: Literal["auto", "isnet", "u2net", "imgly"] = Field(
        "auto", description="how an ONNX model wants its input; auto: isnet at 1024 px and more, else u2net"
    )
    labels: tuple[str, ...] = Field(
        (), description="what the subject is among a transformers model's labels; empty: all but the background"
    )
    threshold: float = Field(0.5, ge=0, lt=1, description="score above which an instance counts")
    batch_size: int = Field(8, gt=0, description="pictures that go through a model at once")
    cutout: tuple[int, int, int] | None = Field(
        None, description="RGB of a plain ground; adds the column `cutout`, the subject on it"
    )

    @property
    def maker(self) -> MaskModel:
        """What makes masks where a sample's own is not taken."""
        return self.fallback if self.kind == "sample" else self.kind

    @property
    def is_light(self) -> bool:
        """Whether samples bring their masks, so that an actor is worth its start only where several were asked for."""
        return self.kind == "sample" and self.fallback == "embedded" and self.is_one_actor

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        if self.maker in ("onnx", "transformers") and not self.model:
            raise ValueError(
                f"masks: {self.maker} needs masks.model, the path of "
                + ("an .onnx file" if self.maker == "onnx" else "a transformers segmentation model")
            )
        if self.cutout is not None and not all(0 <= value <= 255 for value in self.cutout):
            raise ValueError(f"masks.cutout={list(self.cutout)}: expected three numbers from 0 to 255")
        return self


FeaturePart = Literal["clip", "vae", "text"]


class PrecomputeSpec(StagePool):
    """What frozen models give for a sample: computed in the trainer, in the stream before it, or stored in shards.

    `stream` computes it in actors of its own; `shards` reads it from each sample's part `features.safetensors`.
    """

    source: Literal["trainer", "stream", "shards"] = "trainer"
    parts: tuple[FeaturePart, ...] = Field(
        ("clip", "vae"), min_length=1, description="with source=stream: CLIP features, latent moments, text embeddings"
    )


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
    precompute: PrecomputeSpec = PrecomputeSpec()

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
