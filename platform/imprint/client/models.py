"""What goes over the wire, both ways. The service answers with these, and the client gives them back."""

from __future__ import annotations

import base64
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Wire(BaseModel):
    """Frozen; keys that a newer service may add are no error."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Asked(BaseModel):
    """A request's body; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class State(StrEnum):
    """Where a concept's tuning is."""

    STARTING = "starting"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_terminal(self) -> bool:
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELED)


class ConceptOrder(Asked):
    """Body of `POST /v1/concepts` as JSON; with multipart the same fields, and pictures as files."""

    images: list[str] = Field(min_length=1, description="Data URLs of JPEG, PNG or WebP")
    method: str | None = Field(None, description="By default what the service says")
    class_noun: str | None = Field(None, description="What the subject is, such as person")
    steps: int | None = Field(None, ge=0, description="Tuning steps; by default the method's own")
    seed: int | None = Field(None, ge=0, lt=2**31)
    prompts: list[str] = Field([], description="Drawn once it is tuned; <concept> is the subject")
    num_images: int = Field(1, ge=1, description="For each prompt")


class ImageOrder(Asked):
    """Body of `POST /v1/images`."""

    prompt: str = Field(min_length=1, description="<concept> is the subject; several are <concept-1>, <concept-2> ...")
    concepts: list[str] = Field([], description="Ids; several are of one method that merges. None: the model alone")
    negative_prompt: str = ""
    num_images: int = Field(1, ge=1)
    size: str = Field("auto", description="WIDTHxHEIGHT of the model, or auto")
    guidance_scale: float | None = Field(None, ge=0, le=50, allow_inf_nan=False)
    steps: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, lt=2**31, description="Pictures have this seed and the ones after it")
    sampler: Literal["ddim", "ddpm", "euler_ancestral"] | None = None
    response_format: Literal["b64_json", "png"] = Field("b64_json", description="png gives one picture as such")
    stream: bool = Field(False, description="Server-sent events: progress, image, succeeded or failed")


class ProblemDetails(Wire):
    """RFC 9457."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str
    title: str
    status: int
    detail: str


class Progress(Wire):
    """How far tuning is, and its last loss."""

    step: int
    steps: int
    loss: float | None = None


class Picture(Wire):
    """One picture; where the safety checker held it back there is none."""

    b64_json: str | None = Field(description="PNG in base64")
    prompt: str
    seed: int
    flagged: bool = False

    @property
    def png(self) -> bytes:
        """The file's bytes.

        Raises:
            ValueError: the safety checker held the picture back.
        """
        if self.b64_json is None:
            raise ValueError("the safety checker held this picture back")
        return base64.b64decode(self.b64_json)


class Links(Wire):
    """Where to go on."""

    self: str
    events: str
    cancel: str
    weights: str


class ConceptStatus(Wire):
    """A concept: what was asked, where it is, and what came of it."""

    id: str
    object: Literal["concept"] = "concept"
    state: State
    method: str
    class_noun: str | None
    steps: int
    seed: int
    created: float = Field(description="Seconds since 1970")
    expires: float
    progress: Progress
    images: list[Picture] = []
    error: ProblemDetails | None = None
    links: Links


class ImagesResult(Wire):
    """Answer of `POST /v1/images`, in the manner of the OpenAI Images API."""

    created: int
    data: list[Picture]


class Event(Wire):
    """One server-sent event: `progress`, `image`, `succeeded`, `failed` or `canceled`."""

    event: str
    data: dict[str, Any]
    id: int | None = None

    @property
    def is_last(self) -> bool:
        return self.event in ("succeeded", "failed", "canceled")
