"""A comparison for readers: one HTML page that needs no other file, the same as Markdown, and tables for a console."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from imprint.evaluation.cells import Cells
from imprint.evaluation.comparison import COSTS, IDENTITY, LABELS, PROMPT, SHARES, Comparison, Entry, estimate
from imprint.evaluation.plots import pareto_plot
from imprint.evaluation.records import write_text
from imprint.evaluation.statistics import LEVEL, Estimate

_QUALITY = tuple(name for name in LABELS if name not in COSTS)
UNEQUAL = (
    "Not all are of the same subjects: means of different ones may differ for that alone. Stars and the differences "
    "subject by subject are of those that two have in common."
)
_FEW = 7
"""Up to so many entries everyone is compared with everyone; of more, the pairs would be more than anyone reads."""


@dataclass(frozen=True)
class Page:
    """What is said of a comparison. `grids` are PNG files by what they show; `facts` single numbers and words."""

    title: str
    comparison: Comparison
    against: str | None = None
    grids: Mapping[str, Path] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def tables(self) -> list[Cells]:
        """Scores, costs, scores by kind of prompt, and paired differences, as far as there is anything in them."""
        every = [
            self._scores("Scores", [name for name in self.comparison.metrics() if name in _QUALITY]),
            self._scores("What a concept costs", [name for name in self.comparison.metrics() if name in COSTS]),
            *(self._kinds(metric) for metric in (IDENTITY, PROMPT)),
            *(self._differences(metric) for metric in (IDENTITY, PROMPT)),
        ]
        return [table for table in every if table.rows and len(table.header) > 1]

    def _scores(self, title: str, metrics: Sequence[str]) -> Cells:
        front = set(self.comparison.pareto())
        counted = title == "Scores" and not self.comparison.of_equal_subjects()
        rows = []
        for number, entry in enumerate(self.comparison.entries, start=1):
            mark = " *" if entry.name in front and title == "Scores" else ""
            count = (str(len(entry.subjects)),) if counted else ()
            rows.append((f"{number} {entry.label}{mark}", *count,
                         *(_cell(name, entry.estimate(name)) for name in metrics)))  # fmt: skip
        header = ("what", *(("subjects",) if counted else ()), *(LABELS[name] for name in metrics))
        return Cells(title, header, tuple(rows))

    def _kinds(self, metric: str) -> Cells:
        entries = self.comparison.entries
        kinds = list(dict.fromkeys(kind for entry in entries for kind in entry.kinds))
        shown = [kind for kind in kinds if any(estimate(e.kinds.get(kind, {}).get(metric)) for e in entries)]
        rows = tuple(
            (f"{number} {entry.label}",
             *(_cell(metric, estimate(entry.kinds.get(kind, {}).get(metric))) for kind in shown))
            for number, entry in enumerate(entries, start=1)
        )  # fmt: skip
        return Cells(f"{LABELS[metric].capitalize()} by kind of prompt", ("what", *shown), rows)

    def _differences(self, metric: str) -> Cells:
        labels = {entry.name: entry.label for entry in self.comparison.entries}
        against = self.against
        if against is None and len(labels) > _FEW:
            against = self.comparison.entries[0].name
        rows = tuple(
            (f"{labels[one.first]} minus {labels[one.second]}", _cell(metric, one.estimate, sign=True), one.shown,
             str(one.estimate.count))
            for one in self.comparison.differences(metric, against)
        )  # fmt: skip
        return Cells(
            f"{LABELS[metric].capitalize()}, subject by subject", ("difference", LABELS[metric], "higher?", "subjects"),
            rows,
        )  # fmt: skip

    def all_notes(self) -> list[str]:
        """Sentences below the tables."""
        stars = "* no other is above it in identity and in prompt score both. " if self.comparison.pareto() else ""
        return [
            f"{stars}Means over subjects with {LEVEL:.0%} percentile bootstrap intervals. Each interval stands for "
            "itself: of twenty differences between equals one is expected to be called higher or lower.",
            *([] if self.comparison.of_equal_subjects() else [UNEQUAL]),
            *self.comparison.notes,
            *self.notes,
        ]

    def markdown(self) -> str:
        """Tables, notes and links as Markdown."""
        parts = [f"# {self.title}"]
        for table in self.tables():
            lines = [f"**{table.title}**", "", "| " + " | ".join(table.header) + " |"]
            lines.append("|" + " --- |" * len(table.header))
            parts.append("\n".join([*lines, *("| " + " | ".join(row) + " |" for row in table.rows)]))
        parts += self.all_notes()
        if self.facts:
            parts.append("; ".join(f"{name}: {value}" for name, value in self.facts.items()) + ".")
        return "\n\n".join(parts) + "\n"

    def html(self) -> str:
        """One page with everything in it: plots as SVG, grids as data."""
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        source = resources.files("imprint.evaluation").joinpath("page.html").read_text()
        plots = {
            "Identity against prompt; the line joins those that no other beats in both":
                pareto_plot(self.comparison),
            "Identity against seconds of tuning": pareto_plot(self.comparison, horizontal="seconds", log=True),
        }  # fmt: skip
        return environment.from_string(source).render(
            title=self.title,
            plots={title: Markup(svg) for title, svg in plots.items() if svg},
            tables=self.tables(),
            grids={title: _data(file) for title, file in self.grids.items()},
            notes=self.all_notes(),
            facts=self.facts,
            runs=_runs(self.comparison.entries),
        )

    def write(self, folder: Path, stem: str) -> Path:
        """Write `<stem>.html` and `<stem>.md`; gives back the path of the page.

        Raises:
            StorageError: the disk is full or may not be written.
        """
        write_text(folder / f"{stem}.md", self.markdown())
        write_text(folder / f"{stem}.html", self.html())
        return folder / f"{stem}.html"


def _runs(entries: Sequence[Entry]) -> list[tuple[str, dict[str, str]]]:
    """Each run once, with where it is tracked."""
    found: dict[str, dict[str, str]] = {}
    for entry in entries:
        if entry.run:
            found.setdefault(entry.run, dict(entry.links))
    return list(found.items())


def _cell(metric: str, value: Estimate | None, *, sign: bool = False) -> str:
    if value is None:
        return "-"
    if metric in SHARES:
        return f"{value.mean:.0%} ({value.low:.0%} to {value.high:.0%})"
    if metric in COSTS:
        return f"{value.mean:,.0f}" if value.mean >= 100 or metric == "steps" else f"{value.mean:.3g}"
    mean = f"{value.mean:+.3f}" if sign else f"{value.mean:.3f}"
    return f"{mean} ({value.low:.3f} to {value.high:.3f})"


def _data(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
