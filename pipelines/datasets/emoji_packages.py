"""The npm packages that emoji are read from: fetched by name through the npm client, pinned by hash, never unpacked.

The sets of Apple and Facebook are left out, since their art is not free, and OpenMoji, since it is share-alike.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from imprint.errors import DataError
from imprint.pipelines.writer import storage_errors

# The largest file that is read, the 3 MB of an icon set, with room; a package that holds more is not the pinned one.
_MAX_MEMBER_BYTES = 16 * 2**20
_FETCH_SECONDS = 600


@dataclass(frozen=True)
class NpmPackage:
    """A pinned package. `sha256` is that of the tarball, `license` that of the art in it."""

    name: str
    version: str
    sha256: str
    license: str

    @property
    def file(self) -> str:
        """The name that `npm pack` gives to the tarball."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


NAMES = NpmPackage(
    "emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a", "MIT"
)

STYLES: dict[str, NpmPackage] = {
    "noto": NpmPackage(
        "emoji-datasource-google",
        "16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        "Apache-2.0",
    ),
    "twemoji": NpmPackage(
        "emoji-datasource-twitter",
        "16.0.0",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        "CC-BY-4.0",
    ),
    "fluent 3d": NpmPackage(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "MIT",
    ),
    "fluent flat": NpmPackage(
        "@lobehub/fluent-emoji-flat",
        "1.1.0",
        "8f9113c027c7c20eced0070354715a4093a459b8bef6332b91d45f38c9bdb147",
        "MIT",
    ),
    "emojione": NpmPackage(
        "@iconify-json/emojione",
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "CC-BY-4.0",
    ),
    "fxemoji": NpmPackage(
        "@iconify-json/fxemoji",
        "1.2.2",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        "Apache-2.0",
    ),
}


def fetch_package(package: NpmPackage, cache_dir: Path) -> Path:
    """The tarball of `package` in `cache_dir`, fetched with `npm pack` if it is not there yet.

    Raises:
        DataError: npm is missing, cannot get the package, or got something else than the pinned bytes.
        StorageError: the cache cannot be written.
    """
    target = cache_dir / package.file
    with storage_errors("reading the cache of emoji packages", target):
        if target.is_file() and _sha256(target) == package.sha256:
            return target
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".fetch-") as scratch:
            got = _npm_pack(package, Path(scratch))
            digest = _sha256(got)
            if digest != package.sha256:
                raise DataError(
                    f"fetching {package.name} {package.version}: the tarball's SHA-256 is {digest}, "
                    f"expected {package.sha256}; ask where your npm client gets its packages from"
                )
            os.replace(got, target)
    return target


def read_members(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The regular files of a tarball whose name, less the leading `package/`, is `wanted`.

    Raises:
        DataError: the tarball cannot be read, or a file in it is larger than any of the pinned ones.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, mode="r|gz") as tar:
            for member in tar:
                name = member.name.removeprefix("package/")
                if not member.isreg() or not wanted(name):
                    continue
                if member.size > _MAX_MEMBER_BYTES or member.issparse():
                    raise DataError(
                        f"reading an emoji package: {name} takes {member.size} bytes, "
                        f"expected at most {_MAX_MEMBER_BYTES}; remove the file from the cache and run again",
                        file=str(path),
                    )
                content = tar.extractfile(member)
                if content is not None:
                    found[name] = content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(
            f"reading an emoji package: {error}; remove the file from the cache and run again", file=str(path)
        ) from error
    return found


def _npm_pack(package: NpmPackage, folder: Path) -> Path:
    npm = shutil.which("npm")
    doing = f"fetching {package.name} {package.version} for the objects data set"
    remedy = "the faces data set (jobs/prepare_faces.yaml) needs no npm"
    if npm is None:
        raise DataError(f"{doing}: npm is not installed; install Node.js with npm, or go on without: {remedy}")
    command = [npm, "pack", f"{package.name}@{package.version}", "--silent", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{doing}: npm gave nothing in {_FETCH_SECONDS} s; try again later, or: {remedy}") from error
    path = folder / package.file
    if done.returncode != 0 or not path.is_file():
        lines = (done.stderr or done.stdout).strip().splitlines()
        reason = lines[-1] if lines else "no message"
        raise DataError(f"{doing}: npm pack ended with {done.returncode} ({reason}); check the network, or: {remedy}")
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
