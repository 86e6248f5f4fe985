"""Every setting: its type, default and meaning. The reference (docs/configuration.md) is made from this file. Pure.

Import these names from `stoop.config`.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from stoop.config_meta import SECOND_NS
from stoop.config_meta import meta as _meta
from stoop.config_meta import without_unit as _without_unit
from stoop.config_outputs import Aws, Gcp, Minio
from stoop.config_pods import Pods
from stoop.evidence.limits import MAX_AGE_S, MAX_BYTES, MAX_COUNT
from stoop.spec import (
    Mode,
)

MAX_SOCKET_PATH = 107
"""Bytes: `sun_path` holds 108 with its final NUL (unix(7))."""

_MIB = 1024 * 1024

PROTECTED_EXECUTABLES = (
    # Without these the node leaves the cluster, or every container on it dies or can't be managed any more.
    *("kubelet", "containerd", "containerd-shim", "containerd-shim-*", "crio", "conmon", "conmonrs", "dockerd"),
    *("docker-proxy", "cri-dockerd", "runc", "crun", "youki", "k3s", "k3s-*", "rke2", "k0s", "kubelite"),
    # Without these the host itself goes down or can't be reached.
    *("systemd", "systemd-*", "(sd-pam)", "init", "openrc-run", "dbus-daemon", "dbus-broker", "dbus-broker-launch"),
    *("sshd", "sshd-session", "NetworkManager", "dhclient", "dhcpcd", "wickedd", "chronyd", "agetty", "login"),
    # Storage: their end hangs or corrupts the volumes of every pod.
    *("iscsid", "multipathd", "lvmetad", "dmeventd", "rpc.statd", "mount.*"),
    # The witnesses: what sees and records an attack.
    *("falco", "falcoctl", "stoop", "stoop-agent", "auditd", "rsyslogd", "tetragon"),
)


class LogFormat(enum.StrEnum):
    """How log lines look."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"


class PidNamespace(enum.StrEnum):
    """Whose numbers `proc.pid` holds."""

    AUTO = "auto"
    AGENT = "agent"


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """The socket by which `stoop status`, `mode` and `arm` speak to a running agent."""

    path: Annotated[
        str,
        _meta(
            "The unix socket of the commands. Only root and the agent's own user may use it.",
            default="/run/stoop/control.sock; control.sock in state_dir where that is set or the agent is not root",
        ),
    ] = ""


class UnixIntake(msgspec.Struct, frozen=True, kw_only=True):
    """Alerts over a unix socket: the safest and fastest way in. Null turns it off."""

    path: Annotated[
        str,
        _meta(
            f"The socket that Falco writes to, at most {MAX_SOCKET_PATH} bytes long (the kernel's limit).",
            default="/run/stoop/falco.sock; falco.sock in state_dir where that is set or the agent is not root",
        ),
    ] = ""
    mode: Annotated[
        int,
        _meta(
            "File mode of the socket, in octal. Whoever may write to it can have processes killed, so only its owner "
            "may by default; widen it only together with allow_uids.",
            "mode",
        ),
    ] = 0o600
    allow_uids: Annotated[
        tuple[int, ...],
        _meta(
            "User ids whose connections are taken, checked by SO_PEERCRED. Falco runs as root. The agent's "
            "own user may always send.",
            "uids",
            default="[0]; not as root, the agent's own as well",
        ),
    ] = (0,)


class HttpIntake(msgspec.Struct, frozen=True, kw_only=True):
    """Alerts over HTTP, as Talon takes them. Off (null) until asked for: a port is open to all that can reach it."""

    address: Annotated[
        str, _meta("IP address to listen on. Loopback, so that nobody else's machine can post.", "address")
    ] = "127.0.0.1"
    port: Annotated[
        int, _meta("TCP port, Talon's by default. 0 takes any free one, shown in `stoop status`.", "port")
    ] = 2803
    token_file: Annotated[
        str,
        _meta(
            "File with the token that senders must show (`Bearer`, or as the password of `Basic`). It is read again "
            "when it changes. Needed on loopback too, because every pod with hostNetwork reaches that."
        ),
    ] = ""
    insecure: Annotated[
        bool, _meta("`true` takes alerts without a token: whoever reaches the port can have processes killed.")
    ] = False


class FileIntake(msgspec.Struct, frozen=True, kw_only=True):
    """Alerts from the file that Falco's file_output writes. Off (null) by default."""

    path: Annotated[
        str, _meta("The file to follow, over rotation, truncation and restarts. It need not exist yet.")
    ] = ""


class Intake(msgspec.Struct, frozen=True, kw_only=True):
    """Where alerts come from. Several may be on at once: an alert that comes twice is acted on once."""

    unix: UnixIntake | None = UnixIntake()
    http: HttpIntake | None = None
    file: FileIntake | None = None
    stdin: Annotated[bool, _meta("`true` also reads alerts from standard input, one a line.")] = False


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """Where /metrics, /healthz and /readyz are served. Null turns all three off."""

    address: Annotated[
        str,
        _meta(
            "IP address to listen on. Loopback, because rule names and counts tell an attacker what is watched; set "
            "0.0.0.0 for Prometheus and the kubelet's probes from outside the host's network.",
            "address",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int, _meta("TCP port. 0 takes any free one, shown in `stoop status`. Below 1024 it can't be opened.", "port")
    ] = 2804


class Guard(msgspec.Struct, frozen=True, kw_only=True, rename=_without_unit):
    """What must never be touched, and how much may be at most."""

    protected_namespaces: Annotated[
        tuple[str, ...],
        _meta(
            "Kubernetes namespaces in which nothing is touched. The list replaces the default; `[]` protects none.",
            "strs",
        ),
    ] = ("kube-system",)
    protected_executables: Annotated[
        tuple[str, ...],
        _meta(
            "Executables that are never touched on the host itself: absolute paths, or names; `*` stands for any "
            "characters. They protect only processes in the host's mount namespace and in no container, so that "
            "nothing in a container is safe by its name. The list replaces the default; `[]` protects none.",
            "strs",
        ),
    ] = PROTECTED_EXECUTABLES
    max_alert_age_ns: Annotated[
        int,
        _meta(
            "Older alerts are recorded as `expired` and not acted on: a backlog of an hour ago names processes that "
            "have gone or have done their harm. `0` takes alerts of any age.",
            "duration",
        ),
    ] = 60 * SECOND_NS
    max_targets: Annotated[
        int,
        _meta(
            "Distinct containers or executables that one rule may act on within a minute. One more disarms the rule "
            "until `stoop arm`: a real attack seldom hits more on one node, a bad rule hits everything. `0`: no limit.",
            "count",
        ),
    ] = 5
    max_targets_total: Annotated[
        int, _meta("The same over all rules together: above it every rule is disarmed. `0` is no limit.", "count")
    ] = 20
    pid_namespace: Annotated[
        PidNamespace,
        _meta(
            "`auto` refuses acts on pids unless the agent sees the kernel's first pid namespace, which Falco numbers. "
            "`agent` says that Falco numbers pids as the agent sees them (a kind node, say)."
        ),
    ] = PidNamespace.AUTO
    reference_pid: Annotated[
        int,
        _meta(
            "The process whose mount and network namespaces are the host's own, which are never cut off. Another than "
            "`1` only where pid 1 as the agent sees it is not the node's (the node is a container, and the agent sees "
            "the machine's pids).",
            "pid",
        ),
    ] = 1
    act_deadline_ns: Annotated[
        int,
        _meta(
            "How long one act may take until it is recorded as failed; it is watched on. A process in state D ends "
            "late or never, and must not hold up the next act on its container.",
            "duration",
        ),
    ] = 10 * SECOND_NS
    dedup_window_ns: Annotated[
        int,
        _meta(
            "For how long the same rule, target and act count as a repeat (`skipped`). Talon's "
            "deduplication.time_window_seconds. `0` acts on every repeat.",
            "duration",
        ),
    ] = 5 * SECOND_NS


class Journal(msgspec.Struct, frozen=True, kw_only=True, rename=_without_unit):
    """How much of the past is kept."""

    max_age_ns: Annotated[int, _meta("Older records are removed. `0` keeps them until max_bytes.", "duration")] = (
        30 * 86400 * SECOND_NS
    )
    max_bytes: Annotated[
        int,
        _meta(
            "Size on disk above which the oldest records are removed: some 170,000 of them. `0` is no limit.", "size"
        ),
    ] = 256 * _MIB


class Evidence(msgspec.Struct, frozen=True, kw_only=True, rename=_without_unit):
    """What the store of evidence may hold, in `evidence` below `state_dir`: the oldest bundles go first."""

    max_bytes: Annotated[
        int, _meta("Size on disk of all bundles. The newest stays in any case. `0` is no limit.", "size")
    ] = MAX_BYTES
    max_count: Annotated[int, _meta("How many bundles. `0` is no limit.", "count")] = MAX_COUNT
    max_age_ns: Annotated[int, _meta("How long a bundle is kept. `0` keeps it until the other limits.", "duration")] = (
        int(MAX_AGE_S) * SECOND_NS
    )


HEARTBEAT_RULE = "Stoop heartbeat"
"""The rule that `stoop falco-config` prints."""

MIN_INTERVAL_NS = SECOND_NS
"""The shortest time between two heartbeats: the reflex has no timer below it."""

MAX_INTERVAL_NS = 3600 * SECOND_NS
"""The longest: a silence that is noticed after hours helps nobody."""


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, rename=_without_unit):
    """Proves that alerts reach the agent. Off (null) until Falco has the rule of `stoop falco-config --heartbeat`."""

    path: Annotated[
        str,
        _meta(
            "The directory in which the agent makes, opens and removes a file at each beat. Falco's rule names it. It "
            "is made with mode 0700 and belongs to the agent alone.",
            default="/run/stoop/heartbeat; heartbeat in state_dir where that is set or the agent is not root",
        ),
    ] = ""
    interval_ns: Annotated[
        int,
        _meta(
            "Time between two beats, a tenth more or less by chance. Two beats in a row without an answer are a "
            "silence. From 1s to 1h.",
            "duration",
        ),
    ] = 30 * SECOND_NS
    rule: Annotated[
        str,
        _meta("The name of Falco's rule. Its alerts about files in `path` reach no rule of yours and cause no act."),
    ] = HEARTBEAT_RULE


class Pacemaker(msgspec.Struct, frozen=True, kw_only=True):
    """Keeps Falco's reader awake on a quiet node, where it sleeps up to 30 ms between looks. Off (null) by default."""

    rate: Annotated[
        int,
        _meta(
            "Cheap system calls a second, from 10 to 4000, by a small process of its own. 1000 bring Falco's 12 to 16 "
            "ms down to 0.5. They cost CPU time, in Falco too, and processors that sleep less deeply: see "
            "[falco.md](falco.md#a-quiet-node).",
            "rate",
        ),
    ] = 1000
    adaptive: Annotated[
        bool, _meta("`true` rests while the node is so busy that Falco's reader does not sleep anyway.")
    ] = True


MAX_EVIDENCE_DEADLINE_NS = 5 * SECOND_NS
"""Longer, and a container that stands still meanwhile fails its probes."""


class OnStop(enum.StrEnum):
    """What becomes of what is held when the agent is stopped in order."""

    KEEP = "keep"
    UNDO = "undo"


class Config(msgspec.Struct, frozen=True, kw_only=True, rename=_without_unit):
    """Everything a person can set. Made by `load` only.

    `origins`: where each value came from, by key. `warnings`: lines for a person. `ignored`: what was accepted for
    Talon's sake: (key, masked value, origin).
    """

    mode: Annotated[
        Mode,
        _meta(
            "`enforce` acts; `observe` does everything but the act and records `would`; `off` takes alerts and does "
            "nothing. `stoop mode` changes it at once, over restarts, and then wins over this setting."
        ),
    ] = Mode.ENFORCE
    node_name: Annotated[
        str, _meta("The node's name, as Kubernetes knows it.", default="$NODE_NAME, else the host's name")
    ] = ""
    state_dir: Annotated[
        str,
        _meta(
            "Directory of the journal and of all that is kept over restarts. It is made with mode 0700.",
            default="/var/lib/stoop; not as root, $XDG_STATE_HOME/stoop (~/.local/state/stoop)",
        ),
    ] = ""
    rules_files: Annotated[
        tuple[str, ...], _meta("Rules files, merged in this order. `-r` replaces the list.", "strs")
    ] = ("/etc/stoop/rules.yaml",)
    on_stop: Annotated[
        OnStop,
        _meta(
            "What becomes of what is held (frozen, limited, cut off) when the agent is stopped: `keep`, the next agent "
            "gives it back when its time is over; `undo`, it is given back at once."
        ),
    ] = OnStop.KEEP
    evidence_first: Annotated[
        bool,
        _meta(
            "`true` takes a snapshot (`evidence:snapshot`) before each act on the node that destroys, the target "
            "standing still meanwhile. A rule's own `evidence_first` wins over this."
        ),
    ] = False
    evidence_deadline_ns: Annotated[
        int,
        _meta(
            "How long such an act waits for its snapshot, at most 5s. Then it is done in any case, and its record says "
            "that it did not wait longer.",
            "duration",
        ),
    ] = 500 * 10**6
    watch_rules: Annotated[bool, _meta("Whether a changed rules file is taken at once. `false`: only on SIGHUP.")] = (
        True
    )
    log_format: Annotated[
        LogFormat, _meta("`auto` is `text` on a terminal, else `json` (one object a line). Logs go to standard error.")
    ] = LogFormat.AUTO
    print_all_events: Annotated[
        bool, _meta("`true` logs every alert, not only those that match a rule. For trying out: it costs speed.")
    ] = False
    control: Control = Control()
    intake: Intake = Intake()
    metrics: Metrics | None = Metrics()
    guard: Guard = Guard()
    journal: Journal = Journal()
    evidence: Evidence = Evidence()
    heartbeat: Heartbeat | None = None
    pacemaker: Pacemaker | None = None
    aws: Aws = Aws()
    gcp: Gcp = Gcp()
    minio: Minio = Minio()
    pods: Pods = Pods()
    origins: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    ignored: tuple[tuple[str, str, str], ...] = ()
