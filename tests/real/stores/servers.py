"""Real stores on loopback, each with one bucket: MinIO (a Go program), moto's S3, and a folder.

MinIO is built by `tools/stores/build.sh` into a cache outside the repository; where it is not there its tests are
skipped, with the reason. As `gcp:gcs` it speaks the XML API of Google's, which has S3's multipart uploads; a server of
Google's own that takes them does not exist outside Google (docs/decisions/0014-outputs.md).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import S3Store

from tests.real.conftest import PATIENCE_S, await_that

BUCKET = "evidence"
REGION = "us-east-1"
USER, SECRET = "stoop-test", "stoop-test-secret"
START_S = 30.0

PUBLIC = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": {"AWS": ["*"]},
            "Action": ["s3:PutObject", "s3:AbortMultipartUpload"],
            "Resource": [f"arn:aws:s3:::{BUCKET}/*"],
        }
    ],
}
"""Anybody may put objects: Google's client shows no signature of S3's."""


def minio_program() -> str:
    """MinIO's program. Skips the test where it was not built."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = os.environ.get("STOOP_MINIO") or f"{cache}/stoop/stores/minio"
    if not os.access(path, os.X_OK):
        pytest.skip("MinIO is not built: run tools/stores/build.sh (it needs Go)")
    return path


def free_port() -> int:
    """A TCP port of loopback that nobody has now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Target:
    """One output and what is behind it. `start` may be called again after `stop`: the same place, as it was left."""

    name = ""

    @property
    def settings(self) -> dict[str, Any]:
        """Of stoop.yaml."""
        return {}

    @property
    def environment(self) -> dict[str, str]:
        """Of the agent's environment."""
        return {}

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.directory.mkdir()

    @property
    def parameters(self) -> dict[str, Any]:
        """Of the rule's output."""
        return {"bucket": BUCKET}

    def output(self, **parameters: Any) -> dict[str, Any]:
        """The rule's `output`."""
        return {"target": self.name, "parameters": self.parameters | parameters}

    def start(self) -> None:
        """It takes what is sent."""
        raise NotImplementedError

    def stop(self) -> None:
        """It does not answer any more. Idempotent."""
        raise NotImplementedError

    def objects(self) -> dict[str, bytes]:
        """All that is there."""
        raise NotImplementedError

    def metadata(self, key: str) -> dict[str, str]:
        """What is said of one object; {} where nothing can be."""
        return {}


class Folder(Target):
    """local:file. Stopped, the folder is not there."""

    name = "local:file"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.folder = directory / "kept"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"destination": str(self.folder)}

    def start(self) -> None:
        self.folder.mkdir()

    def stop(self) -> None:
        if self.folder.exists():
            self.folder.rename(self.directory / "away")

    def objects(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.iterdir()} if self.folder.exists() else {}


class Server(Target):
    """A store that speaks HTTP on a port of its own."""

    ready = "/"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        """The program and its words."""
        raise NotImplementedError

    def begun(self) -> None:
        """It answers: make the bucket."""

    def start(self) -> None:
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | self.of_server()
            )
        await_that(self._answers, f"{self.name} answers: {(self.directory / 'log').read_text()[-1000:]}", START_S)
        self.begun()

    def of_server(self) -> dict[str, str]:
        """Of its environment."""
        return {}

    def _answers(self) -> bool:
        connection = self.connection()
        try:
            connection.request("GET", self.ready)
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def connection(self) -> http.client.HTTPConnection:
        """A client of the port."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(PATIENCE_S)
            finally:
                process.kill()
                process.wait()

    def client(self) -> S3Store:
        """Who may read."""
        return S3Store(
            BUCKET,
            endpoint=self.url,
            region=REGION,
            access_key_id=USER,
            secret_access_key=SECRET,
            client_options={"allow_http": True},
        )

    def objects(self) -> dict[str, bytes]:
        store = self.client()
        keys = [entry["path"] for page in obstore.list(store) for entry in page]
        return {key: bytes(obstore.get(store, key).bytes()) for key in keys}

    def metadata(self, key: str) -> dict[str, str]:
        return {str(name): str(value) for name, value in obstore.get(self.client(), key).attributes.items()}

    def make_bucket(self) -> None:
        """Idempotent: by hand, for obstore has no word for it. MinIO answers 503 for a moment after it is ready."""
        await_that(lambda: self.ask("PUT", f"/{BUCKET}") != 503, "the bucket can be made")

    def ask(self, method: str, path: str, body: bytes = b"") -> int:
        """A signed request that obstore does not make."""
        from tests.real.stores.signing import signed

        connection = self.connection()
        try:
            headers = signed(method, f"127.0.0.1:{self.port}", path, body, (USER, SECRET, REGION))
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            said = answer.read()
            assert answer.status in (200, 204, 409, 503), (answer.status, said)
            return answer.status
        finally:
            connection.close()


class Moto(Server):
    """aws:s3: moto, which forgets everything when it ends."""

    name = "aws:s3"
    ready = "/moto-api/"

    @property
    def environment(self) -> dict[str, str]:
        return {"AWS_ENDPOINT_URL": self.url, "AWS_ACCESS_KEY_ID": USER, "AWS_SECRET_ACCESS_KEY": SECRET}

    def command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def begun(self) -> None:
        self.make_bucket()


class Minio(Server):
    """minio:s3."""

    name = "minio:s3"
    ready = "/minio/health/ready"

    def __init__(self, directory: Path) -> None:
        self.program = minio_program()
        super().__init__(directory)

    @property
    def settings(self) -> dict[str, Any]:
        return {"minio": {"endpoint": f"127.0.0.1:{self.port}", "access_key": USER, "secret_key": SECRET}}

    def of_server(self) -> dict[str, str]:
        return {
            "MINIO_ROOT_USER": USER,
            "MINIO_ROOT_PASSWORD": SECRET,
            "MINIO_UPDATE": "off",
            "MINIO_BROWSER": "off",
            "HOME": str(self.directory),
        }

    def command(self) -> list[str]:
        data = self.directory / "data"
        return [self.program, "server", "--address", f"127.0.0.1:{self.port}", "--quiet", str(data)]

    def begun(self) -> None:
        self.make_bucket()


class Google(Minio):
    """gcp:gcs: Google's client against the same wire protocol."""

    name = "gcp:gcs"

    @property
    def settings(self) -> dict[str, Any]:
        key: dict[str, Any] = {"gcs_base_url": self.url, "disable_oauth": True}
        key |= dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        return {"gcp": {"credentials_path": json.dumps(key)}}

    def metadata(self, key: str) -> dict[str, str]:
        """Google's headers of metadata mean nothing to MinIO."""
        return {}

    def begun(self) -> None:
        super().begun()
        self.ask("PUT", f"/{BUCKET}?policy=", json.dumps(PUBLIC).encode())


TARGETS: tuple[type[Target], ...] = (Folder, Moto, Minio, Google)


@contextlib.contextmanager
def running(kind: type[Target], directory: Path) -> Any:
    """One of them, started; ended after the block."""
    target = kind(directory)
    try:
        target.start()
        yield target
    finally:
        target.stop()
