"""The `stoop` command run in this process, and a control server for it to speak with."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stoop.cli import main


@dataclass(frozen=True)
class Ran:
    """What one command gave."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Its standard output as JSON, one object a line."""
        return [json.loads(line) for line in self.out.splitlines()]


Stoop = Callable[..., Ran]


@pytest.fixture
def stoop(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Stoop:
    """Run `stoop` with these words. Nothing of the machine's own configuration counts."""
    monkeypatch.delenv("STOOP_CONFIG", raising=False)
    monkeypatch.setattr("stoop.config.DEFAULT_PATH", "/nonexistent/stoop.yaml")

    def run(*words: object) -> Ran:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ran(code, captured.out, captured.err)

    return run


@dataclass
class FakeAgent:
    """An agent's control socket: answers by what is asked, then (for follow) sends records."""

    directory: Path
    answers: dict[str, Any] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)

    @property
    def config(self) -> str:
        """A configuration whose control socket is this one."""
        path = self.directory / "stoop.yaml"
        path.write_text(f"state_dir: {self.directory}\n")
        return str(path)

    def serve(self, listener: socket.socket) -> None:
        """Serve connections until the listener is shut down."""
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rwb") as lines:
                for line in lines:
                    request = json.loads(line)
                    self.asked.append(request)
                    answer = self.answers.get(request["do"], {"ok": False, "error": "not asked for in this test"})
                    lines.write(json.dumps(answer).encode() + b"\n")
                    for record in self.records if request["do"] == "follow" else ():
                        lines.write(json.dumps({"record": record}).encode() + b"\n")
                    lines.flush()
                    if request["do"] == "follow":
                        break


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    """A control server on a real unix socket."""
    served = FakeAgent(tmp_path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "control.sock"))
    listener.listen(4)
    thread = threading.Thread(target=served.serve, args=(listener,))
    thread.start()
    yield served
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(timeout=10)
    assert not thread.is_alive()


HOSTILE = "\x1b[31mred\x1b[0m \u202egnp.exe [red]markup[/red] \x9b2J new\nline"
"""What an attacker can name a process: terminal escapes, a bidi override, rich markup, C1 CSI, a line break."""

RAW = ("\x1b", "\u202e", "\x9b", "new\nline")
"""Parts of HOSTILE that must never reach a terminal."""


@pytest.fixture
def hostile() -> str:
    """A name that wants to do things to a terminal."""
    return HOSTILE


def harmless(text: str) -> bool:
    """Whether the text shows HOSTILE escaped, its markup untouched."""
    return not any(part in text for part in RAW) and "[red]markup[/red]" in text and "\\x1b[31m" in text


@pytest.fixture
def is_harmless() -> Callable[[str], bool]:
    """Tells whether printed text shows the hostile name escaped."""
    return harmless


ALERT: dict[str, Any] = {
    "hostname": "node-1",
    "output": "10:11:12.123456789: Warning A shell was spawned in a container (user=root)",
    "output_fields": {
        "container.id": "d34690e67a3a",
        "evt.time": 1767348672123456789,
        "k8s.ns.name": "default",
        "k8s.pod.name": "web-1",
        "proc.exepath": "/bin/sh",
        "proc.name": "sh",
        "proc.pid": 4711,
        "proc.vpid": 11,
    },
    "priority": "Warning",
    "rule": "Terminal shell in container",
    "source": "syscall",
    "tags": ["container", "shell"],
    "time": "2026-01-02T10:11:12.123456789Z",
}


@pytest.fixture
def alert() -> Callable[..., dict[str, Any]]:
    """A Falco alert; keys with dots replace output fields (None stays null), the others top-level keys."""

    def make(second: int = 12, **changes: Any) -> dict[str, Any]:
        fields = changes.pop("fields", {})
        made = {**ALERT, "time": f"2026-01-02T10:11:{second:02d}.123456789Z", **changes}
        made["output_fields"] = {**ALERT["output_fields"], **fields}
        return made

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write a file into the test's directory: text, or values as NDJSON. Returns its path."""

    def to_file(name: str, *content: Any) -> str:
        path = tmp_path / name
        text = "".join(part if isinstance(part, str) else json.dumps(part) + "\n" for part in content)
        path.write_text(text)
        return str(path)

    return to_file
