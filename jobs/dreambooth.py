"""One worker of `dreambooth`: it binds a rare word to one subject, with prior preservation, beside other workers.

It writes checkpoints and, at the end, `<run>/concept`, as `imprint personalize` does. `<run>/subject.json` says what
phrase is bound. Its driver is in `imprint.jobs.cluster_jobs`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.jobs.dreambooth import DreamBooth, SubjectGridSpec
from imprint.errors import ConfigError, DataError
from imprint.jobs.ray_fit import Folders
from imprint.jobs.ray_train import leads, start_worker, train_rank
from imprint.jobs.sample_grid import write_grid
from imprint.methods.augment import centre_square
from imprint.methods.base import Pictures
from imprint.methods.dreambooth import Binding, DreamBoothObjective, class_images, make_trained
from imprint.methods.few_steps import check_tuning
from imprint.methods.phrases import phrase_concept, phrase_of, spell
from imprint.methods.prompts import require_placeholder
from imprint.methods.trained import Trained
from imprint.pipelines.captions import own_context
from imprint.pipelines.reading import MEBIBYTE, ReadOptions, rows_as_written
from imprint.pipelines.shards import Shard, counted, find_shards, find_sources
from imprint.sampling.draw import draw_prompts
from imprint.training.apply import apply_engine_options
from imprint.training.batches import to_pixel_values
from imprint.training.checkpoint import TrainingState, latest_position
from imprint.tuning import Concept

RESULT = "concept"
SUBJECT = "subject.json"
_MOST_PICTURES = 1000  # DreamBooth takes 3 to 5; more than these are a data set given by mistake


def train_worker(config: dict[str, Any]) -> None:
    """One rank: name the subject, draw its share of the class images, train, and on rank 0 write the concept."""
    began = time.perf_counter()
    spec = DreamBooth.model_validate(config["spec"])
    device = start_worker(spec.cluster)
    torch.manual_seed(spec.seed)  # every rank starts from the same weights
    backbone = Backbone.load(spec.backbone, device=device)
    _check_size(spec, backbone)
    pictures = subject_pictures(spec, counted(find_sources(spec.data))) if leads() else None
    phrase = _from_rank_0(bound_phrase(spec, backbone, pictures) if pictures else None)
    noun, prior = spec.class_noun.strip(), spec.method.prior
    images = class_images(backbone, prior, noun, by_all_ranks=True) if prior.enabled else None
    trained = make_trained(backbone, spec.method, spec.seed)
    objective = DreamBoothObjective(trained, spec.method, Binding(phrase, noun, images))
    apply_engine_options(objective.backbone, spec.engine)
    original = backbone if leads() else None  # elsewhere the weights as they were are not needed any more
    del backbone, trained
    grid = None
    if spec.grid is not None and original is not None and pictures is not None:
        grid = SubjectGrid(spec, spec.grid, pictures, make_trained(original, spec.method, spec.seed), phrase)
    state = train_rank(spec, objective, config["stream"], began=began, grid=grid)
    if original is not None and pictures is not None and state.step == spec.training.steps:
        apart = grid.trained if grid else make_trained(original, spec.method, spec.seed)
        _save(state, spec, original, apart, phrase, len(pictures.images))


def subject_pictures(spec: DreamBooth, shards: list[Shard]) -> Pictures:
    """All pictures of the subject, in the order in which they were written, with their contexts; unreadable ones are
    left out.

    Raises:
        ConfigError: a template has no placeholder.
        DataError: there is none, or far too many, or they show several identities.
        ShardError: a shard is missing or cut.
    """
    reader = spec.data.reader
    options = ReadOptions(
        image_size=spec.data.image_size, max_member_bytes=int(reader.max_member_mb * MEBIBYTE),
        max_pixels=int(reader.max_megapixels * 1e6), max_bad_share=reader.max_bad_share, masks=False,
    )  # fmt: skip
    images, contexts, identities = [], [], set[str]()
    for row in rows_as_written(shards, options):
        images.append(row["image"])
        contexts.append(own_context(row["json"] or "{}"))
        identities |= {str(json.loads(row["json"] or "{}").get("identity") or "")} - {""}
        if len(identities) > 1 or len(images) > _MOST_PICTURES:
            found = f"{len(identities)} identities" if len(identities) > 1 else f"more than {_MOST_PICTURES} pictures"
            raise DataError(
                f"reading the subject: data.shards show {found}, and DreamBooth binds one subject of a few pictures; "
                "prepare a folder of its own with jobs/prepare_shards.yaml"
            )
    if not images:
        raise DataError("reading the subject: no picture in data.shards can be read; prepare them anew")
    pictures = Pictures(to_pixel_values(np.stack(images)), contexts=contexts)
    check_tuning(pictures, spec.method)
    return pictures


def bound_phrase(spec: DreamBooth, backbone: Backbone, pictures: Pictures) -> str:
    """The subject's phrase, a function of the pictures and the seed, which is kept in the run's folder.

    Raises:
        ConfigError: the vocabulary has no rare words, or a run that goes on began with another phrase.
    """
    folders = Folders(Path(spec.runs) / spec.name)
    phrase = phrase_of(backbone, pictures, spec.method, spec.class_noun.strip(), spec.seed)
    record = folders.run / SUBJECT
    before = json.loads(record.read_text())["phrase"] if record.is_file() else phrase
    if before != phrase and latest_position(folders.checkpoints) is not None:
        raise ConfigError(
            f"going on with the run {spec.name!r}: it began with {before!r}, and its pictures and settings now give "
            f"{phrase!r}; put them back, or give the run another name"
        )
    record.write_text(json.dumps({"phrase": phrase, "pictures": len(pictures.images)}) + "\n")
    return phrase


class SubjectGrid:
    """The subject in the grid's prompts, each row with its own seed, in a shell apart from the one that trains."""

    def __init__(
        self, spec: DreamBooth, grid: SubjectGridSpec, pictures: Pictures, trained: Trained, phrase: str
    ) -> None:
        for prompt in grid.prompts:
            require_placeholder(prompt, "grid.prompts")
        self.spec, self.trained = grid, trained
        if grid.shards:
            pictures = subject_pictures(spec, counted(find_shards(grid.shards, grid.split)))
        shown = centre_square(pictures.images[: grid.concepts], trained.backbone.image_size).clamp(-1, 1)
        self.pictures = shown.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
        self.prompts = spell(list(grid.prompts) * len(shown), phrase)
        self.seeds = [grid.seed + row for row in range(len(shown)) for _ in grid.prompts]

    @torch.no_grad()
    def draw(self, state: Mapping[str, Tensor], path: Path) -> None:
        """Write the grid as a PNG: a picture of the subject, then a column for each prompt."""
        self.trained.load(state)
        drawn = draw_prompts(self.trained.backbone, self.prompts, self.spec.sampling, seeds=self.seeds)
        write_grid(self.pictures, drawn, path)


def _check_size(spec: DreamBooth, backbone: Backbone) -> None:
    if spec.data.image_size < backbone.image_size:
        raise ConfigError(
            f"data.image_size={spec.data.image_size}: {spec.backbone} draws {backbone.image_size} px, so crops would "
            f"be blurred; set it between {backbone.image_size} and {2 * backbone.image_size}"
        )


def _from_rank_0(value: str | None) -> str:
    """What rank 0 found, on all ranks."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    assert values[0] is not None
    return values[0]


def _save(
    state: TrainingState, spec: DreamBooth, backbone: Backbone, trained: Trained, phrase: str, pictures: int
) -> None:
    """Write the concept from a state; it goes through `trained`, a shell of `backbone` that nothing trains."""
    trained.load(state.ema or state.parameters)
    tensors = trained.pack(backbone, spec.method.storage)
    learned = phrase_concept("dreambooth", phrase, spec.class_noun.strip(), tensors, spec.tuned_as, spec.seed)
    concept = Concept.of(
        learned, backbone, encoder=None, pictures=pictures, run=spec.name, steps=state.step, samples=state.samples,
        shards=list(spec.data.places), averaged=state.ema is not None,
    )  # fmt: skip
    concept.save(Path(spec.runs) / spec.name / RESULT)
