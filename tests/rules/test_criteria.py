"""The text of criteria: what it asks, and what is refused."""

from __future__ import annotations

import pytest

from stoop.rules.criteria import condition_of, is_balanced, is_tag, pieces_of, priority_mask, tags_of
from stoop.rules.model import ANY_PRIORITY, Condition


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("Warning", {4}),
        ("=warning", {4}),
        (">=CRITICAL", {6, 7, 8}),
        (">critical", {7, 8}),
        ("<Notice", {0, 1, 2}),
        ("<=Debug", {0, 1}),
        ("", set(range(9))),
        (">", set(range(9))),
        ("<=", set(range(9))),
    ],
)
def test_priorities(text: str, accepted: set[int]) -> None:
    mask = priority_mask(text)
    assert mask is not None
    assert {priority for priority in range(9) if mask >> priority & 1} == accepted
    assert mask <= ANY_PRIORITY


@pytest.mark.parametrize(
    "text", ["Info", "Foo", " Warning", "Warning ", "> Warning", "<>Warning", "==Warning", "Warning\n"]
)
def test_what_is_no_priority(text: str) -> None:
    assert priority_mask(text) is None


def test_blanks_in_tags_do_not_count() -> None:
    assert tags_of("a , b c") == ("a", "bc")


@pytest.mark.parametrize(
    "tag", ["a", "A", "1", "mitre_execution", ".a", "NIST_800-53_AU-10", "T1562-impair-defenses", "ſ"]
)
def test_tags(tag: str) -> None:
    assert is_tag(tag)


@pytest.mark.parametrize("tag", ["", "a_", "a.", "a-", "_", "a:b", "a+b", "*", "a\tb", "a\n", "é", "İ", "ı"])
def test_what_is_no_tag(tag: str) -> None:
    assert not is_tag(tag)


@pytest.mark.parametrize(
    ("entry", "pieces"),
    [
        ("a=b", ["a=b"]),
        ("a=b,c=d", ["a=b", "c=d"]),
        ("a=b, c=d", ["a=b", "c=d"]),
        ("a=b,  c=d", ["a=b", " c=d"]),
        ("a=b,", ["a=b", ""]),
        ("", [""]),
        ('a="x, y", b!="z,w"', ['a="x, y"', 'b!="z,w"']),
        ('a="x, b="y"', ['a="x', 'b="y"']),
        ('a="x,y" ,b=c', ['a="x', 'y" ', "b=c"]),
        ('a=x"y,z"', ['a=x"y', 'z"']),
    ],
)
def test_conditions_are_split_at_commas_outside_quoted_values(entry: str, pieces: list[str]) -> None:
    assert list(pieces_of(entry)) == pieces


@pytest.mark.parametrize(
    ("piece", "condition"),
    [
        ("proc.name=sh", Condition("proc.name", False, ("sh",))),
        ("proc.name!=sh", Condition("proc.name", True, ("sh",))),
        ("proc.aname[2]=x", Condition("proc.aname[2]", False, ("x",))),
        ("a=", Condition("a", False, ("",))),
        ("a= b ", Condition("a", False, (" b ",))),
        ("a=b=c", Condition("a", False, ("b=c",))),
        ("a==b", Condition("a", False, ("=b",))),
        ("a!=b=c", Condition("a", True, ("b=c",))),
        ("a=b!=c", Condition("a", False, ("b!=c",))),
        ("a!=b!c", Condition("a", True, ("b!c",))),
        ('a="b"', Condition("a", False, ("b",))),
        ('a="b, c"', Condition("a", False, ("b, c",))),
        ('a=sh -c "id"', Condition("a", False, ("sh -c id", 'sh -c "id"'))),
        ("a='b'", Condition("a", False, ("'b'",))),
        ("proc.is_exe_upper_layer=true", Condition("proc.is_exe_upper_layer", False, ("true",))),
        ("k8s.pod.label[app.kubernetes.io/name]=x", Condition("k8s.pod.label[app.kubernetes.io/name]", False, ("x",))),
        ("!=x", Condition("", True, ("x",))),
        ("K=x", Condition("K", False, ("x",))),
    ],
)
def test_conditions(piece: str, condition: Condition) -> None:
    assert condition_of(piece) == condition


@pytest.mark.parametrize(
    "piece", ["", "a", "a b=c", "a =b", " a=b", "a>=1", "a!b", "!a=b", "a!!=b", "é=x", "İ=x", "ı=x", '"a=b"', "a\n=b"]
)
def test_what_is_no_condition(piece: str) -> None:
    assert condition_of(piece) is None


def test_balanced_brackets() -> None:
    assert all(map(is_balanced, ("a.b", "a[2]", "k8s.pod.label[a/b]", "")))
    assert not any(map(is_balanced, ("a[", "a]", "[[a]]", "a[b]c]")))
