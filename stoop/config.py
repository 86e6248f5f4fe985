"""The configuration: `load` makes one frozen `Config` of flags, environment, file and defaults (in that order).

Talon's keys and environment names are accepted beside ours. Every problem is told at once, with file and line; unknown
keys are warnings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import msgspec

from stoop import config_load, config_resolve, guard
from stoop.config_load import Findings, Given, Known
from stoop.config_model import (
    MAX_EVIDENCE_DEADLINE_NS,
    MAX_INTERVAL_NS,
    MAX_SOCKET_PATH,
    MIN_INTERVAL_NS,
    Config,
    Control,
    FileIntake,
    Guard,
    Heartbeat,
    HttpIntake,
    Intake,
    Journal,
    LogFormat,
    Metrics,
    OnStop,
    Pacemaker,
    PidNamespace,
    UnixIntake,
)
from stoop.config_outputs import ENDPOINT, TALON_SECTIONS, Aws, Gcp, Minio, odd_stores
from stoop.config_pods import MAX_POLL_NS, MIN_POLL_NS, Pods, PodsFrom
from stoop.config_resolve import Resolved, Section, Setting
from stoop.config_values import masked
from stoop.errors import ConfigError

__all__ = [
    "DEFAULT_PATH",
    "Aws",
    "Config",
    "ConfigErrors",
    "Control",
    "FileIntake",
    "Gcp",
    "Guard",
    "Heartbeat",
    "HttpIntake",
    "Intake",
    "Journal",
    "LogFormat",
    "Metrics",
    "Minio",
    "OnStop",
    "Pacemaker",
    "PidNamespace",
    "Pods",
    "PodsFrom",
    "UnixIntake",
    "load",
    "policy_of",
    "printable",
    "reference",
]

DEFAULT_PATH = "/etc/stoop/stoop.yaml"
"""Read when no file is named and it is there."""

_SECRET = re.compile(r"secret|token|password|passwd|key|credential|webhook|url|user|arn|id$|^notifiers\.")
_MASK = "***"
_SERVER = re.compile(r"https://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")


class ConfigErrors(ConfigError):
    """Several settings are wrong: one line each, all in `problems`."""

    def __init__(self, problems: Sequence[ConfigError], warnings: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        self.warnings = tuple(warnings)
        super().__init__("\n".join(str(problem) for problem in problems))


def load(
    path: str | None,
    environ: Mapping[str, str],
    *,
    is_root: bool,
    hostname: str,
    uid: int = 0,
    overrides: Mapping[str, str | Iterable[str]] | None = None,
) -> Config:
    """The configuration of all sources together.

    `path`: the YAML file, or None for none. `overrides`: settings from the command line by dotted key (`rules_files`).
    `uid`: who the agent runs as, when not root. Raises ConfigErrors with every problem found, or ConfigError when the
    file can't be read.
    """
    findings = Findings()
    settings, sections = config_resolve.table_of(Config)
    in_file = _from_file(path, settings, sections, findings)
    talon = config_resolve.TALON_ENVIRONMENT | {key for key in in_file if key.startswith(TALON_SECTIONS)}
    raw = (
        config_load.from_flags(overrides or {}),
        config_load.from_environment(environ, _known(settings, sections), talon, findings),
        in_file,
    )
    sources = tuple(config_resolve.translate_talon(source, findings) for source in raw)
    resolved = config_resolve.resolve(settings, sections, sources, findings)
    config_resolve.warn_of_talon(raw, resolved.on["intake.http"], findings)
    _fill_defaults(resolved, environ, is_root=is_root, hostname=hostname, uid=uid)
    _check(resolved, findings)
    if findings.problems:
        raise ConfigErrors(findings.problems, findings.warnings)
    config: Config = _build(Config, "", resolved)
    return msgspec.structs.replace(
        config, origins=resolved.origins, warnings=tuple(findings.warnings), ignored=_ignored(raw)
    )


def _known(settings: Mapping[str, Setting], sections: Mapping[str, Section], *, talon: bool = False) -> Known:
    if not talon:
        return Known(frozenset(settings), frozenset(sections), frozenset())
    return Known(
        frozenset(settings) | config_resolve.TALON_SETTINGS,
        frozenset(sections) | config_resolve.TALON_SECTIONS,
        config_resolve.TALON_OPAQUE,
    )


def _from_file(
    path: str | None, settings: Mapping[str, Setting], sections: Mapping[str, Section], findings: Findings
) -> dict[str, Given]:
    if path is None:
        return {}
    return config_load.from_yaml(config_load.read_file(path), path, _known(settings, sections, talon=True), findings)


# ---------------------------------------------------------------- defaults that depend on the surroundings


_BESIDE = {"control.path": "control.sock", "intake.unix.path": "falco.sock", "heartbeat.path": "heartbeat"}
"""What lies in /run/stoop, or in `state_dir`."""


def _fill_defaults(resolved: Resolved, environ: Mapping[str, str], *, is_root: bool, hostname: str, uid: int) -> None:
    """Fill in what is empty. Sockets go into `state_dir` when that was set, or when /run is not ours to write."""
    values = resolved.values
    values["node_name"] = values["node_name"] or environ.get("NODE_NAME") or hostname
    sockets = values["state_dir"] if values["state_dir"] or not is_root else "/run/stoop"
    if not values["state_dir"]:
        values["state_dir"] = "/var/lib/stoop" if is_root else _home_state_dir(environ)
    sockets = sockets or values["state_dir"]
    for key, name in _BESIDE.items():
        if not values[key] and sockets:
            values[key] = str(PurePosixPath(sockets) / name)
    _fill_pods(values, environ)
    if not is_root and resolved.origins["intake.unix.allow_uids"] == "default":
        values["intake.unix.allow_uids"] = tuple(sorted({0, uid}))


def _fill_pods(values: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Whom to ask for the metadata of pods. Kubernetes tells every pod where its API is, in the environment."""
    source, host = values["pods.source"], environ.get("KUBERNETES_SERVICE_HOST", "")
    if source is PodsFrom.KUBELET:
        values["pods.server"] = values["pods.server"] or "https://127.0.0.1:10250"
        values["pods.server_name"] = values["pods.server_name"] or values["node_name"]
    elif source is PodsFrom.WATCH and not values["pods.server"] and host:
        host = f"[{host}]" if ":" in host else host
        values["pods.server"] = f"https://{host}:{environ.get('KUBERNETES_SERVICE_PORT') or 443}"


def _home_state_dir(environ: Mapping[str, str]) -> str:
    """`stoop` below $XDG_STATE_HOME (XDG base directories: a relative path counts as unset); "" for no home."""
    xdg, home = environ.get("XDG_STATE_HOME", ""), environ.get("HOME", "")
    if xdg.startswith("/"):
        return str(PurePosixPath(xdg) / "stoop")
    return str(PurePosixPath(home) / ".local/state/stoop") if home.startswith("/") else ""


# ---------------------------------------------------------------- what only makes sense together


def _check(resolved: Resolved, findings: Findings) -> None:
    values, on = resolved.values, resolved.on
    if not values["state_dir"]:
        findings.problem("there is no home directory to put it in", "state_dir", "set state_dir, or $XDG_STATE_HOME")
    for key in ("control.path", "intake.unix.path"):
        is_used = on.get(key.removesuffix(".path"), True)
        if is_used and len(values[key].encode(errors="surrogateescape")) > MAX_SOCKET_PATH:
            findings.problem(
                f"the path is longer than {MAX_SOCKET_PATH} bytes, which no unix socket's may be",
                _where(resolved, key),
                "set it, or state_dir, to something shorter",
            )
    if values["guard.act_deadline"] == 0:
        findings.problem("an act needs some time", _where(resolved, "guard.act_deadline"), "write 10s")
    if not 0 < values["evidence_deadline"] <= MAX_EVIDENCE_DEADLINE_NS:
        findings.problem("not above 0 and at most 5s", _where(resolved, "evidence_deadline"), "write 500ms")
    if on["intake.file"] and not values["intake.file.path"]:
        findings.problem("which file is to be followed?", "intake.file.path", "write the path of Falco's file_output")
    if on["intake.http"]:
        _check_http(resolved, findings)
    for key, what, hint in odd_stores(values):
        if key == ENDPOINT:
            findings.problem(what, _where(resolved, key), hint)
        else:
            findings.warn(f"{what}: {hint}", _where(resolved, key))
    if on["heartbeat"]:
        _check_heartbeat(resolved, findings)
    if values["pods.source"].is_asked:
        _check_pods(resolved, findings)
    if not (on["intake.unix"] or on["intake.http"] or on["intake.file"] or values["intake.stdin"]):
        findings.warn("every intake is off: no alert can reach this agent", "intake")


def _check_http(resolved: Resolved, findings: Findings) -> None:
    values = resolved.values
    if values["intake.http.insecure"]:
        at = f"{values['intake.http.address']} port {values['intake.http.port']}"
        findings.warn(
            f"insecure: whoever reaches {at} can have processes killed", _where(resolved, "intake.http.insecure")
        )
    elif not values["intake.http.token_file"]:
        findings.problem(
            "alerts over HTTP need a token",
            _where(resolved, "intake.http"),
            "write token_file: FILE, or insecure: true to take alerts from anyone",
        )


def _check_heartbeat(resolved: Resolved, findings: Findings) -> None:
    values = resolved.values
    if not MIN_INTERVAL_NS <= values["heartbeat.interval"] <= MAX_INTERVAL_NS:
        findings.problem("not between 1s and 1h", _where(resolved, "heartbeat.interval"), "write 30s")
    if not values["heartbeat.rule"].strip():
        findings.problem("which of Falco's rules answers?", _where(resolved, "heartbeat.rule"), "write its name")
    path = values["heartbeat.path"]
    plain = path == str(PurePosixPath(path)) and path.isprintable() and ".." not in PurePosixPath(path).parts
    if not path.startswith("/") or path == "/" or not plain:
        findings.problem(
            "Falco tells the path as it was opened, so it must be absolute and plain: no `..`, no slash too many",
            _where(resolved, "heartbeat.path"),
            "write /run/stoop/heartbeat",
        )


def _check_pods(resolved: Resolved, findings: Findings) -> None:
    values = resolved.values
    server = values["pods.server"]
    if not server:
        findings.problem(
            "who is to be watched? $KUBERNETES_SERVICE_HOST is not set", "pods.server", "write https://HOST:PORT"
        )
    elif not _SERVER.fullmatch(server):
        findings.problem(
            f"{server[:80]!r} is no https://HOST:PORT: a token is shown to nobody else",
            _where(resolved, "pods.server"),
            "write https://HOST:PORT, without a path",
        )
    for key in ("pods.token_file", "pods.ca_file"):
        if not values[key].startswith("/"):
            findings.problem("an absolute path belongs here", _where(resolved, key), "write where the file is")
    if not MIN_POLL_NS <= values["pods.interval"] <= MAX_POLL_NS:
        findings.problem("not between 1s and 5m", _where(resolved, "pods.interval"), "write 10s")


def _where(resolved: Resolved, key: str) -> str:
    origin = resolved.origins.get(key, "default")
    return key if origin == "default" else f"{origin}: {key}"


def _build(struct: type[msgspec.Struct], prefix: str, resolved: Resolved) -> Any:
    """The struct with every setting filled in; a section that is off is None."""
    given: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        key = prefix + field.encode_name
        if key in resolved.values:
            given[field.name] = resolved.values[key]
        elif key in resolved.sections:
            section = resolved.sections[key]
            given[field.name] = _build(section.type, key + ".", resolved) if resolved.on[key] else None
    return struct(**given)


# ---------------------------------------------------------------- for the guard


def policy_of(settings: Guard) -> guard.Policy:
    """The `guard` section as the guard takes it."""
    return guard.Policy(
        protected_namespaces=frozenset(settings.protected_namespaces),
        protected_executables=guard.executables(settings.protected_executables),
        max_alert_age_ns=settings.max_alert_age_ns,
        max_targets=settings.max_targets,
        max_targets_total=settings.max_targets_total,
        any_pid_namespace=settings.pid_namespace is PidNamespace.AGENT,
    )


# ---------------------------------------------------------------- for people


def printable(config: Config) -> list[tuple[str, str, str]]:
    """Every effective setting as (key, value, origin), for `stoop config print`. Secrets are masked.

    A section that is off is one row with `null`. What was accepted for Talon's sake comes last.
    """
    settings, sections = config_resolve.table_of(Config)
    plain = msgspec.to_builtins(config, enc_hook=masked)
    off = [key for key in sections if _at(plain, key) is None]
    rows: list[tuple[str, str, str]] = []
    for key, setting in settings.items():
        section = next((name for name in off if key.startswith(name + ".")), "")
        name, value = (section, "null") if section else (key, setting.show(_at(plain, key)))
        row = (name, value, config.origins.get(name, "default"))
        if rows[-1:] != [row]:
            rows.append(row)
    return rows + list(config.ignored)


def _at(plain: Any, key: str) -> Any:
    """What stands under a dotted key; None below what is off."""
    for part in key.split("."):
        plain = plain and plain[part]
    return plain


def _ignored(raw: config_resolve.Sources) -> tuple[tuple[str, str, str], ...]:
    """Talon's keys that were given and mean nothing here, with what may be secret in them masked."""
    rows: dict[str, tuple[str, str, str]] = {}
    for source in raw:
        for key, given in source.items():
            if key.split(".", 1)[0] in config_resolve.TALON_OPAQUE and any(given.texts or ()):
                value = _MASK if _SECRET.search(key) else ", ".join(given.texts or ())
                rows.setdefault(key, (key, value, f"{given.origin}, no meaning here"))
    return tuple(rows.values())


def reference() -> str:
    """docs/configuration.md, made from the settings themselves."""
    settings, sections = config_resolve.table_of(Config)
    parts = [_HEAD, _table("", settings)]
    for key, section in sections.items():
        rows = _table(key + ".", settings)
        if rows:
            parts.append(f"## `{key}`\n\n{section.type.__doc__}\n\n{rows}")
    parts.append(_TALON_HEAD + "".join(f"| `{key}` | {text} |\n" for key, text in config_resolve.TALON_KEYS.items()))
    return "\n".join(parts)


def _table(prefix: str, settings: Mapping[str, Setting]) -> str:
    """The settings directly below a prefix, or nothing."""
    rows = [
        f"| `{key}` | {setting.default_text or _default(setting)} | `{setting.env}` | {setting.description} |\n"
        for key, setting in settings.items()
        if key.startswith(prefix) and "." not in key.removeprefix(prefix)
    ]
    return "| key | default | environment | meaning |\n|---|---|---|---|\n" + "".join(rows) if rows else ""


def _default(setting: Setting) -> str:
    shown = setting.show(setting.default)
    return f"`{shown}`" if shown else "none"


_HEAD = f"""\
# Configuration

<!-- Made from stoop/config_model.py by `make generate`: edit the settings there. -->

One YAML file, named with `-c`; every key may be left out. A flag beats the environment, the environment beats the file,
and the file beats the default. `stoop config print` shows what counts and where each value came from.

- Keys count in any case. A key that does not exist is a warning with a suggestion, a value that can't be right is an
  error with file and line; all errors are told at once.
- `STOOP_CONFIG` names the file where `-c` does not; without either, {DEFAULT_PATH} is read if it is there.
- Durations are a number and a unit: `500ms`, `60s`, `5m`, `1h30m`, `30d`. Sizes: `64KiB`, `256MiB`, `1GiB`, or bytes.
- In the environment a list is written with commas, an empty variable counts as unset, and a section that may be null is
  turned off with `null` or on with `on` (`STOOP_METRICS=null`). A variable of a setting inside a section turns it on.
"""

_TALON_HEAD = """\
## Falco Talon's keys

Talon's configuration file is read as it is, and so are its environment variables (`RULES_FILES`, `LOG_FORMAT`,
`WATCH_RULES`, `PRINT_ALL_EVENTS`, `LISTEN_ADDRESS`, `LISTEN_PORT`, `DEDUPLICATION_TIME_WINDOW_SECONDS`). Where a key of
ours says the same, ours wins. A key without meaning here is accepted with a warning.

| Talon's key | here |
|---|---|
"""
