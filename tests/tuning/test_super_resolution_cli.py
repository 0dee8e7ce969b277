"""`imprint personalize` and `imprint sample` with a second stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from imprint.cli.app import app


@pytest.fixture
def home(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "me.png")
    return tmp_path


def invoke(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def personalize(home: Path, backbone: Path, method: str, *more: object) -> Any:
    return invoke(
        "personalize", "--images", home / "me.png", "--backbone", backbone, "--out", home / "me", "--method", method,
        "--class-noun", "cat", "--steps", 1, "batch_size=2", "identifier.rare_share=1.0", *more,
    )  # fmt: skip


def sizes(home: Path, *more: object) -> set[tuple[int, int]]:
    """Of the pictures that `imprint sample` writes."""
    out = home / "out"
    drawn = invoke("sample", "--concept", home / "me", "--prompt", "a photo of <concept>", "--out", out,
                   "--num-images", 2, "--steps", 1, "super_resolution.steps=1", *more)  # fmt: skip
    assert drawn.exit_code == 0, drawn.output
    found = set()
    for file in out.glob("*.png"):
        if file.name != "sheet.png":
            with Image.open(file) as picture:
                found.add(picture.size)
    return found


def test_a_subject_drawn_large_by_what_was_tuned_on_it(home: Path, tiny_sd15: Path, tiny_x4: Path) -> None:
    prior = (f"prior.cache_dir={home / 'cache'}", "prior.images=2", "prior.sampling.steps=1")
    more = ("--super-resolution", tiny_x4, "super_resolution.steps=1", "super_resolution.batch_size=2")
    made = personalize(home, tiny_sd15, "dreambooth", *prior, *more)
    assert made.exit_code == 0, made.output
    assert sizes(home) == {(64, 64)}
    assert sizes(home, "super_resolution.enabled=false") == {(16, 16)}


def test_any_concept_is_drawn_large_by_a_model_as_it_came(home: Path, tiny_sd15: Path, tiny_if: Path) -> None:
    made = personalize(home, tiny_sd15, "lora")
    assert made.exit_code == 0, made.output
    assert sizes(home) == {(16, 16)}
    assert sizes(home, "--super-resolution", tiny_if) == {(64, 64)}


def test_a_method_without_a_second_stage_says_so(home: Path, tiny_sd15: Path, tiny_x4: Path) -> None:
    made = personalize(home, tiny_sd15, "lora", "--super-resolution", tiny_x4)
    assert made.exit_code == 2 and "super_resolution" in made.output
