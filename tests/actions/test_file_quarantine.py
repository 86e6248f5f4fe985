"""file:quarantine's order of things, on a node of values: what is kept when, and whatever comes between the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from stoop.actions.file import quarantine
from stoop.actions.file.quarantine import QuarantineParameters, check, drift, plan, undo, verify
from stoop.captures import About, AsideWanted, Captured, KeepFileWanted, Still, Wanted
from stoop.errors import TargetRefused
from stoop.holdings import GIVEN_BACK
from stoop.node import Capture, ContainerFacts, HeldProcess, ProcessFacts
from stoop.spec import (
    ActContext,
    Begun,
    Outcome,
    Reversal,
    Verdict,
)
from stoop.testing import alert_of
from stoop.testing_node import FakeHost

ID = "c0ffee" * 10 + "1234"
ACT = "a" * 32
ABOUT = About("alert", "run", ACT, "rule", "do it", "file:quarantine")
FILE = {"name": "ZXZpbA==", "layer": "upper", "mode": 0o755, "size": 10, "uid": 0, "gid": 0}
KEPT = Captured(True, details={"file": FILE, "resolved": "/tmp/evil", "bundle": "00000001-x", "sha256": "5a"})


class Hands:
    """Workers whose answers a test gives, by step; all that happened in its order."""

    def __init__(self, **answers: Captured) -> None:
        self.answers = {"keep": KEPT, "aside": Captured(True), "back": Captured(True), "look": Captured(True)} | answers
        self.happened: list[str] = []
        self.wanted: list[Wanted] = []
        self.pids: list[list[int]] = []

    async def take(
        self,
        wanted: Wanted,
        processes: Sequence[ProcessFacts],
        container: ContainerFacts | None,
        still: Still | None = None,
    ) -> Captured:
        assert isinstance(wanted, KeepFileWanted | AsideWanted)
        step = wanted.step if isinstance(wanted, AsideWanted) else "keep"
        self.happened.append(step)
        self.wanted.append(wanted)
        self.pids.append([facts.pid for facts in processes])
        return self.answers[step]

    def begin(self, wanted: Wanted, processes: Sequence[ProcessFacts], container: ContainerFacts | None) -> Capture:
        raise AssertionError("nothing goes on by itself here")

    def release(self, act: str) -> None:
        assert act == ACT
        self.happened.append("release")


class World:
    """A container with an init, 40, and another process, 41."""

    def __init__(self, hands: Hands, said: Sequence[str] = ("", ""), **params: Any) -> None:
        self.hands = hands
        self.host = FakeHost()
        self.host.capture = hands
        for pid in (40, 41):
            self.host.add_in_container(pid, ID)
        self.said = list(said)
        self.state: dict[str, Any] = {}
        self.params = QuarantineParameters(**({"file": "${FD_NAME}"} | params))

    def context(self, actor: HeldProcess | None = None, **fields: Any) -> ActContext:
        alert = alert_of(proc_pid=41, **({"fd_name": "/tmp/evil"} | fields))
        return ActContext(
            host=self.host,
            params=self.params,
            process=None,
            container=self.host.find_container(ID),
            protects=lambda facts: "",
            protects_container=lambda facts: "",
            act=ACT,
            about=lambda: ABOUT,
            alert=alert,
            seen=actor,
        )

    async def keep(self, state: dict[str, Any]) -> str:
        self.hands.happened.append("synced")
        self.state |= state
        return self.said.pop(0)

    async def act(self, actor: HeldProcess | None = None) -> Outcome:
        """Plan and verify, as the responder does."""
        context = self.context(actor)
        planned = plan(context)
        assert isinstance(planned, Reversal)
        self.state = dict(planned.state)
        held = msgspec.structs.replace(context, reversal=planned, keep_synced=self.keep)
        assert isinstance(quarantine.begin(held), Begun)
        return await verify(held, Begun(acted=False))


async def test_the_copy_the_journal_the_change_and_the_journal_again() -> None:
    hands = Hands(aside=Captured(True, details={"changed": True}))
    world = World(hands)
    outcome = await world.act()
    assert hands.happened == ["keep", "synced", "aside", "synced"]
    assert (outcome.verdict, outcome.reason) == (Verdict.DONE, "it was changed since it was kept")
    assert outcome.details["file"] == "/tmp/evil"
    assert msgspec.json.decode(msgspec.json.encode(world.state)) == world.state
    assert world.hands.pids == [[40], [40]]
    assert await drift(world.host, world.state) == ""
    assert (await undo(world.host, world.state)).verdict is Verdict.DONE
    assert hands.happened[-3:] == ["look", "back", "release"]


async def test_the_executable_of_the_alert_s_process() -> None:
    hands = Hands(keep=msgspec.structs.replace(KEPT, details=KEPT.details | {"file": FILE | {"name": ""}}))
    world = World(hands, file="")
    with_actor = world.host.hold(41)
    assert (await world.act(with_actor)).verdict is Verdict.DONE
    assert hands.pids == [[40, 41], [40, 41]]
    assert [wanted.path for wanted in hands.wanted if isinstance(wanted, KeepFileWanted)] == [b""]
    world.host.processes[41].exit()
    outcome = await undo(world.host, world.state)
    assert (outcome.verdict, "nothing to give back" in outcome.reason) == (Verdict.SKIPPED, True)
    assert hands.happened[-1] == "release"


async def test_a_pid_given_anew_is_not_the_one_whose_executable_was_meant() -> None:
    world = World(Hands(), file="")
    context = world.context(world.host.hold(41))
    planned = plan(context)
    assert isinstance(planned, Reversal)
    world.host.add_in_container(41, ID, birth=7)
    held = msgspec.structs.replace(context, reversal=planned, keep_synced=world.keep)
    outcome = await verify(held, Begun(acted=False))
    assert (outcome.verdict, outcome.reason) == (Verdict.SKIPPED, "pid 41 was given anew")
    assert world.hands.happened == []


@pytest.mark.parametrize(
    ("answers", "said", "verdict", "happened"),
    [
        ({"keep": Captured(False, "no", refused=True)}, [], Verdict.REFUSED, ["keep"]),
        ({"keep": Captured(False, "no", gone=True)}, [], Verdict.SKIPPED, ["keep"]),
        ({"keep": Captured(False, "no")}, [], Verdict.FAILED, ["keep"]),
        ({}, ["no space"], Verdict.FAILED, ["keep", "synced", "release"]),
        (
            {"aside": Captured(False, "no", refused=True)},
            [""],
            Verdict.REFUSED,
            ["keep", "synced", "aside", "release"],
        ),
        ({"aside": Captured(False, "no", gone=True)}, [""], Verdict.SKIPPED, ["keep", "synced", "aside", "release"]),
        ({"aside": Captured(False, "half done")}, [""], Verdict.FAILED, ["keep", "synced", "aside"]),
        (
            {},
            ["", GIVEN_BACK],
            Verdict.FAILED,
            ["keep", "synced", "aside", "synced", "back", "release"],
        ),
    ],
)
async def test_what_does_not_work(
    answers: dict[str, Captured], said: list[str], verdict: Verdict, happened: list[str]
) -> None:
    """Nothing is changed before the journal has it; what is not held needs no bundle; given back meanwhile, it is
    given back again."""
    hands = Hands(**answers)
    outcome = await World(hands, said).act()
    assert (outcome.verdict, hands.happened) == (verdict, happened)
    assert outcome.reason


async def test_undo_when_nothing_was_taken_away_yet_or_nothing_is_left() -> None:
    world = World(Hands())
    planned = plan(world.context())
    assert isinstance(planned, Reversal)
    outcome = await undo(world.host, planned.state)
    assert (outcome.verdict, world.hands.happened) == (Verdict.SKIPPED, ["release"])
    assert await drift(world.host, planned.state) == ""
    await world.act()
    for answer, verdict in (
        (Captured(False, "busy"), Verdict.FAILED),
        (Captured(False, "elsewhere", refused=True), Verdict.FAILED),
        (Captured(False, "its directory is gone", gone=True), Verdict.SKIPPED),
    ):
        world.hands.answers["back"] = answer
        assert (await undo(world.host, world.state)).verdict is verdict
    for pid in (40, 41):
        world.host.processes[pid].exit()
    outcome = await undo(world.host, world.state)
    assert (outcome.verdict, "the file is in 00000001-x" in outcome.reason) == (Verdict.SKIPPED, True)
    world.host.capture = None
    assert (await undo(world.host, world.state)).verdict is Verdict.FAILED


@pytest.mark.parametrize(
    ("params", "fields", "why"),
    [
        ({}, {"fd_name": None}, "no value for '${FD_NAME}'"),
        ({}, {"fd_name": "pipe:[77]"}, "no full path"),
        ({}, {"fd_name": "/a\0b"}, "no full path"),
        ({}, {"fd_name": "/" + "x" * 4096}, "no full path"),
        ({"file": "/tmp/${FD_NAME}"}, {"fd_name": "<NA>"}, "no value"),
    ],
)
def test_what_is_no_path(params: dict[str, Any], fields: dict[str, Any], why: str) -> None:
    with pytest.raises(TargetRefused) as caught:
        plan(World(Hands(), **params).context(**fields))
    assert why in caught.value.reason


def test_without_a_process_there_is_no_executable() -> None:
    world = World(Hands(), file="")
    world.host.add(42)
    for actor, why in ((None, "has ended, or is not known"), (world.host.hold(42), "has moved out of its container")):
        outcome = plan(world.context(actor))
        assert isinstance(outcome, Outcome)
        assert (outcome.verdict, why in outcome.reason) == (Verdict.SKIPPED, True)


def test_who_is_protected_and_without_workers() -> None:
    world = World(Hands())
    planned = plan(world.context())
    assert isinstance(planned, Reversal)
    context = msgspec.structs.replace(world.context(), reversal=planned)
    protected = quarantine.begin(msgspec.structs.replace(context, protects=lambda facts: "it is the agent"))
    world.host.capture = None
    for outcome in (
        protected,
        quarantine.begin(context),
        quarantine.begin(msgspec.structs.replace(context, container=None)),
    ):
        assert isinstance(outcome, Outcome)
        assert outcome.verdict is Verdict.REFUSED


@pytest.mark.parametrize(
    ("given", "faults"),
    [
        ({}, []),
        ({"file": "${FD_NAME}", "image_files": True, "interpreters": True, "ttl": "0"}, []),
        ({"file": "tmp/x"}, ["file"]),
        ({"file": "/tmp/\0x"}, ["file"]),
        ({"file": "/" + "x" * 4096}, ["file"]),
        ({"interpreters": True}, ["interpreters"]),
        ({"max_bytes": "0", "ttl": "x"}, ["max_bytes", "ttl"]),
        ({"max_bytes": "1025MiB"}, ["max_bytes"]),
    ],
)
def test_value_rules(given: dict[str, Any], faults: list[str]) -> None:
    found = list(check(QuarantineParameters(**given)))
    assert [(fault.code, fault.parameter) for fault in found] == [("param-value", each) for each in faults]
