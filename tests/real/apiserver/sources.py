"""Both sources of pods' metadata for tests: the watch at the API server, and a stand-in for a kubelet.

No kubelet runs here without a node; the stand-in answers `/pods` with the API server's own PodList of the node, and
asks the same API server as a kubelet does who a token is (TokenReview) and what he may (SubjectAccessReview on
nodes/pods, then nodes/proxy). Both ends are the real ones, `Names` of the reflex and `Source` of the helper, without
the socket between them.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import monotonic_ns
from typing import Any

import trio

from agent.names import Names
from agent.pods.source import Source
from stoop.config import Pods, PodsFrom
from stoop.podmeta import PodMeta
from stoop.pods import PodFacts, Told
from stoop.pods import Source as By
from stoop.wire import AnyMessage, PodsKey, PodsNow, PodsWanted
from tests.real.apiserver.cluster import Cluster

PATIENCE_S = 30.0
POLL_NS = 10**9

RIGHTS = {
    "watch": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}],
    "kubelet": [{"apiGroups": [""], "resources": ["nodes/pods"], "verbs": ["get"]}],
}
"""What docs/security.md says that each needs, and no more."""


@contextlib.contextmanager
def kubelet(cluster: Cluster, node: str) -> Iterator[str]:
    """A stand-in for the kubelet of a node; where it is served. Its certificate bears the node's name alone."""
    certificate, key = cluster.certificate(node, f"DNS:{node}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Kubelet, cluster, node))
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    serving.start()
    try:
        yield f"https://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        serving.join()


class _Kubelet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, cluster: Cluster, node: str, *more: Any) -> None:
        self._cluster = cluster
        self._node = node
        with contextlib.suppress(OSError):  # whoever does not believe the certificate goes away in the handshake
            super().__init__(*more)

    def do_GET(self) -> None:
        user = self._user(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if user is None:
            self._answer(401, b"Unauthorized")
        elif not (self._may(user, "pods") or self._may(user, "proxy")):
            self._answer(403, f"Forbidden (user={user['username']}, verb=get, resource=nodes)".encode())
        elif self.path == "/pods":
            pods = self._cluster.call("GET", f"/api/v1/pods?fieldSelector=spec.nodeName={self._node}")
            self._answer(200, json.dumps(pods).encode())
        else:
            self._answer(404, b"404 page not found")

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""

    def _user(self, token: str) -> Any:
        review = self._cluster.call("POST", "/apis/authentication.k8s.io/v1/tokenreviews", {"spec": {"token": token}})
        return review["status"]["user"] if review["status"].get("authenticated") else None

    def _may(self, user: Any, subresource: str) -> bool:
        asked = {"verb": "get", "version": "v1", "resource": "nodes", "subresource": subresource, "name": self._node}
        spec = {"user": user["username"], "groups": user["groups"], "resourceAttributes": asked}
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        return bool(self._cluster.call("POST", path, {"spec": spec})["status"]["allowed"])

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Way:
    """The way to a server, which a test can cut."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._cut = trio.Event()
        self.connections = 0
        self.port = 0

    def cut(self) -> None:
        """Nothing goes through, and what went ends."""
        self._cut.set()

    def mend(self) -> None:
        """It goes through again."""
        self._cut = trio.Event()

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._carry, [listener])

    async def _carry(self, ours: trio.SocketStream) -> None:
        if self._cut.is_set():
            await ours.aclose()
            return
        self.connections += 1
        with trio.CancelScope() as scope:
            async with ours, await trio.open_tcp_stream("127.0.0.1", self._to) as theirs, trio.open_nursery() as both:
                both.start_soon(self._until_cut, scope)
                both.start_soon(_copy, ours, theirs)
                await _copy(theirs, ours)
                scope.cancel()

    async def _until_cut(self, scope: trio.CancelScope) -> None:
        await self._cut.wait()
        scope.cancel()


async def _copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for data in source:
            await sink.send_all(data)


class Rig:
    """One source under way. `said`: its words for the log."""

    def __init__(self, kind: str, cluster: Cluster, node: str, directory: Path) -> None:
        self.kind, self.cluster, self.node = kind, cluster, node
        self.namespace = cluster.namespace()
        self.token_file = directory / "token"
        self.ca_file = directory / "ca.crt"
        self.ca_file.write_bytes(cluster.ca.read_bytes())
        self.token_file.write_text(cluster.account(self.namespace, "agent", RIGHTS[kind]))
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.interval_ns = POLL_NS
        self.server_name = node if kind == "kubelet" else ""
        self.names: Names

    @contextlib.asynccontextmanager
    async def asking(self) -> AsyncIterator[Way]:
        """Ask, over a way that can be cut."""
        with contextlib.ExitStack() as stack:
            server = (
                self.cluster.server if self.kind == "watch" else stack.enter_context(kubelet(self.cluster, self.node))
            )
            way = Way(int(server.rpartition(":")[2]))
            async with trio.open_nursery() as nursery:
                await nursery.start(way.serve)
                nursery.start_soon(self._source(way.port).run)
                yield way
                nursery.cancel_scope.cancel()

    def _source(self, port: int) -> Source:
        pods = Pods(
            source=PodsFrom(self.kind),
            server=f"https://127.0.0.1:{port}",
            server_name=self.server_name,
            token_file=str(self.token_file),
            ca_file=str(self.ca_file),
            interval_ns=self.interval_ns,
        )
        made: list[Source] = []

        def to_source(message: AnyMessage) -> bool:
            if isinstance(message, PodsWanted):
                made.append(Source(message, to_reflex, lambda: None))
            elif isinstance(message, PodsKey):
                made[0].take_key(message)
            elif isinstance(message, PodsNow):
                made[0].ask_now()
            return True

        def to_reflex(*messages: AnyMessage) -> None:
            for message in messages:
                assert self.names.take(message)

        def say(level: str, event: str, **fields: Any) -> None:
            self.said.append((event, fields))

        self.names = Names(pods, self.node, to_source, say, monotonic_ns)
        self.names.greet()
        return made[0]

    def known(self, uid: str) -> PodMeta | None:
        """What the reflex knows of the pod whose cgroup says this uid."""
        return self.names.join(PodFacts("c" * 64, uid=Told(uid, By.CGROUP), in_pod=True)).meta

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for what a server does in its own time."""
        with trio.move_on_after(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - another program's, which says nothing when it has done it
                await trio.sleep(0.005)
            return
        raise AssertionError(f"not seen: {what}; said: {self.said}; {self.names.status()}")

    async def listed(self) -> None:
        """Until all pods of some moment are known."""
        await self.until(lambda: self.names.book.is_listed, "a list")
