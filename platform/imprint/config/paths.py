"""Where a relative path in a job file points."""

from __future__ import annotations

import os
import re
from pathlib import Path

import imprint
from imprint.errors import ConfigError

ROOT_VARIABLE = "IMPRINT_ROOT"

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*(::|://)")
# Ray unpacks a job's --working-dir into .../working_dir_files/_ray_pkg_<hash> and deletes it when the job is over.
_RAY_UPLOAD = "_ray_pkg_"


def is_url(path: str | os.PathLike[str]) -> bool:
    """Say whether `path` names a remote place (`s3://...`, `simplecache::s3://...`) and not a local file."""
    return bool(_URL.match(os.fspath(path)))


def is_shipped(name: str) -> bool:
    """Say whether `name` is that of weights inside the package."""
    return shipped_folder(name) is not None


def shipped_folder(name: str) -> Path | None:
    """The folder of weights inside the package that have that name, without loading what would read them."""
    folder = Path(imprint.__file__).parent / "weights" / name
    return folder if Path(name).name == name and folder.is_dir() else None


def project_root() -> Path:
    """Return the folder that relative paths of job files start from.

    In order: the environment variable IMPRINT_ROOT; the current directory; and where that is Ray's temporary copy of
    a job's working directory, which holds no data and does not outlive the job, the checkout Imprint is installed from.

    Raises:
        ConfigError: the job runs in Ray's temporary copy and neither of the others is there.
    """
    if chosen := os.environ.get(ROOT_VARIABLE):
        return Path(chosen).expanduser().resolve()
    current = Path.cwd()
    if not any(part.startswith(_RAY_UPLOAD) for part in current.parts):
        return current
    checkout = Path(imprint.__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "jobs").is_dir():
        return checkout
    raise ConfigError(
        f"a relative path in a job file: the job runs in Ray's temporary folder {current}, which is deleted after it; "
        f"set {ROOT_VARIABLE} where the cluster is started, or write absolute paths or URLs"
    )


def resolve_path(path: str | os.PathLike[str]) -> str:
    """Return `path` as an absolute path, so that it still points there after a worker changed its directory.

    URLs stay as they are; `~` is the home folder; relative paths start from `project_root()`.
    """
    text = os.fspath(path)
    if is_url(text):
        return text
    expanded = Path(text).expanduser()
    if expanded.is_absolute():
        return os.path.normpath(expanded)
    return os.path.normpath(project_root() / expanded)


def path_or_name(name: str) -> str:
    """A model's path if something is there, else the name as it is (embedded, or a hub id)."""
    path = resolve_path(name)
    return path if Path(path).exists() else name
