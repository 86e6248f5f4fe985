"""Which container a cgroup path means: paths as runtimes really make them, and such as an attacker would."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.node.container_id import Place, container_of, locate
from stoop.errors import TargetRefused

ID = "3f1c" * 16
OTHER = "a0b9" * 16
POD = "8c0e1c3e-5f1d-4a53-9b4f-0d6f6f0b1e77"
POD_ = POD.replace("-", "_")
OTHER_POD = "11111111-2222-3333-4444-555555555555"
STATIC = "d41d8cd98f00b204e9800998ecf8427e"
SLICE = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{POD_}.slice"

IN_A_POD = [
    f"/kubepods/burstable/pod{POD}/{ID}",
    f"/kubepods/besteffort/pod{POD}/{ID}",
    f"/kubepods/pod{POD}/{ID}",
    f"{SLICE}/cri-containerd-{ID}.scope",
    f"{SLICE}/crio-{ID}.scope",
    f"{SLICE}/crio-{ID}.scope/container",
    f"{SLICE}/docker-{ID}.scope",
    f"/kubepods.slice/kubepods-pod{POD_}.slice/cri-containerd-{ID}.scope",
    f"/kubepods/burstable/pod{POD}/crio-{ID}",
    # The systemd driver's names, made by a runtime with the cgroupfs driver.
    f"/system.slice/containerd.service/kubepods-burstable-pod{POD_}.slice:cri-containerd:{ID}",
    # kind: a node that is a container itself; and a kubelet with a root of its own.
    f"/docker/{OTHER}/kubelet/kubepods/burstable/pod{POD}/{ID}",
    f"/system.slice/docker-{OTHER}.scope/kubelet.slice/kubelet-kubepods.slice/"
    f"kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{POD_}.slice/cri-containerd-{ID}.scope",
    # kind with Podman, with CRI-O inside, and rootless; minikube's Docker driver; k3d.
    f"/machine.slice/libpod-{OTHER}.scope/container/kubelet.slice/kubelet-kubepods.slice/"
    f"kubelet-kubepods-pod{POD_}.slice/crio-{ID}.scope/container",
    f"/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{OTHER}.scope/kubelet/kubepods/pod{POD}/{ID}",
    f"/docker/{OTHER}/kubepods/besteffort/pod{POD}/{ID}",
    f"/system.slice/docker-{OTHER}.scope/kubepods/burstable/pod{POD}/{ID}",
    # Seen from inside such a node's cgroup namespace: its own id is hidden.
    f"/kubelet/kubepods/burstable/pod{POD}/{ID}",
    f"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{POD_}.slice/cri-containerd-{ID}.scope",
    f"/stoop-node1-4711/kubepods/burstable/pod{POD}/{ID}",
    # From a cgroup namespace beside it.
    f"/../../pod{POD}/{ID}",
    f"/../../../burstable/pod{POD}/{ID}",
    f"/../../kubepods-besteffort-pod{POD_}.slice/cri-containerd-{ID}.scope",
    f"/../../../kubepods-pod{POD_}.slice/crio-{ID}.scope/container",
    # What the container made below its own cgroup.
    f"/kubepods/burstable/pod{POD}/{ID}/docker/{OTHER}",
    f"/kubepods/burstable/pod{POD}/{ID}/{OTHER}",
    f"/kubepods/burstable/pod{POD}/{ID}/kubepods/pod{OTHER_POD}/{OTHER}",
    f"{SLICE}/cri-containerd-{ID}.scope/system.slice/docker-{OTHER}.scope",
    f"/kubepods/burstable/pod{POD}/{ID} (deleted)",
    f"/kubepods/burstable/pod{POD}/{ID}/init.scope",
    f"{SLICE}/cri-containerd-{ID}.scope/pod{OTHER_POD}/cri-containerd-{OTHER}.scope",
]

IN_NO_POD = [
    f"/docker/{ID}",
    f"/system.slice/docker-{ID}.scope",
    f"/system.slice/nerdctl-{ID}.scope",
    f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container",
    f"/machine.slice/libpod-{ID}.scope",
    f"/machine.slice/machine-libpod_pod_{OTHER}.slice/libpod-{ID}.scope",
    f"/libpod_parent/{OTHER}/libpod-{ID}",
    f"/libpod_parent/libpod-{ID}",
    f"/default/{ID}",
    f"/ecs/2e3f4b5c-0000-1111-2222-333344445555/{ID}",
    f"/../{ID}",
    f"/../cri-containerd-{ID}.scope",
    f"/docker/{ID}/docker/{OTHER}",
    f"/docker/{ID}/{OTHER}",
    f"/docker/buildkit/{ID}",
    f"/user.slice/user-1000.slice/user@1000.service/app.slice/docker-{ID}.scope",
    f"/user.slice/user-1000.slice/user@1000.service/libpod_parent/libpod-{ID}/container",
    f"/machine.slice/libpod-{ID}.scope/container/system.slice/docker-{OTHER}.scope",
]

IN_NONE = [
    "",
    "/",
    "/..",
    "/user.slice/user-0.slice/session-1.scope",
    "/system.slice/kubelet.service",
    "/system.slice/containerd.service",
    "/kubepods/burstable",
    f"/{ID[:63]}",
    f"/{ID}0",
    f"/{ID.upper()}",
    f"/docker-{ID}.mount",
    f"/system.slice/var-lib-docker-containers-{ID}-mounts-shm.mount",
    "/process_api/60c8c996790e5d6c1c64caa31e39bc9b",
    f"/machine.slice/libpod-conmon-{ID}.scope",
    f"/system.slice/crio-conmon-{ID}.scope",
    f"/kubepods.slice/kubepods-pod{POD}.slic/{ID[:60]}",
    f"/system.slice/docker-{ID}.scope.d",
    f"/{ID} ",
]


@pytest.mark.parametrize("path", IN_A_POD)
def test_in_a_pod(path: str) -> None:
    place = locate(path)
    assert (place.container_id, place.pod_uid) == (ID, POD)


@pytest.mark.parametrize("path", IN_NO_POD)
def test_in_no_pod(path: str) -> None:
    place = locate(path)
    assert (place.container_id, place.pod_uid) == (ID, "")


@pytest.mark.parametrize("path", IN_NONE)
def test_in_none(path: str) -> None:
    assert locate(path) == Place("", "", "")


def test_in_a_pod_but_in_no_container_of_it() -> None:
    assert locate(f"/kubepods/burstable/pod{POD}") == Place("", POD, "")
    # It watches the container from outside.
    assert locate(f"{SLICE}/crio-conmon-{ID}.scope") == Place("", POD, "")


def test_a_static_pod() -> None:
    assert locate(f"/kubepods/burstable/pod{STATIC}/{ID}")[:2] == (ID, STATIC)
    assert locate(f"/kubepods.slice/kubepods-pod{STATIC}.slice/crio-{ID}.scope")[:2] == (ID, STATIC)


def test_the_container_s_own_directory() -> None:
    own = f"/kubepods/burstable/pod{POD}/{ID}"
    assert locate(own).directory == own
    assert locate(f"{own}/a/{OTHER}").directory == own
    assert locate(f"/../{ID}/x").directory == f"/../{ID}"


def test_any_hierarchy_may_tell() -> None:
    lines = (("name=systemd", "/"), ("freezer", f"/docker/{ID}"), ("memory", "/system.slice/x.service"), ("", "/"))
    assert container_of(lines) == (ID, "")
    assert container_of((("", f"/docker/{ID}"), ("pids", f"/docker/{ID}/a"))) == (ID, "")
    assert container_of(()) == ("", "")


def test_two_containers_are_a_refusal() -> None:
    with pytest.raises(TargetRefused, match="two container ids"):
        container_of((("freezer", f"/docker/{ID}"), ("", f"/docker/{OTHER}")))
    with pytest.raises(TargetRefused, match="two pod uids"):
        container_of((("pids", f"/kubepods/pod{POD}/{ID}"), ("", f"/kubepods/pod{OTHER_POD}/{ID}")))


NAMES = st.one_of(
    st.sampled_from([OTHER, f"docker-{OTHER}.scope", f"pod{OTHER_POD}", "kubepods", "x", f"crio-conmon-{OTHER}", ".."]),
    st.text(st.characters(blacklist_characters="/\n\0"), min_size=1, max_size=80),
)


@pytest.mark.parametrize("own", [f"/kubepods/burstable/pod{POD}/{ID}", f"{SLICE}/cri-containerd-{ID}.scope"])
@given(below=st.lists(NAMES, max_size=6))
def test_a_container_of_a_pod_can_t_change_it_from_below(own: str, below: list[str]) -> None:
    assert locate("/".join((own, *below)))[:2] == (ID, POD)


@given(path=st.text(max_size=300))
def test_any_text_is_a_path(path: str) -> None:
    place = locate(path)
    assert bool(place.directory) == bool(place.container_id)
