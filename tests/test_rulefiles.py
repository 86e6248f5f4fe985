"""Rules files on a real file system: whatever way they are saved, the last content arrives, never a part of one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
import trio

from stoop import rulefiles
from stoop.errors import RulesError, UserError
from stoop.rulefiles import Files, Reading, RuleFiles, read_file
from stoop.watching import Names, locate

PATIENCE = 20.0
END = b"# end\n"


def content(number: int, rules: int = 40) -> bytes:
    """A file whose last line tells that it is whole."""
    return b"".join(b"- rule: rule %d of save %d\n" % (at, number) for at in range(rules)) + END


class Seen:
    """What the watch has told, and a way to wait for more."""

    def __init__(self) -> None:
        self.readings: list[Reading] = []
        self.warnings: list[str] = []
        self._came = trio.Event()

    def changed(self, reading: Reading) -> None:
        self.readings.append(reading)
        self._came.set()

    async def until(self, wanted: Callable[[Reading], bool]) -> Reading:
        """The first reading of those to come (or the newest one) that is as wanted."""
        with trio.fail_after(PATIENCE):
            while not (self.readings and wanted(self.readings[-1])):
                self._came = trio.Event()
                await self._came.wait()
        return self.readings[-1]

    async def until_content(self, *contents: bytes) -> Reading:
        return await self.until(lambda reading: not reading.problem and bodies(reading.files) == contents)


def bodies(files: Files) -> tuple[bytes, ...]:
    return tuple(body for _, body in files)


@contextlib.asynccontextmanager
async def watched(
    paths: Sequence[Path], *, use_inotify: bool = True, read: bool = True
) -> AsyncIterator[tuple[RuleFiles, Seen]]:
    files = RuleFiles([str(path) for path in paths], use_inotify=use_inotify)
    if read:
        files.read()
    seen = Seen()
    async with trio.open_nursery() as nursery:
        await nursery.start(files.watch, seen.changed, seen.warnings.append)
        yield files, seen
        nursery.cancel_scope.cancel()


async def write_in_pieces(path: Path, data: bytes, pause: float = 0.0) -> None:
    """Save in place: truncate, then several writes."""
    with path.open("wb", buffering=0) as file:
        for at in range(0, len(data), 200):
            file.write(data[at : at + 200])
            await trio.sleep(pause)


def rename_over(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(data)
    temporary.rename(path)


class TestRead:
    def test_in_the_order_of_the_paths(self, tmp_path: Path) -> None:
        (tmp_path / "b").write_bytes(b"B")
        (tmp_path / "a").write_bytes(b"")
        paths = [str(tmp_path / "b"), str(tmp_path / "a")]
        assert RuleFiles(paths).read() == ((paths[0], b"B"), (paths[1], b""))

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"rules\.yaml: it can't be read: No such file.*create it"):
            RuleFiles([str(tmp_path / "rules.yaml")]).read()

    def test_every_file_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "good").touch()
        paths = [str(tmp_path / name) for name in ("missing", "good", "")]
        with pytest.raises(RulesError) as caught:
            RuleFiles(paths).read()
        assert [problem.file for problem in caught.value.problems] == [paths[0], paths[2]]

    def test_a_directory_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="Is a directory"):
            read_file(str(tmp_path))

    def test_a_fifo_is_refused_at_once(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(UserError, match="not a regular file"):
            read_file(str(tmp_path / "fifo"))

    def test_a_file_that_is_no_rules_file_by_size(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rulefiles, "MAX_FILE", 1000)
        path = tmp_path / "rules.yaml"
        path.write_bytes(b"x" * 1000)
        assert len(read_file(str(path))) == 1000
        path.write_bytes(b"x" * 1001)
        with pytest.raises(UserError, match=r"more than 1000 bytes.*split it"):
            read_file(str(path))


class TestWatch:
    async def test_nothing_is_told_when_nothing_has_changed(self, tmp_path: Path) -> None:
        path = tmp_path / "rules.yaml"
        path.write_bytes(content(0))
        async with watched([path]) as (_, seen):
            path.touch()
            (tmp_path / "another").write_bytes(b"x")
            rename_over(path, content(0))
            rename_over(path, content(1))
            await seen.until_content(content(1))
        assert len(seen.readings) == 1

    async def test_a_change_between_read_and_watch_is_told(self, tmp_path: Path) -> None:
        path = tmp_path / "rules.yaml"
        path.write_bytes(content(0))
        files = RuleFiles([str(path)])
        files.read()
        path.write_bytes(content(1))
        seen = Seen()
        async with trio.open_nursery() as nursery:
            await nursery.start(files.watch, seen.changed, seen.warnings.append)
            await seen.until_content(content(1))
            nursery.cancel_scope.cancel()

    @pytest.mark.parametrize("pause", [0.0, 0.001])
    async def test_a_hundred_saves_in_place(self, tmp_path: Path, pause: float) -> None:
        path = tmp_path / "rules.yaml"
        path.write_bytes(content(0))
        async with watched([path]) as (_, seen):
            for number in range(1, 101):
                await write_in_pieces(path, content(number), pause)
                if number % 20 == 0:
                    await seen.until_content(content(number))
        assert all(reading.files[0][1].endswith(END) for reading in seen.readings if not reading.problem)

    async def test_a_hundred_saves_by_rename(self, tmp_path: Path) -> None:
        path = tmp_path / "rules.yaml"
        path.write_bytes(content(0))
        async with watched([path]) as (_, seen):
            for number in range(1, 101):
                rename_over(path, content(number))
                await trio.sleep(0.001)
                if number % 20 == 0:
                    await seen.until_content(content(number))
        assert not any(reading.problem for reading in seen.readings)

    async def test_a_slow_writer_is_waited_for(self, tmp_path: Path) -> None:
        """Pauses far longer than QUIET_SECONDS: only the closing of the file tells that the save is over."""
        path = tmp_path / "rules.yaml"
        path.write_bytes(content(0))
        async with watched([path]) as (_, seen):
            await write_in_pieces(path, content(1), pause=rulefiles.QUIET_SECONDS * 3)
            await seen.until_content(content(1))
        assert [bodies(reading.files) for reading in seen.readings if not reading.problem] == [(content(1),)]

    async def test_a_writer_that_does_not_end_is_a_problem_until_it_does(self, tmp_path: Path) -> None:
        path = tmp_path / "rules.yaml"
        path.write_bytes(content(0))
        async with watched([path]) as (_, seen):
            with path.open("wb", buffering=0) as file:
                file.write(content(1)[:100])
                reading = await seen.until(lambda reading: bool(reading.problem))
                assert "still open for writing" in reading.problem
                file.write(content(1)[100:])
            await seen.until_content(content(1))

    async def test_two_files_and_several_changes_are_one(self, tmp_path: Path) -> None:
        paths = [tmp_path / "one", tmp_path / "two"]
        for path in paths:
            path.write_bytes(b"0")
        async with watched(paths) as (_, seen):
            for path in paths:
                rename_over(path, b"1")
            await seen.until_content(b"1", b"1")
        assert len(seen.readings) == 1

    async def test_kubernetes_swaps_a_symlink(self, tmp_path: Path) -> None:
        """A ConfigMap's volume: rules.yaml → ..data/rules.yaml, ..data → a directory that is replaced as a whole."""

        def publish(number: int) -> None:
            version = tmp_path / f"..version_{number}"
            version.mkdir()
            (version / "rules.yaml").write_bytes(content(number))
            (tmp_path / "..data_tmp").symlink_to(version.name)
            (tmp_path / "..data_tmp").rename(tmp_path / "..data")
            old = tmp_path / f"..version_{number - 1}"
            if old.exists():
                (old / "rules.yaml").unlink()
                old.rmdir()

        publish(0)
        path = tmp_path / "rules.yaml"
        path.symlink_to("..data/rules.yaml")
        async with watched([path]) as (_, seen):
            for number in range(1, 6):
                publish(number)
                await seen.until_content(content(number))
        assert len(seen.readings) == 5

    async def test_a_symlink_that_is_pointed_elsewhere(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "rules").write_bytes(name.encode())
        (tmp_path / "etc").mkdir()
        link = tmp_path / "etc" / "rules.yaml"
        link.symlink_to(tmp_path / "a" / "rules")
        async with watched([link]) as (_, seen):
            (tmp_path / "a" / "rules").write_bytes(b"a2")
            await seen.until_content(b"a2")
            link.unlink()
            link.symlink_to(tmp_path / "b" / "rules")
            await seen.until_content(b"b")
            (tmp_path / "b" / "rules").write_bytes(b"b2")
            await seen.until_content(b"b2")

    async def test_a_bind_mount_of_one_file_is_seen_by_its_inode(self, tmp_path: Path) -> None:
        """A hard link stands in for it: written through another directory, no event comes from the watched one."""
        (tmp_path / "host").mkdir()
        (tmp_path / "container").mkdir()
        source = tmp_path / "host" / "rules.yaml"
        source.write_bytes(content(0))
        path = tmp_path / "container" / "rules.yaml"
        path.hardlink_to(source)
        async with watched([path]) as (_, seen):
            await write_in_pieces(source, content(1))
            await seen.until_content(content(1))


class TestProblems:
    async def test_cut_to_nothing_keeps_the_old_and_comes_back(self, tmp_path: Path) -> None:
        path = tmp_path / "rules.yaml"
        path.write_bytes(content(0))
        async with watched([path]) as (_, seen):
            path.write_bytes(b"")
            reading = await seen.until(lambda reading: bool(reading.problem))
            assert "cut to nothing (write [] into it" in reading.problem
            path.write_bytes(content(0))
            await seen.until_content(content(0))
        assert len(seen.readings) == 2

    async def test_a_file_that_vanishes_and_comes_back(self, tmp_path: Path) -> None:
        path = tmp_path / "conf" / "rules.yaml"
        path.parent.mkdir()
        path.write_bytes(content(0))
        async with watched([path]) as (_, seen):
            path.unlink()
            path.parent.rmdir()
            reading = await seen.until(lambda reading: bool(reading.problem))
            assert "can't be read" in reading.problem
            path.parent.mkdir()
            path.write_bytes(content(1))
            await seen.until_content(content(1))

    async def test_a_short_absence_is_no_problem(self, tmp_path: Path) -> None:
        path = tmp_path / "rules.yaml"
        path.write_bytes(content(0))
        async with watched([path]) as (_, seen):
            path.unlink()
            await trio.sleep(rulefiles.QUIET_SECONDS * 4)
            path.write_bytes(content(1))
            await seen.until_content(content(1))
        assert len(seen.readings) == 1

    async def test_files_that_never_rest_are_told_and_watched_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rulefiles, "SETTLE_SECONDS", 0.3)
        path = tmp_path / "rules.yaml"
        path.write_bytes(content(0))
        async with watched([path]) as (_, seen):
            number = 0
            with trio.fail_after(PATIENCE):
                while not seen.readings:
                    number += 1
                    rename_over(path, content(number))
                    await trio.sleep(0.005)
            assert "kept changing" in seen.readings[0].problem
            await seen.until_content(content(number))

    async def test_a_file_that_was_empty_from_the_start_may_be(self, tmp_path: Path) -> None:
        paths = [tmp_path / "one", tmp_path / "two"]
        for path in paths:
            path.write_bytes(b"")
        async with watched(paths) as (_, seen):
            paths[0].write_bytes(b"1")
            await seen.until_content(b"1", b"")


class TestReload:
    @pytest.mark.parametrize("use_inotify", [True, False])
    async def test_it_tells_even_what_has_not_changed(self, tmp_path: Path, use_inotify: bool) -> None:
        path = tmp_path / "rules.yaml"
        path.write_bytes(content(0))
        async with watched([path], use_inotify=use_inotify) as (files, seen):
            files.reload()
            await seen.until_content(content(0))

    async def test_without_watching_only_it_looks(self, tmp_path: Path) -> None:
        path = tmp_path / "rules.yaml"
        path.write_bytes(content(0))
        async with watched([path], use_inotify=False) as (files, seen):
            path.write_bytes(content(1))
            files.reload()
            await seen.until_content(content(1))


class TestPolling:
    async def test_a_directory_that_is_not_there_yet(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rulefiles, "POLL_SECONDS", 0.1)
        path = tmp_path / "not" / "yet" / "rules.yaml"
        async with watched([path], read=False) as (_, seen):
            path.parent.mkdir(parents=True)
            path.write_bytes(content(1))
            await seen.until_content(content(1))

    async def test_without_inotify_instances_it_polls_and_says_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def none_left() -> None:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(rulefiles, "Watch", none_left)
        monkeypatch.setattr(rulefiles, "POLL_SECONDS", 0.1)
        path = tmp_path / "rules.yaml"
        path.write_bytes(content(0))
        async with watched([path]) as (_, seen):
            path.write_bytes(content(1))
            await seen.until_content(content(1))
        assert "polled" in seen.warnings[0]
        assert "max_user_instances" in seen.warnings[0]


class TestLocate:
    def test_a_loop_of_symlinks_leads_nowhere(self, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("a")
        names: Names = {}
        assert locate(str(tmp_path / "a"), names) == ""
        assert names[str(tmp_path.resolve())] == {"a", "b"}

    def test_dots_and_a_relative_target(self, tmp_path: Path) -> None:
        (tmp_path / "x").mkdir()
        (tmp_path / "file").write_bytes(b"")
        (tmp_path / "x" / "link").symlink_to("./../x/../file")
        names: Names = {}
        assert locate(str(tmp_path / "x" / "link"), names) == str(tmp_path / "file")
        assert names[str(tmp_path / "x")] == {"link"}
        assert names[str(tmp_path)] == {"file"}

    def test_where_it_breaks_off_is_watched(self, tmp_path: Path) -> None:
        names: Names = {}
        assert locate(str(tmp_path / "no" / "rules"), names) == ""
        assert names == {str(tmp_path): {"no"}}

    def test_a_file_in_the_place_of_a_directory(self, tmp_path: Path) -> None:
        (tmp_path / "no").write_bytes(b"")
        names: Names = {}
        assert locate(str(tmp_path / "no" / "rules"), names) == ""
