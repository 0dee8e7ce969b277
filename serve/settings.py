"""What an operator may say of the service; `serve/config.yaml` holds these keys under `args`."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from imprint.config.base import Section
from imprint.config.methods import TUNE_SPECS, FewStepSpec, SampleSpec

KEY_VARIABLE = "IMPRINT_STORE_KEY"
TENANT_PATTERN = r"^[a-z0-9][a-z0-9-]{0,39}$"


class StoreSpec(Section):
    """Where pictures and concepts live: in memory only, or sealed with AES-256-GCM."""

    url: str = Field("memory", min_length=1, description="'memory', a folder, or any URL of fsspec, such as s3://b/c")
    key_file: str | None = Field(
        None, description=f"32 bytes in base64; by default the variable {KEY_VARIABLE}. 'memory' makes its own"
    )
    ttl_s: float = Field(3600, gt=0, description="Pictures, concepts and kept answers are gone after this")
    sweep_s: float = Field(10, gt=0, description="How often what has expired is looked for")
    max_bytes: int = Field(8 << 30, gt=0, description="'memory' holds no more than this")


class LimitsSpec(Section):
    """What one request, one tenant and the whole service may ask for."""

    body_bytes: int = Field(24 << 20, gt=0)
    pictures: int = Field(8, ge=1, description="In one upload")
    uploads: int = Field(32, ge=1, description="Being read at a time by one ingress; more are a 503")
    uploads_per_tenant: int = Field(8, ge=1, description="The same of one tenant; more are a 429")
    picture_pixels: int = Field(40_000_000, gt=0, description="Larger ones are refused from their header")
    picture_side: int = Field(1024, ge=64, description="Larger ones are scaled down to this")
    smallest_side: int = Field(16, ge=1)
    steps: int = Field(1000, ge=0, description="Of tuning")
    sampling_steps: int = Field(100, ge=1)
    prompts: int = Field(8, ge=1, description="Drawn at once after tuning")
    images: int = Field(8, ge=1, description="Of one request, over all its prompts")
    concepts: int = Field(1000, ge=1, description="Of one tenant at a time")
    tunes_per_tenant: int = Field(4, ge=1, description="Waiting or running; more are a 429")
    images_per_tenant: int = Field(32, ge=1, description="Pictures waiting or being drawn; more are a 429")
    tunes: int = Field(16, ge=1, description="Waiting or running, of all tenants; more are a 503")
    images_waiting: int = Field(
        8,
        ge=1,
        description="Pictures waiting or being drawn, for each sampler; else 503. As many as a batch, so that "
        "under overload an accepted one waits no longer than for the batch before its own",
    )
    answers_per_tenant: int = Field(1000, ge=1, description="Idempotency keys kept at a time")
    tune_deadline_s: float = Field(900, gt=0)
    image_deadline_s: float = Field(60, gt=0)
    longest_wait_s: float = Field(120, ge=0, description="Of Prefer: wait=N")


class SafetySpec(Section):
    """The safety checker: `module:Class`, made with `options`, called with pictures, gives a verdict for each."""

    enabled: bool = True
    checker: str = Field("imprint.serve.safety:OpenNsfw", pattern=r"^[\w.]+:\w+$")
    options: dict[str, Any] = Field({}, description="What the class is made with")
    check: tuple[Literal["uploads", "outputs"], ...] = ("uploads", "outputs")


class ProvenanceSpec(Section):
    """What marks an output as made by a machine."""

    metadata: bool = True
    watermark: bool = True
    watermark_key: str = Field("imprint", min_length=1, description="Who knows it can find the mark, and remove it")


class PoolSpec(Section):
    """Replicas of one kind."""

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    cpus: float = Field(1.0, ge=0)
    gpus: float = Field(0.0, ge=0, description="A share of a GPU, such as 0.25")
    threads: int | None = Field(None, ge=1, description="Of torch; by default as many as cpus")
    drain_s: float = Field(120, gt=0, description="What a replica may still finish when it is replaced")

    @model_validator(mode="after")
    def _max_not_below_min(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas={self.max_replicas} is below min_replicas={self.min_replicas}")
        return self


class TunerSpec(PoolSpec):
    """The pool that tunes; one subject at a time each."""

    target_queue: float = Field(2.0, gt=0, description="Tunes waiting or running for each replica; more: one is added")
    verify_base: bool = Field(True, description="Compare all weights of the base bit for bit after each tune")
    attempts: int = Field(3, ge=1, description="How often a tune is begun before it counts as failed")


class SamplerSpec(PoolSpec):
    """The pool that draws."""

    cpus: float = Field(0.75, ge=0)
    target_ongoing: float = Field(8.0, gt=0, description="Requests for each replica; more: one is added")
    batch_size: int = Field(8, ge=1, description="Pictures in one batch")
    batch_wait_ms: float = Field(4.0, ge=0, description="How long a first request waits for others")
    cached_concepts: int = Field(16, ge=1, description="Concepts of one replica in memory")
    cached_bytes: int = Field(4 << 30, gt=0, description="What they may take together")
    attempts: int = Field(3, ge=1, description="How often a draw is begun where replicas die")


class ServeSpec(Section):
    """The whole service."""

    backbone: str = Field("imprint-tiny", min_length=1)
    device: str = "cpu"
    encoders: dict[str, str] = Field({"e4t": "imprint-tiny-e4t-faces"}, description="Pretrained encoders by method")
    default_method: str = "e4t"
    methods: dict[str, dict[str, Any]] = Field({}, description="Keys of methods where other than by default")
    sampling: SampleSpec = SampleSpec()
    store: StoreSpec = StoreSpec()
    keys: dict[str, tuple[str, ...]] = Field({}, description="sha256 of API keys in hex, by tenant")
    keys_file: str | None = Field(None, description="YAML file of the same")
    limits: LimitsSpec = LimitsSpec()
    safety: SafetySpec = SafetySpec()
    provenance: ProvenanceSpec = ProvenanceSpec()
    ingress: PoolSpec = PoolSpec(cpus=0.1)
    tuner: TunerSpec = TunerSpec()
    sampler: SamplerSpec = SamplerSpec()

    @field_validator("methods")
    @classmethod
    def _keys_of_methods(cls, methods: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, keys in methods.items():
            if name not in TUNE_SPECS:
                raise ValueError(f"methods: got {name!r}, expected one of {', '.join(TUNE_SPECS)}")
            TUNE_SPECS[name].model_validate(keys)
        return methods

    @model_validator(mode="after")
    def _default_is_known(self) -> Self:
        if self.default_method not in TUNE_SPECS:
            raise ValueError(f"default_method: got {self.default_method!r}, expected one of {', '.join(TUNE_SPECS)}")
        return self


def tune_spec(spec: ServeSpec, method: str, steps: int | None, *, class_images: str | None = None) -> FewStepSpec:
    """How a method tunes here: the operator's keys, and the steps that were asked for.

    `class_images` is where DreamBooth may keep what it draws of the class: its own cache would write nouns to disk.
    """
    keys: dict[str, Any] = dict(spec.methods.get(method, {}))
    if steps is not None:
        keys["steps"] = steps
    if method == "dreambooth" and class_images is not None:
        keys["prior"] = {**keys.get("prior", {}), "cache_dir": class_images}
    return TUNE_SPECS[method].model_validate(keys)
