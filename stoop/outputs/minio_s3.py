"""minio:s3: a bucket of a MinIO server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from stoop import values
from stoop.spec import (
    OutputSpec,
    ParameterFault,
    Parameters,
)


class MinioS3Parameters(Parameters, frozen=True):
    """Which bucket, and where in it."""

    bucket: Annotated[str, Meta(description="Name of the bucket; it must exist.")]
    prefix: Annotated[str, Meta(description="Put before the name of each object, with a `/` between them.")] = ""


def check(params: MinioS3Parameters) -> Iterator[ParameterFault]:
    """The value rules of this output."""
    yield from values.bucket("bucket", params.bucket)
    yield from values.prefix("prefix", params.prefix)


SPEC = OutputSpec(
    name="minio:s3",
    description="Puts the data into a bucket of the MinIO server that the configuration names.",
    parameters=MinioS3Parameters,
    check=check,
    # MinIO speaks S3's policy language; listing is how a bucket is found to exist.
    cloud_rights=("s3:ListBucket", "s3:PutObject"),
    example="""\
- rule: An unexpected connection
  match:
    rules: [Unexpected outbound connection destination]
  actions:
    - action: Capture the traffic
      actionner: kubernetes:tcpdump
      output:
        target: minio:s3
        parameters:
          bucket: evidence
          prefix: captures
""",
)
