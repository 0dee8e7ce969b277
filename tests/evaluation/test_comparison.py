"""Comparisons whose answers are known: who is on the front, who is higher, and what a page says of it."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from imprint.cli.app import app
from imprint.errors import DataError
from imprint.evaluation.comparison import Comparison, Entry
from imprint.evaluation.page import Page
from imprint.evaluation.plots import pareto_plot
from imprint.evaluation.records import read_comparison, write_comparison

SUBJECTS = tuple(f"s{number}" for number in range(20))


def entry(name: str, identity: float, prompt: float, **more: float) -> Entry:
    noise = np.random.default_rng(0).normal(0, 0.01, len(SUBJECTS))
    noise -= noise.mean()
    scores = {"identity": identity + noise, "prompt": prompt - noise}
    scores |= {metric: np.full(len(SUBJECTS), value) for metric, value in more.items()}
    kinds = {"restyle": {"identity": scores["identity"]}}
    return Entry(name, name.upper(), SUBJECTS, scores, kinds)


def comparison() -> Comparison:
    """Fast loses to slow in identity and wins in prompt; poor loses to both."""
    entries = [entry("slow", 0.5, 0.6, seconds=100.0), entry("fast", 0.4, 0.8, seconds=5.0, copies=0.25),
               entry("poor", 0.3, 0.5, seconds=0.0)]  # fmt: skip
    return Comparison.of(entries, floor=0.0, ceiling=0.9)


def test_the_front_is_those_that_nobody_beats_in_both() -> None:
    assert comparison().pareto() == ["slow", "fast"]
    alone = Comparison.of([entry("one", 0.1, 0.1), entry("two", 0.2, 0.2)])
    assert alone.pareto() == ["two"]


def test_differences_are_paired() -> None:
    """The noise is common to all, so the differences have none."""
    found = {(one.first, one.second): one for one in comparison().differences("identity")}
    assert set(found) == {("slow", "fast"), ("slow", "poor"), ("fast", "poor")}
    assert found["slow", "fast"].estimate.mean == pytest.approx(0.1) and found["slow", "fast"].shown == "higher"
    assert found["slow", "fast"].estimate.high - found["slow", "fast"].estimate.low < 1e-9
    against = comparison().differences("identity", "fast")
    assert [(one.first, one.shown) for one in against] == [("slow", "higher"), ("poor", "lower")]
    with pytest.raises(DataError, match="no such entry"):
        comparison().differences("identity", "nobody")
    equal = Comparison.of([entry("one", 0.1, 0.1), entry("two", 0.1, 0.1)])
    assert equal.differences("identity")[0].shown == "not shown"


def test_only_subjects_that_both_have_are_compared() -> None:
    one = entry("one", 0.5, 0.5)
    values = np.full(3, 0.2)
    values[2] = np.nan
    other = Entry("other", "other", ("s5", "s6", "s7"), {"identity": values})
    (found,) = Comparison.of([one, other]).differences("identity")
    assert found.estimate.count == 2
    assert found.estimate.mean == pytest.approx(one.scores["identity"][5:7].mean() - 0.2)
    stranger = dataclasses.replace(other, subjects=("x", "y", "z"))
    assert Comparison.of([one, stranger]).differences("identity") == []


def test_nobody_is_beaten_by_easier_subjects() -> None:
    """The good one drew all, the poor one only those that are easy for both."""
    good = entry("good", 0.4, 0.6)
    easy = np.asarray([0.8, 0.8, 0.0])
    good = dataclasses.replace(good, scores={name: np.r_[easy[:2] + 0.05, values[2:]] for name, values in
                                             good.scores.items()})  # fmt: skip
    poor = Entry("poor", "POOR", SUBJECTS[:3], {"identity": easy, "prompt": easy})
    assert good.estimate("identity").mean < poor.estimate("identity").mean  # type: ignore[union-attr]
    both = Comparison.of([good, poor])
    assert both.pareto() == ["good"]
    page = Page("Unequal", both)
    scores = page.tables()[0]
    assert scores.header[:2] == ("what", "subjects") and [row[1] for row in scores.rows] == ["20", "3"]
    assert "Not all are of the same subjects" in page.markdown()
    assert "subjects" not in Page("Equal", comparison()).tables()[0].header
    assert "Not all are of the same subjects" not in Page("Equal", comparison()).markdown()


def test_runs_that_were_not_made_alike_are_told_apart(tmp_path: Path) -> None:
    for run, count in (("one", 1), ("two", 4), ("three", 1)):
        write_comparison(tmp_path / run / "results.json", comparison(),
                         {"protocol": "faces", "pictures a prompt": count})  # fmt: skip
    (said,) = read_comparison([tmp_path / "one", tmp_path / "two"]).notes
    assert "pictures a prompt 1 in one, 4 in two" in said
    assert said in Page("Two", read_comparison([tmp_path / "one", tmp_path / "two"])).markdown()
    assert read_comparison([tmp_path / "one", tmp_path / "three"]).notes == ()


def test_names_must_differ() -> None:
    with pytest.raises(DataError, match="different names"):
        Comparison.of([entry("one", 0.1, 0.1)] * 2)


def test_the_plot_has_a_point_and_intervals_for_each() -> None:
    root = ElementTree.fromstring(pareto_plot(comparison()))
    text = "".join(root.itertext())
    assert root.tag.endswith("svg") and all(f"{n}  {name}" in text for n, name in ((1, "SLOW"), (3, "POOR")))
    assert "another real picture" in text and pareto_plot(comparison()) == pareto_plot(comparison())
    costs = "".join(ElementTree.fromstring(pareto_plot(comparison(), horizontal="seconds", log=True)).itertext())
    assert "FAST" in costs and "POOR" not in costs  # what costs nothing has no place on a logarithmic axis
    assert pareto_plot(comparison(), horizontal="DINO") == ""


class Tags(HTMLParser):
    """Counts of tags, what they link to, and whether all that opens is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.links += [found["href"] or ""] if tag == "a" else []
        self.sources += [found["src"] or ""] if tag == "img" else []
        if tag not in ("meta", "img", "path", "use", "defs") and not self.get_starttag_text().endswith("/>"):  # type: ignore[union-attr]
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass


def test_the_page_needs_no_other_file(tmp_path: Path) -> None:
    grid = tmp_path / "grid.png"
    Image.new("RGB", (8, 8)).save(grid)
    hostile = dataclasses.replace(
        entry("bad", 0.2, 0.2), label="<script>alert(1)</script>", run="runs/bad",
        links={"MLflow": "http://mlflow:5000/#/experiments/1/runs/abc"},
    )  # fmt: skip
    page = Page("A <b>title</b>", Comparison.of([*comparison().entries, hostile]), None, {"Some": grid}, {"seconds": 3})
    file = page.write(tmp_path, "report")
    text = file.read_text()
    tags = Tags()
    tags.feed(text)
    assert "<script" not in text and "A &lt;b&gt;" in text
    assert tags.links == ["http://mlflow:5000/#/experiments/1/runs/abc"]
    assert len(tags.sources) == 1 and tags.sources[0].startswith("data:image/png;base64,")
    markdown = file.with_suffix(".md").read_text()
    assert "| 1 SLOW * | 0.5" in markdown and "| 3 POOR | 0.3" in markdown
    assert "| 25% (25% to 25%) |" in markdown and "| SLOW minus FAST | +0.100" in markdown
    assert "seconds: 3." in markdown


def test_a_comparison_comes_back_as_it_was_written(tmp_path: Path) -> None:
    before = comparison()
    lacking = dict(before.entries[2].scores) | {"kept": np.asarray([np.nan] * 19 + [0.5])}
    before = Comparison((*before.entries[:2], dataclasses.replace(before.entries[2], scores=lacking)), 0.0, 0.9)
    write_comparison(tmp_path / "run" / "results.json", before, {})
    (tmp_path / "run" / "mlflow.json").write_text('{"run_id": "r1", "uri": "https://m/", "experiment_id": "7"}')
    after = read_comparison([tmp_path / "run"])
    assert [one.name for one in after.entries] == ["slow", "fast", "poor"]
    assert (after.floor, after.ceiling) == (0.0, 0.9)
    assert after.entries[0].links == {"MLflow": "https://m/#/experiments/7/runs/r1"}
    for one, other in zip(before.entries, after.entries, strict=True):
        for metric, values in one.scores.items():
            np.testing.assert_allclose(other.scores[metric], values, atol=1e-5)
    json.loads((tmp_path / "run" / "results.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def evaluation(folder: Path, lift: float) -> Path:
    """The results of an evaluation of one method, as `jobs/evaluate.py` leaves them."""
    values = [0.1, 0.2, 0.3]
    columns = ("class_noun", "encoder", "tuned", "new_scene", "encoder_scene", "class_noun_scene")
    each = {name: [value + lift * (name in ("tuned", "new_scene")) for value in values] for name in columns}
    record = {
        "identity": {name: {"mean": 0.0} for name in ("another_person", "real")},
        "labels": {"tuned": "after 15 steps", "encoder": "encoder alone", "class_noun": "class noun only",
                   "new_scene": "x", "encoder_scene": "y", "class_noun_scene": "z"},
        "tuning_seconds": {"mean": 9.0}, "subjects": ["a", "b", "c"],
        "per_subject": {
            "identity": each, "recognized": each, "kept": each,
            "obeyed": {name: {"glasses": [1, 1, 1], "background": [0, 1, 1]} for name in columns[3:]},
        },
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(record))
    return folder


def test_runs_of_one_method_are_compared_by_the_command(tmp_path: Path) -> None:
    runs = [evaluation(tmp_path / name, lift) for name, lift in (("old", 0.1), ("new", 0.4))]
    found = read_comparison(runs)
    assert [one.name for one in found.entries] == [
        "old/tuned", "old/encoder", "old/class_noun", "new/tuned", "new/encoder", "new/class_noun",
    ]  # fmt: skip
    np.testing.assert_allclose(found.entries[0].scores["prompt"], [0.5, 1, 1])
    np.testing.assert_allclose(found.entries[3].scores["identity_plain"], [0.5, 0.6, 0.7])
    done = CliRunner().invoke(
        app, ["compare", *map(str, runs), "--out", str(tmp_path / "page.html"), "--against", "old/tuned"]
    )
    assert done.exit_code == 0, done.output
    text = (tmp_path / "page.md").read_text()
    assert "| new/after 15 steps minus old/after 15 steps | +0.300" in text and "| higher | 3 |" in text
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = CliRunner().invoke(app, ["compare", str(tmp_path / "empty"), "--out", str(tmp_path / "page.html")])
    assert done.exit_code == 1 and "there is no results.json" in done.output
    assert not (tmp_path / "page.html").exists()
    (tmp_path / "empty" / "results.json").write_text("[]")
    with pytest.raises(DataError, match="is not of an evaluation"):
        read_comparison([tmp_path / "empty"])
