"""The field's metrics in an evaluation's report: which pictures they are of, and the table that shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from imprint.config.jobs.evaluate import Evaluate
from imprint.config.jobs.metrics import MetricsSpec
from imprint.evaluation.attributes import AttributeReader
from imprint.evaluation.columns import COLUMNS, Drawn, to_pixels
from imprint.evaluation.field_scores import Drawings, FieldNetworks, FieldScores, Real, field_scores
from imprint.evaluation.scoring import rows_of
from imprint.evaluation.statistics import Estimate, bootstrap_mean
from imprint.evaluation.subjects import Subject

METRICS = ("CLIP-I", "DINO", "CLIP-T", "DIV", "copies")
"""Columns of the table, as far as their networks are there."""


@dataclass(frozen=True)
class FieldReport:
    """Estimates over subjects by metric and column; KID is mean and deviation over subsets, by column.

    `values` are what the estimates are of, one for each subject.
    """

    each: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    kid: dict[str, tuple[float, float]] = field(default_factory=dict)
    copy_threshold: float | None = None
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    @classmethod
    def of(cls, scores: FieldScores) -> FieldReport:
        """The scores with confidence intervals."""
        each = {m: {name: bootstrap_mean(v) for name, v in values.items()} for m, values in scores.each.items()}
        plain = {m: {name: [round(float(v), 5) for v in column] for name, column in values.items()}
                 for m, values in scores.each.items()}  # fmt: skip
        return cls(each, {name: (spread.mean, spread.deviation) for name, spread in scores.kid.items()},
                   scores.copy_threshold, plain)  # fmt: skip

    def header(self) -> tuple[str, ...]:
        """Above the table's columns."""
        return ("what is shown", *self._metrics(), *(("KID",) if self.kid else ()))

    def rows(self, labels: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
        """A row for each column of the evaluation."""
        metrics = self._metrics()
        return tuple(
            (labels[name], *(_cell(metric, self.each[metric].get(name)) for metric in metrics),
             *((f"{self.kid[name][0]:.3f} ± {self.kid[name][1]:.3f}",) if self.kid else ()))
            for name in self.each["copies"]
        )  # fmt: skip

    def metrics(self) -> dict[str, float]:
        """Single numbers for a tracking server."""
        flat = {f"{m}/{name}": value.mean for m, values in self.each.items() for name, value in values.items()}
        return flat | {f"KID/{name}": mean for name, (mean, _) in self.kid.items()}

    def _metrics(self) -> list[str]:
        return [metric for metric in METRICS if metric in self.each]


def _cell(metric: str, value: Estimate | None) -> str:
    if value is None:
        return "-"
    if metric == "copies":
        return f"{value.mean:.0%} ({value.low:.0%} to {value.high:.0%})"
    return f"{value.mean:.3f} ({value.low:.3f} to {value.high:.3f})"


def report_of(
    spec: Evaluate,
    metrics: MetricsSpec,
    subjects: Sequence[Subject],
    drawn: Sequence[Drawn],
    reader: AttributeReader | None,
) -> FieldReport:
    """All of the field's metrics of an evaluation, and of its rows of real pictures.

    Raises:
        BackboneError: a network cannot be loaded.
        ConfigError: none is named.
    """
    networks = FieldNetworks.load(metrics)
    real = Real(
        to_pixels_of([subject.reference for subject in subjects]),
        [to_pixels_of(subject.targets) for subject in subjects],
    )
    scenes = {column.name for column in COLUMNS if column.scene}
    columns = {}
    for name, images in rows_of(subjects, drawn).items():
        flat = to_pixels(images.reshape(-1, *images.shape[2:]))
        prompts = [in_words(spec, subject, scene=name in scenes) for subject in subjects]
        columns[name] = Drawings(flat.view(len(subjects), -1, *flat.shape[1:]), prompts)
    masks = reader.masks if reader is not None else None
    return FieldReport.of(field_scores(networks, real, columns, metrics, masks=masks))


def in_words(spec: Evaluate, subject: Subject, *, scene: bool) -> str:
    """What a picture was asked to show, with the class noun in the subject's place."""
    template = spec.scenes.template if scene else spec.prompt
    return template.format(f"a {subject.reference.noun}" if subject.reference.noun else "the subject", **subject.scene)


def to_pixels_of(pictures: Sequence) -> torch.Tensor:
    """Real pictures in [-1, 1]."""
    return torch.cat([to_pixels(picture.image[None]) for picture in pictures])
