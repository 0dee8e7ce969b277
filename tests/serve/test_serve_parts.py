"""The parts of the service: the vault, the store, intake, tenants, texts, marks, and batches across concepts."""

from __future__ import annotations

import asyncio
import base64
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import s3fs
import torch
from hostile_pictures import HOSTILE
from moto.server import ThreadedMotoServer
from PIL import Image, ImageDraw
from serving import picture, spec_of
from transformers import AutoTokenizer

from imprint.backbone import Backbone
from imprint.backbone.loading import embedded_path
from imprint.config.methods import SampleSpec
from imprint.errors import ConfigError, StorageError
from imprint.methods import METHODS
from imprint.methods.base import Learned, Pictures
from imprint.sampling.sheet import to_pil
from imprint.serve.across import Rows, draw_together, group_of
from imprint.serve.artifacts import pack, unpack
from imprint.serve.concepts import ConceptCache
from imprint.serve.intake import read_pictures, take_picture, take_pictures
from imprint.serve.problems import Problem
from imprint.serve.provenance import finish, verify
from imprint.serve.safety import OpenNsfw
from imprint.serve.settings import LimitsSpec, ProvenanceSpec, ServeSpec, StoreSpec, tune_spec
from imprint.serve.store import FolderBlobs, MemoryBlobs, Store
from imprint.serve.tenants import Tenants, key_hash
from imprint.serve.texts import literal, prompt_tokens
from imprint.serve.uploads import Uploads
from imprint.serve.vault import Vault, find_key
from imprint.serve.watermark import THRESHOLD, detect, mark
from imprint.serve.weights import exact_digest
from imprint.tuning import Concept, personalize

LIMITS = LimitsSpec()


# -- the vault and the store -------------------------------------------------------------------------------------


def test_what_is_sealed_for_one_place_opens_there_alone() -> None:
    vault = Vault(bytes(32))
    sealed = vault.seal(b"a face", "red/c_1/weights")
    assert b"face" not in sealed and sealed != vault.seal(b"a face", "red/c_1/weights")
    assert vault.open(sealed, "red/c_1/weights") == b"a face"
    for wrong, place in ((sealed, "blue/c_1/weights"), (sealed[:-1], "red/c_1/weights"), (b"", "red/c_1/weights")):
        with pytest.raises(StorageError):
            vault.open(wrong, place)
    with pytest.raises(StorageError):
        Vault(bytes(31) + b"1").open(sealed, "red/c_1/weights")


def test_keys_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMPRINT_STORE_KEY", raising=False)
    assert find_key(StoreSpec()) != find_key(StoreSpec())
    with pytest.raises(ConfigError, match="openssl rand"):
        find_key(StoreSpec(url="/data"))
    file = tmp_path / "key"
    for text, said in ((b"?", "base64"), (base64.b64encode(bytes(16)), "16 bytes")):
        file.write_bytes(text)
        with pytest.raises(ConfigError, match=said):
            find_key(StoreSpec(url="/data", key_file=str(file)))
    file.write_bytes(base64.b64encode(bytes(32)) + b"\n")
    assert find_key(StoreSpec(url="/data", key_file=str(file))) == bytes(32)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a server that speaks S3, and s3fs set to it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir("faces")
    yield "s3://faces/concepts"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.mark.parametrize("kind", ["memory", "folder", "s3"])
def test_a_store_keeps_and_leaves_nothing(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    places = {"folder": lambda: str(tmp_path / "store"), "s3": lambda: request.getfixturevalue("bucket")}
    blobs = MemoryBlobs(10_000) if kind == "memory" else FolderBlobs(places[kind]())
    store = Store(blobs, Vault(bytes(32)))

    async def use() -> None:
        await store.put("red/c_1", "pictures", b"a face")
        await store.put("red/c_1", "record", b"{}")
        await store.put("blue/c_2", "record", b"{}")
        assert await store.get("red/c_1", "pictures") == b"a face"
        assert await blobs.folders() == ["blue/c_2", "red/c_1"]
        await blobs.remove("red/c_1/pictures")
        with pytest.raises(Problem):
            await store.get("red/c_1", "pictures")
        await store.drop("red/c_1")
        await store.drop("red/c_1")
        assert await blobs.folders() == ["blue/c_2"]

    asyncio.run(use())
    if kind == "folder":
        assert [path.name for path in (tmp_path / "store").rglob("*")].count("red") == 0
    if isinstance(blobs, MemoryBlobs):
        assert blobs.size == len(asyncio.run(blobs.get("blue/c_2/record")) or b"")
        with pytest.raises(Problem, match="full"):
            asyncio.run(blobs.put("red/c_3/weights", bytes(20_000)))


def test_tenants() -> None:
    tenants = Tenants({"red": [key_hash("a"), key_hash("b")], "blue": [key_hash("c")]})
    assert [tenants.owner(f"Bearer {key}") for key in "abc"] == ["red", "red", "blue"]
    for wrong in (None, "", "a", "Basic a", "Bearer", f"Bearer {key_hash('a')}"):
        with pytest.raises(Problem):
            tenants.owner(wrong)
    for hashes in ({"../etc": [key_hash("a")]}, {"red": ["abc"]}, {"red": [key_hash("a")], "blue": [key_hash("a")]}):
        with pytest.raises(ConfigError):
            Tenants(hashes)


# -- pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", HOSTILE)
def test_hostile_pictures_are_refused(which: str) -> None:
    data, status = HOSTILE[which]
    with pytest.raises(Problem) as caught:
        take_picture(data, LIMITS)
    assert caught.value.status == status


def test_memory_stays_flat_under_hostile_pictures() -> None:
    own = psutil.Process()

    def all_of_them() -> int:
        for data, status in HOSTILE.values():
            with pytest.raises(Problem) as caught:
                take_picture(data, LIMITS)
            assert caught.value.status == status
        return int(own.memory_info().rss)

    all_of_them()
    before = all_of_them()
    assert max(all_of_them() for _ in range(10)) - before < 40 << 20


def test_orientation_is_applied_and_all_metadata_is_left_behind() -> None:
    wide = Image.new("RGB", (60, 30), "blue")
    ImageDraw.Draw(wide).rectangle((0, 0, 29, 29), fill="red")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right brings it upright
    exif[0x010E] = "at home, 52.5 N"
    out = io.BytesIO()
    wide.save(out, "JPEG", exif=exif, comment=b"marker", quality=95)
    pixels = take_picture(out.getvalue(), LIMITS)
    assert pixels.shape == (60, 30, 3)
    assert pixels[5, 15, 0] > 200 and pixels[55, 15, 2] > 200
    kept = take_pictures([out.getvalue()], LIMITS)
    assert b"home" not in kept and b"marker" not in kept and b"Exif" not in kept
    assert (read_pictures(kept)[0] == pixels).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_odd_modes_become_plain_pixels(mode: str) -> None:
    base = Image.open(io.BytesIO(picture()))
    odd = base.convert("I").point(lambda value: value * 257).convert("I;16") if mode == "I;16" else base.convert(mode)
    out = io.BytesIO()
    odd.save(out, "JPEG" if mode == "CMYK" else "PNG")
    pixels = take_picture(out.getvalue(), LIMITS)
    assert pixels.shape == (32, 32, 4 if mode in ("LA", "RGBA") else 3) and pixels.dtype == np.uint8
    if mode == "I;16":
        assert np.abs(pixels[..., 0].astype(int) - np.asarray(base.convert("L"))).max() <= 1


def test_large_pictures_are_scaled_down() -> None:
    data = picture(side=3000, form="JPEG")
    assert take_picture(data, LIMITS).shape == (1024, 1024, 3)
    with pytest.raises(Problem):
        take_picture(data, LimitsSpec(picture_pixels=8_000_000))


# -- marks -------------------------------------------------------------------------------------------------------


def scenes(side: int = 64) -> list[np.ndarray]:
    """A gradient, blocks, noise, a drawing, plain gray."""
    generator = np.random.default_rng(0)
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    drawing = Image.new("RGB", (side, side), (90, 160, 220))
    ImageDraw.Draw(drawing).ellipse((side // 4, side // 4, 3 * side // 4, 3 * side // 4), fill=(240, 200, 170))
    return [
        np.stack([np.broadcast_to(ramp, (side, side))] * 3, -1),
        np.asarray(Image.open(io.BytesIO(picture(3, side)))), np.asarray(drawing),
        generator.normal(128, 30, (side, side, 3)).clip(0, 255).astype(np.uint8),
        np.full((side, side, 3), 128, np.uint8),
    ]  # fmt: skip


def through(pixels: np.ndarray, form: str, **options: Any) -> np.ndarray:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **options)
    return np.asarray(Image.open(out).convert("RGB"))


@pytest.mark.parametrize("side", [64, 200])
def test_the_watermark_outlives_png_and_jpeg(side: int) -> None:
    for scene in scenes(side):
        marked = mark(scene, "k")
        assert detect(through(marked, "PNG"), "k").found
        assert detect(through(marked, "JPEG", quality=85), "k").found
        assert not detect(marked, "another key").found
        assert np.abs(marked.astype(float) - scene).mean() < 6


def test_false_alarms_stay_within_the_bound() -> None:
    scores = [detect(scene, f"key {number}").score for scene in scenes() for number in range(200)]
    assert max(scores) < THRESHOLD and min(scores) > -THRESHOLD
    # Hoeffding: P(score > 2) <= exp(-2) = 0.135; of a standard normal it would be 0.023.
    assert np.mean(np.array(scores) > 2) < 0.135


def test_verify_finds_either_mark(tmp_path: Path) -> None:
    plain = Image.fromarray(scenes()[2])
    for spec, metadata, watermark in (
        (ProvenanceSpec(), True, True), (ProvenanceSpec(watermark=False), True, False),
        (ProvenanceSpec(metadata=False), False, True), (ProvenanceSpec(metadata=False, watermark=False), False, False),
    ):  # fmt: skip
        file = tmp_path / "out.png"
        file.write_bytes(finish(plain, spec))
        origin = verify(file)
        assert (origin.metadata, origin.watermark.found, origin.is_marked) == (
            metadata,
            watermark,
            metadata or watermark,
        )


def test_the_safety_checker_passes_drawings() -> None:
    verdicts = OpenNsfw()([Image.fromarray(scene) for scene in scenes()])
    assert [verdict.flagged for verdict in verdicts] == [False] * 5
    assert all(0 <= verdict.score <= 1 for verdict in verdicts)
    assert OpenNsfw(threshold=0.0)([Image.fromarray(scenes()[0])])[0].flagged


# -- texts and settings ------------------------------------------------------------------------------------------


def test_special_words_of_the_tokenizer_are_text() -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded_path("imprint-tiny") / "tokenizer")
    prompt = "a <|endoftext|> cat <|startoftext|>"
    assert set(tokenizer(prompt, add_special_tokens=False)["input_ids"]) & set(tokenizer.all_special_ids)
    ids = tokenizer(literal(prompt, tokenizer), add_special_tokens=False)["input_ids"]
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_tokens_of_a_prompt(tiny_sd15: Path) -> None:
    tokenizer = Backbone.load(tiny_sd15).tokenizers[0]
    plain = len(tokenizer("a photo of", add_special_tokens=False)["input_ids"])
    assert prompt_tokens(tokenizer, "a photo of <concept>", {"<concept>": 3}) == plain + 3
    assert prompt_tokens(tokenizer, "<concept-1><concept-2>", {"<concept-1>": 2, "<concept-2>": 5}) == 7
    assert prompt_tokens(tokenizer, "", {}) == 0


def test_settings_are_strict(tiny_sd15: Path) -> None:
    with pytest.raises(ValueError, match="max_replicas"):
        spec_of(tiny_sd15, tuner={"min_replicas": 2})
    with pytest.raises(ValueError, match="Extra inputs"):
        ServeSpec.model_validate({"methods": {"lora": {"step": 1}}})
    assert tune_spec(spec_of(tiny_sd15), "lora", None).steps == 2
    assert tune_spec(spec_of(tiny_sd15), "lora", 7).steps == 7


def test_desk_and_ingress_do_without_torch() -> None:
    heavy = ("torch", "diffusers", "transformers")
    check = f"import sys, imprint.serve.deployments; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_uploads_that_are_in_memory_are_few() -> None:
    uploads = Uploads(LimitsSpec(uploads=3, uploads_per_tenant=2))
    with uploads.place("red") as first, uploads.place("red"):
        with pytest.raises(Problem) as enough, uploads.place("red"):
            pass
        with uploads.place("blue"):
            with pytest.raises(Problem) as busy, uploads.place("green"):
                pass
            first.leave()
            with uploads.place("red"):
                pass
    assert (enough.value.status, busy.value.status) == (429, 503)
    assert uploads.held.total() == 0


# -- batches -----------------------------------------------------------------------------------------------------


def learned(backbone: Backbone, method: str, seed: int) -> Learned:
    spec = tune_spec(ServeSpec(methods={"lora": {"lora": {"learning_rate": 0.05}}}), method, 3)
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return personalize(backbone, Pictures(images), spec, class_noun="cat", seed=seed).learned


@pytest.mark.parametrize("pipeline", ["tiny_sd21_v", "tiny_sdxl"])
@pytest.mark.parametrize("method", ["textual_inversion", "lora"])
def test_a_batch_across_concepts_draws_what_each_would_alone(
    method: str, pipeline: str, request: pytest.FixtureRequest
) -> None:
    backbone = Backbone.load(request.getfixturevalue(pipeline))
    before = exact_digest(backbone)
    spec = SampleSpec(steps=3, negative_prompt="blue")
    rows = [
        Rows(f"red/c_{n}", learned(backbone, method, n), ["a photo of <concept>", "<concept> on blue"], [n, n + 10])
        for n in range(2)
    ]
    assert len({group_of(one.place, one.learned, spec) for one in rows}) == 1
    together = draw_together(backbone, rows, spec)
    alone = torch.cat([
        METHODS[method].sample(backbone, one.learned, one.prompts, spec, seeds=one.seeds)  # type: ignore[arg-type]
        for one in rows
    ])  # fmt: skip
    assert torch.allclose(together, alone, atol=2e-4)
    assert not torch.allclose(together[0], together[2], atol=1e-2)
    assert exact_digest(backbone) == before


def test_concepts_that_change_whole_weights_go_alone() -> None:
    spec = SampleSpec()
    groups = {group_of(f"red/c_{n}", Learned("e4t", "cat", {"unet.a": torch.ones(1)}), spec) for n in range(2)}
    assert len(groups) == 2
    assert group_of("", None, spec) == group_of("", None, spec) != group_of("", None, SampleSpec(steps=9))


def test_a_packed_concept_is_what_it_was(tiny_sd15: Path) -> None:
    backbone = Backbone.load(tiny_sd15)
    concept = Concept.of(learned(backbone, "lora", 1), backbone, pictures=1)
    again = unpack(pack(concept))
    assert again.provenance == concept.provenance and again.backbone_fingerprint == concept.backbone_fingerprint
    assert again.learned.settings == concept.learned.settings
    assert all(again.learned.tensors[name].equal(value) for name, value in concept.learned.tensors.items())


def test_the_cache_loads_once_and_drops_the_longest_unused(tiny_sd15: Path) -> None:
    backbone = Backbone.load(tiny_sd15)
    concept = Concept.of(learned(backbone, "textual_inversion", 1), backbone)
    loads: list[str] = []

    async def load(place: str) -> Concept:
        loads.append(place)
        await asyncio.sleep(0.01)
        return concept

    async def use() -> None:
        cache = ConceptCache(load, most=2, most_bytes=1 << 20)
        await asyncio.gather(*(cache.get("a") for _ in range(5)))
        assert loads == ["a"]
        for place in ("b", "a", "c"):
            await cache.get(place)
        assert cache.places == ["a", "c"] and loads == ["a", "b", "c"]
        cache.drop(["a", "z"])
        assert cache.places == ["c"]

    asyncio.run(use())


def test_pictures_of_a_sheet_are_rgb() -> None:
    assert to_pil(torch.zeros(1, 3, 4, 4))[0].mode == "RGB"
