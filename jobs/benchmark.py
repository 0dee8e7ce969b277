"""`benchmark`: Ray actors tune every contender on every subject, draw and score; the driver writes the report.

What one contender drew of one subject is kept as it is done, so a job that is submitted again draws only what is not
there, and one contender more costs its own time alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from PIL import Image
from ray.util import ActorPool
from rich.console import Console

from imprint.config.jobs.benchmark import CLASS_NOUN, Benchmark, Contender, ShardSubjects, Sitting
from imprint.config.paths import path_or_name, resolve_path, shipped_folder
from imprint.errors import DataError, TrainingError
from imprint.evaluation.attributes import EMBEDDED, AttributeReader
from imprint.evaluation.comparison import Comparison, Entry
from imprint.evaluation.grid import labelled_grid, save_png
from imprint.evaluation.identity import find_network, load_network
from imprint.evaluation.judge import Gallery, Judge
from imprint.evaluation.page import Page
from imprint.evaluation.protocols import PLAIN
from imprint.evaluation.records import FILE, tracking_links, write_comparison, write_text
from imprint.evaluation.sitters import Sitter, sitters_of_folder, sitters_of_shards
from imprint.evaluation.statistics import area_under_curve
from imprint.evaluation.subjects import Picture, showing, somebody_else
from imprint.folders import contents_sha256
from imprint.jobs.evaluate import _Counter, _next, _pictures, _start_folder
from imprint.jobs.ray_fit import connect
from imprint.tracking.run import TrackedRun
from imprint.training.heap import keep_freed_memory

log = logging.getLogger(__name__)
_DRAWN = "drawn"
_COSTS_OF_ALL = ("seconds", "steps", "kilobytes", "memory_mib", "draw_seconds", "PRES", "DIV", "pair")

Values = dict[str, list[float]]
"""Of one contender and one sitter: for each metric a value a prompt, or one value of all of them."""

Drawn = tuple[str, int, Values | str]
"""A contender's name, a sitter's place, and the values, or what tuning failed of."""


def run(spec: Benchmark, *, job_file: Path | None, source: str) -> None:
    """Tune, draw, score, and write `report.html`, `report.md`, `results.json` and `grid.png` into the run's folder.

    Raises:
        DataError, ShardError: pictures are missing, or hold too few subjects.
        CheckpointError, BackboneError: an encoder, a backbone or a scorer cannot be loaded.
        StorageError: the run's folder may not be written.
        TrainingError: some tuning failed, or nothing was drawn; the report is of all the others.
    """
    spec = with_absolute_paths(spec)
    folder = Path(spec.runs) / spec.name
    began = time.perf_counter()
    find_network(spec.scorer)
    sitters = collect_sitters(spec)
    judge = make_judge(spec, sitters)
    gallery = judge.gallery(sitters)
    _start_folder(folder, source)
    connect()
    values, failures = draw_all(spec, folder, sitters, judge, gallery)
    if not any(values.values()):
        if failures:
            raise TrainingError(f"{spec.name}: nothing could be drawn: {failures[0]}")
        raise TrainingError(f"{spec.name}: deadline_s={spec.deadline_s} passed before anything was drawn; give it more")
    tracked = _open_tracking(spec, folder, source)
    comparison = compare(spec, folder, sitters, values, gallery)
    facts = _facts(spec, sitters, time.perf_counter() - began)
    write_comparison(folder / FILE, comparison, facts)
    grid = save_png(draw_grid(spec, folder, sitters), folder / "grid.png")
    against = spec.against if spec.against in {entry.name for entry in comparison.entries} else None
    said = notes(spec, sitters, judge, gallery)
    if against != spec.against:
        said.append(f"{spec.against} has drawn nothing yet, so it is not what others are compared with.")
    said += [f"Not drawn: {failure}" for failure in failures]
    page = Page(f"Benchmark {spec.name}", comparison, against, {"The first subjects": grid}, facts, said)
    file = page.write(folder, "report")
    if tracked is not None:
        tracked.log_metrics(0, _single_numbers(comparison))
        for path in (grid, file, file.with_suffix(".md"), folder / FILE):
            tracked.log_file(path)
        tracked.finish("FINISHED")
    console = Console(soft_wrap=True, highlight=False)
    console.print(page.markdown(), markup=False)
    console.print(f"[green]ok[/]: the report is {file}\nthe grid of pictures is {grid}")
    if failures:
        raise TrainingError(
            f"{spec.name}: {len(failures)} of {sum(map(len, values.values())) + len(failures)} were not drawn, and the "
            f"report is of the others; submit again to try them once more. The first: {failures[0]}"
        )


def with_absolute_paths(spec: Any) -> Any:
    """The spec with paths that hold in an actor, which runs in a folder of its own."""
    source = spec.source
    if isinstance(source, ShardSubjects):
        source = source.model_copy(update={"shards": tuple(resolve_path(place) for place in source.shards)})
    else:
        source = source.model_copy(update={"folder": resolve_path(source.folder)})
    update: dict[str, Any] = {
        "runs": resolve_path(spec.runs), "backbone": path_or_name(spec.backbone), "source": source,
        "calibration": tuple(resolve_path(place) for place in spec.calibration),
        "scorer": spec.scorer and path_or_name(spec.scorer),
    }  # fmt: skip
    if spec.attributes is not None and spec.attributes not in EMBEDDED:
        update["attributes"] = path_or_name(spec.attributes)
    if isinstance(spec, Benchmark):
        update["contenders"] = {name: _absolute(one) for name, one in spec.contenders.items()}
        update["reuse"] = tuple(resolve_path(run) for run in spec.reuse)
    else:
        update["contender"] = _absolute(spec.contender)
    return spec.model_copy(update=update)


def _absolute(one: Contender) -> Contender:
    return one.model_copy(update={
        key: path_or_name(value) for key in ("backbone", "encoder", "clip") if (value := getattr(one, key)) is not None
    })  # fmt: skip


# -- subjects and the judge ------------------------------------------------------------------------------------


def collect_sitters(spec: Sitting, *, skip: int = 0) -> list[Sitter]:
    """The subjects of a job, of shards or of DreamBench's layout.

    Raises:
        DataError, SampleError, ShardError: there are too few, or one cannot be read.
    """
    source = spec.source
    if not isinstance(source, ShardSubjects):
        return sitters_of_folder(source, Path(source.folder), spec, skip=skip)
    pictures = showing(_pictures(source.shards, source.split, spec.image_size), source.only)
    return sitters_of_shards(pictures, spec, skip=skip)


def make_judge(spec: Sitting, sitters: Sequence[Sitter] = ()) -> Judge:
    """The networks of a job, calibrated by pictures of nobody who sits.

    Raises:
        BackboneError: one cannot be loaded.
        DataError, ShardError: the pictures of the calibration cannot be read, or are of a sitter.
    """
    calibration: list[tuple[str, Picture]] = []
    if spec.calibration:
        for pair in _pictures(spec.calibration, spec.calibration_split, spec.image_size):
            calibration.append(pair)
            if len(calibration) == spec.calibration_pictures:
                break
    both = sorted({identity for identity, _ in calibration} & {sitter.identity for sitter in sitters})
    if both:
        raise DataError(
            f"calibration: it has pictures of {len(both)} of the subjects themselves, such as {both[0]}, which would "
            "flatter the identity score; give it other shards, or another calibration_split"
        )
    reader = AttributeReader.load(spec.attributes) if spec.attributes else None
    return Judge.calibrated(load_network(spec.scorer), reader, calibration, spec.metrics)


# -- drawing ---------------------------------------------------------------------------------------------------


@ray.remote
class Actor:
    """Holds one contender at a time, and the judge."""

    def __init__(self, spec: Benchmark, whitening: Any, gallery: Gallery) -> None:
        # Not imported by the driver, which has no model and would spend seconds on it.
        import diffusers
        import transformers

        torch.set_num_threads(spec.cluster.threads_per_actor)
        keep_freed_memory()
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        self.spec, self.gallery = spec, gallery
        self.device = "cuda" if spec.cluster.gpus_per_actor else "cpu"
        uncalibrated = make_judge(spec.model_copy(update={"calibration": ()}))
        self.judge = Judge(
            uncalibrated.network, uncalibrated.reader, whitening, uncalibrated.field, uncalibrated.copy_quantile
        )
        self.studio: Any = None

    def portray(
        self, names: Sequence[str], sitter: Sitter, place: int, folder: str, other: Sitter | None
    ) -> list[Drawn]:
        """Tune, draw and score one sitter, with the `other` in one picture where there is one; keep what came of it.

        Contenders of several `names` differ in how they are sampled alone, and are tuned once. Where tuning fails, so
        that a loss is not finite, that is given back in place of values.
        """
        from imprint.evaluation.studio import Studio

        found: list[Drawn] = []
        for name in names:
            contender = self.spec.contenders.get(name)
            if self.studio is None or not self.studio.tunes_alike(contender):
                self.studio = None  # two models need not fit side by side
                self.studio = Studio(contender, self.spec, device=self.device, class_pictures=self.spec.class_pictures)
            self.studio.sample_as(contender)
            try:
                found.append((name, place, self._portray(name, sitter, place, Path(folder), other)))
            except TrainingError as error:
                found.append((name, place, f"{name} of {sitter.identity}: {error}"))
        return found

    def _portray(self, name: str, sitter: Sitter, place: int, folder: Path, other: Sitter | None) -> Values:
        portrait = self.studio.portray(sitter)
        scores = self.judge.score(sitter, place, portrait, self.gallery)
        values = {metric: _rounded(each) for metric, each in scores.items()}
        values |= {metric: _rounded(np.asarray([value])) for metric, value in portrait.cost.items()}
        if portrait.class_images is not None:
            left = self.judge.class_left(sitter, portrait.class_images)
            values |= {metric: _rounded(np.asarray([value])) for metric, value in left.items()}
            save_png(Image.fromarray(np.concatenate(list(portrait.class_images), axis=1)),
                     kept_file(folder, name, sitter, ".class.png"))  # fmt: skip
        both = None if other is None else self.studio.portray_both(sitter, other)
        if both is not None:
            likeness = self.judge.both(both, (place, place + 1), self.gallery)
            values["pair"] = _rounded(np.asarray([likeness.mean()]))
            save_png(Image.fromarray(np.concatenate(list(both), axis=1)),
                     kept_file(folder, name, sitter, ".pair.png"))  # fmt: skip
        # A row a prompt, its copies side by side.
        sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in portrait.images], axis=0)
        save_png(Image.fromarray(sheet), kept_file(folder, name, sitter, ".png"))
        record = {"digest": digest_of(self.spec, name, sitter), "beside": other and other.identity, "values": values}
        write_text(kept_file(folder, name, sitter, ".json"), json.dumps(record) + "\n")
        return values


def draw_all(
    spec: Benchmark, folder: Path, sitters: Sequence[Sitter], judge: Judge, gallery: Gallery
) -> tuple[dict[str, dict[int, Values]], list[str]]:
    """The values of every contender by the place of a sitter, and what failed; what an earlier run of the job kept is
    not done again.

    Raises:
        ImprintError: the one that an actor raised.
    """
    names = [*spec.contenders, *([CLASS_NOUN] if spec.class_noun else [])]
    found: dict[str, dict[int, Values]] = {name: {} for name in names}
    missing, failures = [], []
    for name in names:
        for place, sitter in enumerate(sitters[: spec.limit]):
            kept = kept_values(spec, folder, name, sitter, partner(spec, sitters, place))
            if kept is None:
                missing.append((name, place))
            else:
                found[name][place] = kept
    if missing:
        log.info("%d of %d are to be drawn", len(missing), len(names) * len(sitters[: spec.limit]))
        share = spec.cluster
        # An actor that the system killed, for memory it may be, begins anew with the task that it had.
        actor = Actor.options(
            num_cpus=share.cpus_per_actor, num_gpus=share.gpus_per_actor, max_restarts=2, max_task_retries=2
        )
        # Held here, so that an actor that begins anew still finds them.
        whitening, shown = ray.put(judge.whitening), ray.put(gallery)
        pool = ActorPool([actor.remote(spec, whitening, shown) for _ in range(min(share.actors, len(missing)))])
        with _Counter(len(missing)) as counter:
            for drawn in _portrayed(pool, missing, spec, sitters, str(folder)):
                for name, place, values in drawn:
                    if isinstance(values, str):
                        log.warning("not drawn: %s", values)
                        failures.append(values)
                    else:
                        found[name][place] = values
                    counter.advance()
    return found, failures


def _portrayed(
    pool: ActorPool, missing: Sequence[tuple[str, int]], spec: Benchmark, sitters: Sequence[Sitter], folder: str
) -> Iterator[list[Drawn]]:
    """Task by task; nothing is begun after the deadline."""
    began = time.perf_counter()
    for names, place in together(spec, missing):
        if not pool.has_free():
            yield _next(pool)  # type: ignore[misc]
        if spec.deadline_s is not None and time.perf_counter() - began > spec.deadline_s:
            log.warning("the deadline is over; the report is of what was drawn. Submit again for the rest")
            break
        args = names, sitters[place], place, folder, partner(spec, sitters, place)
        pool.submit(lambda one, args: one.portray.remote(*args), args)
    while pool.has_next():
        yield _next(pool)  # type: ignore[misc]


def together(spec: Benchmark, missing: Sequence[tuple[str, int]]) -> list[tuple[list[str], int]]:
    """Tasks of names and a sitter's place: one of all contenders that differ in sampling alone, and are tuned once.

    Contender by contender, so that an actor seldom loads another one.
    """
    tasks: dict[str, dict[int, list[str]]] = {}
    for name, place in missing:
        contender = spec.contenders.get(name)
        tuned = CLASS_NOUN if contender is None else contender.tuned_as()
        tasks.setdefault(tuned, {}).setdefault(place, []).append(name)
    return [(names, place) for group in tasks.values() for place, names in group.items()]


def partner(spec: Benchmark, sitters: Sequence[Sitter], place: int) -> Sitter | None:
    """Who is drawn in one picture with a sitter: the next one, for as many as there are to be pairs."""
    return sitters[place + 1] if place < min(spec.pairs, len(sitters) - 1) else None


def kept_file(folder: Path, name: str, sitter: Sitter, suffix: str) -> Path:
    """Where what a contender drew of a sitter lies."""
    return folder / _DRAWN / name / f"{sitter.number:04d}{suffix}"


def kept_values(spec: Benchmark, folder: Path, name: str, sitter: Sitter, other: Sitter | None) -> Values | None:
    """What an earlier run kept, if it was of the same contender, sitter, prompts and scorers."""
    for _, record in _kept(spec, folder, name, sitter):
        values = dict(record["values"])
        if other is None:
            values.pop("pair", None)  # of a run that drew pairs, where this one draws none
            return values
        if record.get("beside") == other.identity:
            return values
    return None


def _kept(spec: Benchmark, folder: Path, name: str, sitter: Sitter) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Runs, this one first and then those whose drawings count as well, that keep what would be drawn now."""
    digest = digest_of(spec, name, sitter)
    for run in (folder, *map(Path, spec.reuse)):
        try:
            record = json.loads(kept_file(run, name, sitter, ".json").read_text())
        except (OSError, ValueError):
            continue
        if record.get("digest") == digest:
            yield run, record


def digest_of(spec: Benchmark, name: str, sitter: Sitter) -> str:
    """A hash of all that the values of one contender and one sitter depend on: settings, and what weights hold."""
    contender = spec.contenders.get(name)
    weights = [(contender and contender.backbone) or spec.backbone, spec.attributes, spec.scorer]
    weights += [] if contender is None else [contender.encoder, contender.clip]
    settings = spec.model_dump(mode="json", include={
        "seed", "backbone", "source", "subjects", "image_size", "images_per_prompt", "sampling", "calibration",
        "calibration_split", "calibration_pictures", "scorer", "attributes", "metrics", "class_pictures",
    })  # fmt: skip
    record = {
        "contender": None if contender is None else contender.model_dump(mode="json", exclude={"label"}),
        "settings": settings,
        "weights": [None if each is None else weights_sha256(each) for each in weights],
        "sitter": [sitter.identity, sitter.number, sitter.noun, [[p.text, dict(p.asks)] for p in sitter.prompts]],
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def weights_sha256(name: str) -> str | None:
    """Of what a path, a run's folder or the name of shipped weights stands for; None where nothing of it lies here."""
    folder = shipped_folder(name) or Path(name)
    for place in (folder / "encoder", folder / "network", folder):
        if place.exists():
            return contents_sha256(place)
    return None


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]


# -- the report ------------------------------------------------------------------------------------------------


def compare(
    spec: Benchmark,
    folder: Path,
    sitters: Sequence[Sitter],
    values: Mapping[str, Mapping[int, Values]],
    gallery: Gallery,
) -> Comparison:
    """Entries of all contenders: means over the prompts that ask for something, and by kind of prompt."""
    links = tracking_links(folder)
    entries = [entry_of(spec, name, sitters, each, str(folder), links) for name, each in values.items() if each]
    same, other = _real_scores(gallery)
    return Comparison.of(entries, floor=float(np.mean(other)), ceiling=float(np.mean(same)) if len(same) else None)


def entry_of(
    spec: Benchmark,
    name: str,
    sitters: Sequence[Sitter],
    values: Mapping[int, Values],
    run: str,
    links: Mapping[str, str],
) -> Entry:
    """One contender's means, sitter by sitter, of those that it has drawn."""
    contender = spec.contenders.get(name)
    label = "class noun only" if contender is None else contender.label or name.replace("_", " ")
    scores: dict[str, list[float]] = {}
    kinds: dict[str, dict[str, list[float]]] = {}
    drawn = [sitters[place] for place in sorted(values)]
    for number, sitter in enumerate(drawn):
        each = values[sorted(values)[number]]
        for metric, mean in means_of(sitter, each).items():
            _put(scores, metric, number, mean)
        for metric, found in each.items():
            groups = {} if metric in _COSTS_OF_ALL else _by_kind(sitter, found)
            for kind, group in groups.items():
                _put(kinds.setdefault(kind, {}), metric, number, _mean(group))
    count = len(drawn)
    facts = {} if contender is None else {"method": contender.tuning.method, "steps": contender.tuning.steps}
    return Entry(
        name, label, tuple(sitter.identity for sitter in drawn), _as_arrays(scores, count),
        {kind: _as_arrays(each, count) for kind, each in kinds.items()}, facts, run, dict(links),
    )  # fmt: skip


def means_of(sitter: Sitter, values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Of each metric the mean over the prompts that ask for something; the plain prompt's identity stands alone."""
    means = {}
    for metric, found in values.items():
        if metric in _COSTS_OF_ALL:
            means[metric] = found[0]
            continue
        groups = _by_kind(sitter, found)
        means[metric] = _mean([v for kind, group in groups.items() if kind != PLAIN or len(groups) == 1 for v in group])
        if metric == "identity" and PLAIN in groups and len(groups) > 1:
            means["identity_plain"] = _mean(groups[PLAIN])
    return means


def _by_kind(sitter: Sitter, found: Sequence[float]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {}
    for prompt, value in zip(sitter.prompts, found, strict=True):
        groups.setdefault(prompt.kind, []).append(value)
    return groups


def _put(scores: dict[str, list[float]], metric: str, number: int, value: float) -> None:
    values = scores.setdefault(metric, [])
    values += [float("nan")] * (number - len(values))
    values.append(value)


def _as_arrays(scores: Mapping[str, list[float]], count: int) -> dict[str, np.ndarray]:
    return {name: np.asarray([*each, *[np.nan] * (count - len(each))], np.float64) for name, each in scores.items()}


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def _real_scores(gallery: Gallery) -> tuple[np.ndarray, np.ndarray]:
    """Identity scores of real pictures: each with the others of its own subject, and with those of the next one."""
    same, other = [], []
    for place, rows in enumerate(gallery.targets):
        unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        theirs = gallery.targets[somebody_else(place, len(gallery.targets))]
        theirs = theirs / np.maximum(np.linalg.norm(theirs, axis=1, keepdims=True), 1e-12)
        if len(unit) > 1:
            same.append(float((unit @ unit.T)[~np.eye(len(unit), dtype=bool)].mean()))
        other.append(float((unit @ theirs.T).mean()))
    return np.asarray(same), np.asarray(other)


def notes(spec: Benchmark, sitters: Sequence[Sitter], judge: Judge, gallery: Gallery) -> list[str]:
    """How far the scorers can be trusted."""
    same, other = _real_scores(gallery)
    found = []
    if len(same):
        found.append(
            f"Identity of real pictures: {same.mean():.3f} with others of the same subject, {other.mean():.3f} with "
            f"those of another; the area under the ROC curve, of each subject's mean, is "
            f"{area_under_curve(same, other):.3f}."
        )
    if judge.reader is not None:
        asked = sorted({name for one in sitters for prompt in one.prompts for name in prompt.asks})
        right = judge.reader.accuracy
        known = ", ".join(f"{name} {right[name]:.0%}" for name in asked if name in right)
        found.append(
            f"What was asked is read by a network trained on real pictures; on held-out ones it is right: {known}."
        )
    elif spec.metrics is None or spec.metrics.clip is None:
        found.append(
            "Nothing here reads what was asked: there is no prompt score without `attributes` or `metrics.clip`."
        )
    return found


def draw_grid(spec: Benchmark, folder: Path, sitters: Sequence[Sitter]) -> Image.Image:
    """The first sitters: what was learned, then each contender with the plain and the last prompt."""
    names = [*spec.contenders, *([CLASS_NOUN] if spec.class_noun else [])]
    rows, captions = [], []
    for sitter in sitters[: spec.limit][: spec.grid_subjects]:
        for number in sorted({0, len(sitter.prompts) - 1}):
            row = [Image.fromarray(sitter.references[0].image)]
            row += [_first_copy(spec, folder, name, sitter, number) for name in names]
            rows.append(row)
            captions.append(sitter.prompts[number].about("<concept>"))
    labels = ["input", *(_label(spec, name) for name in names)]
    return labelled_grid(rows, labels, cell=spec.grid_cell, captions=captions)


def _first_copy(spec: Benchmark, folder: Path, name: str, sitter: Sitter, number: int) -> Image.Image:
    for run, _ in _kept(spec, folder, name, sitter):
        try:
            with Image.open(kept_file(run, name, sitter, ".png")) as sheet:
                side = sheet.width // spec.images_per_prompt
                return sheet.convert("RGB").crop((0, number * side, side, (number + 1) * side))
        except FileNotFoundError:
            continue
    return Image.new("RGB", (8, 8), (225, 225, 225))  # the deadline came first


def _label(spec: Benchmark, name: str) -> str:
    contender = spec.contenders.get(name)
    return "class noun only" if contender is None else contender.label or name.replace("_", " ")


def _facts(spec: Benchmark, sitters: Sequence[Sitter], seconds: float) -> dict[str, Any]:
    return {
        "subjects": len(sitters[: spec.limit]),
        **({"judged among": len(sitters)} if spec.limit is not None else {}),
        "protocol": "prompts of its own" if spec.prompts else spec.protocol,
        "prompts a subject": len(sitters[0].prompts),
        "pictures a prompt": spec.images_per_prompt,
        "sampling steps": spec.sampling.steps,
        "guidance scale": spec.sampling.guidance_scale,
        "actors": spec.cluster.actors,
        "threads an actor": spec.cluster.threads_per_actor,
        "seconds of this run": round(seconds),
    }


def _single_numbers(comparison: Comparison) -> dict[str, float]:
    found = {}
    for entry in comparison.entries:
        for metric in entry.scores:
            value = entry.estimate(metric)
            if value is not None:
                found[f"{metric}/{entry.name}"] = value.mean
    return found


def _open_tracking(spec: Benchmark, folder: Path, source: str) -> TrackedRun | None:
    """Before the report, which links to it."""
    if not spec.tracking.enabled:
        return None
    tracked = TrackedRun.open(spec.tracking, folder, spec.name)
    tracked.describe(spec.model_dump(mode="json"), source)
    return tracked
