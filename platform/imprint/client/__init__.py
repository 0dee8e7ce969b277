"""A client of the service: teach it a subject, draw it in new scenes.

with Client("http://127.0.0.1:8000", key) as client:
    concept = client.create_concept(["me.jpg"], class_noun="person")
    for picture in client.create_images("a photo of <concept> on a beach", [concept.id], num_images=4).data:
        Path(f"{picture.seed}.png").write_bytes(picture.png)
"""

from imprint.client.asynchronous import AsyncClient
from imprint.client.errors import ConceptFailed, ServiceError
from imprint.client.models import (
    ConceptOrder,
    ConceptStatus,
    Event,
    ImageOrder,
    ImagesResult,
    Links,
    Picture,
    ProblemDetails,
    Progress,
    State,
)
from imprint.client.synchronous import Client

__all__ = [
    "AsyncClient",
    "Client",
    "ConceptFailed",
    "ConceptOrder",
    "ConceptStatus",
    "Event",
    "ImageOrder",
    "ImagesResult",
    "Links",
    "Picture",
    "ProblemDetails",
    "Progress",
    "ServiceError",
    "State",
]
