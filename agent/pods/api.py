"""Requests to an API server or a kubelet: over TLS that is always checked, with one token, within bounds.

AskFailed        try again after a pause; the reason is for a person
└── Expired      what was asked to go on from is no longer known there: list anew
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping

import httpx
import trio

from agent.pods.decode import read_message
from stoop.wire import PodsKey

CONNECT_S = 10.0
"""To connect and to agree on TLS, and to send a request: the same data centre."""

ANSWER_S = 30.0
"""For each part of an answer that is not a watch. An API server ends a request of its own at 60 s."""

MAX_ANSWER = 64 * 1024 * 1024
"""Bytes of a list: 250 pods with 256 KiB of annotations each, which is the limit. Usual ones have 2 to 5 KiB."""

MAX_COMPLAINT = 4096
"""Bytes read of an answer that is an error."""

PLAIN = "identity"
"""The one encoding that is taken: a compressed answer could be a thousand times as large as what was sent."""


class AskFailed(Exception):
    """It could not be asked, or did not answer as it should."""


class Expired(AskFailed):
    """410 Gone (Kubernetes, "Efficient detection of changes")."""


class Api:
    """One server. Made by `connected`."""

    def __init__(self, client: httpx.AsyncClient, server_name: str) -> None:
        self._client = client
        self._extensions = {"sni_hostname": server_name} if server_name else {}

    async def get(self, path: str, query: Mapping[str, str], accept: str) -> bytearray:
        """The whole answer. Raises AskFailed, Expired."""
        data = bytearray()
        async with self.parts(path, query, accept, ANSWER_S) as parts:
            async for part in parts:
                data += part
                if len(data) > MAX_ANSWER:
                    raise AskFailed(f"it answers with more than {MAX_ANSWER >> 20} MiB")
        return data

    @contextlib.asynccontextmanager
    async def parts(
        self, path: str, query: Mapping[str, str], accept: str, quiet_s: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """An answer as it comes, once it is known to be one. Raises AskFailed, Expired, there and while it is read.

        `quiet_s`: how long nothing may come.
        """
        request = self._client.build_request(
            "GET",
            path,
            params=query,
            headers={"Accept": accept},
            timeout=httpx.Timeout(CONNECT_S, read=quiet_s),
            extensions=self._extensions,
        )
        with _translated():
            response = await self._client.send(request, stream=True)
            parts = response.aiter_raw()
            try:
                if response.status_code != httpx.codes.OK:
                    raise await _complaint(response, parts)
                if response.headers.get("Content-Encoding", PLAIN) != PLAIN:
                    raise AskFailed("it answers in an encoding that was not asked for")
                yield parts
            finally:
                await _end(parts)
                await response.aclose()


@contextlib.asynccontextmanager
async def connected(server: str, server_name: str, key: PodsKey) -> AsyncIterator[Api]:
    """A server to be asked. The connection is made with the first request. Raises AskFailed."""
    with _translated():
        context = ssl.create_default_context(cadata=_authorities(key.authorities))
        # Python 3.13 asks for the key identifiers of RFC 5280, which certificates that a kubelet or an older kubeadm
        # made for itself lack. Chain, name and time are checked with and without.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        client = httpx.AsyncClient(
            base_url=server,
            verify=context,
            trust_env=False,  # no proxy: a token is shown to the server alone
            follow_redirects=False,
            headers={
                "Authorization": f"Bearer {key.token.decode('ascii')}",
                "Accept-Encoding": PLAIN,
                "User-Agent": "stoop",
            },
        )
    async with client:
        yield Api(client, server_name)


def _authorities(pem: bytes) -> str:
    text = pem.decode("ascii", "replace")
    if "BEGIN CERTIFICATE" not in text:
        raise AskFailed("pods.ca_file holds no certificate")
    return text


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """httpx's errors, and the kernel's and TLS's that come through it, as ours. A module that could not be loaded
    (`warm` has missed it) is told, and no reason for the helper to end."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, ssl.SSLError, OSError, ImportError) as error:
        raise AskFailed(_said(error)) from error


def _said(error: BaseException) -> str:
    """The first of it and its causes that says something: httpx often hands on its class alone."""
    cause: BaseException | None = error
    while cause is not None:
        if text := str(cause).strip():
            return f"{type(error).__name__}: {text[:MAX_COMPLAINT]}"
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


async def _end(parts: AsyncIterator[bytes]) -> None:
    """End what is not read to its end. httpx nests asynchronous generators and closes the outermost alone, so each is
    ended by being cancelled where it waits."""
    with trio.CancelScope() as scope:
        scope.cancel()
        async for _ in parts:
            pass


async def _complaint(response: httpx.Response, parts: AsyncIterator[bytes]) -> AskFailed:
    """What the server says against it: its Status' message where there is one."""
    said = bytearray()
    async for part in parts:
        said += part[: MAX_COMPLAINT - len(said)]
        if len(said) >= MAX_COMPLAINT:
            break
    text = " ".join(said.decode("utf-8", "replace").split())
    kind = Expired if response.status_code == httpx.codes.GONE else AskFailed
    return kind(
        f"it answers {response.status_code}: {read_message(bytes(said)) or text[:200] or response.reason_phrase}"
    )
