"""Credentials and clients of the stores, by obstore. What only root can read is read in `Access.read`, before the
rights go; what the environment says counts where the configuration says nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from agent.carry import sts
from agent.letters import Setup

if TYPE_CHECKING:
    from obstore.store import ClientConfig, GCSStore, RetryConfig, S3Store

CONNECT_SECONDS = 10
REQUEST_SECONDS = 60
"""For one request with its body, of CHUNK bytes at most: 85 KiB/s."""

RETRIES = 3
RETRY_SECONDS = 60
"""Retries of one request, by obstore, on what may pass (no connection, 5xx, 429). Then the whole is tried later."""

CHUNK = 5 * 1024 * 1024
"""Bytes of one request, the least that S3 takes of a part. What is not longer is sent in one request."""

MAX_FILE = 256 * 1024
"""Bytes of a file of credentials."""

REGION = "us-east-1"
"""Where nobody names one: S3's own default, and MinIO's."""

TOKEN_FILE, ROLE = "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"

FROM_ENVIRONMENT = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_METADATA_ENDPOINT",
    "AWS_REQUEST_PAYER",
    "AWS_SERVER_SIDE_ENCRYPTION",
    "AWS_SSE_KMS_KEY_ID",
    "AWS_SSE_BUCKET_KEY_ENABLED",
)
"""What counts of the environment, by the names of AWS's own tools. All else of it is kept from obstore."""

_OF_KEYS = frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"})


class AccessError(Exception):
    """These credentials can't be used; one line for a person, who has to mend it."""


class Access:
    """By what right things are put into stores. `faults`: by target, what could not be read."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._aws: dict[str, str] = {}
        self._role = setup.aws_role_arn
        self._token = ""
        self._gcp = ""
        self._faults: dict[str, str] = {}

    def read(self, environ: dict[str, str]) -> None:
        """Take what counts, and out of `environ` (os.environ) all of it: MinIO's client is S3's. While still root."""
        self._aws = {name: environ[name] for name in FROM_ENVIRONMENT if environ.get(name)}
        if self._setup.aws_access_key and self._setup.aws_secret_key:
            self._aws = {name: value for name, value in self._aws.items() if name not in _OF_KEYS}
        elif environ.get(TOKEN_FILE):
            self._role = self._role or environ.get(ROLE, "")
            self._token = self._read("aws:s3", environ[TOKEN_FILE]).strip()
        named = self._setup.gcp_credentials or environ.get("GOOGLE_APPLICATION_CREDENTIALS", "")
        self._gcp = named if named.lstrip().startswith("{") else self._read("gcp:gcs", named) if named else ""
        for name in [name for name in environ if name.startswith(("AWS_", "GOOGLE_"))]:
            del environ[name]

    def _read(self, target: str, path: str) -> str:
        try:
            with open(path, encoding="utf-8") as file:
                return file.read(MAX_FILE)
        except (OSError, UnicodeDecodeError) as error:
            self._faults[target] = f"{path}: {getattr(error, 'strerror', None) or 'no text'}"
            return ""

    def secrets(self) -> tuple[str, ...]:
        """What must not be seen in any message, beside the setup's."""
        named = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")
        return tuple(filter(None, (self._token, self._gcp, *map(self._aws.get, named))))

    def store(self, target: str, bucket: str, region: str) -> S3Store | GCSStore:
        """A client of this bucket. Raises AccessError, and what obstore raises for settings that it refuses."""
        if target in self._faults:
            raise AccessError(f"the credentials can't be read: {self._faults[target]}")
        if target == "aws:s3":
            return self._s3(bucket, region)
        return self._minio(bucket) if target == "minio:s3" else self._gcs(bucket)

    def _s3(self, bucket: str, region: str) -> S3Store:
        from obstore.store import S3Store

        setup = self._setup
        found: dict[str, Any] = {name.lower(): value for name, value in self._aws.items()}
        named = region or setup.aws_region or self._aws.get("AWS_REGION") or self._aws.get("AWS_DEFAULT_REGION")
        found["region"] = named or REGION
        for name in ("aws_region", "aws_default_region"):
            found.pop(name, None)
        if setup.aws_access_key and setup.aws_secret_key:
            found |= {"access_key_id": setup.aws_access_key, "secret_access_key": setup.aws_secret_key}
        endpoint = self._aws.get("AWS_ENDPOINT_URL", "")
        provider = self._of_role(found["region"], endpoint)
        if provider is not None:
            found = {name: value for name, value in found.items() if "key" not in name or "sse" in name}
            found.pop("aws_session_token", None)
            found["credential_provider"] = provider
        return S3Store(bucket, checksum_algorithm="SHA256", **found, **_client(endpoint))

    def _of_role(self, region: str, endpoint: str) -> Any:
        """What asks for the role's credentials whenever some are needed; None without a role."""
        if not self._role:
            return None
        asked = endpoint or f"https://sts.{region}.amazonaws.com"
        setup, role = self._setup, self._role
        if self._token:
            return lambda: sts.assume_by_token(asked, role, self._token)
        if setup.aws_access_key and setup.aws_secret_key:
            key = sts.Key(setup.aws_access_key, setup.aws_secret_key)
        elif self._aws.get("AWS_ACCESS_KEY_ID") and self._aws.get("AWS_SECRET_ACCESS_KEY"):
            token = self._aws.get("AWS_SESSION_TOKEN", "")
            key = sts.Key(self._aws["AWS_ACCESS_KEY_ID"], self._aws["AWS_SECRET_ACCESS_KEY"], token)
        else:
            raise AccessError(
                "aws.role_arn needs keys or a web identity to be assumed with: the node's role is not used"
            )
        return lambda: sts.assume(asked, region, key, role, setup.aws_external_id)

    def _minio(self, bucket: str) -> S3Store:
        from obstore.store import S3Store

        setup = self._setup
        if not setup.minio_endpoint:
            raise AccessError("minio.endpoint is not set")
        endpoint = f"{'https' if setup.minio_use_ssl else 'http'}://{setup.minio_endpoint}"
        keys: dict[str, Any] = {"skip_signature": True}  # as anybody, where the server lets anybody
        if setup.minio_access_key and setup.minio_secret_key:
            keys = {"access_key_id": setup.minio_access_key, "secret_access_key": setup.minio_secret_key}
        return S3Store(
            bucket, endpoint=endpoint, region=REGION, checksum_algorithm="SHA256", **keys, **_client(endpoint)
        )

    def _gcs(self, bucket: str) -> GCSStore:
        from obstore.store import GCSStore

        if not self._gcp:
            return GCSStore(bucket, **_client(""))
        try:
            key = json.loads(self._gcp)
        except ValueError as error:
            raise AccessError("gcp.credentials_path: neither a file with a key nor the key's JSON") from error
        if not isinstance(key, Mapping) or not isinstance(key.get("private_key"), str):
            raise AccessError("gcp.credentials_path: not a service account's key (no private_key in it)")
        return GCSStore(bucket, service_account_key=self._gcp, **_client(str(key.get("gcs_base_url") or "")))


def _client(endpoint: str) -> dict[str, Any]:
    """Limits of every request. Without TLS only where the endpoint's own scheme says so."""
    options: ClientConfig = {
        "allow_http": endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        "timeout": timedelta(seconds=REQUEST_SECONDS),
    }
    retries: RetryConfig = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS)}
    return {"client_options": options, "retry_config": retries}
