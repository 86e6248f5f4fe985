"""Temporary credentials of a role by AWS's Security Token Service: AssumeRole, AssumeRoleWithWebIdentity.

Requests as the API reference of STS (version 2011-06-15) has them, signed by Signature Version 4 (AWS General
Reference, "Signing AWS API requests"). boto3 would do it too, at 80 MiB.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 - http.client wants it at its first request, when only root can read it
import hashlib
import hmac
import time
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from typing import NamedTuple, TypedDict

ANSWER_SECONDS = 15.0
"""For one answer of STS; what is sent waits for it and is tried again anyway."""

MAX_ANSWER = 64 * 1024
"""Bytes: an answer has some 2 KiB."""

SESSION = "stoop"
"""RoleSessionName: who it was, in CloudTrail."""

_NS = "{https://sts.amazonaws.com/doc/2011-06-15/}"
_FORM = "application/x-www-form-urlencoded; charset=utf-8"


class Credential(TypedDict):
    """As obstore takes it of a credential provider."""

    access_key_id: str
    secret_access_key: str
    token: str | None
    expires_at: datetime | None


class Key(NamedTuple):
    """A long-lived key, or a temporary one with its token."""

    id: str
    secret: str
    token: str = ""


class StsError(Exception):
    """STS did not give credentials; one line for a person."""


def assume(endpoint: str, region: str, key: Key, role_arn: str, external_id: str) -> Credential:
    """Credentials of this role. Raises StsError."""
    words = {"Action": "AssumeRole", "RoleArn": role_arn, "RoleSessionName": SESSION}
    if external_id:
        words["ExternalId"] = external_id
    body = _body(words)
    return _asked(endpoint, body, _signed(endpoint, region, key, body, time.time()))


def assume_by_token(endpoint: str, role_arn: str, token: str) -> Credential:
    """The same by a token of Kubernetes (a pod's projected service-account token). Raises StsError."""
    words = {"RoleArn": role_arn, "RoleSessionName": SESSION, "WebIdentityToken": token}
    return _asked(endpoint, _body({"Action": "AssumeRoleWithWebIdentity"} | words), {"content-type": _FORM})


def _body(words: dict[str, str]) -> bytes:
    return urllib.parse.urlencode(words | {"Version": "2011-06-15"}).encode()


def _signed(endpoint: str, region: str, key: Key, body: bytes, at_s: float) -> dict[str, str]:
    """The headers of a POST of `/`, signed."""
    stamp = datetime.fromtimestamp(at_s, UTC).strftime("%Y%m%dT%H%M%SZ")
    headers = {"content-type": _FORM, "host": urllib.parse.urlsplit(endpoint).netloc, "x-amz-date": stamp}
    if key.token:
        headers["x-amz-security-token"] = key.token
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    request = f"POST\n/\n\n{lines}\n{names}\n{hashlib.sha256(body).hexdigest()}"
    scope = f"{stamp[:8]}/{region}/sts/aws4_request"
    told = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    secret = f"AWS4{key.secret}".encode()
    for word in scope.split("/"):
        secret = hmac.digest(secret, word.encode(), "sha256")
    signature = hmac.digest(secret, told.encode(), "sha256").hex()
    sign = f"Credential={key.id}/{scope}, SignedHeaders={names}, Signature={signature}"
    return headers | {"authorization": f"AWS4-HMAC-SHA256 {sign}"}


def _asked(endpoint: str, body: bytes, headers: dict[str, str]) -> Credential:
    if not endpoint.startswith(("https://", "http://")):
        raise StsError(f"STS: {endpoint!r} is no URL")
    request = urllib.request.Request(f"{endpoint.rstrip('/')}/", body, headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return _credential(answer.read(MAX_ANSWER))
    except urllib.error.HTTPError as error:
        with error:
            raise StsError(f"STS gave no credentials: {error.code} {_code(error.read(MAX_ANSWER))}") from error
    except (OSError, ValueError) as error:
        raise StsError(f"STS does not answer: {error}") from error


def _credential(answer: bytes) -> Credential:
    try:
        found = ElementTree.fromstring(answer).find(f".//{_NS}Credentials")
    except ElementTree.ParseError as error:
        raise ValueError("its answer is no XML") from error
    words = {child.tag.removeprefix(_NS): child.text or "" for child in found} if found is not None else {}
    if not (words.get("AccessKeyId") and words.get("SecretAccessKey") and words.get("Expiration")):
        raise ValueError("its answer holds no credentials")
    return Credential(
        access_key_id=words["AccessKeyId"],
        secret_access_key=words["SecretAccessKey"],
        token=words.get("SessionToken"),
        expires_at=datetime.fromisoformat(words["Expiration"].replace("Z", "+00:00")),
    )


def _code(answer: bytes) -> str:
    """The error's code; the message can hold what was sent."""
    try:
        return ElementTree.fromstring(answer).findtext(f".//{_NS}Code") or "without a reason"
    except ElementTree.ParseError:
        return "without a reason"
