"""`imprint data inspect` and `verify`: what they print, the page, exit codes."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_shards import write_shards
from typer.testing import CliRunner

from imprint.cli.app import app
from imprint.pipelines.contact_sheet import overlay_mask, render_sheet
from imprint.pipelines.inspection import Shown
from imprint.pipelines.writer import Sample

runner = CliRunner()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "faces", [3, 4])


def test_inspect_prints_what_is_there(shards: Path, tmp_path: Path) -> None:
    (shards / "quarantine").mkdir()
    bad = {"shard": "x", "key": "k", "offset": 1, "reason": "corrupt-picture", "detail": "cut"}
    (shards / "quarantine" / "x.jsonl").write_text(json.dumps(bad) + "\n")
    (shards / "report.json").write_text('{"filtered": {"too-small": 2}}')
    page = tmp_path / "page.html"
    result = runner.invoke(app, ["data", "inspect", str(shards), "--html", str(page), "--pictures", "3"])
    assert result.exit_code == 0, result.output
    lines = [re.split(r"  +", line.strip(), maxsplit=1) for line in result.stdout.splitlines()]
    facts = {parts[0]: parts[1] for parts in lines if len(parts) == 2}
    size = sum(path.stat().st_size for path in shards.glob("*.tar"))
    assert facts["shards"] == f"2 ({size / 1e6:.1f} MB)" and facts["samples"] == "7"
    assert facts["parts"] == "png 7, mask.png 7, txt 7, json 7"
    assert facts["sizes"] == "shorter side 16 to 16 px, median 16; 16 x 16 7"
    assert facts["captions"] == "7 of 7; 2 to 2 words, median 2"
    assert facts["masks"] == "7 of 7; 50 to 50 % of the picture, median 50"
    assert facts["identities"] == "4, with 1 to 2 samples each"
    assert (facts["bad samples"], facts["quarantined"], facts["filtered"]) == (
        "none", "corrupt-picture 1", "too-small 2"
    )  # fmt: skip
    assert f"3 samples on {page}" in result.stdout


def test_inspect_counts_bad_samples_and_shows_why(tmp_path: Path) -> None:
    def change(number: int, one: Sample) -> Sample:
        return Sample(one.key, {"png": b"no picture"}) if number == 1 else one

    shards = write_shards(tmp_path / "faces", [3], change)
    page = tmp_path / "page.html"
    result = runner.invoke(app, ["data", "inspect", str(shards), "--html", str(page)])
    assert result.exit_code == 0, result.output
    assert re.search(r"bad samples +corrupt-picture 1", result.stdout)
    assert "decoding a picture" in page.read_text()


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("src", "href"):
                (self.sources if tag == "img" else self.links).append(value or "")


def test_the_page_needs_nothing_else_and_shows_the_pictures(shards: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert runner.invoke(app, ["data", "inspect", str(shards), "--html", str(page), "--pictures", "2"]).exit_code == 0
    parsed = Page(page.read_text())
    assert parsed.links == [] and len(parsed.sources) == 4  # a picture and a mask for each sample
    pictures = []
    for source in parsed.sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            pictures.append(np.asarray(picture.convert("RGB")).astype(int))
    assert abs(pictures[0][0, 0, 0] - 0) <= 3 and abs(pictures[2][0, 0, 0] - 6) <= 3  # the first sample and the last
    assert "caption 0" in page.read_text() and "caption 6" in page.read_text()


def test_captions_cannot_write_into_the_page() -> None:
    evil = '<script>alert("x")</script>'
    shown = Shown(evil, evil, np.zeros((4, 4, 3), np.uint8), None, evil, {"identity": evil})
    text = render_sheet(evil, [(evil, evil)], [shown, Shown("k", "s", None, None, "", {}, evil)])
    assert "<script" not in text and text.count("&lt;script&gt;") == 9


def test_the_mask_keeps_the_subject_and_pales_the_ground() -> None:
    image = np.full((2, 2, 3), (10, 200, 30), np.uint8)
    mask = np.array([[255, 255], [0, 0]], np.uint8)
    found = overlay_mask(image, mask).astype(int)
    assert (found[1] == round(80 * 0.35 + 255 * 0.65)).all()  # grey: the mean of the colours, pale
    assert found[0, 0, 1] > found[0, 0, 0] > 10  # still green, with some red


def test_no_pictures_no_page(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert runner.invoke(app, ["data", "inspect", str(shards), "--pictures", "0"]).exit_code == 0
    assert list(tmp_path.glob("*.html")) == []
    assert runner.invoke(app, ["data", "inspect", str(shards)]).exit_code == 0
    assert [page.name for page in tmp_path.glob("*.html")] == ["faces-contact-sheet.html"]


def test_whole_shards_verify(shards: Path) -> None:
    result = runner.invoke(app, ["data", "verify", str(shards)])
    assert result.exit_code == 0 and "2 shards are as their manifest says" in result.stdout


def test_each_fault_is_a_line_and_the_exit_code_is_1(shards: Path) -> None:
    first, second = sorted(shards.glob("*.tar"))
    changed = bytearray(first.read_bytes())
    changed[600] ^= 1
    first.write_bytes(changed)
    second.write_bytes(second.read_bytes()[:-512])
    (shards / "train-000007.tar").write_bytes(b"")
    result = runner.invoke(app, ["data", "verify", str(shards)])
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    assert str(first) in lines[1] and "sha256" in lines[1]
    assert str(second) in lines[2] and "bytes and its manifest says" in lines[2]
    assert lines[0] == f"{shards / 'train-000007.tar'}: manifest.json does not list it"


def test_a_shard_that_is_gone_and_a_wrong_count_are_faults(shards: Path) -> None:
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["shards"][0]["samples"] = 5
    (shards / "manifest.json").write_text(json.dumps(manifest))
    (shards / "train-000001.tar").unlink()
    result = runner.invoke(app, ["data", "verify", str(shards)])
    assert result.exit_code == 1
    assert "it holds 3 samples and its manifest says 5" in result.stdout.splitlines()[0]
    assert "nothing is there" in result.stdout.splitlines()[1]


def test_shards_without_a_manifest_cannot_be_verified(shards: Path) -> None:
    (shards / "manifest.json").unlink()
    result = runner.invoke(app, ["data", "verify", str(shards / "train-000000.tar")])
    assert result.exit_code == 1 and "no manifest.json beside it lists it" in result.stdout
    result = runner.invoke(app, ["data", "verify", str(shards)])
    assert result.exit_code == 1 and "is not a folder with a manifest.json" in result.stderr


def test_the_core_reads_shards_without_ray(shards: Path) -> None:
    code = (
        "import sys; from imprint.cli.app import app; "
        "app(sys.argv[1:], standalone_mode=False); print('ray' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "data", "verify", str(shards)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"
