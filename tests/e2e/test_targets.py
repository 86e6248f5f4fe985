"""Whom it must not touch, whatever an alert says; and who must not get away by what he can choose himself."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import KILL_IT, Agent, MakeAgent, Row, alert, lives, was_killed
from tests.real.conftest import (
    Box,
    MakeBox,
    MakeNamespaced,
    Spawn,
    alive,
    await_that,
    comm,
    line,
    only_child,
)

pytestmark = pytest.mark.real
root = pytest.mark.root

NO_HOST = KILL_IT.replace("  allow_host: true\n", "")
EXEMPT = KILL_IT.replace("container]}", 'container], output_fields: ["k8s.ns.name!=kube-system"]}')
WHOLE = NO_HOST.replace("process:kill", "container:kill")
BY_SCOPE = NO_HOST.replace('kill"}', 'kill", parameters: {scope: container}}')
BY_SCOPE_TERM = BY_SCOPE.replace("{scope", "{signal: TERM, scope")

CALLS_ITSELF_KUBELET = """
import ctypes, signal
ctypes.CDLL(None).prctl(15, b"kubelet", 0, 0, 0)
signal.pause()
"""
"""PR_SET_NAME is 15 (prctl(2)): what proc(5) calls comm."""

SENDER = (
    "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
    "print('ready', flush=True); sys.stdin.readline()"
)
"""Connects to falco.sock and stays there, as Falco does."""


def still_serves(agent: Agent, spawn: Spawn) -> None:
    """Whatever came before, the next one named dies."""
    victim = spawn("sleep", "1000")
    agent.send(alert(victim.pid))
    assert was_killed(victim)


def copy_of_sleep(directory: Path, name: str) -> str:
    """Another executable, for sleep."""
    directory.mkdir(exist_ok=True)
    return str(shutil.copy(shutil.which("sleep") or "", directory / name))


def put_below(box: Box, name: str, pid: int = 0) -> None:
    """Move a process (0: the calling one) into a cgroup below the container's own."""
    assert box.v2 is not None
    (box.v2 / name).mkdir(exist_ok=True)
    (box.v2 / name / "cgroup.procs").write_text(str(pid))


def one_row(agent: Agent, said: bytes) -> Row:
    """Send one alert to a new agent; the record that came of it."""
    agent.send(said)
    (row,) = agent.records(1)
    return row


def test_what_is_no_target_is_refused_with_a_reason(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    helper = agent.status()["helper"]["pid"]
    ours = [agent.program.pid, helper, os.getpid(), os.getppid()]
    wrong = [-1, 0, 1, -(2**63), 2**22, 2**31, 2**32 + agent.program.pid, 2**63, 2**64 + 2, 1.5, True, False]
    shapes = ["4321", str(agent.program.pid), [4321], {"pid": 4321}, None, ""]
    bystander = spawn("sleep", "1000")
    sent: list[object] = [*wrong, *shapes, *ours]
    agent.send(*(alert(pid, {"evt.num": number}) for number, pid in enumerate(sent)))
    rows = agent.records(len(sent))
    assert {row["outcome"] for row in rows} == {"refused"}, rows
    assert all(row["reason"] for row in rows)
    assert lives(bystander)
    assert agent.status()["helper"] == {"pid": helper, "restarts": 0}
    still_serves(agent, spawn)


def test_an_alert_without_a_pid_is_refused_with_the_remedy(make_agent: MakeAgent) -> None:
    said = alert(4321).replace(b'"proc.pid":4321,', b"")
    assert b"proc.pid" not in said
    row = one_row(make_agent(), said)
    assert row["outcome"] == "refused"
    assert "falco-config" in row["reason"]


@pytest.mark.skipif(not Path("/proc/2/comm").exists(), reason="no kernel thread is seen from here (a container)")
def test_a_kernel_thread_is_refused(make_agent: MakeAgent) -> None:
    row = one_row(make_agent(), alert(2))
    assert row["outcome"] == "refused"
    if os.geteuid() == 0:  # others can't look into it, which is as good a reason
        assert row["reason"] == "it is a kernel thread"


def test_a_threads_number_is_no_processs(make_agent: MakeAgent, spawn: Spawn) -> None:
    script = "import threading; t = threading.Thread(target=threading.Event().wait); t.start(); print(t.native_id)"
    program = spawn(sys.executable, "-uc", script)
    row = one_row(make_agent(), alert(int(line(program))))
    assert (row["outcome"], "thread" in row["reason"]) == ("refused", True), row
    assert lives(program)


def test_who_brings_the_alerts_is_taken_for_falco(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    sender = spawn(sys.executable, "-c", SENDER, agent.socket_path)
    assert line(sender) == "ready"
    await_that(lambda: agent.status()["feed"]["peers"], "its connection is seen")
    row = one_row(agent, alert(sender.pid))
    assert (row["outcome"], "Falco" in row["reason"]) == ("refused", True), row
    assert lives(sender)


def test_an_alert_without_a_time_is_refused(make_agent: MakeAgent, spawn: Spawn) -> None:
    bystander = spawn("sleep", "1000")
    row = one_row(make_agent(), alert(bystander.pid, {"evt.time": None}, time=None))
    assert (row["outcome"], row["timing_us"]["received"]) == ("refused", None)
    assert lives(bystander)


def test_a_host_process_needs_the_rules_leave(make_agent: MakeAgent, spawn: Spawn) -> None:
    victim = spawn("sleep", "1000")
    row = one_row(make_agent(NO_HOST), alert(victim.pid, {"container.id": "3f1c0ffee123"}))
    assert (row["outcome"], "allow_host" in row["reason"]) == ("refused", True)
    assert lives(victim)


def test_a_field_that_is_missing_protects_no_host_process(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(EXEMPT)
    victim = spawn("sleep", "1000")
    agent.send(alert(victim.pid, {"k8s.ns.name": None}))
    assert was_killed(victim)


@pytest.mark.parametrize(("guard", "name"), [({}, "kube-system"), ({"protected_namespaces": ["a", "vault"]}, "vault")])
def test_a_protected_namespace_is_left_alone(
    make_agent: MakeAgent, spawn: Spawn, guard: dict[str, list[str]], name: str
) -> None:
    agent = make_agent(guard=guard)
    bystander = spawn("sleep", "1000")
    row = one_row(agent, alert(bystander.pid, {"k8s.ns.name": name}))
    assert (row["outcome"], name in row["reason"]) == ("refused", True)
    assert lives(bystander)


@pytest.mark.parametrize("by", ["name", "path", "pattern"])
def test_a_protected_executable_of_the_host_is_left_alone(
    make_agent: MakeAgent, spawn: Spawn, tmp_path: Path, by: str
) -> None:
    program = copy_of_sleep(tmp_path / "bin", "precious")
    other = copy_of_sleep(tmp_path / "bin", "miner")
    agent = make_agent(guard={"protected_executables": [{"name": "precious", "path": program, "pattern": "prec*"}[by]]})
    precious, miner = spawn(program, "1000"), spawn(other, "1000")
    row = one_row(agent, alert(precious.pid))
    assert (row["outcome"], "protected executable" in row["reason"]) == ("refused", True)
    agent.send(alert(miner.pid))
    assert was_killed(miner)
    assert lives(precious)


# ---------------------------------------------------------------- containers


@root
def test_a_containers_process_of_an_unknown_namespace_is_refused_where_a_rule_exempts_one(
    make_agent: MakeAgent, spawn: Spawn, make_box: MakeBox
) -> None:
    agent = make_agent(EXEMPT)
    box = make_box()
    victim = spawn("sleep", "1000", preexec_fn=box.enter)
    row = one_row(agent, alert(victim.pid, {"container.id": box.container_id[:12], "k8s.ns.name": None}))
    assert (row["outcome"], "k8s.ns.name" in row["reason"]) == ("refused", True)
    assert lives(victim)
    agent.send(alert(victim.pid, {"container.id": box.container_id[:12], "k8s.ns.name": "default"}))
    assert was_killed(victim)


@root
def test_an_alert_about_another_container_ends_neither(make_agent: MakeAgent, spawn: Spawn, make_box: MakeBox) -> None:
    agent = make_agent(WHOLE)
    box, other = make_box(), make_box()
    inside, outside = (spawn("sleep", "1000", preexec_fn=each.enter) for each in (box, other))
    row = one_row(agent, alert(inside.pid, {"container.id": other.container_id[:12]}))
    assert row["outcome"] == "refused", row
    assert (lives(inside), lives(outside)) == (True, True)


@root
def test_a_container_is_ended_by_its_id_alone(make_agent: MakeAgent, spawn: Spawn, make_box: MakeBox) -> None:
    """Falco could not tell the pid (no thread info), but the container's id it could."""
    agent = make_agent(WHOLE)
    box, other = make_box(), make_box()
    inside, outside = (spawn("sleep", "1000", preexec_fn=each.enter) for each in (box, other))
    agent.send(alert(None, {"container.id": box.container_id[:12]}))
    assert was_killed(inside)
    assert [row["outcome"] for row in agent.records(1)] == ["done"]
    assert lives(outside)
    agent.send(alert(None, {"container.id": "0123456789ab"}))
    assert agent.records(2)[-1]["outcome"] == "skipped"


def test_where_there_is_no_container_none_is_ended(make_agent: MakeAgent, spawn: Spawn) -> None:
    bystander = spawn("sleep", "1000")
    assert one_row(make_agent(WHOLE), alert(bystander.pid))["outcome"] == "refused"
    assert lives(bystander)


@root
@pytest.mark.parametrize("disguise", ["file", "name", "comm"])
def test_a_containers_process_that_calls_itself_kubelet_is_killed(
    make_agent: MakeAgent, make_namespaced: MakeNamespaced, tmp_path: Path, disguise: str
) -> None:
    """Own pid and mount namespaces as in a pod; it runs /usr/bin/kubelet, says so in argv[0], or in its comm."""
    agent = make_agent(NO_HOST)
    copy_of_sleep(tmp_path / "bin", "kubelet")
    (tmp_path / "comm.py").write_text(CALLS_ITSELF_KUBELET)
    script, name = {
        "file": (f"mount --bind {tmp_path / 'bin'} /usr/bin && exec /usr/bin/kubelet 1000", "kubelet"),
        "name": ("exec bash -c 'exec -a /usr/bin/kubelet sleep 1000'", "sleep"),
        "comm": (f"exec {sys.executable} {tmp_path / 'comm.py'}", "kubelet"),
    }[disguise]
    inside = make_namespaced(script)
    await_that(lambda: comm(inside.init) == name, f"its name is {name}")
    agent.send(alert(inside.init, {"container.id": inside.box.container_id[:12], "proc.vpid": 1}))
    (row,) = agent.records(1)
    assert (row["outcome"], row["target"]["container_id"]) == ("done", inside.box.container_id), row
    assert not alive(inside.init)


@root
@pytest.mark.parametrize("kind", ["v2", "v1", "hybrid"])
def test_a_whole_container_ends_and_nothing_outside_it(
    make_agent: MakeAgent, spawn: Spawn, make_box: MakeBox, kind: str
) -> None:
    agent = make_agent(WHOLE)
    box, other = make_box(kind), make_box(kind)
    inside = [spawn("sleep", "1000", preexec_fn=box.enter) for _ in range(5)]
    outside = [spawn("sleep", "1000", preexec_fn=other.enter), spawn("sleep", "1000")]
    agent.send(alert(inside[0].pid, {"container.id": box.container_id[:12]}))
    assert all(map(was_killed, inside))
    (row,) = agent.records(1)
    assert (row["outcome"], row["target"]["container_id"]) == ("done", box.container_id)
    assert all(map(lives, outside))


@root
@pytest.mark.parametrize("rules", [WHOLE, BY_SCOPE, BY_SCOPE_TERM], ids=["whole", "scope", "scope-term"])
@pytest.mark.parametrize("below", [False, True])
def test_the_agents_own_container_is_never_ended(
    make_agent: MakeAgent, spawn: Spawn, make_box: MakeBox, rules: str, below: bool
) -> None:
    agent = make_agent(rules)
    box = make_box()
    bystander = spawn("sleep", "1000", preexec_fn=box.enter)
    if below:
        put_below(box, "agent", agent.program.pid)
    else:
        box.add(agent.program.pid)
    row = one_row(agent, alert(bystander.pid, {"container.id": box.container_id[:12]}))
    assert row["outcome"] == "refused", row
    assert lives(bystander)
    assert agent.program.poll() is None


@root
@pytest.mark.parametrize("rules", [WHOLE, BY_SCOPE, BY_SCOPE_TERM], ids=["whole", "scope", "scope-term"])
def test_falcos_container_is_never_ended(make_agent: MakeAgent, spawn: Spawn, make_box: MakeBox, rules: str) -> None:
    """Falco is neither its init nor in the same cgroup below it as the one that the alert is about."""
    agent = make_agent(rules)
    box = make_box()
    init, other = (spawn("sleep", "1000", preexec_fn=box.enter) for _ in range(2))
    sender = spawn(sys.executable, "-c", SENDER, agent.socket_path, preexec_fn=lambda: put_below(box, "falco"))
    assert line(sender) == "ready"
    put_below(box, "other", other.pid)
    await_that(lambda: agent.status()["feed"]["peers"], "its connection is seen")
    row = one_row(agent, alert(other.pid, {"container.id": box.container_id[:12]}))
    assert (row["outcome"], row["reason"]) == ("refused", "it is Falco's container"), row
    assert all(map(lives, (init, other, sender)))


@root
@pytest.mark.parametrize("told", [True, False], ids=["pid", "no-pid"])
def test_a_container_that_was_started_again_under_its_id_lives(
    make_agent: MakeAgent, spawn: Spawn, make_box: MakeBox, told: bool
) -> None:
    """As Docker does: the alert is about what has ended, and who was started since has done nothing."""
    agent = make_agent(WHOLE)
    box = make_box()
    meant = spawn("sleep", "1000", preexec_fn=box.enter)
    said = alert(meant.pid if told else None, {"container.id": box.container_id[:12]})
    meant.kill()
    meant.wait()
    newcomer = spawn("sleep", "1000", preexec_fn=box.enter)
    row = one_row(agent, said)
    assert (row["outcome"], "started again" in row["reason"]) == ("skipped", True), row
    assert lives(newcomer)
    agent.send(alert(None, {"container.id": box.container_id[:12]}))  # of now: it means the newcomer
    assert was_killed(newcomer)


@root
def test_a_container_is_not_ended_by_an_alert_without_a_time(
    make_agent: MakeAgent, spawn: Spawn, make_box: MakeBox
) -> None:
    box = make_box()
    inside = spawn("sleep", "1000", preexec_fn=box.enter)
    row = one_row(make_agent(WHOLE), alert(None, {"container.id": box.container_id, "evt.time": None}, time=None))
    assert (row["outcome"], "no time" in row["reason"]) == ("refused", True), row
    assert lives(inside)


@root
def test_in_a_pid_namespace_of_its_own_the_agent_acts_on_no_pid(make_agent: MakeAgent, spawn: Spawn) -> None:
    """Falco's number means another process there, or none: neither is the one meant."""
    agent = make_agent(start=False, guard={"pid_namespace": "auto"})
    around = ("unshare", "--pid", "--fork", "--mount-proc")
    agent.prefix = around
    agent.start()
    inner = only_child(agent.program.pid)
    try:
        bystander = spawn("sleep", "1000")
        agent.send(alert(bystander.pid), alert(3))
        rows = agent.records(2)
        assert {row["outcome"] for row in rows} == {"refused"}, rows
        assert all("pid namespace of its own" in row["reason"] for row in rows)
        assert lives(bystander)
    finally:
        os.kill(inner, signal.SIGTERM)  # the program around it waits, deaf, for its end
