"""Whether the bundles of a node are all there, and each as it was when the next one was written."""

from __future__ import annotations

from stoop.evidence import manifest as manifests
from stoop.evidence.reading import BundleError
from stoop.evidence.store import Head, Store


def check_chain(store: Store) -> list[str]:
    """What is wrong with the chain, one line each; [] when nothing is. Reads manifests only, no parts.

    Bundles that the store let go of by itself are no finding. Whoever can write the whole store can also forge all
    of it: to prove more, keep the last manifest's hash elsewhere.
    """
    wrong = []
    head = store.kept_head()
    bundles = store.bundles()
    if head is None:
        if not bundles:
            return []
        head = Head(oldest=manifests.sequence_of(bundles[0]))
        wrong.append("head.json is missing or can't be read: bundles removed from the end can't be told")
    expected, previous = head.oldest, None
    for bundle in bundles:
        sequence = manifests.sequence_of(bundle)
        if sequence > expected:
            lost = [place for place in range(expected, sequence) if not _went(head, place)]
            if lost:
                wrong.append(f"{_span(lost[0], lost[-1])} missing, and the store did not let go of it")
            previous = None
        expected = max(expected, sequence + 1)
        try:
            with store.reading(bundle) as reader:
                found = reader.manifest
                told = found.previous
                if (found.sequence, found.bundle) != (sequence, bundle):
                    wrong.append(f"{bundle}: its manifest says that it is {found.bundle!r}")
                if previous is not None and told != previous:
                    wrong.append(f"{bundle}: the bundle before it is not the one that it was written after")
                previous = manifests.digest(reader.raw_manifest)
        except FileNotFoundError:
            continue  # let go of just now
        except (BundleError, OSError) as error:
            wrong.append(f"{bundle}: {error}")
            previous = None
    if expected - 1 < head.sequence:
        wrong.append(f"{_span(expected, head.sequence)} missing at the end")
    elif previous is not None and expected - 1 == head.sequence and previous != head.manifest:
        wrong.append("the last bundle is not the one that head.json names")
    return wrong


def _went(head: Head, place: int) -> bool:
    return any(first <= place <= last for first, last in head.gone)


def _span(first: int, last: int) -> str:
    return f"bundle {first} is" if first == last else f"bundles {first} to {last} are"
