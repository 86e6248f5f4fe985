"""Settings of where evidence can go: Talon's own keys, with what they mean here. Pure. Import from `stoop.config`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta


def _meta(description: str, kind: str = "") -> Meta:
    return Meta(description=description, extra={"kind": kind} if kind else {})


class Aws(msgspec.Struct, frozen=True, kw_only=True):
    """Credentials of the output `aws:s3`, as Talon has them. Without keys those of the environment count: `AWS_…`
    variables, a web identity (IRSA), or the instance's role.

    Where the file has a key of this section, Talon's variable for it counts too (`AWS_REGION`, `AWS_ACCESS_KEY`,
    `AWS_SECRET_KEY`, `AWS_ROLE_ARN`, `AWS_EXTERNAL_ID`).
    """

    region: Annotated[
        str, _meta("Region of buckets whose output names none. Empty: `AWS_REGION`, else us-east-1.", "str")
    ] = ""
    access_key: Annotated[str, _meta("The access key's id. Together with secret_key.", "secret")] = ""
    secret_key: Annotated[str, _meta("The secret access key. It is shown nowhere.", "secret")] = ""
    role_arn: Annotated[
        str, _meta("A role that is assumed (STS) with those credentials; it is what the bucket's policy names.", "str")
    ] = ""
    external_id: Annotated[str, _meta("What the role's trust policy asks for, if it does.", "secret")] = ""


class Gcp(msgspec.Struct, frozen=True, kw_only=True):
    """Credentials of the output `gcp:gcs`. Without them the environment's count: `GOOGLE_APPLICATION_CREDENTIALS`, or
    the node's service account. Where the file has the key, Talon's `GCP_CREDENTIALS_PATH` counts too."""

    region: Annotated[str, _meta("Accepted as in Talon, where it means nothing either.", "str")] = ""
    credentials_path: Annotated[
        str,
        _meta(
            "A service account's key: the path of its JSON file, or the JSON itself (which is what Talon takes under "
            "this name).",
            "secret",
        ),
    ] = ""


class Minio(msgspec.Struct, frozen=True, kw_only=True):
    """The server of the output `minio:s3`. Where the file has a key of this section, Talon's variable for it counts
    too (`MINIO_ENDPOINT`, `MINIO_ACCESS_KEY`, `MINIO_SECRET_KEY`, `MINIO_USE_SSL`)."""

    endpoint: Annotated[str, _meta("HOST:PORT of the server, without a scheme.", "str")] = ""
    access_key: Annotated[str, _meta("The access key.", "secret")] = ""
    secret_key: Annotated[str, _meta("The secret key. It is shown nowhere.", "secret")] = ""
    use_ssl: Annotated[
        bool,
        _meta(
            "`true` speaks TLS. A certificate of your own authority: name its file in the environment's "
            "`SSL_CERT_FILE`; every user must be able to read it."
        ),
    ] = False


TALON_SECTIONS = ("aws.", "gcp.", "minio.")
"""Talon takes their variables from the environment where the file has the key."""

ENDPOINT = "minio.endpoint"
"""The one that can't be used where it is wrong; what else is odd is a warning, as Talon goes on too."""


def odd_stores(values: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What is wrong or odd in these settings, by key: what, and what to write."""
    endpoint = values[ENDPOINT]
    if endpoint and not re.fullmatch(r"[^\s/@]+:[0-9]{1,5}", endpoint):
        yield ENDPOINT, "not HOST:PORT", "write minio.example.com:9000"
    for section in ("aws", "minio"):
        keys = [f"{section}.access_key", f"{section}.secret_key"]
        given = [key for key in keys if values[key]]
        if len(given) == 1:
            lacking = keys[1 - keys.index(given[0])]
            yield given[0], f"it means nothing without {lacking}", "give both, or neither"
