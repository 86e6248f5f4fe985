"""What to write into Falco's configuration, for each way to bring its alerts here. Pure text.

Sources: Falco's falco.yaml (http_output, program_output, file_output, append_output ≥ 0.39), libcurl's
CURLOPT_PROXY (a SOCKS5 proxy may be a unix socket since 7.84), curl(1) (-T . uploads standard input as it comes).
"""

from __future__ import annotations

import enum
import shlex
from urllib.parse import quote

APPENDED_FIELDS = (
    "proc.pid",
    "thread.tid",
    "proc.vpid",
    "proc.ppid",
    "proc.pid.ts",
    "proc.exe_ino",
    "proc.pidns_init_start_ts",
    "container.full_id",
    "k8s.pod.uid",
    "fd.rip",
    "fd.rport",
    "fd.lip",
    "fd.lport",
    "fd.l4proto",
    "evt.rawtime",
    "evt.num",
)
"""Fields that no default rule of Falco puts out, and that tell which process is meant."""


class Way(enum.StrEnum):
    """How alerts come from Falco to the agent."""

    UNIX_HTTP = "unix-http"
    PROGRAM = "program"
    HTTP = "http"
    FILE = "file"


ABOUT = {
    Way.UNIX_HTTP: "http_output over the agent's unix socket: the fastest, no open port, no helper program",
    Way.PROGRAM: "program_output: curl brings each alert over the unix socket",
    Way.HTTP: "http_output over TCP: works everywhere, asks for a token",
    Way.FILE: "file_output: survives a restart of the agent; also good beside one of the others",
}


def falco_config(ways: tuple[Way, ...], *, socket: str, address: str, port: int, events_file: str) -> str:
    """Falco's settings for these ways as one YAML document. The first is live, the others are commented out."""
    parts = [_common()]
    for number, way in enumerate(ways):
        body = _WRITERS[way](socket=socket, address=address, port=port, events_file=events_file)
        head = f"# ---- {way}: {ABOUT[way]}\n"
        parts.append(head + (body if number == 0 else _commented(body)))
    return "\n".join(parts)


def append_output() -> str:
    """The fragment that makes Falco say which process it means."""
    lines = ["append_output:", "  - suggested_output: true", "  - match: {source: syscall}", "    extra_fields:"]
    return "\n".join([*lines, *(f"      - {field}" for field in APPENDED_FIELDS)]) + "\n"


def _common() -> str:
    return (
        "# falco.yaml: add this to Falco's configuration, for example as /etc/falco/config.d/stoop.yaml (Falco 0.39 or\n"
        "# later). In Falco's Helm chart it goes below the key `falco:`.\n"
        "json_output: true\n"
        "json_include_output_fields_property: true\n"
        "\n"
        "# No default rule says which process it is about; Stoop acts on none without proc.pid. The container.* and k8s.*\n"
        "# fields need Falco's container plugin, which it loads by default.\n" + append_output()
    )


def _commented(body: str) -> str:
    return "".join(f"# {line}\n" if line and not line.startswith("#") else f"{line or '#'}\n" for line in body.splitlines())


def _unix_http(*, socket: str, **_: object) -> str:
    return (
        "# Falco needs this in its environment (systemd: `Environment=` in a drop-in; Helm: `extra.env`); it concerns\n"
        "# only plain http:// URLs:\n"
        f"#   http_proxy=socks5h://localhost{quote(socket)}\n"
        "# In a container, mount the socket's directory into Falco's container as well.\n"
        "http_output:\n"
        "  enabled: true\n"
        "  url: http://stoop/\n"
    )


def _program(*, socket: str, **_: object) -> str:
    command = f"until curl -sN -T . --unix-socket {shlex.quote(socket)} http://stoop/; do sleep 1; done"
    return (
        "# curl begins anew when the agent was restarted. Falco before 0.44 buffers this output unless it runs with -U.\n"
        "program_output:\n"
        "  enabled: true\n"
        "  keep_alive: true\n"
        f"  program: {_yaml_quoted(command)}\n"
    )


def _http(*, address: str, port: int, **_: object) -> str:
    host = f"[{address}]" if ":" in address else address
    return (
        "# stoop.yaml needs:  intake: {http: {address: "
        f'"{address}", port: {port}, token_file: /etc/stoop/token}}}}\n'
        "# Falco takes the token from its environment: STOOP_TOKEN=<what is in /etc/stoop/token>\n"
        "http_output:\n"
        "  enabled: true\n"
        f"  url: http://falco:${{STOOP_TOKEN}}@{host}:{port}/\n"
    )


def _file(*, events_file: str, **_: object) -> str:
    return (
        f"# stoop.yaml needs:  intake: {{file: {{path: {events_file}}}}}\n"
        "file_output:\n"
        "  enabled: true\n"
        "  keep_alive: false\n"
        f"  filename: {_yaml_quoted(events_file)}\n"
    )


def _yaml_quoted(value: str) -> str:
    """A YAML double-quoted scalar (YAML 1.2, 7.3.1)."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


_WRITERS = {Way.UNIX_HTTP: _unix_http, Way.PROGRAM: _program, Way.HTTP: _http, Way.FILE: _file}
