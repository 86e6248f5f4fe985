"""Who is answered and who is spared: the state of the world and of the record after one alert."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import MakeAgent
from tests.e2e.harness import FREE, GUARD, MISSING, PATIENCE_S, STEPS, Agent, Victim, alert, await_that, exited, victims
from tests.real.conftest import MakeBox, MakeNamespaced, Spawn, alive, comm, line, say, state
from tests.real.test_kill_process import SYS_EXIT, ZOMBIE_LEADER

pytestmark = pytest.mark.real
root = pytest.mark.root

IN_CONTAINERS_ONLY = """
- rule: Kill it
  match: {rules: [Terminal shell in container]}
  actions: [{action: kill, actionner: "process:kill"}]
"""
BUT_KUBE_SYSTEM = """
- rule: Kill it
  match: {rules: [Terminal shell in container], output_fields: ["k8s.ns.name!=kube-system"]}
  allow_host: true
  actions: [{action: kill, actionner: "process:kill"}]
"""
CONTAINER = """
- rule: Kill all of it
  match: {rules: [Terminal shell in container]}
  actions: [{action: kill, actionner: "container:kill"}]
"""
TREE = """
- rule: Kill it
  match: {rules: [Terminal shell in container]}
  allow_host: true
  actions: [{action: kill, actionner: "process:kill", parameters: {scope: tree, signal: KILL}}]
"""


@pytest.fixture
def agent(make_agent: MakeAgent) -> Agent:
    """One that answers every alert, and as often as it comes."""
    return make_agent(guard=FREE).start()


# ---------------------------------------------------------------- the plain case


def test_the_one_named_dies_the_bystander_lives_and_the_record_says_so(make_agent: MakeAgent) -> None:
    agent = make_agent().start()
    helper = os.pidfd_open(agent.helper())
    try:
        with victims(2) as (victim, bystander):
            agent.send(alert(victim.pid))
            assert victim.dies()
            agent.records(1)
            assert bystander.lives
        assert agent.stop() == 0
        assert exited(helper)
    finally:
        os.close(helper)
    assert not list(agent.state.glob("*.sock"))
    command = [sys.executable, "-m", "stoop.cli", "history", "-c", str(agent.config), "--json"]
    told = subprocess.run(command, capture_output=True, check=True, timeout=PATIENCE_S).stdout
    (row,) = map(json.loads, told.splitlines())
    assert {key: row[key] for key in ("rule", "action", "actionner", "outcome", "reason")} == {
        "rule": "Kill a terminal shell",
        "action": "Kill it",
        "actionner": "process:kill",
        "outcome": "done",
        "reason": "",
    }
    assert {len(row[name]) for name in ("alert", "run", "act")} == {32}
    assert (row["target"]["pid"], row["target"]["comm"], row["target"]["proven_by"]) == (victim.pid, "sleep", "start")
    steps = [row["timing_us"][step] for step in STEPS]
    assert list(row["timing_us"]) == list(STEPS)
    assert steps == sorted(steps)
    assert 0 < steps[0] <= steps[-1] < PATIENCE_S * 1e6


def test_a_tree_dies_with_the_one_named(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(TREE).start()
    top = spawn("sh", "-c", "sleep 1000 & sh -c 'sleep 1001; :' & echo $!; wait")
    inner = int(line(top))
    await_that(lambda: comm(inner) == "sh", "the inner shell")
    assert agent.answer(alert(top.pid))["outcome"] == "done"
    assert top.wait(PATIENCE_S) == -signal.SIGKILL
    assert not alive(inner)


# ---------------------------------------------------------------- no targets


@pytest.mark.parametrize("pid", [-1, 0, 1, MISSING, None, "4321", 2**22, 2**63, -(2**63), 10**30, True, 1.5, [4], {}])
def test_what_is_no_pid_is_refused(agent: Agent, pid: object) -> None:
    with victims(1) as (bystander,):
        row = agent.answer(alert(pid))
        assert bystander.lives
    assert (row["outcome"], "proc.pid" in row["reason"]) == ("refused", True)


def test_the_agent_its_helper_and_its_parents_are_never_touched(agent: Agent) -> None:
    for pid in (agent.pid, agent.helper(), os.getpid()):
        row = agent.answer(alert(pid))
        assert (row["outcome"], row["reason"]) == ("refused", "it is the agent itself or a parent of it")


def kernel_thread() -> int:
    """A kernel thread's pid, 0 where none is seen (in a container)."""
    return 2 if os.path.exists("/proc/2") and not Path("/proc/2/cmdline").read_bytes() else 0


@root
@pytest.mark.skipif(not kernel_thread(), reason="no kernel thread is seen from here")
def test_a_kernel_thread_is_never_touched(agent: Agent) -> None:
    row = agent.answer(alert(kernel_thread()))
    assert (row["outcome"], row["reason"]) == ("refused", "it is a kernel thread")


def test_a_threads_number_is_no_processs(agent: Agent, spawn: Spawn) -> None:
    script = "import threading; t = threading.Thread(target=threading.Event().wait); t.start(); print(t.native_id)"
    program = spawn(sys.executable, "-uc", script)
    thread = int(line(program))
    row = agent.answer(alert(thread))
    assert (row["outcome"], "thread" in row["reason"]) == ("refused", True)
    assert program.poll() is None


def test_one_that_has_ended_is_skipped(agent: Agent) -> None:
    with victims(1) as (victim,):
        victim.process.kill()
        assert exited(victim.pidfd)
        zombie = agent.answer(alert(victim.pid))
        victim.process.wait()
        gone = agent.answer(alert(victim.pid))
    assert {row["outcome"] for row in (zombie, gone)} == {"skipped"}


# ---------------------------------------------------------------- whose pid it is

# Under one parent: `sleep` begins, an event happens, it ends, and another `sleep` gets its pid at once (clone3(2),
# set_tid). Tells the pid, the event's time, and whether /proc gives both the same start; `again` tries anew.
REUSE = """
import ctypes, os, signal, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def ticks(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[19]
def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
for _ in sys.stdin:
    old = os.posix_spawn("/bin/sleep", ["sleep", "1000"], {})
    tids = ctypes.c_int(old)
    args = struct.pack("11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(tids), 1, 0)
    before = ticks(old)
    event = time.time_ns()
    end(old)
    new = libc.syscall(435, args, len(args))
    if new == 0:
        os.execv("/bin/sleep", ["sleep", "1000"])
    print(new, event, int(new > 0 and ticks(new) == before), flush=True)
    sys.stdin.readline()
    if new > 0:
        end(new)
"""


@root
@pytest.mark.parametrize("rounds", [1, 200])
def test_a_newcomer_with_the_same_pid_parent_and_program_lives(agent: Agent, spawn: Spawn, rounds: int) -> None:
    program = spawn(sys.executable, "-uc", REUSE)
    for _ in range(rounds):
        say(program)
        pid, event_ns, same_tick = map(int, line(program).split())
        assert pid > 0
        if rounds == 1 or same_tick:
            break
        say(program)
    else:
        pytest.skip(f"{rounds} times no pid was given anew within one tick")
    inode = os.stat("/bin/sleep").st_ino
    meant = {"proc.ppid": program.pid, "proc.exe_ino": inode}
    row = agent.answer(alert(pid, meant, at_ns=event_ns))
    assert (row["outcome"], alive(pid)) == ("refused", True)
    assert str(pid) in row["reason"]
    # The newcomer is not spared for ever: an alert of now means it.
    await_that(lambda: comm(pid) == "sleep", "exec")
    assert agent.answer(alert(pid, meant))["outcome"] == "done"
    assert not alive(pid)


def test_an_exec_after_the_alert_saves_nobody(agent: Agent, spawn: Spawn) -> None:
    script = "import os, sys; print('ready', flush=True); sys.stdin.readline(); os.execv('/bin/sleep', ['new', '1000'])"
    shell = spawn(sys.executable, "-c", script)
    assert line(shell) == "ready"
    told = alert(shell.pid, {"proc.exepath": sys.executable, "proc.exe_ino": os.stat(sys.executable).st_ino})
    say(shell)
    await_that(lambda: os.readlink(f"/proc/{shell.pid}/exe") == os.path.realpath("/bin/sleep"), "exec")
    row = agent.answer(told)
    assert (row["outcome"], row["target"]["comm"]) == ("done", "sleep")
    assert shell.wait(PATIENCE_S) == -signal.SIGKILL


@pytest.mark.skipif(platform.machine() not in SYS_EXIT, reason=f"no number of exit(2) for {platform.machine()}")
def test_a_zombie_leader_with_living_threads_dies(agent: Agent, spawn: Spawn) -> None:
    victim = spawn(sys.executable, "-c", ZOMBIE_LEADER, str(SYS_EXIT[platform.machine()]))
    assert line(victim) == "ready"
    await_that(lambda: state(victim.pid) == "Z", "the first thread has ended")
    assert agent.answer(alert(victim.pid))["outcome"] == "done"
    assert victim.wait(PATIENCE_S) == -signal.SIGKILL


# ---------------------------------------------------------------- of the host


def test_a_process_of_the_host_needs_the_rules_leave(make_agent: MakeAgent) -> None:
    agent = make_agent(IN_CONTAINERS_ONLY).start()
    with victims(1) as (victim,):
        row = agent.answer(alert(victim.pid))
        assert victim.lives
        # Falco's word that it is in a container is not enough.
        claimed = agent.answer(alert(victim.pid, {"container.id": "d34690e67a3a"}))
        assert victim.lives
    assert (row["outcome"], claimed["outcome"]) == ("refused", "refused")
    assert "allow_host" in row["reason"]


def test_a_protected_executable_of_the_host_is_spared(make_agent: MakeAgent, tmp_path: Path) -> None:
    program = tmp_path / "stoop-test-important"
    shutil.copy("/bin/sleep", program)
    agent = make_agent(guard={**GUARD, "protected_executables": [program.name]}).start()
    with victims(1, (str(program), "1000")) as (victim,):
        row = agent.answer(alert(victim.pid))
        assert victim.lives
    assert row["outcome"] == "refused"
    assert "protected executable" in row["reason"]


def test_a_process_of_the_host_has_no_namespace_to_be_exempt(make_agent: MakeAgent) -> None:
    agent = make_agent(BUT_KUBE_SYSTEM, guard=FREE).start()
    with victims(3) as (missing, null, exempt):
        assert agent.answer(alert(missing.pid, {"k8s.ns.name": MISSING}))["outcome"] == "done"
        assert agent.answer(alert(null.pid, {"k8s.ns.name": None}))["outcome"] == "done"
        agent.send(alert(exempt.pid, {"k8s.ns.name": "kube-system"}), alert(0))
        assert [row["outcome"] for row in agent.records(3)] == ["done", "done", "refused"]
        assert exempt.lives


# ---------------------------------------------------------------- of containers


def named_kubelet(directory: Path) -> str:
    """A container's script: it ships /usr/bin/kubelet, and runs it under that name."""
    shutil.copy("/bin/sleep", directory / "kubelet")
    return f"mount --bind {directory} /usr/bin && exec /usr/bin/kubelet 1000"


@root
def test_a_containers_process_that_calls_itself_kubelet_dies(
    make_agent: MakeAgent, make_namespaced: MakeNamespaced, tmp_path: Path
) -> None:
    agent = make_agent(IN_CONTAINERS_ONLY).start()
    inside = make_namespaced(named_kubelet(tmp_path))
    await_that(lambda: comm(inside.init) == "kubelet", "it has its name")
    assert os.readlink(f"/proc/{inside.init}/exe") == "/usr/bin/kubelet"
    row = agent.answer(alert(inside.init, {"container.id": inside.box.container_id[:12], "proc.vpid": 1}))
    assert (row["outcome"], row["target"]["container_id"]) == ("done", inside.box.container_id)
    assert not alive(inside.init)


@root
def test_a_protected_namespace_is_spared(make_agent: MakeAgent, make_namespaced: MakeNamespaced) -> None:
    agent = make_agent(IN_CONTAINERS_ONLY).start()
    inside = make_namespaced("exec sleep 1000")
    claim = {"container.id": inside.box.container_id[:12], "k8s.ns.name": "kube-system"}
    row = agent.answer(alert(inside.init, claim))
    assert (row["outcome"], "kube-system" in row["reason"]) == ("refused", True)
    assert alive(inside.init)


@root
def test_a_containers_process_whose_namespace_nobody_knows_is_spared_where_the_rule_exempts_one(
    make_agent: MakeAgent, make_namespaced: MakeNamespaced
) -> None:
    agent = make_agent(BUT_KUBE_SYSTEM, guard=FREE).start()
    inside = make_namespaced("exec sleep 1000")
    claim = {"container.id": inside.box.container_id[:12]}
    for unknown in (MISSING, None):
        row = agent.answer(alert(inside.init, claim | {"k8s.ns.name": unknown}))
        assert (row["outcome"], "can't be resolved" in row["reason"]) == ("refused", True)
        assert alive(inside.init)
    assert agent.answer(alert(inside.init, claim | {"k8s.ns.name": "default"}))["outcome"] == "done"


@root
def test_a_container_dies_whole_and_its_neighbour_lives(
    make_agent: MakeAgent, make_namespaced: MakeNamespaced
) -> None:
    agent = make_agent(CONTAINER, guard=FREE).start()
    script = "setsid sleep 1000 & sh -c 'sleep 1001 &'; wait"
    by_pid, by_id, neighbour = (make_namespaced(script) for _ in range(3))
    for box in (by_pid.box, by_id.box):
        await_that(lambda box=box: len(box.pids()) >= 3, "all have begun")
    row = agent.answer(alert(by_pid.init, {"container.id": by_pid.box.container_id[:12]}))
    assert (row["outcome"], by_pid.box.pids()) == ("done", set())
    assert len(by_id.box.pids()) >= 3
    assert agent.answer(alert(MISSING, {"container.id": by_id.box.container_id[:12]}))["outcome"] == "done"
    assert not by_id.box.pids()
    assert alive(neighbour.init)


@root
def test_a_containers_alert_about_a_process_elsewhere_kills_neither(
    make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn
) -> None:
    agent = make_agent(CONTAINER).start()
    one, other = make_box(), make_box()
    victim, bystander = spawn("sleep", "1000", preexec_fn=one.enter), spawn("sleep", "1000", preexec_fn=other.enter)
    row = agent.answer(alert(victim.pid, {"container.id": other.container_id[:12]}))
    assert row["outcome"] == "refused"
    assert victim.poll() is None
    assert bystander.poll() is None


def test_without_a_container_there_is_none_to_kill(make_agent: MakeAgent) -> None:
    agent = make_agent(CONTAINER).start()
    with victims(1) as (victim,):
        assert agent.answer(alert(victim.pid))["outcome"] == "refused"
        assert agent.answer(alert(MISSING, {"container.id": "d34690e67a3a"}))["outcome"] == "skipped"
        assert victim.lives


def test_the_sender_is_taken_for_falco(agent: Agent, spawn: Spawn) -> None:
    script = (
        "import socket, sys, threading; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        "print('ready', flush=True); sys.stdin.readline()"
    )
    sender = spawn(sys.executable, "-c", script, agent.socket_path)
    assert line(sender) == "ready"
    await_that(lambda: agent.status()["feed"]["peers"], "its connection is seen")
    row = agent.answer(alert(sender.pid))
    assert (row["outcome"], sender.poll()) == ("refused", None)
    assert "Falco" in row["reason"]


