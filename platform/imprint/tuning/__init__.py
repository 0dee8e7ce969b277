"""Few-step personalization and the Concept artifact."""

from imprint.tuning.concept import Concept
from imprint.tuning.personalize import check_encoder, merge_concepts, personalize, sample_concept

__all__ = ["Concept", "check_encoder", "merge_concepts", "personalize", "sample_concept"]
