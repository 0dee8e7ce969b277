"""The base of every config section: frozen, strict, and told its own field names."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a job file. Unknown keys are errors; values never change after validation."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
