"""The reflex's end of names beyond the node: what the helper tells of pods, and what it must be handed to ask.

The helper asks, for it has the network and no rights; the reflex has the rights and no network. So the token and the
certificates are read here, when the helper asks for them: each is a small file, read in some 50 µs.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any

from agent.podbook import STALE_NS, Podbook
from stoop.config import Pods
from stoop.errors import StartRefused
from stoop.extras import missing
from stoop.metrics import Metrics
from stoop.podmeta import is_metadata
from stoop.pods import PodFacts
from stoop.recorder import Recorder
from stoop.rules import RuleSet
from stoop.wire import (
    AnyMessage,
    PodGone,
    PodKnown,
    PodsFresh,
    PodsKey,
    PodsKeyAsk,
    PodsListed,
    PodsNow,
    PodsTrouble,
    PodsWanted,
)

EXTRA = "pods"
"""The extra of the distribution that asking needs."""

MAX_TOKEN = 64 * 1024
"""Bytes: a service account's token has some 1 KiB, one of an identity provider with many groups some ten."""

MAX_AUTHORITIES = 1024 * 1024
"""Bytes of certificates: a cluster has one to three of 2 KiB each, a system's whole bundle is 220 KiB."""

ASK_NS = 10**9
"""Between two questions of our own: a kubelet of 250 pods writes some MB of JSON for each."""

TELL_NS = 60 * 10**9
"""Between two words that rules did not match for want of names: alerts can be many, and the metric counts each."""

MAX_RULES_TOLD = 20
"""Names of rules in `stoop status`: who has more reads the check."""


class Names:
    """Pods' metadata for the reflex. Where nothing is asked, it joins nothing and says so."""

    def __init__(
        self,
        pods: Pods,
        node: str,
        send: Callable[[AnyMessage], bool],
        say: Callable[..., None],
        mono_ns: Callable[[], int],
    ) -> None:
        self._pods = pods
        self._node = node
        self._send = send
        self._say = say
        self._mono_ns = mono_ns
        self._asked_ns = 0
        self._told_ns = -TELL_NS
        self._rules: list[str] = []
        self.book = Podbook(mono_ns)
        self.error = ""

    @property
    def extras(self) -> tuple[str, ...]:
        """What the helper has to import before its rights go. Raises StartRefused when that is not installed."""
        if not self._pods.source.is_asked:
            return ()
        if lacking := missing(EXTRA):
            raise StartRefused(
                f"{lacking} is not installed, which pods.source: {self._pods.source} needs",
                hint=f"pip install 'stoop[{EXTRA}]'",
            )
        return (EXTRA,)

    def greet(self) -> None:
        """To a new helper: ask."""
        if self._pods.source.is_asked:
            pods = self._pods
            self._send(PodsWanted(str(pods.source), pods.server, pods.server_name, self._node, pods.interval_ns / 1e9))

    def use(self, rules: RuleSet) -> None:
        """The rules of now."""
        self._rules = [
            rule.form.rule
            for rule in rules.rules
            if any(is_metadata(condition.key) for entry in rule.form.match.entries for condition in entry)
        ]

    def take(self, message: AnyMessage) -> bool:
        """A message from the helper; False when it is about something else."""
        if isinstance(message, PodKnown):
            self.book.put(message.pod)
        elif isinstance(message, PodGone):
            self.book.gone(message.uid)
        elif isinstance(message, PodsFresh):
            self.book.fresh()
        elif isinstance(message, PodsListed):
            self._listed(message)
        elif isinstance(message, PodsTrouble):
            self._trouble(message.error)
        elif isinstance(message, PodsKeyAsk):
            self._send(self._key())
        else:
            return False
        return True

    def tell_undecided(self, recorder: Recorder) -> None:
        """Say which rules did not match for want of names, at most once in TELL_NS."""
        now_ns = self._mono_ns()
        if now_ns - self._told_ns < TELL_NS:
            return
        for rule, (count, fields) in recorder.take_undecided().items():
            self._told_ns = now_ns
            unknown = sorted(fields)[:MAX_RULES_TOLD]
            self._say(
                "warning", "a rule did not match: what it asks is not known", rule=rule, count=count, fields=unknown
            )

    def join(self, facts: PodFacts) -> PodFacts:
        """What the node says of a container's pod, with the API's word on it. Nothing is waited for: what is not known
        yet is not known, and asked for."""
        if not self._pods.source.is_asked:
            return facts
        joined = self.book.join(facts)
        if joined is facts and facts.uid.value and self._mono_ns() - self._asked_ns >= ASK_NS:
            self._asked_ns = self._mono_ns()
            self._send(PodsNow())
        return joined

    # ------------------------------------------------------------ for people

    def status(self) -> dict[str, Any]:
        """For `stoop status` and the detail of /readyz: no alert waits for it, so it makes no agent unready."""
        book = self.book
        told: dict[str, Any] = {"source": str(self._pods.source)}
        if self._pods.source.is_asked:
            told |= {"known": len(book), "listed": book.is_listed, "age_s": round(book.age_ns / 1e9, 1)}
            told |= {"node": self._node, "unknown": book.unknown}
            told |= {"stale": book.age_ns > STALE_NS, "left_out": book.left_out, "error": self.error}
        if self._rules:
            told["rules"] = self._rules[:MAX_RULES_TOLD]
        return told

    def count(self, metrics: Metrics) -> None:
        """Set the gauges of now."""
        if self._pods.source.is_asked:
            metrics.set("pods_known", (), len(self.book))
            metrics.set("pods_left_out", (), self.book.left_out)
            if self.book.is_listed:
                metrics.set("pods_age_seconds", (), self.book.age_ns / 1e9)

    def counters(self) -> dict[str, list[tuple[tuple[str, ...], Any]]]:
        """Counters that are kept here."""
        return {"pods_lists_total": [((), self.book.lists)], "pods_unknown_total": [((), self.book.unknown)]}

    # ------------------------------------------------------------ what the helper says

    def _listed(self, message: PodsListed) -> None:
        first = not self.book.is_listed
        self.book.listed(message.uids, message.left_out)
        if first:
            self._say("info", "the pods of this node are known", source=str(self._pods.source), count=len(self.book))
        if message.left_out:
            self._say("warning", "pods are left out: there are more than can be kept", count=message.left_out)

    def _trouble(self, error: str) -> None:
        if error == self.error:
            return
        self.error = error
        if error:
            self._say("warning", "the pods of this node can't be asked for", error=error, server=self._pods.server)
        else:
            self._say("info", "the pods of this node can be asked for again")

    def _key(self) -> PodsKey:
        try:
            token = read_small(self._pods.token_file, MAX_TOKEN).strip()
            if not token or not token.isascii() or any(byte <= 0x20 for byte in token):
                raise ValueError(f"{self._pods.token_file}: not one token on one line")
            return PodsKey(token, read_small(self._pods.ca_file, MAX_AUTHORITIES))
        except ValueError as error:
            return PodsKey(b"", b"", str(error))


def read_small(path: str, most: int) -> bytes:
    """A regular file whole, at most `most` bytes; symlinks are followed, as a projected volume needs it.

    Never waits for a FIFO or a device. Raises ValueError with the path and the reason.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError(f"{path}: not a regular file")
        data = os.read(fd, most + 1)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    finally:
        os.close(fd)
    if len(data) > most:
        raise ValueError(f"{path}: more than {most} bytes")
    return data
