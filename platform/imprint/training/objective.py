"""The contract between objectives and the loop; it lives below `methods`, which write objectives."""

from imprint.objective import Batch, Objective, StepOutput

__all__ = ["Batch", "Objective", "StepOutput"]
