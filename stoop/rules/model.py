"""The finished form of rules: checked, merged, ready to be compiled. Plain values that survive a msgpack round trip.

The helper process loads and checks; the reflex gets these forms over a socket, one at a time, and compiles them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from stoop.errors import Problem
from stoop.podmeta import is_metadata

RESOLVABLE = frozenset(
    {
        "k8s.ns.name",
        "k8s.pod.name",
        "k8s.pod.uid",
        "k8s.pod.id",
        "container.id",
        "container.full_id",
        "container.name",
    }
)
"""Alert fields that the node can tell when Falco could not (k8s.* is often null)."""


def is_resolvable(key: str) -> bool:
    """Whether an alert field that Falco left open is looked up: the node tells it, or its pod's metadata."""
    return key in RESOLVABLE or is_metadata(key)


MISSING = frozenset({"", "<NA>"})
"""Texts by which Falco says that it could not extract a field, beside null."""

PRIORITIES = ("debug", "informational", "notice", "warning", "error", "critical", "alert", "emergency")
"""Falco's priorities, 1 to 8. An alert with none of them counts as 0, below all (as in Talon)."""

ANY_PRIORITY = (1 << (len(PRIORITIES) + 1)) - 1
"""The mask that takes every priority, the unknown one included."""


class Condition(NamedTuple):
    """One `key=value` or `key!=value` of an `output_fields` entry. Any of `values` counts as the value.

    A plain tuple, because it is looked at for each alert.
    """

    key: str
    negated: bool
    values: tuple[str, ...]


class MatchForm(msgspec.Struct, frozen=True):
    """The five criteria, all of which must hold. What a criterion leaves empty, it does not ask.

    The first five are as written in the files. `priorities` is a mask of accepted priorities, bit n for priority n;
    `tag_sets` are alternatives, each a set of tags that the alert must all have; `entries` are alternatives, each a
    list of conditions that must all hold.
    """

    rules: tuple[str, ...] = ()
    output_fields: tuple[str, ...] = ()
    priority: str = ""
    source: str = ""
    tags: tuple[str, ...] = ()
    priorities: int = ANY_PRIORITY
    tag_sets: tuple[tuple[str, ...], ...] = ()
    entries: tuple[tuple[Condition, ...], ...] = ()

    @property
    def is_everything(self) -> bool:
        """Whether no criterion asks anything: such a rule matches each alert."""
        asks = self.rules or self.entries or self.source or self.tag_sets
        return not asks and self.priorities == ANY_PRIORITY


class OutputForm(msgspec.Struct, frozen=True):
    """Where the evidence of an action goes."""

    target: str
    parameters: dict[str, Any] = {}


class ActionForm(msgspec.Struct, frozen=True):
    """One step of a rule, with what it inherits from the top-level action of its name already merged in.

    `parameters` are raw values as in the file; `typed_parameters` turns them into the spec's Struct. `continue_` is
    the effective one: what is written, else the actionner's default.
    """

    action: str
    actionner: str
    continue_: bool
    description: str = ""
    parameters: dict[str, Any] = {}
    output: OutputForm | None = None
    ignore_errors: bool = False
    additional_contexts: tuple[str, ...] = ()


class RuleForm(msgspec.Struct, frozen=True):
    """One rule, with all definitions of its name merged. `index` is its place among all rules, from 0.

    `allow_host`, `match_all` and `evidence_first` are Stoop's own keys: the rule may touch processes that are in no
    container; it means to match every alert although it destroys; what destroys waits for evidence (None: as the
    configuration says).
    """

    rule: str
    match: MatchForm
    actions: tuple[ActionForm, ...]
    index: int = 0
    description: str = ""
    continue_: bool = True
    dry_run: bool = False
    notifiers: tuple[str, ...] = ()
    allow_host: bool = False
    match_all: bool = False
    evidence_first: bool | None = None


class Loaded(msgspec.Struct, frozen=True):
    """What loading gives: the effective rules in order, what is odd in them, and a digest (hex) of what they mean.

    `metadata`: one for each condition that only labels, annotations or owners of a pod decide. It is a problem where
    nothing tells them (`pods.source` is none), which the rules alone can't say.
    """

    rules: tuple[RuleForm, ...]
    warnings: tuple[Problem, ...]
    digest: str
    metadata: tuple[Problem, ...] = ()
