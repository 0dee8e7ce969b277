"""The papers' ablations: every row of the table in docs/methods.md is a key that exists and changes something."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from imprint.cli.personalize import tune_spec
from imprint.config.base import Section
from imprint.config.load import load_job, validate
from imprint.config.methods import SampleSpec
from imprint.config.overrides import apply_overrides
from imprint.config.source import Document

ROOT = Path(__file__).resolve().parents[2]


class Row(NamedTuple):
    method: str
    without: str
    place: str
    key: str


def rows() -> list[Row]:
    """The rows of the section's table, without code marks."""
    section = (ROOT / "docs" / "methods.md").read_text().split("\n## Ablations\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ") and "---" not in line][1:]
    return [Row(*(cell.strip().strip("`") for cell in line.strip("|").split("|"))) for line in lines]


def spec_of(place: str, *overrides: str) -> Section:
    if place.startswith("jobs/"):
        return load_job(ROOT / place, overrides).spec
    if place == "sample":
        document = apply_overrides(Document(name="options", data={}, origins={}), overrides)
        return validate(document, SampleSpec)
    method = re.fullmatch(r"personalize (\w+)", place)
    assert method is not None, place
    # Ablations of super-resolution are of a concept that has it.
    second = ["super_resolution.model=imprint-tiny-x4"] if method[1] == "dreambooth" else []
    return tune_spec(method[1], None, second, overrides)


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.method}-{row.key}")
def test_a_switch_of_the_table_changes_its_spec(row: Row) -> None:
    assert spec_of(row.place, row.key) != spec_of(row.place), f"{row.key} is what {row.place} says anyway"


def test_every_paper_has_its_ablations() -> None:
    """As the papers' own sections have them; a method that lost a row would go unnoticed otherwise."""
    found: dict[str, int] = {}
    for row in rows():
        found[row.method] = found.get(row.method, 0) + 1
    assert found == {"E4T": 6, "Domain-agnostic": 4, "ProFusion": 5, "Taming": 3, "DreamBooth": 5}
