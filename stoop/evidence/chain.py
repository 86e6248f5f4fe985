"""Whether the bundles of a node are all there, and each as it was when the next one was written."""

from __future__ import annotations

from typing import NamedTuple

from stoop.evidence import manifest as manifests
from stoop.evidence.head import Head
from stoop.evidence.manifest import Link
from stoop.evidence.reading import BundleError
from stoop.evidence.store import Store


class Place(NamedTuple):
    """Who has a place in the chain. `link` is None where the bundle can't be read."""

    bundle: str
    link: Link | None


def check_chain(store: Store) -> list[str]:
    """What is wrong with the chain, one line each; [] when nothing is. Reads manifests only, no parts.

    Bundles that the store let go of by itself are no finding (`let_go` tells them). A manifest that was replaced, when
    its run's next capture was added, is known by the one that stands for it. Whoever can write the whole store can also
    forge all of it: to prove more, keep the last manifest's hash elsewhere.
    """
    before = store.kept_head()
    wrong, places = _places(store)
    head = store.kept_head()
    if before is None or head is None:  # the first is written before the first bundle can be read
        if not places and not wrong:
            return []
        head = Head(oldest=min(places, default=1))
        wrong.append("head.json is missing or can't be read: bundles removed from the end can't be told")
    # What was written or let go since `before` was read may be missing in the list.
    wrong += _gaps(places, head.oldest, before.sequence if before is not None else max(places, default=0))
    wrong += _breaks(places)
    last = places.get(head.sequence)
    if last is not None and last.link is not None and last.link.manifest != head.manifest:
        wrong.append("the last bundle is not the one that head.json names")
    return wrong


def let_go(store: Store) -> str:
    """Which bundles the store removed by itself, for a person; "" when none."""
    head = store.kept_head()
    return f"places 1 to {head.oldest - 1} were let go, the store is bounded" if head and head.oldest > 1 else ""


def _places(store: Store) -> tuple[list[str], dict[int, Place]]:
    """What is wrong with single bundles, and all places by their sequence."""
    wrong: list[str] = []
    places: dict[int, Place] = {}
    for bundle in store.bundles():
        sequence = manifests.sequence_of(bundle)
        links: list[tuple[int, Link | None]] = [(sequence, None)]
        try:
            with store.reading(bundle) as reader:
                found = reader.manifest
                own = Link(found.sequence, manifests.digest(reader.raw_manifest), found.previous)
                if (found.first, found.bundle) == (sequence, bundle):
                    links = [(link.sequence, link) for link in (*found.replaces, own)]
                else:
                    wrong.append(f"{bundle}: its manifest says that it is {found.bundle!r}")
        except FileNotFoundError:
            continue  # let go of just now
        except (BundleError, OSError) as error:
            wrong.append(f"{bundle}: {error}")
        for at, link in links:
            if at in places:
                wrong.append(f"{bundle}: {places[at].bundle} has its place {at} too")
            places[at] = Place(bundle, link)
    return wrong, places


def _gaps(places: dict[int, Place], oldest: int, newest: int) -> list[str]:
    """Places that nobody has."""
    wrong, expected = [], oldest
    for sequence in sorted(place for place in places if place >= oldest):
        if sequence > expected and expected <= newest:
            wrong.append(f"{_span(expected, sequence - 1)} missing, and the store did not let go of it")
        expected = sequence + 1
    if expected <= newest:
        wrong.append(f"{_span(expected, newest)} missing at the end")
    return wrong


def _breaks(places: dict[int, Place]) -> list[str]:
    """Manifests that were written after another one than the one that is before them."""
    wrong = []
    for sequence, (bundle, link) in sorted(places.items()):
        before = places.get(sequence - 1)
        if link is None or before is None or before.link is None:
            continue
        if link.previous != before.link.manifest:
            wrong.append(f"{bundle}: the bundle before it is not the one that it was written after ({before.bundle})")
    return wrong


def _span(first: int, last: int) -> str:
    return f"bundle {first} is" if first == last else f"bundles {first} to {last} are"
