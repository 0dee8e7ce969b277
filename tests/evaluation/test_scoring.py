"""Scores and report of pictures whose identity and attributes are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from imprint.evaluation.attributes import AttributeReader
from imprint.evaluation.columns import COLUMNS, Drawn
from imprint.evaluation.report import COMPARISONS, Report
from imprint.evaluation.scoring import CEILING, FLOOR, Scorer, Scores
from imprint.evaluation.subjects import ASKED, Picture, Subject, somebody_else

COUNT = 8
LABELS = {column.name: column.label.format(method="lora", steps=15) for column in COLUMNS}
SIDE = 8


def network(inputs: np.ndarray) -> np.ndarray:
    """Means of a 4 x 4 raster: what a picture is made of can be read off its features."""
    n = len(inputs)
    return inputs.reshape(n, 4, 56, 4, 56, 3).mean((2, 4)).reshape(n, -1).astype(np.float64)


def face(identity: int, variant: int) -> np.ndarray:
    """A fixed random pattern of the identity with a little noise of the variant."""
    pattern = np.random.default_rng(identity).integers(40, 216, (4, 4, 3)).repeat(2, 0).repeat(2, 1)
    noise = np.random.default_rng([identity, variant]).integers(-8, 9, (SIDE, SIDE, 3))
    return (pattern + noise).clip(0, 255).astype(np.uint8)


def picture(identity: int, variant: int, **attributes: str) -> Picture:
    return Picture(face(identity, variant), np.full((SIDE, SIDE), 255, np.uint8), attributes, "")


def subject(number: int) -> Subject:
    targets = tuple(picture(number, variant) for variant in (2, 3))
    scene = {"background": "red" if number % 2 else "blue", "glasses": "none", "expression": "sad"}
    shown = {"background": "red" if number % 4 else "blue", "glasses": "none" if number < 2 else "round glasses"}
    return Subject(number, f"id-{number}", picture(number, 0, skin="tan", **shown), picture(number, 1), targets, scene)


def drawn(number: int) -> Drawn:
    """Tuned columns show the subject, the wrong reference somebody else, the rest nobody of the set."""
    images = {}
    for column in COLUMNS:
        identity = {"tuned": number, "encoder": number, "wrong_reference": somebody_else(number, COUNT)}.get(
            column.source, 1000 + number
        )
        images[column.name] = np.stack([face(identity, 50), face(identity, 51)])
    return Drawn(number, images, 1.5)


class ReadsFromBrightness(AttributeReader):
    """Says "red" of every picture, and "tan" of those that are bright at one corner."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Identity(), {}, {})  # type: ignore[arg-type]

    def read(self, images: Tensor) -> dict[str, list[str]]:
        n = len(images)
        return {"background": ["red"] * n, "glasses": ["none"] * n, "expression": ["angry"] * n, "skin": ["tan"] * n}

    def masks(self, images: Tensor) -> Tensor:
        return torch.ones_like(images[:, :1])


@pytest.fixture(scope="module")
def scored() -> tuple[list[Subject], Scores]:
    calibration = [(f"other-{i}", picture(500 + i, v)) for i in range(60) for v in range(3)]
    subjects = [subject(number) for number in range(COUNT)]
    scorer = Scorer(network, ReadsFromBrightness(), calibration)
    return subjects, scorer.score(subjects, [drawn(number) for number in range(COUNT)])


def test_whom_a_picture_shows(scored: tuple[list[Subject], Scores]) -> None:
    _, scores = scored
    assert list(scores.identity) == [FLOOR, *(column.name for column in COLUMNS), CEILING]
    for row in ("tuned", "encoder", "new_scene", CEILING):
        assert scores.identity[row].min() > 0.9 and scores.recognized[row].tolist() == [1.0] * COUNT
    for row in (FLOOR, "wrong_reference", "class_noun"):
        assert scores.identity[row].max() < 0.7
    assert scores.recognized[FLOOR].tolist() == scores.recognized["wrong_reference"].tolist() == [0.0] * COUNT
    assert scores.scorer["area_under_curve"] == 1.0 and scores.scorer["nearest_identity"] == 1.0
    assert scores.scorer["same_mean"] > 0.9 > scores.scorer["different_mean"]


def test_whether_the_prompt_was_obeyed(scored: tuple[list[Subject], Scores]) -> None:
    _, scores = scored
    assert set(scores.obeyed) == {column.name for column in COLUMNS if column.scene}
    obeyed = scores.obeyed["new_scene"]
    assert obeyed["background"].tolist() == [0.0, 1.0] * (COUNT // 2)
    assert obeyed["glasses"].tolist() == [1.0] * COUNT and obeyed["expression"].tolist() == [0.0] * COUNT
    # Every picture is read as red: half of the subjects are asked for it, whoever the picture was drawn for.
    assert scores.chance == {"background": 0.5, "glasses": 1.0, "expression": 0.0}
    # Two of eight real pictures are blue and read as red; of glasses only "none" is asked; expressions are not known.
    assert scores.readable == {"background": 0.75, "glasses": 1.0}
    assert scores.kept["tuned"].tolist() == [1.0] * COUNT


def report(scores: Scores) -> Report:
    return Report.of(scores, [1.5] * COUNT, labels=LABELS, facts={"actors": 2})


def test_the_report_says_what_the_scores_say(scored: tuple[list[Subject], Scores]) -> None:
    _, scores = scored
    found = report(scores)
    assert found.labels["tuned"] == "after 15 steps"
    difference = found.differences["encoder - wrong_reference"]
    assert difference.mean == pytest.approx((scores.identity["encoder"] - scores.identity["wrong_reference"]).mean())
    assert found.tuning_seconds.mean == 1.5
    text = found.markdown()
    row = next(line for line in text.splitlines() if line.startswith("| after 15 steps |"))
    assert f"{scores.identity['tuned'].mean():.3f}" in row
    assert "| encoder alone minus wrong reference |" in text and "| yes |" in text
    assert "| by luck (another subject's picture) | 50% | 100% | 0% |" in text
    assert "| real pictures of what was asked | 75% | 100% | - |" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") in (4, 5) for line in lines)
    assert found.metrics()["obeyed/new_scene/background"] == 0.5
    assert [table.row_count for table in found.console()] == [len(scores.identity), len(COMPARISONS), 6]


def test_columns_that_were_not_drawn_are_not_in_the_report() -> None:
    calibration = [(f"other-{i}", picture(500 + i, v)) for i in range(60) for v in range(3)]
    subjects = [subject(number) for number in range(COUNT)]
    few = [
        Drawn(one.number, {name: one.images[name] for name in ("class_noun", "tuned")})
        for one in map(drawn, range(COUNT))
    ]
    scores = Scorer(network, None, calibration).score(subjects, few)
    assert list(scores.identity) == [FLOOR, "class_noun", "tuned", CEILING]
    assert list(report(scores).differences) == ["tuned - class_noun"]


def test_the_report_on_disk(scored: tuple[list[Subject], Scores], tmp_path: Path) -> None:
    subjects, scores = scored
    found = report(scores)
    found.write(tmp_path / "run", scores, [one.identity for one in subjects])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["results.json", "table.md"]
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert record["identity"]["tuned"]["mean"] == pytest.approx(scores.identity["tuned"].mean())
    assert record["per_subject"]["identity"]["tuned"] == pytest.approx(scores.identity["tuned"].tolist(), abs=1e-5)
    assert record["subjects"][:2] == ["id-0", "id-1"]


def test_without_a_reader_there_is_no_word_on_prompts() -> None:
    calibration = [(f"other-{i}", picture(500 + i, v)) for i in range(60) for v in range(3)]
    subjects = [subject(number) for number in range(COUNT)]
    scores = Scorer(network, None, calibration).score(subjects, [drawn(number) for number in range(COUNT)])
    assert scores.obeyed == {} and scores.kept == {} and scores.chance == {}
    found = Report.of(scores, [1.0] * COUNT, labels=LABELS, facts={})
    assert len(found.tables()) == 2 and not any(name in found.markdown() for name in ASKED)
