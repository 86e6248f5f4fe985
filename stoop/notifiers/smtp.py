"""smtp: an e-mail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from stoop import values
from stoop.spec import (
    NotifierSpec,
    ParameterFault,
    Parameters,
)


class SmtpParameters(Parameters, frozen=True):
    """By which server, from whom, to whom."""

    host_port: Annotated[str, Meta(description="The mail server as `host:port`.")]
    from_: Annotated[str, Meta(description="The sender's address.")] = msgspec.field(name="from")
    to: Annotated[str, Meta(description="The receivers' addresses, with commas between them.")]
    user: Annotated[str, Meta(description="User name at the mail server. Empty: no authentication.")] = ""
    password: Annotated[str, Meta(description="Password at the mail server. A secret.")] = ""
    format: Annotated[str, Meta(description="`html` or `text`.")] = "html"
    tls: Annotated[bool, Meta(description="Whether to ask for TLS (STARTTLS).")] = False


def check(params: SmtpParameters) -> Iterator[ParameterFault]:
    """The value rules of this notifier."""
    yield from values.host_port("host_port", params.host_port)
    yield from values.given("from", params.from_)
    yield from values.given("to", params.to.strip(", "))
    yield from values.choice("format", params.format, ("html", "text"))


SPEC = NotifierSpec(
    name="smtp",
    description="Sends an e-mail.",
    parameters=SmtpParameters,
    check=check,
    example="""\
default_notifiers: [smtp]
notifiers:
  smtp:
    host_port: mail.example.com:587
    from: stoop@example.com
    to: oncall@example.com, security@example.com
    format: text
    tls: true
""",
)
