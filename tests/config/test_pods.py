"""The settings of what tells pods' metadata: off until asked for, and each wrong value with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoop import config
from stoop.config import ConfigErrors, Pods, PodsFrom

IN_A_POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "6443", "NODE_NAME": "node-1"}
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


def load(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> Pods:
    path = tmp_path / "stoop.yaml"
    path.write_text(text)
    return config.load(str(path), environ or {}, is_root=True, hostname="host-1").pods


def test_nothing_is_asked_by_default(tmp_path: Path) -> None:
    pods = load(tmp_path, "", IN_A_POD)
    assert (pods.source, pods.source.is_asked, pods.server) == (PodsFrom.NONE, False, "")


@pytest.mark.parametrize(
    ("text", "environ", "server", "name"),
    [
        ("pods: {source: watch}", IN_A_POD, "https://10.96.0.1:6443", ""),
        ("pods: {source: watch}", {"KUBERNETES_SERVICE_HOST": "fd00::1"}, "https://[fd00::1]:443", ""),
        ("pods: {source: watch, server: 'https://api:7'}", IN_A_POD, "https://api:7", ""),
        ("pods: {source: kubelet}", IN_A_POD, "https://127.0.0.1:10250", "node-1"),
        ("pods: {source: kubelet, server_name: x}", {}, "https://127.0.0.1:10250", "x"),
        ("pods: {source: KUBELET, server: 'https://[::1]:10250'}", {}, "https://[::1]:10250", "host-1"),
    ],
)
def test_whom_to_ask(tmp_path: Path, text: str, environ: dict[str, str], server: str, name: str) -> None:
    pods = load(tmp_path, text, environ)
    assert (pods.server, pods.server_name) == (server, name)
    assert (pods.token_file, pods.ca_file) == (f"{ACCOUNT}/token", f"{ACCOUNT}/ca.crt")
    assert pods.interval_ns == 10 * 10**9


def test_by_the_environment(tmp_path: Path) -> None:
    environ = IN_A_POD | {"STOOP_PODS_SOURCE": "watch", "STOOP_PODS_TOKEN_FILE": "/t"}
    pods = load(tmp_path, "", environ)
    assert (pods.source, pods.token_file) == (PodsFrom.WATCH, "/t")


WATCH = "pods: {source: watch, server: 'https://a'"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "pods: {source: api}",
            "stoop.yaml:1: pods.source: 'api' is not known: write one of none, falco, watch, kubelet",
        ),
        ("pods: {source: [watch]}", "stoop.yaml:1: pods.source: one value belongs here, not a list"),
        ("pods: {source: watch}", "pods.server: who is to be watched? $KUBERNETES_SERVICE_HOST is not set"),
        *(
            (f"pods: {{source: {source}, server: '{server}'}}", "stoop.yaml:1: pods.server: ")
            for source in ("watch", "kubelet")
            for server in ("http://a", "https://", "https://a/x", "https://u@a", "https://a:b", "a:443", "https://a b")
        ),
        (f"{WATCH}, token_file: token}}", "stoop.yaml:1: pods.token_file: an absolute path belongs here"),
        (f"{WATCH}, token_file: ''}}", "stoop.yaml:1: pods.token_file: an absolute path belongs here"),
        (f"{WATCH}, ca_file: ca.crt}}", "stoop.yaml:1: pods.ca_file: an absolute path belongs here"),
        (f"{WATCH}, interval: 0}}", "stoop.yaml:1: pods.interval: not between 1s and 5m"),
        (f"{WATCH}, interval: 999ms}}", "stoop.yaml:1: pods.interval: not between 1s and 5m"),
        (f"{WATCH}, interval: 301s}}", "stoop.yaml:1: pods.interval: not between 1s and 5m"),
        (f"{WATCH}, interval: soon}}", "stoop.yaml:1: pods.interval: 'soon' is not a duration"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(tmp_path, text)
    assert says in str(caught.value)
