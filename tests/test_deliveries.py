"""What is sent of an act, under which name, and when it is tried again. Pure."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoop.deliveries import (
    MAX_AGE_NS,
    MAX_NAME,
    RETRY_SECONDS,
    RETRY_SLOWLY_SECONDS,
    Delivery,
    delivery_of,
    is_object_name,
    is_sound,
    pause_s,
)
from stoop.record import Record, Timing
from stoop.rules.model import OutputForm
from stoop.spec import Verdict

BUNDLE = "00000012-20261124T154018Z-ffffffffffffffff"
ACT = "0123456789abcdef0123456789abcdef"
AT_NS = 1_795_880_418 * 10**9 + 5
OUTPUT = OutputForm("aws:s3", {"bucket": "b", "prefix": "/cases/"})


def record(details: dict[str, Any], target: dict[str, Any] | None = None) -> Record:
    return Record(
        alert="a" * 32,
        run="b" * 32,
        act=ACT,
        rule="R",
        action="A",
        actionner="kubernetes:log",
        verdict=Verdict.DONE,
        reason="",
        target={"namespace": "shop", "pod": "web-0"} if target is None else target,
        timing=Timing(0, 0, 0, 0, AT_NS),
        details=details,
    )


def delivery(details: dict[str, Any], target: dict[str, Any] | None = None) -> Delivery:
    found = delivery_of(record(details, target), OUTPUT, "node-1")
    assert found is not None
    return found


def test_without_data_the_whole_bundle_is_sent() -> None:
    found = delivery({"bundle": BUNDLE})
    assert (found.part, found.name) == ("", f"2026-11-28T15-40-18Z_shop_web-0_0123456789ab_{BUNDLE}.tar.zst")
    assert (found.object, found.place) == (f"cases/{found.name}", f"b/cases/{found.name}")
    assert found.key == f"{BUNDLE}.{ACT}"


def test_the_data_has_talons_name_and_the_acts_id() -> None:
    found = delivery({"bundle": BUNDLE, "data": {"part": "log.txt", "name": "log"}})
    assert (found.part, found.name) == ("log.txt", "2026-11-28T15-40-18Z_shop_web-0_0123456789ab_log")
    found = delivery({"bundle": BUNDLE, "data": {"part": "file.bin", "name": "/etc/passwd"}}, {})
    assert found.name == "2026-11-28T15-40-18Z_node-1_0123456789ab__etc_passwd"


def test_evidence_that_was_taken_first_is_sent_too() -> None:
    found = delivery({"evidence": {"taken": True, "bundle": BUNDLE}})
    assert (found.bundle, found.part) == (BUNDLE, "")


@pytest.mark.parametrize("details", [{}, {"bundle": ""}, {"bundle": "../../etc"}, {"bundle": 5}, {"evidence": "none"}])
def test_what_left_nothing_is_not_sent(details: dict[str, Any]) -> None:
    assert delivery_of(record(details), OUTPUT, "node-1") is None


@given(st.text(), st.text(), st.text(), st.text())
def test_any_name_becomes_a_name_that_every_store_takes(namespace: str, pod: str, data: str, node: str) -> None:
    target = {"namespace": namespace[:63], "pod": pod}
    found = delivery_of(record({"bundle": BUNDLE, "data": {"part": "p", "name": data}}, target), OUTPUT, node)
    assert found is not None
    assert is_object_name(found.name)
    assert is_sound(found)
    assert re.fullmatch(r"[A-Za-z0-9._=@+,-]+", found.name)
    assert len(found.name) <= MAX_NAME
    assert ACT[:12] in found.name


def test_long_names_keep_what_tells_them_apart() -> None:
    def named(name: str) -> str:
        return delivery({"bundle": BUNDLE, "data": {"part": "p", "name": name}}).name

    one, other = named(f"/a/{'x' * 300}/core.dump"), named(f"/b/{'x' * 300}/core.dump")
    assert one != other
    assert one.endswith("_core.dump")


def test_the_pauses_grow_and_no_two_nodes_keep_step() -> None:
    assert [pause_s(tries, False, 0.5) for tries in range(1, 8)] == [*RETRY_SECONDS, *RETRY_SECONDS[-1:] * 2]
    assert [pause_s(tries, True, 0.5) for tries in range(1, 5)] == [*RETRY_SLOWLY_SECONDS, RETRY_SLOWLY_SECONDS[-1]]
    assert pause_s(1, False, 0.0) < pause_s(1, False, 1.0)


def test_one_is_given_up_after_a_week() -> None:
    found = delivery({"bundle": BUNDLE})
    assert not found.is_old(AT_NS + MAX_AGE_NS)
    assert found.is_old(AT_NS + MAX_AGE_NS + 1)


def test_stores_are_told_apart() -> None:
    stores = {
        delivery_of(record({"bundle": BUNDLE}), OutputForm(target, parameters), "n").store  # type: ignore[union-attr]
        for target, parameters in (
            ("aws:s3", {"bucket": "a"}),
            ("aws:s3", {"bucket": "a", "prefix": "other"}),
            ("aws:s3", {"bucket": "a", "region": "eu-west-1"}),
            ("minio:s3", {"bucket": "a"}),
            ("local:file", {"destination": "/a"}),
        )
    }
    assert stores == {"aws:s3 a", "aws:s3 a eu-west-1", "minio:s3 a", "local:file /a"}
