"""What to write into Falco's configuration, for each way to bring its alerts here. Pure text.

Sources: Falco's falco.yaml (http_output, program_output, file_output, append_output ≥ 0.39), libcurl's
CURLOPT_PROXY (a SOCKS5 proxy may be a unix socket since 7.84), curl(1) (-T . uploads standard input as it comes).
"""

from __future__ import annotations

import enum
import shlex
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Places:
    """Where the agent takes alerts: its unix socket, its HTTP address, the file that it follows."""

    socket: str
    address: str
    port: int
    events_file: str


ABOUT = {
    Way.UNIX_HTTP: "http_output over the agent's unix socket: the fastest, no open port, no helper program",
    Way.PROGRAM: "program_output: curl brings each alert over the unix socket",
    Way.HTTP: "http_output over TCP: works everywhere, asks for a token",
    Way.FILE: "file_output: survives a restart of the agent; also good beside one of the others",
}


def falco_config(ways: tuple[Way, ...], places: Places) -> str:
    """Falco's settings for these ways as one YAML document. The first is live, the others are commented out."""
    parts = [_common()]
    for number, way in enumerate(ways):
        body = _body(way, places)
        head = f"# ---- {way}: {ABOUT[way]}\n"
        parts.append(head + (body if number == 0 else _commented(body)))
    return "\n".join(parts)


def append_output() -> str:
    """The fragment that makes Falco say which process it means."""
    lines = ["append_output:", "  - suggested_output: true", "  - match: {source: syscall}", "    extra_fields:"]
    return "\n".join([*lines, *(f"      - {field}" for field in APPENDED_FIELDS)]) + "\n"


def heartbeat_rule(directory: str, name: str) -> str:
    """The rules file for Falco that answers the agent's heartbeat: opens for writing in the beacon's directory.

    The fields in its output are those that the agent looks at. Falco compares the path as it was opened.
    """
    return f"""\
# A rules file for Falco, for example /etc/falco/rules.d/stoop-heartbeat.yaml. stoop.yaml needs:  heartbeat: {{}}
# Falco's `priority` must be debug (its default). It tells the first rule only that an event matches (rule_matching), so
# this file has to come before others if one of them is about writes there as well.
- rule: {_yaml_quoted(name)}
  desc: Stoop's agent opened its beacon. The alert has to come back to it; it proves the feed and causes no act.
  condition: >
    evt.type in (open, openat, openat2) and evt.is_open_write=true and fd.num>=0
    and fd.name startswith {_yaml_quoted(directory + "/")}
  output: "Stoop heartbeat (file=%fd.name pid=%proc.pid)"
  priority: DEBUG
  source: syscall
  tags: [stoop, heartbeat]
"""


def _common() -> str:
    return f"""\
# falco.yaml: add this to Falco's configuration, for example as /etc/falco/config.d/stoop.yaml (Falco 0.39 or later).
# In Falco's Helm chart it goes below the key `falco:`.
json_output: true
json_include_output_fields_property: true

# No default rule says which process it is about, and Stoop acts on none without proc.pid. The container.* and k8s.*
# fields need Falco's container plugin, which it loads by default.
{append_output()}
# To see whether alerts still come (`heartbeat` in stoop.yaml), Falco needs a rule: `stoop falco-config --heartbeat`.
"""


def _commented(body: str) -> str:
    """The lines as comments; comments stay as they are."""
    return "".join(line if line.startswith("#") else f"# {line}" for line in body.splitlines(keepends=True))


def _body(way: Way, places: Places) -> str:
    match way:
        case Way.UNIX_HTTP:
            return _unix_http(places.socket)
        case Way.PROGRAM:
            return _program(places.socket)
        case Way.HTTP:
            return _http(places.address, places.port)
        case Way.FILE:
            return _file(places.events_file)


def _unix_http(socket: str) -> str:
    return f"""\
# Falco needs this in its environment (systemd: `Environment=` in a drop-in; Helm: `extra.env`). It concerns plain
# http:// URLs only:
#   http_proxy=socks5h://localhost{quote(socket)}
# In a container, mount the socket's directory into Falco's container as well.
http_output:
  enabled: true
  url: http://stoop/
"""


def _program(socket: str) -> str:
    command = f"until curl -sN -T . --unix-socket {shlex.quote(socket)} http://stoop/ 2>/dev/null; do sleep 1; done"
    return f"""\
# curl begins anew after a restart of the agent, but notices it only at the next alert, which is lost. It shows its
# progress in spite of -s, so its stderr goes nowhere. Falco before 0.44 buffers this output unless it runs with -U.
program_output:
  enabled: true
  keep_alive: true
  program: {_yaml_quoted(command)}
"""


def _http(address: str, port: int) -> str:
    host = f"[{address}]" if ":" in address else address
    intake = f'{{http: {{address: "{address}", port: {port}, token_file: /etc/stoop/token}}}}'
    return f"""\
# stoop.yaml needs:  intake: {intake}
# Falco takes the token from its environment: STOOP_TOKEN=<what is in /etc/stoop/token>
http_output:
  enabled: true
  url: http://falco:${{STOOP_TOKEN}}@{host}:{port}/
"""


def _file(events_file: str) -> str:
    return f"""\
# stoop.yaml needs:  intake: {{file: {{path: {events_file}}}}}
file_output:
  enabled: true
  keep_alive: false
  filename: {_yaml_quoted(events_file)}
"""


def _yaml_quoted(value: str) -> str:
    """A YAML double-quoted scalar (YAML 1.2, 7.3.1)."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
