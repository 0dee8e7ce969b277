"""The parts of E4T around one backbone, and the two things that are done with them: condition and modulate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from imprint.backbone import Backbone, TextConditioning, TokenReplacements
from imprint.config.methods import E4TSpec
from imprint.features.clip import ClipFeatures
from imprint.features.unet_taps import UNetTaps
from imprint.methods.e4t.encoder import E4TEncoder, concept_embedding
from imprint.methods.e4t.offsets import WeightOffsets


@dataclass(frozen=True, eq=False)
class E4TParts:
    """A frozen backbone and CLIP with an encoder and, where the spec has them, weight offsets.

    `clip` is None where its features are already at hand, as in a saved concept.
    """

    backbone: Backbone
    spec: E4TSpec
    encoder: E4TEncoder
    offsets: WeightOffsets | None
    clip: ClipFeatures | None
    taps: UNetTaps | None
    domain: tuple[Float[Tensor, "k width"], ...]

    @classmethod
    def build(
        cls, backbone: Backbone, spec: E4TSpec, clip: ClipFeatures, *, domain_word: str | None = None
    ) -> E4TParts:
        """Freshly initialised parts that fit a backbone, on its device.

        Raises:
            BackboneError: the domain word has no tokens.
        """
        return cls.shaped(backbone, spec, len(clip.layer_indices), clip.width, clip=clip, domain_word=domain_word)

    @classmethod
    def shaped(
        cls,
        backbone: Backbone,
        spec: E4TSpec,
        clip_layers: int,
        clip_width: int,
        *,
        clip: ClipFeatures | None = None,
        domain_word: str | None = None,
        with_offsets: bool = True,
    ) -> E4TParts:
        """As `build`, from the shape of the CLIP features alone."""
        taps = UNetTaps(backbone) if spec.encoder.refinement else None
        encoder = E4TEncoder(
            spec.encoder,
            clip_layers=clip_layers,
            clip_width=clip_width,
            tap_widths=taps.widths if taps else (),
            embedding_widths=backbone.embedding_widths,
        )
        offsets = WeightOffsets.of(backbone, spec.offsets) if spec.offsets.enabled and with_offsets else None
        return cls(
            backbone=backbone,
            spec=spec,
            encoder=encoder.to(backbone.device),
            offsets=offsets.to(backbone.device) if offsets is not None else None,
            clip=clip,
            taps=taps,
            domain=backbone.word_embedding(domain_word or spec.domain_word),
        )

    def condition(
        self,
        clip_features: Sequence[Float[Tensor, "b clip_width"]],
        xt: Float[Tensor, "b c h w"],
        timesteps: Int[Tensor, "b"],
        prompts: Sequence[str],
    ) -> tuple[TextConditioning, tuple[Float[Tensor, "b width"], ...]]:
        """The conditioning of each prompt with e_c for `<concept>`, and E(I_c); both carry gradients."""
        taps = self.taps(xt, timesteps) if self.taps is not None else None
        offsets = self.encoder(clip_features, taps)
        vectors = tuple(
            concept_embedding(domain.float(), offset, self.spec.encoder.scale)
            for domain, offset in zip(self.domain, offsets, strict=True)
        )
        return self.backbone.encode_text(prompts, TokenReplacements(vectors)), offsets

    def modulate(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """W' of the offset projections, from W_0 in `base`; empty without offsets."""
        return self.offsets(base) if self.offsets is not None else {}

    def networks(self) -> dict[str, nn.Module]:
        """The encoder, and the offsets where there are any."""
        return {"encoder": self.encoder} | ({} if self.offsets is None else {"offsets": self.offsets})

    def base_weights(self) -> dict[str, Tensor]:
        """W_0: the backbone's own projections that are offset."""
        if self.offsets is None:
            return {}
        wanted = set(self.offsets.names)
        return {name: value for name, value in self.backbone.unet.named_parameters() if name in wanted}
