"""`dreambooth`: all weights, or LoRA, bound to one subject over any number of workers, on Ray."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from imprint.config.base import Section
from imprint.config.jobs.cluster import ClusterJob, GridSpec
from imprint.config.methods import DreamBoothTuneSpec

_TRAINERS = {
    "steps": "set training.steps",
    "batch_size": "set training.batch_size, pictures of the subject over all workers; as many class images come beside",
    "weight_decay": "set training.optimizer.weight_decay",
    "precision": "set engine.precision",
    "crops": "a run draws new crops at each step; leave it out",
    "early_stopping": "a run ends after training.steps; leave it out",
    "super_resolution": "this job tunes no second stage; use `imprint personalize --method dreambooth "
    "--super-resolution MODEL` on the same pictures",
}
"""Keys of tuning in one process that would say nothing here, and what to do in their place."""


class SubjectGridSpec(GridSpec):
    """Pictures of the subject drawn as training goes on, the same seeds each time."""

    shards: tuple[str, ...] = Field((), description="as data.shards, for the first column; empty: data.shards itself")
    split: str | None = None
    concepts: int = Field(4, gt=0, description="rows of the grid: so many pictures, and a seed of its own to each")


class DreamBooth(ClusterJob):
    """DreamBooth (arXiv:2208.12242) with prior preservation on one subject, over Ray Data, Ray Train and an engine."""

    job: Literal["dreambooth"]
    class_noun: str = Field(min_length=1, pattern=r"\S", description="what the subject is, such as dog")
    method: DreamBoothTuneSpec = DreamBoothTuneSpec()
    grid: SubjectGridSpec | None = None

    @model_validator(mode="after")
    def _the_trainer_owns_its_keys(self) -> Self:
        default = DreamBoothTuneSpec()
        for key, remedy in _TRAINERS.items():
            _refuse_unless_default(self.method, default, key, remedy)
        if self.method.train == "lora":
            remedy = "with train=lora one learning rate holds for all: set training.optimizer.learning_rate"
            _refuse_unless_default(self.method.lora, default.lora, "learning_rate", remedy, "lora.")
            _refuse_unless_default(self.method, default, "learning_rates", remedy)
        elif not self.method.text_encoder:
            remedy = (
                "the UNet's is training.optimizer.learning_rate; these two say only how the text encoders' stands to "
                "it, with method.text_encoder=true"
            )
            _refuse_unless_default(self.method, default, "learning_rates", remedy)
        elif not any(self.learning_rates.values()):
            raise ValueError("method.learning_rates are all 0, so nothing would train; raise one")
        return self

    @model_validator(mode="after")
    def _crops_cannot_be_precomputed(self) -> Self:
        if self.data.precompute.source != "trainer":
            raise ValueError(
                f"data.precompute.source={self.data.precompute.source}: this job shows new crops at each step, which "
                "nothing can be computed of before; set it to trainer"
            )
        return self

    @property
    def learning_rates(self) -> dict[str, float]:
        """Peak rates of `unet` and `text_encoder` (full tuning): the greater of the method's two is the optimizer's."""
        rates = self.method.learning_rates.model_dump()
        if not self.method.text_encoder:
            rates["text_encoder"] = 0.0
        greatest = max(rates.values()) or 1.0
        return {part: rate / greatest * self.training.optimizer.learning_rate for part, rate in rates.items()}

    @property
    def tuned_as(self) -> DreamBoothTuneSpec:
        """The method with what the trainer was told in place of the keys that it owns: a concept's record."""
        training, optimizer = self.training, self.training.optimizer
        keys: dict[str, Any] = {
            "steps": training.steps, "batch_size": training.batch_size, "weight_decay": optimizer.weight_decay,
            "precision": self.engine.precision,
        }  # fmt: skip
        if self.method.train == "lora":
            keys["lora"] = {**self.method.lora.model_dump(), "learning_rate": optimizer.learning_rate}
        else:
            keys["learning_rates"] = self.learning_rates
        return DreamBoothTuneSpec.model_validate(self.method.model_dump() | keys)


def _refuse_unless_default(given: Section, default: Section, key: str, remedy: str, prefix: str = "") -> None:
    got, usual = getattr(given, key), getattr(default, key)
    if got == usual:
        return
    text = got.model_dump(mode="json", exclude_defaults=True) if isinstance(got, Section) else got
    raise ValueError(f"method.{prefix}{key}={text} says nothing in this job; {remedy}")
