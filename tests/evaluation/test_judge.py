"""What pictures are worth, on drawings whose scores are known; and a contender at work on a small random backbone."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from imprint.config.jobs.benchmark import Benchmark
from imprint.config.methods import SampleSpec
from imprint.errors import ConfigError
from imprint.evaluation.attributes import AttributeReader
from imprint.evaluation.cost import measured
from imprint.evaluation.judge import Gallery, Judge
from imprint.evaluation.protocols import Prompt
from imprint.evaluation.sitters import Sitter
from imprint.evaluation.studio import Portrait, Studio
from imprint.evaluation.subjects import Picture

COUNT, SIDE = 4, 16
PROMPTS = (Prompt("{}", "plain"), Prompt("{} on red", "place", {"background": "red", "glasses": "round"}))


def pixels(identity: int, variant: int) -> np.ndarray:
    """A coarse pattern of the identity, with some noise of the variant."""
    pattern = np.random.default_rng(identity).integers(0, 256, (4, 4, 3)).repeat(4, 0).repeat(4, 1)
    noise = np.random.default_rng([identity, variant]).integers(-40, 41, (SIDE, SIDE, 3))
    return (pattern + noise).clip(0, 255).astype(np.uint8)


def picture(identity: int, variant: int) -> Picture:
    return Picture(pixels(identity, variant), np.full((SIDE, SIDE), 255, np.uint8), {"skin": "tan"}, "", "cat")


def sitter(number: int) -> Sitter:
    return Sitter(number, f"s{number}", "cat", (picture(number, 0),),
                  tuple(picture(number, variant) for variant in (2, 3, 4)), PROMPTS)  # fmt: skip


def means(inputs: np.ndarray) -> np.ndarray:
    """A network whose features are the means of sixteen squares."""
    return inputs.reshape(len(inputs), 4, 56, 4, 56, 3).mean((2, 4)).reshape(len(inputs), -1).astype(np.float64)


class SaysRedAndTan(AttributeReader):
    """Whatever it sees: red, no glasses, tan skin, and a subject that fills the picture."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Identity(), {}, {})  # type: ignore[arg-type]

    def read(self, images: Tensor) -> dict[str, list[str]]:
        return {name: [value] * len(images) for name, value in (("background", "red"), ("glasses", "none"),
                                                                ("skin", "tan"))}  # fmt: skip

    def masks(self, images: Tensor) -> Tensor:
        return torch.ones_like(images[:, :1])


@pytest.fixture(scope="module")
def judge() -> Judge:
    calibration = [(f"other-{i}", picture(500 + i, v)) for i in range(60) for v in range(3)]
    return Judge.calibrated(means, SaysRedAndTan(), calibration)


@pytest.fixture(scope="module")
def gallery(judge: Judge) -> Gallery:
    return judge.gallery([sitter(number) for number in range(COUNT)])


def portrait(first: list[np.ndarray], second: list[np.ndarray]) -> Portrait:
    return Portrait(np.stack([np.stack(first), np.stack(second)]))


def test_each_prompt_gets_its_own_score(judge: Judge, gallery: Gallery) -> None:
    """The first prompt shows the subject, the second somebody else's input and a copy of the subject's own."""
    drawn = portrait([pixels(1, 50), pixels(1, 51)], [pixels(3, 0), pixels(1, 0)])
    found = judge.score(sitter(1), 1, drawn, gallery)
    assert found["identity"][0] > 0.9 and found["recognized"].tolist() == [1.0, 0.5]
    # Half of the second prompt's pictures are the subject, half are number 3: as like the one as the other.
    assert found["identity"][1] == pytest.approx(found["elsewhere"][1], abs=0.15)
    assert found["identity"][1] < found["identity"][0] - 0.2
    assert found["elsewhere"][0] < 0.7  # the sitter half the list away is number 3
    assert found["copies"][1] >= 0.5
    # The plain prompt asks for nothing; of two wishes one is read, whatever is drawn.
    assert np.isnan(found["prompt"][0]) and found["prompt"][1] == 0.5
    assert found["kept"].tolist() == [1.0, 1.0]
    assert found["diversity"][1] > found["diversity"][0] > 0


def test_of_one_real_picture_nobody_knows_what_a_copy_is(judge: Judge) -> None:
    alone = [dataclasses.replace(one, targets=one.references) for one in map(sitter, range(COUNT))]
    shown = judge.gallery(alone)
    found = judge.score(alone[1], 1, portrait([pixels(1, 0)] * 2, [pixels(1, 0)] * 2), shown)
    assert shown.copy_threshold is None and "copies" not in found and found["identity"][0] == pytest.approx(1)


def test_both_sitters_have_to_be_there(judge: Judge, gallery: Gallery) -> None:
    """A picture whose halves are two sitters, either way round, beats one that shows one of them twice."""

    def halves(left: int, right: int) -> np.ndarray:
        # What the gallery's pictures are, narrow: each half is looked at by itself.
        return np.concatenate([pixels(left, 2)[:, 4:12], pixels(right, 2)[:, 4:12]], axis=1)

    found = judge.both(np.stack([halves(0, 1), halves(1, 0), halves(0, 0), halves(2, 3)]), (0, 1), gallery)
    assert found[0] == pytest.approx(found[1]) and found[0] > found[2] and found[0] > found[3]


def test_diversity_of_one_picture_twice_is_zero(judge: Judge) -> None:
    same = torch.rand(1, 3, SIDE, SIDE).repeat(2, 1, 1, 1)
    assert judge.diversity(same) == pytest.approx(0, abs=1e-6)


def test_what_is_left_of_the_class(judge: Judge) -> None:
    """A class that became the subject has a PRES near one and little DIV."""
    became = judge.class_left(sitter(0), np.stack([pixels(0, 60), pixels(0, 61)]))
    kept = judge.class_left(sitter(0), np.stack([pixels(900, 60), pixels(901, 61)]))
    assert became["PRES"] > kept["PRES"] and became["DIV"] < kept["DIV"]


def test_without_a_calibration_identity_is_a_plain_cosine() -> None:
    plain = Judge.calibrated(means, None, [])
    shown = plain.gallery([sitter(number) for number in range(COUNT)])
    found = plain.score(sitter(2), 2, portrait([pixels(2, 0)] * 2, [pixels(2, 9)] * 2), shown)
    rows = [plain.subject_features(pixels(2, variant)[None])[0] for variant in (0, 2, 3, 4)]
    unit = [row / np.linalg.norm(row) for row in rows]
    assert found["identity"][0] == pytest.approx(np.mean([unit[0] @ other for other in unit[1:]]))
    assert "prompt" not in found and "kept" not in found


def benchmark(**changed: object) -> Benchmark:
    values = {
        "job": "benchmark", "name": "test", "source": {"folder": "nowhere"}, "seed": 5, "image_size": 16,
        "images_per_prompt": 2, "sampling": {"steps": 2},
        "contenders": {"lora": {"tuning": {"method": "lora", "steps": 3, "batch_size": 2}},
                       "word": {"tuning": {"method": "textual_inversion", "steps": 0}}},
    }  # fmt: skip
    return Benchmark.model_validate({**values, **changed})


def test_a_contender_is_tuned_drawn_and_measured(tiny_sd15: Path) -> None:
    spec = benchmark(backbone=str(tiny_sd15))
    found = Studio(spec.contenders["lora"], spec, class_pictures=2).portray(sitter(1))
    assert found.images.shape == (2, 2, 16, 16, 3)
    assert found.cost["steps"] == 3 and found.cost["seconds"] > 0 and found.cost["kilobytes"] > 0
    assert found.class_images is not None and found.class_images.shape == (2, 16, 16, 3)
    again = Studio(spec.contenders["lora"], spec)
    again.portray(sitter(1))
    began = again._last
    fewer = spec.contenders["lora"].model_copy(update={"sampling": SampleSpec(steps=1), "label": "one step"})
    assert again.tunes_alike(fewer) and not again.tunes_alike(spec.contenders["word"]) and not again.tunes_alike(None)
    again.sample_as(fewer)
    other = again.portray(sitter(1))
    assert again._last is began  # what was learned is drawn from, and not learned anew
    assert other.cost["seconds"] == began[2]["seconds"] and not np.array_equal(other.images, found.images)
    again.sample_as(spec.contenders["lora"])
    np.testing.assert_array_equal(again.portray(sitter(1)).images, found.images)
    again.portray(sitter(2))
    assert again._last is not began
    word = Studio(spec.contenders["word"], spec, class_pictures=2).portray(sitter(1))
    assert word.cost["steps"] == 0 and word.class_images is None  # a word changes no other picture of the model
    nobody = Studio(None, spec).portray(sitter(1))
    assert set(nobody.cost) == {"draw_seconds"} and nobody.class_images is None
    # The same seeds for everyone, and for every prompt.
    assert Studio(None, spec).seeds(sitter(1)) == [7, 8]


def test_contenders_are_checked_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="starts from what it pretrained"):
        benchmark(contenders={"e4t": {"tuning": {"method": "e4t"}}})
    with pytest.raises(ValueError, match="has none"):
        benchmark(contenders={"lora": {"encoder": "x", "tuning": {"method": "lora"}}})
    with pytest.raises(ValueError, match="names a folder"):
        benchmark(contenders={"../x": {"tuning": {"method": "lora"}}})
    with pytest.raises(ValueError, match="expected one of lora"):
        benchmark(against="nobody")
    assert list(benchmark(contenders={"lora": {"tuning": {"method": "lora"}}, "gone": None}).contenders) == ["lora"]
    missing = benchmark(contenders={"e4t": {"encoder": "nowhere", "tuning": {"method": "e4t"}}}).preflight()
    assert [line.partition(":")[0] for line in missing] == ["source.folder", "contenders.e4t.encoder"]


def test_memory_is_the_peak_above_the_start() -> None:
    with measured(torch.device("cpu")) as cost:
        block = np.ones(64 << 20, np.uint8)
        del block
    assert cost.seconds > 0
    if cost.memory_mib is None:
        pytest.skip("this system does not say")
    assert 50 < cost.memory_mib < 120


_TWICE = """
import numpy as np, torch
from imprint.evaluation.cost import measured
from imprint.training.heap import keep_freed_memory
keep_freed_memory()
for _ in range(2):
    with measured(torch.device("cpu")) as cost:
        blocks = [np.ones(8 << 20, np.uint8) for _ in range(8)]
        del blocks
    print(cost.memory_mib)
"""


def test_memory_that_a_process_keeps_counts_again() -> None:
    """The actors keep what they freed, so the second concept would seem to take nothing."""
    done = subprocess.run([sys.executable, "-c", _TWICE], check=True, capture_output=True, text=True)
    if "None" in done.stdout:
        pytest.skip("this system does not say")
    assert all(50 < float(line) < 120 for line in done.stdout.split())


def test_a_search_says_which_key_is_wrong() -> None:
    from imprint.config.jobs.benchmark import Range, Search
    from imprint.jobs.search import check_space, with_values

    search = Search.model_validate({
        "job": "search", "name": "test", "source": {"folder": "nowhere"},
        "contender": {"tuning": {"method": "lora", "steps": 3}},
        "space": {"tuning.lora.learning_rate": {"loguniform": [1e-4, 1e-2]}, "tuning.steps": {"integers": [1, 9]}},
    })  # fmt: skip
    check_space(search)
    chosen = with_values(search.contender, {"tuning.lora.learning_rate": 0.5, "tuning.steps": 7})
    assert (chosen.tuning.steps, chosen.tuning.lora.learning_rate) == (7, 0.5)  # type: ignore[union-attr]
    assert search.contender.tuning.steps == 3
    wrong = search.model_copy(update={"space": {"tuning.stepz": Range(choice=[3])}})
    with pytest.raises(ConfigError, match=r"space\.tuning\.stepz"):
        check_space(wrong)
    low = search.model_copy(update={"space": {"tuning.steps": Range(choice=[3, 0])}})
    with pytest.raises(ConfigError, match="steps"):
        check_space(low)
    for bad in ({}, {"choice": [1], "uniform": [0, 1]}, {"loguniform": [0, 1]}, {"uniform": [2, 1]}):
        with pytest.raises(ValueError):
            Range.model_validate(bad)
