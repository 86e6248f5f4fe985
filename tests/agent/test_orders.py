"""The directory of a container's logs, by the names that the node tells."""

from __future__ import annotations

import pytest

from agent.orders import log_directory
from stoop.pods import PodFacts, Source, Told


def facts(**names: str) -> PodFacts:
    return PodFacts("c" * 64, **{key: Told(name, Source.KUBELET) for key, name in names.items()})  # type: ignore[arg-type]


WHOLE = {"namespace": "ns", "name": "web-0", "uid": "1234", "container": "main"}


def test_as_the_kubelet_names_it() -> None:
    assert log_directory(facts(**WHOLE)) == "ns_web-0_1234/main/"


@pytest.mark.parametrize("key", WHOLE)
@pytest.mark.parametrize("value", ["", ".", "..", "a/../b"])
def test_what_is_no_name_makes_no_path(key: str, value: str) -> None:
    assert log_directory(facts(**(WHOLE | {key: value}))) == ""
