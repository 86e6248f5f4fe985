"""The settings of heartbeat and pacemaker: off until asked for, and each wrong value with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stoop import config
from stoop.config import Config, ConfigErrors, Heartbeat, Pacemaker

SECOND_NS = 1_000_000_000


def load(tmp_path: Path, text: str = "", *, is_root: bool = True, **environ: str) -> Config:
    path = tmp_path / "stoop.yaml"
    path.write_text(text)
    return config.load(str(path), {"HOME": "/home/u", **environ}, is_root=is_root, hostname="n", uid=1000)


def test_both_are_off(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    assert (loaded.heartbeat, loaded.pacemaker) == (None, None)


def test_an_empty_section_turns_each_on(tmp_path: Path) -> None:
    loaded = load(tmp_path, "heartbeat: {}\npacemaker: {}\n")
    assert loaded.heartbeat == Heartbeat(
        path="/run/stoop/heartbeat", interval_ns=30 * SECOND_NS, rule="Stoop heartbeat"
    )
    assert loaded.pacemaker == Pacemaker(rate=1000, adaptive=True)


@pytest.mark.parametrize(
    ("text", "is_root", "path"),
    [
        ("heartbeat: {}", False, "/home/u/.local/state/stoop/heartbeat"),
        ("heartbeat: {}\nstate_dir: /srv/stoop", True, "/srv/stoop/heartbeat"),
        ("heartbeat: {path: /srv/beat}", False, "/srv/beat"),
    ],
)
def test_the_beacon_lies_beside_the_sockets(tmp_path: Path, text: str, is_root: bool, path: str) -> None:
    beat = load(tmp_path, text, is_root=is_root).heartbeat
    assert beat is not None
    assert beat.path == path


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("heartbeat: {interval: 999ms}", "stoop.yaml:1: heartbeat.interval: not between 1s and 1h"),
        ("heartbeat: {interval: 0}", "stoop.yaml:1: heartbeat.interval: not between 1s and 1h"),
        ("heartbeat: {interval: 61m}", "stoop.yaml:1: heartbeat.interval: not between 1s and 1h"),
        ("evidence_deadline: 6s", "stoop.yaml:1: evidence_deadline: not above 0 and at most 5s"),
        ("evidence_deadline: 0", "stoop.yaml:1: evidence_deadline: not above 0 and at most 5s"),
        ("evidence: {max_age: old}", "stoop.yaml:1: evidence.max_age: 'old' is not a duration"),
        ("heartbeat: {interval: soon}", "stoop.yaml:1: heartbeat.interval: 'soon' is not a duration"),
        ("heartbeat: {rule: ' '}", "stoop.yaml:1: heartbeat.rule: which of Falco's rules answers?"),
        ("heartbeat: {path: run/beat}", "stoop.yaml:1: heartbeat.path: Falco tells the path as it was opened"),
        ("heartbeat: {path: /run/../beat}", "stoop.yaml:1: heartbeat.path: Falco tells the path as it was opened"),
        ("heartbeat: {path: /run//beat}", "stoop.yaml:1: heartbeat.path: Falco tells the path as it was opened"),
        ("heartbeat: {path: /run/beat/}", "stoop.yaml:1: heartbeat.path: Falco tells the path as it was opened"),
        ("heartbeat: {path: /}", "stoop.yaml:1: heartbeat.path: Falco tells the path as it was opened"),
        ('heartbeat: {path: "/run/a\\nb"}', "stoop.yaml:1: heartbeat.path: Falco tells the path as it was opened"),
        ("pacemaker: {rate: 9}", "stoop.yaml:1: pacemaker.rate: '9' is not a whole number from 10 to 4000"),
        ("pacemaker: {rate: 4001}", "stoop.yaml:1: pacemaker.rate: '4001' is not a whole number from 10 to 4000"),
        ("pacemaker: {rate: fast}", "stoop.yaml:1: pacemaker.rate: 'fast' is not a whole number from 10 to 4000"),
        ("pacemaker: {adaptive: maybe}", "stoop.yaml:1: pacemaker.adaptive: 'maybe' is neither true nor false"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(tmp_path, text)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({"STOOP_HEARTBEAT": "on"}, (True, False)),
        ({"STOOP_HEARTBEAT_INTERVAL": "5s"}, (True, False)),
        ({"STOOP_PACEMAKER_RATE": "500"}, (False, True)),
        ({"STOOP_PACEMAKER": "null"}, (False, False)),
    ],
)
def test_the_environment_turns_them_on_too(tmp_path: Path, environ: dict[str, Any], found: tuple[bool, bool]) -> None:
    loaded = load(tmp_path, **environ)
    assert (loaded.heartbeat is not None, loaded.pacemaker is not None) == found
