"""The items of a rules file: each is read both as an action definition and as a rule, as in Talon.

So a wrong type under any known key is told, whichever of the two the item is meant to be.
"""

from __future__ import annotations

from collections.abc import Iterable

from stoop.rules.notes import Notes, near, shown
from stoop.rules.raw import Place, RawAction, RawMatch, RawRule, Text
from stoop.rules.reading import NodeReader, Pairs, TooMuch
from stoop.rules.unread import Unread
from stoop.rules.yamldoc import Budget, Document, Listing, Mapping, Node, Scalar, YamlError, compose, words_of

MAX_RULES = 10_000
"""The most rules and actions at the top level: a node with more has a generator gone wrong."""

ACTION_KEYS = (
    "action",
    "actionner",
    "description",
    "continue",
    "ignore_errors",
    "additional_contexts",
    "parameters",
    "output",
)
RULE_KEYS = (
    "rule",
    "description",
    "match",
    "actions",
    "continue",
    "dry_run",
    "notifiers",
    "allow_host",
    "match_all",
    "evidence_first",
)
MATCH_KEYS = ("rules", "output_fields", "priority", "source", "tags")
_NAME_KEYS = {"action", "rule"}
OUTPUT_KEYS = ("target", "parameters")

_ADVICE = {
    "contexts": "write additional_contexts",
    "enabled": "there is no key to switch a rule off: take it out, or use dry_run: true",
    "disabled": "there is no key to switch a rule off: take it out, or use dry_run: true",
    **dict.fromkeys(MATCH_KEYS, "it belongs under match"),
    **dict.fromkeys(("dry_run", "notifiers", "allow_host", "match_all", "evidence_first"), "it is a key of the rule"),
    **dict.fromkeys(
        ("actionner", "ignore_errors", "additional_contexts", "parameters", "output"), "it is a key of an action"
    ),
    "target": "it belongs under output",
}
"""What to do about keys that look right and stand in the wrong place, or that mean nothing anywhere."""


class Items:
    """What all files hold, in order: the definitions, not yet merged. What can't be read goes to `unread`."""

    def __init__(self, notes: Notes, unread: Unread) -> None:
        self.notes = notes
        self.unread = unread
        self.actions: list[RawAction] = []
        self.rules: list[RawRule] = []
        self._budget = Budget()

    def read(self, file: str, data: bytes) -> None:
        """One file. What is wrong goes to `notes`; what stands before an error of syntax is read nevertheless."""
        reader = NodeReader(file, self.notes, self._budget)
        try:
            try:
                self._document(reader, compose(file, data, self._budget))
            except YamlError as error:
                self.notes.add(error.problem)
                self.unread.add(error.unread)
                self._items(reader, error.items)
        except TooMuch:  # told where it was found
            self.unread.add(data.decode("utf-8", "replace"))

    def _document(self, reader: NodeReader, document: Document) -> None:
        if document.more:
            self.notes.warn(
                "documents",
                "only the first document of a file is read",
                Place(reader.file),
                hint="take out the line --- or use one file each",
            )
        if document.root is None:
            return
        with reader.inside(document.root) as content:
            if isinstance(content, Scalar) and reader.is_null(content):
                return
            if isinstance(content, Listing):
                self._items(reader, content.items)
                return
            reader.misfit(document.root, "a rules file must be a list", "begin each rule and action with '- '")
            self.unread.add(words_of(content))

    def _items(self, reader: NodeReader, items: Iterable[Node]) -> None:
        for item in items:
            if len(self.rules) + len(self.actions) >= MAX_RULES:
                message = f"more than {MAX_RULES} rules and actions"
                self.notes.problem("yaml-limit", message, reader.place(item))
                raise TooMuch
            self._item(reader, item)

    def _item(self, reader: NodeReader, node: Node) -> None:
        with reader.inside(node) as content:
            if not isinstance(content, Mapping):
                what = "is empty" if isinstance(content, Scalar) and not content.text else "is no mapping"
                reader.misfit(node, f"this item {what}", "an item begins with '- rule: NAME' or '- action: NAME'")
                self.unread.add(words_of(content))
                return
            pairs, broken = _pairs(reader, content, ACTION_KEYS + RULE_KEYS)
            action = _action(reader, node, pairs, broken)
            rule = _rule(reader, node, pairs, action)
        for key, value in pairs:
            if key.text in action.broken | rule.broken and key.text in _NAME_KEYS:
                self.unread.add(f"{key.text} {words_of(value)}")  # which of them it defines is not known
        known: tuple[str, ...] = ()
        if action.name or "action" in action.broken:
            self.actions.append(action)
            known += ACTION_KEYS
        if rule.name or "rule" in rule.broken:
            self.rules.append(rule)
            known += RULE_KEYS
        if known:
            rule.unknown = _unknown(reader, pairs, known, "")
        elif pairs:
            _warn_nameless(reader, node, pairs)


def _warn_nameless(reader: NodeReader, node: Node, pairs: Pairs) -> None:
    names = {near(key.text, ("rule", "action")): key.text for key, _ in pairs if not reader.notes.full}
    hint = next((f"write {name} for {found}" for name, found in names.items() if name and name != found), "")
    message = "this item has neither a rule's name nor an action's: it is not read"
    reader.notes.warn("nameless", message, reader.place(node), hint=hint or "give it a name: '- rule: NAME'")


def _unknown(reader: NodeReader, pairs: Pairs, known: tuple[str, ...], where: str) -> list[Text]:
    """Warn of each key that means nothing here."""
    unknown = [Text(key.text, reader.place(key)) for key, _ in pairs if key.text not in known]
    for key in unknown:
        if reader.notes.full:
            break
        hint = advice_on(key.text, known) or f"known here: {', '.join(known)}"
        message = f"unknown key {shown(key.text)}{where} is ignored"
        reader.notes.warn("unknown-key", message, key.place, detail=key.text, hint=hint)
    return unknown


def _pairs(reader: NodeReader, mapping: Mapping, known: Iterable[str]) -> tuple[Pairs, set[str]]:
    """The entries of a definition, and which of the known keys are in doubt: all when some key could not be read."""
    told = reader.notes.told
    pairs = reader.pairs(mapping)
    return pairs, set(known) - _NAME_KEYS if reader.notes.told > told else set()


def advice_on(key: str, known: Iterable[str]) -> str:
    """What to write instead of an unknown key where these are known, or the empty text."""
    guess = near(key, known)
    return _ADVICE.get(key) or (f"did you mean {guess}?" if guess else "")


def _action(reader: NodeReader, node: Node, pairs: Pairs, broken: set[str]) -> RawAction:
    action = RawAction(reader.place(node), broken=set(broken))
    for key, value in pairs:
        told = reader.notes.told
        match key.text:
            case "action":
                action.name = reader.text(value, "action")
            case "description":
                action.description = reader.text(value, "description")
            case "actionner":
                action.actionner = reader.text(value, "actionner")
            case "continue":
                action.continue_ = reader.text(value, "continue")
            case "ignore_errors":
                action.ignore_errors = reader.text(value, "ignore_errors")
            case "additional_contexts":
                action.contexts = reader.texts(value, "additional_contexts")
            case "parameters":
                action.parameters = reader.parameters(value, "parameters")
            case "output":
                _output(reader, value, action)
        if reader.notes.told > told:
            action.broken.add(key.text)
    return action


def _output(reader: NodeReader, node: Node, action: RawAction) -> None:
    for key, value in _mapping(reader, node, "output", OUTPUT_KEYS)[0]:
        if key.text == "target":
            action.target = reader.text(value, "output.target")
        elif key.text == "parameters":
            action.output = reader.parameters(value, "output.parameters")


def _rule(reader: NodeReader, node: Node, pairs: Pairs, action: RawAction) -> RawRule:
    """The same item as a rule; what both have in common was read already."""
    rule = RawRule(
        reader.place(node), description=action.description, continue_=action.continue_, broken=set(action.broken)
    )
    for key, value in pairs:
        told = reader.notes.told
        match key.text:
            case "rule":
                rule.name = reader.text(value, "rule")
            case "dry_run":
                rule.dry_run = reader.text(value, "dry_run")
            case "allow_host":
                rule.allow_host = reader.text(value, "allow_host")
            case "match_all":
                rule.match_all = reader.text(value, "match_all")
            case "evidence_first":
                rule.evidence_first = reader.text(value, "evidence_first")
            case "notifiers":
                rule.notifiers = reader.texts(value, "notifiers")
            case "actions":
                rule.actions = _steps(reader, value)
            case "match":
                rule.match = _match(reader, value)
        if reader.notes.told > told:
            rule.broken.add(key.text)
    return rule


def _steps(reader: NodeReader, node: Node) -> list[RawAction]:
    with reader.inside(node) as content:
        if isinstance(content, Scalar) and reader.is_null(content):
            return []
        if not isinstance(content, Listing):
            reader.misfit(node, "actions must be a list", "begin each action with '- action: NAME'")
            return []
        return [step for item in content.items for step in _step(reader, item)]


def _step(reader: NodeReader, node: Node) -> list[RawAction]:
    with reader.inside(node) as content:
        if not isinstance(content, Mapping):
            what = "is empty" if isinstance(content, Scalar) and not content.text else "is no mapping"
            reader.misfit(node, f"this action {what}", "write '- action: NAME'")
            return []
        pairs, broken = _pairs(reader, content, ACTION_KEYS)
        _unknown(reader, pairs, ACTION_KEYS, " in an action")
        return [_action(reader, node, pairs, broken)]


def _match(reader: NodeReader, node: Node) -> RawMatch:
    match = RawMatch()
    pairs, match.unknown = _mapping(reader, node, "match", MATCH_KEYS)
    for key, value in pairs:
        match key.text:
            case "rules":
                match.rules = reader.texts(value, "match.rules")
            case "output_fields":
                match.output_fields = reader.texts(value, "match.output_fields")
            case "priority":
                match.priority = reader.text(value, "match.priority")
            case "source":
                match.source = reader.text(value, "match.source")
            case "tags":
                match.tags = reader.texts(value, "match.tags")
    return match


def _mapping(reader: NodeReader, node: Node, what: str, known: tuple[str, ...]) -> tuple[Pairs, list[Text]]:
    """The entries of a mapping that may be null, and its unknown keys."""
    with reader.inside(node) as content:
        if isinstance(content, Scalar) and reader.is_null(content):
            return [], []
        if not isinstance(content, Mapping):
            kind = "a list" if isinstance(content, Listing) else "a text"
            reader.misfit(node, f"{what} must be a mapping, not {kind}", f"known keys: {', '.join(known)}")
            return [], []
        pairs = reader.pairs(content)
        return pairs, _unknown(reader, pairs, known, f" in {what}")
