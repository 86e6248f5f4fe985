"""gcp:gcs: a bucket of Google Cloud Storage."""

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


class GcpGcsParameters(Parameters, frozen=True):
    """Which bucket, and where in it."""

    bucket: Annotated[str, Meta(description="Name of the bucket.")]
    prefix: Annotated[str, Meta(description="Put before the name of each object, with a `/` between them.")] = ""


def check(params: GcpGcsParameters) -> Iterator[ParameterFault]:
    """The value rules of this output."""
    yield from values.bucket("bucket", params.bucket)
    yield from values.prefix("prefix", params.prefix)


SPEC = OutputSpec(
    name="gcp:gcs",
    description="Puts the data into a bucket of Google Cloud Storage.",
    parameters=GcpGcsParameters,
    check=check,
    # Without storage.objects.delete nothing that is there can be overwritten: evidence is only ever added.
    cloud_rights=("storage.objects.create",),
    example="""\
- rule: A process traces another
  match:
    rules: [PTRACE attached to process]
  actions:
    - action: Capture the system calls
      actionner: kubernetes:sysdig
      output:
        target: gcp:gcs
        parameters:
          bucket: evidence
          prefix: captures
""",
)
