"""What the reflex keeps of pods: by uid, joined only to what can't be forged, bounded, with its age."""

from __future__ import annotations

import msgspec
import pytest

from agent.podbook import KEPT_GONE_NS, MAX_PODS, STALE_NS, Podbook
from stoop.podmeta import PodMeta
from stoop.pods import PodFacts, Source, Told

STATIC = "0123456789abcdef0123456789abcdef"


class Clock:
    now = 10**12

    def __call__(self) -> int:
        return self.now


def made(uid: str, name: str = "", mirrors: str = "") -> PodMeta:
    return PodMeta(uid, "shop", name or uid, labels={"app": uid}, mirrors=mirrors)


def facts(uid: str, source: Source = Source.CGROUP, names: Source | None = None, name: str = "") -> PodFacts:
    told = [Told(text, names) if names else Told() for text in ("shop", name or uid)]
    return PodFacts("c" * 64, namespace=told[0], name=told[1], uid=Told(uid, source), in_pod=True)


def meta_of(book: Podbook, found: PodFacts) -> PodMeta | None:
    return book.join(found).meta


def test_a_pod_is_joined_by_its_uid() -> None:
    book = Podbook(Clock())
    book.put(made("a"))
    assert meta_of(book, facts("a")) == made("a")
    assert meta_of(book, facts("a", Source.BUNDLE)) == made("a")
    assert (meta_of(book, facts("b")), book.unknown) == (None, 1)
    book.put(made("a", "renamed"))
    assert meta_of(book, facts("a")) == made("a", "renamed")


def test_a_uid_that_can_be_forged_joins_nothing() -> None:
    book = Podbook(Clock())
    book.put(made("a"))
    assert meta_of(book, facts("a", Source.KUBELET)) is None
    assert meta_of(book, PodFacts("c" * 64)) is None
    assert book.unknown == 0


def test_a_deleted_pod_stays_known_for_a_while() -> None:
    clock = Clock()
    book = Podbook(clock)
    book.put(made("a"))
    book.gone("a")
    book.gone("never was")
    assert (len(book), meta_of(book, facts("a"))) == (0, made("a"))
    clock.now += KEPT_GONE_NS
    book.put(made("b"))
    assert (len(book), meta_of(book, facts("a"))) == (1, None)


def test_one_that_comes_back_is_there_again() -> None:
    clock = Clock()
    book = Podbook(clock)
    book.put(made("a"))
    book.gone("a")
    book.put(made("a"))
    clock.now += KEPT_GONE_NS
    book.put(made("b"))
    assert (len(book), meta_of(book, facts("a"))) == (2, made("a"))


def test_a_list_lets_the_others_go() -> None:
    clock = Clock()
    book = Podbook(clock)
    for uid in "abc":
        book.put(made(uid))
    assert not book.is_listed
    book.listed(("b",), left_out=3)
    assert (len(book), book.is_listed, book.lists, book.left_out) == (1, True, 1, 3)
    clock.now += KEPT_GONE_NS
    book.gone("b")
    assert (meta_of(book, facts("a")), meta_of(book, facts("b"))) == (None, made("b"))


def test_it_holds_so_many_and_no_more() -> None:
    clock = Clock()
    book = Podbook(clock)
    for number in range(MAX_PODS + 2):
        book.put(made(str(number)))
    assert (len(book), book.left_out) == (MAX_PODS, 2)
    book.put(made("0", "changed"))
    assert (meta_of(book, facts("0")), book.left_out) == (made("0", "changed"), 2)
    book.gone("1")
    clock.now += KEPT_GONE_NS
    book.put(made("new"))
    assert meta_of(book, facts("new")) == made("new")


def test_its_age() -> None:
    clock = Clock()
    book = Podbook(clock)
    clock.now += 5
    assert book.age_ns == 0
    book.listed((), 0)
    clock.now += 7
    assert book.age_ns == 7
    book.fresh()
    assert book.age_ns == 0
    book.put(made("a"))
    clock.now += STALE_NS
    assert book.join(facts("a")).stale_s == 0
    clock.now += 10**9
    assert book.join(facts("a")).stale_s == STALE_NS // 10**9 + 1


# ---------------------------------------------------------------- static pods


@pytest.mark.parametrize(
    ("found", "is_it"),
    [
        (facts(STATIC, names=Source.BUNDLE, name="etcd"), True),
        (facts(STATIC, names=Source.KUBELET, name="etcd"), False),
        (facts(STATIC), False),
        (facts(STATIC, names=Source.BUNDLE, name="other"), False),
        (facts("f" * 32, names=Source.BUNDLE, name="etcd"), False),
    ],
)
def test_the_copy_of_a_static_pod_is_known_by_names_and_annotation(found: PodFacts, is_it: bool) -> None:
    """Anyone may write the annotation: only the pod of that name, by the runtime's own word, is the copy."""
    book = Podbook(Clock())
    mirror = made("api-uid", "etcd", mirrors=STATIC)
    book.put(mirror)
    book.put(made("liar", "liar", mirrors=STATIC))
    assert meta_of(book, found) == (mirror if is_it else None)
    assert book.join(found).conflict == ""


def test_a_copy_that_was_made_anew() -> None:
    book = Podbook(Clock())
    found = facts(STATIC, names=Source.BUNDLE, name="etcd")
    book.put(made("one", "etcd", mirrors=STATIC))
    book.put(made("two", "etcd", mirrors=STATIC))
    assert meta_of(book, found) == made("two", "etcd", mirrors=STATIC)
    book.put(msgspec.structs.replace(made("one", "etcd", mirrors=STATIC), labels={}))
    book.put(made("two", "etcd"))
    joined = meta_of(book, found)
    assert joined is not None
    assert joined.uid == "one"
