"""A container image out of the node's own busybox: no registry, no Docker.

Format: OCI image layout (github.com/opencontainers/image-spec, image-layout.md), as one tar for `ctr images import`.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import subprocess
import tarfile
from pathlib import Path

IMAGE = "stoop.test/busybox:1"

_PT_INTERP = 3
_MEDIA = "application/vnd.oci.image"
_DIRECTORIES = ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var")


def write(out: Path, busybox: str) -> None:
    """Write the image IMAGE: one layer with busybox, a link for each of its applets, and the usual directories."""
    blobs: dict[str, bytes] = {}
    layer = _layer(Path(busybox).read_bytes(), _applets(busybox))
    layer_blob = _blob(blobs, layer, f"{_MEDIA}.layer.v1.tar")
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layer_blob["digest"]]},
    }
    config_blob = _blob(blobs, json.dumps(config).encode(), f"{_MEDIA}.config.v1+json")
    media_type = f"{_MEDIA}.manifest.v1+json"
    manifest = {"schemaVersion": 2, "mediaType": media_type, "config": config_blob, "layers": [layer_blob]}
    named = _blob(blobs, json.dumps(manifest).encode(), media_type)
    named["annotations"] = {"io.containerd.image.name": IMAGE}
    blobs["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    blobs["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [named]}).encode()
    with tarfile.open(out, "w") as tar:
        for name, content in blobs.items():
            _add(tar, name, content)


def is_static(program: str) -> bool:
    """Whether an ELF program needs no loader and so no libraries beside it (elf(5): no PT_INTERP)."""
    data = Path(program).read_bytes()
    if data[:5] != b"\x7fELF\x02":  # 64 bits
        return False
    offset, size, count = (*struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54))
    return all(struct.unpack_from("<I", data, offset + number * size)[0] != _PT_INTERP for number in range(count))


def _applets(busybox: str) -> list[str]:
    told = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout
    return [name for name in told.split() if name != "busybox"]


def _layer(busybox: bytes, applets: list[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in _DIRECTORIES:
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.DIRTYPE
            entry.mode = 0o1777 if name == "tmp" else 0o755
            tar.addfile(entry)
        _add(tar, "bin/busybox", busybox, 0o755)
        for name in applets:
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type = tarfile.SYMTYPE
            entry.linkname = "busybox"
            tar.addfile(entry)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    entry.mode = mode
    tar.addfile(entry, io.BytesIO(content))


def _blob(blobs: dict[str, bytes], content: bytes, media_type: str) -> dict[str, object]:
    digest = hashlib.sha256(content).hexdigest()
    blobs[f"blobs/sha256/{digest}"] = content
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}
