from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imprint.errors import DataError, SampleError
from imprint.tuning.pictures import MAX_PIXELS, find_pictures, load_pictures


def save(path: Path, size: tuple[int, int] = (20, 20), mode: str = "RGB", colour: object = (255, 0, 0)) -> Path:
    Image.new(mode, size, colour).save(path)  # type: ignore[arg-type]
    return path


def test_one_file_in_the_range_of_the_backbone(tmp_path: Path) -> None:
    pictures = load_pictures(save(tmp_path / "a.png"), image_size=16)
    assert pictures.images.shape == (1, 3, 20, 20) and pictures.masks is None
    assert pictures.images[0, :, 0, 0].tolist() == [1, -1, -1]


def test_a_folder_of_sizes_becomes_one_batch(tmp_path: Path) -> None:
    save(tmp_path / "b.png", (100, 40))
    save(tmp_path / "a.jpg", (50, 300))
    (tmp_path / "notes.txt").write_text("not a picture")
    assert [file.name for file in find_pictures(tmp_path)] == ["a.jpg", "b.png"]
    assert load_pictures(tmp_path, image_size=16).images.shape == (2, 3, 32, 32)


def test_a_small_picture_is_brought_to_the_models_size(tmp_path: Path) -> None:
    assert load_pictures(save(tmp_path / "a.png", (8, 8)), image_size=16).images.shape == (1, 3, 16, 16)


def test_alpha_is_the_mask_and_what_is_under_it_does_not_show(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[..., 0] = 255
    pixels[:8, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    pictures = load_pictures(tmp_path, image_size=16)
    assert pictures.masks is not None
    assert pictures.masks[0, 0, 0, 0] == 1 and pictures.masks[0, 0, 15, 0] == 0
    assert pictures.images[0, :, 0, 0].tolist() == [1, -1, -1]
    torch.testing.assert_close(pictures.images[0, :, 15, 0], torch.zeros(3), atol=0.01, rtol=0)


def test_a_mask_beside_the_picture(tmp_path: Path) -> None:
    save(tmp_path / "a.png", (16, 16))
    save(tmp_path / "a.mask.png", (16, 16), "L", 255)
    pictures = load_pictures(tmp_path, image_size=16)
    assert len(pictures.images) == 1 and pictures.masks is not None and float(pictures.masks.min()) == 1
    save(tmp_path / "b.png", (16, 16))
    assert load_pictures(tmp_path, image_size=16).masks is None


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    save(tmp_path / "a.png", (16, 16))
    save(tmp_path / "a.mask.png", (8, 8), "L", 255)
    with pytest.raises(SampleError, match="expected equal"):
        load_pictures(tmp_path, image_size=16)


def test_a_photograph_stands_upright(tmp_path: Path) -> None:
    """EXIF orientation 6: stored lying, to be shown turned by a quarter."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = load_pictures(tmp_path, image_size=16).images[0, 0]
    assert image[0].min() == 1 and image[15].max() == -1


@pytest.mark.parametrize("content", [b"", b"not a picture"])
def test_a_corrupt_picture(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(SampleError, match=r"a\.png: it is no picture, or cut or damaged"):
        load_pictures(tmp_path, image_size=16)


def test_a_cut_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    raw = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(SampleError, match="cut or damaged"):
        load_pictures(tmp_path, image_size=16)


def test_an_enormous_picture_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imprint.tuning.pictures.MAX_PIXELS", 100)
    assert MAX_PIXELS > 100
    with pytest.raises(SampleError, match="20 x 20 pixels, expected 100 at most"):
        load_pictures(save(tmp_path / "a.png"), image_size=16)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        find_pictures(tmp_path / "missing")
    with pytest.raises(DataError, match="holds none"):
        find_pictures(tmp_path)
