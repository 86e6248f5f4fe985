"""webhook: the record of the act as JSON, by HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta, field

from stoop import values
from stoop.spec import (
    NotifierSpec,
    ParameterFault,
    Parameters,
)


class WebhookParameters(Parameters, frozen=True):
    """Where to, and how."""

    url: Annotated[str, Meta(description="URL of the receiver.")]
    http_method: Annotated[str, Meta(description="Method of the request. With `GET` no body is sent.")] = "POST"
    # Talon's, because a receiver may tell senders apart by it.
    user_agent: Annotated[str, Meta(description="The header `User-Agent`.")] = "falco-talon"
    content_type: Annotated[str, Meta(description="The header `Content-Type`.")] = "application/json; charset=utf-8"
    custom_headers: Annotated[dict[str, str], Meta(description="Further headers. May hold secrets.")] = field(
        default_factory=dict
    )


def check(params: WebhookParameters) -> Iterator[ParameterFault]:
    """The value rules of this notifier."""
    yield from values.url("url", params.url)


SPEC = NotifierSpec(
    name="webhook",
    description="Sends the record of the act as JSON to a URL.",
    parameters=WebhookParameters,
    check=check,
    example="""\
default_notifiers: [webhook]
notifiers:
  webhook:
    url: https://alerts.example.com/falco
    custom_headers:
      Authorization: Bearer secret
""",
)
