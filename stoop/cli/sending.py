"""`stoop send`: alerts from a file to an agent, as Falco would send them."""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

import typer

from stoop.cli import FINDINGS, FINE
from stoop.cli.alerts import at_now, split
from stoop.cli.options import ConfigOption, load_config, read_input
from stoop.cli.screen import err, out, text
from stoop.errors import UserError

ANSWER_S = 10.0
"""How long one answer may take, in seconds: an agent answers before it works, so more means it is stuck."""

MAX_REASON = 1024
"""Bytes of a refusal's body that are told: an agent says one line."""

MAX_TOLD = 10
"""Refusals told one by one; the rest is only counted."""


@dataclass
class Tally:
    """What became of the alerts."""

    sent: int = 0
    answered: int = 0
    refused: list[str] = field(default_factory=list)


def send(
    file: Annotated[str, typer.Argument(help="NDJSON or one JSON alert; - for standard input.", show_default=False)],
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="SOCK|URL",
            help="A unix socket or http://…. Default: the configured intake.",
            show_default=False,
        ),
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", metavar="N", help="Alerts a second.", show_default=False)
    ] = None,
    token_file: Annotated[
        str | None, typer.Option("--token-file", metavar="FILE", help="Token for a URL.", show_default=False)
    ] = None,
    now: Annotated[
        bool, typer.Option("--now", help="Set the alerts' times to now, so that they are not too old.")
    ] = False,
    config: ConfigOption = None,
) -> int:
    """Send alerts to an agent. Exit 1 when any was refused."""
    if rate is not None and not rate > 0:
        raise UserError("--rate takes a number above 0")
    alerts = split(read_input(file))
    if not alerts:
        raise UserError("there is no alert in it", where=file)
    paced = _paced((at_now(alert) if now else alert for alert in alerts), rate)
    where = to if to is not None else _configured(config)
    if where.startswith(("http://", "https://")):
        tally = _send_http(where, paced, token_file)
        said = f"{tally.sent} sent, {tally.answered} answered, {len(tally.refused)} refused"
    else:
        if token_file is not None:
            raise UserError("--token-file is for a URL; a unix socket asks for no token")
        tally = _send_unix(where, paced)
        said = f"{tally.sent} sent (the unix socket gives no answers; see `stoop history`, `stoop status`)"
    console = err()
    for refusal in tally.refused[:MAX_TOLD]:
        console.print(text(("refused: ", "yellow"), refusal))
    out().print(text(said))
    return FINDINGS if tally.refused else FINE


def _configured(config: str | None) -> str:
    """Where the configured agent takes alerts. Raises UserError when it takes none from others."""
    intake = load_config(config).intake
    if intake.unix is not None:
        return intake.unix.path
    if intake.http is not None and intake.http.port:
        host = f"[{intake.http.address}]" if ":" in intake.http.address else intake.http.address
        return f"http://{host}:{intake.http.port}/"
    raise UserError("the configuration names no socket and no fixed port", hint="say where with --to")


def _paced(alerts: Iterable[bytes], rate: float | None) -> Iterator[bytes]:
    """The alerts, each not before its time."""
    begun = time.monotonic()
    never = threading.Event()
    for number, alert in enumerate(alerts):
        if rate is not None and (ahead := begun + number / rate - time.monotonic()) > 0:
            never.wait(ahead)
        yield alert


def _send_unix(path: str, alerts: Iterable[bytes]) -> Tally:
    tally = Tally()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_S)
        try:
            connection.connect(path)
        except OSError as error:
            raise UserError(
                f"nobody takes alerts there: {error.strerror or error}",
                where=path,
                hint="is the agent running? `stoop status`",
            ) from error
        try:
            for alert in alerts:
                connection.sendall(alert.replace(b"\n", b" ") + b"\n")
                tally.sent += 1
            connection.shutdown(socket.SHUT_WR)
            # The agent closes when it has read everything: only then is "sent" more than "in a buffer".
            while connection.recv(4096):
                pass
        except OSError as error:
            raise UserError(
                f"the agent broke off after {tally.sent} alerts: {error.strerror or error}",
                where=path,
                hint="see its log; is your user among intake.unix.allow_uids?",
            ) from error
    return tally


def _send_http(url: str, alerts: Iterable[bytes], token_file: str | None) -> Tally:
    connection, path, headers = _http_connection(url, token_file)
    tally = Tally()
    with contextlib.closing(connection):
        for alert in alerts:
            try:
                connection.request("POST", path, alert, headers)
                answer = connection.getresponse()
                body = answer.read(MAX_REASON)
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                raise UserError(
                    f"no answer after {tally.sent} alerts: {str(error) or type(error).__name__}",
                    where=url,
                    hint="is the agent running?",
                ) from error
            tally.sent += 1
            if answer.status < 300:
                tally.answered += 1
            else:
                reason = body.decode(errors="replace").strip() or answer.reason
                tally.refused.append(f"alert {tally.sent}: {answer.status} {reason}")
    return tally


def _http_connection(url: str, token_file: str | None) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
    """A connection that is not yet open, the path to post to, and the headers. A password in the URL goes as Basic."""
    headers = {"Content-Type": "application/json"}
    try:
        parts = urlsplit(url)
        make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = make(parts.hostname or "", parts.port, timeout=ANSWER_S)
    except ValueError as error:
        raise UserError(f"not a URL: {error}", where=url) from error
    if token_file is not None:
        headers["Authorization"] = f"Bearer {_token(token_file)}"
    elif parts.password is not None:
        pair = f"{unquote(parts.username or '')}:{unquote(parts.password)}"
        headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    return connection, parts.path or "/", headers


def _token(path: str) -> str:
    try:
        token = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the token can't be read: {error}", where=path) from error
    if not token.isprintable() or not token.isascii():
        raise UserError("a token is one line of plain ASCII", where=path)
    return token
