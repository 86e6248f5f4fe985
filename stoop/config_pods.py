"""The settings of what tells labels, annotations and owners of pods. Pure."""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from stoop.config_meta import SECOND_NS, meta, without_unit


class PodsFrom(enum.StrEnum):
    """What tells labels, annotations and owners of pods."""

    NONE = "none"
    FALCO = "falco"
    WATCH = "watch"
    KUBELET = "kubelet"

    @property
    def is_asked(self) -> bool:
        """Whether the helper asks somebody for them."""
        return self in (PodsFrom.WATCH, PodsFrom.KUBELET)


MIN_POLL_NS = SECOND_NS
"""Asked more often, a kubelet of 250 pods would write some MB of JSON a second for us."""

MAX_POLL_NS = 300 * SECOND_NS
"""Asked less often, most pods of a job would have ended before they are known."""

_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


class Pods(msgspec.Struct, frozen=True, kw_only=True, rename=without_unit):
    """What tells labels, annotations and owners of pods. See [security.md](security.md#names-from-the-api)."""

    source: Annotated[
        PodsFrom,
        meta(
            "`none`: nothing, and rules that ask for them fail their check. `falco`: Falco's alerts alone. `watch`: "
            "the helper watches the metadata of this node's pods in the API (right: list and watch pods). `kubelet`: "
            "it asks the kubelet for its pods (right: nodes/pods from Kubernetes 1.33 on; before, nodes/proxy, which "
            "also runs commands in every pod). The last two need `pip install 'stoop[pods]'`.",
        ),
    ] = PodsFrom.NONE
    server: Annotated[
        str,
        meta(
            "Whom to ask: `https://HOST:PORT`.",
            default="watch: $KUBERNETES_SERVICE_HOST and _PORT; kubelet: https://127.0.0.1:10250",
        ),
    ] = ""
    server_name: Annotated[
        str,
        meta(
            "The name that the server's certificate must bear, where that is not HOST. A kubelet's own bears the "
            "node's name.",
            default="watch: HOST; kubelet: node_name",
        ),
    ] = ""
    token_file: Annotated[
        str, meta("File with the token to show. The reflex reads it anew for each connection: tokens are renewed.")
    ] = f"{_ACCOUNT}/token"
    ca_file: Annotated[
        str,
        meta(
            "File with the certificates, in PEM, that the server's must be signed by. It is always checked. A kubelet "
            "that signs its own keeps it in /var/lib/kubelet/pki/kubelet.crt."
        ),
    ] = f"{_ACCOUNT}/ca.crt"
    interval_ns: Annotated[
        int,
        meta(
            "Time between two questions to the kubelet, a fifth more or less by chance. An alert about a pod that is "
            "not known yet causes one at once, at most each second. From 1s to 5m.",
            "duration",
        ),
    ] = 10 * SECOND_NS
