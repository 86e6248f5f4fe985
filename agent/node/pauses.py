"""Containers that stand still for a moment while they are looked at, and who may have them go on.

A freeze that is to last takes a moment's over: then nobody thaws it when the moment ends.
"""

from __future__ import annotations

from agent.node.containers import Containers
from stoop.node import ContainerFacts


class Pauses:
    """Counts, by container, who looks at it while it stands still for that alone."""

    def __init__(self, containers: Containers) -> None:
        self._containers = containers
        self._counts: dict[str, int] = {}

    def has(self, container: ContainerFacts) -> bool:
        """Whether it stands still for a moment only."""
        return container.container_id in self._counts

    def begin(self, container: ContainerFacts) -> bool:
        """It stands still until the last `end`; False where it did already, for longer, or can't."""
        count = self._counts.get(container.container_id, 0)
        if count or self._containers.freeze(container, True):
            self._counts[container.container_id] = count + 1
            return True
        return False

    def end(self, container: ContainerFacts) -> None:
        """One looks at it no more. The last one has it go on, unless somebody took it over."""
        count = self._counts.get(container.container_id, 0)
        if count > 1:
            self._counts[container.container_id] = count - 1
        elif count:
            del self._counts[container.container_id]
            self._containers.freeze(container, False)

    def over(self, container: ContainerFacts) -> bool:
        """Whether there was a moment: it is over, and whoever ended it says whether the container stands still."""
        return self._counts.pop(container.container_id, 0) > 0
