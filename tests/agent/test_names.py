"""The reflex's end of names: what it reads for the helper, what it asks for, and what it says of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.names import ASK_NS, MAX_AUTHORITIES, MAX_TOKEN, TELL_NS, Names, read_small
from stoop import extras
from stoop.config import Pods, PodsFrom
from stoop.errors import StartRefused
from stoop.metrics import Metrics
from stoop.podmeta import PodMeta
from stoop.pods import PodFacts, Source, Told
from stoop.recorder import Recorder
from stoop.rules import ActionForm, Condition, MatchForm, RuleForm, RuleSet
from stoop.spec import Mode
from stoop.testing import FakeLedger
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
    Serving,
)

POD = PodMeta("uid", "shop", "web-1", labels={"app": "web"})
FACTS = PodFacts("c" * 64, uid=Told("uid", Source.CGROUP), in_pod=True)


class Bench:
    """Names with its surroundings: `sent` to the helper, `said` for the log."""

    def __init__(self, **pods: Any) -> None:
        self.sent: list[AnyMessage] = []
        self.said: list[tuple[str, str, dict[str, Any]]] = []
        self.now = 10**12
        self.names = Names(Pods(**pods), "node-1", self._send, self._say, lambda: self.now)

    def _send(self, message: AnyMessage) -> bool:
        self.sent.append(message)
        return True

    def _say(self, level: str, event: str, **fields: Any) -> None:
        self.said.append((level, event, fields))

    def key(self) -> PodsKey:
        self.names.take(PodsKeyAsk())
        key = self.sent.pop()
        assert isinstance(key, PodsKey)
        return key


MakeBench = Callable[..., Bench]


@pytest.fixture
def make(tmp_path: Path) -> MakeBench:
    def build(source: PodsFrom = PodsFrom.WATCH, **more: Any) -> Bench:
        token, authorities = tmp_path / "token", tmp_path / "ca.crt"
        token.write_bytes(b"abc.def\n")
        authorities.write_bytes(b"-----BEGIN CERTIFICATE-----")
        files = {"token_file": str(token), "ca_file": str(authorities)}
        return Bench(**{"source": source, "server": "https://api:443", **files, **more})

    return build


def rule(name: str, field: str) -> RuleForm:
    match = MatchForm(entries=((Condition(field, False, ("x",)),),))
    return RuleForm(name, match, (ActionForm("do", "process:kill", continue_=True),))


# ---------------------------------------------------------------- token and certificates


def test_both_are_handed_over_as_they_are_now(make: MakeBench, tmp_path: Path) -> None:
    bench = make()
    assert bench.key() == PodsKey(b"abc.def", b"-----BEGIN CERTIFICATE-----")
    (tmp_path / "token").write_bytes(b"renewed")
    assert bench.key().token == b"renewed"


def test_a_projected_volume_is_made_of_symlinks(make: MakeBench, tmp_path: Path) -> None:
    bench = make()
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "token").write_bytes(b"linked")
    (tmp_path / "token").unlink()
    (tmp_path / "token").symlink_to("..data/token")
    assert bench.key().token == b"linked"


@pytest.mark.parametrize(
    "content", [b"", b" \n", b"two words", b"two\nlines", b"\xff", b"nul\0", b"x" * (MAX_TOKEN + 1)]
)
def test_what_is_no_token_is_not_handed_over(make: MakeBench, tmp_path: Path, content: bytes) -> None:
    bench = make()
    (tmp_path / "token").write_bytes(content)
    key = bench.key()
    assert (key.token, key.authorities) == (b"", b"")
    assert key.error.startswith(f"{tmp_path}/token: ")


def test_certificates_are_bounded(make: MakeBench, tmp_path: Path) -> None:
    bench = make()
    (tmp_path / "ca.crt").write_bytes(b"x" * (MAX_AUTHORITIES + 1))
    assert bench.key().error == f"{tmp_path}/ca.crt: more than {MAX_AUTHORITIES} bytes"


def test_what_is_no_file_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, why in (
        (tmp_path / "none", "No such file or directory"),
        (tmp_path / "fifo", "not a regular file"),
        (tmp_path, "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
    ):
        with pytest.raises(ValueError, match=f"{path}: {why}"):
            read_small(str(path), 9)


# ---------------------------------------------------------------- asking


def test_a_new_helper_is_told_what_to_ask(make: MakeBench) -> None:
    bench = make(interval_ns=7 * 10**9, server_name="node-1", source=PodsFrom.KUBELET)
    bench.names.greet()
    assert bench.sent == [PodsWanted("kubelet", "https://api:443", "node-1", "node-1", 7.0)]
    assert bench.names.extras == ("pods",)


def test_the_start_is_refused_where_what_asks_is_not_installed(
    make: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(extras.EXTRAS, "pods", ("no_such_module",))
    assert make(PodsFrom.FALCO).names.extras == ()
    with pytest.raises(StartRefused, match=r"no_such_module is not installed.*source: watch.*install 'stoop\[pods\]'"):
        make().names.extras  # noqa: B018 - it is asked for


@pytest.mark.parametrize("source", [PodsFrom.NONE, PodsFrom.FALCO])
def test_where_nothing_is_asked_nothing_is_joined(make: MakeBench, source: PodsFrom) -> None:
    bench = make(source)
    bench.names.greet()
    bench.names.book.put(POD)
    assert bench.names.join(FACTS) is FACTS
    assert (bench.sent, bench.names.extras) == ([], ())
    assert bench.names.status() == {"source": str(source)}
    metrics = Metrics()
    bench.names.count(metrics)
    assert "pods_known" not in metrics.samples()


def test_a_pod_that_is_not_known_is_asked_for_once_a_second(make: MakeBench) -> None:
    bench = make()
    for _ in range(3):
        assert bench.names.join(FACTS) is FACTS
    assert bench.sent == [PodsNow()]
    bench.now += ASK_NS
    bench.names.join(FACTS)
    assert len(bench.sent) == 2
    bench.names.take(PodKnown(POD))
    assert bench.names.join(FACTS).meta == POD
    bench.now += ASK_NS
    bench.names.join(PodFacts("c" * 64, in_pod=False))
    assert len(bench.sent) == 2
    assert bench.names.counters()["pods_unknown_total"] == [((), 4)]


# ---------------------------------------------------------------- what it says


def test_the_status_from_the_start_to_a_stale_word(make: MakeBench) -> None:
    bench = make()
    names = bench.names
    names.use(RuleSet.of([rule("labels", "k8s.pod.label[app]"), rule("names", "k8s.ns.name")]))
    asked = {"source": "watch", "rules": ["labels"], "left_out": 0, "node": "node-1", "unknown": 0}
    none = {"known": 0, "listed": False, "age_s": 0.0, "stale": False, "error": ""}
    assert names.status() == asked | none
    for message in (PodKnown(POD), PodsListed(("uid",)), PodsTrouble("no route")):
        assert names.take(message)
    bench.now += 200 * 10**9
    assert names.status() == asked | {"known": 1, "listed": True, "age_s": 200.0, "stale": True, "error": "no route"}
    metrics = Metrics()
    names.count(metrics)
    samples = metrics.samples()
    assert [samples[name] for name in ("pods_known", "pods_age_seconds", "pods_left_out")] == [
        [((), 1)],
        [((), 200.0)],
        [((), 0)],
    ]
    names.take(PodsFresh())
    assert names.status()["age_s"] == 0.0
    names.take(PodGone("uid"))
    assert names.status()["known"] == 0
    assert not names.take(Serving("", 0))


def test_what_is_said_once(make: MakeBench) -> None:
    bench = make()
    for message in (PodsTrouble("away"), PodsTrouble("away"), PodsListed(()), PodsTrouble(""), PodsListed(("a",), 7)):
        bench.names.take(message)
    assert [(level, event) for level, event, _ in bench.said] == [
        ("warning", "the pods of this node can't be asked for"),
        ("info", "the pods of this node are known"),
        ("info", "the pods of this node can be asked for again"),
        ("warning", "pods are left out: there are more than can be kept"),
    ]


def test_rules_that_could_not_be_decided_are_said_once_a_minute(make: MakeBench) -> None:
    bench = make()
    recorder = Recorder(FakeLedger(), Metrics(), lambda: Mode.ENFORCE, ())
    for _ in range(3):
        recorder.undecided("R", frozenset({"k8s.pod.label[app]"}))
        bench.names.tell_undecided(recorder)
    bench.now += TELL_NS
    bench.names.tell_undecided(recorder)
    event = "a rule did not match: what it asks is not known"
    assert bench.said == [
        ("warning", event, {"rule": "R", "count": count, "fields": ["k8s.pod.label[app]"]}) for count in (1, 2)
    ]


def test_what_crosses_the_socket_comes_back_whole() -> None:
    for message in (
        PodKnown(POD),
        PodsListed(("a", "b"), 3),
        PodsKey(b"t", b"c", "e"),
        PodsWanted("watch", "s", "", "n", 1.0),
    ):
        data = msgspec.msgpack.encode(message)
        assert msgspec.msgpack.decode(data, type=type(message)) == message
