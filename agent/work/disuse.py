"""file:quarantine, the second half: a file that was kept is taken out of use where it lies, looked at, and given back.

What is changed is a mode, by the descriptor of that very file, and a name in a directory that is the container's. A
file that is gone, or has another content by now, is made anew out of the bundle: beside, then given its name at once,
replacing nothing. What others made of it since is left to them, and told.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import socket
from collections.abc import Iterator

from agent.jobs import AnyJob, AsideJob, KeptFile, Result
from agent.node.procfs import text
from agent.work.aside import libc
from agent.work.files import Looks, look, open_beneath, pieces, reopen
from agent.work.quarantine import DIRECTORY, NO_LINKS, PATH, Place, executable, is_named, prove, prove_root
from agent.work.remake import remake
from agent.work.rootfs import container_root, find
from stoop.errors import ActFailed, TargetGone

ITSELF = PATH | os.O_NOFOLLOW
_NOREPLACE = 1  # RENAME_NOREPLACE, renameat2(2)


def perform(job: AnyJob, sock: socket.socket, deadline: float, fds: tuple[int, ...]) -> Result:
    """One step of AsideJob. Raises TargetGone, TargetRefused, ActFailed."""
    assert isinstance(job, AsideJob)
    kept = job.file
    with container_root(job, fds, job.host_mounts) as (_, root):
        prove_root(root, job.device)
        if not kept.name:
            return _nameless(job)
        try:
            parent = find(root, kept.directory, NO_LINKS, DIRECTORY)
        except ActFailed as error:
            raise TargetGone(f"its directory is gone, or another one: {error.reason}") from error
        try:
            return {"aside": _aside, "back": _back, "look": _look}[job.step](parent, job)
        finally:
            os.close(parent)


def _nameless(job: AsideJob) -> Result:
    """A memfd, or a file that was deleted: only its process leads to it, and only its mode can be changed."""
    kept = job.file
    with executable(job) as (_, file):
        looks = look(file)
        if (looks.device, looks.inode) != (kept.device, kept.inode):
            raise TargetGone("the process runs another executable by now")
        mode = looks.mode & 0o7777
        if job.step == "look":
            return Result(True, "" if mode == 0 else f"somebody gave it mode {mode:04o}")
        if job.step == "aside":
            try:
                change_mode(file, 0)
            except ActFailed as error:  # a sealed memfd; one of the image's, which has no place to be copied up to
                raise ActFailed(f"it is kept, but {error.reason}") from error
            return Result(True, details={"changed": False})
        if mode == 0:
            change_mode(file, kept.mode)
            return Result(True)
        return Result(True, "" if mode == kept.mode else _left(["mode"]), {"theirs": ["mode"] * (mode != kept.mode)})


# ------------------------------------------------------------ aside


def _aside(parent: int, job: AsideJob) -> Result:
    kept = job.file
    with _place(parent, job, (kept.name, kept.aside)) as place:
        if place is None:
            raise TargetGone(f"{text(kept.name)}: the file is gone, or another one has its name by now")
        return _take_away(place, job)


def _take_away(place: Place, job: AsideJob) -> Result:
    kept = job.file
    prove(place, job)
    # What the copy is of: its content (mtime, size) and, as long as we did not touch it, all else (ctime).
    ours = place.looks.mode & 0o7777 == 0
    changed = (place.looks.size, place.looks.mtime_ns) != (kept.size, kept.mtime_ns) or (
        not ours and place.looks.ctime_ns != kept.ctime_ns
    )
    change_mode(place.file, 0)
    if place.name != kept.aside:
        rename(place.parent, kept.name, kept.aside)
        now = look(place.file)  # a file of the image was copied up
        if not is_named(place.parent, kept.aside, now.inode):
            # Somebody put another file there between the two: give that one its name back.
            with contextlib.suppress(ActFailed):
                rename(place.parent, kept.aside, kept.name)
            raise ActFailed(f"{text(kept.name)}: it was replaced meanwhile; it has mode 000, wherever it is")
    return Result(True, details={"changed": changed})


def _look(parent: int, job: AsideJob) -> Result:
    """What somebody else did to what is in quarantine."""
    kept = job.file
    with _place(parent, job, (kept.aside, kept.name)) as place:
        if place is None:
            return Result(True, f"{text(kept.aside)} is gone: somebody removed it, or moved it away")
        if place.name != kept.aside:
            return Result(True, f"somebody gave {text(kept.name)} its name back")
        mode = place.looks.mode & 0o7777
        if mode:
            return Result(True, f"somebody gave {text(kept.aside)} mode {mode:04o}")
        return Result(True, f"{text(kept.name)} is there again, as another file" if _exists(parent, kept.name) else "")


@contextlib.contextmanager
def _place(parent: int, job: AsideJob, names: tuple[bytes, ...]) -> Iterator[Place | None]:
    """The file that was kept, under the first of these names that is its; None where none is."""
    kept = job.file
    name = next((each for each in names if is_named(parent, each, kept.inode)), None)
    if name is None:
        yield None
        return
    file = open_beneath(parent, name, ITSELF, NO_LINKS)
    try:
        looks = look(file)
        yield Place(file, parent, kept.directory, name, looks) if looks.inode == kept.inode else None
    finally:
        os.close(file)


# ------------------------------------------------------------ back


def _back(parent: int, job: AsideJob) -> Result:
    """Name, mode, owner, attributes and content as they were; what others did since is left, and told."""
    kept = job.file
    with _place(parent, job, (kept.aside, kept.name)) as place:
        if place is not None and _content(place.file, place.looks, kept.size) == job.sha256:
            return _give_back(place, job)
        if place is not None and place.name == kept.name:
            change = "" if place.looks.mode & 0o7777 else _unlock(place, kept)
            return Result(True, f"{_left(['name', 'content'])}{change}", {"theirs": ["name", "content"]})
    if _exists(parent, kept.name):
        return _taken(parent, job)
    try:
        lost = remake(parent, job)
    except ActFailed:
        if _exists(parent, kept.name):  # since it was looked at: another undo, or somebody else
            return _taken(parent, job)
        raise
    rest = f"; what it was changed to is left as {text(kept.aside)}, without permissions" if place is not None else ""
    was = "was changed" if place is not None else "was gone"
    rest += f"; without its attributes {', '.join(lost)}" if lost else ""
    return Result(True, f"{text(kept.name)} {was}: made anew out of bundle {job.bundle}{rest}", {"remade": True})


def _give_back(place: Place, job: AsideJob) -> Result:
    """The very file, with its content. A mode, an owner that somebody else gave it since is theirs."""
    kept = job.file
    if place.name != kept.name:
        try:
            rename(place.parent, kept.aside, kept.name)
        except ActFailed:
            if _exists(place.parent, kept.name):
                return _taken(place.parent, job)
            raise
    mode = place.looks.mode & 0o7777
    owner = (place.looks.uid, place.looks.gid) != (kept.uid, kept.gid)
    if mode == 0:
        change_mode(place.file, kept.mode & (0o1777 if owner else 0o7777))  # set-id bits were for the old owner
    theirs = [word for word, is_so in (("mode", mode not in (0, kept.mode)), ("owner", owner)) if is_so]
    return Result(True, _left(theirs) if theirs else "", {"theirs": theirs})


def _unlock(place: Place, kept: KeptFile) -> str:
    """Renamed back and written to by others, and still without permissions, which were ours to take."""
    change_mode(place.file, kept.mode)
    return "; it has its mode again"


def _taken(parent: int, job: AsideJob) -> Result:
    """Another file has the name by now. One with the same content is there already: a second undo, or theirs."""
    kept = job.file
    file = open_beneath(parent, kept.name, ITSELF, NO_LINKS)
    try:
        looks = look(file)
        if looks.is_regular and _content(file, looks, kept.size) == job.sha256:
            return Result(True, "", {"theirs": []})
    finally:
        os.close(file)
    left = f"; {text(kept.aside)} stays without permissions" if _exists(parent, kept.aside) else ""
    reason = f"another file is called {text(kept.name)} by now, and left so{left}; the kept one is in {job.bundle}"
    return Result(True, reason, {"theirs": ["name"]})


def _content(file: int, looks: Looks, size: int) -> str:
    """SHA-256 of what an O_PATH descriptor stands for; "" where its size is another one. Times can be set at will."""
    if looks.size != size:
        return ""
    try:
        fd = reopen(file)
        try:
            hashed = hashlib.sha256()
            for piece in pieces(fd, size):
                hashed.update(piece)
            return hashed.hexdigest()
        finally:
            os.close(fd)
    except OSError as error:
        raise ActFailed(f"its content can't be read: {error.strerror}") from error


def _left(what: list[str]) -> str:
    return f"changed by others since, and left so: {', '.join(what)}"


def _exists(parent: int, name: bytes) -> bool:
    try:
        look(parent, name)
    except OSError:
        return False
    return True


def change_mode(file: int, mode: int) -> None:
    """By the descriptor of the file, whatever its name is by now. Raises ActFailed."""
    try:
        os.chmod(f"/proc/self/fd/{file}", mode)
    except OSError as error:
        raise ActFailed(f"its mode can't be changed: {error.strerror}") from error


def rename(parent: int, old: bytes, new: bytes) -> None:
    """Within one directory; nothing is replaced. Raises ActFailed."""
    if libc.renameat2(parent, old, parent, new, _NOREPLACE):
        number = ctypes.get_errno()
        why = "another file has that name by now" if number == errno.EEXIST else os.strerror(number)
        raise ActFailed(f"{text(old)} can't be renamed to {text(new)}: {why}")
