"""What the reflex was told of pods, and what it has to be told next: only what is new, and not too often."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import trio

from stoop.podmeta import PodMeta
from stoop.wire import AnyMessage, PodGone, PodKnown, PodsFresh, PodsListed, PodsTrouble

MAX_PODS = 1024
"""As many as the reflex keeps (agent/podbook.py)."""

PAUSE_S = 0.05
"""Between two tellings. Whoever changes a pod's labels without end costs the reflex twenty frames a second a pod, of
4 µs each, 21 for the largest (measured)."""

FRESH_S = 10.0
"""Between two words that nothing is new."""


class Telling:
    """Keeps the pods of now, and tells what changed. `post` sends to the reflex, in order."""

    def __init__(self, post: Callable[..., None]) -> None:
        self._post = post
        self._pods: dict[str, PodMeta] = {}
        self._changed: dict[str, PodMeta | None] = {}
        self._listed = False
        self._left_out = 0
        self._fresh = False
        self._fresh_told = float("-inf")
        self._trouble: str | None = None
        self._more = trio.Event()

    def put(self, pod: PodMeta) -> None:
        """A pod is there, or has changed."""
        self.fresh()
        if self._pods.get(pod.uid) == pod:
            return
        if pod.uid not in self._pods and len(self._pods) >= MAX_PODS:
            return
        self._pods[pod.uid] = self._changed[pod.uid] = pod
        self._more.set()

    def gone(self, uid: str) -> None:
        """A pod was deleted."""
        self.fresh()
        if self._pods.pop(uid, None) is not None:
            self._changed[uid] = None
            self._more.set()

    def listed(self, pods: Iterable[PodMeta]) -> None:
        """These are all there are."""
        now = {pod.uid: pod for pod in pods}
        for uid in self._pods.keys() - now.keys():
            self.gone(uid)
        for pod in now.values():
            self.put(pod)
        self._left_out = len(now.keys() - self._pods.keys())
        self._listed = True
        self._more.set()

    def fresh(self) -> None:
        """What was told is still so."""
        self._fresh = True
        if trio.current_time() - self._fresh_told >= FRESH_S:
            self._more.set()

    def trouble(self, error: str) -> None:
        """It can't be asked; "": it can."""
        self._trouble = error
        self._more.set()

    async def run(self) -> None:
        """Tell until cancelled."""
        while True:
            await self._more.wait()
            self._more = trio.Event()
            self._post(*self._messages())
            await trio.sleep(PAUSE_S)

    def _messages(self) -> Iterable[AnyMessage]:
        changed, self._changed = self._changed, {}
        told: list[AnyMessage] = [PodKnown(pod) if pod is not None else PodGone(uid) for uid, pod in changed.items()]
        if self._listed:
            told.append(PodsListed(tuple(self._pods), self._left_out))
        elif self._fresh and not changed:
            told.append(PodsFresh())
        if self._fresh or self._listed:
            self._fresh_told = trio.current_time()
        self._listed = self._fresh = False
        if self._trouble is not None:
            told.append(PodsTrouble(self._trouble))
            self._trouble = None
        return told
