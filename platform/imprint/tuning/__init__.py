"""Few-step personalization and the Concept artifact."""

from imprint.tuning.concept import Concept
from imprint.tuning.personalize import personalize, sample_concept

__all__ = ["Concept", "personalize", "sample_concept"]
