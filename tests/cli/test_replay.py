"""Replaying: the agent's own decisions over alerts of the past, pure and as a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from stoop import guard
from stoop.alert import Alert, decode
from stoop.catalogue import CATALOGUE
from stoop.cli.replay import Replayed, Settings, replay, summarize
from stoop.rules import load

RULE = {
    "rule": "Kill a shell",
    "match": {"rules": ["Terminal shell in container"]},
    "actions": [{"action": "Kill it", "actionner": "process:kill"}],
}

Make = Callable[..., dict[str, Any]]


def settings(**changes: Any) -> Settings:
    values: dict[str, Any] = {
        "protected_namespaces": frozenset({"kube-system"}),
        "protected_executables": guard.executables(["sshd"]),
        "max_alert_age_ns": 60 * 10**9,
        "max_targets": 5,
        "max_targets_total": 20,
        "any_pid_namespace": False,
        **changes,
    }
    return Settings("node-1", guard.Policy(**values), 5 * 10**9)


def replayed(alerts: list[dict[str, Any]], *rules: dict[str, Any], **changes: Any) -> Replayed:
    text = yaml.safe_dump(list(rules) or [RULE])
    forms = load([("rules.yaml", text.encode())], CATALOGUE).rules
    decoded: list[Alert] = [decode(json.dumps(alert).encode()) for alert in alerts]
    return replay(decoded, forms, CATALOGUE, settings(**changes))


def told(result: Replayed) -> list[tuple[int, str, str]]:
    return [(number, str(record.verdict), record.reason) for number, _, record in result.records]


def test_what_would_be_done_and_to_whom(alert: Make) -> None:
    result = replayed([alert(), alert(rule="Another")])
    assert told(result) == [(1, "would", "")]
    (_, time_ns, record), *_ = result.records
    assert time_ns == 1767348672123456789
    assert record.target["pid"] == 4711
    assert record.target["container_id"] == "d34690e67a3a"
    assert (result.alerts, result.unmatched) == (2, 1)
    (summary,) = summarize(result)
    assert (summary.rule, summary.acts, summary.targets, summary.not_done) == ("Kill a shell", 1, 1, {})


def test_what_the_guard_refuses(alert: Make) -> None:
    host = {"container.id": "host", "k8s.ns.name": None}
    result = replayed(
        [
            alert(1, fields={"proc.pid": None}),
            alert(2, fields={"proc.pid": -1}),
            alert(3, fields={"proc.pid": 1}),
            alert(4, fields={"proc.pid": 5, "k8s.ns.name": "kube-system"}),
            alert(5, fields={"proc.pid": 6, **host}),
            alert(6, time="0001-01-01T00:00:00Z", fields={"proc.pid": 7}),
        ]
    )
    reasons = {number: reason for number, verdict, reason in told(result) if verdict == "refused"}
    assert sorted(reasons) == [1, 2, 3, 4, 5, 6]
    assert "no proc.pid" in reasons[1]
    assert "only pids above 1" in reasons[2]
    assert "only pids above 1" in reasons[3]
    assert "namespace kube-system is protected" in reasons[4]
    assert "in no container" in reasons[5]
    assert "no time" in reasons[6]


def test_a_protected_executable_of_the_host(alert: Make) -> None:
    rule = {**RULE, "allow_host": True}
    fields = {"container.id": "host", "k8s.ns.name": None, "proc.exepath": "/usr/sbin/sshd"}
    ((_, verdict, reason),) = told(replayed([alert(fields=fields)], rule))
    assert (verdict, "protected executable" in reason) == ("refused", True)
    inside = {**fields, "container.id": "d34690e67a3a"}
    assert told(replayed([alert(fields=inside)], rule)) == [(1, "would", "")]


def test_an_exemption_that_nobody_can_prove(alert: Make) -> None:
    rule = {**RULE, "match": {"output_fields": ["k8s.ns.name!=kube-system"]}}
    ((_, verdict, reason),) = told(replayed([alert(fields={"k8s.ns.name": None})], rule))
    assert verdict == "refused"
    assert "k8s.ns.name can't be resolved" in reason


def test_a_declared_action_is_refused(alert: Make) -> None:
    rule = {**RULE, "actions": [{"action": "x", "actionner": "kubernetes:terminate"}]}
    assert told(replayed([alert()], rule)) == [(1, "refused", "kubernetes:terminate is not in this version")]


def test_actions_and_rules_follow_the_table(alert: Make) -> None:
    first = {**RULE, "continue": False, "actions": [*RULE["actions"], {"action": "too", "actionner": "container:kill"}]}
    never = {**RULE, "rule": "never"}
    assert [record.action for _, _, record in replayed([alert()], first, never).records] == ["Kill it", "too"]


def test_duplicates_are_told_once_and_counted(alert: Make) -> None:
    result = replayed([alert(1), alert(1), alert(1), alert(2), alert(9)])
    assert [verdict for _, verdict, _ in told(result)] == ["would", "skipped", "would"]
    (summary,) = summarize(result)
    assert (summary.acts, summary.targets, summary.not_done) == (2, 1, {"skipped: duplicate": 1})


def test_limits_trip_by_the_alerts_own_times(alert: Make) -> None:
    def of(second: int, number: int) -> dict[str, Any]:
        return alert(second, fields={"container.id": f"{number:012x}", "proc.pid": 1000 + number})

    result = replayed([of(number, number) for number in range(1, 5)], max_targets=2)
    assert [(trip.rule, trip.alert) for trip in result.trips] == [("Kill a shell", 3)]
    assert "more than 2 distinct targets in a minute" in result.trips[0].reason
    (summary,) = summarize(result)
    assert (summary.acts, summary.targets, sum(summary.not_done.values())) == (2, 2, 2)
    spread = [{**of(1, number), "time": f"2026-01-02T10:{number * 2:02d}:00.000000000Z"} for number in range(1, 5)]
    assert replayed(spread, max_targets=2).trips == ()


def test_the_limit_over_all_rules(alert: Make) -> None:
    alerts = [alert(1, fields={"container.id": f"{n:012x}", "proc.pid": 1000 + n}) for n in range(4)]
    assert [trip.rule for trip in replayed(alerts, max_targets_total=3).trips] == ["*"]


def test_alerts_are_taken_in_the_order_of_their_times(alert: Make) -> None:
    result = replayed([alert(30, fields={"proc.pid": 30}), alert(10, fields={"proc.pid": 10})])
    assert [number for number, _, _ in result.records] == [2, 1]


def test_the_same_alerts_give_the_same_answer(alert: Make) -> None:
    alerts = [alert(second, fields={"proc.pid": 100 + second % 3}) for second in range(20)]
    assert replayed(alerts) == replayed(alerts)


def test_the_command_for_a_person(stoop: Any, write: Callable[..., str], alert: Make) -> None:
    rules = write("rules.yaml", yaml.safe_dump([RULE]))
    file = write("alerts", alert(1), "not json\n", alert(2, rule="Another"))
    ran = stoop("replay", file, "-r", rules)
    assert ran.code == 1
    first, *rest = ran.out.splitlines()
    assert first.endswith("would    Kill a shell · process:kill · sh[4711] in default/d34690e67a3a")
    assert "2026-01-02T10:11:01.123456Z" in first
    assert rest == ["2 alerts, 1 matched by no rule", "Kill a shell: acts 1, targets 1"]
    assert ran.err.startswith("not an alert: alert 2: ")


def test_the_command_for_a_machine(stoop: Any, write: Callable[..., str], alert: Make) -> None:
    rules = write("rules.yaml", yaml.safe_dump([RULE]))
    ran = stoop("replay", write("alerts", alert(1), alert(2, fields={"proc.pid": 9})), "-r", rules, "--json")
    assert ran.code == 0
    *records, last = ran.lines
    assert [(record["number"], record["outcome"], record["timing_us"]) for record in records] == [
        (1, "would", None),
        (2, "would", None),
    ]
    assert last["summary"]["rules"] == [{"rule": "Kill a shell", "acts": 2, "targets": 1, "not_done": {}}]
    assert last["summary"]["limits"] == []


def test_a_tripped_limit_is_a_finding(stoop: Any, write: Callable[..., str], alert: Make, tmp_path: Path) -> None:
    config = write("stoop.yaml", f"state_dir: {tmp_path}\nguard: {{max_targets: 1}}\n")
    alerts = [alert(n, fields={"container.id": f"{n:012x}", "proc.pid": 1000 + n}) for n in range(3)]
    ran = stoop("replay", write("alerts", *alerts), "-r", write("rules.yaml", yaml.safe_dump([RULE])), "-c", config)
    assert ran.code == 1
    assert "limit: Kill a shell disarmed at alert 2: this rule would touch more than 1 distinct targets" in ran.out


def test_hostile_alerts_are_escaped(
    stoop: Any, write: Callable[..., str], alert: Make, hostile: str, is_harmless: Callable[[str], bool]
) -> None:
    rules = write("rules.yaml", yaml.safe_dump([RULE]))
    file = write("alerts", alert(fields={"proc.name": hostile}))
    assert is_harmless(stoop("replay", file, "-r", rules).out)
    assert stoop("replay", file, "-r", rules, "--json").out.isascii()


def test_every_real_alert_can_be_replayed(stoop: Any, write: Callable[..., str], alert: Make) -> None:
    odd = [{"rule": "x"}, {"rule": "x", "output_fields": {"proc.pid": "12", "container.id": 7, "user.uid": 2**70}}]
    rules = write("rules.yaml", yaml.safe_dump([{**RULE, "match": {"source": "syscall"}, "match_all": True}]))
    assert stoop("replay", write("alerts", *odd), "-r", rules).code == 0
