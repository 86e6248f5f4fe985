"""Where evidence can go: one file an output, one line here."""

from __future__ import annotations

from stoop.outputs import aws_s3, gcp_gcs, local_file, minio_s3
from stoop.spec import (
    OutputSpec,
)

OUTPUTS: tuple[OutputSpec, ...] = (
    local_file.SPEC,
    aws_s3.SPEC,
    minio_s3.SPEC,
    gcp_gcs.SPEC,
)
