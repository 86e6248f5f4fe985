"""What is held and until when: the table, names that a person gives, the files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stoop.errors import UserError
from stoop.hold_files import HELD_DIR, MAX_FILE, hold_files
from stoop.holds import EVERY_HOLD, Hold, Table, lasts_longer, shown, until

SECOND = 10**9


def hold(act: str = "a" * 32, **changes: Any) -> Hold:
    made = Hold(
        act=act,
        run=changes.pop("run", act),
        alert="x",
        rule="R",
        action="Freeze it",
        actionner="container:freeze",
        target=act,
        key="frozen",
        boot_id="boot",
        made_ns=100 * SECOND,
        made_mono_ns=10 * SECOND,
        until_ns=0,
        until_mono_ns=0,
        state={"container_id": "c"},
    )
    return msgspec.structs.replace(made, **changes)


class TestTimes:
    def test_a_time_to_live_counts_from_now_on_both_clocks(self) -> None:
        held = until(hold(), 60 * SECOND, 200 * SECOND, 20 * SECOND)
        assert (held.until_ns, held.until_mono_ns) == (260 * SECOND, 80 * SECOND)
        assert held.expiring_mono_ns() == 68 * SECOND

    def test_for_ever_ends_never(self) -> None:
        held = until(until(hold(), 60 * SECOND, 200 * SECOND, 20 * SECOND), 0, 300 * SECOND, 30 * SECOND)
        assert (held.until_ns, held.until_mono_ns, held.expiring_mono_ns()) == (0, 0, 0)

    def test_what_was_told_is_told_again_only_after_it_was_extended(self) -> None:
        told = msgspec.structs.replace(until(hold(), 60 * SECOND, 0, 0), told=True)
        assert told.expiring_mono_ns() == 0
        assert until(told, 60 * SECOND, 0, 100 * SECOND).expiring_mono_ns() == 148 * SECOND

    @pytest.mark.parametrize(
        ("ends", "ttl", "longer"), [(80, 60, False), (80, 61, True), (80, 0, True), (0, 60, False), (0, 0, False)]
    )
    def test_the_longer_time_counts(self, ends: int, ttl: int, longer: bool) -> None:
        assert lasts_longer(hold(until_mono_ns=ends * SECOND), ttl * SECOND, 20 * SECOND) is longer


class TestTable:
    def test_who_holds_what(self) -> None:
        table = Table()
        table.put(hold())
        assert table.of("container:freeze", "a" * 32, "frozen") == hold()
        assert table.of("container:freeze", "a" * 32, "other") is None
        table.remove("a" * 32)
        table.remove("a" * 32)
        assert (len(table), table.of("container:freeze", "a" * 32, "frozen")) == (0, None)

    def test_the_longest_due_comes_first_and_what_lasts_for_ever_never(self) -> None:
        table = Table()
        for act, ends in (("a", 30), ("b", 20), ("c", 0), ("d", 40)):
            table.put(hold(act * 32, until_mono_ns=ends * SECOND, made_mono_ns=0))
        assert [held.act[0] for held in table.due(30 * SECOND)] == ["b", "a"]
        assert [held.act[0] for held in table.expiring(32 * SECOND)] == ["a", "b", "d"]
        assert table.next_mono_ns() == 16 * SECOND
        assert Table().next_mono_ns() == 0

    def test_a_name_is_the_beginning_of_a_run_or_an_act(self) -> None:
        table = Table()
        table.put(hold("a" * 32, run="1234" + "0" * 28))
        table.put(hold("b" * 32, run="1234" + "0" * 28))
        table.put(hold("c" * 32, run="1235" + "0" * 28))
        assert [held.act[0] for held in table.named("1234")] == ["a", "b"]
        assert [held.act[0] for held in table.named("bbbb")] == ["b"]
        assert len(table.named(EVERY_HOLD)) == 3

    @pytest.mark.parametrize(
        ("name", "said"), [("123", "too short"), ("9999", "nothing is held by 9999"), ("1234", "several ids")]
    )
    def test_a_name_that_says_too_little_is_refused(self, name: str, said: str) -> None:
        table = Table()
        table.put(hold("a" * 32, run="12340" + "0" * 27))
        table.put(hold("c" * 32, run="12341" + "0" * 27))
        with pytest.raises(UserError, match=said):
            table.named(name)

    def test_what_is_shown_is_in_the_order_in_which_it_ends(self) -> None:
        holds = [hold("a" * 32), hold("b" * 32, until_mono_ns=90 * SECOND), hold("c" * 32, until_mono_ns=50 * SECOND)]
        rows = shown(holds, 20 * SECOND, {"b" * 32: "broken"})
        assert [(row["act"][0], row["left_s"], row["trouble"]) for row in rows] == [
            ("c", 30.0, ""),
            ("b", 70.0, "broken"),
            ("a", None, ""),
        ]


class TestFiles:
    def test_what_is_kept_is_found_again_until_it_is_removed(self, tmp_path: Path) -> None:
        files = hold_files(tmp_path)
        assert files.load() == ([], [])
        later, sooner = hold("a" * 32, made_ns=2), hold("b" * 32, made_ns=1)
        assert [files.keep(each, synced=synced) for each, synced in ((later, False), (sooner, True))] == ["", ""]
        assert hold_files(tmp_path).load() == ([sooner, later], [])
        changed = msgspec.structs.replace(later, told=True)
        assert files.keep(changed, synced=False) == ""
        assert [files.remove("b" * 32), files.remove("b" * 32)] == ["", ""]
        assert hold_files(tmp_path).load() == ([changed], [])

    def test_only_the_agents_user_may_read_it(self, tmp_path: Path) -> None:
        hold_files(tmp_path).keep(hold(), synced=False)
        modes = [path.stat().st_mode & 0o777 for path in (tmp_path / HELD_DIR, *(tmp_path / HELD_DIR).iterdir())]
        assert modes == [0o700, 0o600]

    def test_a_kill_in_the_middle_leaves_the_old_or_nothing(self, tmp_path: Path) -> None:
        files = hold_files(tmp_path)
        files.keep(hold(), synced=False)
        (tmp_path / HELD_DIR / f"{'a' * 32}.new").write_text('{"act": "')
        (tmp_path / HELD_DIR / f"{'b' * 32}.new").write_text("")
        assert files.load() == ([hold()], [])
        assert [path.name for path in (tmp_path / HELD_DIR).iterdir()] == [f"{'a' * 32}.json"]

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"act": 1}', b"\0" * 100])
    def test_what_is_no_hold_is_told_and_set_aside(self, content: bytes, tmp_path: Path) -> None:
        files = hold_files(tmp_path)
        files.keep(hold(), synced=False)
        (tmp_path / HELD_DIR / f"{'b' * 32}.json").write_bytes(content)
        holds, (trouble,) = files.load()
        assert (holds, "is not given back" in trouble) == ([hold()], True)
        assert files.load() == ([hold()], [])

    def test_one_under_another_name_is_set_aside(self, tmp_path: Path) -> None:
        files = hold_files(tmp_path)
        files.keep(hold(), synced=False)
        os.rename(tmp_path / HELD_DIR / f"{'a' * 32}.json", tmp_path / HELD_DIR / f"{'b' * 32}.json")
        holds, (trouble,) = files.load()
        assert (holds, f"it says that it is {'a' * 32}" in trouble) == ([], True)
        assert files.load() == ([], [])

    def test_whoever_only_looks_changes_nothing(self, tmp_path: Path) -> None:
        files = hold_files(tmp_path)
        files.keep(hold(), synced=False)
        (tmp_path / HELD_DIR / f"{'b' * 32}.json").write_text("{")
        (tmp_path / HELD_DIR / f"{'c' * 32}.new").write_text("half")
        before = sorted(os.listdir(tmp_path / HELD_DIR))
        holds, (trouble,) = files.look()
        assert (holds, "not a hold" in trouble) == ([hold()], True)
        assert sorted(os.listdir(tmp_path / HELD_DIR)) == before

    def test_one_that_could_not_be_read_again_is_not_kept(self, tmp_path: Path) -> None:
        files = hold_files(tmp_path)
        assert "File too large" in files.keep(hold(state={"rules": "x" * MAX_FILE}), synced=False)
        assert files.load() == ([], [])
        assert not (tmp_path / HELD_DIR).exists()

    def test_where_nothing_can_be_written_it_says_so(self, tmp_path: Path) -> None:
        (tmp_path / HELD_DIR).write_text("")
        files = hold_files(tmp_path)
        assert "Not a directory" in files.keep(hold(), synced=False)
        assert "Not a directory" in files.load()[1][0]
