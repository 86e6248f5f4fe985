"""The token's file: shown, changed, gone."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from stoop.errors import StartRefused
from stoop.intake.access import TokenFile, readers_besides, shown_token
from stoop.intake.testing import RecordingWarn

BEARER = b"Bearer s3cret"


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def basic(text: bytes) -> bytes:
    return b"Basic " + base64.b64encode(text)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_bytes(b"s3cret\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def token(path: Path, warn: RecordingWarn, clock: Clock) -> TokenFile:
    token = TokenFile(str(path), warn, clock)
    token.load()
    return token


@pytest.mark.parametrize(
    ("header", "shown"),
    [
        (BEARER, b"s3cret"),
        (b"bearer   s3cret ", b"s3cret"),
        (basic(b"falco:s3cret"), b"s3cret"),
        (basic(b":s3:cret"), b"s3:cret"),
        (b"BASIC " + base64.b64encode(b"x:"), b""),
        (basic(b"no colon"), None),
        (b"Basic not base64!", None),
        (b"Basic \xff", None),
        (b"Digest s3cret", None),
        (b"s3cret", None),
        (b"", None),
    ],
)
def test_what_a_header_shows(header: bytes, shown: bytes | None) -> None:
    assert shown_token(header) == shown


def test_only_the_right_token_is_admitted(token: TokenFile) -> None:
    assert token.admits(BEARER)
    assert token.admits(basic(b"falco:s3cret"))
    for wrong in (b"Bearer s3cre", b"Bearer s3crets", b"Bearer ", b"Bearer", basic(b"falco:"), b"", b"\xff"):
        assert not token.admits(wrong)


def test_a_change_is_seen_at_the_next_look(token: TokenFile, path: Path, clock: Clock, warn: RecordingWarn) -> None:
    path.write_bytes(b"another-token")
    assert token.admits(BEARER)
    clock.now += 1
    assert not token.admits(BEARER)
    assert token.admits(b"Bearer another-token")
    replacement = path.with_name("new")
    replacement.write_bytes(b"third")
    replacement.chmod(0o600)
    os.replace(replacement, path)
    clock.now += 1
    assert token.admits(b"Bearer third")
    assert not warn.said


@pytest.mark.parametrize("content", [None, b"", b" \n", b"two\nlines\n", b"x" * 5000])
def test_without_a_token_nobody_is_admitted_which_is_said_once(
    token: TokenFile, path: Path, clock: Clock, warn: RecordingWarn, content: bytes | None
) -> None:
    path.unlink()
    path.touch(0o600)
    if content is not None:
        path.write_bytes(content)
    else:
        path.unlink()
    for _ in range(3):
        clock.now += 1
        assert not token.admits(BEARER)
        assert not token.admits(b"Bearer ")
        assert not token.admits(basic(b"falco:"))
    assert len(warn.said) == 1
    assert "s3cret" not in repr(warn.said)
    path.touch(0o600)
    path.write_bytes(b"s3cret")
    clock.now += 1
    assert token.admits(BEARER)
    path.unlink()
    clock.now += 1
    assert not token.admits(BEARER)
    assert len(warn.said) == 2


@pytest.mark.parametrize("content", [None, b"", b"\n", b"two\nlines\n", b"x" * 5000])
def test_the_start_needs_a_token(path: Path, warn: RecordingWarn, clock: Clock, content: bytes | None) -> None:
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StartRefused, match="no token"):
        TokenFile(str(path), warn, clock).load()


@pytest.mark.parametrize(("mode", "readers"), [(0o640, "the group 0640"), (0o604, "everybody 0604")])
def test_a_token_that_others_can_read_counts_and_is_said_once(
    token: TokenFile, path: Path, clock: Clock, warn: RecordingWarn, mode: int, readers: str
) -> None:
    for mode_now in (mode, mode, 0o600, mode):
        path.chmod(mode_now)
        clock.now += 1
        assert token.admits(BEARER)
        assert readers_besides(str(path)) == (readers if mode_now == mode else "")
    assert [(event, fields["readers"]) for event, fields in warn.said] == [
        ("the token can be read by others", readers)
    ] * 2
    assert "s3cret" not in repr(warn.said)


def test_a_file_that_is_not_there_has_no_readers(tmp_path: Path) -> None:
    assert readers_besides(str(tmp_path / "nothing")) == ""
