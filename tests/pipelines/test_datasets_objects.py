"""Objects: made from small packages of our own, so no network; the split is the published list."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imprint.config.jobs.prepare import PrepareObjects
from imprint.errors import DataError, StorageError
from imprint.pipelines.datasets import emoji_concepts, emoji_packages, objects
from imprint.pipelines.datasets.emoji_concepts import heldout_families, load_concepts, split_of
from imprint.pipelines.datasets.emoji_packages import NAMES, STYLES, NpmPackage, fetch_package, read_members
from imprint.pipelines.datasets.objects import prepare_objects, with_article

GROUPS = {"groups": {"4": "food-drink", "1": "people-body", "9": "flags"}, "subgroups": {"42": "food-fruit", "26": "x"}}
ROWS = [
    {"label": "red apple", "hexcode": "1F34E", "group": 4, "subgroup": 42, "order": 2},
    {"label": "pear", "hexcode": "1F350", "group": 4, "subgroup": 42, "order": 1},
    {"label": "woman vampire", "hexcode": "1F9DB-200D-2640-FE0F", "group": 1, "subgroup": 26, "order": 3},
    {"label": "a flag", "hexcode": "1F1E6", "group": 9, "subgroup": 42, "order": 4},
    {"label": "person: beard", "hexcode": "1F9D4", "group": 1, "subgroup": 26, "order": 5},
    {"label": "drawn by nobody", "hexcode": "1FFFF", "group": 4, "subgroup": 42, "order": 6},
    {"label": "regional indicator A", "hexcode": "1F1E6"},
]


def png(color: tuple[int, int, int, int]) -> bytes:
    """A 20 x 10 block of one colour within a transparent 40 px square."""
    image = Image.new("RGBA", (40, 40))
    image.paste(color, (5, 12, 25, 22))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def tarball(path: Path, members: dict[str, bytes]) -> str:
    """Writes an npm tarball; returns its SHA-256."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            header = tarfile.TarInfo(f"package/{name}")
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PrepareObjects:
    """A job over two styles and small packages that lie in the cache already."""
    cache = tmp_path / "cache"
    cache.mkdir()
    icon = '<rect width="64" height="32" x="0" y="16" fill="#0000ff"/>'
    icons = {"width": 64, "height": 64, "icons": {"red-apple": {"body": icon}}}
    icons["aliases"] = {"pear": {"parent": "red-apple"}}
    content = {
        NAMES: {"en/data.json": json.dumps(ROWS).encode(), "meta/groups.json": json.dumps(GROUPS).encode()},
        STYLES["noto"]: {
            "img/google/64/1f34e.png": png((255, 0, 0, 255)),
            "img/google/64/1f350.png": png((0, 255, 0, 255)),
            "img/google/64/1f9db-200d-2640-fe0f.png": png((9, 9, 9, 255)),
            "img/google/64/1f9d4.png": png((9, 9, 9, 255)),
            "img/google/64/1f1e6.png": png((9, 9, 9, 255)),
            "img/google/sheet.png": b"not read",
        },
        STYLES["emojione"]: {"icons.json": json.dumps(icons).encode()},
    }
    pinned = {p: replace(p, sha256=tarball(cache / p.file, members)) for p, members in content.items()}
    monkeypatch.setattr(emoji_concepts, "NAMES", pinned[NAMES])
    styles = {style: pinned[STYLES[style]] for style in ("noto", "emojione")}
    monkeypatch.setattr(emoji_concepts, "STYLES", styles)
    monkeypatch.setenv("PATH", "")
    return PrepareObjects(
        job="prepare_objects", name="test", out_dir=str(tmp_path / "data"), cache_dir=str(cache), sizes=(32, 64),
        workers=1, styles=("noto", "emojione"), train_backgrounds=2, heldout_backgrounds=1, samples_per_shard=3,
    )  # fmt: skip


def read_folder(folder: Path) -> dict[str, dict[str, bytes]]:
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                samples.setdefault(key, {})[extension] = tar.extractfile(member).read()
                samples[key]["shard"] = path.name.encode()
    return samples


def test_concepts_are_matched_to_drawings_by_code_and_by_name(spec: PrepareObjects) -> None:
    concepts = load_concepts(Path(spec.cache_dir), spec.styles)
    assert [(c.slug, [d.style for d in c.drawings], c.split) for c in concepts] == [
        ("pear", ["noto", "emojione"], "train"),
        ("red-apple", ["noto", "emojione"], "heldout"),
        ("woman-vampire", ["noto"], "heldout"),
    ]


def test_samples_tell_what_they_show(spec: PrepareObjects) -> None:
    samples = read_folder(prepare_objects(spec)[64])
    assert len(samples) == 2 * 2 + 3 * 1
    for key, members in samples.items():
        fields = json.loads(members["json"])
        name, style = fields["attributes"]["concept"], fields["attributes"]["style"]
        side = "heldout" if name in ("red apple", "woman vampire") else "train"
        assert fields["split"] == side and members["shard"].decode().startswith(side)
        assert key.startswith("heldout-object-" if side == "heldout" else "object-")
        assert fields["domain"] == "objects" and fields["class_noun"] == name
        assert fields["identity"] == name.replace(" ", "-")
        caption = members["txt"].decode()
        assert with_article(name) in caption
        assert (" style" in caption) <= (f", {style} style" in caption)
        if "background" in caption or "in front" in caption:
            assert caption.endswith(fields["caption_context"])


def test_the_drawing_is_trimmed_scaled_whole_and_its_mask_is_its_alpha(spec: PrepareObjects) -> None:
    samples = read_folder(prepare_objects(spec)[64])
    for key, members in samples.items():
        mask = np.asarray(Image.open(io.BytesIO(members["mask.png"])))
        rows, columns = np.where(mask.max(1) > 127)[0], np.where(mask.max(0) > 127)[0]
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert 0.68 * 64 <= width <= 0.94 * 64, key
        assert width / height == pytest.approx(2.0, abs=0.15), key
        assert (mask > 127).sum() == width * height, "the block is solid and nothing of it is cut off"
        if "noto" in key and json.loads(members["json"])["identity"] == "red-apple":
            picture = np.asarray(Image.open(io.BytesIO(members["jpg"])))
            inside = picture[rows[2] : rows[-2], columns[2] : columns[-2]].reshape(-1, 3).mean(0)
            np.testing.assert_allclose(inside, [255, 0, 0], atol=6)


def test_the_same_seed_gives_the_same_bytes(spec: PrepareObjects, tmp_path: Path) -> None:
    first = prepare_objects(spec)[32]
    again = prepare_objects(spec.model_copy(update={"out_dir": str(tmp_path / "again")}))[32]
    names = sorted(path.name for path in first.iterdir())
    assert names == ["heldout-000000.tar", "manifest.json", "train-000000.tar", "train-000001.tar"]
    for name in names:
        assert (again / name).read_bytes() == (first / name).read_bytes()


def test_without_npm_the_error_says_how_to_go_on(spec: PrepareObjects) -> None:
    (Path(spec.cache_dir) / STYLES["noto"].file).unlink()
    with pytest.raises(DataError, match=r"npm is not installed.*faces data set.*needs no npm"):
        prepare_objects(spec)
    assert not Path(spec.out_dir).exists()


PACKAGE = NpmPackage("@scope/some-emoji", "1.0.0", hashlib.sha256(b"the tarball").hexdigest(), "MIT")


def fake_npm(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Puts an npm of our own before all others; its arguments are pack NAME --silent --pack-destination FOLDER."""
    npm = folder / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}{os.pathsep}{os.environ['PATH']}")


def test_a_package_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = tmp_path / "calls"
    fake_npm(tmp_path, monkeypatch, f'echo "$2" >> {calls}; printf "the tarball" > "$5/scope-some-emoji-1.0.0.tgz"')
    cache = tmp_path / "cache"
    assert fetch_package(PACKAGE, cache).read_bytes() == b"the tarball"
    assert fetch_package(PACKAGE, cache) == cache / "scope-some-emoji-1.0.0.tgz"
    assert calls.read_text() == "@scope/some-emoji@1.0.0\n"
    assert [path.name for path in cache.iterdir()] == ["scope-some-emoji-1.0.0.tgz"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ('printf "other" > "$5/scope-some-emoji-1.0.0.tgz"', "SHA-256 is d9298a10"),
        ('echo "npm error 404 Not Found" >&2; exit 1', r"npm pack ended with 1 \(npm error 404 Not Found\)"),
        ("exit 0", r"npm pack ended with 0 \(no message\)"),
    ],
    ids=["other bytes", "not found", "nothing"],
)
def test_a_package_that_cannot_be_had_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    fake_npm(tmp_path, monkeypatch, script)
    with pytest.raises(DataError, match=message):
        fetch_package(PACKAGE, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cache of emoji packages"):
        fetch_package(PACKAGE, tmp_path / "file" / "cache")


def test_a_cut_or_swollen_tarball_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.tgz"
    tarball(path, {"icons.json": os.urandom(5000)})
    assert set(read_members(path, lambda name: name == "icons.json")) == {"icons.json"}
    monkeypatch.setattr(emoji_packages, "_MAX_MEMBER_BYTES", 4999)
    with pytest.raises(DataError, match="takes 5000 bytes, expected at most 4999"):
        read_members(path, lambda name: True)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="remove the file from the cache"):
        read_members(path, lambda name: True)


def test_a_broken_drawing_is_named(spec: PrepareObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    load = objects.load_concepts

    def broken(cache: Path, styles: tuple[str, ...]) -> list[emoji_concepts.Concept]:
        return [c._replace(drawings=(c.drawings[0]._replace(content=b"nonsense"),)) for c in load(cache, styles)]

    monkeypatch.setattr(objects, "load_concepts", broken)
    with pytest.raises(DataError, match=r"drawing an emoji.*style=noto"):
        prepare_objects(spec)


def test_at_least_a_hundred_concepts_are_held_out_each_in_one_family() -> None:
    families = heldout_families()
    names = [name for members in families.values() for name in members]
    assert len(families) >= 100 and len(names) == len(set(names))
    assert all(name == name.lower() and split_of(name) == "heldout" for name in names)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("cow", "heldout"), ("cow face", "heldout"), ("green apple", "heldout"), ("Japanese castle", "heldout"),
        ("woman vampire", "heldout"), ("man astronaut", "heldout"), ("firefighter: dark skin tone", "heldout"),
        ("waving hand", "train"), ("waving hand: light skin tone", "train"), ("woman", "train"),
        ("pineapples", "train"),
    ],
)  # fmt: skip
def test_variants_go_with_their_concept(name: str, split: str) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("anchor", "an anchor"), ("red apple", "a red apple"), ("grapes", "grapes"), ("bus", "a bus"),
        ("cactus", "a cactus"), ("cows with bells", "cows with bells"),
        ("face with tears of joy", "a face with tears of joy"),
    ],
)  # fmt: skip
def test_articles(name: str, text: str) -> None:
    assert with_article(name) == text
