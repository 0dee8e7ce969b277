"""The job `dreambooth`: keys that the trainer owns are refused with a remedy, and a concept's record says what was."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from imprint.config.jobs import DreamBooth


def make(**changes: Any) -> DreamBooth:
    data: dict[str, Any] = {
        "job": "dreambooth", "name": "dog", "class_noun": "dog", "data": {"shards": ["data/dog"]},
        "training": {"steps": 30, "batch_size": 4, "optimizer": {"learning_rate": 2e-4, "weight_decay": 0.0}},
    }  # fmt: skip
    return DreamBooth.model_validate(data | changes)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"steps": 12}, "method.steps=12 says nothing in this job; set training.steps"),
        ({"batch_size": 2}, "set training.batch_size"),
        ({"weight_decay": 0.1}, "set training.optimizer.weight_decay"),
        ({"precision": "bf16"}, "set engine.precision"),
        ({"crops": 8}, "method.crops=8 says nothing"),
        ({"early_stopping": {}}, "a run ends after training.steps"),
        ({"learning_rates": {"unet": 1e-4}}, "the UNet's is training.optimizer.learning_rate"),
        ({"train": "lora", "lora": {"learning_rate": 1e-2}}, "method.lora.learning_rate=0.01 says nothing"),
        ({"train": "lora", "learning_rates": {"unet": 1e-4}}, "with train=lora one learning rate holds for all"),
        ({"text_encoder": True, "learning_rates": {"unet": 0, "text_encoder": 0}}, "nothing would train"),
        ({"super_resolution": {"model": "x4"}}, "use `imprint personalize --method dreambooth --super-resolution"),
    ],
)  # fmt: skip
def test_what_says_nothing_here_is_refused_with_a_remedy(method: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        make(method=method)
    assert message in str(error.value)


def test_there_must_be_a_noun_and_nothing_computed_before() -> None:
    for noun in ("", "  "):
        with pytest.raises(ValidationError, match="class_noun"):
            make(class_noun=noun)
    with pytest.raises(ValidationError, match="new crops at each step"):
        make(data={"shards": ["data/dog"], "precompute": {"source": "stream"}})


def test_what_holds_is_kept() -> None:
    method = {"lora": {"rank": 8}, "train": "lora", "identifier": {"text": "sks"}, "crop_scale": 0.7, "noun": "cat"}
    spec = make(method=method)
    assert DreamBooth.model_validate(spec.model_dump(mode="json")) == spec, "as it reaches a worker"
    record = spec.tuned_as
    assert (record.steps, record.batch_size, record.lora.learning_rate, record.lora.rank) == (30, 4, 2e-4, 8)
    assert record.identifier.text == "sks" and record.noun == "cat"


def test_learning_rates_are_ratios_to_the_optimizers() -> None:
    method = {"text_encoder": True, "learning_rates": {"unet": 1e-5, "text_encoder": 2.5e-6}}
    assert make(method=method).tuned_as.learning_rates.model_dump() == {"unet": 2e-4, "text_encoder": 5e-5}
    assert make().tuned_as.learning_rates.model_dump() == {"unet": 2e-4, "text_encoder": 0.0}


def test_a_grid_needs_no_shards_of_its_own() -> None:
    spec = make(grid={"every": 5})
    assert spec.grid is not None and spec.grid.shards == () and spec.grid.concepts == 4
    assert len(spec.preflight()) == 1 and spec.preflight()[0].startswith("data.shards: nothing at")
