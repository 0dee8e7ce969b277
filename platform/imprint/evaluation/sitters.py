"""Whom a benchmark personalizes, with the prompts that are drawn of each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imprint.config.jobs.benchmark import FolderSubjects, Sitting
from imprint.errors import DataError
from imprint.evaluation.columns import to_uint8
from imprint.evaluation.protocols import Prompt, prompts_for
from imprint.evaluation.subjects import Picture, collect_subjects


@dataclass(frozen=True)
class Sitter:
    """A subject: the pictures it is learned from, and those that what is drawn is compared with."""

    number: int
    identity: str
    noun: str
    references: tuple[Picture, ...]
    targets: tuple[Picture, ...]
    prompts: tuple[Prompt, ...]


def sitters_of_shards(pictures: Iterable[tuple[str, Picture]], spec: Sitting, *, skip: int = 0) -> list[Sitter]:
    """The first identities of (identity, picture) pairs: the first picture of each is learned, the others are targets.

    Raises:
        DataError: there are too few identities, or one has no class noun.
    """
    found = []
    for one in collect_subjects(pictures, skip + spec.subjects, spec.scenes, spec.seed)[skip:]:
        if not one.reference.noun:
            raise DataError(f"reading subjects: {one.identity} has no class_noun in its json; add it to the shards")
        prompts = prompts_for(spec, one.number, one.reference.attributes, live=False)
        targets = (one.ceiling, *one.targets)
        found.append(Sitter(one.number, one.identity, one.reference.noun, (one.reference,), targets, prompts))
    return found


def sitters_of_folder(source: FolderSubjects, folder: Path, spec: Sitting, *, skip: int = 0) -> list[Sitter]:
    """DreamBench's layout: each folder's pictures are learned, and what is drawn is compared with the same ones.

    Raises:
        DataError: there are too few subjects, or one has no class noun.
        SampleError: a picture cannot be read.
    """
    nouns = _class_nouns(folder / source.classes)
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(names) < skip + spec.subjects:
        raise DataError(
            f"reading subjects: got {len(names)} folders in {folder}, expected {skip + spec.subjects}; lower `subjects`"
        )
    sitters = []
    for number, name in list(enumerate(names))[skip : skip + spec.subjects]:
        if name not in nouns:
            raise DataError(f"reading subjects: {folder / source.classes} has no class noun of {name}; add it")
        from imprint.tuning.pictures import find_pictures  # brings the methods, which shards do not need

        noun = nouns[name]
        pictures = tuple(_picture(file, spec.image_size, noun) for file in find_pictures(folder / name))
        prompts = prompts_for(spec, number, {}, live=noun in source.live)
        sitters.append(Sitter(number, name, noun, pictures, pictures, prompts))
    return sitters


def _picture(file: Path, size: int, noun: str) -> Picture:
    from imprint.tuning.pictures import load_pictures

    read = load_pictures(file, image_size=size, largest=size)
    mask = np.full((size, size), 255, np.uint8)
    if read.masks is not None:
        mask = (read.masks[0, 0] * 255).round().byte().numpy()
    return Picture(to_uint8(read.images)[0], mask, {}, "", noun)


def _class_nouns(file: Path) -> dict[str, str]:
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            f"reading the class nouns of subjects, {file}: {error}; expected a JSON object, subject to class noun"
        ) from error
    return {str(name): str(noun) for name, noun in record.items()}
