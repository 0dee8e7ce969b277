"""Relative paths start from one place, also in a job that runs in Ray's temporary copy of the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

import imprint
from imprint.config.paths import is_url, project_root, resolve_path
from imprint.errors import ConfigError

UPLOAD = "runtime_resources/working_dir_files/_ray_pkg_0123abcd"


def test_relative_paths_start_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMPRINT_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert resolve_path("data/../runs") == str(tmp_path / "runs")


def test_the_variable_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPRINT_ROOT", str(tmp_path / "shared"))
    assert resolve_path("data") == str(tmp_path / "shared" / "data")


def test_absolute_paths_home_and_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert resolve_path("/data/a.tar") == "/data/a.tar"
    assert resolve_path("~/a.tar") == "/home/someone/a.tar"
    for url in ("s3://bucket/{000..009}.tar", "simplecache::s3://bucket/a.tar", "file:///a.tar"):
        assert is_url(url)
        assert resolve_path(url) == url
    assert not is_url("data/a:b.tar")


def test_a_job_in_rays_copy_uses_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMPRINT_ROOT", raising=False)
    upload = tmp_path / UPLOAD
    upload.mkdir(parents=True)
    monkeypatch.chdir(upload)
    assert project_root() == Path(__file__).resolve().parents[2]


def test_a_job_in_rays_copy_with_no_checkout_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMPRINT_ROOT", raising=False)
    upload = tmp_path / UPLOAD
    upload.mkdir(parents=True)
    monkeypatch.chdir(upload)
    monkeypatch.setattr(imprint, "__file__", str(tmp_path / "site-packages" / "imprint" / "__init__.py"))
    with pytest.raises(ConfigError, match="set IMPRINT_ROOT where the cluster is started"):
        resolve_path("data/faces-64")
