"""The JSON schema of job files, which editors use to complete and check them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from imprint.config.base import Section
from imprint.config.jobs import JOB_SPECS
from imprint.config.problems import nearest, or_list
from imprint.errors import ConfigError

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def job_schema(kind: str | None = None, specs: Mapping[str, type[Section]] = JOB_SPECS) -> dict[str, Any]:
    """Return the JSON schema of job files of `kind`, or of every kind as alternatives.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind is not None:
        if kind not in specs:
            hint = nearest(kind, specs)
            end = f"; did you mean {hint!r}?" if hint else ""
            raise ConfigError(f"schema of job kind {kind!r}: expected {or_list(sorted(specs))}{end}")
        return {"$schema": DIALECT, **specs[kind].model_json_schema()}
    references, definitions = models_json_schema([(specs[name], "validation") for name in sorted(specs)])
    return {
        "$schema": DIALECT,
        "title": "An Imprint job file",
        "anyOf": [references[(specs[name], "validation")] for name in sorted(specs)],
        "$defs": definitions["$defs"],
    }
