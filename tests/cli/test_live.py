"""`status`, `mode`, `arm` and `history -f` against a control server on a real socket."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "pid": 4711,
    "node": "node-1",
    "mode": "enforce",
    "mode_until_ns": 0,
    "ready": True,
    "uptime_s": 7384.2,
    "intakes": {"unix": "/run/stoop/falco.sock", "http": "127.0.0.1:2803"},
    "metrics": {"address": "::1", "port": 2804},
    "control": "/run/stoop/control.sock",
    "rules": {"count": 12, "digest": "71eb00f60c89aaaa", "loaded_at_ns": 1767348672123456000, "last_error": ""},
    "disarmed": {},
    "queue": {"queued": 0, "lanes": 1},
    "feed": {"silence_s": 3.2, "peers": {"unix": 1}},
    "clock": {"offset_ms": -1.25, "established": True, "steps": 1},
    "journal": {"lag": 2, "lost": 0, "error": ""},
    "recovery": {"clean": True, "unfinished": 0, "window": None},
    "helper": {"pid": 4712, "restarts": 0},
    "counts": {"received": 100, "refused": 1, "matched": 3, "outcomes": {"done": 2, "refused": 1}},
}

WORDS = ["agent", "mode", "rules", "intake", "metrics", "control", "counts", "queue", "feed", "clock", "journal"]
WORDS += ["last end", "helper", "outcomes"]


def answer(result: Any) -> dict[str, Any]:
    return {"ok": True, "result": result}


def test_status_for_a_person(stoop: Any, agent: Any) -> None:
    agent.answers["status"] = answer(STATUS)
    ran = stoop("status", "-c", agent.config)
    assert (ran.code, ran.err) == (0, "")
    assert [line[:9].strip() for line in ran.out.splitlines()] == WORDS
    for said in (
        "stoop 0.1.0, on node-1, pid 4711, ready, up 2.1 h",
        "12 loaded, at 2026-01-02T10:11:12.123456Z, digest 71eb00f60c89\n",
        "unix /run/stoop/falco.sock, http 127.0.0.1:2803",
        "[::1]:2804",
        "received 100, refused 1, matched 3\n",
        "last alert 3 s ago, senders 1",
        "Falco's is -1.25 ms from ours, 1 steps noticed",
        "done 2  refused 1",
        "last end in order",
    ):
        assert said in ran.out


def test_status_for_a_machine(stoop: Any, agent: Any) -> None:
    agent.answers["status"] = answer(STATUS)
    assert stoop("status", "-c", agent.config, "--json").lines == [STATUS]


@pytest.mark.parametrize("result", [{}, None, {"rules": None, "feed": 3, "mode": "enforce", "later": {"a": 1}}])
def test_status_of_another_version_is_shown_as_far_as_it_goes(stoop: Any, agent: Any, result: Any) -> None:
    agent.answers["status"] = answer(result)
    assert stoop("status", "-c", agent.config).code == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ready": False}, "! not ready"),
        ({"mode": "off", "mode_until_ns": 1767348672123456000}, "off until 2026-01-02T10:11:12"),
        ({"mode": "observe"}, "! mode is observe: nothing is done"),
        ({"rules": {"count": 0}}, "! no rules are loaded"),
        ({"rules": {"count": 1, "last_error": "r.yaml:3:1: no"}}, "the old rules stay: r.yaml:3:1: no"),
        ({"disarmed": {"R": "more than 5 targets"}}, "! disarmed: R: more than 5 targets (`stoop arm`)"),
        ({"journal": {"error": "disk full"}}, "! the journal can't be written: disk full"),
        ({"journal": {"lost": 3}}, "! records lost: 3"),
        ({"journal": {"lag": 20000}}, "! the journal is 20000 records behind"),
        ({"helper": {"pid": 0, "restarts": 9}}, "! the helper is not running"),
        (
            {"heartbeat": {"alive": False, "last_s": 125.0}},
            "! Falco is silent: heartbeats do not come back, the last 2.1",
        ),
        ({"heartbeat": {"alive": False, "last_s": None}}, "do not come back, none so far"),
        (
            {"heartbeat": {"alive": None, "trouble": "disk full"}},
            "! the heartbeat's beacon can't be touched: disk full",
        ),
        ({"pacemaker": {"pid": 0, "state": "down"}}, "! the pacemaker is not running"),
        (
            {"pods": {"source": "none", "rules": ["R", "S"]}},
            "! labels, annotations and owners of pods are not known here (pods.source); rules need them: R, S",
        ),
        ({"pods": {"source": "watch", "error": "it answers 403"}}, "of pods can't be asked for: it answers 403"),
        ({"pods": {"source": "watch", "stale": True, "age_s": 300.0}}, "owners of pods are 5.0 min old"),
        ({"pods": {"source": "watch", "left_out": 7}}, "! 7 pods are left out"),
        (
            {"pods": {"source": "watch", "listed": True, "known": 0, "unknown": 1, "node": "n"}},
            "! no pod of node n is known to watch: is that its name (node_name)?",
        ),
    ],
)
def test_what_is_not_as_it_should_be_is_a_finding(stoop: Any, agent: Any, change: dict[str, Any], says: str) -> None:
    agent.answers["status"] = answer({**STATUS, **change})
    ran = stoop("status", "-c", agent.config)
    assert ran.code == 1
    assert says in ran.out
    assert stoop("status", "-c", agent.config, "--json").code == 1


@pytest.mark.parametrize(
    ("pods", "said"),
    [
        ({"source": "watch", "known": 12, "listed": True, "age_s": 3.0}, "pods     12 known from watch, 3 s old"),
        (
            {"source": "kubelet", "known": 0, "listed": False, "age_s": 0},
            "pods     0 known from kubelet, not listed yet",
        ),
        ({"source": "none"}, ""),
        ({"source": "falco", "rules": ["R"]}, ""),
    ],
)
def test_what_is_known_of_pods_is_shown(stoop: Any, agent: Any, pods: dict[str, Any], said: str) -> None:
    agent.answers["status"] = answer({**STATUS, "pods": pods})
    ran = stoop("status", "-c", agent.config)
    assert ran.code == 0
    assert said in ran.out
    assert bool(said) is ("known from" in ran.out)


def test_the_heartbeat_is_shown_with_and_without_the_pacemaker(stoop: Any, agent: Any) -> None:
    lags = {"off": {"beats": 3, "p50": 14.2, "max": 29.0}, "running": {"beats": 9, "p50": 0.512, "max": 1.3}}
    change = {
        "heartbeat": {"alive": True, "missed": 0, "missed_total": 2, "last_s": 3.0, "lag_ms": lags, "trouble": ""},
        "pacemaker": {"pid": 9, "state": "running", "rate": 998, "cpu": 0.0123, "restarts": 1},
    }
    agent.answers["status"] = answer({**STATUS, **change})
    ran = stoop("status", "-c", agent.config)
    assert ran.code == 0
    said = " ".join(ran.out.split())
    assert "heart alive, 2 missed, lag 14.20 ms, at most 29.00, lag 0.51 ms, at most 1.30 (pacemaker running)" in said
    assert "pace running, 998 calls/s for 1.2 % of a core, started again 1 times" in said


@pytest.mark.parametrize(
    "change",
    [
        {"heartbeat": None, "pacemaker": None},
        {"heartbeat": {}, "pacemaker": 3},
        {"heartbeat": {"lag_ms": {"off": 3, "later": {}}}, "pacemaker": {"pid": 9, "rate": "fast", "cpu": "much"}},
    ],
)
def test_vitals_of_another_version_are_shown_as_far_as_they_go(stoop: Any, agent: Any, change: Any) -> None:
    agent.answers["status"] = answer({**STATUS, **change})
    assert stoop("status", "-c", agent.config).code == 0


def test_a_bad_end_is_told_with_what_may_be_lost(stoop: Any, agent: Any) -> None:
    window = {"from_ns": 1767348672000000000, "to_ns": 1767348673000000000, "at_most": 40}
    agent.answers["status"] = answer({**STATUS, "recovery": {"clean": False, "unfinished": 2, "window": window}})
    ran = stoop("status", "-c", agent.config)
    assert ran.code == 0
    assert "not in order (killed, or the machine went down), 2 acts under way then" in ran.out
    lost = "at most 40 accepted alerts lost between 2026-01-02T10:11:12.000000Z and 2026-01-02T10:11:13.000000Z"
    assert lost in ran.out


def test_hostile_names_in_a_status_are_escaped(
    stoop: Any, agent: Any, hostile: str, is_harmless: Callable[[str], bool]
) -> None:
    agent.answers["status"] = answer({**STATUS, "disarmed": {hostile: "too many"}})
    assert is_harmless(stoop("status", "-c", agent.config).out)
    as_json = stoop("status", "-c", agent.config, "--json")
    assert as_json.out.isascii()
    assert hostile in as_json.lines[0]["disarmed"]


def test_mode_is_asked_for(stoop: Any, agent: Any) -> None:
    agent.answers["mode"] = answer({"was": "enforce", "mode": "off", "until_ns": 1767348672123456000})
    ran = stoop("mode", "off", "--for", "1h30m", "-c", agent.config)
    assert (ran.code, ran.out) == (0, "mode is now off until 2026-01-02T10:11:12.123456Z\n")
    agent.answers["mode"] = answer({"was": "off", "mode": "enforce", "until_ns": 0})
    assert stoop("mode", "enforce", "-c", agent.config).out == "mode is now enforce\n"
    assert agent.asked == [
        {"do": "mode", "mode": "off", "for_s": 5400.0},
        {"do": "mode", "mode": "enforce", "for_s": None},
    ]


def test_a_mode_that_is_not_kept_is_told(stoop: Any, agent: Any) -> None:
    switched = {"was": "enforce", "mode": "off", "until_ns": 0}
    agent.answers["mode"] = answer({**switched, "kept": True, "synced": True})
    assert stoop("mode", "off", "-c", agent.config).err == ""
    agent.answers["mode"] = answer({**switched, "kept": True, "synced": False})
    ran = stoop("mode", "off", "-c", agent.config)
    assert (ran.code, "a power cut may forget it" in ran.err) == (0, True)
    agent.answers["mode"] = answer({**switched, "kept": False, "synced": False})
    ran = stoop("mode", "off", "-c", agent.config)
    assert (ran.code, "it ends with the agent" in ran.err) == (2, True)


def test_arm_one_rule_or_all(stoop: Any, agent: Any) -> None:
    agent.answers["arm"] = answer({"armed": ["R"]})
    assert stoop("arm", "R", "-c", agent.config).out == "armed: R\n"
    assert stoop("arm", "--all", "-c", agent.config).out == "armed: every rule\n"
    assert agent.asked == [{"do": "arm", "rule": "R"}, {"do": "arm", "rule": "*"}]


def test_what_the_agent_refuses_is_one_line(stoop: Any, agent: Any) -> None:
    agent.answers["arm"] = {"ok": False, "error": "rule 'R' is not disarmed"}
    ran = stoop("arm", "R", "-c", agent.config)
    assert (ran.code, ran.out, ran.err) == (2, "", "stoop: rule 'R' is not disarmed\n")


@pytest.mark.parametrize("words", [["status"], ["mode", "off"], ["arm", "R"], ["history", "-f"]], ids=" ".join)
def test_no_agent_is_said_with_what_to_do(
    stoop: Any, write: Callable[..., str], tmp_path: Path, words: list[str]
) -> None:
    config = write("stoop.yaml", f"state_dir: {tmp_path}\n")
    ran = stoop(*words, "-c", config)
    assert ran.code == 2
    says = f"no agent listens at {tmp_path}/control.sock (is it running? `stoop run -c …`)"
    assert ran.err == f"stoop: {says}\n"


def test_the_machines_agent_is_meant_where_nothing_is_configured(
    stoop: Any, agent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.answers["status"] = answer(STATUS)
    monkeypatch.setattr("stoop.cli.options.SYSTEM_CONTROL", str(agent.directory / "control.sock"))
    monkeypatch.setenv("XDG_STATE_HOME", str(agent.directory / "empty"))
    assert stoop("status").code == 0


def test_json_of_an_agent_is_ascii_whatever_it_says(stoop: Any, agent: Any) -> None:
    agent.answers["status"] = answer({**STATUS, "node": "n\u202e\x7f\x9b"})
    out = stoop("status", "-c", agent.config, "--json").out
    assert out.isascii()
    assert "\x7f" not in out
    assert json.loads(out)["node"] == "n\u202e\x7f\x9b"
