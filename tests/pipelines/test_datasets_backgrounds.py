"""Backgrounds are what their words say."""

from __future__ import annotations

import numpy as np
import pytest

from imprint.config.jobs.prepare import BackgroundMix
from imprint.errors import DataError
from imprint.pipelines.datasets import backgrounds
from imprint.pipelines.datasets.backgrounds import COLORS, PHOTOS, draw_background
from imprint.pipelines.datasets.draw import Draw

ONLY = {
    kind: BackgroundMix(**{other: float(other == kind) for other in ("plain", "gradient", "texture", "photo")})
    for kind in ("plain", "gradient", "texture", "photo")
}


def nearest(pixels: np.ndarray) -> np.ndarray:
    """The names of the colours that pixels [..., 3] are closest to, [...]."""
    distances = ((pixels[..., None, :] - np.asarray(list(COLORS.values()), dtype=float)) ** 2).sum(-1)
    return np.asarray(list(COLORS))[distances.argmin(-1)]


def test_plain_backgrounds_have_the_colour_that_they_name() -> None:
    seen = set()
    for number in range(100):
        background = draw_background(Draw(number), 16, ONLY["plain"])
        assert background.pixels.shape == (16, 16, 3) and background.pixels.dtype == np.uint8
        assert set(nearest(background.pixels).flat) == {background.words}
        article = "an" if background.words == "orange" else "a"
        assert background.phrase == f"on {article} {background.words} background"
        seen.add(background.words)
    assert seen == set(COLORS)


def test_gradients_run_from_the_first_colour_to_the_second() -> None:
    for number in range(40):
        background = draw_background(Draw(number), 64, ONLY["gradient"])
        first, second = background.words.removesuffix(" gradient").split(" to ")
        assert first != second
        assert nearest(background.pixels[0, 0]) == first
        assert nearest(background.pixels[-1, -1]) == second
        assert background.phrase == f"on a background fading from {first} to {second}"


def test_textures_are_made_of_their_two_colours() -> None:
    kinds = set()
    for number in range(60):
        background = draw_background(Draw(number), 64, ONLY["texture"])
        first, _, rest = background.words.partition(" and ")
        second, texture = rest.split()
        kinds.add(texture)
        names, counts = np.unique(nearest(background.pixels), return_counts=True)
        assert set(names) == {first, second}
        assert counts.min() / counts.sum() > 0.2
    assert kinds == {"stripes", "dots", "checks"}


def test_every_photograph_is_installed_and_is_cropped_to_the_size() -> None:
    seen = set()
    for number in range(120):
        background = draw_background(Draw(number), 32, ONLY["photo"])
        assert background.pixels.shape == (32, 32, 3)
        assert background.phrase == f"in front of a {background.words}"
        assert background.pixels.std() > 2
        seen.add(background.words.removeprefix("photo of "))
    assert seen == set(PHOTOS.values())


def test_kinds_come_as_often_as_the_mix_says() -> None:
    kinds = [draw_background(Draw("mix", number), 8, BackgroundMix()).kind for number in range(2000)]
    for kind, share in BackgroundMix().model_dump().items():
        assert kinds.count(kind) / 2000 == pytest.approx(share, abs=0.035)


def test_a_missing_photograph_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backgrounds, "PHOTOS", {"missing.png": "nothing"})
    with pytest.raises(DataError, match=r"reinstall scikit-image.*missing\.png"):
        draw_background(Draw(0), 8, ONLY["photo"])


def test_a_mix_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="every kind of background has weight 0"):
        BackgroundMix(plain=0, gradient=0, texture=0, photo=0)
