"""kubernetes:log: the last lines of a pod's log, out of the kubelet's files, rotated ones too.

A pod with a hostPath there can put anything into that directory: a link to /etc/shadow, a second name of another file,
a FIFO, a gzip bomb. So names lead through no link and to no other file system, and only a regular file of root with
one name counts; all is bounded.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from agent.jobs import VOLATILE, LogJob
from agent.work import dockerlog
from agent.work.crilog import Reader, Tail, newest_first
from agent.work.files import CHUNK, look, names, open_beneath, pieces
from agent.work.telling import Teller
from stoop.errors import ActFailed, TargetRefused

MAX_NAMES = 1024
"""Names of one directory: a pod has a few containers, and the kubelet keeps 5 files of each instance by default."""

MAX_FILES = 64
"""Files of one container that are read: what they do not hold was written long ago."""

READ_FACTOR = 4
"""Bytes of a file's end that are read, for each of the text: a line's time and stream take 40."""

WINDOW = 256 * 1024
"""Bytes of a file's end that are tried first: they hold some 1,500 lines, and are read in a few milliseconds."""

MAX_UNPACKED = 256 * 1024 * 1024
"""Bytes that one packed file may become: the kubelet rotates at 10 MiB by default."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CONTAINER = re.compile(rb"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1123 label, as Kubernetes asks for
_LINES = re.compile(rb"[^\n]*\n|[^\n]+")
_GZIP = 16 + zlib.MAX_WBITS  # zlib's manual, inflateInit2: a gzip header is expected


class Source(NamedTuple):
    """One file of a container's log: where it is, how it is told, how its lines are read."""

    directory: int
    name: str
    what: str
    step: str
    packed: bool
    reader: type[Reader]


def read(teller: Teller, job: LogJob, fds: tuple[int, ...]) -> None:
    """Read the log of the first container that has one. Raises TargetRefused, ActFailed."""
    teller.phase(VOLATILE)
    if not teller.may("log directory"):
        return
    pod = _open_pod(job)
    try:
        for container in _order(job, pod):
            tail, files = _one(teller, job, pod, container)
            if tail.size:
                about = {"container": container, "files": files, "lines": tail.lines}
                if tail.cut:
                    teller.lacks("log.txt", f"older lines: the text was to have {job.bytes} bytes at most")
                teller.whole("log.txt", tail.text(), about)
                return
    finally:
        os.close(pod)
    teller.lacks("log.txt", "no container of the pod has a line of log here")


def _open_pod(job: LogJob) -> int:
    if not job.pod or "/" in job.pod or job.pod in (".", ".."):
        raise TargetRefused(f"{job.pod!r} is no name of a pod's log directory")
    try:
        top = os.open(job.directory, _DIRECTORY)
    except OSError as error:
        raise ActFailed(f"{job.directory}: {error.strerror}; is the node's directory mounted there?") from error
    try:
        return open_beneath(top, os.fsencode(job.pod), _DIRECTORY)
    except OSError as error:
        raise ActFailed(f"{job.directory}/{job.pod}: {error.strerror}") from error
    finally:
        os.close(top)


def _order(job: LogJob, pod: int) -> list[str]:
    """Which containers are tried, in which order."""
    others = _containers(pod) if job.others or not job.containers else []
    return [*job.containers, *(name for name in others if name not in job.containers)]


def _containers(pod: int) -> list[str]:
    return [name.decode("ascii") for name in sorted(names(pod, MAX_NAMES)) if _CONTAINER.fullmatch(name)]


def _one(teller: Teller, job: LogJob, pod: int, container: str) -> tuple[Tail, list[str]]:
    """The end of one container's log, and the files that it came from, newest first."""
    texts: list[bytes] = []
    used: list[str] = []
    tail = Tail(job.lines, job.bytes)
    try:
        directory = open_beneath(pod, os.fsencode(container), _DIRECTORY)
    except OSError as error:
        if job.containers:
            teller.lacks(container, f"its log directory: {error.strerror}")
        return tail, used
    opened = [directory]
    try:
        lines, left = job.lines, job.bytes
        for source in _sources(teller, job, container, opened)[:MAX_FILES]:
            part = Tail(lines, left)
            if teller.may(f"log {len(used)} {source.step}"):
                _file(teller, source, part, min(WINDOW, READ_FACTOR * left))
                if part.cut:
                    part = Tail(lines, left)
                    _file(teller, source, part, READ_FACTOR * left)
            if part.size:
                texts.insert(0, part.text())
                used.append(source.name)
                lines, left = lines - part.lines, left - part.size
                tail.cut |= part.cut
            if lines <= 0 or left <= 0 or tail.cut:
                break
    finally:
        for fd in opened:
            os.close(fd)
    for line in _LINES.findall(b"".join(texts)):  # what one file began another may have ended
        tail.add(line)
    return tail, used


def _sources(teller: Teller, job: LogJob, container: str, opened: list[int]) -> list[Source]:
    """The files of one container's log, the newest first. `opened`: its directory, and gets those of Docker's."""
    directory = opened[0]
    found = [os.fsdecode(name) for name in names(directory, MAX_NAMES)]
    sources = []
    for file in newest_first(found, job.attempt)[:MAX_FILES]:
        container_id = dockerlog.meant_by(directory, file.name)
        if not container_id:
            step = f"{file.attempt} {file.rotated}"
            sources.append(Source(directory, file.name, f"{container}/{file.name}", step, file.packed, Reader))
            continue
        try:
            docker = dockerlog.open_directory(job.docker, container_id, job.pod.rpartition("_")[2], container)
            opened.append(docker)
            theirs = dockerlog.files_of(docker, container_id)
        except (OSError, TargetRefused) as error:
            teller.lacks(f"{container}/{file.name}", f"a link to Docker's log: {_why(error)}")
            continue
        for each in theirs:
            what = f"{container}/{file.name}: {each.name}"
            step = f"{file.attempt} docker {each.age}"
            sources.append(Source(docker, each.name, what, step, each.packed, dockerlog.DockerReader))
    return sources


def _why(error: Exception) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)


def _file(teller: Teller, source: Source, tail: Tail, most: int) -> None:
    """The end of one file into `tail`. What is no log of the runtime's is told, and left out."""
    wanted = tail.wanted
    try:
        fd = open_beneath(source.directory, os.fsencode(source.name))
    except OSError as error:
        teller.lacks(source.what, str(error.strerror))
        return
    try:
        looks = look(fd)
        if not looks.is_regular or looks.links != 1 or looks.uid != 0:
            teller.lacks(source.what, "it is no regular file of root with one name")
            return
        start = 0 if source.packed else max(0, looks.size - most)
        os.lseek(fd, max(0, start - 1), os.SEEK_SET)
        reader = source.reader(tail, begun=not start)
        for data in _unpacked(fd) if source.packed else pieces(fd, looks.size - max(0, start - 1)):
            reader.feed(data)
            teller.phase(VOLATILE)  # still at work
        reader.end()
        tail.cut |= bool(start) and tail.lines < wanted
    except (OSError, zlib.error) as error:
        teller.lacks(source.what, _why(error))
        return
    finally:
        os.close(fd)
    if reader.odd or reader.long:
        teller.lacks(source.what, f"{reader.odd} lines are none of the runtime's, {reader.long} were cut")


def _unpacked(fd: int) -> Iterator[bytes]:
    """A gzip file, member after member, CHUNK bytes at a time. Raises OSError, zlib.error (also for too much)."""
    total, inflate = 0, zlib.decompressobj(_GZIP)
    while data := os.read(fd, CHUNK):
        while data:
            out = inflate.decompress(data, CHUNK)
            data = inflate.unconsumed_tail
            total += len(out)
            if total > MAX_UNPACKED:
                raise zlib.error(f"it unpacks to more than {MAX_UNPACKED} bytes")
            yield out
            if inflate.eof:
                data, inflate = inflate.unused_data, zlib.decompressobj(_GZIP)
