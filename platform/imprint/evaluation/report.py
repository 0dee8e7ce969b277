"""The report of an evaluation: a Markdown table, JSON with every number, and what a console shows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from imprint.errors import StorageError
from imprint.evaluation.cells import Cells
from imprint.evaluation.field_report import FieldReport
from imprint.evaluation.scoring import CEILING, FLOOR, Scores
from imprint.evaluation.statistics import Estimate, bootstrap_mean, paired_difference
from imprint.evaluation.subjects import ASKED

COMPARISONS = (
    ("tuned", "encoder"),
    ("encoder", "wrong_reference"),
    ("encoder", "class_noun"),
    ("new_scene", "encoder_scene"),
    ("tuned", "wrong_reference"),
    ("tuned", "class_noun"),
    ("tuned", "baseline"),
    ("encoder", "baseline"),
)
"""Pairs of columns, subject by subject: the first ought to be the better. Those that were drawn are compared."""


@dataclass(frozen=True)
class Report:
    """All that is said of one evaluation. `facts` are single numbers and words: seconds, steps, versions."""

    identity: dict[str, Estimate]
    recognized: dict[str, Estimate]
    kept: dict[str, Estimate]
    differences: dict[str, Estimate]
    obeyed: dict[str, dict[str, Estimate]]
    chance: dict[str, float]
    readable: dict[str, float]
    scorer: dict[str, float]
    tuning_seconds: Estimate
    facts: dict[str, Any]
    labels: dict[str, str]
    field: FieldReport | None = None

    @classmethod
    def of(
        cls,
        scores: Scores,
        tuning_seconds: Sequence[float],
        *,
        labels: Mapping[str, str],
        facts: Mapping[str, Any],
        field: FieldReport | None = None,
    ) -> Report:
        """Estimates with confidence intervals over subjects; `labels` are those of the columns."""
        real = {FLOOR: "real picture of another subject", CEILING: "real picture, the ceiling"}
        return cls(
            identity=_estimates(scores.identity),
            recognized=_estimates(scores.recognized),
            kept=_estimates(scores.kept),
            differences={
                f"{one} - {two}": paired_difference(scores.identity[one], scores.identity[two])
                for one, two in COMPARISONS
                if one in scores.identity and two in scores.identity
            },
            obeyed={column: _estimates(values) for column, values in scores.obeyed.items()},
            chance=dict(scores.chance),
            readable=dict(scores.readable),
            scorer=dict(scores.scorer),
            tuning_seconds=bootstrap_mean(tuning_seconds),
            facts=dict(facts),
            labels=real | dict(labels),
            field=field,
        )

    def tables(self) -> list[Cells]:
        """What a reader looks at, in order."""
        count = next(iter(self.identity.values())).count
        rows = tuple(
            (
                self.labels[name],
                _interval(value),
                _share(self.recognized[name]),
                _share(self.kept[name]) if name in self.kept else "-",
            )
            for name, value in self.identity.items()
        )
        tables = [
            Cells(
                f"Identity of {count} held-out subjects (mean, 95 % confidence interval)",
                ("what is shown", "identity similarity", f"recognized among {count}", "identity attributes kept"),
                rows,
            ),
            Cells(
                "The same subjects, pair by pair",
                ("difference", "identity similarity", "higher?"),
                tuple(
                    (
                        " minus ".join(self.labels[name] for name in pair.split(" - ")),
                        _interval(value),
                        "yes" if value.above(0) else ("no, lower" if value.high < 0 else "not shown"),
                    )
                    for pair, value in self.differences.items()
                ),
            ),
        ]
        if self.obeyed:
            tables.append(self._obedience())
        if self.field is not None:
            tables.append(Cells("The field's metrics", self.field.header(), self.field.rows(self.labels)))
        return tables

    def _obedience(self) -> Cells:
        rows = [
            (self.labels[column], *(_share(values[name]) for name in ASKED)) for column, values in self.obeyed.items()
        ]
        rows.append(("by luck (another subject's picture)", *(f"{self.chance[name]:.0%}" for name in ASKED)))
        read = [f"{self.readable[name]:.0%}" if name in self.readable else "-" for name in ASKED]
        rows.append(("real pictures of what was asked", *read))
        return Cells("Did as the prompt said", ("what is shown", *ASKED), tuple(rows))

    def notes(self) -> list[str]:
        """Sentences below the tables."""
        return [
            f"The identity score tells real pictures of one subject from those of others with an area under the ROC "
            f"curve of {self.scorer['area_under_curve']:.3f}; a real picture finds its own subject among "
            f"{self.tuning_seconds.count} in {self.scorer['nearest_identity']:.0%} of cases.",
            f"Tuning took {self.tuning_seconds.mean:.2f} s a subject "
            f"({', '.join(f'{name} {value}' for name, value in self.facts.items())}).",
        ]

    def markdown(self) -> str:
        """The tables and notes as Markdown."""
        parts = []
        for table in self.tables():
            lines = [f"**{table.title}**", "", "| " + " | ".join(table.header) + " |"]
            lines.append("|" + " --- |" * len(table.header))
            lines += ["| " + " | ".join(row) + " |" for row in table.rows]
            parts.append("\n".join(lines))
        return "\n\n".join([*parts, *self.notes()]) + "\n"

    def console(self) -> list[Table]:
        """The tables for rich."""
        shown = []
        for cells in self.tables():
            table = Table(title=cells.title, title_justify="left")
            for number, name in enumerate(cells.header):
                table.add_column(name, justify="left" if number == 0 else "right")
            for row in cells.rows:
                table.add_row(*row)
            shown.append(table)
        return shown

    def metrics(self) -> dict[str, float]:
        """Single numbers for a tracking server."""
        flat = {f"identity/{name}": value.mean for name, value in self.identity.items()}
        flat |= {f"recognized/{name}": value.mean for name, value in self.recognized.items()}
        flat |= {f"difference/{name.replace(' - ', '-')}": value.mean for name, value in self.differences.items()}
        for column, values in self.obeyed.items():
            flat |= {f"obeyed/{column}/{name}": value.mean for name, value in values.items()}
        if self.field is not None:
            flat |= self.field.metrics()
        return flat | {"tuning_seconds": self.tuning_seconds.mean}

    def write(self, folder: Path, per_subject: Scores, identities: Sequence[str]) -> None:
        """Write `table.md` and `results.json`, the second with each subject's values.

        Raises:
            StorageError: the disk is full or may not be written.
        """
        record = dataclasses.asdict(self) | {"subjects": list(identities), "per_subject": _plain(per_subject)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in (("table.md", self.markdown()), ("results.json", json.dumps(record, indent=1) + "\n")):
                temporary = folder / f".{name}.partial"
                temporary.write_text(text)
                temporary.replace(folder / name)
        except OSError as error:
            raise StorageError(f"writing the report to {folder}: {error}; free some space") from error


def _estimates(values: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
    return {name: bootstrap_mean(value) for name, value in values.items()}


def _interval(value: Estimate) -> str:
    return f"{value.mean:.3f} ({value.low:.3f} to {value.high:.3f})"


def _share(value: Estimate) -> str:
    return f"{value.mean:.0%} ({value.low:.0%} to {value.high:.0%})"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return [round(float(item), 5) for item in value]
    return value
