"""One frozen model for each kind of job. A new kind is one line here and one in `imprint.jobs.RUNNERS`."""

from imprint.config.base import Section
from imprint.config.jobs.prepare import BackgroundMix, PrepareFaces

JOB_SPECS: dict[str, type[Section]] = {
    "prepare_faces": PrepareFaces,
}

__all__ = ["JOB_SPECS", "BackgroundMix", "PrepareFaces"]
