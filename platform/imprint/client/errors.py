"""What the client raises."""

from __future__ import annotations

from imprint.client.models import ConceptStatus, ProblemDetails
from imprint.errors import ImprintError


class ServiceError(ImprintError):
    """The service answered with a problem; `problem` is what it said."""

    def __init__(self, message: str, *, problem: ProblemDetails, retry_after_s: float | None = None) -> None:
        super().__init__(message, problem=problem, retry_after_s=retry_after_s)

    def __str__(self) -> str:
        return self.message

    @property
    def problem(self) -> ProblemDetails:
        return self.where["problem"]

    @property
    def status(self) -> int:
        return self.problem.status

    @property
    def retry_after_s(self) -> float | None:
        """When to try again, where the service said so."""
        return self.where["retry_after_s"]


class ConceptFailed(ImprintError):
    """A concept did not come to be; `concept` is its last status."""

    def __init__(self, message: str, *, concept: ConceptStatus) -> None:
        super().__init__(message, concept=concept)

    def __str__(self) -> str:
        return self.message

    @property
    def concept(self) -> ConceptStatus:
        return self.where["concept"]
