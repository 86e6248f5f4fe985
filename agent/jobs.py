"""What is asked of a worker and what it answers: messages of three kinds of socket, all SOCK_SEQPACKET. Pure.

    reflex → nursery   Start (with descriptors, SCM_RIGHTS) · Cancel
    nursery → reflex   Started · Ended · Abandoned
    worker → reflex    Progress … Result, over the job's own socket
Each message is one packet: the kernel keeps the borders (unix(7)), so there are no frames as on the helper's stream.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec.msgpack import Decoder as _Decoder

from stoop.evidence.limits import Limits
from stoop.evidence.manifest import Origin

T = TypeVar("T")

MAX_MESSAGE = 160 * 1024
"""Bytes of one message: below what a socket buffer takes at once (net.core.wmem_default, 208 KiB)."""

MAX_FDS = 200
"""Descriptors that go with one job: the kernel takes 253 in a message (SCM_MAX_FD), one is the job's socket."""

MAX_PROCESSES = 4096
"""Processes of one job."""

DOCKER = "/var/lib/docker/containers"
"""Docker's directory of containers (`data-root` in its configuration moves it)."""

READY = 0
"""The id that no job has."""

NICE = 10
"""How much a worker steps back where no target stands still for it: the agent and its node come first."""

VOLATILE, READ = "volatile", "read"
"""Phases told by Progress: what changes while the target runs was read, so it may be thawed · all was read of the
target, so it may be ended; what follows is writing."""


class Whom(msgspec.Struct, frozen=True):
    """One process: its number, and the `birth` of its facts (`ProcessFacts.birth`), which no other has in this boot."""

    pid: int
    birth: int


class Box(msgspec.Struct, frozen=True):
    """A container, as `ContainerFacts` says: its members are listed when the job begins, and proven one by one."""

    container_id: str
    cgroup_v2: str = ""
    cgroup_freezer: str = ""
    init_pid: int = 0


class LogTail(msgspec.Struct, frozen=True):
    """The end of a log: a name below a directory that only root can write; no link in between is followed. A name that
    ends with `/`: the newest `<count>.log` in that directory. `docker`: as in `LogJob`."""

    directory: str
    name: str
    bytes: int = 256 * 1024
    docker: str = DOCKER


class Job(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`key`: whom it reads, for the limit of each target. `processes`: their pidfds come along, in this order, as far
    as MAX_FDS reaches. `target`: facts for the manifest. `read_s`: the target is read for so many seconds at most,
    and what was read till then is kept; 0 leaves that to the deadline, most of which is for reading.
    """

    key: str
    origin: Origin
    store: str  # the evidence store's directory
    limits: Limits = Limits()
    target: dict[str, Any] = {}
    processes: tuple[Whom, ...] = ()
    container: Box | None = None
    read_s: float = 0.0


class SnapshotJob(Job, frozen=True, kw_only=True, tag=True):
    """`executable_bytes`: of all executables together; 0 leaves them out. `upper`: the overlay's upper directory where
    the runtime told it; "" asks the target's mount table, which a hostile target can shape."""

    executable_bytes: int
    upper: str = ""
    list_upper: bool = True
    log: LogTail | None = None


class MemoryJob(Job, frozen=True, kw_only=True, tag=True):
    """`regions`: names as in `agent.work.memory.KINDS`. `bytes`: of all processes together."""

    regions: tuple[str, ...]
    bytes: int


class LogJob(Job, frozen=True, kw_only=True, tag=True):
    """The last lines of a pod's log, out of the kubelet's files.

    `directory`: where the kubelet keeps them (`/var/log/pods` as this process sees it). `pod`: the pod's directory in
    it. `containers`: tried in this order until one has a line; () tries all, and so does `others` after those.
    `attempt`: of the container's instances the one with this number; negative for all, newest first. `bytes`: of the
    text; older lines are left out. `tell`: bytes of its end that are in `Result.details["text"]` too.
    `docker`: where Docker has its containers, for a file that is a link to its log.
    """

    directory: str
    pod: str
    containers: tuple[str, ...] = ()
    others: bool = False
    attempt: int = -1
    lines: int = 20
    bytes: int = 4 * 1024 * 1024
    tell: int = 0
    docker: str = DOCKER


class DownloadJob(Job, frozen=True, kw_only=True, tag=True):
    """One file of the first process's root, which is a container's init. `path`: as the container calls it.

    `limit`: bytes of the file; what is longer is cut, and told. `host_mounts`: inodes of the node's mount namespaces.
    """

    path: bytes
    limit: int
    host_mounts: tuple[int, ...] = ()


class KeptFile(msgspec.Struct, frozen=True):
    """A file to be quarantined: where it is in the container, and what makes it this one. Times: ns since 1970.

    `mode`: permission bits. `aside`: the name in the same directory that it gets. `layer`: `upper` (the container wrote
    it), `image`, `deleted` (it runs, and has no name any more) or `memfd`; the last two have no `name`.
    """

    directory: bytes
    name: bytes
    aside: bytes
    device: str
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    uid: int
    gid: int
    layer: str = "upper"


class QuarantineJob(Job, frozen=True, kw_only=True):
    """What both halves of `file:quarantine` have. `processes`: the container's first one, whose root it is; a second
    one whose executable is meant.

    `upper`, `device`: the overlay's upper directory and MAJOR:MINOR as the runtime told them, "" where it did not.
    `lower`: files of the image too, which are not in it. `interpreters`: also those of them that run scripts.
    """

    upper: str
    device: str = ""
    lower: bool = False
    interpreters: bool = False
    host_mounts: tuple[int, ...] = ()


class KeepFileJob(QuarantineJob, frozen=True, kw_only=True, tag=True):
    """The first half: copy the file, change nothing, pin the bundle. `Result.details["file"]`: a KeptFile.

    `path`: as the container calls it; b"" for the second process's executable. `limit`: bytes of the file; a larger
    one is refused, for what is taken away must be kept whole. `room`: what the store has for such files, set by the
    worker.
    """

    path: bytes
    limit: int
    room: int = 2**62


class AsideJob(QuarantineJob, frozen=True, kw_only=True, tag=True):
    """The second half. `step`: `aside` (mode 000, and another name in its directory), `back` (undo that; twice is
    harmless), `look` (change nothing; `Result.reason` says what somebody else changed).

    `bundle`, `sha256`: where its content is kept, and the content's hash.
    """

    file: KeptFile
    step: str = "aside"
    bundle: str = ""
    sha256: str = ""


class TrafficJob(Job, frozen=True, kw_only=True, tag=True):
    """What passes in the network namespace of the first process, which is a pod's sandbox or a container's init.

    `program`: tcpdump's path. `network`: the inode that the namespace must have. `host_networks`: those that are the
    node's, never captured. `duration_s`: seconds; `snaplen`: bytes of each packet, 0 for all. `bytes`: of the capture.
    """

    program: str
    network: int
    host_networks: tuple[int, ...] = ()
    duration_s: float = 5.0
    snaplen: int = 0
    bytes: int = 256 * 1024 * 1024


class SyscallsJob(Job, frozen=True, kw_only=True, tag=True):
    """The system calls of these containers (ids of 12 digits), or of the whole node without any.

    `program`: sysdig's path. `snaplen`: bytes of each call's data. `bytes`: of the capture, as it is compressed.
    """

    program: str
    containers: tuple[str, ...]
    seconds: int
    snaplen: int
    bytes: int


class ProbeJob(Job, frozen=True, kw_only=True, tag=True):
    """Whether sysdig works here. No target is read."""

    program: str


class TidyJob(Job, frozen=True, kw_only=True, tag=True):
    """Put the evidence store in order, as is due at a start; no target is read. `details["notes"]`: what was done.

    `held`: acts that need their bundles. Pins of others, made before `before_ns`, are removed; 0 leaves all.
    """

    held: tuple[str, ...] = ()
    before_ns: int = 0


class DeliverJob(Job, frozen=True, kw_only=True, tag=True):
    """Copy this part ("" for all) of a bundle into a folder, under this name; without a name only look at the folder.

    `state_dir`: where it must not be. `Result.details`: `fate` (agent.letters.Fate), `bytes`, `sha256`.
    """

    folder: str
    state_dir: str
    name: str = ""
    bundle: str = ""
    part: str = ""


AnyJob = (
    DeliverJob
    | SnapshotJob
    | MemoryJob
    | LogJob
    | DownloadJob
    | TrafficJob
    | KeepFileJob
    | AsideJob
    | SyscallsJob
    | ProbeJob
    | TidyJob
)


class Message(msgspec.Struct, frozen=True, tag=True):
    """Base of every message."""


class Start(Message, frozen=True):
    """Fork a worker. Its first descriptor is the job's socket. `deadline_s`: from now on."""

    id: int
    deadline_s: float
    job: bytes


class Cancel(Message, frozen=True):
    """Nobody waits for this job any more: end its worker."""

    id: int


class Started(Message, frozen=True):
    """The worker's process; with id READY the nursery itself, which takes jobs now."""

    id: int
    pid: int


class Ended(Message, frozen=True):
    """All processes of the job have ended. `status`: exit code, or the signal's number negative."""

    id: int
    status: int


class Abandoned(Message, frozen=True):
    """A process of the job did not end on SIGKILL: it hangs in the kernel. `Ended` follows if it ever does."""

    id: int
    pid: int


class Progress(Message, frozen=True):
    """The job has come so far."""

    phase: str


class Result(Message, frozen=True):
    """How the job ended. `reason`: for a person, "" when all went well. `details`: what is kept in the act's record.
    `refused`: it did not go well because of what the target is; `gone`: because it has ended."""

    ok: bool
    reason: str = ""
    details: dict[str, Any] = {}
    refused: bool = False
    gone: bool = False


ToNursery = Start | Cancel
FromNursery = Started | Ended | Abandoned
FromWorker = Progress | Result

_encoder = msgspec.msgpack.Encoder()
_jobs: _Decoder[AnyJob] = _Decoder(AnyJob)
_to_nursery: _Decoder[ToNursery] = _Decoder(ToNursery)
_from_nursery: _Decoder[FromNursery] = _Decoder(FromNursery)
_from_worker: _Decoder[FromWorker] = _Decoder(FromWorker)


class JobError(ValueError):
    """A message is too large, or is none."""


def encode(message: Message | Job) -> bytes:
    """One packet. Raises JobError when it is too large."""
    data = _encoder.encode(message)
    if len(data) > MAX_MESSAGE:
        raise JobError(f"a message of {len(data)} bytes; the limit is {MAX_MESSAGE}")
    return data


def decode_job(data: bytes) -> AnyJob:
    """Raises JobError."""
    return _decoded(_jobs, data)


def decode_to_nursery(data: bytes) -> ToNursery:
    """Raises JobError."""
    return _decoded(_to_nursery, data)


def decode_from_nursery(data: bytes) -> FromNursery:
    """Raises JobError."""
    return _decoded(_from_nursery, data)


def decode_from_worker(data: bytes) -> FromWorker:
    """Raises JobError."""
    return _decoded(_from_worker, data)


def _decoded(decoder: _Decoder[T], data: bytes) -> T:
    try:
        found: T = decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise JobError(f"not a message: {error}") from error
    return found
