"""`evaluate`: Ray actors personalize and draw held-out identities; the driver scores and writes the report."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from PIL import Image
from ray.util import ActorPool
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from imprint.config.jobs.evaluate import Evaluate
from imprint.config.paths import resolve_path
from imprint.errors import StorageError
from imprint.evaluation.attributes import EMBEDDED, AttributeReader
from imprint.evaluation.columns import Drawn, columns_of, has_encoder, label_of
from imprint.evaluation.field_report import report_of
from imprint.evaluation.grid import labelled_grid, save_png
from imprint.evaluation.identity import find_network, load_network
from imprint.evaluation.report import Report
from imprint.evaluation.scoring import Scorer
from imprint.evaluation.subjects import Picture, Subject, collect_subjects, parse_attributes, showing, somebody_else
from imprint.jobs.ray_fit import connect, our_error
from imprint.jobs.ray_run import path_or_name
from imprint.pipelines.order import plan
from imprint.pipelines.reading import ReadOptions, read_slice
from imprint.pipelines.shards import check_present, counted, find_shards
from imprint.tracking.run import TrackedRun
from imprint.training.heap import keep_freed_memory

log = logging.getLogger(__name__)
_LEFT_OUT_OF_GRIDS = ("class_noun_scene", "baseline_scene")


def run(spec: Evaluate, *, job_file: Path | None, source: str) -> None:
    """Evaluate and write `grid.png`, `table.md`, `results.json` and the pictures drawn into the run's folder.

    Raises:
        DataError, ShardError: shards are missing, or hold too few identities.
        CheckpointError, BackboneError: encoder, backbone or scorer cannot be loaded.
        StorageError: the run's folder may not be written.
    """
    spec = with_absolute_paths(spec)
    folder = Path(spec.runs) / spec.name
    began = time.perf_counter()
    find_network(spec.scorer)
    reader = AttributeReader.load(spec.attributes) if spec.attributes else None
    heldout = showing(_pictures(spec.shards, spec.split, spec.image_size), spec.only)
    subjects = collect_subjects(heldout, spec.subjects, spec.scenes, spec.seed)
    _start_folder(folder, source)
    connect()
    drawn = draw_all(spec, subjects)
    log.info("drew %d subjects in %.0f s", len(drawn), time.perf_counter() - began)
    # Ray gives a driver one thread; by now the actors are done and their cores are free.
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    scorer = Scorer(load_network(spec.scorer, threads=threads), reader, _calibration(spec))
    scores = scorer.score(subjects, drawn)
    log.info("scored after %.0f s", time.perf_counter() - began)
    report = Report.of(
        scores,
        [one.tuning_seconds or 0.0 for one in drawn],
        labels={column.name: label_of(column, spec) for column in columns_of(spec)},
        facts=_facts(spec, time.perf_counter() - began),
        field=None if spec.metrics is None else report_of(spec, spec.metrics, subjects, drawn, reader),
    )
    report.write(folder, scores, [subject.identity for subject in subjects])
    _write_pictures(folder, drawn)
    grid = save_png(draw_grid(spec, subjects, drawn), folder / "grid.png")
    _track(spec, folder, report, source)
    console = Console(soft_wrap=True, highlight=False)
    for table in report.console():
        console.print(table)
    for note in report.notes():
        console.print(note)
    console.print(f"[green]ok[/]: the table is in {folder / 'table.md'}\nthe grid of pictures is {grid}")


def with_absolute_paths(spec: Evaluate) -> Evaluate:
    """The spec with paths that hold in an actor, which runs in a folder of its own."""
    update: dict[str, Any] = {
        "runs": resolve_path(spec.runs),
        "encoder": spec.encoder and path_or_name(spec.encoder),
        "backbone": path_or_name(spec.backbone),
        "shards": tuple(resolve_path(place) for place in spec.shards),
        "calibration": tuple(resolve_path(place) for place in spec.calibration),
    }
    for key in ("clip", "scorer", "attributes"):
        value = getattr(spec, key)
        update[key] = value if value is None or value in EMBEDDED else path_or_name(value)
    return spec.model_copy(update=update)


# -- real pictures ------------------------------------------------------------------------------------------


def _pictures(places: Sequence[str], split: str | None, size: int) -> Iterator[tuple[str, Picture]]:
    """(identity, picture) in written order, where pictures of one identity stand side by side."""
    shards = counted(find_shards(places, split))
    check_present(shards)
    counts = [shard.samples or 0 for shard in shards]
    options = ReadOptions(image_size=size)
    for part in plan(counts, seed=0, shuffle_buffer=0, start=0, stop=sum(counts)):
        for row in read_slice({n: shards[n] for n in part.shards}, part, options, total=sum(counts)):
            record = json.loads(row["json"])
            mask = row["mask"] if row["has_mask"] else np.full_like(row["mask"], 255)
            words = (str(record.get(key, "")) for key in ("caption_context", "class_noun"))
            picture = Picture(row["image"], mask, parse_attributes(record), *words)
            yield str(record.get("identity", row["__key__"])), picture


def _calibration(spec: Evaluate) -> list[tuple[str, Picture]]:
    found = []
    for pair in _pictures(spec.calibration, spec.calibration_split, spec.image_size):
        found.append(pair)
        if len(found) == spec.calibration_pictures:
            break
    return found


# -- drawing ------------------------------------------------------------------------------------------------


@ray.remote
class Artist:
    """An actor with backbone and, where the method has them, CLIP and encoder."""

    def __init__(self, spec: Evaluate) -> None:
        # Not imported by the driver, which has no model and would spend seconds on it.
        import diffusers
        import transformers

        from imprint.backbone import Backbone
        from imprint.evaluation.painter import Painter
        from imprint.features.clip import ClipFeatures
        from imprint.methods import METHODS

        torch.set_num_threads(spec.cluster.threads_per_actor)
        keep_freed_memory()
        # An actor has no terminal: the libraries' bars would be hundreds of lines in the driver's log.
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        device = "cuda" if spec.cluster.gpus_per_actor else "cpu"
        backbone = Backbone.load(spec.backbone, device=device)
        pretrained: Any = backbone
        if has_encoder(spec):
            clip = ClipFeatures.load(spec.clip, device=device) if spec.clip else None
            pretrained = METHODS[spec.tuning.method].load_encoder(spec.encoder, backbone, clip=clip)
        self.painter = Painter(backbone, pretrained, spec)

    def untuned(self, subjects: list[Subject], wrong: list[Picture]) -> list[Drawn]:
        return self.painter.untuned(subjects, wrong)

    def tuned(self, subject: Subject, victim: Subject) -> list[Drawn]:
        return self.painter.tuned(subject, victim)

    def baseline(self, subject: Subject) -> list[Drawn]:
        return [self.painter.baseline(subject)]


def draw_all(spec: Evaluate, subjects: Sequence[Subject]) -> list[Drawn]:
    """Every column of every subject, in the order of `subjects`.

    Raises:
        ImprintError: the one that an actor raised.
    """
    share = spec.cluster
    actor = Artist.options(num_cpus=share.cpus_per_actor, num_gpus=share.gpus_per_actor)
    pool = ActorPool([actor.remote(spec) for _ in range(min(share.actors, len(subjects)))])
    whose = [somebody_else(number, len(subjects)) for number in range(len(subjects))]
    wrong = [subjects[other].reference for other in whose]
    tasks = 0
    for start in range(0, len(subjects), share.subjects_per_task):
        chosen = slice(start, start + share.subjects_per_task)
        pool.submit(lambda one, args: one.untuned.remote(*args), (list(subjects[chosen]), wrong[chosen]))
        tasks += 1
    if spec.tuning.steps:
        for number, other in enumerate(whose):
            pool.submit(lambda one, args: one.tuned.remote(*args), (subjects[other], subjects[number]))
        tasks += len(subjects)
    if spec.baseline is not None:
        for subject in subjects:
            pool.submit(lambda one, args: one.baseline.remote(args), subject)
        tasks += len(subjects)
    found: dict[int, Drawn] = {}
    with _Counter(tasks) as counter:
        while pool.has_next():
            for one in _next(pool):
                found[one.number] = found[one.number].merged(one) if one.number in found else one
            counter.advance()
    return [found[subject.number] for subject in subjects]


class _Counter:
    """A bar with the time left where there is a terminal, else a line at every tenth, as in a submitted job's log."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.began = total, 0, time.perf_counter()
        columns = (TextColumn("drawing and tuning"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
        self.task = self.bar.add_task("drawing", total=total)

    def __enter__(self) -> _Counter:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def advance(self) -> None:
        self.done += 1
        self.bar.advance(self.task)
        if self.bar.disable and self.done % max(1, self.total // 10) == 0:
            passed = time.perf_counter() - self.began
            left = passed / self.done * (self.total - self.done)
            print(f"drawing and tuning: {self.done}/{self.total}, {passed:.0f} s, ETA {left:.0f} s", flush=True)


def _next(pool: ActorPool) -> list[Drawn]:
    try:
        drawn: list[Drawn] = pool.get_next_unordered()
    except ray.exceptions.RayError as error:
        ours = our_error(error)
        if ours is not None:
            raise ours from error
        raise
    return drawn


# -- what is left behind --------------------------------------------------------------------------------------


def draw_grid(spec: Evaluate, subjects: Sequence[Subject], drawn: Sequence[Drawn]) -> Image.Image:
    """The first subjects: input, then the columns; below each row the new scene that was asked for."""
    columns = [column for column in columns_of(spec) if column.name not in _LEFT_OUT_OF_GRIDS]
    if spec.tuning.steps:
        columns = [column for column in columns if column.name != "encoder_scene"]
    rows, captions = [], []
    for subject, one in list(zip(subjects, drawn, strict=True))[: spec.grid_subjects]:
        pictures = [subject.reference.image, *(one.images[column.name][0] for column in columns)]
        rows.append([Image.fromarray(picture) for picture in pictures])
        captions.append("new scene: " + spec.scenes.template.format("<concept>", **subject.scene))
    labels = ["input", *(label_of(column, spec) for column in columns)]
    return labelled_grid(rows, labels, cell=spec.grid_cell, captions=captions)


def _write_pictures(folder: Path, drawn: Sequence[Drawn]) -> None:
    """One strip a subject and column, `pictures/<column>/<number>.png`, copies side by side."""
    for one in drawn:
        for column, images in one.images.items():
            strip = Image.fromarray(np.concatenate(list(images), axis=1))
            save_png(strip, folder / "pictures" / column / f"{one.number:04d}.png")


def _start_folder(folder: Path, source: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "job.yaml").write_text(source)
    except OSError as error:
        raise StorageError(f"making the folder of the run {folder}: {error.strerror}; check `runs`") from error


def _facts(spec: Evaluate, seconds: float) -> dict[str, Any]:
    return {
        "tuning steps": spec.tuning.steps,
        "batch size": spec.tuning.batch_size,
        "sampling steps": spec.sampling.steps,
        "guidance scale": spec.sampling.guidance_scale,
        "pictures a prompt": spec.images_per_prompt,
        "actors": spec.cluster.actors,
        "threads an actor": spec.cluster.threads_per_actor,
        "seconds in all": round(seconds),
    }


def _track(spec: Evaluate, folder: Path, report: Report, source: str) -> None:
    if not spec.tracking.enabled:
        return
    tracked = TrackedRun.open(spec.tracking, folder, spec.name)
    tracked.describe(spec.model_dump(mode="json"), source)
    tracked.log_metrics(0, report.metrics())
    for name in ("grid.png", "table.md", "results.json"):
        tracked.log_file(folder / name)
    tracked.finish("FINISHED")
