"""Netlink taken apart: whole, cut off anywhere, and with junk. And nftables' listings."""

from __future__ import annotations

import contextlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.node import nft
from agent.node.netlink import Netlink, TooMany, attribute, attributes
from agent.node.netns import links

LISTING = """\
table netdev stoop {
\tchain out-aa {
\t\ttype filter hook ingress device "veth1" priority -2147483648; policy drop;
\t\tip daddr 10.0.0.0/8 counter packets 3 bytes 252 accept
\t\tip6 daddr fd00::/8 counter packets 2 bytes 100 accept
\t\tcounter packets 7 bytes 700 drop
\t}

\tchain in-aa {
\t\ttype filter hook egress device "veth1" priority -2147483648; policy drop;
\t\tcounter packets 1 bytes 60 drop
\t}

\tchain through-aa {
\t\ttype filter hook forward priority -2147483648; policy drop;
\t\tcounter packets 5 bytes 50 drop
\t}
}
"""


@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=40), max_size=8))
def test_attributes_come_back(given_ones: dict[int, bytes]) -> None:
    assert attributes(b"".join(attribute(kind, value) for kind, value in given_ones.items())) == given_ones


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=20)), max_size=5), st.integers(0, 200))
def test_cut_off_anywhere_what_is_whole_is_kept(pairs: list[tuple[int, bytes]], length: int) -> None:
    whole = b"".join(attribute(kind, value) for kind, value in pairs)
    found = attributes(whole[:length])
    assert found.keys() <= {kind for kind, _ in pairs}
    assert len(found) <= len(pairs)


@given(st.binary(max_size=300))
def test_junk_is_no_error(data: bytes) -> None:
    assert sum(len(value) for value in attributes(data).values()) <= len(data)


def test_flags_are_no_part_of_a_type() -> None:
    assert attributes(attribute(0x8000 | 18, b"x")) == {18: b"x"}


def test_the_loopback_is_listed() -> None:
    with contextlib.closing(Netlink(socket.NETLINK_ROUTE)) as netlink:
        found = {link.name: link for link in links(netlink, 8192)}
    assert found["lo"].loopback
    assert not found["lo"].leads_out


def test_more_entries_than_wanted_are_an_error_that_holds_the_others() -> None:
    with contextlib.closing(Netlink(socket.NETLINK_ROUTE)) as netlink, pytest.raises(TooMany) as caught:
        links(netlink, 0)
    assert caught.value.found == []


def test_what_the_kernel_refuses_has_its_number() -> None:
    with contextlib.closing(Netlink(socket.NETLINK_ROUTE)) as netlink, pytest.raises(OSError) as caught:
        netlink.ask(18, bytes(4))
    assert caught.value.errno


def test_counters_of_a_listing_by_way() -> None:
    assert nft.counters(LISTING) == {
        "allowed_out": (5, 352),
        "dropped_out": (12, 750),
        "dropped_in": (1, 60),
    }


def test_rules_of_a_listing_by_chain() -> None:
    assert nft.rule_counts(LISTING) == {"out-aa": 3, "in-aa": 1, "through-aa": 1}


@given(st.text(max_size=200))
def test_any_text_has_counters_and_rules(text: str) -> None:
    assert nft.counters(text) == {} or "counter" in text
    assert isinstance(nft.rule_counts(text), dict)


def test_a_fingerprint_tells_listings_apart() -> None:
    assert nft.fingerprint(LISTING) == nft.fingerprint(LISTING)
    assert nft.fingerprint(LISTING) != nft.fingerprint(LISTING.replace("drop", "accept"))
