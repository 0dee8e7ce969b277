"""Which emoji are concepts, what they are called, who draws them, and which of them are held out.

The split is a published list, `heldout_objects.json`: families of concepts, each with every name under which the
same thing is drawn (a cow and a cow's face, an apple in red and in green). Skin tones are not drawn at all, and the
gender is taken off a name before it is looked up, so "woman vampire" is held out with "vampire".
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

from imprint.errors import DataError
from imprint.pipelines.datasets.emoji_packages import NAMES, STYLES, NpmPackage, fetch_package, read_members

Split = Literal["train", "heldout"]

# Not things that one can draw in a scene: signs, letters, flags, clock faces that differ by a hand, families that
# differ by who is in them.
_LEFT_OUT_GROUPS = frozenset({"component", "symbols", "flags"})
_LEFT_OUT_SUBGROUPS = frozenset({"family", "person-symbol"})
_LEFT_OUT_LABEL = re.compile(r":|o’clock|-thirty|^ZZZ$|\bNO\b|\bOK\b")

_GENDER = re.compile(r"^(man|woman|men|women|person|people) |^(old|pregnant) (man|woman|person)$")


class Drawing(NamedTuple):
    """A concept as one vendor draws it: the bytes of a PNG, a WebP or an SVG."""

    style: str
    content: bytes


class Concept(NamedTuple):
    """An emoji: `name` in lower case as captions have it, `slug` as file names have it."""

    slug: str
    name: str
    group: str
    subgroup: str
    split: Split
    drawings: tuple[Drawing, ...]


def load_concepts(cache_dir: Path, styles: Iterable[str]) -> list[Concept]:
    """All concepts that at least one of `styles` draws, in Unicode's order; packages are fetched where needed.

    Raises:
        DataError: a package cannot be had or read.
        StorageError: the cache cannot be written.
    """
    names = _read_names(cache_dir)
    drawn = {style: _read_style(style, STYLES[style], cache_dir) for style in styles}
    concepts: list[Concept] = []
    for code, name, group, subgroup in names:
        keys = (_normal_code(code), _squeeze(name))
        drawings = tuple(Drawing(style, found[key]) for style, found in drawn.items() for key in keys if key in found)
        if drawings:
            slug = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
            concepts.append(Concept(slug, name, group, subgroup, split_of(name), drawings))
    return concepts


def split_of(name: str) -> Split:
    """The side of a concept, by its name without gender and skin tone: a pure function of the published list."""
    plain = name.lower().partition(":")[0]
    return "heldout" if {plain, _GENDER.sub("", plain)} & _heldout_names() else "train"


def heldout_families() -> dict[str, list[str]]:
    """The published list: a family's name -> the names of the concepts in it."""
    text = resources.files(__package__).joinpath("heldout_objects.json").read_text(encoding="utf-8")
    families: dict[str, list[str]] = json.loads(text)["families"]
    return families


@functools.cache
def _heldout_names() -> frozenset[str]:
    return frozenset(name for names in heldout_families().values() for name in names)


def _read_names(cache_dir: Path) -> list[tuple[str, str, str, str]]:
    """(code points, name, group, subgroup) of every emoji that is a concept."""
    files = {"en/data.json", "meta/groups.json"}
    members = read_members(fetch_package(NAMES, cache_dir), files.__contains__)
    try:
        table = json.loads(members["meta/groups.json"])
        rows = json.loads(members["en/data.json"])
        found = []
        for row in sorted((row for row in rows if "order" in row), key=lambda row: row["order"]):
            group = table["groups"][str(row["group"])]
            subgroup = table["subgroups"][str(row["subgroup"])]
            left_out = (group in _LEFT_OUT_GROUPS and subgroup != "geometric") or subgroup in _LEFT_OUT_SUBGROUPS
            if not left_out and not _LEFT_OUT_LABEL.search(row["label"]):
                found.append((row["hexcode"], row["label"].lower().replace("’", "'"), group, subgroup))
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"reading the names of emoji: {NAMES.name} {NAMES.version} is not as expected ({error!r})"
        ) from error
    return found


def _read_style(style: str, package: NpmPackage, cache_dir: Path) -> dict[str, bytes]:
    """The drawings of a vendor by code points, or by squeezed name where that is all the package has."""
    path = fetch_package(package, cache_dir)
    if package.name.startswith("@iconify-json/"):
        return _read_icon_set(read_members(path, "icons.json".__eq__), package)
    folder = {"noto": "img/google/64/", "twemoji": "img/twitter/64/"}.get(style, "assets/")
    members = read_members(path, lambda name: name.startswith(folder))
    return {_normal_code(Path(name).stem): content for name, content in members.items()}


def _read_icon_set(members: dict[str, bytes], package: NpmPackage) -> dict[str, bytes]:
    try:
        icons = json.loads(members["icons.json"])
        width, height = icons["width"], icons["height"]
        bodies = {name: icon["body"] for name, icon in icons["icons"].items()}
        for alias, target in icons.get("aliases", {}).items():
            bodies[alias] = bodies[target["parent"]]
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"reading an icon set: {package.name} {package.version} is not as expected ({error!r})"
        ) from error
    opening = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    )
    return {_squeeze(name): f"{opening}{body}</svg>".encode() for name, body in bodies.items()}


def _normal_code(code: str) -> str:
    """Code points as every package has them, but for the invisible FE0F and leading zeros."""
    return "-".join(part.lstrip("0") for part in code.lower().split("-") if part != "fe0f")


def _squeeze(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
