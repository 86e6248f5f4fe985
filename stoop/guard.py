"""Facts + limits + memory + now → go or refuse.

Pure. It gets what the node says (`ProcessFacts`, `HostFacts`), never only what the alert says: a name, an executable or
a cgroup that an attacker can choose is evidence, not a reason to let him go.
"""

from __future__ import annotations

import enum
import fnmatch
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping

import msgspec

from stoop.alert import Alert
from stoop.errors import TargetRefused
from stoop.node import ContainerFacts, HostFacts, ProcessFacts
from stoop.skew import CLOCK_NOISE_NS, FALCO_POLL_NS, MAX_DRIFT_NS, Skew

PID_LIMIT = 4_194_304
"""The largest pid that Linux can give on 64-bit machines (PID_MAX_LIMIT, proc(5) pid_max)."""

MINUTE_NS = 60_000_000_000

MAX_LIMIT_KEYS = 10_000
"""Rules, and targets of each, kept for the limits; the oldest goes first. A limit above it can't be tripped."""

NO_TIME = "the alert carries no time, so its process can't be told from one that got the same pid later"
NO_TIME_CONTAINER = "the alert carries no time, so it can't be told whether it is too old, or of before a restart"
STARTED_AGAIN = "the container was started again after the event: what the alert is about has ended"
ANOTHER = "pid {} was given anew: its process began after the event"
TOO_CLOSE = "the process with pid {} began so close to the event that it may be another one"

ALL_RULES = "*"
"""What is disarmed when the limit over all rules trips."""


class Claims:
    """What the alert says of whom it is about. 0 or "" where it says nothing.

    What each act asks is read at once, the numbers only when somebody asks: they seldom decide.
    """

    __slots__ = ("_fields", "container_id", "namespace")

    def __init__(self, fields: Mapping[str, object]) -> None:
        self._fields = fields
        self.container_id = _text(fields, "container.full_id", "container.id")
        self.namespace = _text(fields, "k8s.ns.name", "ka.target.namespace")

    @property
    def pid(self) -> int:
        """`proc.pid`, unjudged: `target_pid` judges it."""
        return _number(self._fields, "proc.pid")

    @property
    def vpid(self) -> int:
        """The pid in its own pid namespace."""
        return _number(self._fields, "proc.vpid")

    @property
    def ppid(self) -> int:
        """Its parent."""
        return _number(self._fields, "proc.ppid")

    @property
    def pid_ts(self) -> int:
        """When Falco saw it begin, in nanoseconds."""
        return _number(self._fields, "proc.pid.ts")

    @property
    def exe_ino(self) -> int:
        """The inode of its executable."""
        return _number(self._fields, "proc.exe_ino")


def _number(fields: Mapping[str, object], name: str) -> int:
    value = fields.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _text(fields: Mapping[str, object], *names: str) -> str:
    for name in names:
        value = fields.get(name)
        if isinstance(value, str) and value not in ("", "<NA>"):
            return value
    return ""


def claims(alert: Alert) -> Claims:
    """What the alert says, without judging it."""
    return Claims(alert.fields)


def target_pid(alert: Alert) -> int:
    """The pid that the alert names. Raises TargetRefused for anything that must not reach kill(2).

    `kill(-1)` and `kill(0)` hit many processes, 1 is init, and Falco really sends -1 (reference/falco.md).
    """
    value = alert.fields.get("proc.pid")
    if value is None:
        raise TargetRefused("the alert has no proc.pid (add it in Falco: `stoop falco-config`)")
    if isinstance(value, bool) or not isinstance(value, int):
        raise TargetRefused(f"proc.pid is not a whole number but {type(value).__name__}")
    if value <= 1:
        raise TargetRefused(f"proc.pid is {value}: only pids above 1 are targets")
    if value >= PID_LIMIT:
        raise TargetRefused(f"proc.pid is {value}: no pid is that large")
    return value


class Proof(enum.Enum):
    """What the start of a process says: the one meant, another one, or too close to the event to tell."""

    MEANT = enum.auto()
    ANOTHER = enum.auto()
    TOO_CLOSE = enum.auto()


def prove(start_ns: int, slack_ns: int, event_ns: int, skew: Skew) -> Proof:
    """Whether the process that now has the pid, begun within `slack_ns` after `start_ns`, is the event's.

    A pid can't be given anew while its holder lives, so a holder that began before the event is the one meant. What
    began after it is not. In between (10 ms ticks, clocks that differ) a finer start, then one more match is asked.
    """
    earliest, latest = skew.bounds(event_ns)
    if start_ns + slack_ns <= earliest or (slack_ns <= CLOCK_NOISE_NS and start_ns <= earliest):
        return Proof.MEANT
    return Proof.ANOTHER if start_ns > latest else Proof.TOO_CLOSE


def after_falco_saw_it(said: Claims, start_ns: int, skew: Skew) -> bool:
    """Whether it began clearly after Falco saw the event's thread begin (`proc.pid.ts`): then it is another one.

    One-sided: of processes older than itself Falco gives a later time, and of a second thread that thread's.
    """
    seen_ns = said.pid_ts
    return bool(seen_ns) and start_ns > seen_ns + skew.drift_ns + FALCO_POLL_NS


def one_more_match(said: Claims, facts: ProcessFacts) -> str:
    """The name of a claim that the facts confirm, "" when there is none. On the host a vpid is the pid: no evidence."""
    if said.vpid and said.vpid != said.pid and facts.ns_pids and said.vpid == facts.ns_pids[-1]:
        return "proc.vpid"
    if said.ppid and said.ppid == facts.ppid:
        return "proc.ppid"
    if said.exe_ino and said.exe_ino == facts.exe_ino:
        return "proc.exe_ino"
    if said.container_id not in ("", "host") and facts.container_id.startswith(said.container_id):
        return "container.id"
    return ""


def in_container(said: Claims, facts: ProcessFacts, host: HostFacts) -> bool:
    """Whether a process belongs to a container: by its cgroup, or (it moved out) by Falco's word and its namespaces."""
    if facts.container_id:
        return True
    nested = facts.pid_ns != host.pid_ns and facts.mnt_ns != host.mnt_ns
    return nested and said.container_id not in ("", "host")


def executables(patterns: Iterable[str]) -> re.Pattern[str]:
    """One pattern of names, paths and shell wildcards (`containerd-shim-*`), to be matched whole."""
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns) or r"(?!)")


class Policy(msgspec.Struct, frozen=True):
    """The `guard` part of the configuration. 0 is no limit, as there."""

    protected_namespaces: frozenset[str]
    protected_executables: re.Pattern[str]
    max_alert_age_ns: int
    max_targets: int
    max_targets_total: int
    any_pid_namespace: bool  # `pid_namespace: agent`: alerts number pids as the agent sees them


def too_old(event_ns: int, now_ns: int, policy: Policy) -> str:
    """Empty, or why this alert comes too late to act on, or from a time that has not come yet.

    `event_ns`: by our clock (`Skew.ours`); 0 for an alert without a time.
    """
    age = now_ns - event_ns
    if not event_ns:
        return ""
    if age < -MAX_DRIFT_NS:
        return f"the alert is stamped {-age / 1e9:.1f} s ahead of this node's clock"
    if not policy.max_alert_age_ns or age <= policy.max_alert_age_ns:
        return ""
    return f"the alert is {age / 1e9:.1f} s old (guard.max_alert_age is {policy.max_alert_age_ns / 1e9:g} s)"


def protects(facts: ProcessFacts, host: HostFacts, policy: Policy) -> str:
    """Empty, or why this process must never be touched, whoever asks."""
    if facts.pid <= 1:
        return "it is the init process"
    if facts.kernel_thread:
        return "it is a kernel thread"
    if facts.pid in host.own_pids:
        return "it is the agent itself or a parent of it"
    if facts.pid in host.falco_pids:
        return "it is Falco, or what brings its alerts"
    if host.falco_cgroups and any(path in host.falco_cgroups for _, path in facts.cgroups):
        return "it is in Falco's cgroup"
    if not facts.container_id and facts.mnt_ns == host.mnt_ns:
        path = facts.exe.removesuffix(" (deleted)")
        # A pattern with a slash is a path: a comm or a file's name has none to offer.
        for mark in (path, path.rpartition("/")[2], facts.comm.replace("/", "_")):
            if policy.protected_executables.fullmatch(mark):
                return f"{mark} is a protected executable of the host"
    return ""


def other_pids(host: HostFacts, policy: Policy) -> str:
    """Empty, or that a pid in an alert means another process here, or none."""
    if host.pid_ns_is_root or policy.any_pid_namespace:
        return ""
    return (
        "the agent does not see the pids that Falco numbers: it runs in a pid namespace of its own "
        "(run it with hostPID, or set guard.pid_namespace: agent if Falco shares it)"
    )


def judge(said: Claims, facts: ProcessFacts, host: HostFacts, policy: Policy, *, allow_host: bool) -> str:
    """Empty, or why the act on this process is refused."""
    reason = other_pids(host, policy) or protects(facts, host, policy)
    if reason:
        return reason
    if not in_container(said, facts, host) and not allow_host:
        return "the process is in no container (the rule needs `allow_host: true`)"
    return protected_namespace(said, policy)


def protected_namespace(said: Claims, policy: Policy) -> str:
    """Empty, or that the alert is about a protected namespace."""
    if said.namespace in policy.protected_namespaces:
        return f"namespace {said.namespace} is protected (guard.protected_namespaces)"
    return ""


def unproven_fields(fields: frozenset[str]) -> str:
    """Empty, or the refusal for a rule that exempts values of a field which nobody could tell."""
    if not fields:
        return ""
    names = ", ".join(sorted(fields))
    return f"{names} can't be resolved here, and the rule exempts a value of it"


class Limits:
    """How many distinct targets a rule, and all rules together, may touch in a minute. Above it: disarmed.

    A disarmed rule stays so, over restarts, until a person arms it: the caller keeps `disarmed` in a file.
    """

    def __init__(self, policy: Policy, disarmed: Mapping[str, str]) -> None:
        self._policy = policy
        self._touched: OrderedDict[str, OrderedDict[str, int]] = OrderedDict()  # by rule and target: when, oldest first
        self.disarmed: dict[str, str] = dict(disarmed)

    def is_disarmed(self, rule: str) -> str:
        """Empty, or why this rule only says what it would do."""
        return self.disarmed.get(rule) or self.disarmed.get(ALL_RULES, "")

    def admit(self, rule: str, target: str, mono_ns: int, *, disarm: bool = True) -> str:
        """Count a target about to be touched; "" or the reason why the rule is disarmed by it."""
        limits = ((rule, self._policy.max_targets), (ALL_RULES, self._policy.max_targets_total))
        counted = [(scope, most, self._known(scope, mono_ns)) for scope, most in limits if most]
        for scope, most, known in counted:
            if target in known or len(known) < most:
                continue
            whose = "this rule" if scope == rule else "all rules together"
            reason = f"{whose} would touch more than {most} distinct targets in a minute"
            if disarm:
                self.disarmed[scope] = reason
            return reason
        for _, _, known in counted:
            known[target] = mono_ns
            known.move_to_end(target)
        return ""

    def arm(self, rule: str) -> bool:
        """Arm a rule again (`*`: the limit over all rules); False when it was not disarmed."""
        if rule == ALL_RULES:
            self._touched.clear()
        for scope in (rule, ALL_RULES):
            self._touched.pop(scope, None)
        return self.disarmed.pop(rule, None) is not None

    def _known(self, scope: str, mono_ns: int) -> OrderedDict[str, int]:
        """What a rule touched within the last minute."""
        known = self._touched.setdefault(scope, OrderedDict())
        self._touched.move_to_end(scope)
        if len(self._touched) > MAX_LIMIT_KEYS:
            self._touched.popitem(last=False)
        while known and (mono_ns - next(iter(known.values())) > MINUTE_NS or len(known) >= MAX_LIMIT_KEYS):
            known.popitem(last=False)
        return known


def target_key(facts: ProcessFacts) -> str:
    """What counts as one target for the limits: the container, else the executable's path on the host."""
    return facts.container_id or facts.exe or facts.comm


def protects_container(container: ContainerFacts, host: HostFacts) -> str:
    """Empty, or why this container must never be touched as a whole, whoever asks."""
    own = host.own_pids.intersection(container.members)
    if own:
        return "it is the agent's own container"
    directories = (container.cgroup_v2, container.cgroup_freezer)
    is_falcos = any(directory.endswith(path) for directory in directories for path in host.falco_cgroups)
    if is_falcos or host.falco_pids.intersection(container.members):
        return "it is Falco's container"
    return ""


def judge_container(said: Claims, container: ContainerFacts, host: HostFacts, policy: Policy) -> str:
    """Empty, or why an act on this whole container is refused."""
    if not container.members:
        return "the container has no process left"
    return protects_container(container, host) or protected_namespace(said, policy)


class Guard(msgspec.Struct, frozen=True):
    """What one responder's guard consists of."""

    policy: Policy
    limits: Limits
    skew: Skew
