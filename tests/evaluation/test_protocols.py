"""DreamBench's lists by what the paper says of them, and prompts of our own that never ask for what is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imprint.config.jobs.benchmark import Benchmark, PromptSpec
from imprint.config.jobs.evaluate import SceneSpec
from imprint.errors import ConfigError, DataError
from imprint.evaluation.attributes import AttributeReader
from imprint.evaluation.protocols import PLAIN, Prompt, dreambench, faces, objects, prompts_for
from imprint.evaluation.sitters import sitters_of_folder

FACE = {"background": "red", "glasses": "round glasses", "expression": "surprised", "clothing_color": "blue"}


def spec(**changed: object) -> Benchmark:
    values = {
        "job": "benchmark", "name": "test", "source": {"folder": "nowhere"}, "subjects": 2, "image_size": 16,
        "contenders": {"lora": {"tuning": {"method": "lora"}}},
    }  # fmt: skip
    return Benchmark.model_validate({**values, **changed})


def test_dreambench_has_25_prompts_of_either_kind() -> None:
    things, live = dreambench(live=False), dreambench(live=True)
    for prompts in (things, live):
        assert len({prompt.text for prompt in prompts}) == len(prompts) == 25
        assert all(prompt.text.count("{}") == 1 for prompt in prompts)
    # The lists differ in ten: places of objects, clothes of live subjects.
    assert len({p.text for p in things} & {p.text for p in live}) == 15
    assert [sum(p.kind == kind for p in live) for kind in ("recontextualise", "accessorise", "modify")] == [10, 10, 5]
    assert [sum(p.kind == kind for p in things) for kind in ("recontextualise", "accessorise", "modify")] == [20, 0, 5]
    assert things[0].about("a dog") == "a dog in the jungle"


@pytest.mark.parametrize("seed", range(20))
def test_a_face_is_never_asked_for_what_its_picture_shows(seed: int) -> None:
    prompts = faces(FACE, SceneSpec(), np.random.default_rng(seed))
    assert [prompt.kind for prompt in prompts] == [
        PLAIN, "recontextualise", "accessorise", "express", "restyle", "all at once",
    ]  # fmt: skip
    for prompt in prompts:
        assert all(FACE[name] != value and value in prompt.text for name, value in prompt.asks.items())
    alone = {name: value for prompt in prompts[1:4] for name, value in prompt.asks.items()}
    assert prompts[-1].asks == alone and len(alone) == 3


def test_what_a_face_is_asked_for_can_be_read() -> None:
    heads = AttributeReader.load("face-attributes").heads
    asked = [p.asks for seed in range(60) for p in faces({}, SceneSpec(), np.random.default_rng(seed))]
    assert all(value in heads[name] for one in asked for name, value in one.items())


def test_an_object_gets_other_backgrounds_and_styles() -> None:
    shown = {"background": "red", "style": "noto"}
    prompts = objects(shown, SceneSpec(), np.random.default_rng(0))
    assert len({prompt.text for prompt in prompts}) == 5
    assert not any("red" in prompt.text.split() or "noto" in prompt.text for prompt in prompts)


def test_prompts_are_a_function_of_job_and_subject() -> None:
    chosen = spec(protocol="faces")
    assert prompts_for(chosen, 3, FACE, live=False) == prompts_for(chosen, 3, FACE, live=False)
    own = spec(prompts=[{"text": "{} at sea", "kind": "place", "asks": {"background": "blue"}}])
    assert prompts_for(own, 3, FACE, live=True) == (Prompt("{} at sea", "place", {"background": "blue"}),)
    short = spec(protocol="faces", scenes={"backgrounds": ["red", "green"]})
    with pytest.raises(ConfigError, match="too few words"):
        prompts_for(short, 0, FACE | {"clothing_color": "red"}, live=False)
    with pytest.raises(ValueError, match="where the subject goes"):
        PromptSpec(text="a photo")


def test_the_layout_of_dreambench(tmp_path: Path) -> None:
    from PIL import Image

    for name, count in (("dog", 4), ("clock", 3)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("RGB", (40, 30), (10 * number, 0, 0)).save(tmp_path / name / f"{number:02}.png")
    (tmp_path / "classes.json").write_text('{"dog": "dog", "clock": "alarm clock"}')
    chosen = spec(source={"folder": str(tmp_path)})
    clock, dog = sitters_of_folder(chosen.source, tmp_path, chosen)
    assert (clock.identity, clock.noun, len(clock.references)) == ("clock", "alarm clock", 3)
    assert dog.references == dog.targets and dog.references[0].image.shape == (16, 16, 3)
    assert "in a chef outfit" in dog.prompts[14].text and clock.prompts != dog.prompts
    with pytest.raises(DataError, match="got 2 folders"):
        sitters_of_folder(chosen.source, tmp_path, spec(subjects=3, source={"folder": str(tmp_path)}))
    (tmp_path / "classes.json").write_text('{"dog": "dog"}')
    with pytest.raises(DataError, match="no class noun of clock"):
        sitters_of_folder(chosen.source, tmp_path, chosen)
