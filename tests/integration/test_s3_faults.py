"""A training on Ray that reads its shards from an S3 server which answers with 500s and breaks connections off."""

from __future__ import annotations

from pathlib import Path

import boto3
import pytest
from failing_proxy import failing_proxy
from job_processes import ONE_WORKER, Job, ray_head
from small_shards import write_shards
from stores import free_port

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


def test_shards_from_a_failing_s3_train_as_those_of_a_folder(tmp_path: Path, tiny_sd15: Path, tiny_clip: Path) -> None:
    from moto.server import ThreadedMotoServer

    shards = write_shards(tmp_path / "shards", [13, 9, 18])
    moto = ThreadedMotoServer("127.0.0.1", free_port(), verbose=False)
    moto.start()
    keys = {"AWS_ACCESS_KEY_ID": "imprint", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    client = boto3.client(
        "s3", endpoint_url=f"http://127.0.0.1:{moto._port}", aws_access_key_id="imprint",
        aws_secret_access_key="secret", region_name="us-east-1",
    )  # fmt: skip
    client.create_bucket(Bucket="faces")
    for file in shards.iterdir():
        client.put_object(Bucket="faces", Key=f"small/{file.name}", Body=file.read_bytes())
    data = {"image_size": 16, "shuffle_buffer": 15}
    job = Job(tmp_path, {
        "job": "pretrain_encoder", "seed": 3, "backbone": str(tiny_sd15),
        "method": {"domain_word": "face", "encoder": {"clip": str(tiny_clip)}, "offsets": {"vector_width": 4}},
        "training": {"steps": 40, "batch_size": 4, "log_every": 1, "optimizer": {"learning_rate": 1e-3}},
        "checkpoint": {"every": 20, "keep": 1}, "tracking": {"enabled": False}, **ONE_WORKER,
    })  # fmt: skip
    try:
        with failing_proxy(moto._port) as proxy:
            job.env |= keys | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"}
            with ray_head(job):
                job.finish("folder", job.start("folder", data={**data, "shards": [str(shards)]}))
                assert not proxy.counts
                job.finish("bucket", job.start("bucket", data={**data, "shards": ["s3://faces/small"]}))
    finally:
        moto.stop()
    print(dict(proxy.counts))
    assert proxy.counts["500"] >= 3 and proxy.counts["reset"] >= 3
    assert job.losses("bucket") == job.losses("folder")
    assert set(job.losses("bucket")) == set(range(1, 41))
    assert len(job.starts("bucket")) == 1, "no trainer noticed"
