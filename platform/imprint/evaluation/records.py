"""`results.json`: what a benchmark leaves of each contender, and entries of a comparison out of any run's file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imprint.errors import DataError, StorageError
from imprint.evaluation.comparison import Comparison, Entry

FORMAT, FORMAT_VERSION = "imprint-comparison", 1
FILE = "results.json"
_SETTINGS = ("protocol", "prompts a subject", "pictures a prompt", "judged among", "sampling steps", "guidance scale")
"""Facts of a run that its scores depend on."""
_SCENES = {
    "new_scene": "tuned", "encoder_scene": "encoder", "class_noun_scene": "class_noun", "baseline_scene": "baseline",
}  # fmt: skip
"""Of an evaluation of one method: the columns that ask for a scene, and what stands beside each without one."""


def write_comparison(path: Path, comparison: Comparison, facts: Mapping[str, Any]) -> None:
    """Write all values, subject by subject.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    record = {
        "format": FORMAT, "format_version": FORMAT_VERSION, "facts": dict(facts),
        "floor": comparison.floor, "ceiling": comparison.ceiling,
        "entries": [
            {
                "name": entry.name, "label": entry.label, "subjects": list(entry.subjects),
                "scores": {name: _plain(values) for name, values in entry.scores.items()},
                "kinds": {
                    kind: {name: _plain(values) for name, values in scores.items()}
                    for kind, scores in entry.kinds.items()
                },
                "facts": dict(entry.facts),
            }
            for entry in comparison.entries
        ],
    }  # fmt: skip
    write_text(path, json.dumps(record, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"writing {path}: {error}; free some space, or choose another folder") from error


def read_comparison(runs: Sequence[Path]) -> Comparison:
    """The entries of several runs' folders; where there is more than one run, with the run before each name.

    What was not drawn or judged alike in all of them is noted.

    Raises:
        DataError: a folder holds no results that can be compared.
    """
    entries: list[Entry] = []
    facts: dict[str, Mapping[str, Any]] = {}
    real: list[tuple[float | None, float | None]] = []
    names = _short_names(runs)
    for folder, name in zip(runs, names, strict=True):
        record = _read(folder)
        prefix = f"{name}/" if len(runs) > 1 else ""
        entries += _entries(record, folder, prefix)
        facts[name] = record.get("facts", {})
        real.append(_real(record))
    # Of several runs the lines of real pictures are the first one's, which has the first entries.
    floor, ceiling = next(((low, high) for low, high in real if low is not None or high is not None), (None, None))
    return Comparison.of(entries, floor=floor, ceiling=ceiling, notes=_unlike(facts))


def _unlike(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each setting that the pictures or the scores depend on and that runs do not share."""
    found = []
    for setting in _SETTINGS:
        values = {run: each[setting] for run, each in facts.items() if setting in each}
        if len(set(map(str, values.values()))) > 1:
            said = ", ".join(f"{value} in {run}" for run, value in values.items())
            found.append(f"These runs were not made alike: {setting} {said}.")
    return found


def tracking_links(folder: Path) -> dict[str, str]:
    """Where the run is tracked: an address where MLflow is a server, else how to look at it."""
    try:
        record = json.loads((folder / "mlflow.json").read_text())
        uri, run = str(record["uri"]), str(record["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    if uri.startswith(("http://", "https://")):
        place = f"experiments/{record['experiment_id']}/runs/{run}" if "experiment_id" in record else f"runs/{run}"
        return {"MLflow": f"{uri.rstrip('/')}/#/{place}"}
    return {"MLflow": f"run {run}: mlflow ui --backend-store-uri {uri}"}


def _short_names(runs: Sequence[Path]) -> list[str]:
    names = [folder.resolve().name for folder in runs]
    return [str(folder) if names.count(name) > 1 else name for folder, name in zip(runs, names, strict=True)]


def _read(folder: Path) -> dict[str, Any]:
    file = folder / FILE
    try:
        record = json.loads(file.read_text())
    except FileNotFoundError:
        raise DataError(
            f"comparing {folder}: there is no {FILE}; expected the folder of a run of jobs/evaluate.yaml, "
            "jobs/benchmark.yaml or jobs/search.yaml that is over"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"comparing {folder}: {FILE} cannot be read ({error})") from error
    ours = isinstance(record, dict) and (record.get("format") == FORMAT or "per_subject" in record)
    if not ours:
        raise DataError(f"comparing {folder}: {FILE} is not of an evaluation")
    if record.get("format") == FORMAT and record.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"comparing {folder}: format version {record.get('format_version')}, this imprint reads {FORMAT_VERSION}"
        )
    return dict(record)


def _real(record: Mapping[str, Any]) -> tuple[float | None, float | None]:
    if record.get("format") == FORMAT:
        return record["floor"], record["ceiling"]
    means = {name: value["mean"] for name, value in record["identity"].items()}
    return means.get("another_person"), means.get("real")


def _entries(record: Mapping[str, Any], folder: Path, prefix: str) -> Iterator[Entry]:
    links = tracking_links(folder)
    if record.get("format") == FORMAT:
        for one in record["entries"]:
            kinds = {kind: _arrays(scores) for kind, scores in one["kinds"].items()}
            yield Entry(
                prefix + one["name"], prefix + one["label"], tuple(one["subjects"]), _arrays(one["scores"]), kinds,
                one["facts"], str(folder), links,
            )  # fmt: skip
        return
    yield from _of_one_method(record, folder, prefix, links)


def _of_one_method(record: Mapping[str, Any], folder: Path, prefix: str, links: Mapping[str, str]) -> Iterator[Entry]:
    """An evaluation's columns that ask for a scene, or those that ask for none where nothing reads what was asked."""
    scores, labels, subjects = record["per_subject"], record["labels"], tuple(record["subjects"])
    field_values = (record.get("field") or {}).get("values", {})
    columns = {name: plain for name, plain in _SCENES.items() if name in scores["identity"]}
    for name, plain in columns.items():
        found = {"identity": scores["identity"][name], "recognized": scores["recognized"][name]}
        if plain in scores["identity"]:
            found["identity_plain"] = scores["identity"][plain]
        if name in scores["kept"]:
            found["kept"] = scores["kept"][name]
        if name in scores["obeyed"]:
            found["prompt"] = np.mean(list(scores["obeyed"][name].values()), axis=0)
        found |= {metric: values[name] for metric, values in field_values.items() if name in values}
        if "prompt" not in found and "CLIP-T" in found:
            found["prompt"] = found["CLIP-T"]
        facts = {"tuning seconds": record["tuning_seconds"]["mean"]} if plain == "tuned" else {}
        label = labels.get(plain, labels[name])
        yield Entry(prefix + plain, prefix + label, subjects, _arrays(found), {}, facts, str(folder), links)


def _arrays(scores: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {
        name: np.asarray([np.nan if value is None else value for value in values], np.float64)
        for name, values in scores.items()
    }


def _plain(values: np.ndarray) -> list[float | None]:
    return [round(float(value), 5) if np.isfinite(value) else None for value in values]
