"""`search`: Ray Tune tries values of a contender's keys, subject after subject, and stops poor trials early."""

from __future__ import annotations

import copy
import json
import logging
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator
from rich.console import Console

from imprint.config.jobs.benchmark import Contender, Range, Search
from imprint.config.load import validate
from imprint.config.source import Document
from imprint.errors import ConfigError, TrainingError
from imprint.evaluation.comparison import Comparison, Entry
from imprint.evaluation.identity import find_network
from imprint.evaluation.judge import Gallery, Judge
from imprint.evaluation.page import Page
from imprint.evaluation.records import FILE, tracking_links, write_comparison, write_text
from imprint.evaluation.sitters import Sitter
from imprint.jobs.benchmark import collect_sitters, make_judge, means_of, with_absolute_paths
from imprint.jobs.evaluate import _start_folder
from imprint.jobs.ray_fit import connect, our_error
from imprint.tracking.run import TrackedRun
from imprint.training.heap import keep_freed_memory

log = logging.getLogger(__name__)
_TRIALS = "trials"


def run(spec: Search, *, job_file: Path | None, source: str) -> None:
    """Try `spec.trials` draws from the space; write `best.yaml`, `report.html`, `report.md` and `results.json`.

    Raises:
        ConfigError: a key of the space is not the contender's, or its values do not fit.
        DataError, ShardError: pictures are missing, or hold too few subjects.
        CheckpointError, BackboneError: an encoder, a backbone or a scorer cannot be loaded.
        TrainingError: no trial came to its end.
    """
    spec = with_absolute_paths(spec)
    check_space(spec)
    folder = Path(spec.runs) / spec.name
    began = time.perf_counter()
    find_network(spec.scorer)
    sitters = collect_sitters(spec, skip=spec.skip)
    judge = make_judge(spec, sitters)
    gallery = judge.gallery(sitters)
    _start_folder(folder, source)
    for old in ("ray", _TRIALS):
        shutil.rmtree(folder / old, ignore_errors=True)
    connect()
    problem = fit(spec, folder, sitters, judge, gallery)
    records = read_trials(folder)
    whole = [one for one in records if len(one["subjects"]) == len(sitters)]
    if not whole:
        raise problem or TrainingError("searching: no trial came to its end; see the log above")
    best = max(whole, key=lambda one: score_of(spec, one["scores"]))
    chosen = with_values(spec.contender, best["values"]).model_dump(mode="json", exclude_unset=True)
    write_text(folder / "best.yaml", yaml.safe_dump({"contenders": {"best": chosen}}, sort_keys=False))
    tracked = None
    if spec.tracking.enabled:
        tracked = TrackedRun.open(spec.tracking, folder, spec.name)
        tracked.describe(spec.model_dump(mode="json"), source)
    comparison = compare(spec, folder, records)
    facts = {
        "trials": len(records), "subjects": len(sitters), "trials that saw all of them": len(whole),
        "seconds in all": round(time.perf_counter() - began),
    }  # fmt: skip
    write_comparison(folder / FILE, comparison, facts)
    page = Page(
        f"Search {spec.name}", comparison, comparison.entries[0].name, {}, facts,
        ["Trials from the best to the worst by the search's own score. Those that were stopped early saw fewer "
         "subjects. The best of many trials is flattered by the subjects that it was chosen on: report it on others."],
    )  # fmt: skip
    file = page.write(folder, "report")
    if tracked is not None:
        tracked.log_metrics(0, {"score": score_of(spec, best["scores"])})
        for path in (file, file.with_suffix(".md"), folder / FILE, folder / "best.yaml"):
            tracked.log_file(path)
        tracked.finish("FINISHED")
    console = Console(soft_wrap=True, highlight=False)
    console.print(page.markdown(), markup=False)
    console.print(f"[green]ok[/]: the best contender is in {folder / 'best.yaml'}\nthe report is {file}")


# -- the space -------------------------------------------------------------------------------------------------


def with_values(contender: Contender, values: Mapping[str, Any]) -> Contender:
    """The contender with dotted keys set.

    Raises:
        ConfigError: a key is not the contender's, or a value does not fit.
    """
    data = copy.deepcopy(contender.model_dump(mode="json", exclude_unset=True))
    data.setdefault("tuning", {}).setdefault("method", contender.tuning.method)
    for key, value in values.items():
        here, parts = data, key.split(".")
        for part in parts[:-1]:
            if not isinstance(here.setdefault(part, {}), dict):
                raise ConfigError(f"space.{key}: {part} of the contender is a single value, {here[part]!r}")
            here = here[part]
        here[parts[-1]] = value
    return validate(Document(name="contender", data=data, origins={}), Contender)


def check_space(spec: Search) -> None:
    """The ends of every range must be values that the contender takes.

    Raises:
        ConfigError: they are not.
    """
    for key, values in spec.space.items():
        for value in values.choice or values.uniform or values.loguniform or values.integers or ():
            try:
                with_values(spec.contender, {key: value})
            except ConfigError as error:
                raise ConfigError(f"space.{key}: {error}") from error


def domain_of(values: Range) -> Any:
    """A range in Ray Tune's terms."""
    if values.choice is not None:
        return tune.choice(list(values.choice))
    if values.uniform is not None:
        return tune.uniform(*values.uniform)
    if values.loguniform is not None:
        return tune.loguniform(*values.loguniform)
    assert values.integers is not None
    low, high = values.integers
    return tune.randint(low, high + 1)


# -- trials ----------------------------------------------------------------------------------------------------


def fit(spec: Search, folder: Path, sitters: Sequence[Sitter], judge: Judge, gallery: Gallery) -> Exception | None:
    """All trials; gives back what the first one that failed said."""
    share = spec.cluster
    resources = {"cpu": share.cpus_per_actor, "gpu": share.gpus_per_actor}
    body = tune.with_parameters(
        trial, spec=spec, folder=str(folder), sitters=list(sitters), whitening=judge.whitening, gallery=gallery
    )
    tuner = tune.Tuner(
        tune.with_resources(body, resources),
        param_space={key: domain_of(values) for key, values in spec.space.items()},
        tune_config=tune.TuneConfig(
            metric="score", mode="max", num_samples=spec.trials,
            search_alg=BasicVariantGenerator(max_concurrent=share.actors, random_state=spec.seed),
            scheduler=ASHAScheduler(
                time_attr="subjects", max_t=len(sitters), grace_period=min(spec.first_rung, len(sitters)),
                reduction_factor=spec.reduction,
            ),
        ),
        run_config=tune.RunConfig(name="ray", storage_path=str(folder), verbose=1),
    )  # fmt: skip
    errors = tuner.fit().errors
    for error in errors:
        log.warning("a trial failed: %s", our_error(error) or error)
    return (our_error(errors[0]) or errors[0]) if errors else None


def trial(
    values: dict[str, Any], *, spec: Search, folder: str, sitters: list[Sitter], whitening: Any, gallery: Gallery
) -> None:
    """One draw from the space: subject after subject, reporting the mean so far."""
    # Not imported by the driver, which has no model and would spend seconds on it.
    import diffusers
    import transformers

    from imprint.evaluation.studio import Studio

    torch.set_num_threads(spec.cluster.threads_per_actor)
    keep_freed_memory()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    plain = make_judge(spec.model_copy(update={"calibration": ()}))
    judge = Judge(plain.network, plain.reader, whitening, plain.field, plain.copy_quantile)
    device = "cuda" if spec.cluster.gpus_per_actor else "cpu"
    studio = Studio(with_values(spec.contender, values), spec, device=device)
    name = str(tune.get_context().get_trial_id())
    scores: dict[str, list[float]] = {}
    for place, sitter in enumerate(sitters):
        portrait = studio.portray(sitter)
        judged = judge.score(sitter, place, portrait, gallery)
        found = means_of(sitter, {metric: each.tolist() for metric, each in judged.items()}) | dict(portrait.cost)
        for metric, value in found.items():
            if np.isfinite(value):
                scores.setdefault(metric, []).append(round(value, 6))
        record = {"name": name, "values": values, "subjects": [one.identity for one in sitters[: place + 1]],
                  "scores": scores}  # fmt: skip
        write_text(Path(folder) / _TRIALS / f"{name}.json", json.dumps(record) + "\n")
        means = {metric: float(np.mean(each)) for metric, each in scores.items()}
        tune.report({"score": score_of(spec, scores), "subjects": place + 1, **means})


def score_of(spec: Search, scores: Mapping[str, Sequence[float]]) -> float:
    """The weighted sum that the search makes large; what a trial has no value of counts as nothing."""
    weights = spec.score.model_dump()
    return float(sum(weight * np.mean(scores[name]) for name, weight in weights.items() if scores.get(name)))


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """What the trials left, in the order of their names."""
    return [json.loads(file.read_text()) for file in sorted((folder / _TRIALS).glob("*.json"))]


def compare(spec: Search, folder: Path, records: Sequence[Mapping[str, Any]]) -> Comparison:
    """The trials from the best to the worst: those that saw more subjects first."""
    links = tracking_links(folder)
    order = sorted(records, key=lambda one: (-len(one["subjects"]), -score_of(spec, one["scores"])))
    entries = [
        Entry(
            one["name"], label_of(one["values"]), tuple(one["subjects"]),
            {metric: np.asarray(each, np.float64) for metric, each in one["scores"].items()
             if len(each) == len(one["subjects"])},
            {}, {"score": score_of(spec, one["scores"]), **one["values"]}, str(folder), links,
        )
        for one in order
    ]  # fmt: skip
    return Comparison.of(entries)


def label_of(values: Mapping[str, Any]) -> str:
    """The values, by the last words of their keys."""
    return ", ".join(f"{key.removeprefix('tuning.')} {_short(value)}" for key, value in values.items())


def _short(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) and math.isfinite(value) else str(value)
