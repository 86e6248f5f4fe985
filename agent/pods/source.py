"""Asks for the metadata of this node's pods: by a watch of the API, or by questions to the kubelet.

    run ─┬─ key from the reflex ─▶ connected ─▶ list ─▶ watch … ends ─▶ again with a new key
         └─ Telling ─▶ reflex
A watch goes on from the version that it has seen (resourceVersion); 410 Gone begins anew with a list; everything else
is tried again after a growing pause with a share of chance, so that no two nodes keep step.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import trio

from agent.pods.api import Api, AskFailed, Expired, connected
from agent.pods.decode import Event, Garbled, Lines, read_event, read_list
from agent.pods.telling import Telling
from stoop.wire import PodsKey, PodsKeyAsk, PodsWanted

METADATA = "application/json;as=PartialObjectMetadata{};g=meta.k8s.io;v=v1"
"""Metadata alone (Kubernetes API concepts, "Metadata-only fetches"): neither environments nor images cross the wire."""

WATCH_S = (240, 480)
"""How long one watch is asked for, by chance: it ends in order, and the next one shows the token of then. A projected
token lives an hour and is renewed at 80 % of it."""

QUIET_S = 150.0
"""A watch on which nothing came for so long is dead: bookmarks come once a minute."""

KEY_S = 5.0
"""For the reflex to hand over token and certificates."""

SAME_KEY_S = 60.0
"""How long the kubelet is asked over one connection, with one token."""

ASK_S = 1.0
"""Between two questions to the kubelet at least, whoever wants to know."""

FIRST_PAUSE_S, LAST_PAUSE_S = 0.25, 60.0
"""Before it is tried again: doubled each time. An API server that comes back is not met by all nodes at once."""

LIVED_S = 30.0
"""A connection that lived so long starts the pauses anew."""


class Source:
    """One source. `post` sends to the reflex."""

    def __init__(self, wanted: PodsWanted, post: Callable[..., None], settle: Callable[[], None]) -> None:
        """`settle` is called when a list has been read: it leaves much memory free."""
        self._wanted = wanted
        self._post = post
        self._settle = settle
        self._telling = Telling(post)
        self._key: PodsKey | None = None
        self._key_came = trio.Event()
        self._now = trio.Event()
        self._version = ""
        self._asked_at = float("-inf")

    def take_key(self, key: PodsKey) -> None:
        """What the reflex handed over."""
        self._key = key
        self._key_came.set()

    def ask_now(self) -> None:
        """Somebody wants to know of a pod that is not known. A watch tells by itself."""
        self._now.set()

    async def run(self) -> None:
        """Ask until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._telling.run)
            pause_s = FIRST_PAUSE_S
            while True:
                began = trio.current_time()
                try:
                    key = await self._new_key()
                    async with connected(self._wanted.server, self._wanted.server_name, key) as api:
                        await (self._watch(api) if self._wanted.source == "watch" else self._poll(api))
                    failed = False
                except Expired:
                    self._version = ""
                    failed = True
                except (AskFailed, Garbled) as error:
                    self._telling.trouble(str(error))
                    failed = True
                lived = trio.current_time() - began >= LIVED_S
                if not failed and lived:
                    continue
                pause_s = FIRST_PAUSE_S if lived else pause_s
                await trio.sleep(pause_s * random.uniform(0.5, 1.5))
                pause_s = min(2 * pause_s, LAST_PAUSE_S)

    async def _new_key(self) -> PodsKey:
        self._key, self._key_came = None, trio.Event()
        self._post(PodsKeyAsk())
        with trio.move_on_after(KEY_S):
            await self._key_came.wait()
        if self._key is None:
            raise AskFailed("the reflex does not hand over the token")
        if self._key.error:
            raise AskFailed(self._key.error)
        return self._key

    # ------------------------------------------------------------ the API

    async def _watch(self, api: Api) -> None:
        """One watch, after a list where there is no version to go on from. Returns when the server ends it in order."""
        query = {"fieldSelector": f"spec.nodeName={self._wanted.node}"}
        if not self._version:
            # 0: from the server's cache, which is indexed by node. Without it etcd reads the pods of all nodes.
            data = await api.get("/api/v1/pods", query | {"resourceVersion": "0"}, METADATA.format("List"))
            listed = read_list(data)
            self._telling.listed(listed.pods)
            self._version = listed.version
            del data, listed
            self._settle()
        query |= {"watch": "1", "allowWatchBookmarks": "true", "resourceVersion": self._version}
        query["timeoutSeconds"] = str(random.randint(*WATCH_S))
        lines = Lines()
        async with api.parts("/api/v1/pods", query, METADATA.format(""), QUIET_S) as parts:
            self._telling.trouble("")
            async for part in parts:
                for line in lines.feed(part):
                    self._take(read_event(line))

    def _take(self, event: Event) -> None:
        if event.type == "ERROR":
            raise Expired(event.message) if event.code == 410 else AskFailed(f"{event.code}: {event.message}")
        self._version = event.version or self._version
        if event.pod is None:
            self._telling.fresh()
        elif event.type == "DELETED":
            self._telling.gone(event.pod.uid)
        else:
            self._telling.put(event.pod)

    # ------------------------------------------------------------ the kubelet

    async def _poll(self, api: Api) -> None:
        """Ask for all pods, again and again, as long as one token is used."""
        until = trio.current_time() + SAME_KEY_S
        while trio.current_time() < until:
            await trio.sleep_until(self._asked_at + ASK_S)
            self._now = trio.Event()
            self._asked_at = trio.current_time()
            self._telling.listed(read_list(await api.get("/pods", {}, "application/json")).pods)
            self._telling.trouble("")
            self._settle()
            with trio.move_on_after(self._wanted.interval_s * random.uniform(0.8, 1.2)):
                await self._now.wait()
