"""`make demo`: isolate, give back, freeze and kill a container-like victim; a bystander must not notice.

    python -m tools.demo_container

The victim is a program with a cgroup named as the kubelet names them, and with network and pid namespaces of its own.
All of it, the agent too, runs in a network namespace of this program, which is the "node": the machine's network is
left alone. Files are below `var/` of the checkout; cgroups go when it ends, the rest ends with it. Needs root, cgroup
v2, `ip`, `nft`, `unshare` and `nsenter`. Exit 0: all was so; 1: something was not; 2: it could not be tried.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from stoop import control
from stoop.cli import children
from stoop.cli.running import agent_command, running_agent, wait_ready
from stoop.cli.screen import OUTCOME_STYLES, err, out, plain, text
from stoop.errors import StoopError, UserError
from stoop.log import timestamp
from tools.demo import READY_S, ROOT, VAR, falco, send
from tools.demo import configuration as plain_configuration

RULES = Path(__file__).resolve().with_suffix(".yaml")
PROGRAMS = ("ip", "nft", "unshare", "nsenter")
INSIDE = "--in-its-own-network"
NODE, POD = "10.9.9.1", "10.9.9.2"
PORT = 9999

WAIT_S = 8.0
"""How long an act or its undo may take to be seen, in seconds; the isolation itself is held for 3."""

QUIET_S = 0.5
"""How long a silent pod is listened to, in seconds: it sends every 10 ms."""

SENDER = f"""
import select, socket
mine = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    try:
        mine.sendto(b"mined", ("{NODE}", {PORT}))
    except OSError:
        pass
    select.select([], [], [], 0.01)
"""
VICTIM = ("sh", "-c", 'echo up; read go; exec "$0" -c "$1"', sys.executable, SENDER)


def cgroup_mount() -> Path | None:
    """Where cgroup v2 is mounted, alone or beside v1."""
    root = Path("/sys/fs/cgroup")
    return next((path for path in (root, root / "unified") if (path / "cgroup.controllers").exists()), None)


class Box:
    """A victim: `init` is the first process of its pid namespace."""

    def __init__(self, mount: Path, name: str) -> None:
        self.id = uuid.uuid4().hex * 2
        self._top = mount / f"stoop-demo-{os.getpid()}-{name}"
        self.cgroup = self._top / f"kubepods/pod{uuid.uuid4()}/{self.id}"
        self.child: subprocess.Popen[bytes] | None = None
        self.init = 0

    def begin(self) -> None:
        """Start it; it waits for `go`."""
        self.cgroup.mkdir(parents=True)
        command = ("unshare", "--net", "--pid", "--fork", "--kill-child", *VICTIM)
        pipe = subprocess.PIPE
        with open(os.devnull, "wb") as none:  # unshare(1) complains when its child is killed
            self.child = children.start(command, dies_by=signal.SIGKILL, stdin=pipe, stdout=pipe, stderr=none)
        assert self.child.stdout is not None
        if not select.select([self.child.stdout], [], [], READY_S)[0] or self.child.stdout.readline() != b"up\n":
            raise UserError("a victim did not start", hint="may this root make network and pid namespaces?")
        pid = self.child.pid
        self.init = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
        (self.cgroup / "cgroup.procs").write_text(str(self.init))

    def go(self) -> None:
        """Let it send."""
        assert self.child is not None
        assert self.child.stdin is not None
        self.child.stdin.write(b"\n")
        self.child.stdin.flush()

    def frozen(self) -> bool:
        """Whether it stands still, as the kernel says."""
        return "frozen 1" in (self.cgroup / "cgroup.events").read_text()

    def dead(self) -> bool:
        """Whether nobody is left in it."""
        return "populated 0" in (self.cgroup / "cgroup.events").read_text()

    def end(self) -> None:
        """Kill what is left, and remove the cgroups."""
        with contextlib.suppress(FileNotFoundError):
            (self.cgroup / "cgroup.kill").write_text("1")
            (self.cgroup / "cgroup.freeze").write_text("0")
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            for pipe in (self.child.stdin, self.child.stdout):
                if pipe is not None:
                    pipe.close()
        for path in (self.cgroup, self.cgroup.parent, self.cgroup.parent.parent, self._top):
            if path.exists() and not seen(lambda path=path: removed(path), WAIT_S):  # type: ignore[misc]
                raise UserError(f"{path} can't be removed", hint="see who is in it: cgroup.procs")


def removed(path: Path) -> bool:
    """Whether the cgroup is gone now: its processes need a moment to leave it."""
    with contextlib.suppress(OSError):
        path.rmdir()
    return not path.exists()


def seen(condition: Callable[[], bool], within_s: float) -> bool:
    """Whether it becomes so in time."""
    until = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until:
            return False
        select.select([], [], [], 0.005)
    return True


def run(*argv: str) -> None:
    """A command that must succeed."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=READY_S, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(argv)}: {done.stderr.strip()}")


def connect(box: Box) -> None:
    """A link between the node and the victim."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "demo0", "type", "veth", "peer", "name", "eth0", "netns", str(box.init))
    run("ip", "address", "add", f"{NODE}/24", "dev", "demo0")
    run("ip", "link", "set", "demo0", "up")
    inside = ("nsenter", f"--net=/proc/{box.init}/ns/net", "ip")
    run(*inside, "address", "add", f"{POD}/24", "dev", "eth0")
    run(*inside, "link", "set", "eth0", "up")


class Ear:
    """Hears what the victim sends to the node."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.bind((NODE, PORT))
        sock.setblocking(False)

    def hears(self, within_s: float) -> bool:
        """Whether anything comes that is sent from now on."""
        with contextlib.suppress(BlockingIOError):
            while self._sock.recv(100):
                pass
        return bool(select.select([self._sock], [], [], within_s)[0])


def alert(box: Box, rule: str) -> dict[str, Any]:
    """What Falco says of the victim (falco.md section 4)."""
    now_ns = time.time_ns()
    iso = f"{timestamp(now_ns)[:-1]}{now_ns % 1000:03d}Z"
    fields = {"container.id": box.id[:12], "evt.time": now_ns, "proc.pid": box.init, "proc.name": "sh"}
    said = f"{iso[11:-1]}: Critical {rule} (pid={box.init} container={box.id[:12]})"
    return {
        "hostname": socket.gethostname(),
        "output": said,
        "output_fields": fields,
        "priority": "Critical",
        "rule": rule,
        "source": "syscall",
        "tags": ["container"],
        "time": iso,
    }


class Stage:
    """What the demonstration is told by, and whether all was so far as it should be."""

    def __init__(self, connection: socket.socket, records: control.Follow) -> None:
        self._connection = connection
        self._records = records
        self._waiting: list[dict[str, Any]] = []
        self.well = True

    def attack(self, box: Box, rule: str) -> None:
        """Send the alert and show what was done."""
        said = alert(box, rule)
        out().print()
        out().print(text(("seen      ", "bold"), f"{said['priority']} · {rule}"))
        send(self._connection, said)
        self.record("answer    ")

    def record(self, word: str) -> None:
        """Show the next record, within WAIT_S."""
        until = time.monotonic() + WAIT_S
        while not self._waiting and (left := until - time.monotonic()) > 0:
            self._waiting += self._records.read(left)
        if not self._waiting:
            self.claim("the agent answered", False)
            return
        record = self._waiting.pop(0)
        outcome = str(record.get("outcome"))
        reason = f": {plain(record['reason'])}" if record.get("reason") else ""
        what = f"{plain(record.get('action', '?'))} ({plain(record.get('actionner', '?'))})"
        out().print(text((word, "bold"), what, " ", (outcome, OUTCOME_STYLES.get(outcome, "")), reason))
        self.claim("it was done", outcome == "done")

    def claim(self, what: str, holds: bool) -> None:
        """Show whether it is so."""
        mark = ("✓ ", "bold green") if holds else ("✗ ", "bold red")
        out().print(text(mark, (what if holds else f"NOT SO: {what}", "bold")))
        self.well = self.well and holds


def play(stage: Stage, ear: Ear, victim: Box, bystander: Box) -> None:
    """The attack in three acts."""
    stage.claim("the victim talks to the node", ear.hears(WAIT_S))
    stage.attack(victim, "Detect outbound connections to common miner pool ports")
    stage.claim("nothing comes out of it any more", not ear.hears(QUIET_S))
    stage.record("later     ")
    stage.claim("its time was over: it talks again", ear.hears(WAIT_S))
    stage.attack(victim, "Terminal shell in container")
    stage.claim("the victim is frozen", victim.frozen())
    stage.claim("so it says nothing", not ear.hears(QUIET_S))
    stage.attack(victim, "Drop and execute new binary in container")
    stage.claim("the victim is dead", seen(victim.dead, WAIT_S))
    stage.claim("the bystander runs", not bystander.frozen() and not bystander.dead())


@contextlib.contextmanager
def boxes(mount: Path) -> Iterator[tuple[Box, Box]]:
    """A victim and a bystander, connected and started."""
    with contextlib.ExitStack() as stack:
        found = []
        for name in ("victim", "bystander"):
            box = Box(mount, name)
            stack.callback(box.end)
            box.begin()
            found.append(box)
        connect(found[0])
        for box in found:
            box.go()
        yield found[0], found[1]


def demonstrate(mount: Path) -> int:
    """Everything, in order. Returns the exit code; raises UserError for what keeps it from running."""
    os.chdir(ROOT)
    VAR.mkdir(mode=0o700, exist_ok=True)
    config = plain_configuration() | {"guard": {"pid_namespace": "agent", "reference_pid": os.getpid()}}
    (VAR / "stoop.yaml").write_text("# stoop.yaml of `make demo`, written anew each time\n" + yaml.safe_dump(config))
    command = agent_command("var/stoop.yaml", [str(RULES.relative_to(ROOT))])
    with (VAR / "agent.log").open("wb") as log, boxes(mount) as (victim, bystander):
        with running_agent(command, stderr=log) as agent:
            assert agent.stdout is not None
            if not wait_ready(agent.stdout, READY_S):
                raise UserError(f"the agent was not ready within {READY_S:g} s", hint="its log is var/agent.log")
            staged = f"container {victim.id[:12]}, pid {victim.init}; a bystander, pid {bystander.init}"
            out().print(text(("agent     ", "bold"), f"pid {agent.pid}, rules {RULES.name}, log var/agent.log"))
            out().print(text(("staged    ", "bold"), staged))
            with (
                control.Follow(config["control"]["path"]) as records,
                falco() as connection,
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as heard,
            ):
                stage = Stage(connection, records)
                play(stage, Ear(heard), victim, bystander)
        return 0 if stage.well else 1


def main() -> int:
    """The command line."""
    try:
        mount = cgroup_mount()
        absent = [program for program in PROGRAMS if shutil.which(program) is None]
        if os.geteuid() or mount is None or absent:
            lacks = f"and {', '.join(absent)}" if absent else "and cgroup v2"
            raise UserError(f"it needs root {lacks}", hint="`make run` shows a kill without them")
        if INSIDE not in sys.argv:
            os.execvp("unshare", ["unshare", "--net", sys.executable, "-m", "tools.demo_container", INSIDE])
        return demonstrate(mount)
    except StoopError as error:
        for line in str(error).splitlines():
            err().print(text(("demo: ", "bold red"), plain(line)))
        return 2
    except KeyboardInterrupt:
        out().print("ended")
        return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
