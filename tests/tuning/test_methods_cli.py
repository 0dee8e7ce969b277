"""`imprint personalize`, `sample`, `merge` and `export` with the methods that need no encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from imprint.cli.app import app
from imprint.tuning import Concept


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a picture of each of two subjects."""
    for number, name in enumerate(("me", "you")):
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return tmp_path


def invoke(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def personalize(home: Path, backbone: Path, method: str, name: str, *more: object) -> Any:
    return invoke(
        "personalize", "--images", home / f"{name}.png", "--backbone", backbone, "--out", home / name,
        "--method", method, "--class-noun", "cat", "--steps", 1, "batch_size=2", *more,
    )  # fmt: skip


def test_two_subjects_by_lora_merged_drawn_and_exported(home: Path, tiny_sd15: Path) -> None:
    for name in ("me", "you"):
        made = personalize(home, tiny_sd15, "lora", name, "identifier.rare_share=1.0", f"identifier.text={name}")
        assert made.exit_code == 0, made.output
    merged = invoke("merge", "--concept", home / "me", "--concept", home / "you", "--out", home / "both",
                    "--weight", 1, "--weight", 0.5)  # fmt: skip
    assert merged.exit_code == 0 and "<concept-1>, <concept-2>" in merged.output, merged.output
    drawn = invoke("sample", "--concept", home / "both", "--prompt", "<concept-1> and <concept-2>", "--out",
                   home / "out", "--num-images", 2, "--steps", 1)  # fmt: skip
    assert drawn.exit_code == 0, drawn.output
    assert (home / "out" / "sheet.png").is_file()
    written = invoke("export", "--concept", home / "both", "--format", "kohya", "--out", home / "lora")
    assert written.exit_code == 0 and "me cat, you cat" in written.output, written.output
    assert load_file(home / "lora" / "lora.safetensors")


def test_dreambooth_and_a_new_word(home: Path, tiny_sd15: Path) -> None:
    prior = (f"prior.cache_dir={home / 'cache'}", "prior.images=2", "prior.sampling.steps=1")
    made = personalize(home, tiny_sd15, "dreambooth", "me", *prior, "identifier.rare_share=1.0")
    assert made.exit_code == 0, made.output
    whole = invoke("export", "--concept", home / "me", "--format", "diffusers", "--out", home / "whole")
    assert whole.exit_code == 0 and (home / "whole" / "model_index.json").is_file(), whole.output
    made = personalize(home, tiny_sd15, "textual_inversion", "you")
    assert made.exit_code == 0, made.output
    word = invoke("export", "--concept", home / "you", "--format", "textual-inversion", "--out", home / "word",
                  "--trigger", "<my-cat>")  # fmt: skip
    assert word.exit_code == 0 and "<my-cat>" in word.output, word.output
    assert list(load_file(home / "word" / "learned_embeds.safetensors")) == ["<my-cat>"]


@pytest.mark.parametrize(
    ("method", "more", "message"),
    [
        ("e4t", (), "--encoder: e4t starts from a pretrained encoder and got none"),
        ("lora", ("--encoder", "runs/e4t"), "--encoder: lora has no pretrained encoder and got one"),
        ("lora", ("--class-noun", ""), "--class-noun: lora needs to know what the subject is"),
        ("dreamboth", (), "did you mean 'dreambooth'?"),
        ("dreambooth", ("prior.imags=3",), "did you mean 'images'?"),
        ("dreambooth", ("prior.prompt=cat",), "does not say where the class noun goes"),
    ],
)
def test_a_wrong_option_is_one_clear_message(
    home: Path, tiny_sd15: Path, method: str, more: tuple[str, ...], message: str
) -> None:
    result = personalize(home, tiny_sd15, method, "me", *more)
    assert result.exit_code == 2, result.output
    assert message in result.output and "Traceback" not in result.output
    assert not (home / "me").exists()


def test_what_cannot_be_exported(home: Path, tiny_sd15: Path) -> None:
    assert personalize(home, tiny_sd15, "textual_inversion", "me").exit_code == 0
    result = invoke("export", "--concept", home / "me", "--format", "kohya", "--out", home / "lora")
    assert result.exit_code == 1 and "use textual-inversion" in result.output
    result = invoke("export", "--concept", home / "me", "--format", "lora", "--out", home / "lora")
    assert result.exit_code == 2 and "expected one of diffusers-lora, kohya" in result.output
    result = invoke("merge", "--concept", home / "me", "--out", home / "one")
    assert result.exit_code == 2 and "expected two or more" in result.output


def test_keys_from_a_file(home: Path, tiny_sd15: Path) -> None:
    """The ablations of a method as a file; the command line has the last word."""
    file = home / "no-prior.yaml"
    file.write_text("method: dreambooth\nsteps: 7\nnoun: ''\nidentifier: {text: zzq}\nprior: {enabled: false}\n")
    given = ("--images", home / "me.png", "--backbone", tiny_sd15, "--class-noun", "cat", "--config", file)
    made = invoke("personalize", *given, "--out", home / "me", "--steps", 1, "batch_size=2")
    assert made.exit_code == 0, made.output
    learned = Concept.load(home / "me").learned
    assert learned.method == "dreambooth" and learned.settings["phrases"] == ["a zzq"]
    assert learned.settings["tune"]["steps"] == 1 and not learned.settings["tune"]["prior"]["enabled"]
    other = invoke("personalize", *given, "--out", home / "you", "--method", "lora")
    assert other.exit_code == 2 and "no-prior.yaml:1: method: got 'dreambooth'" in other.output
    file.write_text("method: dreambooth\nprior: {enabeld: false}\n")
    wrong = invoke("personalize", *given, "--out", home / "you")
    assert wrong.exit_code == 2 and "no-prior.yaml:2" in wrong.output and "'enabled'" in wrong.output
