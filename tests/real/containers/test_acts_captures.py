"""Captures of a pod as acts, on real containers through the whole agent: nothing of the pod changes, nothing stays."""

from __future__ import annotations

import gzip
import json
import os
import select
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.node.procfs import namespace_inode
from stoop.actions.kubernetes import download
from stoop.evidence.store import Store
from tests.e2e.conftest import Row
from tests.real.conftest import alive, await_that, comm
from tests.real.containers.node import Node, host_programs
from tests.real.containers.on_node import (
    AgentOnNode,
    MakeOnNode,
    Scene,
    acts_of,
    make_on_node,
    on_node,
    rule,
    scene,
    told_of,
)
from tests.real.containers.pod import Container, Pod
from tests.work.test_traffic import TCPDUMP, packets

__all__ = ["make_on_node", "scene"]

pytestmark = [pytest.mark.root, pytest.mark.real]

needs_tcpdump = pytest.mark.skipif(not TCPDUMP, reason="needs tcpdump(8) (apt-get install tcpdump)")

TRAFFIC = ("evidence:pcap", "kubernetes:tcpdump")

PARAMETERS: dict[str, dict[str, Any]] = {
    "kubernetes:log": {"tail_lines": 2},
    "kubernetes:download": {"file": "${FD_NAME}"},
    "evidence:pcap": {"duration": 1},
    "kubernetes:tcpdump": {"duration": 1},
    "kubernetes:sysdig": {"duration": 1},
}

ALWAYS = tuple(PARAMETERS)[:4]
"""Those that every node of the tests can do. No sysdig of Debian's has the driver that the last one needs."""

NOWHERE = "/no/such/folder"
"""Nothing is sent in these tests (test_outputs.py has that): a delivery that waits has no record yet."""

OUTPUT = ("kubernetes:download", "kubernetes:tcpdump", "kubernetes:sysdig")
"""Those of which a rule must say where their data goes."""


def capture(actionner: str, *, output: bool | None = None, dry_run: bool = False, **parameters: Any) -> str:
    """A rule named after its act. `output`: None for one where it must be."""
    step: dict[str, Any] = {"action": f"Do {actionner}", "actionner": actionner, "continue": "true"}
    step["parameters"] = PARAMETERS[actionner] | parameters
    if actionner in OUTPUT if output is None else output:
        step["output"] = {"target": "local:file", "parameters": {"destination": NOWHERE}}
    made = {"rule": actionner, "match": {"rules": [actionner]}, "actions": [step]}
    return "\n- " + json.dumps(made | ({"dry_run": "true"} if dry_run else {}))


def kept(agent: AgentOnNode, record: Row) -> tuple[dict[str, Any], bytes]:
    """The manifest's target, and the part that is the act's data; the bundle is whole, and the part by this act."""
    chunks: list[bytes] = []
    wanted = record["details"]["data"]["part"]
    with Store(str(agent.state_dir / "evidence")) as store, store.reading(record["details"]["bundle"]) as reader:
        assert reader.check(lambda part, data: chunks.append(data) if part.name == wanted else None) == []
        (part,) = (part for part in reader.manifest.parts if part.name == wanted)
        assert (part.act or reader.manifest.origin.act) == record["act"]
        return reader.manifest.target, b"".join(chunks)


def bundles(agent: AgentOnNode) -> list[str]:
    """Files in the store, with what writers left."""
    store = agent.state_dir / "evidence"
    return sorted(path.name for pattern in ("*.zst", ".writing*") for path in store.glob(pattern))


def runs_here(agent: AgentOnNode) -> list[int]:
    """tcpdumps below this agent."""
    found, waiting = [], [agent.program.pid]
    for pid in waiting:
        try:
            children = [
                int(child)
                for task in Path(f"/proc/{pid}/task").iterdir()
                for child in (task / "children").read_text().split()
            ]
            found += [child for child in children if comm(child) == "tcpdump"]
            waiting += children
        except OSError:
            continue  # it has ended meanwhile
    return found


def listening(agent: AgentOnNode, pod: Pod) -> int:
    """The tcpdump that captures in this pod, once it does so: it has a packet socket."""
    found: list[int] = []

    def begun() -> bool:
        found[:] = [pid for pid in runs_here(agent) if hears(pid, pod)]
        return bool(found)

    await_that(begun, f"tcpdump captures; log: {agent.said()[-2000:]}; {acts_of(agent)}")
    return found[0]


def hears(pid: int, pod: Pod) -> bool:
    """Whether this process is in the pod's network and has a packet socket there."""
    try:
        sockets = Path(f"/proc/{pid}/net/packet").read_text().splitlines()[1:]
        return os.stat(f"/proc/{pid}/ns/net").st_ino == namespace_inode(pod.netns) and bool(sockets)
    except OSError:
        return False


@pytest.fixture
def talker(the_node: Node) -> Container:
    """A container that says what it is told, and sends a ping to the node again and again."""
    pod = the_node.pod("web-1", "shop")
    return pod.container("sh", "-c", "while :; do ping -c 1 -W 1 -p a5 10.244.0.1 >/dev/null; done", name="app")


def said(container: Container, text: str) -> None:
    """Have it in its log: written as the kubelet's logger does, by a container's first process or by none."""
    file = container.node.directory / container.log.removeprefix("/var/")
    at = "2026-11-24T13:00:00.123456789Z stdout F "
    with file.open("a") as log:
        log.writelines(f"{at}{line}\n" for line in text.split("\n"))


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize("how", ["dry_run", "observe"])
def test_trying_keeps_nothing(how: str, make_on_node: MakeOnNode, scene: Scene) -> None:
    rules = "".join(capture(actionner, dry_run=how == "dry_run") for actionner in PARAMETERS)
    agent = make_on_node(rules, mode="observe" if how == "observe" else "enforce")
    before = scene.whole()
    for actionner in PARAMETERS:
        record = agent.answer(told_of(scene.victim, rule=actionner, fd_name="/etc/passwd"))
        assert (record["actionner"], record["outcome"]) == (actionner, "would"), record
    assert scene.whole() == before
    assert bundles(agent) == []
    assert runs_here(agent) == []


@needs_tcpdump
def test_it_keeps_and_changes_nothing_also_twice(make_on_node: MakeOnNode, scene: Scene) -> None:
    agent = make_on_node("".join(map(capture, ALWAYS)))
    said(scene.victim, "one\ntwo\nthree")
    scene.victim.run("sh", "-c", "echo evil > /tmp/evil")
    before, inside = scene.whole(), pod_files(scene)
    for number, actionner in enumerate((*ALWAYS, *ALWAYS)):
        record = agent.answer(told_of(scene.victim, rule=actionner, fd_name="/tmp/evil"))
        assert (record["actionner"], record["outcome"], record["reason"]) == (actionner, "done", ""), record
        assert record["target"]["container_id"] == scene.victim.id
        target, data = kept(agent, record)
        assert (target["container_id"], target["pod"]) == (scene.victim.id, "web-1")
        assert len(bundles(agent)) == number + 1
        if actionner == "kubernetes:log":
            assert (data, record["details"]["log"]) == (b"two\nthree\n", ["two", "three"])
        elif actionner == "kubernetes:download":
            assert (data, record["details"]["file"]) == (b"evil\n", "/tmp/evil")
            assert record["details"]["data"] == {"part": "file.bin", "name": "/tmp/evil"}
        else:
            assert not any(b"\xa5" * 8 in sent for _, sent in packets(data))  # nobody pings here
            assert record["details"]["data"] == {"part": "tcpdump.pcap", "name": "tcpdump.pcap"}
    assert (scene.whole(), pod_files(scene)) == (before, inside)
    assert runs_here(agent) == []
    assert agent.stoop("evidence", "verify").returncode == 0


def test_its_data_is_what_is_sent(make_on_node: MakeOnNode, scene: Scene, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    agent = make_on_node(capture("kubernetes:download").replace(NOWHERE, str(folder)))
    scene.victim.run("sh", "-c", "echo evil > /tmp/evil")
    agent.send(told_of(scene.victim, rule="kubernetes:download", fd_name="/tmp/evil"))
    await_that(lambda: len(agent.rows()) == 2, f"the act, and that it was sent; {agent.said()[-2000:]}")
    record, sent = agent.rows()
    assert (sent["outcome"], sent["details"]["delivers"]) == ("done", record["act"])
    (file,) = folder.iterdir()
    assert file.name.endswith(f"Z_shop_web-1_{record['act'][:12]}__tmp_evil")
    assert file.read_bytes() == b"evil\n"


def test_the_captures_of_one_run_are_in_one_bundle(make_on_node: MakeOnNode, scene: Scene) -> None:
    rules = json.loads(capture("kubernetes:log").removeprefix("\n- "))
    rules["actions"] += json.loads(capture("kubernetes:download").removeprefix("\n- "))["actions"]
    agent = make_on_node(json.dumps([rules]))
    said(scene.victim, "one")
    scene.victim.run("sh", "-c", "echo evil > /tmp/evil")
    agent.send(told_of(scene.victim, rule="kubernetes:log", fd_name="/tmp/evil"))
    await_that(lambda: len(acts_of(agent)) == 2, "two records")
    first, second = acts_of(agent)
    assert (first["outcome"], second["outcome"]) == ("done", "done"), (first, second)
    assert first["details"]["bundle"] == second["details"]["bundle"]
    assert second["details"]["data"]["part"] == f"act-{second['act'][:8]}/file.bin"
    assert kept(agent, first)[1] == b"one\n"
    assert kept(agent, second)[1] == b"evil\n"
    assert len(bundles(agent)) == 1


def pod_files(scene: Scene) -> list[list[str]]:
    """What is in each container's upper directory, and who runs in it."""
    parties = (scene.victim, scene.sibling, scene.stranger)
    return [
        sorted(str(path) for path in each.upper.rglob("*")) + [str(pid) for pid in sorted(each.pids())]
        for each in parties
    ]


# ---------------------------------------------------------------- the log


def test_the_log_of_a_container_that_was_killed_and_of_the_pods_first(make_on_node: MakeOnNode, scene: Scene) -> None:
    agent = make_on_node(capture("kubernetes:log") + rule("container:kill"))
    said(scene.sibling, "of the sibling")
    record = agent.answer(told_of(scene.victim, rule="kubernetes:log"))
    assert record["details"]["log"] == ["of the sibling"]
    said(scene.victim, "of its own")
    assert agent.answer(told_of(scene.victim, rule="container:kill"))["outcome"] == "done"
    record = agent.answer(told_of(scene.sibling, rule="kubernetes:log"))
    assert record["details"]["log"] == ["of the sibling"]
    assert alive(scene.sibling.init_pid)


NASTY = "\x1b[2J\x1b]0;owned\x07 \u202ereversed\u2066 \x00 \x9b31m tab\tend\r"


def test_what_a_log_says_is_data(make_on_node: MakeOnNode, scene: Scene) -> None:
    agent = make_on_node(capture("kubernetes:log"))
    said(scene.victim, "x" * 100_000)
    said(scene.victim, NASTY)
    record = agent.answer(told_of(scene.victim, rule="kubernetes:log"))
    assert record["details"]["log"] == ["\\x1b[2J\\x1b]0;owned\\x07 \\u202ereversed\\u2066 \\x00 \\x9b31m tab\\tend\\r"]
    assert record["details"]["log_cut"] is True
    _, data = kept(agent, record)
    assert data == b"x" * 100_000 + b"\n" + NASTY.encode() + b"\n"
    for words in (("history",), ("history", "--json"), ("evidence", "list")):
        assert not set("\x1b\x07\x9b\u202e") & set(agent.stoop(*words).stdout)


def test_with_an_output_the_log_is_not_in_the_record(make_on_node: MakeOnNode, scene: Scene) -> None:
    agent = make_on_node(capture("kubernetes:log", output=True))
    said(scene.victim, "token=1234")
    record = agent.answer(told_of(scene.victim, rule="kubernetes:log"))
    assert record["outcome"] == "done"
    assert not {"log", "text"} & record["details"].keys()
    assert record["details"]["data"] == {"part": "log.txt", "name": "log"}
    assert "token=1234" not in agent.said()


def test_a_log_that_leads_elsewhere_is_none(make_on_node: MakeOnNode, scene: Scene) -> None:
    """As a pod with a hostPath of the log directory can have it."""
    agent = make_on_node(capture("kubernetes:log"))
    file = scene.victim.node.directory / scene.victim.log.removeprefix("/var/")
    file.unlink()
    file.symlink_to("/etc/shadow")
    record = agent.answer(told_of(scene.victim, rule="kubernetes:log"))
    assert record["outcome"] == "failed"
    assert "0.log" in record["reason"]
    assert bundles(agent) == []


# ---------------------------------------------------------------- a file

HOSTILE = """
ln -s /etc/hostname /tmp/link; ln -s /volume/out /tmp/out; mkfifo /tmp/fifo; truncate -s 100G /tmp/sparse
ln -s /proc/1/root/etc/passwd /tmp/magic; mkdir /tmp/dir; echo odd > "$(printf '/tmp/a\\nb')"
"""


NO_FILES: tuple[tuple[str | None, str, str], ...] = (
    ("/tmp/fifo", "refused", "no regular file"),
    ("/dev/zero", "refused", "no regular file"),
    ("/tmp/dir", "refused", "no regular file"),
    ("/proc/1/environ", "refused", "the kernel's own (proc)"),
    ("/tmp/magic", "failed", "link of /proc"),
    ("/volume/out", "failed", "No such file"),
    ("/tmp/none", "failed", "No such file"),
    ("10.0.0.1:80->10.0.0.2:81", "refused", "no path from the container's root"),
    ("memfd:x", "refused", "no path from the container's root"),
    ("/a\0b", "refused", "holds a NUL"),
    ("/" + "x" * 5000, "refused", "4095 bytes"),
    (None, "refused", "no value for '${FD_NAME}'"),
    ("<NA>", "refused", "no value for '${FD_NAME}'"),
)


def test_what_is_no_file_of_the_containers(make_on_node: MakeOnNode, hostile: Container) -> None:
    agent = make_on_node(capture("kubernetes:download"))
    for name, outcome, why in NO_FILES:
        record = agent.answer(told_of(hostile, rule="kubernetes:download", fd_name=name))
        assert record["outcome"] == outcome, record
        assert why in record["reason"]
    assert bundles(agent) == []
    assert agent.status()["ready"]


@pytest.fixture
def hostile(the_node: Node, tmp_path: Path) -> Container:
    """A container with all that may lead elsewhere, and a hostPath volume with a link out of it."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "kept").write_text("of a volume\n")
    (tmp_path / "volume" / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_text("the node's\n")
    volume = f"type=bind,src={tmp_path}/volume,dst=/volume,options=rbind:rw"
    made = the_node.pod("web-3", "shop").container("sleep", "1000", mounts=(volume,))
    made.run("sh", "-c", HOSTILE)
    return made


FILES = {
    "/tmp/link": b"of the container\n",
    "/../../etc/hostname": b"of the container\n",
    "/volume/kept": b"of a volume\n",
    "/tmp/a\nb": b"odd\n",
}


def test_names_lead_where_they_do_in_the_container(make_on_node: MakeOnNode, hostile: Container) -> None:
    hostile.run("sh", "-c", "echo of the container > /etc/hostname")
    agent = make_on_node(capture("kubernetes:download"))
    for name, content in FILES.items():
        record = agent.answer(told_of(hostile, rule="kubernetes:download", fd_name=name))
        assert record["outcome"] == "done", record
        assert kept(agent, record)[1] == content
        assert record["details"]["data"]["name"] == name
        assert "\n" not in record["details"]["file"]


def test_a_sparse_file_of_100_gb_is_cut(make_on_node: MakeOnNode, hostile: Container) -> None:
    agent = make_on_node(capture("kubernetes:download", file="/tmp/sparse"))
    record = agent.answer(told_of(hostile, rule="kubernetes:download"))
    assert (record["outcome"], record["reason"]) == ("done", "1 things are missing or cut: the bundle says which")
    assert record["details"]["bytes"] < 2**20
    assert len(kept(agent, record)[1]) == download.MAX_FILE


def test_a_file_of_a_container_whose_process_has_ended_and_of_a_frozen_one(
    make_on_node: MakeOnNode, scene: Scene
) -> None:
    agent = make_on_node(capture("kubernetes:download", file="/tmp/evil") + rule("container:freeze"))
    scene.victim.run("sh", "-c", "echo evil > /tmp/evil")
    assert agent.answer(told_of(scene.victim, rule="container:freeze"))["outcome"] == "done"
    record = agent.answer(told_of(scene.victim, 2**22 - 2, rule="kubernetes:download"))
    assert (record["outcome"], record["target"]["container_id"]) == ("done", scene.victim.id), record
    assert kept(agent, record)[1] == b"evil\n"


FUSE = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
os.mkdir("/tmp/stuck")
if not os.path.exists("/dev/fuse"):
    os.mknod("/dev/fuse", 0o20600, os.makedev(10, 229))
fuse = os.open("/dev/fuse", os.O_RDWR)
options = b"fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other" % fuse
if libc.mount(b"stuck", b"/tmp/stuck", b"fuse", 0, options):
    sys.exit(os.strerror(ctypes.get_errno()))
_, _, unique, _ = struct.unpack_from("<IIQQ", os.read(fuse, 1 << 17))
told = struct.pack("<IIIIHHIIHHI", 7, 31, 1 << 16, 0, 16, 12, 1 << 16, 1, 16, 0, 0).ljust(64, b"\\0")
os.write(fuse, struct.pack("<IiQ", 16 + len(told), 0, unique) + told)
open("/tmp/ready", "w").close()
while True:
    os.read(fuse, 1 << 17)
"""


@pytest.mark.skipif(
    "fuse" not in Path("/proc/filesystems").read_text().split(), reason="this kernel has no FUSE (modprobe fuse)"
)
def test_a_fuse_mount_that_never_answers_costs_one_reader(
    make_on_node: MakeOnNode, the_node: Node, scene: Scene
) -> None:
    agent = make_on_node(capture("kubernetes:download"))
    server = the_node.pod("web-3", "shop").container(
        "sleep", "1000", mounts=host_programs("/etc/alternatives"), options=("--privileged",)
    )
    server.exec(os.path.realpath("/usr/bin/python3"), "-c", FUSE)
    await_that(lambda: (server.upper / "tmp/ready").exists(), "the mount is there")
    record = agent.answer(told_of(server, rule="kubernetes:download", fd_name="/tmp/stuck/file"))
    assert (record["outcome"], record["reason"]) == ("failed", "find the file: it did not answer")
    await_that(lambda: bool(agent.status()["evidence"]["workers"]["abandoned"]), "the reader that hangs is counted")
    scene.victim.run("sh", "-c", "echo evil > /tmp/evil")
    for container, name in ((server, "/tmp/ready"), (scene.victim, "/tmp/evil")):
        record = agent.answer(told_of(container, rule="kubernetes:download", fd_name=name))
        assert record["outcome"] == "done", record
    server.remove()
    server.pod.containers.remove(server)
    await_that(lambda: not agent.status()["evidence"]["workers"]["abandoned"], "it has ended with its mount")


# ---------------------------------------------------------------- traffic


@needs_tcpdump
def test_the_pods_traffic_and_no_others(make_on_node: MakeOnNode, talker: Container) -> None:
    rules = capture("evidence:pcap", snaplen=96) + capture("kubernetes:tcpdump", snaplen=96, image="evil:latest")
    agent = make_on_node(rules)
    other = talker.node.pod("web-2", "shop")
    other.container("sh", "-c", "while :; do ping -c 1 -W 1 -p 77 10.244.0.1 >/dev/null; done")
    joined = other.container("sleep", "1000", name="joined", options=["--with-ns", f"network:{talker.pod.netns}"])
    for actionner in TRAFFIC:
        record = agent.answer(told_of(talker, rule=actionner))
        assert record["outcome"] == "done", record
        assert record["details"]["network_shared_with"] == [joined.id[:12]]
        sent = [data for _, data in packets(kept(agent, record)[1])]
        assert any(b"\xa5" * 16 in data for data in sent)
        assert not any(b"\x77" * 16 in data for data in sent)
        assert max(map(len, sent)) == 96
        assert ("ignored" in record["details"]) is (actionner == "kubernetes:tcpdump")
    assert "no container is started" in record["details"]["ignored"]["image"]


@needs_tcpdump
def test_the_nodes_own_network_is_never_captured(make_on_node: MakeOnNode, the_node: Node) -> None:
    agent = make_on_node("".join(map(capture, TRAFFIC)))
    container = the_node.pod("agent", "shop", host_network=True).container("sleep", "1000")
    for actionner in TRAFFIC:
        record = agent.answer(told_of(container, rule=actionner))
        assert (record["outcome"], "hostNetwork" in record["reason"]) == ("refused", True), record
    assert bundles(agent) == []


@needs_tcpdump
def test_acts_on_others_and_on_the_same_container_do_not_wait_for_a_capture(
    make_on_node: MakeOnNode, scene: Scene
) -> None:
    """The pod's sandbox lives on, so the capture goes on too; it ends with that."""
    agent = make_on_node(capture("evidence:pcap", duration=600) + rule("container:kill") + rule("container:freeze"))
    agent.send(told_of(scene.victim, rule="evidence:pcap"))
    pid = listening(agent, scene.pod)
    for container, actionner in ((scene.stranger, "container:freeze"), (scene.victim, "container:kill")):
        record = agent.answer(told_of(container, rule=actionner))
        assert record["outcome"] == "done", record
    await_that(lambda: not alive(scene.victim.init_pid), "it is dead")
    assert hears(pid, scene.pod)
    assert alive(scene.sibling.init_pid)
    scene.pod.sandbox.remove()
    await_that(lambda: len(acts_of(agent)) == 3, "the capture has ended")
    record = acts_of(agent)[-1]
    assert (record["actionner"], record["outcome"]) == ("evidence:pcap", "done"), record
    assert record["details"]["missing"] == 1
    packets(kept(agent, record)[1])
    await_that(lambda: not alive(pid), "tcpdump has ended")


@needs_tcpdump
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_it_ends_with_the_agent(how: str, make_on_node: MakeOnNode, talker: Container) -> None:
    agent = make_on_node(capture("kubernetes:tcpdump", duration=600))
    links = talker.pod.run("ip", "link")
    agent.send(told_of(talker, rule="kubernetes:tcpdump"))
    pid = listening(agent, talker.pod)
    pidfd = os.pidfd_open(pid)
    try:
        if how == "stop":
            assert agent.stop() == 0
        else:
            agent.kill()
        await_that(lambda: bool(select.select([pidfd], [], [], 0)[0]), "tcpdump has ended")
    finally:
        os.close(pidfd)
    assert talker.pod.run("ip", "link") == links
    assert alive(talker.init_pid)
    agent.start()
    (record,) = acts_of(agent)
    assert record["outcome"] == "failed", record
    await_that(lambda: bundles(agent) == [], "what the writer left is tidied up")
    assert agent.stoop("evidence", "verify").returncode == 0


@needs_tcpdump
def test_without_tcpdump_it_is_said(
    the_node: Node, make_on_node: MakeOnNode, talker: Container, tmp_path: Path
) -> None:
    """On the node, in `stoop actions list`, and of each rule that needs it; the rest goes on."""
    agent = on_node(the_node, tmp_path, "".join(map(capture, PARAMETERS)))
    script = f'mount --bind /dev/null {os.path.realpath(TCPDUMP)}; exec "$@"'
    agent.prefix = ("unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh")
    try:
        agent.start()
        found = agent.status()["unavailable"]
        assert {name for name in found if name in ALWAYS} == set(TRAFFIC)
        assert found["evidence:pcap"]["rules"] == ["evidence:pcap"]
        assert "no tcpdump here" in found["evidence:pcap"]["reason"]
        assert "no tcpdump here" in agent.said()
        assert agent.stoop("actions", "list").stdout.count("no tcpdump here") == 2
        record = agent.answer(told_of(talker, rule="evidence:pcap"))
        assert (record["outcome"], record["reason"]) == ("refused", found["evidence:pcap"]["reason"]), record
        said(talker, "still read")
        assert agent.answer(told_of(talker, rule="kubernetes:log"))["details"]["log"] == ["still read"]
    finally:
        agent.close()


# ---------------------------------------------------------------- system calls


def test_without_a_sysdig_that_works_it_is_refused(make_on_node: MakeOnNode, scene: Scene) -> None:
    """There is none, or it has no driver for this kernel: found out once, when a rule needs it."""
    agent = make_on_node(capture("kubernetes:sysdig"))
    await_that(lambda: "kubernetes:sysdig" in agent.status()["unavailable"], f"it is told; log: {agent.said()}")
    told = agent.status()["unavailable"]["kubernetes:sysdig"]
    assert told["reason"].startswith(("there is no sysdig here", "sysdig does not work here: `sysdig --modern-bpf"))
    assert told["rules"] == ["kubernetes:sysdig"]
    assert "a rule needs what can't be done here" in agent.said()
    listed = agent.stoop("actions", "list").stdout.split("--- kubernetes:sysdig ---\n")[1].split("\n--- ")[0]
    assert yaml.safe_load(listed)["unavailable_on_this_node"] == told["reason"]
    record = agent.answer(told_of(scene.victim, rule="kubernetes:sysdig"))
    assert (record["outcome"], record["reason"]) == ("refused", told["reason"])
    assert bundles(agent) == []


# Says how it was called in place of a capture.
STAND_IN = """#!/bin/sh
{ printf '%s\\n' "$@"; echo of sixty bytes and more, as a capture would have; } | gzip
"""


def test_a_program_in_the_place_of_sysdig_is_told_whom_to_capture(the_node: Node, scene: Scene, tmp_path: Path) -> None:
    """All of the act but the program, for which there is no driver here: the pod's containers and no other's."""
    (tmp_path / "sysdig").write_text(STAND_IN)
    (tmp_path / "sysdig").chmod(0o755)
    named = '["kubernetes:sysdig"]'
    of_the_pod = capture("kubernetes:sysdig", buffer_size=0, duration=3, image="x").replace(named, '["pod"]')
    of_the_node = (
        capture("kubernetes:sysdig", scope="node").replace(named, '["node"]').replace("kubernetes", "node's", 1)
    )
    agent = on_node(the_node, tmp_path, of_the_pod + of_the_node)
    agent.more_environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    try:
        agent.start()
        before, inside = scene.whole(), pod_files(scene)
        record = agent.answer(told_of(scene.victim, rule="pod"))
        assert (record["outcome"], record["reason"]) == ("done", ""), record
        assert record["details"]["data"] == {"part": "sysdig.scap.gz", "name": "sysdig.scap.gz"}
        assert "no Job is created" in record["details"]["ignored"]["image"]
        *told, asked, _ = gzip.decompress(kept(agent, record)[1]).decode().splitlines()
        assert told == ["--modern-bpf", "-M", "3", "-s", "2048", "-z", "-w", "-"]
        ids = {each.id[:12] for each in (scene.victim, scene.sibling, scene.pod.sandbox)}
        assert set(asked.removeprefix("container.id in (").removesuffix(")").split(", ")) == ids
        record = agent.answer(told_of(scene.victim, rule="node"))
        assert (record["outcome"], record["details"].get("ignored")) == ("done", None), record
        *told, _ = gzip.decompress(kept(agent, record)[1]).decode().splitlines()
        assert told == ["--modern-bpf", "-M", "1", "-s", "2048", "-z", "-w", "-"]
        assert (scene.whole(), pod_files(scene)) == (before, inside)
    finally:
        agent.close()
