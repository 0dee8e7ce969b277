"""`imprint personalize` and `imprint sample` from end to end on a small pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from imprint.backbone import Backbone
from imprint.cli.personalize import personalize
from imprint.cli.sample import sample
from imprint.config.methods import E4TSpec
from imprint.features.clip import ClipFeatures
from imprint.methods.e4t import E4TObjective, save_encoder

app = typer.Typer()
app.command()(personalize)
app.command()(sample)


@pytest.fixture
def scene(tiny_sd15: Path, tiny_clip: Path, tmp_path: Path) -> dict[str, Path]:
    """A picture, a pretrained encoder and a backbone."""
    backbone, clip = Backbone.load(tiny_sd15), ClipFeatures.load(tiny_clip)
    objective = E4TObjective(backbone, E4TSpec(encoder={"clip": clip.name}), clip)
    save_encoder(tmp_path / "encoder", objective.state_dict(), objective.spec, backbone, clip)
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "me.png")
    return {"backbone": tiny_sd15, "encoder": tmp_path / "encoder", "picture": tmp_path / "me.png", "home": tmp_path}


def options(scene: dict[str, Path], **changed: object) -> list[str]:
    given = {
        "--images": scene["picture"], "--encoder": scene["encoder"], "--backbone": scene["backbone"],
        "--out": scene["home"] / "concept", "--class-noun": "person", "--steps": 2,
    }  # fmt: skip
    given |= {f"--{key.replace('_', '-')}": value for key, value in changed.items()}
    return [str(word) for pair in given.items() for word in pair]


def test_from_a_picture_to_new_pictures(scene: dict[str, Path]) -> None:
    runner, home = CliRunner(), scene["home"]
    made = runner.invoke(app, ["personalize", *options(scene), "batch_size=4", "learning_rates.unet=1e-5"])
    assert made.exit_code == 0, made.output
    prompts = ["--prompt", "a photo of <concept> on blue", "--prompt", "<concept>"]
    drawing = ["--num-images", "3", "--steps", "2", "--guidance-scale", "2", "sampler=euler_ancestral"]
    drawn = runner.invoke(
        app, ["sample", "--concept", str(home / "concept"), *prompts, "--out", str(home / "out"), *drawing]
    )
    assert drawn.exit_code == 0, drawn.output
    names = sorted(file.name for file in (home / "out").iterdir())
    assert names == ["sample-000.png", *(f"sample-00{i}.png" for i in range(1, 6)), "sheet.png"]
    with Image.open(home / "out" / "sheet.png") as sheet:
        assert sheet.size == (3 * 18 + 2, 2 * 18 + 2)
    assert "sheet.png" in drawn.output


@pytest.mark.parametrize(
    ("changed", "message", "code"),
    [
        ({"images": "missing.png"}, "missing.png does not exist", 1),
        ({"backbone": "./no/such/backbone"}, "neither a folder", 1),
        ({"encoder": "no-encoder"}, "found neither encoder.json", 1),
        ({"method": "e5t"}, "did you mean 'e4t'?", 2),
        ({"steps": -1}, "got -1, expected greater than or equal to 0", 2),
    ],
)
def test_a_wrong_option_is_one_clear_message(
    scene: dict[str, Path], changed: dict[str, object], message: str, code: int
) -> None:
    result = CliRunner().invoke(app, ["personalize", *options(scene, **changed)])
    assert result.exit_code == code
    assert message in result.output and "Traceback" not in result.output
    assert not (scene["home"] / "concept").exists()


def test_a_corrupt_picture(scene: dict[str, Path]) -> None:
    scene["picture"].write_bytes(b"\x89PNG")
    result = CliRunner().invoke(app, ["personalize", *options(scene)])
    assert result.exit_code == 1 and "cut or damaged" in result.output


def test_an_unknown_key(scene: dict[str, Path]) -> None:
    result = CliRunner().invoke(app, ["personalize", *options(scene), "learning_rate.unet=1"])
    assert result.exit_code == 2 and "did you mean 'learning_rates'" in result.output


def test_a_prompt_without_the_concept_and_a_concept_that_is_not_there(scene: dict[str, Path]) -> None:
    home = scene["home"]
    rest = ["--concept", str(home / "none"), "--out", str(home / "out")]
    first = CliRunner().invoke(app, ["sample", "--prompt", "a cat", *rest])
    assert first.exit_code == 2 and "write <concept> in it" in first.output
    second = CliRunner().invoke(app, ["sample", "--prompt", "<concept>", *rest])
    assert second.exit_code == 1 and "there is no concept.json" in second.output


def test_pictures_cannot_be_written(scene: dict[str, Path]) -> None:
    from imprint.errors import StorageError
    from imprint.sampling.sheet import write_pictures

    (scene["home"] / "file").write_text("in the way")
    with pytest.raises(StorageError, match="choose another folder"):
        write_pictures(scene["home"] / "file", torch.zeros(1, 3, 4, 4))
