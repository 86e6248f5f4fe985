"""From a YAML file, the environment and flags to one table of raw settings, each with where it came from.

Knows nothing of what the settings are: `stoop.config` hands the known keys in. Every problem is collected, none ends
the reading early. Keys count in any case, as in Talon (viper).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec
import yaml

from stoop.errors import ConfigError

MAX_FILE = 1024 * 1024
"""Bytes of a configuration file: a full one has 4 KiB; what is larger is another file."""

MAX_DEPTH = 32
"""Levels of nesting: ours has 3, Talon's 4. libyaml's C code has no limit and ends the program at some 50,000."""

ENV_PREFIX = "STOOP_"
ENV_FILE = "STOOP_CONFIG"
"""Names the configuration file itself, where no flag does; the programs read it."""

_NULL_TAG = "tag:yaml.org,2002:null"
_NULL_WORDS = frozenset({"null", "~", "none", "off", "false"})
_SERVICE_LINK = re.compile(r"(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_(TCP|UDP|SCTP)(_.*)?)?)")
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")

Loader: type[yaml.CSafeLoader] | type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's parser where PyYAML was built with it: ten times as fast."""


class Given(msgspec.Struct, frozen=True):
    """One setting as it was written: `texts` is None for null, one item for a scalar, any number for a list."""

    texts: tuple[str, ...] | None
    origin: str
    where: str
    is_list: bool = False

    def items(self) -> tuple[str, ...]:
        """The items of a list; a scalar is split at commas (as the environment's lists are written)."""
        texts = self.texts or ()
        if self.is_list:
            return texts
        return tuple(part.strip() for text in texts for part in text.split(",") if part.strip())


class Known(msgspec.Struct, frozen=True):
    """The keys there are, dotted and in lower case. Under an `opaque` key anything may stand."""

    settings: frozenset[str]
    sections: frozenset[str]
    opaque: frozenset[str]


class Findings:
    """What was found wrong (`problems`: it can't be used) or odd (`warnings`: lines for a person)."""

    def __init__(self) -> None:
        self.problems: list[ConfigError] = []
        self.warnings: list[str] = []

    def problem(self, what: str, where: str, hint: str = "") -> None:
        self.problems.append(ConfigError(what, where=where, hint=hint))

    def warn(self, what: str, where: str) -> None:
        self.warnings.append(f"{where}: {what}" if where else what)


def env_name(key: str) -> str:
    """The environment's name of one of our keys: `guard.max_targets` → `STOOP_GUARD_MAX_TARGETS`."""
    return ENV_PREFIX + talon_env_name(key)


def talon_env_name(key: str) -> str:
    """Talon's rule: upper case, dots become underscores, no prefix."""
    return key.upper().replace(".", "_")


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """` (did you mean …?)` or nothing."""
    # Only a misspelt key pays for the import.
    import difflib

    close = difflib.get_close_matches(word, sorted(words), n=1, cutoff=0.7)
    return f" (did you mean {close[0]}?)" if close else ""


def read_file(path: str) -> bytes:
    """The bytes of a configuration file. Raises ConfigError for what can't be read or is too large."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigError(
            f"can't be read: {error.strerror}", where=path, hint="name another file with -c, or leave -c out"
        ) from error
    if len(data) > MAX_FILE:
        raise ConfigError(f"more than {MAX_FILE} bytes", where=path, hint="this is no configuration of Stoop")
    return data


def from_yaml(data: bytes, name: str, known: Known, findings: Findings) -> dict[str, Given]:
    """The settings in one YAML document, by dotted key. A section that is null or there has an entry of its own.

    What is not YAML, or no mapping, is one problem in `findings`.
    """
    try:
        root = _compose(data)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        findings.problem(
            f"this is not YAML: {error.problem or error.context}", place, "mend the line, or the one above"
        )
        return {}
    except (yaml.YAMLError, ValueError) as error:
        findings.problem(f"this is not YAML: {' '.join(str(error).split())}", name)
        return {}
    reader = _YamlReader(name, known, findings)
    reader.root(root)
    return reader.found


def _compose(data: bytes) -> yaml.Node | None:
    """The first document's nodes, None for an empty one. Raises ValueError when nested too deep."""
    depth = 0
    for event in yaml.parse(data, Loader=Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
    loader = Loader(data)
    try:
        node: yaml.Node | None = loader.get_node() if loader.check_node() else None
        return node
    finally:
        loader.dispose()


class _YamlReader:
    """Walks the nodes along the known keys only, so that no alias, however wound up, is followed further."""

    def __init__(self, name: str, known: Known, findings: Findings) -> None:
        self.name = name
        self.known = known
        self.findings = findings
        self.found: dict[str, Given] = {}

    def root(self, node: yaml.Node | None) -> None:
        if node is None or _is_null(node):
            return
        if not isinstance(node, yaml.MappingNode):
            self.findings.problem("the top level must be a mapping", self._place(node), "write lines of `key: value`")
            return
        self._mapping(node, "")

    def _place(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"

    def _where(self, node: yaml.Node, key: str) -> str:
        return f"{self._place(node)}: {key}"

    def _mapping(self, node: yaml.MappingNode, prefix: str) -> None:
        seen: dict[str, int] = {}
        for key_node, value_node in self._entries(node, prefix):
            if not isinstance(key_node, yaml.ScalarNode):
                self.findings.problem("a key must be a word", self._place(key_node))
                continue
            # What a terminal would obey is shown escaped, as an unknown key.
            key = prefix + (key_node.value.lower() if key_node.value.isprintable() else repr(key_node.value))
            if key in seen:
                self.findings.problem(f"given twice, first on line {seen[key]}", self._where(key_node, key))
                continue
            seen[key] = key_node.start_mark.line + 1
            self._entry(key, key_node, value_node)

    def _entries(self, node: yaml.MappingNode, prefix: str) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        """The mapping's own entries, then those of its merge keys (`<<`) that it doesn't have itself."""
        own = [(key, value) for key, value in node.value if key.value != "<<"]
        names = {key.value.lower() for key, _ in own if isinstance(key, yaml.ScalarNode)}
        yield from own
        for key, value in node.value:
            if key.value != "<<":
                continue
            sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for source in sources:
                if not isinstance(source, yaml.MappingNode):
                    self.findings.problem("`<<` takes a mapping", self._where(key, prefix + "<<"))
                    continue
                for merged_key, merged_value in source.value:
                    if isinstance(merged_key, yaml.ScalarNode) and merged_key.value.lower() not in names:
                        names.add(merged_key.value.lower())
                        yield merged_key, merged_value

    def _entry(self, key: str, key_node: yaml.Node, node: yaml.Node) -> None:
        if key in self.known.sections:
            self._section(key, key_node, node)
        elif key in self.known.settings:
            self._setting(key, key_node, node)
        elif key.split(".", 1)[0] in self.known.opaque:
            self._opaque(key, key_node, node)
        else:
            hint = did_you_mean(key, self.known.settings | self.known.sections)
            self.findings.warn(f"there is no such setting{hint}; it is ignored", self._where(key_node, key))

    def _give(self, key: str, key_node: yaml.Node, texts: tuple[str, ...] | None, is_list: bool = False) -> None:
        self.found[key] = Given(texts, self._place(key_node), self._where(key_node, key), is_list)

    def _section(self, key: str, key_node: yaml.Node, node: yaml.Node) -> None:
        if isinstance(node, yaml.MappingNode):
            self._give(key, key_node, ())
            self._mapping(node, key + ".")
        elif isinstance(node, yaml.ScalarNode) and (_is_null(node) or node.value.lower() in _NULL_WORDS):
            self._give(key, key_node, None)
        else:
            inside = sorted(name.removeprefix(key + ".") for name in self.known.settings if name.startswith(key + "."))
            hint = f"write `{key.rsplit('.', 1)[-1]}: {{{inside[0]}: ...}}`" if inside else ""
            self.findings.problem("this is a section and takes a mapping", self._where(key_node, key), hint)

    def _setting(self, key: str, key_node: yaml.Node, node: yaml.Node) -> None:
        if isinstance(node, yaml.ScalarNode):
            self._give(key, key_node, None if _is_null(node) else (node.value,))
        elif isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
            self._give(key, key_node, tuple(item.value for item in node.value), is_list=True)
        else:
            self.findings.problem("a plain value or a list of them belongs here", self._where(key_node, key))

    def _opaque(self, key: str, key_node: yaml.Node, node: yaml.Node, depth: int = 0) -> None:
        """Leaves of what is accepted without meaning, to the depth that Talon's own files have."""
        if isinstance(node, yaml.MappingNode) and depth < 3:
            for inner_key, inner in node.value:
                if isinstance(inner_key, yaml.ScalarNode):
                    self._opaque(f"{key}.{inner_key.value.lower()}", inner_key, inner, depth + 1)
        elif isinstance(node, yaml.ScalarNode):
            self._give(key, key_node, None if _is_null(node) else (node.value,))
        else:
            items = node.value if isinstance(node, yaml.SequenceNode) else []
            texts = tuple(item.value for item in items if isinstance(item, yaml.ScalarNode))
            self._give(key, key_node, texts, is_list=True)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL_TAG


def from_environment(
    environ: Mapping[str, str], known: Known, talon: frozenset[str], findings: Findings
) -> dict[str, Given]:
    """Our settings by their `STOOP_` names, and Talon's (`talon`: its keys) by their bare ones. Empty means unset.

    A Kubernetes Service called `stoop…` or `listen` puts variables such as STOOP_METRICS_PORT=tcp://10.0.0.1:2804 into
    every pod of its namespace (service links); those are not settings.
    """
    names = {env_name(key): key for key in known.settings | known.sections}
    bare = {talon_env_name(key): key for key in talon}
    found: dict[str, Given] = {}
    for name, text in environ.items():
        key = names.get(name) or bare.get(name)
        if not text or _SERVICE_URL.match(text):
            continue
        if key is not None and (key not in found or name in names):
            is_null = key in known.sections and text.strip().lower() in _NULL_WORDS
            found[key] = Given(None if is_null else (text,), f"env {name}", f"environment: {name}")
        elif key is None and name.startswith(ENV_PREFIX) and name != ENV_FILE and not _is_service_link(name):
            findings.warn(f"there is no such setting{did_you_mean(name, names)}; it is ignored", f"environment: {name}")
    return found


def _is_service_link(name: str) -> bool:
    """Whether Kubernetes makes such names for a Service whose name begins with `stoop`."""
    rest = name.removeprefix(ENV_PREFIX)
    return any(_SERVICE_LINK.fullmatch(rest[at:]) for at in range(len(rest)) if at == 0 or rest[at - 1] == "_")


def from_flags(flags: Mapping[str, str | Iterable[str]]) -> dict[str, Given]:
    """Settings given on the command line, by dotted key."""
    found: dict[str, Given] = {}
    for key, value in flags.items():
        texts = (value,) if isinstance(value, str) else tuple(value)
        found[key] = Given(texts, "flag", f"flag for {key}", is_list=not isinstance(value, str))
    return found
