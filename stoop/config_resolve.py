"""From raw settings to typed values: which source wins, what each kind makes of the text, what Talon's keys become.

The settings' table is read off the structs of `stoop.config`; precedence is flag, environment, file, default. Pure.
"""

from __future__ import annotations

import enum
import typing
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from stoop.config_load import Findings, Given, env_name
from stoop.config_values import KINDS, Kind, choice, whole_number


class Setting(msgspec.Struct, frozen=True):
    """One setting as its struct's field declares it. `default_text`: a computed default in words, for the reference."""

    key: str
    kind: Kind
    default: Any
    description: str
    default_text: str = ""

    @property
    def env(self) -> str:
        """Its name in the environment."""
        return env_name(self.key)

    def show(self, value: Any) -> str:
        """The value as a person would write it."""
        if self.kind.many:
            return f"[{', '.join(self.kind.show(item) for item in value)}]"
        return self.kind.show(value)


class Section(msgspec.Struct, frozen=True):
    """A group of settings. `nullable`: null turns it off; `default_on`: whether it is on when nobody says."""

    key: str
    type: type[msgspec.Struct]
    nullable: bool
    default_on: bool


class Resolved(msgspec.Struct, frozen=True):
    """Every setting's value by key, which sections are on, and the origin of both."""

    sections: Mapping[str, Section]
    values: dict[str, Any] = {}
    on: dict[str, bool] = {}
    origins: dict[str, str] = {}

    def put(self, key: str, value: Any, origin: str) -> None:
        """Set one value."""
        self.values[key] = value
        self.origins[key] = origin


def table_of(root: type[msgspec.Struct]) -> tuple[dict[str, Setting], dict[str, Section]]:
    """The settings and sections below a struct, in the order of its fields."""
    settings: dict[str, Setting] = {}
    sections: dict[str, Section] = {}
    _add(root, "", settings, sections)
    return settings, sections


def _add(struct: type[msgspec.Struct], prefix: str, settings: dict[str, Setting], sections: dict[str, Section]) -> None:
    hints = typing.get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        key = prefix + field.encode_name
        annotation = hints[field.name]
        inner = _struct_in(annotation)
        if inner is not None:
            nullable = type(None) in typing.get_args(annotation)
            sections[key] = Section(key, inner, nullable, default_on=field.default is not None)
            _add(inner, key + ".", settings, sections)
        elif typing.get_origin(annotation) is typing.Annotated:
            settings[key] = _setting(key, annotation, field)


def _struct_in(annotation: Any) -> type[msgspec.Struct] | None:
    """The struct of `Struct` or `Struct | None`."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, msgspec.Struct):
            return candidate
    return None


def _setting(key: str, annotation: Any, field: msgspec.structs.FieldInfo) -> Setting:
    plain, meta = typing.get_args(annotation)
    extra = meta.extra or {}
    if isinstance(plain, type) and issubclass(plain, enum.Enum):
        kind = Kind(_enumeration(plain))
    else:
        kind = KINDS[extra.get("kind", plain.__name__)]
    return Setting(key, kind, field.default, meta.description or "", extra.get("default", ""))


def _enumeration(words: type[enum.Enum]) -> Callable[[str], enum.Enum]:
    """A parser for the values of an enumeration."""
    parse = choice(*(str(word.value) for word in words))
    return lambda text: words(parse(text))


Sources = tuple[dict[str, Given], ...]
"""The strongest first."""


def resolve(
    settings: Mapping[str, Setting], sections: Mapping[str, Section], sources: Sources, findings: Findings
) -> Resolved:
    """Values from the sources. What can't be read is a problem in `findings`."""
    resolved = Resolved(sections)
    _switch(sections, sources, resolved, findings)
    if resolved.on["intake.http"]:
        _adopt_listen_keys(sources)
    for key, setting in settings.items():
        given = next((source[key] for source in sources if key in source and source[key].texts is not None), None)
        if given is None:
            resolved.put(key, setting.default, "default")
        else:
            resolved.put(key, read(setting.kind, given, setting.default, findings), given.origin)
    return resolved


def _switch(sections: Mapping[str, Section], sources: Sources, resolved: Resolved, findings: Findings) -> None:
    """Decide which sections are on: by the strongest source that says anything of one or of what is in it."""
    for key, section in sections.items():
        resolved.on[key] = section.default_on
        for source in sources if section.nullable else ():
            inside = next((given for name, given in source.items() if name.startswith(key + ".")), None)
            given = source.get(key) or inside
            if given is not None:
                resolved.on[key] = given is inside or _says_on(given, findings)
                resolved.origins[key] = given.origin
                break


def _says_on(given: Given, findings: Findings) -> bool:
    """Null is off and a mapping on; the environment may also say `on` or `off`."""
    if not given.texts:
        return given.texts is not None
    return bool(read(KINDS["bool"], given, False, findings))


def read(kind: Kind, given: Given, default: Any, findings: Findings) -> Any:
    """The typed value, or the default and a problem."""
    try:
        if kind.many:
            return tuple(kind.parse(text) for text in given.items())
        if given.is_list:
            raise ValueError("one value belongs here, not a list")
        return kind.parse((given.texts or ("",))[0])
    except ValueError as error:
        findings.problem(str(error), given.where)
        return default


# ---------------------------------------------------------------- Talon's keys

TALON_KEYS = {
    "rules_files": "The same key; `-r` replaces it here too.",
    "log_format": "The same key. `color` is `text`, what Talon does not know is `json`, as there.",
    "watch_rules": "The same key.",
    "print_all_events": "The same key.",
    "deduplication.time_window_seconds": "Becomes `guard.dedup_window`, in seconds.",
    "listen_address": "Becomes `intake.http.address`, but only where `intake.http` is turned on: a port that anyone "
    "may post to is never opened by a key that says nothing of it.",
    "listen_port": "Becomes `intake.http.port`, as above.",
    "deduplication.leader_election": "No meaning: each agent answers for its own node.",
    "kubeconfig": "No meaning in the agent: it makes no call to the cluster.",
    "default_notifiers": "No meaning yet: this version tells nobody but its log, journal and metrics.",
    "otel": "No meaning yet.",
    "aws": "The same keys: credentials of the output `aws:s3`.",
    "gcp": "The same keys: credentials of the output `gcp:gcs`. `region` means nothing, as there.",
    "minio": "The same keys: the server of the output `minio:s3`.",
    "notifiers": "No meaning yet.",
}
"""What each of Talon's keys becomes here (all of its configuration reference)."""

TALON_SETTINGS = frozenset(
    {"listen_address", "listen_port", "deduplication.time_window_seconds", "deduplication.leader_election"}
)
"""Those that this version reads as single settings beside its own."""

TALON_SECTIONS = frozenset({"deduplication"})
TALON_OPAQUE = frozenset({"kubeconfig", "default_notifiers", "otel", "notifiers"})
"""Accepted whole, whatever is in them."""

TALON_ENVIRONMENT = frozenset(
    {"rules_files", "log_format", "watch_rules", "print_all_events", "default_notifiers", *TALON_SETTINGS}
)
"""Taken from the environment by Talon's bare names. KUBECONFIG, OTEL_… and AWS_… belong to other programs as well and
are no reason to warn."""

_LOG_WORDS = frozenset({"auto", "text", "json"})
_SECONDS = whole_number(0, 10**9)


def translate_talon(source: dict[str, Given], findings: Findings) -> dict[str, Given]:
    """The same source with Talon's keys turned into ours, where they have a meaning. Ours win over Talon's."""
    ours = dict(source)
    window = source.get("deduplication.time_window_seconds")
    if window is not None and window.texts and not window.is_list:
        seconds = read(Kind(_SECONDS), window, 5, findings)
        ours.setdefault("guard.dedup_window", _with_text(window, f"{seconds}s" if seconds else "0"))
    log_format = source.get("log_format")
    if log_format is not None and log_format.texts and not log_format.is_list:
        ours["log_format"] = _with_text(log_format, _log_word(log_format, findings))
    return ours


def _log_word(given: Given, findings: Findings) -> str:
    word = (given.texts or ("",))[0].strip().lower()
    if word == "color":
        return "text"
    if word not in _LOG_WORDS:
        findings.warn(f"log format {word!r} is not known; json is used, as Talon does", given.where)
        return "json"
    return word


def _with_text(given: Given, text: str) -> Given:
    return Given((text,), given.origin, given.where)


def _adopt_listen_keys(sources: Sources) -> None:
    """Let `listen_address` and `listen_port` speak for an `intake.http` that is on and doesn't say it itself."""
    for talon, key in (("listen_address", "intake.http.address"), ("listen_port", "intake.http.port")):
        if not any(key in source for source in sources):
            for source in sources:
                if talon in source:
                    source[key] = source[talon]


def warn_of_talon(raw: Sources, http_on: bool, findings: Findings) -> None:
    """One warning for each of Talon's keys that was given and does nothing."""
    for source in raw:
        listen = [source[key] for key in ("listen_address", "listen_port") if key in source]
        if listen and not http_on:
            findings.warn(
                "Talon's listen_address and listen_port open no port here, because anyone could post alerts to it; to "
                "listen, write `intake: {http: {address: 127.0.0.1, port: 2803, token_file: FILE}}` "
                "(or `insecure: true` instead of token_file)",
                listen[0].where,
            )
        told: set[str] = set()
        for key, given in source.items():
            top = key if key in TALON_KEYS else key.split(".", 1)[0]
            if (
                (top in TALON_OPAQUE or key == "deduplication.leader_election")
                and top not in told
                and any(given.texts or ())
            ):
                told.add(top)
                reason = TALON_KEYS[top]
                findings.warn(f"accepted for Talon's sake; {reason[0].lower()}{reason[1:]}", given.where)
