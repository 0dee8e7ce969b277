"""The job `prepare_shards`: pictures of your own, in whatever form they are, into finished shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from imprint.config.base import Section
from imprint.config.data import CaptionerSpec, FeaturePart, MaskerSpec, ReaderSpec, StagePool
from imprint.config.kube import Kube, KubeSpec
from imprint.config.paths import is_url, resolve_path

TABLES = (".csv", ".parquet")
MAX_DUPLICATE_DISTANCE = 16


class FolderInput(Section):
    """Pictures in a folder and in the folders in it. `a.txt`, `a.json`, `a.mask.png` beside `a.jpg` belong to it."""

    path: str = Field(min_length=1)
    identity: Literal["none", "folder"] = Field(
        "none", description="folder: pictures in one folder show one identity, named by the folder"
    )


class TableInput(Section):
    """A CSV with a header, or a Parquet file: a picture a row, by path or URL."""

    path: str = Field(min_length=1, description="path or URL that ends in .csv or .parquet")
    picture: str = Field("path", description="column with paths, relative to the table's folder, or URLs")
    caption: str | None = Field("caption", description="column with captions; null: there is none")
    mask: str | None = Field(None, description="column with paths or URLs of masks")
    fields: tuple[str, ...] = Field((), description="columns for the sample's json: identity, class_noun, domain ...")

    @model_validator(mode="after")
    def _of_a_kind_that_is_read(self) -> Self:
        if not self.path.lower().endswith(TABLES):
            raise ValueError(f"path={self.path!r}: expected a file that ends in {' or '.join(TABLES)}")
        return self


class ShardsInput(Section):
    """Other webdataset shards."""

    places: tuple[str, ...] = Field(
        min_length=1, description="folders with a manifest.json, or paths and URLs of .tar files; {000..009} expands"
    )
    split: str | None = Field(None, description="which shards of a manifest; null: all of them")


class InputSpec(Section):
    """Where the pictures come from: exactly one of the three."""

    folder: FolderInput | None = None
    table: TableInput | None = None
    shards: ShardsInput | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in ("folder", "table", "shards") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of folder, table and shards, got {given or 'none'}")
        return self


class FilterSpec(Section):
    """Which good pictures are left out, each counted by its reason: too-small, aspect-ratio, near-duplicate."""

    min_side: int = Field(0, ge=0, description="px; least shorter side")
    max_aspect: float | None = Field(None, ge=1, description="greatest longer side over shorter side; null: any")
    duplicate_distance: int | None = Field(
        None,
        ge=0,
        le=MAX_DUPLICATE_DISTANCE,
        description="pictures whose 64-bit perceptual hashes differ in so many bits or fewer are one; null: all stay",
    )


class PictureSpec(Section):
    """What becomes of a picture's size; crops are recorded in the sample's json (`size_conditioning`)."""

    mode: Literal["keep", "square", "buckets"] = Field(
        "keep", description="keep: the file as it is; square: resized and cropped; buckets: to the nearest shape"
    )
    size: int = Field(512, ge=8, description="px; side of the square, and root of a bucket's area")
    step: int = Field(64, ge=1, description="px; sides of buckets are multiples of it")
    max_aspect: float = Field(2.0, ge=1, description="longest bucket: longer side over shorter side")
    crop: Literal["center", "random"] = Field("center", description="random: drawn from the seed and the position")
    quality: int = Field(95, ge=1, le=100, description="JPEG quality of pictures that were resized")

    @model_validator(mode="after")
    def _buckets_exist(self) -> Self:
        if self.mode == "buckets" and self.step > self.size:
            raise ValueError(f"step={self.step} is more than size={self.size}; no bucket fits")
        return self


class FeatureSpec(StagePool):
    """What frozen models give for each picture, written into the shards for `data.precompute.source: shards`."""

    backbone: str = Field("imprint-tiny", description="whose latents and text embeddings; the training job's own")
    clip: str = Field("imprint-tiny-clip", description="whose features; that of the training job's encoder")
    parts: tuple[FeaturePart, ...] = Field(
        ("clip", "vae"), min_length=1, description="CLIP features, latent moments, text embeddings"
    )
    mask_reference: bool = Field(False, description="as `method.mask_reference` of the training job")
    batch_size: int = Field(16, gt=0, description="pictures that go through the models at once")


class PrepareShards(Section):
    """A folder of pictures, a table of paths or URLs, or other shards, into finished shards with a manifest."""

    job: Literal["prepare_shards"]
    name: str = Field(min_length=1, pattern=r"^[\w.-]+$", description="name of the data set")
    seed: int = Field(0, ge=0, description="order and random crops are a pure function of it")
    input: InputSpec
    out_dir: str = Field(min_length=1, description="the folder of shards; it appears when all of it is there")
    split: str = Field("train", pattern=r"^[a-z]+$", description="split that the manifest gives the shards")
    samples_per_shard: int = Field(1000, ge=1)
    shuffle: bool = Field(True, description="write in an order drawn from the seed; false: in the order of the input")
    run_on: Literal["ray", "process"] = Field(
        "ray", description="process: without Ray, one picture after the other; the same bytes, for small sets"
    )
    filters: FilterSpec = FilterSpec()
    pictures: PictureSpec = PictureSpec()
    captions: CaptionerSpec | None = Field(None, description="null: only captions that are there already")
    masks: MaskerSpec | None = Field(None, description="null: only masks that are there already")
    features: FeatureSpec | None = Field(None, description="null: none; pictures must come out square")
    reader: ReaderSpec = ReaderSpec(cpus=0.5)
    kube: Kube = KubeSpec()

    @model_validator(mode="after")
    def _features_are_of_what_is_trained_on(self) -> Self:
        if self.features is None:
            return self
        if self.pictures.mode != "square":
            raise ValueError(
                f"features with pictures.mode={self.pictures.mode}: they hold for the square that is trained on; set "
                "pictures.mode=square and pictures.size to data.image_size of the training job"
            )
        if self.features.mask_reference and self.masks is None:
            raise ValueError("features.mask_reference needs the mask of every picture; set masks={kind: sample}")
        return self

    @model_validator(mode="after")
    def _out_dir_is_local(self) -> Self:
        if is_url(self.out_dir):
            raise ValueError(f"out_dir={self.out_dir!r} is remote; write to a local or mounted folder and copy it then")
        return self

    def preflight(self) -> list[str]:
        """What this machine can see is missing, one line each."""
        places = [("input.folder.path", self.input.folder.path)] if self.input.folder else []
        places += [("input.table.path", self.input.table.path)] if self.input.table else []
        if self.input.shards:
            places += [("input.shards.places", place) for place in self.input.shards.places if "{" not in place]
        missing = [
            (key, place) for key, place in places if not is_url(place) and not Path(resolve_path(place)).exists()
        ]
        return [f"{key}: nothing at {resolve_path(place)}" for key, place in missing]

    def content(self) -> dict[str, Any]:
        """What decides the bytes of the shards, and nothing else: no resources, no limits on failures, no place."""
        return self.model_dump(
            mode="json",
            exclude={
                "job": True,
                "out_dir": True,
                "run_on": True,
                "input": {"folder": {"path"}, "table": {"path"}, "shards": {"places"}},
                "captions": _RESOURCES,
                "masks": _RESOURCES,
                "features": _RESOURCES,
                "reader": {"cpus", "tasks", "max_bad_share", "storage_tries", "verify"},
            },
        )


_RESOURCES = {"actors", "max_actors", "cpus", "gpus"}
