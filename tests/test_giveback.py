"""Taking and giving back on a node of values: on time, tried again, once, whatever becomes of the agent meanwhile."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from stoop.actions.container import freeze
from stoop.engine import undo_id
from stoop.errors import ActFailed, TargetGone
from stoop.giveback import LOOK_SECONDS, RETRY_SECONDS, UNDO_SECONDS
from stoop.node import NodeHost
from stoop.rules import ActionForm, MatchForm, RuleForm
from stoop.spec import (
    ActContext,
    Action,
    ActionSpec,
    Begun,
    Outcome,
    Reach,
    Reversal,
    Scope,
    TargetKind,
    Verdict,
)
from stoop.testing import FakeClock, Workbench, alert_of
from stoop.testing_node import BOOT_ID, SECOND_NS

Jumps = trio.testing.MockClock
DONE = Outcome(Verdict.DONE, "out")


class TrioClock(FakeClock):
    """Both clocks go with trio's, which jumps to whatever is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = trio.current_time()

    def mono_ns(self) -> int:
        """CLOCK_MONOTONIC."""
        return self.mono + int((trio.current_time() - self._begun) * SECOND_NS)


class Lamp:
    """A reversible action whose undo does what a test says: `answers` in turn, the last one stays."""

    def __init__(self, *answers: Outcome | Exception, lit: Outcome | None = None, lasting: bool = False) -> None:
        self.answers = list(answers)
        self.undone: list[dict[str, Any]] = []
        self.drifts = ""
        self.lit = lit
        spec = ActionSpec(
            name="lamp",
            description="",
            target=TargetKind.PROCESS,
            scope=Scope.NODE,
            reach=Reach.PROCESS,
            continue_default=True,
            reversible=True,
            outlives_boot=lasting,
        )
        self.action = Action(spec, begin=self.begin, plan=self.plan, undo=self.undo, drift=self.drift)

    def plan(self, ctx: ActContext) -> Reversal:
        """A minute."""
        return Reversal("lit", 60 * SECOND_NS, {"lamp": 1})

    def begin(self, ctx: ActContext) -> Outcome | Begun:
        """Lit at once, unless a test wants otherwise."""
        assert ctx.keep is not None
        ctx.keep({"more": 2})
        return self.lit or Outcome(Verdict.DONE)

    async def undo(self, host: NodeHost, state: dict[str, Any]) -> Outcome:
        """The next answer."""
        self.undone.append(state)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def drift(self, host: NodeHost, state: dict[str, Any]) -> str:
        """What a test says."""
        return self.drifts


def rule_of(actionner: str, name: str = "rule", **parameters: Any) -> RuleForm:
    step = ActionForm("do it", actionner, continue_=True, parameters=parameters)
    return RuleForm(rule=name, match=MatchForm(rules=("Shell",)), actions=(step,), allow_host=True)


def bench_of(lamp: Lamp, *rules: RuleForm) -> Workbench:
    bench = Workbench((lamp.action, freeze.ACTION), rules or (rule_of("lamp"),), clock=TrioClock())
    bench.host.add(40)
    return bench


def undone(bench: Workbench) -> list[tuple[str, str, bool]]:
    return [(str(r.verdict), r.reason, r.amends) for r in bench.ledger.records if "undoes" in r.details]


async def take(bench: Workbench, nursery: trio.Nursery) -> str:
    """Serve, and send the alert; the act that holds."""
    await nursery.start(bench.responder.serve)
    await nursery.start(bench.giveback.serve)
    bench.accept(alert_of(proc_pid=40))
    await bench.responder.idle()
    return bench.ledger.records[0].act


async def test_it_is_kept_before_it_is_done_and_given_back_when_its_time_is_over(
    nursery: trio.Nursery, autojump_clock: Jumps
) -> None:
    lamp = Lamp(DONE)
    bench = bench_of(lamp)
    act = await take(bench, nursery)
    (held,) = bench.files.kept.values()
    assert (held.act, held.state, held.boot_id) == (act, {"lamp": 1, "more": 2}, BOOT_ID)
    await trio.sleep(59.9)
    assert lamp.undone == []
    await trio.sleep(0.2)
    assert lamp.undone == [{"lamp": 1, "more": 2}]
    assert undone(bench) == [("done", "its time is over: out", False)]
    assert bench.ledger.records[-1].act == undo_id(act)
    assert (bench.files.kept, len(bench.holdings.table)) == ({}, 0)
    assert bench.metrics.samples()["undos_total"] == [(("lamp", "done"), 1)]


async def test_that_it_ends_soon_is_said_once_at_four_fifths(nursery: trio.Nursery, autojump_clock: Jumps) -> None:
    bench = bench_of(Lamp(DONE))
    await take(bench, nursery)
    await trio.sleep(47.9)
    assert "a hold is expiring" not in [event for _, event, _ in bench.said]
    await trio.sleep(0.2)
    (fields,) = [fields for _, event, fields in bench.said if event == "a hold is expiring"]
    assert fields["left_s"] == 12
    await trio.sleep(60)
    assert [event for _, event, _ in bench.said].count("a hold is expiring") == 1


async def test_an_undo_that_fails_is_tried_again_and_recorded_twice_at_most(
    nursery: trio.Nursery, autojump_clock: Jumps
) -> None:
    lamp = Lamp(Outcome(Verdict.FAILED, "stuck"), ActFailed("stuck again"), DONE)
    bench = bench_of(lamp)
    act = await take(bench, nursery)
    await trio.sleep(60.1)
    assert bench.giveback.troubles() == {act: "stuck"}
    assert len(bench.files.kept) == 1
    await trio.sleep(RETRY_SECONDS[0])
    assert bench.giveback.troubles() == {act: "stuck again"}
    await trio.sleep(RETRY_SECONDS[1])
    assert undone(bench) == [
        ("failed", "its time is over: stuck", False),
        ("done", "its time is over: out", True),
    ]
    assert (bench.giveback.troubles(), bench.files.kept) == ({}, {})


async def test_an_undo_that_never_ends_is_given_up_and_tried_again(
    nursery: trio.Nursery, autojump_clock: Jumps
) -> None:
    lamp = Lamp(DONE)

    async def hangs(host: NodeHost, state: dict[str, Any]) -> Outcome:
        await trio.sleep_forever()
        return DONE

    bench = bench_of(lamp)
    bench.actions["lamp"] = msgspec.structs.replace(lamp.action, undo=hangs)
    await take(bench, nursery)
    await trio.sleep(60 + UNDO_SECONDS + 0.1)
    assert undone(bench) == [("failed", f"its time is over: not undone within {UNDO_SECONDS:g} s", False)]
    bench.actions["lamp"] = lamp.action
    await trio.sleep(RETRY_SECONDS[0])
    assert undone(bench)[-1] == ("done", "its time is over: out", True)


async def test_what_is_gone_is_given_back_by_itself(nursery: trio.Nursery, autojump_clock: Jumps) -> None:
    bench = bench_of(Lamp(TargetGone("no such lamp")))
    await take(bench, nursery)
    await trio.sleep(61)
    assert undone(bench) == [("skipped", "its time is over: no such lamp", False)]
    assert bench.files.kept == {}


@pytest.mark.parametrize("verdict", [Verdict.SKIPPED, Verdict.REFUSED])
async def test_an_act_that_did_nothing_holds_nothing(
    verdict: Verdict, nursery: trio.Nursery, autojump_clock: Jumps
) -> None:
    lamp = Lamp(DONE, lit=Outcome(verdict, "no"))
    bench = bench_of(lamp)
    await take(bench, nursery)
    await trio.sleep(120)
    assert (bench.files.kept, lamp.undone, undone(bench)) == ({}, [], [])


async def test_an_act_that_failed_half_way_is_given_back_at_once(nursery: trio.Nursery, autojump_clock: Jumps) -> None:
    lamp = Lamp(DONE, lit=Outcome(Verdict.FAILED, "half lit"))
    bench = bench_of(lamp)
    await take(bench, nursery)
    await trio.sleep(0.1)
    assert undone(bench) == [("done", "the act failed: out", False)]
    assert len(lamp.undone) == 1


async def test_where_nothing_can_be_written_the_act_goes_on_and_it_is_said(
    nursery: trio.Nursery, autojump_clock: Jumps
) -> None:
    lamp = Lamp(DONE)
    bench = bench_of(lamp)
    bench.files.trouble = "No space left on device"
    await take(bench, nursery)
    assert bench.ledger.records[0].verdict is Verdict.DONE
    assert "No space left on device" in [fields.get("trouble") for _, _, fields in bench.said]
    await trio.sleep(61)
    assert undone(bench) == [("done", "its time is over: out", False)]


async def test_what_outlives_the_machine_is_written_down_first_or_not_done(
    nursery: trio.Nursery, autojump_clock: Jumps
) -> None:
    lamp = Lamp(DONE, lasting=True)
    bench = bench_of(lamp)
    bench.files.trouble = "No space left on device"
    await take(bench, nursery)
    (record,) = bench.ledger.records
    assert (record.verdict, len(bench.holdings.table)) == (Verdict.FAILED, 0)
    assert "can't be written down first" in record.reason


async def test_two_who_ask_at_once_undo_it_once(nursery: trio.Nursery, autojump_clock: Jumps) -> None:
    lamp = Lamp(DONE)
    bench = bench_of(lamp)
    act = await take(bench, nursery)
    results: list[list[dict[str, Any]]] = []

    async def ask() -> None:
        results.append(await bench.giveback.undo(act))

    async with trio.open_nursery() as asking:
        asking.start_soon(ask)
        asking.start_soon(ask)
    assert len(lamp.undone) == 1
    assert sorted(result["outcome"] for (result,) in results) == ["done", "skipped"]
    assert undone(bench) == [("done", "`stoop undo`: out", False)]


async def test_a_later_end_is_kept_and_an_earlier_one_too(nursery: trio.Nursery, autojump_clock: Jumps) -> None:
    lamp = Lamp(DONE)
    bench = bench_of(lamp)
    act = await take(bench, nursery)
    (held,) = bench.giveback.extend(act, 300 * SECOND_NS)
    assert bench.files.kept[act] == held
    await trio.sleep(299)
    assert lamp.undone == []
    bench.giveback.extend(act, SECOND_NS // 2)
    await trio.sleep(0.6)
    assert len(lamp.undone) == 1


async def test_a_second_act_on_what_is_held_keeps_the_old_state(nursery: trio.Nursery, autojump_clock: Jumps) -> None:
    lamp = Lamp(DONE)
    bench = bench_of(lamp, rule_of("lamp", "1"), rule_of("lamp", "2"))
    first = await take(bench, nursery)
    assert list(bench.files.kept) == [first]
    assert [record.details.get("held_by") for record in bench.ledger.records] == [None, first]


async def test_what_somebody_else_changed_is_said_once_each_time(nursery: trio.Nursery, autojump_clock: Jumps) -> None:
    lamp = Lamp(DONE)
    bench = bench_of(lamp)
    act = await take(bench, nursery)
    lamp.drifts = "somebody lit another"
    await trio.sleep(2.5 * LOOK_SECONDS)
    assert bench.giveback.troubles() == {act: "somebody lit another"}
    assert [event for _, event, _ in bench.said].count("somebody else changed what is held") == 1
    lamp.drifts = ""
    await trio.sleep(1.2 * LOOK_SECONDS)
    assert bench.giveback.troubles() == {}


async def test_a_new_agent_takes_over_what_the_old_one_held(nursery: trio.Nursery, autojump_clock: Jumps) -> None:
    lamp = Lamp(DONE)
    bench = bench_of(lamp)
    act = await take(bench, nursery)
    after = bench_of(lamp)
    after.files.kept = dict(bench.files.kept)
    other = msgspec.structs.replace(bench.files.kept[act], act="f" * 32, boot_id="another boot")
    after.files.kept["f" * 32] = other
    after.giveback.recover()
    assert list(after.files.kept) == [act]
    assert [reason.split(":")[0] for _, reason, _ in undone(after)] == ["the machine was restarted, which ended it"]
    bench.giveback.extend(act, 0)
    await nursery.start(after.giveback.serve)
    await trio.sleep(61)
    assert undone(after)[-1] == ("done", "its time is over: out", False)


async def test_what_outlives_the_machine_is_held_on_after_its_restart(
    nursery: trio.Nursery, autojump_clock: Jumps
) -> None:
    lamp = Lamp(DONE, lasting=True)
    bench = bench_of(lamp)
    act = await take(bench, nursery)
    after = bench_of(lamp)
    after.clock.now += 20 * SECOND_NS
    after.files.kept = {act: msgspec.structs.replace(bench.files.kept[act], boot_id="another boot", until_mono_ns=1)}
    bench.giveback.extend(act, 0)
    await nursery.start(after.giveback.serve)
    after.giveback.recover()
    assert after.files.kept[act].boot_id == BOOT_ID
    await trio.sleep(39.9)
    assert len(lamp.undone) == 0
    await trio.sleep(0.2)
    assert undone(after) == [("done", "its time is over: out", False)]


async def test_the_agent_stops_and_leaves_nothing_held(nursery: trio.Nursery, autojump_clock: Jumps) -> None:
    lamp = Lamp(DONE)
    bench = bench_of(lamp)
    await take(bench, nursery)
    await bench.giveback.undo_all()
    assert (bench.files.kept, len(lamp.undone)) == ({}, 1)


class TestAnActThatBlocks:
    """`begin` does nothing, `verify` does it all, in the lane."""

    def bench(self, lamp: Lamp, *answers: Outcome) -> Workbench:
        async def verify(ctx: ActContext, begun: Begun) -> Outcome:
            if not answers:
                await trio.sleep_forever()
            return answers[0]

        action = msgspec.structs.replace(
            lamp.action,
            begin=lambda ctx: Begun(acted=False),
            verify=verify,
            overdue=lambda ctx, begun: Outcome(Verdict.FAILED, "too slow"),
            deadline_s=lambda params: 3.0,
        )
        bench = Workbench((action,), (rule_of("lamp"),), clock=TrioClock())
        bench.host.add(40)
        return bench

    async def test_it_is_acted_on_when_it_has_ended(self, nursery: trio.Nursery, autojump_clock: Jumps) -> None:
        bench = self.bench(Lamp(DONE), Outcome(Verdict.DONE))
        await take(bench, nursery)
        (record,) = bench.ledger.records
        assert (record.verdict, bench.ledger.begun) == (Verdict.DONE, [])
        assert record.timing.acted_ns == record.timing.verified_ns > 0
        assert len(bench.files.kept) == 1

    @pytest.mark.parametrize(("verdict", "given_back"), [(Verdict.SKIPPED, 0), (Verdict.FAILED, 1)])
    async def test_what_it_did_not_do_is_not_held(
        self, verdict: Verdict, given_back: int, nursery: trio.Nursery, autojump_clock: Jumps
    ) -> None:
        lamp = Lamp(DONE)
        bench = self.bench(lamp, Outcome(verdict, "no"))
        await take(bench, nursery)
        await trio.sleep(0.1)
        assert (bench.files.kept, len(lamp.undone)) == ({}, given_back)

    async def test_it_has_a_deadline_of_its_own_and_is_not_watched_on(
        self, nursery: trio.Nursery, autojump_clock: Jumps
    ) -> None:
        lamp = Lamp(DONE)
        bench = self.bench(lamp)
        begun = trio.current_time()
        await take(bench, nursery)
        assert trio.current_time() - begun == pytest.approx(3.0)
        await trio.sleep(0.1)
        assert [record.reason for record in bench.ledger.records] == ["too slow", "the act failed: out"]
        assert bench.host.open_holds == 0

    async def test_stopped_amid_it_what_it_took_is_still_kept(
        self, nursery: trio.Nursery, autojump_clock: Jumps
    ) -> None:
        bench = self.bench(Lamp(DONE))
        async with trio.open_nursery() as serving:
            await serving.start(bench.responder.serve)
            bench.accept(alert_of(proc_pid=40))
            await trio.testing.wait_all_tasks_blocked()
            serving.cancel_scope.cancel()
        assert len(bench.files.kept) == 1
        assert [record.verdict for record in bench.ledger.records] == [Verdict.FAILED]
        assert bench.host.open_holds == 0
