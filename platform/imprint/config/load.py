"""A job file on disk becomes one validated, frozen model; or one clear ConfigError, with nothing started."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from imprint.config.base import Section
from imprint.config.jobs import JOB_SPECS
from imprint.config.overrides import apply_overrides
from imprint.config.problems import describe_problems, nearest, or_list
from imprint.config.source import Document, parse_document
from imprint.errors import ConfigError

# A job file is written by hand; a shard given by mistake must not be read whole.
_MAX_BYTES = 1 << 20

SectionT = TypeVar("SectionT", bound=Section)


@dataclass(frozen=True)
class JobFile:
    """A validated job: its `kind`, its `spec`, and the text it came from, with the overrides noted at its end."""

    path: Path
    kind: str
    spec: Section
    source: str


def load_job(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    specs: Mapping[str, type[Section]] = JOB_SPECS,
) -> JobFile:
    """Read, override and validate the job file at `path`; its key `job` picks the model out of `specs`.

    Raises:
        ConfigError: with a line `file:line: key: got ..., expected ...` for each thing wrong.
    """
    file = Path(path)
    text = _read(file)
    document = apply_overrides(parse_document(text, str(file)), overrides)
    kind = _kind(document, specs)
    spec = validate(document, specs[kind])
    notes = "".join(f"# override: {override!r}\n" for override in overrides)
    joint = "" if not notes or text.endswith("\n") else "\n"
    return JobFile(path=file, kind=kind, spec=spec, source=text + joint + notes)


def effective_data(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plain values of the job file at `path` after the overrides, without defaults; not validated.

    Raises:
        ConfigError: it cannot be read, is not a mapping in YAML, or an override is none.
    """
    file = Path(path)
    return dict(apply_overrides(parse_document(_read(file), str(file)), overrides).data)


def load_document(path: str | os.PathLike[str]) -> Document:
    """The YAML file at `path`, not validated yet.

    Raises:
        ConfigError: it cannot be read, or is not a mapping in YAML.
    """
    return parse_document(_read(Path(path)), str(path))


def validate(document: Document, model: type[SectionT]) -> SectionT:
    """Return `document` as a `model`.

    Raises:
        ConfigError: with one line for each key that does not fit.
    """
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise ConfigError("\n".join(describe_problems(document, model, error))) from error
    except ConfigError as error:
        raise ConfigError(f"{document.name}: {error}") from error


def _read(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: no such file{_similar_file(file)}") from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}; expected a YAML job file") from error
    if len(raw) > _MAX_BYTES:
        raise ConfigError(f"{file}: larger than 1 MiB; expected a YAML job file")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not text (byte {error.start} is not UTF-8); expected a YAML job file") from error


def _similar_file(file: Path) -> str:
    """The nearest YAML file beside the one that is not there, as the end of a sentence."""
    folder = file.parent if file.parent.is_dir() else Path("jobs")
    beside = {candidate.stem: candidate for candidate in folder.glob("*.yaml")}
    hint = nearest(file.stem, beside)
    return f"; did you mean {beside[hint]}?" if hint else "; expected the path of a YAML job file"


def _kind(document: Document, specs: Mapping[str, type[Section]]) -> str:
    kinds = sorted(specs)
    if "job" not in document.data:
        raise ConfigError(f"{document.name}: job: the key is missing, expected {or_list(kinds)}")
    kind = document.data["job"]
    if isinstance(kind, str) and kind in specs:
        return kind
    hint = nearest(kind, kinds) if isinstance(kind, str) else None
    end = f"; did you mean {hint!r}?" if hint else ""
    raise ConfigError(f"{document.origin(('job',))}: job: got {kind!r}, expected {or_list(kinds)}{end}")
