"""Docker's own log files, where the kubelet's name is a link to them (cri-dockerd): found by proof, not by the link.

    /var/log/pods/NS_POD_UID/CONTAINER/0.log ─▶ /var/lib/docker/containers/ID/ID-json.log, ….1, ….2.gz
    {"log":"a line\\n","stream":"stdout","time":"2026-11-24T16:20:44.056696147Z"}
A pod with a hostPath can put any link there. It is never followed: it only says which container it may be. That one's
directory belongs to root, nobody else can write it, and its own file says whose it is (labels of the kubelet's).

Sources: moby daemon/logger/jsonfilelog and loggerutils (as of 20.10: rotated files count up, the newest is 1); tried
with the files of a real one.
"""

from __future__ import annotations

import os
import re
import stat
from typing import NamedTuple

import msgspec

from agent.work.crilog import Reader
from agent.work.files import READ, look, names, open_beneath, pieces
from stoop.errors import TargetRefused

MAX_CONFIG = 1024 * 1024
"""Bytes of a container's config.v2.json; a usual one has 3 KiB."""

MAX_NAMES = 256
"""Names in a container's directory: some ten, and `max-file` log files."""

_LINK = re.compile(rb"/(?:[^/]+/)*containers/([0-9a-f]{64})/\1-json\.log")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_POD_UID, _CONTAINER = "io.kubernetes.pod.uid", "io.kubernetes.container.name"
# pkg/kubelet/types/labels.go of Kubernetes


class DockerFile(NamedTuple):
    """A log file: `age` 0 is the one that is written, larger ones are older."""

    age: int
    name: str
    packed: bool


class _Inner(msgspec.Struct):
    Labels: dict[str, str] | None = None


class _Config(msgspec.Struct):
    Config: _Inner


class _Line(msgspec.Struct):
    log: str


_config = msgspec.json.Decoder(_Config)
_line = msgspec.json.Decoder(_Line)


class DockerReader(Reader):
    """As `Reader`, of Docker's lines: one without an end in `log` goes on in the next one."""

    def parse(self, line: bytes) -> bytes | None:
        """The text of one line; None for what Docker did not write."""
        try:
            return _line.decode(line).log.encode()
        except (msgspec.MsgspecError, UnicodeEncodeError):
            return None


def newest_first(found: list[str], container_id: str) -> list[DockerFile]:
    """The log files among these names. What is there packed too, while it is being packed, is taken unpacked."""
    form = re.compile(rf"{container_id}-json\.log(?:\.([1-9][0-9]{{0,4}})(\.gz)?)?", re.ASCII)
    files: dict[int, DockerFile] = {}
    for match in filter(None, map(form.fullmatch, found)):
        file = DockerFile(int(match[1] or 0), match[0], bool(match[2]))
        files[file.age] = min(file, files.get(file.age, file), key=lambda each: each.packed)
    return [files[age] for age in sorted(files)]


def meant_by(directory: int, name: str) -> str:
    """The container that a link of this name is about; "" where it is no link to a log of Docker's."""
    try:
        match = _LINK.fullmatch(os.fsencode(os.readlink(name, dir_fd=directory)))
    except OSError:
        return ""
    return match[1].decode("ascii") if match else ""


def open_directory(docker: str, container_id: str, pod_uid: str, container: str) -> int:
    """The directory of this container, proven to be that pod's of this name. Raises TargetRefused, OSError."""
    top = os.open(docker, _DIRECTORY)
    try:
        _prove_root_only(top, docker)
        directory = open_beneath(top, container_id.encode("ascii"), _DIRECTORY)
    finally:
        os.close(top)
    try:
        _prove_root_only(directory, container_id[:12])
        labels = _labels(directory)
        if (labels.get(_POD_UID), labels.get(_CONTAINER)) != (pod_uid, container):
            raise TargetRefused(f"Docker's container {container_id[:12]} is another one than the link's place says")
    except BaseException:
        os.close(directory)
        raise
    return directory


def files_of(directory: int, container_id: str) -> list[DockerFile]:
    """Its log files, the newest first. Raises OSError."""
    return newest_first([os.fsdecode(name) for name in names(directory, MAX_NAMES)], container_id)


def _labels(directory: int) -> dict[str, str]:
    fd = open_beneath(directory, b"config.v2.json", READ)
    try:
        looks = look(fd)
        if not looks.is_regular or looks.uid != 0 or looks.links != 1 or looks.size > MAX_CONFIG:
            raise TargetRefused("Docker's config.v2.json is no small file of root with one name")
        return _config.decode(b"".join(pieces(fd, MAX_CONFIG))).Config.Labels or {}
    except (msgspec.MsgspecError, RecursionError) as error:
        raise TargetRefused(f"Docker's config.v2.json can't be read: {error}") from error
    finally:
        os.close(fd)


def _prove_root_only(fd: int, what: str) -> None:
    looks = look(fd)
    if looks.uid != 0 or looks.mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise TargetRefused(f"{what}: others than root may write there")
