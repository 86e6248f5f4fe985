"""Whom an alert is about: resolved once, held while any run still needs it.

The pidfd is opened first and the facts are read after it: what was read and what is signalled are the same process.
"""

from __future__ import annotations

import msgspec

from stoop.alert import Alert, text_form
from stoop.errors import TargetError, TargetGone, TargetRefused
from stoop.guard import (
    ANOTHER,
    NO_TIME,
    NO_TIME_CONTAINER,
    STARTED_AGAIN,
    TOO_CLOSE,
    Claims,
    Proof,
    after_falco_saw_it,
    claims,
    in_container,
    one_more_match,
    prove,
    target_pid,
)
from stoop.node import ContainerFacts, HeldProcess, HostFacts, NodeHost, ProcessFacts
from stoop.podmeta import is_metadata
from stoop.pods import POD_FIELDS, UNTOLD, PodFacts, Source
from stoop.skew import Skew
from stoop.spec import (
    TargetKind,
)

MAX_SHOWN_NUMBER = 2**53
"""Beyond it a reader of JSON may round (RFC 8259, section 6)."""

MAX_SHOWN_TEXT = 64
"""Characters kept of a claim that is no number."""


MAX_SHOWN_NAME = 253
"""Characters kept of a name that the alert claims: no Kubernetes name is longer (RFC 1123)."""

MAX_SHOWN_METADATA = 16
"""Labels and the like in one record: those that rules asked for. A rule seldom asks for more than two."""

_ALERT_NAMES = (("pod", "k8s.pod.name"), ("pod_uid", "k8s.pod.uid"), ("container", "container.name"))


class Seen(msgspec.Struct, frozen=True):
    """What is known when an alert is dealt with: of the node, of Falco's clock, and when the alert was read."""

    host_facts: HostFacts
    skew: Skew
    received_ns: int


class Subject:
    """The process and the container of one alert. Close it by as many `release` as there were `retain`."""

    def __init__(self, alert: Alert, host: NodeHost, seen: Seen) -> None:
        self.alert = alert
        self.said: Claims = claims(alert)
        self._host = host
        self._seen = seen
        self._process: HeldProcess | None = None
        self._container: ContainerFacts | None = None
        self._pod: PodFacts | None = None
        self._metadata: dict[str, str | None] = {}
        self._failure: TargetError | None = None
        self._container_failure: TargetError | None = None
        self._holders = 1
        self.proven_by = ""

    def retain(self) -> Subject:
        """One more run needs it."""
        self._holders += 1
        return self

    def release(self) -> None:
        """One run less needs it; the last one lets go of the process."""
        self._holders -= 1
        if not self._holders and self._process is not None:
            self._process.close()
            self._process = None

    def process(self) -> HeldProcess:
        """The process that the alert names, proven to be the one meant. Raises TargetGone or TargetRefused."""
        if self._failure is not None:
            raise self._failure
        if self._process is None:
            try:
                self._process = self._hold()
            except TargetError as error:
                self._failure = error
                raise
        return self._process

    @property
    def held(self) -> HeldProcess | None:
        """The process, where it is held."""
        return self._process

    @property
    def facts(self) -> ProcessFacts | None:
        """What the node says of the process, when it is held."""
        return self._process.facts if self._process is not None else None

    def container(self) -> ContainerFacts:
        """The container that the alert is about: that of its process, else the one it names. Raises like `process`."""
        if self._container_failure is not None:
            raise self._container_failure
        if self._container is None:
            try:
                self._container = self._find()
            except TargetError as error:
                self._container_failure = error
                raise
        return self._container

    def resolve(self, asked: frozenset[str]) -> dict[str, str | None]:
        """What the node can say of fields that the alert lacks: a value, None (it has none), or no key (unknown).

        `asked`: the fields that rules want to know. Of labels, annotations and owners these alone are told.
        """
        try:
            facts = self.process().facts
        except TargetError:
            return self._resolve_container(asked)
        if not in_container(self.said, facts, self._seen.host_facts):
            # As Falco says it of a process of the host, so that `container.id!=host` means what it says.
            none = dict.fromkeys((*POD_FIELDS, "container.name", *filter(is_metadata, asked)))
            return none | {"container.id": "host", "container.full_id": "host"}
        known: dict[str, str | None] = {}
        if facts.container_id:
            known |= {"container.id": facts.container_id[:12], "container.full_id": facts.container_id}
        return known | self._resolve_pod(asked)

    def _resolve_container(self, asked: frozenset[str]) -> dict[str, str | None]:
        """Of a container whose process that the alert names has ended."""
        try:
            found = self.container()
        except TargetError:
            return {}
        known = {"container.id": found.container_id[:12], "container.full_id": found.container_id}
        return known | self._resolve_pod(asked)

    def _resolve_pod(self, asked: frozenset[str]) -> dict[str, str | None]:
        pod = self.pod()
        if pod is None:
            return {}
        self._metadata = pod.metadata(asked)
        return pod.fields(asked)

    def pod(self) -> PodFacts | None:
        """What the node says of the pod of this subject's container; None where no container was found.

        A process whose cgroup is another container's than Falco saw has moved: then the pod is that of the container
        that Falco names, and what the cgroup says of it counts for nothing.
        """
        if self._pod is None:
            self._pod = self._find_pod()
        return self._pod

    def refusal(self, protected: frozenset[str]) -> str:
        """Empty, or why the pod forbids to act: the alert and the node disagree about who it is, or its namespace is
        among the protected ones by the node's word (the alert's own is the guard's to judge)."""
        pod = self.pod()
        if pod is None:
            return ""
        if pod.namespace.value in protected:
            source = pod.namespace.source
            by = "the API" if source is Source.API else f"the node ({source})"
            return f"namespace {pod.namespace.value} is protected (guard.protected_namespaces); so says {by}"
        return pod.contradicts(self.alert.fields)

    def _find_pod(self) -> PodFacts | None:
        found = self.facts if self._container is None else self._container
        if found is None or not self._is_claimed(found.container_id):
            found = self._claimed_container()
        return self._host.pod_of(found.container_id, found.pod_uid) if found and found.container_id else None

    def _is_claimed(self, container_id: str) -> bool:
        """Whether the alert names this container, or none at all."""
        claimed = self.said.container_id
        same = container_id.startswith(claimed) or claimed.startswith(container_id)
        return bool(container_id) and (claimed in ("", "host") or same)

    def _claimed_container(self) -> ContainerFacts | None:
        claimed = self.said.container_id
        try:
            return self._host.find_container(claimed) if claimed not in ("", "host") else None
        except TargetError:
            return None

    def identity(self, kind: TargetKind) -> str:
        """The stable name of the target of an act. Raises like `process` and `container`."""
        if kind is TargetKind.CONTAINER:
            return self.container().identity
        return self.process().facts.identity

    def describe(self) -> dict[str, object]:
        """What a record says of the target: facts where there are some, else what the alert claims."""
        if self._process is not None:
            facts = self._process.facts
            told: dict[str, object] = {"pid": facts.pid, "birth": facts.birth, "comm": facts.comm}
            told |= {"exe": facts.exe, "uid": facts.uid, "ppid": facts.ppid, "proven_by": self.proven_by}
            if facts.container_id:
                told["container_id"] = facts.container_id
                if not self._is_claimed(facts.container_id):  # it has moved, and its pod is that of the claimed one
                    told["claimed_container_id"] = self.said.container_id
        else:
            told = {"claimed_pid": _shown(self.alert.fields.get("proc.pid"))}
            told["claimed_container_id"] = self.said.container_id
        if self._container is not None:
            told["container_id"] = self._container.container_id
        return told | self._describe_pod()

    def _describe_pod(self) -> dict[str, object]:
        """Names of the pod and where each came from: from the node where somebody had to ask it, else the alert's."""
        node, facts = self._pod, self.facts
        names: dict[str, object] = {}
        sources = {}
        for key, field in _ALERT_NAMES:
            value = self.alert.fields.get(field)
            if isinstance(value, str) and value not in UNTOLD:
                names[key], sources[key] = value[:MAX_SHOWN_NAME], str(Source.ALERT)
        if self.said.namespace:
            names["namespace"] = self.said.namespace
            sources["namespace"] = str(Source.ALERT)
        if node is not None:
            names |= node.describe()
            sources |= node.sources()
            if shown := sorted((field, value) for field, value in self._metadata.items() if value is not None):
                names["metadata"] = {field: value[:MAX_SHOWN_NAME] for field, value in shown[:MAX_SHOWN_METADATA]}
                sources["metadata"] = str(Source.API)
            if node.stale_s:
                names["api_age_s"] = node.stale_s
        elif facts is not None and facts.pod_uid:
            names["pod_uid"], sources["pod_uid"] = facts.pod_uid, str(Source.CGROUP)
        return names | {"told_by": sources} if sources else names

    def _hold(self) -> HeldProcess:
        process = self._host.hold(target_pid(self.alert))
        refusal = self._prove(process.facts)
        if refusal:
            process.close()
            raise TargetRefused(refusal)
        return process

    def _prove(self, facts: ProcessFacts) -> str:
        """Empty when it is the process meant, else why it must be left alone. Asks for more only when it has to."""
        if not self.alert.time_ns:
            return NO_TIME
        if after_falco_saw_it(self.said, facts.start_ns, self._seen.skew):
            return ANOTHER.format(facts.pid)
        proof = self._start_proof(facts)
        if proof is Proof.TOO_CLOSE:
            self.proven_by = one_more_match(self.said, self._host.more_facts(facts))
            return "" if self.proven_by else TOO_CLOSE.format(facts.pid)
        self.proven_by = "start"
        return "" if proof is Proof.MEANT else ANOTHER.format(facts.pid)

    def _find(self) -> ContainerFacts:
        claimed = self.said.container_id
        try:
            own = self.process().facts.container_id
        except TargetGone:
            own = ""  # the process ended; its container may live on
        except TargetRefused:
            if "proc.pid" in self.alert.fields and self.alert.fields["proc.pid"] is not None:
                raise
            own = ""
        if own and claimed not in ("", "host") and not own.startswith(claimed) and not claimed.startswith(own):
            raise TargetRefused(f"the alert names container {claimed[:12]}, its process is in {own[:12]}")
        wanted = own or ("" if claimed == "host" else claimed)
        if not wanted:
            raise TargetRefused("the alert names no container, and its process is in none")
        container = self._host.find_container(wanted)
        if not own:
            self._prove_container(container)
        return container

    def _prove_container(self, container: ContainerFacts) -> None:
        """A container known by its id alone: what is in it now must have been there at the event.

        Docker starts a container again under the same id. Raises TargetGone then, and TargetRefused without a time.
        """
        if not self.alert.time_ns:
            raise TargetRefused(NO_TIME_CONTAINER)
        if not container.members:
            return
        init = self._host.hold(container.init_pid)
        try:
            if self._start_proof(init.facts) is Proof.ANOTHER:
                raise TargetGone(STARTED_AGAIN)
        finally:
            init.close()

    def _start_proof(self, facts: ProcessFacts) -> Proof:
        """What the start of a process that is held says. Asks for a finer one only when it has to."""
        seen, skew = self._seen, self._seen.skew
        # Whatever its stamp says, it happened before we heard of it: by Falco's clock, which may be ahead of ours.
        event_ns = min(self.alert.time_ns, seen.received_ns - min(skew.drift_ns, 0))
        proof = prove(facts.start_ns, facts.start_slack_ns, event_ns, skew)
        if proof is Proof.TOO_CLOSE:
            proof = prove(*self._host.precise_start(facts), event_ns, skew)
        return proof


def _shown(claim: object) -> object:
    """A claim as a record may hold it: what is no ordinary number becomes a short text (msgpack ends at 64 bits)."""
    if claim is None or (type(claim) is int and abs(claim) <= MAX_SHOWN_NUMBER):
        return claim
    return text_form(claim)[:MAX_SHOWN_TEXT]
