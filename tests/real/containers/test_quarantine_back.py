"""A file in quarantine that others changed, replaced or removed meanwhile: what undo gives back, and what it leaves."""

from __future__ import annotations

import os
import stat

import pytest

from tests.real.containers.test_quarantine import CAPABILITY, CONTENT, NAME, WHOLE, Held
from tests.real.containers.test_quarantine import held as held
from tests.work.conftest import _importable as _importable
from tests.work.conftest import bench as bench

pytestmark = [pytest.mark.real, pytest.mark.root]


async def test_changed_between_the_steps(held: Held) -> None:
    """Undo gives the name what was kept; what it was changed to is left, out of use."""
    before = held.facts()
    file = await held.kept(b"/tmp/evil")
    held.container.run("sh", "-c", "echo more >> /tmp/evil")
    assert (await held.aside(file)).details == {"changed": True}
    result = await held.back(file)
    assert (result.ok, result.details) == (True, {"remade": True}), result
    assert "was changed: made anew out of bundle" in result.reason
    now = held.facts()
    assert (now[WHOLE], now[5], now[6]) == (before[WHOLE], before[5], CONTENT.encode())
    assert held.facts(f"tmp/{NAME}")[-1] == b"echo evil\nmore\n"
    assert stat.S_IMODE(held.facts(f"tmp/{NAME}")[0]) == 0
    assert (await held.back(file)).ok
    assert held.facts() == now


async def test_its_time_put_back_hides_no_change(held: Held) -> None:
    before = held.facts()
    file = await held.kept(b"/tmp/evil")
    assert (await held.aside(file)).ok
    aside = held.root / "tmp" / NAME
    aside.write_bytes(b"echo EVIL\n")
    os.utime(aside, ns=(file.mtime_ns, file.mtime_ns))
    assert (await held.back(file)).details == {"remade": True}
    assert held.facts()[-1] == before[-1]


async def test_replaced_between_the_steps(held: Held) -> None:
    file = await held.kept(b"/tmp/evil")
    held.container.run("sh", "-c", "cp /tmp/evil /tmp/new; mv /tmp/new /tmp/evil")
    before = held.facts()
    result = await held.aside(file)
    assert (result.ok, result.gone) == (False, True)
    assert "another one has its name" in result.reason
    assert held.facts() == before


@pytest.mark.parametrize("script", ["rm /tmp/.stoop*", "mv /tmp/.stoop* /bin/elsewhere"])
async def test_gone_meanwhile_it_is_made_anew(held: Held, script: str) -> None:
    """Owner, set-id bits, attributes and time too."""
    os.setxattr(held.root / "tmp/evil", "security.capability", CAPABILITY)
    held.container.run("chmod", "6755", "/tmp/evil")
    os.setxattr(held.root / "tmp/evil", "security.capability", CAPABILITY)
    before = held.facts()
    file = await held.kept(b"/tmp/evil")
    assert (await held.aside(file)).ok
    held.container.run("sh", "-c", script)
    (held.root / "tmp/.stoop-remade-0123456789abcdef0123456789abcdef").write_text("of a worker that was killed")
    result = await held.back(file)
    assert (result.ok, result.details) == (True, {"remade": True}), result
    now = held.facts()
    assert (now[WHOLE], now[5:]) == (before[WHOLE], before[5:])
    assert {*before[5]} == {"security.capability", "trusted.stoop-test"}
    assert held.names() == {"evil", "link"}
    assert "evil\n" in held.container.run("sh", "/tmp/evil")


async def test_its_directory_is_gone(held: Held) -> None:
    held.container.run("sh", "-c", "mkdir /tmp/d; mv /tmp/evil /tmp/d/evil")
    file = await held.kept(b"/tmp/d/evil")
    assert (await held.aside(file)).ok
    held.container.run("rm", "-r", "/tmp/d")
    result = await held.back(file)
    assert (result.ok, result.gone) == (False, True)
    assert "its directory is gone" in result.reason
    held.container.run("ln", "-s", "/volume", "/tmp/d")
    assert (await held.back(file)).gone
    assert set(os.listdir(held.root / "volume")) == {"evil", "evidence"}


async def test_a_copy_that_can_t_be_read(held: Held) -> None:
    """Nothing half made is left, and it is tried again by whoever asked."""
    file = await held.kept(b"/tmp/evil")
    assert (await held.aside(file)).ok
    held.container.run("sh", "-c", "rm /tmp/.stoop*")
    for changes in ({"bundle": "00000009-20260101T000000Z-none", "sha256": "x"}, {"sha256": "x"}):
        manifest, _ = held.bench.only()
        result = await held.aside(file, step="back", **{"bundle": manifest.bundle} | changes)
        assert (result.ok, result.refused, result.gone) == (False, False, False)
        assert "can't be made anew" in result.reason
        assert held.names() == {"link"}


async def test_what_others_do_to_it_is_told(held: Held) -> None:
    file = await held.kept(b"/tmp/evil")
    assert (await held.aside(file)).ok

    async def told() -> str:
        result = await held.aside(file, step="look")
        assert result.ok
        return result.reason

    assert await told() == ""
    for script, what in (
        ("chmod 700 /tmp/.stoop*", "mode 0700"),
        ("chmod 0 /tmp/.stoop*; echo > /tmp/evil", "is there again, as another file"),
        ("mv -f /tmp/.stoop* /tmp/evil", "its name back"),
        ("rm /tmp/evil", "is gone"),
    ):
        held.container.run("sh", "-c", script)
        assert what in await told()


async def test_linked_and_moved_between_the_steps(held: Held) -> None:
    """A second name, and a directory that became a link, do not lead anywhere."""
    file = await held.kept(b"/tmp/evil")
    held.container.run("ln", "/tmp/evil", "/tmp/second")
    assert "2 names" in (await held.aside(file)).reason
    held.container.run("sh", "-c", "rm /tmp/second; mv /tmp /other; ln -s /volume /tmp")
    before = (held.root / "volume" / "evil").stat()
    assert not (await held.aside(file)).ok
    assert (held.root / "volume" / "evil").stat() == before


async def test_given_back_where_others_were(held: Held) -> None:
    file = await held.kept(b"/tmp/evil")
    assert (await held.aside(file)).ok
    held.container.run("sh", "-c", "echo theirs > /tmp/evil")
    for _ in range(2):
        result = await held.back(file)
        assert (result.ok, result.details) == (True, {"theirs": ["name"]}), result
        assert "another file is called evil by now, and left so" in result.reason
        assert held.facts()[-1] == b"theirs\n"
        assert stat.S_IMODE(held.facts(f"tmp/{NAME}")[0]) == 0
    held.container.run("sh", "-c", f"rm /tmp/evil; chmod 711 /tmp/{NAME}")
    result = await held.back(file)
    assert (result.ok, result.details) == (True, {"theirs": ["mode"]})
    assert stat.S_IMODE(held.facts()[0]) == 0o711
    held.container.run("sh", "-c", "echo 'echo more' > /tmp/evil")
    result = await held.back(file)
    assert (result.ok, result.details) == (True, {"theirs": ["name", "content"]})
    assert held.facts()[-1] == b"echo more\n"


async def test_another_owner_gets_no_set_id_bits(held: Held) -> None:
    file = await held.kept(b"/tmp/evil")
    assert (await held.aside(file)).ok
    held.container.run("chown", "0", f"/tmp/{NAME}")
    result = await held.back(file)
    assert result.details == {"theirs": ["owner"]}
    assert (held.facts()[0] & 0o7777, held.facts()[1]) == (0o755, 0)
