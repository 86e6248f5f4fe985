"""Each right that kubernetes:download declares is needed, and no other one; kubernetes:log needs none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stoop.actions.kubernetes import download, log
from tests.real.conftest import PATIENCE_S
from tests.work.conftest import ROOT
from tests.work.test_download import Contained, contained

__all__ = ["contained"]

pytestmark = pytest.mark.root

NOBODY = 65534

# Does both, and tells how that went. Its arguments: pid, file, store, the log directory of pods.
READ = """
import json, sys, trio
from agent.capture import whom
from agent.jobs import DownloadJob, LogJob
from agent.node.host import LinuxHost
from agent.workers import Workers
from stoop.errors import TargetError
from stoop.evidence.limits import Limits
from stoop.evidence.manifest import Origin
pid, path, directory, logs = int(sys.argv[1]), sys.argv[2].encode(), sys.argv[3], sys.argv[4]
common = dict(key="a", origin=Origin(), store=directory, limits=Limits(min_free_bytes=0))
async def main():
    jobs = {"log": LogJob(**common, directory=logs, pod="shop_web_uid")}
    told = {}
    try:
        with LinuxHost().hold(pid) as held:
            jobs["file"] = DownloadJob(**common, processes=(whom(held.facts),), path=path, limit=2**20)
    except TargetError as error:
        told["file"] = error.reason
    workers = Workers()
    async with trio.open_nursery() as nursery:
        await nursery.start(workers.serve)
        for name, job in jobs.items():
            told[name] = (await workers.run(job, 20.0)).reason
        nursery.cancel_scope.cancel()
    print(json.dumps(told))
trio.run(main)
"""


def tried(contained: Contained, directory: Path, *rights: str) -> dict[str, str]:
    """Why each of the two did not work with these capabilities, "" where it did."""
    target = contained()
    private = Path(f"/proc/{target.pid}/root/etc/private")
    private.write_text("of another user\n")
    os.chown(private, NOBODY, NOBODY)
    private.chmod(0o600)
    logs = directory / "pods"
    (logs / "shop_web_uid" / "app").mkdir(parents=True)
    (logs / "shop_web_uid" / "app" / "0.log").write_text("2026-11-24T13:00:00.1Z stdout F said\n")
    (logs / "shop_web_uid" / "app" / "0.log").chmod(0o640)
    names = "".join(f",+{right.removeprefix('CAP_').lower()}" for right in rights)
    setpriv = ("setpriv", f"--bounding-set=-all{names}", "--inh-caps=-all", "--no-new-privs")
    arguments = (str(target.pid), "/etc/private", str(directory / "store"), str(logs))
    ran = subprocess.run(
        [*setpriv, sys.executable, "-c", READ, *arguments],
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told: dict[str, str] = json.loads(ran.stdout)
    return told


def test_with_what_is_declared_both_are_read(contained: Contained, tmp_path: Path) -> None:
    assert tried(contained, tmp_path, *download.SPEC.node_rights) == {"log": "", "file": ""}


@pytest.mark.parametrize("without", download.SPEC.node_rights)
def test_without_one_of_them_the_file_is_not(contained: Contained, tmp_path: Path, without: str) -> None:
    told = tried(contained, tmp_path, *(right for right in download.SPEC.node_rights if right != without))
    assert "Permission denied" in told["file"]
    assert told["log"] == ""


def test_the_log_needs_none(contained: Contained, tmp_path: Path) -> None:
    assert log.SPEC.node_rights == ()
    assert tried(contained, tmp_path)["log"] == ""
