"""Everything that rules and the configuration may name: the catalogue as one value, by name.

Rules, engine and guard get it handed in and never import it. Importing this reads no file and no clock.
"""

from __future__ import annotations

from collections.abc import Iterable

from stoop.actions import ACTIONS
from stoop.notifiers import NOTIFIERS
from stoop.outputs import OUTPUTS
from stoop.spec import (
    Action,
    Catalogue,
    NotifierSpec,
    OutputSpec,
)


def build(actions: Iterable[Action], outputs: Iterable[OutputSpec], notifiers: Iterable[NotifierSpec]) -> Catalogue:
    """A catalogue of these, in this order. Of two with one name the later counts."""
    return Catalogue(
        actions={action.spec.name: action for action in actions},
        outputs={output.name: output for output in outputs},
        notifiers={notifier.name: notifier for notifier in notifiers},
    )


CATALOGUE = build(ACTIONS, OUTPUTS, NOTIFIERS)
