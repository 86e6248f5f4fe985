"""A Kubernetes API without nodes: a real kube-apiserver with its etcd, on free ports of the loopback.

    with cluster() as c:
        namespace = c.namespace()
        pod = c.pod(namespace, "web-1", node="node-1", labels={"app": "web"})
        token = c.account(namespace, "agent", [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}])
        c.call("GET", "/api/v1/pods", token=token)

Each is new and empty; take one a run and a namespace a test. Nothing of it needs root. There is no kubelet and no
controller: a pod is what was written there, goes at once, and its status is what a test patches; a namespace that is
deleted stays; no account is made by itself. Every request is in `audit()`, which proves what a program really asked.

Its processes die with this one (PR_SET_PDEATHSIG, prctl(2)). Ready in some 3 s on 2 cores; 300 MiB.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.real.conftest import await_that

VERSION = "v1.34.4"
BUILD = "tests/real/apiserver/programs/build.sh"
PACKAGES = {"etcd": "etcd-server", "openssl": "openssl"}
"""What else is needed, and the Debian package that has it."""

READY_S = 90.0
"""3 s on an idle machine, 6 s with builds beside it; CI may be slower still."""

CALL_S = 20.0
END_S = 10.0

ADVERTISED = "198.51.100.1"
"""Of TEST-NET-2 (RFC 5737): the server refuses a loopback address here, and nobody uses it."""

ISSUER = "https://kubernetes.default.svc.cluster.local"
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None)


def programs() -> Path:
    """The folder of `build.sh`, or $STOOP_KUBE_BIN."""
    if named := os.environ.get("STOOP_KUBE_BIN"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stoop" / f"kube-{VERSION}"


def missing() -> str:
    """Empty, or what a cluster needs that this machine has not, for the reason of a skip."""
    if not os.access(programs() / "kube-apiserver", os.X_OK):
        return f"no kube-apiserver here ({BUILD} makes it, with Go)"
    absent = sorted(PACKAGES[name] for name in PACKAGES if shutil.which(name) is None)
    return f"no {', '.join(absent)} here (Debian: apt-get install {' '.join(absent)})" if absent else ""


class Refused(AssertionError):
    """The API server answers with an error."""

    def __init__(self, code: int, said: str) -> None:
        self.code = code
        super().__init__(f"{code}: {said}")


class Cluster:
    """The API. `token` is the administrator's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.token = secrets.token_hex(16)
        self.server = ""
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._flags: Sequence[str] = ()
        self._names = itertools.count(1)

    @property
    def ca(self) -> Path:
        """The certificate that signed the server's, and those of `certificate`."""
        return self.directory / "ca.crt"

    # ------------------------------------------------------------ asking

    def call(
        self, method: str, path: str, body: object = None, *, token: str = "", kind: str = "application/json"
    ) -> Any:
        """One request, with the administrator's token unless told; the JSON of the answer. Raises Refused."""
        request = urllib.request.Request(
            self.server + path,
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={"Authorization": f"Bearer {token or self.token}", "Content-Type": kind},
        )
        try:
            with urllib.request.urlopen(request, timeout=CALL_S, context=self.tls()) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(error.code, error.read().decode(errors="replace")[:500]) from None

    def tls(self) -> ssl.SSLContext:
        """What its certificates are checked against."""
        return ssl.create_default_context(cafile=str(self.ca))

    def audit(self) -> list[dict[str, Any]]:
        """Every request so far (audit.k8s.io/v1 Event, level Metadata, once it was answered)."""
        lines = (self.directory / "audit.log").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def asked_by(self, namespace: str, account: str) -> list[dict[str, Any]]:
        """What a service account asked so far. Who shows no good token has no name."""
        name = f"system:serviceaccount:{namespace}:{account}"
        return [event for event in self.audit() if event["user"].get("username") == name]

    # ------------------------------------------------------------ making

    def namespace(self) -> str:
        """A new one."""
        name = f"test-{next(self._names)}"
        self.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        return name

    def node(self, name: str) -> Any:
        """A Node object, which a token that is bound to a pod needs."""
        return self.call("POST", "/api/v1/nodes", {"metadata": {"name": name}})

    def pod(self, namespace: str, name: str, *, node: str, **metadata: Any) -> Any:
        """A Pod object on a node; `metadata` are labels, annotations, ownerReferences."""
        spec = {"nodeName": node, "containers": [{"name": "app", "image": "web:1", "env": [SECRET]}]}
        body = {"metadata": {"name": name, **metadata}, "spec": spec}
        return self.call("POST", f"/api/v1/namespaces/{namespace}/pods", body)

    def patch(self, namespace: str, name: str, metadata: Mapping[str, Any]) -> Any:
        """Change a pod's metadata (merge patch, RFC 7396)."""
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        return self.call("PATCH", path, {"metadata": metadata}, kind="application/merge-patch+json")

    def delete(self, namespace: str, name: str) -> None:
        """Delete a pod at once: no kubelet would confirm its end."""
        self.call("DELETE", f"/api/v1/namespaces/{namespace}/pods/{name}", {"gracePeriodSeconds": 0})

    def account(self, namespace: str, name: str, rules: Sequence[Mapping[str, Any]]) -> str:
        """A service account with these rights in the whole cluster; a token of it."""
        self.call("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": name}})
        role = f"{namespace}-{name}"
        api = "/apis/rbac.authorization.k8s.io/v1"
        self.call("POST", f"{api}/clusterroles", {"metadata": {"name": role}, "rules": list(rules)})
        binding = {
            "metadata": {"name": role},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        }
        self.call("POST", f"{api}/clusterrolebindings", binding)
        return self.account_token(namespace, name)

    def account_token(self, namespace: str, name: str) -> str:
        """One more token of an account."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        answer = self.call("POST", path, {"spec": {"expirationSeconds": 3600}})
        return str(answer["status"]["token"])

    def certificate(self, name: str, alternatives: str) -> tuple[Path, Path]:
        """(certificate, key) of a server that goes by these (`DNS:node-1`, `IP:127.0.0.1`), signed by `ca`."""
        self._openssl("req", *_EC, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (self.directory / f"{name}.ext").write_text(f"subjectAltName={alternatives}\n")
        signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext")
        self._openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.crt")
        return self.directory / f"{name}.crt", self.directory / f"{name}.key"

    # ------------------------------------------------------------ lifetime

    def begin(self) -> None:
        """Certificates, etcd, the API server; returns once it is ready."""
        authority = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
        self._openssl("req", "-x509", *_EC, "-days", "2", "-subj", "/CN=test-ca", *authority, *_CA_FILES)
        self.certificate("server", "IP:127.0.0.1,DNS:localhost,DNS:kubernetes.default.svc")
        self._openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "accounts.key")
        self._openssl("ec", "-in", "accounts.key", "-pubout", "-out", "accounts.pub")
        client, peer, secure = _free_ports(3)
        self.server = f"https://127.0.0.1:{secure}"
        self._start("etcd", "etcd", *_etcd(f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"))
        (self.directory / "tokens.csv").write_text(f'{self.token},admin,admin,"system:masters"\n')
        policy = {"kind": "Policy", "omitStages": ["RequestReceived"], "rules": [{"level": "Metadata"}]}
        (self.directory / "audit.json").write_text(json.dumps({"apiVersion": "audit.k8s.io/v1", **policy}))
        self._flags = _apiserver(f"http://127.0.0.1:{client}", secure)
        self._begin_server()

    def restart(self) -> None:
        """The API server ends and is started anew, on what etcd has; returns once it is ready.

        From the main thread: what it starts dies with the thread that starts it.
        """
        self._end("kube-apiserver")
        self._begin_server()

    def _begin_server(self) -> None:
        self._start("kube-apiserver", str(programs() / "kube-apiserver"), *self._flags)
        await_that(
            self._is_ready, f"the API server is ready (its log: {self.directory / 'kube-apiserver.log'})", READY_S
        )

    def end(self) -> None:
        """End all that was begun: the server first. Idempotent."""
        for name in reversed(tuple(self._running)):
            self._end(name)

    def _end(self, name: str) -> None:
        process = self._running.pop(name)
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _is_ready(self) -> bool:
        for name, process in self._running.items():
            log = self.directory / f"{name}.log"
            assert process.poll() is None, f"{name} ended: {log.read_text(errors='replace')[-2000:]}"
        try:
            request = urllib.request.Request(f"{self.server}/readyz", headers={"Authorization": f"Bearer {self.token}"})
            with urllib.request.urlopen(request, timeout=CALL_S, context=self.tls()):
                return True
        except OSError:  # not listening yet, or not ready yet
            return False

    def _start(self, name: str, *argv: str) -> None:
        parent = os.getpid()

        def die_with_parent() -> None:
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        with open(self.directory / f"{name}.log", "ab") as log:
            self._running[name] = subprocess.Popen(
                argv,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def _openssl(self, *argv: str) -> None:
        subprocess.run(("openssl", *argv), cwd=self.directory, check=True, capture_output=True, timeout=CALL_S)


SECRET = {"name": "PASSWORD", "value": "not-for-the-agent"}
"""In the specification of every pod: what only asks for metadata never sees it."""

_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_CA_FILES = ("-keyout", "ca.key", "-out", "ca.crt")


def _etcd(client: str, peer: str) -> Sequence[str]:
    urls = (f"--listen-client-urls={client}", f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}")
    peers = (f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}")
    return ("--data-dir=etcd", "--unsafe-no-fsync", *urls, *peers)


def _apiserver(etcd: str, port: int) -> Sequence[str]:
    return (
        f"--etcd-servers={etcd}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--advertise-address={ADVERTISED}",
        "--endpoint-reconciler-type=none",
        "--service-cluster-ip-range=10.96.0.0/24",
        "--authorization-mode=Node,RBAC",
        # Without the controller that makes `default` accounts every pod would be refused.
        "--disable-admission-plugins=ServiceAccount",
        "--token-auth-file=tokens.csv",
        "--tls-cert-file=server.crt",
        "--tls-private-key-file=server.key",
        f"--service-account-issuer={ISSUER}",
        "--service-account-key-file=accounts.pub",
        "--service-account-signing-key-file=accounts.key",
        "--audit-policy-file=audit.json",
        "--audit-log-path=audit.log",
        "--audit-log-mode=blocking",
    )


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago; all are held together, so that they differ."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [sock.getsockname()[1] for sock in held]
    for sock in held:
        sock.close()
    return ports


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """A cluster for the body of the `with`. Raises AssertionError where `missing` tells why there can be none."""
    reason = missing()
    assert not reason, reason
    with tempfile.TemporaryDirectory(prefix="stoop-test-api-") as directory:
        made = Cluster(Path(directory))
        try:
            made.begin()
            yield made
        finally:
            made.end()
