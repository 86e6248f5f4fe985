"""What an API server says of pods: whole, byte by byte, with junk; bounded; what is none is Garbled and no more."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.pods.decode import (
    MAX_KEPT,
    MAX_LINE,
    MAX_MESSAGE,
    MAX_VALUE,
    Event,
    Garbled,
    Lines,
    read_event,
    read_list,
    read_message,
)
from stoop.podmeta import MIRROR, Owner, PodMeta

META: dict[str, Any] = {
    "uid": "8c0e1c3e",
    "name": "web-1",
    "namespace": "shop",
    "resourceVersion": "42",
    "labels": {"app": "web"},
    "annotations": {"a": "b", MIRROR: "0f"},
    "ownerReferences": [
        {"kind": "Node", "name": "n", "apiVersion": "v1"},
        {"kind": "ReplicaSet", "name": "web-5", "apiVersion": "apps/v1", "controller": True, "uid": "x"},
    ],
    "managedFields": [{"fieldsV1": {"f:metadata": {}}}],
    "creationTimestamp": None,
}
POD = PodMeta(
    "8c0e1c3e",
    "shop",
    "web-1",
    labels={"app": "web"},
    annotations={"a": "b", MIRROR: "0f"},
    owner=Owner("ReplicaSet", "web-5", "apps/v1"),
    mirrors="0f",
)


def changed(**changes: Any) -> dict[str, Any]:
    return {**META, **changes}


def listed(*metas: dict[str, Any], **more: Any) -> bytes:
    items = [{"metadata": meta, "spec": {"containers": [{"env": []}]}} for meta in metas]
    return json.dumps({"kind": "PodList", "metadata": {"resourceVersion": "7"}, "items": items, **more}).encode()


def event(kind: str, meta: Any = META, **more: Any) -> bytes:
    return json.dumps({"type": kind, "object": {"kind": "PartialObjectMetadata", "metadata": meta}, **more}).encode()


def test_a_list() -> None:
    assert read_list(listed(META)) == ((POD,), "7")
    assert read_list(listed()) == ((), "7")
    assert read_list(b'{"metadata":{},"items":null}') == ((), "")


def test_a_bare_pod() -> None:
    bare = {"uid": "u", "name": "n", "namespace": "s", "labels": None, "ownerReferences": None}
    assert read_list(listed(bare)).pods == (PodMeta("u", "s", "n"),)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (event("ADDED"), Event("ADDED", "42", POD)),
        (event("MODIFIED"), Event("MODIFIED", "42", POD)),
        (event("DELETED"), Event("DELETED", "42", POD)),
        (event("BOOKMARK", {"resourceVersion": "99", "creationTimestamp": None}), Event("BOOKMARK", "99")),
        (
            b'{"type":"ERROR","object":{"kind":"Status","status":"Failure","message":"too old","code":410}}',
            Event("ERROR", code=410, message="too old"),
        ),
    ],
)
def test_an_event(line: bytes, found: Event) -> None:
    assert read_event(line) == found
    assert read_event(line + b"  ") == found


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"",
            b"{}",
            b"[]",
            b"null",
            b"7",
            b'"x"',
            b"\xff",
            b"<html>",
            b'{"metadata":{},"items":[{}]}',
            b"[" * 100_000,
        ),
        *(listed(changed(**{key: ""})) for key in ("uid", "name", "namespace")),
        *(listed(changed(**{key: "x" * 254})) for key in ("uid", "name", "namespace")),
        *(listed(changed(labels=labels)) for labels in (7, ["a"], {"a": 7}, {"a": None})),
        *(listed(changed(ownerReferences=owners)) for owners in (7, [7], [{"kind": "x"}])),
        listed(META) + b"junk",
        listed(META)[:-1],
    ],
)
def test_what_is_no_list(data: bytes) -> None:
    with pytest.raises(Garbled, match=r"not a list of pods|a pod without a name"):
        read_list(data)


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"{}", b"[]", b"\xff", event("LATER"), event("added"), event("ADDED", {}), event("ADDED", None)),
        *(b'{"type":"ADDED"}', b'{"type":7,"object":{}}', b'{"type":"ERROR","object":7}', event("ADDED") + b"x"),
    ],
)
def test_what_is_no_event(line: bytes) -> None:
    with pytest.raises(Garbled):
        read_event(line)


@given(st.binary(max_size=60))
def test_any_bytes_give_a_value_or_garbled(data: bytes) -> None:
    for read in (read_list, read_event):
        try:
            read(data)
        except Garbled:
            continue
    assert isinstance(read_message(data), str)


def test_what_a_pod_s_maker_makes_long_is_cut() -> None:
    long = {"last": "x" * (MAX_VALUE + 1), "short": "y" * MAX_VALUE}
    (pod,) = read_list(listed(changed(annotations=long))).pods
    assert (set(pod.annotations), pod.labels, pod.cut) == ({"short"}, {"app": "web"}, True)
    many = {f"k{number:03}": "x" * 60 for number in range(1000)}
    (pod,) = read_list(listed(changed(labels=many, annotations={"a": "b"}))).pods
    assert pod.cut
    assert sum(len(key) + len(value) for key, value in pod.labels.items()) <= MAX_KEPT
    assert list(pod.labels) == sorted(many)[: len(pod.labels)]
    (pod,) = read_list(listed(changed(labels={}, annotations={"a": "é" * MAX_VALUE}))).pods
    assert not pod.cut  # counted in characters, bounded in bytes by the whole


def test_a_message_is_short() -> None:
    assert read_message(json.dumps({"message": "m" * 9999}).encode()) == "m" * MAX_MESSAGE
    assert (read_message(b"Unauthorized"), read_message(b'{"code":3}')) == ("", "")


# ---------------------------------------------------------------- lines


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_lines_however_they_come(step: int) -> None:
    lines, data = Lines(), b"one\n\n  \ntwo\r\nthree\nunfinished"
    found = [line for at in range(0, len(data), step) for line in lines.feed(data[at : at + step])]
    assert found == [b"one", b"two\r", b"three"]
    assert list(lines.feed(b"!\n")) == [b"unfinished!"]


def test_a_line_that_is_too_long() -> None:
    lines = Lines(most=4)
    assert list(lines.feed(b"1234\n12")) == [b"1234"]
    with pytest.raises(Garbled, match="more than 4 bytes"):
        list(lines.feed(b"345"))
    whole = Lines()
    assert list(whole.feed(b"x" * MAX_LINE + b"\n")) == [b"x" * MAX_LINE]
    with pytest.raises(Garbled):
        list(whole.feed(b"x" * (MAX_LINE + 1)))
