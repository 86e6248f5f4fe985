"""aws:s3: a bucket of Amazon S3."""

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


class AwsS3Parameters(Parameters, frozen=True):
    """Which bucket, and where in it."""

    bucket: Annotated[str, Meta(description="Name of the bucket.")]
    prefix: Annotated[str, Meta(description="Put before the name of each object, with a `/` between them.")] = ""
    region: Annotated[str, Meta(description="Region of the bucket. Empty: the region of the credentials.")] = ""


def check(params: AwsS3Parameters) -> Iterator[ParameterFault]:
    """The value rules of this output."""
    yield from values.bucket("bucket", params.bucket)
    yield from values.prefix("prefix", params.prefix)


SPEC = OutputSpec(
    name="aws:s3",
    description="Puts the data into a bucket of Amazon S3.",
    parameters=AwsS3Parameters,
    check=check,
    # No object ACL is set, so s3:PutObjectAcl is not needed.
    cloud_rights=("s3:PutObject",),
    example="""\
- rule: A sensitive file was read
  match:
    rules: [Read sensitive file untrusted]
  actions:
    - action: Keep the log
      actionner: kubernetes:log
      output:
        target: aws:s3
        parameters:
          bucket: evidence
          prefix: logs
          region: eu-west-1
""",
)
