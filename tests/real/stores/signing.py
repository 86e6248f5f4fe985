"""Signature Version 4 of a request to S3 (AWS General Reference), for what obstore has no word for: buckets."""

from __future__ import annotations

import hashlib
import hmac
import time
from datetime import UTC, datetime


def signed(method: str, host: str, target: str, body: bytes, who: tuple[str, str, str]) -> dict[str, str]:
    """The headers of this request. `who`: key, secret, region."""
    key, secret, region = who
    path, _, query = target.partition("?")
    stamp = datetime.fromtimestamp(time.time(), UTC).strftime("%Y%m%dT%H%M%SZ")
    hashed = hashlib.sha256(body).hexdigest()
    headers = {"host": host, "x-amz-content-sha256": hashed, "x-amz-date": stamp}
    names = ";".join(headers)
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    request = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{hashed}"
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    told = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    by = f"AWS4{secret}".encode()
    for word in scope.split("/"):
        by = hmac.digest(by, word.encode(), "sha256")
    signature = hmac.digest(by, told.encode(), "sha256").hex()
    sign = f"Credential={key}/{scope}, SignedHeaders={names}, Signature={signature}"
    return headers | {"authorization": f"AWS4-HMAC-SHA256 {sign}"}
