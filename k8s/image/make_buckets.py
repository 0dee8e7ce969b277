"""Make buckets in an S3-compatible store where they are not there yet: `python make_buckets.py NAME...`.

Keys and the endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL).
"""

from __future__ import annotations

import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError


def make_buckets(names: list[str]) -> None:
    """Make each of `names` that is not there.

    Raises:
        ClientError: the store refuses.
    """
    client = boto3.client("s3", config=Config(retries={"max_attempts": 10, "mode": "standard"}))
    for name in names:
        try:
            client.head_bucket(Bucket=name)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            client.create_bucket(Bucket=name)
        print(f"bucket {name} is there")


if __name__ == "__main__":
    make_buckets(sys.argv[1:])
