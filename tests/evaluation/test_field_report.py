"""The field's metrics in an evaluation's report, on drawings whose scores are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from imprint.config.jobs.evaluate import Evaluate
from imprint.config.jobs.metrics import MetricsSpec
from imprint.evaluation.columns import COLUMNS, Drawn, to_pixels
from imprint.evaluation.field_report import FieldReport, report_of
from imprint.evaluation.report import Report
from imprint.evaluation.scoring import CEILING, FLOOR, Scorer
from imprint.evaluation.subjects import Picture, Subject
from imprint.features.clip import ClipFeatures

COUNT, SIDE = 4, 16
LABELS = {column.name: column.label.format(method="lora", steps=15) for column in COLUMNS}


def pixels(identity: int, variant: int) -> np.ndarray:
    """A coarse pattern of the identity, with some noise of the variant."""
    pattern = np.random.default_rng(identity).integers(0, 256, (4, 4, 3)).repeat(4, 0).repeat(4, 1)
    noise = np.random.default_rng([identity, variant]).integers(-40, 41, (SIDE, SIDE, 3))
    return (pattern + noise).clip(0, 255).astype(np.uint8)


def picture(identity: int, variant: int) -> Picture:
    return Picture(pixels(identity, variant), np.full((SIDE, SIDE), 255, np.uint8), {}, "", "cat")


def subject(number: int) -> Subject:
    targets = tuple(picture(number, variant) for variant in (2, 3, 4))
    scene = {"background": "red", "glasses": "round glasses", "expression": "sad"}
    return Subject(number, f"id-{number}", picture(number, 0), picture(number, 1), targets, scene)


def drawn(number: int) -> Drawn:
    """Tuning draws the subject, the encoder alone copies its input, and the class noun is of nobody."""
    images = {
        "tuned": np.stack([pixels(number, 50), pixels(number, 51)]),
        "encoder": np.stack([pixels(number, 0)] * 2),
        "class_noun": np.stack([pixels(1000 + number, 1), pixels(2000 + number, 1)]),
    }
    return Drawn(number, images, 1.5)


@pytest.fixture(scope="module")
def spec(tiny_clip: Path) -> Evaluate:
    values = {
        "job": "evaluate", "name": "test", "encoder": "none", "shards": ["none"], "calibration": ["none"],
        "images_per_prompt": 2, "image_size": SIDE, "prompt": "a photo of {}", "metrics": {"clip": str(tiny_clip)},
    }  # fmt: skip
    return Evaluate.model_validate(values)


@pytest.fixture(scope="module")
def found(spec: Evaluate) -> FieldReport:
    assert spec.metrics is not None
    subjects = [subject(number) for number in range(COUNT)]
    return report_of(spec, spec.metrics, subjects, [drawn(number) for number in range(COUNT)], None)


def test_the_rows_are_the_evaluations_own(found: FieldReport) -> None:
    assert set(found.each) == {"CLIP-I", "CLIP-T", "copies"}
    assert list(found.each["CLIP-I"]) == [FLOOR, "class_noun", "encoder", "tuned", CEILING]
    assert found.each["CLIP-I"]["tuned"].mean > found.each["CLIP-I"]["class_noun"].mean
    assert found.each["copies"]["encoder"].mean == 1 > found.each["copies"]["class_noun"].mean == 0
    assert set(found.kid) == set(found.each["copies"])


def test_clip_t_is_of_the_prompt_with_the_class_noun(found: FieldReport, spec: Evaluate, tiny_clip: Path) -> None:
    clip = ClipFeatures.load(tiny_clip)
    text = clip.encode_text(["a photo of a cat"])[0]
    expected = [(clip.encode_image(to_pixels(drawn(n).images["tuned"])) @ text).mean() for n in range(COUNT)]
    assert found.each["CLIP-T"]["tuned"].mean == pytest.approx(float(sum(expected)) / COUNT, abs=1e-5)


def test_the_report_shows_them(found: FieldReport, tmp_path: Path) -> None:
    subjects = [subject(number) for number in range(COUNT)]

    def means(inputs: np.ndarray) -> np.ndarray:
        return inputs.reshape(len(inputs), 4, 56, 4, 56, 3).mean((2, 4)).reshape(len(inputs), -1).astype(np.float64)

    calibration = [(f"other-{i}", picture(500 + i, v)) for i in range(60) for v in range(3)]
    scores = Scorer(means, None, calibration).score(subjects, [drawn(number) for number in range(COUNT)])
    report = Report.of(scores, [1.5] * COUNT, labels=LABELS, facts={}, field=found)
    text = report.markdown()
    assert "**The field's metrics**" in text and "| what is shown | CLIP-I | CLIP-T | copies | KID |" in text
    table = text.split("**The field's metrics**")[1]
    row = next(line for line in table.splitlines() if line.startswith("| encoder alone |"))
    assert f"{found.each['CLIP-I']['encoder'].mean:.3f}" in row and row.count("|") == 6
    assert report.metrics()["CLIP-I/tuned"] == found.each["CLIP-I"]["tuned"].mean
    report.write(tmp_path, scores, [one.identity for one in subjects])
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["field"]["each"]["CLIP-I"]["tuned"]["mean"] == found.each["CLIP-I"]["tuned"].mean
    without = Report.of(scores, [1.5] * COUNT, labels=LABELS, facts={})
    assert "The field's metrics" not in without.markdown()


def test_metrics_are_off_by_default(spec: Evaluate) -> None:
    assert Evaluate.model_validate(spec.model_dump() | {"metrics": None}).metrics is None
    assert MetricsSpec().clip is None and MetricsSpec().dino is None
